"""The networks that are tuned on, own and from outside, as `bridge.tune_denoiser` takes them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.converged import fine_schedule
from benchmarks.heldout.outside import find, noise_of
from benchmarks.models.denoiser import OWN_SEEDS
from benchmarks.models.load import MODELS, features, load
from bridge import noise_schedule_of
from bridge.tuning.coordinates import Table, table_at
from bridge.tuning.models import DenoiserModel
from hso_jax import NoiseSchedule, Schedule, solvers

JUDGED, FINE, FINE_SOLVER = 64, 192, "dpmpp-2m"
"""Samples that schedules are judged on, and the evaluations that these converge with."""

BATCH = 16


class Target(NamedTuple):
    """One network at guidance 1.

    Attributes:
        name: of the network.
        noise: its noise schedule.
        denoiser: (x, level, condition) -> x0, differentiable.
        shape: of a sample.
        classes: how many it is conditioned on, in turn; 0 for none.
        features: of images [n, ...] for the Fréchet distance, where there is a network for them.
    """

    name: str
    noise: NoiseSchedule
    denoiser: Callable[..., torch.Tensor]
    shape: tuple[int, ...]
    classes: int
    features: Callable[[torch.Tensor], torch.Tensor] | None

    def latents(self, count: int, seed: int) -> torch.Tensor:
        """[count, ...] standard normal."""
        return torch.randn(count, *self.shape, generator=torch.Generator().manual_seed(seed))

    def condition(self, count: int) -> torch.Tensor | None:
        """[count] classes."""
        return torch.arange(count) % self.classes if self.classes else None

    @torch.no_grad()
    def sample(self, schedule: Schedule, solver: str, latents: torch.Tensor) -> torch.Tensor:
        """What a schedule and its coefficients, or else this solver, make of the latents."""
        known = solver if schedule.coefficients is None else solvers.NONSTATIONARY
        if schedule.coefficients is None and solver == solvers.NONSTATIONARY:
            known = schedule.solver
        table = Table(*(x.tolist() for x in table_at(self.noise, schedule, known)))
        model = DenoiserModel(self.denoiser, self.noise, latents, condition=self.condition(len(latents)))
        return torch.cat(
            [model.run(table, range(i, min(i + BATCH, len(latents)))) for i in range(0, len(latents), BATCH)]
        )


def tuning_seed(seed: int) -> int:
    """Of noise that nothing is judged on."""
    return OWN_SEEDS + seed


def names(folder: Path | None) -> list[str]:
    """The own networks, then those of a folder."""
    return [*MODELS, *(find(folder).NAMES if folder is not None else ())]


def target(name: str, folder: Path | None) -> Target:
    """A network by its name."""
    return _own(name) if name in MODELS else _outside(name, find(_given(folder)))


def _given(folder: Path | None) -> Path:
    if folder is None:
        raise ValueError("a network from outside needs --networks PATH, the folder that holds it")
    return folder


def _own(name: str) -> Target:
    trained = load(name)
    noise = noise_schedule_of(trained.scheduler, name=name)
    kind = "flow" if noise.kind == "flow" else trained.scheduler.config.prediction_type

    def denoiser(x: torch.Tensor, level: Any, labels: torch.Tensor) -> torch.Tensor:
        output = trained.predict(x, level.timestep, labels, 1.0)
        if kind == "epsilon":
            return (x - level.sigma * output) / level.alpha
        return (level.alpha * x if kind == "v_prediction" else x) - level.sigma * output

    return Target(name, noise, denoiser, trained.shape, len(trained.classes), features(trained.data))


def _outside(name: str, module: Any) -> Target:
    net = module.load(name)
    noise = noise_of(net, name)
    most = float(net.sigma_max)
    # Loaders have `denoise` under `no_grad`.
    denoise = functools.partial(inspect.unwrap(type(net).denoise), net)

    def denoiser(x: torch.Tensor, level: Any) -> torch.Tensor:
        alpha, sigma = (torch.as_tensor(v, dtype=torch.float64) for v in (level.alpha, level.sigma))
        ratio = (sigma / alpha).clamp(max=most) if float(alpha) > 0 else torch.tensor(most, dtype=torch.float64)
        scale = ((1.0 + ratio**2) / (alpha**2 + sigma**2)).sqrt()
        return denoise((x * scale).float(), ratio.float()).to(x.dtype)

    return Target(name, noise, denoiser, tuple(net.shape), 0, None)


class Judged:
    """Noises that schedules are judged on, and their converged samples."""

    def __init__(self, target: Target, many: int) -> None:
        """`many` times `JUDGED` noises."""
        self.target = target
        self.latents = target.latents(JUDGED * many, 0)
        self.converged = target.sample(fine_schedule(target.noise, FINE), FINE_SOLVER, self.latents)

    def rmse(self, samples: torch.Tensor) -> float:
        """To the converged samples."""
        return float((samples - self.converged).double().square().mean().sqrt())

    def features(self, samples: torch.Tensor) -> tuple[np.ndarray, np.ndarray] | None:
        """Of the samples and of the converged ones."""
        make = self.target.features
        return None if make is None else (make(samples).numpy(), make(self.converged).numpy())
