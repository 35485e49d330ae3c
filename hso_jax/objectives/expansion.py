"""An objective by its name, or any function of the nodes, as the second-order expansion that the lower level needs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

from jax import Array

from hso_jax.checks import choice
from hso_jax.lower.newton import Objective, dense_objective, interval_objective
from hso_jax.objectives.dm_nonuni import SEARCH_WIDTH, bound
from hso_jax.objectives.mep_spf import mep_interval_derivatives


class Terms(NamedTuple):
    """What an objective is told of its lane.

    Attributes:
        p: exponent of the model-error bound.
        intervals: M, how many steps are real.
    """

    p: Array
    intervals: Array


NodeObjective = Callable[[Array, Terms], Array]
"""(lams [K], terms) -> a scalar to be small: any JAX function with two derivatives. Nodes after the first
`terms.intervals + 1` are padding, which repeats the last node and must cost nothing."""

_NAMED: dict[str, Callable[[Terms], Objective]] = {
    "mep": lambda terms: interval_objective(functools.partial(mep_interval_derivatives, p=terms.p)),
    "dm-nonuni": lambda terms: dense_objective(lambda lams: bound(lams, terms.intervals, terms.p, SEARCH_WIDTH)),
}

OBJECTIVES = tuple(_NAMED)


def expansion(objective: str | NodeObjective, terms: Terms) -> Objective:
    """The expansion of a named objective (`OBJECTIVES`), or of a function, whose Hessian is dense: K gradients."""
    if callable(objective):
        return dense_objective(lambda lams: objective(lams, terms))
    return _NAMED[objective](terms)


def check_objective(name: str, objective: object) -> None:
    """Raises ValueError unless it is a known name or a function; `name` is what the caller called it."""
    if not callable(objective):
        choice(name, objective, OBJECTIVES)


def objective_name(objective: str | NodeObjective) -> str:
    """What it is called in a schedule's `method`."""
    return objective if isinstance(objective, str) else getattr(objective, "__name__", "custom")
