"""The search by a fitness of the caller's own: against a grid, its budget, its checkpoint, and what is refused."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from oracles import scipy_search as oracle
from problems import Smooth
from solver_error_cells import SAMPLES, SD, SD3, small_family

from hso_jax import Effort, Lane, Measured, Origin, Schedule, baseline, load, save, search
from hso_jax.methods.measured.points import box, schedules_at
from hso_jax.methods.measured.search import POPULATION
from hso_jax.methods.solver_error.schedules import measure
from hso_jax.objectives.solver_error import error_data, in_chunks
from hso_jax.schedule_file import to_json

LANE = Lane(SD, 4, method=Measured(lambda s: 0.0, 8))


class Bowl:
    """Distance of the nodes' t from a row that the family comes near; each judgement costs `cost` a step."""

    def __init__(self, cost: int = 1, stop: int | None = None, settings: dict[str, Any] | None = None) -> None:
        self.cost, self.stop, self.settings = cost, stop, settings or {}
        self.seen: list[Schedule] = []
        self.told: list[float] = []

    def __call__(self, schedule: Schedule) -> float:
        if len(self.seen) == self.stop:
            raise KeyboardInterrupt
        self.seen.append(schedule)
        self.told.append(float(np.abs(schedule.t - np.linspace(0.96, 0.08, len(schedule.t))).max()))
        return self.told[-1]

    def calls(self, nfe: int) -> int:
        return self.cost * nfe


def find(fitness: Any, nfe: Any = 4, *, noise: Any = SD, budget: Any = 10**6, **options: Any) -> Any:
    """`search` with those options that are the method's own given to it."""
    own = {name: options.pop(name) for name in ("starts", "checkpoint", "family") if name in options}
    return search(noise, nfe, method=Measured(fitness, budget, **own), **options)


def test_finds_the_least_error_of_the_family() -> None:
    """No point of a grid over the box is better, and where MEP has one minimum (p <= 2) the nodes are SciPy's."""
    chunks = in_chunks(error_data(SD.noise_end, problems=small_family(), samples=SAMPLES), SAMPLES)
    seen = []

    def error(schedule: Schedule) -> float:
        seen.append(schedule)
        return measure(schedule, "ddim", chunks)

    found = find(error, budget=200)
    ends = box(LANE)
    axes = [np.linspace(low, high, count) for (low, high), count in zip(ends.T, (4, 7, 6, 2), strict=True)]
    points = np.array(list(itertools.product(*axes)), np.float32)
    batches = points.reshape(-1, POPULATION, points.shape[1])  # as the search does: one compilation
    grid = [measure(s, "ddim", chunks) for batch in batches for s in schedules_at(LANE, batch, ends)]
    assert found.fitness <= min(grid)
    assert found.fitness == min(measure(s, "ddim", chunks) for s in seen) and len(seen) <= 200
    assert len([s for s in seen[:POPULATION] if s.origin.p <= 2]) >= 2
    for s in [s for s in [*seen[:POPULATION], found] if s.origin.p <= 2]:
        wanted = oracle.minimise_mep(Smooth(SD), s.psi["t_max"], s.psi["t_eps"], 3, s.psi["p"])
        np.testing.assert_allclose(s.t[1:], wanted.t[1:], rtol=0, atol=2e-4)
        assert s.psi["t_max"] - 1e-9 <= s.t[0] <= 1.0


@functools.cache
def plain() -> tuple[Schedule, list[Schedule]]:
    """What 40 judgements find, and all that was judged."""
    bowl = Bowl()
    return find(bowl, budget=4 * 40), bowl.seen


def test_what_a_schedule_says_about_itself(tmp_path: Path) -> None:
    s, seen = plain()
    assert (s.method, s.solver, s.nfe, s.layout, s.end, s.seed) == ("mep/measured", "any", 4, "node", "clean", 0)
    assert s.error is None and s.guidance is None
    assert s.result == "converged" and s.origin.p == s.psi["p"] and s.t[-1] == s.psi["t_eps"]
    assert s.fitness == min(float(np.abs(x.t - np.linspace(0.96, 0.08, 4)).max()) for x in seen)
    save(s, tmp_path / "s.json")
    assert to_json(load(tmp_path / "s.json")) == to_json(s)
    old = json.loads(to_json(s))
    del old["schedules"][0]["fitness"]
    (tmp_path / "old.json").write_text(json.dumps(old))
    assert load(tmp_path / "old.json")[0].fitness is None


def test_no_schedule_is_judged_twice_and_the_first_are_spread() -> None:
    _, seen = plain()
    rows = np.array([s.t for s in seen])
    apart = np.abs(rows[:, None] - rows).max(-1) + np.eye(len(rows))
    assert apart.min() > 5e-6 and apart[:POPULATION, :POPULATION].min() > 0.02


