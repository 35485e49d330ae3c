"""The calibration of predictions: a line with equal weights of networks, its interval, and what that holds."""

import json
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.heldout import gains, report
from benchmarks.heldout.gains import Choice
from benchmarks.runner import Record
from hso_jax.shipped import expected_gain


def made(networks: int, rows: int, spread: float, seed: int = 0) -> list[Choice]:
    """log measured = -.1 + .4 log predicted, and how far a network and a choice lie from it, normally distributed."""
    draw = np.random.default_rng(seed)
    found = []
    for network in range(networks):
        own = spread * draw.standard_normal()
        for x in draw.uniform(-2.0, 0.0, rows):
            y = -0.1 + 0.4 * x + own + spread * draw.standard_normal()
            found.append(Choice(f"net {network}", 4, "known", float(np.exp(x)), float(np.exp(y))))
    return found


def test_networks_weigh_the_same_in_the_line():
    rows = made(5, 40, 0.1)
    x, y = (np.log([getattr(c, name) for c in rows]) for name in ("predicted", "measured"))
    offset, slope = gains.line(rows)
    assert [slope, offset] == pytest.approx(np.polyfit(x, y, 1), rel=1e-6)
    often = [*rows, *(c for c in rows if c.network == "net 0")]  # a network with twice the choices weighs no more
    assert gains.line(often) == pytest.approx((offset, slope))


def test_the_interval_holds_for_networks_left_out():
    shares = [gains.coverage(made(12, 10, 0.2, seed)) for seed in range(12)]
    assert 0.7 < np.mean(shares) < 0.88
    of = gains.fit(made(200, 3, 0.2))
    wanted = 1.2816 * 0.2 * 2**0.5  # a normal deviate of a network and one of a choice
    assert (of.low, of.high) == pytest.approx((-wanted, wanted), rel=0.15)
    assert of.holds(Choice("", 4, "known", 0.5, float(np.exp(of.offset + of.slope * np.log(0.5)))))
    assert not of.holds(Choice("", 4, "known", 0.5, 5.0))


def record(model, method, solver, rmse, problem_error, nfe=4):
    return Record(model, 1.0, solver, nfe, method, 0, 8, "float32", rmse=rmse, problem_error=problem_error)


def some(model: str, factor: float = 1.0, nfe: int = 4) -> list[Record]:
    return [
        record(model, "trailing", "ddim", 0.4, 0.8, nfe), record(model, "karras", "unipc-3", 0.2, 0.2, nfe),
        record(model, "zoo", "unipc-3", 0.1, 0.1, nfe), record(model, "zoo", "ddim", 0.3, 0.4, nfe),
        record(model, "zoo", "nonstationary", 0.05 * factor, 0.02, nfe),
    ]  # fmt: skip


def test_choices_are_the_library_s_beside_every_rule():
    found = [*some("a"), record("a", "solver-error", "ddim", 0.3, 0.1), record("a", "zoo", "unipc-2", None, 0.3)]
    found.append(record("a", "karras", "ddim", None, 0.3))  # diverged
    found.append(record("a", "linear-quadratic", "ddim", 0.9, 0.9))  # which no pipeline has by itself
    assert {(c.kind, round(c.predicted, 3), round(c.measured, 3)) for c in gains.choices(found)} == {
        ("known", 0.125, 0.25), ("known", 0.5, 0.5), ("known", 0.5, 0.75), ("known", 2.0, 1.5),
        ("free", 0.025, 0.125), ("free", 0.1, 0.25),
    }  # fmt: skip
    assert gains.free_over_known(found) == {("a 1", 4): 0.5}
    searched = [record("c", "solver-error", "ddim", 0.3, 0.4), record("c", "trailing", "ddim", 0.4, 0.8)]
    assert [c.measured for c in gains.choices(searched)] == [pytest.approx(0.75)]  # nothing is shipped for c


def test_diverged_samples_are_no_errors():
    lost, kept = record("a", "zoo", "ddim", None, 0.1), record("a", "zoo", "unipc-3", 0.3, 0.2)
    assert report.least([lost], ("zoo",)) == {} and report.known_by_prediction([lost, kept]) == {("a", 4): 0.3}


def test_free_coefficients_pay_where_networks_gain_significantly():
    noise = (1.0, 1.1, 0.95, 1.05, 0.9)
    found = [r for i, x in enumerate(noise) for r in some(f"net {i}", x)]
    found += [replace(r, nfe=6) if r.solver != "nonstationary" else replace(r, nfe=6, rmse=y * 0.1)
              for y, n in zip((0.8, 1.3, 0.9, 1.2, 1.0), range(5), strict=True) for r in some(f"net {n}")]  # fmt: skip
    kept = gains.calibration(found)
    assert kept["free_pays"] == {"4": True, "6": True} and kept["kinds"]["free"]["networks"] == 5
    assert gains.calibration([r for r in found if r.nfe == 6])["free_pays"] == {"6": False}
    text = gains.section(found)
    assert "| all | 0.50 | 1.02 |" in text and "| chance | 0.00 |" in text and "| free | 5 |" in text
    with pytest.raises(ValueError, match="3 networks have choices of kind 'known'"):
        gains.calibration([r for r in found if r.model in ("net 0", "net 1", "net 2")])
    assert gains.section(found[:5]).endswith("Not measured.\n")


def test_the_command_writes_what_the_library_reads(tmp_path, monkeypatch):
    found = [r for i, x in enumerate((1.0, 1.1, 0.95, 1.05)) for r in some(f"net {i}", x)]
    gains.calibrate(found, tmp_path / "gains.json")
    kept = json.loads((tmp_path / "gains.json").read_text())
    monkeypatch.setattr(expected_gain, "table", lambda: kept)
    expected = expected_gain.expected_gain(0.02, 0.2, "nonstationary")
    assert expected.low < expected.ratio < expected.high and expected.networks == 4
