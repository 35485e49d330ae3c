"""The zoo: looked up, complete, found again by the builder; the errors of rules, measured again and between shifts."""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from marks import slow_but

from benchmarks.zoo import build, rules
from hso_jax import NoiseSchedule, Schedule, baseline, preset, search, solver_error
from hso_jax.hso import Hso
from hso_jax.noise import PRESETS, discrete, edm, first_lam, flow
from hso_jax.problems import ModelError
from hso_jax.shipped import zoo as zoo_module
from hso_jax.shipped.zoo import (
    HSO,
    MAX_NFE,
    NONSTATIONARY_NFE,
    RULES,
    RULES_FILE,
    SHIFTS,
    SOLVERS,
    ZOO_FILE,
    rule_errors,
    rules_key,
    shift_of,
    shipped_guidance,
    shipped_text,
    zoo,
    zoo_key,
)
from hso_jax.solvers import NONSTATIONARY


def every_cell() -> Iterator[tuple[str, str, float]]:
    """One preset for each key and weight: the others read the same entries."""
    for presets in build.presets_by_key().values():
        for name, weight in presets:
            for solver in SOLVERS:
                yield name, solver, weight


@functools.cache
def shipped(name: str, nfe: int, solver: str, weight: float) -> Schedule:
    """One cell of the file, looked up once for all tests."""
    return zoo(_noise(name), nfe, solver, guidance=weight)


@functools.cache
def _noise(name: str) -> NoiseSchedule:
    return preset(name)


@pytest.mark.parametrize("file", [ZOO_FILE, RULES_FILE])
def test_the_shipped_bytes_are_the_checked_ones(file: str) -> None:
    wanted = shipped_text(file.replace(".json", ".sha256")).split()[0]
    assert hashlib.sha256(shipped_text(file).encode()).hexdigest() == wanted


@pytest.mark.slow
def test_every_preset_solver_and_nfe_is_there() -> None:
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


def test_presets_of_one_key_share_their_schedules() -> None:
    firsts = {key: presets[0][0] for key, presets in build.presets_by_key().items()}
    for name, entry in PRESETS.items():
        first = firsts[zoo_key(preset(name))]
        mine, its = zoo(name, 6), zoo(first, 6, guidance=entry.guidance)
        assert (mine.model, mine.guidance, mine.solver, mine.error) == (name, entry.guidance, its.solver, its.error)
        np.testing.assert_allclose(mine.lams, its.lams, rtol=0, atol=5e-4)


@pytest.mark.slow
def test_more_evaluations_are_no_worse_up_to_ten() -> None:
    """A schedule with a node more can do nearly what the one before does. Beyond ten the landscape is rough."""
    worse = []
    for name, solver, weight in every_cell():
        errors = np.array([shipped(name, nfe, solver, weight).error for nfe in range(1, 11)])
        rise = errors[1:] / np.minimum.accumulate(errors)[:-1]
        worse += [(name, solver, weight, n + 2, round(float(x), 3)) for n, x in enumerate(rise) if x > 1.005]
    assert not worse, worse


def test_records_are_searches_that_ended_well() -> None:
    rows_by_key = json.loads(shipped_text(ZOO_FILE))["shelves"]
    assert [(*row["ends"], row["unbounded"]) for row in rows_by_key] == list(build.presets_by_key())
    results = []
    for row in rows_by_key:
        for entries in row["guidance"].values():
            assert tuple(entries) == (*SOLVERS, NONSTATIONARY)
            for solver in SOLVERS:
                assert list(entries[solver]) == [str(n) for n in range(1, MAX_NFE + 1)]
            for rows in entries.values():
                results += [e["result"] for e in rows.values()]
                for nfe, entry in rows.items():
                    assert len(entry["lams"]) == int(nfe) - 1 and np.all(np.diff(entry["lams"]) > 0)
    assert set(results) <= {"converged", "max_steps"}


