"""The shipped reference schedules: how they are looked up, whether all are there, and that they are found again."""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
import math
from collections.abc import Iterator
from importlib import resources
from typing import Any

import numpy as np
import pytest

from benchmarks.zoo import build as zoo_build
from hso_jax import NoiseSchedule, Schedule, preset, search_many, solver_error
from hso_jax.noise import PRESETS, edm, flow
from hso_jax.noise.ends import first_lam
from hso_jax.problems import ModelError
from hso_jax.shelf.shipped import FILE, FREE_NFE, MAX_NFE, SOLVERS, _document, _shelves, shelf_key, text, zoo
from hso_jax.solvers import NONSTATIONARY

SHIPPED = resources.files("hso_jax.shelf").joinpath(FILE).is_file()
needs_file = pytest.mark.skipif(not SHIPPED, reason=f"{FILE} has not been built")


def every_cell() -> Iterator[tuple[str, str, float]]:
    """One preset for each shelf and weight: the others read the same entries."""
    for shelf in zoo_build.shelves().values():
        for name, weight in shelf:
            for solver in SOLVERS:
                yield name, solver, weight


@functools.cache
def shipped(name: str, nfe: int, solver: str, weight: float) -> Schedule:
    """One cell of the file, looked up once for all tests."""
    return zoo(_noise(name), nfe, solver, guidance=weight)


@functools.cache
def _noise(name: str) -> NoiseSchedule:
    return preset(name)


@needs_file
def test_the_file_is_the_one_that_was_checked() -> None:
    """`zoo.sha256` says what was measured; a new file needs a new one."""
    wanted = resources.files("hso_jax.shelf").joinpath("zoo.sha256").read_text(encoding="utf-8").split()[0]
    assert hashlib.sha256(text().encode()).hexdigest() == wanted


@needs_file
def test_every_preset_solver_and_budget_is_there() -> None:
    for name, solver, weight in every_cell():
        errors = []
        noise = _noise(name)
        most = 5.0 + ModelError().size(noise.prediction, noise.noise_end, weight)  # one step may keep all of it
        for nfe in range(1, MAX_NFE + 1):
            s = shipped(name, nfe, solver, weight)
            assert (s.model, s.nfe, s.solver, s.guidance) == (name, nfe, solver, weight)
            assert (s.layout, s.end, s.method) == ("node", "clean", "solver-error")
            assert np.all(np.isfinite(s.lams[1:])) and np.all(np.diff(s.t) < 0) and s.t[-1] > 0 and s.t[0] <= 1
            assert 0 < s.error < most and {*s.others_own_nodes, solver} - {NONSTATIONARY} == set(SOLVERS)
            assert all(0 < error < math.inf for error in s.others_own_nodes.values())
            errors.append(s.error)
        assert errors[-1] < 0.2 * errors[0], (name, solver, weight)


@needs_file
def test_presets_of_one_shelf_share_their_schedules() -> None:
    firsts = {key: shelf[0][0] for key, shelf in zoo_build.shelves().items()}
    for name, entry in PRESETS.items():
        first = firsts[shelf_key(preset(name))]
        mine, its = zoo(name, 6), zoo(first, 6, guidance=entry.guidance)
        assert (mine.model, mine.guidance, mine.solver, mine.error) == (name, entry.guidance, its.solver, its.error)
        np.testing.assert_allclose(mine.lams, its.lams, rtol=0, atol=5e-4)


@needs_file
def test_more_evaluations_are_not_worse_up_to_ten() -> None:
    """A schedule with a node more can do nearly what the one before does. Beyond ten the landscape is rough."""
    worse = []
    for name, solver, weight in every_cell():
        errors = np.array([shipped(name, nfe, solver, weight).error for nfe in range(1, 11)])
        rise = errors[1:] / np.minimum.accumulate(errors)[:-1]
        worse += [(name, solver, weight, n + 2, round(float(x), 3)) for n, x in enumerate(rise) if x > 1.005]
    assert not worse, worse


