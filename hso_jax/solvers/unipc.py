"""UniPC (Zhao et al. 2023, arXiv 2302.04867), as diffusers' UniPCMultistepScheduler has it, with its corrector."""

from __future__ import annotations

from hso_jax.noise import Array, namespace
from hso_jax.solvers.weights import Grid, Weights, before, phi


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
