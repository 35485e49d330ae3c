"""A network from outside the project: its noise schedule, its denoiser, where it is from, and its converged samples.

A folder PATH holds `networks.py` with NAMES and load(name); what it loads has the attributes `FIELDS` and a function
denoise(x, sigma) to x0, for x = x0 + sigma noise. Nothing of it is copied.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks import metrics
from benchmarks.converged import fine_schedule
from hso_jax import NoiseSchedule, Profile, Schedule, noise, solvers
from hso_jax.problems.model_error import measure_eta
from hso_jax.problems.product import from_components
from hso_jax.profile import spectrum_of

FIELDS = ("shape", "kind", "sigma_min", "sigma_max", "alphas_cumprod", "data_std", "denoise")
FINE_SOLVER = "dpmpp-2m"
FINE, FINER = 256, 512
"""Evaluations of the converged samples, and of what the first `CHECKED` of them are checked against."""

CHECKED = 16
PROFILED, PROFILE_STEPS = 96, 32
"""Trajectories that a profile is measured from, and evaluations of each."""

BATCH = 64
SMALL, MANY = 64, 16
"""Samples of fewer numbers than `SMALL` are points, no images: each says little and costs little, so `MANY` times as
many are taken."""


class Converged(NamedTuple):
    """What infinitely many steps would make of the noise."""

    samples: torch.Tensor  # [n, *shape] float32
    error: float  # RMSE of the first `CHECKED` to those from `FINER` evaluations


def find(folder: Path) -> Any:
    """The module `networks.py` of a folder.

    Raises:
        ValueError: if there is none, or it has no NAMES or load.
    """
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
    """What the records say of where a network is from: its row in the folder's README.md, and a digest of its files.

    The digest is of the names and contents of all files in the folder but pages and caches.
    """
    digest = hashlib.sha256()
    for file in sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix not in (".md", ".pyc")):
        digest.update(file.relative_to(folder).as_posix().encode() + b"\0" + file.read_bytes())
    readme = folder / "README.md"
    rows = readme.read_text(encoding="utf-8").splitlines() if readme.is_file() else []
    own = [row for row in rows if row.startswith(f"| {name} |")]
    return {"network": name, "sha256": digest.hexdigest(), "source": own[0] if own else "not stated"}


def noise_of(net: Any, name: str) -> NoiseSchedule:
    """A network's noise schedule: its table of alphas_cumprod, else a rectified flow's, or EDM's between its sigmas.

    Raises:
        ValueError: for another kind without a table, or as `hso_jax.noise`'s functions.
    """
    if net.alphas_cumprod is not None:
        return noise.discrete(np.asarray(net.alphas_cumprod, np.float64), name=name)
    if net.kind == "flow":
        return noise.flow(name=name)
    if net.kind == "edm":
        return noise.edm(float(net.sigma_min), float(net.sigma_max), name=name)
    raise ValueError(f"{name} is of kind {net.kind!r}; without alphas_cumprod it must be 'flow' or 'edm'")


class Outside:
    """One network, with fixed noise.

    Attributes:
        name: as given.
        noise: its noise schedule.
        start: [n, *shape] float32, standard normal; the first rows do not depend on n.
    """

    def __init__(self, module: Any, name: str, count: int, seed: int = 0) -> None:
        """Load the network.

        Args:
            module: of `find`.
            name: one of its NAMES.
            count: of samples; `MANY` times as many of points.
            seed: of the noise.

        Raises:
            ValueError: for a network without what `FIELDS` names, or as `noise_of`.
        """
        self._net = module.load(name)
        if missing := [field for field in FIELDS if not hasattr(self._net, field)]:
            raise ValueError(f"{name} has no {', no '.join(missing)}; see benchmarks/heldout/outside.py")
        self.name, self.noise = name, noise_of(self._net, name)
        self._most = float(self._net.sigma_max)
        if not 0.0 < self._most < math.inf:
            raise ValueError(f"{name} has sigma_max {self._most}; need a positive finite number")
        shape = tuple(self._net.shape)
        n = count * (MANY if math.prod(shape) < SMALL else 1)
        self.start = torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed))
        self._seed = seed
        self._calls = 0

    def _denoise(self, x: torch.Tensor, lam: float) -> torch.Tensor:
        """x0 of x [b, *shape] in VP scaling (alpha^2 + sigma^2 = 1); pure noise is the network's largest sigma."""
        self._calls += 1
        sigma = min(math.exp(-lam), self._most) if lam > -700.0 else self._most
        found = self._net.denoise(x * math.sqrt(1.0 + sigma * sigma), sigma)
        if found.shape != x.shape:
            raise ValueError(f"{self.name}: denoise made {tuple(found.shape)} of {tuple(x.shape)}")
        return found

    @torch.no_grad()
    def sample(self, schedule: Schedule, solver: str, count: int | None = None) -> tuple[torch.Tensor, int]:
        """The samples [count, *shape] of a schedule with a last step to clean data, and the network's calls for each.

        For "nonstationary" by the schedule's own coefficients, or the known solver that its search returned.

        Raises:
            RuntimeError: if the network was not called exactly N times.
        """
        parts = []
        chosen, weights = self.start[:count], self._weights(schedule, solver)
        batch = BATCH if math.prod(self.start.shape[1:]) >= SMALL else len(chosen)
        for part in chosen.split(batch):
            before = self._calls
            parts.append(self._solve(weights, part))
            if self._calls - before != schedule.nfe:
                raise RuntimeError(f"{solver} called {self.name} {self._calls - before} times for N = {schedule.nfe}")
        return torch.cat(parts), schedule.nfe

    @staticmethod
    def _weights(schedule: Schedule, solver: str) -> solvers.Weights:
        """The steps of a schedule with a solver, or with coefficients of its own. NumPy float64."""
        lams = jnp.asarray(schedule.lams)
        if schedule.coefficients is not None:
            made = solvers.nonstationary(lams, jnp.asarray(schedule.coefficients))
        else:
            made = solvers.weights(schedule.solver if solver == solvers.NONSTATIONARY else solver, lams)
        return jax.tree.map(lambda w: np.asarray(w, np.float64), made)

    def _solve(
        self, weights: solvers.Weights, x: torch.Tensor, seen: Callable[[torch.Tensor], None] | None = None
    ) -> torch.Tensor:
        """`hso_jax.solvers.run` in torch; `seen` is called with each prediction."""
        base, past = x, list[torch.Tensor]()
        for k, lam in enumerate(weights.lams):
            past = [self._denoise(x, float(lam)), *past]
            if seen is not None:
                seen(past[0])
            if weights.correct is not None:
                assert weights.keep is not None
                base = float(weights.keep[k]) * base + _combined(weights.correct[k], past)
            else:
                base = x
            x = float(weights.carry[k]) * base + _combined(weights.predict[k], past)
            past = past[: weights.predict.shape[-1] + 1]
        return x

    def converged(self) -> Converged:
        """The converged samples of the noise, by DPM++ 2M on a fine mesh (`benchmarks.converged`)."""
        samples, _ = self.sample(fine_schedule(self.noise, FINE), FINE_SOLVER)
        finer, _ = self.sample(fine_schedule(self.noise, FINER), FINE_SOLVER, CHECKED)
        return Converged(samples, float(np.sqrt(metrics.mean_squares(samples[:CHECKED], finer).mean())))

    @torch.no_grad()
    def profile(self) -> Profile:
        """What `bridge.profile` measures of a pipeline: from trajectories of other noise than `start`."""
        schedule, variances = fine_schedule(self.noise, PROFILE_STEPS), list[float]()
        of_profile = torch.Generator().manual_seed(2**31 + self._seed)
        ends = self._solve(
            self._weights(schedule, FINE_SOLVER),
            torch.randn(PROFILED, *self.start.shape[1:], generator=of_profile),
            lambda found: variances.append(float(found.double().flatten(1).var(0).sum())),
        )
        data = spectrum_of(ends.double().numpy())
        prediction = self.noise.prediction
        eta = measure_eta(schedule.lams.tolist(), variances, from_components(*data), data[1], prediction)
        return Profile(*data, prediction, *eta, (self.noise.noise_end, self.noise.data_end))


def _combined(weights: Any, known: list[torch.Tensor]) -> torch.Tensor:
    """Sum of predictions, the newest first; a solver gives those that it does not have yet no weight."""
    return torch.stack([float(w) * m for w, m in zip(weights, known, strict=False)]).sum(0)
