"""`tune_score`: any number for a schedule, asked for once each, within its budget, resumable."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from closed_form import Network, latents

from bridge import Tuned, sample, tune_score
from bridge.sampling import converged
from bridge.tuning.tune import FEWEST_SCORES
from hso_jax import Schedule, baseline, load, preset, save
from hso_jax.schedule_file import to_json

SD, N = preset("sd15"), 4
START = baseline("karras", SD, N)


class Bowl:
    """Distance of the nodes' t from a row; counts what it is asked, and may stop."""

    def __init__(self, stop: int = 10**9) -> None:
        self.seen: list[Schedule] = []
        self.stop = stop

    def __call__(self, schedule: Schedule) -> float:
        if len(self.seen) == self.stop:
            raise KeyboardInterrupt
        self.seen.append(schedule)
        return float(np.abs(schedule.t - np.linspace(1.0, 0.08, N)).max())


def small(score: Any, **options: Any) -> Tuned:
    return tune_score(score, SD, N, **{"solver": "unipc-2", "budget": 40, "start": START, **options})


@pytest.fixture(scope="module")
def found() -> Tuned:
    return small(Bowl())


@pytest.mark.parametrize("solver", ["unipc-2", "nonstationary"])
def test_a_score_of_the_caller_s_own_samples_gets_better(solver: str, tmp_path: Path) -> None:
    x = latents(8)
    wanted = sample(Network(), converged(SD, 50), x, "dpmpp-2m")

    def score(schedule: Schedule) -> torch.Tensor:
        own = None if schedule.coefficients is not None else solver
        return (sample(Network(), schedule, x, own) - wanted).square().mean().sqrt()

    tuned = tune_score(score, SD, N, solver=solver, budget=60)
    assert tuned.error < 0.8 * tuned.start_error <= tuned.rule_error
    assert tuned.error == pytest.approx(float(score(tuned.schedule)), rel=1e-6)
    assert (tuned.schedule.coefficients is not None) == (solver == "nonstationary")
    save(tuned.schedule, tmp_path / "s.json")
    (read,) = load(tmp_path / "s.json")
    assert read == tuned.schedule and read.method == "tuned" and read.solver == solver
    facts = read.origin.tuned
    assert facts is not None and facts["by"] == "scores" and "samples" not in facts and "score" in facts


def test_the_budget_is_kept_and_nothing_is_scored_twice() -> None:
    told: list[Any] = []
    bowl = Bowl()
    tuned = small(bowl, progress=lambda *x: told.append(x), budget=25)
    assert len(bowl.seen) == tuned.evaluations <= 25 and told[-1] == (tuned.evaluations, 25, tuned.error)
    rows = np.array([s.t for s in bowl.seen])
    apart = np.abs(rows[:, None] - rows).max(-1) + np.eye(len(rows))
    assert apart.min() > 5e-6


def test_the_best_so_far_is_told_and_in_the_end_returned(found: Tuned) -> None:
    shown: list[Schedule] = []
    again = small(Bowl(), improved=shown.append)
    scores = [s.fitness for s in shown]
    assert to_json(again.schedule) == to_json(found.schedule)  # the same call, the same bytes
    assert scores == sorted(scores, reverse=True) and scores[-1] == found.error
    assert shown[0].t.tolist() == START.t.tolist() and found.start == "given" and "score" in str(found)


@pytest.mark.parametrize("stop", [3, 20])
def test_an_interrupted_one_goes_on_to_the_same_bytes(found: Tuned, stop: int, tmp_path: Path) -> None:
    file = tmp_path / "c.json"
    with pytest.raises(KeyboardInterrupt):
        small(Bowl(stop), checkpoint=file)
    rest = Bowl()
    assert to_json(small(rest, checkpoint=file).schedule) == to_json(found.schedule)
    assert len(rest.seen) == found.evaluations - stop
    with pytest.raises(ValueError, match="budget was 40, is 41"):
        small(rest, checkpoint=file, budget=41)


def test_what_is_not_finite_is_the_worst(found: Tuned) -> None:
    bowl, worst = Bowl(), [math.nan, math.inf, -math.inf]

    def holes(schedule: Schedule) -> float:
        value = bowl(schedule)
        return worst[len(bowl.seen) % 3] if len(bowl.seen) > 12 and len(bowl.seen) % 4 == 0 else value

    assert math.isfinite(small(holes).error)
    with pytest.raises(ValueError, match="was finite; give a start"):
        small(lambda _: math.nan)


def test_an_exception_of_the_score_passes_through() -> None:
    def fails(_: Schedule) -> float:
        raise LookupError("no image")

    with pytest.raises(LookupError, match="no image"):
        small(fails)


def test_a_score_in_steps_still_finds_something() -> None:
    bowl = Bowl()
    tuned = small(lambda s: round(bowl(s), 2), budget=60)
    assert tuned.error < tuned.start_error


BAD: list[tuple[dict[str, Any], str]] = [
    ({"score": 3}, "score is 3; give a function"),
    ({"budget": FEWEST_SCORES - 1}, f"budget is {FEWEST_SCORES - 1}; need a whole number"),
    ({"start": baseline("karras", SD, 5)}, "need a Schedule with N = 4"),
    ({"start": baseline("karras", preset("sd3-medium"), N)}, "start is for sd3-medium"),
    ({"solver": "heun"}, "heun"),
    ({"guidance": -1.0}, "guidance is -1.0"),
]


@pytest.mark.parametrize(("options", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_input_is_refused_before_any_score(options: dict[str, Any], message: str) -> None:
    bowl = Bowl(stop=0)
    with pytest.raises(ValueError, match=message):
        small(**{"score": bowl, **options})


@pytest.mark.parametrize("value", ["low", None, [1.0, 2.0]])
def test_a_score_must_be_a_number(value: Any) -> None:
    with pytest.raises(ValueError, match=r"score returned .*; return a number"):
        small(lambda s: value)


@pytest.mark.parametrize(
    ("package", "name", "new"),
    [
        ("bridge", "SamplingFitness", r"is removed; use bridge\.tune\(pipe, nfe\)"),
        ("bridge", "profile", r"was removed in 0\.3\.0, because .*bridge\.choose.*or use bridge\.tune"),
        ("hso_jax", "Measured", r"is removed; use bridge\.tune_score\("),
    ],
)
def test_a_name_that_is_gone_tells_the_new_way(package: str, name: str, new: str) -> None:
    with pytest.raises(AttributeError, match=rf"{package}\.{name} {new}"):
        getattr(importlib.import_module(package), name)
    for statement in (f"from {package} import {name}", f"from {package}.{name} import {name}"):
        with pytest.raises(ImportError, match=rf"{package}\.{name} {new}"):
            exec(statement)
