"""`SolverError`: schedules by the error of the solver itself, with its options, its results and `solver_error`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from hso_jax import batch, solvers
from hso_jax import solver_error_levels as levels
from hso_jax.bilevel import Effort
from hso_jax.checkpoint import Records
from hso_jax.checks import brief, check_guidance, choice, whole
from hso_jax.compiling import jit, platform
from hso_jax.error import (
    POWER,
    SAMPLES,
    Chunks,
    check_weights,
    default_family,
    error_data,
    mean_error,
    squared_errors,
)
from hso_jax.lane import Lane, Method, check_lane
from hso_jax.lower.quasi_newton import SPACING
from hso_jax.lower.trust_region import NOT_FINITE, RESULTS
from hso_jax.noise import NoiseSchedule, check_noise, lam_of_s, s_of_lam
from hso_jax.problems.bank import Problems, collect
from hso_jax.problems.model_error import ModelError, check_model_error
from hso_jax.schedule import Origin, Schedule, Scores, versions
from hso_jax.solver_error_levels import Coefficients, Found, Refinement
from hso_jax.solvers.weights import grid


def schedule_of(lane: Lane, found: Found, inaccuracy: float) -> Schedule:
    """The result in float64, in the model's own t.

    Where the error is nowhere finite the nodes are equal gaps in s; `result` says so.

    Args:
        lane: checked.
        found: its row of the program's results.
        inaccuracy: of the exact solution: no error is told below it.
    """
    method = lane.method
    nodes, error = np.asarray(found.nodes[: lane.nodes], np.float64), float(found.error)
    failed = not np.isfinite(error)
    if failed and not (np.isfinite(nodes).all() and (np.diff(nodes) < 0).all() and nodes[-1] > 0):
        top, floor = (float(s_of_lam(lam)) for lam in (levels.first_lam_of(lane), lane.noise.data_end))
        nodes = np.linspace(min(top, 1.0 - SPACING), floor, lane.nodes + 1)[: lane.nodes]
    lams = lam_of_s(nodes)
    if method.first != "free":
        lams[0] = levels.first_lam_of(lane)
    origin = Origin(
        method="solver-error",
        solver=method.solver,
        guidance=method.guidance,
        result=RESULTS[NOT_FINITE if failed else int(found.result)],
        iterations=int(found.steps),
        stationarity=float(found.stationarity) if np.isfinite(found.stationarity) else None,
        seed=int(lane.seed),
        versions=versions(),
    )
    grown = None if found.amplification is None else float(found.amplification)
    scores = Scores(error=None if failed else max(error, inaccuracy), amplification=grown)
    coefficients = None if found.coefficients is None else np.asarray(found.coefficients[: lane.nfe], np.float64)
    return Schedule.from_lams(
        lane.noise, lams, layout=lane.layout, origin=origin, scores=scores, coefficients=coefficients
    )


def errors_on(schedules: Sequence[Schedule], lanes: Sequence[Lane], names: Sequence[str]) -> np.ndarray:
    """[L, S] the error of each solver on each lane's schedule and problems; infinite where it fails."""
    arrays, bank, _ = levels.pack(lanes, [lane.method.solver for lane in lanes])
    count = arrays.starts.shape[-1]
    lams = np.stack([np.pad(s.lams, (0, count - len(s.lams)), mode="edge") for s in schedules]).astype(arrays.top.dtype)
    found = np.full((len(lanes), len(names)), np.inf)
    for calls in (1, 2):  # solvers of one and of two evaluations a step have programs of their own
        some = [i for i, name in enumerate(names) if solvers.EVERY[name].calls == calls]
        if some:
            those = tuple(names[i] for i in some)
            search = levels.measure_lane(those, batch.DEVICES, solvers.added(those))
            found[:, some] = _run(search, (arrays, lams), bank, _at_once())
    return np.where(np.isfinite(found), found, np.inf)


