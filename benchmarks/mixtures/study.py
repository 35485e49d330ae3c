"""Schedules scored by the error of the solver itself, on the generic Gaussian mixture whose exact solution is known.

    python -m benchmarks.mixtures.study             prints the tables
    python -m benchmarks.mixtures.study --samples   also: how many noise samples a stable ranking takes

For each guidance weight, N and solver: the RMSE of x_0 against the converged solution from the same noise, for
rule-based schedules and for the MEP family (p, t_eps) at t_max = 1, on Stable Diffusion's noise schedule.
"""

from __future__ import annotations

import functools
import itertools
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from benchmarks import runner
from benchmarks.compared import COMPARED
from benchmarks.tables import markdown
from hso_jax import NoiseSchedule, baseline, preset, refine, solvers
from hso_jax.problems import Problem, denoiser, exact, generic

P = (1.0, 1.5, 2.0, 2.5, 3.0)
T_EPS = (0.003, 0.01, 0.03, 0.06, 0.1, 0.16)
BUDGETS = (4, 6, 8)
GUIDANCE = (1.0, 3.0, 7.5)
RULES = ("trailing", "uniform-lam", "karras")
SAMPLES, SEED = 600, 0


@functools.partial(jax.jit, static_argnames=("nfe",))
def family(noise: NoiseSchedule, nfe: int) -> Array:
    """[P x T_EPS, N] lams of the MEP-optimal nodes of the node layout, t_max = 1."""
    grid = jnp.asarray(list(itertools.product(P, T_EPS)))

    def one(p: Array, t_eps: Array) -> Array:
        start = jnp.linspace(1.0, t_eps, nfe)
        return noise.lam(refine(noise, start, t_max=1.0, t_eps=t_eps, p=p).t)

    return jax.vmap(one)(grid[:, 0], grid[:, 1])


@functools.partial(jax.jit, static_argnames="solver")
def errors(problem: Problem, lams: Array, noise: Array, truth: Array, guidance: Array, solver: str) -> Array:
    """[schedules, B] squared error of each sample, mean over its dimensions."""

    def one(row: Array) -> Array:
        x = solvers.sample(denoiser(problem, guidance), row, noise, solver=solver)
        return jnp.mean((x - truth) ** 2, axis=-1)

    return jax.lax.map(one, lams)


NAMES = [*RULES, *(f"({p:g}, {t:g})" for p, t in itertools.product(P, T_EPS))]
Cells = dict[tuple[float, int, str], np.ndarray]
"""Guidance, N and solver to the squared errors [schedules, samples] of the schedules `NAMES`."""


def study(problem: Problem, noise: NoiseSchedule, samples: int, seed: int) -> Cells:
    """Measure every cell."""
    x = jax.random.normal(jax.random.key(seed), (samples, problem.means.shape[1]))
    start, cells = float(noise.lam(float(noise.t_max))), Cells()
    for weight in GUIDANCE:
        truth = exact(problem, x, start=start, guidance=weight)
        print(f"w {weight:g}: exact solution, error estimate {float(truth.error):.1e}")
        for nfe, solver in itertools.product(BUDGETS, COMPARED):
            rules = np.stack([baseline(name, noise, nfe).lams for name in RULES])
            lams = np.concatenate([rules, np.asarray(family(noise, nfe))])
            found = errors(problem, jnp.asarray(lams, x.dtype), x, truth.value, weight, solver)
            cells[weight, nfe, solver] = np.asarray(found)
    return cells


def report(cells: Cells) -> str:
    """One row a cell."""
    shown, rows = ("(2, 0.03)", *RULES), []
    for (weight, nfe, solver), squares in cells.items():
        rmse = dict(zip(NAMES, np.sqrt(squares.mean(1)), strict=True))
        best = min(NAMES[len(RULES) :], key=rmse.__getitem__)
        rows.append([f"{weight:g}", str(nfe), solver, f"{rmse[best]:.3f} {best}", *(f"{rmse[x]:.3f}" for x in shown)])
    return markdown(["w", "N", "solver", "best (p, t_eps)", *shown], rows, left=3)


def ranking(cells: Cells, draws: int = 200) -> str:
    """What choosing by few of the samples costs: regret of the choice on all of them, over random subsets."""
    rng, rows = np.random.default_rng(SEED), []
    for count in (8, 16, 32, 64, 128, 256):
        same, regret = [], []
        for squares in cells.values():
            full = np.sqrt(squares[len(RULES) :].mean(1))
            for _ in range(draws):
                subset = rng.choice(squares.shape[1], count, replace=False)
                chosen = squares[len(RULES) :, subset].mean(1).argmin()
                same.append(chosen == full.argmin())
                regret.append(full[chosen] / full.min() - 1.0)
        rows.append([str(count), f"{np.mean(same):.0%}", f"{np.mean(regret):.2%}", f"{np.quantile(regret, 0.95):.2%}"])
    return markdown(["samples", "same choice", "regret of RMSE: mean", "worst 5%"], rows)


def main() -> None:
    """Print everything."""
    parser = runner.command("python -m benchmarks.mixtures.study", __doc__)
    parser.add_argument("--samples", action="store_true", help="also measure how many samples a ranking takes")
    options = parser.parse_args()
    noise, problem = preset("sd21-base"), generic(jax.random.key(SEED))
    print(f"{jax.devices()[0]}, generic mixture of seed {SEED}, {SAMPLES} samples")
    begin = time.perf_counter()
    cells = study(problem, noise, SAMPLES, SEED + 1)
    print(f"{time.perf_counter() - begin:.1f} s with compilation")
    print("\n" + report(cells))
    if options.samples:
        print(ranking(cells))


if __name__ == "__main__":
    main()
