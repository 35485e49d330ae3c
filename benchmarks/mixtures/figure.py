"""Error against N on held-out problems, a panel a solver: shipped solver-error schedules, HSO and the usual rules.

python -m benchmarks.mixtures.figure                 docs/images/solver-error.png, and the numbers as text
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks import runner
from benchmarks.compared import COMPARED, SOLVERS
from benchmarks.mixtures.limits import JUDGE_SEED, held_out
from benchmarks.plots import against_nfe, save
from hso_jax import Hso, Schedule, baseline, preset, search, zoo
from hso_jax.error import error_data, in_chunks
from hso_jax.shipped.zoo import NONSTATIONARY_NFE
from hso_jax.solver_error_method import measure
from hso_jax.solvers import NONSTATIONARY

RULES = ("trailing", "karras", "ays", "uniform-lam")
LINES = {
    "trailing": ("trailing", "#7f7f7f", "s", "-"),
    "karras": ("Karras, rho 7", "#e6a100", "^", "-"),
    "ays": ("AYS, interpolated", "#8c5fb0", "v", "-"),
    "uniform-lam": ("uniform lam", "#2a9d8f", "D", "-"),
    "hso": ("HSO, the paper's box", "#1d4e89", "P", "-"),
    NONSTATIONARY: ("coefficients of their own", "#111111", "*", "-"),
    "solver-error": ("solver-error, for this solver", "#c1121f", "o", "-"),
}
SAMPLES = 512
"""A problem: at N >= 15 a few samples near a border between components are most of the error."""

TOP = 3.0  # of the picture
MODEL, BUDGETS = "sd15", (3, 4, 5, 6, 7, 8, 10, 12, 15, 20)


def errors(guidance: float) -> dict[str, dict[str, list[float]]]:
    """Measure solver -> method -> error at each of `BUDGETS`, on the held-out problems."""
    noise = preset(MODEL)
    fixed: dict[str, list[Schedule]] = {name: [baseline(name, noise, n) for n in BUDGETS] for name in RULES}
    fixed["hso"] = search(noise, BUDGETS, method=Hso(relax=True))
    data = error_data(
        noise.noise_end, guidance, prediction=noise.prediction, problems=held_out(), samples=SAMPLES, seed=JUDGE_SEED
    )
    chunks = in_chunks(data, SAMPLES)  # solved once: `solver_error` would for each schedule
    free = [zoo(MODEL, n, NONSTATIONARY, guidance=guidance) if n in NONSTATIONARY_NFE else None for n in BUDGETS]
    own = [np.nan if s is None else measure(s, s.solver, chunks) for s in free]
    found: dict[str, dict[str, list[float]]] = {}
    for solver in COMPARED:
        known = {"solver-error": [zoo(MODEL, n, solver, guidance=guidance) for n in BUDGETS], **fixed}
        found[solver] = {name: [measure(s, solver, chunks) for s in schedules] for name, schedules in known.items()}
        found[solver][NONSTATIONARY] = own
    return found


def main() -> None:
    """Draw, and print the numbers."""
    parser = runner.command("python -m benchmarks.mixtures.figure", __doc__)
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/images/solver-error.png"))
    options = parser.parse_args()
    rows = {w: errors(w) for w in (1.0, 7.5)}
    panels = {
        (f"guidance {w:g}", SOLVERS[solver]): {m: list(zip(BUDGETS, y, strict=True)) for m, y in methods.items()}
        for w, found in rows.items()
        for solver, methods in found.items()
    }
    save(against_nfe(panels, LINES, "RMSE in standard deviations of the data", TOP), options.output)
    for guidance, found in rows.items():
        for solver, methods in found.items():
            print(f"\n{solver}, guidance {guidance:g}: N = {BUDGETS}")
            for name, values in methods.items():
                print(f"  {name:12s} " + " ".join(f"{v:.4f}" for v in values))


if __name__ == "__main__":
    main()
