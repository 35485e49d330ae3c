"""The search against the measured reference search, SciPy's minimum at each psi, and what it promises."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from oracles import scipy_search as reference
from problems import EFFORT, KINKED, SD, filled

from hso_jax import Effort, Hso, Lane, Schedule, lanes, preset, search, search_many
from hso_jax.hso import SPACING_AS, Box
from hso_jax.lower.trust_region import spread
from hso_jax.mep_spf import paper_d_min
from hso_jax.noise import PRESETS

Key = tuple[int, str, str]
GOLDENS = json.loads((Path(__file__).parent.parent / "data" / "reference_search.json").read_text())["results"]
SLOPPY = (16, "node")  # its reference value rests on an inner solver that stopped early


def oracle_spf(t: np.ndarray, nfe: int) -> float:
    return reference.spf(KINKED.lam(t), t, nfe)


@pytest.mark.parametrize("golden", GOLDENS, ids=lambda g: f"{g['nfe']}-{g['layout']}")
def test_never_worse_than_the_reference_search(golden: dict[str, Any], sd_search: dict[Key, Schedule]) -> None:
    nfe, layout = golden["nfe"], golden["layout"]
    constraint, penalty = (sd_search[nfe, layout, kind] for kind in SPACING_AS)
    value = oracle_spf(constraint.t, nfe)
    assert constraint.spf == pytest.approx(value, rel=1e-6)  # linear against cubic between the levels
    assert value <= golden["F"] * (1 + 1e-6)
    if golden["penalty"] > 0:
        assert value < 0.99 * golden["F"]
    assert constraint.result == penalty.result == "converged"
    assert constraint.min_spacing >= paper_d_min(nfe) - 1e-12
    bound = golden["F"]
    if (nfe, layout) == SLOPPY:
        # MEP's own minimiser at the reference's psi scores worse than the point its solver stopped at.
        exact = reference.minimise_mep(KINKED, golden["t_max"], golden["t_eps"], nfe - 1)
        bound = oracle_spf(exact.t, nfe)
        assert bound > golden["F"]
    assert oracle_spf(penalty.t, nfe) <= bound * (1 + 1e-6)


def test_every_schedule_is_scipy_s_minimum_at_its_psi(sd_search: dict[Key, Schedule]) -> None:
    for (nfe, layout, kind), s in list(sd_search.items())[::3]:
        spacing = s.origin.d_min if kind == "constraint" else 0.0
        t_max, t_eps = s.t[0], s.t[-1]
        intervals = len(s.t) - 1
        best = reference.minimise_mep(
            KINKED, t_max, t_eps, intervals, spacing=min(spacing, (t_max - t_eps) / intervals)
        )
        # Linear against cubic between the levels, and the float32 margin of the gaps (2e-6 of t).
        assert s.mep == pytest.approx(best.mep, rel=2e-5), (nfe, layout, kind)


def test_what_a_schedule_says_about_itself(sd_search: dict[Key, Schedule]) -> None:
    for (nfe, layout, _), s in sd_search.items():
        assert (s.nfe, s.layout, s.method, s.model, s.seed, s.origin.p) == (nfe, layout, "hso", "sd", 0, 2.0)
        assert s.end == ("clean" if layout == "node" else "t_eps")
        assert len(s.t) == nfe + (layout == "interval") and len(s.timesteps) == nfe
        assert s.t[0] == s.psi["t_max"] and s.t[-1] == s.psi["t_eps"]
        assert Box().t_eps[0] <= s.t[-1] <= Box().t_eps[1] and Box().t_max[0] <= s.t[0] <= Box().t_max[1]
        assert Box().rho[0] <= s.psi["rho"] <= Box().rho[1]
        assert s.psi["ksigma_max"] == pytest.approx(s.sigmas[0]) and s.psi["ksigma_min"] == pytest.approx(s.sigmas[-1])
        assert s.mep == pytest.approx(reference.mep(s.lams), rel=1e-12) and s.noise == SD.fingerprint()
        assert s.min_spacing == pytest.approx(-np.diff(s.t).max(), abs=1e-15)
        assert {"hso-jax", "jax", "evosax"} <= set(s.origin.versions)


@pytest.mark.slow
def test_search_keeps_the_order_of_budgets() -> None:
    seen: list[tuple[int, int]] = []
    effort = Effort(population=4, generations=1)
    listed = search(SD, [5, 1, 4], layout="interval", effort=effort, progress=lambda *x: seen.append(x))
    assert [s.nfe for s in listed] == [5, 1, 4] and seen == [(3, 3)]
    assert len(listed[1].t) == 2 and listed[1].result == "converged"
    one = search(SD, np.int64(1))
    assert one.t.tolist() == [1.0] and one.mep is None and one.end == "clean" and one.result == "fixed"


def test_one_evaluation_starts_from_pure_noise_for_every_model() -> None:
    for name in PRESETS:
        s = search(preset(name), 1)
        assert len(s.t) == 1 and s.t[0] == min(1.0, float(preset(name).t_max)) and s.psi is None


@pytest.mark.slow
def test_every_preset_converges_monotone_spaced_and_in_its_box() -> None:
    """Presets with the same noise and p are one model."""
    models = {(preset(name).fingerprint(), PRESETS[name].p): preset(name) for name in PRESETS}
    every = [
        lane
        for (_, p), noise in models.items()
        for lane in lanes([noise], (2, 4, 7, 13, 20, 64), layouts=("node", "interval"), method=Hso(relax=True, p=p))
    ]
    for lane, s in zip(every, search_many(every), strict=True):
        box, told = lane.method.box, (s.model, s.origin.p, s.nfe, s.layout, s.origin.stationarity)
        assert s.result == "converged" and s.min_spacing >= s.origin.d_min - 1e-9, told
        assert np.all(np.diff(s.t) < 0) and np.all(np.isfinite(s.lams)) and np.all(np.diff(s.lams) > 0), told
        assert box.t_max[0] <= s.t[0] <= box.t_max[1] and box.t_eps[0] <= s.t[-1] <= box.t_eps[1], told
        paper, room = paper_d_min(s.nfe), box.t_max[1] - box.t_eps[0]
        assert s.origin.d_min == pytest.approx(min(paper, room / lane.intervals)), told  # relaxed only where it must be


def test_ablation_fixed_psi() -> None:
    """Equal ends of the box leave the lower level alone: SciPy's minimum between those ends."""
    box = Box((7.0, 7.0), (0.02, 0.02), (0.98, 0.98))
    every = [Lane(SD, n, "interval", method=Hso(box=box, spacing=d)) for n in (4, 8) for d in (0.0, 0.105)]
    for lane, s in zip(every, search_many(filled(every), effort=EFFORT), strict=False):
        best = reference.minimise_mep(KINKED, 0.98, 0.02, lane.nfe, spacing=lane.method.spacing)
        np.testing.assert_allclose(s.t, best.t, rtol=0, atol=1e-4)
        assert s.psi["rho"] == 7.0 and s.mep == pytest.approx(best.mep, rel=1e-5)


