"""A model as tuning sees it: some noises, and their samples by any table of weights, with gradients where asked for.

It is a function (`DenoiserModel`), a pipeline (`PipelineModel`), or either shared by the processes of a
`torch.distributed` group (`together`; `accelerate launch`, `torchrun`), each with the same model on its own device.
Every process calls `tune` with the same arguments and returns the same result: the first one searches, and all sample.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteSchedulerOutput
from torch import distributed
from torch.utils.checkpoint import checkpoint

from bridge.noise_of import noise_schedule_of
from bridge.pipeline import ImageToImage, PipelineJobs
from bridge.sampling import Level, converged
from bridge.schedulers.install import NETWORKS, inner_pipelines
from bridge.schedulers.nonstationary import NonstationaryScheduler, conversion
from bridge.tuning.coordinates import Table
from hso_jax import solvers
from hso_jax.noise import NoiseSchedule
from hso_jax.schedule import Origin

Seen = Callable[[torch.Tensor, torch.Tensor], None]


class Model(Protocol):
    """What is tuned for.

    Attributes:
        part: the steps of a schedule that it takes, and the noise schedule of these.
        guidance: w, for which the starts are chosen.
    """

    part: ImageToImage
    guidance: float

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
        self.part = ImageToImage(noise, noise)
        self.guidance, self._recompute = guidance, False
        name = getattr(denoiser, "__qualname__", type(denoiser).__qualname__)
        self.facts: Mapping[str, Any] = {"model": noise.name, "denoiser": name}

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
    """The jobs of a diffusers pipeline, in its own loop."""

    def __init__(self, jobs: PipelineJobs) -> None:
        """Raises ValueError for a scheduler that the pipeline is distilled for, or a strength that will not do."""
        self._jobs, self.guidance = jobs, jobs.guidance
        self.part = ImageToImage.of(jobs.pipe, noise_schedule_of(jobs.pipe), jobs.call)
        self._scheduler(2)
        self.facts: Mapping[str, Any] = {
            "pipeline": type(jobs.pipe).__name__,
            "model": self.part.whole.name,
            "arguments": {k: v for k, v in jobs.call.items() if isinstance(v, (str, int, float, type(None)))},
        }

    def _scheduler(self, nfe: int) -> TableScheduler:
        noise = self.part.whole
        levels, origin = converged(noise, nfe), Origin(solver=solvers.NONSTATIONARY)
        stand_in = dataclasses.replace(levels, origin=origin, coefficients=np.zeros((nfe, 1)))
        return TableScheduler.from_schedule(self._jobs.pipe.scheduler, stand_in, noise=noise)

    def run(self, table: Table, rows: Sequence[int], seen: Seen | None = None) -> torch.Tensor:
        """See `Model`."""
        pipe, steps = self._jobs.copied(), self.part.inference_steps(len(table.carry))
        scheduler = self._scheduler(steps)
        scheduler.table, scheduler.seen = table, seen
        for part in (pipe, *inner_pipelines(pipe).values()):
            part.scheduler = scheduler
        found = self._jobs.sample(pipe, steps, rows)
        return found if found.dtype == torch.float64 else found.float()

    @contextlib.contextmanager
    def differentiable(self, recompute: bool) -> Iterator[None]:
        """See `Model`; the networks' own parameters need no gradients meanwhile."""
        modules = [part for part in self._jobs.pipe.components.values() if isinstance(part, torch.nn.Module)]
        needing = [p for module in modules for p in module.parameters() if p.requires_grad]
        networks = [getattr(self._jobs.pipe, name, None) for name in NETWORKS] if recompute else []
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


def _recomputing(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **options: Any) -> Any:
        return checkpoint(forward, *args, use_reentrant=False, **options)

    return run


def step(table: Table, i: int, x: torch.Tensor, past: Sequence[torch.Tensor]) -> torch.Tensor:
    """The sample after step i, from the predictions of clean data so far, the newest first."""
    newest, *older = past
    then = x * table.carry[i] + newest * table.predict[i][0]
    for weight, known in zip(table.predict[i][1:], older, strict=False):
        then = then + known * weight
    return then


