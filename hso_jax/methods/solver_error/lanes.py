"""Lanes of the search on the solver's error, checked on the host and packed for the program."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from hso_jax import solvers
from hso_jax.checks import check_guidance, choice, whole
from hso_jax.lane import Lane, check_lane
from hso_jax.lower.gaps import SPACING, Range
from hso_jax.noise import first_lam, s_of_lam
from hso_jax.objectives.solver_error import OF_A_MODEL, Chunks, ErrorData, error_data, in_chunks
from hso_jax.problems.model_error import ModelError

FIRST = ("auto", "end", "free")


class LaneArrays(NamedTuple):
    """Lanes as arrays with a leading axis; `data` indexes a bank of exact solutions.

    Attributes:
        data, solver, nfe, nodes, seed: [L] integers.
        clean, free: [L] bool: whether the last step goes to clean data; whether the first node is free.
        top, floor: [L] largest and smallest s of a node.
        starts: [L, S, K] nodes in s to start from; S = 0 lets the upper level propose them.
        penalty, growth: [L] see `coefficients.Coefficients`; of the non-stationary solver's lanes alone.
    """

    data: Array
    solver: Array
    nfe: Array
    nodes: Array
    seed: Array
    clean: Array
    free: Array
    top: Array
    floor: Array
    starts: Array
    penalty: Array
    growth: Array

    @property
    def range(self) -> Range:
        """Where a lane's nodes may be."""
        return Range(self.top, self.floor, self.free, self.nodes)


def check(lane: Lane) -> tuple[Lane, str, float]:
    """The lane, its solver's full name and its guidance weight; `method` has solver, guidance and first.

    Raises:
        ValueError: naming the value that is wrong and what would be right.
    """
    lane = check_lane(lane)
    method: Any = lane.method
    choice("first", method.first, FIRST)
    solver = solvers.canonical(method.solver, solvers.EVERY)
    guidance = check_guidance(method.guidance)
    if method.first != "free" and lane.noise.noise_end == -math.inf and (solver.endswith("bh1") or solver == "heun"):
        raise ValueError(
            f"solver {solver!r} cannot start at lam = -inf, where {lane.noise.name} ends; use first='free', "
            f"{'heun-flow' if solver == 'heun' else solver.removesuffix('-bh1')!r} or another solver"
        )
    check_room(lane)
    return lane, solver, guidance


def begin(lane: Lane) -> float:
    """Lam of the first node, or what it may be at most where it is free; the noise end for methods without `first`."""
    method: Any = lane.method
    auto = getattr(method, "first", "end") == "auto"
    return first_lam(lane.noise, lane.nfe, method.guidance) if auto else lane.noise.noise_end


def check_room(lane: Lane) -> None:
    """Raises ValueError unless the nodes fit between the noise schedule's ends, `SPACING` apart in s."""
    room = s_of_lam(begin(lane)) - s_of_lam(lane.noise.data_end)
    if lane.nodes * SPACING > room:
        raise ValueError(
            f"nfe is {lane.nfe}: {lane.nodes} nodes at least {SPACING:g} apart in s do not fit {room:.4g}; "
            f"use at most {int(room / SPACING)}"
        )


def data_of_lane(lane: Lane) -> ErrorData:
    """What a checked lane's schedules are measured on: its noise end, what its model predicts and its method's options.

    Raises:
        ValueError: as `error_data`.
    """
    method: Any = lane.method
    return error_data(
        lane.noise.noise_end,
        method.guidance,
        prediction=lane.noise.prediction,
        model_error=method.model_error,
        problems=method.problems,
        detail=method.detail,
        power=method.power,
        samples=method.samples,
        seed=method.noise_seed,
    )


def pack(lanes: Sequence[Lane], names: Sequence[str]) -> tuple[LaneArrays, Chunks, np.ndarray]:
    """Checked lanes as arrays without starts, their bank of exact solutions, and [L] the inaccuracy of each lane's.

    The distinct solutions of a bank share all but `OF_A_MODEL`, which have a leading axis.

    Raises:
        ValueError: unless the method's `chunk` divides its samples, and as `error_data`.
    """
    methods: list[Any] = [lane.method for lane in lanes]
    first = methods[0]
    if whole("samples", first.samples, 1, 10**6) % whole("chunk", first.chunk, 1, 10**6):
        raise ValueError(f"samples is {first.samples!r}; need a multiple of {first.chunk}, the method's chunk")
    dtype = np.dtype(jax.dtypes.canonicalize_dtype(float))
    noisy = [lane.noise.noise_end for lane in lanes]
    tops = [begin(lane) for lane in lanes]
    error = first.model_error or ModelError()
    sizes = [error.numbers(lane.noise.prediction) for lane in lanes]
    keys = [(end, m.guidance, size) for end, m, size in zip(noisy, methods, sizes, strict=True)]
    distinct = dict(zip(keys, lanes, strict=True))
    data = [data_of_lane(lane) for lane in distinct.values()]
    cut = [in_chunks(d, first.chunk) for d in data]
    bank = cut[0]._replace(**{name: jnp.stack([getattr(c, name) for c in cut]) for name in OF_A_MODEL})  # type: ignore[arg-type]
    columns = {
        "data": np.array([list(distinct).index(key) for key in keys], np.int32),
        "solver": np.array([list(names).index(m.solver) for m in methods], np.int32),
        "nfe": np.array([lane.nfe for lane in lanes], np.int32),
        "nodes": np.array([lane.nodes for lane in lanes], np.int32),
        "seed": np.array([lane.seed for lane in lanes], np.int32),
        "clean": np.array([lane.layout == "node" for lane in lanes]),
        "free": np.array([m.first == "free" for m in methods]),
        "top": np.array([s_of_lam(lam) for lam in tops], dtype),
        "floor": np.array([s_of_lam(lane.noise.data_end) for lane in lanes], dtype),
        # Two nodes at least: a schedule of one has no gap, and arrays of length 0 have no largest entry.
        "starts": np.zeros((len(lanes), 0, max(2, *(lane.nodes for lane in lanes))), dtype),
        "penalty": np.zeros(len(lanes), dtype),
        "growth": np.ones(len(lanes), dtype),
    }
    inaccuracy = np.array([float(d.inaccuracy) for d in data])[columns["data"]]
    return LaneArrays(**columns), jax.tree.map(np.asarray, bank), inaccuracy  # type: ignore[arg-type]
