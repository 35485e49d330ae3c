"""Makes the file behind `recommend`: `python -m benchmarks.zoo.rules` (resumable; 20 minutes on two cores).

For everything that the zoo has, the solver's error with each usual rule and with HSO's nodes, which are kept too. What
the file has already stays as it is, so that a new key or weight costs what is new about it; `--fresh` measures all.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.progress import track

from benchmarks.zoo.build import kept, options_of, write
from hso_jax.baselines import baseline, inapplicable
from hso_jax.error import error_data, in_chunks
from hso_jax.hso import Hso
from hso_jax.lane import Lane
from hso_jax.noise import PRESETS, NoiseSchedule, flow, preset
from hso_jax.schedule import Schedule, versions
from hso_jax.searches import search_many
from hso_jax.shipped.zoo import HSO, MAX_NFE, RULES, RULES_FILE, SHIFTS, SOLVERS, rules_key, shipped_guidance
from hso_jax.solver_error_method import measure

FORMAT, VERSION = "hso-jax/rules", 1
DIGITS = 4


def noises() -> Iterator[NoiseSchedule]:
    """One of each row: the presets' noises that differ, and rectified flow with each shift of `SHIFTS`."""
    seen = set()
    for noise in [*(flow(shift) for shift in SHIFTS), *(preset(name) for name in PRESETS)]:
        key = rules_key(noise)
        on_grid = noise.kind != "flow" or any(math.isclose(float(key[-1]), x, rel_tol=1e-9) for x in SHIFTS)
        if on_grid and key not in seen and shipped_guidance(noise):
            seen.add(key)
            yield noise


def schedules_of(noise: NoiseSchedule, hso: list[list[float]]) -> dict[str, list[Schedule | None]]:
    """By rule, a schedule for each N from 1 on; None where the rule has none."""
    found: dict[str, list[Schedule | None]] = {}
    for rule in RULES:
        if inapplicable(rule, noise) is None:
            found[rule] = [_of_rule(rule, noise, nfe) for nfe in range(1, MAX_NFE + 1)]
    found[HSO] = [Schedule.from_lams(noise, lams) for lams in hso]
    return found


def _of_rule(rule: str, noise: NoiseSchedule, nfe: int) -> Schedule | None:
    try:
        return baseline(rule, noise, nfe)
    except ValueError:  # too little room for the rule's levels
        return None


def search_hso(noise: NoiseSchedule) -> list[list[float]]:
    """HSO's nodes in lam for each N, to 5 digits."""
    found = search_many([Lane(noise, n, method=Hso(relax=True)) for n in range(1, MAX_NFE + 1)])
    return [[round(float(x), 5) for x in schedule.lams] for schedule in found]


def errors_of(
    noise: NoiseSchedule, guidance: float, hso: list[list[float]]
) -> dict[str, dict[str, list[float | None]]]:
    """By solver and rule, the error at each N from 1 on."""
    data = error_data(noise.noise_end, guidance, prediction=noise.prediction)
    chunks, floor = in_chunks(data, data.noise.shape[1]), float(data.inaccuracy)
    every = schedules_of(noise, hso)

    def error(schedule: Schedule | None, solver: str) -> float | None:
        value = math.inf if schedule is None else measure(schedule, solver, chunks)
        return float(f"{max(value, floor):.{DIGITS}g}") if math.isfinite(value) else None

    return {s: {rule: [error(x, s) for x in rows] for rule, rows in every.items()} for s in SOLVERS}


def text_of(rows: list[dict[str, Any]]) -> str:
    """The file's text."""
    document = {"format": FORMAT, "version": VERSION, "versions": versions(), "rows": rows}
    text = json.dumps(document, separators=(",", ":"))
    return text.replace('"guidance":', '\n"guidance":').replace('"ddim"', '\n"ddim"')


def main() -> None:
    """Measure what the file lacks, keep each part in the work folder, then write the file and its checksum."""
    options = options_of("python -m benchmarks.zoo.rules", __doc__, "rules-work", RULES_FILE)
    document = {"rows": []} if options.fresh or not options.output.exists() else json.loads(options.output.read_text())
    have, rows = {_key(row): row for row in document["rows"]}, []
    for noise in track(list(noises()), "measuring"):
        *ends, unbounded, what = key = rules_key(noise)
        part = str(options.work / f"{what}-{noise.prediction}")
        row = have.get(key) or {
            "ends": ends, "unbounded": unbounded, "shift" if noise.kind == "flow" else "noise": what,
            HSO: kept(Path(f"{part}.json"), functools.partial(search_hso, noise)), "guidance": {},
        }  # fmt: skip
        errors, known = {}, row["guidance"]
        for weight in shipped_guidance(noise):
            make = functools.partial(errors_of, noise, weight, row[HSO])
            errors[f"{weight:g}"] = known.get(f"{weight:g}") or kept(Path(f"{part}-{weight:g}.json"), make)
        rows.append({**row, "guidance": errors})
    write(options.output, text_of(rows) + "\n")


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return (*row["ends"], row["unbounded"], row["shift"] if "shift" in row else row["noise"])


if __name__ == "__main__":
    main()
