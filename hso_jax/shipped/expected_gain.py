"""What networks gained of what was predicted: the gain to expect of a choice, with its interval.

Errors on the reference problems order choices well, and overstate what these gain. So `gains.json` keeps, by the kind
of choice, a line through the logarithms of measured and predicted ratios on trained networks, and how far networks lie
from it. `python -m benchmarks.heldout --calibrate` fits it, leaving one network out in turn to measure how often the
interval holds.
"""

from __future__ import annotations

import functools
import json
import math
from importlib import resources
from typing import Any, NamedTuple

from hso_jax.solvers import NONSTATIONARY

KINDS = ("known", "free")
"""Kinds of choice: a known solver, or coefficients of their own."""


class Expected(NamedTuple):
    """What a choice leaves of the error of what was there before.

    Attributes:
        ratio: expected error over that of before: .8 is a fifth less.
        low, high: ends of the interval that holds four networks in five.
        networks: how many it is known from.
    """

    ratio: float
    low: float
    high: float
    networks: int

    def words(self, before: str) -> str:
        """Say it in a sentence, of what `before` names."""
        least, most = sorted((self.low, self.high), key=lambda x: abs(1.0 - x))
        if self.low < 1.0 < self.high or self.high > 2.0:
            ends = f"from {_change(self.high)} to {_change(self.low)}"
        else:
            ends = f"{_percent(least)} to {_change(most)}"
        much = f"{_change(self.ratio)} error than" if self.ratio <= 2.0 else f"{self.ratio:.2g} times the error of"
        return f"Expect about {much} {before} ({ends} on {self.networks} trained networks)."


def expected_gain(predicted: float, before: float, solver: str) -> Expected:
    """What a choice is expected to leave of the error.

    Args:
        predicted: its error on the reference problems.
        before: that of what it replaces.
        solver: that is chosen; "nonstationary" has coefficients of its own.
    """
    row = table()["kinds"]["free" if solver == NONSTATIONARY else "known"]
    middle = row["offset"] + row["slope"] * math.log(predicted / before)
    low, ratio, high = (math.exp(middle + shift) for shift in (row["low"], 0.0, row["high"]))
    return Expected(ratio, low, high, row["networks"])


def free_pays(nfe: int) -> bool:
    """Whether networks gained on average by coefficients of their own, over the best known solver.

    Of those N that were measured the nearest counts, of two the smaller.
    """
    measured = table()["free_pays"]
    return bool(measured[min(measured, key=lambda n: (abs(int(n) - nfe), int(n)))])


@functools.cache
def table() -> dict[str, Any]:
    """`gains.json`."""
    found: dict[str, Any] = json.loads(resources.files("hso_jax.shipped").joinpath("gains.json").read_text("utf-8"))
    return found


def _change(ratio: float) -> str:
    return f"{ratio:.2g} times as much" if ratio > 2.0 else f"{_percent(ratio)} {'more' if ratio > 1.0 else 'less'}"


def _percent(ratio: float) -> str:
    """How far from 1, in steps of 5 % from 10 % on."""
    share = 100.0 * abs(1.0 - ratio)
    return f"{5 * round(share / 5) if share >= 10.0 else round(share)}%"
