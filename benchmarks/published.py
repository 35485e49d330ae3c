"""Schedules that others found on real networks, beside ours and the rules: mean distances of the nodes in lam.

python -m benchmarks.published --file PATH       docs/results/published.md
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import runner
from benchmarks.compared import COMPARED, SHIFTS, SOLVERS, flow_time
from benchmarks.tables import markdown
from hso_jax import Hso, Lane, NoiseSchedule, Schedule, SolverError, baseline, from_config, noise, search_many, zoo
from hso_jax.baselines import inapplicable
from hso_jax.files import write_whole
from hso_jax.noise import lam_of_s
from hso_jax.shipped.zoo import MAX_NFE, shipped_guidance

OUT = Path("docs/results/published.md")
RULES = ("trailing", "karras", "uniform-lam", "beta-t", "ays", "dm-nonuni")
NEEDED = ("source", "model", "noise", "solver", "guidance", "N", "values", "unit")

HOW = """\
# Published schedules, and ours

Made by `python -m benchmarks.published --file PATH` from a list of schedules that others found by optimisation on real
networks. A figure is the distance between a published schedule and the one that its column names: the mean over the
nodes after the first, i = 2..N, of |lam_i - lam'_i|, lam half the log-SNR, the i-th node of the one against the i-th of
the other. The first node is left out: it is the noise end for nearly all of them. Of a published list the N levels that
are evaluated count, not the last one, where the N-th step ends (clean data, in all of them). The smaller, the nearer;
0 is the same schedule. That a schedule lies near one that was found on a network does not say that it is better.

