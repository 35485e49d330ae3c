"""`Measured`: schedules by a fitness of the caller's own, with the method's options."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Hashable, Sequence

from hso_jax.batch import Progress
from hso_jax.bilevel import Effort
from hso_jax.lane import Lane, check_lane
from hso_jax.methods.measured.search import Fitness, run
from hso_jax.methods.solver_error.lanes import check_room
from hso_jax.objectives.expansion import NodeObjective, check_objective
from hso_jax.schedule import Schedule
from hso_jax.upper.checkpoint import Records


@dataclasses.dataclass(frozen=True, eq=False)
class Measured:
    """The schedule of a family that some function of it likes best, for instance samples of the user's own model.

    Attributes:
        fitness: `Schedule` -> a number, the smaller the better; what is not finite counts as +inf. Solver and guidance
            are its affair. It is called on the host, once for each distinct schedule.
        budget: calls of the model that the judgements of each N may take, never exceeded: each takes
            `fitness.calls(nfe)` of them if there is such a method, else 1.
        starts: schedules that are judged before all others, each for its N; one of them is the result (as it is, but
            for `Schedule.fitness`) if nothing better is found.
        checkpoint: file that each judgement is written to, and that the same call resumes from, to the same bytes; the
            budget may then be another, and N may be added.
        family: bound whose minimisers are judged: "mep", "dm-nonuni" or a function, as `Hso.objective`.
    """

    fitness: Fitness
    budget: int
    starts: Sequence[Schedule] = ()
    checkpoint: str | os.PathLike[str] | None = None
    family: str | NodeObjective = "mep"

    def check(self, lane: Lane) -> Lane:
        """See `lane.Method`."""
        lane = check_lane(lane)
        if not callable(self.fitness):
            raise ValueError(f"fitness is {self.fitness!r}; need a function of a schedule")
        check_objective("family", self.family)
        check_room(lane)
        return lane

    def group(self, lane: Lane) -> Hashable:
        """One checkpoint and one list of starts for all lanes of the same object."""
        return Measured, id(self), lane.noise.fingerprint(), lane.layout, lane.seed

    def search(
        self, lanes: Sequence[Lane], effort: Effort | None, progress: Progress | None, records: Records | None = None
    ) -> list[Schedule]:
        """Search the lanes one after the other; `progress` is told calls of the model."""
        if effort is not None:
            raise ValueError(f"effort is {effort!r}; a fitness of your own is searched by as far as its budget goes")
        return run(lanes, progress, records)
