"""All pictures of the benchmarks: figures from records, and images side by side.

Colours are Okabe and Ito's and a brown, told apart by all kinds of colour vision; each line has its own marker as well.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator
from PIL import Image

from benchmarks.runner import SOLVERS, Record
from benchmarks.tables import METRICS, columns
from hso_jax.files import write_whole

BLUE, RED, GREEN, PINK, YELLOW, GREY = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#7f7f7f"
LINES = {
    "trailing": (GREY, "s", "-"),
    "karras": (YELLOW, "^", "-"),
    "ays": (PINK, "v", "-"),
    "beta-t": ("#56b4e9", ">", "-"),
    "uniform-lam": ("#8b5a2b", "<", "-"),
    "gits": (GREEN, "D", "-"),
    "hso": (BLUE, "p", "-"),
    "nonstationary": ("#6a3d9a", "*", "-"),
    "solver-error": (RED, "o", "-"),
    "direct": ("#000000", "x", "--"),
}


def save(figure: Figure, path: Path) -> None:
    """Write the picture whole, the same bytes for the same figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None}, dpi=110)
    write_whole(path, buffer.getvalue())


def pictures(images: torch.Tensor) -> list[Image.Image]:
    """Turn images [n, 1 or 3, H, W] in [-1, 1] (clipped to it) into pictures."""
    levels = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(one[..., 0] if one.shape[-1] == 1 else one) for one in levels]


Line = tuple[str, str, str, str]  # label, colour, marker, style
Points = Mapping[str, Sequence[tuple[float, ...]]]  # method to (N, value), or (N, value, low, high) with a bar


def against_nfe(
    panels: Mapping[tuple[str, str], Points], lines: Mapping[str, Line], label: str, top: float | None = None
) -> Figure:
    """Draw values against N, axes logarithmic: a panel a (row, column), a line a method, ours in bold with its bars.

    Rows share their axis, the first of `lines` is at the back, values above `top` are off the picture, which says so.
    """
    rows, cols = (list(dict.fromkeys(key[i] for key in panels)) for i in (0, 1))
    size = (3.5 * len(cols) + 0.6, 3.0 * len(rows) + 0.9)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(rows), len(cols), sharex=True, sharey="row", squeeze=False)
    budgets = sorted({point[0] for points in panels.values() for own in points.values() for point in own})
    handles: dict[str, Any] = {}
    for (row, column), points in panels.items():
        panel = grid[rows.index(row), cols.index(column)]
        for name, (title, colour, marker, style) in lines.items():
            if drawn := [(*p, p[1], p[1])[:4] for p in points.get(name, ()) if np.isfinite(p[1]) and p[1]]:
                x, y, low, high = zip(*drawn, strict=True)
                ours = name == "solver-error"
                (handles[title],) = panel.plot(
                    x, y, style, color=colour, marker=marker, linewidth=2.2 if ours else 1.3,
                    markersize=6.5 if ours else 5, zorder=3 if ours else 2,
                )  # fmt: skip
                if ours:
                    panel.vlines(x, low, high, color=colour, linewidth=1.2, alpha=0.6)
        panel.set(xscale="log", yscale="log")
        panel.set_title(f"{row}, {column}", fontsize=10)
        panel.xaxis.set_major_locator(FixedLocator(budgets))
        panel.xaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n:g}"))
        panel.xaxis.set_minor_locator(FixedLocator([]))
        panel.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        panel.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        panel.yaxis.set_minor_formatter(NullFormatter())
        panel.grid(alpha=0.25)
        if top is not None and panel.get_ylim()[1] > top:
            panel.set_ylim(top=top)
            panel.text(0.98, 0.97, f"some above {top:g}", transform=panel.transAxes, ha="right", va="top", fontsize=8)
    for panels_of_row in grid:
        panels_of_row[0].set_ylabel(label)
    for panel in grid[-1]:
        panel.set_xlabel("N, model evaluations")
    titles = [line[0] for line in list(lines.values())[::-1] if line[0] in handles]
    figure.legend([handles[x] for x in titles], titles, loc="outside lower center", ncols=5, frameon=False)
    return figure


def error_figure(records: Sequence[Record], metric: str) -> Figure:
    """Draw a metric against N without guidance: a row of panels a model, a column a solver."""
    panels: dict[tuple[str, str], dict[str, list[tuple[float, ...]]]] = {}
    for (model, guidance, solver, nfe), cells in columns(records).items():
        for name, r in cells.items():
            if guidance == 1.0 and solver in SOLVERS and getattr(r, metric):
                own = panels.setdefault((model, SOLVERS[solver]), {}).setdefault(name, [])
                own.append((nfe, *(x for x in r.interval(metric) if x is not None)))
    return against_nfe(panels, {name: (name, *line) for name, line in LINES.items()}, METRICS[metric])


