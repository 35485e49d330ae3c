"""The report on the trained networks: from the records alone to Markdown, CSV and plots.

Its sentences stand first; all of them hold whatever the figures are. The paper's five studies are those of HSO (Zhu et
al., AAAI 2026, arXiv 2511.11688). Its solvers are DDIM and third-order UniPC; here DPM++ 2M is shown too, and all end
with a step to clean data.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterable, Iterator, Sequence
from math import floor, log10
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.compared import SOLVERS
from benchmarks.methods import ABLATIONS, DETAILS
from benchmarks.networks import grids
from benchmarks.networks.cells import GUIDED
from benchmarks.plots import detail_figure, error_figure, save
from benchmarks.runner import Record, Records, comma_separated, main_group, schedule_of
from benchmarks.tables import (
    METRICS,
    NONE,
    Column,
    Versus,
    beside_best,
    columns,
    geometric_mean,
    markdown,
    marked,
    number,
    outcomes,
    table,
    versus,
)
from hso_jax.files import write_whole
from hso_jax.solvers import NONSTATIONARY

PLOTTED = ("rmse", "fid")
JUDGED = ("rmse", "fid", "fid_data")
LIMIT = "direct"  # optimised for what is measured: shown, and not ranked
NETWORK = ("gits", "autodiffusion", LIMIT)  # look at the network that they are judged on
FIRST = (NONSTATIONARY, "solver-error", "hso", "hso-dm-nonuni", "dm-nonuni", "trailing", "karras", "ays", "uniform-lam")
"""The methods that lead a table; the rest follow by name, those of `NETWORK` last."""

DEFAULT_SOLVER = "ddim"
DEFAULT_RULE = {"fashion-eps": "leading", "fashion-v": "leading", "emoji-flow": "linspace"}
"""Of the networks' own schedulers, as they are saved: DDIM, and Euler for the flow, which is the same."""

SPACING = {"hso-no-spacing": "none", "hso-penalty": "SPF", "hso": "constraint"}
STUDIED = {"dm-nonuni": "DM-NonUni", "hso-dm-nonuni": "+ bilevel", "mep-only": "+ MEP", "hso": "full"}

HOW = """\
Made by `python -m benchmarks` from the records in `benchmarks.jsonl`. Each cell installs a schedule of N nodes in a
diffusers solver through the bridge, samples with exactly N evaluations of the network (counted at the network; the
last step goes to clean data) and compares with the *converged samples*, what infinitely many steps make of the same
noise. RMSE is over all pixels in [-1, 1], paired by noise. FID is the Frechet distance of the 96 features of a small
classifier of the same data (not Inception's: it compares schedules here, not with other papers). The FID of few
samples is biased upwards; with {samples} samples only its order within a column means something. Intervals are 95 %
bootstrap over images. They hold the spread between images, which all schedules share, so that "inside the interval"
is a cautious tie. `solver-error` and `nonstationary` have the defaults of 0.2.0; what is named "-other" those of 0.1.0
(no error of the model, the mean of squares, clusters alone).
"""

SUMMARY = """\
Cells (solver and N) in which `solver-error` is better than every rule and `hso` / not the best, but inside the best's
interval / beaten beyond it. With guidance fewer rules are measured, those of the tables under "Guidance".
"""

MARKS = """\
**Bold**: the best of a column. *Italic*: inside the interval of the best. `direct` is the limit, nodes optimised for
the RMSE on the network itself, and is not ranked; `gits` and `autodiffusion` look at the network as well and are
ranked.
"""

STUDIES = """\
The studies of HSO (Zhu et al., AAAI 2026, arXiv 2511.11688) on the networks here. The paper's figures are for Stable
Diffusion 2.1-base and PixArt-alpha, FID with Inception to real images, and its UniPC stops at t_eps; they can be
compared in kind only.
"""

MAIN = """\
DM-NonUni / HSO in the paper's box / `solver-error`. The paper (LAION): DDIM N = 4 68.92 to 24.77, N = 5 35.38 to 17.17;
UniPC N = 4 18.96 to 15.71, N = 5 13.91 to 11.94.
"""

