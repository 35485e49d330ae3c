"""The known solvers as weights: DDIM, DPM-Solver++ 2M and 3M (diffusers' "midpoint"), UniPC, Heun."""

from __future__ import annotations

from hso_jax.noise import Array, alpha_sigma, namespace
from hso_jax.optional_jax import jnp
from hso_jax.solvers.weights import Grid, Weights, before, phi

_LOWERED_BELOW = 15
"""diffusers lowers the order of the last but one step for fewer evaluations than this."""


def ddim(grid: Grid) -> Weights:
    """x0 constant over a step: DDIM (arXiv 2010.02502), Euler in ksigma and Euler of a rectified flow, all the same."""
    return Weights(grid.lams, grid.real, grid.decay, grid.gain[:, None])


def dpmpp(grid: Grid, order: int) -> Weights:
    """DPM-Solver++ multistep of order 2 or 3 (arXiv 2211.01095; the third order as in diffusers).

    The first steps have order 1, 2; a step to sigma 0 has order 1, and for N < 15 the one before at most 2.
    3M converges with order 2 only: its last term is half of what the quadratic through three predictions asks for
    (`phi_3` belongs with the second derivative, which is twice the divided difference used). Kept as it is in use.
    """
    xp = namespace(grid.gap)
    used = xp.minimum(order, xp.arange(grid.gap.shape[0]) + 1)
    ends_clean = grid.clean[-1]  # padding repeats the last step
    used = xp.where(ends_clean & (grid.left == 2) & (grid.nfe < _LOWERED_BELOW), xp.minimum(used, 2), used)
    used = xp.where(grid.clean, 1, used)
    h = grid.gap
    # In inverse gaps, so that an infinite one (a first node at lam = -inf) is a plain 0.
    near = _over(h, before(h), before(grid.pure))
    newer = xp.where(used == 2, 0.5 * grid.gain * near, 0.0)
    if order == 2:
        return Weights(grid.lams, grid.real, grid.decay, xp.stack([grid.gain + newer, -newer], axis=-1))
    h0, h1, endless = before(h), before(h, 2), before(grid.pure, 2)
    far, both, share = _over(h, h1, endless), _over(h, h0 + h1, endless), _over(h0, h0 + h1, endless)
    phi1, phi2, phi3, _ = phi(-h)
    scale = grid.gain / phi1
    third = used == 3
    newer = xp.where(third, scale * near * ((1.0 + share) * phi2 + both * phi3), newer)
    older = xp.where(third, -scale * far * (share * phi2 + both * phi3), 0.0)
    return Weights(grid.lams, grid.real, grid.decay, xp.stack([grid.gain + newer, older - newer, -older], axis=-1))


def _over(a: Array, b: Array, endless: Array) -> Array:
    xp = namespace(a, b, endless)
    return xp.where(endless, 0.0, a / b)


def unipc(grid: Grid, order: int, variant: str = "bh2") -> Weights:
    """UniPC of order 1 to 3, B(h) = h ("bh1") or e^h - 1 ("bh2").

    The first steps have order 1, 2; towards clean data the order falls by one a step, to 1. Each evaluation but the
    first corrects the step that led to it, at that step's order. "bh1" needs a finite first node: its corrector
    grows with the step's length, and from lam = -inf the result is NaN.
    """
    xp = namespace(grid.gap)
    used = xp.minimum(order, xp.arange(grid.gap.shape[0]) + 1)
    used = xp.where(grid.clean[-1], xp.minimum(used, xp.maximum(grid.left, 1)), used)
    h = grid.gap
    phi1, phi2, phi3, phi4 = phi(-h)
    # Moments b_n = n! (-h) phi_{n+1}(-h) / B, and the coefficient alpha' B of the differences.
    base = xp.ones_like(h) if variant == "bh1" else phi1
    moments = (phi2 / base, 2.0 * phi3 / base, 6.0 * phi4 / base)
    scale = grid.gain / phi1 * base
    if variant == "bh1":
        scale = xp.where(grid.pure, xp.nan, scale)
    nodes = _ratios(grid)
    predicted = [scale * w for w in _predictor(used, nodes, moments)]
    # A first step has order 1 and no earlier prediction: its weights are zeros, also where the scale is not finite.
    first = xp.arange(h.shape[0]) == 0
    predicted = [xp.where(first, 0.0, w) for w in predicted][: order - 1]
    predict = xp.stack([grid.gain - sum(predicted), *predicted], axis=-1)
    new, *old = (scale * w for w in _corrector(used, nodes, moments))
    old = old[: order - 1]
    correct = xp.stack([new, grid.gain - new - sum(old), *old], axis=-1)
    keep = xp.where(first, 1.0, before(grid.decay))
    correct = xp.where(first[:, None], 0.0, before(correct))
    return Weights(grid.lams, grid.real, grid.decay, predict, keep, correct)


