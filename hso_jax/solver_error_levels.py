"""The search on the solver's error, as a program: its lanes, their starts, the descent from these, free coefficients.

For a non-stationary solver nodes and coefficients are then refined together: started from a known solver on its own
best nodes, with a deviation from that solver's coefficients that is searched and penalised. At zero deviation it is the
known solver.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from hso_jax import solvers
from hso_jax.batch import by_arguments
from hso_jax.checks import brief, number, whole
from hso_jax.error import (
    OF_A_MODEL,
    Chunks,
    error_data,
    error_gradient,
    in_chunks,
    mean_error,
    squared_errors,
)
from hso_jax.lane import Lane
from hso_jax.lower import quasi_newton
from hso_jax.lower.quasi_newton import SPACING, Range, lams_of, logits_of, nodes_of
from hso_jax.lower.trust_region import MAX_STEPS, NOT_FINITE
from hso_jax.noise import first_lam, s_of_lam
from hso_jax.problems.model_error import ModelError
from hso_jax.solvers.nonstationary import MAX_HISTORY, amplification, coefficients_of, weights_of
from hso_jax.solvers.weights import grid

CHUNK = 32
"""Samples that go through a solver at once; divides the samples a problem unless they are fewer."""

START_SHIFTS = (1.5, 3.0)
"""Of the starts: equal steps of a rectified flow's time. Trailing timesteps of Stable Diffusion come close to the
larger, and strong guidance may have its best minimum there."""

Column = Any
"""A NumPy array of all lanes outside of the program, the traced value of one lane inside."""


class LaneArrays(NamedTuple):
    """Lanes as arrays with a leading axis [L].

    Attributes:
        data: row of the bank of exact solutions.
        solver: place among the solvers' names.
        nfe, nodes: integers.
        clean, free: whether the last step goes to clean data; whether the first node is free.
        top, floor: largest and smallest s of a node.
        starts: [L, S, K] nodes in s to start from.
        penalty, growth: see `Coefficients`; of the non-stationary solver's lanes alone.
    """

    data: Column
    solver: Column
    nfe: Column
    nodes: Column
    clean: Column
    free: Column
    top: Column
    floor: Column
    starts: Column
    penalty: Column
    growth: Column

    @property
    def range(self) -> Range:
        """Where a lane's nodes may be."""
        return Range(self.top, self.floor, self.free, self.nodes)


def first_lam_of(lane: Lane) -> float:
    """Lam of the first node, or the most it may be where it is free; the noise end for methods without `first`."""
    if getattr(lane.method, "first", "end") == "auto":
        return first_lam(lane.noise, lane.nfe)
    return lane.noise.noise_end


def check_room(lane: Lane) -> None:
    """Raises ValueError unless the nodes fit between the noise schedule's ends, `SPACING` apart in s."""
    room = s_of_lam(first_lam_of(lane)) - s_of_lam(lane.noise.data_end)
    if lane.nodes * SPACING > room:
        raise ValueError(
            f"nfe is {lane.nfe}: {lane.nodes} nodes at least {SPACING:g} apart in s do not fit {room:.4g}; "
            f"use at most {int(room / SPACING)}"
        )


def data_of_lane(lane: Lane) -> Chunks:
    """What a checked lane's schedules are measured on."""
    m = lane.method
    return error_data(
        lane.noise.noise_end, m.guidance, prediction=lane.noise.prediction, model_error=m.model_error,
        problems=m.problems, detail=m.detail, power=m.power, samples=m.samples, seed=m.noise_seed,
    )  # fmt: skip


