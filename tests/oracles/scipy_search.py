"""HSO and DM-NonUni in NumPy and SciPy (float64): the tests' oracle.

Run as a program it prints, as JSON, the seconds of its search at N = 4 in each layout; `benchmarks.speed` shows them.

Written from the papers, sharing nothing with `hso_jax` on purpose, and in another algebraic form wherever one
exists: MEP as a difference of exponentials, multistep weights by quadrature, gradients by hand. Sources: HSO
(Zhu et al., arXiv 2511.11688), DM-NonUni (Xue et al., CVPR 2024, arXiv 2402.17376), UniPC (Zhao et al., arXiv
2302.04867), EDM (Karras et al., arXiv 2206.00364). Nodes run from noise to data: `lam` grows, `t` falls.
"""

import json
import time
import warnings
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import optimize  # type: ignore[import-untyped, unused-ignore]

Array = NDArray[Any]
Layout = Literal["interval", "node"]
BOX = ((3.0, 16.0), (0.01, 0.03), (0.96, 1.0))
"""HSO's box for psi = (rho, t_eps, t_max)."""
GAUSS = np.polynomial.legendre.leggauss(32)


def sd_lam_table(steps: int = 1000) -> Array:
    """`alphas_cumprod` of Stable Diffusion: betas "scaled_linear" from 0.00085 to 0.012."""
    return np.cumprod(1.0 - np.linspace(0.00085**0.5, 0.012**0.5, steps) ** 2)


class LinearNoise:
    """A discrete VP noise schedule, log alpha interpolated linearly between the knots t = (i+1)/T.

    `t` outside [1/T, 1] is clipped. `lam(t)` is continuous with kinks at the knots.
    """

    def __init__(self, alphas_cumprod: Array) -> None:
        self.log_alpha = 0.5 * np.log(np.asarray(alphas_cumprod, np.float64))
        self.knots = np.arange(1, len(self.log_alpha) + 1) / len(self.log_alpha)

    def lam(self, t: Any) -> Array:
        """`lam = log alpha - log sigma`, with sigma^2 = 1 - alpha^2."""
        log_alpha = np.interp(t, self.knots, self.log_alpha)
        return np.asarray(log_alpha - 0.5 * np.log(-np.expm1(2.0 * log_alpha)))

    def dlam_dt(self, t: Any) -> Array:
        """`d lam / dt = (d log alpha / dt) / sigma^2`; at a knot, the slope of the side of smaller t."""
        cell = np.clip(np.searchsorted(self.knots, t) - 1, 0, len(self.knots) - 2)
        slope = np.diff(self.log_alpha)[cell] / np.diff(self.knots)[cell]
        return np.asarray(slope / -np.expm1(2.0 * np.interp(t, self.knots, self.log_alpha)))

    def t_of_lam(self, lam: Any) -> Array:
        """Inverse of `lam`: log alpha = -log(1 + exp(-2 lam))/2, then the interpolation read backwards."""
        log_alpha = -0.5 * np.logaddexp(0.0, -2.0 * np.asarray(lam))
        return np.asarray(np.interp(-log_alpha, -self.log_alpha, self.knots))


def model_error(lams: Array, p: float) -> Array:
    """`eps = sigma^p / alpha`, the error assumed of the data prediction (Xue et al., section 3; HSO)."""
    return np.asarray(np.sqrt(1.0 + np.exp(-2.0 * lams)) * (1.0 + np.exp(2.0 * lams)) ** (-0.5 * p))


def mep(lams: Array, p: float = 2.0) -> float:
    """HSO's Midpoint Error Proxy (Theorem 1): `sum_i eps(m_i) (exp(lam_{i+1}) - exp(lam_i))`."""
    mid = 0.5 * (lams[1:] + lams[:-1])
    return float(np.sum(model_error(mid, p) * np.diff(np.exp(lams))))


def mep_derivatives(lams: Array, p: float) -> tuple[Array, Array]:
    """Gradient and dense Hessian of `mep` in all nodes; `eps' = -q eps` with `q = 1 + (p-1) alpha^2`."""
    left, right, mid = np.exp(lams[:-1]), np.exp(lams[1:]), 0.5 * (lams[1:] + lams[:-1])
    alpha2 = 1.0 / (1.0 + np.exp(-2.0 * mid))
    q = 1.0 + (p - 1.0) * alpha2
    e0 = model_error(mid, p)
    e1 = -q * e0
    e2 = (q * q - 2.0 * (p - 1.0) * alpha2 * (1.0 - alpha2)) * e0
    width = right - left
    gradient = np.zeros_like(lams)
    gradient[:-1] += 0.5 * e1 * width - e0 * left
    gradient[1:] += 0.5 * e1 * width + e0 * right
    diagonal = np.zeros_like(lams)
    diagonal[:-1] += 0.25 * e2 * width - (e0 + e1) * left
    diagonal[1:] += 0.25 * e2 * width + (e0 + e1) * right
    beside = 0.25 * e2 * width + 0.5 * e1 * width
    return gradient, np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1)


