"""What `python -m benchmarks.speed` times, each in a process of its own and with whatever hso_jax stands on its path.

python benchmarks/speed/jobs.py main_job 2            prints JSON
"""

from __future__ import annotations

import itertools
import json
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

SEED, REPEATS = 0, 7
WARM = 4000
"""More lanes are searched once."""


def seconds_of(function: Callable[[], Any]) -> tuple[float, float]:
    """Time one call: by the clock, and of all cores."""
    begin = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - begin[0], time.process_time() - begin[1]


def main_job() -> dict[str, Any]:
    """Run all 34 searches of the main job: the first call compiles, the others are warm."""
    import jax

    from hso_jax import lanes, preset, search_many

    many = lanes([preset("sd21-base")], range(4, 21), layouts=("node", "interval"), seeds=[SEED])
    first, *warm = (seconds_of(lambda: search_many(many)) for _ in range(REPEATS + 1))
    dtype = str(jax.dtypes.canonicalize_dtype(float))
    return {"devices": [str(d) for d in jax.devices()], "dtype": dtype, "first": first, "warm": warm}


def many_lanes(count: int, nfe_max: int) -> dict[str, Any]:
    """Search `count` lanes of all presets x N x seeds in one call."""
    from hso_jax import Hso, lanes, preset, search_many
    from hso_jax.noise import PRESETS

    noises, nfes = [preset(name) for name in PRESETS], range(4, nfe_max + 1)
    seeds = range(-(-count // (len(noises) * len(nfes))))
    many = list(itertools.islice(lanes(noises, nfes, seeds=seeds, method=Hso(relax=True)), count))
    found: list[Any] = []
    first = seconds_of(lambda: found.extend(search_many(many)))
    bad = sum(s.result != "converged" for s in found)
    warm = seconds_of(lambda: search_many(many)) if count <= WARM else None
    return {"first": first, "warm": warm, "peak_gib": peak(), "not_converged": bad}


def peak() -> float:
    """Return the largest memory of this process so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    name, devices, *counts = sys.argv[1:]
    if int(devices) > 1:
        import jax as _jax

        _jax.config.update("jax_num_cpu_devices", int(devices))
    print(json.dumps(globals()[name](*map(int, counts))))
