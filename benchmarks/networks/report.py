"""The report: from the records alone to Markdown, CSV and plots."""

from __future__ import annotations

import collections
import csv
import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path

from benchmarks.networks import charts, grids, report_text, studies, tables
from benchmarks.networks.ablations import ABLATIONS
from benchmarks.networks.cells import GUIDED
from benchmarks.networks.records import FIELDS, Record, Records
from hso_jax.files import write_whole

PLOTTED = ("rmse", "fid")


def main_group(records: Sequence[Record]) -> list[Record]:
    """The records of the seed, count and dtype that most have: only these are compared with each other."""
    groups = collections.Counter((r.seed, r.samples, r.dtype) for r in records)
    chosen = groups.most_common(1)[0][0] if groups else None
    return [r for r in records if (r.seed, r.samples, r.dtype) == chosen]


def report(found: Records, folder: Path) -> str:
    """The text of benchmarks.md in a folder; of the grids it shows those that have been drawn there.

    Raises:
        ValueError: if there are no records.
    """
    if not found.cells:
        raise ValueError("there are no records to report; run `python -m benchmarks` first")
    records = main_group(found.cells)
    ranked = without_ablations(records)
    plain = [r for r in ranked if r.guidance == 1.0]
    parts = ["# Schedules on trained networks\n", how(found), "## Summary\n", report_text.SUMMARY, tables.tally(ranked)]
    if plotted(plain):
        parts += [f"![{tables.METRICS[m]} against N](benchmarks-{m}.png)\n" for m in PLOTTED]
    parts += ["## All methods\n", report_text.MARKS]
    for model in dict.fromkeys(r.model for r in plain):
        own = [r for r in plain if r.model == model]
        for metric in tables.JUDGED:
            if any(getattr(r, metric) is not None for r in own):
                parts += [f"### {model}: {tables.METRICS[metric]}\n", tables.errors(own, metric)]
    parts += ["## The paper's studies\n", report_text.STUDIES]
    for title, text, study in (
        ("Main result, against DM-NonUni", report_text.MAIN, studies.against_dm_nonuni),
        ("psi* against N", report_text.PSI, studies.psi),
        ("Model adaptivity", report_text.ADAPTIVITY, studies.adaptivity),
        ("Robustness: the spacing", report_text.ROBUSTNESS, studies.robustness),
        ("Ablation", report_text.ABLATION, studies.ablation),
        ("The weight of fine detail", report_text.DETAIL, studies.detail),
    ):
        parts += [f"### {title}\n", text, study(records)]
    if studies.detail_ratios(records):
        parts += ["![RMSE and FID against detail](benchmarks-detail.png)\n"]
    parts += ["### Cost\n", report_text.COST, tables.cost(plain)]
    parts += ["## Coefficients of their own\n", report_text.OWN, tables.own_coefficients(ranked)]
    parts += ["## Recommended against the default\n", report_text.DEFAULT, tables.against_default(ranked)]
    parts += ["## Guidance\n", report_text.GUIDANCE, guided(records, ("rmse", "fid"))]
    parts += ["## Distance to the limit\n", report_text.LIMIT, tables.limit(plain)]
    parts += ["## Where the solver-error method does not help\n", report_text.LOST]
    for metric in ("rmse", "fid"):
        parts += [f"{tables.METRICS[metric]}:\n", tables.lost_cells(ranked, metric)]
    if sheets := [s for s in grids.sheets(plain) if (folder / s.file).exists()]:
        parts += ["## Images\n", report_text.GRIDS, *(f"![{s.model}, N = {s.nfe}]({s.file})\n" for s in sheets)]
    return "\n".join(parts)


def how(found: Records) -> str:
    """What was measured, how often and on what."""
    records = main_group(found.cells)
    teachers: dict[tuple[str, float], float] = {(r.model, r.guidance): r.teacher for r in records}
    one = records[0]
    errors = ", ".join(
        f"{model} {error:.1e}" + ("" if weight == 1.0 else f" (guidance {weight:g})")
        for (model, weight), error in sorted(teachers.items())
    )
    facts = [
        f"- {len(records)} cells; {one.samples} samples a cell, the same noise and labels for every schedule; seed "
        f"{one.seed}, network in {one.dtype}.",
        f"- RMSE between the last two refinements of the converged samples: {errors}.",
    ]
    if left := len(found.cells) - len(records):
        facts.append(f"- {left} cells with another seed, count or dtype are in the CSV only.")
    for setup in found.setups:
        machine = f"{setup['cpu']}, {setup['cores']} cores, threads of PyTorch: {setup['threads']}"
        packages = ", ".join(f"{k} {v}" for k, v in setup.items() if k not in ("cpu", "cores", "threads"))
        facts.append(f"- {machine}; {packages}.")
    return report_text.HOW.format(samples=one.samples) + "\n" + "\n".join(facts) + "\n"


def guided(records: Sequence[Record], metrics: Sequence[str]) -> str:
    """A table for each guidance weight that is not 1, and metric."""
    parts = []
    for weight in sorted({r.guidance for r in records} - {1.0}):
        chosen = [r for r in records if r.guidance == weight]
        nfes = sorted({r.nfe for r in chosen})
        for metric in metrics:
            parts += [f"Guidance {weight:g}, {tables.METRICS[metric]}:\n", tables.compact(chosen, metric, GUIDED, nfes)]
    return "\n".join(parts) if parts else studies.NONE


def without_ablations(records: Sequence[Record]) -> list[Record]:
    """Without the schedules that only the studies compare."""
    return [r for r in records if r.method not in ABLATIONS]


def plotted(records: Sequence[Record]) -> bool:
    """Whether there are two N to draw a line between."""
    return len({r.nfe for r in records}) > 1


def comma_separated(records: Sequence[Record]) -> str:
    """All records as CSV: a column a field, lams and psi as texts with spaces."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(FIELDS)
    for record in records:
        row = dataclasses.asdict(record)
        row["lams"] = " ".join("-inf" if lam is None else f"{lam:.9g}" for lam in record.lams)
        row["psi"] = " ".join(f"{name}={x:g}" for name, x in (record.psi or {}).items())
        writer.writerow(["" if row[name] is None else row[name] for name in FIELDS])
    return stream.getvalue()


def write(found: Records, folder: Path) -> list[Path]:
    """Write benchmarks.md, benchmarks.csv and the plots, after the grids if there are any; returns the files.

    Raises:
        ValueError: if there are no records.
    """
    contents = {"benchmarks.md": report(found, folder), "benchmarks.csv": comma_separated(found.cells)}
    for name, content in contents.items():
        write_whole(folder / name, content.encode())
    files = [folder / name for name in contents]
    plain = [r for r in main_group(found.cells) if r.guidance == 1.0]
    for metric in PLOTTED if plotted(plain) else ():
        files.append(folder / f"benchmarks-{metric}.png")
        charts.save(charts.error_figure(plain, metric), files[-1])
    if ratios := studies.detail_ratios(main_group(found.cells)):
        files.append(folder / "benchmarks-detail.png")
        charts.save(charts.detail_figure(ratios), files[-1])
    return files