Ours are the columns of solvers: the zoo's schedule for the same noise ends where it has them, else the search's
(`SolverError`), at the shipped guidance weight nearest to the stated one. Where no weight is stated there is a row a
weight. Which solver others searched with is in the last column; the nearest of ours is bold, and so is the nearest of
the others: rules, and HSO with the paper's box. `flow-2` and `flow-3` are equal steps of a flow's time with shift 2
and 3. Align Your Steps is itself one of the rules, at distance 0 from its own table.
"""


class Published(NamedTuple):
    """A published schedule.

    Attributes:
        source, model, solver: texts.
        noise: the model's noise schedule.
        guidance: the stated weight, None if there is none.
        lams: [N] half log-SNR of the evaluated nodes; the first may be -inf.
    """

    source: str
    model: str
    solver: str
    noise: NoiseSchedule
    guidance: float | None
    lams: np.ndarray


def read(path: Path) -> list[Published]:
    """Read the schedules of a file {"entries": [...]}, whose entries have the keys `NEEDED`.

    `values` are N levels, or N + 1 with the last one where sampling ends; `unit` is "sigma" (sigma/alpha, EDM's sigma)
    or "sigma (flow)" (a rectified flow's time).
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["entries"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no JSON object with a list of entries ({error})") from error
    found = []
    for i, entry in enumerate(entries):
        try:
            found.append(_published(entry))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}, entries[{i}]: {error}") from error
    return found


def _published(entry: Mapping[str, Any]) -> Published:
    if missing := [key for key in NEEDED if key not in entry]:
        raise ValueError(f"no {', no '.join(missing)}")
    levels, nfe = np.asarray(entry["values"], np.float64), entry["N"]
    if levels.ndim != 1 or len(levels) not in (nfe, nfe + 1) or nfe < 2:
        raise ValueError(f"values has shape {levels.shape}; need N or N + 1 levels, and N = {nfe} of 2 or more")
    used, flow = levels[:nfe], entry["unit"] == "sigma (flow)"
    if entry["unit"] not in ("sigma", "sigma (flow)"):
        raise ValueError(f"unit is {entry['unit']!r}; use 'sigma' or 'sigma (flow)'")
    if not (np.diff(used) < 0).all() or not used[-1] > 0 or (flow and used[0] > 1):
        raise ValueError(f"values are {used.tolist()}; need falling levels above 0{', 1 at most' if flow else ''}")
    stated = re.search(r"\d+(\.\d+)?", str(entry["guidance"]))
    guidance, lams = float(stated[0]) if stated else None, lam_of_s(used) if flow else -np.log(used)
    noise_schedule = noise_of(entry["noise"], entry["model"])
    return Published(entry["source"], entry["model"], entry["solver"], noise_schedule, guidance, lams)


def noise_of(text: str, name: str) -> NoiseSchedule:
    """The noise schedule in words: "rectified flow", "EDM ... sigma A..B", or "(scaled_)linear A..B" of beta.

    A number of levels may follow the betas (", 1000").
    """
    number = r"([\d.]+(?:e-?\d+)?)"
    if re.search(r"rectified flow", text, re.I):
        return noise.flow(name=name)
    if ends := re.search(rf"\bsigma {number}\.\.{number}", text):
        return noise.edm(float(ends[1]), float(ends[2]), name=name)
    if betas := re.search(rf"\b((?:scaled_)?linear) {number}\.\.{number}(?:, *(\d+))?", text):
        config = {"beta_schedule": betas[1], "beta_start": float(betas[2]), "beta_end": float(betas[3])}
        config |= {"_class_name": "DDIMScheduler", "num_train_timesteps": int(betas[4] or 1000)}
        return from_config(config, name=name)
    raise ValueError(f"noise is {text!r}; need 'rectified flow', 'EDM, sigma A..B' or '(scaled_)linear A..B' of beta")


def distance(lams: np.ndarray, schedule: Schedule) -> float:
    """Mean of |lam_i - lam'_i| over the nodes after the first."""
    return float(np.mean(np.abs(lams[1:] - schedule.lams[1 : len(lams)])))


Pair = tuple[Published, float]
"""A published schedule, and the guidance weight of ours that it is compared with."""


def ours(pairs: Sequence[Pair]) -> list[dict[str, Schedule]]:
    """For each pair solver to schedule: the zoo's, and all others from one search."""
    found: dict[tuple[int, str], Schedule] = {}
    lanes = {}
    for i, (one, guidance) in enumerate(pairs):
        nfe, model = len(one.lams), one.noise
        for solver in COMPARED:
            if guidance in shipped_guidance(model) and nfe <= MAX_NFE:
                found[i, solver] = zoo(model, nfe, solver, guidance=guidance)
            else:
                lanes[i, solver] = Lane(model, nfe, method=SolverError(solver, guidance, compare=()))
    found |= zip(lanes, search_many(list(lanes.values())), strict=True)
    return [{solver: found[i, solver] for solver in COMPARED} for i in range(len(pairs))]


def others(pairs: Sequence[Pair]) -> list[dict[str, Schedule]]:
    """For each pair name to schedule of the rules that apply, and HSO's, all from one search."""
    searched = search_many([Lane(one.noise, len(one.lams), method=Hso(relax=True)) for one, _ in pairs])
    found = []
    for (one, _), hso in zip(pairs, searched, strict=True):
        nfe, model = len(one.lams), one.noise
        row = {rule: baseline(rule, model, nfe) for rule in RULES if not inapplicable(rule, model)}
        found.append(row | {rule: flow_time(rule, model, nfe) for rule in SHIFTS} | {"hso": hso})
    return found


def weights(one: Published) -> Sequence[float]:
    """The guidance weights of our schedules that a published one is compared with."""
    shipped = shipped_guidance(one.noise)
    if not shipped:
        return (one.guidance or 1.0,)
    return shipped if one.guidance is None else (min(shipped, key=lambda w: abs(w - (one.guidance or 1.0))),)


def page(found: Sequence[Published]) -> str:
    """The text of published.md."""
    names = (*RULES, *SHIFTS, "hso")
    pairs = [(one, weight) for one in found for weight in weights(one)]
    rows = []
    for (one, weight), *groups in zip(pairs, ours(pairs), others(pairs), strict=True):
        row = [one.source, one.model, str(len(one.lams))]
        row += ["not stated" if one.guidance is None else f"{one.guidance:g}", f"{weight:g}"]
        for group, columns in zip(groups, (COMPARED, names), strict=True):
            far = {name: distance(one.lams, schedule) for name, schedule in group.items()}
            least = min(far.values())
            texts = {name: f"**{x:.2f}**" if x == least else f"{x:.2f}" for name, x in far.items()}
            row += [texts.get(name, "") for name in columns]
        rows.append([*row, one.solver])
    head = ["source", "model", "N", "their guidance", "ours", *(SOLVERS[s] for s in COMPARED), *names, "their solver"]
    return HOW + "\n" + markdown(head, rows, left=2)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code, 2 for bad input."""
    parser = runner.command("python -m benchmarks.published", __doc__)
    parser.add_argument("--file", type=Path, required=True, metavar="PATH", help="the list of published schedules")
    parser.add_argument("-o", "--out", type=Path, default=OUT, metavar="FILE", help="default %(default)s")
    return runner.exit_code(_run, parser.parse_args(argv), "no results")


def _run(args: argparse.Namespace) -> int:
    text = page(read(args.file))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(args.out, text.encode())
    print(f"wrote {args.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