def pack(lanes: Sequence[Lane], names: Sequence[str]) -> tuple[LaneArrays, Chunks, np.ndarray]:
    """Checked lanes as arrays with the usual starts, their bank of exact solutions, and [L] the inaccuracies of these.

    The distinct solutions of a bank share all but `OF_A_MODEL`, which have a leading axis.
    """
    methods = [lane.method for lane in lanes]
    dtype = np.dtype(jax.dtypes.canonicalize_dtype(float))
    error = methods[0].model_error or ModelError()
    keys = [(x.noise.noise_end, x.method.guidance, error.numbers(x.noise.prediction)) for x in lanes]
    distinct = dict(zip(keys, lanes, strict=True))
    data = [data_of_lane(lane) for lane in distinct.values()]
    cut = [in_chunks(d, min(CHUNK, d.noise.shape[1])) for d in data]
    stacks: dict[str, Any] = {name: jnp.stack([getattr(c, name) for c in cut]) for name in OF_A_MODEL}
    bank = cut[0]._replace(**stacks)
    columns = {
        "data": np.array([list(distinct).index(key) for key in keys], np.int32),
        "solver": np.array([list(names).index(m.solver) for m in methods], np.int32),
        "nfe": np.array([lane.nfe for lane in lanes], np.int32),
        "nodes": np.array([lane.nodes for lane in lanes], np.int32),
        "clean": np.array([lane.layout == "node" for lane in lanes]),
        "free": np.array([m.first == "free" for m in methods]),
        "top": np.array([s_of_lam(first_lam_of(lane)) for lane in lanes], dtype),
        "floor": np.array([s_of_lam(lane.noise.data_end) for lane in lanes], dtype),
        # Two nodes at least: a schedule of one has no gap, and arrays of length 0 have no largest entry.
        "starts": _starts(lanes, max(2, *(lane.nodes for lane in lanes))).astype(dtype),
        "penalty": np.zeros(len(lanes), dtype),
        "growth": np.ones(len(lanes), dtype),
    }
    inaccuracy = np.array([float(d.inaccuracy) for d in data])[columns["data"]]
    return LaneArrays(**columns), jax.tree.map(np.asarray, bank), inaccuracy


def _starts(lanes: Sequence[Lane], count: int) -> np.ndarray:
    """[L, S, K] equal steps of a flow's time with each of `START_SHIFTS`, in s; beyond a lane's nodes is padding."""
    found = np.empty((len(lanes), len(START_SHIFTS), count))
    for starts, lane in zip(found, lanes, strict=True):
        top, floor = s_of_lam(first_lam_of(lane)), s_of_lam(lane.noise.data_end)
        u, inside = np.maximum(1.0 - np.arange(count) / lane.nodes, 0.0), min(top, 1.0 - SPACING)
        for i, shift in enumerate(START_SHIFTS):
            starts[i] = np.clip(shift * u / (1.0 + (shift - 1.0) * u) * inside, floor, inside)
        if getattr(lane.method, "first", "end") != "free":
            starts[:, 0] = top
    return found


class Refinement(NamedTuple):
    """How hard the starts are refined on the error; all static.

    Attributes:
        more: chunks of samples that each start is refined on, of which the best on all samples is refined further.
        steps: at most, of each refinement of a start.
        final_steps: at most, of the last one on all samples.
    """

    more: int = 36
    steps: int = 20
    final_steps: int = 60


class Found(NamedTuple):
    """Result of a lane.

    Attributes:
        nodes: [K] in s; the real ones first.
        coefficients: [K, H - 1] of a non-stationary solver, else None.
        error: root mean square over all samples and dimensions, without any penalty.
        amplification: of a non-stationary solver, see `solvers.amplification`.
        result: code, an index into `results.RESULTS`, of what placed the nodes.
        steps: of the last refinement, of both for a non-stationary solver.
        stationarity: see the lower level that placed the nodes.
    """

    nodes: Array
    coefficients: Array | None
    error: Array
    amplification: Array | None
    result: Array
    steps: Array
    stationarity: Array


def data_of(bank: Chunks, lane: LaneArrays) -> Chunks:
    """The lane's samples."""
    return bank._replace(**{name: getattr(bank, name)[lane.data] for name in OF_A_MODEL})


def weigh(names: Sequence[str], lane: LaneArrays, lams: Array) -> solvers.Weights:
    """The weights of the lane's solver on nodes lams [K], one of `names`; of one shape for all of them."""
    end = end_of(lane, lams)
    makers = [functools.partial(solvers.weights, name, lams, end=end, nfe=lane.nfe) for name in names]
    return makers[0]() if len(makers) == 1 else jax.lax.switch(lane.solver, solvers.alike(makers))


