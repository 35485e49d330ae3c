"""Mean and covariance of the features of images, from pictures or from a stats file, and the Frechet distance of two.

`benchmarks.metrics.frechet` is the same distance for the few features of the classifiers here. It takes minutes for
Inception's 2048, once for each resampled set; here it is a singular value problem no larger than the number of images.

A stats file is an `.npz` with `mu` [d] and `sigma` [d, d], as pytorch-fid writes them.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import track

from benchmarks.image_store import read_picture, unit
from benchmarks.metrics import FRECHET_RESAMPLES, Estimate, Extractor
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


class Moments(NamedTuple):
    """Of a set of features: the mean, and the covariance as root^T root."""

    mu: np.ndarray  # [d]
    root: np.ndarray  # [k, d], k at most d


def moments_of(features: np.ndarray) -> Moments:
    """Of features [n, d], n > 1."""
    mu = features.mean(0)
    root = (features - mu) / np.sqrt(len(features) - 1)
    if len(root) > root.shape[1]:
        root = np.linalg.qr(root, mode="r")
    return Moments(mu, root)


def distance(a: Moments, b: Moments) -> float:
    """|mu_a - mu_b|^2 + tr(A + B - 2 (A B)^(1/2)), squared Frechet distance of two normal distributions.

    The eigenvalues of A B are the squared singular values of root_a root_b^T.

    Source: Dowson & Landau 1982, J. Multivariate Anal. 12; for images Heusel et al. 2017, arXiv 1706.08500, eq. 6.
    """
    shared = np.linalg.svd(a.root @ b.root.T, compute_uv=False).sum()
    spread = np.square(a.root).sum() + np.square(b.root).sum()
    return max(0.0, float(np.square(a.mu - b.mu).sum() + spread - 2.0 * shared))


def frechet_paired(a: np.ndarray, b: np.ndarray, seed: int = 0) -> Estimate:
    """Of features [n, d] of images in pairs, which are resampled in pairs; otherwise as `frechet_to`."""
    _check(a, b.shape[1])
    if a.shape != b.shape:
        raise ValueError(f"features of shapes {a.shape} and {b.shape} are no pairs")
    _check(b, b.shape[1])
    return _estimate(len(a), seed, lambda i: distance(moments_of(a[i]), moments_of(b[i])))


def frechet_to(features: np.ndarray, reference: Moments, seed: int = 0) -> Estimate:
    """Of features [n, d] to a set of which only the moments are known.

    The interval (95 %) is over the choice of the n images. The distance of a resampled set is larger than that of the
    set itself, so the interval is moved until its centre of mass is the value.

    Raises:
        ValueError: for fewer than two images, another number of features, or features that are not finite.
    """
    _check(features, len(reference.mu))
    return _estimate(len(features), seed, lambda i: distance(moments_of(features[i]), reference))


def _estimate(count: int, seed: int, measure: Callable[[np.ndarray], float]) -> Estimate:
    draw = np.random.default_rng(seed)
    value = measure(np.arange(count))
    again = [measure(draw.integers(count, size=count)) for _ in range(FRECHET_RESAMPLES)]
    low, high = np.quantile(again, (0.025, 0.975)) - np.mean(again)
    return Estimate(value, max(0.0, value + low), value + high)


def _check(features: np.ndarray, wanted: int) -> None:
    if features.ndim != 2 or len(features) < 2 or features.shape[1] != wanted:
        raise ValueError(f"features of shape {features.shape}: need two images or more, and {wanted} features")
    if not np.isfinite(features).all():
        raise ValueError("features are not finite; look at the extractor")


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