def d_min(nfe: int) -> float:
    """HSO's least spacing in t: 0.15 at N = 4, falling linearly to 0.01 at N = 20, clipped to these."""
    return float(np.clip(0.15 - 0.14 / 16.0 * (nfe - 4), 0.01, 0.15))


def spf(lams: Array, t: Array, nfe: int, p: float = 2.0, gamma: float = 1e9, spacing: float | None = None) -> float:
    """HSO's fitness: MEP + gamma sum_i max(0, d - |t_{i+1} - t_i|)^2; d is `d_min(nfe)` unless given."""
    d = d_min(nfe) if spacing is None else spacing
    return mep(lams, p) + gamma * float(np.sum(np.maximum(0.0, d - np.abs(np.diff(t))) ** 2))


def edm_start(rho: float, ksigma_min: float, ksigma_max: float, intervals: int) -> Array:
    """EDM's equation 5 over `intervals` intervals: ksigma = sigma/alpha, falling, both ends included."""
    return np.linspace(ksigma_max ** (1 / rho), ksigma_min ** (1 / rho), intervals + 1) ** rho


class MepMinimum(NamedTuple):
    """A minimiser of MEP: nodes `t` (falling) and `lam` (growing), both (M+1,), and the value."""

    t: Array
    lam: Array
    mep: float


def minimise_mep(
    noise: Any, t_max: float, t_eps: float, intervals: int, p: float = 2.0, spacing: float = 0.0
) -> MepMinimum:
    """Minimise MEP over the interior nodes, gaps in t at least `spacing` (HSO's lower level).

    SLSQP, then a polish. `noise` is any object with a falling `lam(t)`; its `dlam_dt(t)` is used if there is
    one, else central differences. It starts from nodes uniform in t: for p > 2 MEP also has minima with nodes
    merged at t_eps, and EDM's starts run into them. Raises ValueError where the gaps do not fit.
    """
    if intervals * spacing > t_max - t_eps:
        raise ValueError(f"{intervals} gaps of {spacing} do not fit in [{t_eps}, {t_max}]: lower the spacing")
    lam_of: Callable[[Any], Array] = noise.lam
    given = getattr(noise, "dlam_dt", None)
    slope_of = given or (lambda t: (lam_of(t * (1 + 1e-6)) - lam_of(t * (1 - 1e-6))) / (2e-6 * t))
    t = np.linspace(t_max, t_eps, intervals + 1)
    if intervals > 1:
        ends, gaps = t[[0, -1]], -np.diff(np.eye(intervals + 1), axis=0)
        # A gap of 0 is kept out of reach: SLSQP may pass a bound by a rounding error, and nodes would swap.
        slack = gaps[:, [0, -1]] @ ends - max(spacing, 1e-6 * (t_max - t_eps) / intervals)
        found = optimize.minimize(
            lambda x: mep(lam_of(_between(ends, x)), p),
            t[1:-1],
            jac=lambda x: mep_derivatives(lam_of(_between(ends, x)), p)[0][1:-1] * slope_of(x),
            method="SLSQP",
            constraints={"type": "ineq", "fun": lambda x: gaps[:, 1:-1] @ x + slack, "jac": lambda x: gaps[:, 1:-1]},
            options={"maxiter": 1000, "ftol": 1e-15},
        )
        t = _polish(_between(ends, found.x), lam_of, p, spacing)
    lams = np.asarray(lam_of(t))
    return MepMinimum(t, lams, mep(lams, p))


def _between(ends: Array, x: Array) -> Array:
    return np.concatenate([ends[:1], x, ends[-1:]])


