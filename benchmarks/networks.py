"""The report on the trained networks: from the records alone to Markdown and plots; and grids of their images.

Its sentences stand first; all of them hold whatever the figures are. The paper's five studies are those of HSO (Zhu et
al., AAAI 2026, arXiv 2511.11688). Its solvers are DDIM and third-order UniPC; here DPM++ 2M is shown too, and all end
with a step to clean data.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Iterable, Iterator, Sequence
from math import floor, log10
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import FINE
from benchmarks.methods import ABLATIONS, DETAILS
from benchmarks.plots import detail_figure, error_figure, pictures, save
from benchmarks.runner import SOLVERS, Record, Records, main_group, schedule_of
from benchmarks.tables import (
    METRICS,
    Column,
    Ratio,
    Versus,
    columns,
    geometric_mean,
    markdown,
    marked,
    means,
    number,
    outcomes,
    versus,
)
from benchmarks.targets import Judged, own
from bridge.cli.pictures import Row, grid, save_png
from hso_jax.files import write_whole
from hso_jax.solvers import NONSTATIONARY

PLOTTED = ("rmse", "fid")
JUDGED = (*PLOTTED, "fid_data")
LIMIT = "direct"  # optimised for what is measured: shown, and not ranked
NETWORK = ("gits", "autodiffusion", LIMIT)  # look at the network that they are judged on
FIRST = (NONSTATIONARY, "solver-error", "hso", "dm-nonuni", "trailing", "karras", "ays", "uniform-lam")
"""The methods that lead a table; the rest follow by name, those of `NETWORK` last."""

UNSHOWN = (
    *("hso-dm-nonuni", "ays", "ays-sdxl", "beta", "beta-t", "exponential"),
    *("leading", "linear-quadratic", "linspace", "sgm-uniform"),
)
BETWEEN = 7
"""Methods, and an N, that are in every count and mean over N, and have no row or column of their own."""

ROWS = ("trailing", "hso", "solver-error")
SOLVER = "dpmpp-2m"
IMAGES = 8
"""Of a grid: its schedules, which the records have, its solver, and how many of the first noises are sampled again."""

DETAIL_METHODS = {x: f"detail-{x:g}" if x else "solver-error" for x in DETAILS}
SPACING = {"hso-no-spacing": "none", "hso-penalty": "SPF", "hso": "constraint"}
SPACED_NFE = 4  # where the paper shows it

HOW = """\
Made by `python -m benchmarks` from the records in `benchmarks.jsonl`. Each cell installs a schedule of N nodes in a
diffusers solver through the bridge, samples with exactly N evaluations of the network (counted at the network; the
last step goes to clean data) and compares with the *converged samples*, what infinitely many steps make of the same
noise. RMSE is over all pixels in [-1, 1], paired by noise. FID is the Frechet distance of the 96 features of a small
classifier of the same data (not Inception's: no figure compares with other papers). The FID of few
samples is biased upwards; with {samples} samples only its order within a column means something. Intervals are 95 %
bootstrap over images. They hold the spread between images, which all schedules share, so that "inside the interval"
is a cautious tie. `solver-error` and `nonstationary` have the defaults of 0.2.0; what is named "-other" those of 0.1.0
(no error of the model, the mean of squares, clusters alone).

The tables below show a part of the cells; `benchmarks.jsonl` has all of them. A ratio in a table is a geometric mean
over the networks, of all N where N has no column of its own.
"""

SUMMARY = """\
Cells (solver and N) in which `solver-error` is better than every rule and `hso` / not the best, but inside the best's
interval / beaten beyond it.
"""

MARKS = """\
**Bold**: the best of a column, of the methods shown. *Italic*: inside the interval of the best. `direct` is the limit,
nodes optimised for the RMSE on the network itself, and is not ranked; `gits` and `autodiffusion` look at the network as
well and are ranked.
"""

STUDIES = """\
The studies of HSO (Zhu et al., AAAI 2026, arXiv 2511.11688) on the networks here. The paper's figures are for Stable
Diffusion 2.1-base and PixArt-alpha, FID with Inception to real images, and its UniPC stops at t_eps; they can be
compared in kind only.
"""

MAIN = """\
Errors over DM-NonUni's. `hso-dm-nonuni` adds the upper level to its bound, `mep-only` puts MEP in place of its bound,
`hso` does both. The paper, FID at N = 4, DDIM: 68.92 for DM-NonUni, 24.77 for HSO; UniPC: 18.96 and 15.71. Its
ablation, in the order of the columns (UniPC / DDIM): 18.07 / 71.57 for DM-NonUni; 11.44 / 29.22; 26.33 / 37.27;
15.70 / 24.80.
"""

PSI = """\
HSO's (rho, t_eps, t_max). Where the lower level converges rho does not change the schedule. The paper finds rho* not
monotone in N, with a peak of 12.42 at N = 8.
"""

ADAPTIVITY = """\
Errors with the timesteps optimised for the other noise schedule, over those with the model's own (`fashion-eps` has
Stable Diffusion's betas, `fashion-v` PixArt's).
"""

ROBUSTNESS = """\
HSO without a spacing, with the paper's penalty (SPF), and with the spacing as a constraint (the default). The paper
(N = 4, as here): without, [999, 70, 9, 9], FID 165.48; with SPF, [959, 716, 370, 30], 19.76. A lower level that
converges does not collapse without it. Errors: DDIM / DPM++ 2M / UniPC-3.
"""

DETAIL = """\
`solver-error` with a direction's squared error weighed by its variance^-detail (not the paper's): RMSE looks at what is
large, the Fréchet distance at fine detail as well. Relative to detail 0, over solvers and N.
"""

COST = """\
To prepare one schedule, on the machines above, without compilation, most of which happens once in a
process for an N. `autodiffusion` runs at reduced scale. The paper: HSO about 8 s, DM-NonUni about 1 s, AutoDiffusion
about 1.1 days on Stable Diffusion.
"""

OWN = """\
`nonstationary` (nodes and coefficients searched together, no evaluation of the network): its error over that of the
best of all known solvers with all schedules that do not look at the network, by RMSE and by FID each for itself.
These are choices that no one can make beforehand.
"""

GUIDANCE = """\
Classifier-free guidance: none + w (labelled - none). The converged samples are those of the guided model. Errors over
those of `trailing`.
"""

LIMIT_TEXT = "RMSE over that of the nodes optimised directly on the network.\n"

GRIDS = """\
Rows are schedules, columns are seeds; the last row is where all of them would end with many steps.
"""


def write(found: Records, folder: Path) -> list[Path]:
    """Write benchmarks.md and the plots, after the grids if there are any; returns the files."""
    write_whole(folder / "benchmarks.md", report(found, folder).encode())
    records = main_group(found.cells)
    plain = [r for r in records if r.guidance == 1.0]
    figures = {f"benchmarks-{m}.png": error_figure(plain, m) for m in (PLOTTED if plotted(plain) else ())}
    if ratios := detail_ratios(records):
        figures["benchmarks-detail.png"] = detail_figure(DETAILS, ratios)
    for name, figure in figures.items():
        save(figure, folder / name)
    return [folder / name for name in ("benchmarks.md", *figures)]


def report(found: Records, folder: Path) -> str:
    """Write the text of benchmarks.md in a folder; of the grids it shows those that have been drawn there."""
    if not found.cells:
        raise ValueError("there are no records to report; run `python -m benchmarks` first")
    records = main_group(found.cells)
    ranked = [r for r in records if r.method not in ABLATIONS]
    plain, guided = ([r for r in records if (r.guidance == 1.0) == alone] for alone in (True, False))
    parts = ["# Schedules on trained networks\n", how(found), "## Summary\n", SUMMARY, tally(ranked)]
    if plotted(plain):
        parts += [f"![{METRICS[m]} against N](benchmarks-{m}.png)\n" for m in PLOTTED]
    parts += ["## All methods\n", MARKS]
    shown = [r for r in plain if r.method not in (*ABLATIONS, *UNSHOWN)]
    for model in dict.fromkeys(r.model for r in shown):
        own = [r for r in shown if r.model == model and r.nfe != BETWEEN]
        for metric in PLOTTED:
            parts += [f"### {model}: {METRICS[metric]}\n", errors(own, metric)]
    ablation = [(m, "dm-nonuni") for m in ("hso-dm-nonuni", "mep-only", "hso", "solver-error")]
    others = [(f"{m}-other", m) for m in ("hso", "solver-error")]
    rules = [(m, "trailing") for m in (NONSTATIONARY, "solver-error", "hso", "uniform-lam")]
    limits = [(m, LIMIT) for m in (NONSTATIONARY, "solver-error", "gits", "hso", "trailing")]
    sections = [
        ("## The paper's studies", STUDIES, ""),
        ("### Main result and ablation", MAIN, relative(plain, ablation)),
        ("### Model adaptivity", ADAPTIVITY, relative(plain, others, every_nfe=False)),
        ("### psi* against N", PSI, psi(plain)),
        ("### Robustness: the spacing", ROBUSTNESS, robustness(plain)),
        ("### The weight of fine detail", DETAIL, detail(plain)),
        ("### Cost", COST, cost(shown)),
        ("## Coefficients of their own", OWN, own_coefficients(ranked)),
        ("## Guidance", GUIDANCE, relative(guided, rules)),
        ("## Distance to the limit", LIMIT_TEXT, relative(plain, limits, ("rmse",))),
    ]
    for heading, text, table in sections:
        parts += [f"{heading}\n", text, *([table] if table else [])]
    if drawn := {name: own[0] for name, own in sheets(plain).items() if (folder / name).exists()}:
        parts += ["## Images\n", GRIDS, *(f"![{r.model}, N = {r.nfe}]({name})\n" for name, r in drawn.items())]
    return "\n".join(parts)


def how(found: Records) -> str:
    """Say what was measured, how often and on what."""
    records = main_group(found.cells)
    one, errors = records[0], [r.teacher for r in records]
    facts = [
        f"- {len(records)} cells; {one.samples} samples a cell, the same noise and labels for every schedule; seed "
        f"{one.seed}, network in {one.dtype}.",
        f"- RMSE between the last two refinements of the converged samples: {min(errors):.1e} to {max(errors):.1e}.",
    ]
    if left := len(found.cells) - len(records):
        facts.append(f"- {left} cells with another seed, count or dtype are in the records only.")
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
    return [m for m in (*FIRST, *rest, *NETWORK) if m in names]


def errors(records: Sequence[Record], metric: str) -> str:
    """Rows are methods, columns solver and N, of records of one model and guidance."""
    found = columns(records)
    texts = {column: marked(cells, metric, LIMIT) for column, cells in found.items()}
    head = ["", *(f"{SOLVERS[solver]} {nfe}" for _, _, solver, nfe in found)]
    return markdown(head, ([f"`{m}`", *(texts[c].get(m, "") for c in found)] for m in methods_of(records)))


def relative(
    records: Iterable[Record],
    pairs: Sequence[tuple[str, str]],
    metrics: Sequence[str] = PLOTTED,
    *,
    every_nfe: bool = True,
) -> str:
    """Write errors of the first of a pair of methods over the second's, a row a guidance weight, solver and N."""
    found = columns(records)
    shown = ({column[1] for column in found} != {1.0}, True, every_nfe)  # which of guidance, solver and N name a row
    ratios: list[Ratio] = []
    for (_, weight, solver, nfe), cells in found.items():
        row = tuple(x for x, told in zip((f"{weight:g}", SOLVERS[solver], str(nfe)), shown, strict=True) if told)
        for metric in metrics:
            for method, base in pairs:
                both = [getattr(cells[m], metric) for m in (method, base) if m in cells]
                if len(both) == 2 and all(both) and not (every_nfe and nfe == BETWEEN):
                    ratios.append((row, f"`{method}`, {METRICS[metric]}", both[0] / both[1]))
    return means([x for x, told in zip(("guidance", "solver", "N"), shown, strict=True) if told], ratios)


