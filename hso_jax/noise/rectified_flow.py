"""Rectified flow: x_s = (1 - s) x_0 + s eps, with s a shifted t."""

from __future__ import annotations

import math

import numpy as np

from hso_jax.checks import MOST_LEVELS, choice, number, whole
from hso_jax.noise.noise_schedule import CONTINUOUS_LEVELS, Array, NoiseSchedule, from_knots, namespace
from hso_jax.optional_jax import is_traced

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
    length = whole("image_seq_len", image_seq_len, 1, _MOST_TOKENS)
    least = whole("base_image_seq_len", base_image_seq_len, 1, _MOST_TOKENS)
    most = whole("max_image_seq_len", max_image_seq_len, 1, _MOST_TOKENS)
    low, high = number("base_shift", base_shift), number("max_shift", max_shift)
    choice("time_shift_type", time_shift_type, ("exponential", "linear"))
    if least == most:
        raise ValueError(f"base_image_seq_len and max_image_seq_len are both {most}; they must differ")
    mu = low + (high - low) * ((length - least) / (most - least))
    if not abs(mu) <= 50.0 or (time_shift_type == "linear" and mu <= 0.0):
        kind = f"exp({mu:.6g})" if time_shift_type == "exponential" else f"{mu:.6g}"
        raise ValueError(
            f"base_shift {low:g} and max_shift {high:g} give {length} tokens a shift of {kind}; check these and "
            "image_seq_len"
        )
    return math.exp(mu) if time_shift_type == "exponential" else mu


def flux2_shift(image_seq_len: int, nfe: int = 50) -> float:
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
