"""The lower level against SciPy, in both precisions; its steps, result codes and derivatives."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest
from oracles import scipy_search as reference
from problems import KINKED, SD, Problem

from hso_jax import refine
from hso_jax.lower import trust_region
from hso_jax.lower.trust_region import (
    CONVERGED,
    NOT_FINITE,
    Expansion,
    Feasible,
    Tridiagonal,
    dense_objective,
    face_step,
    interval_objective,
)
from hso_jax.mep_spf import mep, mep_interval_derivatives
from hso_jax.noise import discrete, flow

DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])


@DTYPES
def test_minimisers_measured_on_stable_diffusion(dtype: type) -> None:
    table = problems.METHOD_MINIMISERS
    for m, found in zip(table, problems.solve([Problem(SD, m) for m in table], dtype), strict=True):
        timesteps, value = table[m]
        np.testing.assert_array_equal(np.rint(1000 * found.t - 1), timesteps)
        assert found.value == pytest.approx(value, abs=6e-5)
        exact = reference.minimise_mep(KINKED, 1.0, 0.01, m)
        assert np.abs(1000 * (found.t - exact.t)).max() < 0.1  # a tenth of a timestep
        assert found.result == CONVERGED and found.steps <= 10


@DTYPES
def test_every_edm_start_leads_to_one_minimiser(dtype: type) -> None:
    low, high = np.exp(-KINKED.lam([0.01, 1.0]))
    starts = [KINKED.t_of_lam(-np.log(reference.edm_start(rho, low, high, 8))) for rho in (3, 5, 7, 10, 16)]
    found = problems.solve([Problem(SD, 8, start=start) for start in [*starts, np.full(9, np.nan)]], dtype)
    for other in found:
        np.testing.assert_allclose(other.t, found[0].t, rtol=0, atol=2e-6 if dtype is np.float32 else 1e-11)
        assert other.result == CONVERGED and other.steps <= 12


def real_problems() -> list[Problem]:
    """Published noise up to M = 64, with the spacing absent, binding on some gaps, and nearly binding on all."""
    noises = [SD, discrete(alphas_cumprod=problems.TABLES["linear"]), flow(3.0), problems.CLOSED_FORMS["edm"].noise]
    rng = np.random.default_rng(0)
    made = []
    for i, m in enumerate([2, 3, 5, 7, 9, 12, 16, 20, 24, 31, 40, 64]):
        t_max, t_eps = rng.uniform(0.95, 0.999), rng.uniform(0.01, 0.03)
        tight = [0.0, 0.6, 0.97][i % 3]
        made.append(Problem(noises[i % 4], m, t_max, t_eps, [2.0, 1.0, 1.5][i // 4], tight * (t_max - t_eps) / m))
    return made


def random_problems() -> list[Problem]:
    made = []
    for i in range(16):
        rng = np.random.default_rng(100 + i)
        t_max, t_eps = rng.uniform(0.9, 1.0), rng.uniform(0.01, 0.05)
        m = int(rng.choice([2, 3, 4, 6, 8, 12, 16]))
        share = rng.choice([0.0, 0.4, 0.9])
        noise = discrete(alphas_cumprod=problems.random_table(100 + i))
        made.append(Problem(noise, m, t_max, t_eps, [1.0, 2.0, 1.5, 0.5][i % 4], share * (t_max - t_eps) / m))
    return made


def compare(made: list[Problem], steps: int) -> None:
    """J within 1e-6 of SciPy's (relative), feasible, converged, in few steps. All offences in one message."""
    bad = []
    for i, (q, found) in enumerate(zip(made, problems.solve(made, np.float64), strict=True)):
        wanted = reference.minimise_mep(problems.Smooth(q.noise), q.t_max, q.t_eps, q.intervals, q.p, q.spacing)
        excess = float(found.value) / wanted.mep - 1.0
        kept = np.all(-np.diff(found.t) >= q.spacing - 1e-12) and np.all(np.diff(found.t) < 0)
        if not (excess <= 1e-6 and kept and found.result == CONVERGED and found.steps <= steps):
            code = trust_region.RESULTS[int(found.result)]
            bad.append(f"{i}: M {q.intervals}, p {q.p}, J {excess:+.1e}, {code} after {found.steps} steps, kept {kept}")
    assert not bad, "\n".join(bad)


def test_published_noise_agrees_with_scipy() -> None:
    compare(real_problems(), steps=20)


def test_random_noise_agrees_with_scipy() -> None:
    """The noise's rate of fall varies by exp(2.4)."""
    compare(random_problems(), steps=40)


def test_float32_finds_what_float64_finds() -> None:
    made = real_problems()
    pairs = zip(made, problems.solve(made, np.float32), problems.solve(made, np.float64), strict=True)
    for q, single, double in pairs:
        assert single.result == CONVERGED
        assert single.value == pytest.approx(double.value, rel=2e-6)
        assert mep(np.asarray(q.noise.lam(single.t.astype(float))), q.p) <= double.value * (1 + 1e-5)


