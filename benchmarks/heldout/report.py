"""heldout.md, from the records alone: how often a method beats the best of all rules, and by how much."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.compared import SOLVERS
from benchmarks.heldout.measure import DETAILED, FREE, FREE_PROFILED, PLAIN, PROFILED, RULES, SEARCHED
from benchmarks.methods import DETAILS
from benchmarks.plots import Gain
from benchmarks.runner import Record, Records, main_group
from benchmarks.tables import Ratio, Versus, columns, geometric_mean, markdown, means, number, outcomes, table, versus

OURS = SEARCHED[::-1]

HOW = """\
# Schedules on networks that nobody here trained

Made by `python -m benchmarks.heldout --networks PATH` from the records in `{records}`. The networks are others',
named below. Each cell samples with exactly N evaluations, the last step goes to clean data, and compares with the
*converged samples* of the same noise (DPM++ 2M, 256 evaluations on a fine mesh); RMSE is over all numbers of a sample,
without guidance. "Best rule" is the best, of those that have a schedule for the model, of
{rules}:
a choice that no one can make beforehand. `flow-2` and `flow-3` are equal steps of a flow's time with shift 2 and 3.
"""

TODAY = """\
Nodes and coefficients of the search without the model, which `recommend` gives where it predicts a gain of a tenth,
against Euler (DDIM) with `trailing`, the default of FLUX's, Qwen-Image's and Wan's pipelines: its RMSE over theirs.
"""

AGAINST_PLAIN = """\
The same against the best of the rules that are one formula for every model: {rules}. The others are
defaults of old, and tables that were found on other models: Align Your Steps' begin at sigma/alpha = 15, far from the
noise end of the two networks of digits, which is 158, and are the best of all there in four steps.
"""

SUMMARY = """\
Cells won / tied / lost against the best rule: tied is not better, but inside the 95 % interval of the best rule's RMSE
(bootstrap over samples; paired by noise, so that a tie is a cautious one). Ratio: the RMSE divided by the best rule's.
"""


WITH_PROFILE = """\
The same searches with `SolverError(profile=...)`: each network looked at once, 96 trajectories of 32 evaluations from
other noise than what is judged here (`bridge.profile`'s default budget). How problems are made of a profile was chosen
on these five networks, see [profile.md](../profile.md).
"""


def summary(found: Sequence[Record], methods: Sequence[str] = OURS, against: Sequence[str] = RULES) -> str:
    """Count wins, ties and losses, a row a network, a solver, and one for all."""
    every = {method: versus(found, method, against) for method in methods}
    compared = [v.column for v in itertools.chain(*every.values())]
    places = [(network, "all") for network in dict.fromkeys(column[0] for column in compared)]
    places += [("all", solver) for solver in (*dict.fromkeys(column[2] for column in compared), "all")]
    rows = []
    for network, solver in places:
        row = [network, SOLVERS.get(solver, solver)]
        for method in methods:
            here = [v for v in every[method] if network in (v.column[0], "all") and solver in (v.column[2], "all")]
            row += _counts(here)
        rows.append(row)
    head = [f"`{m}` {what}" for m in methods for what in ("won / tied / lost", "mean ratio", "largest")]
    return markdown(["network", "solver", *head], rows, left=2)


def _counts(cells: Sequence[Versus]) -> list[str]:
    """Won / tied / lost, the geometric mean of the ratios, and the largest."""
    if not cells:
        return ["-", "-", "-"]
    ratios = [v.ratio for v in cells]
    return [" / ".join(map(str, outcomes(cells))), f"{geometric_mean(ratios):.2f}", f"{max(ratios):.2f}"]


def cells(found: Sequence[Record]) -> str:
    """Show the best rule of every cell and what the search of nodes makes of its error, a row a network and solver."""
    rows: dict[tuple[str, str], dict[int, str]] = {}
    for v in versus(found, "solver-error", RULES):
        network, _, solver, nfe = v.column
        rows.setdefault((network, SOLVERS[solver]), {})[nfe] = f"{v.ratio:.2f} `{v.best.method}`"
    budgets = sorted({nfe for own in rows.values() for nfe in own})
    told = ([*place, *(own.get(nfe, "") for nfe in budgets)] for place, own in rows.items())
    return table(["network", "solver", *(f"N = {nfe}" for nfe in budgets)], list(told))


FREE_HOW = """\
Nodes and coefficients searched together (`SolverError("nonstationary")`), without and with a profile of the network:
RMSE over that of the best of *all* known solvers here with all schedules (rules, `hso` and `solver-error`, without a
profile).
"""


def _by_nfe(head: Sequence[str], ratios: Iterable[Ratio]) -> str:
    """Write ratios, a row a network and a column an N, and below them the means of all networks."""
    ratios = list(ratios)
    return means(head, [*ratios, *((("all", *row[1:]), column, ratio) for row, column, ratio in ratios)])


def _errors(found: Iterable[Record]) -> dict[tuple[str, int], float]:
    """(Network, N) to the least RMSE, the networks as they come."""
    errors: dict[tuple[str, int], float] = {}
    for (network, _, _, nfe), cells in columns(found).items():
        every = [r.rmse for r in cells.values() if r.rmse is not None]
        errors[network, nfe] = min([*every, errors.get((network, nfe), math.inf)])
    return errors


def _over(own: Iterable[Record], base: Iterable[Record]) -> dict[tuple[str, int], float]:
    known = _errors(base)
    return {cell: error / known[cell] for cell, error in _errors(own).items() if cell in known}


def free_ratios(found: Sequence[Record], method: str) -> dict[tuple[str, int], float]:
    """(Network, N) to a method's RMSE over that of the best known solver with any schedule, without a profile."""
    known = (r for r in found if r.method in (*RULES, *SEARCHED))
    return _over((r for r in found if r.method == method), known)


def free(found: Sequence[Record]) -> str:
    """Coefficients of their own beside the best known solver; empty without such cells."""
    ratios = [
        ((model, told), f"N = {nfe}", ratio)
        for method, told in ((FREE, "without"), (FREE_PROFILED, "with"))
        for (model, nfe), ratio in free_ratios(found, method).items()
    ]
    return _by_nfe(["network", "profile"], ratios) if ratios else ""


def with_profile(found: Sequence[Record]) -> str:
    """The search of nodes with a profile; empty without such cells."""
    if not any(r.method == PROFILED for r in found):
        return ""
    parts = [summary(found, (PROFILED,)), "The same against the plain rules:\n", summary(found, (PROFILED,), PLAIN)]
    return "\n".join(["## With a profile\n", WITH_PROFILE, *parts])


def gains(found: Sequence[Record]) -> list[Gain]:
    """List every cell that has coefficients of its own, and a known solver with nodes by the same search."""
    rows = []
    for own in found:
        if own.method not in (FREE, FREE_PROFILED) or own.predicted is None or own.rmse is None:
            continue
        nodes = "solver-error" if own.method == FREE else PROFILED
        known = [r.rmse for r in found if (r.model, r.nfe, r.method) == (own.model, own.nfe, nodes) and r.rmse]
        if known:
            rows.append(Gain(own.model, own.nfe, own.method == FREE_PROFILED, own.predicted, own.rmse / min(known)))
    return rows


PREDICTED = """\
The error on the reference problems says what coefficients of their own gain there over the best known solver with its
own nodes; the networks say what they gain of it.
"""


def _predicted(found: Sequence[Record], name: str) -> str:
    """The picture of both, and how far apart they are in the mean; empty without such cells."""
    rows = gains(found)
    if not rows:
        return ""
    lines = []
    for with_profile in (False, True):
        own = [row for row in rows if row.with_profile == with_profile]
        if own:
            kind = "with" if with_profile else "without"
            predicted = geometric_mean([row.predicted for row in own])
            measured = geometric_mean([row.measured for row in own])
            lines.append(f"{kind} a profile {predicted:.2f} predicted, {measured:.2f} measured ({len(own)} cells)")
    told = f"Geometric means: {'; '.join(lines)}."
    chart = f"![Measured against predicted]({Path(name).stem}-predicted.png)"
    return f"## Predicted and measured\n\n{PREDICTED}\n{told}\n\n{chart}\n"


DETAIL = """\
The search without a profile with a direction's squared error weighed by its variance^-detail: RMSE, geometric means
over solvers and N relative to detail 0. What it does to images:
[benchmarks.md](benchmarks.md#the-weight-of-fine-detail).
"""


def detail(found: Sequence[Record]) -> str:
    """A row a network and kind of search; empty without such cells."""
    ratios: list[Ratio] = []
    for kind in ("solver-error", FREE):
        names = {x: next((n for n, own in DETAILED.items() if own == (kind, x)), kind) for x in DETAILS}
        of_kind: list[Ratio] = []
        for (network, *_), cells in columns(found).items():
            errors = {x: error for x, name in names.items() if name in cells and (error := cells[name].rmse)}
            if len(errors) == len(DETAILS):
                row = (network, f"`{kind}`")
                of_kind += [(row, f"detail {x:g}", error / errors[0.0]) for x, error in errors.items()]
        ratios += [*of_kind, *((("all", row[1]), column, ratio) for row, column, ratio in of_kind)]
    return f"## The weight of fine detail\n\n{DETAIL}\n{means(['network', ''], ratios, digits=3)}" if ratios else ""


def today_ratios(found: Sequence[Record]) -> dict[tuple[str, int], float]:
    """(Network, N) to the non-stationary solver's RMSE over what a flow pipeline's default has."""
    default = (r for r in found if (r.solver, r.method) == ("ddim", "trailing"))
    return _over((r for r in found if r.method == FREE), default)


def today(found: Sequence[Record]) -> str:
    """The non-stationary solver against what a flow pipeline does by default; empty without such cells."""
    ratios = today_ratios(found)
    if not ratios:
        return ""
    worse = [f"{network} at N = {nfe}" for (network, nfe), ratio in ratios.items() if ratio > 1.0]
    listed = f"Not better: {', '.join(worse)}." if worse else "No cell is worse."
    rows = _by_nfe(["network"], (((network,), f"N = {nfe}", ratio) for (network, nfe), ratio in ratios.items()))
    return f"## Against what pipelines do\n\n{TODAY}\n{rows}\n{listed}\n"


def networks(found: Records) -> str:
    """Where the networks are from, and how well their converged samples are known."""
    rows = []
    for name in dict.fromkeys(r.model for r in found.cells):
        own = [r for r in found.cells if r.model == name]
        least = min((r.rmse for r in own if r.rmse is not None), default=None)
        origin = next((s for s in found.setups if s.get("network") == name), {})
        source = " ".join(part.strip() for part in origin.get("source", "not stated").strip("| ").split("|")[1:])
        rows.append(
            [name, source or "not stated", f"`{origin.get('sha256', '')[:12]}`", str(own[0].samples),
             f"{own[0].teacher:.1e}", number(least)]
        )  # fmt: skip
    head = ["network", "from", "files, sha256", "samples", "error of the converged", "least RMSE"]
    return markdown(head, rows, left=3)


def report(found: Records, name: str) -> str:
    """The page.

    Args:
        found: all records of the file.
        name: of the records file.
    """
    if not found.cells:
        raise ValueError("there are no records to report; give --networks PATH to measure")
    names = dict.fromkeys(r.model for r in found.cells)
    found = Records([r for n in names for r in main_group([r for r in found.cells if r.model == n])], found.setups)
    rules = ", ".join(f"`{m}`" for m in RULES if any(r.method == m for r in found.cells))
    parts = [HOW.format(records=name, rules=rules), "## Against the best of all rules\n", SUMMARY, summary(found.cells)]
    plain = ", ".join(f"`{m}`" for m in PLAIN)
    parts += ["## Against the best plain rule\n", AGAINST_PLAIN.format(rules=plain), summary(found.cells, OURS, PLAIN)]
    own = free(found.cells)
    parts += [
        f"## Coefficients of its own\n\n{FREE_HOW}\n{own}" if own else "",
        with_profile(found.cells),
        _predicted(found.cells, name),
        detail(found.cells),
        today(found.cells),
        "## Every cell\n",
        "RMSE of `solver-error` over that of the best rule, which is named.\n",
        cells(found.cells),
        "## The networks\n",
        networks(found),
    ]
    return "\n".join(part for part in parts if part)