PSI = """\
HSO's (rho, t_eps, t_max), and for `solver-error` the exponent p of its start (a dash where the start was no member of
that family) and where its refined schedule ends and begins. Where the lower level converges rho does not change the
schedule. The paper finds rho* not monotone in N, with a peak of 12.42 at N = 8.
"""

ADAPTIVITY = """\
The model's own schedule / the timesteps optimised for the other noise schedule (`fashion-eps` has Stable Diffusion's
betas, `fashion-v` PixArt's).
"""

ROBUSTNESS = """\
HSO without a spacing, with the paper's penalty (SPF), and with the spacing as a constraint (the default). The paper
(N = 4): without, [999, 70, 9, 9], FID 165.48; with SPF, [959, 716, 370, 30], 19.76. A lower level that converges does
not collapse without it.
"""

ABLATION = """\
DM-NonUni; its bound with the upper level added; MEP in place of its bound, between DM-NonUni's ends; both (HSO). The
paper (UniPC / DDIM): 18.07 / 71.57; 11.44 / 29.22; 26.33 / 37.27; 15.70 / 24.80.
"""

COST = """\
To prepare one schedule, on the machine (or machines) above. Compilation is apart: most of it happens once in a
process for an N. `autodiffusion` runs at reduced scale. The paper: HSO about 8 s, DM-NonUni about 1 s, AutoDiffusion
about 1.1 days on Stable Diffusion.
"""

OWN = """\
`nonstationary` (nodes and coefficients searched together, no evaluation of the network) against the best of all known
solvers with all schedules that do not look at the network, by RMSE and by FID each for itself: choices that no one can
make beforehand.
"""

DEFAULT = """\
What `recommend` gives for these networks in every cell, coefficients of their own (`nonstationary`), against what their
pipelines do by themselves: DDIM (Euler for the flow) with the rule of the scheduler's config, with guidance, where that
was not measured, with `trailing`. Geometric means over N of the error divided by the default's, and the largest.
"""

GUIDANCE = """\
Classifier-free guidance: none + w (labelled - none). The converged samples are those of the guided model.
"""

LIMIT_TEXT = """\
RMSE of `solver-error`, and of the best of the rules and HSO, above that of the nodes optimised directly on the network.
"""

LOST = """\
Every cell in which a rule or HSO has a smaller error than `solver-error`, with the upper end of the best's interval;
those where the error of `solver-error` lies beyond it come first.
"""

GRIDS = """\
Rows are schedules, columns are seeds; the last row is where all of them would end with many steps.
"""

DETAIL = """\
`solver-error` with a direction's squared error weighed by its variance^-detail (not the paper's): RMSE looks at what is
large, the Fréchet distance at fine detail as well. Geometric means over solvers and N, relative to detail 0.
"""


def write(found: Records, folder: Path) -> list[Path]:
    """Write benchmarks.md, benchmarks.csv and the plots, after the grids if there are any; returns the files."""
    contents = {"benchmarks.md": report(found, folder), "benchmarks.csv": comma_separated(found.cells)}
    for name, content in contents.items():
        write_whole(folder / name, content.encode())
    records = main_group(found.cells)
    plain = [r for r in records if r.guidance == 1.0]
    figures = {f"benchmarks-{m}.png": error_figure(plain, m) for m in (PLOTTED if plotted(plain) else ())}
    if ratios := detail_ratios(records):
        figures["benchmarks-detail.png"] = detail_figure(tuple(DETAILS), ratios)
    for name, figure in figures.items():
        save(figure, folder / name)
    return [folder / name for name in (*contents, *figures)]


