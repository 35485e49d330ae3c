"""The search on the reference error: what it finds, what that depends on, and what is refused."""

from __future__ import annotations

import functools
import importlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_cells as shared
from problems import Smooth
from reference_cells import EFFORT, NAMES, SAMPLES, SD, SD3, WEIGHTS, deviations, find, grid, small_family
from scipy import optimize

from benchmarks import scipy_reference as oracle
from hso_jax import Effort, ReferenceEffort, Schedule, baseline, preset, reference_error, search
from hso_jax.problems import denoiser, family, generic, pick
from hso_jax.reference import ReferenceLane, reference_schedules
from hso_jax.reference import reference as reference_data
from hso_jax.reference.data import Chunks, in_chunks
from hso_jax.reference.lanes import SPACING, check, s_of_lam
from hso_jax.reference.schedules import _error
from hso_jax.reference.search import program
from hso_jax.solvers import sample

DATA: dict[str, Any] = {"samples": SAMPLES}
Found = dict[ReferenceLane, Schedule]


def key(lane: ReferenceLane) -> tuple[Any, ...]:
    return (lane.noise.name, *lane[1:])


@pytest.fixture(scope="module")
def found() -> dict[tuple[Any, ...], tuple[ReferenceLane, Schedule]]:
    lanes = grid()
    return {key(lane): (lane, s) for lane, s in zip(lanes, find(lanes), strict=True)}


@functools.cache
def chunks(noise_end: float, guidance: float) -> Chunks:
    return in_chunks(reference_data(noise_end, guidance, problems=small_family(), **DATA), SAMPLES)


def error_of(schedule: Schedule, lane: ReferenceLane) -> float:
    """`reference_error` without solving exactly each time."""
    return _error(schedule, lane.solver, chunks(lane.noise_end, lane.guidance))


def test_what_a_schedule_says_about_itself(found: Any) -> None:
    for lane, s in found.values():
        assert (s.nfe, s.layout, s.solver, s.guidance, s.seed) == (*lane[1:5], 0)
        assert s.method == "reference" and s.model == lane.noise.name and s.noise == lane.noise.fingerprint()
        assert s.end == ("clean" if s.layout == "node" else "t_eps") and len(s.t) == lane.nodes
        assert s.result in ("converged", "max_steps") and np.isfinite(s.error)
        assert (s.mep, s.spf) == (None, None)
        assert s.t[0] <= 1.0 and s.t[-1] >= float(lane.noise.t_min)
        assert s.psi is None or s.psi["ksigma_min"] < s.psi["ksigma_max"]
    assert np.mean([s.result == "converged" for _, s in found.values()]) > 0.5


def test_nodes_keep_their_distance_and_start_where_they_were_told(found: Any) -> None:
    for lane, s in found.values():
        assert np.all(-np.diff(s_of_lam(s.lams)) >= SPACING * (1 - 1e-3))
        if lane.first == "end":
            assert s.t[0] == 1.0
            assert s.lams[0] == -np.inf if lane.noise is SD3 else s.lams[0] == pytest.approx(lane.noise_end)
        else:
            assert s_of_lam(s.lams[0]) <= min(s_of_lam(lane.noise_end), 1.0 - 0.999 * SPACING) + 1e-6


def test_the_error_is_that_of_sampling(found: Any) -> None:
    """`reference_error` of the schedule, and plain `solvers.sample` of those with four nodes."""

    @functools.partial(jax.jit, static_argnames="solver")
    def of_one(problem: Any, lams: jax.Array, noise: jax.Array, weight: float, end: float, solver: str) -> jax.Array:
        return sample(denoiser(problem, weight), lams, noise, solver=solver, end=end)

    for i, (lane, s) in enumerate(found.values()):
        assert error_of(s, lane) == pytest.approx(s.error, rel=2e-4, abs=2e-6), key(lane)
        if i % 12 == 0:
            assert reference_error(s, lane.noise, problems=small_family(), **DATA) == error_of(s, lane)
        if lane.nfe != 4:
            continue
        data, squares = chunks(lane.noise_end, lane.guidance), []
        for problem, noise, truth in zip(data.problem, data.noise, data.truth, strict=True):
            mixture = pick(data.problems, int(problem))
            end = np.inf if s.end == "clean" else s.lams[-1]
            rest = (np.float32(lane.guidance), np.float32(end), s.solver)
            error = of_one(mixture, s.lams[:4].astype(np.float32), noise, *rest) - truth
            squares.append(np.mean((error / deviations()[problem]) ** 2))
        assert s.error == pytest.approx(np.sqrt(np.mean(squares)), rel=2e-4)


