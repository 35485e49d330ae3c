"""Schedules by a fitness of the caller's own: as many judgements of the family's members as a budget allows.

An upper level on the host, asked and told in turn, so that the fitness may be any function.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from hso_jax.batch import Progress
from hso_jax.checks import brief, is_number
from hso_jax.compiling import random_key
from hso_jax.lane import Lane
from hso_jax.methods.measured.points import box, schedules_at
from hso_jax.objectives.expansion import objective_name
from hso_jax.schedule import Schedule
from hso_jax.upper.checkpoint import Checkpoint, Records, plain
from hso_jax.upper.evolution import DifferentialEvolution

Fitness = Callable[[Schedule], Any]
"""What is to be small. It may say how many calls of the model one judgement takes, `fitness.calls(nfe) -> int`, and
what it depends on, `fitness.settings`, JSON values that a checkpoint is compared by."""

POPULATION = 8
_SAME = 1e-5  # in t, a hundredth of a training level: schedules closer than that are judged once


class _SpentError(Exception):
    """The budget does not cover another judgement."""


def run(lanes: Sequence[Lane], progress: Progress | None, records: Records | None = None) -> list[Schedule]:
    """Search every lane by the fitness of their one method, one after the other.

    Args:
        lanes: checked, of one group.
        progress: told calls of the model.
        records: kept where the method has no checkpoint of its own.

    Raises:
        ValueError: for a bad value, before the fitness is called; and if neither a start nor a schedule of the first
            generation has a finite fitness.
    """
    method: Any = lanes[0].method
    fitness: Fitness = method.fitness
    given = _of_lanes(lanes, method.starts)
    costs = [_cost(fitness, lane.nfe) for lane in lanes]
    totals = []
    for lane, cost, own in zip(lanes, costs, given, strict=True):
        totals.append(_check_budget(method.budget, lane, cost, len(own)) // cost * cost)
    with Checkpoint(method.checkpoint if jax.process_index() == 0 else None, _arguments(lanes[0], fitness)) as own_file:
        keep = own_file if records is None or method.checkpoint is not None else records
        kept = [
            keep.search(str(lane.nfe), {"starts": [_label(s) for s in own]}, _fault)
            for lane, own in zip(lanes, given, strict=True)
        ]
        found = []
        for i, (lane, cost, own) in enumerate(zip(lanes, costs, given, strict=True)):
            report = None if progress is None else functools.partial(_report, progress, sum(totals[:i]), sum(totals))
            found.append(_search(lane, own, _Judge(lane, fitness, cost, totals[i], kept[i], report)))
            if report is not None:
                report(totals[i])
        return found


class _Judge:
    """Calls the fitness, once for each distinct schedule, as long as the budget lasts; remembers the best."""

    def __init__(
        self,
        lane: Lane,
        fitness: Fitness,
        cost: int,
        budget: int,
        records: Records,
        report: Callable[[int], None] | None,
    ) -> None:
        self._lane, self._fitness, self._cost, self._budget = lane, fitness, cost, budget
        self._records, self._report = records, report
        self._known: dict[tuple[str, bytes], float] = {}
        self.best: Schedule | None = None

    @property
    def count(self) -> int:
        """How many judgements there were."""
        return len(self._known)

    def __call__(self, schedule: Schedule) -> float:
        """The fitness of a schedule, +inf where it is not finite. Raises _SpentError when the budget is spent."""
        key = schedule.end, np.rint(schedule.t / _SAME).tobytes()
        if key in self._known:
            return self._known[key]
        if (self.count + 1) * self._cost > self._budget:
            raise _SpentError
        value = self._recall(schedule)
        if value is None:
            value = _number(self._fitness(schedule))
            record = {"t": schedule.t.tolist(), "fitness": value if math.isfinite(value) else None}
            self._records.add(record)
        self._known[key] = value
        if value < (math.inf if self.best is None else self.best.fitness):  # type: ignore[operator]
            self.best = schedule.with_scores(fitness=value)
        if self._report is not None:
            self._report(self.count * self._cost)
        return value

    def _recall(self, schedule: Schedule) -> float | None:
        """What was said of it before the search was interrupted. Raises ValueError if it was another schedule."""
        if self.count >= len(self._records.done):
            return None
        record = self._records.done[self.count]
        if record["t"] != schedule.t.tolist():
            checkpoint = self._records.checkpoint
            raise ValueError(
                f"schedule {self.count} at N = {self._lane.nfe} is not the one in {checkpoint.path}, which was made "
                f"with other versions or on another machine ({checkpoint.changed_versions()}); give another checkpoint"
            )
        return math.inf if record["fitness"] is None else float(record["fitness"])


def _search(lane: Lane, starts: Sequence[Schedule], judge: _Judge) -> Schedule:
    """Differential evolution over the box, until the budget is spent or nothing new is proposed."""
    dtype = np.dtype(jax.dtypes.canonicalize_dtype(float))
    ends = box(lane)
    algorithm = DifferentialEvolution(POPULATION, *ends.astype(dtype))
    start_key, init_key, run_key = jax.random.split(random_key(lane.seed), 3)
    state, asked = algorithm.start((start_key, init_key))
    try:
        for start in starts:
            judge(start)
        for generation in itertools.count():
            before = judge.count
            points = np.asarray(asked)
            values = np.array([judge(schedule) for schedule in schedules_at(lane, points, ends)])
            if judge.best is None:
                raise ValueError(
                    f"the fitness of all {judge.count} schedules of the first generation at N = {lane.nfe} is not "
                    "finite; nothing can be learnt from it"
                )
            if judge.count == before:
                break
            ask_key, tell_key = jax.random.split(jax.random.fold_in(run_key, generation))
            with np.errstate(over="ignore"):
                state = algorithm.tell(tell_key, points, values.astype(dtype), state)
            asked, state = algorithm.ask(ask_key, state)
    except _SpentError:
        pass
    return judge.best  # type: ignore[return-value]  # the budget covers the first generation, of which one is finite


def _check_budget(budget: Any, lane: Lane, cost: int, starts: int) -> int:
    """The budget. Raises ValueError unless it covers the starts and the first generation."""
    if isinstance(budget, bool) or not isinstance(budget, (int, np.integer)) or budget < 1:
        raise ValueError(f"budget is {budget!r}; need how many calls of the model the fitness may take, a whole number")
    single = np.array_equal(*box(lane))
    least = (starts + (1 if single else POPULATION)) * cost
    if budget < least:
        raise ValueError(
            f"budget is {budget}, but the first generation at N = {lane.nfe} takes {least}: "
            f"{least // cost} schedules ({starts} of them starts) with {cost} calls of the model each"
        )
    return int(budget)


def _cost(fitness: Fitness, nfe: int) -> int:
    """Calls of the model that one judgement takes: what the fitness says, or 1."""
    calls = getattr(fitness, "calls", None)
    if calls is None:
        return 1
    cost = calls(nfe) if callable(calls) else None
    if isinstance(cost, bool) or not isinstance(cost, (int, np.integer)) or cost < 1:
        told = f"{calls!r}" if cost is None else f"{cost!r} at {nfe}"
        raise ValueError(f"fitness.calls is {told}; need a function of N that returns a whole number of at least 1")
    return int(cost)


def _number(value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"fitness returned {value!r}; need a number, the smaller the better") from error
    return number if math.isfinite(number) else math.inf


def _of_lanes(lanes: Sequence[Lane], starts: Sequence[Schedule]) -> list[list[Schedule]]:
    """Each lane's starts. Raises ValueError for one that is for none of them."""
    given: list[list[Schedule]] = [[] for _ in lanes]
    for i, start in enumerate(starts):
        if not isinstance(start, Schedule):
            raise ValueError(f"starts[{i}] is {start!r}; need a Schedule")
        fits = [n for n, lane in enumerate(lanes) if (lane.nfe, lane.layout) == (start.nfe, start.layout)]
        if not fits or start.noise != lanes[fits[0]].noise.fingerprint():
            raise ValueError(
                f"starts[{i}] is for {start.model}, N = {start.nfe}, layout {start.layout!r}; the search is for "
                f"{lanes[0].noise.name}, N = {', '.join(str(lane.nfe) for lane in lanes)}, layout {lanes[0].layout!r}"
            )
        for n in fits:
            given[n].append(start)
    return given


def _fault(record: Any) -> str | None:
    """What is wrong with a record of a checkpoint."""
    if not isinstance(record, dict) or set(record) != {"t", "fitness"}:
        return " must be an object of t and fitness"
    if not isinstance(record["t"], list) or not all(map(is_number, record["t"])):
        return f".t is {brief(record['t'])}, not a list of numbers"
    if record["fitness"] is not None and not is_number(record["fitness"]):
        return f".fitness is {brief(record['fitness'])}, not a number or null"
    return None


def _label(start: Schedule) -> str:
    return f"{start.method} {hashlib.sha256(start.t.tobytes() + start.end.encode()).hexdigest()[:8]}"


def _arguments(lane: Lane, fitness: Fitness) -> dict[str, Any]:
    """What all judgements of a search depend on, as JSON values."""
    method: Any = lane.method
    return {
        "noise": lane.noise.fingerprint(),
        "layout": lane.layout,
        "objective": objective_name(method.family),
        "seed": int(lane.seed),
        "fitness": plain(getattr(fitness, "settings", {}), "fitness.settings"),
    }


def _report(progress: Progress, before: int, total: int, done: int) -> None:
    progress(before + done, total)