def report(found: Records, folder: Path) -> str:
    """Write the text of benchmarks.md in a folder; of the grids it shows those that have been drawn there."""
    if not found.cells:
        raise ValueError("there are no records to report; run `python -m benchmarks` first")
    records = main_group(found.cells)
    ranked = [r for r in records if r.method not in ABLATIONS]
    plain = [r for r in ranked if r.guidance == 1.0]
    parts = ["# Schedules on trained networks\n", how(found), "## Summary\n", SUMMARY, tally(ranked)]
    if plotted(plain):
        parts += [f"![{METRICS[m]} against N](benchmarks-{m}.png)\n" for m in PLOTTED]
    parts += ["## All methods\n", MARKS]
    for model in dict.fromkeys(r.model for r in plain):
        own = [r for r in plain if r.model == model]
        for metric in JUDGED:
            if any(getattr(r, metric) is not None for r in own):
                parts += [f"### {model}: {METRICS[metric]}\n", errors(own, metric)]
    parts += ["## The paper's studies\n", STUDIES]
    for title, text, study in (
        ("Main result, against DM-NonUni", MAIN, against_dm_nonuni),
        ("psi* against N", PSI, psi),
        ("Model adaptivity", ADAPTIVITY, adaptivity),
        ("Robustness: the spacing", ROBUSTNESS, robustness),
        ("Ablation", ABLATION, ablation),
        ("The weight of fine detail", DETAIL, detail),
    ):
        parts += [f"### {title}\n", text, study(records)]
    if detail_ratios(records):
        parts += ["![RMSE and FID against detail](benchmarks-detail.png)\n"]
    parts += ["### Cost\n", COST, cost(plain)]
    parts += ["## Coefficients of their own\n", OWN, own_coefficients(ranked)]
    parts += ["## Recommended against the default\n", DEFAULT, against_default(ranked)]
    parts += ["## Guidance\n", GUIDANCE, guided(records)]
    parts += ["## Distance to the limit\n", LIMIT_TEXT, limit(plain)]
    parts += ["## Where the solver-error method does not help\n", LOST]
    for metric in ("rmse", "fid"):
        parts += [f"{METRICS[metric]}:\n", lost_cells(ranked, metric)]
    if drawn := {name: rows[0] for name, rows in grids.sheets(plain).items() if (folder / name).exists()}:
        parts += ["## Images\n", GRIDS, *(f"![{r.model}, N = {r.nfe}]({name})\n" for name, r in drawn.items())]
    return "\n".join(parts)


def how(found: Records) -> str:
    """Say what was measured, how often and on what."""
    records = main_group(found.cells)
    teachers: dict[tuple[str, float], float] = {(r.model, r.guidance): r.teacher for r in records}
    one = records[0]
    refined = ", ".join(
        f"{model} {error:.1e}" + ("" if weight == 1.0 else f" (guidance {weight:g})")
        for (model, weight), error in sorted(teachers.items())
    )
    facts = [
        f"- {len(records)} cells; {one.samples} samples a cell, the same noise and labels for every schedule; seed "
        f"{one.seed}, network in {one.dtype}.",
        f"- RMSE between the last two refinements of the converged samples: {refined}.",
    ]
    if left := len(found.cells) - len(records):
        facts.append(f"- {left} cells with another seed, count or dtype are in the CSV only.")
    for setup in found.setups:
        machine = f"{setup['cpu']}, {setup['cores']} cores, threads of PyTorch: {setup['threads']}"
        packages = ", ".join(f"{k} {v}" for k, v in setup.items() if k not in ("cpu", "cores", "threads"))
        facts.append(f"- {machine}; {packages}.")
    return HOW.format(samples=one.samples) + "\n" + "\n".join(facts) + "\n"


def plotted(records: Sequence[Record]) -> bool:
    """Whether there are two N to draw a line between."""
    return len({r.nfe for r in records}) > 1


def methods_of(records: Iterable[Record]) -> list[str]:
    """List the methods in the order of the tables."""
    names = {r.method for r in records}
    rest = sorted(names - set(FIRST) - set(NETWORK))
    return [m for m in FIRST if m in names] + rest + [m for m in NETWORK if m in names]