@pytest.mark.slow
def test_a_small_part_is_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The builder's own search; padded to three nodes instead of eight, and one solver alone."""
    monkeypatch.setattr(build, "SOLVERS", ("ddim",))
    for record in build.search_known("sd15", 1.0, build.Stage(range(1, 4), build.STAGES[0].steps), []):
        shipped = zoo("sd15", record["nfe"], "ddim", guidance=1.0)
        np.testing.assert_allclose(record["lams"], shipped.lams[1:], rtol=0, atol=2e-3)
        assert record["error"] == pytest.approx(shipped.error, rel=1e-3)


def test_starts_are_smooth_and_stretched_along_their_curve() -> None:
    noise = preset("edm-cifar10")
    start = build.smooth(noise, 8)
    longer = build.stretched(noise, start.lams.tolist(), 16)
    assert longer.lams[0] == start.lams[0] == noise.noise_end
    np.testing.assert_allclose(longer.lams[2::2], start.lams[1:], atol=1e-6)
    for one in (
        start,
        longer,
        build.stretched(preset("flux-dev"), build.smooth(preset("flux-dev"), 5).lams.tolist(), 12),
    ):
        gaps = np.diff(one.lams[np.isfinite(one.lams)])
        assert gaps.min() > 0 and np.abs(np.diff(np.log(gaps))).max() < np.log(3.0)


@pytest.mark.slow
def test_neighbouring_gaps_and_second_nodes_are_smooth() -> None:
    """Of six models, three solvers and N = 5..12, in 95%: no ratio above 2.5, and no second node that turns cleaner."""
    smooth = []
    for name in ("sd15", "sdxl", "pixart-alpha", "edm-cifar10", "flux-dev", "sd35-large"):
        for solver in ("dpmpp-2m", "unipc-3", NONSTATIONARY):
            for nfe in range(5, 13):
                lams, before = zoo(name, nfe, solver).lams, zoo(name, nfe - 1, solver).lams
                ratios = np.abs(np.diff(np.log(np.diff(lams[np.isfinite(lams)]))))
                smooth.append(ratios.max() <= np.log(2.5) and lams[1] <= before[1] + 1e-6)
    assert len(smooth) == 144 and np.mean(smooth) >= 0.95


@pytest.mark.slow
def test_coefficients_are_worth_it_and_measured_again() -> None:
    """Below every known solver by the threshold, and as far off as it says on the problems, computed anew."""
    cells = [(n, w, k) for n, w in dict.fromkeys((n, w) for n, _, w in every_cell()) for k in NONSTATIONARY_NFE]
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


def test_without_a_solver_the_best_is_returned() -> None:
    for name, nfe in (("sdxl", 6), ("flux-dev", 8), ("sd15", 20)):
        best = zoo(name, nfe)
        assert best.error == min(zoo(name, nfe, s).error for s in (*SOLVERS, best.solver))
        assert best.error <= min(best.others_own_nodes.values()) and not best.others_same_nodes
        ddim = zoo(name, nfe, "ddim")
        assert ddim.others_own_nodes[ddim.better_solver] == best.error < ddim.error


@functools.cache
def made_up() -> str:
    """A document by the builder from made-up records: errors name their cell, lams are evenly spaced."""
    records: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for i, presets in enumerate(build.presets_by_key().values()):
        for name, weight in presets:
            records[name, weight] = [
                {
                    **{"solver": solver, "nfe": n, "result": "converged"},
                    "lams": [round(float(x), 5) for x in np.linspace(-2.5, 2.0, n + 2)[2:-1]],
                    "error": round(1.0 / n + 0.01 * j + 0.001 * weight + 0.0001 * i, 6),
                }
                for j, solver in enumerate(SOLVERS)
                for n in range(1, MAX_NFE + 1)
            ]
    return build.assemble(records)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """The library reads the made-up document; this is it."""
    monkeypatch.setattr(zoo_module, "shipped_text", lambda file: made_up())
    forget()
    yield json.loads(made_up())
    forget()


def forget() -> None:
    zoo_module._document.cache_clear()
    zoo_module._schedules.cache_clear()


