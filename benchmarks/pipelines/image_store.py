"""A folder of generated images that a second run goes on with: a picture a file, and what they depend on beside them.

    OUT/manifest.json                 pipeline, guidance, seed, prompts, ...: equal in every run into this folder
    OUT/trailing-ddim-6/setting.json  the schedule
    OUT/trailing-ddim-6/00000.png     the first prompt's image
    OUT/trailing-ddim-6/diverged.txt  only where the solver returned values that are not numbers

Everything is written beside and renamed: a file that is there is whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.pipelines.settings import Prepared, Setting
from bridge.cli.image_grid import save_png
from hso_jax import Schedule, schedule_file
from hso_jax.files import write_whole

MANIFEST = "manifest.json"
_SETTING = "setting.json"
_NODES = "nodes.json"
_DIVERGED = "diverged.txt"
_WHOLE = 1 << 20  # bytes; of larger files two pieces of this size are looked at


class Store:
    """The images of one pipeline and one list of prompts.

    Attributes:
        folder: where they are.
        prompts: of all images, in the order of their indices.
        batch: images that are made together. The rounding of an image depends on its neighbours, so a batch is always
            made as a whole, by whichever process.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any], prompts: Sequence[str], batch: int) -> None:
        """Compare with what is there; nothing is written.

        Args:
            folder: need not exist.
            facts: everything beside the prompts that all images depend on, as JSON.
            prompts: may be longer or shorter than in earlier runs, if they begin alike.
            batch: images a call of the pipeline.

        Raises:
            ValueError: if the folder has images made otherwise, or is none of ours.
        """
        self.folder, self.prompts, self.batch = folder, list(prompts), batch
        self._facts: dict[str, Any] = json.loads(json.dumps({**facts, "batch": batch}))
        self._longest = self.prompts
        file = folder / MANIFEST
        if not file.is_file():
            if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
                raise ValueError(f"{folder} exists and has no {MANIFEST}; choose a new folder with --out")
            return
        try:
            kept = json.loads(file.read_text(encoding="utf-8"))
            before, old = dict(kept["facts"]), list(kept["prompts"])
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{file} is not readable ({error}); choose a new folder with --out") from error
        if differing := [key for key in {**before, **self._facts} if before.get(key) != self._facts.get(key)]:
            key = differing[0]
            raise ValueError(
                f"{folder} has images made with {key} = {_short(before.get(key))}, now it is "
                f"{_short(self._facts.get(key))}; go back to that, or choose another folder with --out"
            )
        shared = min(len(old), len(self.prompts))
        if old[:shared] != self.prompts[:shared]:
            i = next(i for i in range(shared) if old[i] != self.prompts[i])
            raise ValueError(
                f"{folder} has images of other prompts: number {i} was {_short(old[i])} and is now "
                f"{_short(self.prompts[i])}; choose another folder with --out"
            )
        self._longest = max(old, self.prompts, key=len)

    def open(self) -> None:
        """Make the folder and write its manifest; one process does it, before the others write images."""
        self.folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"facts": self._facts, "prompts": self._longest}, indent=1, ensure_ascii=False)
        write_whole(self.folder / MANIFEST, text.encode())

    def keep(self, setting: Setting, prepared: Prepared) -> None:
        """Keep a setting's schedule, before its first image.

        Raises:
            ValueError: if it has images of another schedule.
        """
        known = self.prepared(setting)
        if known is not None:
            if not _same(known.schedule, prepared.schedule):
                raise ValueError(
                    f"{self.folder / setting.name} has images of another schedule; remove that folder, or rename the "
                    "method's file"
                )
            return
        schedule = None if prepared.schedule is None else json.loads(schedule_file.to_json(prepared.schedule))
        (self.folder / setting.name).mkdir(exist_ok=True)
        text = json.dumps({"seconds": prepared.seconds, "schedule": schedule}, indent=1)
        write_whole(self.folder / setting.name / _SETTING, text.encode())

    def prepared(self, setting: Setting) -> Prepared | None:
        """What `keep` kept."""
        file = self.folder / setting.name / _SETTING
        if not file.is_file():
            return None
        kept = json.loads(file.read_text())
        schedule = None if kept["schedule"] is None else schedule_file.from_json(json.dumps(kept["schedule"]))[0]
        return Prepared(schedule, kept["seconds"])

    def missing(self, setting: Setting, count: int) -> Iterator[range]:
        """The batches of the first `count` images that are not all there; none of a setting that diverged."""
        if self.diverged(setting):
            return
        for first in range(0, count, self.batch):
            batch = range(first, min(first + self.batch, count))
            if not all(self.path(setting, i).is_file() for i in batch):
                yield batch

    def path(self, setting: Setting, index: int) -> Path:
        """Of an image."""
        return self.folder / setting.name / f"{index:05d}.png"

    def write(self, setting: Setting, batch: range, images: np.ndarray, lams: Sequence[float | None]) -> None:
        """Keep images [n, H, W, 3] in [0, 1] (clipped to it), and the levels that they were made at."""
        write_whole(self.folder / setting.name / _NODES, json.dumps(list(lams)).encode())
        levels = (images.clip(0.0, 1.0) * 255.0).round().astype(np.uint8)
        for index, pixels in zip(batch, levels, strict=True):
            save_png(Image.fromarray(pixels), self.path(setting, index), {})

    def lams(self, setting: Setting) -> list[float | None]:
        """The half log-SNR of the evaluated levels; None for pure noise."""
        file = self.folder / setting.name / _NODES
        return list(json.loads(file.read_text())) if file.is_file() else []

    def give_up(self, setting: Setting, reason: str) -> None:
        """Say that the setting has no images."""
        write_whole(self.folder / setting.name / _DIVERGED, f"{reason}\n".encode())

    def diverged(self, setting: Setting) -> bool:
        """Whether the setting was given up."""
        return (self.folder / setting.name / _DIVERGED).is_file()

    def picture(self, setting: Setting, index: int) -> Image.Image:
        """One image."""
        return read_picture(self.path(setting, index))


def read_picture(path: Path) -> Image.Image:
    """An image file as RGB. Raises ValueError for one that is not readable."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except OSError as error:
        raise ValueError(f"{path} is not a readable image ({error}); remove it") from error


def unit(pictures: Sequence[Image.Image]) -> np.ndarray:
    """Pictures of one size as an array [n, 3, H, W] float32 in [-1, 1]."""
    return np.stack([np.asarray(p, np.float32).transpose(2, 0, 1) for p in pictures]) / 127.5 - 1.0


def fingerprint(folder: Path) -> str:
    """16 hexadecimal digits of a model folder: all of its small files, and size, middle and end of the large ones."""
    digest = hashlib.sha256()
    for file in sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")):
        size = file.stat().st_size
        digest.update(f"{file.relative_to(folder)} {size}\n".encode())
        with file.open("rb") as stream:
            for start in (0,) if size <= _WHOLE else (size // 2, size - _WHOLE):
                stream.seek(start)
                digest.update(stream.read(_WHOLE))
    return digest.hexdigest()[:16]


def _same(a: Schedule | None, b: Schedule | None) -> bool:
    if a is None or b is None:
        return a is b
    return np.array_equal(a.lams, b.lams) and a.end == b.end


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:59] + "…"
