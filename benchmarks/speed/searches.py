"""Seconds of searches, compilation and run apart: by solver and N, by size, and of many lanes on an accelerator.

python -m benchmarks.speed.searches                  searches by the solver's error, a row a solver and N
python -m benchmarks.speed.searches --plot docs/images/solver-error-cost.png    time and memory against the size
python -m benchmarks.speed.searches --lanes          many lanes on what device JAX finds, beside the CPU

With `--lanes` each row is a process of its own; lanes a second are of the second call; the CPU has fewer lanes, for
time's sake; what is left out after nine minutes is named.
"""

from __future__ import annotations

import functools
import json
import os
import platform
import resource
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks import plots, runner
from benchmarks.runner import COMPARED
from benchmarks.speed.__main__ import in_process
from benchmarks.speed.jobs import seconds_of
from benchmarks.tables import markdown
from hso_jax import Hso, Lane, SolverError, lanes, preset, search_many
from hso_jax.error import SAMPLES, default_family, error_data
from hso_jax.problems import family

REPEATS, CPUS = 3, min(os.cpu_count() or 1, 8)
LIMIT = 540
"""Seconds of `--lanes` in all."""

JOBS: dict[str, tuple[Any, int, int]] = {
    "HSO": (Hso(), 4096, 256),
    "solver-error": (SolverError(), 64, 2),
    "nonstationary": (SolverError("nonstationary"), 16, 1),
}
"""Method, lanes on an accelerator, lanes on a CPU."""


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


def measure(lane: Lane) -> tuple[float, float]:
    """Seconds of the first call, and the median of `REPEATS` more; the exact solution is made before."""
    how: Any = lane.method
    error_data(float(lane.noise.lam(1.0)), how.guidance, problems=how.problems, samples=how.samples)
    first, *warm = (seconds_of(lambda: search_many([lane]))[0] for _ in range(REPEATS + 1))
    return first, float(np.median(warm))


def table() -> None:
    """Print a row a solver and N."""
    noise, devices = preset("sd15"), jax.devices()
    print(f"{len(devices)} x {devices[0].device_kind}, {platform.machine()}, float32, jax {jax.__version__}, seed 0\n")
    solve = lambda w: jax.block_until_ready(error_data(float(noise.lam(1.0)), w).truth)  # noqa: E731
    first, warm = (seconds_of(functools.partial(solve, guidance))[0] for guidance in (2.0, 2.5))
    print(
        f"exact solution of {USUAL.problems} x {SAMPLES} samples: {first:.2f} s with compilation, {warm:.2f} s warm\n"
    )
    rows = []
    for solver in COMPARED:
        for n in (4, 6, 8, 10, 20):
            first, warm = measure(Lane(noise, n, method=SolverError(solver, compare=())))
            rows.append([f"{solver}, N = {n}", f"{first:.1f}", f"{warm:.2f}"])
    print("\n" + markdown(["one search", "first call s", "warm s"], rows))


def of_size(problems: int, samples: int, nfe: int) -> dict[str, float]:
    """Warm seconds of search and exact solution with DPM++ 2M, and GiB that memory grew by, compilation included."""
    before = _peak()
    every = family(range(problems)) if problems != USUAL.problems else default_family()
    _, warm = measure(Lane(preset("sd15"), nfe, method=SolverError(compare=(), samples=samples, problems=every)))
    return {"seconds": warm, "memory": _peak() - before}


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def plot(path: Path) -> None:
    """Measure every size in a process of its own, and draw; prints a table."""
    known: dict[Size, dict[str, float]] = {}
    for size in dict.fromkeys(size for sizes in GROWN.values() for size in sizes):
        known[size] = called("of_size", *size, JAX_ENABLE_COMPILATION_CACHE="false", JAX_NUM_CPU_DEVICES=str(CPUS))
    rows = [[*map(str, size), f"{x['seconds']:.2f}", f"{x['memory']:.2f}"] for size, x in known.items()]
    print(markdown(["problems", "samples", "N", "warm s", "memory, GiB"], rows, left=0))
    found = {
        grown: [(getattr(size, grown) / getattr(USUAL, grown), known[size]) for size in every]
        for grown, every in GROWN.items()
    }
    names = {g: f"{'N' if g == 'nfe' else g} (1 is {getattr(USUAL, g)})" for g in GROWN}
    plots.save(plots.cost_figure(found, names), path)
    print(f"wrote {path}")


def of_lanes(name: str, count: int) -> dict[str, Any]:
    """Search lanes of Stable Diffusion, N = 4..10, by seeds, twice in this process."""
    many = lanes([preset("sd15")], range(4, 11), seeds=range(-(-count // 7)), method=JOBS[name][0])[:count]
    first, second = (seconds_of(lambda: search_many(many))[0] for _ in range(2))
    return {"device": f"{len(jax.devices())} x {jax.devices()[0].device_kind}", "first": first, "second": second}


def called(task: str, *given: Any, **environment: Any) -> dict[str, Any]:
    """Run one of the tasks in a process of its own."""
    code = f"import json; from benchmarks.speed import searches; print(json.dumps(searches.{task}{given!r}))"
    return dict(json.loads(in_process("-c", code, **environment)))


def many_lanes() -> None:
    """Print a row a method, on JAX's device beside the CPU; at most ten minutes anywhere."""
    begin, rows = time.perf_counter(), []
    alone = in_process("-c", "import jax; print(jax.default_backend())") == "cpu"
    for name, (_, many, few) in JOBS.items():
        if time.perf_counter() - begin > LIMIT / 2:
            print(f"{name} is left out: the others took {time.perf_counter() - begin:.0f} s")
            continue
        count = few if alone else many
        found = called("of_lanes", name, count)
        rate = count / found["second"]
        row = [name, found["device"], str(count), f"{found['first'] - found['second']:.1f}", f"{rate:.1f}"]
        if not alone:
            row.append(f"{rate * called('of_lanes', name, few, JAX_PLATFORMS='cpu')['second'] / few:.1f}")
        rows.append(row)
    head = ["search", "devices", "lanes", "compilation s", "lanes a second", "times the CPU's"]
    print(markdown(head[: 5 if alone else 6], rows, left=2))


def main() -> None:
    """Run the command line."""
    parser = runner.command("python -m benchmarks.speed.searches", __doc__)
    parser.add_argument("--plot", type=Path, metavar="FILE", help="time and memory against the size, as a picture")
    parser.add_argument("--lanes", action="store_true", help="many lanes on an accelerator, or on the CPU")
    args = parser.parse_args()
    if args.lanes:  # first of all: this process must not hold the device
        many_lanes()
        return
    if "JAX_NUM_CPU_DEVICES" not in os.environ:
        jax.config.update("jax_num_cpu_devices", CPUS)
    table() if args.plot is None else plot(args.plot)


if __name__ == "__main__":
    main()
