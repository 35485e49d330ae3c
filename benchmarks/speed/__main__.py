"""Speed of the batched search, compile and run apart, beside a SciPy re-derivation of the paper's search.

    python -m benchmarks.speed            prints the tables and writes docs/results/speed.md
    python -m benchmarks.speed --quick    without the 10,000 lanes and SciPy

Each measurement that depends on a fresh process (cold start, peak memory) starts one.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

OUTPUT = Path(__file__).parents[2] / "docs" / "results" / "speed.md"
SEED = 0
REPEATS = 7


def timed(function: Callable[[], object], repeats: int = REPEATS) -> list[float]:
    """Seconds of each call, after none to warm up."""
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - begin)
    return seconds


def main_job(devices: int) -> dict[str, Any]:
    """All 34 searches of the main job: first call (compiles), then warm calls. Run in a process of its own."""
    import jax

    if devices > 1:
        jax.config.update("jax_num_cpu_devices", devices)
    from hso_jax import lanes, preset, search_many

    many = lanes([preset("sd21-base")], range(4, 21), layouts=("node", "interval"), seeds=[SEED])
    begin = time.perf_counter()
    search_many(many)
    first = time.perf_counter() - begin
    warm = timed(lambda: search_many(many))
    return {
        "devices": [str(d) for d in jax.devices()],
        "dtype": str(jax.dtypes.canonicalize_dtype(float)),
        "first": first,
        "median": statistics.median(warm),
        "spread": [min(warm), max(warm)],
    }


def many_lanes(count: int, nfe_max: int, devices: int) -> dict[str, Any]:
    """`count` lanes of all presets x N x seeds in one call: seconds and peak memory. Run in a process of its own."""
    import itertools
    import resource

    import jax

    if devices > 1:
        jax.config.update("jax_num_cpu_devices", devices)
    from hso_jax import Hso, lanes, preset, search_many
    from hso_jax.noise import PRESETS

    noises = [preset(name) for name in PRESETS]
    nfes = range(4, nfe_max + 1)
    seeds = range(-(-count // (len(noises) * len(nfes))))
    many = list(itertools.islice(lanes(noises, nfes, seeds=seeds, method=Hso(relax=True)), count))
    begin = time.perf_counter()
    found = search_many(many)
    seconds = time.perf_counter() - begin
    again = time.perf_counter()
    if count <= 4000:
        search_many(many)
    warm = time.perf_counter() - again if count <= 4000 else None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    bad = sum(s.result != "converged" for s in found)
    return {"seconds": seconds, "warm": warm, "peak_gib": peak, "not_converged": bad}


def in_process(expression: str) -> dict[str, Any]:
    """The value of a call in this module, from a fresh process."""
    code = f"import json; from benchmarks.speed import __main__ as speed; print(json.dumps(speed.{expression}))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def cold_start() -> tuple[float, float]:
    """Seconds from process start to saved file of `hso-jax search`, without and with its compilation cache."""
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": folder}
        for _ in range(2):
            begin = time.perf_counter()
            command = [sys.executable, "-m", "hso_jax.cli", "search", "-o", f"{folder}/schedules.json"]
            subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
            seconds.append(time.perf_counter() - begin)
    return seconds[0], seconds[1]


def scipy_seconds() -> dict[str, float]:
    """Seconds of the SciPy re-derivation of the paper's search at N = 4, per layout."""
    from benchmarks.speed.scipy_search import LinearNoise, reference_search, sd_lam_table

    noise = LinearNoise(sd_lam_table())
    return {name: timed(functools.partial(reference_search, noise, 4, name), 1)[0] for name in ("node", "interval")}


def report(quick: bool) -> str:
    """Measure everything; returns Markdown."""
    cores = os.cpu_count() or 1
    import jax

    lines = ["# Speed of the search", ""]
    lines += [
        f"{platform.machine()}, {cores} cores, Python {platform.python_version()}, JAX {jax.__version__}, seed {SEED}."
    ]
    lines += [
        "Made by `python -m benchmarks.speed`. Seconds; warm figures are medians of 7 calls (smallest..largest).",
        "",
    ]
    job = in_process(f"main_job({cores})")
    low, high = job["spread"]
    lines += ["| 34 searches: N = 4..20, both layouts, SD 2.1-base | |", "|---|---|"]
    lines += [f"| devices, dtype | {', '.join(job['devices'])}, {job['dtype']} |"]
    lines += [f"| first call, with tracing and compilation | {job['first']:.2f} |"]
    lines += [f"| warm | {job['median']:.3f} ({low:.3f}..{high:.3f}) |"]
    cold, cached = cold_start()
    lines += [f"| `hso-jax search`, process start to saved file, cold | {cold:.2f} |"]
    lines += [f"| the same with the compilation cache | {cached:.2f} |"]
    if not quick:
        scipy = scipy_seconds()
        for layout, seconds in scipy.items():
            ratio = seconds / float(job["median"])
            lines += [f"| SciPy, N = 4 {layout} alone | {seconds:.2f} = {ratio:.0f} times all 34 warm |"]
        lines += [
            "",
            "| lanes | N up to | first call | warm | warm lanes per second | peak memory, GiB | not converged |",
        ]
        lines += ["|---|---|---|---|---|---|---|"]
        for count, nfe_max in ((100, 20), (1000, 20), (1000, 64), (4000, 20), (10000, 20)):
            row = in_process(f"many_lanes({count}, {nfe_max}, {cores})")
            warm = row["warm"]
            rate = count / float(warm or row["seconds"])
            shown = "-" if warm is None else f"{warm:.2f}"
            cells = [count, nfe_max, f"{row['seconds']:.1f}", shown, f"{rate:.0f}", f"{row['peak_gib']:.2f}"]
            lines += ["| " + " | ".join(map(str, [*cells, row["not_converged"]])) + " |"]
        lines += ["", "For 10,000 lanes the rate counts the first call, compilation included."]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="only the main job")
    parser.add_argument("-o", "--output", type=Path, default=OUTPUT)
    args = parser.parse_args()
    from hso_jax.files import write_whole

    text = report(args.quick)
    print(text)
    write_whole(args.output, text.encode())


if __name__ == "__main__":
    main()