def test_not_worse_than_its_own_start_nor_than_rules(found: Any) -> None:
    """The start is SciPy's minimiser of MEP at the psi that the result names."""
    begun = 0
    for lane, s in found.values():
        rules = [baseline(name, lane.noise, lane.nfe, layout=lane.layout) for name in ("trailing", "karras")]
        if s.psi is not None and lane.noise is SD and lane.nodes == 4:
            smooth = Smooth(lane.noise)
            start = oracle.minimise_mep(smooth, s.psi["t_max"], s.psi["t_eps"], lane.nodes - 1, s.psi["p"])
            rules.append(Schedule.from_t(lane.noise, start.t, layout=lane.layout))
            begun += 1
        for rule in rules:
            assert s.error <= error_of(rule, lane) * (1 + 1e-3), (key(lane), rule.method)
    assert begun >= 3


def test_the_family_s_own_schedule_is_mep_s_minimiser_and_not_better(found: Any) -> None:
    options: dict[str, Any] = {"effort": EFFORT, "problems": small_family(), "compare": False, **DATA}
    family_s = search(SD, 4, method="reference", objective="mep", solver="ddim", **options)
    again = search(SD, 4, objective="mep", fitness="reference", solver="ddim", **options)
    assert family_s.t.tobytes() == again.t.tobytes() and family_s.method == "mep/reference"
    psi = family_s.psi
    wanted = oracle.minimise_mep(Smooth(SD), psi["t_max"], psi["t_eps"], 3, psi["p"])
    np.testing.assert_allclose(family_s.t, wanted.t, rtol=0, atol=2e-3)
    _, refined = found[key(ReferenceLane(SD, 4, solver="ddim"))]
    assert refined.error <= family_s.error * (1 + 1e-6)


def test_one_compilation_for_all_lanes(found: Any) -> None:
    search_of_all = program(tuple(jax.devices()), NAMES, "reference", EFFORT)
    before = search_of_all._cache_size()
    find([ReferenceLane(SD, 3, solver="unipc", seed=5), ReferenceLane(SD3, 2, "interval", "ddim", 5.0, first="end")])
    assert search_of_all._cache_size() == before == 1


def test_the_same_seed_gives_the_same_bytes_in_any_company(found: Any) -> None:
    lanes = [ReferenceLane(noise, 4, solver=name, guidance=w) for noise in (SD, SD3) for name in NAMES for w in WEIGHTS]
    again = find(lanes[::-1])[::-1]
    seeds = find([lane._replace(seed=7) for lane in lanes])
    for lane, s, other in zip(lanes, again, seeds, strict=True):
        first = found[key(lane)][1]
        assert s.t.tobytes() == first.t.tobytes() and s.error == first.error and s.psi == first.psi
        assert other.seed == 7
    errors = np.array([[found[key(lane)][1].error, s.error] for lane, s in zip(lanes, seeds, strict=True)])
    assert np.any(errors[:, 0] != errors[:, 1])
    np.testing.assert_allclose(errors[:, 1], errors[:, 0], rtol=0.1)


def test_only_the_ends_of_the_noise_matter(found: Any) -> None:
    """SDXL has Stable Diffusion's noise; FLUX.1-schnell's flow differs from SD3's in its shift only."""
    for noise, twin in ((SD, preset("sdxl")), (SD3, preset("flux-schnell"))):
        lanes = [lane for lane, _ in found.values() if lane.noise is noise and lane.solver == "unipc-2"]
        for lane, s in zip(lanes, find([lane._replace(noise=twin) for lane in lanes]), strict=True):
            one = found[key(lane)][1]
            inside = s.t > float(twin.t_min) * 1.01
            inside &= one.t > float(noise.t_min) * 1.01
            np.testing.assert_allclose(s.lams[inside], one.lams[inside], rtol=0, atol=1e-9)
            assert s.model == twin.name and s.error == one.error


