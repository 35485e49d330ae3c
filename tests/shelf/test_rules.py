"""The shipped errors of rules: a few against a fresh measurement, all for their form, and what lies between shifts."""

from __future__ import annotations

import hashlib
import json
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from benchmarks.zoo import rules
from hso_jax import baseline, preset, search, solver_error
from hso_jax.hso import Hso
from hso_jax.noise import PRESETS, discrete, flow
from hso_jax.shelf.predicted import HSO, RULES, SHIFTS, row_key, rule_errors, shift_of, text
from hso_jax.shelf.shipped import MAX_NFE, SOLVERS, shipped_guidance


def test_the_file_is_the_one_that_was_checked() -> None:
    wanted = resources.files("hso_jax.shelf").joinpath("rules.sha256").read_text(encoding="utf-8").split()[0]
    assert hashlib.sha256(text().encode()).hexdigest() == wanted


def test_everything_in_the_zoo_has_its_rules() -> None:
    for name in PRESETS:
        noise = preset(name)
        for weight in shipped_guidance(noise):
            for solver in SOLVERS:
                for nfe in (1, 6, MAX_NFE):
                    found = rule_errors(noise, nfe, weight, solver)
                    assert {"trailing", "karras", "beta-t"} <= set(found) <= {*RULES, HSO}, (name, weight, nfe)
                    assert (HSO in found) == (noise.kind != "flow" or row_key(noise)[-1] in SHIFTS)
                    assert all(0 < error < 1e3 for error in found.values())
                    assert ("ays" in found) == (noise.kind == "vp") and ("ays-svd" in found) == (noise.kind == "ve")


@pytest.mark.parametrize(
    ("model", "rule", "nfe", "guidance", "solver"),
    [
        ("sdxl", "trailing", 6, 5.0, "ddim"),
        ("sd15", "karras", 4, 7.5, "dpmpp-2m"),
        ("pixart-alpha", "ays", 10, 4.5, "unipc-3"),
        ("sd3-medium", "beta-t", 8, 7.0, "unipc-2"),
        ("edm-cifar10", "ays-svd", 6, 1.0, "dpmpp-2m"),
    ],
)
def test_an_error_is_measured_again(model: str, rule: str, nfe: int, guidance: float, solver: str) -> None:
    noise = preset(model)
    again = solver_error(baseline(rule, noise, nfe), noise, solver=solver, guidance=guidance)
    assert rule_errors(noise, nfe, guidance, solver)[rule] == pytest.approx(again, rel=2e-3)


def test_between_two_shifts_the_error_is_interpolated() -> None:
    """FLUX's shift is 3.16 and Wan's 5: neither is measured."""
    for shift in (3.158, 5.0):
        noise = flow(shift)
        assert min(abs(shift_of(noise) - x) for x in SHIFTS) > 0.1
        for rule in ("trailing", "beta-t"):
            again = solver_error(baseline(rule, noise, 6), noise, solver="dpmpp-2m", guidance=1.0)
            assert rule_errors(noise, 6, 1.0, "dpmpp-2m")[rule] == pytest.approx(again, rel=0.03), (shift, rule)


def test_nothing_is_said_of_what_was_not_measured() -> None:
    assert rule_errors(flow(50.0), 6, 1.0, "ddim") == {}  # past the last shift
    assert rule_errors(preset("sdxl"), 6, 3.0, "ddim") == {}  # no such weight
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    assert rule_errors(discrete(np.cumprod(1.0 - betas * np.linspace(0.99, 1.01, 1000))), 6, 1.0, "ddim") == {}


def test_hso_s_schedule_is_the_search_s() -> None:
    found = search("sdxl", 6, method=Hso(relax=True))
    kept = [row[HSO][5] for row in json.loads(text())["rows"] if np.allclose(row[HSO][5], found.lams, atol=2e-3)]
    assert kept
    error = solver_error(found, preset("sdxl"), solver="ddim", guidance=5.0)
    assert rule_errors(preset("sdxl"), 6, 5.0, "ddim")[HSO] == pytest.approx(error, rel=1e-3)
    assert HSO not in rule_errors(flow(3.1), 6, 1.0, "ddim")


def test_a_new_weight_costs_what_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command writes the file again, to the byte, where nothing is missing."""
    target = tmp_path / "rules.json"
    target.write_text(text(), encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["rules", "--work", str(tmp_path / "work"), "-o", str(target)])
    rules.main()
    assert target.read_text(encoding="utf-8") == text()
    rows = json.loads(text())["rows"]
    assert [rules._key(row) for row in rows] == [row_key(noise) for noise in rules.noises()]
