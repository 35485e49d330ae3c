"""A model as tuning sees it: some noises, and their samples by any schedule or table, with gradients where asked for.

It is a function (`DenoiserModel`), a pipeline (`PipelineModel`), or either shared by the processes of a
`torch.distributed` group (`together`; `accelerate launch`, `torchrun`), each with the same model on its own device.
Every process calls `tune` with the same arguments and returns the same result: the first one searches, and all sample.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteSchedulerOutput
from torch import distributed
from torch.utils.checkpoint import checkpoint

from bridge.noise_of import noise_schedule_of
from bridge.pipeline import IMAGES, ImageToImage, PipelineJobs, image_for_each
from bridge.sampling import Level, converged
from bridge.schedulers import install
from bridge.schedulers.nonstationary import NonstationaryScheduler, conversion
from bridge.schedulers.scheduled import mixed
from bridge.tuning.coordinates import Table, table_at
from hso_jax import solvers
from hso_jax.checks import brief, check_guidance
from hso_jax.noise import NoiseSchedule, check_noise
from hso_jax.schedule import Origin, Schedule, versions

Seen = Callable[[torch.Tensor, torch.Tensor], None]
Steps = Table | Schedule


class Model(Protocol):
    """What is tuned for."""

    part: ImageToImage
    """The steps of a schedule that it takes, and the noise schedule of these."""

    guidance: float
    """w, for which the starts are chosen."""

    solver: str | None
    """The only one that it can sample with; None where any will do."""

    def run(self, steps: Steps, rows: Sequence[int], seen: Seen | None = None) -> torch.Tensor:
        """[len(rows), ...] samples of the noises with these indices, by N evaluations each.

        `steps` are a schedule with its coefficients, or else for the solver that it names; or a table of N rows, lists
        of numbers, or within `differentiable` tensors, whose gradients are taken. `seen` is called with the sample and
        the prediction of clean data at each evaluation.
        """
        ...

    def differentiable(self, recompute: bool) -> contextlib.AbstractContextManager[None]:
        """Within it `run` is differentiable; with `recompute` the network's activations are computed again."""
        ...


class DenoiserModel:
    """A function of the sample and its noise level, as `bridge.sample` takes it."""

    solver = None

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
        self.part, self.guidance, self._recompute = ImageToImage(noise, noise), guidance, False

    def run(self, steps: Steps, rows: Sequence[int], seen: Seen | None = None) -> torch.Tensor:
        """See `Model`."""
        table, x = _table(steps, self.part.noise), self._start[list(rows)]
        if self.part.noise.kind == "ve":
            x = x * (1.0 + table.sigma[0] ** 2) ** 0.5
        given = () if self._condition is None else (self._condition[list(rows)],)
        past: list[torch.Tensor] = []
        for i in range(len(table.carry)):
            alpha, sigma = table.alpha[i], table.sigma[i]
            traced = isinstance(alpha, torch.Tensor)
            lam = alpha.log() - sigma.log() if traced else math.log(alpha / sigma) if alpha else -math.inf
            level = Level(table.timestep[i], alpha, sigma, lam)
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


class PipelineModel:
    """The jobs of a diffusers pipeline, in its own loop."""

    solver: str | None = None

    def __init__(self, jobs: PipelineJobs) -> None:
        """Raises ValueError for a scheduler that the pipeline is distilled for, or a strength that will not do."""
        self._jobs, self.guidance = jobs, jobs.guidance
        self.part = ImageToImage.of(jobs.pipe, noise_schedule_of(jobs.pipe), jobs.call)
        self._scheduler(2)

    def _scheduler(self, nfe: int) -> TableScheduler:
        noise = self.part.whole
        levels, origin = converged(noise, nfe), Origin(solver=solvers.NONSTATIONARY)
        stand_in = dataclasses.replace(levels, origin=origin, coefficients=np.zeros((nfe, 1)))
        return TableScheduler.from_schedule(self._jobs.pipe.scheduler, stand_in, noise=noise)

    def run(self, steps: Steps, rows: Sequence[int], seen: Seen | None = None) -> torch.Tensor:
        """See `Model`."""
        table, pipe = _table(steps, self.part.noise), self._jobs.copied()
        scheduler = self._scheduler(nfe := self.part.inference_steps(len(table.carry)))
        scheduler.table, scheduler.seen = table, seen
        for part in (pipe, *install.inner_pipelines(pipe).values()):
            part.scheduler = scheduler
        return self._sampled(pipe, nfe, rows)

    def _sampled(self, pipe: Any, nfe: int, rows: Sequence[int]) -> torch.Tensor:
        found = self._jobs.sample(pipe, nfe, rows)
        return found if found.dtype == torch.float64 else found.float()

    @contextlib.contextmanager
    def differentiable(self, recompute: bool) -> Iterator[None]:
        """See `Model`; the networks' own parameters need no gradients meanwhile."""
        modules = [part for part in self._jobs.pipe.components.values() if isinstance(part, torch.nn.Module)]
        needing = [p for module in modules for p in module.parameters() if p.requires_grad]
        networks = [getattr(self._jobs.pipe, name, None) for name in install.NETWORKS] if recompute else []
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


