"""Rectified flow: x_s = (1 - s) x_0 + s eps, with s a shifted t."""

from __future__ import annotations

import math

import jax
import numpy as np

from hso_jax.checks import MOST_LEVELS, choice, number, whole
from hso_jax.noise.noise_schedule import CONTINUOUS_LEVELS, Array, NoiseSchedule, from_knots, namespace

_MOST_TOKENS = 10**9  # of an image: its length is computed with as a float


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
    if not isinstance(shift, jax.core.Tracer):
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
