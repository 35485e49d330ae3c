"""A model as tuning sees it: some noises, and their samples by any table of weights, with gradients where asked for."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import inspect
import math
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint

from bridge.fingerprint import NETWORKS
from bridge.fitness import converged, given_as, texts_for
from bridge.noise_of import noise_schedule_of
from bridge.recommending import guidance_call, usual_guidance
from bridge.sampling import Level
from bridge.schedulers.install import inner_pipelines
from bridge.tuning.coordinates import Table
from bridge.tuning.partial import Part, of_rows
from bridge.tuning.stepping import TableScheduler, step
from hso_jax import solvers
from hso_jax.checks import check_guidance
from hso_jax.noise import NoiseSchedule
from hso_jax.schedule import Origin

Seen = Callable[[torch.Tensor, torch.Tensor], None]


class Model(Protocol):
    """What is tuned for.

    Attributes:
        part: the steps of a schedule that it takes, and the noise schedule of these.
        guidance: w, for which the starts are chosen.
        count: noises (with their prompts) there are.
        told: what a file says of it, JSON values.
    """

    part: Part
    guidance: float
    count: int
    told: Mapping[str, Any]

    def run(self, table: Table, rows: Sequence[int], seen: Seen | None = None) -> torch.Tensor:
        """[len(rows), ...] samples of these noises by N evaluations each.

        Args:
            table: of N rows; lists of numbers, or within `differentiable` tensors, whose gradients are taken.
            rows: indices of noises.
            seen: called with the sample and the prediction of clean data at each evaluation.
        """
        ...

    def differentiable(self, recompute: bool) -> contextlib.AbstractContextManager[None]:
        """Within it `run` is differentiable, and the pass back is made.

        Args:
            recompute: keep no activations of the network but compute them again.
        """
        ...


class DenoiserModel:
    """A function of the sample and its noise level, as `bridge.sample` takes it."""

    def __init__(
        self,
        denoiser: Callable[..., torch.Tensor],
        noise: NoiseSchedule,
        start: torch.Tensor,
        guidance: float = 1.0,
        condition: torch.Tensor | None = None,
    ) -> None:
        """`start` [n, ...] is standard normal, and is scaled as `bridge.sample` scales it; `condition` [n, ...]."""
        self._denoiser, self._start, self._condition = denoiser, start, condition
        self.part = Part(noise, noise)
        self.guidance, self.count, self._recompute = guidance, len(start), False
        name = getattr(denoiser, "__qualname__", type(denoiser).__qualname__)
        self.told: Mapping[str, Any] = {"model": noise.name, "denoiser": name}

    def run(self, table: Table, rows: Sequence[int], seen: Seen | None = None) -> torch.Tensor:
        """See `Model`."""
        x = self._start[list(rows)]
        if self.part.noise.kind == "ve":
            x = x * (1.0 + table.sigma[0] ** 2) ** 0.5
        given = () if self._condition is None else (self._condition[list(rows)],)
        past: list[torch.Tensor] = []
        for i in range(len(table.carry)):
            level = Level(table.timestep[i], table.alpha[i], table.sigma[i], _lam(table.alpha[i], table.sigma[i]))
            denoise = _recomputing(self._denoiser) if self._recompute else self._denoiser
            found = denoise(x, level, *given)
            if seen is not None:
                seen(x, found)
            past = [found, *past][: len(table.predict[i])]
            x = step(table, i, x, past)
        return x

    @contextlib.contextmanager
    def differentiable(self, recompute: bool) -> Iterator[None]:
        """See `Model`."""
        self._recompute = recompute
        try:
            with torch.enable_grad():
                yield
        finally:
            self._recompute = False


def _lam(alpha: Any, sigma: Any) -> Any:
    if isinstance(alpha, torch.Tensor):
        return alpha.log() - sigma.log()
    return -math.inf if alpha == 0 else math.log(alpha / sigma)


class PipelineModel:
    """A diffusers pipeline as it is: its networks, adapters, device and guidance, in its own loop."""

    def __init__(
        self,
        pipe: Any,
        jobs: Sequence[tuple[Any, int]],
        guidance: float | None,
        call: Mapping[str, Any],
        images: Mapping[str, Sequence[Any]] = types.MappingProxyType({}),
    ) -> None:
        """Look at everything that can be wrong before any evaluation.

        Args:
            pipe: is left as it is; a shallow copy samples.
            jobs: (prompt, seed) of each noise.
            guidance: w; the pipeline's own by default.
            call: further arguments of the pipeline's call.
            images: those of them that hold an image for each noise.

        Raises:
            ValueError: for arguments that the pipeline does not take, or a scheduler that it is distilled for.
        """
        self._given = given_as(pipe, {**call, **images}, images=True)
        self.guidance = usual_guidance(pipe)[0] if guidance is None else check_guidance(guidance)
        more = {} if guidance is None else guidance_call(pipe, self.guidance, call)
        self._pipe, self._jobs, self._call = pipe, list(jobs), {"output_type": "latent", **call, **more}
        self._images, self.count = images, len(self._jobs)
        self.part = Part.of(pipe, noise_schedule_of(pipe), self._call)
        self._scheduler(2)
        self.told: Mapping[str, Any] = {
            "pipeline": type(pipe).__name__,
            "model": self.part.whole.name,
            "arguments": {k: v for k, v in self._call.items() if isinstance(v, (str, int, float, type(None)))},
        }

    def _scheduler(self, nfe: int) -> TableScheduler:
        noise = self.part.whole
        levels, origin = converged(noise, nfe), Origin(solver=solvers.NONSTATIONARY)
        stand_in = dataclasses.replace(levels, origin=origin, coefficients=np.zeros((nfe, 1)))
        return TableScheduler.from_schedule(self._pipe.scheduler, stand_in, noise=noise)

    def run(self, table: Table, rows: Sequence[int], seen: Seen | None = None) -> torch.Tensor:
        """See `Model`."""
        pipe = copy.copy(self._pipe)
        steps = self.part.inference_steps(len(table.carry))
        pipe.scheduler = self._scheduler(steps)
        pipe.scheduler.table, pipe.scheduler.seen = table, seen
        for name, part in inner_pipelines(pipe).items():
            inner = copy.copy(part)
            inner.scheduler = pipe.scheduler
            setattr(pipe, name, inner)
        pipe.set_progress_bar_config(disable=True)
        jobs = [self._jobs[row] for row in rows]
        # The noise comes from the CPU, so that every device has the same.
        generators = [torch.Generator("cpu").manual_seed(seed) for _, seed in jobs]
        options = {**self._call, **texts_for(self._call, len(jobs)), **_repeated(self._call, len(jobs))}
        options.update(of_rows(self._images, rows))
        if "prompt_embeds" not in self._call:
            options[self._given] = [prompt for prompt, _ in jobs]
        own = type(pipe).__call__
        sample: Any = inspect.unwrap(own) if torch.is_grad_enabled() else own  # pipelines are under `no_grad`
        found = sample(pipe, **options, num_inference_steps=steps, generator=generators, return_dict=False)[0]
        if not isinstance(found, (torch.Tensor, np.ndarray)):
            raise ValueError(f"{type(pipe).__name__} returned a {type(found).__name__}; try output_type='pt'")
        found = torch.as_tensor(found)
        return found if found.dtype == torch.float64 else found.float()

    @contextlib.contextmanager
    def differentiable(self, recompute: bool) -> Iterator[None]:
        """See `Model`; the networks' own parameters need no gradients meanwhile."""
        modules = [part for part in self._pipe.components.values() if isinstance(part, torch.nn.Module)]
        needing = [p for module in modules for p in module.parameters() if p.requires_grad]
        networks = [getattr(self._pipe, name, None) for name in NETWORKS] if recompute else []
        wrapped = [(net, net.__dict__.get("forward")) for net in networks if isinstance(net, torch.nn.Module)]
        for parameter in needing:
            parameter.requires_grad_(False)
        for net, _ in wrapped:
            net.forward = _recomputing(net.forward)
        try:
            with torch.enable_grad():
                yield
        finally:
            for net, before in wrapped:
                if before is None:
                    del net.forward
                else:
                    net.forward = before
            for parameter in needing:
                parameter.requires_grad_(True)


def _repeated(call: Mapping[str, Any], samples: int) -> dict[str, torch.Tensor]:
    """Those tensors of a call that stand for one prompt, for each sample."""
    one = {k: v for k, v in call.items() if "embeds" in k and isinstance(v, torch.Tensor) and len(v) == 1}
    return {k: v.repeat(samples, *[1] * (v.dim() - 1)) for k, v in one.items()}


def _recomputing(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **options: Any) -> Any:
        return checkpoint(forward, *args, use_reentrant=False, **options)

    return run