def _ratios(grid: Grid) -> tuple[Array, Array, Array, Array]:
    """Of `r_k = (lam_{i-k} - lam_i)/h`: r_1, 1/r_1, 1/r_2 and r_1/r_2. The inverses of an infinite r are 0."""
    xp = namespace(grid.gap)
    h, h0, h1 = grid.gap, before(grid.gap), before(grid.gap, 2)
    endless0, endless1 = before(grid.pure), before(grid.pure, 2)
    v1 = xp.where(endless0, 0.0, -h / h0)
    v2 = xp.where(endless1, 0.0, -h / (h0 + h1))
    share = xp.where(endless1, 0.0, h0 / (h0 + h1))
    return -h0 / h, v1, v2, share


def _predictor(used: Array, nodes: tuple[Array, ...], b: tuple[Array, ...]) -> list[Array]:
    """Weights of the two older predictions (less the newest): `sum_k w_k r_k^n = b_n`, n = 1, 2; w_1 r_1 = 1/2 alone.

    The half is the paper's choice for a single difference, of the same order as b_1.
    """
    xp = namespace(used)
    r1, v1, v2, share = nodes
    b1, b2, _ = b
    newer = xp.where(used == 3, v1 * (b1 - b2 * v2) / (1.0 - share), 0.5 * v1)
    older = v2 * v2 * (b2 - b1 * r1) / (1.0 - share)
    return [xp.where(used >= 2, newer, 0.0), xp.where(used == 3, older, 0.0)]


def _corrector(used: Array, nodes: tuple[Array, ...], b: tuple[Array, ...]) -> list[Array]:
    """Weights of the new prediction (r = 1) and of the two older ones: the same conditions, one more."""
    xp = namespace(used)
    r1, v1, v2, share = nodes
    b1, b2, b3 = b
    second = (b1 - b2 * v1) / (1.0 - v1), v1 * v1 * (b1 - b2) / (v1 - 1.0)
    third = (
        ((share + 1.0) * b2 - b3 * v2 - r1 * b1) / ((1.0 - r1) * (1.0 - v2)),
        v1 * (b3 * v2 - (1.0 + v2) * b2 + b1) / ((share - 1.0) * (r1 - 1.0)),
        v2 * v2 * v2 * (b3 - (r1 + 1.0) * b2 + r1 * b1) / ((1.0 - share) * (1.0 - v2)),
    )
    new = xp.where(used == 1, 0.5, xp.where(used == 2, second[0], third[0]))
    newer = xp.where(used == 2, second[1], xp.where(used == 3, third[1], 0.0))
    return [new, newer, xp.where(used == 3, third[2], 0.0)]


def heun(grid: Grid, time: str = "ksigma") -> Weights:
    """Heun's method in ksigma (EDM, arXiv 2206.00364, algorithm 1; no churn) or in a rectified flow's s.

    An Euler step with m_i = x0(x_i) leads to x_e, where m_e is evaluated at the next node; the step is then taken
    again with the mean of both slopes, `x' = (sigma'/sigma) x + alpha' (1 - e^-h) ((1 - w) m_i + w m_e)` with
    `w = r/2`, r = time/time'. From lam = -inf ksigma is infinite: the result is then NaN, use "flow".
    """
    weight = 0.5 * _time_ratio(grid, time)
    one, zero = jnp.ones_like(weight), jnp.zeros_like(weight)
    gain = jnp.where(grid.clean, 0.0, grid.gain)

    def pairs(first: Array, second: Array) -> Array:
        return jnp.stack([first, second], axis=1).reshape(-1, *first.shape[1:])

    correct = jnp.stack([gain * weight, gain * (1.0 - weight)], axis=-1)
    return Weights(
        lams=pairs(grid.lams, grid.stop),
        real=pairs(grid.real, grid.real & ~grid.clean),
        carry=pairs(grid.decay, one),
        predict=pairs(grid.gain, zero)[:, None],
        keep=pairs(one, grid.decay),
        correct=pairs(jnp.zeros_like(correct), correct),
    )


def _time_ratio(grid: Grid, time: str) -> Array:
    """time/time' of each step; 1 where the step goes to clean data, which is not corrected."""
    if time == "ksigma":
        return jnp.where(grid.clean, 1.0, jnp.where(grid.pure, jnp.nan, jnp.exp(grid.gap)))
    here, there = alpha_sigma(grid.lams, "flow")[1], alpha_sigma(grid.stop, "flow")[1]
    return jnp.where(grid.clean, 1.0, here / there)
