"""heldout.md, from the records alone: what is taken without looking at a network, beside the best of all rules."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from benchmarks.heldout import gains
from benchmarks.heldout.measure import FREE, KNOWN, SEARCHED
from benchmarks.methods import RULES
from benchmarks.plots import gain_figure, save
from benchmarks.runner import SOLVERS, Record, Records, main_group
from benchmarks.tables import Ratio, geometric_mean, markdown, means, number, outcomes, versus, with_all
from hso_jax.files import write_whole

Cells = dict[tuple[str, int], float]
"""(Network, N) to an error, or to a ratio of errors."""

HOW = """\
# Schedules on networks that nobody here trained

Made by `python -m benchmarks.heldout --networks PATH --wheels FOLDER` from the records in `{records}`. The networks are
others', named below. Each cell samples with exactly N evaluations, the last step goes to clean data, and compares with
the *converged samples* of the same noise (DPM++ 2M, 256 evaluations on a fine mesh); RMSE is over all numbers of a
sample, without guidance unless it is named. "Best rule" is the best, of those that have a schedule for the model, of
{rules}:
a choice that no one can make beforehand. `flow-2` and `flow-3` are equal steps of a flow's time with shift 2 and 3.
Figures over several networks are geometric means.
"""

TAKEN = """\
RMSE over that of the best rule with the best of DDIM, DPM++ 2M and UniPC-3. `recommend` is what the library takes by
itself; *zoo, known* the known solver that it predicts to be best, with its shipped schedule; *zoo, free* shipped nodes
and coefficients; *Euler* DDIM with `trailing`, the default of FLUX's, Qwen-Image's and Wan's pipelines. Where nothing
is shipped for a network's noise, each is what a search finds.
"""

AGAINST = """\
Cells won / tied / lost of the searches (`solver-error` for this solver, and `hso`) against the best rule with the same
solver; tied is not better, but inside the 95 % interval of the best rule's RMSE (bootstrap over samples). Ratio: the
RMSE divided by the best rule's.
"""

FREE_HOW = """\
Nodes and coefficients searched together (`SolverError("nonstationary")`): RMSE over that of the best of *all* known
solvers here with all schedules (rules, `hso` and `solver-error`).
"""

TODAY = "Searched nodes and coefficients against Euler with `trailing`: RMSE over RMSE.\n"


def least(found: Iterable[Record], methods: Collection[str], solvers: Collection[str] = ()) -> Cells:
    """The least RMSE of some methods, with some solvers or with any."""
    errors: Cells = {}
    for r in found:
        if r.rmse is not None and r.method in methods and (not solvers or r.solver in solvers):
            errors[r.model, r.nfe] = min(r.rmse, errors.get((r.model, r.nfe), math.inf))
    return errors


def over(own: Cells, base: Cells) -> Cells:
    """Ratios where both are known."""
    return {cell: error / base[cell] for cell, error in own.items() if cell in base}


def known_by_prediction(found: Sequence[Record]) -> Cells:
    """The zoo's known solver with the least predicted error, in each cell."""
    best: dict[tuple[str, int], Record] = {}
    for r in found:
        if r.method == "zoo" and r.solver in SOLVERS and r.rmse is not None and r.problem_error is not None:
            before = best.get((r.model, r.nfe))
            if before is None or r.problem_error < (before.problem_error or 0.0):
                best[r.model, r.nfe] = r
    return {cell: r.rmse for cell, r in best.items() if r.rmse is not None}


def free_ratios(found: Sequence[Record], method: str) -> Cells:
    """A method's RMSE over that of the best known solver with any schedule."""
    return over(least(found, (method,)), least(found, (*RULES, *SEARCHED)))


def today_ratios(found: Sequence[Record], method: str = FREE) -> Cells:
    """A method's RMSE over what a flow pipeline's default has."""
    return over(least(found, (method,)), least(found, ("trailing",), ("ddim",)))


def taken_ratios(found: Sequence[Record]) -> Mapping[str, Cells]:
    """What may be taken without looking at a network, over the best rule with the best known solver."""
    rule = least(found, RULES)
    own = {
        "`recommend`": least(found, ("recommend",)),
        "zoo, known": known_by_prediction(found),
        "zoo, free": least(found, ("zoo",), (FREE,)),
        "Euler": least(found, ("trailing",), ("ddim",)),
    }
    return {name: over(cells, rule) for name, cells in own.items()}


def by_nfe(ratios: Mapping[str, Cells], label: str = "") -> str:
    """Write ratios, a row a network and label and a column an N, and below them the means of all networks."""
    rows: list[Ratio] = [
        ((network, name) if label else (network,), f"N = {nfe}", x)
        for name, cells in ratios.items()
        for (network, nfe), x in cells.items()
    ]
    order = [f"N = {nfe}" for nfe in sorted({nfe for cells in ratios.values() for _, nfe in cells})]
    return means(["network", label] if label else ["network"], with_all(rows), order=order) if rows else ""


