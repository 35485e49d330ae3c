"""The search on the solver's error: what it finds, what that depends on, and what is refused."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
import pytest
import solver_error_cells as shared
from oracles import scipy_search as oracle
from problems import Smooth
from solver_error_cells import EFFORT, NAMES, SAMPLES, SD, SD3, WEIGHTS, find, grid, small_family

from hso_jax import Hso, Lane, Schedule, SolverError, baseline, preset, search, search_many, solver_error
from hso_jax import solver_error_levels as lanes_module
from hso_jax import solver_error_method as method_module
from hso_jax.error import Chunks, error_data, in_chunks
from hso_jax.lower.quasi_newton import SPACING
from hso_jax.noise import lam_of_s, s_of_lam
from hso_jax.problems import family, generic
from hso_jax.schedule import Origin, Scores
from hso_jax.searches import checked
from hso_jax.solver_error_method import COMPARED, measure

DATA: dict[str, Any] = {"samples": SAMPLES, **shared.PLAIN}


def key(lane: Lane) -> tuple[Any, ...]:
    how: Any = lane.method
    return (lane.noise.name, *lane[1:4], how.solver, how.guidance, how.first)


@pytest.fixture(scope="module")
def found() -> dict[tuple[Any, ...], tuple[Lane, Schedule]]:
    lanes = grid()
    return {key(lane): (lane, s) for lane, s in zip(lanes, find(lanes), strict=True)}


@functools.cache
def chunks(start: float, guidance: float) -> Chunks:
    return in_chunks(error_data(start, guidance, problems=small_family(), **DATA), SAMPLES)


def error_of(schedule: Schedule, lane: Lane) -> float:
    """`solver_error` without solving exactly each time."""
    return measure(schedule, lane.method.solver, chunks(lane.noise.noise_end, lane.method.guidance))


def test_what_a_schedule_says_about_itself(found: Any) -> None:
    for lane, s in found.values():
        assert (s.nfe, s.layout, s.seed) == lane[1:4]
        assert (s.solver, s.guidance) == (lane.method.solver, lane.method.guidance)
        assert s.method == "solver-error" and s.model == lane.noise.name and s.noise == lane.noise.fingerprint()
        assert s.end == ("clean" if s.layout == "node" else "t_eps") and len(s.t) == lane.nodes
        assert s.result in ("converged", "max_steps") and np.isfinite(s.error)
        assert (s.mep, s.spf, s.psi) == (None, None, None)
        assert s.t[0] <= 1.0 and s.t[-1] >= float(lane.noise.t_min)
    assert np.mean([s.result == "converged" for _, s in found.values()]) > 0.5


def test_nodes_keep_their_distance_and_start(found: Any) -> None:
    for lane, s in found.values():
        assert np.all(-np.diff(s_of_lam(s.lams)) >= SPACING * (1 - 1e-3))
        if lane.method.first == "end":
            assert s.t[0] == 1.0
            assert s.lams[0] == -np.inf if lane.noise is SD3 else s.lams[0] == pytest.approx(lane.noise.noise_end)
        else:
            assert s_of_lam(s.lams[0]) <= min(s_of_lam(lane.noise.noise_end), 1.0 - 0.999 * SPACING) + 1e-6


@pytest.mark.parametrize(
    ("name", "first", "nfe", "ksigma"),
    [
        ("pixart-alpha", "auto", 1, 16.0),  # epsilon: 2.5 N^2, at least 16; its noise end is at 157
        ("pixart-alpha", "auto", 5, 62.5),
        ("pixart-alpha", "auto", 8, 157.4),
        ("pixart-alpha", "end", 2, 157.4),
        ("sd3-medium", "auto", 2, np.inf),
    ],
)
def test_the_first_node_of_epsilon_models(name: str, first: str, nfe: int, ksigma: float) -> None:
    schedule = search(preset(name), nfe, method=shared.method("ddim", first=first), effort=EFFORT)
    with np.errstate(over="ignore"):
        assert np.exp(-schedule.lams[0]) == pytest.approx(ksigma, rel=1e-3)


def test_the_error_is_that_of_sampling(found: Any) -> None:
    """`solver_error` of the schedule, which its own tests compare with plain sampling."""
    for i, (lane, s) in enumerate(found.values()):
        assert error_of(s, lane) == pytest.approx(s.error, rel=2e-4, abs=2e-6), key(lane)
        if i % 12 == 0:
            assert solver_error(s, lane.noise, problems=small_family(), **DATA) == error_of(s, lane)


def test_not_worse_than_its_own_starts_nor_than_rules(found: Any) -> None:
    for lane, s in found.values():
        rules = [baseline(name, lane.noise, lane.nfe, layout=lane.layout) for name in ("trailing", "karras")]
        if lane.method.first == "end" and lane.layout == "node":
            u, top = 1.0 - np.arange(lane.nodes) / lane.nodes, s_of_lam(lane.noise.noise_end)
            for shift in (1.5, 3.0):
                lams = lam_of_s(shift * u / (1.0 + (shift - 1.0) * u) * top)
                rules.append(Schedule.from_lams(lane.noise, [lane.noise.noise_end, *lams[1:]]))
        for rule in rules:
            assert s.error <= error_of(rule, lane) * (1 + 1e-3), (key(lane), rule.method)


def test_the_better_start_is_taken() -> None:
    """Each alone, as a start that is given, ends no lower than both; and one of them where both do."""
    both = search(SD, 4, method=shared.method("dpmpp-2m", 5.0), effort=EFFORT)
    u, top = 1.0 - np.arange(4) / 4, s_of_lam(SD.noise_end)
    alone = []
    for shift in (1.5, 3.0):
        lams = lam_of_s(np.append(top, shift * u[1:] / (1.0 + (shift - 1.0) * u[1:]) * min(top, 1.0 - SPACING)))
        start = Schedule.from_lams(SD, lams)
        alone.append(search(SD, 4, method=shared.method("dpmpp-2m", 5.0, start=start), effort=EFFORT).error)
    assert min(alone) == pytest.approx(both.error, rel=1e-3)


def test_one_compilation_for_all_lanes(found: Any) -> None:
    with shared.compilations() as programs:
        find([shared.lane(SD, 3, solver="unipc", seed=5), shared.lane(SD3, 2, "interval", "ddim", 5.0)])
    assert not programs


@pytest.mark.slow
def test_company_does_not_change_a_lane_s_bytes(found: Any) -> None:
    lanes = [shared.lane(noise, 4, "node", name, w) for noise in (SD, SD3) for name in NAMES for w in WEIGHTS]
    for lane, s in zip(lanes, find(lanes[::-1])[::-1], strict=True):
        first = found[key(lane)][1]
        assert s.t.tobytes() == first.t.tobytes() and s.error == first.error


def test_only_the_ends_of_the_noise_matter(found: Any) -> None:
    """SDXL has Stable Diffusion's noise; FLUX.1-schnell's flow differs from SD3's in its shift only."""
    for noise, twin in ((SD, preset("sdxl")), (SD3, preset("flux-schnell"))):
        lanes = [lane for lane, _ in found.values() if lane.noise is noise and lane.method.solver == "unipc-2"]
        for lane, s in zip(lanes, find([lane._replace(noise=twin) for lane in lanes]), strict=True):
            one = found[key(lane)][1]
            inside = s.t > float(twin.t_min) * 1.01
            inside &= one.t > float(noise.t_min) * 1.01
            np.testing.assert_allclose(s.lams[inside], one.lams[inside], rtol=0, atol=1e-9)
            assert s.model == twin.name and s.error == one.error


