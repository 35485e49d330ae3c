"""Scheduler classes that carry a schedule: made from a diffusers class and its row of the table.

`Installed` is what they have in common. `Levels` has the arrays that they step by, in the form that each class keeps
them; the methods at the end are those that must be other than the parent's for a schedule to be exact.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Container, Mapping
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import SchedulerMixin
from diffusers.schedulers.scheduling_utils import SchedulerOutput

from bridge.noise_of import noise_schedule_of
from bridge.schedulers.checks import check_fits, check_proposal, entries, say_switched_off
from bridge.schedulers.rows import ROWS, TABLES, Row, check_supported, told_timesteps
from hso_jax import schedule_file
from hso_jax.checks import level_list
from hso_jax.noise import NoiseSchedule, alpha_sigma
from hso_jax.schedule import Origin, Schedule
from hso_jax.solvers import NONSTATIONARY

Array = np.ndarray[Any, Any]
SCHEDULE_KEY = "hso_schedule"
REPLACED_KEY = "hso_replaced"
NONSTATIONARY_CLASS = "NonstationaryScheduler"


class Installed:
    """The part of a scheduled class that stands before the diffusers class.

    The config holds the schedule (`hso_schedule`, as in a schedule file) and what the end replaced in it
    (`hso_replaced`), so whatever rebuilds a scheduler from its config rebuilds this.
    """

    # What diffusers' class has; declared for the reader, since diffusers is untyped.
    config: Any
    sigmas: Any
    timesteps: Any
    _row: Row
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
        self._levels = levels_of(schedule, self._row, self.config, noise)

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
            timesteps: what the pipeline or its caller proposes; see `check_proposal`.
            sigmas: likewise.
            mu: dynamic shift; the schedule's levels are final, so it has no effect.
            **kwargs: passed to the parent where it knows them (LCM's and TCD's `original_inference_steps`).

        Raises:
            ValueError: if the number of steps is not the schedule's, or the caller wants other levels.
        """
        if self._schedule is None:  # the parent's __init__ is setting up its defaults
            parent: Any = super()
            parent.set_timesteps(num_inference_steps, device, *([] if timesteps is None else [timesteps]))
            return
        notice = check_proposal(self._schedule, num_inference_steps, timesteps, sigmas)
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
                before_step(self, timestep, options)
            return self._parent_step(model_output, timestep, sample, options)
        view = self._view()
        if here.counts_steps:
            before_step(view, timestep, options)
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
        """The node with this timestep, which the pipeline may have rounded to half precision."""
        known = self._levels.written["timesteps"] if schedule_timesteps is None else schedule_timesteps
        return nearest(known, timestep, last=self._row.layout in ("pairs", "ancestral"))


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
    """`Installed.step` with the signature of the parent's, and positional arguments put under their names."""
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
    """
    check_supported(name)
    parent, row = getattr(diffusers, name), ROWS[name]

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        Installed.__init__(self, *args, **kwargs)

    # diffusers reads this signature to know which config entries belong to the class.
    theirs = inspect.signature(parent.__init__)
    ours = [
        inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=None) for key in (SCHEDULE_KEY, REPLACED_KEY)
    ]
    __init__.__signature__ = theirs.replace(  # type: ignore[attr-defined]
        parameters=[*theirs.parameters.values(), *ours]
    )
    # Pipelines look in the signature of `step` for `eta` and `generator`, and pass only what they find.
    step = _step_like(parent.step)
    body: dict[str, Any] = {"__init__": __init__, "__module__": "bridge", "_row": row, "step": step}
    body["__doc__"] = f"`diffusers.{name}` at the levels of a schedule."
    if hasattr(parent, "batch_step_no_noise"):
        body["batch_step_no_noise"] = _like(parent.batch_step_no_noise, _batch_step_no_noise)
    if not hasattr(parent, "scale_model_input"):  # which pipelines call unless the class is exactly the one they know
        body["scale_model_input"] = _unscaled
    if row.k_scaled:
        parents = parent.init_noise_sigma.fget
        body["init_noise_sigma"] = property(lambda self: init_noise_sigma(self, parents(self)))
    if row.layout in TABLES or name == "SASolverScheduler":
        body["add_noise"] = _like(parent.add_noise, add_noise)
    body.update({method: make(parent, step) for method, make in _OWN_METHODS.get(name, {}).items()})
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


def without_schedule(scheduler: Any) -> Any:
    """A plain diffusers scheduler, with the config from before a schedule was installed.

    What the schedule had replaced in it, the rules that space levels (`use_karras_sigmas`, ...) included, is back, and
    so is the class where `NonstationaryScheduler` stands for another.
    """
    if not isinstance(scheduler, Installed):
        return scheduler
    config = plain_config(scheduler.config)
    name = type(scheduler).__name__
    plain = getattr(diffusers, config["_class_name"] if name == NONSTATIONARY_CLASS else name).from_config(config)
    if "alphas_cumprod" in vars(scheduler):  # someone may have set it to what no config says
        plain.alphas_cumprod = scheduler.alphas_cumprod  # type: ignore[attr-defined]
    return plain


def plain_config(config: Any) -> dict[str, Any]:
    """The config as it was before a schedule was installed."""
    replaced = dict(config.get(REPLACED_KEY) or {})
    if "_class_name" in replaced:
        return replaced
    return {key: value for key, value in {**config, **replaced}.items() if key not in (SCHEDULE_KEY, REPLACED_KEY)}


def supported_name(scheduler: Any) -> str:
    """The name of the scheduler's class. Raises ValueError, saying what to pass, unless it is one of diffusers' own."""
    cls = type(scheduler)
    if isinstance(getattr(scheduler, "scheduler", None), SchedulerMixin):
        raise ValueError(
            f"{cls.__name__} is a pipeline: pass pipe.scheduler, as in pipe.scheduler = with_schedule(pipe.scheduler, "
            "schedule); or use install(pipe, schedule)"
        )
    if issubclass(cls, Installed) or getattr(diffusers, cls.__name__, None) is cls:
        return cls.__name__
    parent = next((base.__name__ for base in cls.__mro__ if base.__name__ in ROWS), None)
    nearest = f"; the nearest that is supported: {parent}.from_config(scheduler.config)" if parent else ""
    raise ValueError(
        f"{cls.__module__}.{cls.__name__} is not a scheduler class of diffusers, and its step may differ{nearest}"
    )


def schedule_from_list(noise: NoiseSchedule, sigmas: Any, coefficients: Any = None) -> Schedule:
    """A schedule from N + 1 sigmas in diffusers' convention for such noise; see `with_schedule`."""
    values = level_list("sigmas", sigmas)
    if values.size < 2:
        raise ValueError(f"sigmas is {values.tolist()}; need N + 1 values, the last of them the end (append a final 0)")
    if noise.kind == "flow":
        if values[0] > 1 + 1e-6:
            raise ValueError(
                f"s = {values[0]:.9g} is above 1; a flow model's sigmas are s in (0, 1], or 0 at the end: of timesteps "
                f"pass t / {max(noise.num_train_timesteps, 1000)}"
            )
        values = np.minimum(values, 1.0)
        with np.errstate(divide="ignore"):
            values = values / (1.0 - values)
    free = {} if coefficients is None else {"origin": Origin(solver=NONSTATIONARY), "coefficients": coefficients}
    return Schedule.from_sigmas(noise, values, end="clean" if values[-1] == 0.0 else "t_eps", **free)


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


