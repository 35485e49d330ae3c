"""A network as a function that predicts clean data: the project's own, and networks from outside the project.

A folder PATH holds `networks.py` with NAMES and load(name); what it loads has the attributes `FIELDS` and a function
denoise(x, sigma) to x0, for x = x0 + sigma noise. Nothing of it is copied.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import bridge
from benchmarks.compared import fine_schedule
from benchmarks.models.load import MODELS, features, load
from hso_jax import NoiseSchedule, Profile, Schedule, noise
from hso_jax.problems.model_error import measure_eta
from hso_jax.problems.product import from_components
from hso_jax.profile import spectrum_of
from hso_jax.solvers import NONSTATIONARY

FIELDS = ("shape", "kind", "sigma_min", "sigma_max", "alphas_cumprod", "data_std", "denoise")
FINE_SOLVER = "dpmpp-2m"
PROFILED, PROFILE_STEPS = 96, 32
"""Trajectories that a profile is measured from, and evaluations of each: `bridge.profile`'s default budget."""

SMALL, MANY = 64, 16
"""Samples of fewer numbers than `SMALL` are points, no images: each says little and costs little, so `MANY` times as
many are taken."""


Denoiser = Callable[..., torch.Tensor]
Solve = Callable[[Denoiser, torch.Tensor], torch.Tensor]


class Target(NamedTuple):
    """One network at guidance 1.

    Attributes:
        name: of the network.
        noise: its noise schedule.
        denoiser: (x, level) -> x0, or (x, level, condition) -> x0; differentiable.
        shape: of a sample.
        classes: how many it is conditioned on, in turn; 0 for none.
        features: of images [n, ...] for the Frechet distance, where there is a network for them.
    """

    name: str
    noise: NoiseSchedule
    denoiser: Denoiser
    shape: tuple[int, ...]
    classes: int
    features: Callable[[torch.Tensor], torch.Tensor] | None

    @property
    def many(self) -> int:
        """How many samples are taken where one image would be."""
        return MANY if math.prod(self.shape) < SMALL else 1

    def latents(self, count: int, seed: int) -> torch.Tensor:
        """Draw [count, *shape] standard normal numbers; the first rows do not depend on the count."""
        return torch.randn(count, *self.shape, generator=torch.Generator().manual_seed(seed))

    def condition(self, count: int) -> torch.Tensor | None:
        """[count] classes, each in turn."""
        return torch.arange(count) % self.classes if self.classes else None

    @torch.no_grad()
    def each(self, solve: Solve, latents: torch.Tensor) -> torch.Tensor:
        """Solve in batches: `solve` is given the batch's denoiser (x, level) -> x0 and its latents."""
        batch = 16 if self.many == 1 else len(latents)
        condition, parts = self.condition(len(latents)), []
        for i in range(0, len(latents), batch):
            given = () if condition is None else (condition[i : i + batch],)
            parts.append(solve(lambda x, level, given=given: self.denoiser(x, level, *given), latents[i : i + batch]))
        return torch.cat(parts)

    def sample(self, schedule: Schedule, solver: str, latents: torch.Tensor) -> torch.Tensor:
        """Sample the latents with a schedule's own coefficients or, where it has none, with this solver.

        For "nonstationary" without coefficients it is the known solver that the search returned.
        """
        if schedule.coefficients is not None:
            solver = NONSTATIONARY
        elif solver == NONSTATIONARY:
            solver = schedule.solver

        def solve(denoiser: Denoiser, start: torch.Tensor) -> torch.Tensor:
            calls = 0

            def counted(x: torch.Tensor, level: bridge.Level) -> torch.Tensor:
                nonlocal calls
                calls += 1
                return denoiser(x, level)

            found = bridge.sample(counted, schedule, start, solver)
            if calls != schedule.nfe:
                raise RuntimeError(f"{solver} called {self.name} {calls} times for N = {schedule.nfe}")
            return found

        return self.each(solve, latents)

    @torch.no_grad()
    def profile(self, seed: int) -> Profile:
        """Measure what `bridge.profile` measures of a pipeline, on noise that nothing else is sampled from."""
        schedule, variances = fine_schedule(self.noise, PROFILE_STEPS), list[float]()
        latents = self.latents(PROFILED, 2**31 + seed)
        given = (c,) if (c := self.condition(PROFILED)) is not None else ()

        def seen(x: torch.Tensor, level: bridge.Level) -> torch.Tensor:
            found = self.denoiser(x, level, *given)
            variances.append(float(found.double().flatten(1).var(0).sum()))
            return found

        data = spectrum_of(bridge.sample(seen, schedule, latents, FINE_SOLVER).double().numpy())
        spectrum, prediction = from_components(*data), self.noise.prediction
        eta = measure_eta(schedule.lams.tolist(), variances, spectrum, data[1], prediction)
        return Profile(*data, prediction, *eta, (self.noise.noise_end, self.noise.data_end))


