"""The main figures of all studies on one page, docs/results/index.md, from their committed records.

python -m benchmarks.summary                          the page, from the records beside it
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks import runner
from benchmarks.heldout.measure import FREE, RULES
from benchmarks.heldout.report import free_ratios, taken_ratios, today_ratios
from benchmarks.methods import ABLATIONS
from benchmarks.networks import compared
from benchmarks.runner import Record
from benchmarks.tables import columns, geometric_mean, markdown, versus
from benchmarks.wheels import GALAXIES
from hso_jax.files import write_whole

FOLDER = Path("docs/results")
BUDGETS = (4, 5, 6, 8)
Ratios = list[tuple[int, float]]  # N, and a ratio of errors

OWN, OTHERS = "own networks", "networks by others"
HELDOUT, TRAINED = "[cells](heldout.md)", "[cells](benchmarks.md)"
CHOSEN = "four of these five"

HEAD = """\
# Results

Made by `python -m benchmarks.summary` from the committed records. Each line is a ratio of errors, the geometric mean
over networks (and solvers, where the method is for one): below 1 the method is better. The error is the RMSE to
converged samples of the same noise, or where it says FID the Frechet distance of features. "Better in" counts cells, a
network and N (and solver). All networks are small: three of our own (Fashion-MNIST, emoji) and five by others (digits,
Fashion-MNIST, 2-D points), and two of galaxies, whose data reach 50 deviations, in a line of their own. Guidance is 1
where nothing is said. The first two lines and [published lists](published.md) are of today's zoo, all others of 0.2.0.

"""

FOOT = """
"Best rule" is chosen in each cell on the very noise that it is judged on, which no one can do beforehand. "Chosen on"
names the networks that a method's settings were chosen on: a figure on these says little of a new model. No large model
was measured.

A profile of the model (the spectrum of its samples and the size of its network's error, to search on problems made like
it) was measured, and removed in 0.3.0. On the five networks by others, on which it was chosen, free coefficients with
it had 0.55, 0.75 and 0.63 of the best known solver's error at N = 4, 6, 8, without it 0.85, 1.11 and 0.98 (the records
in `heldout.jsonl`); on two networks kept apart it raised the error in 11 of 12 cells, 1.17 times for UniPC-3 and 1.12
times for free coefficients.

- [Trained networks](benchmarks.md): every method, the paper's studies, guidance, images.
- [On others' networks](heldout.md): rules and searches.
- [Tuned on the model](tuning.md): what evaluations of the network buy.
- [Gaussian mixtures](solver-error.md): errors on reference problems, and what the defaults were chosen by.
- [Beside published schedules](published.md), [beside NeuralSolver](neuralsolver.md), [speed](speed.md).
"""


def tuned(found: Sequence[Record], method: str) -> Ratios:
    """Errors of a method over the best rule's."""
    errors = {(r.model, r.nfe, r.method): r.rmse for r in found if r.rmse}
    return [(n, x / errors[model, n, "rule"]) for (model, n, own), x in errors.items() if own == method]


def pairs(found: Iterable[Record], method: str, base: str, metric: str) -> Ratios:
    """Errors of one method over another's with the same solver."""
    both = ((column[3], cells[method], cells[base]) for column, cells in columns(found).items() if method in cells)
    return [(nfe, getattr(own, metric) / getattr(other, metric)) for nfe, own, other in both]


def page(folder: Path) -> str:
    """Write the page's text from the records of a folder."""
    own, others, tuning = (runner.read(folder / f"{x}.jsonl").cells for x in ("benchmarks", "heldout", "tuning"))
    ranked = [r for r in own if r.method not in ABLATIONS]
    plain, guided = ([r for r in ranked if (r.guidance == 1.0) == alone] for alone in (True, False))
    known = [(v.column[3], v.ratio) for v in versus(others, "solver-error", RULES)]
    hso = [(v.column[3], v.ratio) for v in versus(others, "hso", RULES)]
    taken = taken_ratios(others)["`recommend`"]
    free, today, galaxies, recommended = (
        [(nfe, ratio) for (_, nfe), ratio in ratios.items()]
        for ratios in (
            free_ratios(others, FREE), today_ratios(others),
            {cell: x for cell, x in taken.items() if cell[0] in GALAXIES},
            {cell: x for cell, x in taken.items() if cell[0] not in GALAXIES},
        )
    )  # fmt: skip
    nodes = {
        what: [(v.column[3], v.ratio) for v in compared(cells, metric)]
        for what, cells, metric in (("RMSE", plain, "rmse"), ("FID", plain, "fid"), ("guided", guided, "rmse"))
    }
    shares = "[cells](tuning.md)"
    rows: list[tuple[str, str, Ratios, str, str]] = [
        ("`recommend` / best rule, best solver", OTHERS, recommended, CHOSEN, HELDOUT),
        ("the same", "galaxies, by others", galaxies, "no galaxies", HELDOUT),
        ("free coefficients / best rule, best solver", "all eight", tuned(tuning, "zoo"), "six of them", shares),
        ("tuned, 5,000 evaluations / the same", "all eight", tuned(tuning, "tune"), "each of them", shares),
        ("free coefficients / Euler, `trailing`", OTHERS, today, CHOSEN, HELDOUT),
        ("free coefficients / best known solver, any schedule", OTHERS, free, CHOSEN, HELDOUT),
        ("`solver-error` nodes / best rule", OTHERS, known, CHOSEN, HELDOUT),
        ("HSO / best rule", OTHERS, hso, "no network", HELDOUT),
        ("`solver-error` nodes / best rule or HSO", OWN, nodes["RMSE"], "these three", TRAINED),
        ("the same, FID", OWN, nodes["FID"], "these three", TRAINED),
        ("the same at guidance 2 and 4", OWN, nodes["guided"], "these three", TRAINED),
        ("HSO / DM-NonUni", OWN, pairs(plain, "hso", "dm-nonuni", "rmse"), "no network", TRAINED),
        ("the same, FID", OWN, pairs(plain, "hso", "dm-nonuni", "fid"), "no network", TRAINED),
    ]
    told = []
    for what, where, ratios, chosen, link in rows:
        own_nfe = ([x for n, x in ratios if n == nfe] for nfe in BUDGETS)
        by_nfe = (f"{geometric_mean(x):.2f}" if x else "" for x in own_nfe)
        better = f"{sum(x <= 1.0 for _, x in ratios)} of {len(ratios)}"
        told.append([what, where, *by_nfe, better, chosen, link])
    head = ["method / beside", "on", *(f"N = {nfe}" for nfe in BUDGETS), "better in", "chosen on", ""]
    return HEAD + markdown(head, told, left=2) + FOOT


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code, 2 for bad input."""
    parser = runner.command("python -m benchmarks.summary", __doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="with the records; default %(default)s")
    return runner.exit_code(_run, parser.parse_args(argv), "the records")


def _run(args: argparse.Namespace) -> int:
    folder: Path = args.folder
    write_whole(folder / "index.md", page(folder).encode())
    print(f"wrote {folder / 'index.md'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
