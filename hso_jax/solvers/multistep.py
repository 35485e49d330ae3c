"""DDIM and DPM-Solver++ 2M and 3M, as diffusers' DPMSolverMultistepScheduler has them (solver_type "midpoint")."""

from __future__ import annotations

from hso_jax.noise import Array, namespace
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
