"""What coefficients of their own were predicted to gain, against what they gain: one panel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from benchmarks.heldout.measure import FREE, FREE_PROFILED, PROFILED
from benchmarks.networks.records import Record

# Okabe and Ito's colours, told apart by all kinds of colour vision; each network has its own marker as well.
STYLES = (("#0072b2", "o"), ("#d55e00", "s"), ("#009e73", "^"), ("#cc79a7", "D"), ("#e69f00", "v"), ("#000000", "x"))
TICKS = (0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0)


class Gain(NamedTuple):
    """A cell with coefficients of its own: its error over the best known solver's, with that solver's own nodes."""

    network: str
    nfe: int
    with_profile: bool
    predicted: float
    measured: float


def gains(found: Sequence[Record]) -> list[Gain]:
    """Every cell that has coefficients of its own, and a known solver with nodes by the same search."""
    rows = []
    for own in found:
        if own.method not in (FREE, FREE_PROFILED) or own.predicted is None or own.rmse is None:
            continue
        nodes = "solver-error" if own.method == FREE else PROFILED
        known = [r.rmse for r in found if (r.model, r.nfe, r.method) == (own.model, own.nfe, nodes) and r.rmse]
        if known:
            rows.append(Gain(own.model, own.nfe, own.method == FREE_PROFILED, own.predicted, own.rmse / min(known)))
    return rows


def figure(rows: Sequence[Gain]) -> Figure:
    """Both axes are logarithmic; on the diagonal what was predicted is what was gained."""
    made = Figure(figsize=(6.6, 4.6), layout="constrained")
    panel = made.subplots()
    low = 0.9 * min(min(row.predicted, row.measured) for row in rows)
    high = 1.1 * max(1.0, *(max(row.predicted, row.measured) for row in rows))
    panel.plot([low, high], [low, high], color="#7f7f7f", linewidth=1, label="as predicted")
    panel.axhline(1.0, color="#7f7f7f", linewidth=1, linestyle="--", label="no gain")
    for network, (colour, marker) in zip(dict.fromkeys(row.network for row in rows), STYLES * 9, strict=False):
        for filled in (False, True):
            own = [row for row in rows if row.network == network and row.with_profile == filled]
            panel.scatter(
                [row.predicted for row in own], [row.measured for row in own], s=34, marker=marker, linewidths=1.3,
                edgecolors=colour, facecolors=colour if filled or marker == "x" else "none",
                label=f"{network}{', with a profile' if filled else ''}" if own else None,
            )  # fmt: skip
    panel.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high))
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_locator(FixedLocator([x for x in TICKS if low <= x <= high]))
        axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axis.set_minor_locator(NullLocator())
    panel.set_xlabel("predicted: ratio of errors on the reference problems")
    panel.set_ylabel("measured: ratio of RMSE on the network")
    panel.grid(alpha=0.25)
    made.legend(loc="outside right upper", frameon=False, fontsize=8)
    return made
