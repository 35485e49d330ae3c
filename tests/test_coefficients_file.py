"""Coefficients of a non-stationary solver as text to paste, as a table of weights, and from a known solver's steps."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hso_jax import Schedule, baseline, noise, preset, solvers
from hso_jax.noise import alpha_sigma
from hso_jax.schedule import Origin, in_coefficients
from hso_jax.solvers.weights import PURE_NOISE

MODELS = {**{"vp": preset("sd15"), "ve": preset("edm-cifar10"), "flow": noise.flow(3.0)}, "pure noise": noise.cosine()}


def free(name: str, nfe: int = 5, history: int = 3, end: str = "clean") -> Schedule:
    """Random nodes from the noisiest level on, random coefficients."""
    rng = np.random.default_rng(0)
    t = np.append(1.0, np.sort(rng.uniform(0.02, 0.98, nfe - (end == "clean")))[::-1])
    c = np.tril(rng.normal(size=(nfe, history - 1)), -1)
    layout, origin = "node" if end == "clean" else "interval", Origin(solver=solvers.NONSTATIONARY)
    return Schedule.from_t(MODELS[name], t, layout=layout, end=end, origin=origin, coefficients=c)


SCHEDULES = [free(name, end=end) for name in MODELS for end in ("clean", "t_eps")]
each = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: f"{s.model}-{s.end}")


@each
def test_the_table_of_weights_is_the_solver(schedule: Schedule) -> None:
    """Carried out as it stands it is the JAX loop, whose scaling is VP's."""
    table = schedule.weights_table()
    assert table.shape == (5, 4)
    last = np.inf if schedule.end == "clean" else schedule.lams[-1]
    alphas, sigmas = alpha_sigma(np.append(schedule.lams[:5], last if last < np.inf else 800.0), schedule.kind)
    scale = np.hypot(alphas, sigmas)
    start = np.random.default_rng(1).normal(size=7)
    with jax.enable_x64(True):
        weights = solvers.nonstationary(schedule.lams[:5], schedule.coefficients, end=last)
        # The same function of the sample in VP's scaling.
        want = solvers.run(lambda x, lam: jnp.tanh(1.3 * x + 0.2), weights, jnp.asarray(start))
    x, past = scale[0] * start, []
    for i, row in enumerate(table):
        past.insert(0, np.tanh(1.3 * x / scale[i] + 0.2))
        x = row[0] * x + sum(w * m for w, m in zip(row[1:], past, strict=False))
    np.testing.assert_allclose(x, scale[-1] * np.asarray(want), rtol=1e-12, atol=1e-13)


@each
def test_the_pasted_text_is_the_schedule(schedule: Schedule) -> None:
    """To the digit; and the recurrence that its comment states is the table of weights."""
    pasted: dict[str, Any] = {}
    exec(schedule.python_literal(), pasted)
    assert pasted["sigmas"] == schedule.sampler_sigmas().tolist()
    assert pasted["timesteps"] == schedule.timesteps.tolist()
    assert pasted["coefficients"] == schedule.coefficients.tolist()
    assert all(f"{x:.6g}" in schedule._repr_html_() for x in schedule.coefficients[2])
    if np.isinf(pasted["sigmas"][0]):
        return
    sigmas = np.asarray(pasted["sigmas"])
    x, m = 1.7, np.random.default_rng(2).normal(size=5)
    alphas = alpha_sigma(schedule.lams, schedule.kind)[0]
    alphas = np.append(alphas[:5], 1.0 if schedule.end == "clean" else alphas[-1])
    scale = np.ones(6) if schedule.kind == "flow" else alphas
    y = scale[0] * x
    for i, row in enumerate(schedule.weights_table()):
        r, c, past = sigmas[i + 1] / sigmas[i], pasted["coefficients"][i], m[: i + 1][::-1]
        x = r * x + (1 - r) * ((1 - sum(c)) * past[0] + sum(a * b for a, b in zip(c, past[1:], strict=False)))
        y = row[0] * y + sum(w * b for w, b in zip(row[1:], past, strict=False))
    assert y == pytest.approx(scale[-1] * x, rel=1e-12)


def test_an_odd_name_ends_no_comment() -> None:
    """The name comes from a file; it ends no comment."""
    plain = dataclasses.replace(baseline("trailing", MODELS["vp"], 3), model="x\nimport os\x1b[31m")
    pasted: dict[str, Any] = {}
    exec(plain.python_literal(), pasted)
    assert "os" not in pasted and "coefficients" not in pasted and "\x1b" not in plain.python_literal()
    with pytest.raises(ValueError, match="for solver 'any' and holds no coefficients"):
        plain.weights_table()


@pytest.mark.parametrize("end", ["clean", "t_eps"])
@pytest.mark.parametrize("solver", ["dpmpp-2m", "unipc-3"])
@pytest.mark.parametrize("name", ["vp", "ve", "flow"])
def test_known_solvers_are_coefficients_to_either_end(name: str, solver: str, end: str) -> None:
    """Where they run, the predictions are the same: the sample differs by what a solver keeps beyond H = 4 alone."""
    plain = dataclasses.replace(free(name, nfe=4, end=end), origin=Origin(solver=solver), coefficients=None)
    own = in_coefficients(plain)
    assert own.solver == solvers.NONSTATIONARY and own.coefficients is not None and own.end == end
    assert in_coefficients(own) is own
    lams = plain.lams[:4].copy()
    lams[0] = max(lams[0], PURE_NOISE.get(plain.kind, -np.inf))
    last = np.inf if end == "clean" else float(plain.lams[-1])
    with jax.enable_x64(True):
        both = solvers.weights(solver, lams, end=last), solvers.nonstationary(lams, own.coefficients, end=last)
        x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 8)))
        there, here = (solvers.run(lambda x, lam: jnp.tanh(x + 0.1 * lam), weights, x) for weights in both)
    np.testing.assert_allclose(here, there, rtol=1e-9, atol=1e-12)
