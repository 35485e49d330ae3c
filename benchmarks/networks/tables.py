"""Tables of the records: errors of all methods, with guidance, where the solver-error method loses, and costs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from benchmarks.networks.records import Record
from benchmarks.solvers import SOLVERS
from hso_jax.solvers import NONSTATIONARY

METRICS = {"rmse": "RMSE", "feature": "feature distance", "fid": "FID", "fid_data": "FID to held-out data"}
NETWORK = ("gits", "autodiffusion", "direct")  # look at the network that they are judged on
JUDGED = ("rmse", "fid", "fid_data")
DEFAULT_SOLVER = "ddim"
DEFAULT_RULE = {"fashion-eps": "leading", "fashion-v": "leading", "emoji-flow": "linspace"}
"""Of the networks' own schedulers, as they are saved: DDIM, and Euler for the flow, which is the same."""

LIMIT = "direct"  # optimised for what is measured: shown, and not ranked
FIRST = (
    "nonstationary",
    "solver-error",
    "hso",
    "hso-dm-nonuni",
    "dm-nonuni",
    "trailing",
    "karras",
    "ays",
    "uniform-lam",
)

Column = tuple[str, float, str, int]  # model, guidance, solver, N


class Loss(NamedTuple):
    """A column of the tables in which another method has a smaller value than the solver-error method."""

    column: Column
    best: Record
    ours: Record
    beyond: bool  # ours lies outside the best's interval


def columns(records: Iterable[Record]) -> dict[Column, dict[str, Record]]:
    """Column to method to record, sorted by model (as they come), guidance, solver and N."""
    found: dict[Column, dict[str, Record]] = {}
    for r in records:
        found.setdefault((r.model, r.guidance, r.solver, r.nfe), {})[r.method] = r
    models = list(dict.fromkeys(column[0] for column in found))
    order = [*SOLVERS, NONSTATIONARY]
    return dict(sorted(found.items(), key=lambda i: (models.index(i[0][0]), i[0][1], order.index(i[0][2]), i[0][3])))


