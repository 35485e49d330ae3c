"""Tables of figures: Markdown, numbers of few digits, geometric means, and who wins, ties or loses in a cell."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from benchmarks.runner import ANY, SOLVERS, Record
from hso_jax.solvers import NONSTATIONARY

METRICS = {"rmse": "RMSE", "feature": "feature distance", "fid": "FID", "fid_data": "FID to held-out data"}
NONE = "Not measured.\n"

Column = tuple[str, float, str, int]  # model, guidance, solver, N


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """Write a table, or that nothing was measured; the first `left` columns are aligned left, the others right."""
    lines = ["| " + " | ".join(row) + " |" for row in (head, *rows)]
    lines[1:1] = ["|" + "---|" * left + "--:|" * (len(head) - left)]
    return "\n".join(lines) + "\n" if len(lines) > 2 else NONE


def number(x: float | None) -> str:
    """Write three digits; a dash for what is unknown."""
    if x is None:
        return "-"
    return f"{x:.0f}" if x >= 999.5 else f"{x:#.3g}".rstrip(".")


def geometric_mean(ratios: Sequence[float]) -> float:
    """Average ratios; inf if one is."""
    return math.exp(math.fsum(map(math.log, ratios)) / len(ratios))


def columns(records: Iterable[Record]) -> dict[Column, dict[str, Record]]:
    """Sort records into column to method to record, by model (as they come), guidance, solver and N."""
    found: dict[Column, dict[str, Record]] = {}
    for r in records:
        found.setdefault((r.model, r.guidance, r.solver, r.nfe), {})[r.method] = r
    models = list(dict.fromkeys(column[0] for column in found))
    order = [*SOLVERS, NONSTATIONARY, ANY]
    return dict(sorted(found.items(), key=lambda i: (models.index(i[0][0]), i[0][1], order.index(i[0][2]), i[0][3])))


class Versus(NamedTuple):
    """A method's record of a cell beside the best of others, by a metric."""

    column: Column
    metric: str
    best: Record
    own: Record

    @property
    def ratio(self) -> float:
        """Own value over the best's: above 1 the other is better; inf where the own samples diverged."""
        mine = getattr(self.own, self.metric)
        return math.inf if mine is None else mine / getattr(self.best, self.metric)

    @property
    def outcome(self) -> int:
        """0 won, 1 tied (not better, but inside the best's 95 % interval), 2 lost."""
        mine, (value, _, high) = getattr(self.own, self.metric), self.best.interval(self.metric)
        if mine is not None and (value is None or high is None or mine <= value):
            return 0
        return 1 if mine is not None and mine <= high else 2


def versus(records: Iterable[Record], method: str, against: Sequence[str], metric: str = "rmse") -> list[Versus]:
    """Compare a method in every column that has it with the best of `against` there that has a finite value."""
    rows = []
    for column, cells in columns(records).items():
        others = [cells[m] for m in against if m in cells and getattr(cells[m], metric) is not None]
        if others and method in cells:
            best = min(others, key=lambda r: getattr(r, metric))
            rows.append(Versus(column, metric, best, cells[method]))
    return rows


def outcomes(cells: Sequence[Versus]) -> str:
    """Count cells won / tied / lost."""
    return " / ".join(str(sum(v.outcome == i for v in cells)) for i in range(3)) if cells else "-"


def marked(cells: dict[str, Record], metric: str, unranked: str = "") -> dict[str, str]:
    """Write each method's value: bold the best, italic what lies within the best's 95 % interval.

    Samples that are not finite are "diverged".
    """
    ranked = {m: x for m, r in cells.items() if m != unranked and (x := getattr(r, metric)) is not None}
    best = min(ranked, key=ranked.__getitem__, default=None)
    high = cells[best].interval(metric)[2] if best else None
    texts = {}
    for method, record in cells.items():
        text = "diverged" if record.rmse is None else number(getattr(record, metric))
        if method in ranked and ranked[method] == ranked.get(best or ""):
            text = f"**{text}**"
        elif method in ranked and high is not None and ranked[method] <= high:
            text = f"*{text}*"
        texts[method] = text
    return texts


Ratio = tuple[tuple[str, ...], str, float]  # the row of a table, its column, and a ratio of errors that counts there


def means(head: Sequence[str], ratios: Iterable[Ratio], *, largest: bool = False, order: Sequence[str] = ()) -> str:
    """Write geometric means of ratios, one figure a row and column in the order in which they first come, or `order`.

    `head` is of what names a row; `largest` writes the largest ratio beside each mean.
    """
    found: dict[tuple[str, ...], dict[str, list[float]]] = {}
    for row, column, ratio in ratios:
        found.setdefault(row, {}).setdefault(column, []).append(ratio)
    names = order or list(dict.fromkeys(column for own in found.values() for column in own))
    figures = (geometric_mean, max) if largest else (geometric_mean,)
    rows = [
        [*row, *(f"{f(own[c]):.2f}" if c in own else "" for c in names for f in figures)] for row, own in found.items()
    ]
    titles = [x for c in names for x in ((c, "largest") if largest else (c,))]
    return markdown([*head, *titles], rows, left=len(head))


def with_all(ratios: Iterable[Ratio], first: int = 1) -> list[Ratio]:
    """The ratios, and the same again in a row "all" in place of the first so many names of a row."""
    ratios = list(ratios)
    return [*ratios, *(((*["all"] * first, *row[first:]), column, x) for row, column, x in ratios)]
