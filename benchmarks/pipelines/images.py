"""Images from a pipeline at given schedules, in a folder that a second run goes on with.

The noise is the same for each schedule, and every evaluation of the network is counted.

    OUT/manifest.json                 pipeline, guidance, seed, prompts, ...: equal in every run into this folder
    OUT/trailing-ddim-6/setting.json  the schedule
    OUT/trailing-ddim-6/00000.png     the first prompt's image
    OUT/trailing-ddim-6/diverged.txt  only where the solver returned values that are not numbers

Everything is written beside and renamed: a file that is there is whole.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks.pipelines.settings import Prepared, Setting, scheduler, told_lams
from bridge.cli.pictures import save_png
from hso_jax import NoiseSchedule, Schedule, schedule_file
from hso_jax.files import write_whole

NETWORKS = ("transformer", "unet")
MANIFEST = "manifest.json"
_WHOLE = 1 << 20  # bytes; of larger files two pieces of this size are looked at


class Store:
    """The images of one pipeline and one list of prompts.

    Its `batch` images are always made together, by whichever process: the rounding of an image depends on its
    neighbours.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any], prompts: Sequence[str], batch: int) -> None:
        """Compare with what is there; nothing is written. `facts` is what all images depend on, beside the prompts.

        The prompts, in the order of the images, may be more or fewer than in earlier runs, if they begin alike.
        """
        self.folder, self.prompts, self.batch = folder, list(prompts), batch
        self._facts: dict[str, Any] = json.loads(json.dumps({**facts, "batch": batch}))
        self._longest = self.prompts
        file = folder / MANIFEST
        if not file.is_file():
            if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
                raise ValueError(f"{folder} exists and has no {MANIFEST}; choose a new folder with --out")
            return
        kept = json.loads(file.read_text(encoding="utf-8"))
        old, shared = kept["prompts"], min(len(kept["prompts"]), len(self.prompts))
        before, now = (
            {**facts, **{f"prompt {i}": text for i, text in enumerate(prompts[:shared])}}
            for facts, prompts in ((kept["facts"], old), (self._facts, self.prompts))
        )
        for key in {**before, **now}:
            if (one := before.get(key)) != (other := now.get(key)):
                told = f"made with {key} = {_short(one)}, now it is {_short(other)}"
                raise ValueError(f"{folder} has images {told}; choose another folder with --out")
        self._longest = max(old, self.prompts, key=len)

    def open(self) -> None:
        """Make the folder and write its manifest; one process does it, before the others write images."""
        self.folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"facts": self._facts, "prompts": self._longest}, indent=1, ensure_ascii=False)
        write_whole(self.folder / MANIFEST, text.encode())

    def place(self, setting: Setting, name: str | int) -> Path:
        """Find a file of a setting, or its image of a number."""
        return self.folder / setting.name / (name if isinstance(name, str) else f"{name:05d}.png")

    def keep(self, setting: Setting, prepared: Prepared) -> None:
        """Keep a setting's schedule, before its first image. Raises ValueError if it has images of another schedule."""
        if (known := self.prepared(setting)) is not None:
            a, b = known.schedule, prepared.schedule
            if (a is None) != (b is None) or (a and b and not (np.array_equal(a.lams, b.lams) and a.end == b.end)):
                told = "has images of another schedule; remove that folder, or rename the method's file"
                raise ValueError(f"{self.folder / setting.name} {told}")
            return
        schedule = None if prepared.schedule is None else json.loads(schedule_file.to_json(prepared.schedule))
        (self.folder / setting.name).mkdir(exist_ok=True)
        self._write(setting, "setting.json", {"seconds": prepared.seconds, "schedule": schedule})

    def prepared(self, setting: Setting) -> Prepared | None:
        """Read what `keep` kept."""
        if not (file := self.place(setting, "setting.json")).is_file():
            return None
        kept = json.loads(file.read_text())
        schedule = None if kept["schedule"] is None else schedule_file.from_json(json.dumps(kept["schedule"]))[0]
        return Prepared(schedule, kept["seconds"])

    def missing(self, setting: Setting, count: int) -> Iterator[range]:
        """Yield the batches of the first `count` images that are not all there; none of a setting that diverged."""
        for first in range(0, 0 if self.diverged(setting) else count, self.batch):
            batch = range(first, min(first + self.batch, count))
            if not all(self.place(setting, i).is_file() for i in batch):
                yield batch

    def write(self, setting: Setting, batch: range, images: np.ndarray, lams: Sequence[float | None]) -> None:
        """Keep images [n, H, W, 3] in [0, 1] (clipped to it), and the levels that they were made at.

        Images that are not numbers are not kept: the setting is given up.
        """
        if not np.isfinite(images).all():
            self._write(setting, "diverged.txt", f"images from {batch.start} on are not numbers")
            return
        self._write(setting, "nodes.json", list(lams))
        for index, pixels in zip(batch, (images.clip(0.0, 1.0) * 255.0).round().astype(np.uint8), strict=True):
            save_png(Image.fromarray(pixels), self.place(setting, index), {})

    def _write(self, setting: Setting, name: str, content: Any) -> None:
        write_whole(self.place(setting, name), json.dumps(content, indent=1).encode())

    def lams(self, setting: Setting) -> list[float | None]:
        """Read the half log-SNR of the evaluated levels; None for pure noise."""
        file = self.place(setting, "nodes.json")
        return list(json.loads(file.read_text())) if file.is_file() else []

    def diverged(self, setting: Setting) -> bool:
        """Whether the setting was given up."""
        return self.place(setting, "diverged.txt").is_file()