# Pure noise has no finite log-SNR. These are the levels which diffusers itself puts in its place: alphas_cumprod =
# 2^-24 at zero terminal SNR, and s = 1 - 1e-6 in UniPC for flow models.
PURE_NOISE_KSIGMA = float(np.sqrt(2.0**24 - 1.0))
PURE_NOISE_S = 1.0 - 1e-6


class Levels:
    """What is written into a scheduler by `set_timesteps`, and shown to its parent's `step`; made once.

    `alphas`, `sigmas` [N + 1] are those of the nodes and of the end (1 and 0 for a clean one), in the class's scaling;
    `nodes` [N] the nodes' timesteps; `written` the attributes to set; `table` [K] the nodes' alphas_cumprod, rising in
    noise, for the classes that step through a training table.
    """

    def __init__(self, schedule: Schedule, row: Row, nodes: Array, written: Mapping[str, Array]) -> None:
        as_vp = schedule.kind == "ve" and row.log_snr and not row.k_scaled  # UniPC with Stable Video Diffusion's model
        alphas, sigmas = alpha_sigma(schedule.lams, "vp" if as_vp else schedule.kind)
        if schedule.end == "clean":
            alphas, sigmas = np.append(alphas[: schedule.nfe], 1.0), np.append(sigmas[: schedule.nfe], 0.0)
        self.alphas, self.sigmas, self.written = alphas, sigmas, dict(written)
        self.nodes = nodes
        self._places = {float(t): i for i, t in enumerate(self.nodes)}
        self.table: torch.Tensor | None = None
        if row.layout in TABLES:
            kept = alphas[: schedule.nfe] if schedule.end == "clean" else alphas
            self.table = torch.from_numpy((kept**2)[::-1].copy())
        self.shows = self.table is not None or row.ends_at_level_0
        self.lowers_order = row.log_snr and schedule.end == "clean"
        self.counts_steps = row.layout == "plms" or row.own_order
        self._one = torch.ones((), dtype=torch.float64)

    def write(self, scheduler: Any, device: Any) -> None:
        """Set the scheduler's `timesteps`, and its `sigmas` and their companions where it has them.

        Sigmas are float64 where the device knows it: 0-dim tensors do not widen the sample, and differences of
        log-SNR keep their digits.
        """
        on_mps = device is not None and torch.device(device).type == "mps"
        dtype = torch.float32 if on_mps else torch.float64
        for name, values in self.written.items():
            if name == "timesteps":
                scheduler.timesteps = torch.from_numpy(values.copy()).to(device=device, dtype=torch.float32)
            else:
                place = getattr(scheduler, name).device
                setattr(scheduler, name, torch.from_numpy(values.copy()).to(device=place, dtype=dtype))

    def shown(self, scheduler: Any, timestep: Any) -> tuple[Any, dict[str, Any]]:
        """What the parent's `step` must see where the class has no attribute for a schedule's levels.

        The timestep to pass on, and attributes to replace for the time of the step. For "table" and "plms" the schedule
        becomes the model's whole training table, and the timestep its row, so that one stride of the parent is one step
        of the schedule. TCD's last step, to training level 0, is shown clean data there.
        """
        node = self.place(timestep)
        if self.table is None:
            if node < len(self.nodes) - 1:
                return timestep, {}
            clean = scheduler.alphas_cumprod.clone()
            clean[0] = 1.0
            return timestep, {"alphas_cumprod": clean}
        table, one = self.table, self._one
        if scheduler.timesteps.device.type == "mps":
            table, one = table.float(), one.float()
        if "one" in scheduler.__dict__:  # DDPM's name for the clean end; with no timesteps of its own it subtracts 1
            seen = {"one": one, "num_inference_steps": None, "custom_timesteps": False}
        else:  # the stride is num_train_timesteps // num_inference_steps
            seen = {"final_alpha_cumprod": one, "num_inference_steps": scheduler.config.num_train_timesteps}
        seen["alphas_cumprod"] = table
        return len(table) - 1 - node, seen

    def place(self, timestep: Any) -> int:
        """The node with this timestep; see `nearest`."""
        wanted = float(timestep)
        found = self._places.get(wanted)
        return nearest(self.nodes, wanted) if found is None else found


