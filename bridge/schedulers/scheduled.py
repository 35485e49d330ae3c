"""Scheduler classes that carry a schedule: made from a diffusers class and its row of the table."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Container
from typing import Any

import diffusers
import numpy as np
import torch

from bridge.noise_of import noise_schedule_of
from bridge.schedulers import adapters, levels, proposals
from bridge.schedulers.checks import check_fits, entries, say_switched_off
from bridge.schedulers.own_methods import own_methods
from bridge.schedulers.refusals import unsupported
from hso_jax import schedule_file
from hso_jax.noise import NoiseSchedule
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
    _row: adapters.Row
    _schedule: Schedule | None = None
    _noticed: bool = False

    def __init__(self, *args: Any, hso_schedule: Any = None, hso_replaced: Any = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if hso_schedule is None:
            name = type(self).__name__
            raise ValueError(
                f"bridge.{name} needs a schedule in its config; use with_schedule(diffusers.{name}(...), schedule)"
            )
        self.register_to_config(**{REPLACED_KEY: dict(hso_replaced or {})})  # type: ignore[attr-defined]
        self._adopt(schedule_file.from_document(hso_schedule)[0], noise_schedule_of(self))

    def _adopt(self, schedule: Schedule, noise: NoiseSchedule) -> None:
        """Check that the schedule fits the model's noise; write it, and what its end needs, into the config."""
        if schedule.coefficients is not None:
            raise ValueError(
                f"{type(self).__name__} has a formula of its own, and the schedule has coefficients that belong to its "
                "nodes: use with_schedule or NonstationaryScheduler"
            )
        before = self.config.get(REPLACED_KEY) or {}
        self.register_to_config(**before)  # type: ignore[attr-defined]
        check_fits(self, schedule, self._row, noise)
        wanted = entries(self.config, schedule, self._row)
        replaced = {key: self.config[key] for key, value in wanted.items() if self.config[key] != value}
        record = {SCHEDULE_KEY: Record(schedule_file.to_document(schedule)), REPLACED_KEY: replaced}
        self.register_to_config(**record, **wanted)  # type: ignore[attr-defined]
        say_switched_off(type(self).__name__, replaced, before)
        self._schedule, self._noticed = schedule, False
        self._levels = levels.levels_of(schedule, self._row, self.config, noise)

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
        """Get ready to sample at the schedule, whatever levels the pipeline proposes; all at once or not at all.

        Args:
            num_inference_steps: must be the schedule's nfe where it is given.
            device: of the timesteps.
            timesteps: what the pipeline or its caller proposes, N values; see `bridge.schedulers.proposals`.
            sigmas: likewise, N values or N + 1 with the end.
            mu: dynamic shift; the schedule's levels are final, so it has no effect.
            **kwargs: passed to the parent where it knows them (LCM's and TCD's `original_inference_steps`).

        Raises:
            ValueError: if the number of steps is not the schedule's, or the caller wants other levels.
        """
        if self._schedule is None:  # the parent's __init__ is setting up its defaults
            parent: Any = super()
            parent.set_timesteps(num_inference_steps, device, *([] if timesteps is None else [timesteps]))
            return
        notice = proposals.check(self._schedule, num_inference_steps, timesteps, sigmas)
        view = self._view()
        on_view: Any = super(Installed, view)
        if self._row.layout == "grid":
            on_view.set_timesteps(
                timesteps=np.rint(self._schedule.timesteps).astype(int).tolist(), device=device, **kwargs
            )
        else:
            shift = {"mu": 0.0 if mu is None else mu} if self._row.needs_mu and self.config.use_dynamic_shifting else {}
            on_view.set_timesteps(self._schedule.nfe, device=device, **shift)
            self._levels.write(view, device)
        self._keep(view)
        if notice and not self._noticed:
            self._noticed = True
            warnings.warn(notice, stacklevel=2)

    def step(self, model_output: Any, timestep: Any, sample: Any, **options: Any) -> Any:
        """The parent's step between two levels of the schedule; see the parent for arguments and result."""
        here = self._levels
        if not here.shows:
            if here.lowers_order or here.counts_steps:
                levels.before_step(self, timestep, options)
            return self._parent_step(model_output, timestep, sample, options)
        view = self._view()
        if here.counts_steps:
            levels.before_step(view, timestep, options)
        position, seen = here.shown(self, timestep)
        view.__dict__.update(seen)
        result = view._parent_step(model_output, position, sample, options)
        self._keep(view, seen)
        return result

    def _parent_step(self, model_output: Any, timestep: Any, sample: Any, options: dict[str, Any]) -> Any:
        parent: Any = super()
        if sample.dtype != torch.float64:
            return parent.step(model_output, timestep, sample, **options)
        if isinstance(options.get("variance_noise"), torch.Tensor):
            options["variance_noise"] = options["variance_noise"].as_subclass(Float64)
        return _plain(parent.step(model_output, timestep, sample.as_subclass(Float64), **options))

    def _view(self) -> Any:
        """A scheduler with the same attributes: what the parent sets in it, no other thread sees before `_keep`."""
        view = object.__new__(type(self))
        view.__dict__.update(self.__dict__)
        return view

    def _keep(self, view: Any, but: Container[str] = ()) -> None:
        """Take over, at once, what has changed in the view, but for the attributes that were put there to be seen."""
        own = self.__dict__
        own.update({k: x for k, x in view.__dict__.items() if x is not own.get(k, view) and k not in but})

    def index_for_timestep(self, timestep: Any, schedule_timesteps: Any = None) -> int:
        """Where a timestep, possibly rounded to half precision by the pipeline, stands in the schedule.

        Raises:
            ValueError: if it is none of the schedule's.
        """
        known = self._levels.written["timesteps"] if schedule_timesteps is None else schedule_timesteps
        return levels.nearest(known, timestep, last=self._row.layout in ("pairs", "ancestral"))


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


