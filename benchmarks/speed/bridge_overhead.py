"""What an installed schedule costs: `with_schedule`, `set_timesteps`, and a step in the parent's time.

    OMP_NUM_THREADS=1 python -m benchmarks.speed.bridge_overhead

Prints one row a scheduler: milliseconds to install (the model's noise schedule is known from the first call on),
milliseconds of `set_timesteps` and of the parent's, microseconds of a step and its ratio to the parent's, each the
median of many runs on a [1, 4, 64, 64] sample.
"""

from __future__ import annotations

import inspect
import logging
import statistics
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import diffusers
import numpy as np
import torch

from benchmarks.speed import seconds_of
from bridge import noise_schedule_of, with_schedule
from bridge.schedulers.rows import ROWS
from hso_jax import Schedule

NFE, REPEATS, SEED = 10, 40, 0
SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def median(work: Callable[[], Any]) -> float:
    """Time one call in seconds, the median."""
    return statistics.median(seconds_of(work) for _ in range(REPEATS))


def steps(scheduler: Any, sample: torch.Tensor) -> float:
    """Time a step in seconds, the median of whole runs."""
    if hasattr(scheduler, "is_scale_input_called"):
        scheduler.is_scale_input_called = True

    def run() -> None:
        for t in scheduler.timesteps:
            scheduler.step(sample, t, sample)

    seconds = []
    for _ in range(REPEATS):
        scheduler.set_timesteps(NFE)
        seconds.append(seconds_of(run) / len(scheduler.timesteps))
    return statistics.median(seconds)


def main() -> None:
    """Print the table."""
    warnings.simplefilter("ignore")
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    print(f"diffusers {diffusers.__version__}, torch {torch.__version__}, cpu, float32, 1 thread, N {NFE}, seed {SEED}")
    print(f"{'scheduler':32} {'install ms':>10} {'set ms':>8} {'parent':>8} {'step us':>8} {'ratio':>6}")
    sample = torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(SEED))
    for name in ROWS:
        made = getattr(diffusers, name)
        known = inspect.signature(made.__init__).parameters
        config = {**SD, "skip_prk_steps": True}
        plain = made(**{key: value for key, value in config.items() if key in known})
        t = np.linspace(0.98, 0.08, NFE)  # on the distillation grid of LCM and TCD
        schedule = Schedule.from_t(noise_schedule_of(plain), t)
        installed = with_schedule(plain, schedule)
        install = median(partial(with_schedule, plain, schedule))
        setting = [median(partial(s.set_timesteps, NFE)) for s in (installed, plain)]
        row = f"{name:32} {install * 1e3:10.2f} {setting[0] * 1e3:8.2f} {setting[1] * 1e3:8.2f}"
        try:
            ours, theirs = steps(installed, sample), steps(plain, sample)
            print(f"{row} {ours * 1e6:8.0f} {ours / theirs:6.2f}", flush=True)
        except (TypeError, IndexError):
            print(f"{row}   its step takes other arguments", flush=True)


if __name__ == "__main__":
    main()