def with_other_solvers(schedules: list[Schedule], lanes: Sequence[Lane]) -> list[Schedule]:
    """With `others_same_nodes`: each other solver's error on these nodes, which is at least what its own would be."""
    names = list(dict.fromkeys(name for lane in lanes for name in lane.method.compare))
    if not names or solvers.EVERY[lanes[0].method.solver].calls != 1:
        return schedules
    found = []
    for schedule, lane, row in zip(schedules, lanes, errors_on(schedules, lanes, names), strict=True):
        others = set(lane.method.compare) - {lane.method.solver}
        told = {name: float(error) for name, error in zip(names, row, strict=True) if name in others and error < np.inf}
        found.append(schedule.with_scores(others_same_nodes=told))
    return found


def solver_error(
    schedule: Schedule,
    noise: NoiseSchedule,
    *,
    solver: str | None = None,
    guidance: float | None = None,
    problems: Problems | None = None,
    **options: Any,
) -> float:
    """Root-mean-square error of a solver's samples on problems with a known solution, with any schedule.

    Per dimension, relative to the standard deviation of each problem's data. Infinite where the solver fails.

    Args:
        schedule: of any method.
        noise: the noise schedule it is for: its noise end is where the exact solution starts.
        solver: a name that `hso_jax.solvers.canonical` knows; by default the schedule's own.
        guidance: w; by default the schedule's own, or 1.
        problems: of either kind, stacked or a sequence; the family that schedules are optimised on by default.
        options: model_error, detail, power, samples, seed and steps of `error.error_data`.

    Raises:
        ValueError: for an unknown solver, a schedule of another noise schedule, or as `error_data`.
    """
    if not isinstance(schedule, Schedule):
        raise ValueError(f"schedule is {brief(schedule)}; need a Schedule")
    if schedule.noise != check_noise(noise).fingerprint():
        raise ValueError(f"the schedule was made for {schedule.model}, whose noise differs from {noise.name}'s")
    name = schedule.solver if solver is None else solver
    if name == "any":
        raise ValueError("the schedule was made for any solver; say solver='ddim', 'dpmpp-2m', 'unipc-3', ...")
    name = solvers.canonical(name, solvers.EVERY)
    if name == solvers.NONSTATIONARY and schedule.coefficients is None:
        raise ValueError("solver is 'nonstationary'; the schedule has no coefficients: it was made for a known solver")
    weight = check_guidance(guidance, 1.0 if schedule.guidance is None else schedule.guidance)
    platform()
    data = error_data(noise.noise_end, weight, prediction=noise.prediction, problems=problems, **options)
    return measure(schedule, name, data)


def measure(schedule: Schedule, solver: str, data: Chunks) -> float:
    """The error of a solver, by its full name, on all samples; infinite where it fails."""
    dtype = data.noise.dtype
    pad = -schedule.nfe % 10  # so that one compilation serves many N
    lams = np.pad(np.asarray(schedule.lams[: schedule.nfe], dtype), (0, pad), mode="edge")
    end = np.inf if schedule.end == "clean" else schedule.lams[-1]
    coefficients = schedule.coefficients if solver == solvers.NONSTATIONARY else None
    rows = () if coefficients is None else (jnp.asarray(np.pad(coefficients, ((0, pad), (0, 0))), dtype),)
    steps = jnp.asarray(lams), jnp.asarray(end, dtype), jnp.asarray(schedule.nfe)
    value = float(_program(solvers.EVERY[solver])(data, *steps, *rows))
    return value if np.isfinite(value) else float("inf")


@functools.cache
def _program(solver: solvers.Solver) -> Any:
    def error(data: Chunks, lams: jax.Array, end: jax.Array, nfe: jax.Array, *coefficients: jax.Array) -> jax.Array:
        weights = solver.weights(grid(lams, end, nfe), *coefficients)
        chunks = data.problem.shape[0]
        return jnp.sqrt(mean_error(data, squared_errors(data, weights, chunks), chunks))

    return jit(error)


COMPARED = ("ddim", "dpmpp-2m", "unipc-2", "unipc-3")
"""Solvers whose error a result tells beside its own: one evaluation a step, usable in every pipeline."""

ACCELERATOR_LANES = 64
"""Lanes that other devices compute at once; a CPU, whose caches hold one, takes one."""

REFINEMENT = Refinement()

