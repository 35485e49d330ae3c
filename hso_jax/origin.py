"""What is known of a schedule besides its nodes: how they were found, and how they score."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from hso_jax.checks import brief, count, number, text

_LARGEST = 2**63 - 1  # whole number that every JSON reader takes


@dataclasses.dataclass(frozen=True)
class Origin:
    """How the nodes were found.

    Attributes:
        method: "hso", "solver-error", a baseline's name, ..., "custom".
        solver: the solver they were chosen for, "any" if the method does not look at it.
        guidance: weight of classifier-free guidance they were made for; None for methods that do not look at it.
        psi: the upper level's choice (rho, t_eps, t_max, ksigma_min, ksigma_max), if there was one.
        p: exponent of the model-error bound in `Scores.mep`.
        d_min: the spacing asked for, in t.
        seed: of the search, None where nothing was random.
        result: the lower level's result ("converged", ...) or "fixed" for a schedule that was not optimised.
        iterations: steps the lower level took.
        stationarity: largest entry of the projected gradient at the nodes, in t.
        versions: of the packages that made it.
        tuned: what a schedule was tuned on and how (`bridge.tune`), numbers and texts by name; None for others.
    """

    method: str = "custom"
    solver: str = "any"
    guidance: float | None = None
    psi: Mapping[str, float] | None = None
    p: float = 2.0
    d_min: float = 0.0
    seed: int | None = None
    result: str = "fixed"
    iterations: int = 0
    stationarity: float | None = None
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    tuned: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        """Check every value. Raises ValueError."""
        for name in ("method", "solver", "result"):
            text(name, getattr(self, name))
        for name in ("guidance", "stationarity"):
            _check_number(self, name)
        for name in ("p", "d_min"):
            _check_number(self, name, optional=False)
        for name in ("iterations", "seed"):
            if name != "seed" or self.seed is not None:
                object.__setattr__(self, name, count(name, getattr(self, name), 0, _LARGEST))
        if self.psi is not None:
            _check_mapping(self, "psi")
        if not isinstance(self.versions, Mapping) or not all(
            isinstance(x, str) for kv in self.versions.items() for x in kv
        ):
            raise ValueError(f"versions is {brief(self.versions)}; need texts by name")
        object.__setattr__(self, "versions", dict(self.versions))
        if self.tuned is not None:
            object.__setattr__(self, "tuned", _told("tuned", self.tuned))


@dataclasses.dataclass(frozen=True)
class Scores:
    """What was measured of the nodes; None where it was not, or is undefined.

    Attributes:
        mep: Midpoint Error Proxy of the nodes; undefined for one node or lam = -inf.
        spf: fitness of HSO's upper level, MEP and spacing penalty; undefined where mep is.
        error: root-mean-square error of the solver's samples on the reference problems.
        others_same_nodes: the same for other solvers on these nodes: at least what each has on nodes of its own.
        others_own_nodes: the same for other solvers, each on the nodes that were found for it.
        fitness: what the callable that a search was given said of it.
        amplification: of errors in the predictions by a non-stationary solver, see `solvers.amplification`.
    """

    mep: float | None = None
    spf: float | None = None
    error: float | None = None
    others_same_nodes: Mapping[str, float] = dataclasses.field(default_factory=dict)
    others_own_nodes: Mapping[str, float] = dataclasses.field(default_factory=dict)
    fitness: float | None = None
    amplification: float | None = None

    def __post_init__(self) -> None:
        """Check every value. Raises ValueError."""
        for name in ("mep", "spf", "error", "fitness", "amplification"):
            _check_number(self, name)
        _check_mapping(self, "others_same_nodes")
        _check_mapping(self, "others_own_nodes")


def _told(name: str, value: object) -> dict[str, Any]:
    """Texts, finite numbers or None by name. Raises ValueError for anything else."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ValueError(f"{name} is {brief(value)}; need numbers and texts by name")
    for key, x in value.items():
        if x is not None and not isinstance(x, str):
            number(f"{name}[{key!r}]", x)
    return {key: _plain(x) for key, x in value.items()}


def _check_number(group: Any, name: str, optional: bool = True) -> None:
    """NumPy's numbers become Python's, which a file can hold."""
    value = getattr(group, name)
    if value is not None or not optional:
        number(name, value)
        object.__setattr__(group, name, _plain(value))


def _check_mapping(group: Any, name: str) -> None:
    value = getattr(group, name)
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ValueError(f"{name} is {brief(value)}; need numbers by name")
    for key, x in value.items():
        number(f"{name}[{key!r}]", x)
    object.__setattr__(group, name, {key: _plain(x) for key, x in value.items()})


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, (np.generic, np.ndarray)) else value
