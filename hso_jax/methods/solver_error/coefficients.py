"""Nodes and coefficients together: the lower level of the search for a non-stationary solver.

Started from a known solver on its own best nodes. The coefficients are that solver's on the nodes as they move, plus a
deviation; the deviation is what is searched, and what is penalised. At zero deviation it is the known solver.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from hso_jax import solvers
from hso_jax.checks import brief, number, whole
from hso_jax.lower import quasi_newton
from hso_jax.lower.gaps import lams_of, logits_of, nodes_of
from hso_jax.lower.results import NOT_FINITE
from hso_jax.methods.solver_error.lanes import LaneArrays
from hso_jax.methods.solver_error.search import data_of, end_of, weigh
from hso_jax.objectives.solver_error import Chunks, error_gradient
from hso_jax.solvers.nonstationary import MOST, amplification, coefficients_of, weights_of
from hso_jax.solvers.weights import grid

_STIFF = 10.0
"""Weight of the squared excess of the amplification's logarithm."""


class Coefficients(NamedTuple):
    """Options of the search for a non-stationary solver.

    Attributes:
        history: H, predictions that a step combines, its own included.
        penalty: on the sum of squared deviations from the known solver's coefficients, in the logarithm of the error.
            By default `penalty_of` the model's error.
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
"""Of the default penalty: without an error of the model, and for each unit of that error's variance."""


def penalty_of(size: float) -> float:
    """The default penalty for a model whose predicted x_0 is off by `size` standard deviations at the noise end.

    A model's own error is not what the problems' is; coefficients fitted to a large one do not carry over.
    """
    return PENALTY + PENALTY_OF_ERROR * size * size


def start_of(guidance: float) -> str:
    """The default known solver to start from."""
    return "unipc-3" if guidance == 1.0 else "dpmpp-2m"


def check_coefficients_options(options: object, size: float, guidance: float) -> Coefficients:
    """The options with their numbers plain, penalty and start filled in; `size` as in `penalty_of`.

    Raises:
        ValueError: naming the value that is wrong and what would be right.
    """
    options = Coefficients() if options is None else options
    if not isinstance(options, Coefficients):
        raise ValueError(f"coefficients is {brief(options)}; need a Coefficients(...)")
    history = whole("coefficients.history", options.history, 2, MOST)
    penalty = penalty_of(size) if options.penalty is None else options.penalty
    penalty = number("coefficients.penalty", penalty, low=0.0, high=1e6, closed=True)
    growth = number("coefficients.growth", options.growth, low=1.0, high=1e6, closed=True)
    gain = number("coefficients.gain", options.gain, low=0.0, high=1.0, closed=True)
    start = solvers.canonical(start_of(guidance) if options.start is None else options.start)
    if older_of(start) >= history:
        raise ValueError(
            f"coefficients.start is {start!r}, which combines {older_of(start) + 1} predictions; "
            f"coefficients.history is {history}"
        )
    if not isinstance(options.known, (tuple, list)):
        raise ValueError(
            f"coefficients.known is {brief(options.known)}; need names in a tuple: ('dpmpp-2m', 'unipc-3')"
        )
    known = tuple(dict.fromkeys((start, *(solvers.canonical(name) for name in options.known))))
    for name in known:
        older_of(name)
    counts = {
        name: whole(f"coefficients.{name}", getattr(options, name), 1, 10**6)
        for name in ("steps", "final_steps", "part")
    }
    return Coefficients(history, penalty, growth, start, known, gain, **counts)


def older_of(name: str) -> int:
    """Earlier predictions that a known solver combines. Raises ValueError for one of two evaluations a step."""
    solver = solvers.find(name)
    if solver.calls != 1:
        raise ValueError(f"coefficients has {name!r}, which is no multistep solver; use 'dpmpp-2m', 'unipc-3', ...")
    return {"ddim": 0, "dpmpp-2m": 1, "dpmpp-3m": 2}.get(name, solver.order - 1)


class FreeFound(NamedTuple):
    """Result of a lane.

    Attributes:
        nodes: [K] in s; the real ones first.
        coefficients: [K, H - 1].
        error: root mean square over all samples and dimensions, without the penalty.
        amplification: see `solvers.amplification`.
        result, steps, stationarity: see `quasi_newton.Solution`.
    """

    nodes: Array
    coefficients: Array
    error: Array
    amplification: Array
    result: Array
    steps: Array
    stationarity: Array


@functools.lru_cache(maxsize=64)
def search_free(options: Coefficients, axis: str | None) -> Callable[[LaneArrays, Chunks], FreeFound]:
    """The search of one lane, which has the nodes that the known solver has found. Pure; map it over lanes."""
    assert options.start is not None
    start, history, part = options.start, options.history, options.part

    def search(lane: LaneArrays, bank: Chunks) -> FreeFound:
        data = data_of(bank, lane)
        count, older = lane.starts.shape[-1], history - 1

        def made(z: Array) -> solvers.Weights:
            lams = lams_of(lane.range, nodes_of(lane.range, z[: count + 1]))
            return free_weights(start, lane, lams, z[count + 1 :].reshape(count, older))

        begin = jnp.concatenate([logits_of(lane.range, lane.starts[0]), jnp.zeros(count * older, lane.top.dtype)])
        limit = jnp.log(lane.growth * amplification(made(begin)))

        def penalty(z: Array) -> Array:
            excess = jnp.maximum(jnp.log(amplification(made(z))) - limit, 0.0)
            return 2.0 * (lane.penalty * jnp.sum(z[count + 1 :] ** 2) + _STIFF * excess**2)

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
        return FreeFound(nodes, coefficients, error, grown, result, stages.steps.sum(), found.stationarity)

    return search


def free_weights(start: str, lane: LaneArrays, lams: Array, deviation: Array) -> solvers.Weights:
    """The weights on nodes lams [K] of the known solver `start` with a deviation [K, H - 1] added."""
    steps = grid(lams, end_of(lane, lams), lane.nfe)
    base = coefficients_of(weigh((start,), lane, lams), steps, deviation.shape[1] + 1)
    return weights_of(steps, base + deviation)