_OF_A_LANE: dict[str, Any] = {"penalty": None, "growth": 0.0, "gain": 0.0}

_CHUNK = 16  # lanes a call: how often progress is told


@dataclasses.dataclass(frozen=True, eq=False)
class SolverError:
    """The schedule with the least error of one solver, on problems whose exact solution is known.

    Attributes:
        solver: a name that `hso_jax.solvers.canonical` knows: "ddim", "dpmpp-2m", "unipc-2", "unipc-3", "heun", ...;
            or "nonstationary", whose coefficients are searched with the nodes (see `Coefficients`).
        guidance: w of classifier-free guidance; 0 and 1 are without.
        first: "auto" (the first node is the model's noise end, or `first_ksigma` where that is less and the network
            predicts epsilon, see `noise.first_lam`), "end" (the noise end) or "free" (placed like the others).
        refinement: how hard the starts are refined on the error.
        start: a schedule, or a method whose schedule is refined; by default equal steps of a flow's time with two
            shifts, of which the better end is taken.
        compare: names of solvers whose error on the nodes is told in `others_same_nodes`.
        coefficients: how the coefficients of "nonstationary" are searched; the defaults if None.
        problems: a stacked Problem or Product, or a sequence of problems of both kinds; the 36 of
            `error.default_family` by default.
        model_error: what a network adds to the exact denoiser; by default of size `problems.ETA` for what the model
            predicts.
        detail: a direction's squared error weighs its `variance^-detail`: 0 is the plain error, 1 all details alike; by
            default 0 without guidance and up to .5 under it (`error.DETAIL`).
        power: of the mean over problems: 1 is the mean of their squared errors, 0 that of their logarithms.
        samples: noise samples a problem; a multiple of 32 if they are more.
        noise_seed: of these samples.
    """

    solver: str = "dpmpp-2m"
    guidance: float = 1.0
    first: str = "auto"
    refinement: Refinement = REFINEMENT
    start: Method | Schedule | None = None
    compare: tuple[str, ...] = COMPARED
    coefficients: Coefficients | None = None
    problems: Problems | None = None
    model_error: ModelError | None = None
    detail: float | None = None
    power: float = POWER
    samples: int = SAMPLES
    noise_seed: int = 0

    def check(self, lane: Lane) -> Lane:
        """See `lane.Method`; also checks the lane of the method that it starts from."""
        lane = check_lane(lane)
        choice("first", self.first, ("auto", "end", "free"))
        solver, guidance = solvers.canonical(self.solver, solvers.EVERY), check_guidance(self.guidance)
        levels.check_room(lane)
        if (samples := whole("samples", self.samples, 1, 10**6)) % min(levels.CHUNK, samples):
            raise ValueError(f"samples is {samples}; need a multiple of {levels.CHUNK}")
        if not isinstance(self.refinement, Refinement):
            raise ValueError(f"refinement is {brief(self.refinement)}; need a Refinement(...)")
        for name, value in self.refinement._asdict().items():
            whole(f"refinement.{name}", value, 0 if name == "final_steps" else 1, 10**6)
        compare = tuple(solvers.canonical(name) for name in self.compare)
        detail, power = check_weights(self.detail, self.power, guidance)
        model_error = check_model_error(self.model_error, lane.noise.prediction, lane.noise.noise_end)
        if self.problems is not None:
            collect(self.problems)
        started, coefficients = self.start, None
        used: tuple[str, ...] = (solver,)
        if solver == solvers.NONSTATIONARY:
            if not (started is None or isinstance(started, Schedule)):
                raise ValueError(
                    "solver 'nonstationary' starts from known solvers' own searches, or from a Schedule as start; "
                    "leave start out"
                )
            size = model_error.size(lane.noise.prediction, lane.noise.noise_end, guidance)
            coefficients = levels.check_coefficients_options(self.coefficients, size, guidance)
            used = coefficients.known
        elif self.coefficients is not None:
            raise ValueError(f"coefficients are given for solver {solver!r}; only 'nonstationary' has them free")
        for name in used if self.first != "free" and lane.noise.noise_end == -np.inf else ():
            if instead := solvers.EVERY[name].instead:
                raise ValueError(
                    f"solver {name!r} cannot start at lam = -inf, where {lane.noise.name} ends; use first='free', "
                    f"{instead!r} or another solver"
                )
        if isinstance(started, Schedule):
            choice("start.layout", started.layout, (lane.layout,))
            if started.nfe != lane.nfe or started.noise != lane.noise.fingerprint():
                raise ValueError(
                    f"start is for {started.model}, N = {started.nfe}; the search is for {lane.noise.name}, "
                    f"N = {lane.nfe}"
                )
        elif started is not None:
            started = started.check(lane._replace(method=started)).method
        method = dataclasses.replace(
            self, solver=solver, guidance=guidance, start=started, compare=compare, coefficients=coefficients,
            model_error=model_error, detail=detail, power=power,
        )  # fmt: skip
        return lane._replace(method=method)

    def group(self, lane: Lane) -> Hashable:
        """Solvers of one and of two evaluations a step have programs of their own.

        A CPU takes lanes one by one: one program serves several solvers. Other devices compile one for each.
        """
        problems = default_family(lane.noise.prediction) if self.problems is None else self.problems
        data = id(problems), self.samples, self.noise_seed, self.detail, self.power
        error = self.model_error or ModelError()
        waves = error.numbers(lane.noise.prediction)[0] > 0  # a model without error is spared its waves
        start: Hashable = None
        if self.start is not None:
            start = "schedule" if isinstance(self.start, Schedule) else self.start.group(lane)
        calls: Hashable = solvers.EVERY[self.solver].calls
        if platform() != "cpu":  # lanes at once would compute the steps of every solver, and use one's
            calls = self.solver
        if self.coefficients is not None:  # what differs from lane to lane is in the lanes
            calls = self.coefficients._replace(**_OF_A_LANE)
        return SolverError, calls, self.refinement, data, error, waves, start

    def search(
        self,
        lanes: Sequence[Lane],
        effort: Effort | None,
        progress: batch.Progress | None,
        records: Records | None = None,
    ) -> list[Schedule]:
        """Search checked lanes of one group, each for its own solver and guidance."""
        if self.coefficients is not None:
            return _search_nonstationary(lanes, effort, progress, records)
        names = tuple(dict.fromkeys(lane.method.solver for lane in lanes))
        arrays, bank, inaccuracy = levels.pack(lanes, names)
        if self.start is not None:
            starts = [lane.method.start for lane in lanes]
            if not isinstance(self.start, Schedule):
                again = [lane._replace(method=start) for lane, start in zip(lanes, starts, strict=True)]
                starts = self.start.search(again, None, None, None)
            arrays = arrays._replace(starts=_padded(starts, arrays))
        search = levels.search_lane(names, self.refinement, batch.DEVICES, solvers.added(names))
        rows = _rows(_run(search, arrays, bank, _at_once(effort), progress, records))
        each = zip(lanes, rows, inaccuracy, strict=True)
        return with_other_solvers([schedule_of(lane, row, float(x)) for lane, row, x in each], lanes)