@needs_file
def test_records_are_searches_that_ended_well() -> None:
    shelves = _document()["shelves"]
    assert [(*shelf["ends"], shelf["unbounded"]) for shelf in shelves] == list(zoo_build.shelves())
    results = []
    for shelf in shelves:
        for entries in shelf["guidance"].values():
            assert tuple(entries) == (*SOLVERS, NONSTATIONARY)
            for solver in SOLVERS:
                assert list(entries[solver]) == [str(n) for n in range(1, MAX_NFE + 1)]
            for rows in entries.values():
                results += [e["result"] for e in rows.values()]
                for nfe, entry in rows.items():
                    assert len(entry["lams"]) == int(nfe) - 1 and np.all(np.diff(entry["lams"]) > 0)
    assert set(results) <= {"converged", "max_steps"}


@needs_file
def test_a_small_part_is_found_again() -> None:
    """The builder's own lanes, data and effort; padded to three nodes instead of five, and one solver alone."""
    (name, weight) = ("sd15", 1.0)
    lanes = [lane for lane in zoo_build.lanes(name, weight, range(1, 4)) if lane.method.solver == "ddim"]
    for s in search_many(lanes):
        shipped = zoo(name, s.nfe, s.solver, guidance=weight)
        np.testing.assert_allclose(s.lams, shipped.lams, rtol=0, atol=2e-3)
        assert s.error == pytest.approx(shipped.error, rel=1e-3)


@needs_file
def test_coefficients_are_worth_it_and_measured_again() -> None:
    """Below every known solver by the threshold, and as far off as it says on the problems, computed anew."""
    cells = [(n, w, k) for n, w in dict.fromkeys((n, w) for n, _, w in every_cell()) for k in FREE_NFE]
    found = {cell: shipped(cell[0], cell[2], NONSTATIONARY, cell[1]) for cell in cells}
    free = {cell: s for cell, s in found.items() if s.coefficients is not None}
    assert len(free) > 0.5 * len(cells)
    for s in free.values():
        assert s.error <= 0.97001 * min(s.others_own_nodes.values()) and s.scores.amplification >= 1.0
    for s in found.values():
        assert s.coefficients is not None or s.error <= min(s.others_own_nodes.values())
    for name, nfe in (("sd15", 6), ("flux-dev", 4)):
        s = zoo(name, nfe, NONSTATIONARY, guidance=1.0)
        assert s.error == pytest.approx(solver_error(s, preset(name)), rel=2e-3)


@needs_file
def test_without_a_solver_the_best_is_returned() -> None:
    for name, nfe in (("sdxl", 6), ("flux-dev", 8), ("sd15", 20)):
        best = zoo(name, nfe)
        assert best.error <= min(best.others_own_nodes.values())
        assert best.error == min(zoo(name, nfe, s).error for s in (*SOLVERS, best.solver))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """A document by the builder from made-up records: errors name their cell, lams are evenly spaced."""
    records: dict[tuple[str, float], list[dict[str, Any]]] = {}
    shelves = list(zoo_build.shelves().values())
    for i, shelf in enumerate(shelves):
        for name, weight in shelf:
            records[name, weight] = [
                {
                    "solver": solver,
                    "nfe": n,
                    "lams": [round(float(x), 5) for x in np.linspace(-2.5, 2.0, n + 2)[2:-1]],
                    "error": round(1.0 / n + 0.01 * j + 0.001 * weight + 0.0001 * i, 6),
                    "result": "converged",
                }
                for j, solver in enumerate(SOLVERS)
                for n in range(1, MAX_NFE + 1)
            ]
    content = zoo_build.assemble(records)
    monkeypatch.setattr(importlib.import_module("hso_jax.shelf.shipped"), "text", lambda: content)
    for cached in (_document, _shelves):
        cached.cache_clear()
    yield json.loads(content)
    for cached in (_document, _shelves):
        cached.cache_clear()


def test_look_up(small: dict[str, Any]) -> None:
    assert (small["format"], small["version"]) == ("hso-jax/zoo", 2) and "jax" in small["versions"]
    ends = list(zoo_build.shelves())
    for name, solver, weight in every_cell():
        noise = _noise(name)
        for nfe in (1, 7, 20):
            s = zoo(noise, nfe, solver, guidance=weight)
            shelf = ends.index(shelf_key(noise))
            at = {x: 1.0 / nfe + 0.01 * j + 0.001 * weight + 0.0001 * shelf for j, x in enumerate(SOLVERS)}
            assert s.error == pytest.approx(at.pop(solver), abs=2e-6) and s.others_own_nodes == pytest.approx(
                at, abs=2e-6
            )
            assert (s.model, s.nfe, s.solver, s.guidance, s.layout) == (name, nfe, solver, weight, "node")
            assert s.noise == noise.fingerprint()
            np.testing.assert_allclose(s.lams[1:], np.linspace(-2.5, 2.0, nfe + 2)[2:-1], rtol=0, atol=2e-4)
            assert s.lams[0] == pytest.approx(first_lam(noise, nfe, weight), abs=1e-6)


