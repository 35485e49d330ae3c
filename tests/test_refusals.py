"""Every public function with wrong kinds of value: a ValueError that shows the value and says what is needed."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
import pytest
from problems import SD

from hso_jax import Effort, Hso, Schedule, SolverError, baseline, lanes, solver_error
from hso_jax import search as find
from hso_jax import zoo as from_zoo
from hso_jax.checks import brief, check_nfe, check_seed, flag, number, numbers, whole
from hso_jax.error import error_data
from hso_jax.hso import Box
from hso_jax.mep_spf import paper_d_min
from hso_jax.noise import beta_table, ve
from hso_jax.problems import ModelError, generic, mixture, stack_problems
from hso_jax.schedule import Origin, Scores
from hso_jax.solver_error_levels import Refinement

WRONG: list[Any] = [math.nan, 10**400, object(), "2"]
"""What hardly any argument may be: a number that is none or beyond all floats, no number, a text."""
NO_NUMBERS: list[Any] = [*WRONG, True, math.inf, -math.inf, [1.0, 2.0], {}, 1j, np.array(["a"])]
PROBLEM = stack_problems([mixture([1, 1], [[0.0, 1.0], [1.0, 0.0]], [1.0, 1.0])])
NODES = Schedule.from_t(SD, [1.0, 0.5])

USUAL: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "baseline": (baseline, {"name": "karras", "noise": SD, "nfe": 4, "layout": "node", "p": 2.0, "d_min": 0.01}),
    "zoo": (from_zoo, {"model": "sd15", "nfe": 4, "solver": "ddim", "guidance": 1.0}),
    "from_t": (
        Schedule.from_t,
        {"noise": SD, "t": [1.0, 0.5], "layout": "node", "end": "clean", "origin": Origin(), "scores": Scores()},
    ),
    "from_lams": (Schedule.from_lams, {"noise": SD, "lams": [-2.0, 1.0]}),
    "origin": (
        Origin,
        {"method": "a", "solver": "any", "p": 2.0, "d_min": 0.0, "psi": {}, "seed": 0, "versions": {}, "result": "a"}
        | {"iterations": 1, "guidance": 1.0, "stationarity": 0.0},
    ),
    "scores": (
        Scores,
        {"error": 0.1, "others_same_nodes": {}, "others_own_nodes": {}, "mep": 1.0, "spf": 1.0, "fitness": 1.0},
    ),
    "from_sigmas": (Schedule.from_sigmas, {"noise": SD, "sigmas": [10.0, 1.0], "end": "clean"}),
    "mixture": (mixture, {"weights": [1, 1], "means": np.eye(2), "variances": [1.0, 1.0], "members": [0]}),
    "generic": (
        lambda **options: generic(jax.random.key(0), **options),
        {"dimension": 2, "components": 2, "spectrum": 1.0, "within": 0.3, "scale": 1.0, "members": 1, "apart": 1.5},
    ),
    "paper_d_min": (paper_d_min, {"nfe": 4}),
    "error_data": (
        error_data,
        {"start": -3.0, "guidance": 1.0, "samples": 1, "seed": 0, "steps": 2, "problems": PROBLEM, "detail": 0.0}
        | {"power": 1.0, "prediction": "epsilon", "model_error": ModelError()},
    ),
    "solver_error": (solver_error, {"schedule": NODES, "noise": SD, "solver": "ddim"}),
    "ModelError": (
        lambda **options: lanes([SD], [4], method=SolverError(model_error=ModelError(**options))),
        {"eta": 0.1, "cap": 1.0, "terms": 6, "length": 1.0, "tilt": 1.0, "alike": 0.0, "seed": 0},
    ),
    "lanes": (lanes, {"noises": [SD], "nfes": [4], "layouts": ["node"], "seeds": [0], "method": "hso"}),
    "hso": (
        lambda **options: lanes([SD], [4], method=Hso(**options)),
        {"relax": False, "p": 2.0, "spacing": 0.01}
        | {"spacing_as": "constraint", "gamma": 1.0, "box": Box(), "objective": "mep"},
    ),
    "solver-error": (
        lambda **options: lanes([SD], [4], method=SolverError(**options)),
        {"solver": "ddim", "guidance": 1.0, "first": "end", "problems": PROBLEM}
        | {"detail": 0.0, "power": 1.0, "model_error": ModelError()},
    ),
    "search": (find, {"noise": SD, "nfe": 4, "layout": "node", "method": "hso", "seed": 0, "effort": Effort()}),
    "beta_table": (beta_table, {"rule": "linear", "beta_start": 0.1, "beta_end": 0.2, "num_train_timesteps": 10}),
}
TEXTS = {("origin", "method"), ("origin", "solver"), ("origin", "result"), ("from_sigmas", "sigmas")}
"""Arguments that a text may be: names, and sigmas as they are pasted."""
SHOWN_AS = {
    **{"d_min": "spacing|d_min", "sigmas": "sigmas|t must fall", "rule": "beta_schedule", "name": "baseline"},
    **{"model": "model|noise", "noise": "noise|model", "noises": "noises?|is not a preset", "nfes": "nfes?"},
    **{"layouts": "layouts?", "seeds": "seeds?", "t": r"t(\[0\])? "},
    **{name: f"{name}|shapes" for name in ("means", "weights", "variances")},
}


@pytest.mark.parametrize(("call", "name"), [(call, name) for call, (_, usual) in USUAL.items() for name in usual])
def test_wrong_kinds_are_refused_by_name(call: str, name: str) -> None:
    function, usual = USUAL[call]
    for value in WRONG[: 3 if (call, name) in TEXTS else 4]:
        with pytest.raises(ValueError, match=SHOWN_AS.get(name, name)):
            function(**{**usual, name: value})


@pytest.mark.parametrize("check", [partial(number, "seed"), lambda x: whole("seed", x, 0, 9), check_seed])
def test_a_check_refuses_what_is_no_number(check: Callable[..., Any]) -> None:
    for value in NO_NUMBERS:
        with pytest.raises(ValueError, match=r"seed is .*need"):
            check(value)


def test_p_of_any_real_number_that_has_a_score() -> None:
    assert baseline("karras", SD, 4, p=np.float32(1.5)).origin.p == 1.5
    assert baseline("karras", SD, 4, p=-1).mep > 0
    with pytest.raises(ValueError, match="p is 1000; need a finite number"):
        baseline("karras", SD, 4, p=1000)
    with pytest.raises(ValueError, match="p is -99; MEP is not finite"):
        baseline("uniform-lam", ve(1e-30, 1e30), 20, p=-99)


def test_a_population_has_at_least_four() -> None:
    with pytest.raises(ValueError, match=r"effort\.population is 3; need a whole number from 4"):
        find(SD, 4, effort=Effort(population=3))


@pytest.mark.parametrize("record", [Effort, Refinement])
def test_effort_and_refinement_are_whole_numbers(record: Any) -> None:
    for field in record._fields:
        for value in (-1, 1.5, "2", True, *([None] if record is Refinement else [])):
            options: dict[str, Any] = {"effort": Effort(**{field: value})} if record is Effort else {}
            if record is Refinement:
                options["method"] = SolverError(refinement=Refinement(**{field: value}))
            with pytest.raises(ValueError, match=rf"{record.__name__.lower()}\.{field} is .*; need a whole number"):
                find(SD, 4, **options)


def test_boxes() -> None:
    for box in ((1.0, 2.0), {"rho": (3, 16)}, Box(rho=3.0), Box(t_eps=(0.01,)), Box(t_max=("0.9", "1"))):
        with pytest.raises(ValueError, match="box "):
            lanes([SD], [4], method=Hso(box=box))


def test_checks_take_numpy_and_python_numbers_alike() -> None:
    assert number("x", np.float32(0.5)) == number("x", np.array(0.5)) == number("x", 0.5) == 0.5
    assert [whole("n", x, 1) for x in (3, 3.0, np.int64(3), np.float32(3.0), np.array(3))] == [3] * 5
    assert flag("b", np.bool_(True)) is True and check_nfe(np.int32(4)) == 4
    assert numbers("x", [1, 2.5]).tolist() == [1.0, 2.5]
    check_seed(2**31 - 1)
    assert number("x", 0.0, low=0.0, closed=True) == 0.0
    for bad in (-1e-9, -1.0):
        with pytest.raises(ValueError, match=r"x is -1.*; need a finite number at least 0"):
            number("x", bad, low=0.0, closed=True)
    with pytest.raises(ValueError, match="x is 2"):
        number("x", 2.0, low=0.0, high=2.0, closed=True)
    for bad in (0.0, 1.0):
        with pytest.raises(ValueError, match=r"x is .*; need a finite number above 0 and below 1"):
            number("x", bad, low=0.0, high=1.0)
    for bad in (0, 6):
        with pytest.raises(ValueError, match=r"n is .; need a whole number from 1 to 5"):
            whole("n", bad, 1, 5)


def test_messages_stay_short_whatever_the_value() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    for value in (10**10_000, "x" * 10**6, deep, list(range(10**5)), {i: i for i in range(10**4)}):
        assert len(brief(value)) < 200
    del value
    while deep:  # not all at once, which would take a deep stack
        deep = deep[0]
