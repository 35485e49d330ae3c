"""What is predicted to be gained and what networks gain of it: the calibration that the library ships.

A *choice* is a schedule that the library may take, beside a rule with a solver that a pipeline may have had. Its ratio
of errors is predicted on the reference problems and measured on a network. By kind of choice a line is fitted through
the logarithms of both; how far networks that a line was not fitted on lie from it gives the interval.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from benchmarks.heldout.measure import FREE
from benchmarks.runner import SOLVERS, Record
from benchmarks.tables import NONE, geometric_mean, markdown
from hso_jax.files import write_whole
from hso_jax.schedule import versions

FILE = Path(__file__).parents[2] / "hso_jax" / "shipped" / "gains.json"
INTERVAL = (0.1, 0.9)
SIGNIFICANT = 0.1
"""Largest probability, one-sided, that networks on average gain nothing."""

FEWEST = 4  # networks, to tell

BEFORE = ("leading", "linspace", "trailing", "sgm-uniform", "karras", "uniform-lam", "beta-t")
"""Rules that pipelines and user interfaces have by themselves or by one option."""


class Choice(NamedTuple):
    """A cell of a network with a schedule of the library, beside a rule: ratios of errors, below 1 is a gain."""

    network: str
    nfe: int
    kind: str  # "known" or "free"
    predicted: float
    measured: float


class Line(NamedTuple):
    """log measured = offset + slope log predicted; `low` and `high` are where the interval ends around it."""

    offset: float
    slope: float
    low: float
    high: float

    def holds(self, c: Choice) -> bool:
        """Whether a choice lies inside the interval."""
        return self.low <= np.log(c.measured) - self.offset - self.slope * np.log(c.predicted) <= self.high


def library(found: Sequence[Record]) -> list[Record]:
    """What the library has: the zoo's schedules, or for a network without these what searches found."""
    shipped = {(r.model, r.guidance, r.nfe) for r in found if r.method == "zoo"}
    searched = [r for r in found if r.method in ("solver-error", FREE) and (r.model, r.guidance, r.nfe) not in shipped]
    records = [*(r for r in found if r.method == "zoo"), *searched]
    return [r for r in records if r.rmse and r.problem_error]


def choices(found: Sequence[Record]) -> list[Choice]:
    """List them; networks at another guidance weight count as other networks."""
    rules: dict[tuple[str, float, int], list[Record]] = {}
    for r in found:
        if r.method in BEFORE and r.solver in SOLVERS and r.rmse and r.problem_error:
            rules.setdefault((r.model, r.guidance, r.nfe), []).append(r)
    return [
        Choice(
            f"{own.model} {own.guidance:g}", own.nfe, "free" if own.solver == FREE else "known",
            own.problem_error / rule.problem_error, own.rmse / rule.rmse,  # type: ignore[operator]
        )
        for own in library(found)
        for rule in rules.get((own.model, own.guidance, own.nfe), ())
    ]  # fmt: skip


def line(rows: Sequence[Choice]) -> tuple[float, float]:
    """Offset and slope by least squares, in which every network weighs the same."""
    x, y, weights = _logs(rows)
    design = np.stack([np.ones_like(x), x], 1) * np.sqrt(weights)[:, None]
    offset, slope = np.linalg.lstsq(design, y * np.sqrt(weights), rcond=None)[0]
    return float(offset), float(slope)


def fit(rows: Sequence[Choice]) -> Line:
    """The line through all, and the quantiles `INTERVAL` of how far networks lie from the line of the others."""
    residuals, kept = [], []
    for network in dict.fromkeys(c.network for c in rows):
        own = [c for c in rows if c.network == network]
        offset, slope = line([c for c in rows if c.network != network])
        x, y, _ = _logs(own)
        residuals.append(y - offset - slope * x)
        kept.append(np.full(len(own), 1.0 / len(own)))
    values, weights = np.concatenate(residuals), np.concatenate(kept)
    order = np.argsort(values)
    reached = np.cumsum(weights[order]) / weights.sum()
    low, high = (float(values[order][np.searchsorted(reached, q)]) for q in INTERVAL)
    return Line(*line(rows), low, high)


def coverage(rows: Sequence[Choice]) -> float:
    """The share of a network's choices that the interval of the others holds, averaged over networks."""
    names = list(dict.fromkeys(c.network for c in rows))
    shares = []
    for network in names:
        others = fit([c for c in rows if c.network != network])
        shares.append(np.mean([others.holds(c) for c in rows if c.network == network]))
    return float(np.mean(shares))


