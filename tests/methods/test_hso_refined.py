"""HSO's schedule refined on the solver's error, and schedules that are given."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
from oracles import scipy_search as oracle
from problems import Smooth
from solver_error_cells import EFFORT, PLAIN, SAMPLES, SD, method, small_family

from hso_jax import Hso, Lane, Schedule, SolverError, search, search_many, solver_error
from hso_jax.problems import generic
from hso_jax.schedule import Origin

DATA: dict[str, Any] = {"problems": small_family(), "samples": SAMPLES, **PLAIN}
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "one problem": ({"problems": generic(jax.random.key(0))}, r"shape \(32, 32\); need a leading axis"),
    "no samples": ({"samples": 0}, "samples is 0"),
    "odd samples": ({"samples": 40}, "samples is 40; need a multiple of 32"),
    "guidance": ({"guidance": -1.0}, r"guidance is -1\.0"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_options_are_named_before_hso_runs(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Hso, "search", lambda *_, **__: pytest.fail("HSO ran first"))
    options, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        search(SD, 4, method=SolverError(start=Hso(), **options))


def test_hso_s_schedule_refined_is_not_worse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its HSO part is tested elsewhere: here it is SciPy's minimiser between HSO's ends."""
    hso = Schedule.from_t(SD, oracle.minimise_mep(Smooth(SD), 0.98, 0.03, 3).t, origin=Origin(method="hso"))
    monkeypatch.setattr(Hso, "search", lambda self, lanes, *_: [hso for _ in lanes])
    found = search(SD, 4, method=method("ddim", start=Hso()), effort=EFFORT)
    assert found.method == "solver-error" and found.psi is None and found.nfe == 4
    assert found.error <= solver_error(hso, SD, solver="ddim", **DATA)
    assert found.error == pytest.approx(solver_error(found, SD, **DATA), rel=1e-4)


def test_a_schedule_that_is_given_is_refined_beside_another() -> None:
    starts = [Schedule.from_t(SD, np.linspace(1.0, low, 4)) for low in (0.05, 0.2)]
    lanes = [Lane(SD, 4, method=method("ddim", start=start)) for start in starts]
    for start, found in zip(starts, search_many(lanes, effort=EFFORT), strict=True):
        assert found.error <= solver_error(start, SD, solver="ddim", **DATA) * (1 + 1e-6)
        assert found.psi is None
