"""The solver's error, its gradient and curvature, against plain sampling and finite differences, in float64."""

from __future__ import annotations

import functools
import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import solver_error_cells as shared
from solver_error_cells import SD, SD3, deviations, small_family

from hso_jax import SolverError, error, preset, solver_error_levels, solvers
from hso_jax.compiling import compiler_options
from hso_jax.error import PURE, Chunks, error_data, squared_errors
from hso_jax.lane import Lane
from hso_jax.lower.quasi_newton import SPACING, lams_of, logits_of, nodes_of
from hso_jax.lower.trust_region import Expansion, face_step
from hso_jax.noise import lam_of_s, s_of_lam
from hso_jax.problems import denoiser, family, pick, spread
from hso_jax.searches import checked
from hso_jax.solver_error_levels import LaneArrays, data_of, log_error, pack, weigh

NAMES = ("ddim", "dpmpp-2m", "unipc-3")
NFE, COUNT = 3, 6  # real nodes are 3 or 4, the rest is padding
STARTS = {"free": (SD3, "free"), "pure noise": (SD3, "end"), "finite end": (SD, "end")}
NODES = np.array([0.93, 0.61, 0.34, 0.12])
CELLS = [
    (name, layout, start, (1.0, 5.0)[(i + j + k) % 2])
    for (i, name), (j, layout), (k, start) in itertools.product(
        enumerate(NAMES), enumerate(("node", "interval")), enumerate(STARTS)
    )
]


class Cell(NamedTuple):
    """One lane with what the oracle needs of it."""

    lane: Lane
    arrays: LaneArrays
    data: Chunks
    y: np.ndarray
    """[COUNT + 1] logits of the gaps."""

    @property
    def gaps(self) -> int:
        """How many of the logits stand for a gap."""
        return self.lane.nodes + (self.lane.method.first == "free")


@functools.cache
def cells() -> list[Cell]:
    with jax.enable_x64(True):
        lanes = []
        for solver, layout, start, weight in CELLS:
            noise, first = STARTS[start]
            lanes.append(shared.lane(noise, NFE, layout, solver, weight, first))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(solver_error_levels, "CHUNK", 4)
            arrays, bank, _ = pack(lanes, NAMES)
        made = []
        for i, lane in enumerate(lanes):
            one = jax.tree.map(lambda x, i=i: x[i], arrays)
            data = data_of(bank, one)
            nodes = np.full(COUNT, 0.5)
            nodes[:4] = NODES
            if lane.method.first == "end":
                nodes[0] = s_of_lam(lane.noise.noise_end)
            y = np.asarray(logits_of(one.range, jnp.asarray(nodes)))
            made.append(Cell(lane, one, data, y))
    return made


QUICK = compiler_options(jax.default_backend())  # the compilation is most of the time