def _polish(t: Array, lam_of: Callable[[Any], Array], p: float, spacing: float, rounds: int = 100) -> Array:
    """Newton in lam on the free nodes and Brent on the offset of each tied block, in turn, while MEP falls.

    In lam the free nodes see none of the kinks of lam(t). A block of tied gaps does, and its minimiser can
    sit on one, where no gradient vanishes: hence a search without derivatives.
    """
    last = len(t) - 1
    tied = (t[:-1] - t[1:] <= spacing + 1e-7) & (spacing > 0.0)
    blocks = np.split(np.arange(last + 1), np.flatnonzero(~tied) + 1)
    for b in blocks:
        anchor = last if b[-1] == last else b[0]
        t[b] = t[anchor] - (b - anchor) * spacing
    moving = [b for b in blocks if b[0] > 0 and b[-1] < last]
    free = np.array([b[0] for b in moving if len(b) == 1], int)
    best = mep(lam_of(t), p)
    for _ in range(rounds):
        before = best
        if len(free):
            lams, trial = np.asarray(lam_of(t)), t.copy()
            slope, hessian = mep_derivatives(lams, p)
            goal = lams[free] - np.linalg.solve(hessian[np.ix_(free, free)], slope[free])
            if np.all((goal > lams[0]) & (goal < lams[-1])):
                trial[free] = [optimize.brentq(lambda s, v=v: lam_of(s) - v, t[-1], t[0], xtol=1e-15) for v in goal]
            value = mep(lam_of(trial), p)
            # A rounding error uphill is allowed: next to the minimum MEP resolves less than Newton does.
            if value <= best * (1.0 + 1e-15) and np.all(trial[:-1] - trial[1:] >= spacing):
                t, best = trial, min(value, best)
        for b in (b for b in moving if len(b) > 1):
            shift = np.isin(np.arange(last + 1), b).astype(float)
            room = (t[b[-1] + 1] + spacing - t[b[-1]], t[b[0] - 1] - spacing - t[b[0]])
            if room[1] - room[0] < 1e-12:
                continue
            found = optimize.minimize_scalar(
                lambda s, at=t, by=shift: mep(lam_of(at + s * by), p),
                bounds=np.clip(room, -1e-3, 1e-3),
                method="bounded",
                options={"xatol": 1e-13},
            )
            if found.fun < best:
                t, best = t + found.x * shift, float(found.fun)
        if not best < before:
            break
    return t


def reference_search(
    noise: LinearNoise, nfe: int, layout: Layout, p: float = 2.0, seed: int = 66, gamma: float = 1e9
) -> dict[str, Any]:
    """HSO's search as released: differential evolution over psi around a trust-constr lower level.

    Popsize 20, maxiter 60, tol 0.01, deferred updates; the lower level starts from EDM's nodes, works in lam
    by finite differences without a constraint, and unless it reports success within 80 iterations its start
    is used instead (gtol 1e-6 retraces the measured searches). Layout "interval" has N intervals, "node"
    N - 1. Where the penalty is not 0, gamma turns the lower level's 1e-6 into noise in F (relative 1e-5 at
    N = 5, 1e-2 at N = 16) that stalls the final L-BFGS: at N = 5, interval, F ends 3e-4 to 1e-3 (relative)
    above its minimum, 3.112557 on SD's noise.
    """
    intervals = nfe if layout == "interval" else nfe - 1

    def lower_level(psi: Array) -> tuple[Array, bool]:
        rho, t_eps, t_max = psi
        low, high = np.exp(-noise.lam([t_eps, t_max])).tolist()
        lams = -np.log(edm_start(rho, low, high, intervals))
        found = optimize.minimize(
            lambda x: mep(_between(lams, x), p),
            lams[1:-1],
            method="trust-constr",
            options={"maxiter": 80, "gtol": 1e-6},
        )
        return (_between(lams, found.x) if found.success else lams), bool(found.success)

    def fitness(psi: Array) -> float:
        lams = lower_level(psi)[0]
        return spf(lams, noise.t_of_lam(lams), nfe, p, gamma)

    began = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # trust-constr's quasi-Newton update warns whenever a step is tiny
        found = optimize.differential_evolution(
            fitness, BOX, popsize=20, maxiter=60, tol=0.01, updating="deferred", seed=seed
        )
        lams, success = lower_level(found.x)
    t = noise.t_of_lam(lams)
    return {
        "nfe": nfe,
        "layout": layout,
        **dict(zip(("rho", "t_eps", "t_max"), found.x.tolist(), strict=True)),
        "F": float(found.fun),
        "mep": mep(lams, p),
        "penalty": spf(lams, t, nfe, p, gamma) - mep(lams, p),
        "t": t.tolist(),
        "min_spacing": float(np.min(-np.diff(t))),
        "evaluations": int(found.nfev),
        "inner_success": success,
        "seconds": time.perf_counter() - began,
    }


class DmNonUni(NamedTuple):
    """A DM-NonUni schedule: `t`, falling, and `lam`, both (N+1,), the bound, and the signed sums (N,).

    A 0 in `signed`, at a node that some summed step uses, is a kink of the bound at this very schedule.
    """

    t: Array
    lam: Array
    objective: float
    signed: Array
    converged: bool


def step_weights(lams: Array, step: int, order: int) -> Array:
    """Data-prediction multistep weights: `w_j = int exp(lam) l_j(lam) dlam` over [lam_s, lam_{s+1}].

    `l_j` are the Lagrange polynomials on the nodes s-order+1 .. s (Xue et al., section 3; UniPC's predictor).
    The papers write this with H0 = e^h - 1, H1 = e^h h - H0, H2 = e^h h^2 - 2 H1; quadrature loses nothing
    for small h, and is analytic in `lams`, as complex-step derivatives need.
    """
    nodes, half = lams[step - order + 1 : step + 1], 0.5 * (lams[step + 1] - lams[step])
    x = lams[step] + half * (GAUSS[0] + 1.0)
    basis = [[(x - nodes[m]) / (nodes[j] - nodes[m]) for m in range(order) if m != j] for j in range(order)]
    return np.array([half * np.sum(GAUSS[1] * np.exp(x) * np.prod(b, axis=0)) for b in basis])


