"""Schedules and solvers that others found on real networks: how far ours are from them, and what the problems say.

python -m benchmarks.published --file PATH       docs/results/published.md

A learned solver steps along dx/dt with weighted derivatives of its own and earlier evaluations. On the problems its
error is known, and so is that of each rule: problems that are true to real models rank it first.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import runner
from benchmarks.runner import COMPARED, SHIFTS, SOLVERS
from benchmarks.tables import markdown
from hso_jax import Hso, Lane, NoiseSchedule, Schedule, SolverError, baseline, from_config, noise, search_many, zoo
from hso_jax.baselines import flow_time, inapplicable
from hso_jax.error import SAMPLES, Chunks, denoiser, error_data, in_chunks, mean_error
from hso_jax.files import write_whole
from hso_jax.noise import lam_of_s
from hso_jax.shipped.zoo import MAX_NFE, NONSTATIONARY_NFE, shipped_guidance
from hso_jax.solver_error_method import measure
from hso_jax.solvers import NONSTATIONARY

OUT = Path("docs/results/published.md")
RULES = ("trailing", "karras", "uniform-lam", "beta-t", "ays", "dm-nonuni")
NEEDED = ("source", "model", "noise", "solver", "guidance", "N", "values", "unit")

OPEN = ("DyWeight", "AYS", "AMED", "AutoDiffusion", "NeuralSolver")
"""What a source's name begins with whose lists are taken in the summary: found on the model itself, no grid kept."""

MOST = 12
"""Largest N of the summary."""

ROWS = 20
"""Steps that every solver is padded to: one compilation serves all."""

ADAMS = ((1.0,), (1.5, -0.5), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))
"""Adams-Bashforth's weights for equal steps, which iPNDM takes for all (arXiv 2204.13902)."""

HOW = """\
# Published schedules and solvers, and ours

Made by `python -m benchmarks.published --file PATH` from a list of schedules that others found by optimisation on real
networks. A figure is the distance between a published schedule and the one that its column names: the mean over the
nodes after the first, i = 2..N, of |lam_i - lam'_i|, lam half the log-SNR, the i-th node of the one against the i-th of
the other. A signed distance is the mean of log(sigma of ours/sigma of theirs): below 0 ours are too clean. Of a
published list the N levels that are evaluated count, not the last one, where the N-th step ends (clean data, in all of
them). The smaller, the nearer; 0 is the same schedule. That a schedule lies near one that was found on a network does
not say that it is better.
"""

SUMMARY = """\
## By model

The mean over the lists of one source and one model, N up to 12: ours are free coefficients where theirs are learned
too, DPM-Solver++(2M) where only the nodes are; at the shipped guidance weight nearest to theirs, at the largest where
none is stated. First node: sigma of ours/sigma of theirs, geometric mean. The rule is the nearest of all.
"""

RANKED = """\
## Do the problems rank the learned solver above the rules?

The solvers that were learned with their coefficients, run as they are on the reference problems, beside the rules that
their authors beat: the levels of EDM (rho 7), uniform in t and uniform in lam (of a flow: shifts 1, 1.88 and 3), each
with iPNDM of order 4, DPM-Solver++(2M) and UniPC-3, as many evaluations. Errors are relative to the data's deviation.
Most of DyWeight's begin with an analytic step, which costs no evaluation.
"""

EVERY = """\
## Every list

Ours are the columns of solvers: the zoo's schedule for the same noise ends where it has them, else the search's
(`SolverError`), at the shipped guidance weight nearest to the stated one. Where no weight is stated there is a row a
weight. Which solver others searched with is in the last column; the nearest of ours is bold, and so is the nearest of
the others: rules, and HSO with the paper's box. `flow-2` and `flow-3` are equal steps of a flow's time with shift 2
and 3. Align Your Steps is itself one of the rules, at distance 0 from its own table.
"""


class Steps(NamedTuple):
    """A solver as x + sum_j gains_ij d_j, d the derivative of x in t.

    Of a `flow` t is a rectified flow's time and x its sample; else t is sigma/alpha and x = x_0 + t noise.
    """

    flow: bool
    levels: np.ndarray  # [n] t of the sample at each evaluation
    told: np.ndarray  # [n] t that the network is told there
    gains: np.ndarray  # [n, n] lower triangular
    analytic: bool = False  # the first derivative is x/sqrt(1 + t^2), without an evaluation (AFS, arXiv 2210.05475)


