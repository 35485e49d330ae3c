"""Error against N on held-out problems, a panel a solver: shipped solver-error schedules, HSO and the usual rules.

python -m benchmarks.mixtures.figure                 docs/images/solver-error.png and docs/results/solver-error.md
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from benchmarks.mixtures.limits import JUDGE_SEED, held_out
from benchmarks.solvers import COMPARED, SOLVERS
from hso_jax import Hso, Schedule, baseline, preset, search, zoo
from hso_jax.methods.solver_error.schedules import measure
from hso_jax.objectives.solver_error import error_data, in_chunks
from hso_jax.shipped.zoo import NONSTATIONARY_NFE
from hso_jax.solvers import NONSTATIONARY

RULES = {
    "trailing": ("trailing", "#7f7f7f", "s"),
    "karras": ("Karras, rho 7", "#e6a100", "^"),
    "ays": ("AYS, interpolated", "#8c5fb0", "v"),
    "uniform-lam": ("uniform lam", "#2a9d8f", "D"),
}
OURS = {
    "hso": ("HSO, the paper's box", "#1d4e89", "P"),
    "solver-error": ("solver-error, for this solver", "#c1121f", "o"),
    NONSTATIONARY: ("coefficients of their own", "#111111", "*"),
}
TOP = 3.0
"""Errors above are off the picture, which says so."""
SAMPLES = 512
"""A problem: at N >= 15 a few samples near a border between components are most of the error."""

BUDGETS = (3, 4, 5, 6, 7, 8, 10, 12, 15, 20)


def errors(model: str, guidance: float) -> dict[str, dict[str, list[float]]]:
    """Solver -> method -> error at each of `BUDGETS`, on the held-out problems."""
    noise = preset(model)
    fixed: dict[str, list[Schedule]] = {name: [baseline(name, noise, n) for n in BUDGETS] for name in RULES}
    fixed["hso"] = search(noise, BUDGETS, method=Hso(relax=True))
    data = error_data(
        noise.noise_end, guidance, prediction=noise.prediction, problems=held_out(), samples=SAMPLES, seed=JUDGE_SEED
    )
    chunks = in_chunks(data, SAMPLES)  # solved once: `solver_error` would for each schedule
    free = [zoo(model, n, NONSTATIONARY, guidance=guidance) if n in NONSTATIONARY_NFE else None for n in BUDGETS]
    own = [np.nan if s is None else measure(s, s.solver, chunks) for s in free]
    found: dict[str, dict[str, list[float]]] = {}
    for solver in COMPARED:
        known = {"solver-error": [zoo(model, n, solver, guidance=guidance) for n in BUDGETS], **fixed}
        found[solver] = {name: [measure(s, solver, chunks) for s in schedules] for name, schedules in known.items()}
        found[solver][NONSTATIONARY] = own
    return found


def figure(rows: dict[float, dict[str, dict[str, list[float]]]], model: str) -> Figure:
    """A row of panels a guidance weight."""
    fig, axes = plt.subplots(
        len(rows), 3, figsize=(11, 3.6 * len(rows)), sharex=True, squeeze=False, layout="constrained"
    )
    for line, (guidance, found) in zip(axes, rows.items(), strict=True):
        for axis, solver in zip(line, COMPARED, strict=True):
            for name, (label, colour, marker) in {**RULES, **OURS}.items():
                values = np.array(found[solver][name])
                bold = name == "solver-error"
                axis.plot(
                    BUDGETS, np.where(np.isfinite(values), values, np.nan), color=colour, marker=marker, label=label,
                    linewidth=2.2 if bold else 1.2, markersize=6 if bold else 4, zorder=3 if bold else 2,
                )  # fmt: skip
            axis.set(xscale="log", yscale="log", title=f"{SOLVERS[solver]}, guidance {guidance:g}")
            axis.set_xticks(BUDGETS, [str(n) for n in BUDGETS], minor=False)
            axis.set_xticks([], minor=True)
            if axis.get_ylim()[1] > TOP:
                axis.set_ylim(top=TOP)
                axis.text(0.98, 0.97, f"some above {TOP:g}", transform=axis.transAxes, ha="right", va="top", fontsize=8)
            axis.yaxis.set_major_formatter("{x:g}")
            axis.yaxis.set_minor_formatter("")
            axis.grid(alpha=0.3, which="both")
        line[0].set_ylabel("RMSE in standard deviations of the data")
    for axis in axes[-1]:
        axis.set_xlabel("N, model evaluations")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles[::-1], labels[::-1], loc="outside lower center", ncols=4, frameon=False)
    fig.suptitle(f"Held-out reference problems, noise of {model}", fontsize=11)
    return fig


def main() -> None:
    """Draw, and print the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="sd15")
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/images/solver-error.png"))
    options = parser.parse_args()
    rows = {w: errors(options.model, w) for w in (1.0, 7.5)}
    figure(rows, options.model).savefig(options.output, dpi=130)
    for guidance, found in rows.items():
        for solver, methods in found.items():
            print(f"\n{solver}, guidance {guidance:g}: N = {BUDGETS}")
            for name, values in methods.items():
                print(f"  {name:12s} " + " ".join(f"{v:.4f}" for v in values))


if __name__ == "__main__":
    main()