def compared(records: Sequence[Record], metric: str) -> list[Versus]:
    """Every cell that has the solver-error method and a rule or HSO, both with a figure."""
    against = {r.method for r in records} - {"solver-error", "recommend", "zoo", NONSTATIONARY, *NETWORK}
    return [v for v in versus(records, "solver-error", sorted(against), metric) if getattr(v.own, metric) is not None]


def tally(records: Sequence[Record]) -> str:
    """Count the columns that are best / inside the best's interval / beaten, a row a guidance weight and model."""
    rows = []
    for weight in sorted({r.guidance for r in records}):
        here = [r for r in records if r.guidance == weight]
        for name in (*dict.fromkeys(r.model for r in here), "all"):
            own = [r for r in here if name in (r.model, "all")]
            rows.append([f"{weight:g}", name, *(outcomes(compared(own, metric)) for metric in JUDGED)])
    return markdown(["guidance", "model", *(METRICS[m] for m in JUDGED)], rows, left=2)


def own_coefficients(records: Sequence[Record]) -> str:
    """Against the best known solver with any schedule, a row a weight and N, and one for all N."""
    groups: dict[tuple[float, int, str], list[Record]] = {}
    for r in records:
        groups.setdefault((r.guidance, r.nfe, r.model), []).append(r)
    ratios: list[Ratio] = []
    for (weight, nfe, _), every in sorted(groups.items(), key=lambda item: item[0][:2]):
        for metric in PLOTTED:
            values = [(r.method, x) for r in every if (x := getattr(r, metric))]
            known = [x for m, x in values if m not in (NONSTATIONARY, "recommend", "zoo", *NETWORK)]
            own = [x for m, x in values if m == NONSTATIONARY]
            if own and known:
                ratios.append(((f"{weight:g}", str(nfe)), METRICS[metric], own[0] / min(known)))
    total = [((row[0], "all"), column, ratio) for row, column, ratio in ratios]
    return means(["guidance", "N"], [*ratios, *total], largest=True)


