"""One call of `tune`: from the choice of a start to the report."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from bridge.sampling import converged
from bridge.tuning import gits, search
from bridge.tuning.coordinates import Coordinates, with_coefficients
from bridge.tuning.judge import Judge, Made, ScoreJudge, SpentError, fault, targets
from bridge.tuning.models import Model, together
from bridge.tuning.options import FIRST, RULES, Options, Score, Tuned
from hso_jax import solvers
from hso_jax.baselines import BASELINES, baseline, inapplicable
from hso_jax.checkpoint import Checkpoint
from hso_jax.compiling import under_jax_defaults
from hso_jax.lane import Lane
from hso_jax.profile import FOLDS, Profile, spectrum_of
from hso_jax.schedule import Origin, Schedule, versions
from hso_jax.searches import search as search_without_model
from hso_jax.shipped.zoo import nearest_guidance, zoo
from hso_jax.solver_error_levels import check_room, start_of
from hso_jax.solver_error_method import SolverError

RULE_SOLVERS = ("dpmpp-2m", "unipc-3", "ddim")
"""Rules are judged with the first where the coefficients are free, the best of them with all."""

OWN_PROFILE = "profile"
"""Name of the start that is searched with a profile of the converged samples."""

PATIENCE = 4
"""Better points in a row that are not better on the samples kept apart, before the search ends."""


@under_jax_defaults
def run(model: Model, options: Options, facts: Mapping[str, Any], score: Score | None = None) -> Tuned:
    """Tune on a model, or by a score of schedules; `facts` go into the result's file. Raises as `tune`."""
    part = model.part
    check_room(Lane(part.whole, options.nfe))
    base = _base(options, model.guidance)
    if (steps := part.steps(options.nfe)) < 1:
        raise ValueError(f"nfe is {options.nfe}; no step of {options.nfe} is taken at this strength: use more")
    Coordinates.of(part.noise, steps, options.solver, base)  # refuses what cannot be
    if options.start is not None and options.start.noise != part.whole.fingerprint():
        raise ValueError(f"start is for {options.start.model}, the model's noise is {part.whole.name}'s")
    if options.profile is not None:
        options.profile.check_noise(part.whole)
    arguments = _arguments(options, model, facts)
    start = None if options.start is None else part.cut(options.start)
    options = options._replace(start=start, profile=part.profile(options.profile))

    def tuned(model: Model) -> Tuned:
        with Checkpoint(options.checkpoint, arguments) as file:
            made = targets(model, options, file) if score is None else Made(torch.empty(0), None)
            records = file.search("judgements", {}, fault)
            judge = (
                Judge(model, options, base, made.samples, records)
                if score is None
                else ScoreJudge(score, model, options, base, records)
            )
            return _Tuning(judge, model, options, base, made, facts).run()

    return together(model, tuned)


def _base(options: Options, guidance: float) -> str:
    start = options.start
    if start is not None and start.coefficients is None and start.solver in solvers.SOLVERS:
        return start.solver
    return start_of(guidance)


