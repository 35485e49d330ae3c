"""`tune_denoiser` on a network in closed form: honest, within its budget, resumable, frugal where memory is short."""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from closed_form import Network, latents

from bridge import Tuned, tune_denoiser
from bridge.pipeline import ImageToImage
from bridge.sampling import converged
from bridge.tuning import gits, search
from bridge.tuning.coordinates import Table, table_at
from bridge.tuning.judge import Judge, SpentError
from bridge.tuning.models import DenoiserModel
from bridge.tuning.race import Measured
from bridge.tuning.tune import STARTS
from hso_jax import baseline, load, preset, save, zoo
from hso_jax.checkpoint import Checkpoint
from hso_jax.schedule import Origin

SD, N = preset("sd15"), 4
tune_module = importlib.import_module("bridge.tuning.tune")  # the package has the function by this name
SMALL: dict[str, Any] = {"latents": latents(), "teacher_steps": 24, "samples": 4, "budget": 1200}


def small(network: Network | None = None, **options: Any) -> Tuned:
    return tune_denoiser(network or Network(), SD, N, **{**SMALL, **options})


def error(network: Network, tuned: Any, start: torch.Tensor, steps: int = 200) -> float:
    """To converged samples of other noise."""
    model = DenoiserModel(network, SD, start)
    many, few = (
        model.run(Table(*(x.tolist() for x in table_at(SD, s, "dpmpp-2m"))), range(len(start)))
        for s in (converged(SD, steps), tuned)
    )
    return float((many - few).square().mean().sqrt())


@pytest.fixture(scope="module")
def found() -> Tuned:
    return small()


