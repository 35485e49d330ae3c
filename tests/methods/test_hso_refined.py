"""HSO's schedule refined on the reference error: bad options are found before HSO runs; its effort is the caller's."""

from __future__ import annotations

import importlib
from typing import Any

import jax
import pytest
from problems import Smooth
from solver_error_cells import EFFORT, SAMPLES, SD, small_family

from benchmarks import scipy_reference as oracle
from hso_jax import Effort, ReferenceEffort, Schedule, reference_error, search
from hso_jax.problems import generic

search_module = importlib.import_module("hso_jax.searches")
REFINED: dict[str, Any] = {"objective": "reference", "fitness": "spf"}
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "one problem": ({"problems": generic(jax.random.key(0))}, r"shape \(32, 32\); need a leading axis"),
    "no samples": ({"samples": 0}, "samples is 0"),
    "odd samples": ({"samples": 40}, "samples is 40; need a multiple of 32"),
    "samples for the effort": ({"samples": 12, "refine_effort": EFFORT}, "samples is 12; need a multiple of 8"),
    "effort of HSO": ({"refine_effort": Effort()}, r"refine_effort is Effort\(.*takes ReferenceEffort"),
    "effort of the refinement": ({"effort": ReferenceEffort()}, r"effort is ReferenceEffort\(.*takes Effort"),
    "guidance": ({"guidance": -1.0}, r"guidance is -1\.0"),
    "relax": ({"spacing": 0.9}, "spacing 0.9 does not fit"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_options_are_named_before_hso_runs(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_module, "search_many", lambda *_, **__: pytest.fail("HSO ran first"))
    options, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        search(SD, 4, **REFINED, **options)


@pytest.mark.parametrize("options", [{}, {"method": "hso-dm-nonuni"}, {"method": "reference"}])
def test_the_refinement_s_effort_is_for_the_refinement(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="refine_effort: not an option of"):
        search(SD, 4, refine_effort=EFFORT, **options)


def test_the_refinement_takes_its_effort(monkeypatch: pytest.MonkeyPatch) -> None:
    """8 samples are no multiple of the default effort's chunk: only the effort given can have run."""
    hso = Schedule.from_t(SD, oracle.minimise_mep(Smooth(SD), 0.98, 0.03, 3).t, method="hso")
    monkeypatch.setattr(search_module, "search_many", lambda many, **_: [hso for _ in many])
    data: dict[str, Any] = {"problems": small_family(), "samples": SAMPLES}
    found = search(SD, 4, **REFINED, solver="ddim", compare=False, refine_effort=EFFORT, **data)
    assert found.method == "reference" and found.error <= reference_error(hso, SD, solver="ddim", **data)