def steps_of(entry: Mapping[str, Any]) -> Steps | None:
    """The solver of an entry of the published file; None where it has nodes alone."""
    flow = entry["unit"] == "sigma (flow)"
    if "weights" in entry and "t_true" in entry:  # DyWeight: steps of its own grid's levels, from where it stands
        levels, weights = np.array(entry["t_true"], np.float64), np.array(entry["weights"], np.float64)
        analytic = len(weights) == entry["N"] + 1
        told = np.abs(levels[:-1] * np.array([1.0] * analytic + list(entry["t_scale"])))
        gains = weights * (np.array(entry["base_grid"][1:]) - levels[:-1])[:, None]
        return Steps(flow, levels[:-1], np.minimum(told, 1.0) if flow else told, gains, analytic)
    if entry["source"].startswith("NeuralSolver"):  # each row's weights of older velocities; all sum to 1
        older = np.tril(np.array(json.loads(entry["note"])["coeffs"], np.float64), -1)
        levels = np.array([*entry["values"][: entry["N"]], 0.0])
        weights = older + np.diag(1.0 - older.sum(1))
        return Steps(flow, levels[:-1], levels[:-1], weights * np.diff(levels)[:, None])
    return None


class Published(NamedTuple):
    """A published schedule."""

    source: str
    model: str
    solver: str
    noise: NoiseSchedule  # the model's
    guidance: float | None  # the stated weight
    lams: np.ndarray  # [N] half log-SNR of the evaluated nodes; the first may be -inf
    steps: Steps | None = None  # the solver with its coefficients; None where there are nodes alone


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
        except (ValueError, TypeError, KeyError) as error:
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
    text = str(entry["guidance"])
    # A weight that was distilled into the model is no guidance of the sampler's.
    stated = None if "distilled" in text else re.search(r"\d+(\.\d+)?", text)
    guidance, lams = float(stated[0]) if stated else None, lam_of_s(used) if flow else -np.log(used)
    guidance = 1.0 if "distilled" in text else guidance
    noise_schedule, steps = noise_of(entry["noise"], entry["model"]), steps_of(entry)
    return Published(entry["source"], entry["model"], entry["solver"], noise_schedule, guidance, lams, steps)


def noise_of(text: str, name: str) -> NoiseSchedule:
    """The noise schedule in words: "rectified flow", "EDM ... sigma A..B", "cosine", or "(scaled_)linear A..B" of beta.

    A number of levels may follow the betas (", 1000").
    """
    number = r"([\d.]+(?:e-?\d+)?)"
    if re.search(r"rectified flow", text, re.I):
        return noise.flow(name=name)
    if ends := re.search(rf"\bsigma {number}\.\.{number}", text):
        return noise.edm(float(ends[1]), float(ends[2]), name=name)
    if re.search(r"\bcosine\b", text):
        config = {"beta_schedule": "squaredcos_cap_v2", "_class_name": "DDIMScheduler", "num_train_timesteps": 1000}
        return from_config(config, name=name)
    if betas := re.search(rf"\b((?:scaled_)?linear) {number}\.\.{number}(?:, *(\d+))?", text):
        config = {"beta_schedule": betas[1], "beta_start": float(betas[2]), "beta_end": float(betas[3])}
        config |= {"_class_name": "DDIMScheduler", "num_train_timesteps": int(betas[4] or 1000)}
        return from_config(config, name=name)
    raise ValueError(
        f"noise is {text!r}; need 'rectified flow', 'EDM, sigma A..B', 'cosine' or '(scaled_)linear A..B' of beta"
    )


def distance(lams: np.ndarray, schedule: Schedule) -> float:
    """Mean of |lam_i - lam'_i| over the nodes after the first."""
    return float(np.mean(np.abs(lams[1:] - schedule.lams[1 : len(lams)])))


def signed(lams: np.ndarray, schedule: Schedule) -> float:
    """Mean of log(sigma of ours/sigma of theirs) over the nodes after the first."""
    return float(np.mean(lams[1:] - schedule.lams[1 : len(lams)]))


