"""Searches on whatever device JAX finds, compilation and run apart, beside the CPU; at most ten minutes anywhere.

    python -m benchmarks.speed.device            the table
    python -m benchmarks.speed.device --count    kernels and bytes of the compiled programs, without a run

Each row is a process of its own. Lanes a second are of the second call. The CPU has fewer lanes, for time's sake. Where
there is no accelerator, `--count` says what to expect of one: how many kernels a call starts one after the other (each
some 5 microseconds), and what it reads and writes.
"""

from __future__ import annotations

import json
import re
import time
from typing import Any

from benchmarks import runner
from benchmarks.speed.__main__ import in_process
from benchmarks.tables import markdown

LIMIT = 540  # seconds in all; what is left out after them is named
JOBS = {"HSO": ("hso", 4096, 256), "solver-error": ("solver-error", 64, 2), "nonstationary": ("nonstationary", 16, 1)}
"""Method, lanes on an accelerator, lanes on a CPU."""


class CountedError(Exception):
    """Ends a search whose program has been counted."""


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


def counted(method: str, count: int) -> dict[str, Any]:
    """Count what the first compiled program of a search does, all lanes at once: loops' bodies as often as they run."""
    import jax

    from hso_jax import Effort, batch, search_many

    texts: list[str] = []
    real = batch.under_jax_defaults

    def noted(function: Any) -> Any:
        def call(*args: Any) -> Any:
            if hasattr(function, "lower"):
                texts.append(real(function.lower)(*args).compile().as_text())
                raise CountedError  # nothing is run
            return real(function)(*args)

        return call

    batch.under_jax_defaults = noted
    try:
        search_many(lanes_of(method, count), effort=Effort(lanes=count))
    except CountedError:
        pass
    finally:
        batch.under_jax_defaults = real
    kernels, moved = cost(texts[0])
    return {"device": f"{len(jax.devices())} x {jax.devices()[0].device_kind}", "kernels": kernels, "bytes": moved}


_SIZES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}
_FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast")


def cost(program: str) -> tuple[int, int]:
    """Kernels and bytes written of an HLO text; a loop without a known trip count runs once."""
    bodies: dict[str, list[str]] = {}
    entry = name = ""
    for line in program.splitlines():
        if (head := re.match(r"(ENTRY )?%?([\w.-]+) \(.*->.*\{$", line)) is not None:
            name = head[2]
            bodies[name], entry = [], name if head[1] else entry
        elif " = " in line and name:
            bodies[name].append(line)

    def of(name: str) -> tuple[int, int]:
        kernels = moved = 0
        for line in bodies.get(name, []):
            found = re.search(r" = (.*?) ([a-z][\w-]*)\(", line)
            if found is None or found[2] in _FREE:
                continue
            if found[2] in ("while", "call", "conditional"):
                trips = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
                inner = re.search(r"(?:body|to_apply)=%?([\w.-]+)", line)
                count, size = of(inner[1]) if inner else (0, 0)
                repeats = int(trips[1]) if trips else 1
                kernels, moved = kernels + repeats * count, moved + repeats * size
                continue
            kernels += 1
            for kind, shape in re.findall(r"(\w+)\[([\d,]*)\]", found[1]):
                entries = 1
                for length in filter(None, shape.split(",")):
                    entries *= int(length)
                moved += entries * _SIZES.get(kind, 4)
        return kernels, moved

    return of(entry)


def called(task: str, method: str, count: int, cpu: bool = False) -> dict[str, Any]:
    """Run one of the tasks in a process of its own."""
    code = f"import json; from benchmarks.speed import device; print(json.dumps(device.{task}('{method}', {count})))"
    return dict(json.loads(in_process("-c", code, JAX_PLATFORMS="cpu") if cpu else in_process("-c", code)))


def main() -> None:
    """Print the table."""
    parser = runner.command("python -m benchmarks.speed.device", __doc__)
    parser.add_argument("--count", action="store_true", help="kernels and bytes of the compiled programs")
    args = parser.parse_args()
    begin, rows = time.perf_counter(), []
    platform = in_process("-c", "import jax; print(jax.default_backend())")
    for name, (method, many, few) in JOBS.items():
        if time.perf_counter() - begin > LIMIT / 2:
            print(f"{name} is left out: the others took {time.perf_counter() - begin:.0f} s")
            continue
        if args.count and method != "nonstationary":
            found = called("counted", method, many)
            each = f"{found['bytes'] / many / 2**20:.1f}"
            rows.append([name, found["device"], str(many), str(found["kernels"]), each])
        if args.count:
            continue
        count = few if platform == "cpu" else many
        found = called("timed", method, count)
        rate = count / found["second"]
        row = [name, found["device"], str(count), f"{found['first'] - found['second']:.1f}", f"{rate:.1f}"]
        if platform != "cpu":
            base = called("timed", method, few, cpu=True)
            row.append(f"{rate * base['second'] / few:.1f}")
        rows.append(row)
    if args.count:
        print(markdown(["search", "devices", "lanes", "kernels a call", "MiB written a lane"], rows, left=2))
    else:
        head = ["search", "devices", "lanes", "compilation s", "lanes a second", "times the CPU's"]
        print(markdown(head[: max(map(len, rows))], rows, left=2))


if __name__ == "__main__":
    main()