def test_look_up(small: dict[str, Any]) -> None:
    assert (small["format"], small["version"]) == ("hso-jax/zoo", 2) and "jax" in small["versions"]
    keys = list(build.presets_by_key())
    for name, solver, weight in every_cell():
        noise = _noise(name)
        for nfe in (1, 7, 20):
            s = zoo(noise, nfe, solver, guidance=weight)
            place = keys.index(zoo_key(noise))
            at = {x: 1.0 / nfe + 0.01 * j + 0.001 * weight + 0.0001 * place for j, x in enumerate(SOLVERS)}
            assert s.error == pytest.approx(at.pop(solver), abs=2e-6) and s.others_own_nodes == pytest.approx(
                at, abs=2e-6
            )
            assert (s.model, s.nfe, s.solver, s.guidance, s.layout) == (name, nfe, solver, weight, "node")
            assert s.noise == noise.fingerprint()
            np.testing.assert_allclose(s.lams[1:], np.linspace(-2.5, 2.0, nfe + 2)[2:-1], rtol=0, atol=2e-4)
            assert s.lams[0] == pytest.approx(first_lam(noise, nfe), abs=1e-6)


def test_defaults_and_other_names(small: dict[str, Any]) -> None:
    assert zoo("sd15", 4, "dpmpp-2m").guidance == 7.5 and zoo("sd15", 4, "dpmpp-2m").solver == "dpmpp-2m"
    assert zoo(preset("sd15"), 4, "dpmpp-2m").guidance == 1.0  # a noise schedule alone says nothing of guidance
    assert zoo("sdxl", 4, "unipc").solver == "unipc-2" and zoo("sdxl", 4, "unipc-2").guidance == 5.0
    assert zoo("sdxl", 4, "dpmpp-2m", guidance=7.5).error == zoo("sd15", 4, "dpmpp-2m").error  # one noise, one key
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
        (("sd15", 21), r"nfe is 21; the zoo has N = 1 to 20; use search\(.*SolverError\(guidance=7\.5"),
        (("sd15", 21, "unipc"), r"nfe is 21; the zoo has N = 1 to 20; use search\(.*solver='unipc', guidance=7\.5"),
        (("sd15", 13, NONSTATIONARY), r"nfe is 13; the zoo has N = 2 to 12 of 'nonstationary'"),
        (("sd15", 4.0), r"nfe is 4\.0"),
        (
            (edm(0.01, 70.0), 4),
            "nothing is shipped for edm: no preset has its noise range and prediction type; use search",
        ),
        (("sd15", 4, None, 3.0), r"guidance 3 is not in the zoo for sd15 \(1, 5, 7\.5\); use search.*=3\)"),
        (("edm-cifar10", 4, None, 7.0), r"guidance 7 is not in the zoo for edm-cifar10 \(1\)"),
    ],
)
def test_what_is_not_shipped(call: tuple[Any, ...], message: str, small: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=message):
        zoo(*call[:3], guidance=call[3] if len(call) > 3 else None)


def test_parts_and_stages_cover_every_cell_once() -> None:
    places = list(build.parts())
    weights = {key: [w for _, w in presets] for key, presets in build.presets_by_key().items()}
    assert len(places) == len(set(places)) == sum(map(len, weights.values()))
    assert [n for stage in build.STAGES for n in stage.budgets] == list(range(1, MAX_NFE + 1))
    for name, entry in PRESETS.items():
        assert {1.0, entry.guidance} <= set(weights[zoo_key(preset(name))])


def test_what_the_file_has_is_kept(small: dict[str, Any]) -> None:
    """A new key or weight is searched alone, and the text of the others does not change."""
    content = zoo_module.shipped_text(ZOO_FILE)
    records = build.found_in(content)
    assert build.assemble(records) == content and not list(build.parts(records))
    for row in small["shelves"]:
        row["guidance"].pop("6", None)
    shorter = build.found_in(json.dumps(small))
    assert set(build.parts(shorter)) == {("cogvideox-2b", 6.0), ("cogvideox-5b", 6.0)}
    assert all(records[place] == rows for place, rows in shorter.items())


