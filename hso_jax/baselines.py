"""The schedules people use today, each under its own name, on the same two layouts as the search's."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from hso_jax.checks import check_nfe, choice, number
from hso_jax.mep_spf import PAPER_GAMMA, paper_d_min, resolve_spacing, score
from hso_jax.noise import NoiseSchedule, check_noise, lam_of_s, noise_end_t, s_of_lam, strip_static
from hso_jax.optional_jax import jax
from hso_jax.schedule import LAYOUTS, Origin, Schedule, versions

_THRESHOLD_NOISE = 0.025  # Mochi's and LTX-Video's


def leading(noise: NoiseSchedule, nfe: int, layout: str) -> np.ndarray:
    """Diffusers' `timestep_spacing="leading"` with `steps_offset=1`, the default of SD: t = (i T//N + 2)/T."""
    levels = noise.levels
    t = np.minimum((np.arange(nfe)[::-1] * (levels // nfe) + 2) / levels, float(noise.t_max))
    return _with_last(t, noise, layout)


def linspace(noise: NoiseSchedule, nfe: int, layout: str) -> np.ndarray:
    """Evenly spaced in t with both ends: diffusers' "linspace" (and its rule for flow models, before the shift)."""
    return np.linspace(float(noise.t_max), float(noise.t_min), _count(nfe, layout))


def trailing(noise: NoiseSchedule, nfe: int, layout: str) -> np.ndarray:
    """Diffusers' `timestep_spacing="trailing"`, t = 1 - i/N (Lin et al. 2024, arXiv 2305.08891, table 2)."""
    return _with_last(np.minimum(noise_end_t(noise) * (1.0 - np.arange(nfe) / nfe), float(noise.t_max)), noise, layout)


def sgm_uniform(noise: NoiseSchedule, nfe: int, layout: str) -> np.ndarray:
    """Evenly spaced in t from 1 to the smallest t, which is not evaluated: "sgm_uniform" of ComfyUI (and SGM)."""
    t = np.linspace(noise_end_t(noise), float(noise.t_min), nfe + 1)
    return np.minimum(t[: _count(nfe, layout)], float(noise.t_max))


def karras(noise: NoiseSchedule, nfe: int, layout: str) -> np.ndarray:
    """Karras' rule, rho = 7, between the model's ends: diffusers' `use_karras_sigmas` (EDM, arXiv 2206.00364, eq. 5).

    It spaces what samplers call sigma: sigma/alpha, but s for flow models.
    """
    low, high = (x ** (1 / 7) for x in _sigma_ends(noise))
    return _of_sigmas(noise, np.linspace(high, low, _count(nfe, layout)) ** 7)


def beta(noise: NoiseSchedule, nfe: int, layout: str) -> np.ndarray:
    """Quantiles of Beta(0.6, 0.6) in the sampler's sigma, both ends included: diffusers' `use_beta_sigmas`.

    Not the rule that ComfyUI has by this name: that is `beta_t`.
    """
    low, high = _sigma_ends(noise)
    return _of_sigmas(noise, low + (high - low) * _beta_quantiles(np.linspace(1.0, 0.0, _count(nfe, layout))))


def beta_t(noise: NoiseSchedule, nfe: int, layout: str) -> np.ndarray:
    """Quantiles of Beta(0.6, 0.6) in t, without the smallest t: ComfyUI's "beta" before it rounds to training levels.

    Source: Lee et al. 2024, "Beta Sampling is All You Need", arXiv 2407.12173.
    """
    low, high = float(noise.t_min), float(noise.t_max)
    shares = _beta_quantiles(1.0 - np.arange(nfe + 1) / nfe)[: _count(nfe, layout)]
    return low + (high - low) * shares


def linear_quadratic(noise: NoiseSchedule, nfe: int, layout: str) -> np.ndarray:
    """Mochi's and LTX-Video's rule for flow models: s falls by 0.025 in the first N//2 steps, then quadratically to 0.

    The parabola continues the line with its slope. Without the model's shift, as in diffusers and in ComfyUI, whose
    "linear_quadratic" is, for other kinds of model, this times the largest sigma/alpha. Where the line has levels past
    the model's largest t (N >= 50 at T = 1000, shift 1), it starts there. Source: `linear_quadratic_schedule` of
    genmoai/mochi with its threshold_noise.
    """
    line = nfe // 2
    i = np.arange(nfe)
    slope = _THRESHOLD_NOISE / max(line, 1)
    past = np.maximum(i - line, 0)
    bend = 1.0 - _THRESHOLD_NOISE - slope * (nfe - line)  # what the line leaves to do for the parabola
    share = 1.0 - slope * i - bend * (past / (nfe - line)) ** 2
    high = _sigma_ends(noise)[1]
    if noise.kind != "flow":
        share = high * share
    elif line and share[1] >= high:
        share[: line + 1] = np.linspace(high, share[line], line + 1)
    else:
        share[0] = high
    return _with_last(_of_sigmas(noise, share), noise, layout)


def uniform_lam(noise: NoiseSchedule, nfe: int, layout: str) -> np.ndarray:
    """Evenly spaced in lam between the model's ends (DPM-Solver, Lu et al. 2022, arXiv 2206.00927, section 3).

    For "vp" and "ve" that is log-uniform sigma: diffusers' `use_exponential_sigmas` and its `use_lu_lambdas`.
    """
    low, high = (float(noise.lam(float(t))) for t in (noise.t_max, noise.t_min))
    return _of_lam(noise, np.linspace(low, high, _count(nfe, layout)))


AYS = {
    "ays": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    "ays-sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
    "ays-svd": (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),
}
"""Levels sigma/alpha of Align Your Steps for ten steps (Sabour et al. 2024, arXiv 2404.14507, and the authors' page):
Stable Diffusion 1.5's, SDXL's and Stable Video Diffusion's. The last is where the tenth step ends."""

_AYS_KIND = {"ays": "vp", "ays-sdxl": "vp", "ays-svd": "ve"}


def align_your_steps(noise: NoiseSchedule, nfe: int, layout: str, table: str = "ays") -> np.ndarray:
    """Align Your Steps: log sigma of the ten-step table interpolated linearly to N + 1, as its authors prescribe.

    Models of another range take the same sigmas: of a table's levels beyond the model's end, one stays, at that end.
    The step to the last level is replaced by one to clean data in the node layout, as in diffusers and ComfyUI.
    """
    low, high = (float(noise.lam(float(t))) for t in (noise.t_max, noise.t_min))
    levels = np.unique(np.clip(-np.log(AYS[table]), low, high))
    lams = np.interp(np.linspace(0.0, 1.0, nfe + 1), np.linspace(0.0, 1.0, len(levels)), levels)
    return np.asarray(noise.t_of_lam(lams[: _count(nfe, layout)]))


def dm_nonuniform(noise: NoiseSchedule, nfe: int, layout: str, p: float = 2.0) -> np.ndarray:
    """DM-NonUni: minimiser of the UniPC-3 error bound with fixed ends (Xue et al. 2024, arXiv 2402.17376).

    Its ends are t = 1 (the model's largest usable t) and 1e-3 (its smallest); the start is uniform in t.
    """
    intervals = nfe - (layout == "node")
    t_max, t_eps = float(noise.t_max), max(float(noise.t_min), 1e-3)
    if intervals < 2:
        return np.linspace(t_max, t_eps, intervals + 1)
    nodes = max(21, intervals + 1)  # one compilation for every N up to 20
    start = np.concatenate([np.linspace(t_max, t_eps, intervals + 1), np.full(nodes - intervals - 1, t_eps)])
    with jax.enable_x64(True):  # its minimum is flat: float32 misses it by up to three timesteps
        found = _minimiser()(strip_static(noise), start, np.asarray(intervals), np.asarray(p, np.float64))
    t = np.array(found.t[: intervals + 1], np.float64)
    t[0], t[-1] = t_max, t_eps
    return t


def tangent(noise: NoiseSchedule, nfe: int, layout: str, deviation: float = 1.0) -> np.ndarray:
    """The tangent law: sigma/alpha = g tan(theta) with even steps of theta, for Gaussian data of deviation g.

    A step of Euler (DDIM) multiplies the deviation by cos(theta_i - theta_{i+1}), which is too little. The product of
    these cosines is largest for even steps from the noise end to clean data, theta = 0. Where theta_max/N lies below
    the model's smallest t, the last node stays there. Sources: Sun, Poor and Zhang 2026, arXiv 2601.13602, whose g
    follows from the eigenvalues of the data's covariance; Sabour et al. 2024 (Align Your Steps), arXiv 2404.14507, for
    one g.
    """
    noisy, clean = (float(np.arctan(noise.ksigma(float(t)) / deviation)) for t in (noise.t_max, noise.t_min))
    step = (noisy - clean) / max(_count(nfe, layout) - 1, 1)
    if layout == "node":
        step = min(step, noisy / nfe)
    theta = noisy - step * np.arange(_count(nfe, layout))
    return _of_lam(noise, -np.log(deviation * np.tan(theta)))


BASELINES: dict[str, Callable[..., np.ndarray]] = {
    **{"leading": leading, "linspace": linspace, "trailing": trailing, "sgm-uniform": sgm_uniform, "karras": karras},
    **{"uniform-lam": uniform_lam, "beta": beta, "beta-t": beta_t, "linear-quadratic": linear_quadratic},
    **{name: functools.partial(align_your_steps, table=name) for name in AYS},
    **{"dm-nonuni": dm_nonuniform, "tangent": tangent},
}


ALIASES = {
    **{"uniform": "linspace", "normal": "linspace", "simple": "trailing", "ddimuniform": "leading"},
    **{"usekarrassigmas": "karras", "usebetasigmas": "beta", "alignyoursteps": "ays"},
    **{"exponential": "uniform-lam", "useexponentialsigmas": "uniform-lam", "uselulambdas": "uniform-lam"},
    **{"aysxl": "ays-sdxl", "alignyourstepssdxl": "ays-sdxl", "alignyourstepssvd": "ays-svd"},
}
"""A rule by what ComfyUI, A1111 and diffusers call it, in small letters alone. ComfyUI's "beta" is `beta_t`."""


def rule_named(name: str) -> str | None:
    """The key of `BASELINES` for a rule by any of its names, whatever its case and punctuation; None without one."""
    plain = "".join(c for c in name[:100].casefold() if c.isalnum())
    return {**{key.replace("-", ""): key for key in BASELINES}, **ALIASES}.get(plain)


def inapplicable(name: str, noise: NoiseSchedule) -> str | None:
    """Why the rule has no schedule for this kind of noise; None if it has one. ValueError for an unknown name.

    Only the tables of Align Your Steps are tied to a kind: their authors made none for flow models.
    """
    name = (rule_named(name) if isinstance(name, str) else None) or choice("baseline", name, BASELINES)
    check_noise(noise)
    kind = _AYS_KIND.get(name, noise.kind)
    if kind == noise.kind:
        return None
    others = " or ".join(repr(other) for other, its in _AYS_KIND.items() if its == noise.kind) or "'trailing'"
    return f"{name} is a table for models of kind {kind!r}; {noise.name} is {noise.kind!r}: use {others}"


def baseline(
    name: str, noise: NoiseSchedule, nfe: int, *, layout: str = "node", p: float = 2.0, d_min: float | None = None
) -> Schedule:
    """A named baseline as a `Schedule`, scored with the same MEP and SPF as the search's.

    The node layout has the rule's N nodes; the interval layout adds (or includes) the model's smallest t. Models at
    zero terminal SNR start at their largest usable t, where MEP is still defined. The tables of Align Your Steps start
    and stop at their own levels.

    Args:
        name: a key of `BASELINES`, or what ComfyUI, A1111 or diffusers calls it.
        noise: the model's noise schedule.
        nfe: N >= 1.
        layout: "node" or "interval".
        p: exponent of the model-error bound, for the scores and for DM-NonUni.
        d_min: spacing for the SPF score; the paper's by default.

    Raises:
        ValueError: for an unknown name or layout, a rule that is `inapplicable`, more evaluations than the model has
            levels, a p that is not finite (within +-100), or a d_min outside [0, 1).
    """
    if reason := inapplicable(name, noise):
        raise ValueError(reason)
    name = rule_named(name) or name
    check_nfe(nfe)
    choice("layout", layout, LAYOUTS)
    p = number("p", p, low=-100.0, high=100.0)
    least = resolve_spacing(paper_d_min if d_min is None else d_min, nfe)
    if nfe > noise.levels - 2:
        raise ValueError(f"nfe is {nfe}; {noise.name} has only {noise.levels} levels")
    extra: dict[str, Any] = {"p": p} if name == "dm-nonuni" else {}
    t, origin = BASELINES[name](noise, nfe, layout, **extra), Origin(name, p=p, d_min=least, versions=versions())
    schedule = Schedule.from_t(noise, t, layout=layout, origin=origin)
    with np.errstate(over="ignore"):
        scores = score(schedule.lams, schedule.t, p=p, d_min=least, gamma=PAPER_GAMMA)
    if not np.isfinite([value for value in scores.values() if value is not None]).all():
        raise ValueError(f"p is {p:g}; MEP is not finite on {noise.name} with it; need one nearer to 2 or 1")
    return schedule.with_scores(**scores)


def flow_time(noise: NoiseSchedule, nfe: int, shift: float) -> Schedule:
    """N equal steps of a rectified flow's time with a shift c, for a model of any kind; no rule of `BASELINES`.

    The nodes are s = s_0 c u/(1 + (c - 1) u), u = 1 - i/N, with s = sigma/(alpha + sigma) and s_0 at the noise end. For
    a rectified flow s_0 is 1 and this is the shifted time of arXiv 2403.03206, eq. 23.
    """
    u = 1.0 - np.arange(nfe) / nfe
    lams = lam_of_s(float(s_of_lam(noise.noise_end)) * shift * u / (1.0 + (shift - 1.0) * u))
    lams[0] = noise.noise_end
    return Schedule.from_lams(noise, lams, origin=Origin(method=f"flow-{shift:g}"))


def _count(nfe: int, layout: str) -> int:
    return nfe + (layout == "interval")


def _with_last(t: np.ndarray, noise: NoiseSchedule, layout: str) -> np.ndarray:
    return np.append(t, float(noise.t_min)) if layout == "interval" else t


def _sigma_ends(noise: NoiseSchedule) -> tuple[float, float]:
    """The smallest and the largest sigma, as samplers take it: s for flow models, sigma/alpha for the others."""
    sigma = noise.sigma if noise.kind == "flow" else noise.ksigma
    return float(sigma(float(noise.t_min))), float(sigma(float(noise.t_max)))


def _of_sigmas(noise: NoiseSchedule, sigmas: np.ndarray) -> np.ndarray:
    return _of_lam(noise, -np.log(sigmas / (1.0 - sigmas) if noise.kind == "flow" else sigmas))


def _of_lam(noise: NoiseSchedule, lams: np.ndarray) -> np.ndarray:
    t = noise.t_of_lam(lams)
    t[0] = float(noise.t_max)
    return t


def _beta_quantiles(shares: np.ndarray) -> np.ndarray:
    from scipy.special import betaincinv  # slow to import, and no other rule needs it

    return np.asarray(betaincinv(0.6, 0.6, shares))  # both parameters, in diffusers and in ComfyUI


@functools.cache
def _minimiser() -> Callable[..., Any]:
    # Here, and not above: no other rule needs JAX.
    from hso_jax import bounds as dm_nonuni
    from hso_jax.compiling import jit
    from hso_jax.lower.trust_region import Feasible, Solution

    def minimise(noise: NoiseSchedule, start: jax.Array, intervals: jax.Array, p: jax.Array) -> Solution:
        feasible = Feasible(start[0], start[-1], 0.0 * start[0], intervals)
        return dm_nonuni.minimise(noise, start, feasible, p)

    return jit(minimise)