def methods_of(records: Iterable[Record]) -> list[str]:
    """The methods in the order of the tables: ours, what is used most, the rest by name, those on the network last."""
    names = {r.method for r in records}
    rest = sorted(names - set(FIRST) - set(NETWORK))
    return [m for m in FIRST if m in names] + rest + [m for m in NETWORK if m in names]


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """A table; the first `left` columns are aligned left, the others right."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * left + "--:|" * (len(head) - left)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def number(x: float | None) -> str:
    """Three digits; a dash for what is unknown."""
    if x is None:
        return "-"
    if x >= 999.5:
        return f"{x:.0f}"
    return f"{x:#.3g}".rstrip(".")


def marked(cells: dict[str, Record], metric: str) -> dict[str, str]:
    """Method to the text of its value: bold the best, italic what lies within the best's 95 % interval.

    `LIMIT` is not ranked. Samples that are not finite are "diverged".
    """
    ranked = {m: x for m, r in cells.items() if m != LIMIT and (x := getattr(r, metric)) is not None}
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


def errors(records: Sequence[Record], metric: str) -> str:
    """Rows are methods, columns solver and N, of records of one model and guidance."""
    table = columns(records)
    texts = {column: marked(cells, metric) for column, cells in table.items()}
    head = ["", *(f"{SOLVERS[solver]} {nfe}" for _, _, solver, nfe in table)]
    return markdown(head, ([f"`{m}`", *(texts[c].get(m, "") for c in table)] for m in methods_of(records)))


def compact(records: Sequence[Record], metric: str, methods: Sequence[str], nfes: Sequence[int]) -> str:
    """Rows are model, solver and N, columns a few methods; the best is marked among them."""
    rows = []
    for (model, _, solver, nfe), cells in columns(records).items():
        chosen = {m: cells[m] for m in methods if m in cells}
        if nfe in nfes and "solver-error" in chosen:
            texts = marked(chosen, metric)
            rows.append([model, SOLVERS[solver], str(nfe), *(texts.get(m, "") for m in methods)])
    return markdown(["model", "solver", "N", *methods], rows, left=2)


def rivals(cells: dict[str, Record]) -> list[str]:
    """What the solver-error method is counted against: the rules and HSO, nothing that looks at the network."""
    return [m for m in cells if m not in ("solver-error", NONSTATIONARY, *NETWORK)]


def losses(records: Iterable[Record], metric: str) -> tuple[list[Loss], int]:
    """Where a rule or HSO has a smaller value than the solver-error method, and how many columns were looked at."""
    lost, looked = [], 0
    for column, cells in columns(records).items():
        known = [cells[m] for m in rivals(cells) if getattr(cells[m], metric) is not None]
        own = cells.get("solver-error")
        if own is None or getattr(own, metric) is None or not known:
            continue
        looked += 1
        best = min(known, key=lambda r: getattr(r, metric))
        value, _, high = best.interval(metric)
        mine = getattr(own, metric)
        if value is not None and high is not None and value < mine:
            lost.append(Loss(column, best, own, mine > high))
    return lost, looked


def tally(records: Sequence[Record]) -> str:
    """In how many columns the solver-error method beats every rule and HSO, a row a guidance weight and model."""
    rows = []
    for weight in sorted({r.guidance for r in records}):
        here = [r for r in records if r.guidance == weight]
        models = {model: [r for r in here if r.model == model] for model in dict.fromkeys(r.model for r in here)}
        rows += [[f"{weight:g}", name, *_outcomes(own)] for name, own in {**models, "all": here}.items()]
    return markdown(["guidance", "model", *(METRICS[m] for m in JUDGED)], rows, left=2)


def _outcomes(records: Sequence[Record]) -> list[str]:
    """For each metric "best / inside the best's interval / beaten beyond it"."""
    texts = []
    for metric in JUDGED:
        lost, looked = losses(records, metric)
        beyond = sum(loss.beyond for loss in lost)
        texts.append(f"{looked - len(lost)} / {len(lost) - beyond} / {beyond}" if looked else "-")
    return texts


def lost_cells(records: Sequence[Record], metric: str) -> str:
    """The columns in which the solver-error method is not the best, those beyond the interval first."""
    rows = [
        [x.column[0], SOLVERS[x.column[2]], str(x.column[3]), f"{x.column[1]:g}", f"`{x.best.method}`",
         number(getattr(x.best, metric)), number(x.best.interval(metric)[2]), number(getattr(x.ours, metric)),
         "yes" if x.beyond else "no"]
        for x in sorted(losses(records, metric)[0], key=lambda loss: not loss.beyond)
    ]  # fmt: skip
    head = ["model", "solver", "N", "guidance", "best", METRICS[metric], "its interval to"]
    head += ["`solver-error`", "beyond it"]
    return markdown(head, rows, left=2) if rows else "None.\n"


def geometric_mean(ratios: Sequence[float]) -> float:
    """Of ratios; inf if one is."""
    return math.exp(math.fsum(map(math.log, ratios)) / len(ratios))


def beside_best(own: Record, known: Sequence[Record], metric: str = "rmse") -> tuple[list[str], float]:
    """The best of known cells, its figure, one's own and their ratio, as texts; the ratio, inf of diverged samples."""
    best = min(known, key=lambda r: getattr(r, metric))
    theirs, mine = getattr(best, metric), getattr(own, metric)
    ratio = math.inf if mine is None else mine / theirs
    return [f"{SOLVERS[best.solver]}, `{best.method}`", number(theirs), number(mine), f"{ratio:.2f}"], ratio


def own_coefficients(records: Sequence[Record]) -> str:
    """Coefficients of their own against the best known solver with any schedule, a row a weight, model and N."""
    groups: dict[tuple[str, float, int], list[Record]] = {}
    for column, cells in columns(records).items():
        groups.setdefault((column[0], column[1], column[3]), []).extend(cells.values())
    rows, every_ratio = [], dict[tuple[float, str], list[float]]()
    for (model, weight, nfe), every in sorted(groups.items(), key=lambda item: item[0][1]):
        row, ratios = [f"{weight:g}", model, str(nfe)], dict[str, float]()
        for metric in ("rmse", "fid"):
            known = [r for r in every if r.method not in (NONSTATIONARY, *NETWORK) and getattr(r, metric)]
            own = next((r for r in every if r.method == NONSTATIONARY and getattr(r, metric)), None)
            if own is None or not known:
                break
            told, ratios[metric] = beside_best(own, known, metric)
            row += told
        else:
            rows.append(row)
            for metric, ratio in ratios.items():
                every_ratio.setdefault((weight, metric), []).append(ratio)
    for weight in sorted({weight for weight, _ in every_ratio}):
        means = (f"{geometric_mean(every_ratio[weight, metric]):.2f}" for metric in ("rmse", "fid"))
        rows.append([f"{weight:g}", "geometric mean", "", *(text for mean in means for text in ("", "", "", mean))])
    head = ["guidance", "model", "N", *(x for m in ("RMSE", "FID") for x in (f"best {m}", "its", "own", "ratio"))]
    return markdown(head, rows, left=2) if rows else "Not measured.\n"


