"""Error against N from the records: a row of panels a model, a column a solver."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter

from benchmarks.networks.ablations import DETAILS
from benchmarks.networks.records import Record
from benchmarks.networks.tables import METRICS, columns
from benchmarks.solvers import SOLVERS
from hso_jax.files import write_whole

# Okabe and Ito's colours and a brown, told apart by all kinds of colour vision; each line has its own marker as well.
LINES = {
    "trailing": ("#7f7f7f", "s", "-"),
    "karras": ("#e69f00", "^", "-"),
    "ays": ("#cc79a7", "v", "-"),
    "beta-t": ("#56b4e9", ">", "-"),
    "uniform-lam": ("#8b5a2b", "<", "-"),
    "gits": ("#009e73", "D", "-"),
    "hso": ("#0072b2", "p", "-"),
    "nonstationary": ("#6a3d9a", "*", "-"),
    "solver-error": ("#d55e00", "o", "-"),
    "direct": ("#000000", "x", "--"),
}


def error_figure(records: Sequence[Record], metric: str) -> Figure:
    """Of the records without guidance. Both axes are logarithmic; the bars of `solver-error` are its 95 % intervals."""
    table = columns(r for r in records if r.guidance == 1.0)
    budgets = sorted({column[3] for column in table})
    models = list(dict.fromkeys(column[0] for column in table))
    solvers = [s for s in SOLVERS if any(column[2] == s for column in table)]
    figure = Figure(figsize=(3.5 * len(solvers) + 0.6, 3.0 * len(models) + 0.9), layout="constrained")
    panels = figure.subplots(len(models), len(solvers), sharex=True, sharey="row", squeeze=False)
    handles = {}
    for row, model in zip(panels, models, strict=True):
        for panel, solver in zip(row, solvers, strict=True):
            for name, (colour, marker, style) in LINES.items():
                points = [
                    (n, *r.interval(metric))
                    for n in budgets
                    if (r := table.get((model, 1.0, solver, n), {}).get(name)) and getattr(r, metric)
                ]
                if not points:
                    continue
                x, y, low, high = zip(*points, strict=True)
                ours = name == "solver-error"
                (handles[name],) = panel.plot(
                    x, y, style, color=colour, marker=marker, label=name, linewidth=2.2 if ours else 1.3,
                    markersize=6.5 if ours else 5, zorder=3 if ours else 2,
                )  # fmt: skip
                if ours:
                    panel.vlines(x, low, high, color=colour, linewidth=1.2, alpha=0.6)
            panel.set(xscale="log", yscale="log")
            panel.set_title(f"{model}, {SOLVERS[solver]}", fontsize=10)
            panel.xaxis.set_major_locator(FixedLocator(budgets))
            panel.xaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n:g}"))
            panel.xaxis.set_minor_locator(FixedLocator([]))
            panel.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            panel.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
            panel.yaxis.set_minor_formatter(NullFormatter())
            panel.grid(alpha=0.25)
        row[0].set_ylabel(METRICS[metric])
    for panel in panels[-1]:
        panel.set_xlabel("N, model evaluations")
    ordered = [name for name in reversed(LINES) if name in handles]
    figure.legend([handles[name] for name in ordered], ordered, loc="outside lower center", ncols=5, frameon=False)
    return figure


def detail_figure(ratios: Mapping[tuple[str, str], Sequence[float]]) -> Figure:
    """What `studies.detail_ratios` has: RMSE solid, FID dashed, a colour a model."""
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    panel = figure.subplots()
    colours = dict(zip(dict.fromkeys(model for model, _ in ratios), ("#0072b2", "#d55e00", "#009e73"), strict=False))
    for (model, metric), values in ratios.items():
        style, marker = {"rmse": ("-", "o"), "fid": ("--", "s")}[metric]
        label = f"{model}, {METRICS[metric]}"
        panel.plot(list(DETAILS), values, style, marker=marker, color=colours[model], label=label)
    panel.axhline(1.0, color="#7f7f7f", linewidth=0.8)
    panel.set(xlabel="detail", ylabel="relative to detail 0")
    panel.grid(alpha=0.25)
    panel.legend(frameon=False, fontsize=9)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write whole, the same bytes for the same figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None}, dpi=110)
    write_whole(path, buffer.getvalue())
