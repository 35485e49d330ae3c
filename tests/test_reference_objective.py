"""The reference error, its gradient and curvature, against plain sampling and finite differences, in float64."""

from __future__ import annotations

import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference_cells import SAMPLES, SD, SD3, small_family
from scipy import optimize

from hso_jax import solvers, trust_region
from hso_jax.batch import compiler_options
from hso_jax.curvature import Expansion, GaussNewton, face_step
from hso_jax.noise import flow
from hso_jax.problems import denoiser, exact
from hso_jax.reference import ReferenceLane
from hso_jax.reference.data import Chunks, squared_errors
from hso_jax.reference.lanes import LaneArrays, lam_of_s, pack, s_of_lam
from hso_jax.reference.search import lams_of, reference_objective, walled, weigh
from hso_jax.trust_region import CONVERGED, Feasible

NAMES = ("ddim", "dpmpp-2m", "unipc-3")
NFE, COUNT = 3, 6  # real nodes are 3 or 4, the rest is padding
STARTS = {"free": (SD3, "free"), "pure noise": (SD3, "end"), "finite end": (SD, "end")}
NODES = np.array([0.93, 0.61, 0.34, 0.12])
CELLS = list(itertools.product(NAMES, ("node", "interval"), STARTS, (1.0, 5.0)))


class Cell(NamedTuple):
    """One lane with what the oracle needs of it."""

    lane: ReferenceLane
    arrays: LaneArrays
    data: Chunks
    row: np.ndarray
    movable: list[int]
    """Entries of the row that are nodes and not pinned."""


@functools.cache
def cells() -> list[Cell]:
    with jax.enable_x64(True):
        lanes = []
        for solver, layout, start, weight in CELLS:
            noise, first = STARTS[start]
            lanes.append(ReferenceLane(noise, NFE, layout, solver, weight, first=first))
        options = {"problems": small_family(), "samples": SAMPLES}
        arrays, bank, _ = pack(lanes, NAMES, np.zeros((len(lanes), 0, COUNT)), 4, **options)
        made = []
        for i, lane in enumerate(lanes):
            one = jax.tree.map(lambda x, i=i: x[i], arrays)
            data = bank._replace(truth=bank.truth[one.reference], guidance=bank.guidance[one.reference])
            nodes = np.full(COUNT, 0.5)
            nodes[:4] = NODES
            if lane.first == "end":
                nodes[0] = s_of_lam(lane.noise_end)
            row, _ = walled(one, jnp.asarray(nodes))
            first = 1 if lane.first == "free" else 0
            movable = [first + k for k in range(lane.nodes) if first or k]
            made.append(Cell(lane, one, data, np.asarray(row), movable))
    return made


QUICK = compiler_options(jax.default_backend())  # the compilation is most of the time


@functools.partial(jax.jit, compiler_options=QUICK)
def expansion(lane: LaneArrays, data: Chunks, row: jax.Array) -> Expansion:
    chunks = jnp.asarray(data.problem.shape[0])
    return reference_objective(NAMES, lane, data, chunks, None)(flow(1.0), row)


@functools.partial(jax.jit, static_argnames="solver", compiler_options=QUICK)
def plain(data: Chunks, lams: jax.Array, end: jax.Array, solver: str) -> jax.Array:
    """Residuals [Q B D] of `solvers.sample` on exactly N nodes."""

    def one(i: jax.Array) -> jax.Array:
        problem = jax.tree.map(lambda leaf: leaf[data.problem[i]], data.problems)
        return solvers.sample(denoiser(problem, data.guidance), lams, data.noise[i], solver=solver, end=end)

    return (jax.lax.map(one, jnp.arange(data.problem.shape[0])) - data.truth).reshape(-1)


def residual(cell: Cell, row: np.ndarray) -> np.ndarray:
    """The same of a row with its walls, whose nodes are read off here."""
    nodes = row[1:] if cell.lane.first == "free" else row
    lams = lam_of_s(nodes[: cell.lane.nodes])
    if cell.lane.first == "end":
        lams[0] = cell.lane.noise_end
    end = np.inf if cell.lane.layout == "node" else lams[-1]
    return np.asarray(plain(cell.data, jnp.asarray(lams[:NFE]), jnp.asarray(end), cell.lane.solver))


def jacobian(cell: Cell, h: float = 1e-4) -> np.ndarray:
    """[Q B D, K + 2] by central differences of order 4."""
    columns = np.zeros((cell.data.truth.size, len(cell.row)))
    for k in cell.movable:
        shift = h * np.eye(len(cell.row))[k]
        far, near = (residual(cell, cell.row + a * shift) - residual(cell, cell.row - a * shift) for a in (2, 1))
        columns[:, k] = (8.0 * near - far) / (12.0 * h)
    return columns


