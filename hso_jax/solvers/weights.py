"""What a solver is: for each evaluation, the weights of the sample and of the predictions so far.

In data prediction and VP-equivalent scaling (`alpha^2 + sigma^2 = 1`), a step of length h in lam is

    x' = (sigma'/sigma) x + sigma' * integral of e^lam x0(lam) dlam

with a polynomial through known predictions for x0. Every solver here is therefore linear in the sample and the
predictions, with weights that depend on the nodes alone: they are computed once a schedule, and one loop
(`sampling.run`) serves all solvers.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from hso_jax.noise import Array, alpha_sigma, namespace

PURE_NOISE = {"vp": -0.5 * math.log(2.0**24 - 1.0), "flow": math.log(1e-6 / (1.0 - 1e-6))}
"""What diffusers puts in place of lam = -inf, by the noise schedule's kind.

A first node at -inf is taken to that limit here: the distance to it is infinite, so it adds nothing to the
differences of its neighbours. Pass these values instead to reproduce diffusers' multistep solvers to the digit.
"""


class Grid(NamedTuple):
    """The steps of one schedule: step i goes from node i to the next one, the last of them to the end.

    Padding repeats the last step and is not `real`. All entries but `lams` are finite, whatever the two ends are.
    """

    lams: Array  # [K] half log-SNR where the step starts; the first may be -inf
    stop: Array  # [K] where it ends; where it starts if that is clean data
    real: Array  # [K] bool, the first N steps
    pure: Array  # [K] bool, whether the step starts at lam = -inf
    clean: Array  # [K] bool, whether it ends at sigma = 0
    left: Array  # [K] steps left, this one included (N - i)
    nfe: Array  # N, the number of real steps
    gap: Array  # [K] its length h in lam; 1 where that is infinite
    decay: Array  # [K] sigma'/sigma
    gain: Array  # [K] alpha' (1 - e^-h)


class Weights(NamedTuple):
    """A solver's arithmetic: E evaluations, newest prediction first.

    At evaluation k, with m_k the prediction at x_k and s_0 = x_0,

        s_k     = keep_k s_{k-1} + sum_j correct_kj m_{k-j}      (s_k = x_k without a corrector)
        x_{k+1} = carry_k s_k    + sum_j predict_kj m_{k-j}
    """

    lams: Array  # [E] where the model is evaluated
    real: Array  # [E] bool; the others leave the sample as it is
    carry: Array  # [E]
    predict: Array  # [E, P]
    keep: Array | None = None  # [E], None without a corrector
    correct: Array | None = None  # [E, C], None without a corrector


def grid(lams: Array, end: Array, nfe: Array) -> Grid:
    """The steps between the first `nfe` of `lams` [K] and from there to `end` (inf: clean data)."""
    xp = namespace(lams, end, nfe)
    index = xp.arange(lams.shape[0])
    real = index < nfe
    lams = xp.where(real, lams, lams[nfe - 1])
    then = xp.where(index + 1 < nfe, xp.roll(lams, -1), end)
    pure, clean = xp.isneginf(lams), xp.isposinf(then)
    # Infinite ends are replaced before and their weights set after: no gradient then meets inf - inf or 0 inf.
    start, stop = xp.where(pure, 0.0, lams), xp.where(clean, 0.0, then)
    gap = xp.where(pure | clean, 1.0, stop - start)
    sigma = xp.where(pure, 1.0, alpha_sigma(start, "vp")[1])
    alpha_stop, sigma_stop = alpha_sigma(stop, "vp")
    decay = xp.where(clean, 0.0, sigma_stop / sigma)
    gain = xp.where(clean, 1.0, alpha_stop * xp.where(pure, 1.0, -xp.expm1(-gap)))
    return Grid(lams, xp.where(clean, lams, then), real, pure, clean, nfe - index, nfe, gap, decay, gain)


def phi(x: Array) -> tuple[Array, Array, Array, Array]:
    """phi_1 .. phi_4 of exponential integrators: `phi_1 = (e^x - 1)/x`, `phi_{k+1} = (phi_k - 1/k!)/x`; 1/k! at 0.

    The upward recursion loses digits near 0, where it divides differences of nearly equal numbers by x; there
    the series of phi_4 and the downward recursion take its place. Relative error below 10 eps for x <= 0.
    """
    xp = namespace(x)
    near = xp.abs(x) < 2.0
    small, large = xp.where(near, x, 1.0), xp.where(near, 1.0, x)
    fourth = xp.zeros_like(x)
    for n in range(26, 3, -1):
        fourth = fourth * small + 1.0 / math.factorial(n)
    third = small * fourth + 1.0 / 6.0
    second = small * third + 0.5
    series = (small * second + 1.0, second, third, fourth)
    first = xp.expm1(large) / large
    second = (first - 1.0) / large
    third = (second - 0.5) / large
    direct = (first, second, third, (third - 1.0 / 6.0) / large)
    return tuple(xp.where(near, a, b) for a, b in zip(series, direct, strict=True))


def before(values: Array, steps: int = 1) -> Array:
    """Values of the step `steps` earlier. The first ones wrap around: finite, and never used."""
    return namespace(values).roll(values, steps, axis=0)