class OwnSolverModel(PipelineModel):
    """A pipeline that only its own scheduler's class works in: schedules are installed in that, as they will be."""

    def __init__(self, jobs: PipelineJobs) -> None:
        self.solver = install.own_solver(jobs.pipe.scheduler)
        super().__init__(jobs)

    def _scheduler(self, nfe: int) -> Any:
        install.replace_scheduler(self._jobs.copied(), self._installed(converged(self.part.whole, nfe)))

    def _installed(self, schedule: Schedule) -> Any:
        own = dataclasses.replace(schedule, origin=Origin(method=schedule.method))  # of any solver: the class's own
        return install.with_schedule(self._jobs.pipe.scheduler, own, noise=self.part.whole)

    def run(self, steps: Steps, rows: Sequence[int], seen: Seen | None = None) -> torch.Tensor:
        """See `Model`."""
        assert isinstance(steps, Schedule)
        pipe, nfe = self._jobs.copied(), self.part.inference_steps(steps.nfe)
        install.replace_scheduler(pipe, self._installed(self.part.joined(steps, nfe)))
        return self._sampled(pipe, nfe, rows)


def pipeline_model(jobs: PipelineJobs) -> PipelineModel:
    """The model of a pipeline, with any solver if it takes another than its own; it raises as `PipelineModel`."""
    try:
        install.check_use(jobs.pipe, PipelineModel(jobs)._scheduler(2))
        return PipelineModel(jobs)
    except ValueError:
        if install.own_solver(jobs.pipe.scheduler) is None:
            raise
        return OwnSolverModel(jobs)


def jobs_of(
    pipe: Any, prompts: Sequence[Any], drawn: Sequence[tuple[int, int]], guidance: float | None, call: Mapping[str, Any]
) -> tuple[PipelineJobs, dict[str, Any]]:
    """The jobs of a pipeline for (index of a prompt, seed) each, and what tells them from others' in a file."""
    call = dict(call)
    given = {k: image_for_each(call.pop(k), len(prompts), k) for k in IMAGES if call.get(k) is not None}
    images = {k: [v[i] for i, _ in drawn] for k, v in given.items()}
    jobs = PipelineJobs(pipe, [(prompts[i], seed) for i, seed in drawn], guidance, call, images)
    seeds = [seed for _, seed in drawn]
    return jobs, {
        "pipeline": type(pipe).__name__,
        "model": noise_schedule_of(pipe).name,
        "arguments": {k: v for k, v in jobs.call.items() if isinstance(v, (str, int, float, type(None)))},
        "weights": install.fingerprint(pipe),
        "prompts": sha([str(prompts[i]) for i, _ in drawn]),
        **{k: sha([f"{x.shape} {x.dtype} {x.tobytes().hex()}" for x in map(_pixels, v)]) for k, v in given.items()},
        "seeds": f"{min(seeds)}..{max(seeds)}",
    }


def denoiser_model(
    denoiser: Callable[..., torch.Tensor],
    noise: NoiseSchedule,
    latents: torch.Tensor,
    condition: torch.Tensor | None,
    guidance: float,
    needed: int,
) -> tuple[DenoiserModel, dict[str, Any]]:
    """The model of a function for as many latents as are needed, and what tells it from others in a file."""
    check_noise(noise)
    check_latents(latents)
    if len(latents) < needed:
        raise ValueError(f"latents has {len(latents)} samples; give {needed}, or samples={len(latents) * 2 // 3}")
    if condition is not None and not (isinstance(condition, torch.Tensor) and len(condition) >= needed):
        raise ValueError(f"condition is {brief(condition)}; need a tensor with an entry for each of {needed} latents")
    given = {"latents": latents[:needed], **({} if condition is None else {"condition": condition[:needed]})}
    model = DenoiserModel(denoiser, noise, given["latents"], check_guidance(guidance), given.get("condition"))
    name = getattr(denoiser, "__qualname__", type(denoiser).__qualname__)
    digests = {k: sha([v.double().cpu().numpy().tobytes().hex()]) for k, v in given.items()}
    return model, {"model": noise.name, "denoiser": name, **digests}


