"""What an installed schedule costs, and a step of `NonstationaryScheduler` beside one of diffusers' DPM-Solver++.

    OMP_NUM_THREADS=1 python -m benchmarks.speed.steps [--device cuda]

A row a scheduler: milliseconds to install (the model's noise schedule is known from the first call on), milliseconds of
`set_timesteps` and of the parent's, microseconds of a step and its ratio to the parent's. Then microseconds of a step
of `NonstationaryScheduler` and of DPM-Solver++ of the order whose history is as long (of order 3 beside H = 4), turn by
turn at the same nodes, and the ratio. All are medians of many runs of N = 10, the device waited for after each.
"""

from __future__ import annotations

import dataclasses
import inspect
import logging
import statistics
import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any

import diffusers
import numpy as np
import torch

from benchmarks import runner
from benchmarks.speed.jobs import seconds_of
from benchmarks.tables import markdown
from bridge import NonstationaryScheduler, noise_schedule_of, with_schedule
from bridge.schedulers.rows import ROWS
from hso_jax import Schedule
from hso_jax.schedule import Origin
from hso_jax.solvers import NONSTATIONARY

NFE, REPEATS, SEED = 10, 40, 0
SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SHAPES = ((1, 4, 64, 64), (1, 4096, 64), (4, 4096, 64))
"""Latents of Stable Diffusion at 512 pixels, of one and of four images of FLUX at 1024."""


def seconds_a_step(scheduler: Any, sample: torch.Tensor) -> float:
    """Of one run, from the first step on."""
    scheduler.set_timesteps(NFE, device=sample.device)
    if hasattr(scheduler, "is_scale_input_called"):
        scheduler.is_scale_input_called = True
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)  # as pipelines do: no step then asks the device where it is
    wait(sample)

    def run() -> None:
        for t in scheduler.timesteps:
            scheduler.step(sample, t, sample, return_dict=False)
        wait(sample)

    return seconds_of(run)[0] / len(scheduler.timesteps)


def wait(sample: torch.Tensor) -> None:
    """Until the device is done."""
    if sample.is_cuda:
        torch.cuda.synchronize()


def steps(ours: Any, theirs: Any, sample: torch.Tensor) -> list[str]:
    """Time a step of two schedulers, turn by turn: microseconds of both, and the ratio."""
    runs = [[seconds_a_step(s, sample) for s in (ours, theirs)] for _ in range(REPEATS + 1)][1:]
    one, other = (statistics.median(column) for column in zip(*runs, strict=True))
    return [f"{one * 1e6:.0f}", f"{other * 1e6:.0f}", f"{one / other:.2f}"]


def installed(sample: torch.Tensor) -> Iterator[list[str]]:
    """A row a scheduler that schedules are installed in."""
    for name in ROWS:
        made = getattr(diffusers, name)
        known = inspect.signature(made.__init__).parameters
        plain = made(**{key: x for key, x in {**SD, "skip_prk_steps": True}.items() if key in known})
        t = np.linspace(0.98, 0.08, NFE)  # on the distillation grid of LCM and TCD
        schedule = Schedule.from_t(noise_schedule_of(plain), t)
        ours = with_schedule(plain, schedule)
        works = (
            partial(with_schedule, plain, schedule),
            partial(ours.set_timesteps, NFE),
            partial(plain.set_timesteps, NFE),
        )
        row = [name, *(f"{1e3 * statistics.median(seconds_of(work)[0] for _ in range(REPEATS)):.2f}" for work in works)]
        try:
            yield [*row, *steps(ours, plain, sample)]
        except (TypeError, IndexError):
            yield [*row, "its step takes other arguments", "", ""]


def nonstationary(device: torch.device) -> Iterator[list[str]]:
    """A row a sample, dtype and length of history."""
    generator = torch.Generator().manual_seed(SEED)
    for shape in SHAPES:
        for dtype in (torch.float32, torch.bfloat16):
            sample = torch.randn(shape, generator=generator).to(device, dtype)
            for history in (2, 3, 4):
                order = min(history, 3)
                theirs = diffusers.DPMSolverMultistepScheduler(**SD, solver_order=order, lower_order_final=False)
                plain = Schedule.from_t(noise_schedule_of(theirs), np.linspace(0.98, 0.05, NFE))
                c = np.tril(np.random.default_rng(SEED).normal(scale=0.2, size=(NFE, history - 1)), -1)
                schedule = dataclasses.replace(plain, origin=Origin(solver=NONSTATIONARY), coefficients=c)
                ours = NonstationaryScheduler.from_schedule(theirs, schedule)
                told = ["x".join(map(str, shape)), str(dtype).removeprefix("torch."), str(history)]
                yield [*told, *steps(ours, theirs, sample)]


def main() -> None:
    """Print both tables."""
    parser = runner.command("python -m benchmarks.speed.steps", __doc__)
    parser.add_argument("--device", default="cpu", help="cpu or cuda; default %(default)s")
    device = torch.device(parser.parse_args().device)
    warnings.simplefilter("ignore")
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu, 1 thread"
    print(f"diffusers {diffusers.__version__}, torch {torch.__version__}, {name}, N {NFE}, seed {SEED}\n")
    sample = torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(SEED)).to(device)
    head = ["scheduler", "install ms", "set ms", "parent's", "step us", "parent's", "ratio"]
    print(markdown(head, installed(sample)))
    head = ["sample", "dtype", "H", "ours us", "DPM++ us", "ratio"]
    print(markdown(head, nonstationary(device), left=2))


if __name__ == "__main__":
    main()