@pytest.mark.parametrize("index", range(len(CELLS)), ids=["-".join(map(str, cell)) for cell in CELLS])
def test_value_gradient_and_gauss_newton_matrix(index: int) -> None:
    """Padded nodes and the switch over solvers are in the tested side only."""
    cell = cells()[index]
    with jax.enable_x64(True):
        found = jax.tree.map(np.asarray, expansion(cell.arrays, cell.data, jnp.asarray(cell.row)))
        r, j = residual(cell, cell.row), jacobian(cell)
    assert isinstance(found.hessian, GaussNewton)
    assert found.value == pytest.approx(np.mean(r**2), rel=1e-12)
    gradient, matrix = 2.0 * j.T @ r / r.size, 2.0 * j.T @ j / r.size
    assert np.abs(gradient[cell.movable]).min() > 0
    still = np.setdiff1d(np.arange(len(cell.row)), cell.movable)  # walls, padding, and what is pinned
    assert not found.gradient[still].any() and not found.hessian.matrix[still].any()
    np.testing.assert_allclose(found.gradient, gradient, rtol=1e-6, atol=1e-6 * np.abs(gradient).max())
    np.testing.assert_allclose(found.hessian.matrix, matrix, rtol=1e-6, atol=1e-6 * np.abs(matrix).max())


