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


def candidates(noise: NoiseSchedule, nfe: int) -> tuple[list[str], np.ndarray]:
    """Names and lams [., N] of the rules and of the family."""
    names = [*RULES, *(f"({p:g}, {t:g})" for p, t in itertools.product(P, T_EPS))]
    rules = np.stack([baseline(name, noise, nfe).lams for name in RULES])
    return names, np.concatenate([rules, np.asarray(family(noise, nfe))])


Cells = dict[tuple[float, int, str], tuple[list[str], np.ndarray]]
"""Guidance, N and solver to the schedules' names and their squared errors [schedules, samples]."""


def study(problem: Problem, noise: NoiseSchedule, samples: int, seed: int) -> Cells:
    """Measure every cell."""
    x = jax.random.normal(jax.random.key(seed), (samples, problem.means.shape[1]))
    start = float(noise.lam(float(noise.t_max)))
    cells: Cells = {}
    for weight in GUIDANCE:
        truth = exact(problem, x, start=start, guidance=weight)
        print(f"w {weight:g}: exact solution, error estimate {float(truth.error):.1e}")
        for nfe, solver in itertools.product(BUDGETS, COMPARED):
            names, lams = candidates(noise, nfe)
            found = errors(problem, jnp.asarray(lams, x.dtype), x, truth.value, weight, solver)
            cells[weight, nfe, solver] = names, np.asarray(found)
    return cells


def report(cells: Cells) -> None:
    """One row a cell."""
    print(f"\n| w | N | solver | best (p, t_eps) | (2, 0.03) | {' | '.join(RULES)} |\n|{'---|' * (5 + len(RULES))}")
    for (weight, nfe, solver), (names, squares) in cells.items():
        rmse = dict(zip(names, np.sqrt(squares.mean(1)), strict=True))
        best = min(names[len(RULES) :], key=rmse.__getitem__)
        others = " | ".join(f"{rmse[name]:.3f}" for name in ("(2, 0.03)", *RULES))
        print(f"| {weight:g} | {nfe} | {solver} | {rmse[best]:.3f} {best} | {others} |")


def ranking(cells: Cells, draws: int = 200) -> None:
    """What choosing by few of the samples costs: regret of the choice on all of them, over random subsets."""
    rng = np.random.default_rng(SEED)
    print("\n| samples | same choice | regret of RMSE: mean | worst 5% |\n|---|---|---|---|")
    for count in (8, 16, 32, 64, 128, 256):
        same, regret = [], []
        for _, squares in cells.values():
            full = np.sqrt(squares[len(RULES) :].mean(1))
            for _ in range(draws):
                subset = rng.choice(squares.shape[1], count, replace=False)
                chosen = squares[len(RULES) :, subset].mean(1).argmin()
                same.append(chosen == full.argmin())
                regret.append(full[chosen] / full.min() - 1.0)
        print(f"| {count} | {np.mean(same):.0%} | {np.mean(regret):.2%} | {np.quantile(regret, 0.95):.2%} |")


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
    report(cells)
    if options.samples:
        ranking(cells)


if __name__ == "__main__":
    main()
