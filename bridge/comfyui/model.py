"""What a ComfyUI MODEL says of its noise, whether sigmas fit it, and levels for one that nothing is shipped for."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np

from hso_jax.noise import PRESETS, NoiseSchedule, discrete, edm, first_lam, flow, lam_of_s, preset, s_of_lam
from hso_jax.schedule import Origin, Schedule
from hso_jax.shipped.zoo import MAX_NFE, SOLVERS, nearest_guidance, shipped_guidance, zoo, zoo_key
from hso_jax.solvers import canonical

FROM_MODEL = "from MODEL"
"""What the nodes' menus call the noise of the connected MODEL."""

_NOT_IN_MENUS = ("cogvideox-2b", "cogvideox-5b", "ddpm-cifar10", "dit-xl-2", "edm-cifar10")
FAMILIES = tuple(name for name in PRESETS if name not in _NOT_IN_MENUS)
"""The presets that ComfyUI has models of. CogVideoX needs its MODEL, which says how its samples are scaled."""

_FAMILY_OF = {
    **{"SD15": "sd15", "SD20": "sd21", "SDXL": "sdxl", "SDXLRefiner": "sdxl", "SD3": "sd35-large"},
    **{"PixArtAlpha": "pixart-alpha", "PixArtSigma": "pixart-sigma", "AuraFlow": "auraflow", "Chroma": "chroma"},
    **{"Lumina2": "lumina2", "ZImage": "z-image", "QwenImage": "qwen-image", "LTXV": "ltx-video", "WAN21_T2V": "wan21"},
}
"""A family by what ComfyUI calls its configuration, or that which it is derived from: it tells the usual guidance."""

_OWN_GRID = {
    "ModelSamplingDiscreteDistilled": "distilled (LCM) onto a grid of its own",
    "StableCascadeSampling": "Stable Cascade's",
    "COSMOS_RFLOW": "Cosmos' rectified flow in sigma / (1 + sigma)",
    "IMG_TO_IMG": "a model that maps pictures to pictures",
    "IMG_TO_IMG_FLOW": "a model that maps pictures to pictures",
}
_KNOWN = ("CONST", "EPS", "V_PREDICTION", "V_PREDICTION_DDPM", "X0", "EDM", *_OWN_GRID)
_MIXING = ("calculate_input", "calculate_denoised", "noise_scaling", "inverse_noise_scaling")
"""What these classes of ComfyUI do; a class of another name that does it differently is unknown here."""

_PURE_NOISE = 2.0**-24
"""Of alphas_cumprod: what is not above it is zero. ComfyUI ends at 4.9e-8 where a table has zero terminal SNR."""

_WIDEST_SHIFT = 7.0
"""Of a preset. At a larger one t = .001 is a noisier level than shipped steps end at; the network is told s, so that
its grid of t may go on to the same level."""

_SLACK = 1.02  # float32 tables, and published levels with three digits
_LEAST_SHARE = 0.5  # of the model's largest level: schedules that begin below it leave noise that nothing removes,
# unless so few steps begin there by default


class Levels(NamedTuple):
    """The noise levels that a model knows, and how ComfyUI's samplers write them.

    Attributes:
        who: the model, in words.
        is_flow: whether sigma is rectified flow's s in [0, 1]; else it is sigma/alpha (eps, v and EDM models).
        low, high: smallest and largest sigma; of zero terminal SNR the largest before pure noise.
        pure_noise: ComfyUI's sigma for pure noise where there is such a level beside them, else infinite.
        noise_scale: standard deviation of a flow's noise (HiDream-O1's is 8): x = (1 - s) x0 + s noise_scale eps.
        unscaled: whether the network is to be given alpha x0 + sigma eps, and nothing in ComfyUI divides by
            sqrt(1 + sigma^2) before it (CogVideoX).
    """

    who: str = ""
    is_flow: bool = False
    low: float = 0.0
    high: float = math.inf
    pure_noise: float = math.inf
    noise_scale: float = 1.0
    unscaled: bool = False

    def __str__(self) -> str:
        kind = "flow, s" if self.is_flow else "eps or v, sigma/alpha"
        pure = "" if math.isinf(self.pure_noise) else ", then pure noise"
        return f"{self.who} ({kind} {self.low:.4g} to {self.high:.4g}{pure})"


