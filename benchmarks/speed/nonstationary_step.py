"""What a step of `NonstationaryScheduler` costs beside one of diffusers' DPM-Solver++, in one run.

    OMP_NUM_THREADS=1 python -m benchmarks.speed.nonstationary_step [--device cuda]

Both sample the same nodes of Stable Diffusion, N = 10, turn by turn; microseconds a step (the median of many runs, the
device waited for after each) and the ratio. DPM-Solver++ is of the order whose history is as long, H = 2 and 3, and of
order 3 beside H = 4.
"""

from __future__ import annotations

import dataclasses
import statistics
from typing import Any

import diffusers
import numpy as np
import torch

from benchmarks import runner
from benchmarks.speed import seconds_of
from bridge import NonstationaryScheduler, noise_schedule_of
from hso_jax import Schedule
from hso_jax.schedule import Origin
from hso_jax.solvers import NONSTATIONARY

NFE, REPEATS, SEED = 10, 200, 0
SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SHAPES = ((1, 4, 64, 64), (1, 4096, 64), (4, 4096, 64))
"""Latents of Stable Diffusion at 512 pixels, of one and of four images of FLUX at 1024."""


def pair(history: int) -> tuple[Any, Any]:
    """The scheduler with random coefficients, and DPM-Solver++ of a like order."""
    theirs = diffusers.DPMSolverMultistepScheduler(**SD, solver_order=min(history, 3), lower_order_final=False)
    plain = Schedule.from_t(noise_schedule_of(theirs), np.linspace(0.98, 0.05, NFE))
    c = np.tril(np.random.default_rng(SEED).normal(scale=0.2, size=(NFE, history - 1)), -1)
    schedule = dataclasses.replace(plain, origin=Origin(solver=NONSTATIONARY), coefficients=c)
    return NonstationaryScheduler.from_schedule(theirs, schedule), theirs


def seconds_a_step(scheduler: Any, sample: torch.Tensor) -> float:
    """Of one run, from the first step on."""
    scheduler.set_timesteps(NFE, device=sample.device)
    scheduler.set_begin_index(0)  # as pipelines do: no step then asks the device where it is
    wait(sample)

    def run() -> None:
        x = sample
        for t in scheduler.timesteps:
            x = scheduler.step(sample, t, x, return_dict=False)[0]
        wait(sample)

    return seconds_of(run) / NFE


def wait(sample: torch.Tensor) -> None:
    """Until the device is done."""
    if sample.is_cuda:
        torch.cuda.synchronize()


def measured(history: int, sample: torch.Tensor) -> tuple[float, float]:
    """Median seconds of a step, ours and DPM-Solver++'s."""
    schedulers = pair(history)
    for scheduler in schedulers:
        seconds_a_step(scheduler, sample)
    runs = [[seconds_a_step(scheduler, sample) for scheduler in schedulers] for _ in range(REPEATS)]
    ours, theirs = (statistics.median(column) for column in zip(*runs, strict=True))
    return ours, theirs


def main() -> None:
    """Print the table."""
    parser = runner.command("python -m benchmarks.speed.nonstationary_step", __doc__)
    parser.add_argument("--device", default="cpu", help="cpu or cuda; default %(default)s")
    args = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(args.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu, 1 thread"
    print(f"diffusers {diffusers.__version__}, torch {torch.__version__}, {name}, N {NFE}, seed {SEED}")
    print(f"{'sample':18} {'dtype':9} {'H':>2} {'ours us':>9} {'DPM++ us':>9} {'ratio':>6}")
    generator = torch.Generator().manual_seed(SEED)
    for shape in SHAPES:
        for dtype in (torch.float32, torch.bfloat16):
            sample = torch.randn(shape, generator=generator).to(device, dtype)
            for history in (2, 3, 4):
                ours, theirs = measured(history, sample)
                row = f"{'x'.join(map(str, shape)):18} {str(dtype).removeprefix('torch.'):9} {history:2}"
                print(f"{row} {ours * 1e6:9.1f} {theirs * 1e6:9.1f} {ours / theirs:6.2f}")


if __name__ == "__main__":
    main()
