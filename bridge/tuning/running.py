"""One call of `tune`: from the choice of a start to the report."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from bridge.tuning import gits, processes, searching, teacher
from bridge.tuning.coordinates import Coordinates, Table, table_at
from bridge.tuning.curvature import reference_curvature
from bridge.tuning.judging import Judge, SpentError
from bridge.tuning.models import Model
from bridge.tuning.options import FIRST, RULES, Options
from bridge.tuning.report import Progress, Tuned
from hso_jax import solvers
from hso_jax.baselines import BASELINES, baseline, inapplicable
from hso_jax.lane import Lane
from hso_jax.methods import SolverError
from hso_jax.methods.solver_error.coefficients import start_of
from hso_jax.methods.solver_error.lanes import check_room
from hso_jax.profile import FOLDS, Profile, spectrum_of
from hso_jax.schedule import Origin, Schedule, versions
from hso_jax.searches import search
from hso_jax.shipped.zoo import nearest_guidance, zoo
from hso_jax.upper.checkpoint import Checkpoint

RULE_SOLVERS = ("dpmpp-2m", "unipc-3", "ddim")
"""Rules are judged with the first where the coefficients are free, the best of them with all."""

OWN_PROFILE = "profile"
"""Name of the start that is searched with a profile of the converged samples."""

PATIENCE = 4
"""Better points in a row that are not better on the samples kept apart, before the search ends."""


def run_tuning(
    model: Model,
    nfe: int,
    options: Options,
    told: Mapping[str, Any],
    checkpoint: str | os.PathLike[str] | None,
    progress: Progress | None,
    improved: Callable[[Schedule], None] | None,
) -> Tuned:
    """Tune on a model; `told` goes into the result's file, the rest as for `tune`. Raises as that."""
    part, whole = model.part, model.part.whole
    check_room(Lane(whole, nfe))
    base = _base(options, model.guidance)
    if (steps := part.steps(nfe)) < 1:
        raise ValueError(f"nfe is {nfe}; no step of {nfe} is taken at this strength: use more")
    Coordinates.of(part.noise, steps, options.solver, base)  # refuses what cannot be
    if options.start is not None and options.start.noise != whole.fingerprint():
        raise ValueError(f"start is for {options.start.model}, the model's noise is {whole.name}'s")
    if options.profile is not None:
        options.profile.check_noise(whole)
    arguments = _arguments(options, model, nfe, told)
    start = None if options.start is None else part.cut(options.start)
    options = options._replace(start=start, profile=part.profile(options.profile))

    def search(model: Model) -> Tuned:
        with Checkpoint(checkpoint, arguments) as file:
            made = teacher.targets(model, options, file, progress)
            records = file.search("judgements", {}, teacher.fault)
            judge = Judge(
                model,
                steps,
                made.samples,
                error=options.error,
                detail=options.detail,
                batch=options.batch,
                budget=options.budget,
                evaluations=len(made.samples) * options.teacher_steps,
                records=records,
            )
            return _Tuning(judge, nfe, base, model, options, made, told, progress, improved).run()

    return processes.together(model, search)


def _base(options: Options, guidance: float) -> str:
    start = options.start
    if start is not None and start.coefficients is None and start.solver in solvers.SOLVERS:
        return start.solver
    return start_of(guidance)


