"""A schedule's nodes in the form a scheduler's class keeps them, and what its `step` is shown of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from bridge.schedulers.adapters import Row
from hso_jax.noise import NoiseSchedule, alpha_sigma
from hso_jax.schedule import Schedule

Array = np.ndarray[Any, Any]
TABLES = ("table", "plms")
# Pure noise has no finite log-SNR. These are the levels which diffusers itself puts in its place: alphas_cumprod =
# 2^-24 at zero terminal SNR, and s = 1 - 1e-6 in UniPC for flow models.
PURE_NOISE_KSIGMA = float(np.sqrt(2.0**24 - 1.0))
PURE_NOISE_S = 1.0 - 1e-6
# A timestep of 200 that was computed in float32 is 199.99998; it is the whole number that was meant.
SNAP = 1e-4


class Levels:
    """What is written into a scheduler by `set_timesteps`, and shown to its parent's `step`; made once.

    Attributes:
        alphas, sigmas: [N + 1] of the nodes and of the end (alpha 1, sigma 0 for a clean one), in the class's scaling.
        nodes: [N] timesteps of the nodes, float32.
        written: name -> array of the attributes to set ("timesteps" goes to the caller's device).
        table: [K] alphas_cumprod of the nodes, rising in noise, for the classes that step through a training table.
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

        Returns:
            The timestep to pass on, and attributes to replace for the time of the step. For "table" and "plms" the
            schedule becomes the model's whole training table, and the timestep its row, so that one stride of the
            parent is one step of the schedule. TCD's last step, to training level 0, is shown clean data there.
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
    steps = told(schedule, row)
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


def told(schedule: Schedule, row: Row) -> Array:
    """[N] timesteps of the nodes in float32, as networks embed them."""
    steps = np.asarray(schedule.timesteps, np.float32)
    if not row.snaps:
        return steps
    whole = np.rint(steps)
    return np.where(np.abs(steps - whole) < SNAP, whole, steps)


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
    if (
        row.layout == "ancestral"
    ):  # its middle level, between sigma and what the noise does not make up for, is the next
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
    """The position of a timestep that may have been rounded to bfloat16 (8 bits), of equals the first or the last.

    Raises:
        ValueError: if no known timestep is as close as that rounding explains.
    """
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
    if levels.counts_steps:
        if scheduler._row.layout == "plms":
            if scheduler.counter < 3:
                _before_plms_step(scheduler, levels.place(timestep))
        else:
            options["order"] = min(options.get("order", 4), len(scheduler.derivatives) + 1)


def _before_plms_step(scheduler: Any, node: int) -> None:
    """PNDM counts calls, and takes the second for a repetition of the first step; in img2img there is no such call."""
    if scheduler.counter == 0:
        scheduler._first_node = node
    elif scheduler.counter == 1 and scheduler._first_node > 0:
        scheduler.counter, scheduler.cur_sample = 2, None


def init_noise_sigma(scheduler: Any, parents: Any) -> Any:
    """Standard deviation of the start: unit data plus noise, which also holds where a schedule starts below t_max.

    A tensor where the parent's value is one, since pipelines call its methods; else a float.
    """
    value = float((scheduler._levels.written["sigmas"][0] ** 2 + 1.0) ** 0.5)
    return parents.new_tensor(value) if isinstance(parents, torch.Tensor) else value


def add_noise(scheduler: Any, original_samples: Any, noise: Any, timesteps: Any) -> Any:
    """`alpha x_0 + sigma noise` at nodes of the schedule (the parent indexes its training table, with integers).

    Args:
        scheduler: with an installed schedule.
        original_samples: [B, ...] clean data.
        noise: [B, ...] standard normal.
        timesteps: [B], or one for all, of the schedule.
    """
    levels: Levels = scheduler._levels
    nodes = [levels.place(t) for t in torch.as_tensor(timesteps).flatten()]
    shape = (-1,) + (1,) * (original_samples.dim() - 1)
    alpha, sigma = (
        torch.from_numpy(x[nodes]).to(original_samples).reshape(shape) for x in (levels.alphas, levels.sigmas)
    )
    return alpha * original_samples + sigma * noise
