"""Schedules judged on held-out Gaussian mixtures, where the exact solution is known (docs/results/solver-error.md).

python -m benchmarks.mixtures limits       every rule, HSO, and the best that direct search finds there, as Markdown
python -m benchmarks.mixtures figure       docs/images/solver-error.png, error against N, and the numbers as text
python -m benchmarks.mixtures robustness   what a schedule costs on problems of another kind than it was found on

Schedules are found on the default family of problems and judged on others (each kind once, with other seeds, so other
means and classes), with other noise. The limit is the best schedule that is known for the held-out problems
themselves: of direct searches on them, from several seeds, and of the transferred schedule refined there. These
searches see other noise than the one that everything, the limit too, is judged with: what a search gains by fitting
the rare samples of its own noise is not a limit that any schedule of these problems could reach.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import runner
from benchmarks.plots import against_nfe, save
from benchmarks.runner import COMPARED, SOLVERS
from benchmarks.tables import markdown
from hso_jax import Hso, Lane, Schedule, SolverError, baseline, preset, search, search_many, solver_error, zoo
from hso_jax.baselines import BASELINES, inapplicable
from hso_jax.error import error_data, in_chunks
from hso_jax.problems import KINDS, Problem, family
from hso_jax.shipped.zoo import NONSTATIONARY_NFE
from hso_jax.solver_error_method import measure
from hso_jax.solvers import NONSTATIONARY

HELD_OUT, SAMPLES, SEED, JUDGE_SEED = range(1000, 1000 + len(KINDS)), 192, 77, 78

DRAWN, DRAWN_SAMPLES, TOP = (3, 4, 5, 6, 7, 8, 10, 12, 15, 20), 512, 3.0
"""N of the picture; samples a problem (at N >= 15 a few near a border between components are most of the error); and
where the picture ends."""

LINES = {
    "trailing": ("trailing", "#7f7f7f", "s", "-"),
    "karras": ("Karras, rho 7", "#e6a100", "^", "-"),
    "ays": ("AYS, interpolated", "#8c5fb0", "v", "-"),
    "uniform-lam": ("uniform lam", "#2a9d8f", "D", "-"),
    "hso": ("HSO, the paper's box", "#1d4e89", "P", "-"),
    NONSTATIONARY: ("coefficients of their own", "#111111", "*", "-"),
    "solver-error": ("solver-error, for this solver", "#c1121f", "o", "-"),
}

OTHER_NFE, OTHER_SAMPLES = 6, 256
FAMILIES: dict[str, dict[str, Any]] = {
    "12 of the default family": {},
    "other seeds": {"seeds": range(500, 512)},
    "8 dimensions": {"dimension": 8},
    "64 dimensions": {"dimension": 64},
    "8 components": {"components": 8, "members": 1},
    "128 components": {"components": 128, "members": 16},
    **{f"spectrum k^-{x:g}": {"kinds": [k._replace(spectrum=x) for k in KINDS]} for x in (0.5, 1.0, 2.0)},
    **{f"{x:.0%} within components": {"kinds": [k._replace(within=x) for k in KINDS]} for x in (0.1, 0.3, 0.7)},
    **{f"standard deviation {x:g}": {"kinds": [k._replace(scale=x) for k in KINDS]} for x in (0.25, 0.5, 1.0, 2.0)},
    "class of 1 component": {"members": 1},
    "class of 16": {"members": 16},
}


@functools.cache
def held_out() -> Problem:
    """A problem of every kind, none of which a schedule was optimised on."""
    return family(HELD_OUT)


def best_there(lanes: list[Lane], transferred: list[Schedule], seeds: int) -> list[Schedule]:
    """The best schedule found for the held-out problems themselves, by the noise it was searched with; one a lane."""

    def there(lane: Lane, **options: Any) -> SolverError:
        how: Any = lane.method
        return dataclasses.replace(how, problems=held_out(), samples=SAMPLES, noise_seed=SEED, **options)

    own = [lane._replace(method=there(lane)) for lane in lanes]
    found = [search_many([lane._replace(seed=seed) for lane in own]) for seed in range(seeds)]
    pairs = zip(lanes, transferred, strict=True)
    found.append(search_many([lane._replace(method=there(lane, start=start)) for lane, start in pairs]))
    return [min(column, key=lambda s: np.inf if s.error is None else s.error) for column in zip(*found, strict=True)]


def limits(args: argparse.Namespace) -> None:
    """Print errors on the held-out problems, a row a cell: the best method in bold, the limit aside."""
    noise, nfes = preset(args.model), args.nfe
    lanes = [Lane(noise, n, method=SolverError(s, args.guidance, compare=())) for s in COMPARED for n in nfes]
    found = search_many(lanes)
    on: dict[str, Any] = {"problems": held_out(), "samples": SAMPLES, "seed": JUDGE_SEED}

    def judge(schedule: Schedule, solver: str) -> float:
        return solver_error(schedule, noise, solver=solver, guidance=args.guidance, **on)

    rules = [name for name in BASELINES if not inapplicable(name, noise)]
    others = {n: {"hso": search(noise, n, method=Hso(relax=True))} for n in nfes}
    others = {n: {**own, **{name: baseline(name, noise, n) for name in rules}} for n, own in others.items()}
    rows = []
    for lane, own, best in zip(lanes, found, best_there(lanes, found, args.seeds), strict=True):
        every = {"solver-error": own, **others[lane.nfe]}
        errors = {name: judge(s, own.solver) for name, s in every.items()}
        limit, least = judge(best, own.solver), min(errors.values())
        cells = [f"**{x:.4f}**" if x == least else f"{x:.4f}" for x in errors.values()]
        above = f"{100 * (errors['solver-error'] / limit - 1):.1f}%"
        rows.append([f"{own.solver} {lane.nfe}", f"{limit:.4f}", *cells, above])
    print(f"\n{args.model}, guidance {args.guidance:g}, {jax.devices()[0].platform}, float32\n")
    print(markdown(["solver, N", "limit", "solver-error", "hso", *rules, "above limit"], rows))


def errors_by_nfe(model: str, guidance: float) -> dict[str, dict[str, list[float]]]:
    """Measure solver -> method -> error at each of `DRAWN`, of shipped schedules, HSO and rules."""
    noise = preset(model)
    rules = [name for name in LINES if name in BASELINES]
    fixed: dict[str, list[Schedule]] = {name: [baseline(name, noise, n) for n in DRAWN] for name in rules}
    fixed["hso"] = search(noise, DRAWN, method=Hso(relax=True))
    on: dict[str, Any] = {"problems": held_out(), "samples": DRAWN_SAMPLES, "seed": JUDGE_SEED}
    data = error_data(noise.noise_end, guidance, prediction=noise.prediction, **on)
    chunks = in_chunks(data, DRAWN_SAMPLES)  # solved once: `solver_error` would for each schedule
    free = [zoo(model, n, NONSTATIONARY, guidance=guidance) if n in NONSTATIONARY_NFE else None for n in DRAWN]
    own = [np.nan if s is None else measure(s, s.solver, chunks) for s in free]
    found: dict[str, dict[str, list[float]]] = {}
    for solver in COMPARED:
        known = {"solver-error": [zoo(model, n, solver, guidance=guidance) for n in DRAWN], **fixed}
        found[solver] = {name: [measure(s, solver, chunks) for s in schedules] for name, schedules in known.items()}
        found[solver][NONSTATIONARY] = own
    return found


def figure(args: argparse.Namespace) -> None:
    """Draw error against N, a panel a guidance weight and solver, and print the numbers."""
    panels = {}
    for weight in (1.0, 7.5):
        for solver, methods in errors_by_nfe(args.model, weight).items():
            points = {m: list(zip(DRAWN, y, strict=True)) for m, y in methods.items()}
            panels[f"guidance {weight:g}", SOLVERS[solver]] = points
            print(f"\n{solver}, guidance {weight:g}: N = {DRAWN}")
            for name, values in methods.items():
                print(f"  {name:12s} " + " ".join(f"{v:.4f}" for v in values))
    save(against_nfe(panels, LINES, "RMSE in standard deviations of the data", TOP), args.output)


def robustness(args: argparse.Namespace) -> None:
    """Print a table a solver: the schedule found on other problems, its error, and the default family's there."""
    noise = preset(args.model)
    for solver in args.solvers:
        usual = search(noise, OTHER_NFE, method=SolverError(solver, compare=()))
        rows = []
        for name, changed in FAMILIES.items():
            problems = family(**{"seeds": range(12), **changed})
            data: dict[str, Any] = {"problems": problems, "samples": OTHER_SAMPLES}
            own = search(noise, OTHER_NFE, method=SolverError(solver, compare=(), **data))
            there, error = solver_error(usual, noise, solver=solver, **data), own.error or np.nan
            steps = " ".join(map(str, own.integer_timesteps()))
            rows.append([name, steps, f"{error:.4f}", f"{there:.4f}", f"{100 * (there / error - 1):.1f}%"])
        print(f"\n{solver}, N = {OTHER_NFE}, {args.model}\n")
        print(markdown(["problems", "timesteps", "error", "default family's schedule there", "costs"], rows))


def main() -> None:
    """Run one of the studies."""
    studies = {"limits": limits, "figure": figure, "robustness": robustness}
    parser = runner.command("python -m benchmarks.mixtures", __doc__)
    add = parser.add_argument
    add("study", choices=studies)
    add("--model", default="sd15", help="a preset; default %(default)s")
    add("--guidance", type=float, default=1.0, help="of limits; default 1")
    add("--nfe", type=runner.budgets, default=(4, 5, 6, 8, 10), help="of limits; default 4-6,8,10")
    add("--seeds", type=int, default=3, help="direct searches for the limit; default 3")
    add("--solvers", type=runner.names, default=COMPARED, help="of robustness; default all")
    add("-o", "--output", type=Path, default=Path("docs/images/solver-error.png"), help="of figure")
    args = parser.parse_args()
    if "JAX_NUM_CPU_DEVICES" not in os.environ:
        jax.config.update("jax_num_cpu_devices", min(os.cpu_count() or 1, 8))
    studies[args.study](args)


if __name__ == "__main__":
    main()
