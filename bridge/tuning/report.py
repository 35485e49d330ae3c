"""What tuning says: while it runs, and in the end."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from hso_jax.schedule import Schedule

Progress = Callable[[int, int, float | None], None]
"""Called with (evaluations so far, budget, least validation error so far)."""


class Tuned(NamedTuple):
    """A schedule that was tuned on a model, and what it is worth there.

    Errors are root mean squares over the samples that were kept apart (or the caller's own error of them).

    Attributes:
        schedule: the best on those samples; it is saved and installed as any other.
        error: its error.
        start: what the search began with: "zoo", "search", "profile", "given", or a rule's name; with what its budget
            had left it began with the others as well.
        start_error: that one's; `error` is never above it.
        rule, rule_error: the best of the usual rules, and its error.
        evaluations: of the network, each of a single sample, those of the converged samples included.
        by: "differences", "gradients" or "comparisons".
        history: (evaluations, error on the tuning samples, error on those kept apart) of each better point.
        notes: what was done otherwise than asked, in words.
    """

    schedule: Schedule
    error: float
    start: str
    start_error: float
    rule: str
    rule_error: float
    evaluations: int
    by: str
    history: tuple[tuple[int, float, float], ...]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        gain = 1.0 - self.error / self.start_error if self.start_error > 0 else 0.0
        text = (
            f"N = {self.schedule.nfe}, {self.schedule.solver}: error {self.error:.4g} on samples kept apart, "
            f"{self.start_error:.4g} at the start ({self.start}), {gain:.0%} less; "
            f"{self.rule_error:.4g} by the best rule ({self.rule}); {self.evaluations} evaluations, by {self.by}"
        )
        return "; ".join((text, *self.notes))
