"""Rectified flow: x_s = (1 - s) x_0 + s eps, with s a shifted t."""

from __future__ import annotations

import math

import jax

from hso_jax.noise.noise_schedule import Array, NoiseSchedule, from_knots, namespace


def flow(shift: Array = 1.0, *, num_train_timesteps: int = 1000, name: str = "flow") -> NoiseSchedule:
    """Rectified flow whose time is shifted, s(t) = shift t / (1 + (shift - 1) t); lam = log((1 - t)/t) - log(shift).

    lam is -inf at t = 1 (pure noise): `t_max` is (T - 1)/T, the last training level before it.

    Source: Esser et al. 2024 (SD3), arXiv 2403.03206, eq. 23. For FLUX pass `shift=dynamic_shift(...)`.

    Raises:
        ValueError: unless shift > 0 and T >= 2. (A traced shift is not checked.)
    """
    xp = namespace(shift)
    if not isinstance(shift, jax.core.Tracer) and not 0 < shift < math.inf:
        raise ValueError(f"shift is {shift}; need a positive number")
    if num_train_timesteps != num_train_timesteps // 1 or num_train_timesteps < 2:
        raise ValueError(f"num_train_timesteps is {num_train_timesteps}; need a whole number of at least 2")
    values = -xp.log(xp.asarray(shift)) * xp.ones(2)
    grain = 1.0 / num_train_timesteps
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
        ValueError: for a length below 1 or an unknown time_shift_type.
    """
    if image_seq_len < 1:
        raise ValueError(f"image_seq_len is {image_seq_len}; need at least 1")
    if time_shift_type not in ("exponential", "linear"):
        raise ValueError(f"time_shift_type is {time_shift_type!r}; use 'exponential' or 'linear'")
    if base_image_seq_len == max_image_seq_len:
        raise ValueError(f"base_image_seq_len and max_image_seq_len are both {max_image_seq_len}; they must differ")
    slope = (max_shift - base_shift) / (max_image_seq_len - base_image_seq_len)
    mu = base_shift + slope * (image_seq_len - base_image_seq_len)
    if abs(mu) > 50.0:
        raise ValueError(f"base_shift {base_shift} and max_shift {max_shift} give a shift of exp({mu:.6g}); check them")
    return math.exp(mu) if time_shift_type == "exponential" else mu
