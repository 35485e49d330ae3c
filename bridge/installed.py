"""Scheduler classes that carry a schedule: made from a diffusers class and its row of the table."""

from __future__ import annotations

import functools
import inspect
import json
from typing import Any

import diffusers
import numpy as np
import torch

from bridge import levels, table
from bridge.fits import check_fits, entries, say_switched_off
from bridge.noise_of import noise_schedule_of
from bridge.own_methods import own_methods
from bridge.refusals import unsupported
from hso_jax import schedule_file
from hso_jax.schedule import Schedule

SCHEDULE_KEY = "hso_schedule"
REPLACED_KEY = "hso_replaced"
_MODULE = "bridge"


class Installed:
    """The part of a scheduled class that stands before the diffusers class.

    The config holds the schedule (`hso_schedule`, as in a schedule file) and what the end replaced in it
    (`hso_replaced`), so whatever rebuilds a scheduler from its config rebuilds this.
    """

    # What diffusers' class has; declared for the reader, since diffusers is untyped.
    config: Any
    sigmas: Any
    timesteps: Any
    _row: table.Row
    _schedule: Schedule | None = None

    def __init__(self, *args: Any, hso_schedule: Any = None, hso_replaced: Any = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if hso_schedule is None:
            name = type(self).__name__
            raise ValueError(
                f"bridge.{name} needs a schedule in its config; use with_schedule(diffusers.{name}(...), schedule)"
            )
        self.register_to_config(**{REPLACED_KEY: dict(hso_replaced or {})})  # type: ignore[attr-defined]
        self._adopt(_from_record(hso_schedule))

    def _adopt(self, schedule: Schedule) -> None:
        """Check that the schedule fits and write it, and what its end needs, into the config."""
        before = self.config.get(REPLACED_KEY) or {}
        self.register_to_config(**before)  # type: ignore[attr-defined]
        check_fits(self, schedule, self._row)
        wanted = entries(self.config, schedule, self._row)
        replaced = {key: self.config[key] for key, value in wanted.items() if self.config[key] != value}
        record = {SCHEDULE_KEY: _to_record(schedule), REPLACED_KEY: replaced}
        self.register_to_config(**record, **wanted)  # type: ignore[attr-defined]
        say_switched_off(type(self).__name__, replaced, before)
        self._schedule = schedule
        self._levels = levels.levels_of(schedule, self._row, self.config, noise_schedule_of(self))

    @property
    def schedule(self) -> Schedule:
        """The schedule that this scheduler samples at."""
        assert self._schedule is not None
        return self._schedule

    def set_timesteps(
        self,
        num_inference_steps: Any = None,
        device: Any = None,
        timesteps: Any = None,
        sigmas: Any = None,
        mu: Any = None,
        **kwargs: Any,
    ) -> None:
        """Get ready to sample at the schedule, whatever levels the pipeline proposes.

        Args:
            num_inference_steps: must be the schedule's nfe where it is given.
            device: of the timesteps.
            timesteps: what a caller proposes; must be the schedule's, to the nearest integer.
            sigmas: what a caller or the pipeline itself proposes, N values or N + 1 with the end; only their number
                is looked at, since pipelines pass defaults of their own.
            mu: dynamic shift; the schedule's levels are final, so it has no effect.
            **kwargs: passed to the parent where it knows them (LCM's and TCD's `original_inference_steps`).

        Raises:
            ValueError: if the number of steps, or a proposed timestep, is not the schedule's.
        """
        parent: Any = super()
        if self._schedule is None:  # the parent's __init__ is setting up its defaults
            parent.set_timesteps(num_inference_steps, device, *([] if timesteps is None else [timesteps]))
            return
        _check_request(self._schedule, num_inference_steps, timesteps, sigmas)
        if self._row.layout == "grid":
            parent.set_timesteps(
                timesteps=np.rint(self._schedule.timesteps).astype(int).tolist(), device=device, **kwargs
            )
            return
        shift = {"mu": 0.0 if mu is None else mu} if self._row.needs_mu and self.config.use_dynamic_shifting else {}
        parent.set_timesteps(self._schedule.nfe, device=device, **shift)
        self._levels.write(self, device)

    def step(self, model_output: Any, timestep: Any, sample: Any, *args: Any, **kwargs: Any) -> Any:
        """The parent's step between two levels of the schedule; see the parent for arguments and result."""
        here = self._levels
        if here.lowers_order or here.counts_steps:
            levels.before_step(self, timestep, kwargs)
        if not here.shows:
            return self._parent_step(model_output, timestep, sample, *args, **kwargs)
        position, seen = here.shown(self, timestep)
        with _Shown(self, seen):
            return self._parent_step(model_output, position, sample, *args, **kwargs)

    def _parent_step(self, model_output: Any, timestep: Any, sample: Any, *args: Any, **kwargs: Any) -> Any:
        parent: Any = super()
        if sample.dtype != torch.float64:
            return parent.step(model_output, timestep, sample, *args, **kwargs)
        if isinstance(kwargs.get("variance_noise"), torch.Tensor):
            kwargs["variance_noise"] = kwargs["variance_noise"].as_subclass(Float64)
        return _plain(parent.step(model_output, timestep, sample.as_subclass(Float64), *args, **kwargs))

    def batch_step_no_noise(self, model_output: Any, timesteps: Any, sample: Any, *args: Any, **kwargs: Any) -> Any:
        """The parent's (DDIMParallel's) step for many timesteps at once."""
        parent: Any = super()
        shown = [self._levels.shown(self, t) for t in timesteps]
        rows = torch.tensor([position for position, _ in shown], device=timesteps.device)
        with _Shown(self, shown[0][1]):
            return parent.batch_step_no_noise(model_output, rows, sample, *args, **kwargs)

    def index_for_timestep(self, timestep: Any, schedule_timesteps: Any = None) -> int:
        """Where a timestep, possibly rounded to half precision by the pipeline, stands in the schedule.

        Raises:
            ValueError: if it is none of the schedule's.
        """
        known = self._levels.written["timesteps"] if schedule_timesteps is None else schedule_timesteps
        return levels.nearest(known, timestep, last=self._row.layout in ("pairs", "ancestral"))


class _Shown:
    """Within it, the scheduler's attributes are those given; after it, what they were.

    (A class, since contextlib's generators cost more than the rest of what is added to a step.)
    """

    def __init__(self, scheduler: Any, seen: dict[str, Any]) -> None:
        self.attributes, self.seen = scheduler.__dict__, seen
        self.kept = {name: self.attributes[name] for name in seen}

    def __enter__(self) -> None:
        self.attributes.update(self.seen)

    def __exit__(self, *error: object) -> None:
        self.attributes.update(self.kept)


class Float64(torch.Tensor):
    """A float64 sample that stays one where the parent says `.to(torch.float32)`, which is meant to widen bfloat16."""

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """As `Tensor.to`, but that float32 is read as "at least float32"."""
        args = tuple(x for x in args if x is not torch.float32)
        kwargs = {key: x for key, x in kwargs.items() if x is not torch.float32}
        return super().to(*args, **kwargs) if args or kwargs else self

    def __deepcopy__(self, memo: Any) -> Any:
        """A copy of a scheduler in the middle of sampling copies the samples it remembers."""
        return self.clone()


@functools.cache
def scheduled_class(name: str) -> type:
    """The class that is to `diffusers.<name>` what `Installed` describes.

    It bears the parent's name, so that code which looks at names (diffusers' own `_compatibles`, `hso_jax.noise.
    from_config`) sees the solver it is, and the module `bridge`, so that a saved pipeline says whence to load it.

    Raises:
        ValueError: for a class that is not in the table.
    """
    if name not in table.ROWS:
        raise ValueError(unsupported(name))
    parent, row = getattr(diffusers, name), table.ROWS[name]
    body: dict[str, Any] = {
        "__module__": _MODULE,
        "__doc__": f"`diffusers.{name}` at the levels of a schedule.",
        "_row": row,
    }

    # diffusers reads this signature to know which config entries belong to the class.
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        Installed.__init__(self, *args, **kwargs)

    ours = [
        inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=None) for key in (SCHEDULE_KEY, REPLACED_KEY)
    ]
    theirs = inspect.signature(parent.__init__)
    signature = theirs.replace(parameters=[*theirs.parameters.values(), *ours])
    __init__.__signature__ = signature  # type: ignore[attr-defined]
    body["__init__"] = __init__
    if row.k_scaled:
        body["init_noise_sigma"] = property(levels.init_noise_sigma)
    if row.layout in levels.TABLES or name == "SASolverScheduler":
        body["add_noise"] = levels.add_noise
    body.update(own_methods(name, parent, body.get("step", Installed.step)))
    return type(name, (Installed, parent), body)


