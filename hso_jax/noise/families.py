"""The families of noise: variance preserving (tables and closed forms), variance exploding, and rectified flow."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from hso_jax.checks import MOST_LEVELS, choice, flag, number, numbers, whole
from hso_jax.noise.schedule import CONTINUOUS_LEVELS, Array, NoiseSchedule, from_knots, namespace
from hso_jax.optional_jax import is_traced

BETA_RULES = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace", "exp")
_CLOSED_FORM_KNOTS = 4001


def beta_table(
    rule: str = "scaled_linear", beta_start: float = 0.00085, beta_end: float = 0.012, num_train_timesteps: int = 1000
) -> np.ndarray:
    """The betas [T] of diffusers' `beta_schedule` rules, in float64.

    Source: diffusers' DDPMScheduler; "linear" is Ho et al. 2020 (arXiv 2006.11239), "scaled_linear" latent diffusion
    (arXiv 2112.10752), "squaredcos_cap_v2" Nichol and Dhariwal 2021 (arXiv 2102.09672, eq. 17), "sigmoid" GeoDiff
    (arXiv 2203.02923), "laplace" arXiv 2407.03297, "exp" alpha_bar = exp(-12 t). The rules that give alpha_bar do not
    look at beta_start and beta_end. Raises ValueError for an unknown rule, T < 2 or end points outside 0 < beta_start
    <= beta_end < 1.
    """
    levels = whole("num_train_timesteps", num_train_timesteps, 2, MOST_LEVELS)
    choice("beta_schedule", rule, BETA_RULES)
    if rule in _ALPHA_BARS:
        bar = _ALPHA_BARS[rule](np.arange(levels + 1) / levels)
        return np.minimum(1.0 - bar[1:] / bar[:-1], 0.999)
    beta_start, beta_end = number("beta_start", beta_start), number("beta_end", beta_end)
    if not 0.0 < beta_start <= beta_end < 1.0:
        raise ValueError(f"beta_start, beta_end are {beta_start}, {beta_end}; need 0 < beta_start <= beta_end < 1")
    if rule == "linear":
        return np.linspace(beta_start, beta_end, levels)
    if rule == "sigmoid":
        return beta_start + (beta_end - beta_start) / (1.0 + np.exp(-np.linspace(-6.0, 6.0, levels)))
    return np.linspace(beta_start**0.5, beta_end**0.5, levels) ** 2


def _laplace(t: np.ndarray) -> np.ndarray:
    snr = np.exp(-0.5 * np.copysign(1.0, 0.5 - t) * np.log(1.0 - 2.0 * np.abs(0.5 - t) + 1e-6))
    return np.asarray(np.sqrt(snr / (1.0 + snr)))


# Rules that give alpha_bar as a function of t in [0, 1], from which the betas follow.
_ALPHA_BARS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "squaredcos_cap_v2": lambda t: np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2,
    "laplace": _laplace,
    "exp": lambda t: np.exp(-12.0 * t),
}


def rescale_zero_terminal_snr(alphas_cumprod: Array) -> Array:
    """Shift and scale sqrt(alphas_cumprod) so that it ends at 0 (Lin et al. 2024, arXiv 2305.08891, algorithm 1)."""
    root = namespace(alphas_cumprod).sqrt(alphas_cumprod)
    return ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2


def discrete(
    alphas_cumprod: Any = None, *, betas: Any = None, rescale_betas_zero_snr: bool = False, name: str = "custom"
) -> NoiseSchedule:
    """The schedule of a model trained on a table of T noise levels; level i (0-based) is at t = (i + 1)/T.

    Between the levels lam is a monotone cubic. A table whose last alphas_cumprod is 0 (zero terminal SNR)
    has lam = -inf at t = 1 and `t_max` = (T - 1)/T.

    Args:
        alphas_cumprod: [T] strictly falling, in (0, 1), the last one may be 0. Give either this or `betas`.
        betas: [T] in (0, 1); the last one may be 1.
        rescale_betas_zero_snr: diffusers' option of that name.
        name: for messages and files.

    Raises:
        ValueError: naming the first offending entry; and as `from_knots`. (Traced values are not checked.)
    """
    if (alphas_cumprod is None) == (betas is None):
        raise ValueError("give either alphas_cumprod or betas")
    what = "betas" if alphas_cumprod is None else "alphas_cumprod"
    zero_snr = flag("rescale_betas_zero_snr", rescale_betas_zero_snr)
    given = betas if alphas_cumprod is None else alphas_cumprod
    traced = is_traced(given)  # so that nodes have derivatives in the table
    table = given if traced else numbers(what, given)
    xp = namespace(table)
    if table.ndim != 1 or not 2 <= len(table) <= MOST_LEVELS:
        raise ValueError(f"{what} has shape {table.shape}; need one axis with 2 to {MOST_LEVELS} entries")
    if not traced:
        check_open_unit(table, what, last=1.0 if what == "betas" else 0.0)
    bar = xp.cumprod(1.0 - table) if what == "betas" else table
    if not traced and not bar[0] < 1.0:
        raise ValueError(f"betas[0] is {table[0]:.6g}, too small to leave alphas_cumprod below 1; need at least 1e-15")
    if zero_snr:
        with np.errstate(all="ignore"):  # a table whose ends are one number becomes NaN, and is refused next
            bar = rescale_zero_terminal_snr(bar)
    if not traced and (rise := np.flatnonzero(~(np.diff(bar) < 0))).size:
        i = int(rise[0])
        raise ValueError(
            f"alphas_cumprod must fall strictly, but entry {i} is {bar[i]:.9g} and entry {i + 1} {bar[i + 1]:.9g}"
        )
    levels = len(bar)
    if zero_snr or (not traced and bar[-1] == 0.0):
        bar = bar[:-1]
    if len(bar) < 2:
        raise ValueError("a table at zero terminal SNR needs at least 3 levels")
    lam = 0.5 * (xp.log(bar) - xp.log1p(-bar))
    return from_knots(lam, 1 / levels, 1 / levels, t_max=len(bar) / levels, num_train_timesteps=levels, name=name)


def check_open_unit(table: np.ndarray, what: str, last: float) -> None:
    """Raise ValueError naming the first entry outside (0, 1); the last one may be `last`."""
    inside = (table > 0) & (table < 1)
    inside[-1] |= table[-1] == last
    for i in np.flatnonzero(~inside).tolist():
        raise ValueError(
            f"{what}[{i}] is {table[i]}; every entry must lie strictly between 0 and 1 (the last may be {last:g})"
        )


def linear_vp(
    beta_min: float = 0.1, beta_max: float = 20.0, *, t_min: float = 1e-3, name: str = "linear-vp"
) -> NoiseSchedule:
    """The linear VP SDE: alpha(t) = exp(-B(t)/2), B = beta_min t + (beta_max - beta_min) t^2/2.

    Source: Song et al. 2021, arXiv 2011.13456, eq. 33 (the defaults, and sampling down to t = 1e-3, are theirs). Raises
    ValueError unless 0 < beta_min <= beta_max and 0 < t_min < 1; and as `from_knots`: beta_min + beta_max up to about
    320.
    """
    beta_min, beta_max = number("beta_min", beta_min, low=0.0), number("beta_max", beta_max, low=0.0, high=1e6)
    t_min = number("t_min", t_min, low=0.0, high=1.0)
    if beta_min > beta_max:
        raise ValueError(f"beta_min is {beta_min:g}, beta_max {beta_max:g}; need 0 < beta_min <= beta_max")
    t = np.linspace(0.0, 1.0, _CLOSED_FORM_KNOTS)
    b = beta_min * t + 0.5 * (beta_max - beta_min) * t * t
    # lam = -log(expm1(B))/2, without overflow; the table holds it without its singularity at 0, -log(t)/2.
    slope_at = np.where(b > 0, -np.expm1(-b) / np.where(t > 0, t, 1.0), beta_min)
    return from_knots(-0.5 * (b + np.log(slope_at)), 0.0, t[1], log_t=0.5, t_min=t_min, name=name)


def cosine(offset: float = 0.008, *, t_min: float = 1e-3, name: str = "cosine") -> NoiseSchedule:
    """The cosine schedule, lam = log(cot(pi/2 (t + s)/(1 + s))); zero terminal SNR: `t_max` is 0.999.

    Source: Nichol and Dhariwal 2021, arXiv 2102.09672, eq. 17 with s = 0.008. Raises ValueError unless offset >= 0 and
    0 < t_min < 0.999; and as `from_knots`.
    """
    offset, t_min = number("offset", offset, low=0.0, closed=True), number("t_min", t_min, low=0.0, high=0.999)
    t = np.linspace(0.0, 1.0, _CLOSED_FORM_KNOTS)
    up, down = (t + offset) / (1 + offset) * np.pi / 2, (1 - t) / (1 + offset) * np.pi / 2
    # sin(x) = x sinc(x/pi): what the table holds is smooth at both ends.
    values = np.log(np.sinc(down / np.pi)) - np.log(np.sinc(up / np.pi))
    return from_knots(values, 0.0, t[1], log_t=1.0, offset=offset, log_1mt=1.0, t_min=t_min, t_max=0.999, name=name)


def clipped_cosine(offset: float = 0.008, scaler: float = 1.0, *, name: str = "clipped-cosine") -> NoiseSchedule:
    """Wuerstchen's and Stable Cascade's noise: alpha^2 = cos^2(pi/2 (u + s)/(1 + s)) / cos^2(pi/2 s/(1 + s)).

    alpha^2 is clipped to [1e-4, 0.9999], so t_min and t_max are where it meets these. u = 1 - (1 - t)^scaler for
    scaler > 1, else t^scaler. The network is told t.

    Source: Pernias et al. 2023, arXiv 2306.00637; diffusers' DDPMWuerstchenScheduler. Raises ValueError unless offset
    >= 0 and scaler > 0.
    """
    offset, scaler = number("s", offset, low=0.0, closed=True), number("scaler", scaler, low=0.0)
    first = np.cos(offset / (1 + offset) * np.pi / 2)
    ends = np.array([0.9999, 1e-4])
    u = np.arccos(first * np.sqrt(ends)) * 2 / np.pi * (1 + offset) - offset
    t_min, t_max = 1 - (1 - u) ** (1 / scaler) if scaler > 1 else u ** (1 / scaler)
    t = np.linspace(t_min, t_max, _CLOSED_FORM_KNOTS)
    u = 1 - (1 - t) ** scaler if scaler > 1 else t**scaler
    bar = np.clip(np.cos((u + offset) / (1 + offset) * np.pi / 2) ** 2 / first**2, ends[1], ends[0])
    lam = 0.5 * (np.log(bar) - np.log1p(-bar))
    noise = from_knots(
        lam, t_min, t[1] - t[0], t_min=t_min, t_max=t_max, num_train_timesteps=1, timestep_rule="time", name=name
    )
    return dataclasses.replace(noise, tail=np.zeros_like(noise.tail))  # it ends at its last knot, not at pure noise


def _log_sigma_ends(sigma_min: float, sigma_max: float) -> np.ndarray:
    low, high = number("sigma_min", sigma_min, low=0.0), number("sigma_max", sigma_max, low=0.0)
    if not low < high:
        raise ValueError(f"sigma_min is {low:g}, sigma_max {high:g}; need 0 < sigma_min < sigma_max")
    return np.log([low, high])


def ve(sigma_min: float = 0.01, sigma_max: float = 50.0, *, name: str = "ve") -> NoiseSchedule:
    """The VE SDE, geometric in t: sigma(t) = sigma_min (sigma_max/sigma_min)^t.

    Source: Song et al. 2021, arXiv 2011.13456, eq. 30. Raises ValueError unless 0 < sigma_min < sigma_max; and as
    `from_knots`.
    """
    return from_knots(
        -_log_sigma_ends(sigma_min, sigma_max), 0.0, 1.0, kind="ve", timestep_rule="log_ksigma", name=name
    )


def edm(sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0, *, name: str = "edm") -> NoiseSchedule:
    """EDM's noise; t is EDM's own ramp, sigma(t) = (sigma_min^(1/rho) + t (sigma_max^(1/rho) - sigma_min^(1/rho)))^rho.

    Source: Karras et al. 2022, arXiv 2206.00364, eq. 5 and table 1. The network is told log(sigma)/4. Raises ValueError
    unless 0 < sigma_min < sigma_max, and 0 < rho is large enough that sigma^(1/rho) is a float; and as `from_knots`.
    """
    low, high = _log_sigma_ends(sigma_min, sigma_max)
    least = (high - low) / 700.0  # exp(700) is a float64
    need = f"a finite number of at least {least:.3g} between these sigmas (EDM's is 7)"
    rho = number("rho", rho, low=least, closed=True, need=need)
    t = np.linspace(0.0, 1.0, 1001)
    # log(a + t (b - a)) = log a + log1p(t (b/a - 1)): at large rho a and b are both 1 but for rounding.
    lam = -(low + rho * np.log1p(t * np.expm1((high - low) / rho)))
    noise = from_knots(lam, 0.0, t[1], kind="ve", timestep_rule="log_ksigma", name=name)
    return noise.with_prediction("edm")


def flow(shift: Array = 1.0, *, num_train_timesteps: int = 1000, name: str = "flow") -> NoiseSchedule:
    """Rectified flow whose time is shifted, s(t) = shift t / (1 + (shift - 1) t); lam = log((1 - t)/t) - log(shift).

    lam is -inf at t = 1 (pure noise): `t_max` is (T - 1)/T, the last training level before it. T = 1 (ACE-Step, Stable
    Audio 3) says only that the network is told s itself, in [0, 1]; the ends are then those of T = 1000.

    Source: Esser et al. 2024 (SD3), arXiv 2403.03206, eq. 23. For FLUX pass `shift=dynamic_shift(...)`. Raises
    ValueError unless shift > 0 and T is 1 (continuous time) or at least 3 (T = 2 leaves one level between the ends);
    and as `from_knots`. (A traced shift is not checked.)
    """
    xp = namespace(shift)
    if not is_traced(shift):
        xp, shift = np, np.float64(number("shift", shift, low=0.0, need="a positive number"))
    levels = whole("num_train_timesteps", num_train_timesteps, 1, MOST_LEVELS)
    if levels == 2:
        raise ValueError("num_train_timesteps is 2; need 1 (continuous time) or at least 3")
    grain = 1.0 / (levels if levels > 1 else CONTINUOUS_LEVELS)
    return from_knots(
        -xp.log(shift) * xp.ones(2), 0.0, 1.0, log_t=1.0, log_1mt=1.0, t_min=grain, t_max=1.0 - grain,
        kind="flow", num_train_timesteps=levels, timestep_rule="sigma", name=name,
    ).with_prediction("flow_prediction")  # fmt: skip
