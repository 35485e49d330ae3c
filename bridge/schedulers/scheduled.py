"""Scheduler classes that carry a schedule: made from a diffusers class and its row of the table.

`Installed` is what they have in common, and `Levels` the arrays that they step by. The functions after them are the
methods that must differ from the parent's for a schedule to be exact.
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
from bridge.schedulers.rows import ROWS, SPACING_FLAGS, TABLES, Row, check_fits, check_supported, told_timesteps
from hso_jax import schedule_file
from hso_jax.checks import level_list, rounding
from hso_jax.noise import NoiseSchedule, alpha_sigma
from hso_jax.schedule import Origin, Schedule
from hso_jax.solvers import NONSTATIONARY

Array = np.ndarray[Any, Any]
SCHEDULE_KEY = "hso_schedule"
REPLACED_KEY = "hso_replaced"
NONSTATIONARY_CLASS = "NonstationaryScheduler"


class Record(dict[str, Any]):
    """A schedule as the config holds it; short where diffusers prints a config's entries in a warning."""

    def __repr__(self) -> str:
        return f"<schedule of {self['schedules'][0]['nfe']} evaluations>"


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
            why = f"bridge.{name} needs a schedule in its config"
            raise ValueError(f"{why}; use with_schedule(diffusers.{name}(...), schedule)")
        self.register_to_config(**{REPLACED_KEY: dict(hso_replaced or {})})  # type: ignore[attr-defined]
        self._adopt(schedule_file.from_document(hso_schedule)[0], noise_schedule_of(self))

    def _adopt(self, schedule: Schedule, noise: NoiseSchedule) -> None:
        """Check that the schedule fits the model's noise; write it, and what its end needs, into the config."""
        name, row = type(self).__name__, self._row
        if schedule.coefficients is not None:
            raise ValueError(
                f"{name} samples by its own formula and cannot use the schedule's coefficients: use with_schedule or "
                "NonstationaryScheduler"
            )
        before = self.config.get(REPLACED_KEY) or {}
        self.register_to_config(**before)  # type: ignore[attr-defined]
        check_fits(self, schedule, row, noise)
        # What the end needs, and every rule that spaces levels switched off.
        wanted = {flag: False for flag in SPACING_FLAGS if self.config.get(flag)}
        wanted.update(row.overrides(self.config, schedule) or {})
        replaced = {key: self.config[key] for key, value in wanted.items() if self.config[key] != value}
        record = {SCHEDULE_KEY: Record(schedule_file.to_document(schedule)), REPLACED_KEY: replaced}
        self.register_to_config(**record, **wanted)  # type: ignore[attr-defined]
        if flags := [flag for flag in SPACING_FLAGS if flag in replaced and flag not in before]:
            warnings.warn(
                f"{name}: the schedule replaces {' and '.join(flags)}, now switched off; "
                "bridge.without_schedule(scheduler) puts them back",
                stacklevel=3,
            )
        self._schedule, self._noticed = schedule, False
        self._levels = Levels(schedule, row, self.config, noise)

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

        The number of steps must be the schedule's, and timesteps or sigmas fit it (`check_proposal`): else ValueError.
        The dynamic shift `mu` has no effect, since the schedule's levels are final. LCM's and TCD's parents get their
        `original_inference_steps`.
        """
        if self._schedule is None:  # the parent's __init__ is setting up its defaults
            parent: Any = super()
            parent.set_timesteps(num_inference_steps, device, *([] if timesteps is None else [timesteps]))
            return
        notice = check_proposal(self._schedule, num_inference_steps, timesteps, sigmas)
        view = self._view()
        on_view: Any = super(Installed, view)
        if self._row.layout == "grid":
            whole = np.rint(self._schedule.timesteps).astype(int).tolist()
            on_view.set_timesteps(timesteps=whole, device=device, **kwargs)
        else:
            shift = {"mu": 0.0 if mu is None else mu} if self._row.needs_mu and self.config.use_dynamic_shifting else {}
            on_view.set_timesteps(self._schedule.nfe, device=device, **shift)
            self._levels.write(view, device)
        self._keep(view)
        if notice and not self._noticed:
            self._noticed = True
            warnings.warn(notice, stacklevel=2)

    def step(self, model_output: Any, timestep: Any, sample: Any, *args: Any, **options: Any) -> Any:
        """The parent's step between two levels of the schedule; see the parent for arguments and result."""
        parent: Any = super()
        if args:  # put under their names
            bound = inspect.signature(parent.step).bind(model_output, timestep, sample, *args, **options)
            options = dict(list(bound.arguments.items())[3:])
        levels = self._levels
        scheduler = self._view() if levels.shows else self
        before_step(scheduler, timestep, options)
        if not levels.shows:
            return self._parent_step(model_output, timestep, sample, options)
        position, seen = levels.shown(self, timestep)
        scheduler.__dict__.update(seen)
        result = scheduler._parent_step(model_output, position, sample, options)
        self._keep(scheduler, seen)
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


