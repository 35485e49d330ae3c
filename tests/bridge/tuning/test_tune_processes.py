"""`tune` in several processes of a `torch.distributed` group."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow  # each process compiles anew

SCRIPT = """
import json, sys

import torch
from torch import distributed

sys.path.insert(0, sys.argv[5])
from closed_form import Network, latents

from bridge import tune_denoiser
from hso_jax import baseline, preset
from hso_jax.schedule_file import to_json

rank, world, folder, asked = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], json.loads(sys.argv[4])
torch.set_num_threads(1)
if world > 1:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
network = Network()


def denoiser(x, level):
    if rank == world - 1 and network.calls >= asked.get("until", 10**9):
        raise RuntimeError(asked["trouble"])
    return network(x, level)


out = {}
try:
    start = baseline("trailing", preset("sd15"), 4)
    found = tune_denoiser(denoiser, preset("sd15"), 4, latents=latents(), start=start, **asked["options"])
    out = {"schedule": to_json(found.schedule), "evaluations": found.evaluations, "notes": found.notes}
    out["error"] = found.error
except Exception as trouble:
    out = {"raised": f"{type(trouble).__name__}: {trouble}"}
print("OUT" + json.dumps({**out, "calls": network.calls}), flush=True)
if world > 1:
    distributed.destroy_process_group()
"""
OPTIONS = {"budget": 1200, "teacher_steps": 24, "samples": 8, "batch": 4}


def run(folder: Path, world: int, **asked: Any) -> list[dict[str, Any]]:
    """What each process found."""
    folder.mkdir(exist_ok=True)
    (folder / "meet").unlink(missing_ok=True)
    told = json.dumps({"options": {**OPTIONS, **asked.pop("options", {})}, **asked})
    command = [sys.executable, "-c", SCRIPT]
    rest = [str(world), str(folder), told, str(Path(__file__).parent)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started = [subprocess.Popen([*command, str(rank), *rest], **pipes) for rank in range(world)]
    found = []
    for process in started:
        out, errors = process.communicate(timeout=500)
        lines = [line[3:] for line in out.splitlines() if line.startswith("OUT")]
        assert len(lines) == 1, errors
        found.append(json.loads(lines[0]))
    return found


def test_processes_share_the_samples_and_the_first_keeps_the_checkpoint(tmp_path: Path) -> None:
    (alone,) = run(tmp_path, 1)
    options = {"checkpoint": str(tmp_path / "c.json")}
    first, second = run(tmp_path, 2, options=options)
    assert first["schedule"] == second["schedule"] == alone["schedule"]
    assert first["evaluations"] == second["evaluations"] == alone["evaluations"] <= 1200
    assert first["calls"] + second["calls"] == alone["calls"]
    assert second["calls"] > 0.4 * alone["calls"]  # a single sample, such as a race ends with, is the first one's
    again = run(tmp_path, 2, options=options)
    assert [x["schedule"] for x in again] == [alone["schedule"]] * 2 and [x["calls"] for x in again] == [0, 0]
    refused = run(tmp_path, 2, options={**options, "teacher_steps": 25})
    assert all("made with other arguments" in x["raised"] for x in refused)


def test_what_goes_wrong_in_one_process_is_said_in_all(tmp_path: Path) -> None:
    broken = run(tmp_path, 2, until=300, trouble="a broken network")
    assert all(x["raised"] == "RuntimeError: a broken network" for x in broken)
    small = run(tmp_path, 2, until=300, trouble="CUDA out of memory")
    assert all(x["notes"] == ["out of memory: one sample at a time"] for x in small)
