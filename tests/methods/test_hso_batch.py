"""The batched program: how often it compiles, what a lane's result depends on, devices and hosts, memory bounds."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from oracles import scipy_search as reference
from problems import EFFORT, KINKED, SD, filled
from worker import worker_lanes

from hso_jax import Effort, Hso, Lane, Schedule, batch, hso, search_many
from hso_jax.noise import discrete
from hso_jax.searches import checked
from hso_jax.upper.evolution import Evolution

Key = tuple[int, str, str]


def leaves(found: Evolution, rows: object) -> list[np.ndarray]:
    return [np.asarray(x)[rows] for x in jax.tree.leaves(found)]


def program_of_all() -> Any:
    """The one program for lanes of 21 nodes on one device."""
    mesh = batch._mesh(None)
    spread = PartitionSpec((batch.HOSTS, batch.DEVICES))
    return batch.program(hso.search_lane("mep", 21, EFFORT.over(hso.EFFORT)), mesh, spread, PartitionSpec(), None)


def all_of(lanes: dict[Key, Lane]) -> list[Lane]:
    return checked(filled(list(lanes.values())))


def test_one_compilation_for_all_lanes_and_none_for_a_second_call(
    sd_lanes: dict[Key, Lane], sd_search: dict[Key, Schedule], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "stored", lambda program, *_: program)  # a stored one is not compiled at all
    compiled: list[str] = []

    def count(event: str, seconds: float, **_: object) -> None:
        if "backend_compile" in event:
            compiled.append(event)

    search_many(filled(list(sd_lanes.values())), effort=EFFORT)  # programs that an earlier module made are dropped
    search = program_of_all()
    assert search._cache_size() == 1  # 68 lanes: 2 layouts, 17 budgets, 2 ways of spacing
    programs = batch.program.cache_info().misses
    other = [
        lane._replace(seed=9, method=dataclasses.replace(lane.method, p=1.5, gamma=10.0)) for lane in sd_lanes.values()
    ]
    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        again = search_many(filled(other), effort=EFFORT)
        assert not compiled
        jax.jit(lambda x: x + len(again))(1.0)
        assert compiled  # the counter counts
    finally:
        jax.monitoring.unregister_event_duration_listener(count)
    assert search._cache_size() == 1 and batch.program.cache_info().misses == programs


def test_the_same_seed_gives_the_same_bytes_and_another_seed_another_path(sd_lanes: dict[Key, Lane]) -> None:
    lanes = all_of(sd_lanes)[: EFFORT.lanes]
    first, again = hso.run(lanes, EFFORT, nodes=21), hso.run(lanes, EFFORT, nodes=21)
    assert all(x.tobytes() == y.tobytes() for x, y in zip(leaves(first, ...), leaves(again, ...), strict=True))
    other = hso.run([lane._replace(seed=1) for lane in lanes], EFFORT, nodes=21)
    assert np.all(np.any(first.history != other.history, axis=1))


def test_a_lane_does_not_depend_on_the_lanes_beside_it(sd_lanes: dict[Key, Lane]) -> None:
    """Bitwise, with the same padded nodes and chunk size: in other company, in another place, and with copies."""
    lanes = all_of(sd_lanes)[: EFFORT.lanes]
    among = hso.run(lanes, EFFORT, nodes=21)
    turned = hso.run(lanes[5:] + lanes[:5], EFFORT, nodes=21)
    for a, b in zip(leaves(among, ...), leaves(turned, ...), strict=True):
        np.testing.assert_array_equal(a, np.roll(b, 5, axis=0))
    for i in (0, 13, 31):
        company = hso.run([lanes[i]] * EFFORT.lanes, EFFORT, nodes=21)
        for a, b in zip(leaves(among, i), leaves(company, 7), strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_lane_alone_agrees_with_a_lane_in_a_batch(sd_lanes: dict[Key, Lane]) -> None:
    """Other shapes (4 nodes instead of 21, 1 lane instead of 32) round differently: 1e-5 in t is the stated bound."""
    key = (4, "node", "constraint")
    among = hso.run(all_of(sd_lanes)[: EFFORT.lanes], EFFORT, nodes=21)
    alone = hso.run([checked([sd_lanes[key]])[0]], EFFORT)
    assert alone.memo.t.shape == (1, 4)
    np.testing.assert_allclose(alone.memo.t[0], among.memo.t[0, :4], rtol=0, atol=1e-5)


def test_chunks_and_padding(sd_lanes: dict[Key, Lane]) -> None:
    """40 lanes in chunks of at most 32 are two of 20; progress counts lanes, and the last chunk may have fewer."""
    lanes = all_of(sd_lanes)
    seen: list[tuple[int, int]] = []
    parts = hso.run(lanes[:40], EFFORT, nodes=21, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(20, 40), (40, 40)]
    seen.clear()
    hso.run(lanes[:39], EFFORT, nodes=21, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(20, 39), (39, 39)]
    assert parts.best.shape == (40, 3) and parts.history.shape[0] == 40
    whole = hso.run(lanes[8:40], EFFORT, nodes=21)
    for a, b in zip(leaves(parts, slice(8, 40)), leaves(whole, ...), strict=True):
        np.testing.assert_array_equal(a, b)
    for lane, t in zip(lanes, parts.memo.t, strict=False):
        assert np.all(t[lane.intervals :] == t[-1])


@pytest.mark.parametrize("rho", [3.0, 7.0, 16.0])
def test_the_initial_schedule_is_edm_s(rho: float) -> None:
    low, high = np.exp(-KINKED.lam([0.02, 0.98]))
    wanted = KINKED.t_of_lam(-np.log(reference.edm_start(rho, low, high, 6)))
    times = jnp.asarray(hso.times_even_in_lam(SD), jnp.float32)
    got = hso.edm_nodes(jax.tree.map(jnp.asarray, SD), jnp.array([rho, 0.02, 0.98]), 10, jnp.asarray(6), times)
    np.testing.assert_allclose(got[:7], wanted, rtol=0, atol=2e-5)  # linear and cubic between the levels
    assert np.all(np.asarray(got)[6:] == np.float32(0.02)) and got[0] == np.float32(0.98)


def test_a_bank_of_noise_schedules_serves_each_lane_its_own() -> None:
    """One chunk with three noise schedules of different lengths against SciPy at the psi that was found."""
    tables = [np.cumprod(1 - np.linspace(1e-4, 0.5, n)) for n in (30, 40)]
    noises = [SD, *(discrete(alphas_cumprod=table) for table in tables)]
    effort = Effort(population=8, generations=4, lanes=6)
    box = worker_lanes()[0].method.box
    lanes = [checked([Lane(noise, n, method=Hso(box=box, spacing=0.05))])[0] for noise in noises for n in (4, 6)]
    mixed = hso.run(lanes, effort)
    assert np.all(mixed.memo.result == 0)
    for lane, t in zip(lanes, mixed.memo.t.astype(float), strict=True):
        t = t[: lane.nfe]
        best = reference.minimise_mep(lane.noise, t[0], t[-1], lane.intervals, spacing=0.05)
        assert reference.mep(lane.noise.lam(t)) == pytest.approx(best.mep, rel=1e-5)
