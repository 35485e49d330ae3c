"""What a search by the solver's error costs: compilation and run apart, and the run against N, samples, problems.

python -m benchmarks.speed.solver_error
"""

from __future__ import annotations

import os
import platform
import resource
import time
from typing import Any

import jax
import numpy as np

from benchmarks.solvers import COMPARED
from hso_jax import Lane, SolverError, preset, search_many
from hso_jax.objectives.solver_error import SAMPLES, error_data
from hso_jax.problems import KINDS, family

REPEATS = 3


def measure(lane: Lane) -> tuple[float, list[float]]:
    """Seconds of the first call and of `REPEATS` more; the exact solution is made before."""
    how: Any = lane.method
    error_data(float(lane.noise.lam(1.0)), how.guidance, problems=how.problems, samples=how.samples)
    seconds = []
    for _ in range(REPEATS + 1):
        begin = time.perf_counter()
        search_many([lane])  # results are NumPy: nothing is left to wait for
        seconds.append(time.perf_counter() - begin)
    return seconds[0], seconds[1:]


def main() -> None:
    """Print Markdown."""
    if "JAX_NUM_CPU_DEVICES" not in os.environ:
        jax.config.update("jax_num_cpu_devices", min(os.cpu_count() or 1, 8))
    noise = preset("sd15")
    devices = jax.devices()
    print(f"{len(devices)} x {devices[0].device_kind}, {platform.machine()}, float32, jax {jax.__version__}, seed 0\n")
    begin = time.perf_counter()
    jax.block_until_ready(error_data(float(noise.lam(1.0)), 2.0).truth)
    first = time.perf_counter() - begin
    begin = time.perf_counter()
    jax.block_until_ready(error_data(float(noise.lam(1.0)), 2.5).truth)
    warm = time.perf_counter() - begin
    print(f"exact solution of {len(KINDS)} x {SAMPLES} samples: {first:.2f} s with compilation, {warm:.2f} s warm")
    print("\n| one search | first call s | warm s |\n|---|---|---|")
    for solver in COMPARED:
        for n in (4, 6, 8, 10, 20):
            compiled, runs = measure(Lane(noise, n, method=SolverError(solver, compare=())))
            print(f"| {solver}, N = {n} | {compiled:.1f} | {np.median(runs):.2f} |", flush=True)
    print("\n| DPM++ 2M, N = 6 | warm s |\n|---|---|")
    usual = len(KINDS)
    sizes = [(usual, SAMPLES // 2), (usual, SAMPLES), (usual, 2 * SAMPLES), (usual // 2, SAMPLES), (2 * usual, SAMPLES)]
    for problems, samples in sizes:
        options: dict[str, Any] = {"samples": samples}
        if problems != usual:
            options["problems"] = family(range(problems))
        _, runs = measure(Lane(noise, 6, method=SolverError(compare=(), **options)))
        print(f"| {problems} problems x {samples} samples | {np.median(runs):.2f} |", flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"\npeak memory of all of it: {peak:.2f} GiB")


if __name__ == "__main__":
    main()