def test_p_above_2_is_a_trap_for_edm_starts() -> None:
    """For p > 2 nodes that merge at t_eps are a minimum as well; the uniform start reaches the best one."""
    low, high = np.exp(-KINKED.lam([0.01, 1.0]))
    starts = [None] + [KINKED.t_of_lam(-np.log(reference.edm_start(rho, low, high, 8))) for rho in (3, 7, 16)]
    made = [Problem(SD, 8, p=4.0, start=start) for start in starts]
    made += [q._replace(spacing=0.03) for q in made]
    found = problems.solve(made, np.float64)
    best = reference.minimise_mep(KINKED, 1.0, 0.01, 8, p=4.0)
    assert found[0].value == pytest.approx(best.mep, rel=1e-4)
    values = np.array([s.value for s in found])
    assert np.all(np.isfinite(values)) and np.all(values[1:4] >= values[0] * (1 - 1e-9))
    assert np.all(values[5:] >= values[4] * (1 - 1e-9))
    for q, s in zip(made, found, strict=True):
        assert s.t[0] == q.t_max and s.t[-1] == q.t_eps and np.all(-np.diff(s.t) >= q.spacing - 1e-12)


def test_dense_and_tridiagonal_steps_agree_with_a_bordered_system() -> None:
    """KKT oracle: minimise g s + s (H + damping diag H) s / 2 under the held gaps and the ends' steps."""
    rng = np.random.default_rng(7)
    k, rows = 9, 40
    off = rng.normal(size=(rows, k - 1))
    diagonal = (
        3.0
        + rng.uniform(size=(rows, k))
        + np.abs(np.pad(off, ((0, 0), (0, 1))))
        + np.abs(np.pad(off, ((0, 0), (1, 0))))
    )
    gradient, change = rng.normal(size=(rows, k)), rng.normal(size=(rows, k - 1)) * 0.1
    active = rng.uniform(size=(rows, k - 1)) < 0.4
    active[:, 4] = False  # the ends are both given: at least one gap is free
    first, last, damping = rng.normal(size=(3, rows)) * 0.1
    damping = np.abs(damping)
    dense = np.stack([np.diag(d) + np.diag(o, 1) + np.diag(o, -1) for d, o in zip(diagonal, off, strict=True)])

    def steps(hessian: object) -> np.ndarray:
        call = jax.jit(jax.vmap(lambda g, h, *rest: face_step(Expansion(jnp.zeros(()), g, h), *rest)))
        return np.asarray(call(gradient, hessian, active, change, first, last, damping))

    with jax.enable_x64(True):
        fast, slow = steps(Tridiagonal(jnp.asarray(diagonal), jnp.asarray(off))), steps(jnp.asarray(dense))
    for i in range(rows):
        held = np.flatnonzero(active[i])
        a = np.zeros((len(held) + 2, k))
        a[np.arange(len(held)), held], a[np.arange(len(held)), held + 1] = 1.0, -1.0
        a[-2, 0] = a[-1, -1] = 1.0
        kkt = np.block([[dense[i] + damping[i] * np.diag(diagonal[i]), a.T], [a, np.zeros((len(a), len(a)))]])
        right = np.concatenate([-gradient[i], change[i, held], [first[i], last[i]]])
        wanted = np.linalg.solve(kkt, right)[:k]
        np.testing.assert_allclose(fast[i], wanted, rtol=0, atol=1e-10)
        np.testing.assert_allclose(slow[i], wanted, rtol=0, atol=1e-10)


def test_an_indefinite_face_is_refused_or_still_descended() -> None:
    gradient = jnp.array([0.0, 1.0, -2.0, 0.0])
    for hessian in (Tridiagonal(-jnp.ones(4), jnp.zeros(3)), -jnp.eye(4)):
        expansion = Expansion(jnp.zeros(()), gradient, hessian)
        step = np.asarray(face_step(expansion, jnp.zeros(3, bool), jnp.zeros(3), *jnp.zeros((3,))))
        assert not np.all(np.isfinite(step)) or np.asarray(gradient) @ step < 0


def small(objective: object, noise: object, start: list[float], steps: int = 12) -> trust_region.Solution:
    feasible = Feasible(*(jnp.asarray(x) for x in (1.0, 0.1, 0.0)), jnp.asarray(len(start) - 1))
    run = jax.jit(lambda noise, start: trust_region.solve(objective, noise, start, feasible, max_steps=steps))
    return run(noise, jnp.asarray(start))