def _at_once(effort: Effort | None = None) -> int:
    """Lanes that are computed together; of an effort, which is the upper level's, nothing else counts here."""
    usual = 1 if platform() == "cpu" else ACCELERATOR_LANES
    return usual if effort is None or effort.lanes is None else effort.lanes


def _rows(found: Any) -> list[Any]:
    return [jax.tree.map(lambda x: x[i], found) for i in range(len(found[0]))]  # noqa: B023


def _run(
    search: batch.Search, rows: Any, bank: Chunks, at_once: int,
    progress: batch.Progress | None = None, records: Records | None = None,
) -> Any:  # fmt: skip
    # The devices of a host share the samples of each chunk.
    everywhere = jax.tree.map(lambda _: PartitionSpec(), Chunks(*range(len(Chunks._fields))))
    of_samples = {"noise": 1, "truth": 2, "coefficients": 3}  # which axis they are
    specs = {name: PartitionSpec(*[None] * axis, batch.DEVICES) for name, axis in of_samples.items()}
    split = batch.Split(everywhere._replace(**specs), bank.noise.shape[1])
    rest: dict[str, Any] = {"at_once": at_once, "split": split, "progress": progress, "records": records}
    return batch.run(search, rows, bank, chunk=_CHUNK, **rest)


def _search_nonstationary(
    lanes: Sequence[Lane], effort: Effort | None, progress: batch.Progress | None, records: Records | None
) -> list[Schedule]:
    """The known solvers' own searches first, unless a start is given; then nodes and coefficients from there."""
    options: Coefficients = lanes[0].method.coefficients
    given = lanes[0].method.start is not None
    total = len(lanes) * (1 if given else 1 + len(options.known))

    def shown(before: int) -> batch.Progress | None:
        if progress is None:
            return None
        return lambda done, _: progress((before + done) * len(lanes) // total, len(lanes))

    def of(name: str) -> list[Lane]:
        """The same lanes for a known solver."""
        changed = {"solver": name, "coefficients": None, "compare": ()}
        return [lane._replace(method=dataclasses.replace(lane.method, **changed)) for lane in lanes]

    again = of(str(options.start))
    if given:
        starts = best = _on_starts(again)
    else:  # all searched in one program
        known = [lane for name in options.known for lane in of(name)]
        first = None if records is None else records.part("known")
        found = known[0].method.search(known, effort, shown(0), first)
        of_lane = [found[i :: len(lanes)] for i in range(len(lanes))]
        starts = [row[options.known.index(str(options.start))] for row in of_lane]
        best = [min(row, key=lambda s: np.inf if s.error is None else s.error) for row in of_lane]
    arrays, bank, inaccuracy = levels.pack(again, (str(options.start),))
    each = [lane.method.coefficients for lane in lanes]
    penalty, growth = (np.array([getattr(x, name) for x in each], arrays.top.dtype) for name in ("penalty", "growth"))
    arrays = arrays._replace(starts=_padded(starts, arrays), penalty=penalty, growth=growth)
    added = solvers.added([str(options.start)])
    search = levels.search_nonstationary(options._replace(known=(), **_OF_A_LANE), batch.DEVICES, added)
    later = None if records is None else records.part("coefficients")
    rows = _rows(_run(search, arrays, bank, _at_once(), shown(total - len(lanes)), later))
    return [_better(lane, row, s, float(x)) for lane, row, s, x in zip(lanes, rows, best, inaccuracy, strict=True)]


def _better(lane: Lane, found: Found, known: Schedule, inaccuracy: float) -> Schedule:
    """The non-stationary solver's result, or the best known solver's where that is about as good."""
    reached = np.inf if known.error is None else known.error
    error = max(float(found.error), inaccuracy)
    if not np.isfinite(error) or error > (1.0 - lane.method.coefficients.gain) * reached:
        return known
    others = {known.solver: reached} if np.isfinite(reached) else {}
    return schedule_of(lane, found, inaccuracy).with_scores(others_own_nodes=others)


def _on_starts(lanes: Sequence[Lane]) -> list[Schedule]:
    """The starts that lanes are given, with their known solver's error on their problems.

    What a start says of itself is of another solver, or of other problems.
    """
    starts, solver, found = [lane.method.start for lane in lanes], lanes[0].method.solver, []
    for lane, start, error in zip(lanes, starts, errors_on(starts, lanes, [solver])[:, 0], strict=True):
        origin = dataclasses.replace(start.origin, solver=solver, guidance=lane.method.guidance)
        scores = Scores(error=float(error) if error < np.inf else None)
        ends = {"layout": start.layout, "end": start.end}
        found.append(Schedule.from_t(lane.noise, start.t, **ends, origin=origin, scores=scores))
    return found


def _padded(starts: Sequence[Schedule], arrays: levels.LaneArrays) -> np.ndarray:
    """[L, 1, K] their nodes in s, padded with the last."""
    count = arrays.starts.shape[-1]
    rows = [np.pad(s_of_lam(s.lams), (0, count - len(s.lams)), mode="edge") for s in starts]
    return np.stack(rows)[:, None].astype(arrays.top.dtype)
