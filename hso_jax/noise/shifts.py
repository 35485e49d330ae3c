"""What diffusers' pipelines and schedulers do to a flow model's levels: the shift, and `sigmas=` that undo it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from hso_jax.checks import choice, number, whole

TIME_SHIFTS = ("exponential", "linear")
_FLUX2_STEPS = 50  # its pipeline's default


def dynamic_shift(
    image_seq_len: int,
    *,
    base_image_seq_len: int = 256,
    max_image_seq_len: int = 4096,
    base_shift: float = 0.5,
    max_shift: float = 1.15,
    time_shift_type: str = "exponential",
) -> float:
    """The shift that FLUX applies to an image of `image_seq_len` tokens: exp(mu) with mu linear in the length.

    1024 x 1024 pixels are 4096 tokens (8x8 pixels a latent, 2x2 latents a token). Source: diffusers' `calculate_shift`
    and FlowMatchEulerDiscreteScheduler. Raises ValueError for a length below 1, equal lengths, an unknown
    time_shift_type or a shift that is not positive.
    """
    mu = _flux(image_seq_len, Lengths(base_image_seq_len, max_image_seq_len, base_shift, max_shift))
    choice("time_shift_type", time_shift_type, TIME_SHIFTS)
    try:
        return shift_of_mu(mu, time_shift_type)
    except ValueError:
        kind = f"exp({mu:.6g})" if time_shift_type == "exponential" else f"{mu:.6g}"
        raise ValueError(
            f"base_shift {base_shift:g} and max_shift {max_shift:g} give {image_seq_len} tokens a shift of {kind}; "
            "check these and image_seq_len"
        ) from None


def flux2_shift(image_seq_len: int, nfe: int = _FLUX2_STEPS) -> float:
    """The shift that FLUX.2's pipeline applies to `image_seq_len` tokens and N steps: exp(mu).

    mu is its authors' fit: two straight lines in the length, for 10 and for 200 steps, and linear in N between them and
    beyond; past 4300 tokens the latter line alone. A token is 16 x 16 pixels. Source: diffusers' Flux2Pipeline. Raises
    ValueError for a length or an N below 1.
    """
    length = whole("image_seq_len", image_seq_len, 1, 10**5)  # there the shift is e^17, still a float
    steps = whole("nfe", nfe, 1, 1000)
    at_10, at_200 = 8.73809524e-05 * length + 1.89833333, 0.00016927 * length + 0.45666666
    return math.exp(at_200 if length > 4300 else at_200 + (at_200 - at_10) / 190.0 * (steps - 200))


def shift_of_mu(mu: float, time_shift_type: str) -> float:
    """The shift that a scheduler makes of its pipeline's mu: exp(mu), and mu itself with `time_shift_type` "linear".

    Raises ValueError for a shift that is not positive, or is beyond exp(50).
    """
    mu = number("mu", mu)
    if choice("time_shift_type", time_shift_type, TIME_SHIFTS) == "linear":
        if mu <= 0.0:
            raise ValueError(f"mu is {mu}; need a positive number: with time_shift_type 'linear' it is the shift")
        return mu
    if abs(mu) > 50.0:
        raise ValueError(f"mu is {mu}, the logarithm of the shift; need a number between -50 and 50")
    return math.exp(mu)


class Lengths(NamedTuple):
    """What a scheduler's config says of a shift that follows the image's length; the defaults are FlowMatchEuler's."""

    base_image_seq_len: int = 256
    max_image_seq_len: int = 4096
    base_shift: float = 0.5
    max_shift: float = 1.15


def pipeline_mu(
    pipeline: Mapping[str, Any], config: Mapping[str, Any], image_seq_len: int, nfe: int = _FLUX2_STEPS
) -> float:
    """The mu that a pipeline passes to its scheduler for an image of so many tokens.

    Args:
        pipeline: its config, as `model_index.json` has it: `_class_name` chooses the rule, `MU_RULES`. Any other
            pipeline has FLUX's rule, or CogView4's where the config's `time_shift_type` is "linear", which CogView4 and
            GLM-Image alone have.
        config: of its scheduler.
        image_seq_len: tokens of the image.
        nfe: N, which FLUX.2's rule looks at.
    """
    _tokens("image_seq_len", image_seq_len)
    name = str(pipeline.get("_class_name", ""))
    silent = Lengths()
    if not str(config.get("_class_name")).startswith("FlowMatch"):  # those have values for all that is not given
        silent = _of_class(_SILENT, name, silent)
    given = silent._replace(**{key: config[key] for key in Lengths._fields if config.get(key) is not None})
    plain = _cogview4 if config.get("time_shift_type") == "linear" else _flux
    return float(_of_class(MU_RULES, name, plain)(image_seq_len, given, pipeline, nfe))


def _of_class(table: Mapping[str, Any], name: str, default: Any) -> Any:
    return next((table[start] for start in table if name.startswith(start)), default)


_IDEOGRAM = "Ideogram4"
# What a pipeline takes for values that the config of a scheduler of another class has not.
_SILENT: Mapping[str, Lengths] = {
    "CogView4": Lengths(base_shift=0.25, max_shift=0.75),
    "DreamLite": Lengths(max_shift=1.16),
    "GlmImage": Lengths(base_shift=0.25, max_shift=0.75),
    "Krea2": Lengths(max_image_seq_len=6400),
    "LTX2": Lengths(1024, 4096, 0.95, 2.05),
    "StableDiffusion3": Lengths(max_shift=1.16),
}


def _tokens(name: str, value: Any) -> int:
    return whole(name, value, 1, 10**9)  # it is computed with as a float


