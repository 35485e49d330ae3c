"""Nodes and coefficients that others learned with gradients on their network, run beside ours on our flow network.

python -m benchmarks.learned --file PATH         docs/results/learned.md
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from benchmarks import metrics
from benchmarks.arguments import exit_code, parser
from benchmarks.methods.flow_time import flow_time
from benchmarks.models.subjects import Subject
from benchmarks.networks.tables import markdown, number
from hso_jax import baseline, zoo
from hso_jax.files import write_whole
from hso_jax.solvers import NONSTATIONARY

OUT = Path("docs/results/learned.md")
MODEL, COUNT = "emoji-flow", 64
RULES = ("trailing", "flow-2", "flow-3")
KNOWN = ("dpmpp-2m", "unipc-3")

HOW = """\
# Coefficients that others learned, and ours

Made by `python -m benchmarks.learned --file PATH`. NeuralSolver (arXiv 2505.21114) learned nodes and multistep
coefficients with gradients on class-conditional ImageNet flows (SiT-XL, FlowDCN; guidance about 1.4). Here they sample
from the project's own flow network, {model}, which neither they nor our search has seen, without guidance: RMSE to the
converged samples of the same noise, {count} images. Ours is the zoo's non-stationary schedule, which no network was
looked at for; the best rule is the best of {rules} with DPM++ 2M or UniPC-3. Theirs were not made for this network, nor
for guidance 1: the table says what either is worth on a model that it was not made for, no more.
"""


class Learned(NamedTuple):
    """A solver in velocities: `x' = x + (s_i - s_{i+1}) ((1 - sum_j c_ij) v_i + sum_j c_ij v_j)`, v = data - noise.

    Attributes:
        levels: [N + 1] flow times s, falling; the last is 0.
        coefficients: [N, N] c, of earlier velocities j < i.
    """

    levels: np.ndarray
    coefficients: np.ndarray


def read(path: Path) -> dict[int, Learned]:
    """By N, those entries of a file of published schedules whose note has coefficients.

    Raises:
        ValueError: for a file without any, or coefficients of another shape.
    """
    found = {}
    for i, entry in enumerate(json.loads(path.read_text(encoding="utf-8"))["entries"]):
        note = entry.get("note", "")
        if not (isinstance(note, str) and note.startswith("{")):
            continue
        levels = np.asarray(entry["values"], np.float64)
        rows = np.asarray(json.loads(note)["coeffs"], np.float64)
        if rows.shape != (entry["N"],) * 2 or levels.shape != (entry["N"] + 1,) or np.triu(rows).any():
            raise ValueError(f"{path}, entries[{i}]: coefficients {rows.shape} and {levels.shape[0]} levels do not fit")
        levels[-1] = 0.0
        found[int(entry["N"])] = Learned(levels, rows)
    if not found:
        raise ValueError(f"{path} has no entry with coefficients")
    return found


def run(learned: Learned, subject: Subject) -> torch.Tensor:
    """Its samples of the subject's noises."""
    x, past = subject.start, list[torch.Tensor]()
    for i, row in enumerate(learned.coefficients):
        s, then = learned.levels[i : i + 2]
        past.append(-subject.predict(x, float(s) * 1000.0))
        mixed = (1.0 - row.sum()) * past[i]
        for j in range(i):
            mixed = mixed + row[j] * past[j]
        x = x + float(s - then) * mixed
    return x


def measure(every: dict[int, Learned], subject: Subject) -> list[list[str]]:
    """A row an N."""
    truth = subject.teacher().images

    def rmse(images: torch.Tensor) -> float:
        return float(np.sqrt(metrics.mean_squares(images, truth).mean()))

    rows = []
    for nfe, one in sorted(every.items()):
        rules = {}
        for name in RULES:
            made = baseline(name, subject.noise, nfe) if name == "trailing" else flow_time(name, subject.noise, nfe)
            for solver in KNOWN:
                rules[name, solver] = rmse(subject.sample(made, solver).images)
        best = min(rules, key=rules.__getitem__)
        known = min((zoo(subject.noise, nfe, s) for s in KNOWN), key=lambda s: s.error or 0.0)
        ours = zoo(subject.noise, nfe, NONSTATIONARY if nfe <= 12 else None)
        figures = [rules[best], rmse(subject.sample(known, known.solver).images), rmse(run(one, subject))]
        figures.append(rmse(subject.sample(ours, ours.solver).images))
        rows.append([str(nfe), f"`{best[0]}`, {best[1]}", *map(number, figures)])
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code, 2 for bad input."""
    options = parser("python -m benchmarks.learned", __doc__)
    options.add_argument("--file", type=Path, required=True, help="published schedules, some with coefficients")
    options.add_argument("-o", "--output", type=Path, default=OUT, help="default %(default)s")
    return exit_code(_run, options.parse_args(argv), "nothing")


def _run(args: argparse.Namespace) -> int:
    every = {n: one for n, one in read(args.file).items() if n <= 10}
    rows = measure(every, Subject(MODEL, count=COUNT))
    head = ["N", "best rule", "its RMSE", "zoo, known solver", "NeuralSolver", "zoo, nonstationary"]
    text = HOW.format(model=MODEL, count=COUNT, rules=", ".join(RULES)) + "\n" + markdown(head, rows, left=2)
    write_whole(args.output, text.encode())
    print(f"wrote {args.output}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
