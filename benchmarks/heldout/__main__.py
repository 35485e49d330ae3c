"""Schedules on trained networks from outside the project: measure what is missing, then report from the records.

python -m benchmarks.heldout --networks PATH               every network that PATH/networks.py names; stops and resumes
python -m benchmarks.heldout --networks PATH --nfe 4,6,8   a part of it
python -m benchmarks.heldout                               the page from the records alone
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks import runner
from benchmarks.compared import COMPARED
from benchmarks.runner import budgets, exit_code, names
from hso_jax.files import write_whole

RECORDS = Path("docs/results/heldout.jsonl")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code, 2 for bad input."""
    parser = runner.command("python -m benchmarks.heldout", __doc__)
    add = parser.add_argument
    add("--networks", type=Path, metavar="PATH", help="folder with networks.py, which says what there is and loads it")
    add("--nfe", type=budgets, help="such as 4,6,8 or 4-8; default 4,6,8")
    add("--solvers", type=names, help=f"default {','.join(COMPARED)}")
    add("--methods", type=names, help="default all: every rule and every search; a wrong name lists them")
    add("--count", type=int, help="images a cell, default 64; points, samples of few numbers, 16 times as many")
    add("--records", type=Path, default=RECORDS, metavar="FILE", help="default %(default)s; the page is beside it")
    return exit_code(_run, parser.parse_args(argv), "finished cells")


def _run(args: argparse.Namespace) -> int:
    from benchmarks import plots
    from benchmarks.heldout import measure, report

    path: Path = args.records
    if args.networks is not None:
        chosen = {"nfes": args.nfe, "solvers": args.solvers, "methods": args.methods, "count": args.count}
        chosen = {name: x for name, x in chosen.items() if x is not None}
        print(f"{measure.run(args.networks, path, **chosen)} cells measured: {path}")
    page, found = path.with_suffix(".md"), runner.read(path)
    write_whole(page, report.report(found, path.name).encode())
    print(f"wrote {page}")
    if rows := report.gains(found.cells):
        chart = path.with_name(f"{path.stem}-predicted.png")
        plots.save(plots.gain_figure(rows), chart)
        print(f"wrote {chart}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