def dm_nonuni_terms(lams: Array, p: float) -> tuple[Any, Array]:
    """The smooth part of DM-NonUni's bound, and each node's signed sum, whose absolute values complete it.

    Step s of N has order min(s+1, N-s, 3). Steps of order 1 (first and last) add w eps to the smooth part,
    other steps s < 3 the root-sum-of-squares of their w_j eps_j; the rest add w_j eps_j to node j. (`truncNum` of
    Xue et al. is 3 in their code; their comment has 0 for N > 7, where the bound falls on and on as lam_1 -> lam_0.)
    """
    nfe, error = len(lams) - 1, model_error(lams, p)
    smooth, signed = 0.0 * lams[0], np.zeros(nfe, lams.dtype)
    for s in range(nfe):
        order = min(s + 1, nfe - s, 3)
        used = slice(s - order + 1, s + 1)
        part = step_weights(lams, s, order) * error[used]
        if order == 1:
            smooth += part[0]
        elif s < 3:
            smooth += np.sqrt(np.sum(part**2))
        else:
            signed[used] += part
    return smooth, signed


def dm_nonuni_objective(lams: Array, p: float = 2.0) -> float:
    """DM-NonUni's bound, `smooth + sum_j |signed_j|` of `dm_nonuni_terms`."""
    smooth, signed = dm_nonuni_terms(lams, p)
    return float(smooth + np.sum(np.abs(signed)))


def dm_nonuni(noise: LinearNoise, nfe: int, t_max: float = 1.0, t_eps: float = 1e-3, p: float = 2.0) -> DmNonUni:
    """DM-NonUni (Xue et al.): minimise `dm_nonuni_objective` over interior lam; ends fixed, lam in order.

    From N = 6 on the minimisers lie on kinks, where the authors' choice, "trust-constr", stalls. The epigraph
    form is exact there: min smooth + sum v_j, v_j >= +-signed_j, by SLSQP and complex-step derivatives.
    """
    lams, converged = noise.lam(np.linspace(t_max, t_eps, nfe + 1)), True
    if nfe > 1:
        lams, converged = _epigraph(lams, p)
    return DmNonUni(noise.t_of_lam(lams), lams, dm_nonuni_objective(lams, p), dm_nonuni_terms(lams, p)[1], converged)


def _epigraph(lams: Array, p: float, least: float = 1e-3) -> tuple[Array, bool]:
    """SLSQP on x = (interior lam, v), lam's gaps >= `least`: a kink is now a corner of smooth constraints."""
    nfe, inner = len(lams) - 1, len(lams) - 2
    one, gaps = np.eye(nfe), np.diff(np.eye(nfe + 1), axis=0)
    slack = gaps[:, [0, -1]] @ lams[[0, -1]] - least

    def terms(x: Array) -> tuple[Any, Array]:
        return dm_nonuni_terms(_between(lams, x[:inner]), p)

    def slopes(x: Array) -> tuple[Array, Array]:
        columns = [terms(x + 1e-30j * row) for row in np.eye(len(x))[:inner]]
        return np.array([c[0].imag for c in columns]) * 1e30, np.array([c[1].imag for c in columns]).T * 1e30

    def room(x: Array) -> Array:
        signed = terms(x)[1]
        return np.concatenate([x[inner:] - signed, x[inner:] + signed, gaps[:, 1:-1] @ x[:inner] + slack])

    def room_slopes(x: Array) -> Array:
        slope = slopes(x)[1]
        return np.block([[-slope, one], [slope, one], [gaps[:, 1:-1], 0.0 * one]])

    found = optimize.minimize(
        lambda x: float(terms(x)[0] + np.sum(x[inner:])),
        np.concatenate([lams[1:-1], np.abs(dm_nonuni_terms(lams, p)[1])]),
        jac=lambda x: np.concatenate([slopes(x)[0], np.ones(nfe)]),
        method="SLSQP",
        constraints={"type": "ineq", "fun": room, "jac": room_slopes},
        options={"maxiter": 500, "ftol": 1e-10},
    )
    return _between(lams, found.x[:inner]), bool(found.success)


if __name__ == "__main__":
    linear = LinearNoise(sd_lam_table())
    layouts: tuple[Layout, ...] = ("node", "interval")
    print(json.dumps({layout: reference_search(linear, 4, layout)["seconds"] for layout in layouts}))