def test_float64_alone_agrees_with_float32_in_company(found: Any) -> None:
    """One solver and model a call, as `search` makes them; and SciPy finds nothing better nearby."""
    calls: list[tuple[int, int]] = []
    with jax.enable_x64(True):
        alone = search(
            SD, [2, 4], method="reference", solver="ddim", effort=EFFORT, problems=small_family(), compare=False,
            progress=lambda done, total: calls.append((done, total)), **DATA,
        )  # fmt: skip
        for s in alone:
            (best, value), start = polished(s), s_of_lam(s.lams[1:])
            assert s.error == pytest.approx(np.sqrt(value(start)), rel=1e-6)
            assert value(best) >= value(start) * (1 - 1e-3)
    assert calls == [(2, 2)]
    for s in alone:
        _, single = found[key(ReferenceLane(SD, s.nfe, solver="ddim"))]
        assert s.result == single.result == "converged"
        np.testing.assert_allclose(s.t, single.t, rtol=0, atol=1e-3)
        assert s.error == pytest.approx(single.error, rel=1e-4)


def polished(s: Schedule) -> tuple[np.ndarray, Any]:
    """SciPy's minimiser in s from a schedule's nodes after the first, and the mean squared error that it minimises."""
    data = reference_data(ReferenceLane(SD, 1).noise_end, s.guidance, problems=small_family(), **DATA)

    @jax.jit
    def mean_square(nodes: jax.Array) -> jax.Array:
        def one(problem: Any, noise: jax.Array) -> jax.Array:
            lams = jnp.concatenate([s.lams[:1], jnp.log1p(-nodes) - jnp.log(nodes)])
            return sample(denoiser(problem, data.guidance), lams, noise, solver=s.solver)

        error = jax.vmap(one)(data.problems.mixtures, data.noise) - data.truth
        return jnp.mean((error / deviations()[:, None, None]) ** 2)

    def value(nodes: np.ndarray) -> float:
        return float(mean_square(jnp.asarray(nodes)))

    return optimize.minimize(value, s_of_lam(s.lams[1:]), method="Nelder-Mead", options={"xatol": 1e-7}).x, value


def test_other_solvers_are_told_and_advised(found: Any) -> None:
    (s,) = find([ReferenceLane(SD, 4, solver="ddim")], compare=True)
    assert sorted(s.others) == ["dpmpp-2m", "unipc-2", "unipc-3"]
    assert s.t.tobytes() == found[key(ReferenceLane(SD, 4, solver="ddim"))][1].t.tobytes()
    for name, error in s.others.items():
        assert error == reference_error(s, SD, solver=name, problems=small_family(), **DATA)
    best = min(s.others, key=s.others.get)
    assert s.better_solver == (best if s.others[best] < 0.99 * s.error else None)


def test_advice_needs_one_percent() -> None:
    make = functools.partial(Schedule.from_t, SD, [0.9, 0.2], solver="ddim")
    assert make(error=1.0, others={"a": 0.98, "b": 0.9, "c": 2.0}).better_solver == "b"
    assert make(error=1.0, others={"a": 0.995, "c": 2.0}).better_solver is None
    assert make(error=1.0).better_solver is None and make(others={"a": 0.1}).better_solver is None