class Judged:
    """Noises that schedules are judged on, and their converged samples.

    Attributes:
        latents: [count * many, *shape].
        converged: the samples of `fine` evaluations.
    """

    def __init__(self, target: Target, count: int, fine: int, seed: int = 0) -> None:
        """Draw `count` noises, of points `MANY` times as many, and sample them with `fine` evaluations."""
        self.target, self.fine = target, fine
        self.latents = target.latents(count * target.many, seed)
        self.converged = target.sample(fine_schedule(target.noise, fine), FINE_SOLVER, self.latents)

    def error(self, count: int = 16) -> float:
        """RMSE of the first converged samples to those of twice as many evaluations."""
        finer = fine_schedule(self.target.noise, 2 * self.fine)
        found = self.target.sample(finer, FINE_SOLVER, self.latents[:count])
        return float((found - self.converged[:count]).double().square().mean().sqrt())

    def rmse(self, samples: torch.Tensor) -> float:
        """To the converged samples."""
        return float((samples - self.converged).double().square().mean().sqrt())

    def features(self, samples: torch.Tensor) -> tuple[np.ndarray, np.ndarray] | None:
        """Of the samples and of the converged ones."""
        make = self.target.features
        return None if make is None else (make(samples).numpy(), make(self.converged).numpy())


def names(folder: Path | None) -> list[str]:
    """List the project's own networks, then those of a folder."""
    return [*MODELS, *(find(folder).NAMES if folder is not None else ())]


def target(name: str, folder: Path | None) -> Target:
    """Load a network by its name: one of the project's own, or one of a folder."""
    if name not in MODELS:
        if folder is None:
            raise ValueError("a network from outside needs --networks PATH, the folder that holds it")
        return outside(find(folder), name)
    trained = load(name)

    def denoiser(x: torch.Tensor, level: Any, labels: torch.Tensor) -> torch.Tensor:
        return trained.denoise(x, level, labels, 1.0)

    noise_schedule = bridge.noise_schedule_of(trained.scheduler, name=name)
    return Target(name, noise_schedule, denoiser, trained.shape, len(trained.classes), features(trained.data))


def outside(module: Any, name: str) -> Target:
    """Load a network of a module that `find` found."""
    net = module.load(name)
    if missing := [field for field in FIELDS if not hasattr(net, field)]:
        raise ValueError(f"{name} has no {', no '.join(missing)}; see benchmarks/targets.py")
    most = float(net.sigma_max)
    if not 0.0 < most < math.inf:
        raise ValueError(f"{name} has sigma_max {most}; need a positive finite number")
    if net.alphas_cumprod is not None:
        own = noise.discrete(np.asarray(net.alphas_cumprod, np.float64), name=name)
    elif net.kind == "flow":
        own = noise.flow(name=name)
    elif net.kind == "edm":
        own = noise.edm(float(net.sigma_min), most, name=name)
    else:
        raise ValueError(f"{name} is of kind {net.kind!r}; without alphas_cumprod it must be 'flow' or 'edm'")
    # Loaders have `denoise` under `no_grad`.
    denoise = functools.partial(inspect.unwrap(type(net).denoise), net)

    def denoiser(x: torch.Tensor, level: Any) -> torch.Tensor:
        alpha, sigma = (torch.as_tensor(v, dtype=torch.float64) for v in (level.alpha, level.sigma))
        ratio = (sigma / alpha).clamp(max=most) if float(alpha) > 0 else torch.tensor(most, dtype=torch.float64)
        scale = ((1.0 + ratio**2) / (alpha**2 + sigma**2)).sqrt()
        found = denoise((x * scale).float(), ratio.float()).to(x.dtype)
        if found.shape != x.shape:
            raise ValueError(f"{name}: denoise made {tuple(found.shape)} of {tuple(x.shape)}")
        return found

    return Target(name, own, denoiser, tuple(net.shape), 0, None)


def find(folder: Path) -> Any:
    """Load the module `networks.py` of a folder."""
    file = folder / "networks.py"
    if not file.is_file():
        raise ValueError(f"{folder} has no networks.py; give the folder that holds it")
    spec = importlib.util.spec_from_file_location("networks_from_outside", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if missing := [name for name in ("NAMES", "load") if not hasattr(module, name)]:
        raise ValueError(f"{file} has no {' and no '.join(missing)}; it must say which networks there are")
    return module


def provenance(folder: Path, name: str) -> dict[str, str]:
    """Say where a network is from: its row in the folder's README.md, and a digest of files but pages and caches."""
    digest = hashlib.sha256()
    for file in sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix not in (".md", ".pyc")):
        digest.update(file.relative_to(folder).as_posix().encode() + b"\0" + file.read_bytes())
    readme = folder / "README.md"
    rows = readme.read_text(encoding="utf-8").splitlines() if readme.is_file() else []
    own = [row for row in rows if row.startswith(f"| {name} |")]
    return {"network": name, "sha256": digest.hexdigest(), "source": own[0] if own else "not stated"}