def _plain(result: Any) -> Any:
    """The step's result without the `Float64` class."""
    if isinstance(result, tuple):
        return tuple(_plain(x) for x in result)
    if isinstance(result, torch.Tensor):
        return result.as_subclass(torch.Tensor)
    for key in list(result):
        result[key] = _plain(result[key])
    return result


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
    ours = [inspect.Parameter(k, inspect.Parameter.KEYWORD_ONLY, default=None) for k in (SCHEDULE_KEY, REPLACED_KEY)]
    signature = theirs.replace(parameters=[*theirs.parameters.values(), *ours])
    __init__.__signature__ = signature  # type: ignore[attr-defined]
    body: dict[str, Any] = {"__init__": __init__, "__module__": "bridge", "_row": row}
    body["__doc__"] = f"`diffusers.{name}` at the levels of a schedule."
    if not hasattr(parent, "scale_model_input"):  # which pipelines call unless the class is exactly the one they know
        body["scale_model_input"] = lambda self, sample, timestep=None: sample
    if row.k_scaled:
        parents = parent.init_noise_sigma.fget
        body["init_noise_sigma"] = property(lambda self: init_noise_sigma(self, parents(self)))
    methods: dict[str, Any] = {"step": Installed.step, **_OWN_METHODS.get(name, {})}
    if hasattr(parent, "batch_step_no_noise"):
        methods["batch_step_no_noise"] = _batch_step_no_noise
    if row.layout in TABLES or name == "SASolverScheduler":
        methods["add_noise"] = add_noise
    # Pipelines look in the signature of `step` for `eta` and `generator`, and pass only what they find.
    body |= {key: _like(getattr(parent, key), method) for key, method in methods.items()}
    return type(name, (Installed, parent), body)


