"""Rectified flow: x_s = (1 - s) x_0 + s eps, with s a shifted t."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from hso_jax.checks import MOST_LEVELS, choice, number, whole
from hso_jax.noise.noise_schedule import CONTINUOUS_LEVELS, Array, NoiseSchedule, from_knots, namespace
from hso_jax.optional_jax import is_traced

TIME_SHIFTS = ("exponential", "linear")
_LARGEST_MU = 50.0
_FLUX2_STEPS = 50  # its pipeline's default
_MOST_TOKENS = 10**9  # of an image: its length is computed with as a float
_MOST_FLUX2_TOKENS = 10**5  # where the shift is e^17: far beyond any picture, and still a float
_MOST_FLUX2_STEPS = 1000


def flow(shift: Array = 1.0, *, num_train_timesteps: int = 1000, name: str = "flow") -> NoiseSchedule:
    """Rectified flow whose time is shifted, s(t) = shift t / (1 + (shift - 1) t); lam = log((1 - t)/t) - log(shift).

    lam is -inf at t = 1 (pure noise): `t_max` is (T - 1)/T, the last training level before it. T = 1 (ACE-Step, Stable
    Audio 3) says only that the network is told s itself, in [0, 1]; the ends are then those of T = 1000.

    Source: Esser et al. 2024 (SD3), arXiv 2403.03206, eq. 23. For FLUX pass `shift=dynamic_shift(...)`.

    Raises:
        ValueError: unless shift > 0 and T is 1 (continuous time) or at least 3 (T = 2 leaves one level between the
            ends); and as `from_knots`. (A traced shift is not checked.)
    """
    xp = namespace(shift)
    if not is_traced(shift):
        checked = number("shift", shift, low=0.0, need="a positive number")
        shift = np.float64(checked) if xp is np else shift
    num_train_timesteps = whole("num_train_timesteps", num_train_timesteps, 1, MOST_LEVELS)
    if num_train_timesteps == 2:
        raise ValueError("num_train_timesteps is 2; need 1 (continuous time) or at least 3")
    values = -xp.log(xp.asarray(shift)) * xp.ones(2)
    grain = 1.0 / (num_train_timesteps if num_train_timesteps > 1 else CONTINUOUS_LEVELS)
    return from_knots(
        values, 0.0, 1.0, log_t=1.0, log_1mt=1.0, t_min=grain, t_max=1.0 - grain, kind="flow",
        num_train_timesteps=num_train_timesteps, timestep_rule="sigma", name=name,
    ).with_prediction("flow_prediction")  # fmt: skip


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

    1024 x 1024 pixels are 4096 tokens (8x8 pixels a latent, 2x2 latents a token). Source: diffusers'
    `calculate_shift` and FlowMatchEulerDiscreteScheduler.

    Raises:
        ValueError: for a length below 1, equal lengths, an unknown time_shift_type or a shift that is not positive.
    """
    choice("time_shift_type", time_shift_type, TIME_SHIFTS)
    mu = _linear_mu(image_seq_len, base_image_seq_len, max_image_seq_len, base_shift, max_shift)
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
    beyond; past 4300 tokens the latter line alone. A token is 16 x 16 pixels. Source: diffusers' Flux2Pipeline.

    Raises:
        ValueError: for a length or an N below 1.
    """
    length = whole("image_seq_len", image_seq_len, 1, _MOST_FLUX2_TOKENS)
    steps = whole("nfe", nfe, 1, _MOST_FLUX2_STEPS)
    at_200 = 0.00016927 * length + 0.45666666
    if length > 4300:
        return math.exp(at_200)
    at_10 = 8.73809524e-05 * length + 1.89833333
    return math.exp(at_200 + (at_200 - at_10) / 190.0 * (steps - 200))


def shift_of_mu(mu: float, time_shift_type: str) -> float:
    """The shift that a scheduler makes of its pipeline's mu: exp(mu), and mu itself with `time_shift_type` "linear".

    Raises:
        ValueError: for a shift that is not positive, or is beyond exp(50).
    """
    mu = number("mu", mu)
    if choice("time_shift_type", time_shift_type, TIME_SHIFTS) == "linear":
        if mu <= 0.0:
            raise ValueError(f"mu is {mu}; need a positive number: with time_shift_type 'linear' it is the shift")
        return mu
    if abs(mu) > _LARGEST_MU:
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
        pipeline: its config, as `model_index.json` has it: `_class_name` chooses the rule, `MU_RULES`; the rule of a
            pipeline that is in no table, or unknown, is FLUX's, or CogView4's where the config's `time_shift_type` is
            "linear", which CogView4 and GLM-Image alone have.
        config: of its scheduler.
        image_seq_len: tokens of the image.
        nfe: N, which FLUX.2's rule looks at.

    Raises:
        ValueError: for a length below 1, and values of the config of which the rule makes no number.
    """
    whole("image_seq_len", image_seq_len, 1, _MOST_TOKENS)
    name = str(pipeline.get("_class_name", ""))
    silent = Lengths()
    if not str(config.get("_class_name")).startswith("FlowMatch"):  # those have values for all that is not given
        silent = next((_SILENT[start] for start in _SILENT if name.startswith(start)), silent)
    given = silent._replace(**{key: config[key] for key in Lengths._fields if config.get(key) is not None})
    rule = next((MU_RULES[start] for start in MU_RULES if name.startswith(start)), None)
    if rule is None:
        rule = _cogview4 if config.get("time_shift_type") == "linear" else _flux
    return rule(image_seq_len, given, pipeline, nfe)


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