def against_default(records: Sequence[Record]) -> str:
    """Coefficients of their own, which `recommend` gives, against a pipeline's own sampler and rule."""
    groups: dict[tuple[float, str, str, str], list[tuple[int, float]]] = {}
    for (model, weight, solver, nfe), cells in columns(records).items():
        rule = DEFAULT_RULE[model] if weight == 1.0 else "trailing"
        if solver == DEFAULT_SOLVER and NONSTATIONARY in cells and rule in cells:
            for metric in ("rmse", "fid"):
                own, theirs = (getattr(cells[method], metric) for method in (NONSTATIONARY, rule))
                if own and theirs:
                    groups.setdefault((weight, model, rule, metric), []).append((nfe, own / theirs))
    rows, counts = [], list[str]()
    for (weight, model, rule, metric), ratios in sorted(groups.items(), key=lambda item: item[0][0]):
        nfe, worst = max(ratios, key=lambda pair: pair[1])
        told = [f"{weight:g}", model, f"`{rule}`", METRICS[metric], f"{geometric_mean([x for _, x in ratios]):.2f}"]
        rows.append([*told, f"{worst:.2f} (N = {nfe})"])
    for metric in ("rmse", "fid"):
        every = [x for key, ratios in groups.items() if key[-1] == metric for _, x in ratios]
        counts.append(f"{sum(x <= 1.0 for x in every)} of {len(every)} cells by {METRICS[metric]}")
    head = ["guidance", "model", "default rule", "", "ratio", "largest"]
    return markdown(head, rows, left=4) + f"\nAt least as good in {', '.join(counts)}.\n" if rows else "Not measured.\n"


def limit(records: Sequence[Record]) -> str:
    """RMSE above that of nodes optimised directly on the network, in per cent."""
    rows = []
    for (model, _, solver, nfe), cells in columns(records).items():
        low = cells[LIMIT].rmse if LIMIT in cells else None
        own = cells["solver-error"].rmse if "solver-error" in cells else None
        rules = [r.rmse for m in rivals(cells) if (r := cells[m]).rmse is not None]
        if low and own and rules:
            best = min(rules)
            over = (f"{100 * (x / low - 1):.0f} %" for x in (own, best))
            rows.append([model, SOLVERS[solver], str(nfe), number(low), number(own), number(best), *over])
    head = ["model", "solver", "N", "direct", "solver-error", "best rule", "solver-error above", "best rule above"]
    return markdown(head, rows, left=2) if rows else "Not measured.\n"


def cost(records: Sequence[Record]) -> str:
    """Seconds and network evaluations to prepare a schedule, a row a method."""
    rows = []
    for method in methods_of(records):
        own = [r for r in records if r.method == method]
        seconds = [r.seconds for r in own]
        compiling = max(r.compile_seconds for r in own)
        row = [f"`{method}`", *(_seconds(f(seconds)) for f in (statistics.median, min, max))]
        row.append(_seconds(compiling) if compiling >= 0.05 else "-")
        rows.append([*row, f"{statistics.median(r.calls for r in own):,.0f}", str(len(own))])
    head = ["", "seconds, median", "least", "most", "compilation, most", "evaluations of one image, median", "cells"]
    return markdown(head, rows)


def _seconds(x: float) -> str:
    return f"{x:.1g}" if x < 0.01 else f"{x:.0f}" if x >= 100 else f"{x:.{max(0, 1 - math.floor(math.log10(x)))}f}"