def _like(parents: Any, function: Any) -> Any:
    """A method with the signature of the parent's."""

    @functools.wraps(parents)
    def method(self: Any, *args: Any, **options: Any) -> Any:
        return function(self, *args, **options)

    return method


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

    def __init__(self, schedule: Schedule, row: Row, config: Mapping[str, Any], noise: NoiseSchedule) -> None:
        clean = schedule.end == "clean"
        as_vp = schedule.kind == "ve" and row.log_snr and not row.k_scaled  # UniPC with Stable Video Diffusion's model
        alphas, sigmas = alpha_sigma(schedule.lams, "vp" if as_vp else schedule.kind)
        if clean:
            alphas, sigmas = np.append(alphas[: schedule.nfe], 1.0), np.append(sigmas[: schedule.nfe], 0.0)
        self.alphas, self.sigmas = alphas, sigmas
        self.nodes = told_timesteps(schedule, row)
        self.table: torch.Tensor | None = None
        if row.layout in TABLES:
            kept = alphas[: schedule.nfe] if clean else alphas
            self.table = torch.from_numpy((kept**2)[::-1].copy())
        self.shows = self.table is not None or row.ends_at_level_0
        self.lowers_order = row.log_snr and clean
        self.written = self._written(schedule, row, config, noise)

    def _written(self, schedule: Schedule, row: Row, config: Any, noise: NoiseSchedule) -> dict[str, Array]:
        clean = schedule.end == "clean"
        if row.layout == "plms" and schedule.nfe > 1:
            return {"timesteps": np.insert(self.nodes, 1, self.nodes[1])}
        if row.layout == "times":
            return {"timesteps": np.append(self.nodes, np.float32(0.0 if clean else schedule.t[-1]))}
        if row.layout in (*TABLES, "grid"):
            return {"timesteps": self.nodes}
        sigmas = np.array(schedule.sampler_sigmas())
        if np.isinf(sigmas[0]):
            sigmas[0] = PURE_NOISE_KSIGMA
        elif row.log_snr and schedule.kind == "flow":
            sigmas[0] = min(sigmas[0], PURE_NOISE_S)
        if clean:
            sigmas[-1] = row.clean_sigma(config)
        if config.get("invert_sigmas"):  # time runs from 0 at noise to 1 at data
            sigmas = 1.0 - sigmas
            self.nodes = np.asarray(schedule.num_train_timesteps * sigmas[:-1], np.float32)
        if row.layout == "plain":
            return {"timesteps": self.nodes, "sigmas": sigmas}
        return _two_evaluations(schedule, row, noise, sigmas, self.nodes)

    def write(self, scheduler: Any, device: Any) -> None:
        """Set the scheduler's `timesteps`, and its `sigmas` and their companions where it has them.

        Sigmas are float64 where the device knows it: 0-dim tensors do not widen the sample, and differences of
        log-SNR keep their digits.
        """
        dtype = torch.float32 if device is not None and torch.device(device).type == "mps" else torch.float64
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
        node = nearest(self.nodes, timestep)
        if self.table is None:
            if node < len(self.nodes) - 1:
                return timestep, {}
            clean = scheduler.alphas_cumprod.clone()
            clean[0] = 1.0
            return timestep, {"alphas_cumprod": clean}
        table = self.table.float() if scheduler.timesteps.device.type == "mps" else self.table
        one = torch.ones((), dtype=table.dtype)
        if "one" in scheduler.__dict__:  # DDPM's name for the clean end; with no timesteps of its own it subtracts 1
            seen = {"one": one, "num_inference_steps": None, "custom_timesteps": False}
        else:  # the stride is num_train_timesteps // num_inference_steps
            seen = {"final_alpha_cumprod": one, "num_inference_steps": scheduler.config.num_train_timesteps}
        return len(table) - 1 - node, {**seen, "alphas_cumprod": table}


def _two_evaluations(schedule: Schedule, row: Row, noise: NoiseSchedule, sigmas: Array, steps: Array) -> dict[str, Any]:
    """Each step evaluates at its start and once more; not so a step to sigma 0, where the solver would divide by 0."""
    between = {}
    if row.layout in ("midpoints", "middles"):
        middle = np.append(0.0, np.sqrt(sigmas[:-1] * sigmas[1:]))
        between = {"sigmas_interpol": middle}
        again = np.asarray(noise.timestep(noise.t_of_lam(-np.log(middle[middle > 0]))))
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
    doubled = {"sigmas": sigmas, **between}
    return {"timesteps": both, **{k: np.concatenate([x[:1], x[1:].repeat(2), x[-1:]]) for k, x in doubled.items()}}


def end_timestep(schedule: Schedule) -> float:
    """What a network is told at the node where a "t_eps" end stops (some solvers evaluate there); 0 for a clean end."""
    if schedule.end == "clean":
        return 0.0
    if schedule.kind == "ve":
        return -0.25 * float(schedule.lams[-1])
    levels = schedule.num_train_timesteps
    flows = schedule.kind == "flow"
    return levels * float(schedule.sampler_sigmas()[-1]) if flows else levels * float(schedule.t[-1]) - 1.0


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
        scheduler._first_node = nearest(levels.nodes, timestep)
    elif scheduler._row.layout == "plms" and scheduler.counter == 1 and scheduler._first_node > 0:
        scheduler.counter, scheduler.cur_sample = 2, None


def init_noise_sigma(scheduler: Any, parents: Any) -> Any:
    """Standard deviation of the start: unit data plus noise, which also holds where a schedule starts below t_max.

    A tensor where the parent's value is one, since pipelines call its methods; else a float.
    """
    value = float((scheduler._levels.written["sigmas"][0] ** 2 + 1.0) ** 0.5)
    return parents.new_tensor(value) if isinstance(parents, torch.Tensor) else value


def add_noise(scheduler: Any, original_samples: Any, noise: Any, timesteps: Any) -> Any:
    """`alpha x_0 + sigma noise` [B, ...] at nodes; timesteps [B] or one. The parent indexes its training table."""
    levels: Levels = scheduler._levels
    nodes = [nearest(levels.nodes, t) for t in torch.as_tensor(timesteps).flatten()]
    return mixed(original_samples, noise, *(torch.from_numpy(x[nodes]) for x in (levels.alphas, levels.sigmas)))