def levels_of(schedule: Schedule, row: Row, config: Mapping[str, Any], noise: NoiseSchedule) -> Levels:
    """The arrays that the row's layout makes of a schedule; `noise` is the model's."""
    steps = told_timesteps(schedule, row)
    if row.layout in (*TABLES, "grid", "times"):
        listed = steps
        if row.layout == "plms" and schedule.nfe > 1:
            listed = np.insert(steps, 1, steps[1])
        elif row.layout == "times":
            listed = np.append(steps, np.float32(0.0 if schedule.end == "clean" else schedule.t[-1]))
        return Levels(schedule, row, steps, {"timesteps": listed})
    sigmas = np.array(schedule.sampler_sigmas())
    if np.isinf(sigmas[0]):
        sigmas[0] = PURE_NOISE_KSIGMA
    elif row.log_snr and schedule.kind == "flow":
        sigmas[0] = min(sigmas[0], PURE_NOISE_S)
    if schedule.end == "clean":
        sigmas[-1] = row.clean_sigma(config)
    if config.get("invert_sigmas"):  # time runs from 0 at noise to 1 at data
        sigmas = 1.0 - sigmas
        steps = np.asarray(schedule.num_train_timesteps * sigmas[:-1], np.float32)
    if row.layout == "plain":
        return Levels(schedule, row, steps, {"timesteps": steps, "sigmas": sigmas})
    return Levels(schedule, row, steps, _two_evaluations(schedule, row, noise, sigmas, steps))


