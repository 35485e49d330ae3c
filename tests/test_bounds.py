"""DM-NonUni's bound and its minimisers against the SciPy re-derivation (quadrature, epigraph form)."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import scipy_search as reference
from problems import KINKED, SD

from hso_jax.baselines import dm_nonuniform
from hso_jax.bounds import bound, minimise, step_weights
from hso_jax.lower import trust_region

RNG = np.random.default_rng(1)


def on_uniform_t(nfe: int) -> np.ndarray:
    return KINKED.lam(np.linspace(1.0, 1e-3, nfe + 1))


def padded(lams: np.ndarray, count: int = 21) -> np.ndarray:
    return np.append(lams, np.full(count - len(lams), lams[-1]))


def bounds(rows: list[np.ndarray], p: float, width: float) -> np.ndarray:
    """The bound of schedules of different lengths, padded to one shape, in float64."""
    with jax.enable_x64(True):
        lams = jnp.asarray(np.stack([padded(r) for r in rows]))
        intervals = jnp.asarray([len(r) - 1 for r in rows])
        return np.asarray(_bounds(lams, intervals, p, width))


_bounds = jax.jit(jax.vmap(bound, (0, 0, None, None)))


@pytest.mark.parametrize("p", [1.0, 2.0])
def test_the_bound_on_random_schedules(p: float) -> None:
    rows = [np.sort(RNG.uniform(-4, 4, m + 1)) + 0.05 * np.arange(m + 1) for m in (1, 2, 3, 4, 5, 7, 8, 12, 20)]
    wanted = [reference.dm_nonuni_objective(r, p) for r in rows]
    np.testing.assert_allclose(bounds(rows, p, 0.0), wanted, rtol=1e-9)
    # The rounding of |c| takes at most `width` per node away, and never adds.
    rounded = bounds(rows, p, 1e-2)
    assert np.all(rounded <= np.array(wanted) * (1 + 1e-12))
    assert np.all(rounded >= np.array(wanted) - 1e-2 * np.array([len(r) for r in rows]))


def test_weights_against_the_closed_forms() -> None:
    """Order 1: H0 = e^h - 1. Order 2: the linear extrapolation through nodes s and s - 1, with H1 = e^h h - H0."""
    lams = np.array([-2.0, -1.2, 0.1, 0.9, 2.0])
    with jax.enable_x64(True):
        at_s, at_1, at_2 = (np.asarray(x) for x in step_weights(jnp.asarray(lams), 4))
    h = np.diff(lams)
    h0 = np.expm1(h)
    np.testing.assert_allclose(at_s[[0, 3]], h0[[0, 3]], rtol=1e-12)
    h1 = np.exp(h) * h - h0
    np.testing.assert_allclose(at_1[1], -h1[1] / h[0], rtol=1e-12)
    np.testing.assert_allclose(at_s[1], h0[1] + h1[1] / h[0], rtol=1e-12)
    np.testing.assert_allclose(at_s + at_1 + at_2, h0, rtol=1e-12)  # constants are integrated exactly
    assert np.all(at_2[[0, 1, 3]] == 0.0)
    for s, order in ((0, 1), (1, 2), (2, 2), (3, 1)):
        wanted = np.exp(-lams[s]) * reference.step_weights(lams, s, order)[::-1]
        np.testing.assert_allclose(np.array([at_s[s], at_1[s], at_2[s]])[:order], wanted, rtol=1e-11)


def test_float32_is_close() -> None:
    rows = [on_uniform_t(m) for m in (4, 8, 20)]
    got = _bounds(jnp.asarray(np.stack([padded(r) for r in rows]), jnp.float32), jnp.array([4, 8, 20]), 2.0, 0.0)
    np.testing.assert_allclose(got, bounds(rows, 2.0, 0.0), rtol=2e-5)


@functools.cache
def scipy_minimum(nfe: int) -> reference.DmNonUni:
    return reference.dm_nonuni(KINKED, nfe)


@jax.jit
def minimised(start: jax.Array, intervals: jax.Array) -> trust_region.Solution:
    feasible = trust_region.Feasible(start[0], start[-1], jnp.zeros_like(start[0]), intervals)
    return minimise(jax.tree.map(lambda x: jnp.asarray(x, start.dtype), SD), start, feasible)


@pytest.mark.parametrize("nfe", [4, 6])
def test_minimisers_in_float64_are_scipy_s(nfe: int) -> None:
    wanted = scipy_minimum(nfe)
    assert wanted.converged
    with jax.enable_x64(True):
        found = minimised(jnp.asarray(padded(np.linspace(1.0, 1e-3, nfe + 1), 9)), jnp.asarray(nfe))
        t = np.asarray(found.t)[: nfe + 1]
    assert np.abs(1000 * (t - wanted.t)).max() < 0.1
    value = reference.dm_nonuni_objective(KINKED.lam(t))
    assert value <= wanted.objective * (1 + 2e-5)  # what is left of the rounding of |c|


def test_the_baseline_is_scipy_s() -> None:
    nfe = 6
    t = dm_nonuniform(SD, nfe, "interval")
    value = reference.dm_nonuni_objective(KINKED.lam(t))
    assert value <= scipy_minimum(nfe).objective * (1 + 1e-4)
    assert np.abs(1000 * (t - scipy_minimum(nfe).t)).max() < 0.1
