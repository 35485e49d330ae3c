"""Schedules on trained networks from outside the project: measure what is missing, then report from the records.

python -m benchmarks.heldout --networks PATH               every network that PATH/networks.py names; stops and resumes
python -m benchmarks.heldout --networks PATH --nfe 4,6,8   a part of it
python -m benchmarks.heldout                               the page from the records alone
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks import arguments
from benchmarks.arguments import budgets, exit_code, names
from benchmarks.solvers import COMPARED
from hso_jax.files import write_whole

RECORDS = Path("docs/results/heldout.jsonl")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code, 2 for bad input."""
    return exit_code(_run, _parser().parse_args(argv), "finished cells")


def _run(args: argparse.Namespace) -> int:
    from benchmarks.heldout import measure, picture, report
    from benchmarks.networks import charts, records

    path: Path = args.records
    if args.networks is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        chosen = {"nfes": args.nfe, "solvers": args.solvers, "methods": args.methods, "count": args.count}
        chosen = {name: x for name, x in chosen.items() if x is not None}
        print(f"{measure.run(args.networks, path, seed=args.seed, **chosen)} cells measured: {path}")
    page, found = path.with_suffix(".md"), records.read(path)
    write_whole(page, report.report(found, path.name).encode())
    print(f"wrote {page}")
    if rows := picture.gains(found.cells):
        chart = path.with_name(f"{path.stem}-predicted.png")
        charts.save(picture.figure(rows), chart)
        print(f"wrote {chart}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = arguments.parser("python -m benchmarks.heldout", __doc__)
    add = parser.add_argument
    add("--networks", type=Path, metavar="PATH", help="folder with networks.py, which says what there is and loads it")
    add("--nfe", type=budgets, help="such as 4,6,8 or 4-8; default 4,6,8")
    add("--solvers", type=names, help=f"default {','.join(COMPARED)}")
    add(
        "--methods",
        type=names,
        help="default every rule, hso, and both searches by the solver's error, with a profile and without, and with "
        "other weights of detail",
    )
    add("--count", type=int, help="images a cell, default 64; points, samples of few numbers, 16 times as many")
    add("--seed", type=int, default=0, help="of noise and searches; default %(default)s")
    add("--records", type=Path, default=RECORDS, metavar="FILE", help="default %(default)s; the page is beside it")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
