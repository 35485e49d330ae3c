"""The projection onto schedules with fixed ends and least gaps, against sorting, SLSQP and its own definition."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from optax.projections import projection_simplex
from scipy import optimize

from hso_jax.lower.trust_region import nodes_of_gaps, project, project_gaps, project_gaps_in_rounds

K = 9
WAYS = {way: jax.jit(jax.vmap(way)) for way in (project_gaps, project_gaps_in_rounds)}
nodes = jax.jit(jax.vmap(project))
every_way = pytest.mark.parametrize("vmapped", WAYS.values(), ids=[way.__name__ for way in WAYS])


def by_sorting(gaps: np.ndarray, lower: float, total: float) -> np.ndarray:
    """Optax's simplex projection (Held, Wolfe and Crowder 1974), shifted by the least gap."""
    room = total - lower * len(gaps)
    if room <= 0:
        return np.full(len(gaps), lower)
    return np.asarray(projection_simplex(jnp.asarray(gaps - lower), room)) + lower


def cases(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Padded gaps [count, K - 1], least gap, sum, number of gaps."""
    rng = np.random.default_rng(seed)
    intervals = rng.integers(1, K, count)
    total = rng.uniform(0.1, 1.0, count)
    lower = rng.uniform(0.0, 1.0, count) * total / intervals * rng.choice([0.0, 0.5, 1.0], count)
    gaps = rng.normal(size=(count, K - 1)) * 10.0 ** rng.integers(-3, 2, (count, 1))
    return gaps, lower, total, intervals


@every_way
def test_gaps_match_the_projection_by_sorting(vmapped: Any) -> None:
    gaps, lower, total, intervals = cases(300)
    with jax.enable_x64(True):
        free = jnp.asarray(np.arange(K - 1) < intervals[:, None])
        got = np.asarray(vmapped(*map(jnp.asarray, (gaps, lower, total)), free))
        again = np.asarray(vmapped(jnp.asarray(got), jnp.asarray(lower), jnp.asarray(total), free))
        for i, m in enumerate(intervals):
            np.testing.assert_allclose(got[i, :m], by_sorting(gaps[i, :m], lower[i], total[i]), rtol=0, atol=1e-13)
            assert np.all(got[i, m:] == 0.0)
    np.testing.assert_allclose(again, got, rtol=0, atol=1e-14)  # idempotent


def test_nodes_match_a_quadratic_program() -> None:
    rng = np.random.default_rng(2)
    wild = rng.uniform(0, 1, (6, K))
    spacing, intervals = np.array([0.0, 0.05, 0.1, 0.12, 0.2, 0.3]), np.array([8, 8, 8, 8, 4, 3])
    with jax.enable_x64(True):
        ends = jnp.full(6, 1.0), jnp.full(6, 0.02)
        got = np.asarray(nodes(jnp.asarray(wild), *ends, jnp.asarray(spacing), jnp.asarray(intervals)))
    for t, d, m, row in zip(wild, spacing, intervals, got, strict=True):
        gaps = t[:m] - t[1 : m + 1]
        found = optimize.minimize(
            lambda g, gaps=gaps: np.sum((g - gaps) ** 2),
            np.full(m, 0.98 / m),
            jac=lambda g, gaps=gaps: 2 * (g - gaps),
            method="SLSQP",
            bounds=[(d, None)] * m,
            constraints={"type": "eq", "fun": lambda g: g.sum() - 0.98, "jac": np.ones_like},
            options={"ftol": 1e-14},
        )
        np.testing.assert_allclose(row[: m + 1], 1.0 - np.append(0.0, np.cumsum(found.x)), rtol=0, atol=1e-6)
        assert row[0] == 1.0 and np.all(row[m:] == 0.02)


@every_way
def test_float32_ends_feasible_and_always(vmapped: Any) -> None:
    """Rounding once let the Newton iteration go to and fro for ever."""
    gaps, lower, total, intervals = cases(20_000, seed=1)
    free = np.arange(K - 1) < intervals[:, None]
    arrays = [np.asarray(x, np.float32) for x in (gaps, lower, total)]
    arrays[1] = np.minimum(arrays[1], (arrays[2] / intervals).astype(np.float32))
    got = np.asarray(vmapped(*arrays, free))
    assert np.all(np.isfinite(got))
    assert np.all(got[free] >= np.broadcast_to(arrays[1][:, None], free.shape)[free])
    # The sum is kept to a few roundings of the largest number that went in.
    size = np.abs(arrays[0]).max(axis=1) + 1.0
    assert np.max(np.abs(got.sum(axis=1) - arrays[2]) / size) < 8 * np.finfo(np.float32).eps


@every_way
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_do_not_hang(bad: float, vmapped: Any) -> None:
    gaps = np.full((2, K - 1), 0.1, np.float32)
    gaps[0, 3] = bad
    out = vmapped(gaps, np.zeros(2, np.float32), np.full(2, 0.8, np.float32), np.ones((2, K - 1), bool))
    np.testing.assert_allclose(out[1], 0.1, rtol=1e-6)


def test_nodes_of_gaps_end_exactly() -> None:
    gaps = jnp.asarray(np.array([0.3, 0.3, 0.3, 0.0, 0.0], np.float32))
    t = np.asarray(nodes_of_gaps(jnp.float32(1.0), jnp.float32(0.1), gaps))
    np.testing.assert_allclose(t[:3], [1.0, 0.7, 0.4], atol=1e-6)
    assert np.all(t[3:] == np.float32(0.1))
    t = np.asarray(nodes_of_gaps(jnp.float32(1.0), jnp.float32(0.1), jnp.full(5, jnp.nan)))
    assert np.all(np.isnan(t[1:5]))  # no schedule, which an objective might like


def test_a_feasible_schedule_stays_where_it_is() -> None:
    t = np.linspace(1.0, 0.04, K).astype(np.float32)
    ones = np.ones(1, np.float32)
    out = nodes(t[None], ones, ones * t[-1], ones * np.float32(0.05), np.array([K - 1]))
    np.testing.assert_allclose(out[0], t, rtol=0, atol=3e-7)