def _linear_mu(length: int, least: Any, most: Any, low: Any, high: Any) -> float:
    length = whole("image_seq_len", length, 1, _MOST_TOKENS)
    least = whole("base_image_seq_len", least, 1, _MOST_TOKENS)
    most = whole("max_image_seq_len", most, 1, _MOST_TOKENS)
    low, high = number("base_shift", low), number("max_shift", high)
    if least == most:
        raise ValueError(f"base_image_seq_len and max_image_seq_len are both {most}; they must differ")
    return float(low + (high - low) * ((length - least) / (most - least)))


def _flux(length: int, given: Lengths, pipeline: Mapping[str, Any], nfe: int) -> float:
    return _linear_mu(length, *given)


def _cogview4(length: int, given: Lengths, pipeline: Mapping[str, Any], nfe: int) -> float:
    base = whole("base_image_seq_len", given.base_image_seq_len, 1, _MOST_TOKENS)
    low, high = number("base_shift", given.base_shift), number("max_shift", given.max_shift)
    return float(math.sqrt(length / base) * high + low)


def _krea2(length: int, given: Lengths, pipeline: Mapping[str, Any], nfe: int) -> float:
    return Lengths().max_shift if pipeline.get("is_distilled") else _flux(length, given, pipeline, nfe)


_Rule = Callable[[int, Lengths, Mapping[str, Any], int], float]
# How the name of a pipeline's class begins -> its mu. Source: the pipelines of diffusers 0.42.1.
MU_RULES: Mapping[str, _Rule] = {
    "CogView4": _cogview4,
    "EasyAnimate": lambda length, given, pipeline, nfe: 1.0,
    "Flux2": lambda length, given, pipeline, nfe: math.log(flux2_shift(length, nfe)),
    "GlmImage": _cogview4,
    # It passes its transformer's longest sequence, 4096 tokens, and nothing of the config.
    "HiDreamImage": lambda length, given, pipeline, nfe: Lengths().max_shift,
    "HunyuanVideoFramepack": lambda *args: min(_flux(*args), math.log(7.0)),
    "Krea2": _krea2,
    "QwenImageLayered": lambda length, given, pipeline, nfe: math.sqrt(length / 256.0),
}


def has_rule(name: str) -> bool:
    """Whether pipelines of this class have another shift than their scheduler's config says."""
    return name.startswith((*MU_RULES, *_SILENT, _IDEOGRAM))


def grid_shift(pipeline: Mapping[str, Any], image_seq_len: int) -> float:
    """The shift that a pipeline's own grid has before its scheduler's: Ideogram 4's is sqrt(tokens/1024)."""
    length = whole("image_seq_len", image_seq_len, 1, _MOST_TOKENS)
    return math.sqrt(length / 1024.0) if str(pipeline.get("_class_name", "")).startswith(_IDEOGRAM) else 1.0
