"""What one search is asked to do, and what a method must offer to be asked."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple, Protocol

from hso_jax.batch import Progress
from hso_jax.bilevel import Effort
from hso_jax.checkpoint import Records
from hso_jax.checks import check_nfe, check_seed, choice
from hso_jax.noise import NoiseSchedule, check_noise
from hso_jax.schedule import LAYOUTS, Schedule


class Method(Protocol):
    """A way to find schedules; docs/extending.md says how to write one."""

    def check(self, lane: Lane) -> Lane:
        """The lane as it will be searched. Raises ValueError, naming what is wrong, before any work is done."""

    def group(self, lane: Lane) -> Hashable:
        """Lanes of one group are searched together, by the method of any of them."""

    def search(
        self, lanes: Sequence[Lane], effort: Effort | None, progress: Progress | None, records: Records | None
    ) -> list[Schedule]:
        """The schedules of checked lanes of one group, in their order. A lane that fails says so in its `result`.

        Args:
            lanes: at least one.
            effort: the method's own if None.
            progress: to be called as lanes are done.
            records: what is found is kept there, and read from there, so that a search can be resumed; for `batch.run`.
        """


class Lane(NamedTuple):
    """One search: a noise schedule, a number of evaluations and everything else its result depends on.

    Attributes:
        noise: the model's noise schedule.
        nfe: N evaluated nodes, at least 1.
        layout: "node" (N nodes, then a step to clean data) or "interval" (N + 1 nodes, stops at the last).
        seed: of the upper level's random stream.
        method: a method with its options (`Hso(...)`, `SolverError(...)`, ...), or a method's name.
    """

    noise: NoiseSchedule
    nfe: int
    layout: str = "node"
    seed: int = 0
    method: Any = "hso"

    @property
    def intervals(self) -> int:
        """M: N - 1 for "node", N for "interval"."""
        return self.nfe - (self.layout == "node")

    @property
    def nodes(self) -> int:
        """How many nodes there are: N, and one more for the interval layout."""
        return self.nfe + (self.layout == "interval")


def check_lane(lane: Lane) -> Lane:
    """The lane, as far as all methods agree about it. Raises ValueError naming the value that is wrong."""
    check_noise(lane.noise)
    choice("layout", lane.layout, LAYOUTS)
    return lane._replace(nfe=check_nfe(lane.nfe), seed=check_seed(lane.seed))
