"""What a ComfyUI MODEL says of its noise levels, and whether sigmas made for another model fit it."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from hso_jax.noise import PRESETS, NoiseSchedule, discrete, edm, flow, preset
from hso_jax.noise.ends import first_lam
from hso_jax.schedule import Schedule

FROM_MODEL = "from MODEL"
"""What the nodes' menus call the noise of the connected MODEL."""

FAMILIES = tuple(name for name, entry in PRESETS.items() if not entry.config.get("rescale_betas_zero_snr"))
"""The presets whose sigmas ComfyUI's samplers can begin at: zero terminal SNR begins at an infinite one."""

_OWN_GRID = {
    "ModelSamplingDiscreteDistilled": "distilled (LCM) onto a grid of its own",
    "StableCascadeSampling": "Stable Cascade's",
    "COSMOS_RFLOW": "Cosmos' rectified flow in sigma / (1 + sigma)",
    "IMG_TO_IMG": "a model that maps pictures to pictures",
}
_SLACK = 1.02  # float32 tables, and published levels with three digits
_LEAST_SHARE = 0.5  # of the model's largest level: schedules that begin below it leave noise that nothing removes,
# unless so few steps begin there by default


class Levels(NamedTuple):
    """The noise levels that a model knows.

    Attributes:
        who: the model, in words.
        is_flow: whether sigma is rectified flow's s in [0, 1]; else it is sigma/alpha (eps, v and EDM models).
        low, high: smallest and largest sigma.
    """

    who: str
    is_flow: bool
    low: float
    high: float

    def __str__(self) -> str:
        kind = "flow, s" if self.is_flow else "eps or v, sigma/alpha"
        return f"{self.who} ({kind} {self.low:.4g} to {self.high:.4g})"


def levels_of(model: Any) -> Levels:
    """The levels of a MODEL with its patches (ModelSamplingSD3, ...), read from its model_sampling.

    Raises:
        ValueError: for a MODEL that keeps a grid of its own, or whose kind of sampling is unknown.
    """
    sampling = model.get_model_object("model_sampling")
    kinds = {cls.__name__ for cls in type(sampling).__mro__}
    who = type(model.model.model_config).__name__
    for name, what in _OWN_GRID.items():
        if name in kinds:
            raise ValueError(f"the connected MODEL {who} is {what}: no schedule here fits it; use BasicScheduler")
    if not kinds & {"CONST", "EPS"}:
        raise ValueError(
            f"the connected MODEL {who} has a model_sampling of unknown kind ({', '.join(sorted(kinds))}); "
            "disconnect it to use the sigmas unchecked"
        )
    return Levels(f"MODEL {who}", "CONST" in kinds, float(sampling.sigma_min), float(sampling.sigma_max))


def noise_of(model: Any) -> NoiseSchedule:
    """The noise schedule of a MODEL with its patches.

    Raises:
        ValueError: as `levels_of`.
    """
    levels = levels_of(model)
    sampling, name = model.get_model_object("model_sampling"), levels.who
    if levels.is_flow:
        half = float(sampling.percent_to_sigma(0.5))  # shift / (1 + shift) of SD3's shift as of FLUX's
        return flow(half / (1.0 - half), name=name)
    kinds = {cls.__name__ for cls in type(sampling).__mro__}
    if "ModelSamplingDiscrete" in kinds:
        table = np.asarray(sampling.sigmas.cpu(), np.float64)
        found = discrete(1.0 / (1.0 + table**2), name=name)
        return found.with_prediction("v_prediction") if "V_PREDICTION" in kinds else found
    return edm(levels.low, levels.high, name=name)


def chosen_noise(model: str, diffusion_model: Any, image_seq_len: int = 4096) -> NoiseSchedule:
    """The noise schedule that a node's `model` names, checked against the connected MODEL, if there is one.

    Raises:
        ValueError: for an unknown name, `FROM_MODEL` without a MODEL, or a MODEL of other noise.
    """
    if model == FROM_MODEL:
        if diffusion_model is None:
            raise ValueError(f"model is {FROM_MODEL!r} and nothing is connected to diffusion_model; connect MODEL")
        return noise_of(diffusion_model)
    noise = preset(model, image_seq_len=image_seq_len)
    if diffusion_model is not None:
        refuse_misfit(levels_of_noise(noise), diffusion_model)
    return noise


def levels_of_noise(noise: NoiseSchedule) -> Levels:
    """The levels of a noise schedule, as ComfyUI calls them."""
    sigma = noise.sigma if noise.kind == "flow" else noise.ksigma
    top = 1.0 if noise.zero_terminal_snr and noise.kind == "flow" else float(sigma(float(noise.t_max)))
    return Levels(noise.name, noise.kind == "flow", float(sigma(float(noise.t_min))), top)


def _first_sigma(model: Any, schedule: Schedule) -> float:
    """Sigma/alpha where the MODEL's schedules of as many steps begin by default; inf at pure noise."""
    first = first_lam(noise_of(model), schedule.nfe, 1.0 if schedule.guidance is None else schedule.guidance)
    return math.exp(-first) if first > -math.inf else math.inf


def refuse_misfit(made_for: Levels, model: Any, schedule: Schedule | None = None) -> None:
    """Refuse sigmas that the MODEL was not trained for.

    Args:
        made_for: the model they were made for, or the sigmas themselves.
        model: a ComfyUI MODEL.
        schedule: whose sigmas `made_for` are: the largest may be as little as half of the MODEL's, or where so many
            steps of it begin by default (`noise.ends.first_lam`). Without, `made_for` is a model's whole range, which
            must end where the MODEL's does.

    Raises:
        ValueError: naming both, and as `levels_of`.
    """
    connected = levels_of(model)
    least = connected.high / _SLACK
    if schedule is not None:
        least = min(_LEAST_SHARE * connected.high, _first_sigma(model, schedule) / _SLACK)
    if made_for.is_flow == connected.is_flow and least <= made_for.high <= _SLACK * connected.high:
        return
    raise ValueError(
        f"these sigmas are made for {made_for} and do not fit the connected {connected}; choose what was made for it, "
        "or 'from MODEL' in the HSO Scheduler"
    )