@pytest.mark.slow
def test_result_codes() -> None:
    start = [1.0, 0.8, 0.5, 0.3, 0.1]
    broken = small(dense_objective(lambda lams: jnp.nan * jnp.sum(lams)), SD, start)
    assert broken.result == NOT_FINITE and np.all(np.isfinite(broken.t))
    interval = interval_objective(functools.partial(mep_interval_derivatives, p=2.0))
    early = small(interval, SD, start, steps=1)
    assert early.result == trust_region.MAX_STEPS and early.steps == 1 and early.stationarity > 0
    lost = small(interval, SD, [1.0, np.nan, 0.5, np.inf, 0.1])
    well = small(dense_objective(lambda lams: mep(lams, 2.0)), SD, start)
    assert lost.result == well.result == CONVERGED
    np.testing.assert_allclose(lost.t, well.t, rtol=0, atol=1e-6)  # from NaN, and by the dense Hessian


def test_a_noise_schedule_with_nan_is_reported() -> None:
    broken = jax.tree.map(lambda x: x * np.nan if np.ndim(x) == 2 else x, SD)
    (found,) = problems.solve([Problem(broken, 5)], np.float32)
    assert found.result == NOT_FINITE


def test_vmap_is_a_loop() -> None:
    starts = np.linspace(1.0, 0.01, 6) ** np.array([[1.0], [2.0], [0.7]])
    one = jax.jit(lambda start: refine(SD, start, t_max=1.0, t_eps=0.01, spacing=0.1))
    many = jax.jit(jax.vmap(lambda start: refine(SD, start, t_max=1.0, t_eps=0.01, spacing=0.1)))(jnp.asarray(starts))
    for i, start in enumerate(starts):
        alone = one(jnp.asarray(start))
        # Bitwise equality is XLA's to give; four float32 eps are asked for.
        np.testing.assert_allclose(many.t[i], alone.t, rtol=0, atol=5e-7)
        assert many.result[i] == alone.result == CONVERGED


def parameters(theta: jax.Array) -> jax.Array:
    """Nodes [6] as a function of t_max, t_eps, p, spacing and four bends of the noise table."""
    t_max, t_eps, p, spacing = theta[0], theta[1], theta[2], theta[3]
    i = jnp.arange(1, 31) / 30
    logit = 6.0 - 9.0 * i + sum(theta[4 + k] * jnp.sin((k + 1) * jnp.pi * i) for k in range(4))
    noise = discrete(alphas_cumprod=jax.nn.sigmoid(logit))
    found = refine(noise, jnp.linspace(1.0, 0.05, 6), t_max=t_max, t_eps=t_eps, p=p, spacing=spacing)
    return found.t


@pytest.mark.parametrize("spacing", [0.0, 0.16])
def test_implicit_derivatives_match_finite_differences(spacing: float) -> None:
    theta = np.array([0.97, 0.06, 1.8, spacing, 0.3, -0.2, 0.1, 0.05])
    with jax.enable_x64(True):
        call, forward, reverse = _differentiated()
        at = jnp.asarray(theta)
        t, fwd, rev = np.asarray(call(at)), np.asarray(forward(at)), np.asarray(reverse(at))
        shifts = 1e-6 * np.eye(8)
        both = [(np.asarray(call(at + s)) - np.asarray(call(at - s))) / 2e-6 for s in shifts]
        ahead = (np.asarray(call(at + shifts[3])) - t) / 1e-6
    if spacing == 0.0:
        both[3] = ahead  # no gap is at its bound: the spacing has no effect, and cannot be negative
        assert np.all(np.abs(ahead) < 1e-8)  # rounding
    active = int(np.sum(np.abs(-np.diff(t) - spacing) < 1e-9))
    assert (active > 0) == (spacing > 0) and active < 5
    np.testing.assert_allclose(fwd, np.stack(both, axis=1), rtol=0, atol=2e-6)
    np.testing.assert_allclose(rev, fwd, rtol=0, atol=1e-11)


@pytest.mark.slow
def test_second_implicit_derivatives_match_finite_differences() -> None:
    """In p, t_max and t_eps at once, of a batch of two spacings: with the second, gaps are held."""

    def nodes(x: jax.Array, spacing: jax.Array) -> jax.Array:
        start = jnp.linspace(1.0, 0.05, 6)
        return refine(SD, start, t_max=x[1], t_eps=x[2], p=x[0], spacing=spacing).t

    with jax.enable_x64(True):
        x, spacing = jnp.array([1.8, 0.97, 0.06]), jnp.array([0.0, 0.16])
        slope, second = (jax.jit(jax.vmap(f, (None, 0))) for f in (jax.jacfwd(nodes), jax.jacrev(jax.jacrev(nodes))))
        wanted = np.stack([(slope(x + d, spacing) - slope(x - d, spacing)) / 2e-6 for d in 1e-6 * jnp.eye(3)], axis=-1)
        found = second(x, spacing)
    assert np.all(np.abs(wanted[:, :, 0, 0]).max(axis=1) > 1e-3)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


@functools.cache
def _differentiated() -> tuple[object, object, object]:
    return jax.jit(parameters), jax.jit(jax.jacfwd(parameters)), jax.jit(jax.jacrev(parameters))
