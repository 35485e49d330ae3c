"""heldout.md, from the records alone: how often a method beats the best of all rules, and by how much."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from benchmarks.compared import SOLVERS
from benchmarks.heldout.measure import DETAILED, FREE, FREE_PROFILED, PLAIN, PROFILED, RULES, SEARCHED
from benchmarks.methods import DETAILS
from benchmarks.plots import Gain
from benchmarks.runner import Record, Records, main_group
from benchmarks.tables import Versus, beside_best, columns, geometric_mean, markdown, number, outcomes, versus

OURS = SEARCHED[::-1]
BESIDE = (*SEARCHED, PROFILED)

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
against Euler (DDIM) with `trailing`, the default of FLUX's, Qwen-Image's and Wan's pipelines.
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
    """Count wins, ties and losses, a row a network and solver, and one for all."""
    every = {method: versus(found, method, against) for method in methods}
    places: dict[str, list[str]] = {}
    for network, _, solver, _ in (v.column for v in itertools.chain(*every.values())):
        solvers = places.setdefault(network, [])
        solvers += [solver] if solver not in solvers else []
    rows = []
    for network, solver in [*((n, s) for n, solvers in places.items() for s in (*solvers, "all")), ("all", "all")]:
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
    """Show the best rule of every cell, and what each search has there."""
    others = {m: {v.column: v for v in versus(found, m, RULES)} for m in BESIDE}
    others = {m: own for m, own in others.items() if own}
    rows = []
    for column in dict.fromkeys(itertools.chain(*others.values())):
        here = {m: own[column] for m, own in others.items() if column in own}
        best, (network, _, solver, nfe) = next(iter(here.values())).best, column
        row = [network, SOLVERS[solver], str(nfe), f"`{best.method}`", number(best.rmse), number(best.rmse_high)]
        for m in others:
            row += [number(here[m].own.rmse), f"{here[m].ratio:.2f}"] if m in here else ["", ""]
        rows.append(row)
    head = ["network", "solver", "N", "best rule", "RMSE", "its interval to"]
    return markdown([*head, *(x for m in others for x in (f"`{m}`", "ratio"))], rows, left=2)


FREE_HOW = """\
Nodes and coefficients searched together (`SolverError("nonstationary")`), against the best of *all* known solvers here
with all schedules: rules, `hso` and `solver-error`. Ratio: the RMSE divided by that best one's.
"""


def free(found: Sequence[Record], method: str = FREE) -> str:
    """A row a network and N, and the geometric mean of the ratios for each N; empty without such cells."""
    rows, ratios = [], dict[int, list[float]]()
    known = [r for r in found if r.method in (*RULES, *SEARCHED) and r.rmse is not None]
    order = list(dict.fromkeys(r.model for r in found))
    for own in sorted((r for r in found if r.method == method), key=lambda r: (order.index(r.model), r.nfe)):
        if rest := [r for r in known if (r.model, r.nfe) == (own.model, own.nfe)]:
            told, ratio = beside_best(own, rest)
            ratios.setdefault(own.nfe, []).append(ratio)
            rows.append([own.model, str(own.nfe), *told])
    for nfe, own_ratios in sorted(ratios.items()):
        rows.append(["all", str(nfe), "", "", "geometric mean", f"{geometric_mean(own_ratios):.2f}"])
    return markdown(["network", "N", "best known", "its RMSE", "RMSE", "ratio"], rows, left=1) if rows else ""


def with_profile(found: Sequence[Record]) -> str:
    """Both searches with a profile; empty without such cells."""
    parts = []
    if any(r.method == PROFILED for r in found):
        parts += [
            summary(found, (PROFILED,)),
            "The same against the plain rules:\n",
            summary(found, (PROFILED,), PLAIN),
        ]
    if own := free(found, FREE_PROFILED):
        parts += ["Coefficients of its own, against the best of all known solvers without a profile:\n", own]
    return "\n".join(["## With a profile\n", WITH_PROFILE, *parts]) if parts else ""


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
    rows = []
    for kind in ("solver-error", FREE):
        names = [next((n for n, own in DETAILED.items() if own == (kind, x)), kind) for x in DETAILS]
        ratios: dict[str, list[list[float]]] = {}
        for (network, *_), cells in columns(found).items():
            values = [cells[name].rmse or 0.0 if name in cells else 0.0 for name in names]
            if all(values):
                for place in (network, "all"):
                    ratios.setdefault(place, []).append([x / values[0] for x in values])
        if "all" in ratios:
            ratios["all"] = ratios.pop("all")  # the last row
        for place, own in ratios.items():
            rows.append([place, f"`{kind}`", *(f"{geometric_mean(column):.3f}" for column in zip(*own, strict=True))])
    head = ["network", "", *(f"detail {x:g}" for x in DETAILS)]
    return f"## The weight of fine detail\n\n{DETAIL}\n{markdown(head, rows, left=2)}" if rows else ""


def today(found: Sequence[Record]) -> str:
    """The non-stationary solver against what a flow pipeline does by default, a row a network and N."""
    by_cell = columns(found)
    rows, worse = [], []
    for (network, guidance, solver, nfe), methods in by_cell.items():
        plain = methods.get("trailing")
        own = by_cell.get((network, guidance, FREE, nfe), {}).get(FREE)
        if solver != "ddim" or plain is None or own is None or not plain.rmse or not own.rmse:
            continue
        rows.append([network, str(nfe), number(plain.rmse), number(own.rmse), f"{own.rmse / plain.rmse:.2f}"])
        worse += [f"{network} at N = {nfe}"] if own.rmse > plain.rmse else []
    if not rows:
        return ""
    head = ["network", "N", "Euler, `trailing`", "RMSE", "ratio"]
    listed = f"Not better: {', '.join(worse)}." if worse else "No cell is worse."
    return f"## Against what pipelines do\n\n{TODAY}\n{markdown(head, rows, left=1)}\n{listed}\n"


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
        cells(found.cells),
        "## The networks\n",
        networks(found),
    ]
    return "\n".join(part for part in parts if part)
