"""Speed of the batched search, compile and run apart, beside a SciPy re-derivation of the paper's search.

    python -m benchmarks.speed                     prints the tables and writes docs/results/speed.md
    python -m benchmarks.speed --before FOLDER     with another checkout's figures beside, measured in the same run
    python -m benchmarks.speed --quick             without the many lanes and SciPy

Each measurement is a process of its own, the other checkout's right after it. Seconds of all cores are told beside
those of the clock: they hold on a busy machine too.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import runner
from benchmarks.speed.jobs import REPEATS, SEED, WARM
from benchmarks.tables import markdown

ROOT = Path(__file__).parents[2]
OUTPUT = ROOT / "docs" / "results" / "speed.md"
SIZES = ((100, 20), (1000, 20), (10000, 20))
"""Lanes, and the largest N among them."""


def in_process(*command: str, tree: Path = ROOT, **environment: str) -> str:
    """Run Python in a fresh process, with a checkout's packages; returns the last line that it prints."""
    env = {**os.environ, **environment, "PYTHONPATH": str(tree)}
    done = subprocess.run([sys.executable, *command], check=True, capture_output=True, text=True, env=env, cwd=tree)
    return (done.stdout.splitlines() or [""])[-1]


def called(tree: Path, job: str, *counts: int) -> dict[str, Any]:
    """Run one of the jobs, in a fresh process."""
    numbers = map(str, (os.cpu_count() or 1, *counts))
    return dict(json.loads(in_process(str(Path(__file__).with_name("jobs.py")), job, *numbers, tree=tree)))


def process(tree: Path, *options: str, **environment: str) -> tuple[float, float]:
    """Time a whole process of Python."""
    begin, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    in_process(*options, tree=tree, **environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cores = after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime
    return time.perf_counter() - begin, cores


def shown(seconds: tuple[float, float]) -> str:
    """Write seconds of the clock and of all cores."""
    return f"{seconds[0]:.2f} ({seconds[1]:.2f})"


def multiple(seconds: tuple[float, float], unit: tuple[float, float]) -> str:
    """Write how often the one is the other, by the clock and of all cores."""
    return f"{seconds[0] / unit[0]:.1f} ({seconds[1] / unit[1]:.1f})"


def one_call(trees: list[Path]) -> list[list[str]]:
    """Measure the main job and the command; a row each, a column a checkout."""
    jobs = [called(tree, "main_job") for tree in trees]
    starts = []
    for tree in trees:
        with tempfile.TemporaryDirectory() as folder:
            search = ("-m", "hso_jax", "search", "--force", "-o", f"{folder}/schedules.json")
            cold, cached = (process(tree, *search, JAX_COMPILATION_CACHE_DIR=folder) for _ in range(2))
        jax_alone = process(tree, "-c", "import jax; jax.jit(lambda x: x + 1)(1.)")
        starts.append((jax_alone, cold, cached))
    recommended = [process(tree, "-m", "hso_jax", "recommend", "--model", "sdxl", "--nfe", "6") for tree in trees]
    imported = [process(tree, "-c", "import hso_jax") for tree in trees]
    middle = [tuple(statistics.median(column) for column in zip(*job["warm"], strict=True)) for job in jobs]
    return [
        ["devices, dtype", *(f"{', '.join(job['devices'])}, {job['dtype']}" for job in jobs)],
        ["`import jax; jax.jit(lambda x: x + 1)(1.)`, a whole process", *(shown(alone) for alone, *_ in starts)],
        ["34 searches: first call, with tracing and compilation", *(shown(job["first"]) for job in jobs)],
        ["34 searches: warm", *(shown(seconds) for seconds in middle)],
        ["`hso-jax search`, a whole process, cold", *(shown(cold) for _, cold, _ in starts)],
        ["as a multiple of JAX alone", *(multiple(cold, alone) for alone, cold, _ in starts)],
        ["the same with the programs of an earlier process", *(shown(cached) for *_, cached in starts)],
        ["as a multiple of JAX alone", *(multiple(cached, alone) for alone, _, cached in starts)],
        ["`hso-jax recommend --model sdxl --nfe 6`, a whole process", *map(shown, recommended)],
        ["`import hso_jax`, a whole process", *map(shown, imported)],
    ]


def lanes_rows(trees: list[Path], sizes: tuple[tuple[int, int], ...]) -> list[list[str]]:
    """Measure many lanes; a row a size and checkout."""
    rows = []
    for count, nfe_max in sizes:
        for tree in trees if count <= WARM else [ROOT]:
            found = called(tree, "many_lanes", count, nfe_max)
            last = found["warm"] or found["first"]
            rates = f"{count / last[0]:.0f}", f"{1e3 * last[1] / count:.2f}"
            figures = (shown(found["first"]), *rates, f"{found['peak_gib']:.2f}", str(found["not_converged"]))
            rows.append([str(count), str(nfe_max), "" if tree == ROOT else "before", *figures])
    return rows


def main() -> None:
    """Measure, print, write."""
    parser = runner.command("python -m benchmarks.speed", __doc__)
    parser.add_argument("--quick", action="store_true", help="only the main job")
    parser.add_argument("--before", type=Path, help="checkout of an older state")
    parser.add_argument("--most", type=int, default=10000, help="leave out rows of more lanes; default %(default)s")
    parser.add_argument("-o", "--output", type=Path, default=OUTPUT)
    args = parser.parse_args()
    from hso_jax.files import write_whole

    trees = [ROOT] if args.before is None else [ROOT, args.before.resolve()]
    names = ["now", "before"][: len(trees)]
    made_with = f"Python {platform.python_version()}, JAX {importlib.metadata.version('jax')}"
    options = ("" if args.before is None else " --before FOLDER") + (
        f" --most {args.most}" if args.most < 10000 else ""
    )
    text = f"""# Speed of the search

{platform.machine()}, {os.cpu_count()} cores, {made_with}, seed {SEED}.
Made by `python -m benchmarks.speed{options}`. Seconds of the clock, and in
brackets of all cores, which a busy machine changes less; warm figures are medians of {REPEATS} calls.

{markdown(["", *names], one_call(trees), left=1)}"""
    if not args.quick:
        # The tests' oracle runs as a program, so that nothing here imports from the tests.
        scipy = json.loads(in_process(str(ROOT / "tests" / "oracles" / "scipy_search.py")))
        each = ", ".join(f"{seconds:.2f} for {layout}" for layout, seconds in scipy.items())
        columns = "lanes|N up to||first call|lanes a second, warm|ms of a core a lane|peak GiB|not converged"
        head = columns.split("|")
        rows = lanes_rows(trees, tuple(size for size in SIZES if size[0] <= args.most))
        text += f"\nSciPy takes {each}, of one search at N = 4.\n\n{markdown(head, rows, left=3)}"
        if args.most > WARM:
            text += f"\nFor more than {WARM} lanes the rate is of the first call, compilation included.\n"
    print(text)
    write_whole(args.output, text.encode())


if __name__ == "__main__":
    main()
