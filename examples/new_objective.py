"""A researcher: an objective of one's own in both levels of the search, compared with MEP on the solver's error.

    python examples/new_objective.py

The objective is the local error of a first-order solver, h^2 a step, weighted by how much noise its midpoint has.
Anything that JAX can differentiate twice will do; docs/extending.md has the details.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

import hso_jax
from hso_jax.bounds import Terms

NFE = 6


def squared_steps(lams: jax.Array, terms: Terms) -> jax.Array:
    """sum_i sigma(m_i)^p h_i^2: lams [K] rise; padding repeats the last node, has h = 0 and costs nothing."""
    steps, middles = jnp.diff(lams), (lams[1:] + lams[:-1]) / 2
    sigma = jax.nn.sigmoid(-2 * middles) ** 0.5
    return jnp.sum(sigma**terms.p * steps**2)


def main() -> None:
    """Search with both objectives, and let a solver on problems with an exact solution judge the schedules."""
    noise = hso_jax.preset("sdxl")
    methods = {"MEP": hso_jax.Hso(), "squared steps": hso_jax.Hso(objective=squared_steps)}
    lanes = [hso_jax.Lane(noise, NFE, method=method) for method in methods.values()]
    rows = dict(zip(methods, hso_jax.search_many(lanes), strict=True))
    rows["trailing"] = hso_jax.baseline("trailing", noise, NFE)
    for name, schedule in rows.items():
        error = hso_jax.solver_error(schedule, noise, solver="unipc-2")
        print(f"{name:14} {schedule.result:10} error {error:.4f}  timesteps {schedule.integer_timesteps()}")


if __name__ == "__main__":
    main()
