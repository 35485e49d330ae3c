"""What a search by the solver's error costs: compilation and run apart, and the run against N, samples, problems.

python -m benchmarks.speed.solver_error
python -m benchmarks.speed.solver_error --plot docs/images/solver-error-cost.png    time and memory, a process a point
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks import plots, runner
from benchmarks.runner import COMPARED
from benchmarks.speed import seconds_of
from hso_jax import Lane, SolverError, preset, search_many
from hso_jax.error import SAMPLES, default_family, error_data
from hso_jax.problems import family

REPEATS = 3


class Size(NamedTuple):
    """Of a search."""

    problems: int
    samples: int
    nfe: int


USUAL = Size(36, SAMPLES, 6)
GROWN = {
    "problems": [USUAL._replace(problems=x) for x in (9, 18, 36, 72, 144)],
    "samples": [USUAL._replace(samples=x) for x in (32, 64, 128, 256, 512)],
    "nfe": [USUAL._replace(nfe=x) for x in (3, 6, 12, 18)],
}


def measure(lane: Lane) -> tuple[float, list[float]]:
    """Seconds of the first call and of `REPEATS` more; the exact solution is made before."""
    how: Any = lane.method
    error_data(float(lane.noise.lam(1.0)), how.guidance, problems=how.problems, samples=how.samples)
    first, *warm = (seconds_of(lambda: search_many([lane])) for _ in range(REPEATS + 1))
    return first, warm


def measure_size(size: Size) -> dict[str, float]:
    """Warm seconds of search and exact solution with DPM++ 2M, and GiB that memory grew by, compilation included."""
    before = _peak()
    problems = family(range(size.problems)) if size.problems != USUAL.problems else default_family()
    how = SolverError(compare=(), samples=size.samples, problems=problems)
    _, runs = measure(Lane(preset("sd15"), size.nfe, method=how))
    return {"seconds": float(np.median(runs)), "memory": _peak() - before}


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def plot(path: Path) -> None:
    """Measure every size in a process of its own, and draw; prints a table."""
    known: dict[Size, dict[str, float]] = {}
    print("| problems | samples | N | warm s | memory, GiB |\n|---|---|---|---|---|")
    for size in dict.fromkeys(size for sizes in GROWN.values() for size in sizes):
        command = [sys.executable, "-m", "benchmarks.speed.solver_error", "--size", ",".join(map(str, size))]
        # Programs from a cache would take no memory to compile.
        cold = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
        told = subprocess.run(command, check=True, capture_output=True, text=True, env=cold).stdout
        known[size] = json.loads(told.splitlines()[-1])
        cells = *map(str, size), f"{known[size]['seconds']:.2f}", f"{known[size]['memory']:.2f}"
        print(f"| {' | '.join(cells)} |", flush=True)
    found = {
        grown: [(getattr(size, grown) / getattr(USUAL, grown), known[size]) for size in every]
        for grown, every in GROWN.items()
    }
    names = {g: f"{'N' if g == 'nfe' else g} (1 is {getattr(USUAL, g)})" for g in GROWN}
    plots.save(plots.cost_figure(found, names), path)
    print(f"\nwrote {path}")


def table() -> None:
    """Print Markdown."""
    noise = preset("sd15")
    devices = jax.devices()
    print(f"{len(devices)} x {devices[0].device_kind}, {platform.machine()}, float32, jax {jax.__version__}, seed 0\n")
    solve = lambda w: jax.block_until_ready(error_data(float(noise.lam(1.0)), w).truth)  # noqa: E731
    first, warm = (seconds_of(functools.partial(solve, guidance)) for guidance in (2.0, 2.5))
    print(f"exact solution of {USUAL.problems} x {SAMPLES} samples: {first:.2f} s with compilation, {warm:.2f} s warm")
    print("\n| one search | first call s | warm s |\n|---|---|---|")
    for solver in COMPARED:
        for n in (4, 6, 8, 10, 20):
            compiled, runs = measure(Lane(noise, n, method=SolverError(solver, compare=())))
            print(f"| {solver}, N = {n} | {compiled:.1f} | {np.median(runs):.2f} |", flush=True)


def main() -> None:
    """Run the command line."""
    parser = runner.command("python -m benchmarks.speed.solver_error", __doc__)
    parser.add_argument("--plot", type=Path, metavar="FILE", help="time and memory against the size, as a picture")
    parser.add_argument("--size", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if "JAX_NUM_CPU_DEVICES" not in os.environ:
        jax.config.update("jax_num_cpu_devices", min(os.cpu_count() or 1, 8))
    if args.size is not None:
        print(json.dumps(measure_size(Size(*map(int, args.size.split(","))))))
    elif args.plot is not None:
        plot(args.plot)
    else:
        table()


if __name__ == "__main__":
    main()