@pytest.mark.slow
def test_ablation_without_refinement_is_pure_edm() -> None:
    effort = Effort(steps=0, polish=0)
    found = search(SD, [4, 6], method=Hso(spacing=0.0), effort=effort)
    for s in found:
        low, high = s.psi["ksigma_min"], s.psi["ksigma_max"]
        wanted = KINKED.t_of_lam(-np.log(reference.edm_start(s.psi["rho"], low, high, s.nfe - 1)))
        np.testing.assert_allclose(s.t, wanted, rtol=0, atol=5e-5)
        # The upper level alone: no psi on a fine grid of the box scores better (t_eps, t_max sit in its corner).
        ends = np.exp(-KINKED.lam([0.03, 0.96]))
        grid = [reference.mep(-np.log(reference.edm_start(r, *ends, s.nfe - 1))) for r in np.linspace(3, 16, 1301)]
        assert s.mep <= min(grid) * (1 + 1e-5)
    kept = search(SD, [4, 6], effort=effort)  # with its spacing, by projection
    assert all(s.min_spacing >= s.origin.d_min - 1e-12 for s in kept)


@pytest.mark.slow
def test_ablation_dm_nonuni() -> None:
    effort = Effort(population=8, generations=4, steps=6, polish=6)
    for s in search(SD, [4, 5], method="hso-dm-nonuni", effort=effort):
        assert s.method == "hso-dm-nonuni" and np.all(np.diff(s.t) < 0)
        fixed = reference.dm_nonuni(KINKED, s.nfe - 1, t_max=0.96, t_eps=0.03)
        mine = reference.dm_nonuni_objective(KINKED.lam(s.t))
        if fixed.t[:-1].min() and -np.diff(fixed.t).max() >= s.origin.d_min:  # the spacing does not bind
            assert mine <= fixed.objective * (1 + 1e-3)
        assert s.min_spacing >= s.origin.d_min - 1e-12


def test_spread_moves_no_more_than_it_must() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        m = int(rng.integers(1, 12))
        d = 0.9 * rng.uniform(0.2, 1.0) / m
        t = 1.0 - np.concatenate([[0.0], np.cumsum(d + rng.dirichlet(np.ones(m)) * (0.95 - m * d))])
        noisy = t.copy()
        noisy[1:-1] += rng.uniform(-1e-7, 1e-7, m - 1)
        out = spread(noisy, d)
        assert out[0] == t[0] and out[-1] == t[-1] and np.all(-np.diff(out) >= d - 1e-15)
        assert np.abs(out - noisy).max() < 4e-7 * m
        np.testing.assert_allclose(spread(t, d), t, rtol=0, atol=1e-15)
