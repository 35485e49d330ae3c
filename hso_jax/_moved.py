"""Modules and names of older versions, for one release: they say where they are now, and warn, or why they are gone."""

from __future__ import annotations

import importlib
import sys
import warnings
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_LEVELS, _METHOD = "solver_error_levels", "solver_error_method"

_PLACES: dict[tuple[str, ...], str] = {
    ("hso",): "methods methods.hso methods.hso.lanes methods.hso.method methods.hso.schedules methods.hso.search",
    (_METHOD, _LEVELS): "methods methods.solver_error methods.solver_error.method methods.solver_error.schedules",
    (_LEVELS,): "methods.family " + " ".join(f"methods.solver_error.{x}" for x in ("coefficients", "lanes", "search")),
    ("mep_spf",): "objectives objectives.mep_spf",
    ("bounds",): "objectives objectives.dm_nonuni objectives.expansion",
    ("error",): "objectives.solver_error",
    ("lower.trust_region",): "lower.newton lower.results lower.simplex",
    ("lower.quasi_newton",): "lower.gaps",
    ("checkpoint",): "resuming upper.checkpoint",
    ("schedule",): "exports origin schedule_checks",
    ("noise.schedule",): "noise.ends noise.noise_schedule noise.partial noise.stacking",
    ("noise.families", "noise.shifts"): "noise.rectified_flow noise.variance_exploding noise.variance_preserving",
    ("noise.from_config",): "noise.refused_classes",
    ("noise.shifts",): "diffusers_sigmas",
    ("shipped.zoo",): "shelf shelf.predicted shelf.shipped",
    ("shipped.recommend",): "recommendation",
    ("shipped.distilled",): "distilled",
}

MOVED = {
    name: tuple(place for places, names in _PLACES.items() if name in names.split() for place in places)
    for name in " ".join(_PLACES.values()).split()
}
"""An old module's name, and the modules that its names are looked for in."""

NAMES = {
    **{"BASELINES": "baselines", "Box": "hso", "METHODS": "searches", "Origin": "schedule", "Scores": "schedule"},
    **{"Coefficients": _LEVELS, "Refinement": _LEVELS, "paper_d_min": "mep_spf"},
}
"""Names that were in `hso_jax` itself, and their modules."""

NO_PROFILE = (
    "was removed in 0.3.0, because searches with a profile were worse on networks that it was not chosen on: choose by "
    "measuring, bridge.choose(pipe, nfe) or bridge.optimize_pipeline(pipe, nfe, prompts=[...]), or use bridge.tune"
)
REMOVED = {
    "hso_jax.Measured": "is removed; use bridge.tune_score(function, noise, nfe, budget=...)",
    "bridge.SamplingFitness": "is removed; use bridge.tune(pipe, nfe), or bridge.tune_score for a number of your own",
    **dict.fromkeys(("hso_jax.Profile", "hso_jax.profile", "hso_jax.profile_of", "bridge.profile"), NO_PROFILE),
}
"""Public names of earlier versions, and what to know of each."""


def check_removed(name: str, error: type[Exception] = AttributeError) -> None:
    """Raises the error for a full name that is in `REMOVED`."""
    if name in REMOVED:
        raise error(f"{name} {REMOVED[name]}")


def public(name: str) -> Any:
    """What `hso_jax.name` was in an earlier version, with a warning; None for what was never there.

    Raises AttributeError for what was removed.
    """
    check_removed(f"hso_jax.{name}")
    if name in MOVED:
        return importlib.import_module(f"hso_jax.{name}")
    if name in NAMES:
        told = f"hso_jax.{name} is now hso_jax.{NAMES[name]}.{name}"
        warnings.warn(told, DeprecationWarning, stacklevel=3)
        return getattr(importlib.import_module(f"hso_jax.{NAMES[name]}"), name)
    return None


class _Moved(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if not name.startswith("__"):
            for place in MOVED[self.__name__.removeprefix("hso_jax.")]:
                module = importlib.import_module(f"hso_jax.{place}")
                if hasattr(module, name):
                    told = f"{self.__name__}.{name} is now hso_jax.{place}.{name}"
                    warnings.warn(told, DeprecationWarning, stacklevel=2)
                    return getattr(module, name)
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")


class _Finder:
    """Python's protocol of finders and loaders; `from hso_jax import name` asks it for what the package has not."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        check_removed(name, ImportError)
        known = name.startswith("hso_jax.") and name.removeprefix("hso_jax.") in MOVED
        return ModuleSpec(name, _Finder, is_package=True) if known else None  # type: ignore[arg-type]

    @staticmethod
    def create_module(spec: ModuleSpec) -> ModuleType:
        return _Moved(spec.name)

    @staticmethod
    def exec_module(module: ModuleType) -> None:
        pass


sys.meta_path.insert(0, _Finder)