def _logs(rows: Sequence[Choice]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    names = [c.network for c in rows]
    weights = np.array([1.0 / names.count(name) for name in names])
    return np.log([c.predicted for c in rows]), np.log([c.measured for c in rows]), weights


def free_over_known(found: Sequence[Record]) -> dict[tuple[str, int], float]:
    """(Network, N) to the error of free coefficients over the known solver's that is predicted to be best."""
    cells: dict[tuple[str, int], list[Record]] = {}
    for r in library(found):
        cells.setdefault((f"{r.model} {r.guidance:g}", r.nfe), []).append(r)
    ratios = {}
    for cell, own in cells.items():
        free, known = ([r for r in own if (r.solver == FREE) == kind] for kind in (True, False))
        if free and known:
            best = min(known, key=lambda r: r.problem_error or 0.0)
            ratios[cell] = free[0].rmse / best.rmse  # type: ignore[operator]
    return ratios


def chance(ratios: Collection[float]) -> float:
    """The one-sided probability that networks like these gain nothing in the mean (a t test of the logarithms)."""
    logs = np.log(list(ratios))
    return float(stats.ttest_1samp(logs, 0.0, alternative="less").pvalue)


def calibration(found: Sequence[Record]) -> dict[str, Any]:
    """What `gains.json` keeps. Raises ValueError for fewer than `FEWEST` networks."""
    every, kinds = choices(found), {}
    for kind in ("known", "free"):
        rows = [c for c in every if c.kind == kind]
        networks = len({c.network for c in rows})
        if networks < FEWEST:
            raise ValueError(f"{networks} networks have choices of kind {kind!r}; {FEWEST} or more make a calibration")
        kinds[kind] = {
            **{name: round(x, 4) for name, x in fit(rows)._asdict().items()},
            "networks": networks, "coverage": round(coverage(rows), 3),
        }  # fmt: skip
    free = free_over_known(found)
    gained = chance(_of_networks(free)) <= SIGNIFICANT
    pays = {str(n): gained for n, own in sorted(_by_nfe(free).items()) if len(own) >= FEWEST}
    return {"kinds": kinds, "free_pays": pays, "networks": sorted({c.network for c in every}), "versions": versions()}


def _of_networks(ratios: Mapping[tuple[str, int], float]) -> list[float]:
    """Each network's geometric mean over N."""
    own: dict[str, list[float]] = {}
    for (network, _), x in ratios.items():
        own.setdefault(network, []).append(x)
    return [geometric_mean(x) for x in own.values()]


def _by_nfe(ratios: Mapping[tuple[str, int], float]) -> dict[int, dict[str, float]]:
    found: dict[int, dict[str, float]] = {}
    for (network, nfe), x in ratios.items():
        found.setdefault(nfe, {})[network] = x
    return found


def calibrate(found: Sequence[Record], file: Path = FILE) -> None:
    """Write `gains.json`."""
    write_whole(file, (json.dumps(calibration(found), indent=1) + "\n").encode())


PREDICTED = """\
Each schedule of the zoo (where nothing is shipped, of the searches) beside rules that pipelines have ({rules}), with
every solver, on each network at each N: the ratio of errors predicted on the reference problems and measured on the
network. The line log measured = offset + slope log predicted is fitted with equal weights of networks. *Interval*: what
80 % of the choices on networks that a line was not fitted on lie within, as a factor of the line; *held* is how many
choices of a network the interval of the other networks holds, in the mean.
"""

FREE_TEXT = """\
Free coefficients over the known solver that is predicted to be best, both as the library has them. *Chance* is the
one-sided probability (t test of the logarithms) that networks on average gain nothing. Over the networks' means of all
N it is {chance:.2f}, and at most {limit:g} counts as a gain: then `recommend` takes free coefficients where they are
predicted to be better. So few networks cannot tell one N from another. A ratio of 1.00 is mostly a cell without free
coefficients.
"""


def section(found: Sequence[Record]) -> str:
    """Both tables, or that too few networks have such records."""
    every, rows = choices(found), []
    for kind in ("known", "free"):
        own = [c for c in every if c.kind == kind]
        if (networks := len({c.network for c in own})) >= FEWEST:
            of, means = fit(own), [geometric_mean([getattr(c, x) for c in own]) for x in ("predicted", "measured")]
            factors = f"{np.exp(of.low):.2f} to {np.exp(of.high):.2f}"
            rows.append([
                kind, str(networks), str(len(own)), *(f"{x:.2f}" for x in means), f"{of.offset:.2f}",
                f"{of.slope:.2f}", factors, f"{coverage(own):.0%}",
            ])  # fmt: skip
    if not rows:
        return f"## Predicted and measured\n\n{NONE}"
    head = ["kind", "networks", "choices", "predicted, mean", "measured, mean", "offset", "slope", "interval", "held"]
    by_nfe, table = _by_nfe(free_over_known(found)), []
    networks_of = list(dict.fromkeys(name for own in by_nfe.values() for name in own))
    for name in networks_of:
        table.append([name, *(f"{own[name]:.2f}" if name in own else "" for _, own in sorted(by_nfe.items()))])
    figures: list[tuple[str, int, Callable[[list[float]], float]]] = [
        ("all", 1, geometric_mean),
        ("chance", FEWEST, chance),
    ]
    for label, fewest, f in figures:
        every_n = (list(own.values()) for _, own in sorted(by_nfe.items()))
        table.append([label, *(f"{f(own):.2f}" if len(own) >= fewest else "" for own in every_n)])
    free = markdown(["network, guidance", *(f"N = {nfe}" for nfe in sorted(by_nfe))], table)
    told = PREDICTED.format(rules=", ".join(f"`{x}`" for x in BEFORE))
    free_told = FREE_TEXT.format(limit=SIGNIFICANT, chance=chance(_of_networks(free_over_known(found))))
    return f"## Predicted and measured\n\n{told}\n{markdown(head, rows)}\n{free_told}\n{free}"
