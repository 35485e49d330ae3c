"""Figures of schedules: timesteps against step for every N or method, and MEP over the ends of a schedule."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hso_jax.checks import printable
from hso_jax.files import MARK

if TYPE_CHECKING:
    from hso_jax.schedule import Schedule

_TITLES = {
    "node": "node layout: N nodes, then sigma = 0",
    "interval": "interval layout: N + 1 nodes, stops at the last",
}


def encoded(figure: Figure, kind: str) -> bytes:
    """The content of a picture file, a "png", "svg" or "pdf"; its metadata says that hso-jax made it."""
    date = {"svg": "Date", "pdf": "CreationDate"}.get(kind)
    metadata = {"Creator": MARK, date: None} if date else {"Software": MARK}
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, metadata=metadata, dpi=130)
    return buffer.getvalue()


def _plain(text: str) -> str:
    """A name as matplotlib shows it; an unescaped $ would begin a formula."""
    return printable(text).replace("$", r"\$")


def plot(schedules: Schedule | Sequence[Schedule]) -> Figure:
    """Timestep against step, one line per N, one panel per layout. Raises ValueError for no schedules."""
    every = schedules if isinstance(schedules, Sequence) else [schedules]
    if not every:
        raise ValueError("there are no schedules to draw")
    layouts = [name for name in _TITLES if any(s.layout == name for s in every)]
    figure = Figure(figsize=(6.4 * len(layouts) + 0.8, 4.8), layout="constrained")
    panels = figure.subplots(1, len(layouts), sharey=True, squeeze=False)[0]
    counts = sorted({s.nfe for s in every})
    norm, colours = Normalize(counts[0], max(counts[-1], counts[0] + 1)), colormaps["viridis"]
    for panel, name in zip(panels, layouts, strict=True):
        for s in sorted((s for s in every if s.layout == name), key=lambda s: -s.nfe):
            panel.plot(range(len(s.t)), _height(s), "o-", color=colours(norm(s.nfe)), markersize=3.5, linewidth=1.3)
        _label(panel, _TITLES[name], "step (0 is the first evaluation)")
    panels[0].set_ylabel(_height_label(every))
    bar = figure.colorbar(ScalarMappable(norm, colours), ax=panels, label="N, model evaluations", pad=0.01)
    bar.locator = MaxNLocator(integer=True)
    bar.update_ticks()
    methods, models = (", ".join(dict.fromkeys(_plain(getattr(s, n)) for s in every)) for n in ("method", "model"))
    figure.suptitle(f"{methods} schedules for {models}", fontsize=12)
    return figure


def methods_figure(schedules: Sequence[Schedule]) -> Figure:
    """Timestep against step, one line per method, one panel per N. Raises ValueError for no schedules."""
    if not schedules:
        raise ValueError("there are no schedules to draw")
    counts = sorted({s.nfe for s in schedules})
    methods = list(dict.fromkeys(s.method for s in schedules))
    columns = min(len(counts), 3)
    rows = -(-len(counts) // columns)
    figure = Figure(figsize=(4.6 * columns + 1.6, 3.8 * rows + 0.4), layout="constrained")
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    for panel, nfe in zip(panels, counts, strict=False):
        for i, method in enumerate(methods):
            for s in (s for s in schedules if s.nfe == nfe and s.method == method):
                style: dict[str, Any] = {"linewidth": 1.2, "zorder": 2} if i else {"linewidth": 2.4, "zorder": 3}
                style |= {"color": f"C{i % 10}", "markersize": 4, "label": _plain(method)}
                panel.plot(range(len(s.t)), _height(s), "o-" if i < 10 else "s--", **style)  # there are ten colours
        _label(panel, f"N = {nfe}", "step")
    for panel in panels[len(counts) :]:
        panel.set_axis_off()
    panels[0].set_ylabel(_height_label(schedules))
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False)
    figure.suptitle(f"{_plain(schedules[0].model)}, {schedules[0].layout} layout", fontsize=12)
    return figure


def landscape_figure(
    schedule: Schedule,
    ends: tuple[np.ndarray, np.ndarray],
    value: np.ndarray,
    gap: np.ndarray,
    box: tuple[tuple[float, float], tuple[float, float]],
) -> Figure:
    """Draw MEP over the two ends of a schedule, with the search box, the least gap and the schedule itself.

    Args:
        schedule: its ends are marked, and its `d_min` is drawn as a line.
        ends: values of t_eps (n) and of t_max (m).
        value: MEP of the best nodes between each pair of ends, n x m.
        gap: the least distance in t of those nodes, n x m.
        box: the range of t_eps and that of t_max in which HSO searches.
    """
    t_eps, t_max = ends
    figure = Figure(figsize=(7.4, 5.4), layout="constrained")
    panel = figure.subplots()
    filled = panel.contourf(t_eps, t_max, value.T, 24, cmap="viridis_r")
    figure.colorbar(filled, ax=panel, label="MEP of the best nodes between these ends")
    asked = schedule.origin.d_min
    lines = panel.contour(t_eps, t_max, gap.T, levels=[asked], colors="white", linestyles="--")
    if np.min(gap) < asked < np.max(gap):
        panel.clabel(lines, fmt={asked: f"smallest gap = {asked:.3g}"}, fontsize=8)
    (left, right), (bottom, top) = box
    corners = [left, right, right, left, left], [bottom, bottom, top, top, bottom]
    panel.plot(*corners, "r-", label="the paper's box", clip_on=False)
    label = f"{_plain(schedule.method)} (N = {schedule.nfe})"
    panel.plot(schedule.t[-1], schedule.t[0], "r*", markersize=14, label=label, clip_on=False, zorder=4)
    panel.set_xlabel("t_eps, time of the last node")
    panel.set_ylabel("t_max, time of the first node")
    title = f"{schedule.model}, N = {schedule.nfe}, {schedule.layout} layout: a shorter range always costs less"
    panel.set_title(title, fontsize=11)
    panel.legend(loc="lower right", fontsize=9)
    return figure


def _label(panel: Any, title: str, below: str) -> None:
    panel.set_title(title, fontsize=11)
    panel.set_xlabel(below)
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.grid(alpha=0.25)


def _height(schedule: Schedule) -> np.ndarray:
    """The timesteps of all nodes, the last one of the interval layout included; t itself where there are none."""
    if schedule.kind == "ve":
        return schedule.t
    if schedule.kind == "flow":
        return schedule.num_train_timesteps / (1.0 + np.exp(schedule.lams))
    return schedule.num_train_timesteps * schedule.t - 1.0


def _height_label(schedules: Sequence[Schedule]) -> str:
    return "t" if any(s.kind == "ve" for s in schedules) else "timestep"