def errors(records: Sequence[Record], metric: str) -> str:
    """Rows are methods, columns solver and N, of records of one model and guidance."""
    found = columns(records)
    texts = {column: marked(cells, metric, LIMIT) for column, cells in found.items()}
    head = ["", *(f"{SOLVERS[solver]} {nfe}" for _, _, solver, nfe in found)]
    return markdown(head, ([f"`{m}`", *(texts[c].get(m, "") for c in found)] for m in methods_of(records)))


def guided(records: Sequence[Record]) -> str:
    """A table for each guidance weight that is not 1, and metric; the best is marked among the methods `GUIDED`."""
    parts = []
    for weight in sorted({r.guidance for r in records} - {1.0}):
        for metric in ("rmse", "fid"):
            rows = []
            for column, cells in columns(r for r in records if r.guidance == weight).items():
                chosen = {m: cells[m] for m in GUIDED if m in cells}
                if "solver-error" in chosen:
                    texts = marked(chosen, metric, LIMIT)
                    rows.append([*_names(column), *(texts.get(m, "") for m in GUIDED)])
            parts += [
                f"Guidance {weight:g}, {METRICS[metric]}:\n",
                markdown(["model", "solver", "N", *GUIDED], rows, 2),
            ]
    return "\n".join(parts) if parts else NONE


# ---- the solver-error method against the rules and HSO


def rivals(methods: Iterable[str]) -> list[str]:
    """List what the solver-error method is counted against: the rules and HSO, nothing that looks at the network."""
    return [m for m in methods if m not in ("solver-error", NONSTATIONARY, *NETWORK)]


def compared(records: Sequence[Record], metric: str) -> list[Versus]:
    """Every cell that has the solver-error method and a rival, both with a figure."""
    against = rivals(dict.fromkeys(r.method for r in records))
    return [v for v in versus(records, "solver-error", against, metric) if getattr(v.own, metric) is not None]


def tally(records: Sequence[Record]) -> str:
    """Count, a row a guidance weight and model, the columns that are best / inside the best's interval / beaten."""
    rows = []
    for weight in sorted({r.guidance for r in records}):
        here = [r for r in records if r.guidance == weight]
        models = {model: [r for r in here if r.model == model] for model in dict.fromkeys(r.model for r in here)}
        for name, own in {**models, "all": here}.items():
            counts = [compared(own, metric) for metric in JUDGED]
            told = (" / ".join(map(str, outcomes(found))) if found else "-" for found in counts)
            rows.append([f"{weight:g}", name, *told])
    return markdown(["guidance", "model", *(METRICS[m] for m in JUDGED)], rows, left=2)


def lost_cells(records: Sequence[Record], metric: str) -> str:
    """List the columns in which the solver-error method is not the best, those beyond the interval first."""
    rows = []
    for v in sorted((v for v in compared(records, metric) if v.outcome), key=lambda v: -v.outcome):
        model, weight, solver, nfe = v.column
        figures = (getattr(v.best, metric), v.best.interval(metric)[2], getattr(v.own, metric))
        told = [model, SOLVERS[solver], str(nfe), f"{weight:g}", f"`{v.best.method}`", *map(number, figures)]
        rows.append([*told, "yes" if v.outcome == 2 else "no"])
    head = ["model", "solver", "N", "guidance", "best", METRICS[metric], "its interval to"]
    return markdown([*head, "`solver-error`", "beyond it"], rows, left=2) if rows else "None.\n"


def limit(records: Sequence[Record]) -> str:
    """RMSE above that of nodes optimised directly on the network, in per cent."""
    rows = []
    for column, cells in columns(records).items():
        low = cells[LIMIT].rmse if LIMIT in cells else None
        own = cells["solver-error"].rmse if "solver-error" in cells else None
        rules = [x for m in rivals(cells) if (x := cells[m].rmse) is not None]
        if low and own and rules:
            best = min(rules)
            over = (f"{100 * (x / low - 1):.0f} %" for x in (own, best))
            rows.append([*_names(column), number(low), number(own), number(best), *over])
    head = ["model", "solver", "N", "direct", "solver-error", "best rule", "solver-error above", "best rule above"]
    return table(head, rows)


# ---- coefficients of their own