class _Tuning:
    """One call's search."""

    def __init__(
        self, judge: Judge, model: Model, options: Options, base: str, made: Made, facts: Mapping[str, Any]
    ) -> None:
        self._judge, self._model, self._options, self._base = judge, model, options, base
        self._made, self._facts = made, facts
        self._noise, self._steps = model.part.noise, model.part.steps(options.nfe)
        self._rows = range(options.samples)
        self._apart = range(options.samples, options.samples + options.kept_apart)
        self._history: list[tuple[int, float, float]] = []
        self._best: tuple[Schedule, float]
        self._behind = 0

    def run(self) -> Tuned:
        """From the start's choice to the report."""
        starts, rule = self._starts()
        start, begin = starts[0]
        start_error, rule_error = (self._judge.value(schedule, self._apart) for schedule in (begin, rule))
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
        if not math.isfinite(error):
            raise ValueError("no schedule's error (or score) was finite; give a start whose samples are")
        figures = {"error": error, "start_error": start_error, "rule_error": rule_error}
        shown = {name: self._shown(value) for name, value in figures.items()}
        named = f"{rule.method} with {rule.solver}"
        schedule = self._schedule(best, error, by=by, start=start, rule=named, **shown)
        spent, history, notes = self._judge.evaluations, tuple(self._history), tuple(self._judge.notes)
        return Tuned(schedule, start=start, rule=named, evaluations=spent, by=by, history=history, notes=notes, **shown)

    def _starts(self) -> tuple[list[tuple[str, Schedule]], Schedule]:
        """What the search begins with and its name, the best first; and the best rule."""
        some = self._rows[:FIRST]
        rule, value_of_rule = self._best_rule(some)
        if self._options.start is not None:
            return [("given", self._options.start)], rule
        found = [self._shipped()]
        if self._own_profile is not None:
            found.append((OWN_PROFILE, self._searched(self._own_profile)))
        values = [self._judge.value(schedule, some) for _, schedule in found]
        order = np.argsort([x if np.isfinite(x) else math.inf for x in (*values, value_of_rule)], kind="stable")
        return [(*found, (f"{rule.method} with {rule.solver}", rule))[i] for i in order], rule

    @functools.cached_property
    def _own_profile(self) -> Profile | None:
        """Of the converged samples to tune on, which are there anyway; None where they are too few, or all alike.

        GITS begins with no schedule, and needs none; image-to-image makes samples of its image, not of the data.
        """
        noise, some = self._noise, self._made.samples[: self._options.samples]
        imaged = self._model.part.taken is not None
        if imaged or self._options.profile is not None or self._options.by == "gits" or len(some) < FOLDS:
            return None
        try:
            spectrum = spectrum_of(some.double().flatten(1).numpy(), fewest=FOLDS)
        except ValueError:
            return None
        return Profile(*spectrum, noise.prediction, ends=(noise.noise_end, noise.data_end))

    def _best_rule(self, some: Sequence[int]) -> tuple[Schedule, float]:
        """Of the rules with the solver, or with the known ones where the coefficients are free; and its value."""
        noise, solver = self._noise, self._options.solver
        known = RULE_SOLVERS if solver == solvers.NONSTATIONARY else (solvers.canonical(solver),)
        found: list[tuple[float, Schedule]] = []

        def judge(name: str, solver: str) -> None:
            origin = Origin(method=name, solver=solver)
            schedule = dataclasses.replace(baseline(name, noise, self._steps), origin=origin)
            value = self._judge.value(schedule, some)
            found.append((value if np.isfinite(value) else math.inf, schedule))

        for name in RULES:
            if name in BASELINES and not inapplicable(name, noise):
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
        return search_without_model(self._noise, self._steps, method=how)

    def _place(self, schedule: Schedule) -> np.ndarray:
        """The schedule as a point, in coordinates of its own."""
        self._judge.coordinates = Coordinates.at(schedule, self._noise, self._options.solver, self._base)
        return self._judge.coordinates.point(schedule)

    def _search(self, by: str, z: np.ndarray, profile: Profile | None) -> str:
        """How it was searched at last: gradients give way to what needs none where they cannot be had."""
        judge = self._judge
        if not len(z):
            return by
        curvature = search.reference_curvature(judge.coordinates, z, self._model.guidance, profile)
        if by == "gradients":
            try:
                search.gradients(judge, z, curvature, self._rows, self._seen)
                return by
            except (MemoryError, ValueError) as trouble:
                if self._options.by == "gradients" and not isinstance(trouble, MemoryError):
                    raise
                by = "differences" if judge.squares else "comparisons"
                judge.notes.append(f"no gradients ({trouble}): by {by}")
                free, z = judge.coordinates.free, self._place(self._best[0])
                if judge.coordinates.free != free:  # the best is an earlier start's, in other coordinates
                    return self._search(by, z, profile)
        search_by = search.differences if by == "differences" else search.comparisons
        with contextlib.suppress(SpentError):
            search_by(judge, z, curvature, self._rows, self._seen)
        return by

    def _gits(self) -> None:
        """The nodes by dynamic programming; the solver is the one that the coefficients deviate from."""
        assert self._made.costs is not None
        grid = converged(self._noise, self._options.teacher_steps)
        chosen = grid.t[gits.best_path(self._made.costs, self._steps, gits.COEFFICIENT)]
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
        schedule = with_coefficients(schedule, self._noise, self._options.solver, self._base)
        self._best = schedule, value
        if self._options.improved is not None:
            self._options.improved(self._schedule(schedule, value, error=self._shown(value)))

    def _tell(self) -> None:
        if self._options.progress is not None:
            best = self._shown(self._best[1]) if self._best[1] < math.inf else None
            self._options.progress(self._judge.evaluations, self._options.budget, best)

    def _shown(self, value: float) -> float:
        """An error as people read it."""
        return math.exp(value) if self._judge.squares else value

    def _schedule(self, schedule: Schedule, value: float, **found: str | float) -> Schedule:
        """With what it was tuned on, and what was found."""
        options, facts = self._options, self._facts
        tuned = {
            **{k: v if isinstance(v, (str, int, float)) else json.dumps(v, sort_keys=True) for k, v in facts.items()},
            "budget": options.budget,
            **({"teacher_steps": options.teacher_steps, "samples": options.samples} if options.samples else {}),
            "evaluations": self._judge.evaluations,
            **{k: v if isinstance(v, str) else float(f"{v:.6g}") for k, v in found.items() if _says(v)},
        }
        schedule = self._model.part.joined(schedule, options.nfe)
        solver = solvers.NONSTATIONARY if schedule.coefficients is not None else schedule.solver
        if options.solver != solvers.NONSTATIONARY:
            solver = solvers.canonical(options.solver)
        origin = Origin(
            method="tuned",
            solver=solver,
            guidance=self._model.guidance,
            seed=options.seed,
            versions=versions(),
            tuned=tuned,
        )
        return dataclasses.replace(schedule, origin=origin).with_scores(fitness=self._shown(value))


def _says(value: str | float) -> bool:
    return bool(value) if isinstance(value, str) else math.isfinite(value)


def _arguments(options: Options, model: Model, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint is compared by."""
    start, profile, error = options.start, options.profile, options.error
    own = {name: getattr(options, name) for name in ("solver", "budget", "teacher_steps", "samples", "kept_apart")}
    return {
        **own,
        "batch": options.batch,
        "by": options.by,
        "start": None if start is None else sha([start.t.tobytes().hex(), repr(start.coefficients)]),
        "profile": None if profile is None else sha([profile.to_json()]),
        "detail": options.detail,
        "error": None if error is None else getattr(error, "__qualname__", type(error).__qualname__),
        "seed": options.seed,
        "nfe": options.nfe,
        "noise": model.part.noise.fingerprint(),
        "guidance": model.guidance,
        "torch": torch.__version__,
        **facts,
    }


def sha(texts: Sequence[str]) -> str:
    """A short digest of texts."""
    return hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()[:16]
