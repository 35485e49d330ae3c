"""`SolverError`: schedules by the error of the solver itself, with the method's options."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Sequence

import jax
import numpy as np
from jax.sharding import PartitionSpec

from hso_jax import batch, solvers
from hso_jax.bilevel import Effort
from hso_jax.checks import brief, choice, whole
from hso_jax.lane import Lane, Method
from hso_jax.methods.solver_error.coefficients import Coefficients, check_coefficients_options, search_free
from hso_jax.methods.solver_error.lanes import LaneArrays, check, pack
from hso_jax.methods.solver_error.schedules import compared, free_schedule_of, on_start, schedule_of
from hso_jax.methods.solver_error.search import Refinement, search_lane
from hso_jax.noise import NoiseSchedule, s_of_lam
from hso_jax.objectives.expansion import NodeObjective, check_objective
from hso_jax.objectives.solver_error import DETAIL, POWER, SAMPLES, Chunks, check_weights
from hso_jax.problems.bank import Problems, collect
from hso_jax.problems.model_error import ModelError, check_model_error
from hso_jax.profile import Profile
from hso_jax.resuming import fault as resuming_fault
from hso_jax.schedule import Schedule
from hso_jax.upper.checkpoint import Records

COMPARED = ("ddim", "dpmpp-2m", "unipc-2", "unipc-3")
"""Solvers whose error a result tells beside its own: one evaluation a step, usable in every pipeline."""

EFFORT = Effort(population=8, generations=6, steps=5, polish=2, lanes=1)
"""Of the upper level, on each island of lam_eps. One lane at once is right for a CPU, whose caches hold one."""

REFINEMENT = Refinement()

_CHUNK = 16  # lanes a call: how often progress is told


@dataclasses.dataclass(frozen=True, eq=False)
class SolverError:
    """The schedule with the least error of one solver, on problems whose exact solution is known.

    Attributes:
        solver: a name that `hso_jax.solvers.canonical` knows: "ddim", "dpmpp-2m", "unipc-2", "unipc-3", "heun", ...;
            or "nonstationary", whose coefficients are searched with the nodes (see `Coefficients`).
        guidance: w of classifier-free guidance; 0 and 1 are without.
        first: "auto" (the first node is the model's noise end, or up to N = 10 sigma/alpha = 60 where that is less and
            the network predicts epsilon, see `noise.ends.first_lam`), "end" (the noise end) or "free" (placed like the
            others).
        family: bound whose minimisers are the starts: "mep", "dm-nonuni" or a function, as `Hso.objective`.
        refinement: how hard the starts are refined on the error; None takes the best of the family as it is.
        start: a schedule, or a method whose schedule is refined, instead of the starts of the family.
        compare: names of solvers whose error on the nodes is told in `others_same_nodes`.
        coefficients: how the coefficients of "nonstationary" are searched; the defaults if None.
        problems: a stacked Problem or Product, or a sequence of problems of both kinds; the family of 36 by default.
        profile: what was measured of the model (`bridge.profile`, `profile_of`): its problems in place of the default
            family, and its network's error unless `model_error` says otherwise.
        model_error: what a network adds to the exact denoiser; by default of size `problems.ETA` for what the model
            predicts.
        detail: a direction's squared error weighs its `variance^-detail`: 0 is the plain error, 1 all details alike.
        power: of the mean over problems: 1 is the mean of their squared errors, 0 that of their logarithms.
        samples: noise samples a problem.
        noise_seed: of these samples.
        chunk: samples taken through the solver at once; divides `samples`.
        few: chunks that the upper level sees.
    """

    solver: str = "dpmpp-2m"
    guidance: float = 1.0
    first: str = "auto"
    family: str | NodeObjective = "mep"
    refinement: Refinement | None = REFINEMENT
    start: Method | Schedule | None = None
    compare: tuple[str, ...] = COMPARED
    coefficients: Coefficients | None = None
    problems: Problems | None = None
    profile: Profile | None = None
    model_error: ModelError | None = None
    detail: float = DETAIL
    power: float = POWER
    samples: int = SAMPLES
    noise_seed: int = 0
    chunk: int = 32
    few: int = 12

    def check(self, lane: Lane) -> Lane:
        """See `lane.Method`; also checks the lane of the method that it starts from."""
        lane, solver, guidance = check(lane)
        check_objective("family", self.family)
        whole("few", self.few, 1, 10**6)
        for name, value in (self.refinement or REFINEMENT)._asdict().items():
            whole(f"refinement.{name}", value, 0 if name == "final_steps" else 1, 10**6)
        compare = tuple(solvers.canonical(name) for name in self.compare)
        detail, power = check_weights(self.detail, self.power)
        problems, model_error = _of_profile(self, lane.noise)
        model_error = check_model_error(model_error, lane.noise.prediction, lane.noise.noise_end)
        if problems is not None:
            collect(problems)
        method = dataclasses.replace(self, solver=solver, guidance=guidance, compare=compare, problems=problems)
        method = dataclasses.replace(method, model_error=model_error, detail=detail, power=power)
        if solver == solvers.NONSTATIONARY:
            if self.refinement is None or not (self.start is None or isinstance(self.start, Schedule)):
                raise ValueError(
                    "solver 'nonstationary' starts from known solvers' own searches, or from a Schedule as start; "
                    "leave start and refinement out"
                )
            size = model_error.size(lane.noise.prediction, lane.noise.noise_end, guidance)
            options = check_coefficients_options(self.coefficients, size, guidance)
            for name in options.known:
                check(lane._replace(method=dataclasses.replace(method, solver=name)))
            method = dataclasses.replace(method, coefficients=options)
        elif self.coefficients is not None:
            raise ValueError(f"coefficients are given for solver {solver!r}; only 'nonstationary' has them free")
        if self.start is not None and self.refinement is None:
            raise ValueError("refinement is None, with a start there would be nothing to do; give a Refinement(...)")
        if isinstance(self.start, Schedule):
            _check_start(lane, self.start)
        elif self.start is not None:
            started = self.start.check(lane._replace(method=self.start))
            method = dataclasses.replace(method, start=started.method)  # type: ignore[arg-type]
        return lane._replace(method=method)

    def group(self, lane: Lane) -> Hashable:
        """Solvers of one and of two evaluations a step have programs of their own, and so has each family."""
        data = id(self.problems), self.samples, self.noise_seed, self.chunk, self.few, self.detail, self.power
        error = self.model_error or ModelError()
        waves = error.numbers(lane.noise.prediction)[0] > 0  # a model without error is spared its waves
        start: Hashable = None
        if self.start is not None:
            start = "schedule" if isinstance(self.start, Schedule) else self.start.group(lane)
        calls: Hashable = 0 if self.solver == solvers.NONSTATIONARY else solvers.SOLVERS[self.solver].calls
        if self.coefficients is not None:  # what differs from lane to lane is in the lanes
            calls = self.coefficients._replace(penalty=None, growth=0.0, gain=0.0)
        return SolverError, calls, self.family, self.refinement, data, error, waves, start

    def search(
        self,
        lanes: Sequence[Lane],
        effort: Effort | None,
        progress: batch.Progress | None,
        records: Records | None = None,
    ) -> list[Schedule]:
        """Search checked lanes of one group, each for its own solver and guidance."""
        if self.solver == solvers.NONSTATIONARY:
            return _search_free(lanes, effort, progress, records)
        methods: list[SolverError] = [lane.method for lane in lanes]  # type: ignore[misc]
        names = tuple(dict.fromkeys(method.solver for method in methods))
        arrays, bank, inaccuracy = pack(lanes, names)
        if self.start is not None:
            arrays = arrays._replace(starts=_starts(lanes, self.start, arrays))  # type: ignore[arg-type]
        complete = (effort or Effort()).over(EFFORT)
        search = search_lane(names, self.family, self.few, self.refinement, complete, batch.DEVICES)
        rows = batch.run(
            search,
            arrays,
            bank,
            chunk=max(_CHUNK, complete.lanes),
            at_once=complete.lanes,
            split=batch.Split(_SAMPLES_SPLIT, self.chunk),
            progress=progress,
            records=records,
        )
        found = []
        for i, lane in enumerate(lanes):
            schedule = schedule_of(lane, jax.tree.map(lambda x: x[i], rows), float(inaccuracy[i]))  # noqa: B023
            found.append(compared(schedule, lane))
        return found


_SAMPLES_SPLIT = Chunks(*[PartitionSpec()] * len(Chunks._fields))._replace(  # type: ignore[arg-type]
    noise=PartitionSpec(None, batch.DEVICES),  # type: ignore[arg-type]
    truth=PartitionSpec(None, None, batch.DEVICES),  # type: ignore[arg-type]
    coefficients=PartitionSpec(None, None, None, batch.DEVICES),  # type: ignore[arg-type]
)


def _search_free(
    lanes: Sequence[Lane], effort: Effort | None, progress: batch.Progress | None, records: Records | None
) -> list[Schedule]:
    """The known solvers' own searches first, unless a start is given; then nodes and coefficients from there."""
    methods: list[SolverError] = [lane.method for lane in lanes]  # type: ignore[misc]
    options = methods[0].coefficients
    assert options is not None and options.start is not None
    total = len(lanes) * (1 if methods[0].start else 1 + len(options.known))

    def told(before: int) -> batch.Progress | None:
        if progress is None:
            return None
        return lambda done, _: progress((before + done) * len(lanes) // total, len(lanes))

    if methods[0].start is None:
        first = None if records is None else records.search("known", {}, resuming_fault)
        starts, best = _known(lanes, options, effort, told(0), first)
    else:
        starts = best = [on_start(lane, m.start, options.start) for lane, m in zip(lanes, methods, strict=True)]  # type: ignore[arg-type]
    again = [
        lane._replace(method=dataclasses.replace(lane.method, solver=options.start))  # type: ignore[type-var]
        for lane in lanes
    ]
    arrays, bank, inaccuracy = pack(again, (options.start,))
    penalty, growth = (
        np.array([getattr(m.coefficients, name) for m in methods], arrays.top.dtype) for name in ("penalty", "growth")
    )
    results = batch.run(
        search_free(options._replace(penalty=None, growth=0.0, gain=0.0, known=()), batch.DEVICES),
        arrays._replace(starts=_padded(starts, arrays), penalty=penalty, growth=growth),  # type: ignore[arg-type]
        bank,
        chunk=_CHUNK,
        at_once=1,
        split=batch.Split(_SAMPLES_SPLIT, methods[0].chunk),
        progress=told(total - len(lanes)),
        records=None if records is None else records.search("coefficients", {}, resuming_fault),
    )
    return [
        free_schedule_of(lane, jax.tree.map(lambda x: x[i], results), best[i], float(inaccuracy[i]))  # noqa: B023
        for i, lane in enumerate(lanes)
    ]


def _known(
    lanes: Sequence[Lane],
    options: Coefficients,
    effort: Effort | None,
    progress: batch.Progress | None,
    records: Records | None,
) -> tuple[list[Schedule], list[Schedule]]:
    """For each lane the schedule to start from, and that of the best known solver; all searched in one program."""
    known = [
        lane._replace(method=dataclasses.replace(lane.method, solver=name, coefficients=None, compare=()))  # type: ignore[type-var]
        for name in options.known
        for lane in lanes
    ]
    found = known[0].method.search(known, effort, progress, records)  # type: ignore[union-attr]
    rows = [found[i :: len(lanes)] for i in range(len(lanes))]
    best = [min(row, key=lambda s: s.error if s.error is not None else float("inf")) for row in rows]
    return [row[options.known.index(options.start)] for row in rows], best


def _starts(lanes: Sequence[Lane], start: Method | Schedule, arrays: LaneArrays) -> np.ndarray:
    """[L, 1, K] the nodes in s of each lane's own start, padded with the last."""
    own = [lane.method.start for lane in lanes]  # type: ignore[union-attr]
    if not isinstance(start, Schedule):
        own = start.search([lane._replace(method=m) for lane, m in zip(lanes, own, strict=True)], None, None, None)
    return _padded(own, arrays)


def _padded(starts: Sequence[Schedule], arrays: LaneArrays) -> np.ndarray:
    """[L, 1, K] their nodes in s, padded with the last."""
    count = arrays.starts.shape[-1]
    rows = [np.pad(s_of_lam(s.lams), (0, count - len(s.lams)), mode="edge") for s in starts]
    return np.stack(rows)[:, None].astype(arrays.top.dtype)


def _of_profile(method: SolverError, noise: NoiseSchedule) -> tuple[Problems | None, ModelError | None]:
    """The problems and the error that a method's profile stands for; those of the method without one."""
    profile = method.profile
    if profile is None:
        return method.problems, method.model_error
    if not isinstance(profile, Profile):
        raise ValueError(f"profile is {brief(profile)}; need a Profile: profile_of(latents), Profile.load(path)")
    profile.check_noise(noise)
    problems = profile.problems()  # the same object for an equal profile: lanes are grouped by it
    if method.problems is not None and method.problems is not problems:
        raise ValueError("problems and profile are both given; a profile has problems of its own: leave one out")
    return problems, profile.model_error() if method.model_error is None else method.model_error


def _check_start(lane: Lane, start: Schedule) -> None:
    choice("start.layout", start.layout, (lane.layout,))
    if start.nfe != lane.nfe or start.noise != lane.noise.fingerprint():
        raise ValueError(
            f"start is for {start.model}, N = {start.nfe}; the search is for {lane.noise.name}, N = {lane.nfe}"
        )