def test_other_solvers_are_told_and_advised(found: Any) -> None:
    (s,) = find([shared.lane(SD, 4, solver="ddim", compare=COMPARED)])
    assert sorted(s.others_same_nodes) == ["dpmpp-2m", "unipc-2", "unipc-3"]
    assert s.t.tobytes() == found[key(shared.lane(SD, 4, solver="ddim"))][1].t.tobytes()
    for name, error in s.others_same_nodes.items():
        wanted = solver_error(s, SD, solver=name, problems=small_family(), **DATA)
        assert error == pytest.approx(wanted, rel=1e-5)
    best = min(s.others_same_nodes, key=s.others_same_nodes.get)
    assert s.better_solver == (best if s.others_same_nodes[best] < 0.99 * s.error else None)


def test_advice_needs_one_percent() -> None:
    def better(**scores: Any) -> str | None:
        return Schedule.from_t(SD, [0.9, 0.2], origin=Origin(solver="ddim"), scores=Scores(**scores)).better_solver

    assert better(error=1.0, others_same_nodes={"a": 0.98, "b": 0.9, "c": 2.0}) == "b"
    assert better(error=1.0, others_same_nodes={"a": 0.995, "c": 2.0}) is None
    assert better(error=1.0) is None and better(others_same_nodes={"a": 0.1}) is None


def test_the_error_is_refused_where_it_means_nothing() -> None:
    s = baseline("trailing", SD, 4)
    with pytest.raises(ValueError, match=r"made for sd15, whose noise differs from sd3-medium's"):
        solver_error(s, SD3, solver="ddim")
    with pytest.raises(ValueError, match="say solver="):
        solver_error(s, SD)
    with pytest.raises(ValueError, match="solver is 'adams'"):
        solver_error(s, SD, solver="adams")
    with pytest.raises(ValueError, match=r"guidance is -1"):
        solver_error(s, SD, solver="ddim", guidance=-1.0)
    pure = Schedule.from_t(SD3, [1.0, 0.5])
    assert solver_error(pure, SD3, solver="heun", problems=small_family(), **DATA) == np.inf


