"""NeuralSolver's published nodes and coefficients on the flow networks at hand, beside ours of the same N.

python -m benchmarks.neuralsolver --file PATH --networks PATH       docs/results/neuralsolver.md, in minutes
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks import published, runner
from benchmarks.models.load import MODELS
from benchmarks.published import Steps
from benchmarks.tables import geometric_mean, markdown, number
from benchmarks.targets import Denoiser, Judged, Networks, Target
from benchmarks.tuning import FINE, JUDGED
from bridge import Level
from hso_jax import Schedule, SolverError, baseline, search
from hso_jax.files import write_whole
from hso_jax.noise import lam_of_s
from hso_jax.solvers import NONSTATIONARY

OUT = Path("docs/results/neuralsolver.md")
SOURCE = "NeuralSolver"
MAX_NFE = 10

HOW = """\
# NeuralSolver's solver on other networks

Made by `python -m benchmarks.neuralsolver --file PATH --networks PATH`. The nodes and coefficients that Wang et al.
(arXiv 2505.21114) learned by gradients through FlowDCN and SiT on ImageNet's latents, run as they are on the flow
networks at hand, guidance 1; beside them what `SolverError("nonstationary")` finds without any network, and a usual
rule. RMSE to converged samples. Theirs was learned for other networks, and with a guidance weight of 1.4 to 1.5: what
this says is how far a solver that one network was asked for carries, not how good it is there.
"""


def read(path: Path) -> dict[int, Steps]:
    """N to the solver, of the entries whose source begins with `SOURCE`."""
    own = [one for one in published.read(path) if one.source.startswith(SOURCE)]
    found = {len(one.lams): one.steps for one in own if one.steps is not None and len(one.lams) <= MAX_NFE}
    if not found:
        raise ValueError(f"{path} has no coefficients of {SOURCE}")
    return found


def sample(one: Target, steps: Steps, latents: torch.Tensor) -> torch.Tensor:
    """Sample [n, ...] by N evaluations."""

    def solve(denoiser: Denoiser, x: torch.Tensor) -> torch.Tensor:
        velocities = list[torch.Tensor]()
        for s, gains in zip(steps.levels, steps.gains, strict=True):
            lam = float(lam_of_s(s))
            told = 1.0 if s == 1.0 else one.noise.t_of_lam(np.asarray(lam))
            level = Level(float(one.noise.timestep(np.asarray(told))), 1.0 - float(s), float(s), lam)
            velocities.append((x - denoiser(x, level)) / float(s))
            x = x + sum(float(gain) * v for gain, v in zip(gains, velocities, strict=False))
        return x

    return one.each(solve, latents)


def rows(one: Target, learned: dict[int, Steps]) -> list[list[str]]:
    """Measure a network, a row an N."""
    judged, found = Judged(one, one.count(JUDGED), FINE), []

    def error(schedule: Schedule, solver: str) -> float:
        return judged.rmse(one.sample(schedule, solver, judged.latents))

    for nfe, steps in sorted(learned.items()):
        theirs = judged.rmse(sample(one, steps, judged.latents))
        schedule = search(one.noise, nfe, method=SolverError(NONSTATIONARY))
        ours = error(schedule, schedule.solver)
        plain = error(baseline("trailing", one.noise, nfe), "dpmpp-2m")
        found.append([one.name, str(nfe), *map(number, (theirs, ours, plain)), f"{ours / theirs:.2f}"])
        print(" ".join(found[-1]), flush=True)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code, 2 for bad input."""
    parser = runner.command("python -m benchmarks.neuralsolver", __doc__)
    add = parser.add_argument
    add("--file", type=Path, required=True, metavar="PATH", help="the list of published schedules")
    add("--networks", type=Path, metavar="PATH", help="folder with networks.py; without, the project's own flow alone")
    add("-o", "--out", type=Path, default=OUT, metavar="FILE", help="default %(default)s")
    return runner.exit_code(_run, parser.parse_args(argv), "no results")


def _run(args: argparse.Namespace) -> int:
    learned, found, networks = read(args.file), [], Networks(args.networks)
    for name in (*MODELS, *networks.names()):
        one = networks.target(name)
        if one.noise.kind == "flow":
            found += rows(one, learned)
    mean = f"{geometric_mean([float(row[-1]) for row in found]):.2f}"
    found.append(["all", "", "", "", "geometric mean", mean])
    head = ["network", "N", "NeuralSolver", "ours", "DPM++ 2M, `trailing`", "ours / theirs"]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(args.out, f"{HOW}\n{markdown(head, found, left=1)}".encode())
    print(f"wrote {args.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