# ---- the paper's studies, and what fine detail costs


def _with(records: Sequence[Record], methods: Iterable[str]) -> Iterator[tuple[Column, dict[str, Record]]]:
    """The columns that have all of `methods`."""
    return ((column, cells) for column, cells in columns(records).items() if set(methods) <= set(cells))


def psi(records: Sequence[Record]) -> str:
    """What the upper level of HSO chooses against N, a row its ends: it does not know the solver."""
    rows: list[Ratio] = []
    for (model, _, _, nfe), cells in _with(records, ("hso",)):
        if chosen := cells["hso"].psi:
            ends = (number(chosen["t_eps"]), number(chosen["t_max"]))
            rows.append(((model, *ends), f"rho, N = {nfe}", chosen["rho"]))
    return means(["model", "t_eps", "t_max"], rows)


def robustness(records: Sequence[Record]) -> str:
    """HSO without a spacing, with the paper's penalty and with the constraint: timesteps, smallest gap in t, errors.

    A schedule that several spacings give, or that serves several solvers (HSO does not know the solver), is one row.
    """
    found: dict[tuple[str, str], dict[str, dict[str, Record]]] = {}
    for (model, _, solver, nfe), cells in _with(records, SPACING):
        for method, name in SPACING.items() if nfe == SPACED_NFE else ():
            steps = " ".join(str(x) for x in np.rint(schedule_of(cells[method]).timesteps).astype(int))
            found.setdefault((model, steps), {}).setdefault(name, {})[solver] = cells[method]
    rows = []
    for (model, steps), by_spacing in found.items():
        own = next(iter(by_spacing.values()))
        schedule = schedule_of(next(iter(own.values())))
        figures = [" / ".join(number(getattr(r, metric)) for r in own.values()) for metric in PLOTTED]
        rows.append([model, ", ".join(by_spacing), steps, number(schedule.min_spacing), *figures])
    return markdown(
        ["model", "spacing", "timesteps", "smallest gap in t", *(METRICS[m] for m in PLOTTED)], rows, left=2
    )


