"""How far solver-error schedules depend on the problems they are found on.

    python -m benchmarks.mixtures.robustness

For problems of another dimension, number of components, spectrum, share within components, scale or class size: the
schedule found on them, its error there, and what the default family's schedule costs there instead.
"""

from __future__ import annotations

from typing import Any

from benchmarks import runner
from benchmarks.compared import COMPARED
from hso_jax import SolverError, preset, search, solver_error
from hso_jax.problems import KINDS, family

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
MODEL, NFE, SAMPLES = "sd15", 6, 256


def main() -> None:
    """Print a table a solver."""
    parser = runner.command("python -m benchmarks.mixtures.robustness", __doc__)
    parser.add_argument("--solvers", type=runner.names, default=COMPARED)
    options = parser.parse_args()
    noise = preset(MODEL)
    for solver in options.solvers:
        usual = search(noise, NFE, method=SolverError(solver, compare=()))
        print(f"\n{solver}, N = {NFE}, {MODEL}\n")
        print("| problems | timesteps | error | default family's schedule there | costs |\n|---|---|---|---|---|")
        for name, changed in FAMILIES.items():
            problems = family(**{"seeds": range(12), **changed})
            data: dict[str, Any] = {"problems": problems, "samples": SAMPLES}
            own = search(noise, NFE, method=SolverError(solver, compare=(), **data))
            there = solver_error(usual, noise, solver=solver, **data)
            steps = " ".join(map(str, own.integer_timesteps()))
            assert own.error is not None
            cost = f"{100 * (there / own.error - 1):.1f}%"
            print(f"| {name} | {steps} | {own.error:.4f} | {there:.4f} | {cost} |", flush=True)


if __name__ == "__main__":
    main()
