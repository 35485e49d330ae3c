"""`NonstationaryScheduler`: a diffusers scheduler whose steps are a schedule's own coefficients."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import diffusers
import numpy as np
import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteSchedulerOutput

from bridge.noise_of import noise_schedule_of
from bridge.schedulers import scheduled
from bridge.schedulers.rows import ROWS, Row, check_fits, check_supported
from bridge.schedulers.scheduled import NONSTATIONARY_CLASS, Installed, add_noise
from hso_jax import schedule_file
from hso_jax.noise import NoiseSchedule, alpha_sigma
from hso_jax.noise.from_config import FLOW_CLASSES
from hso_jax.schedule import Schedule


def _refuse(config: Mapping[str, Any], schedule: Schedule) -> str | None:
    name = config[scheduled.REPLACED_KEY]["_class_name"]
    if ROWS[name].layout == "grid" or name == "FlowMatchLCMScheduler":
        return f"the model of {name} is distilled for that solver; keep it, or use the undistilled model"
    if ROWS[name].layout == "times":
        why = f"pipelines with {name} need its form of timesteps"
        return f"{why}; use with_schedule and a schedule without coefficients"
    if schedule.coefficients is None:
        return f"the schedule is for solver {schedule.solver!r} and has no coefficients; use with_schedule"
    if schedule.kind == "ve" and config["prediction_type"] not in ("epsilon", "v_prediction"):
        return f"EDM's preconditioning knows no prediction_type {config['prediction_type']!r}"
    return None


class _Step(NamedTuple):
    """Numbers of one step: the network's input is `scale` x, x0 = `skip` x + `out` output, and a row of weights."""

    scale: float
    skip: float
    out: float
    carry: float
    weights: list[float]


class _Stepper(SchedulerMixin, ConfigMixin):
    """What `Installed` expects of the diffusers class behind it."""

    order = 1
    _compatibles: ClassVar = list(ROWS)
    _step_index: int | None  # the next step's
    _begin_index: int | None
    _past: tuple[torch.Tensor, ...]  # predictions, newest first
    _state: tuple[torch.Tensor, torch.Tensor, int | None] | None  # the sample, as handed out, and its `_edits`

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        """Forget the steps so far."""
        self.num_inference_steps = num_inference_steps
        self._step_index = self._begin_index = self._state = None
        self._past = ()