def _step_like(parents: Any) -> Any:
    """`Installed.step` with the signature of the parent's, and arguments by place put under their names."""
    signature = inspect.signature(parents)

    @functools.wraps(parents)
    def step(self: Any, model_output: Any, timestep: Any, sample: Any, *args: Any, **options: Any) -> Any:
        if args:
            bound = signature.bind(self, model_output, timestep, sample, *args, **options).arguments
            options = dict(list(bound.items())[4:])
        return Installed.step(self, model_output, timestep, sample, **options)

    return step


def _like(parents: Any, function: Any) -> Any:
    """A method with the signature of the parent's."""

    @functools.wraps(parents)
    def method(self: Any, *args: Any, **options: Any) -> Any:
        return function(self, *args, **options)

    return method


def _batch_step_no_noise(self: Any, model_output: Any, timesteps: Any, sample: Any, *args: Any, **options: Any) -> Any:
    shown = [self._levels.shown(self, t) for t in timesteps]
    rows = torch.tensor([position for position, _ in shown], device=timesteps.device)
    view = self._view()
    view.__dict__.update(shown[0][1])
    parent: Any = super(Installed, view)
    return parent.batch_step_no_noise(model_output, rows, sample, *args, **options)


def _unscaled(self: Any, sample: Any, timestep: Any = None) -> Any:
    """The network's input is the sample itself."""
    return sample


@functools.cache
def scheduled_class(name: str) -> type:
    """The class that is to `diffusers.<name>` what `Installed` describes.

    It bears the parent's name, so that code which looks at names (diffusers' own `_compatibles`, `hso_jax.noise.
    from_config`) sees the solver it is, and the module `bridge`, so that a saved pipeline says whence to load it.

    Raises:
        ValueError: for a class that is not in the table.
    """
    if name not in adapters.ROWS:
        raise ValueError(unsupported(name))
    parent, row = getattr(diffusers, name), adapters.ROWS[name]
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
    # Pipelines look in these signatures for `eta` and `generator`, and pass only what they find.
    body["step"] = _step_like(parent.step)
    if hasattr(parent, "batch_step_no_noise"):
        body["batch_step_no_noise"] = _like(parent.batch_step_no_noise, _batch_step_no_noise)
    if not hasattr(parent, "scale_model_input"):  # which pipelines call unless the class is exactly the one they know
        body["scale_model_input"] = _unscaled
    if row.k_scaled:
        theirs = parent.init_noise_sigma.fget
        body["init_noise_sigma"] = property(lambda self: levels.init_noise_sigma(self, theirs(self)))
    if row.layout in levels.TABLES or name == "SASolverScheduler":
        body["add_noise"] = _like(parent.add_noise, levels.add_noise)
    body.update(own_methods(name, parent, body["step"]))
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
    return None if record is None else schedule_file.from_document(record)[0]


class Record(dict[str, Any]):
    """A schedule as the config holds it; short where diffusers prints a config's entries in a warning."""

    def __repr__(self) -> str:
        return f"<schedule of {self['schedules'][0]['nfe']} evaluations>"


def _plain(result: Any) -> Any:
    """The step's result without the `Float64` class."""
    if isinstance(result, tuple):
        return tuple(_plain(x) for x in result)
    if isinstance(result, torch.Tensor):
        return result.as_subclass(torch.Tensor)
    for key in list(result):
        result[key] = _plain(result[key])
    return result