def _flux(length: int, given: Lengths, *_: Any) -> float:
    least, most = (_tokens(name, getattr(given, name)) for name in ("base_image_seq_len", "max_image_seq_len"))
    low, high = number("base_shift", given.base_shift), number("max_shift", given.max_shift)
    if least == most:
        raise ValueError(f"base_image_seq_len and max_image_seq_len are both {most}; they must differ")
    return low + (high - low) * ((_tokens("image_seq_len", length) - least) / (most - least))


def _cogview4(length: int, given: Lengths, *_: Any) -> float:
    low, high = number("base_shift", given.base_shift), number("max_shift", given.max_shift)
    return math.sqrt(length / _tokens("base_image_seq_len", given.base_image_seq_len)) * high + low


# How a pipeline's class name begins -> its mu of (tokens, lengths, pipeline's config, N), as in diffusers 0.42.1.
MU_RULES: Mapping[str, Callable[..., float]] = {
    "CogView4": _cogview4,
    "EasyAnimate": lambda *_: 1.0,
    "Flux2": lambda length, given, pipeline, nfe: math.log(flux2_shift(length, nfe)),
    "GlmImage": _cogview4,
    # It passes its transformer's longest sequence, 4096 tokens, and nothing of the config.
    "HiDreamImage": lambda *_: Lengths().max_shift,
    "HunyuanVideoFramepack": lambda *args: min(_flux(*args), math.log(7.0)),
    "Krea2": lambda length, given, pipeline, _: (
        Lengths().max_shift if pipeline.get("is_distilled") else _flux(length, given)
    ),
    "QwenImageLayered": lambda length, *_: math.sqrt(length / 256.0),
}


def has_rule(name: str) -> bool:
    """Whether pipelines of this class have another shift than their scheduler's config says."""
    return name.startswith((*MU_RULES, *_SILENT, _IDEOGRAM))


def grid_shift(pipeline: Mapping[str, Any], image_seq_len: int) -> float:
    """The shift that a pipeline's own grid has before its scheduler's: Ideogram 4's is sqrt(tokens/1024)."""
    length = _tokens("image_seq_len", image_seq_len)
    return math.sqrt(length / 1024.0) if str(pipeline.get("_class_name", "")).startswith(_IDEOGRAM) else 1.0


# Its `set_timesteps` shifts the sigmas it is given, and appends 0.
SHIFTING = ("FlowMatchEulerDiscreteScheduler", "FlowMatchLCMScheduler")
# It takes N + 1 sigmas as they are.
VERBATIM = ("EulerDiscreteScheduler", "LTXEulerAncestralRFScheduler")
_INSTALL = "use bridge.with_schedule(scheduler, schedule), which needs no argument"
_SPACING = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")


def diffusers_sigmas(
    levels: np.ndarray, kind: str, scheduler: Any, *, mu: float | None = None, image_seq_len: int | None = None
) -> np.ndarray:
    """See `Schedule.diffusers_sigmas`; `levels` and `kind` are the schedule's `sampler_sigmas()` and `kind`."""
    pipeline = {"_class_name": type(scheduler).__name__, **(getattr(scheduler, "config", None) or {})}
    scheduler = getattr(scheduler, "scheduler", scheduler)
    config = getattr(scheduler, "config", None)
    if not isinstance(config, Mapping):
        raise ValueError(f"need a diffusers scheduler or pipeline, got {type(scheduler).__name__}")
    # A class that carries a schedule bears the name of diffusers' own.
    name = type(scheduler).__name__
    if name not in (*SHIFTING, *VERBATIM):
        raise ValueError(f"{name} takes no sigmas that it would follow exactly; {_INSTALL}")
    if (name != "EulerDiscreteScheduler") != (kind == "flow"):
        raise ValueError(f"the schedule is for noise of kind {kind!r}, which is not what {name} samples; {_INSTALL}")
    if on := [flag for flag in _SPACING if config.get(flag)]:
        raise ValueError(f"{name}: {on[0]} would replace the sigmas; switch it off, or {_INSTALL}")
    if name in VERBATIM:
        return np.array(levels)
    if config.get("use_flow_sigmas"):  # left there by another class's config
        raise ValueError(f"{name}: pipelines drop `sigmas` where the config has use_flow_sigmas; {_INSTALL}")
    if levels[-1] != 0.0:
        raise ValueError(f"{name} always goes on to sigma 0; use schedule.with_end('clean'), or {_INSTALL}")
    values = levels[:-1]
    terminal = config.get("shift_terminal")
    if terminal and abs(float(values[-1]) - terminal) > 1e-5:
        raise ValueError(
            f"{name}: shift_terminal stretches any sigmas until the last is {terminal}, and the schedule's is "
            f"{values[-1]:.6g}; set it to None, or {_INSTALL}"
        )
    if config.get("use_dynamic_shifting"):
        if mu is not None and image_seq_len is not None:
            raise ValueError("mu and image_seq_len both name the shift; give one of them")
        if mu is None:
            # A shift that is the same at every size needs no size.
            same = config.get("base_shift") is not None and config.get("base_shift") == config.get("max_shift")
            if image_seq_len is None and not (same and config.get("time_shift_type") != "linear"):
                raise ValueError(
                    f"{name}'s shift follows the image's size: pass image_seq_len (4096 for 1024 x 1024 pixels in "
                    "FLUX), or the mu that the pipeline computes"
                )
            tokens = image_seq_len or Lengths().base_image_seq_len
            mu = pipeline_mu(pipeline, {**config, "_class_name": name}, tokens, len(values))
        shift = shift_of_mu(mu, config.get("time_shift_type", "exponential"))
    else:
        own = getattr(scheduler, "shift", config.get("shift", 1.0))
        shift = number("shift", own, low=0.0, need="a positive number")
    return values / (shift - (shift - 1.0) * values)
