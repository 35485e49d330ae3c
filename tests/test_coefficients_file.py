"""Coefficients of a non-stationary solver: in the file, as text to paste, as a table of weights, and on the screen."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hso_jax import Schedule, baseline, load, noise, preset, save, solvers
from hso_jax.cli import main
from hso_jax.noise import alpha_sigma
from hso_jax.schedule import Origin, in_coefficients
from hso_jax.schedule_file import from_document, from_json, to_document, to_json
from hso_jax.solvers.weights import PURE_NOISE

FREE = Origin(solver=solvers.NONSTATIONARY)
MODELS = {
    "vp": preset("sd15"),
    "ve": preset("edm-cifar10"),
    "flow": noise.flow(3.0),
    "pure noise": noise.cosine(),
}


def free(name: str, nfe: int = 5, history: int = 3, end: str = "clean", seed: int = 0) -> Schedule:
    """Random nodes from the noisiest level on, random coefficients."""
    rng, model = np.random.default_rng(seed), MODELS[name]
    t = np.append(1.0, np.sort(rng.uniform(0.02, 0.98, nfe - (end == "clean")))[::-1])
    c = np.tril(rng.normal(size=(nfe, history - 1)), -1)
    return Schedule.from_t(
        model, t, layout="node" if end == "clean" else "interval", end=end, origin=FREE, coefficients=c
    )


SCHEDULES = [free(name, end=end) for name in MODELS for end in ("clean", "t_eps")]


def test_round_trip_is_exact(tmp_path: Path) -> None:
    many = [*SCHEDULES, baseline("trailing", MODELS["vp"], 3)]
    save(many, tmp_path / "s.json")
    assert load(tmp_path / "s.json") == many
    document = json.loads((tmp_path / "s.json").read_text())
    assert document["version"] == 2
    assert document["schedules"][0]["coefficients"] == SCHEDULES[0].coefficients.tolist()
    assert document["schedules"][-1]["coefficients"] is None


def test_a_file_of_version_1_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was written by the program before there were coefficients."""
    file = Path(__file__).parent / "data" / "schedules-version-1.json"
    found = load(file)
    assert [s.nfe for s in found] == [3, 2, 2] and all(s.coefficients is None for s in found)
    old, new = json.loads(file.read_text()), json.loads(to_json(found))
    assert old.pop("version") == 1 and new.pop("version") == 2
    for before, after in zip(old["schedules"], new["schedules"], strict=True):
        assert {**after["others_same_nodes"], **after["others_own_nodes"]} == before.pop("others")
        assert {name: after.pop(name) for name in list(after) if name not in before}["coefficients"] is None
    assert old == new


