"""Lanes of the reference search: what one search is asked to do, checked on the host, and packed for the program."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from hso_jax import solvers
from hso_jax.lanes import check_nfe, check_seed
from hso_jax.noise import NoiseSchedule
from hso_jax.problems.model_error import ModelError
from hso_jax.reference.data import SAMPLES, Chunks, Reference, in_chunks, reference
from hso_jax.schedule import LAYOUTS

PROPOSALS = ("mep", "dm-nonuni")
FIRST = ("end", "free")
SPACING = 1e-3
"""Least distance of neighbouring nodes in s = sigma/(alpha + sigma): about one training level of T = 1000."""


OF_A_REFERENCE = ("truth", "coefficients", "capped", "guidance")
"""Fields of `Chunks` that differ between the references of a bank."""


class ReferenceLane(NamedTuple):
    """One search on the reference error.

    Attributes:
        noise: the model's noise schedule. Only its two ends matter to the search, and its t to the result.
        nfe: N evaluated nodes (calls of the model are twice as many for Heun, see `solvers.evaluations`).
        layout: "node" (a last step to clean data) or "interval" (stops at node N + 1).
        solver: a key of `hso_jax.solvers.SOLVERS`, or "unipc" (diffusers' default order 2).
        guidance: w of classifier-free guidance; 1 is without.
        seed: of the upper level.
        first: "end" (the first node is the model's noise end) or "free" (it is placed like the others).
        objective: what the lower level minimises: "reference", or "mep" or "dm-nonuni" for schedules of the family
            psi = (p, t_eps, t_max) as they are.
    """

    noise: NoiseSchedule
    nfe: int
    layout: str = "node"
    solver: str = "dpmpp-2m"
    guidance: float = 1.0
    seed: int = 0
    first: str = "end"
    objective: str = "reference"

    @property
    def nodes(self) -> int:
        """How many nodes there are: N, and one more for the interval layout."""
        return self.nfe + (self.layout == "interval")

    @property
    def noise_end(self) -> float:
        """The model's lam at its noisiest level: -inf for flow and zero terminal SNR."""
        return -math.inf if self.noise.zero_terminal_snr else float(self.noise.lam(float(self.noise.t_max)))

    @property
    def data_end(self) -> float:
        """The largest lam a node may have. Flow models are continuous in s: 0.001, whatever their shift calls it."""
        if self.noise.kind == "flow":
            return math.log(999.0)
        return float(self.noise.lam(float(self.noise.t_min)))


class LaneArrays(NamedTuple):
    """Lanes as arrays with a leading axis; `reference` indexes a bank of reference data.

    Attributes:
        reference, solver, nfe, nodes, seed: [L] integers.
        clean, free: [L] bool: whether the last step goes to clean data; whether the first node is free.
        top, floor: [L] largest and smallest s of a node.
        starts: [L, S, K] nodes in s to start from; S = 0 lets the upper level propose them.
    """

    reference: Array
    solver: Array
    nfe: Array
    nodes: Array
    seed: Array
    clean: Array
    free: Array
    top: Array
    floor: Array
    starts: Array


def check(lane: ReferenceLane) -> ReferenceLane:
    """The lane with its solver's full name.

    Raises:
        ValueError: naming the value that is wrong and what would be right.
    """
    check_nfe(lane.nfe)
    check_seed(lane.seed)
    choices = {"layout": LAYOUTS, "first": FIRST, "objective": ("reference", *PROPOSALS)}
    for name, known in choices.items():
        if getattr(lane, name) not in known:
            raise ValueError(f"{name} is {getattr(lane, name)!r}; use one of {', '.join(known)}")
    solver = solvers.canonical(lane.solver)
    guidance = lane.guidance
    if isinstance(guidance, bool) or not isinstance(guidance, (int, float)) or not 0 <= guidance < math.inf:
        raise ValueError(f"guidance is {guidance!r}; need a finite number of at least 0 (1 is no guidance)")
    if lane.first == "end" and lane.noise_end == -math.inf and (solver.endswith("bh1") or solver == "heun"):
        raise ValueError(
            f"solver {solver!r} cannot start at lam = -inf, where {lane.noise.name} ends; use first='free', "
            f"{'heun-flow' if solver == 'heun' else solver.removesuffix('-bh1')!r} or another solver"
        )
    room = s_of_lam(lane.noise_end) - s_of_lam(lane.data_end)
    if lane.nodes * SPACING > room:
        raise ValueError(
            f"nfe is {lane.nfe}: {lane.nodes} nodes at least {SPACING:g} apart in s do not fit {room:.4g}; "
            f"use at most {int(room / SPACING)}"
        )
    return lane._replace(solver=solver, guidance=float(guidance), nfe=int(lane.nfe))


def s_of_lam(lam: Any) -> Any:
    """S = sigma/(alpha + sigma) in [0, 1], NumPy float64: the search's coordinate, rectified flow's time."""
    with np.errstate(over="ignore"):
        return 1.0 / (1.0 + np.exp(np.asarray(lam, np.float64)))


def lam_of_s(s: Any) -> np.ndarray:
    """The inverse of `s_of_lam`."""
    s = np.asarray(s, np.float64)
    with np.errstate(divide="ignore"):
        return np.log1p(-s) - np.log(s)


def reference_of(lane: ReferenceLane, **options: Any) -> Reference:
    """The reference data of a lane's noise end, guidance and prediction type; options as `reference`.

    Raises:
        ValueError: as `reference`.
    """
    return reference(lane.noise_end, lane.guidance, prediction=lane.noise.prediction, **options)


def pack(
    lanes: Sequence[ReferenceLane],
    names: Sequence[str],
    starts: np.ndarray,
    chunk: int,
    **options: Any,
) -> tuple[LaneArrays, Chunks, np.ndarray]:
    """Checked lanes as arrays, the bank of their references, and [L] the inaccuracy of each lane's exact solution.

    The distinct references of a bank share all but `OF_A_REFERENCE`, which have a leading axis.

    Raises:
        ValueError: unless `chunk` divides the samples, and as `reference`.
    """
    samples = options.get("samples", SAMPLES)
    if samples % chunk:
        raise ValueError(f"samples is {samples!r}; need a multiple of {chunk}, the chunk of the effort")
    dtype = np.dtype(jax.dtypes.canonicalize_dtype(float))
    error = options.get("model_error") or ModelError()
    ends = [(lane.noise_end, lane.guidance, error.numbers(lane.noise.prediction)) for lane in lanes]
    distinct = dict(zip(ends, lanes, strict=True))
    data = [reference_of(lane, **options) for lane in distinct.values()]
    cut = [in_chunks(d, chunk) for d in data]
    bank = cut[0]._replace(**{name: jnp.stack([getattr(c, name) for c in cut]) for name in OF_A_REFERENCE})  # type: ignore[arg-type]
    columns = {
        "reference": np.array([list(distinct).index(end) for end in ends], np.int32),
        "solver": np.array([list(names).index(lane.solver) for lane in lanes], np.int32),
        "nfe": np.array([lane.nfe for lane in lanes], np.int32),
        "nodes": np.array([lane.nodes for lane in lanes], np.int32),
        "seed": np.array([lane.seed for lane in lanes], np.int32),
        "clean": np.array([lane.layout == "node" for lane in lanes]),
        "free": np.array([lane.first == "free" for lane in lanes]),
        "top": np.array([s_of_lam(lane.noise_end) for lane in lanes], dtype),
        "floor": np.array([s_of_lam(lane.data_end) for lane in lanes], dtype),
        "starts": np.asarray(starts, dtype),
    }
    inaccuracy = np.array([float(d.inaccuracy) for d in data])[columns["reference"]]
    return LaneArrays(**columns), jax.tree.map(np.asarray, bank), inaccuracy  # type: ignore[arg-type]