def levels_of(model: Any) -> Levels:
    """The levels of a MODEL with its patches (ModelSamplingSD3, ...), read from its model_sampling; of None the usual.

    ValueError for a MODEL that keeps a grid of its own, or whose kind of sampling is unknown.
    """
    if model is None:
        return Levels()
    sampling, who = model.get_model_object("model_sampling"), f"MODEL {type(model.model.model_config).__name__}"
    classes = type(sampling).__mro__
    kinds = {cls.__name__ for cls in classes}
    if own := next((what for name, what in _OWN_GRID.items() if name in kinds), ""):
        raise ValueError(f"the connected {who} is {own}: no schedule here fits it; use BasicScheduler")
    others = [c.__name__ for c in classes if c.__name__ not in _KNOWN and any(name in vars(c) for name in _MIXING)]
    if others or not kinds & {"CONST", "EPS", "V_PREDICTION_DDPM"}:
        named = others[0] if others else ", ".join(sorted(kinds - {"object", "Module", "ModelSampling"}))
        raise ValueError(
            f"the connected {who} has a model_sampling of unknown kind ({named}): no schedule here fits it; use "
            "BasicScheduler"
        )
    low, high, pure = float(sampling.sigma_min), float(sampling.sigma_max), math.inf
    if "CONST" in kinds:
        return Levels(who, True, low, high, noise_scale=float(getattr(sampling, "noise_scale", 1.0)))
    if "ModelSamplingDiscrete" in kinds and 1.0 / (1.0 + high**2) <= _PURE_NOISE:
        high, pure = float(sampling.sigmas[-2]), high
    return Levels(who, False, low, high, pure, unscaled="V_PREDICTION_DDPM" in kinds)


def noise_of(model: Any) -> NoiseSchedule:
    """The noise schedule of a MODEL with its patches; ValueError as `levels_of`, or for a shift that leaves no levels.

    A flow model whose noise has another standard deviation than 1 is one of a larger shift in log(alpha/sigma).
    """
    levels = levels_of(model)
    sampling, name = model.get_model_object("model_sampling"), levels.who
    kinds = {cls.__name__ for cls in type(sampling).__mro__}
    if levels.is_flow:
        half = float(sampling.percent_to_sigma(0.5))  # shift / (1 + shift) of SD3's shift as of FLUX's
        try:
            shift = levels.noise_scale * half / (1.0 - half)
            found = flow(shift, name=name)
            return dataclasses.replace(found, t_min=found.t_min * min(1.0, _WIDEST_SHIFT / shift))
        except (ValueError, ZeroDivisionError) as error:
            raise ValueError(
                f"the shift and the noise_scale ({levels.noise_scale:g}) of the connected {name} leave no levels "
                "between noise and picture; disconnect the node that sets them"
            ) from error
    if "ModelSamplingContinuousEDM" in kinds:
        found = edm(levels.low, levels.high, name=name)
        return found.with_prediction("v_prediction") if "EDM" not in kinds and "V_PREDICTION" in kinds else found
    alphas = 1.0 / (1.0 + np.asarray(sampling.sigmas.cpu(), np.float64) ** 2)
    if np.isfinite(levels.pure_noise):
        alphas[-1] = 0.0
    found = discrete(alphas, name=name)
    if "X0" in kinds:
        return found.with_prediction("sample")
    return found.with_prediction("v_prediction") if kinds & {"V_PREDICTION", "V_PREDICTION_DDPM"} else found


def usual_guidance(model: str, diffusion_model: Any) -> float | None:
    """The weight that the family, or that of the connected MODEL, is used with; None where it is not known."""
    family = model
    if model == FROM_MODEL and diffusion_model is not None:
        bases = [cls.__name__ for cls in type(diffusion_model.model.model_config).__mro__]
        family = next((_FAMILY_OF[name] for name in bases if name in _FAMILY_OF), "")
    return PRESETS[family].guidance if family in PRESETS else None


def chosen_noise(model: str, diffusion_model: Any, image_seq_len: int = 4096) -> NoiseSchedule:
    """The noise schedule that a node's `model` names; ValueError for no such name, or a MODEL of other noise."""
    if model == FROM_MODEL:
        if diffusion_model is None:
            raise ValueError(f"model is {FROM_MODEL!r} and nothing is connected to diffusion_model; connect MODEL")
        return noise_of(diffusion_model)
    if model not in PRESETS:
        raise ValueError(f"model {model!r} is not a preset; choose a family from the menu, or {FROM_MODEL!r}")
    noise = preset(model, image_seq_len=image_seq_len)
    if diffusion_model is not None:
        refuse_misfit(levels_of_noise(noise), diffusion_model)
    return noise


def levels_of_noise(noise: NoiseSchedule) -> Levels:
    """The levels of a noise schedule, as ComfyUI calls them."""
    is_flow = noise.kind == "flow"
    sigma = noise.sigma if is_flow else noise.ksigma
    top = 1.0 if noise.zero_terminal_snr and is_flow else float(sigma(float(noise.t_max)))
    return Levels(noise.name, is_flow, float(sigma(float(noise.t_min))), top)