def labelled(model: Model, schedule: Schedule, nfe: int, seed: int, facts: Mapping[str, Any]) -> Schedule:
    """A schedule of the model's part as one of N steps, with what it was found on, as a file holds that."""
    schedule = model.part.joined(schedule, nfe)
    found = {k: v if isinstance(v, (str, int, float)) else json.dumps(v, sort_keys=True) for k, v in facts.items()}
    origin = dataclasses.replace(schedule.origin, guidance=model.guidance, seed=seed, versions=versions(), tuned=found)
    return dataclasses.replace(schedule, origin=origin)


def taken_steps(model: Model, nfe: int) -> int:
    """How many of N steps the model takes; ValueError for none."""
    if (steps := model.part.steps(nfe)) < 1:
        raise ValueError(f"nfe is {nfe}; no step of {nfe} is taken at this strength: use more")
    return steps


def check_latents(latents: Any) -> None:
    """Raises ValueError unless these are a tensor [n, ...]."""
    if not isinstance(latents, torch.Tensor) or latents.dim() < 2 or not latents[0].numel():
        raise ValueError(f"latents is {brief(latents)}; need a tensor [n, ...] of standard normal numbers")


def sha(texts: Sequence[str]) -> str:
    """A short digest of texts."""
    return hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()[:16]


def steps_of(schedules: Sequence[Schedule]) -> str:
    """A short digest of the steps that schedules take: their levels, solvers and coefficients."""
    own = ([] if s.coefficients is None else s.coefficients.round(9).tolist() for s in schedules)
    return sha([f"{s.solver} {s.end} {s.t.round(9).tolist()} {rows}" for s, rows in zip(schedules, own, strict=True)])


def _pixels(image: Any) -> np.ndarray:
    return image.detach().cpu().numpy() if isinstance(image, torch.Tensor) else np.asarray(image)


def _table(steps: Steps, noise: NoiseSchedule) -> Table:
    if not isinstance(steps, Schedule):
        return steps
    return Table(*(x.tolist() for x in table_at(noise, steps, steps.solver)))


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
    seen: Seen | None = None

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
        levels = [torch.stack([torch.as_tensor(x[row]) for row in rows]) for x in (self.table.alpha, self.table.sigma)]
        return mixed(original_samples, noise, *levels)

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
        self.part, self.guidance, self.solver = model.part, model.guidance, model.solver

    def run(self, steps: Steps, rows: Sequence[int], seen: Seen | None = None) -> torch.Tensor:
        """See `Model`; what is watched, and what gradients are taken of, is sampled here."""
        if self._alone or seen is not None or len(rows) == 1:
            return self._model.run(steps, rows, seen)
        steps = _table(steps, self.part.noise) if self.solver is None else steps
        _send("run", (steps, list(rows)))
        parts = _gathered(_sampled(self._model, steps, rows))
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
        message: list[Any] = [None]
        distributed.broadcast_object_list(message, src=0)
        what, value = message[0]
        if what == "found":
            return value
        if what == "failed":
            raise value
        with torch.no_grad():
            _gathered(_sampled(model, *value))


def _sampled(model: Model, steps: Steps, rows: Sequence[int]) -> torch.Tensor | Exception | None:
    """This process' share of the rows, on the CPU; None if it has none."""
    own = list(rows)[distributed.get_rank() :: distributed.get_world_size()]
    try:
        return model.run(steps, own).cpu() if own else None
    except Exception as trouble:  # the others wait for an answer
        return _sendable(trouble)


def _gathered(value: Any) -> list[Any]:
    found: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(found, value)
    return found


def _send(what: str, value: Any) -> None:
    distributed.broadcast_object_list([(what, _sendable(value) if isinstance(value, Exception) else value)], src=0)


def _sendable(trouble: Exception) -> Exception:
    """One that can be pickled, and still says when memory ran out."""
    if type(trouble) in (ValueError, MemoryError, RuntimeError):
        return trouble
    return RuntimeError(f"{type(trouble).__name__}: {trouble}")