def _two_evaluations(
    schedule: Schedule, row: Row, noise: NoiseSchedule, sigmas: Array, steps: Array
) -> dict[str, Array]:
    """Each step evaluates at its start and once more; not so a step to sigma 0, where the solver would divide by 0."""
    between = {}
    if row.layout in ("midpoints", "middles"):
        middle = np.append(0.0, np.sqrt(sigmas[:-1] * sigmas[1:]))
        between = {"sigmas_interpol": middle}
        again = np.asarray(noise.timestep(_time_of(noise, -np.log(middle[middle > 0]))))
    else:
        again = np.append(steps[1:], end_timestep(schedule))
    if row.layout == "ancestral":  # the middle level, between sigma and what the noise leaves open, is the next
        down = np.append(sigmas[1:] ** 2 / sigmas[:-1], 0.0)
        up = np.append(np.sqrt(np.maximum(sigmas[1:] ** 2 - down[:-1] ** 2, 0.0)), 0.0)
        between = {"sigmas_up": up, "sigmas_down": down, "sigmas_interpol": np.append(sigmas[1:], 0.0)}
    again = again[: schedule.nfe - (schedule.end == "clean")]
    both = np.empty(len(steps) + len(again), np.float32)
    both[0::2], both[1::2] = steps, again
    if row.layout in ("pairs", "middles"):
        return {"timesteps": both, "sigmas": np.concatenate([sigmas[:1], sigmas[1:-1].repeat(2), sigmas[-1:]])}
    doubled = {
        name: np.concatenate([x[:1], x[1:].repeat(2), x[-1:]]) for name, x in {"sigmas": sigmas, **between}.items()
    }
    return {"timesteps": both, **doubled}


def _time_of(noise: NoiseSchedule, lams: Array) -> Array:
    """`noise.t_of_lam` by interpolation and one Newton step: its 24 would be most of what installing costs."""
    grid = np.linspace(float(noise.t_max), float(noise.t_min), noise.num_train_timesteps)
    t = np.interp(lams, np.asarray(noise.lam(grid)), grid)
    value, slope, _ = noise.lam_derivatives(t)
    return np.asarray(t - (value - lams) / slope)


def end_timestep(schedule: Schedule) -> float:
    """What a network is told at the node where a "t_eps" end stops (some solvers evaluate there); 0 for a clean end."""
    if schedule.end == "clean":
        return 0.0
    if schedule.kind == "ve":
        return -0.25 * float(schedule.lams[-1])
    levels = schedule.num_train_timesteps
    return (
        levels * float(schedule.sampler_sigmas()[-1])
        if schedule.kind == "flow"
        else levels * float(schedule.t[-1]) - 1.0
    )


def nearest(known: Any, timestep: Any, last: bool = False) -> int:
    """The position of a timestep that may have been rounded to bfloat16 (8 bits), of equals the first or the last."""
    values = known.detach().cpu().numpy() if isinstance(known, torch.Tensor) else known
    wanted = float(timestep)
    distance = np.abs(values - wanted)
    if not distance.min() <= abs(wanted) * 2**-8 + 1e-6:
        raise ValueError(
            f"timestep {wanted:.9g} is not in the installed schedule, {np.round(values, 3).tolist()}; pass the values "
            "of scheduler.timesteps as they are"
        )
    return int(np.flatnonzero(distance == distance.min())[-1 if last else 0])


def before_step(scheduler: Any, timestep: Any, options: dict[str, Any]) -> None:
    """Keep the parent's order to what the schedule and the steps taken so far allow; may edit the step's options."""
    levels: Levels = scheduler._levels
    if levels.lowers_order and scheduler._step_index == len(levels.nodes) - 1:
        if "lower_order_nums" in scheduler.__dict__:
            scheduler.lower_order_nums = 0
        else:  # the single-step solver's way to say it
            scheduler.order_list[-1] = 1
    if scheduler._row.own_order:
        options["order"] = min(options.get("order", 4), len(scheduler.derivatives) + 1)
    # PNDM counts calls, and takes the second for a repetition of the first step; in img2img there is no such call.
    if scheduler._row.layout == "plms" and scheduler.counter == 0:
        scheduler._first_node = levels.place(timestep)
    elif scheduler._row.layout == "plms" and scheduler.counter == 1 and scheduler._first_node > 0:
        scheduler.counter, scheduler.cur_sample = 2, None


def init_noise_sigma(scheduler: Any, parents: Any) -> Any:
    """Standard deviation of the start: unit data plus noise, which also holds where a schedule starts below t_max.

    A tensor where the parent's value is one, since pipelines call its methods; else a float.
    """
    value = float((scheduler._levels.written["sigmas"][0] ** 2 + 1.0) ** 0.5)
    return parents.new_tensor(value) if isinstance(parents, torch.Tensor) else value