def test_everything_in_the_zoo_has_rules() -> None:
    for name in PRESETS:
        noise = preset(name)
        for weight in shipped_guidance(noise):
            for solver in SOLVERS:
                for nfe in (1, 6, MAX_NFE):
                    found = rule_errors(noise, nfe, weight, solver)
                    assert {"trailing", "karras", "beta-t"} <= set(found) <= {*RULES, HSO}, (name, weight, nfe)
                    assert (HSO in found) == (noise.kind != "flow" or rules_key(noise)[-1] in SHIFTS)
                    assert all(0 < error < 1e3 for error in found.values())
                    assert ("ays" in found) == (noise.kind == "vp") and ("ays-svd" in found) == (noise.kind == "ve")


MEASURED = [
    ("sdxl", "trailing", 6, 5.0, "ddim"),
    ("sd15", "karras", 4, 7.5, "dpmpp-2m"),
    ("pixart-alpha", "ays", 10, 4.5, "unipc-3"),
    ("sd3-medium", "beta-t", 8, 7.0, "unipc-2"),
    ("edm-cifar10", "ays-svd", 6, 1.0, "dpmpp-2m"),
]


@pytest.mark.parametrize(("model", "rule", "nfe", "guidance", "solver"), slow_but(MEASURED[:1], MEASURED))
def test_a_rule_s_error_is_measured_again(model: str, rule: str, nfe: int, guidance: float, solver: str) -> None:
    noise = preset(model)
    again = solver_error(baseline(rule, noise, nfe), noise, solver=solver, guidance=guidance)
    assert rule_errors(noise, nfe, guidance, solver)[rule] == pytest.approx(again, rel=2e-3)


def test_between_two_shifts_errors_are_interpolated() -> None:
    """FLUX's shift is 3.16 and Wan's 5: neither is measured."""
    for shift in (3.158, 5.0):
        noise = flow(shift)
        assert min(abs(shift_of(noise) - x) for x in SHIFTS) > 0.1
        for rule in ("trailing", "beta-t"):
            again = solver_error(baseline(rule, noise, 6), noise, solver="dpmpp-2m", guidance=1.0)
            assert rule_errors(noise, 6, 1.0, "dpmpp-2m")[rule] == pytest.approx(again, rel=0.03), (shift, rule)


def test_nothing_is_said_of_what_was_not_measured() -> None:
    assert rule_errors(flow(50.0), 6, 1.0, "ddim") == {}  # past the last shift
    assert rule_errors(preset("sdxl"), 6, 3.0, "ddim") == {}  # no such weight
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    assert rule_errors(discrete(np.cumprod(1.0 - betas * np.linspace(0.99, 1.01, 1000))), 6, 1.0, "ddim") == {}


@pytest.mark.slow
def test_hso_s_schedule_is_the_search_s() -> None:
    found = search("sdxl", 6, method=Hso(relax=True))
    kept = [
        row[HSO][5]
        for row in json.loads(shipped_text(RULES_FILE))["rows"]
        if np.allclose(row[HSO][5], found.lams, atol=2e-3)
    ]
    assert kept
    error = solver_error(found, preset("sdxl"), solver="ddim", guidance=5.0)
    assert rule_errors(preset("sdxl"), 6, 5.0, "ddim")[HSO] == pytest.approx(error, rel=1e-3)
    assert HSO not in rule_errors(flow(3.1), 6, 1.0, "ddim")


def test_a_complete_rules_file_is_written_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command writes the file again, to the byte, where nothing is missing."""
    target = tmp_path / "rules.json"
    target.write_text(shipped_text(RULES_FILE), encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["rules", "--work", str(tmp_path / "work"), "-o", str(target)])
    rules.main()
    assert target.read_text(encoding="utf-8") == shipped_text(RULES_FILE)
    rows = json.loads(shipped_text(RULES_FILE))["rows"]
    assert [rules._key(row) for row in rows] == [rules_key(noise) for noise in rules.noises()]