def read_picture(path: Path) -> Image.Image:
    """Read an image file as RGB. Raises ValueError for one that is not readable."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except OSError as error:
        raise ValueError(f"{path} is not a readable image ({error}); remove it") from error


def unit(paths: Sequence[Path]) -> np.ndarray:
    """Read pictures of one size as an array [n, 3, H, W] float32 in [-1, 1]."""
    return np.stack([np.asarray(read_picture(p), np.float32).transpose(2, 0, 1) for p in paths]) / 127.5 - 1.0


def fingerprint(folder: Path) -> str:
    """Make 16 hexadecimal digits of a folder: all of its small files, and size, middle and end of the large ones."""
    digest = hashlib.sha256()
    for file in sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")):
        size = file.stat().st_size
        digest.update(f"{file.relative_to(folder)} {size}\n".encode())
        with file.open("rb") as stream:
            for start in (0,) if size <= _WHOLE else (size // 2, size - _WHOLE):
                stream.seek(start)
                digest.update(stream.read(_WHOLE))
    return digest.hexdigest()[:16]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:59] + "…"


Job = tuple[Setting, range]
"""A batch of images of one setting that is to be made."""


def work(jobs: Sequence[Job]) -> int:
    """Network evaluations, of one image each."""
    return sum(setting.nfe * len(batch) for setting, batch in jobs)


class Sampler:
    """A text-to-image pipeline with its call's arguments, told one scheduler after the other.

    Attributes:
        noise: the pipeline's noise schedule.
        guidance: weight of classifier-free guidance, 1 for none: what schedules are searched for. A pipeline with
            `true_cfg_scale` (FLUX) guides by that; its `guidance_scale` is an input of the network.
    """

    def __init__(self, pipe: Any, noise: NoiseSchedule, call: Mapping[str, Any], seed: int) -> None:
        """Look at the pipeline; it is kept, and has a hook at its network from now on.

        `call` has the arguments beside prompt, steps and noise; `seed` is of the noise.
        """
        known = inspect.signature(pipe.__call__).parameters
        kind = type(pipe).__name__
        networks = [getattr(pipe, name) for name in NETWORKS if getattr(pipe, name, None) is not None]
        if "prompt" not in known or "image" in known or not networks:
            raise ValueError(f"{kind} is not a text-to-image pipeline with a network; only these are compared")
        if unknown := [name for name in call if name not in known]:
            raise ValueError(f"{kind} does not take {', '.join(unknown)}; it takes: {', '.join(known)}")
        self.pipe, self.noise, self.call, self._seed = pipe, noise, dict(call), seed
        weight = "true_cfg_scale" if "true_cfg_scale" in known else "guidance_scale"
        given = self.call.get(weight, known[weight].default) if weight in known else None
        self.guidance = max(1.0, float(given or 1.0))
        self._own, self._calls = pipe.scheduler, 0
        networks[0].register_forward_pre_hook(self._count)
        if getattr(pipe, "safety_checker", None) is not None:
            pipe.safety_checker = None  # a blacked-out image says nothing of the schedule

    def _count(self, module: Any, args: Any) -> None:
        self._calls += 1

    def scheduler(self, setting: Setting, schedule: Schedule | None) -> Any:
        """Make the scheduler of a setting. Raises ValueError if the schedule is not for this pipeline."""
        return scheduler(self._own, setting.solver, self.noise.kind == "flow", schedule)

    def images(self, scheduler: Any, nfe: int, prompts: Sequence[str], indices: Sequence[int]) -> np.ndarray:
        """Make images [n, H, W, 3] float32, in [0, 1] where they are numbers.

        The noise of an image depends on its index and the seed alone.
        """
        call = dict(self.call)
        if isinstance(call.get("negative_prompt"), str):
            call["negative_prompt"] = [call["negative_prompt"]] * len(prompts)
        # Drawn on the CPU, so that every device has the same.
        noise = [torch.Generator("cpu").manual_seed(noise_seed(self._seed, i)) for i in indices]
        self.pipe.scheduler = scheduler
        self._calls = 0
        result = self.pipe(list(prompts), num_inference_steps=nfe, generator=noise, output_type="np", **call)
        if self._calls != nfe:
            told = f"{self._calls} times in {nfe} steps of {type(scheduler).__name__}"
            only = "only pipelines that guide in one call a step are compared"
            raise RuntimeError(f"{type(self.pipe).__name__} called its network {told}; {only}")
        return np.asarray(result.images, np.float32)


def noise_seed(seed: int, index: int) -> int:
    """Make a seed for torch, another one for each image and each seed of the run."""
    return int(np.random.SeedSequence((seed, index)).generate_state(1, np.uint64)[0] >> np.uint64(1))


def generate(store: Store, jobs: Sequence[Job], sampler: Sampler, *, progress: bool) -> None:
    """Make the images of the jobs, one process' share, and keep them.

    A setting whose images are not numbers is given up: the rest of its jobs is left out, here and in other processes.
    """
    columns = BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    with Progress(
        *columns, TextColumn("{task.description}"), disable=not progress, console=Console(stderr=True)
    ) as bar:
        task = bar.add_task("", total=work(jobs))
        for setting, batch in jobs:
            bar.update(task, description=f"evaluations: {setting.name}")
            if not store.diverged(setting):
                prepared = store.prepared(setting)
                assert prepared is not None
                own = sampler.scheduler(setting, prepared.schedule)
                images = sampler.images(own, setting.nfe, [store.prompts[i] for i in batch], batch)
                store.write(setting, batch, images, told_lams(own.timesteps, sampler.noise))
            bar.advance(task, work([(setting, batch)]))