class _Tuning:
    """One call's search."""

    def __init__(
        self,
        judge: Judge,
        nfe: int,
        base: str,
        model: Model,
        options: Options,
        made: teacher.Made,
        told: Mapping[str, Any],
        progress: Progress | None,
        improved: Callable[[Schedule], None] | None,
    ) -> None:
        self._judge, self._base, self._model, self._options = judge, base, model, options
        self._nfe, self._steps, self._noise = nfe, model.part.steps(nfe), model.part.noise
        self._samples, self._costs = made.samples, made.costs
        self._told, self._progress, self._improved = told, progress, improved
        self._rows = range(options.samples)
        self._apart = range(options.samples, options.samples + options.kept_apart)
        self._history: list[tuple[int, float, float]] = []
        self._best: tuple[Schedule, float]
        self._behind = 0

    def run(self) -> Tuned:
        """From the start's choice to the report."""
        starts, (rule, table) = self._starts()
        start, begin = starts[0]
        start_error = self._judge.value(self._table(begin), self._apart)
        rule_error = self._judge.value(table, self._apart)
        self._take(begin, start_error)
        by = self._options.by
        if by == "auto":
            by = "differences" if self._judge.squares else "gradients"
        for name, schedule in starts:  # the others with what the budget has left
            self._behind = 0
            with contextlib.suppress(SpentError):
                if by == "gits":
                    self._gits()
                    break
                profile = self._own_profile if name == OWN_PROFILE else self._options.profile
                by = self._search(by, self._place(schedule), profile)
        self._tell()
        best, error = self._best
        figures = {"error": error, "start_error": start_error, "rule_error": rule_error}
        shown = {name: self._shown(value) for name, value in figures.items()}
        schedule = self._schedule(best, error, by=by, start=start, rule=rule, **shown)
        spent, history, notes = self._judge.evaluations, tuple(self._history), tuple(self._judge.notes)
        return Tuned(schedule, start=start, rule=rule, evaluations=spent, by=by, history=history, notes=notes, **shown)

    def _starts(self) -> tuple[list[tuple[str, Schedule]], tuple[str, Table]]:
        """What the search begins with, the best first, and the best rule; with their names."""
        some, options = self._rows[:FIRST], self._options
        named, value_of_rule = self._best_rule(some)
        rule = f"{named.method} with {named.solver}"
        if options.start is not None:
            return [("given", options.start)], (rule, self._table(named))
        found = [candidate for candidate in (self._shipped(), self._of_own_profile()) if candidate is not None]
        values = [self._judge.value(self._table(schedule), some) for _, schedule in found]
        order = np.argsort([x if np.isfinite(x) else math.inf for x in (*values, value_of_rule)], kind="stable")
        return [(*found, (rule, named))[i] for i in order], (rule, self._table(named))

    @functools.cached_property
    def _own_profile(self) -> Profile | None:
        """Of the converged samples to tune on, which are there anyway; None where they are too few, or all alike.

        GITS begins with no schedule, and needs none; image-to-image makes samples of its image, not of the data.
        """
        noise, some = self._noise, self._samples[: self._options.samples]
        imaged = self._model.part.taken is not None
        if imaged or self._options.profile is not None or self._options.by == "gits" or len(some) < FOLDS:
            return None
        try:
            spectrum = spectrum_of(some.double().flatten(1).numpy(), fewest=FOLDS)
        except ValueError:
            return None
        return Profile(*spectrum, noise.prediction, ends=(noise.noise_end, noise.data_end))

    def _of_own_profile(self) -> tuple[str, Schedule] | None:
        """What a search with that profile finds."""
        return None if self._own_profile is None else (OWN_PROFILE, self._searched(self._own_profile))

    def _best_rule(self, some: Sequence[int]) -> tuple[Schedule, float]:
        """Of the rules with the solver, or with the known ones where the coefficients are free; and its value."""
        noise, options = self._noise, self._options
        known = RULE_SOLVERS if options.solver == solvers.NONSTATIONARY else (solvers.canonical(options.solver),)
        fitting = [name for name in RULES if name in BASELINES and not inapplicable(name, noise)]
        found: list[tuple[float, Schedule]] = []

        def judge(name: str, solver: str) -> None:
            origin = Origin(method=name, solver=solver)
            schedule = dataclasses.replace(baseline(name, noise, self._steps), origin=origin)
            value = self._judge.value(self._table(schedule), some)
            found.append((value if np.isfinite(value) else math.inf, schedule))

        for name in fitting:
            judge(name, known[0])
        best = min(found, key=lambda pair: pair[0])[1].method
        for solver in known[1:]:
            judge(best, solver)
        value, schedule = min(found, key=lambda pair: pair[0])
        return schedule, value

    def _shipped(self) -> tuple[str, Schedule]:
        """The zoo's schedule for the nearest weight, or a search's where the noise is not shipped."""
        noise, guidance, solver = self._noise, self._model.guidance, self._options.solver
        if self._options.profile is None:
            try:
                return "zoo", zoo(noise, self._steps, solver, guidance=nearest_guidance(noise, guidance))
            except ValueError:  # not shipped
                pass
        return "search", self._searched(self._options.profile)

    def _searched(self, profile: Profile | None) -> Schedule:
        """What a search with a profile finds, or without any."""
        how = SolverError(self._options.solver, self._model.guidance, compare=(), profile=profile)
        return search(self._noise, self._steps, method=how)

    def _table(self, schedule: Schedule) -> Table:
        """Of a schedule with its coefficients, or else of the known solver it names or that is asked for."""
        asked = self._options.solver
        known = schedule.solver if asked == solvers.NONSTATIONARY else asked
        return table_at(self._noise, schedule, known if known in solvers.SOLVERS else self._base)

    def _as_judged(self, schedule: Schedule) -> Schedule:
        """With its known solver's coefficients where these are free: it is installed whatever a pipeline's sampler."""
        if self._options.solver != solvers.NONSTATIONARY or schedule.coefficients is not None:
            return schedule
        z = self._place(schedule)
        if not self._judge.coordinates.places.any():
            return schedule  # of one step, which all solvers take alike
        origin = dataclasses.replace(schedule.origin, solver=solvers.NONSTATIONARY)
        return self._judge.coordinates.schedule(z, origin)

    def _place(self, schedule: Schedule) -> np.ndarray:
        """The schedule as a point, in coordinates whose first node is free if the schedule's is not the noise end."""
        noise = self._noise
        free = float(schedule.lams[0]) > noise.noise_end + 1e-6
        self._judge.coordinates = Coordinates.of(noise, self._steps, self._options.solver, self._base, free)
        return self._judge.coordinates.point(schedule)

    def _search(self, by: str, z: np.ndarray, profile: Profile | None) -> str:
        """How it was searched at last: gradients give way to what needs none where they cannot be had."""
        judge = self._judge
        if not len(z):
            return by
        curvature = reference_curvature(judge.coordinates, z, self._model.guidance, profile)
        if by == "gradients":
            try:
                searching.gradients(judge, z, curvature, self._rows, self._seen)
                return by
            except (MemoryError, ValueError) as trouble:
                if self._options.by == "gradients" and not isinstance(trouble, MemoryError):
                    raise
                by = "differences" if judge.squares else "comparisons"
                judge.notes.append(f"no gradients ({trouble}): by {by}")
                free, z = judge.coordinates.free, self._place(self._best[0])
                if judge.coordinates.free != free:  # the best is an earlier start's, in other coordinates
                    return self._search(by, z, profile)
        search_by = searching.differences if by == "differences" else searching.comparisons
        with contextlib.suppress(SpentError):
            search_by(judge, z, curvature, self._rows, self._seen)
        return by

    def _gits(self) -> None:
        """The nodes by dynamic programming; the solver is the one that the coefficients deviate from."""
        assert self._costs is not None
        grid = teacher.grid(self._noise, self._options.teacher_steps)
        chosen = grid.t[gits.best_path(self._costs, self._steps, gits.COEFFICIENT)]
        known = self._base if self._options.solver == solvers.NONSTATIONARY else self._options.solver
        origin = Origin(method="gits", solver=solvers.canonical(known))
        z = self._place(Schedule.from_t(self._noise, chosen, origin=origin))
        self._seen(z, self._judge.value(z, self._rows))

    def _seen(self, z: np.ndarray, value: float) -> bool:
        """Judge a better point by the samples kept apart."""
        apart = self._judge.value(z, self._apart)
        self._history.append((self._judge.evaluations, self._shown(value), self._shown(apart)))
        if apart < self._best[1] or not np.isfinite(self._best[1]):
            origin = Origin(method="tuned", solver=self._judge.coordinates.solver)
            self._take(self._judge.coordinates.schedule(z, origin), apart)
            self._behind = 0
        else:
            self._behind += 1
        self._tell()
        return self._behind >= PATIENCE

    def _take(self, schedule: Schedule, value: float) -> None:
        schedule = self._as_judged(schedule)
        self._best = schedule, value
        if self._improved is not None:
            self._improved(self._schedule(schedule, value, error=self._shown(value)))

    def _tell(self) -> None:
        if self._progress is not None:
            best = self._best[1]
            self._progress(
                self._judge.evaluations, self._options.budget, self._shown(best) if best < math.inf else None
            )

    def _shown(self, value: float) -> float:
        """An error as people read it."""
        return math.exp(value) if self._judge.squares else value

    def _schedule(self, schedule: Schedule, value: float, **found: str | float) -> Schedule:
        """With what it was tuned on, and what was found."""
        options = self._options
        told = {
            **{
                k: v if isinstance(v, (str, int, float)) else json.dumps(v, sort_keys=True)
                for k, v in self._told.items()
            },
            "budget": options.budget,
            "teacher_steps": options.teacher_steps,
            "samples": options.samples,
            "evaluations": self._judge.evaluations,
            **{k: v if isinstance(v, str) else float(f"{v:.6g}") for k, v in found.items() if _says(v)},
        }
        schedule = self._model.part.joined(schedule, self._nfe)
        solver = solvers.NONSTATIONARY if schedule.coefficients is not None else schedule.solver
        if options.solver != solvers.NONSTATIONARY:
            solver = solvers.canonical(options.solver)
        origin = Origin(
            method="tuned",
            solver=solver,
            guidance=self._model.guidance,
            seed=options.seed,
            versions=versions(),
            tuned=told,
        )
        return dataclasses.replace(schedule, origin=origin).with_scores(fitness=self._shown(value))


def _says(value: str | float) -> bool:
    return bool(value) if isinstance(value, str) else math.isfinite(value)


def _arguments(options: Options, model: Model, nfe: int, told: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint is compared by."""
    start, profile, error = options.start, options.profile, options.error
    own = options._replace(start=None, profile=None, error=None)._asdict()
    return {
        **own,
        "nfe": nfe,
        "noise": model.part.noise.fingerprint(),
        "guidance": model.guidance,
        "start": None if start is None else sha([start.t.tobytes().hex(), repr(start.coefficients)]),
        "profile": None if profile is None else sha([profile.to_json()]),
        "error": None if error is None else getattr(error, "__qualname__", type(error).__qualname__),
        "torch": torch.__version__,
        **told,
    }


def sha(texts: Sequence[str]) -> str:
    """A short digest of texts."""
    return hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()[:16]
