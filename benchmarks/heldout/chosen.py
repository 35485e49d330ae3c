"""What choosing by measuring takes on networks by others, by budget: `python -m benchmarks.heldout --measured`.

A network's first noises choose; others judge: the chosen, the recommended, and the best of every rule with every
solver, which is found on the noises that judge (by halving, the last four on all of them). Only the budgets are
compared; the candidates and their order were set with an eye on the first five networks.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.tables import geometric_mean, markdown
from benchmarks.targets import MANY, SMALL, Networks, Target
from bridge.sampling import converged
from bridge.tuning.candidates import candidates, is_rule
from bridge.tuning.choose import LEAST_SAMPLES, MOST_SAMPLES, TEACHER_SHARE, TEACHER_STEPS
from bridge.tuning.models import DenoiserModel
from bridge.tuning.race import Measured, interval, race
from hso_jax.schedule import Origin, Schedule
from hso_jax.shipped.recommend import recommend

RECORDS = Path("docs/results/chosen.jsonl")
BUDGETS = (300, 600, 1200, 2400)
NFES = (4, 6, 8)
JUDGED, FINE, SEED = 100, 128, 123
"""Noises that judge, steps of their converged samples, and the seed of all noises."""

EVERYTHING = 10**9


class Known:
    """A model's errors on some noises; what is known is not asked of it again, whatever the budget is that asks."""

    def __init__(self, one: Target, count: int, steps: int, seed: int) -> None:
        self._many = MANY if math.prod(one.shape) < SMALL else 1  # points that stand for one image
        start = one.latents(count * self._many, seed)
        self._model = DenoiserModel(one.denoiser, one.noise, start, condition=one.condition(len(start)))
        origin = Origin(method="converged", solver="dpmpp-2m")
        self._targets = self._run(
            Schedule.from_t(one.noise, converged(one.noise, steps).t, origin=origin), range(count)
        )
        self._known: dict[tuple[bytes, str], dict[int, float]] = {}
        self.evaluations = 0

    def _rows(self, rows: Sequence[int]) -> list[int]:
        return [row * self._many + k for row in rows for k in range(self._many)]

    @torch.no_grad()
    def _run(self, schedule: Schedule, rows: Sequence[int]) -> torch.Tensor:
        every, size = self._rows(rows), 16 * self._many
        return torch.cat([self._model.run(schedule, every[i : i + size]) for i in range(0, len(every), size)])

    def errors(self, schedule: Schedule, rows: Sequence[int]) -> np.ndarray:
        """See `bridge.tuning.judge.Judge.errors`; `evaluations` counts as if nothing was known."""
        self.evaluations += schedule.nfe * len(rows)
        own = b"" if schedule.coefficients is None else schedule.coefficients.tobytes()
        known = self._known.setdefault((schedule.t.tobytes() + own, schedule.solver), {})
        if unknown := [row for row in rows if row not in known]:
            differences = (self._run(schedule, unknown) - self._targets[self._rows(unknown)]).double()
            known |= zip(unknown, differences.square().reshape(len(unknown), -1).mean(1).tolist(), strict=True)
        return np.array([known[row] for row in rows])


def measure(one: Target, nfe: int, own: Known, judge: Known, judged: int) -> dict[str, Any]:
    """A record: what each budget chooses, what it is worth, and beside it the best rule and the recommended."""
    begin = time.perf_counter()
    every = candidates(one.noise, nfe, 1.0)
    rules = [candidate for candidate in every if is_rule(candidate.name)]

    def value(schedule: Schedule) -> float:
        return Measured("", schedule, judge.errors(schedule, range(judged))).error

    best = race(judge, rules, range(judged), EVERYTHING)[0]  # type: ignore[arg-type]
    rows = {}
    for budget in BUDGETS:
        count = min(max(int(TEACHER_SHARE * budget) // TEACHER_STEPS, LEAST_SAMPLES), MOST_SAMPLES)
        own.evaluations = count * TEACHER_STEPS
        ranked = race(own, every, range(count), budget - own.evaluations, beside=is_rule)  # type: ignore[arg-type]
        rule = next((m for m in ranked if is_rule(m.name)), None)
        row = {"chosen": ranked[0].name, "rmse": value(ranked[0].schedule), "evaluations": own.evaluations}
        row |= {"noises": count, "candidates": len(ranked)}
        if rule is not None and rule.name != ranked[0].name:
            row |= {"against": interval(ranked[0], rule), "true": value(ranked[0].schedule) / value(rule.schedule)}
        rows[budget] = row
    try:
        found = recommend(one.noise, nfe, guidance=1.0, distilled=False)
        schedule = found.schedule
        if schedule.coefficients is None:
            schedule = Schedule.from_t(one.noise, schedule.t, origin=Origin(schedule.method, found.solver))
        recommended = {"name": f"{found.method} with {found.solver}", "rmse": value(schedule)}
    except ValueError:  # nothing is shipped for this noise
        recommended = {}
    seconds = round(time.perf_counter() - begin, 1)
    return {"network": one.name, "nfe": nfe, "rule": best.name, "rule_rmse": best.error, "recommended": recommended,
            "budgets": rows, "candidates": len(every), "judged": judged, "seconds": seconds}  # fmt: skip


def run(networks: Networks, path: Path, nfes: Sequence[int] = NFES, judged: int = JUDGED) -> None:
    """Measure what the records do not have yet."""
    have = {(r["network"], r["nfe"]) for r in read(path)}
    for name in networks.names():
        missing = [nfe for nfe in nfes if (name, nfe) not in have]
        if not missing:
            continue
        one = networks.target(name)
        own, judge = Known(one, MOST_SAMPLES, TEACHER_STEPS, SEED), Known(one, judged, FINE, SEED + 1)
        for nfe in missing:
            record = measure(one, nfe, own, judge, judged)
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
            print(record["network"], nfe, record["seconds"], "s", flush=True)


def read(path: Path) -> list[dict[str, Any]]:
    """The records of a file."""
    return [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def report(records: Sequence[dict[str, Any]]) -> str:
    """The table, its means, and how often the stated interval holds what is true."""
    ratios, rows = [], []
    for r in records:
        own, told = list(r["budgets"].values()), r["recommended"].get("rmse", math.nan)
        ratios.append([x / r["rule_rmse"] for x in (told, *(row["rmse"] for row in own))])
        figures = ("" if math.isnan(x) else f"{x:.2f}" for x in ratios[-1])
        rows.append([r["network"], str(r["nfe"]), f"{r['rule_rmse']:.4g} {r['rule']}", *figures, own[2]["chosen"]])
    columns = [[x for x in column if not math.isnan(x)] for column in zip(*ratios, strict=True)]
    means = (f"{geometric_mean(x):.2f} (worst {max(x):.2f})" if x else "" for x in columns)
    head = ["network", "N", "best rule, its RMSE", "recommended", *(f"{b:,} evaluations" for b in BUDGETS), "chosen"]
    text = markdown(head, [*rows, ["mean", "", "", *means, ""]])
    stated = [row for r in records for row in r["budgets"].values() if "against" in row]
    inside = [row["against"][1] <= row["true"] <= row["against"][2] for row in stated]
    return text + (f"\nThe interval of 80% against the best rule holds what is true in {np.mean(inside):.0%} of "
                   f"{len(inside)} cells.\n" if inside else "")  # fmt: skip