def mixed(data: torch.Tensor, noise: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """`alpha data + sigma noise` of [B, ...], alpha and sigma [B] or [1]."""
    alpha, sigma = (x.to(data).reshape(-1, *[1] * (data.dim() - 1)) for x in (alpha, sigma))
    return alpha * data + sigma * noise


def _batch_step_no_noise(self: Any, model_output: Any, timesteps: Any, sample: Any, *args: Any, **options: Any) -> Any:
    shown = [self._levels.shown(self, t) for t in timesteps]
    rows = torch.tensor([position for position, _ in shown], device=timesteps.device)
    view = self._view()
    view.__dict__.update(shown[0][1])
    parent: Any = super(Installed, view)
    return parent.batch_step_no_noise(model_output, rows, sample, *args, **options)


def _cogvideox_dpm_step(
    self: Any, model_output: Any, old: Any, timestep: Any, timestep_back: Any, sample: Any, *args: Any, **options: Any
) -> Any:
    """Its arguments stand in another order, and name two nodes."""
    row, seen = self._levels.shown(self, timestep)
    back = None if timestep_back is None else self._levels.shown(self, timestep_back)[0]
    view = self._view()  # the parent's step keeps nothing in the scheduler
    view.__dict__.update(seen)
    parent: Any = super(Installed, view)
    return parent.step(model_output, old, row, back, sample, *args, **options)


def _pndm_step(self: Any, model_output: Any, timestep: Any, sample: Any, return_dict: bool = True) -> Any:
    """Where img2img begins at the node that stands twice, the second evaluation is of a sample one level on: dropped.

    (A start at that node's second entry cannot be told from this one before the second call.)
    """
    if self.counter != 1 or nearest(self._levels.nodes, timestep) != self._first_node:
        return Installed.step(self, model_output, timestep, sample, return_dict=return_dict)
    self.counter, self.cur_sample = 2, None
    return SchedulerOutput(prev_sample=sample) if return_dict else (sample,)


def _alpha_cumprod(self: Any, t: Any, device: Any) -> Any:
    """Wuerstchen computes its levels from t, in float32 and clipped (so that the end is never clean)."""
    levels: Levels = self._levels
    values = torch.from_numpy(levels.alphas[[nearest(levels.written["timesteps"], x) for x in t.flatten()]] ** 2)
    return values.to(device=device, dtype=torch.float32 if torch.device(device).type == "mps" else torch.float64)


def _token_step(self: Any, model_output: Any, timestep: Any, sample: Any, *args: Any, **options: Any) -> Any:
    """Where each token has its own timestep (LTX, SanaWM) the parent keeps the dtype of its sigmas, here float64."""
    result = Installed.step(self, model_output, timestep, sample, *args, **options)
    if options.get("per_token_timesteps") is None:
        return result
    wide = torch.promote_types(sample.dtype, torch.float32)  # as the parent has it with float32 sigmas
    if isinstance(result, tuple):
        return (result[0].to(wide), *result[1:])
    result.prev_sample = result.prev_sample.to(wide)
    return result


def _scale_noise(self: Any, sample: Any, timestep: Any, noise: Any = None) -> Any:
    """With `invert_sigmas` the parent takes the data's share for the noise's."""
    parent: Any = super(Installed, self)
    data, noise = (noise, sample) if self.config.invert_sigmas else (sample, noise)
    return parent.scale_noise(data, timestep, noise)


_OWN_METHODS: Mapping[str, Mapping[str, Any]] = {
    "CogVideoXDPMScheduler": {"step": _cogvideox_dpm_step},
    "DDPMWuerstchenScheduler": {"_alpha_cumprod": _alpha_cumprod},
    "FlowMatchEulerDiscreteScheduler": {"scale_noise": _scale_noise, "step": _token_step},
    "FlowMatchLCMScheduler": {"scale_noise": _scale_noise},
    "PNDMScheduler": {"step": _pndm_step},
}


# The first s that pipelines propose for pure noise is 0.999 or 1.
_NOISE = 0.95


def check_proposal(schedule: Schedule, steps: Any, timesteps: Any, sigmas: Any) -> str | None:
    """One rule for the number of steps, timesteps and sigmas that `set_timesteps` is given.

    Their number must be the schedule's N. Values equal to the schedule's, to rounding, are its own. For VP and VE
    models other values are an error: no diffusers pipeline of such a model proposes any, so they are the caller's.
    Pipelines of flow models nearly all propose some, and nothing tells theirs from a caller's: the schedule replaces
    them. The even grid from pure noise, which most propose, says nothing of anyone's wish; about others there is a
    notice. A list that starts lower (Stable Audio 3's `init_noise_level`, LTX-2's second stage) says how much noise the
    pipeline put on its data, so the schedule must start there.

    Without `steps`, `timesteps` [N] and `sigmas` ([N], or [N + 1] equal to the schedule's own with its end) N is meant.
    Returns the notice, or None; raises ValueError.
    """
    nfe, counts = schedule.nfe, [steps]
    proposed: dict[str, tuple[Array, Array, float]] = {}
    near = 1e-3 if schedule.kind == "ve" else 1.0
    known = (("timesteps", timesteps, schedule.timesteps, near), ("sigmas", sigmas, schedule.sampler_sigmas(), 0.0))
    for name, asked, own, tolerance in known:
        if asked is not None:
            values = np.asarray([float(x) for x in asked])
            # N + 1 sigmas may be the schedule's own with its end, or a proposal for one step more.
            with_end = len(values) == len(own) and _near(values, own, tolerance)
            counts.append(nfe if with_end else len(values))
            proposed[name] = values[:nfe], np.asarray(own)[:nfe], tolerance
    for count in counts:
        if count is not None and int(count) != nfe:
            way = f"call the pipeline with num_inference_steps={nfe}, or install a schedule made for {count}"
            if schedule.end == "t_eps" and schedule.method == "custom" and int(count) == nfe + 1:
                way = "append a final 0 to the list to evaluate at its last sigma too"
            raise ValueError(f"num_inference_steps is {count}, but the installed schedule has {nfe} evaluations: {way}")
    for name, (values, own, tolerance) in proposed.items():
        if _near(values, own, tolerance):
            continue
        both = f"{name} {_short(values)} differ from those of the installed schedule, {_short(own)}"
        if schedule.kind != "flow":
            raise ValueError(f"{both}; leave the argument out, or install another schedule")
        if name == "sigmas" and values[-1] < values[0] < _NOISE and abs(values[0] - own[0]) > 0.01:
            raise ValueError(
                f"the pipeline noised its data to s = {values[0]:.4g}, but the installed schedule starts "
                f"at {own[0]:.4g}: install one whose first sigma is {values[0]:.4g}"
            )
        if not _is_even(values, 1.0 if name == "sigmas" else float(schedule.num_train_timesteps)):
            return (
                f"{both}, which is used. If you passed them, leave the argument out, or install them with "
                "with_schedule; if you did not, they are the pipeline's own and have no effect"
            )
    return None


def _near(proposed: Array, own: Array, tolerance: float) -> bool:
    """Whether they are the schedule's own but for the digits that were left out."""
    rounded = np.minimum(rounding(proposed), 0.01 * np.abs(own))
    return bool((np.abs(proposed - own) <= 1e-3 * np.abs(own) + np.maximum(rounded, tolerance)).all())


def _is_even(proposed: Array, top: float) -> bool:
    """Whether it is a linspace from pure noise to 1/N or less; whole timesteps are off by up to 1 in 1000."""
    line, near = np.linspace(proposed[0], proposed[-1], len(proposed)), 2e-3 * top
    starts, ends = proposed[0] >= 0.99 * top, proposed[-1] <= top / len(proposed) + near
    return bool(starts and ends and np.abs(proposed - line).max() <= near)


def _short(values: Array) -> str:
    shown = [f"{x:.4g}" for x in values]
    return f"[{', '.join(shown if len(shown) <= 8 else [*shown[:6], '...', shown[-1]])}]"


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
    way = f"; the nearest that is supported: {parent}.from_config(scheduler.config)" if parent else ""
    raise ValueError(
        f"{cls.__module__}.{cls.__name__} is not a scheduler class of diffusers, and its step may differ{way}"
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