Pair = tuple[Published, float]
"""A published schedule, and the guidance weight of ours that it is compared with."""

OURS = (*COMPARED, NONSTATIONARY)


def ours(pairs: Sequence[Pair]) -> list[dict[str, Schedule]]:
    """For each pair solver to schedule: the zoo's, and all others from one search."""
    found: dict[tuple[int, str], Schedule] = {}
    lanes = {}
    for i, (one, guidance) in enumerate(pairs):
        nfe, model = len(one.lams), one.noise
        for solver in OURS:
            if solver == NONSTATIONARY and nfe not in NONSTATIONARY_NFE:
                continue
            if guidance in shipped_guidance(model) and nfe <= MAX_NFE:
                found[i, solver] = zoo(model, nfe, solver, guidance=guidance)
            else:
                lanes[i, solver] = Lane(model, nfe, method=SolverError(solver, guidance, compare=()))
    found |= zip(lanes, search_many(list(lanes.values())), strict=True)
    return [{solver: found[i, solver] for solver in OURS if (i, solver) in found} for i in range(len(pairs))]


def others(pairs: Sequence[Pair]) -> list[dict[str, Schedule]]:
    """For each pair name to schedule of the rules that apply, and HSO's, all from one search."""
    searched = search_many([Lane(one.noise, len(one.lams), method=Hso(relax=True)) for one, _ in pairs])
    found = []
    for (one, _), hso in zip(pairs, searched, strict=True):
        nfe, model = len(one.lams), one.noise
        row = {rule: baseline(rule, model, nfe) for rule in RULES if not inapplicable(rule, model)}
        found.append(row | {rule: flow_time(model, nfe, shift) for rule, shift in SHIFTS.items()} | {"hso": hso})
    return found


def weights(one: Published) -> Sequence[float]:
    """The guidance weights of our schedules that a published one is compared with."""
    shipped = shipped_guidance(one.noise)
    if not shipped:
        return (one.guidance or 1.0,)
    return shipped if one.guidance is None else (min(shipped, key=lambda w: abs(w - (one.guidance or 1.0))),)


Compared = tuple[Published, float, dict[str, Schedule], dict[str, Schedule]]
"""A published schedule, the guidance weight of ours, ours by solver, and the others by rule."""


def compare(found: Sequence[Published]) -> list[Compared]:
    """Every list beside ours, a row a weight."""
    pairs = [(one, weight) for one in found for weight in weights(one)]
    triples = zip(pairs, ours(pairs), others(pairs), strict=True)
    return [(one, weight, own, rules) for (one, weight), own, rules in triples]


# ---- learned solvers, and the rules that they beat, run on the reference problems


def adams(levels: np.ndarray, flow: bool) -> Steps:
    """The steps of iPNDM, order 4, on n levels and a last one, where they end."""
    gains = np.zeros((len(levels) - 1,) * 2)
    for i, step in enumerate(np.diff(levels)):
        for j, weight in enumerate(ADAMS[min(i, 3)]):
            gains[i, i - j] = weight * step
    return Steps(flow, levels[:-1], levels[:-1], gains)


def rule_levels(noise: NoiseSchedule, nfe: int) -> dict[str, np.ndarray]:
    """The levels, N and a last one, of the rules that learned solvers are compared with: in sigma/alpha, or in s."""
    if noise.kind == "flow":
        u = 1.0 - np.arange(nfe + 1) / nfe
        return {f"shift {shift:g}": shift * u / (1.0 + (shift - 1.0) * u) for shift in (1.0, 1.88, 3.0)}
    ends = [float(np.exp(-lam)) for lam in (noise.noise_end, noise.data_end)]
    share = np.linspace(0.0, 1.0, nfe + 1)
    polynomial = (ends[0] ** (1 / 7) + share * (ends[1] ** (1 / 7) - ends[0] ** (1 / 7))) ** 7
    even = np.exp(np.linspace(np.log(ends[0]), np.log(ends[1]), nfe + 1))
    if noise.kind == "ve":  # time-uniform of the linear VP SDE that has these ends at t = 1 and t = .001 (EDM's code)
        logs = np.log1p(np.square(ends))
        slope = 2.0 * (logs[1] / 1e-3 - logs[0]) / (1e-3 - 1.0)
        times = 1.0 + share * (1e-3 - 1.0)
        uniform = np.sqrt(np.expm1(0.5 * slope * times**2 + (logs[0] - 0.5 * slope) * times))
    else:
        t_end = float(noise.t_of_lam(np.asarray(noise.data_end)))
        times = float(noise.t_max) + share * (t_end - float(noise.t_max))
        uniform = np.exp(-np.array([float(noise.lam(t)) for t in times]))
    return {"rho 7": polynomial, "uniform t": uniform, "uniform lam": even}