class TableScheduler(NonstationaryScheduler):
    """A `NonstationaryScheduler` whose levels and weights are those of a table, whatever its schedule says.

    Attributes:
        table: of as many rows as the schedule, with the same first node; set before sampling.
        seen: called with the sample and the prediction of clean data in each step.
    """

    table: Table
    seen: Callable[[torch.Tensor, torch.Tensor], None] | None = None

    def set_timesteps(
        self,
        num_inference_steps: Any = None,
        device: Any = None,
        timesteps: Any = None,
        sigmas: Any = None,
        mu: Any = None,
        **options: Any,
    ) -> None:
        """As the class that it stands for; the timesteps then are the table's."""
        super().set_timesteps(num_inference_steps, device, timesteps, sigmas, mu, **options)
        told = self.table.timestep
        told = told if isinstance(told, torch.Tensor) else torch.tensor(told, dtype=torch.float64)
        told = told.to(self.timesteps.device, self.timesteps.dtype)
        # Of an image-to-image pipeline's steps the first are not taken.
        self.timesteps = torch.cat([self.timesteps[: len(self.timesteps) - len(told)], told])
        self._step_index = 0

    def add_noise(self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """As the class that it stands for, at the table's levels."""
        told = torch.as_tensor(timesteps, device=self.timesteps.device).flatten()
        rows = (self.timesteps.detach() - told[:, None]).abs().argmin(1) - len(self.timesteps)
        shape = (-1,) + (1,) * (original_samples.dim() - 1)
        levels = (torch.stack([torch.as_tensor(x[row]) for row in rows]) for x in (self.table.alpha, self.table.sigma))
        alpha, sigma = (x.to(original_samples).reshape(shape) for x in levels)
        return alpha * original_samples + sigma * noise

    def scale_model_input(self, sample: torch.Tensor, timestep: Any = None) -> torch.Tensor:
        """The network's input."""
        return sample if self.schedule.kind != "ve" else sample * self._converts(self._step_index or 0)[0]

    def step(  # type: ignore[override]
        self,
        model_output: torch.Tensor,
        timestep: Any,
        sample: torch.Tensor,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> Any:
        """The sample at the next node; nothing is written in place."""
        index = self._step_index or 0
        x = sample.to(torch.promote_types(sample.dtype, torch.float32))
        output = model_output if model_output.shape == x.shape else model_output[:, : x.shape[1]]
        _, skip, out = self._converts(index)
        clean = self._clipped(x * skip + output.to(x.dtype) * out)
        if self.seen is not None:
            self.seen(x, clean)
        self._past = (clean, *self._past)[: len(self.table.predict[index])]
        then = step(self.table, index, x, self._past)
        self._step_index = index + 1
        return EulerDiscreteSchedulerOutput(then, clean) if return_dict else (then, clean)

    def _converts(self, index: int) -> tuple[Any, Any, Any]:
        return conversion(self.table.alpha[index], self.table.sigma[index], self.schedule.kind, self.config)


Result = TypeVar("Result")


def together(model: Model, search: Callable[[Model], Result]) -> Result:
    """What `search` of the model returns, its samples made by all processes of the group; or of this one alone.

    What the first process raises all raise.
    """
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return search(model)
    if distributed.get_rank() > 0:
        return _serve(model)
    try:
        found = search(_Shared(model))
    except Exception as trouble:  # an interrupt is the launcher's to pass on: the others may be amid a call
        _send("failed", trouble)
        raise
    _send("found", found)
    return found


class _Shared:
    """The model in the first process: each process samples some of the rows."""

    def __init__(self, model: Model) -> None:
        self._model, self._alone = model, False
        self.part, self.guidance = model.part, model.guidance

    def run(self, table: Table, rows: Sequence[int], seen: Seen | None = None) -> torch.Tensor:
        """See `Model`; what is watched, and what gradients are taken of, is sampled here."""
        if self._alone or seen is not None or len(rows) == 1:
            return self._model.run(table, rows, seen)
        _send("run", (table, list(rows)))
        parts = _gathered(_sampled(self._model, table, rows))
        for part in parts:
            if isinstance(part, BaseException):
                raise part
        found = parts[0].new_empty((len(rows), *parts[0].shape[1:]))
        for rank, part in enumerate(parts):
            if part is not None:
                found[rank :: len(parts)] = part
        return found

    @contextlib.contextmanager
    def differentiable(self, recompute: bool) -> Iterator[None]:
        """See `Model`."""
        self._alone = True
        try:
            with self._model.differentiable(recompute):
                yield
        finally:
            self._alone = False


def _serve(model: Model) -> Any:
    """Sample what the first process asks for, until it has found something."""
    while True:
        what, value = _received()
        if what == "found":
            return value
        if what == "failed":
            raise value
        with torch.no_grad():
            _gathered(_sampled(model, *value))


def _sampled(model: Model, table: Table, rows: Sequence[int]) -> torch.Tensor | Exception | None:
    """This process' share of the rows, on the CPU; None if it has none."""
    own = list(rows)[distributed.get_rank() :: distributed.get_world_size()]
    try:
        return model.run(table, own).cpu() if own else None
    except Exception as trouble:  # the others wait for an answer
        return _sendable(trouble)


def _gathered(value: Any) -> list[Any]:
    found: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(found, value)
    return found


def _send(what: str, value: Any) -> None:
    distributed.broadcast_object_list([(what, _sendable(value) if isinstance(value, Exception) else value)], src=0)


def _received() -> tuple[str, Any]:
    message: list[Any] = [None]
    distributed.broadcast_object_list(message, src=0)
    return message[0]


def _sendable(trouble: Exception) -> Exception:
    """One that can be pickled, and still says when memory ran out."""
    if type(trouble) in (ValueError, MemoryError, RuntimeError):
        return trouble
    return RuntimeError(f"{type(trouble).__name__}: {trouble}")
