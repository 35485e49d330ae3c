"""`Hso`: the paper's method with its options."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Sequence

import jax

from hso_jax.batch import Progress
from hso_jax.bilevel import Effort
from hso_jax.lane import Lane
from hso_jax.methods.hso import search
from hso_jax.methods.hso.lanes import PAPER_BOX, Box, check
from hso_jax.methods.hso.schedules import schedule_of
from hso_jax.objectives.expansion import NodeObjective
from hso_jax.objectives.mep_spf import PAPER_GAMMA, Spacing, paper_d_min
from hso_jax.schedule import Schedule
from hso_jax.upper.checkpoint import Records


@dataclasses.dataclass(frozen=True)
class Hso:
    """Hierarchical schedule optimization (arXiv 2511.11688): no network, no problems, a bound alone.

    Attributes:
        objective: what the lower level minimises: "mep"; "dm-nonuni", the baseline's bound; or any JAX function of
            (lams [K], terms), see `hso_jax.objectives.NodeObjective`.
        p: exponent of the model-error bound, 2 for latent, 1 for pixel models. None is the preset's own where the
            noise schedule is given by a preset's name, else 2.
        spacing: least distance in t, a number or a function of N; the paper's rule by default.
        spacing_as: "constraint" (the lower level keeps it) or "penalty" (the paper's SPF: only the fitness sees it).
        gamma: weight of the penalty in the fitness.
        box: for psi; its ends are cut to the noise schedule's range.
        relax: reduce a spacing that does not fit to the largest that does, instead of raising.
    """

    objective: str | NodeObjective = "mep"
    p: float | None = None
    spacing: Spacing = paper_d_min
    spacing_as: str = "constraint"
    gamma: float = PAPER_GAMMA
    box: Box = PAPER_BOX
    relax: bool = False

    def check(self, lane: Lane) -> Lane:
        """See `lane.Method`."""
        return check(lane)

    def group(self, lane: Lane) -> Hashable:
        """One program for all lanes of one objective."""
        return Hso, self.objective

    def search(
        self,
        lanes: Sequence[Lane],
        effort: Effort | None,
        progress: Progress | None,
        records: Records | None = None,
    ) -> list[Schedule]:
        """Search checked lanes of this objective, each by its own options."""
        moving = [i for i, lane in enumerate(lanes) if lane.intervals > 0]
        found = {}
        if moving:
            rows = search.run([lanes[i] for i in moving], effort or Effort(), progress=progress, records=records)
            found = {i: jax.tree.map(lambda x: x[row], rows) for row, i in enumerate(moving)}  # noqa: B023
        return [schedule_of(lane, found.get(i)) for i, lane in enumerate(lanes)]