def bad(**options: Any) -> dict[str, Any]:
    return {"method": SolverError(**options)}


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "solver": (bad(solver="adams"), "solver is 'adams'; use one of ddim"),
    "compared": (bad(compare=("ddim", "adams")), "solver is 'adams'; use one of ddim"),
    "method": ({"method": "best"}, "method is 'best'; use one of hso"),
    "refinement": (bad(refinement=None), r"refinement is None; need a Refinement"),
    "first": (bad(first="start"), "first is 'start'; use one of auto, end, free"),
    "negative guidance": (bad(guidance=-0.5), r"guidance is -0\.5"),
    "many nfe": (bad() | {"nfe": 1000}, r"nfe is 1000: 1000 nodes at least 0\.001 apart .* use at most \d+"),
    "start of another N": (bad(start=baseline("beta", SD, 5)), "start is for sd15, N = 5; the search is .* N = 4"),
    "start of another model": (bad(start=baseline("beta", SD3, 4)), "start is for sd3-medium"),
    "start of another layout": (bad(start=baseline("beta", SD, 4, layout="interval")), "layout is 'interval'"),
    "start's own": (bad(start=Hso(spacing=0.9)), r"spacing 0\.9 does not fit"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case: str) -> None:
    options, message = BAD[case]
    options = {"nfe": 4} | options
    with pytest.raises(ValueError, match=message):
        search(SD, **options)


@pytest.mark.parametrize("solver", ["heun", "unipc-2-bh1"])
def test_solvers_that_cannot_start_at_pure_noise(solver: str) -> None:
    instead = "heun-flow" if solver == "heun" else "unipc-2"
    with pytest.raises(ValueError, match=rf"solver '{solver}' cannot start .* sd3-medium ends; .*'{instead}'"):
        search(SD3, 4, method=SolverError(solver, first="end"))
    for noise, name, first in ((SD3, solver, "free"), (SD, solver, "end"), (SD3, instead, "end")):
        assert checked([Lane(noise, 4, method=SolverError(name, first=first))])[0].method.solver == name


def test_short_names_and_default_data() -> None:
    assert checked([Lane(SD, 4, method=SolverError("unipc", 7))])[0].method.solver == "unipc-2"
    with pytest.raises(ValueError, match="start is inf"):
        error_data(np.inf)
    assert shared.BATCH == method_module._CHUNK and family(range(1)).means.shape == (1, 32, 32)
    assert search_many([]) == []


@pytest.mark.slow
def test_one_evaluation_alone() -> None:
    """A lane of a single node has no gap: found alone, and at the model's end."""
    s = search(SD, 1, method=shared.method("ddim"), effort=EFFORT)
    assert len(s.t) == 1 and s.t[0] == 1.0 and np.isfinite(s.error)


@pytest.mark.slow
def test_a_failed_lane_leaves_the_others_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples of one guidance weight are NaN: its lane has nodes all the same, and the other lane its own."""
    real = lanes_module.error_data

    def broken(start: float, guidance: float = 1.0, **options: Any) -> Any:
        data = real(start, guidance, **options)
        return data._replace(truth=data.truth * np.nan) if guidance == 5.0 else data

    monkeypatch.setattr(lanes_module, "error_data", broken)
    lost, kept = find([shared.lane(SD, 4, "node", "ddim", w) for w in (5.0, 1.0)])
    assert lost.result == "not_finite" and lost.error is None and np.all(np.diff(lost.t) < 0) and len(lost.t) == 4
    assert kept.result != "not_finite" and np.isfinite(kept.error)


FOR_HSO: dict[str, tuple[dict[str, Any], str]] = {
    "one problem": ({"problems": generic(jax.random.key(0))}, r"shape \(32, 32\); need a leading axis"),
    "no samples": ({"samples": 0}, "samples is 0"),
    "odd samples": ({"samples": 40}, "samples is 40; need a multiple of 32"),
    "guidance": ({"guidance": -1.0}, r"guidance is -1\.0"),
}


@pytest.mark.parametrize("case", FOR_HSO)
def test_bad_options_are_named_before_hso_runs(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Hso, "search", lambda *_, **__: pytest.fail("HSO ran first"))
    options, message = FOR_HSO[case]
    with pytest.raises(ValueError, match=message):
        search(SD, 4, method=SolverError(start=Hso(), **options))


@pytest.mark.slow
def test_hso_s_schedule_refined_is_not_worse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its HSO part is tested elsewhere: here it is SciPy's minimiser between HSO's ends."""
    hso = Schedule.from_t(SD, oracle.minimise_mep(Smooth(SD), 0.98, 0.03, 3).t, origin=Origin(method="hso"))
    monkeypatch.setattr(Hso, "search", lambda self, lanes, *_: [hso for _ in lanes])
    found = search(SD, 4, method=shared.method("ddim", start=Hso()), effort=EFFORT)
    assert found.method == "solver-error" and found.nfe == 4
    assert found.error <= solver_error(hso, SD, solver="ddim", problems=small_family(), **DATA)
    assert found.error == pytest.approx(solver_error(found, SD, problems=small_family(), **DATA), rel=1e-4)


def test_a_schedule_that_is_given_is_refined_beside_another() -> None:
    starts = [Schedule.from_t(SD, np.linspace(1.0, low, 4)) for low in (0.05, 0.2)]
    lanes = [Lane(SD, 4, method=shared.method("ddim", start=start)) for start in starts]
    for start, found in zip(starts, search_many(lanes, effort=EFFORT), strict=True):
        assert found.error <= solver_error(start, SD, solver="ddim", problems=small_family(), **DATA) * (1 + 1e-6)