def schedule_of(scheduler: Any) -> Schedule | None:
    """The schedule that a scheduler, or a pipeline's scheduler, samples at or has in its config; None without one.

    A plain diffusers class that was loaded from a scheduled config keeps the entry without obeying it:
    `with_schedule(scheduler, schedule_of(scheduler))` puts it back to work.
    """
    scheduler = getattr(scheduler, "scheduler", scheduler)
    if isinstance(scheduler, Installed):
        return scheduler.schedule
    record = scheduler.config.get(SCHEDULE_KEY)
    return None if record is None else _from_record(record)


def _to_record(schedule: Schedule) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(schedule_file.to_json(schedule))
    return document


def _from_record(record: Any) -> Schedule:
    return schedule_file.from_json(json.dumps(record))[0]


def _check_request(schedule: Schedule, steps: Any, timesteps: Any, sigmas: Any) -> None:
    if timesteps is not None:
        proposed = np.asarray([float(t) for t in timesteps])
        if len(proposed) == schedule.nfe and np.abs(proposed - schedule.timesteps).max() > 1.0:
            raise ValueError(
                f"timesteps {proposed.tolist()} differ from those of the installed schedule, "
                f"{np.round(schedule.timesteps, 2).tolist()}; leave the argument out, or install another schedule"
            )
        steps = len(proposed)
    elif sigmas is not None:
        # N + 1 sigmas may be the schedule's own with its end, or a pipeline's proposal for one step more.
        own = schedule.sampler_sigmas()
        with_end = len(sigmas) == len(own) and np.allclose(np.asarray(sigmas, float), own, rtol=1e-3)
        steps = schedule.nfe if with_end else len(sigmas)
    if steps is None or int(steps) != schedule.nfe:
        raise ValueError(
            f"num_inference_steps is {steps}, but the installed schedule has {schedule.nfe} evaluations: "
            f"call the pipeline with num_inference_steps={schedule.nfe}, or install a schedule made for {steps}"
        )


def _plain(result: Any) -> Any:
    """The step's result without the `Float64` class."""
    if isinstance(result, tuple):
        return tuple(_plain(x) for x in result)
    if isinstance(result, torch.Tensor):
        return result.as_subclass(torch.Tensor)
    for key in list(result):
        result[key] = _plain(result[key])
    return result