def own_coefficients(records: Sequence[Record]) -> str:
    """Against the best known solver with any schedule, a row a weight, model and N."""
    groups: dict[tuple[str, float, int], list[Record]] = {}
    for column, cells in columns(records).items():
        groups.setdefault((column[0], column[1], column[3]), []).extend(cells.values())
    rows, every_ratio = [], dict[tuple[float, str], list[float]]()
    for (model, weight, nfe), every in sorted(groups.items(), key=lambda item: item[0][1]):
        row, ratios = [f"{weight:g}", model, str(nfe)], dict[str, float]()
        for metric in PLOTTED:
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
        means = (f"{geometric_mean(every_ratio[weight, metric]):.2f}" for metric in PLOTTED)
        rows.append([f"{weight:g}", "geometric mean", "", *(text for mean in means for text in ("", "", "", mean))])
    head = ["guidance", "model", "N", *(x for m in ("RMSE", "FID") for x in (f"best {m}", "its", "own", "ratio"))]
    return table(head, rows)


def against_default(records: Sequence[Record]) -> str:
    """What `recommend` gives against a pipeline's own sampler and rule."""
    groups: dict[tuple[float, str, str, str], list[tuple[int, float]]] = {}
    for (model, weight, solver, nfe), cells in columns(records).items():
        default = DEFAULT_RULE[model] if weight == 1.0 else "trailing"
        if solver == DEFAULT_SOLVER and NONSTATIONARY in cells and default in cells:
            for metric in PLOTTED:
                own, theirs = (getattr(cells[method], metric) for method in (NONSTATIONARY, default))
                if own and theirs:
                    groups.setdefault((weight, model, default, metric), []).append((nfe, own / theirs))
    rows, counts = [], list[str]()
    for (weight, model, default, metric), ratios in sorted(groups.items(), key=lambda item: item[0][0]):
        nfe, worst = max(ratios, key=lambda pair: pair[1])
        mean = f"{geometric_mean([x for _, x in ratios]):.2f}"
        rows.append([f"{weight:g}", model, f"`{default}`", METRICS[metric], mean, f"{worst:.2f} (N = {nfe})"])
    for metric in PLOTTED:
        every = [x for key, ratios in groups.items() if key[-1] == metric for _, x in ratios]
        counts.append(f"{sum(x <= 1.0 for x in every)} of {len(every)} cells by {METRICS[metric]}")
    text = table(["guidance", "model", "default rule", "", "ratio", "largest"], rows, left=4)
    return f"{text}\nAt least as good in {', '.join(counts)}.\n" if rows else text


# ---- the paper's studies, and what fine detail costs


def _with(records: Sequence[Record], methods: Collection[str]) -> Iterator[tuple[Column, dict[str, Record]]]:
    """The columns without guidance that have all of `methods`."""
    for column, cells in columns(r for r in records if r.guidance == 1.0).items():
        if all(m in cells for m in methods):
            yield column, cells


def _names(column: Column) -> list[str]:
    return [column[0], SOLVERS[column[2]], str(column[3])]


def against_dm_nonuni(records: Sequence[Record]) -> str:
    """RMSE and FID of DM-NonUni, HSO and the solver-error method."""
    rows, methods = [], ("dm-nonuni", "hso", "solver-error")
    for column, cells in _with(records, methods):
        row = _names(column)
        for metric in JUDGED:
            values = [getattr(cells[m], metric) for m in methods]
            row.append(" / ".join(map(number, values)) if values[0] is not None else "")
        rows.append(row)
    return table(["model", "solver", "N", "RMSE", "FID", "FID to held-out data"], rows)


def psi(records: Sequence[Record]) -> str:
    """What the upper level of HSO chooses, and where the solver-error method's first and last node are, against N."""
    rows = []
    for column, cells in _with(records, ("hso",)):
        chosen, own = cells["hso"].psi or {}, cells.get("solver-error")
        row = [*_names(column), *(number(chosen.get(x)) for x in ("rho", "t_eps", "t_max"))]
        if own is None:
            row += [""] * 3
        else:
            t = schedule_of(own).t
            row += [number((own.psi or {}).get("p")), number(float(t[-1])), number(float(t[0]))]
        rows.append(row)
    return table(["model", "solver", "N", "rho", "t_eps", "t_max", "p", "last t", "first t"], rows)