def taken(found: Sequence[Record]) -> str:
    """`taken_ratios` as a table, and their means, largest and how often they are better; empty without such cells."""
    every = {name: cells for name, cells in taken_ratios(found).items() if cells}
    if "`recommend`" not in every:
        return ""
    rows = []
    for name, cells in every.items():
        values = list(cells.values())
        worst = max(cells, key=cells.__getitem__)
        rows.append([
            name, f"{geometric_mean(values):.2f}", f"{max(values):.2f} ({worst[0]}, N = {worst[1]})",
            f"{sum(x <= 1.0 for x in values)} of {len(values)}",
        ])  # fmt: skip
    head = ["", "mean of all cells", "largest", "no worse than the best rule"]
    return f"## What is taken\n\n{TAKEN}\n{markdown(head, rows)}\n{by_nfe(every, 'taken')}"


def summary(found: Sequence[Record], methods: Sequence[str]) -> str:
    """Count wins, ties and losses against the best rule, a row a network, a solver, and one for all."""
    every = {method: versus(found, method, RULES) for method in methods}
    compared = [v.column for cells in every.values() for v in cells]
    places = [(network, "all") for network in dict.fromkeys(column[0] for column in compared)]
    places += [("all", solver) for solver in (*dict.fromkeys(column[2] for column in compared), "all")]
    rows = []
    for network, solver in places:
        row = [network, SOLVERS.get(solver, solver)]
        for cells in every.values():
            here = [v for v in cells if network in (v.column[0], "all") and solver in (v.column[2], "all")]
            ratios = [v.ratio for v in here]
            row += [outcomes(here), *(f"{f(ratios):.2f}" if ratios else "-" for f in (geometric_mean, max))]
        rows.append(row)
    head = [f"`{m}` {what}" for m in methods for what in ("won / tied / lost", "mean ratio", "largest")]
    return markdown(["network", "solver", *head], rows, left=2)


def networks(found: Records) -> str:
    """Where the networks are from, and how well their converged samples are known."""
    rows = []
    for name in dict.fromkeys(r.model for r in found.cells):
        own = [r for r in found.cells if r.model == name]
        error = min((r.rmse for r in own if r.rmse is not None), default=None)
        origin = next((s for s in found.setups if s.get("network") == name), {})
        source = " ".join(part.strip() for part in origin.get("source", "not stated").strip("| ").split("|")[1:])
        rows.append(
            [name, source or "not stated", f"`{origin.get('sha256', '')[:12]}`", str(own[0].samples),
             f"{own[0].teacher:.1e}", number(error)]
        )  # fmt: skip
    head = ["network", "from", "files, sha256", "samples", "error of the converged", "least RMSE"]
    return markdown(head, rows, left=3)


def compared(cells: Sequence[Record]) -> list[Record]:
    """Keep the main group of each network, where only samples of the same noise are compared; no removed methods."""
    cells = [r for r in cells if r.method in KNOWN]
    names = dict.fromkeys(r.model for r in cells)
    return [r for name in names for r in main_group([r for r in cells if r.model == name])]


def report(found: Records, name: str) -> str:
    """Write the page's text; `name` is the records file's."""
    if not found.cells:
        raise ValueError("there are no records to report; give --networks PATH to measure")
    kept = compared(found.cells)
    plain = [r for r in kept if r.guidance == 1.0]
    rules = ", ".join(f"`{m}`" for m in RULES if any(r.method == m for r in kept))
    free = free_ratios(plain, FREE)
    parts = [HOW.format(records=name, rules=rules), taken(plain), gains.section(kept)]
    for weight in sorted({r.guidance for r in kept} - {1.0}):
        parts.append(
            taken([r for r in kept if r.guidance == weight]).replace("is taken", f"is taken, guidance {weight:g}")
        )
    if searched := [m for m in SEARCHED[::-1] if any(r.method == m for r in plain)]:
        parts += [f"## Searched nodes\n\n{AGAINST}", summary(plain, searched)]
    if free:
        today = by_nfe({"": today_ratios(plain)})
        parts += [f"## Coefficients of its own\n\n{FREE_HOW}\n{by_nfe({'': free})}", TODAY, today]
    parts += ["## The networks\n", networks(Records(kept, found.setups))]
    return "\n".join(part for part in parts if part)


def write(found: Records, path: Path) -> list[Path]:
    """Write the page beside the records, and the picture of gains; returns the files."""
    page, chart = path.with_suffix(".md"), path.with_name(f"{path.stem}-predicted.png")
    write_whole(page, report(found, path.name).encode())
    if not (rows := gains.choices(compared(found.cells))):
        return [page]
    save(gain_figure(rows), chart)
    return [page, chart]