class NonstationaryScheduler(Installed, _Stepper):
    """Samples by a schedule's own nodes and coefficients (`Schedule.coefficients`), one evaluation a step.

    Make one with `from_schedule`. The sample is in the model's own scaling, as with DDIM: alpha^2 + sigma^2 = 1,
    s for flow models, x0 + sigma eps with EDM's preconditioning for VE models. Samples and predictions are kept in
    float32 (float64 if the sample is), whatever the network's precision.

    Source: the form is `hso_jax.solvers.nonstationary`'s, after Shaul et al., arXiv 2403.01329.

    Attributes:
        config: the schedule (`hso_schedule`, as in a schedule file), the config of the scheduler it stands in for
            (`hso_replaced`), and the latter's entries once more, where pipelines look for them.
        timesteps: [N] of the nodes.
        sigmas: [N + 1] as `Schedule.sampler_sigmas`, on the CPU.
        order: 1 evaluation a step.
    """

    _row = Row(predictions=("epsilon", "v_prediction", "sample", "flow_prediction"), refuse=_refuse)

    def __init__(self, hso_schedule: Any = None, hso_replaced: Any = None, prediction_type: str | None = None) -> None:
        """From a config, as diffusers calls it; see `from_schedule`."""
        if hso_schedule is None or not isinstance(hso_replaced, Mapping) or "_class_name" not in hso_replaced:
            raise ValueError(
                f"bridge.{NONSTATIONARY_CLASS} needs a schedule and the scheduler it stands for in its config; use "
                f"{NONSTATIONARY_CLASS}.from_schedule(scheduler, schedule)"
            )
        name = check_supported(hso_replaced["_class_name"])
        given = _public(hso_replaced)
        if prediction_type is not None and name not in FLOW_CLASSES:
            given["prediction_type"] = prediction_type
        schedules = schedule_file.from_document(hso_schedule)
        if len(schedules) != 1:
            raise ValueError(f"hso_schedule holds {len(schedules)} schedules; need one")
        try:
            plain = getattr(diffusers, name).from_config(given)
        except Exception as error:  # diffusers checks no values: whatever its arithmetic meets
            raise ValueError(f"hso_replaced is no config of {name}: {error}") from error
        self._stand_in(plain, schedules[0], None)

    @classmethod
    def from_schedule(
        cls, scheduler: Any, schedule: Schedule | Any, *, coefficients: Any = None, noise: NoiseSchedule | None = None
    ) -> NonstationaryScheduler:
        """The scheduler for a model, whatever scheduler its pipeline has; that one is left as it is.

        Use it as `pipe.scheduler = NonstationaryScheduler.from_schedule(pipe.scheduler, schedule)`, then call the
        pipeline with `num_inference_steps=schedule.nfe`. `without_schedule` gives the former scheduler again.

        Args:
            scheduler: a diffusers scheduler of a supported class, one with a schedule, or a pipeline.
            schedule: with coefficients; or N + 1 sigmas as `with_schedule` takes them, and `coefficients`.
            coefficients: [N, H - 1], for sigmas only.
            noise: the scheduler's `noise_schedule_of`, where that has been read already.

        Raises:
            ValueError: for a schedule without coefficients or for another model, bad coefficients, or a scheduler
                whose model is distilled for it; the message says what to do instead.
        """
        plain = scheduled.without_schedule(getattr(scheduler, "scheduler", scheduler))
        check_supported(scheduled.supported_name(plain))
        if not isinstance(schedule, Schedule):
            schedule = scheduled.schedule_from_list(noise or noise_schedule_of(plain), schedule, coefficients)
        elif coefficients is not None:
            raise ValueError("coefficients go with a list of sigmas; this schedule has its own")
        result = cls.__new__(cls)
        result._stand_in(plain, schedule, noise)
        return result

    def _stand_in(self, plain: Any, schedule: Schedule, noise: NoiseSchedule | None) -> None:
        """Take over what is known of the model from a plain scheduler, and the steps from a schedule."""
        noise = noise_schedule_of(plain) if noise is None else noise
        name = type(plain).__name__
        known = _public(plain.config)
        prediction = "flow_prediction" if name in FLOW_CLASSES else known.get("prediction_type", "epsilon")
        replaced = {scheduled.REPLACED_KEY: {"_class_name": name, **known}}
        self.register_to_config(**{**known, "prediction_type": prediction, **replaced})
        # Models of pixels are sampled within their range.
        own = inspect.signature(type(plain).__init__).parameters
        self._clips = next((k for k in ("thresholding", "clip_sample") if k in own and plain.config.get(k)), "")
        if hasattr(plain, "alphas_cumprod"):
            self.alphas_cumprod = plain.alphas_cumprod
        self.sigmas, self.timesteps = torch.zeros(0), torch.zeros(0)
        check_fits(self, schedule, self._row, noise)
        self.register_to_config(**{scheduled.SCHEDULE_KEY: scheduled.Record(schedule_file.to_document(schedule))})
        self._levels = scheduled.Levels(schedule, self._row, self.config, noise)
        self._steps = _steps(schedule, self.config)
        self._schedule, self._noticed = schedule, False
        _Stepper.set_timesteps(self, schedule.nfe)
        self._levels.write(self, None)

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the start: 1, and sqrt(1 + sigma^2) for VE models."""
        return float(np.hypot(1.0, float(self.sigmas[0]))) if self.schedule.kind == "ve" else 1.0

    @property
    def step_index(self) -> int | None:
        """The next step's; None before the first."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """Where img2img begins; None at the start."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Begin at a later node; predictions from before it are not missed, the newest takes their weights."""
        self._begin_index = begin_index

    def scale_model_input(self, sample: torch.Tensor, timestep: Any = None) -> torch.Tensor:
        """The network's input: the sample, for VE models divided by sqrt(sigma^2 + sigma_data^2)."""
        if self.schedule.kind != "ve":
            return sample
        return sample * self._steps[self._place(timestep)].scale

    def step(
        self,
        model_output: torch.Tensor,
        timestep: Any,
        sample: torch.Tensor,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
        eta: float = 0.0,
    ) -> Any:
        """The sample at the next node, in its own dtype, and the predicted clean data.

        Args:
            model_output: of the network, [B, ...]; channels beyond the sample's (a learned variance) are left out.
            timestep: one of `timesteps`; looked at in the first step alone, unless `set_begin_index` says where.
            sample: [B, ...] at the current node.
            generator: has no effect; pipelines that pass one may.
            return_dict: whether to return an object, or `(prev_sample, pred_original_sample)`.
            eta: DDIM's noise; none is added, and a warning says so unless it is 0.

        Raises:
            ValueError: after the last step, or for a timestep that is none of the schedule's.
        """
        index = self._place(timestep)
        if eta:
            warnings.warn(f"eta is {eta}; {NONSTATIONARY_CLASS} adds no noise: leave it out", stacklevel=2)
        if index >= len(self._steps):
            raise ValueError(f"all {len(self._steps)} steps are taken; call set_timesteps before sampling again")
        here = self._steps[index]
        x = self._unrounded(sample)
        if model_output.shape != x.shape and self.config.get("variance_type") in ("learned", "learned_range"):
            model_output = model_output[:, : x.shape[1]]
        own = model_output.dtype == x.dtype  # a widened output may be written into
        clean = model_output * here.out if own else model_output.to(x.dtype).mul_(here.out)
        if here.skip:
            clean.add_(x, alpha=here.skip)
        clean = self._clipped(clean)
        past = (clean, *self._past)[: len(here.weights)]
        # Where sampling began later, the newest prediction stands for those that are missing.
        newest = here.weights[0] + sum(here.weights[len(past) :])
        if not here.carry:
            then = clean * newest
        else:  # a widened sample is our own, and is not needed any more
            then = (x * here.carry if x.dtype == sample.dtype else x.mul_(here.carry)).add_(clean, alpha=newest)
        for weight, known in zip(here.weights[1:], past[1:], strict=False):
            if weight:
                then.add_(known, alpha=weight)
        last = index + 1 == len(self._steps)
        self._step_index, self._past = index + 1, () if last else past
        rounded = then.to(sample.dtype)
        self._state = None if last or rounded is then else (then, rounded, _edits(rounded))
        return EulerDiscreteSchedulerOutput(rounded, clean) if return_dict else (rounded, clean)

    def add_noise(self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """`alpha x_0 + sigma noise` [B, ...] at nodes of the schedule; timesteps [B] or one for all."""
        return add_noise(self, original_samples, noise, timesteps)

    def scale_noise(self, sample: torch.Tensor, timestep: Any, noise: torch.Tensor) -> torch.Tensor:
        """As `add_noise`, in the order that pipelines of flow models use."""
        return self.add_noise(sample, noise, timestep)

    def __len__(self) -> int:
        """Levels of the training table."""
        return self.schedule.num_train_timesteps

    def _place(self, timestep: Any) -> int:
        if self._step_index is None:
            begin = self._begin_index
            self._step_index = self.index_for_timestep(timestep) if begin is None else begin
        return self._step_index

    def _unrounded(self, sample: torch.Tensor) -> torch.Tensor:
        """The sample in float32 or wider, with the digits that half precision cost it where nobody changed it since."""
        wide = torch.promote_types(sample.dtype, torch.float32)
        if self._state is None or self._state[0].shape != sample.shape or self._state[0].device != sample.device:
            return sample.to(wide)
        kept, rounded, edits = self._state
        if sample is rounded and edits is not None and edits == _edits(sample):
            return kept
        return torch.where(kept.to(sample.dtype) == sample, kept, sample)

    def _clipped(self, clean: torch.Tensor) -> torch.Tensor:
        if self._clips == "thresholding":
            return diffusers.DDIMScheduler._threshold_sample(self, clean)
        reach = self.config.get("clip_sample_range", 1.0)
        return clean.clamp(-reach, reach) if self._clips else clean


NonstationaryScheduler.__module__ = "bridge"  # where diffusers and pickle look it up


def _steps(schedule: Schedule, config: Mapping[str, Any]) -> list[_Step]:
    alphas, sigmas = alpha_sigma(schedule.lams[: schedule.nfe], schedule.kind)
    found = conversion(alphas, sigmas, schedule.kind, config)
    scale, skip, out = (np.broadcast_to(x, alphas.shape).tolist() for x in found)
    rows = schedule.weights_table().tolist()
    return [_Step(a, b, c, row[0], row[1:]) for a, b, c, row in zip(scale, skip, out, rows, strict=True)]


def conversion(alpha: Any, sigma: Any, kind: str, config: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """(scale, skip, out) at a level x = alpha x_0 + sigma eps, of numbers, arrays or tensors.

    The network's input is `scale` x, and x0 = `skip` x + `out` output; `config` is the scheduler's.
    """
    prediction = config["prediction_type"]
    if kind == "ve":
        data = float(config.get("sigma_data", 1.0))
        scale = 1.0 / (sigma**2 + data**2) ** 0.5
        return scale, (data * scale) ** 2, sigma * data * scale * (1.0 if prediction == "epsilon" else -1.0)
    if prediction == "epsilon":
        return 1.0, 1.0 / alpha, -sigma / alpha
    if prediction == "sample":
        return 1.0, 0.0, 1.0
    if prediction == "v_prediction":
        return 1.0, alpha, -sigma
    # d x / d s, or against s where time runs from 0 at noise to 1 at data
    return 1.0, 1.0, -sigma * (-1.0 if config.get("invert_sigmas") else 1.0)


def _edits(tensor: torch.Tensor) -> int | None:
    """How often it was written into, views of it included; None where PyTorch does not count."""
    return None if tensor.is_inference() else tensor._version


def _public(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config's entries but for diffusers' private ones and ours, as JSON takes them."""
    public = {key: value for key, value in config.items() if not key.startswith(("_", "hso_"))}
    return {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in public.items()}
