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

from benchmarks import arguments
from benchmarks.arguments import budgets, exit_code, names

RECORDS = Path("docs/results/tuning.jsonl")
PICTURED = 4


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code, 2 for bad input."""
    return exit_code(_run, _parser().parse_args(argv), "finished cells")


def _run(args: argparse.Namespace) -> int:
    from benchmarks.tuning import measure, picture, report, targets

    if args.picture is not None:
        picture.write(PICTURED, args.picture)
        print(f"wrote {args.picture}")
        return 0
    path: Path = args.records
    if args.measure:
        path.parent.mkdir(parents=True, exist_ok=True)
        every = targets.names(args.networks)
        chosen = every if args.only is None else args.only
        if unknown := [name for name in chosen if name not in every]:
            raise ValueError(f"only has {', '.join(unknown)}; there are {', '.join(every)}")
        count = measure.run(path, chosen, args.nfe, args.methods, args.networks)
        print(f"{count} cells measured: {path}")
    for written in report.write(measure.read(path), path):
        print(f"wrote {written}")
    return 0


def _parser() -> argparse.ArgumentParser:
    from benchmarks.tuning.measure import BUDGETS, METHODS

    parser = arguments.parser("python -m benchmarks.tuning", __doc__)
    add = parser.add_argument
    add("--measure", action="store_true", help="measure what the records do not have")
    add("--networks", type=Path, metavar="PATH", help="folder with networks.py, which says what there is and loads it")
    add("--picture", type=Path, metavar="FILE", help="draw samples of emoji-flow, and nothing else")
    add("--only", type=names, help="some networks; default all")
    add("--nfe", type=budgets, default=list(BUDGETS), help="such as 4,6,8 or 4-8; default 4,5,6,8")
    add("--methods", type=names, default=METHODS, help=f"of {', '.join(METHODS)}; default all")
    add("--records", type=Path, default=RECORDS, metavar="FILE", help="default %(default)s; the page is beside it")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
