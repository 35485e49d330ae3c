"""The benchmark of schedules on trained networks: measure what is missing, then report from the records.

The order of the cells makes a run that is stopped early useful: whole columns of the tables, the rules and the fast
searches first, then the studies, guidance, and last what takes minutes a cell.

python -m benchmarks                                  everything: hours; stops and resumes at any time
python -m benchmarks --quick                          a small part in two minutes, into build/benchmarks/quick
python -m benchmarks --models fashion-eps --nfe 4,6   a part of it
python -m benchmarks --report-only                    tables and plots from the records alone
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from benchmarks import measure, networks, runner
from benchmarks.methods import ABLATIONS
from benchmarks.models.load import MODELS
from benchmarks.runner import COMPARED, Cell, budgets, check_names, exit_code, names
from hso_jax.baselines import BASELINES
from hso_jax.solvers import NONSTATIONARY

NFES = (6, 4, 8, 10, 5, 7)  # in the order of work
COSTLY = ("gits", "direct", "autodiffusion")  # run the network to find a schedule
FAST = (*BASELINES, "exponential", "hso", "hso-dm-nonuni", "solver-error", NONSTATIONARY)
METHODS = (*FAST, *ABLATIONS, *COSTLY)
GUIDANCE = (1.0, 2.0, 4.0)
GUIDED = (
    *("solver-error", NONSTATIONARY, "hso", "trailing", "karras", "ays", "beta-t", "uniform-lam"),
    *("recommend", "zoo"),
)
SHIPPED = ("recommend", "zoo")  # measured where they are asked for

OUT = Path("docs/results")
QUICK_OUT = Path("build/benchmarks/quick")
QUICK = {
    "models": ("fashion-eps", "emoji-flow"),
    "solvers": ("dpmpp-2m",),
    "nfes": (4, 6),
    "methods": ("solver-error", "hso", "trailing", "leading"),
    "samples": 8,
    "guidance": (1.0,),
}


def plan(
    models: Collection[str] = MODELS,
    solvers: Collection[str] = COMPARED,
    nfes: Collection[int] = NFES,
    methods: Collection[str] = METHODS,
    guidance: Collection[float] = GUIDANCE,
    samples: int = 256,
) -> list[Cell]:
    """List the cells in the order of work: without guidance every method, with guidance the methods `GUIDED`."""
    check_names("model", models, MODELS)
    check_names("solver", solvers, COMPARED)
    check_names("method", methods, (*METHODS, *SHIPPED))
    if samples < 2:
        raise ValueError(f"samples is {samples}; a spread needs 2 or more")
    budgets = [n for n in NFES if n in nfes] + sorted(set(nfes) - set(NFES))

    def block(known: Iterable[str], weight: float = 1.0) -> list[Cell]:
        return [
            Cell(model, weight, solver, nfe, method, 0, samples, "float32")
            for nfe in budgets
            for model in models
            for solver in solvers
            for method in known
            if method in methods
        ]

    blocks = [block((*FAST, *SHIPPED)), block(ABLATIONS)] if 1.0 in guidance else []
    blocks += [block(GUIDED, weight) for weight in guidance if weight != 1.0]
    blocks += [block([method]) for method in COSTLY] if 1.0 in guidance else []
    if not (cells := [cell for one in blocks for cell in one]):
        raise ValueError(f"there is nothing to measure: with guidance only {', '.join(GUIDED)} are")
    return cells


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code, 2 for bad input."""
    return exit_code(_run, _parser().parse_args(argv), "finished cells")


def _run(args: argparse.Namespace) -> int:
    out: Path = args.out or (QUICK_OUT if args.quick else OUT)
    path: Path = args.records or out / "benchmarks.jsonl"
    measured = 0
    if not args.report_only:
        chosen = {name: getattr(args, name) for name in QUICK}
        if args.quick:
            chosen = {name: QUICK[name] if x is None else x for name, x in chosen.items()}
        cells = plan(**{name: x for name, x in chosen.items() if x is not None})
        measured = measure.run(path, cells, images=cells[0].samples, data=dict(args.data or ()))
        print(f"{measured} cells measured, {len(cells)} planned: {path}")
    found = runner.read(path)
    if found.cells:
        out.mkdir(parents=True, exist_ok=True)
    drawn = [] if args.report_only else networks.write_grids(runner.main_group(found.cells), out, anew=measured > 0)
    print(f"wrote {', '.join(map(str, [*networks.write(found, out), *drawn]))}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = runner.command("python -m benchmarks", __doc__)
    add = parser.add_argument
    add("--quick", action="store_true", help="other defaults for all options below: few cells and images")
    add("--models", type=names, help="comma-separated; default all three")
    add("--solvers", type=names, help=f"default {','.join(COMPARED)}")
    add("--nfe", dest="nfes", type=budgets, help="such as 4,6,8 or 4-8; default 4-8,10")
    add("--methods", type=names, help="default all; a wrong name lists them")
    add("--guidance", type=_weights, help="default 1,2,4")
    add("--samples", type=int, help="images a cell; default 256, of --quick 8")
    told = "fashion or emoji and the data set's file, to judge by held-out images as well; repeat for the other"
    add("--data", type=_data, action="append", metavar="NAME=PATH", help=told)
    add("--records", type=Path, metavar="FILE", help="default benchmarks.jsonl in the output folder")
    add("--out", type=Path, metavar="FOLDER", help=f"default {OUT}, of --quick {QUICK_OUT}")
    add("--report-only", action="store_true", help="from the records; measure nothing and draw no images")
    return parser


def _weights(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


def _data(text: str) -> tuple[str, Path]:
    name, equals, place = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=PATH, such as fashion=fashion_mnist.npz")
    return name, Path(place)


if __name__ == "__main__":
    raise SystemExit(main())