def test_the_budget_is_kept_to_the_call_and_told() -> None:
    told: list[tuple[int, int]] = []
    bowl = Bowl(cost=7)
    budget = 28 * 13 + 27  # 13 judgements, and one call too few for another
    find(bowl, budget=budget, progress=lambda *x: told.append(x))
    assert len(bowl.seen) == 13 and told[-1] == (28 * 13, 28 * 13)
    assert told == [(28 * min(i + 1, 13), 28 * 13) for i in range(14)]
    free: list[Schedule] = []
    find(lambda s: free.append(s) or 0.0, budget=11)  # a function without `calls`: one each
    assert len(free) == 11


def test_the_same_call_gives_the_same_bytes_alone_and_beside_other_n() -> None:
    told: list[tuple[int, int]] = []
    both = find(Bowl(), [4, 2], budget=4 * 40, progress=lambda *x: told.append(x))
    assert to_json(both[0]) == to_json(plain()[0]) and both[1].nfe == 2
    assert told[-1] == (320, 320) and all(a[0] <= b[0] for a, b in itertools.pairwise(told))
    assert find(Bowl(), budget=4 * 40, seed=1).t.tolist() != both[0].t.tolist()


@pytest.mark.parametrize("stop", [0, 3, 8, 9, 21, 39])
def test_an_interrupted_search_resumes_to_the_same_bytes(stop: int, tmp_path: Path) -> None:
    broken, whole = tmp_path / "broken.json", tmp_path / "whole.json"
    with pytest.raises(KeyboardInterrupt):
        find(Bowl(stop=stop), budget=4 * 40, checkpoint=broken)
    rest = Bowl()
    found = find(rest, budget=4 * 40, checkpoint=broken)
    assert to_json(found) == to_json(plain()[0]) and len(rest.seen) == 40 - stop
    find(Bowl(), budget=4 * 40, checkpoint=whole)
    assert broken.read_bytes() == whole.read_bytes() and sorted(tmp_path.iterdir()) == [broken, whole]
    again = Bowl()
    assert to_json(find(again, budget=4 * 40, checkpoint=str(broken))) == to_json(found) and not again.seen


def test_a_checkpoint_serves_another_budget_and_more_n(tmp_path: Path) -> None:
    file = tmp_path / "c.json"
    find(Bowl(), budget=4 * 12, checkpoint=file)
    more = Bowl()
    found = find(more, [2, 4], budget=4 * 40, checkpoint=file)
    assert to_json(found[1]) == to_json(plain()[0])
    assert len([s for s in more.seen if s.nfe == 4]) == 28
    none = Bowl()
    assert find(none, budget=4 * 12, checkpoint=file).fitness >= found[1].fitness and not none.seen


def test_what_the_fitness_raises_propagates_as_it_is(tmp_path: Path) -> None:
    class Odd(Exception):
        pass

    def fails(_: Schedule) -> float:
        raise Odd("out of memory")

    with pytest.raises(Odd, match="out of memory"):
        find(fails, checkpoint=tmp_path / "c.json")
    assert to_json(find(Bowl(), budget=4 * 40, checkpoint=tmp_path / "c.json")) == to_json(plain()[0])


OTHER: dict[str, tuple[dict[str, Any], str]] = {
    "seed": ({"seed": 1}, "seed was 0, is 1"),
    "layout": ({"layout": "interval"}, "layout was 'node', is 'interval'"),
    "family": ({"family": "dm-nonuni"}, "objective was 'mep', is 'dm-nonuni'"),
    "model": ({"noise": SD3}, "noise was '[0-9a-f]+', is '[0-9a-f]+'"),
    "fitness": ({"fitness": Bowl(settings={"w": 5.0})}, r"fitness\.w was 3\.0, is 5\.0;"),
    "starts": ({"starts": [baseline("trailing", SD, 4)]}, r"arguments of search 4: starts was \[\], is \['trailing "),
}


@pytest.mark.parametrize("case", OTHER)
def test_a_checkpoint_of_other_arguments_is_refused(case: str, tmp_path: Path) -> None:
    file = tmp_path / "c.json"
    options: dict[str, Any] = {"noise": SD, "nfe": 4, "budget": 36, "checkpoint": file}
    find(**options, fitness=Bowl(settings={"w": 3.0}))
    before = file.read_bytes()
    other, message = OTHER[case]
    with pytest.raises(ValueError, match=message):
        find(**{**options, "fitness": Bowl(settings={"w": 3.0}), **other})
    assert file.read_bytes() == before


