"""What a comparison in a pipeline found: a table for each metric, and the first images side by side."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.networks import tables
from benchmarks.networks.records import Record
from benchmarks.networks.tables import number
from benchmarks.pipelines.image_store import Store
from benchmarks.pipelines.settings import Setting
from benchmarks.solvers import SOLVERS
from bridge.cli.image_grid import Row, grid, save_png
from hso_jax.files import write_whole

COLUMNS = 4
_LABEL = 32  # letters that fit over a column
HEADINGS = {
    "rmse": "RMSE to the converged samples",
    "feature": "Feature distance to the converged samples",
    "fid": "Frechet distance to the converged samples",
    "fid_data": "Frechet distance to the reference images",
}

_HOW = """\
Rows are schedules, columns a solver and its number of network evaluations N, counted at the network. The noise of each
prompt is the same everywhere. The *converged samples* are those of {converged}; half as many make images that
differ from these by an RMSE of {error} (first {checked} prompts). RMSE is over all pixels in [-1, 1], paired by prompt,
of PNG files, whose rounding alone makes 0.003. Frechet distances are biased upwards, the more the fewer the samples:
compare them within a column. Intervals (95 %, in `records.jsonl`) are over the prompts. **Bold**: the best of a column.
*Italic*: inside the interval of the best.
"""


def write(
    records: Sequence[Record], store: Store, converged: Setting, checked: int, facts: Mapping[str, str]
) -> list[Path]:
    """Write `results.md` and the grids beside the images; returns the files.

    Args:
        records: of this run, one for each setting.
        store: the images.
        converged: what they are compared with.
        checked: how many converged samples were made with half as many evaluations too.
        facts: for the head of the report: name to value.
    """
    files = [_sheet(list(cells.values()), store, converged) for cells in tables.columns(records).values()]
    first = records[0]
    made = f"{SOLVERS[converged.solver]} with {converged.nfe} evaluations"
    parts = [f"# Schedules for {first.model}\n", "".join(f"- {name}: {value}\n" for name, value in facts.items())]
    parts.append(_HOW.format(converged=made, error=number(first.teacher), checked=checked))
    for metric, heading in HEADINGS.items():
        if any(getattr(record, metric) is not None for record in records):
            parts += [f"## {heading}\n", tables.errors(records, metric)]
    parts += ["## Preparation\n", "Seconds to find one schedule, compilation included.\n", tables.cost(records)]
    parts += ["## Images\n", "\n\n".join(f"![{file.stem}]({file.name})" for file in files) + "\n"]
    report = store.folder / "results.md"
    write_whole(report, "\n".join(parts).encode())
    return [report, *files]


def _sheet(records: Sequence[Record], store: Store, converged: Setting) -> Path:
    """The grid of one solver and N: a row for each schedule, the converged samples last."""
    solver, nfe = records[0].solver, records[0].nfe
    indices = range(min(COLUMNS, len(store.prompts)))
    rows = []
    for record in records:
        setting = Setting(record.method, solver, nfe)
        if not store.diverged(setting):
            distance = "" if record.fid is None else f"\nFrechet {number(record.fid)}"
            detail = f"RMSE {number(record.rmse)}{distance}"
            rows.append(Row(record.method, detail, [store.picture(setting, i) for i in indices]))
    rows.append(Row("converged", f"{converged.nfe} evaluations", [store.picture(converged, i) for i in indices]))
    labels = [textwrap.shorten(store.prompts[i], _LABEL, placeholder=" …") for i in indices]
    text = "The same noise in each column. Errors are those of all prompts, to the converged samples."
    title = f"{records[0].model}: {nfe} evaluations, {SOLVERS[solver]}"
    file = store.folder / f"grid-{solver}-{nfe}.png"
    save_png(grid(rows, labels, title, text), file, {})
    return file
