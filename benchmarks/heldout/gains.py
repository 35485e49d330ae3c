"""What is predicted to be gained, and what networks gain of it."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.heldout.measure import FREE
from benchmarks.methods import FREE_PROFILED, PROFILED
from benchmarks.plots import Gain
from benchmarks.runner import Record
from benchmarks.tables import geometric_mean

PREDICTED = """\
The error on the reference problems says what coefficients of their own gain there over the best known solver with its
own nodes; the networks say what they gain of it.
"""


def gains(found: Sequence[Record]) -> list[Gain]:
    """List every cell that has coefficients of its own, and a known solver with nodes by the same search."""
    rows = []
    for own in found:
        if own.method not in (FREE, FREE_PROFILED) or own.predicted is None or own.rmse is None:
            continue
        nodes = "solver-error" if own.method == FREE else PROFILED
        known = [r.rmse for r in found if (r.model, r.nfe, r.method) == (own.model, own.nfe, nodes) and r.rmse]
        if known:
            rows.append(Gain(own.model, own.nfe, own.method == FREE_PROFILED, own.predicted, own.rmse / min(known)))
    return rows


def section(found: Sequence[Record], stem: str) -> str:
    """The picture of both, and how far apart they are in the mean; empty without such cells."""
    rows = gains(found)
    lines = []
    for with_profile in (False, True):
        own = [row for row in rows if row.with_profile == with_profile]
        if own:
            kind = "with" if with_profile else "without"
            predicted = geometric_mean([row.predicted for row in own])
            measured = geometric_mean([row.measured for row in own])
            lines.append(f"{kind} a profile {predicted:.2f} predicted, {measured:.2f} measured ({len(own)} cells)")
    chart = f"![Measured against predicted]({stem}-predicted.png)"
    told = f"Geometric means: {'; '.join(lines)}."
    return f"## Predicted and measured\n\n{PREDICTED}\n{told}\n\n{chart}\n" if lines else ""