def test_defaults_and_other_names(small: dict[str, Any]) -> None:
    assert zoo("sd15", 4, "dpmpp-2m").guidance == 7.5 and zoo("sd15", 4, "dpmpp-2m").solver == "dpmpp-2m"
    assert zoo(preset("sd15"), 4, "dpmpp-2m").guidance == 1.0  # a noise schedule alone says nothing of guidance
    assert zoo("sdxl", 4, "unipc").solver == "unipc-2" and zoo("sdxl", 4, "unipc-2").guidance == 5.0
    assert zoo("sdxl", 4, "dpmpp-2m", guidance=7.5).error == zoo("sd15", 4, "dpmpp-2m").error  # one noise, one shelf
    other = zoo(flow(2.2, name="mine"), 5, "ddim", guidance=7)
    assert other.model == "mine" and other.error == zoo("sd3-medium", 5, "ddim").error
    np.testing.assert_allclose(other.lams, zoo("sd3-medium", 5, "ddim").lams, atol=1e-9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (("sd9", 4), r"model 'sd9' is not a preset; presets: sd15"),
        (("sd15", 4, "adams"), "solver is 'adams'; use one of ddim"),
        (("sd15", 4, "heun"), r"solver 'heun' is not in the zoo \(.*unipc-3, nonstationary\); use search"),
        (("sd15", 0), "nfe is 0"),
        (("sd15", 21), r"nfe is 21; the zoo has 1\.\.20; use search\(.*SolverError\(guidance=7\.5"),
        (("sd15", 21, "unipc"), r"nfe is 21; the zoo has 1\.\.20; use search\(.*solver='unipc', guidance=7\.5"),
        (("sd15", 13, NONSTATIONARY), r"nfe is 13; the zoo has 2\.\.12 of 'nonstationary'"),
        (("sd15", 4.0), r"nfe is 4\.0"),
        ((edm(0.01, 70.0), 4), "no preset has the noise range and prediction type of edm; use search"),
    ],
)
def test_what_is_not_shipped(call: tuple[Any, ...], message: str, small: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=message):
        zoo(*call)


def test_a_weight_that_is_not_shipped_names_those_that_are(small: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"guidance 3 is not in the zoo for sd15 \(1, 5, 7\.5\); use search.*=3\)"):
        zoo("sd15", 4, "dpmpp-2m", guidance=3.0)
    with pytest.raises(ValueError, match=r"guidance 7 is not in the zoo for edm-cifar10 \(1\)"):
        zoo("edm-cifar10", 4, "dpmpp-2m", guidance=7.0)


def test_parts_cover_every_cell_once() -> None:
    cells = [
        (lane.noise.name, lane.method.guidance, lane.method.solver, lane.nfe)
        for p in zoo_build.parts()
        for lane in _lanes(p)
    ]
    assert len(cells) == len(set(cells))
    weights = {ends: [w for _, w in shelf] for ends, shelf in zoo_build.shelves().items()}
    scratch = MAX_NFE - len(zoo_build.EXTENDED_NFE)
    assert len(cells) == sum(map(len, weights.values())) * len(SOLVERS) * scratch
    for name, entry in PRESETS.items():
        assert {1.0, entry.guidance} <= set(weights[shelf_key(preset(name))])


def test_what_the_file_has_is_kept_as_it_is(small: dict[str, Any]) -> None:
    """A new shelf or weight is searched alone, and the text of the others does not change."""
    content = importlib.import_module("hso_jax.shelf.shipped").text()
    records = zoo_build.found_in(content)
    assert zoo_build.assemble(records) == content and not list(zoo_build.parts(records))
    for shelf in small["shelves"]:
        shelf["guidance"].pop("6", None)
    shorter = zoo_build.found_in(json.dumps(small))
    assert {part[:2] for part in zoo_build.parts(shorter)} == {("cogvideox-2b", 6.0), ("cogvideox-5b", 6.0)}
    assert all(records[place] == rows for place, rows in shorter.items())


def _lanes(part: tuple[str, float, range]) -> list[Any]:
    return zoo_build.lanes(*part)
