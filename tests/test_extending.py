"""docs/extending.md runs as it stands: an objective, a solver and a method of one's own; and its map names files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

import hso_jax
from hso_jax import solvers

ROOT = Path(hso_jax.__file__).parent.parent
TEXT = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page() -> dict[str, Any]:
    """What the page's code defines."""
    names: dict[str, Any] = {"__name__": __name__}
    try:
        for block in re.findall(r"```python\n(.*?)```", TEXT, re.S):
            exec(compile(block, "docs/extending.md", "exec"), names)
        yield names
    finally:
        solvers.SOLVERS.pop("first-order", None)


def test_the_map_names_files_that_are_there() -> None:
    files = set(re.findall(r"`(hso_jax/[\w/]+\.py)`", TEXT))
    assert len(files) > 12 and not [name for name in files if not (ROOT / name).is_file()]


def test_an_objective_of_one_s_own(page: dict[str, Any]) -> None:
    s = page["schedule"]
    assert s.method == "hso-squared_steps" and s.result == "converged" and s.nfe == 6
    np.testing.assert_allclose(np.diff(s.lams), np.diff(s.lams).mean(), rtol=1e-3)


@pytest.mark.slow
def test_an_objective_without_a_value_is_reported() -> None:
    lanes = [hso_jax.Lane(hso_jax.preset("sdxl"), 5, method=hso_jax.Hso(objective=nowhere)), hso_jax.Lane(SDXL, 5)]
    lost, kept = hso_jax.search_many(lanes, effort=hso_jax.Effort(population=4, generations=1))
    assert lost.result == "not_finite" and np.all(np.diff(lost.t) < 0)
    assert kept.result == "converged" and kept.method == "hso"


def test_a_solver_of_one_s_own(page: dict[str, Any]) -> None:
    lams = jnp.asarray([-2.0, 0.0, 1.0])
    x = jnp.asarray([1.0, -0.5])
    mine, ddim = (solvers.sample(lambda x, lam: 0.3 * x, lams, x, solver=s) for s in ("first-order", "ddim"))
    np.testing.assert_array_equal(mine, ddim)


def test_the_page_s_method_finds_the_best_exponent(page: dict[str, Any]) -> None:
    for s in page["found"]:
        assert s.method == "best-exponent"
        noisy, clean = np.exp(-s.lams[[0, -1]])

        def score(rho: float, n: int = s.nfe, ends: tuple[float, float] = (noisy, clean)) -> float:
            steps = np.linspace(ends[0] ** (1 / rho), ends[1] ** (1 / rho), n) ** rho
            return float(hso_jax.mep(-np.log(steps)))

        best = optimize.minimize_scalar(score, bounds=(1.0, 16.0), method="bounded")
        assert hso_jax.mep(s.lams) <= best.fun * (1 + 1e-5)


def test_methods_mix(page: dict[str, Any]) -> None:
    lanes = [hso_jax.Lane(SDXL, 4, method=page["BestExponent"]()), hso_jax.Lane(SDXL, 5), hso_jax.Lane(SDXL, 1)]
    told: list[tuple[int, int]] = []
    effort = hso_jax.Effort(population=4, generations=1)
    found = hso_jax.search_many(lanes, effort=effort, progress=lambda *x: told.append(x))
    assert [(s.method, s.nfe) for s in found] == [("best-exponent", 4), ("hso", 5), ("hso", 1)]
    assert told[-1] == (3, 3)
    with pytest.raises(ValueError, match=r"lanes\[1\]: nfe is 0"):
        hso_jax.search_many([lanes[0], lanes[1]._replace(nfe=0)])


SDXL = hso_jax.preset("sdxl")


def nowhere(lams: Any, terms: Any) -> Any:
    return jnp.nan * jnp.sum(lams)