def test_hso_s_schedule_refined_is_not_worse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its HSO part is tested elsewhere: here it is SciPy's minimiser between HSO's ends."""
    best = oracle.minimise_mep(Smooth(SD), 0.98, 0.03, 3)
    hso = Schedule.from_t(SD, best.t, method="hso")
    monkeypatch.setattr(importlib.import_module("hso_jax.search"), "search_many", lambda many, **_: [hso for _ in many])
    options: dict[str, Any] = {"problems": small_family(), "samples": 32}
    refined = search(SD, 4, objective="reference", fitness="spf", solver="ddim", compare=False, **options)
    before = reference_error(hso, SD, solver="ddim", **options)
    assert refined.result == "converged" and refined.psi is None and refined.nfe == 4
    assert refined.error <= before
    assert refined.error == pytest.approx(reference_error(refined, SD, **options), rel=1e-4)


def test_reference_error_is_refused_where_it_means_nothing() -> None:
    s = baseline("trailing", SD, 4)
    with pytest.raises(ValueError, match=r"made for sd15, whose noise differs from sd3-medium's"):
        reference_error(s, SD3, solver="ddim")
    with pytest.raises(ValueError, match="say solver="):
        reference_error(s, SD)
    with pytest.raises(ValueError, match="solver is 'euler'"):
        reference_error(s, SD, solver="euler")
    with pytest.raises(ValueError, match=r"guidance is -1"):
        reference_error(s, SD, solver="ddim", guidance=-1.0)
    pure = Schedule.from_t(SD3, [1.0, 0.5])
    assert reference_error(pure, SD3, solver="heun", problems=small_family(), **DATA) == np.inf


REFERENCE: dict[str, Any] = {"method": "reference"}
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "solver": (REFERENCE | {"solver": "euler"}, "solver is 'euler'; use one of ddim"),
    "method": ({"method": "best"}, "method is 'best'; use one of hso"),
    "objective": ({"objective": "error"}, "objective is 'error'; use one of mep"),
    "fitness": ({"fitness": "fid"}, "fitness is 'fid'; use one of spf, reference"),
    "first": (REFERENCE | {"first": "start"}, "first is 'start'; use one of end, free"),
    "layout": (REFERENCE | {"layout": "both"}, "layout is 'both'; use one of node, interval"),
    "negative guidance": (REFERENCE | {"guidance": -0.5}, r"guidance is -0\.5"),
    "nan guidance": (REFERENCE | {"guidance": float("nan")}, "guidance is nan"),
    "infinite guidance": (REFERENCE | {"guidance": float("inf")}, "guidance is inf"),
    "bool guidance": (REFERENCE | {"guidance": True}, "guidance is True"),
    "text guidance": (REFERENCE | {"guidance": "7.5"}, r"guidance is '7\.5'"),
    "nfe 0": (REFERENCE | {"nfe": 0}, "nfe is 0"),
    "half nfe": (REFERENCE | {"nfe": 4.5}, r"nfe is 4\.5"),
    "no nfe": (REFERENCE | {"nfe": []}, "nfe is empty"),
    "many nfe": (REFERENCE | {"nfe": 1000}, r"nfe is 1000: 1000 nodes at least 0\.001 apart .* use at most \d+"),
    "seed": (REFERENCE | {"seed": -1}, "seed is -1"),
    "float seed": (REFERENCE | {"seed": 1.0}, r"seed is 1\.0"),
    "hso effort": (REFERENCE | {"effort": Effort()}, r"effort is Effort\(.*takes ReferenceEffort"),
    "reference effort": ({"effort": ReferenceEffort()}, r"effort is ReferenceEffort\(.*takes Effort"),
    "p": (REFERENCE | {"p": 2.0}, "p: not an option of fitness 'reference'"),
    "relax": (REFERENCE | {"relax": True, "box": None}, "relax, box: not an option of fitness 'reference'"),
    "solver with hso": ({"solver": "ddim"}, "solver: not an option of objective 'mep' with fitness 'spf'"),
    "samples with hso": ({"samples": 8}, "samples: not an option"),
    "bad solver with hso": ({"objective": "reference", "solver": "euler"}, "solver is 'euler'"),
    "one problem": (REFERENCE | {"problems": generic(jax.random.key(0))}, r"shape \(32, 32\); need a leading axis"),
    "no samples": (REFERENCE | {"samples": 0}, "samples is 0"),
    "odd samples": (REFERENCE | {"samples": 40}, "samples is 40; need a multiple of 32"),
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
        search(SD3, 4, method="reference", solver=solver, first="end")
    for noise, name, first in ((SD3, solver, "free"), (SD, solver, "end"), (SD3, instead, "end")):
        assert check(ReferenceLane(noise, 4, solver=name, first=first)).solver == name


def test_short_names_and_default_data() -> None:
    assert check(ReferenceLane(SD, 4, solver="unipc", guidance=7)).solver == "unipc-2"
    with pytest.raises(ValueError, match="start is inf"):
        reference_data(np.inf)
    assert shared.BATCH == 16 and family(range(1)).means.shape == (1, 32, 32)
    assert reference_schedules([]) == []
