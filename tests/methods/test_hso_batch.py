"""The batched program: how often it compiles, what a lane's result depends on, devices and hosts, memory bounds."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import EFFORT, KINKED, SD, filled
from worker import BANK, worker_lanes

from benchmarks import scipy_reference as reference
from hso_jax import Effort, Lane, Schedule, search_many
from hso_jax.methods.hso import search as batch
from hso_jax.methods.hso.lanes import check
from hso_jax.noise import discrete

Key = tuple[int, str, str]


def leaves(found: batch.Found, rows: object) -> list[np.ndarray]:
    return [np.asarray(x)[rows] for x in jax.tree.leaves(found)]


def checked(lanes: dict[Key, Lane]) -> list[Lane]:
    return [check(lane) for lane in filled(list(lanes.values()))]


def test_one_compilation_for_all_lanes_and_none_for_a_second_call(
    sd_lanes: dict[Key, Lane], sd_search: dict[Key, Schedule]
) -> None:
    compiled: list[str] = []

    def count(event: str, seconds: float, **_: object) -> None:
        if "backend_compile" in event:
            compiled.append(event)

    search = batch.program(tuple(jax.devices()), "mep", 21, EFFORT)
    assert search._cache_size() == 1  # 68 lanes: 2 layouts, 17 budgets, 2 ways of spacing
    programs = batch.program.cache_info().misses
    other = [lane._replace(seed=9, p=1.5, gamma=10.0) for lane in sd_lanes.values()]
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
    lanes = checked(sd_lanes)[: EFFORT.chunk]
    first, again = batch.run(lanes, EFFORT, nodes=21), batch.run(lanes, EFFORT, nodes=21)
    assert all(x.tobytes() == y.tobytes() for x, y in zip(leaves(first, ...), leaves(again, ...), strict=True))
    other = batch.run([lane._replace(seed=1) for lane in lanes], EFFORT, nodes=21)
    assert np.all(np.any(first.history != other.history, axis=1))


def test_a_lane_does_not_depend_on_the_lanes_beside_it(sd_lanes: dict[Key, Lane]) -> None:
    """Bitwise, with the same padded nodes and chunk size: in other company, in another place, and with copies."""
    lanes = checked(sd_lanes)[: EFFORT.chunk]
    among = batch.run(lanes, EFFORT, nodes=21)
    turned = batch.run(lanes[5:] + lanes[:5], EFFORT, nodes=21)
    for a, b in zip(leaves(among, ...), leaves(turned, ...), strict=True):
        np.testing.assert_array_equal(a, np.roll(b, 5, axis=0))
    for i in (0, 13, 31):
        company = batch.run([lanes[i]] * EFFORT.chunk, EFFORT, nodes=21)
        for a, b in zip(leaves(among, i), leaves(company, 7), strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_lane_alone_agrees_with_a_lane_in_a_batch(sd_lanes: dict[Key, Lane]) -> None:
    """Other shapes (4 nodes instead of 21, 1 lane instead of 32) round differently: 1e-5 in t is the stated bound."""
    key = (4, "node", "constraint")
    among = batch.run(checked(sd_lanes)[: EFFORT.chunk], EFFORT, nodes=21)
    alone = batch.run([check(sd_lanes[key])], EFFORT)
    assert alone.refined.t.shape == (1, 4)
    np.testing.assert_allclose(alone.refined.t[0], among.refined.t[0, :4], rtol=0, atol=1e-5)


def test_chunks_and_padding(sd_lanes: dict[Key, Lane]) -> None:
    """40 lanes in chunks of 32: the second chunk is filled up and cut; progress counts lanes."""
    lanes = checked(sd_lanes)
    seen: list[tuple[int, int]] = []
    parts = batch.run(lanes[:40], EFFORT, nodes=21, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(32, 40), (40, 40)]
    assert parts.psi.shape == (40, 3) and parts.history.shape[0] == 40
    whole = batch.run(lanes[8:40], EFFORT, nodes=21)
    for a, b in zip(leaves(parts, slice(8, 40)), leaves(whole, ...), strict=True):
        np.testing.assert_array_equal(a, b)
    for lane, t in zip(lanes, parts.refined.t, strict=False):
        assert np.all(t[lane.intervals :] == t[-1])


@pytest.mark.parametrize("rho", [3.0, 7.0, 16.0])
def test_the_initial_schedule_is_edm_s(rho: float) -> None:
    low, high = np.exp(-KINKED.lam([0.02, 0.98]))
    wanted = KINKED.t_of_lam(-np.log(reference.edm_start(rho, low, high, 6)))
    got = batch.edm_nodes(jax.tree.map(jnp.asarray, SD), jnp.array([rho, 0.02, 0.98]), 10, jnp.asarray(6))
    np.testing.assert_allclose(got[:7], wanted, rtol=0, atol=2e-5)  # linear and cubic between the levels
    assert np.all(np.asarray(got)[6:] == np.float32(0.02)) and got[0] == np.float32(0.98)


def test_a_bank_of_noise_schedules_serves_each_lane_its_own() -> None:
    """One chunk with three noise schedules of different lengths against SciPy at the psi that was found."""
    tables = [np.cumprod(1 - np.linspace(1e-4, 0.5, n)) for n in (30, 40)]
    noises = [SD, *(discrete(alphas_cumprod=table) for table in tables)]
    effort = Effort(population=8, generations=4, chunk=6)
    box = worker_lanes()[0].box
    lanes = [check(Lane(noise, n, box=box, spacing=0.05)) for noise in noises for n in (4, 6)]
    mixed = batch.run(lanes, effort)
    assert np.all(mixed.refined.result == 0)
    for lane, t in zip(lanes, mixed.refined.t.astype(float), strict=True):
        t = t[: lane.nfe]
        best = reference.minimise_mep(lane.noise, t[0], t[-1], lane.intervals, spacing=0.05)
        assert reference.mep(lane.noise.lam(t)) == pytest.approx(best.mep, rel=1e-5)


WORKER = Path(__file__).with_name("worker.py")


def workers(commands: list[list[str]], **env: str) -> None:
    """Run `worker.py` once per command, all at once; each must end well."""
    root = str(WORKER.parent.parent.parent)
    given = {**os.environ, "PYTHONPATH": os.pathsep.join([root, str(WORKER.parent)]), "JAX_PLATFORMS": "cpu", **env}
    running = [
        subprocess.Popen([sys.executable, str(WORKER), *c], env=given, stderr=subprocess.PIPE, text=True)
        for c in commands
    ]
    try:
        for process in running:
            _, errors = process.communicate(timeout=150)
            assert process.returncode == 0, errors[-3000:]
    finally:
        for process in running:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def single() -> list[np.ndarray]:
    """The worker's lanes on this process's one device."""
    return leaves(batch.run(worker_lanes(), BANK), ...)


def compare(path: Path, single: list[np.ndarray]) -> None:
    with np.load(path) as got:
        arrays = [got[f"a{i}"] for i in range(len(single))]
    psi, t, result, _, _, history = zip(arrays, single, strict=True)
    # The same program for other devices rounds differently; where the lower level converges, rho is that noise.
    np.testing.assert_allclose(psi[0][:, 1:], psi[1][:, 1:], rtol=0, atol=1e-6)
    np.testing.assert_allclose(*t, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(*result)
    np.testing.assert_allclose(history[0][:, -1], history[1][:, -1], rtol=2e-6)


def test_eight_devices_give_what_one_gives(tmp_path: Path, single: list[np.ndarray]) -> None:
    workers([["devices", str(tmp_path / "8.npz")]], JAX_NUM_CPU_DEVICES="8")
    compare(tmp_path / "8.npz", single)


def test_two_processes_give_what_one_gives(tmp_path: Path, single: list[np.ndarray]) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    names = [str(tmp_path / f"{i}.npz") for i in range(2)]
    workers([["hosts", name, f"127.0.0.1:{port}", str(i)] for i, name in enumerate(names)])
    for name in names:  # every process gets all results
        compare(Path(name), single)