def detail_figure(details: Sequence[float], ratios: Mapping[tuple[str, str], Sequence[float]]) -> Figure:
    """Draw (model, metric) to a ratio for each weight of detail: RMSE solid, FID dashed, a colour a model."""
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    panel = figure.subplots()
    colours = dict(zip(dict.fromkeys(model for model, _ in ratios), (BLUE, RED, GREEN), strict=False))
    for (model, metric), values in ratios.items():
        style, marker = {"rmse": ("-", "o"), "fid": ("--", "s")}[metric]
        label = f"{model}, {METRICS[metric]}"
        panel.plot(list(details), values, style, marker=marker, color=colours[model], label=label)
    panel.axhline(1.0, color=GREY, linewidth=0.8)
    panel.set(xlabel="detail", ylabel="relative to detail 0")
    panel.grid(alpha=0.25)
    panel.legend(frameon=False, fontsize=9)
    return figure


def gain_figure(choices: Sequence[Any]) -> Figure:
    """Draw measured against predicted ratios of choices, a panel a kind, axes logarithmic; a colour a network."""
    figure = Figure(figsize=(9.6, 4.4), layout="constrained")
    kinds = list(dict.fromkeys(c.kind for c in choices))
    panels = figure.subplots(1, len(kinds), sharex=True, sharey=True, squeeze=False)[0]
    colours = {name: f"C{i % 10}" for i, name in enumerate(dict.fromkeys(c.network for c in choices))}
    for panel, kind in zip(panels, kinds, strict=True):
        for name, colour in colours.items():
            own = [c for c in choices if (c.network, c.kind) == (name, kind)]
            x, y = [c.predicted for c in own], [c.measured for c in own]
            panel.plot(x, y, ".", color=colour, markersize=3, label=name)
        ends = 0.02, 2.0
        panel.plot(ends, ends, color=GREY, linewidth=1, label="as predicted")
        panel.axhline(1.0, color=GREY, linewidth=1, linestyle="--", label="no gain")
        panel.set(xscale="log", yscale="log", title=f"{kind} solver" if kind == "known" else "free coefficients")
        for axis in (panel.xaxis, panel.yaxis):
            axis.set_major_locator(FixedLocator([0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0]))
            axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
            axis.set_minor_locator(NullLocator())
        panel.set_xlabel("predicted ratio of errors")
        panel.grid(alpha=0.25)
    panels[0].set_ylabel("measured ratio of errors")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=8)
    return figure


def tuning_figure(records: Sequence[Record]) -> Figure:
    """Draw tuning's error on the samples kept apart, as a share of the start's, against evaluations; a line a cell."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    panel = figure.subplots()
    colours = {nfe: f"C{i}" for i, nfe in enumerate(sorted({r.nfe for r in records}))}
    for r in records:
        if r.method == "tune" and r.history:
            spent = [0, *(point[0] for point in r.history)]
            least = np.minimum.accumulate([1.0, *(point[2] / r.start_error for point in r.history)])
            panel.step(spent, least, where="post", color=colours[r.nfe], alpha=0.7, linewidth=1.2)
    for nfe, colour in colours.items():
        panel.plot([], [], color=colour, label=f"N = {nfe}")
    panel.set(
        xlabel="evaluations of the network", ylabel="error as a share of the start's", ylim=(0, 1.05), xlim=(0, None)
    )
    panel.legend(frameon=False)
    panel.grid(alpha=0.3)
    return figure


def cost_figure(found: Mapping[str, Sequence[tuple[float, Mapping[str, float]]]], names: Mapping[str, str]) -> Figure:
    """Draw a search's seconds and memory against what grows: size relative to the default's, and what was measured."""
    figure = Figure(figsize=(8.0, 3.6), layout="constrained")
    panels: Any = figure.subplots(1, 2)
    labels = {"seconds": "search and exact solution, warm, s", "memory": "memory, GiB"}
    for panel, (what, label) in zip(panels, labels.items(), strict=True):
        for (grown, points), colour in zip(found.items(), (BLUE, RED, GREEN), strict=True):
            ys = [one[what] for _, one in points]
            panel.plot([x for x, _ in points], ys, "o-", color=colour, label=names[grown], markersize=4)
        panel.set_xscale("log")
        panel.set_ylim(bottom=0.0)
        panel.set(xlabel="times the default", ylabel=label)
        panel.set_xticks([0.25, 0.5, 1, 2, 4], ["1/4", "1/2", "1", "2", "4"])
        panel.xaxis.set_minor_locator(NullLocator())
        panel.grid(alpha=0.25, which="both")
    panels[0].legend(frameon=False, fontsize=9)
    return figure