def test_it_is_better_than_its_start_also_on_other_noise(found: Tuned) -> None:
    other = torch.randn(64, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    assert found.schedule.coefficients is not None
    assert found.error < 0.8 * found.start_error and found.error < found.rule_error
    assert error(Network(), found.schedule, other) < 0.9 * error(Network(), zoo("sd15", N, "nonstationary"), other)


def test_what_it_found_and_how_stands_in_the_file(found: Tuned, tmp_path: Path) -> None:
    save(found.schedule, tmp_path / "tuned.json")
    (read,) = load(tmp_path / "tuned.json")
    assert read == found.schedule and read.method == "tuned" and read.solver == "nonstationary"
    told = read.origin.tuned
    assert told is not None and told["evaluations"] == found.evaluations and told["rule"] == found.rule
    assert told["error"] == pytest.approx(found.error, rel=1e-5) == pytest.approx(read.fitness, rel=1e-5)
    assert "less" in str(found) and found.rule in str(found)


@pytest.mark.parametrize(
    ("by", "solver"),
    [
        ("differences", "unipc-3"),
        ("gradients", "nonstationary"),
        ("gits", "unipc-3"),
    ],
)
def test_the_budget_is_never_exceeded_and_all_is_counted(by: str, solver: str) -> None:
    network = Network()
    tuned = small(network, by=by, solver=solver, budget=700)
    assert tuned.evaluations <= 700 and tuned.error <= tuned.start_error and tuned.by == by
    # A gradient counts as three of what the network sees once.
    assert network.calls == tuned.evaluations if by != "gradients" else network.calls <= tuned.evaluations


def test_a_budget_is_spent_to_its_last_evaluation() -> None:
    class Constant:
        part = ImageToImage(SD, SD)

        def run(self, table: Table, rows: Any, seen: Any = None) -> torch.Tensor:
            return torch.ones(len(rows), 3)

    records = Checkpoint(None, {}).records("judgements")
    judge = Judge(Constant(), records, torch.zeros(2, 3), budget=2 * N, batch=8)
    schedule = zoo("sd15", N, "ddim")
    judge.value(schedule, range(2))
    assert judge.evaluations == 2 * N
    with pytest.raises(SpentError):
        judge.value(schedule, range(1))


def test_a_checkpoint_keeps_what_is_not_finite(tmp_path: Path) -> None:
    class Infinite:
        part = ImageToImage(SD, SD)

        def run(self, table: Table, rows: Any, seen: Any = None) -> torch.Tensor:
            return torch.full((len(rows), 3), math.inf)

    schedule = zoo("sd15", N, "ddim")
    for _ in range(2):  # judged, then read again
        with Checkpoint(tmp_path / "c.json", {}) as file:
            judge = Judge(Infinite(), file.records("judgements"), torch.zeros(2, 3), budget=100)
            assert np.isnan(judge.errors(schedule, range(2))).all() and math.isnan(judge.value(schedule, range(2)))


def test_gits_takes_its_coefficient(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, plain = [], gits.best_path

    def best_path(costs: Any, nfe: int, coefficient: float = 1.0) -> Any:
        asked.append(coefficient)
        return plain(costs, nfe, coefficient)

    monkeypatch.setattr(gits, "best_path", best_path)
    small(by="gits", budget=700)
    assert asked == [gits.COEFFICIENT] != [1.0]


def interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def test_a_checkpoint_tells_starts_apart_by_their_coefficients_and_solvers(tmp_path: Path) -> None:
    free, known = zoo("sd15", N, "nonstationary"), zoo("sd15", N, "ddim")
    assert free.coefficients is not None
    weaker = dataclasses.replace(free, coefficients=0.9 * free.coefficients)
    other = dataclasses.replace(known, origin=dataclasses.replace(known.origin, solver="unipc-2"))
    for number, (start, another) in enumerate([(free, weaker), (known, other)]):
        file = tmp_path / f"{number}.json"
        with pytest.raises(KeyboardInterrupt):
            small(checkpoint=file, start=start, solver="nonstationary", progress=interrupt)
        with pytest.raises(ValueError, match="start was"):
            small(checkpoint=file, start=another, solver="nonstationary")


def test_a_checkpoint_of_another_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another version ships other schedules, and tries others first."""
    file = tmp_path / "c.json"
    start = zoo("sd15", N, "ddim")
    with pytest.raises(KeyboardInterrupt):
        small(checkpoint=file, start=start, progress=interrupt)
    monkeypatch.setattr(importlib.import_module("bridge.tuning.tune"), "versions", lambda: {"hso-jax": "0.0.1"})
    with pytest.raises(ValueError, match=r"versions\.hso-jax was"):
        small(checkpoint=file, start=start)


@pytest.mark.slow
def test_gradients_find_it_too(found: Tuned) -> None:
    assert small(by="gradients").error < 0.85 * found.start_error


def test_an_interrupted_one_goes_on_to_the_same_bytes(found: Tuned, tmp_path: Path) -> None:
    """Interrupted at four places: among the converged samples, and after any judgement."""
    whole = tmp_path / "whole.json"
    calls = Network()
    assert small(calls, checkpoint=whole) == found
    rng = np.random.default_rng(3)
    places = sorted(int(x) for x in rng.integers(1, found.evaluations, 4))
    file, spent = tmp_path / "resumed.json", Network()
    for place in places:

        def stop(evaluations: int, budget: int, error: float | None, place: int = place) -> None:
            if evaluations >= place:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            small(spent, checkpoint=file, progress=stop)
    assert small(spent, checkpoint=file) == found
    assert file.read_bytes() == whole.read_bytes()
    assert json.loads(file.read_text().splitlines()[0])["arguments"]["nfe"] == N
    again = Network()
    assert small(again, checkpoint=file) == found and again.calls == 0


def test_with_a_larger_budget_it_goes_on_from_the_schedule(found: Tuned) -> None:
    more = small(start=found.schedule)
    assert more.start == "given" and more.start_error == pytest.approx(found.error) and more.error <= found.error


class Other(Network):
    """Other weights under the same name."""

    def __call__(self, x: torch.Tensor, level: Any) -> torch.Tensor:
        return 0.9 * super().__call__(x, level)


Other.__qualname__ = Network.__qualname__


@pytest.mark.slow
def test_a_checkpoint_of_other_samples_or_another_call_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "c.json"
    small(checkpoint=file, budget=700)
    beside = tmp_path / "c.json.samples.npz"
    with pytest.raises(ValueError, match="made with other arguments: teacher_steps"):
        small(checkpoint=file, budget=700, teacher_steps=25)
    for damage in (b"", beside.read_bytes()[:200]):
        beside.write_bytes(damage)
        with pytest.raises(ValueError, match=r"c.json.samples.npz is not what its checkpoint was made with"):
            small(checkpoint=file, budget=700)
    beside.unlink()
    assert small(checkpoint=file, budget=700).evaluations <= 700  # made again
    beside.unlink()
    with pytest.raises(ValueError, match="the model has changed"):
        small(Other(), checkpoint=file, budget=700)


@pytest.mark.slow
def test_out_of_memory_it_samples_one_at_a_time(found: Tuned) -> None:
    # Only after the converged samples, which are made at the batch that is asked for.
    tuned = small(Network(most=1), batch=1)
    assert tuned.error == pytest.approx(found.error, rel=1e-6)

    class Shrinking(Network):
        def __call__(self, x: torch.Tensor, level: Any) -> torch.Tensor:
            self.most = 1 if self.calls >= 6 * 24 else self.most
            return super().__call__(x, level)

    tuned = small(Shrinking(), batch=4)
    assert tuned.notes == ("out of memory: one sample at a time",)
    assert tuned.error == pytest.approx(found.error, rel=1e-6)


@pytest.mark.slow
def test_without_memory_for_gradients_it_needs_none(found: Tuned, tmp_path: Path) -> None:
    tuned = small(Network(gradients=False), by="gradients", checkpoint=tmp_path / "c.json")
    assert tuned.by == "differences" and tuned.error == pytest.approx(found.error, rel=0.05)
    assert [note.split(":")[0] for note in tuned.notes][-1].startswith("no gradients (not enough memory")
    again = Network(gradients=False)
    resumed = small(again, by="gradients", checkpoint=tmp_path / "c.json")
    assert resumed.schedule == tuned.schedule and again.calls == 0
    assert resumed.notes == ("no gradients (given up before the search was interrupted): by differences",)


def test_a_model_without_gradients_is_searched_without_or_refused() -> None:
    class Detached(Network):
        def __call__(self, x: torch.Tensor, level: Any) -> torch.Tensor:
            numbers = torch.as_tensor(level.sigma).numpy()  # refuses tensors that need gradients
            assert np.isfinite(numbers)
            return super().__call__(x, level)

    def largest(samples: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return (samples - target).abs().flatten(1).amax(1).mean()

    with pytest.raises(ValueError, match="no gradient through the model"):
        small(Detached(), by="gradients")
    tuned = small(Detached(), error=largest)
    assert tuned.by == "comparisons" and "no gradients (no gradient through the model" in tuned.notes[0]


def test_a_known_solver_s_start_that_nothing_beats_carries_its_coefficients(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that it is what was judged, whatever sampler a pipeline has."""
    origin = Origin(method="leading", solver="dpmpp-2m")  # the best rule of this network
    start = dataclasses.replace(baseline("leading", SD, N), origin=origin)
    monkeypatch.setattr(search, "differences", lambda *_: None)
    tuned = small(start=start)
    assert tuned.error == tuned.start_error and not tuned.history
    assert tuned.schedule.solver == "nonstationary" and tuned.schedule.coefficients is not None
    judged, named = (table_at(SD, schedule, "dpmpp-2m") for schedule in (tuned.schedule, start))
    np.testing.assert_allclose(judged.predict, named.predict, atol=1e-9)
    assert not np.allclose(judged.predict, table_at(SD, start, "ddim").predict, atol=0.01)


@pytest.mark.slow
def test_an_error_of_the_caller_s_own(found: Tuned) -> None:
    """With a gradient it is followed; one of numbers alone is compared."""

    def largest(samples: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return (samples - target).abs().flatten(1).amax(1).mean()

    assert (tuned := small(error=largest)).by == "gradients" and tuned.error < tuned.start_error
    plain = small(error=lambda a, b: float(largest(a.detach(), b)))
    assert plain.by == "comparisons" and plain.error <= plain.start_error and "no gradients" in plain.notes[0]


@pytest.mark.slow
def test_detail_weighs_the_fine(found: Tuned) -> None:
    tuned = small(detail=0.5)
    assert tuned.error < tuned.start_error and tuned.schedule != found.schedule


def test_a_condition_goes_to_the_denoiser() -> None:
    network, seen = Network(), []

    def conditioned(x: torch.Tensor, level: Any, label: torch.Tensor) -> torch.Tensor:
        seen.extend(label.tolist())
        return network(x, level) * (1.0 + 0.1 * label[:, None, None, None])

    small(conditioned, condition=torch.arange(24) % 3, budget=700)
    assert set(seen) == {0, 1, 2}


def test_a_given_start_and_the_best_so_far() -> None:
    start, shown = zoo("sd15", N, "dpmpp-2m"), []
    tuned = small(start=start, solver="dpmpp-2m", budget=900, improved=shown.append)
    assert tuned.start == "given" and tuned.schedule.coefficients is None and tuned.schedule.solver == "dpmpp-2m"
    np.testing.assert_allclose(shown[0].t, start.t)
    fitness = [s.fitness for s in shown]
    assert fitness == sorted(fitness, reverse=True) and shown[-1].t.tolist() == tuned.schedule.t.tolist()
    assert tuned.schedule.fitness == pytest.approx(tuned.error)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"budget": 100}, "budget is 100; 4 samples to tune on and 2 kept apart take"),
    ({"solver": "heun"}, "heun"),
    ({"by": "magic"}, "by is 'magic'"),
    ({"samples": 30, "budget": 5000}, "latents has 24 samples; give 45"),
    ({"latents": [1.0]}, "latents is"),
    ({"teacher_steps": 3}, "teacher_steps"),
    ({"detail": math.nan}, "detail"),
    ({"error": 3}, "error is 3; need a function"),
    ({"error": max, "detail": 1.0}, "leave detail out"),
    ({"error": max, "by": "differences"}, "use 'gradients' or 'comparisons'"),
    ({"start": zoo("sd15", 5)}, "need a Schedule with N = 4"),
    ({"start": zoo("sd3-medium", 4)}, "start is for sd3-medium"),
    ({"guidance": -1.0}, "guidance"),
    ({"condition": [1]}, "condition is"),
]