def detail_ratios(records: Sequence[Record]) -> dict[tuple[str, str], list[float]]:
    """(model, metric) to the geometric mean, for each of `DETAILS`, of the metric relative to the first, 0."""
    methods = tuple(DETAIL_METHODS.values())
    found: dict[tuple[str, str], list[list[float]]] = {}
    for (model, *_), cells in _with([r for r in records if r.guidance == 1.0], methods):
        for metric in PLOTTED:
            values = [getattr(cells[m], metric) for m in methods]
            if all(values):
                found.setdefault((model, metric), []).append([x / values[0] for x in values])
    return {key: [geometric_mean(column) for column in zip(*rows, strict=True)] for key, rows in found.items()}


def detail(records: Sequence[Record]) -> str:
    """Write `detail_ratios` as a table, and its picture."""
    ratios = detail_ratios(records)
    rows = [[model, METRICS[metric], *(f"{x:.3f}" for x in own)] for (model, metric), own in ratios.items()]
    picture = "\n![RMSE and FID against detail](benchmarks-detail.png)\n" if rows else ""
    return markdown(["model", "", *(f"detail {x:g}" for x in DETAILS)], rows, left=2) + picture


def cost(records: Sequence[Record]) -> str:
    """Seconds and network evaluations to prepare a schedule, a row a method."""
    rows = []
    for method in methods_of(records):
        own = [r for r in records if r.method == method]
        seconds = [_seconds(f([r.seconds for r in own])) for f in (statistics.median, max)]
        rows.append([f"`{method}`", *seconds, f"{statistics.median(r.calls for r in own):,.0f}"])
    return markdown(["", "seconds, median", "most", "evaluations of one image, median"], rows)


