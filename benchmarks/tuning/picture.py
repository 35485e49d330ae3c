"""The README's picture: the same noise in few steps, as pipelines have them, recommended, tuned; and converged."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from benchmarks.networks.charts import save
from benchmarks.networks.grids import pictures
from benchmarks.networks.tables import number
from benchmarks.tuning.measure import EVALUATIONS, LATENTS
from benchmarks.tuning.targets import FINE, Judged, target, tuning_seed
from bridge import tune_denoiser
from hso_jax import Schedule, baseline, recommend

NETWORK = "emoji-flow"
COLUMNS = 9


class Row(NamedTuple):
    """A name, smaller text below it, and samples [n, 3, H, W]."""

    name: str
    detail: str
    samples: torch.Tensor


def write(nfe: int, path: Path) -> None:
    """Draw it for N = `nfe`. Raises ValueError for a file that is there already, before any work."""
    if path.exists():
        raise ValueError(f"{path} is there already; remove it, or name another file")
    save(figure(rows(nfe)), path)


def rows(nfe: int) -> list[Row]:
    """On the noises that schedules are judged on, which no choice sees; each error is that of all of them."""
    one = target(NETWORK, None)
    judged = Judged(one, 1)
    best = recommend(one.noise, nfe, guidance=1.0)
    tuned = tune_denoiser(
        one.denoiser,
        one.noise,
        nfe,
        latents=one.latents(LATENTS, tuning_seed(0)),
        condition=one.condition(LATENTS),
        budget=EVALUATIONS,
    )
    trailing = baseline("trailing", one.noise, nfe)

    def row(name: str, schedule: Schedule, solver: str, detail: str) -> Row:
        samples = one.sample(schedule, solver, judged.latents)
        return Row(name, f"{detail}\nRMSE {number(judged.rmse(samples))}", samples)

    return [
        row(f"{nfe} steps of Euler", trailing, "ddim", "evenly spaced, as FLUX has it"),
        row("of UniPC", trailing, "unipc-2", "evenly spaced"),
        row("recommended", best.schedule, best.solver, "no evaluation of the model"),
        row("tuned", tuned.schedule, tuned.schedule.solver, f"{tuned.evaluations:,} evaluations"),
        Row("converged", f"{FINE} steps", judged.converged),
    ]


def figure(shown: list[Row]) -> Figure:
    """The first samples of each row."""
    layout = ConstrainedLayoutEngine(w_pad=0.01, h_pad=0.02, wspace=0, hspace=0)
    sheet = Figure(figsize=(8.6, 0.75 * len(shown)), layout=layout)
    grid = sheet.subplots(len(shown), COLUMNS + 1, width_ratios=[2.6, *COLUMNS * [1.0]])
    for axes, row in zip(grid, shown, strict=True):
        axes[0].text(0, 0.62, row.name, fontsize=9, fontweight="bold", va="bottom")
        axes[0].text(0, 0.56, row.detail, fontsize=7.5, color="#606068", va="top", linespacing=1.3)
        for one, picture in zip(axes[1:], pictures(row.samples[:COLUMNS]), strict=True):
            one.imshow(picture, interpolation="nearest")
        for one in axes:
            one.axis("off")
    return sheet
