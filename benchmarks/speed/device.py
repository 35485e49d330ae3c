"""Searches on whatever device JAX finds, compilation and run apart, beside the CPU; at most ten minutes anywhere.

    python -m benchmarks.speed.device

Each row is a process of its own. Lanes a second are of the second call. The CPU has fewer lanes, for time's sake.
"""

from __future__ import annotations

import json
import time
from typing import Any

from benchmarks import runner
from benchmarks.speed.__main__ import in_process
from benchmarks.tables import markdown

LIMIT = 540  # seconds in all; what is left out after them is named
JOBS = {"HSO": ("hso", 4096, 256), "solver-error": ("solver-error", 64, 2), "nonstationary": ("nonstationary", 16, 1)}
"""Method, lanes on an accelerator, lanes on a CPU."""


def lanes_of(method: str, count: int) -> list[Any]:
    """Lanes of Stable Diffusion, N = 4..10, by seeds."""
    from hso_jax import Hso, SolverError, lanes, preset

    how: Any = {"hso": Hso(), "solver-error": SolverError(), "nonstationary": SolverError("nonstationary")}[method]
    seeds = range(-(-count // 7))
    return lanes([preset("sd15")], range(4, 11), seeds=seeds, method=how)[:count]


def timed(method: str, count: int) -> dict[str, Any]:
    """Search twice, in this process."""
    import jax

    from benchmarks.speed import seconds_of
    from hso_jax import search_many

    many = lanes_of(method, count)
    first, second = (seconds_of(lambda: search_many(many)) for _ in range(2))
    return {"device": f"{len(jax.devices())} x {jax.devices()[0].device_kind}", "first": first, "second": second}


def called(method: str, count: int, **environment: Any) -> dict[str, Any]:
    """Time a method in a process of its own."""
    code = f"import json; from benchmarks.speed import device; print(json.dumps(device.timed('{method}', {count})))"
    return dict(json.loads(in_process("-c", code, **environment)))


def main() -> None:
    """Print the table."""
    runner.command("python -m benchmarks.speed.device", __doc__).parse_args()
    begin, rows = time.perf_counter(), []
    platform = in_process("-c", "import jax; print(jax.default_backend())")
    for name, (method, many, few) in JOBS.items():
        if time.perf_counter() - begin > LIMIT / 2:
            print(f"{name} is left out: the others took {time.perf_counter() - begin:.0f} s")
            continue
        count = few if platform == "cpu" else many
        found = called(method, count)
        rate = count / found["second"]
        row = [name, found["device"], str(count), f"{found['first'] - found['second']:.1f}", f"{rate:.1f}"]
        if platform != "cpu":
            row.append(f"{rate * called(method, few, JAX_PLATFORMS='cpu')['second'] / few:.1f}")
        rows.append(row)
    head = ["search", "devices", "lanes", "compilation s", "lanes a second", "times the CPU's"]
    print(markdown(head[: max(map(len, rows))], rows, left=2))


if __name__ == "__main__":
    main()
