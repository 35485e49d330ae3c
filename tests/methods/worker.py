"""Run by `test_hosts.py` in processes of its own: searches on eight devices, or on two hosts of one device."""

from __future__ import annotations

import sys

import jax
import numpy as np
from solver_error_cells import EFFORT, grid

from hso_jax import Box, Effort, Hso, Lane, search_many
from hso_jax.methods.hso import search as hso
from hso_jax.methods.hso.lanes import check
from hso_jax.noise import discrete

BANK = Effort(population=8, generations=4, lanes=2)
"""Small; with eight devices the 20 lanes make two chunks, the second filled up."""


def worker_lanes() -> list[Lane]:
    """Twenty lanes of up to nine nodes on a short noise table."""
    noise = discrete(alphas_cumprod=np.cumprod(1 - np.linspace(1e-3, 0.3, 50)))
    box = Box(t_eps=(0.02, 0.05), t_max=(0.9, 1.0))
    return [
        check(Lane(noise, 4 + i % 5, ("node", "interval")[i % 2], i, Hso(box=box, spacing=0.08))) for i in range(20)
    ]


def leaves(kind: str) -> list[np.ndarray]:
    """What the search of one kind finds: all arrays of HSO's program, or the nodes and the error of solver-error's."""
    if kind == "hso":
        return [np.asarray(x) for x in jax.tree.leaves(hso.run(worker_lanes(), BANK))]
    lanes = [lane for lane in grid() if lane.nfe == 4 and lane.method.guidance == 1.0]  # type: ignore[union-attr]
    found = search_many(lanes[:7], effort=EFFORT)
    return [np.concatenate([s.t for s in found]), np.array([s.error for s in found])]


def main(mode: str, kind: str, output: str, address: str = "", process: str = "") -> None:
    """Search and write what was found."""
    if mode == "hosts":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(address, num_processes=2, process_id=int(process))
        assert jax.process_count() == 2 and jax.device_count() == 2 and jax.local_device_count() == 1
    else:
        assert jax.local_device_count() == 8
    np.savez(output, **{f"a{i}": x for i, x in enumerate(leaves(kind))})


if __name__ == "__main__":
    main(*sys.argv[1:])