def _seconds(x: float) -> str:
    return f"{x:.1g}" if x < 0.01 else f"{x:.0f}" if x >= 100 else f"{x:.{max(0, 1 - floor(log10(x)))}f}"


# ---- the same noise under several schedules: rows are schedules, columns seeds


def sheets(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Name the pictures that the records have all of `ROWS` for, without guidance; and those with coefficients last."""
    return {
        f"grid-{model}-{nfe}.png": [cells[m] for m in (*ROWS, NONSTATIONARY) if m in cells]
        for (model, guidance, solver, nfe), cells in columns(records).items()
        if guidance == 1.0 and solver == SOLVER and all(m in cells for m in ROWS)
    }


def write_grids(records: Sequence[Record], folder: Path, *, anew: bool = True) -> list[Path]:
    """Draw the grids of the records into a folder, without `anew` only missing ones; returns the files drawn."""
    judged = functools.cache(lambda model, count, seed: Judged(own(model), count, FINE, seed))
    files = []
    for name, rows in sheets(records).items():
        if anew or not (folder / name).exists():
            files.append(folder / name)
            save_png(_draw(rows, judged(rows[0].model, rows[0].samples, rows[0].seed)), files[-1], {})
    return files


def _draw(records: Sequence[Record], judged: Judged) -> Any:
    latents, rows = judged.latents[:IMAGES], []
    for record in records:
        if record.method == NONSTATIONARY and record.coefficients is None:
            continue  # records of earlier versions do not keep them
        images = judged.target.sample(schedule_of(record), SOLVER, latents)
        rows.append(Row(record.method, f"RMSE {number(record.rmse)}\nFID {number(record.fid)}", pictures(images)))
    rows.append(Row("converged", "the limit of many steps", pictures(judged.converged[:IMAGES])))
    title = f"{records[0].model}: {records[0].nfe} evaluations, {SOLVERS[SOLVER]}"
    text = "The same noise in each column. RMSE and FID are those of all samples, to the converged ones."
    return grid(rows, [f"noise {i}" for i in range(len(latents))], title, text)
