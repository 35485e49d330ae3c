"""The gain that is told: a line through what networks gained, its interval, and plain words."""

import math

import pytest

from hso_jax.shipped import expected_gain as module
from hso_jax.shipped.expected_gain import Expected, expected_gain, free_pays, table

ROW = {"offset": -0.1, "slope": 0.5, "low": -0.4, "high": 0.3, "networks": 9, "coverage": 0.8}


@pytest.fixture
def known(monkeypatch):
    kinds = {"known": ROW, "free": {**ROW, "slope": 0.2}}
    pays = {"4": True, "6": False, "10": True}
    monkeypatch.setattr(module, "table", lambda: {"kinds": kinds, "free_pays": pays})


def test_the_expected_ratio_follows_the_line_of_its_kind(known):
    for solver, slope in (("unipc-3", 0.5), ("nonstationary", 0.2)):
        found = expected_gain(0.1, 0.4, solver)
        ratio = math.exp(-0.1) * 0.25**slope
        assert found == pytest.approx((ratio, ratio * math.exp(-0.4), ratio * math.exp(0.3), 9))
    assert [n for n in range(1, 12) if free_pays(n)] == [1, 2, 3, 4, 5, 9, 10, 11]


@pytest.mark.parametrize(
    ("ratio", "low", "high", "told"),
    [
        (0.79, 0.55, 0.95, "about 20% less error than UniPC-3 (5% to 45% less on 9 trained networks)."),
        (0.93, 0.6, 1.2, "about 7% less error than UniPC-3 (from 20% more to 40% less on 9 trained networks)."),
        (
            0.9,
            0.5,
            2.84,
            "about 10% less error than UniPC-3 (from 2.8 times as much to 50% less on 9 trained networks).",
        ),
        (
            2.5,
            1.2,
            4.0,
            "about 2.5 times the error of UniPC-3 (from 4 times as much to 20% more on 9 trained networks).",
        ),
        (1.1, 1.02, 1.3, "about 10% more error than UniPC-3 (2% to 30% more on 9 trained networks)."),
    ],
)
def test_the_words_say_how_much_less_or_more(ratio, low, high, told):
    assert Expected(ratio, low, high, 9).words("UniPC-3") == f"Expect {told}"


def test_what_is_shipped_is_a_calibration_on_networks():
    kinds = table()["kinds"]
    assert set(kinds) == set(module.KINDS) and len(table()["networks"]) >= 4
    for row in kinds.values():
        assert row["low"] < 0 < row["high"] and 0 < row["slope"] < 1.2 and 0.5 <= row["coverage"] <= 1
    less = expected_gain(0.1, 0.2, "unipc-3")
    assert 0.1 / 0.2 < less.ratio < 1.3  # networks gain less than the problems say
