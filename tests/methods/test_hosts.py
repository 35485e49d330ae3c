"""Every method on eight devices and on two hosts: what one device gives."""

from __future__ import annotations

import functools
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from worker import KINDS, checkpointed, leaves

from hso_jax.schedule_file import from_json

pytestmark = pytest.mark.slow  # processes that compile all searches anew

WORKER = Path(__file__).with_name("worker.py")


def workers(commands: list[list[str]], **env: str) -> None:
    """Run `worker.py` once per command, all at once; each must end well."""
    folders = [str(WORKER.parents[n]) for n in (2, 1, 0)]
    given = {**os.environ, "PYTHONPATH": os.pathsep.join(folders), "JAX_PLATFORMS": "cpu", **env}
    running = [
        subprocess.Popen([sys.executable, str(WORKER), *c], env=given, stderr=subprocess.PIPE, text=True)
        for c in commands
    ]
    try:
        for process in running:
            _, errors = process.communicate(timeout=600)
            assert process.returncode == 0, errors[-3000:]
    finally:
        for process in running:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def eight_devices(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the names of the files begin with that one process with eight devices wrote."""
    prefix = str(tmp_path_factory.mktemp("devices") / "8")
    workers([["devices", prefix]], JAX_NUM_CPU_DEVICES="8")
    return prefix


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What the names of the files begin with that each of two processes, searching together, wrote."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = tmp_path_factory.mktemp("hosts")
    prefixes = [str(folder / str(i)) for i in range(2)]
    workers([["hosts", prefix, f"127.0.0.1:{port}", str(i)] for i, prefix in enumerate(prefixes)])
    return prefixes


@functools.cache
def single(kind: str) -> list[np.ndarray]:
    """What this process's one device finds."""
    return leaves(kind)


def compare(prefix: str, kind: str) -> None:
    wanted = single(kind)
    with np.load(f"{prefix}-{kind}.npz") as got:
        pairs = list(zip([got[f"a{i}"] for i in range(len(wanted))], wanted, strict=True))
    if kind == "solver-error":  # sums over samples round differently; a descent ends where little is promised
        nodes, error = pairs
        np.testing.assert_allclose(*nodes, rtol=0, atol=2e-3)
        np.testing.assert_allclose(*error, rtol=1e-3)
        return
    psi, _, t, _, result, _, _, history = pairs
    # The same program for other devices rounds differently; where the lower level converges, rho is that noise.
    np.testing.assert_allclose(psi[0][:, 1:], psi[1][:, 1:], rtol=0, atol=1e-6)
    np.testing.assert_allclose(*t, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(*result)
    np.testing.assert_allclose(history[0][:, -1], history[1][:, -1], rtol=2e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_eight_devices_give_what_one_gives(kind: str, eight_devices: str) -> None:
    compare(eight_devices, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_give_what_one_gives(kind: str, two_processes: list[str]) -> None:
    for prefix in two_processes:  # every process gets all results
        compare(prefix, kind)


def test_one_process_of_two_writes_the_checkpoint(two_processes: list[str]) -> None:
    texts = {Path(f"{prefix}-found.json").read_text() for prefix in two_processes}
    assert len(texts) == 1
    assert [Path(f"{prefix}-checkpoint.json").exists() for prefix in two_processes] == [True, False]
    wanted, got = (from_json(text) for text in (checkpointed(None), *texts))
    for a, b in zip(wanted, got, strict=True):
        np.testing.assert_allclose(a.t, b.t, rtol=0, atol=2e-3)
