"""Modules of older versions forward to where their names are now, and warn."""

from __future__ import annotations

import importlib

import pytest

import hso_jax
from hso_jax._moved import MOVED, NO_PROFILE, REMOVED
from hso_jax._moved import NAMES as MOVED_NAMES

WERE = """
methods=SolverError methods.hso=Box methods.hso.search=edm_nodes methods.solver_error=solver_error
methods.solver_error.coefficients=Coefficients objectives=Terms objectives.mep_spf=paper_d_min
objectives.expansion=expansion objectives.solver_error=error_data lower.newton=face_step lower.gaps=nodes_of
resuming=record_of upper.checkpoint=Checkpoint noise.ends=first_lam noise.noise_schedule=NoiseSchedule
noise.rectified_flow=flow noise.variance_preserving=beta_table noise.refused_classes=REFUSED
diffusers_sigmas=diffusers_sigmas shelf=zoo shelf.predicted=rule_errors recommendation=Recommendation
distilled=DISTILLATIONS
"""
NAMES = dict(pair.split("=") for pair in WERE.split())


@pytest.mark.parametrize("module", NAMES)
def test_an_old_path_gives_the_same_object_and_warns(module: str) -> None:
    old, name = importlib.import_module(f"hso_jax.{module}"), NAMES[module]
    with pytest.warns(DeprecationWarning, match=f"hso_jax.{module}.{name} is now hso_jax."):
        found = getattr(old, name)
    assert any(getattr(importlib.import_module(f"hso_jax.{place}"), name, None) is found for place in MOVED[module])


@pytest.mark.parametrize("module", MOVED)
def test_every_old_module_imports_and_knows_no_other_name(module: str) -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        importlib.import_module(f"hso_jax.{module}").no_such_name  # noqa: B018


def test_the_old_package_is_an_attribute_as_it_was() -> None:
    with pytest.warns(DeprecationWarning, match=r"now hso_jax\.mep_spf\.mep"):
        assert hso_jax.objectives.mep is hso_jax.mep


@pytest.mark.parametrize("name", MOVED_NAMES)
def test_an_old_top_level_name_warns(name: str) -> None:
    with pytest.warns(DeprecationWarning, match=f"hso_jax.{name} is now hso_jax.{MOVED_NAMES[name]}.{name}"):
        found = getattr(hso_jax, name)
    assert found is getattr(importlib.import_module(f"hso_jax.{MOVED_NAMES[name]}"), name)


@pytest.mark.parametrize("name", [name for name in REMOVED if name.startswith("hso_jax.")])
def test_a_removed_name_says_what_to_use(name: str) -> None:
    last = name.removeprefix("hso_jax.")
    with pytest.raises(AttributeError, match=f"{name} (is|was) removed.* use bridge.tune"):
        getattr(hso_jax, last)
    for statement in (f"from hso_jax import {last}", f"import {name}", f"from {name} import anything"):
        with pytest.raises(ImportError, match=f"{name} (is|was) removed.* use bridge.tune"):
            exec(statement)


def test_a_removed_profile_says_why() -> None:
    for part in ("removed in 0.3.0", "because ", "bridge.choose(", "prompts=[...]", "bridge.tune"):
        assert part in NO_PROFILE
    assert not hasattr(hso_jax, "Profile") and not hasattr(hso_jax, "profile")
