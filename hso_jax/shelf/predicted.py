"""Predicted errors of the usual rules and of HSO's schedules, measured once and shipped."""

from __future__ import annotations

import functools
import json
import math
from importlib import resources
from typing import Any

import numpy as np

from hso_jax.noise import NoiseSchedule
from hso_jax.shelf.shipped import shelf_key

FORMAT, VERSION = "hso-jax/rules", 1
FILE = "rules.json"
HSO = "hso"
RULES = (
    "leading",
    "linspace",
    "trailing",
    "sgm-uniform",
    "karras",
    "uniform-lam",
    "beta",
    "beta-t",
    "ays",
    "ays-sdxl",
    "ays-svd",
)
"""Of `BASELINES`, those that pipelines and user interfaces have; DM-NonUni is a method of its own."""

SHIFTS = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)
"""Of rectified flow: the rules' levels follow the shift. Between them the error is interpolated."""

_NEAR = 1e-6  # of a shift's logarithm


def row_key(noise: NoiseSchedule) -> tuple[Any, ...]:
    """What a rule's error depends on: the zoo's shelf, and a flow model's shift or the fingerprint of other noises."""
    return (*shelf_key(noise), round(shift_of(noise), 6) if noise.kind == "flow" else noise.fingerprint())


def shift_of(noise: NoiseSchedule) -> float:
    """The shift of a rectified flow."""
    return math.exp(-float(noise.lam(0.5)))


def rule_errors(noise: NoiseSchedule, nfe: int, guidance: float, solver: str) -> dict[str, float]:
    """The solver's error with each rule, and with HSO's nodes, by their names; what is not known is left out.

    Nothing is known of a noise schedule that no preset has (other than rectified flow), of a shift outside `SHIFTS`, or
    of a weight, an N or a solver that the zoo does not have. Between two shifts the logarithm of the error is taken to
    be linear in that of the shift; HSO's nodes are known for the shifts themselves alone.
    """
    rows = _beside(noise)
    tables = [row["guidance"].get(f"{guidance:g}", {}).get(solver, {}) for row, _ in rows]
    found = {}
    for rule in tables[0] if tables else ():
        values = [table.get(rule, [])[nfe - 1 : nfe] for table in tables]
        if all(value and value[0] for value in values) and not (rule == HSO and len(rows) > 1):
            shares = [share for _, share in rows]
            found[rule] = math.exp(sum(s * math.log(v[0]) for s, v in zip(shares, values, strict=True)))
    return found


def _beside(noise: NoiseSchedule) -> list[tuple[dict[str, Any], float]]:
    """The rows that a noise schedule lies between, with their shares; one row for most, none where there is none."""
    key = row_key(noise)
    if (row := _rows().get(key)) is not None:
        return [(row, 1.0)]
    if noise.kind != "flow":
        return []
    at = math.log(shift_of(noise))
    grid = [(math.log(shift), _rows().get((*key[:-1], shift))) for shift in SHIFTS]
    known = [(x, row) for x, row in grid if row is not None]
    if not known or not known[0][0] - _NEAR <= at <= known[-1][0] + _NEAR:
        return []
    i = int(np.clip(np.searchsorted([x for x, _ in known], at), 1, len(known) - 1))
    (low, before), (high, after) = known[i - 1], known[i]
    share = min(max((at - low) / (high - low), 0.0), 1.0)
    return [(before, 1.0 - share), (after, share)]


def text() -> str:
    """The shipped file's text."""
    return resources.files("hso_jax.shelf").joinpath(FILE).read_text(encoding="utf-8")


@functools.cache
def _document() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(text())
    return found


@functools.cache
def _rows() -> dict[tuple[Any, ...], dict[str, Any]]:
    return {
        (*row["ends"], row["unbounded"], row["shift"] if "shift" in row else row["noise"]): row
        for row in _document()["rows"]
    }