def adaptivity(records: Sequence[Record]) -> str:
    """RMSE and FID with the model's own schedule, and with the one of the other noise schedule."""
    rows, pairs = [], [(metric, method) for metric in PLOTTED for method in ("hso", "solver-error")]
    for column, cells in _with(records, ("hso", "hso-other", "solver-error", "solver-error-other")):
        both = ([getattr(cells[m], metric) for m in (method, f"{method}-other")] for metric, method in pairs)
        rows.append([*_names(column), *(" / ".join(map(number, values)) for values in both)])
    return table(["model", "solver", "N", *(f"`{method}`, {METRICS[metric]}" for metric, method in pairs)], rows)


def robustness(records: Sequence[Record]) -> str:
    """HSO without a spacing, with the paper's penalty and with the constraint: timesteps, smallest gap in t, errors.

    A schedule that serves several solvers (HSO does not know the solver) is one row.
    """
    found: dict[tuple[Any, ...], dict[str, Record]] = {}
    for (model, _, solver, nfe), cells in _with(records, SPACING):
        for method, name in SPACING.items():
            found.setdefault((model, nfe, name, tuple(cells[method].lams)), {})[solver] = cells[method]
    solvers = [s for s in SOLVERS if any(s in cells for cells in found.values())]
    rows = []
    for (model, nfe, name, _), cells in found.items():
        schedule = schedule_of(next(iter(cells.values())))
        steps = " ".join(str(x) for x in np.rint(schedule.timesteps).astype(int))
        figures = [
            " / ".join(number(getattr(cells[s], metric)) if s in cells else "" for s in solvers)
            for metric in ("fid", "rmse")
        ]
        rows.append([model, str(nfe), name, steps, number(schedule.min_spacing), *figures])
    names = " / ".join(SOLVERS[s] for s in solvers)
    head = ["model", "N", "spacing", "timesteps", "smallest gap in t", f"FID: {names}", f"RMSE: {names}"]
    return table(head, rows, left=1)


def ablation(records: Sequence[Record]) -> str:
    """FID and RMSE of DM-NonUni, with the upper level added, with MEP instead of its bound, and with both."""
    pairs = [(metric, method) for metric in ("fid", "rmse") for method in STUDIED]
    rows = [
        [*_names(column), *(number(getattr(cells[method], metric)) for metric, method in pairs)]
        for column, cells in _with(records, STUDIED)
    ]
    return table(["model", "solver", "N", *(f"{STUDIED[method]}, {METRICS[metric]}" for metric, method in pairs)], rows)


def detail_ratios(records: Sequence[Record]) -> dict[tuple[str, str], list[float]]:
    """(model, metric) to the geometric mean, for each of `DETAILS`, of the metric relative to the first, 0."""
    methods = tuple(DETAILS.values())
    found: dict[tuple[str, str], list[list[float]]] = {}
    for (model, *_), cells in _with(records, methods):
        for metric in PLOTTED:
            values = [getattr(cells[m], metric) for m in methods]
            if all(values):
                found.setdefault((model, metric), []).append([x / values[0] for x in values])
    return {key: [geometric_mean(column) for column in zip(*rows, strict=True)] for key, rows in found.items()}


def detail(records: Sequence[Record]) -> str:
    """Write `detail_ratios` as a table."""
    ratios = detail_ratios(records)
    rows = [[model, METRICS[metric], *(f"{x:.3f}" for x in own)] for (model, metric), own in ratios.items()]
    return table(["model", "", *(f"detail {x:g}" for x in DETAILS)], rows)


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
    return f"{x:.1g}" if x < 0.01 else f"{x:.0f}" if x >= 100 else f"{x:.{max(0, 1 - floor(log10(x)))}f}"
