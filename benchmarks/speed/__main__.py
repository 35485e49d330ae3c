"""Speed of the batched search, compile and run apart, beside a SciPy re-derivation of the paper's search.

    python -m benchmarks.speed            prints the tables and writes docs/results/speed.md
    python -m benchmarks.speed --quick    without the 10,000 lanes and SciPy

Each measurement that depends on a fresh process (cold start, peak memory) starts one.
"""

from __future__ import annotations

import itertools
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import runner
from benchmarks.speed import seconds_of
from benchmarks.tables import markdown

ROOT = Path(__file__).parents[2]
OUTPUT = ROOT / "docs" / "results" / "speed.md"
SEED, REPEATS = 0, 7
SIZES = ((100, 20), (1000, 20), (1000, 64), (4000, 20), (10000, 20))
"""Lanes, and the largest N among them."""

WARM = 4000  # more lanes are searched once


def use_devices(devices: int) -> None:
    """Split the CPU into so many devices, before JAX starts."""
    import jax

    if devices > 1:
        jax.config.update("jax_num_cpu_devices", devices)


def main_job(devices: int) -> dict[str, Any]:
    """Run all 34 searches of the main job: first call (compiles), then warm calls. For a process of its own."""
    use_devices(devices)
    import jax

    from hso_jax import lanes, preset, search_many

    many = lanes([preset("sd21-base")], range(4, 21), layouts=("node", "interval"), seeds=[SEED])
    first, *warm = (seconds_of(lambda: search_many(many)) for _ in range(REPEATS + 1))
    dtype = str(jax.dtypes.canonicalize_dtype(float))
    return {"devices": [str(d) for d in jax.devices()], "dtype": dtype, "first": first, "warm": warm}


def many_lanes(count: int, nfe_max: int, devices: int) -> dict[str, Any]:
    """Search `count` lanes of all presets x N x seeds in one call. For a process of its own."""
    use_devices(devices)
    from hso_jax import Hso, Schedule, lanes, preset, search_many
    from hso_jax.noise import PRESETS

    noises, nfes = [preset(name) for name in PRESETS], range(4, nfe_max + 1)
    seeds = range(-(-count // (len(noises) * len(nfes))))
    many = list(itertools.islice(lanes(noises, nfes, seeds=seeds, method=Hso(relax=True)), count))
    found: list[Schedule] = []
    seconds = seconds_of(lambda: found.extend(search_many(many)))
    bad = sum(s.result != "converged" for s in found)
    warm = seconds_of(lambda: search_many(many)) if count <= WARM else None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"seconds": seconds, "warm": warm, "peak_gib": peak, "not_converged": bad}


def in_process(*command: str, **environment: str) -> str:
    """Run Python in a fresh process; returns the last line that it prints."""
    env = {**os.environ, **environment}
    done = subprocess.run([sys.executable, *command], check=True, capture_output=True, text=True, env=env)
    return (done.stdout.splitlines() or [""])[-1]


def called(expression: str) -> dict[str, Any]:
    """Evaluate a call in this module, in a fresh process."""
    code = f"import json; from benchmarks.speed import __main__ as speed; print(json.dumps(speed.{expression}))"
    return dict(json.loads(in_process("-c", code)))


def report(quick: bool) -> str:
    """Measure everything; returns Markdown."""
    import jax

    cores = os.cpu_count() or 1
    job = called(f"main_job({cores})")
    warm = statistics.median(job["warm"])
    with tempfile.TemporaryDirectory() as folder:
        command = ("-m", "hso_jax", "search", "-o", f"{folder}/schedules.json")
        run = lambda: in_process(*command, JAX_COMPILATION_CACHE_DIR=folder)  # noqa: E731
        cold, cached = seconds_of(run), seconds_of(run)
    rows = [
        ["devices, dtype", f"{', '.join(job['devices'])}, {job['dtype']}"],
        ["first call, with tracing and compilation", f"{job['first']:.2f}"],
        ["warm", f"{warm:.3f} ({min(job['warm']):.3f}..{max(job['warm']):.3f})"],
        ["`hso-jax search`, process start to saved file, cold", f"{cold:.2f}"],
        ["the same with the compilation cache", f"{cached:.2f}"],
    ]
    if not quick:
        # The tests' oracle runs as a program, so that nothing here imports from the tests.
        for layout, seconds in json.loads(in_process(str(ROOT / "tests" / "oracles" / "scipy_search.py"))).items():
            rows.append([f"SciPy, N = 4 {layout} alone", f"{seconds:.2f} = {seconds / warm:.0f} times all 34 warm"])
    text = f"""# Speed of the search

{platform.machine()}, {cores} cores, Python {platform.python_version()}, JAX {jax.__version__}, seed {SEED}.
Made by `python -m benchmarks.speed`. Seconds; warm figures are medians of {REPEATS} calls (smallest..largest).

{markdown(["34 searches: N = 4..20, both layouts, SD 2.1-base", ""], rows, left=2)}"""
    return text if quick else text + lanes_table(cores)


def lanes_table(cores: int) -> str:
    """Measure many lanes."""
    rows = []
    for count, nfe_max in SIZES:
        row = called(f"many_lanes({count}, {nfe_max}, {cores})")
        rate = count / float(row["warm"] or row["seconds"])
        shown = "-" if row["warm"] is None else f"{row['warm']:.2f}"
        figures = (f"{row['seconds']:.1f}", shown, f"{rate:.0f}", f"{row['peak_gib']:.2f}", str(row["not_converged"]))
        rows.append([str(count), str(nfe_max), *figures])
    head = ["lanes", "N up to", "first call", "warm", "warm lanes per second", "peak memory, GiB", "not converged"]
    end = "For 10,000 lanes the rate counts the first call, compilation included."
    return f"\n{markdown(head, rows, left=len(head))}\n{end}\n"


def main() -> None:
    """Measure, print, write."""
    parser = runner.command("python -m benchmarks.speed", __doc__)
    parser.add_argument("--quick", action="store_true", help="only the main job")
    parser.add_argument("-o", "--output", type=Path, default=OUTPUT)
    args = parser.parse_args()
    from hso_jax.files import write_whole

    text = report(args.quick)
    print(text)
    write_whole(args.output, text.encode())


if __name__ == "__main__":
    main()
