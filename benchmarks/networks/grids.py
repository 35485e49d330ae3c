"""Image grids: the same noise under several schedules, rows are schedules and columns are seeds.

Schedules come from the records; the images are sampled again, for the first few noises and labels of the benchmark.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image

from benchmarks.methods import registry
from benchmarks.models.subjects import Subject
from benchmarks.networks.records import Record, schedule_of
from benchmarks.networks.tables import columns, number
from benchmarks.solvers import SOLVERS
from bridge.cli.image_grid import Row, grid, save_png
from hso_jax.schedule import Schedule
from hso_jax.solvers import NONSTATIONARY

ROWS = ("trailing", "hso", "solver-error")
LAST = NONSTATIONARY
"""A further row, where it was measured."""

SOLVER = "dpmpp-2m"
IMAGES = 8


class Sheet(NamedTuple):
    """One grid: a model at one N.

    Attributes:
        model, nfe: of the records.
        records: those of `ROWS` and `LAST`, in this order.
    """

    model: str
    nfe: int
    records: tuple[Record, ...]

    @property
    def file(self) -> str:
        """The picture's file name."""
        return f"grid-{self.model}-{self.nfe}.png"


def sheets(records: Sequence[Record]) -> list[Sheet]:
    """The grids that the records have all schedules of, without guidance."""
    return [
        Sheet(model, nfe, tuple(cells[m] for m in (*ROWS, LAST) if m in cells))
        for (model, guidance, solver, nfe), cells in columns(records).items()
        if guidance == 1.0 and solver == SOLVER and all(m in cells for m in ROWS)
    ]


def draw(sheet: Sheet, subject: Any, converged: torch.Tensor) -> Image.Image:
    """The grid.

    Args:
        sheet: of `sheets`.
        subject: of the sheet's model.
        converged: [n, C, 32, 32] the converged samples.
    """
    count = min(IMAGES, len(converged))
    rows = []
    for record in sheet.records:
        schedule, solver = _drawn(record, subject)
        images = subject.sample(schedule, solver, slice(0, count)).images
        detail = f"RMSE {number(record.rmse)}\nFID {number(record.fid)}"
        rows.append(Row(record.method, detail, pictures(images)))
    rows.append(Row("converged", "the limit of many steps", pictures(converged[:count])))
    title = f"{sheet.model}: {sheet.nfe} evaluations, {SOLVERS[SOLVER]}"
    text = "The same noise in each column. RMSE and FID are those of all samples, to the converged ones."
    return grid(rows, [f"noise {i}" for i in range(count)], title, text)


def _drawn(record: Record, subject: Any) -> tuple[Schedule, str]:
    """The schedule of a record and its solver; coefficients are in no record, and are searched again."""
    if record.method != NONSTATIONARY:
        return schedule_of(record), SOLVER
    schedule = registry.prepare(record.method, subject, record.solver, record.nfe, seed=record.seed).schedule
    return schedule, schedule.solver


def pictures(images: torch.Tensor) -> list[Image.Image]:
    """Images [n, 1 or 3, H, W] in [-1, 1] (clipped to it) as pictures."""
    levels = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(one[..., 0] if one.shape[-1] == 1 else one) for one in levels]


def write(
    records: Sequence[Record], folder: Path, subject: Callable[..., Any] = Subject, *, anew: bool = True
) -> list[Path]:
    """Draw the grids of the records into a folder, without `anew` only missing ones; returns the files drawn."""
    files = []
    cached = functools.cache(subject)
    for sheet in sheets(records):
        if not anew and (folder / sheet.file).exists():
            continue
        one = sheet.records[0]
        judged = cached(one.model, one.guidance, one.samples, one.seed, one.dtype)
        files.append(folder / sheet.file)
        save_png(draw(sheet, judged, judged.teacher().images), files[-1], {})
    return files
