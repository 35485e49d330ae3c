"""Run by `test_hosts.py` in processes of its own: all searches on eight devices, or on two hosts of one device.

Run by `test_checkpointed_lanes.py` in a process that is killed.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from solver_error_cells import SD, SD3, method

from hso_jax import Effort, Hso, Lane, hso, search_many
from hso_jax.hso import Box
from hso_jax.noise import discrete
from hso_jax.schedule_file import to_json
from hso_jax.searches import checked
from hso_jax.solver_error_levels import Refinement

KINDS = ("hso", "solver-error")
COUNT = 100
BANK = Effort(population=8, generations=4, lanes=10)
"""Small; with eight devices the lanes make two chunks, the second filled up."""
TINY = Effort(population=4, generations=1, steps=3, polish=1, lanes=50)
"""Fifty lanes at once: eight devices that wait for each other at each sum are slow on few cores."""


def worker_lanes(count: int = COUNT) -> list[Lane]:
    """Lanes of up to nine nodes on a short noise table."""
    noise = discrete(alphas_cumprod=np.cumprod(1 - np.linspace(1e-3, 0.3, 50)))
    box = Box(t_eps=(0.02, 0.05), t_max=(0.9, 1.0))
    return [
        checked([Lane(noise, 4 + i % 5, ("node", "interval")[i % 2], i, Hso(box=box, spacing=0.08))])[0]
        for i in range(count)
    ]


def solver_error_lanes(count: int = COUNT) -> list[Lane]:
    """Lanes of two or three nodes on the tiny family, for two weights and both kinds of noise end."""
    own = [method("ddim", w, refinement=Refinement(1, 2, 3)) for w in (1.0, 5.0)]
    return [Lane((SD, SD3)[i // 2 % 2], 2, ("node", "interval")[i // 4 % 2], i, own[i % 2]) for i in range(count)]


def checkpointed(path: str | None, count: int = 20, progress: Any = None) -> str:
    """What is found of lanes of two methods, in chunks of two lanes, as a schedule file's text."""
    lanes = [*worker_lanes(count), *solver_error_lanes(4)]
    effort = Effort(population=4, generations=2, steps=3, polish=1, lanes=2)
    return to_json(search_many(lanes, effort=effort, progress=progress, checkpoint=path))


def leaves(kind: str) -> list[np.ndarray]:
    """What the search of one kind finds: all arrays of HSO's program, or the nodes and the error of solver-error's."""
    if kind == "hso":
        return [np.asarray(x) for x in jax.tree.leaves(hso.run(worker_lanes(), BANK))]
    found = search_many(solver_error_lanes(), effort=TINY)
    return [np.concatenate([s.t for s in found]), np.array([s.error for s in found])]


def main(mode: str, output: str, address: str = "", process: str = "") -> None:
    """Search by every method and write what was found: `output` and a name of what it is."""
    if mode == "killed":
        checkpointed(output, progress=lambda *done: (print(*done, flush=True), sys.stdin.readline()))
        return
    if mode == "hosts":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(address, num_processes=2, process_id=int(process))
        assert jax.process_count() == 2 and jax.device_count() == 2 and jax.local_device_count() == 1
    else:
        assert jax.local_device_count() == 8
    for kind in KINDS:
        np.savez(f"{output}-{kind}.npz", **{f"a{i}": x for i, x in enumerate(leaves(kind))})
    if mode == "hosts":
        first = checkpointed(f"{output}-checkpoint.json")
        assert checkpointed(f"{output}-checkpoint.json") == first
        Path(f"{output}-found.json").write_text(first)


if __name__ == "__main__":
    main(*sys.argv[1:])
