"""Tuning on trained networks, own and from outside: measure what is missing, then report from the records.

python -m benchmarks.tuning --measure                      the project's own networks
python -m benchmarks.tuning --measure --networks PATH      and those that PATH/networks.py names; stops and resumes
python -m benchmarks.tuning                                the page from the records alone
python -m benchmarks.tuning --picture docs/images/emoji-flow.png   the README's picture, in two minutes
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks import runner
from benchmarks.runner import budgets, exit_code, names

RECORDS = Path("docs/results/tuning.jsonl")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code, 2 for bad input."""
    parser = runner.command("python -m benchmarks.tuning", __doc__)
    add = parser.add_argument
    add("--measure", action="store_true", help="measure what the records do not have")
    add("--networks", type=Path, metavar="PATH", help="folder with networks.py, which says what there is and loads it")
    add("--picture", type=Path, metavar="FILE", help="draw samples of emoji-flow, and nothing else")
    add("--only", type=names, help="some networks; default all")
    add("--nfe", type=budgets, help="such as 4,6,8 or 4-8; default 4,5,6,8")
    add("--methods", type=names, help="default all; a wrong name lists them")
    add("--records", type=Path, default=RECORDS, metavar="FILE", help="default %(default)s; the page is beside it")
    return exit_code(_run, parser.parse_args(argv), "finished cells")


def _run(args: argparse.Namespace) -> int:
    from benchmarks.tuning import measure, report

    if args.picture is not None:
        measure.picture(args.picture)
        print(f"wrote {args.picture}")
        return 0
    if args.measure:
        chosen = {"networks": args.only, "nfes": args.nfe, "methods": args.methods}
        chosen = {name: x for name, x in chosen.items() if x is not None}
        print(f"{measure.run(args.records, args.networks, **chosen)} cells measured: {args.records}")
    for written in report.write(runner.read(args.records).cells, args.records):
        print(f"wrote {written}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