@pytest.mark.parametrize(("options", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_input_is_refused_before_any_evaluation(options: dict[str, Any], message: str) -> None:
    network = Network()
    with pytest.raises(ValueError, match=message):
        small(network, **options)
    assert network.calls == 0


def test_what_the_budget_has_left_goes_to_the_other_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The best first; a search that ends at once leaves nearly all of it."""
    begun: list[tuple[bytes, float]] = []

    def differences(judge: Judge, z: np.ndarray, curvature: Any, rows: Any, seen: Any) -> None:
        begun.append((z.tobytes(), judge.value(z, range(4))))

    monkeypatch.setattr(search, "differences", differences)
    tuned = small(by="differences")
    assert len({z for z, _ in begun}) == STARTS and [v for _, v in begun] == sorted(v for _, v in begun)
    assert tuned.error == min(tuned.start_error, tuned.rule_error) and tuned.evaluations < 1200
    begun.clear()
    small(by="differences", start=tuned.schedule)
    assert len(begun) == 1


def test_where_nothing_is_shipped_a_search_is_one_candidate_more(found: Tuned, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the start if it is the best of them."""
    asked: list[Any] = []

    def searched(noise: Any, nfe: int, *, method: Any) -> Any:
        asked.append(method)
        return found.schedule

    monkeypatch.setattr(tune_module, "search_without_model", searched)
    small(by="differences", budget=900)
    assert not asked
    monkeypatch.setattr(tune_module, "shipped_guidance", lambda noise: ())
    network = Network()
    tuned = small(network, by="differences", budget=900)
    assert network.calls == tuned.evaluations <= 900 and tuned.start == "search"
    assert [(how.solver, how.guidance) for how in asked] == [("nonstationary", 1.0)]


def test_the_best_rule_is_never_better(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the start is worse on the samples kept apart, and nothing is found."""
    monkeypatch.setattr(search, "differences", lambda *_: None)
    tuned = small(start=zoo("sd15", N, "ddim", guidance=7.5))
    assert tuned.rule_error < tuned.start_error and tuned.error == tuned.rule_error


@pytest.mark.slow
def test_gradients_that_fail_at_a_later_start_give_way_from_the_best_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    """The starts of an epsilon model with a far noise end are in other coordinates: from 25 and from the end."""
    calls: list[bool] = []
    real = search.gradients

    def fails_later(judge: Any, *rest: Any) -> None:
        calls.append(judge.coordinates.free)
        if len(calls) > 1:
            raise MemoryError("not enough memory")
        real(judge, *rest)

    def two(judge: Any, every: Any, *rest: Any) -> list[Measured]:
        wanted = ("zoo at w = 1 with nonstationary", "trailing with unipc-3")
        return [Measured(c.name, c.schedule, np.zeros(0)) for name in wanted for c in every if c.name == name]

    monkeypatch.setattr(tune_module, "race", two)
    monkeypatch.setattr(search, "gradients", fails_later)
    noise = preset("ddpm-cifar10")
    options = {**SMALL, "budget": 4000, "by": "gradients"}
    tuned = tune_denoiser(Network(), noise, N, **options)
    assert len(calls) > 1 and len(set(calls)) == 2
    assert tuned.by == "differences" and tuned.error <= tuned.start_error
    assert "no gradients (not enough memory)" in tuned.notes[-1]