def test_squared_errors_are_those_of_sampling_and_the_exact_flow() -> None:
    """Of the first chunks only; and the truth is `problems.exact`."""
    cell = cells()[CELLS.index(("dpmpp-2m", "interval", "pure noise", 5.0))]
    with jax.enable_x64(True):
        lams, _ = lams_of(cell.arrays, jnp.asarray(cell.row))
        weights = weigh(NAMES, cell.arrays, lams)
        errors = np.asarray(jax.jit(squared_errors)(cell.data, weights, jnp.asarray(3)))
        wanted = np.mean(residual(cell, cell.row).reshape(len(errors), -1) ** 2, axis=1)
        problem = jax.tree.map(lambda leaf: jnp.asarray(leaf[1], float), small_family())
        mine = [i for i, p in enumerate(cell.data.problem) if p == 1]
        noise = jnp.concatenate([cell.data.noise[i] for i in mine])
        truth = exact(problem, noise, start=-np.inf, guidance=5.0, steps=64).value
    np.testing.assert_allclose(errors[:3], wanted[:3], rtol=1e-12)
    assert len(errors) == 4 and errors[3] == 0
    np.testing.assert_allclose(truth, np.concatenate([cell.data.truth[i] for i in mine]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("names", [("dpmpp-3m", "ddim", "unipc-3-bh1"), ("dpmpp-3m", "ddim"), ("heun", "heun-flow")])
def test_solvers_made_alike_sample_as_each_alone(names: tuple[str, ...]) -> None:
    problem = jax.tree.map(lambda leaf: leaf[0], small_family())
    model = denoiser(problem, 3.0)
    noise = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    lams = np.array([-2.5, -1.0, 0.2, 1.1, 2.0, 9.0], np.float32)  # the last one is padding

    @jax.jit
    def switched(index: jax.Array, end: jax.Array) -> jax.Array:
        makers = [functools.partial(solvers.weights, name, jnp.asarray(lams), end=end, nfe=5) for name in names]
        return solvers.run(model, jax.lax.switch(index, solvers.alike(makers)), noise)

    alone = jax.jit(functools.partial(solvers.sample, model), static_argnames="solver")
    for i, name in enumerate(names):
        for end in np.array([np.inf, 2.7], np.float32):
            found, wanted = switched(jnp.asarray(i), end), alone(lams[:5], noise, solver=name, end=end)
            np.testing.assert_allclose(found, wanted, rtol=0, atol=5e-6)


def test_solvers_of_one_and_two_evaluations_are_not_alike() -> None:
    makers = [functools.partial(solvers.weights, name, jnp.linspace(-2.0, 2.0, 4)) for name in ("ddim", "heun")]
    with pytest.raises(ValueError, match="one and of two evaluations"):
        solvers.alike(makers)


# The trust region on a least-squares problem of five nodes whose residuals do not vanish at the minimum.

MINIMUM = np.array([0.74, 0.47, 0.18])


def curves(t: Any, xp: Any) -> Any:
    """[6] functions of the three nodes between the ends, far from linear."""
    a, b, c = t[1], t[2], t[3]
    return xp.stack([xp.sin(4.0 * a), xp.exp(-2.0 * b), 3.0 * a * c, b * b - c, xp.cos(5.0 * c) + a, xp.exp(a - b)])


@functools.cache
def target() -> np.ndarray:
    """[6] as far from the curves at MINIMUM as can be without moving the minimum: across their tangents."""
    t = np.concatenate([[1.0], MINIMUM, [0.0]])
    shifts = 1e-6 * np.eye(5)[1:-1]
    tangents = np.stack([(curves(t + s, np) - curves(t - s, np)) / 2e-6 for s in shifts])
    across = np.linalg.svd(tangents)[2][3:].sum(0)
    return curves(t, np) + 0.4 * across


def least_squares(_: object, t: jax.Array) -> Expansion:
    def of(t: jax.Array) -> jax.Array:
        return curves(t, jnp) - target()

    r, j = of(t), jax.jacfwd(of)(t)
    return Expansion(r @ r, 2.0 * j.T @ r, GaussNewton(2.0 * j.T @ j))


FEASIBLE = (1.0, 0.0, 1e-3, 4)
START = np.array([1.0, 0.8, 0.5, 0.3, 0.0])


def feasible() -> Feasible:
    return Feasible(*(jnp.asarray(x) for x in FEASIBLE))


def test_gauss_newton_reaches_scipy_s_minimiser() -> None:
    def value(x: np.ndarray) -> float:
        r = curves(np.concatenate([[1.0], x, [0.0]]), np) - target()
        return float(r @ r)

    wanted = optimize.minimize(value, START[1:-1], method="Nelder-Mead", options={"xatol": 1e-10, "fatol": 1e-14})
    wanted = optimize.minimize(value, wanted.x, method="BFGS", options={"gtol": 1e-9})
    np.testing.assert_allclose(wanted.x, MINIMUM, rtol=0, atol=1e-6)
    assert wanted.fun > 0.1  # its residuals do not vanish
    with jax.enable_x64(True):
        run = jax.jit(lambda start: trust_region.minimise(least_squares, flow(1.0), start, feasible(), tolerance=1e-9))
        found, state = jax.tree.map(np.asarray, run(jnp.asarray(START)))
    assert found.result == CONVERGED
    np.testing.assert_allclose(found.t[1:-1], wanted.x, rtol=0, atol=1e-6)
    assert float(found.value) <= wanted.fun + 1e-12
    assert state.completed  # its second-order part is not small, and was learnt


def test_what_is_learnt_satisfies_the_secant_condition() -> None:
    """After a step the completed Hessian takes the step to the change of the gradient."""
    with jax.enable_x64(True):
        step = jax.jit(lambda state: trust_region.step(least_squares, flow(1.0), state, feasible()))
        state, _ = step(trust_region.init(least_squares, flow(1.0), jnp.asarray(START), feasible()))
        assert not np.any(state.correction)  # nothing to compare with yet
        checked = 0
        for _ in range(6):
            before = state
            state, info = step(before)
            move = np.asarray(state.t - before.t)
            if not info.accepted or np.abs(move).max() < 1e-4:
                continue
            checked += 1
            completed = np.asarray(state.expansion.hessian.matrix + state.correction)
            change = np.asarray(state.expansion.gradient - before.expansion.gradient)
            np.testing.assert_allclose(completed @ move, change, rtol=0, atol=1e-9 * np.abs(change).max())
            np.testing.assert_array_equal(state.correction, state.correction.T)
            rank_one = np.linalg.svd(np.asarray(state.correction - before.correction), compute_uv=False)
            assert rank_one[0] > 0 and rank_one[1] < 1e-12 * rank_one[0]
    assert checked >= 3


def test_an_indefinite_dense_hessian_still_gives_descent() -> None:
    rng = np.random.default_rng(3)
    k, rows = 6, 50
    matrix = rng.normal(size=(rows, k, k))
    matrix = matrix + matrix.swapaxes(1, 2)
    gradient = rng.normal(size=(rows, k))
    gradient[:, [0, -1]] = 0.0
    values = np.linalg.eigvalsh(matrix[:, 1:-1, 1:-1])
    assert np.mean((values[:, 0] < 0) & (values[:, -1] > 0)) > 0.8
    held, none = jnp.zeros(k - 1, bool), jnp.zeros(k - 1)

    @jax.jit
    @jax.vmap
    def steps(gradient: jax.Array, matrix: jax.Array, damping: jax.Array) -> jax.Array:
        return face_step(Expansion(jnp.zeros(()), gradient, matrix), held, none, *jnp.zeros(2), damping)

    free, damped = (np.asarray(steps(gradient, matrix, np.full(rows, d))) for d in (0.0, 10.0))
    for move in (free, damped):
        assert np.all(np.isfinite(move)) and not move[:, [0, -1]].any()
        assert np.all(np.sum(gradient * move, axis=1) < 0)
    size = np.sqrt(np.abs(np.diagonal(matrix, axis1=1, axis2=2)))
    assert np.all(np.linalg.norm(size * damped, axis=1) < np.linalg.norm(size * free, axis=1))
