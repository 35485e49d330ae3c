"""A trained model as the benchmarks judge it: fixed noise, labels and guidance, and the converged samples of these.

Every schedule is judged on the same noise and the same labels, so that what differs between two schedules is the error
of their steps alone. Converged samples run the probability-flow ODE from the model's own end (timestep 999 of the
discrete models, sigma 1 of the flow) to its smallest level, and from there in one step to clean data.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import numpy as np
import torch
from rich.progress import track

import bridge
from benchmarks.compared import SOLVERS, UNIFORM_T, fine_schedule, scheduler_class, scheduler_config
from benchmarks.models.load import features, load
from hso_jax import NoiseSchedule, Schedule
from hso_jax.files import write_whole
from hso_jax.solvers import NONSTATIONARY

CACHE = Path("build/benchmarks")
OWN_SEEDS = 1_000_000
"""Subjects with seeds from here on belong to preparation; schedules are judged on smaller ones."""

# Evaluations of a quick approximation (for searches), of the converged samples, and of what these are checked against.
# The networks' output wiggles in time with a period of 6.3 timesteps, that of the fastest sine of their time embedding.
# Longer steps meet the wiggle at random, whatever the solver's order: measured RMSE 7e-4 to 2e-3 with 128 evaluations,
# 7e-5 to 4e-4 with 256.
REFINEMENTS = (64, 256, 512)
FINE_SOLVER = "dpmpp-2m"
CHECKED = 16  # images for which the second is solved
LIMIT = 1e-3  # RMSE between the last two refinements


class Samples(NamedTuple):
    """What a schedule makes of the fixed noise."""

    images: torch.Tensor  # [n, C, 32, 32] float32, as the solver leaves them, not clipped to [-1, 1]
    calls: int  # calls of the network for each image, counted at the network; guidance does not double them


class Teacher(NamedTuple):
    """The converged samples."""

    images: torch.Tensor  # [n, C, 32, 32] float32
    error: float  # RMSE of the first `CHECKED` to those from twice as many evaluations, in units of [-1, 1] pixels


class Subject:
    """A trained model at one guidance weight, with `count` noises and labels.

    Attributes:
        name, guidance, count, seed: as given.
        trained: the model.
        data: "fashion" or "emoji".
        noise: the model's noise schedule, what searches need.
        start: [count, C, 32, 32] float32, standard normal; the first rows do not depend on `count`.
        labels: [count] int64, each class in turn.
    """

    def __init__(self, name: str, guidance: float = 1.0, count: int = 256, seed: int = 0, batch: int = 32) -> None:
        """Load the model and draw its noise.

        Args:
            name: of `benchmarks.models.load.MODELS`.
            guidance: weight w of classifier-free guidance, none + w (labelled - none); 1 is without.
            count: of samples.
            seed: of the noise.
            batch: images a call of the network.
        """
        if count < 1 or not math.isfinite(guidance):
            raise ValueError(f"count is {count} and guidance {guidance}; need 1 or more, and a number")
        self.trained = load(name)
        self.name, self.guidance, self.count, self.seed = name, float(guidance), count, seed
        self.data = self.trained.data
        self.noise: NoiseSchedule = bridge.noise_schedule_of(self.trained.scheduler, name=name)
        self.start = torch.randn(count, *self.trained.shape, generator=torch.Generator().manual_seed(seed))
        self.labels = torch.arange(count) % len(self.trained.classes)
        self._batch = batch
        self._calls = 0
        unet = self.trained.unet
        unet.to(memory_format=torch.channels_last)  # a fifth faster on CPUs at this batch
        unet.register_forward_hook(self._count)

    def _count(self, module: Any, args: Any, output: Any) -> None:
        self._calls += 1

    def scheduler(self, solver: str) -> Any:
        """A diffusers scheduler of the model that takes the steps of the solver of `hso_jax.solvers` with this name.

        For "nonstationary" any: what is installed in it is a scheduler of its own.
        """
        solver = "dpmpp-2m" if solver == NONSTATIONARY else solver
        if solver not in SOLVERS:
            raise ValueError(f"solver is {solver!r}; use one of {', '.join(SOLVERS)}")
        flow = self.noise.kind == "flow"
        kind = getattr(diffusers, scheduler_class(solver, flow))
        return kind.from_config(self.trained.scheduler.config, **scheduler_config(solver, flow))

    def for_preparation(self, count: int, seed: int) -> Subject:
        """Take the same model and guidance on `count` other noises: nothing is judged on what it was prepared with.

        Preparations with seeds 0, 1, ... each have their own noises.
        """
        if seed < 0 or self.seed >= OWN_SEEDS:
            raise ValueError(
                f"seed is {seed}, the subject's {self.seed}; need 0 or more, and a subject below {OWN_SEEDS}"
            )
        return Subject(self.name, self.guidance, count=count, seed=OWN_SEEDS + seed)

    def sample(self, schedule: Schedule, solver: str, rows: slice | None = None) -> Samples:
        """Sample with diffusers' scheduler at the schedule, through `bridge.with_schedule`.

        `solver` is of `SOLVERS`; `rows` are the fixed noises and labels that are taken, all by default.
        """
        plain = self.scheduler(solver)
        if schedule.coefficients is None:
            scheduler = bridge.with_schedule(plain, schedule)
        else:
            scheduler = bridge.NonstationaryScheduler.from_schedule(plain, schedule)
        chosen = range(self.count)[rows or slice(None)]
        parts = []
        for first in range(0, len(chosen), self._batch):
            part = np.asarray(chosen[first : first + self._batch])
            before = self._calls
            parts.append(self._solve(scheduler, schedule.nfe, torch.from_numpy(part)))
            if self._calls - before != schedule.nfe:
                raise RuntimeError(
                    f"{solver} called the network {self._calls - before} times for a schedule of {schedule.nfe}"
                )
        return Samples(torch.cat(parts), schedule.nfe)

    @torch.no_grad()
    def _solve(self, scheduler: Any, nfe: int, part: torch.Tensor) -> torch.Tensor:
        scheduler.set_timesteps(nfe)
        x, labels = self.start[part], self.labels[part]
        for t in scheduler.timesteps:
            x = scheduler.step(self.trained.predict(x, t, labels, self.guidance), t, x).prev_sample
        return x

    def teacher(self) -> Teacher:
        """The converged samples; solved once, then read from `CACHE`."""
        file = CACHE / f"teacher-{self.name}-{self._key()}.npz"
        if file.exists():
            with np.load(file) as kept:
                return Teacher(torch.from_numpy(kept["images"]), float(kept["error"]))
        _, used, finer = REFINEMENTS
        images = self._converge(used, self.count)
        error = float((self._converge(finer, CHECKED) - images[:CHECKED]).square().mean().sqrt())
        if not error <= LIMIT:
            raise RuntimeError(
                f"{self.name}, guidance {self.guidance:g}: the converged samples still move by "
                f"{error:.2g} from {used} to {finer} evaluations, more than {LIMIT:g}"
            )
        buffer = io.BytesIO()
        np.savez(buffer, images=images.numpy(), error=error)
        CACHE.mkdir(parents=True, exist_ok=True)
        write_whole(file, buffer.getvalue())
        return Teacher(images, error)

    def _converge(self, nfe: int, count: int) -> torch.Tensor:
        """The first `count` samples from many evaluations."""
        schedule, count = fine_schedule(self.noise, nfe), min(count, self.count)
        words = f"{self.name}, guidance {self.guidance:g}: {nfe} evaluations"
        rows = [slice(i, min(i + self._batch, count)) for i in range(0, count, self._batch)]
        return torch.cat([self.sample(schedule, FINE_SOLVER, part).images for part in track(rows, words)])

    def _key(self) -> str:
        """16 hexadecimal digits of everything the converged samples depend on."""
        weights = self.trained.folder / "unet" / "diffusion_pytorch_model.safetensors"
        facts = {
            "weights": hashlib.sha256(weights.read_bytes()).hexdigest(),
            "noise": self.noise.fingerprint(),
            "guidance": self.guidance,
            "count": self.count,
            "seed": self.seed,
            "dtype": "float32",
            "batch": self._batch,
            "integrator": [FINE_SOLVER, UNIFORM_T, *REFINEMENTS[1:]],
            "versions": [torch.__version__, diffusers.__version__],
        }
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]

    def features(self, images: torch.Tensor) -> np.ndarray:
        """[n, 96] of the classifier's penultimate layer, for images [n, C, 32, 32] (clipped to [-1, 1])."""
        with torch.no_grad():
            return np.asarray(_extractor(self.data)(images))


@functools.cache
def _extractor(data: str) -> Any:
    return features(data)