def end_of(lane: LaneArrays, lams: Array) -> Array:
    """Where sampling stops: clean data, or the node after the evaluated ones."""
    return jnp.where(lane.clean, jnp.inf, lams[jnp.minimum(lane.nfe, lams.shape[0] - 1)])


EVEN, UNEVEN = 2.0, 3.0
"""Ratio that neighbouring gaps may have for nothing, and the weight of the squared excess of its logarithm."""


def unevenness(lane: LaneArrays, lams: Array) -> Array:
    """What a search adds to the logarithm of the squared error where neighbouring gaps in lam [K] differ much.

    Without it nodes end in pairs, at minima that hold for these problems alone. A ratio of 2.5 must be worth 7% of the
    error. Gaps beside lam = -inf are free.
    """
    i = jnp.arange(lams.shape[0])
    real = (i < lane.nodes) & ((i > 0) | (lane.top < 1.0) | lane.free)
    logs = jnp.log(jnp.maximum(jnp.diff(jnp.where(real, lams, i)), 1e-6))
    excess = jnp.maximum(jnp.abs(jnp.diff(logs)) - math.log(EVEN), 0.0)
    return UNEVEN * jnp.sum(jnp.where(real[:-2] & real[1:-1] & real[2:], excess, 0.0) ** 2)


def log_error(
    names: Sequence[str], lane: LaneArrays, data: Chunks, chunks: Array | int, axis: str | None = None
) -> quasi_newton.Function:
    """Log of the mean squared error, and the unevenness, with the gradient in logits y [K + 1]; over all devices."""

    def function(y: Array) -> tuple[Array, Array]:
        lams, pull = jax.vjp(lambda y: lams_of(lane.range, nodes_of(lane.range, y)), y)
        value, gradient = error_gradient(data, functools.partial(weigh, names, lane), lams, chunks, axis)
        uneven, slope = jax.value_and_grad(functools.partial(unevenness, lane))(lams)
        return value + uneven, pull(gradient + slope)[0]

    return function


@by_arguments
def search_lane(
    names: tuple[str, ...], refinement: Refinement, axis: str | None, added: tuple[solvers.Solver, ...]
) -> Callable[[LaneArrays, Chunks], Found]:
    """The search of one lane. Pure; map it over lanes.

    `added` is `solvers.added` of the names: with another function behind a name it is another search. So below.

    Each of its starts is refined on a part of the samples and judged on all, the best of them refined on all. A
    judgement is a refinement of no steps: the error is then compiled once in this loop.
    """
    more, steps, final_steps = refinement
    refining, judging, last = range(3)

    def search(lane: LaneArrays, bank: Chunks) -> Found:
        data, every, many = data_of(bank, lane), bank.problem.shape[0], len(lane.starts)

        def job(before: tuple[Array, Found], row: tuple[Array, ...]) -> tuple[tuple[Array, Found], None]:
            y, best = before
            start, role, chunks, limit = row
            begin = jnp.where(role == refining, start, jnp.where(role == judging, y, logits_of(lane.range, best.nodes)))
            found = quasi_newton.solve(log_error(names, lane, data, chunks, axis), begin, limit)
            value = jnp.exp(found.value)
            better = (role == last) | ((role == judging) & (value < best.error))
            new = Found(nodes_of(lane.range, found.y), None, value, None, found.result, found.steps, found.stationarity)
            return (found.y, jax.tree.map(lambda a, b: jnp.where(better, a, b), new, best)), None

        roles = jnp.array([refining, judging] * many + [last])
        chunks = jnp.array([min(more, every), every] * many + [every])
        limits = jnp.array([steps, 0] * many + [final_steps])
        begins = jax.vmap(lambda nodes: logits_of(lane.range, nodes))(lane.starts)
        rows = jnp.concatenate([jnp.repeat(begins, 2, 0), begins[:1]]), roles, chunks, limits
        inf = jnp.full((), jnp.inf, lane.top.dtype)
        none = Found(lane.starts[0], None, inf, None, jnp.asarray(MAX_STEPS), jnp.asarray(0), inf)
        (_, found), _ = jax.lax.scan(job, (begins[0], none), rows)
        result = jnp.where(jnp.isfinite(found.error), found.result, NOT_FINITE)
        uneven = unevenness(lane, lams_of(lane.range, found.nodes))
        return found._replace(error=jnp.exp(0.5 * (jnp.log(found.error) - uneven)), result=result)

    return search


