"""NeuralSolver's published nodes and coefficients on the flow networks at hand, beside ours of the same N.

python -m benchmarks.neuralsolver --file PATH --networks PATH       docs/results/neuralsolver.md, in minutes
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from benchmarks import runner
from benchmarks.models.load import MODELS
from benchmarks.tables import geometric_mean, markdown, number
from benchmarks.targets import Denoiser, Judged, Networks, Target
from benchmarks.tuning.report import FINE, JUDGED
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


class Learned(NamedTuple):
    """A published solver: a step adds the mean of the velocities so far, weighted, times its length.

    Attributes:
        s: [N + 1] levels of rectified flow's time from noise to data.
        weights: [N, N] of the velocities, a row a step; lower triangular, rows sum to 1.
    """

    s: np.ndarray
    weights: np.ndarray


def read(path: Path) -> dict[int, Learned]:
    """N to the solver, of the entries whose source begins with `SOURCE`."""
    try:
        entries = [e for e in json.loads(path.read_text())["entries"] if e["source"].startswith(SOURCE)]
        found = {e["N"]: _learned(e["values"], json.loads(e["note"])["coeffs"]) for e in entries if e["N"] <= MAX_NFE}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} has no coefficients of {SOURCE} ({error!r})") from error
    if not found:
        raise ValueError(f"{path} has no coefficients of {SOURCE}")
    return found


def _learned(values: Sequence[float], coefficients: Sequence[Sequence[float]]) -> Learned:
    older = np.tril(np.asarray(coefficients, np.float64), -1)
    s = np.asarray(values, np.float64)
    s[-1] = 0.0  # where it ends, to the rounding of the published steps
    return Learned(s, older + np.diag(1.0 - older.sum(1)))


def sample(one: Target, solver: Learned, latents: torch.Tensor) -> torch.Tensor:
    """Sample [n, ...] by N evaluations."""

    def solve(denoiser: Denoiser, x: torch.Tensor) -> torch.Tensor:
        velocities = list[torch.Tensor]()
        for s, then, weights in zip(solver.s, solver.s[1:], solver.weights, strict=False):
            lam = float(lam_of_s(s))
            told = 1.0 if s == 1.0 else one.noise.t_of_lam(np.asarray(lam))
            level = Level(float(one.noise.timestep(np.asarray(told))), 1.0 - float(s), float(s), lam)
            velocities.append((x - denoiser(x, level)) / float(s))
            mean = sum(float(w) * v for w, v in zip(weights, velocities, strict=False))
            x = x + float(then - s) * mean
        return x

    return one.each(solve, latents)


def rows(one: Target, learned: dict[int, Learned]) -> list[list[str]]:
    """Measure a network, a row an N."""
    judged, found = Judged(one, one.count(JUDGED), FINE), []

    def error(schedule: Schedule, solver: str) -> float:
        return judged.rmse(one.sample(schedule, solver, judged.latents))

    for nfe, solver in sorted(learned.items()):
        theirs = judged.rmse(sample(one, solver, judged.latents))
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