NAN = float("nan")
BAD: dict[str, tuple[Any, str]] = {
    "a text": ("x", r"schedules\[1\]: coefficients is 'x'; need numbers"),
    "flat": ([0.0] * 5, r"schedules\[1\]: coefficients has shape \(5,\)"),
    "a row short": ([[0.0]] * 4, r"schedules\[1\]: coefficients has shape \(4, 1\)"),
    "ragged": ([[0.0], [0.0, 0.0], [0.0], [0.0], [0.0]], r"schedules\[1\]: coefficients is .* one length"),
    "NaN": ([[0.0], [NAN], [0.0], [0.0], [0.0]], r"schedules\[1\]: coefficients\[1\]\[0\] is nan"),
    "infinite": ([[0.0], [0.0], [0.0], [0.0], [1e999]], r"schedules\[1\]: coefficients\[4\]\[0\] is inf"),
    "null inside": ([[0.0], [None], [0.0], [0.0], [0.0]], r"schedules\[1\]: coefficients\[1\]\[0\] is None; need"),
    "true inside": ([[0.0], [True], [0.0], [0.0], [0.0]], r"schedules\[1\]: coefficients\[1\]\[0\] is True; need"),
    "early": ([[0.5], [0.0], [0.0], [0.0], [0.0]], r"schedules\[1\]: coefficients\[0\]\[0\] is 0.5; step 0 has 0"),
    "missing": (None, r"schedules\[1\]: coefficients: none for solver 'nonstationary'"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_coefficients_are_refused_by_schedule_and_field(name: str) -> None:
    document = to_document([SCHEDULES[0], SCHEDULES[1]])
    document["schedules"][1]["coefficients"], message = BAD[name]
    with pytest.raises(ValueError, match=message):
        from_document(document)


def test_coefficients_for_a_known_solver_are_refused() -> None:
    document = to_document(baseline("trailing", MODELS["vp"], 2))
    document["schedules"][0]["coefficients"] = [[0.0], [0.5]]
    with pytest.raises(ValueError, match=r"schedules\[0\]: coefficients: some for solver 'any'"):
        from_document(document)


ODD: list[Any] = [None, True, "0.5", [], {}, [0.1], NAN, float("inf"), 1e4, -1e999, 10**400, 0, -3.5]


def test_damaged_coefficients_are_refused_or_valid() -> None:
    """Every place of them, by all that JSON can hold."""
    rng = random.Random(0)
    text = to_json(SCHEDULES[0])
    refused = 0
    for _ in range(400):
        document = json.loads(text)
        c = document["schedules"][0]["coefficients"]
        where, odd = rng.choice(c) if rng.randrange(4) else c, rng.choice(ODD)
        if rng.randrange(5):
            where[rng.randrange(len(where))] = odd
        elif rng.randrange(2):
            where.append(odd)
        else:
            del where[0]
        try:
            found = from_json(json.dumps(document))[0]
        except ValueError as error:
            refused += 1
            assert "schedules[0]: coefficients" in str(error)
        else:
            assert found.coefficients is not None and found.coefficients.shape == (5, 2)
            assert np.abs(found.coefficients).max() <= 1e3 and found.coefficients[0].tolist() == [0, 0]
    assert 200 < refused < 400


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: f"{s.model}-{s.end}")
def test_the_table_of_weights_is_the_solver(schedule: Schedule) -> None:
    """Carried out as it stands it is the JAX loop, whose scaling is VP's."""
    table = schedule.weights_table()
    assert table.shape == (5, 4)
    last = np.inf if schedule.end == "clean" else schedule.lams[-1]
    alphas, sigmas = alpha_sigma(np.append(schedule.lams[:5], last if last < np.inf else 800.0), schedule.kind)
    scale = np.hypot(alphas, sigmas)
    rng = np.random.default_rng(1)
    start = rng.normal(size=7)
    with jax.enable_x64(True):
        weights = solvers.nonstationary(schedule.lams[:5], schedule.coefficients, end=last)
        # The same function of the sample in VP's scaling.
        want = solvers.run(lambda x, lam: jnp.tanh(1.3 * x + 0.2), weights, jnp.asarray(start))
    x, past = scale[0] * start, []
    for i, row in enumerate(table):
        past.insert(0, np.tanh(1.3 * x / scale[i] + 0.2))
        x = row[0] * x + sum(w * m for w, m in zip(row[1:], past, strict=False))
    np.testing.assert_allclose(x, scale[-1] * np.asarray(want), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: f"{s.model}-{s.end}")
def test_the_pasted_text_is_the_schedule(schedule: Schedule) -> None:
    """To the digit; and the recurrence that its comment states is the table of weights."""
    pasted: dict[str, Any] = {}
    exec(schedule.python_literal(), pasted)
    assert pasted["sigmas"] == schedule.sampler_sigmas().tolist()
    assert pasted["timesteps"] == schedule.timesteps.tolist()
    assert pasted["coefficients"] == schedule.coefficients.tolist()
    if np.isinf(pasted["sigmas"][0]):
        return
    sigmas = np.asarray(pasted["sigmas"])
    x, m = 1.7, np.random.default_rng(2).normal(size=5)
    alphas, y = alpha_sigma(schedule.lams, schedule.kind)[0], x
    alphas = np.append(alphas[:5], 1.0 if schedule.end == "clean" else alphas[-1])
    scale = np.ones(6) if schedule.kind == "flow" else alphas
    y = scale[0] * x
    for i, row in enumerate(schedule.weights_table()):
        r, c, past = sigmas[i + 1] / sigmas[i], pasted["coefficients"][i], m[: i + 1][::-1]
        x = r * x + (1 - r) * ((1 - sum(c)) * past[0] + sum(a * b for a, b in zip(c, past[1:], strict=False)))
        y = row[0] * y + sum(w * b for w, b in zip(row[1:], past, strict=False))
    assert y == pytest.approx(scale[-1] * x, rel=1e-12)


def test_text_of_a_known_solver_and_of_an_odd_name() -> None:
    """The name comes from a file; it ends no comment."""
    plain = dataclasses.replace(baseline("trailing", MODELS["vp"], 3), model="x\nimport os\x1b[31m")
    pasted: dict[str, Any] = {}
    exec(plain.python_literal(), pasted)
    assert "os" not in pasted and "coefficients" not in pasted and "\x1b" not in plain.python_literal()
    with pytest.raises(ValueError, match="for solver 'any' and holds no coefficients"):
        plain.weights_table()


def test_show_prints_them(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    file = tmp_path / "s.json"
    s = free("vp", nfe=3)
    save([s, baseline("trailing", MODELS["vp"], 4)], file)
    assert main(["show", str(file)]) == 0
    c = s.coefficients
    assert f"{c[1, 0]:.3g} | {c[2, 0]:.3g} {c[2, 1]:.3g}" in capsys.readouterr().out
    assert main(["show", str(file), "--as", "python"]) == 0
    assert s.python_literal() in capsys.readouterr().out
    assert main(["show", str(file), "--as", "weights", "--nfe", "3"]) == 0
    printed = [[float(x) for x in line.split()] for line in capsys.readouterr().out.splitlines()]
    assert printed == s.weights_table().tolist()
    assert main(["show", str(file), "--as", "weights"]) == 2
    assert "holds no coefficients" in capsys.readouterr().err
    assert all(f"{x:.6g}" in s._repr_html_() for x in s.coefficients[2])


@pytest.mark.parametrize("end", ["clean", "t_eps"])
@pytest.mark.parametrize("solver", ["ddim", "dpmpp-2m", "dpmpp-3m", "unipc-2", "unipc-3"])
@pytest.mark.parametrize("name", ["vp", "ve", "flow"])
def test_a_known_solver_s_steps_are_coefficients_to_either_end(name: str, solver: str, end: str) -> None:
    """Where they run, the predictions are the same: the sample differs by what a solver keeps beyond H = 4 alone."""
    plain = dataclasses.replace(free(name, nfe=4, end=end), origin=Origin(solver=solver), coefficients=None)
    own = in_coefficients(plain)
    assert own.solver == solvers.NONSTATIONARY and own.coefficients is not None and own.end == end
    lams = plain.lams[:4].copy()
    lams[0] = max(lams[0], PURE_NOISE.get(plain.kind, -np.inf))
    last = np.inf if end == "clean" else float(plain.lams[-1])
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 8)))
        there, here = (
            solvers.run(lambda x, lam: jnp.tanh(x + 0.1 * lam), weights, x)
            for weights in (
                solvers.weights(solver, lams, end=last),
                solvers.nonstationary(lams, own.coefficients, end=last),
            )
        )
    np.testing.assert_allclose(here, there, rtol=1e-9, atol=1e-12)
