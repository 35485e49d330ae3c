"""Image grids: the same noise under several schedules, rows are schedules and columns are seeds.

Schedules come from the records; the images are sampled again, for the first few noises and labels of the benchmark.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.compared import SOLVERS
from benchmarks.measure import FINE
from benchmarks.plots import pictures
from benchmarks.runner import Record, schedule_of
from benchmarks.tables import columns, number
from benchmarks.targets import Judged, own
from bridge.cli.pictures import Row, grid, save_png
from hso_jax.solvers import NONSTATIONARY

ROWS = ("trailing", "hso", "solver-error")
SOLVER = "dpmpp-2m"
IMAGES = 8


def sheets(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Name the pictures that the records have all of `ROWS` for, without guidance; and those with coefficients last."""
    return {
        f"grid-{model}-{nfe}.png": [cells[m] for m in (*ROWS, NONSTATIONARY) if m in cells]
        for (model, guidance, solver, nfe), cells in columns(records).items()
        if guidance == 1.0 and solver == SOLVER and all(m in cells for m in ROWS)
    }


def write(records: Sequence[Record], folder: Path, *, anew: bool = True) -> list[Path]:
    """Draw the grids of the records into a folder, without `anew` only missing ones; returns the files drawn."""
    judged = functools.cache(lambda model, count, seed: Judged(own(model), count, FINE, seed))
    files = []
    for name, rows in sheets(records).items():
        if anew or not (folder / name).exists():
            files.append(folder / name)
            save_png(_draw(rows, judged(rows[0].model, rows[0].samples, rows[0].seed)), files[-1], {})
    return files


def _draw(records: Sequence[Record], judged: Judged) -> Any:
    latents, rows = judged.latents[:IMAGES], []
    for record in records:
        if record.method == NONSTATIONARY and record.coefficients is None:
            continue  # records of earlier versions do not keep them
        images = judged.target.sample(schedule_of(record), SOLVER, latents)
        rows.append(Row(record.method, f"RMSE {number(record.rmse)}\nFID {number(record.fid)}", pictures(images)))
    rows.append(Row("converged", "the limit of many steps", pictures(judged.converged[:IMAGES])))
    title = f"{records[0].model}: {records[0].nfe} evaluations, {SOLVERS[SOLVER]}"
    text = "The same noise in each column. RMSE and FID are those of all samples, to the converged ones."
    return grid(rows, [f"noise {i}" for i in range(len(latents))], title, text)