def test_a_checkpoint_of_other_versions_says_so(tmp_path: Path) -> None:
    file = tmp_path / "c.json"
    find(Bowl(), budget=32, checkpoint=file)
    document = json.loads(file.read_text())
    document["versions"]["jax"] = "0.0.1"
    file.write_text(json.dumps(document))
    assert find(Bowl(), budget=32, checkpoint=file).fitness is not None  # the nodes are the same all the same
    document["searches"]["4"]["records"][5]["t"][1] += 1e-9
    file.write_text(json.dumps(document))
    with pytest.raises(ValueError, match=r"schedule 5 at N = 4 is not the one in .*jax was '0\.0\.1', is"):
        find(Bowl(), budget=32, checkpoint=file)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "holds a JSON list, not a checkpoint"),
        ('{"format": "hso-jax/schedules", "version": 1}', "is not a checkpoint"),
        ('{"format": "hso-jax/checkpoint", "version": 2}', "has version 2"),
        ('{"format": "hso-jax/checkpoint", "version": 1, "arguments": {}}', "is damaged"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_left_alone(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "c.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        find(Bowl(), checkpoint=file)
    assert file.read_text() == text
    with pytest.raises(OSError):
        find(Bowl(stop=0), checkpoint=tmp_path / "none" / "c.json")


DAMAGED: dict[str, tuple[Any, str]] = {
    "a list": ([], " must be an object of t and fitness"),
    "no fitness": ({"t": [1.0]}, " must be an object of t and fitness"),
    "fitness true": ({"t": [1.0], "fitness": True}, ".fitness is True, not a number or null"),
    "fitness a text": ({"t": [1.0], "fitness": "0.1"}, ".fitness is '0.1', not a number or null"),
    "fitness too large": ({"t": [1.0], "fitness": 10**400}, ".fitness is 1000.*, not a number or null"),
    "fitness infinite": ({"t": [1.0], "fitness": float("inf")}, ".fitness is inf, not a number or null"),
    "t a number": ({"t": 1.0, "fitness": 1.0}, ".t is 1.0, not a list of numbers"),
    "t of texts": ({"t": ["1"], "fitness": 1.0}, ".t is .*, not a list of numbers"),
    "t too large": ({"t": [10**400, 0.5], "fitness": 1.0}, ".t is .*, not a list of numbers"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_record_is_refused_and_left_alone(case: str, tmp_path: Path) -> None:
    file = tmp_path / "c.json"
    find(Bowl(), budget=32, checkpoint=file)
    document = json.loads(file.read_text())
    record, message = DAMAGED[case]
    document["searches"]["4"]["records"][3] = record
    file.write_text(json.dumps(document))
    text = file.read_text()
    with pytest.raises(ValueError, match=rf"damaged: searches\['4'\].records\[3\]{message}"):
        find(Bowl(stop=0), budget=36, checkpoint=file)
    assert file.read_text() == text


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_the_worst(bad: float, tmp_path: Path) -> None:
    def holes(schedule: Schedule) -> float:
        values.append(bad if schedule.t[-1] < 0.1 else float(schedule.t[-1]))
        return values[-1]

    values: list[float] = []
    found = find(holes, budget=60, checkpoint=tmp_path / "c.json")
    assert found.fitness == min(v for v in values if v > 0 and np.isfinite(v)) and found.t[-1] >= 0.1
    assert not np.all(np.isfinite(values)) and found.fitness < 0.11
    assert to_json(find(holes, budget=60, checkpoint=tmp_path / "c.json")) == to_json(found)


def test_a_fitness_that_is_never_finite_is_given_up_after_the_first_generation(tmp_path: Path) -> None:
    seen: list[Schedule] = []
    for _ in range(2):
        with pytest.raises(ValueError, match=rf"fitness of all {POPULATION} schedules .* at N = 4 is not finite"):
            find(lambda s: seen.append(s) or np.nan, checkpoint=tmp_path / "c.json")
    assert len(seen) == POPULATION
    start = Schedule.from_t(SD, [0.9, 0.5, 0.2, 0.1])
    kept = find(lambda s: 1.0 if s is start else np.inf, budget=20, starts=[start])
    assert kept.t.tolist() == start.t.tolist() and kept.fitness == 1.0


def test_a_start_wins_unless_something_better_is_found() -> None:
    best = Schedule.from_t(SD, np.linspace(0.96, 0.08, 4), origin=Origin(method="by hand"))
    poor, other = baseline("karras", SD, 4), baseline("trailing", SD, 2)
    bowl = Bowl()
    found = find(bowl, [4, 2], budget=4 * 10, starts=[poor, best, other])
    assert (found[0].method, found[0].fitness, found[0].t.tolist()) == ("by hand", 0.0, best.t.tolist())
    assert [s.method for s in bowl.seen[:2]] == ["karras", "by hand"] and bowl.seen[10].method == "trailing"
    assert [len([s for s in bowl.seen if s.nfe == n]) for n in (4, 2)] == [10, 20]
    again = find(Bowl(), budget=4 * 41, starts=[poor])
    assert again.method == "mep/measured" and again.t.tolist() == plain()[0].t.tolist()


def test_the_same_nodes_to_another_end_are_another_schedule() -> None:
    stops = baseline("karras", SD, 4, layout="interval")
    ends: list[str] = []

    def fitness(schedule: Schedule) -> float:
        ends.append(schedule.end)
        return float(len(ends))

    find(fitness, budget=12, layout="interval", starts=[stops, stops.with_end("clean"), stops])
    assert ends[:2] == ["t_eps", "clean"]


def test_every_kind_of_model_layout_and_n() -> None:
    for noise, layout, nfe in itertools.product((SD, SD3), ("node", "interval"), (1, 2, 4)):
        bowl = Bowl()
        s = find(bowl, nfe, noise=noise, layout=layout, budget=nfe * 10)
        assert (s.nfe, s.layout, len(s.t)) == (nfe, layout, nfe + (layout == "interval"))
        single = noise is SD3 and len(s.t) == 1  # the one node is the model's end
        assert len(bowl.seen) == (1 if single else 10)
        assert all(x.t[0] == 1.0 for x in bowl.seen) == (noise is SD3)
        assert (s.psi is None) == (len(s.t) == 1)


class Odd:
    """A fitness whose `calls` or `settings` are what they are told to be."""

    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)

    def __call__(self, schedule: Schedule) -> float:
        pytest.fail("bad input must be found before any work")


NEVER = Odd()
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no budget": ({"budget": None}, "budget is None; need how many calls"),
    "half budget": ({"budget": 100.5}, r"budget is 100\.5"),
    "bool budget": ({"budget": True}, "budget is True"),
    "no calls at all": ({"budget": 0}, "budget is 0"),
    "little": ({"budget": POPULATION - 1}, f"but the first generation at N = 4 takes {POPULATION}:"),
    "little for calls": (
        {"budget": 100, "fitness": Odd(calls=lambda nfe: 100 * nfe), "starts": [baseline("beta", SD, 4)]},
        rf"takes {(POPULATION + 1) * 400}: {POPULATION + 1} schedules \(1 of them starts\) with 400 calls",
    ),
    "little for one": ({"budget": 20, "nfe": [2, 30], "fitness": Odd(calls=lambda nfe: nfe)}, "at N = 30 takes 240"),
    "calls": ({"fitness": Odd(calls=lambda nfe: 0)}, r"fitness\.calls is 0 at 4; need a function of N"),
    "calls as number": ({"fitness": Odd(calls=5)}, r"fitness\.calls is 5; need a function of N"),
    "settings": ({"fitness": Odd(settings={"a": object()})}, r"fitness\.settings is .*; it must be made of texts"),
    "start": ({"starts": [[1.0, 0.5]]}, r"starts\[0\] is \[1\.0, 0\.5\]; need a Schedule"),
    "start of another N": ({"starts": [baseline("beta", SD, 5)]}, r"is for sd15, N = 5, .* N = 4, layout 'node'"),
    "start of another layout": ({"starts": [baseline("beta", SD, 4, layout="interval")]}, "layout 'interval'; the"),
    "start of another model": ({"starts": [baseline("beta", SD3, 4)]}, "is for sd3-medium, .*; the search is for sd15"),
    "nfe": ({"nfe": 0}, "nfe is 0"),
    "layout": ({"layout": "both"}, "layout is 'both'"),
    "seed": ({"seed": -1}, "seed is -1"),
    "family": ({"family": "solver-error"}, "family is 'solver-error'; use one of mep"),
    "effort": ({"effort": Effort()}, r"effort is Effort\(.*as far as its budget goes"),
    "name": ({"fitness": "fid"}, "fitness is 'fid'; need a function of a schedule"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named_before_any_work(case: str) -> None:
    options, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        find(**{"fitness": NEVER, **options})


@pytest.mark.parametrize("value", ["low", None, [1.0, 2.0]])
def test_a_fitness_must_return_a_number(value: Any) -> None:
    with pytest.raises(ValueError, match=r"fitness returned .*; need a number"):
        find(lambda s: value)


@pytest.mark.parametrize("kind", [np.float32, np.array, lambda x: np.array([x])[0]])
def test_a_number_may_be_of_any_kind(kind: Callable[[float], Any]) -> None:
    found = find(lambda s: kind(s.t[-1]), budget=20)
    assert type(found.fitness) is float