_STIFF = 10.0
"""Weight of the squared excess of the amplification's logarithm."""


class Coefficients(NamedTuple):
    """Options of the search for a non-stationary solver.

    Attributes:
        history: H, predictions that a step combines, its own included.
        penalty: on the sum of squared deviations from the known solver's coefficients, in the logarithm of the error.
            By default it grows with the model's error, `PENALTY_OF_ERROR`.
        growth: how often the known solver's amplification of errors in the predictions (see `solvers.amplification`)
            the new one's may be; what exceeds it is penalised.
        start: the known solver that it starts from and is drawn to. By default "unipc-3"; under guidance, where third
            order turns unstable, "dpmpp-2m".
        known: solvers that it is to beat, each with its own best nodes; `start` is one of them anyway.
        gain: where the error is not this share below the best known solver's, that one is returned instead.
        steps: at most, of the search on a part of the samples.
        final_steps: at most, of the last one on all samples.
        part: the chunks of that part, as `Refinement.more`.
    """

    history: int = 4
    penalty: float | None = None
    growth: float = 2.0
    start: str | None = None
    known: tuple[str, ...] = ("dpmpp-2m", "unipc-3")
    gain: float = 0.03
    steps: int = 60
    final_steps: int = 30
    part: int = 36


PENALTY, PENALTY_OF_ERROR = 0.1, 0.075
"""Of the default penalty: without an error of the model, and for each unit of that error's variance in x_0 at the noise
end. A model's own error is not what the problems' is; coefficients fitted to a large one do not carry over."""


def start_of(guidance: float) -> str:
    """The default known solver to start from."""
    return "unipc-3" if guidance == 1.0 else "dpmpp-2m"


def check_coefficients_options(options: object, size: float, guidance: float) -> Coefficients:
    """The options with their numbers plain, penalty and start filled in. Raises ValueError.

    `size` is that of the model's error in x_0 at the noise end, in standard deviations of the data.
    """
    options = Coefficients() if options is None else options
    if not isinstance(options, Coefficients):
        raise ValueError(f"coefficients is {brief(options)}; need a Coefficients(...)")
    history = whole("coefficients.history", options.history, 2, MAX_HISTORY)
    penalty = PENALTY + PENALTY_OF_ERROR * size * size if options.penalty is None else options.penalty
    penalty = number("coefficients.penalty", penalty, low=0.0, high=1e6, closed=True)
    growth = number("coefficients.growth", options.growth, low=1.0, high=1e6, closed=True)
    gain = number("coefficients.gain", options.gain, low=0.0, high=1.0, closed=True)
    steps, final_steps, part = (
        whole(f"coefficients.{name}", getattr(options, name), 1, 10**6) for name in ("steps", "final_steps", "part")
    )
    start = solvers.canonical(start_of(guidance) if options.start is None else options.start)
    if (older := older_of(start)) >= history:
        raise ValueError(
            f"coefficients.start is {start!r}, which combines {older + 1} predictions; "
            f"coefficients.history is {history}"
        )
    if not isinstance(options.known, (tuple, list)):
        raise ValueError(
            f"coefficients.known is {brief(options.known)}; need names in a tuple: ('dpmpp-2m', 'unipc-3')"
        )
    known = tuple(dict.fromkeys((start, *(solvers.canonical(name) for name in options.known))))
    for name in known:
        older_of(name)
    return Coefficients(history, penalty, growth, start, known, gain, steps, final_steps, part)


def older_of(name: str) -> int:
    """Earlier predictions that a known solver combines. Raises ValueError for one of two evaluations a step."""
    solver = solvers.find(name)
    if solver.calls != 1:
        raise ValueError(f"coefficients has {name!r}, which is no multistep solver; use 'dpmpp-2m', 'unipc-3', ...")
    return solver.order - 1 if solver.older is None else solver.older