@functools.partial(jax.jit, compiler_options=QUICK)
def slope(lane: LaneArrays, data: Chunks, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    return log_error(NAMES, lane, data, data.problem.shape[0])(y)


@functools.partial(jax.jit, static_argnames="solver", compiler_options=QUICK)
def plain(data: Chunks, lams: jax.Array, end: jax.Array, solver: str) -> jax.Array:
    """Residuals [Q B D] of `solvers.sample` on exactly N nodes, relative to the data's standard deviation."""
    scale = jnp.asarray(deviations())[data.problem, None, None]

    def one(i: jax.Array) -> jax.Array:
        problem = pick(data.problems, data.problem[i])
        return solvers.sample(denoiser(problem, data.guidance), lams, data.noise[i], solver=solver, end=end)

    return ((jax.lax.map(one, jnp.arange(data.problem.shape[0])) - data.truth) / scale).reshape(-1)


def nodes_by_hand(cell: Cell, y: np.ndarray) -> np.ndarray:
    """[nodes] in s: gaps of at least SPACING between the model's ends."""
    free = cell.lane.method.first == "free"
    upper = s_of_lam(cell.lane.noise.noise_end)
    upper = min(upper + SPACING, 1.0) if free else upper
    lower = max(s_of_lam(cell.lane.noise.data_end) - SPACING, 0.0)
    parts = np.exp(y[: cell.gaps])
    gaps = SPACING + (upper - lower - SPACING * cell.gaps) * parts / parts.sum()
    nodes = upper - np.cumsum(gaps)[:-1]
    return nodes if free else np.concatenate([[upper], nodes])


def lams_by_hand(cell: Cell, y: np.ndarray) -> np.ndarray:
    lams = lam_of_s(np.minimum(nodes_by_hand(cell, y), 1.0 - 1e-12))
    if cell.lane.method.first == "end":
        lams[0] = cell.lane.noise.noise_end
    return lams


def value_by_hand(cell: Cell, y: np.ndarray) -> float:
    """Log of the mean square, and 3 times the squared excess of the log ratios of neighbouring gaps over log 2."""
    lams = lams_by_hand(cell, y)
    gaps = np.diff(lams[np.isfinite(lams)])
    excess = np.maximum(np.abs(np.log(gaps[1:] / gaps[:-1])) - np.log(2.0), 0.0)
    return float(np.log(np.mean(residual(cell, y) ** 2)) + 3.0 * np.sum(excess**2))


def residual(cell: Cell, y: np.ndarray) -> np.ndarray:
    """Residuals of logits."""
    lams = lams_by_hand(cell, y)
    end = np.inf if cell.lane.layout == "node" else lams[-1]
    return np.asarray(plain(cell.data, jnp.asarray(lams[:NFE]), jnp.asarray(end), cell.lane.method.solver))


def differences(cell: Cell, h: float = 1e-3) -> np.ndarray:
    """[gaps] the derivative of the value, by central differences of order 4."""
    shifts = h * np.eye(len(cell.y))[: cell.gaps]
    far, near = (
        np.array([value_by_hand(cell, cell.y + a * s) - value_by_hand(cell, cell.y - a * s) for s in shifts])
        for a in (2, 1)
    )
    return (8.0 * near - far) / (12.0 * h)


@pytest.mark.parametrize("index", range(len(CELLS)), ids=["-".join(map(str, cell)) for cell in CELLS])
def test_value_and_gradient(index: int) -> None:
    """Padded nodes and the switch over solvers are in the tested side only."""
    cell = cells()[index]
    with jax.enable_x64(True):
        value, gradient = (np.asarray(x) for x in slope(cell.arrays, cell.data, jnp.asarray(cell.y)))
        known, wanted = value_by_hand(cell, cell.y), differences(cell)
    assert value == pytest.approx(known, rel=1e-10)
    assert np.abs(wanted).min() > 0 and not gradient[cell.gaps :].any()
    np.testing.assert_allclose(gradient[: cell.gaps], wanted, rtol=1e-6, atol=1e-6 * np.abs(wanted).max())


def test_all_chunks_at_once_equal_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all chunks, and of the first three of four."""
    cell = cells()[CELLS.index(("dpmpp-2m", "interval", "pure noise", 5.0))]

    def measured(chunks: int) -> list[np.ndarray]:
        def both(lane: LaneArrays, data: Chunks, y: jax.Array) -> tuple[jax.Array, ...]:
            lams = lams_of(lane.range, nodes_of(lane.range, y))
            weights = functools.partial(weigh, NAMES, lane)
            return squared_errors(data, weights(lams), chunks), *error.error_gradient(data, weights, lams, chunks)

        found = jax.jit(both, compiler_options=QUICK)(cell.arrays, cell.data, jnp.asarray(cell.y))
        return [np.asarray(x) for x in found]

    with jax.enable_x64(True):
        for chunks in (3, 4):
            monkeypatch.setattr(error, "platform", lambda: "cpu")
            loop = measured(chunks)
            monkeypatch.setattr(error, "platform", lambda: "gpu")
            for got, wanted in zip(measured(chunks), loop, strict=True):
                np.testing.assert_allclose(got, wanted, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("cell", CELLS[:6], ids=lambda cell: "-".join(map(str, cell)))
def test_logits_and_nodes_are_inverse(cell: tuple) -> None:
    cell = cells()[CELLS.index(cell)]
    with jax.enable_x64(True):
        nodes = np.asarray(nodes_of(cell.arrays.range, jnp.asarray(cell.y)))[: cell.lane.nodes]
        again = np.asarray(logits_of(cell.arrays.range, nodes_of(cell.arrays.range, jnp.asarray(cell.y))))
        shifted = np.asarray(nodes_of(cell.arrays.range, jnp.asarray(cell.y + 3.0)))[: cell.lane.nodes]
    begin = int(cell.lane.method.first == "end")
    np.testing.assert_allclose(nodes[begin:], NODES[begin : cell.lane.nodes], rtol=0, atol=1e-12)
    np.testing.assert_allclose(nodes, nodes_by_hand(cell, cell.y), rtol=0, atol=1e-12)
    np.testing.assert_allclose(again, cell.y, rtol=0, atol=1e-9)
    np.testing.assert_allclose(shifted, nodes, rtol=0, atol=1e-12)  # only differences of logits count


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


def test_another_seed_draws_other_noise() -> None:
    with jax.enable_x64(True):
        some = [error_data(-3.0, problems=small_family(), samples=8, seed=seed) for seed in (0, 0, 1)]
    first, again, other = (jax.tree.leaves(data) for data in some)
    assert all(np.array_equal(x, y) for x, y in zip(first, again, strict=True))
    assert not np.array_equal(some[0].noise, some[2].noise) and not np.array_equal(some[0].truth, some[2].truth)
    assert np.array_equal(some[0].importance, some[2].importance)
    assert len(other) == len(first)


@pytest.mark.parametrize("detail", [0.0, 0.5, 1.0])
def test_detail_weighs_what_varies_little(detail: float) -> None:
    """By variance^-detail; the data's own variance weighs 1 in all."""
    with jax.enable_x64(True):
        data = error_data(-3.0, problems=small_family(), samples=2, detail=detail)
    variances, counts = spread(data.problems)
    wanted = counts * variances**-detail
    np.testing.assert_allclose(data.importance, wanted / (wanted * variances).sum(1, keepdims=True), rtol=1e-5)


def test_the_same_problems_are_solved_exactly_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However often they are asked for, in a list of the caller's too; other problems anew."""
    solved, real = [], error._exact
    monkeypatch.setattr(error, "_exact", lambda *given: solved.append(given) or real(*given))
    problems = [jax.tree.map(lambda leaf, i=i: leaf[i], small_family()) for i in range(2)]
    first = error_data(-2.5, problems=problems, samples=4)
    assert error_data(-2.5, problems=list(problems), samples=4) is first and len(solved) == 1
    error_data(-2.5, problems=problems[:1], samples=4)
    error_data(-2.5, problems=problems, samples=8)
    assert len(solved) == 3


def test_problems_that_are_changed_in_place_are_solved_anew() -> None:
    problems = jax.tree.map(np.array, small_family())
    before = error_data(-2.5, problems=problems, samples=4)
    problems.means[:] *= 2.0
    assert not np.allclose(error_data(-2.5, problems=problems, samples=4).truth, before.truth)


def test_samples_begin_as_pure_noise_or_as_noised_data() -> None:
    """Where a noise end leaves much of the data, samples begin with noised data."""
    lam, problems = PURE + 3.0, family(range(3))
    pure, deep, shallow = (
        error_data(x, problems=problems, samples=256, steps=16) for x in (-math.inf, PURE - 0.1, lam)
    )
    alpha2 = 1.0 / (1.0 + np.exp(-2.0 * lam))
    variance = np.asarray(pure.truth).var(1)  # of the class
    assert abs(float(np.asarray(deep.noise).var()) - 1.0) < 0.05
    wanted = alpha2 * variance.mean(1) + 1.0 - alpha2
    np.testing.assert_allclose(np.asarray(shallow.noise).var(1).mean(1), wanted, rtol=0.15)
    assert np.abs(wanted - 1.0).max() > 0.3  # so that pure noise would not do
    again = error_data(lam, problems=problems, samples=256, steps=16)
    np.testing.assert_array_equal(again.noise, shallow.noise)


def test_flow_models_have_problems_of_their_own() -> None:
    """Wider, with more white noise; and lanes of both kinds are never searched on one bank."""
    usual, of_flows = error.default_family("v_prediction"), error.default_family("flow_prediction")
    assert error.default_family("edm") is usual
    (least, total), (more, wider) = ((v[c > 0].min(), v.sum()) for v, c in (spread(bank) for bank in (usual, of_flows)))
    assert (least, more) == pytest.approx((0.2, 0.4), rel=0.05) and min(least - 0.2, more - 0.4) >= 0 and wider > total
    v, flow = (Lane(preset(name), 4, method=SolverError()) for name in ("sd21", "sd3-medium"))
    groups = [lane.method.group(lane) for lane in checked([v, flow, flow._replace(noise=preset("flux-dev"))])]
    assert groups[0] != groups[1] == groups[2]


def test_lanes_start_at_equal_steps_of_a_flow_s_time() -> None:
    """Shift 1.5 and 3, from the first node on, which is the noise end unless it is free; repeated beyond a lane's."""
    flow, floor = preset("sd3-medium"), s_of_lam(preset("sd3-medium").data_end)
    lanes = [Lane(flow, n, method=shared.method("ddim", 1.0, first)) for n, first in ((4, "end"), (2, "free"))]
    starts = pack(checked(lanes), ("ddim",))[0].starts
    wanted = [[1.0, 9 / 11, 3 / 5, 1 / 3], [1.0, 0.9, 0.75, 0.5]]
    np.testing.assert_allclose(starts[0], wanted, rtol=2 * SPACING)
    assert np.all(starts[0][:, 0] == 1.0)
    np.testing.assert_allclose(
        starts[1], [[1 - SPACING, 0.6, floor, floor], [1 - SPACING, 0.75, floor, floor]], rtol=2e-3
    )
