"""What a caller sets JAX to for their own code changes nothing here: promotion, NaN checks, another generator."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marks import slow_but
from solver_error_cells import EFFORT, SD, SD3, method, small_family

from hso_jax import Lane, baseline, mep, refine, search, search_many, solver_error, spf
from hso_jax import problems as p
from hso_jax.noise import NoiseSchedule, preset
from hso_jax.solver_error_levels import Coefficients
from hso_jax.solvers import SOLVERS, sample


@contextlib.contextmanager
def strict() -> Iterator[None]:
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"), jax.debug_nans(True):
        yield


def of_noise(noise: NoiseSchedule) -> list[jax.Array]:
    t, lam = jnp.asarray(0.5), jnp.linspace(-1.0, 1.0, 3)
    values = [noise.lam(t), noise.ksigma(t), noise.alpha(t), noise.sigma(t), noise.timestep(t)]
    return [*values, noise.t_of_lam(lam), jax.vmap(jax.grad(noise.t_of_lam))(lam)]


def of_problems() -> list[jax.Array]:
    one = jax.tree.map(lambda leaf: leaf[0], small_family())
    product = p.spectral(jax.random.key(0), p.power_law(64, 1.0), dimension=4)
    x, lam = jnp.ones((3, 4)), jnp.asarray(0.1)
    exact = [p.exact(of, x, start=-2.0, end=1.0, guidance=3.0, steps=8).value for of in (one, product)]
    return [p.denoise(one, x, lam, 2.0), p.score(one, x, lam), *exact]


def of_solvers() -> list[jax.Array]:
    denoiser = p.denoiser(jax.tree.map(lambda leaf: leaf[0], small_family()), 2.0)
    return [sample(denoiser, jnp.linspace(-2.0, 2.0, 4), jnp.ones((3, 4)), solver=solver) for solver in SOLVERS]


def refined(p: Any) -> jax.Array:
    return refine(SD, jnp.linspace(0.9, 0.1, 6), t_max=0.9, t_eps=0.1, p=p, spacing=0.01).t


LAMS, T = np.linspace(-2.0, 2.0, 5).astype(np.float32), np.linspace(1.0, 0.1, 5).astype(np.float32)
FREE = Coefficients(steps=2, final_steps=1)

DOORS: dict[str, Callable[[], Any]] = {
    "hso": lambda: search(SD, [3, 4], effort=EFFORT)[1].t,
    "hso-dm-nonuni": lambda: search(SD, 4, method="hso-dm-nonuni", effort=EFFORT).t,
    "solver-error": lambda: search(SD, 3, method=method("dpmpp-2m", compare=("ddim",)), effort=EFFORT).t,
    "nonstationary": lambda: search(SD3, 3, method=method("nonstationary", coefficients=FREE), effort=EFFORT).t,
    "refine": lambda: [refined(2), refined(jnp.asarray(2.0)), jax.vmap(refined)(jnp.array([1.0, 2.0]))],
    "refine's derivatives": lambda: [jax.jacrev(refined)(2.0), jax.jacfwd(jax.jacrev(refined))(2.0)],
    "mep": lambda: [mep(jnp.asarray(LAMS), 1), jax.hessian(mep)(jnp.asarray(LAMS))],
    "spf": lambda: [spf(jnp.asarray(LAMS), jnp.asarray(T), 0.1, p=1, gamma=10, intervals=jnp.asarray(3))],
    "solver_error": lambda: solver_error(baseline("karras", SD, 4), SD, solver="unipc-3", samples=4, guidance=3.0),
    "dm-nonuni": lambda: baseline("dm-nonuni", SD, 5).t,
    "noise": lambda: [of_noise(preset(name)) for name in ("sd15", "edm-cifar10", "flux-dev")],
    "problems": of_problems,
    "solvers": of_solvers,
}


@pytest.mark.parametrize("door", slow_but(("hso", "refine", "mep", "spf", "noise"), DOORS))
def test_strict_promotion_and_nan_checks_change_no_result(door: str) -> None:
    with strict():
        found = DOORS[door]()
    for mine, wanted in zip(jax.tree.leaves(found), jax.tree.leaves(DOORS[door]()), strict=True):
        np.testing.assert_array_equal(mine, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["hso", "solver-error"])
def test_another_default_generator_changes_no_lane(how: str) -> None:
    lanes = [Lane(SD, 4, seed=seed, method=method() if how == "solver-error" else "hso") for seed in range(3)]
    wanted = search_many(lanes, effort=EFFORT)
    with jax.default_prng_impl("rbg"):
        jax.clear_caches()
        found = search_many(lanes, effort=EFFORT)
        alone = search_many([lanes[2], lanes[0], lanes[0]], effort=EFFORT)
    assert [s.t.tolist() for s in found] == [s.t.tolist() for s in wanted]
    assert alone[0].t.tolist() == wanted[2].t.tolist()


def test_problems_are_the_same_with_another_default_generator() -> None:
    with jax.enable_x64(False), jax.default_prng_impl("rbg"):
        found = p.family(range(2), dimension=4, components=4, members=2)
    np.testing.assert_array_equal(found.means, small_family().means)


def test_a_checkpoint_names_its_generator(tmp_path: Path) -> None:
    file, lanes = tmp_path / "c.json", [Lane(SD, 4)]
    search_many(lanes, effort=EFFORT, checkpoint=file)
    head, *records = file.read_text().splitlines(keepends=True)
    document = json.loads(head)
    assert document["arguments"]["random"] == "threefry2x32"
    document["arguments"]["random"] = "rbg"
    file.write_text("".join([json.dumps(document) + "\n", *records]))
    with pytest.raises(ValueError, match="random was 'rbg', is 'threefry2x32'"):
        search_many(lanes, effort=EFFORT, checkpoint=file)
