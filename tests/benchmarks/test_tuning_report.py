"""The page of what tuning buys: ways are compared over the cells that have them all."""

from __future__ import annotations

import pytest

from benchmarks.tuning import report


def record(network: str, nfe: int, method: str, rmse: float) -> dict:
    return {"network": network, "nfe": nfe, "method": method, "rmse": rmse, "evaluations": 100 * nfe}


def records(*found: dict) -> dict:
    return {(r["network"], r["nfe"], r["method"]): r for r in found}


def test_ways_are_compared_over_common_cells_alone() -> None:
    every = records(
        *(record("a", 6, m, x) for m, x in (("rule", 0.4), ("tune", 0.1), ("nodes", 0.2), ("tune-50k", 0.05))),
        *(record("b", 8, m, x) for m, x in (("rule", 0.4), ("tune", 0.2), ("nodes", 0.4))),
        *(record("c", 6, m, x) for m, x in (("rule", 0.4), ("tune", 0.4))),  # no nodes: left out
    )
    text = report._equal(every)
    assert text.startswith("Cells: a at N = 6, b at N = 8.")
    assert "| `tune` | 0.354 | 0.50 | 600 to 800 |" in text and "| `nodes` | 0.707 | 1.00 | 600 to 800 |" in text
    assert "50k" not in text
    assert "| `tune` | a | 6 | 0.100 | 0.0500 | 2.00 |" in report._limits(every)
    assert report.ratio(every, "tune", "rule") == pytest.approx((0.5, 1.0, 3))


def test_what_is_not_measured_is_said() -> None:
    alone = records(record("a", 6, "rule", 0.4), record("a", 6, "tune", 0.1))
    assert report._equal(alone) == report._limits(alone) == "Not measured.\n"