def error_of(steps: Steps, data: Chunks) -> float:
    """Root-mean-square error on all samples; inf where it is not finite."""
    n = len(steps.levels)
    pad = (0, ROWS - n)
    levels, told = (np.pad(x, pad, mode="edge") for x in (steps.levels, steps.told))
    lams = lam_of_s(told) if steps.flow else -np.log(told)
    gains = np.zeros((ROWS, ROWS))
    gains[:n, :n] = steps.gains
    arrays = [jnp.asarray(x, data.noise.dtype) for x in (levels, np.where(np.isfinite(lams), lams, -30.0), gains)]
    value = float(_error(data, *arrays, jnp.asarray(steps.flow), jnp.asarray(steps.analytic)))
    return value if np.isfinite(value) else float("inf")


@jax.jit
def _error(
    data: Chunks, levels: jax.Array, lams: jax.Array, gains: jax.Array, flow: jax.Array, analytic: jax.Array
) -> jax.Array:
    pieces = data.problem.shape[0]

    def of(i: jax.Array) -> jax.Array:
        model, p = denoiser(data, i), data.problem[i]
        begin = jnp.where(flow, 1.0, jnp.sqrt(1.0 + levels[0] ** 2))

        def step(carry: tuple[jax.Array, jax.Array], k: jax.Array) -> tuple[tuple[jax.Array, jax.Array], None]:
            x, slopes = carry
            t, lam = levels[k], lams[k]
            # What the network is given: x for the level that it is told, at unit variance of data and noise.
            told = jnp.where(flow, jax.nn.sigmoid(-lam), jnp.exp(-lam))
            size = jnp.where(flow, jnp.sqrt((1.0 - told) ** 2 + told**2), jnp.sqrt(1.0 + told**2))
            predicted = model(x / size, lam)
            slope = (x - predicted) / jnp.where(flow, told, t)
            slopes = slopes.at[k].set(jnp.where(analytic & (k == 0), x / jnp.sqrt(1.0 + t * t), slope))
            return (x + jnp.tensordot(gains[k], slopes, 1), slopes), None

        x = begin * data.noise[i]
        slopes = jnp.zeros((levels.shape[0], *x.shape), x.dtype)
        (x, _), _ = jax.lax.scan(step, (x, slopes), jnp.arange(levels.shape[0]))
        return jnp.mean((x - data.truth[i]) ** 2, axis=0) @ data.importance[p]

    return jnp.sqrt(mean_error(data, jax.lax.map(of, jnp.arange(pieces)), pieces))


def rule_errors_of(noise: NoiseSchedule, nfe: int, data: Chunks) -> dict[str, float]:
    """The error of each rule's levels with iPNDM, DPM-Solver++(2M) and UniPC-3, N evaluations."""
    found = {}
    for name, levels in rule_levels(noise, nfe).items():
        if name != "uniform lam":  # iPNDM's steps are equal in t or in EDM's ramp, wherever it was published
            found[f"{name}, iPNDM"] = error_of(adams(levels, noise.kind == "flow"), data)
        lams = lam_of_s(levels[:-1]) if noise.kind == "flow" else -np.log(levels[:-1])
        lams[0] = noise.noise_end
        schedule = Schedule.from_lams(noise, lams)
        for solver in ("dpmpp-2m", "unipc-3"):
            found[f"{name}, {solver}"] = measure(schedule, solver, data)
    return found


# ---- the page