def refuse_misfit(made_for: Levels, model: Any, schedule: Schedule | None = None) -> None:
    """Refuse sigmas that the MODEL was not trained for, with a ValueError that names both.

    Without a schedule, `made_for` is the whole range of the model that they were made for, and must end where the
    MODEL's does. With one it is the schedule's own range: the largest may be as little as half of the MODEL's, or where
    so many steps of it begin by default (`noise.first_lam`).
    """
    connected = levels_of(model)
    least, high = connected.high / _SLACK, made_for.high
    if schedule is not None:
        first = math.exp(-first_lam(noise_of(model), schedule.nfe))  # inf at pure noise
        least = min(_LEAST_SHARE * connected.high, first / _SLACK)
        if np.isfinite(connected.pure_noise) and high == math.inf:
            high = connected.high
    if made_for.is_flow == connected.is_flow and least <= high <= _SLACK * connected.high:
        return
    raise ValueError(
        f"these sigmas are made for {made_for} and do not fit the connected {connected}; use HSO Recommend with model "
        f"{FROM_MODEL!r}"
    )


def fitted(noise: NoiseSchedule, nfe: int, guidance: float, solver: str | None = None) -> tuple[Schedule, str]:
    """A schedule for a known solver (None: the one with the least error) from the nearest that is shipped, and how.

    More steps than are shipped have the nodes of the most that are, with others between them, even in
    s = sigma/(alpha + sigma). A model's noise that nothing is shipped for takes the nodes of the preset whose noise
    ends nearest; lam = log(alpha/sigma) is stretched on the noisy side from its first node to this model's, and pressed
    together on the other side where this model ends earlier. What errors this has: README.md beside this file.
    """
    shipped = bool(shipped_guidance(noise))
    near = noise if shipped else _nearest(noise)
    weight, most = nearest_guidance(near, guidance), min(nfe, MAX_NFE)
    choices = SOLVERS if solver is None else (canonical(solver, SOLVERS),)
    if choices[0] not in SOLVERS:
        raise ValueError(f"solver is {solver!r}, for which nothing is shipped; choose dpmpp_2m")
    found = min(
        (zoo(near, most, choice, guidance=weight) for choice in choices), key=lambda one: float(one.error or np.inf)
    )
    lams = np.array(found.lams)
    told = [f"{found.solver}, with the steps that are shipped for it; no error is predicted."]
    if nfe > most:
        lams = _between(lams, nfe, float(near.lam(float(near.t_max))))
        told.append(
            f"For {nfe} steps nothing is shipped: these are the {most} for {most} steps, and {nfe - most} between."
        )
    if not shipped:
        lams = _stretched(lams, first_lam(noise, nfe), noise.data_end)
        made_for = f"sigma {np.exp(-near.noise_end):.4g}" if np.isfinite(near.noise_end) else "pure noise"
        told.append(
            f"For this model's noise nothing is shipped: they are made for noise up to {made_for}, and stretched."
        )
    if weight != guidance:
        told.append(f"Of the guidances that are shipped {weight:g} is the nearest to {guidance:g}.")
    origin = Origin(method="fitted", solver=found.solver, guidance=weight)
    return Schedule.from_lams(noise, lams, origin=origin), " ".join(told)


def _nearest(noise: NoiseSchedule) -> NoiseSchedule:
    """The preset with shipped schedules whose ends are nearest; first of all it has the kind of error and of end."""
    end, data_end, unbounded = zoo_key(noise)

    def distance(other: NoiseSchedule) -> tuple[bool, bool, float, float]:
        its_end, its_data_end, its_unbounded = zoo_key(other)
        far = abs((its_end or 0.0) - (end or 0.0))
        return (its_end is None) != (end is None), its_unbounded != unbounded, far, abs(its_data_end - data_end)

    return min((one for one in map(preset, PRESETS) if shipped_guidance(one)), key=distance)


def _between(lams: np.ndarray, nfe: int, noisiest: float) -> np.ndarray:
    """N nodes among these; those after pure noise begin at the model's noisiest finite level."""
    s = s_of_lam(np.maximum(lams, noisiest))
    found = lam_of_s(np.interp(np.linspace(0.0, len(s) - 1.0, nfe), np.arange(len(s)), s))
    return np.append(lams[:1], found[1:])


def _stretched(lams: np.ndarray, first: float, last: float) -> np.ndarray:
    """The nodes with those of lam < 0 drawn to begin at `first`, and the others pressed to end by `last`."""
    if not np.isfinite(first):
        return np.where(lams > 0.0, lams * min(1.0, last / max(lams[-1], last)), lams)
    middle = 0.0 if first < 0.0 < last else 0.5 * (first + last)
    return np.interp(lams, [lams[0], 0.0, max(lams[-1], last, 1.0)], [first, middle, last])
