"""Features of image files, and the mean and covariance of reference images, from a folder or from a stats file.

A stats file is an `.npz` with `mu` [d] and `sigma` [d, d], as pytorch-fid writes them.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import track

from benchmarks.metrics import Extractor, Moments, moments_of
from benchmarks.pipelines.image_store import read_picture, unit
from hso_jax.files import write_whole

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


class Extraction(NamedTuple):
    """How features are extracted.

    Attributes:
        extract: images [n, 3, H, W] in [-1, 1] to features [n, d].
        fingerprint: of it.
        features: d.
        batch: images at once.
    """

    extract: Extractor
    fingerprint: str
    features: int
    batch: int


def read_stats(path: Path, features: int) -> Moments:
    """A stats file, for an extractor of so many features.

    Raises:
        ValueError: for a file without mu and sigma, or of another extractor.
    """
    try:
        with np.load(path) as kept:
            mu, sigma = (np.asarray(kept[name], np.float64) for name in ("mu", "sigma"))
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(f"reference: {path} is not a .npz file with mu and sigma ({error})") from error
    if mu.shape != (features,) or sigma.shape != (features, features):
        raise ValueError(
            f"reference: {path} has mu {mu.shape} and sigma {sigma.shape}, but the extractor {features} features; "
            "make it with the same extractor, or give the folder of images instead"
        )
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise ValueError(f"reference: {path} has values that are not numbers; make it again")
    values, vectors = np.linalg.eigh(sigma)
    return Moments(mu, np.sqrt(values.clip(0.0))[:, None] * vectors.T)


def list_images(folder: Path) -> list[Path]:
    """The images in a folder, by name; folders in it are not looked at.

    Raises:
        ValueError: for less than two, or for images of different sizes (only their headers are read).
    """
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)
    if len(files) < 2:
        raise ValueError(f"reference: {folder} has {len(files)} images ({', '.join(SUFFIXES)}); need two or more")
    first: tuple[int, int] | None = None
    for file in files:
        try:
            with Image.open(file) as image:
                size = image.size
        except OSError as error:
            raise ValueError(f"reference: {file} is not a readable image ({error}); remove it") from error
        first = first or size
        if size != first:
            raise ValueError(
                f"reference: {file} is {size[0]} x {size[1]}, but {files[0].name} {first[0]} x {first[1]}; "
                "crop or resize the folder to one size"
            )
    return files


def moments_of_images(files: Sequence[Path], how: Extraction, kept: Path, *, progress: bool) -> Moments:
    """Of image files of one size; computed once, then read from `kept`, a stats file."""
    facts = [how.fingerprint, *(f"{p.resolve()} {p.stat().st_size} {p.stat().st_mtime_ns}" for p in files)]
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    if kept.is_file():
        with np.load(kept) as found:
            known = str(found["key"]) == key
        if known:
            return read_stats(kept, how.features)
    moments = moments_of(features_of(files, how, "features: reference images", progress=progress))
    buffer = io.BytesIO()
    np.savez(buffer, mu=moments.mu, sigma=moments.root.T @ moments.root, key=key)
    write_whole(kept, buffer.getvalue())
    return moments


def features_of(files: Sequence[Path], how: Extraction, label: str, *, progress: bool) -> np.ndarray:
    """[n, d] float64 of image files of one size; `label` names the bar."""
    starts = range(0, len(files), how.batch)
    shown = track(starts, label, console=Console(stderr=True), disable=not progress, transient=True)
    return np.concatenate([how.extract(_tensor(files[i : i + how.batch])) for i in shown])


def _tensor(files: Sequence[Path]) -> torch.Tensor:
    return torch.from_numpy(unit([read_picture(file) for file in files]))