def add_noise(scheduler: Any, original_samples: Any, noise: Any, timesteps: Any) -> Any:
    """`alpha x_0 + sigma noise` [B, ...] at nodes of the schedule; timesteps [B] or one for all.

    (The parent indexes its training table, with integers.)
    """
    levels: Levels = scheduler._levels
    nodes = [levels.place(t) for t in torch.as_tensor(timesteps).flatten()]
    shape = (-1,) + (1,) * (original_samples.dim() - 1)
    alpha, sigma = (
        torch.from_numpy(x[nodes]).to(original_samples).reshape(shape) for x in (levels.alphas, levels.sigmas)
    )
    return alpha * original_samples + sigma * noise


def _cogvideox_dpm_step(parent: Any, inherited: Any) -> Any:
    """Its arguments stand in another order, and name two nodes."""

    @functools.wraps(parent.step)
    def step(
        self: Any,
        model_output: Any,
        old_pred_original_sample: Any,
        timestep: Any,
        timestep_back: Any,
        sample: Any,
        *args: Any,
        **options: Any,
    ) -> Any:
        row, seen = self._levels.shown(self, timestep)
        back = None if timestep_back is None else self._levels.shown(self, timestep_back)[0]
        view = self._view()  # the parent's step keeps nothing in the scheduler
        view.__dict__.update(seen)
        return parent.step(view, model_output, old_pred_original_sample, row, back, sample, *args, **options)

    return step


def _pndm_step(parent: Any, inherited: Any) -> Any:
    """Where img2img begins at the node that stands twice, the second evaluation is of a sample one level on: dropped.

    (A start at that node's second entry cannot be told from this one before the second call.)
    """

    @functools.wraps(parent.step)
    def step(self: Any, model_output: Any, timestep: Any, sample: Any, return_dict: bool = True) -> Any:
        if self.counter != 1 or self._levels.place(timestep) != self._first_node:
            return inherited(self, model_output, timestep, sample, return_dict=return_dict)
        self.counter, self.cur_sample = 2, None
        return SchedulerOutput(prev_sample=sample) if return_dict else (sample,)

    return step


def _alpha_cumprod(parent: Any, inherited: Any) -> Any:
    """Wuerstchen computes its levels from t, in float32 and clipped (so that the end is never clean)."""

    @functools.wraps(parent._alpha_cumprod)
    def alpha_cumprod(self: Any, t: Any, device: Any) -> Any:
        levels = self._levels
        places = [nearest(levels.written["timesteps"], x) for x in t.flatten()]
        values = torch.from_numpy(levels.alphas[places] ** 2)
        return values.to(device=device, dtype=torch.float32 if torch.device(device).type == "mps" else torch.float64)

    return alpha_cumprod


def _token_step(parent: Any, inherited: Any) -> Any:
    """Where each token has its own timestep (LTX, SanaWM) the parent keeps the dtype of its sigmas, here float64."""

    @functools.wraps(parent.step)
    def step(self: Any, model_output: Any, timestep: Any, sample: Any, *args: Any, **options: Any) -> Any:
        result = inherited(self, model_output, timestep, sample, *args, **options)
        if options.get("per_token_timesteps") is None:
            return result
        wide = torch.promote_types(sample.dtype, torch.float32)  # as the parent has it with float32 sigmas
        if isinstance(result, tuple):
            return (result[0].to(wide), *result[1:])
        result.prev_sample = result.prev_sample.to(wide)
        return result

    return step


def _scale_noise(parent: Any, inherited: Any) -> Any:
    """With `invert_sigmas` the parent takes the data's share for the noise's."""

    @functools.wraps(parent.scale_noise)
    def scale_noise(self: Any, sample: Any, timestep: Any, noise: Any = None) -> Any:
        data, noise = (noise, sample) if self.config.invert_sigmas else (sample, noise)
        return parent.scale_noise(self, data, timestep, noise)

    return scale_noise


_OWN_METHODS: Mapping[str, Mapping[str, Any]] = {
    "CogVideoXDPMScheduler": {"step": _cogvideox_dpm_step},
    "DDPMWuerstchenScheduler": {"_alpha_cumprod": _alpha_cumprod},
    "FlowMatchEulerDiscreteScheduler": {"scale_noise": _scale_noise, "step": _token_step},
    "FlowMatchLCMScheduler": {"scale_noise": _scale_noise},
    "PNDMScheduler": {"step": _pndm_step},
}
"""Of the scheduled class of a name: each method made from the parent and from the `step` of every scheduled class."""