@by_arguments
def search_nonstationary(
    options: Coefficients, axis: str | None, added: tuple[solvers.Solver, ...]
) -> Callable[[LaneArrays, Chunks], Found]:
    """The search of one lane, which has the nodes that the known solver has found. Pure; map it over lanes."""
    assert options.start is not None
    start, history, part = options.start, options.history, options.part

    def search(lane: LaneArrays, bank: Chunks) -> Found:
        data = data_of(bank, lane)
        count, older = lane.starts.shape[-1], history - 1

        def made(z: Array) -> solvers.Weights:
            lams = lams_of(lane.range, nodes_of(lane.range, z[: count + 1]))
            return deviating_weights(start, lane, lams, z[count + 1 :].reshape(count, older))

        begin = jnp.concatenate([logits_of(lane.range, lane.starts[0]), jnp.zeros(count * older, lane.top.dtype)])
        limit = jnp.log(lane.growth * amplification(made(begin)))

        def penalty(z: Array) -> Array:
            excess = jnp.maximum(jnp.log(amplification(made(z))) - limit, 0.0)
            uneven = unevenness(lane, lams_of(lane.range, nodes_of(lane.range, z[: count + 1])))
            return uneven + 2.0 * (lane.penalty * jnp.sum(z[count + 1 :] ** 2) + _STIFF * excess**2)

        every = bank.problem.shape[0]

        def stage(carry: tuple[Array, Array], row: tuple[Array, Array]) -> tuple[tuple[Array, Array], Any]:
            chunks, most = row

            def function(z: Array) -> tuple[Array, Array]:
                value, gradient = error_gradient(data, made, z, chunks, axis)
                more, slope = jax.value_and_grad(penalty)(z)
                return value + more, gradient + slope

            found = quasi_newton.solve(function, carry[0], most, carry[1])
            return (found.y, found.hessian), found

        rows = jnp.array([min(part, every), every]), jnp.array([options.steps, options.final_steps])
        _, stages = jax.lax.scan(stage, (begin, jnp.eye(len(begin), dtype=begin.dtype)), rows)
        found = jax.tree.map(lambda x: x[-1], stages)
        nodes = nodes_of(lane.range, found.y[: count + 1])
        weights = made(found.y)
        lams = lams_of(lane.range, nodes)
        coefficients = coefficients_of(weights, grid(lams, end_of(lane, lams), lane.nfe), history)
        error = jnp.exp(0.5 * (found.value - penalty(found.y)))
        result = jnp.where(jnp.isfinite(error), found.result, NOT_FINITE)
        grown = amplification(weights)
        return Found(nodes, coefficients, error, grown, result, stages.steps.sum(), found.stationarity)

    return search


def deviating_weights(start: str, lane: LaneArrays, lams: Array, deviation: Array) -> solvers.Weights:
    """The weights on nodes lams [K] of the known solver `start` with a deviation [K, H - 1] added."""
    steps = grid(lams, end_of(lane, lams), lane.nfe)
    return weights_of(steps, deviation + coefficients_of(weigh((start,), lane, lams), steps, deviation.shape[1] + 1))


@by_arguments
def measure_lane(
    names: tuple[str, ...], axis: str | None, added: tuple[solvers.Solver, ...]
) -> Callable[[tuple[LaneArrays, Array], Chunks], Array]:
    """((lane, nodes lams [K]), bank) -> [S] root-mean-square error of each solver there, on all samples."""

    def measure(row: tuple[LaneArrays, Array], bank: Chunks) -> Array:
        lane, lams = row
        data, chunks = data_of(bank, lane), bank.problem.shape[0]

        def one(solver: Array) -> Array:
            errors = squared_errors(data, weigh(names, lane._replace(solver=solver), lams), jnp.asarray(chunks))
            return jnp.sqrt(mean_error(data, errors, chunks, axis))

        return jax.lax.map(one, jnp.arange(len(names)))

    return measure