def summary(compared: Sequence[Compared]) -> str:
    """The table by source and model, and its mean."""
    groups: dict[tuple[str, str], list[Compared]] = {}
    for row in compared:
        one, weight = row[:2]
        if one.source.startswith(OPEN) and len(one.lams) <= MOST and weight == weights(one)[-1]:
            groups.setdefault((one.source, one.model), []).append(row)
    lines, means = [], []
    for (source, model), rows in groups.items():
        mine = [(one, own[NONSTATIONARY if one.steps else "dpmpp-2m"]) for one, _, own, _ in rows]
        first = [one.lams[0] - own.lams[0] for one, own in mine if np.isfinite([one.lams[0], own.lams[0]]).all()]
        names = [name for name in rows[0][3] if all(name in rules for *_, rules in rows)]
        near = {name: _mean(distance(one.lams, rules[name]) for one, _, _, rules in rows) for name in names}
        rule = min(near, key=lambda name: near[name])
        off, side = (
            _mean(distance(one.lams, own) for one, own in mine),
            _mean(signed(one.lams, own) for one, own in mine),
        )
        other = _mean(signed(one.lams, rules[rule]) for one, _, _, rules in rows)
        means.append((off, side))
        nfes = sorted({len(one.lams) for one, _ in mine})
        line = [source, model, str(len(rows)), " ".join(map(str, nfes)), f"{rows[0][1]:g}"]
        line += [f"{np.exp(np.mean(first)):.2f}" if first else "", f"{off:.2f}", f"{side:+.2f}"]
        lines.append([*line, f"{rule} {near[rule]:.2f}", f"{other:+.2f}"])
    if means:
        worst = max((side for _, side in means), key=abs)
        lines.append(
            ["mean, largest signed", *[""] * 5, f"{_mean(off for off, _ in means):.2f}", f"{worst:+.2f}", "", ""]
        )
    head = ["source", "model", "lists", "N", "ours at", "first node", "distance", "signed", "nearest rule", "signed"]
    return SUMMARY + "\n" + markdown(head, lines, left=2)


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def ranking(found: Sequence[Published]) -> str:
    """The table of learned solvers and of the rules on the reference problems."""
    lines, above = [], 0
    learnt = [one for one in found if one.steps is not None and len(one.lams) <= MOST]
    for one in learnt:
        assert one.steps is not None
        weight = one.guidance or 1.0
        data = in_chunks(error_data(one.noise.noise_end, weight, prediction=one.noise.prediction), SAMPLES)
        error, rules = error_of(one.steps, data), rule_errors_of(one.noise, len(one.lams), data)
        best = min(rules, key=lambda name: rules[name])
        above += error < rules[best]
        source = one.source.split(" ")[0]
        lines.append(
            [f"{source}, {one.model}", str(len(one.lams)), f"{weight:g}", f"{error:.3f}", f"{rules[best]:.3f}"]
        )
        lines[-1] += [best, "yes" if error < rules[best] else "no"]
    head = ["solver", "N", "guidance", "its error", "best rule's", "rule", "above"]
    return f"{RANKED}\n{markdown(head, lines, left=1)}\nAbove every rule: {above} of {len(learnt)}.\n"


def every(compared: Sequence[Compared]) -> str:
    """The table of all lists."""
    names = (*RULES, *SHIFTS, "hso")
    rows = []
    for one, weight, *groups in compared:
        row = [one.source, one.model, str(len(one.lams))]
        row += ["not stated" if one.guidance is None else f"{one.guidance:g}", f"{weight:g}"]
        for group, columns in zip(groups, (OURS, names), strict=True):
            far = {name: distance(one.lams, schedule) for name, schedule in group.items()}
            least = min(far.values())
            texts = {name: f"**{x:.2f}**" if x == least else f"{x:.2f}" for name, x in far.items()}
            row += [texts.get(name, "") for name in columns]
        rows.append([*row, one.solver])
    head = ["source", "model", "N", "their guidance", "ours", *(SOLVERS[s] for s in COMPARED), "free", *names]
    return EVERY + "\n" + markdown([*head, "their solver"], rows, left=2)


def page(found: Sequence[Published]) -> str:
    """The text of published.md."""
    compared = compare(found)
    return "\n".join([HOW, summary(compared), ranking(found), every(compared)])


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
