"""Makes the file behind `recommend`: `python -m benchmarks.zoo.rules` (resumable; 20 minutes on two cores).

For everything that the zoo has, the solver's error with each usual rule and with HSO's nodes, which are kept too. What
the file has already stays as it is, so that a new key or weight costs what is new about it; `--fresh` measures all.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.progress import Progress

from benchmarks import runner
from benchmarks.zoo.build import FOLDER, write
from hso_jax.baselines import baseline, inapplicable
from hso_jax.error import error_data, in_chunks
from hso_jax.files import write_whole
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


def new_row(noise: NoiseSchedule) -> dict[str, Any]:
    """A row without errors."""
    *ends, unbounded, what = rules_key(noise)
    name = "shift" if noise.kind == "flow" else "noise"
    return {"ends": ends, "unbounded": unbounded, name: what, HSO: search_hso(noise), "guidance": {}}


def text_of(rows: list[dict[str, Any]]) -> str:
    """The file's text."""
    document = {"format": FORMAT, "version": VERSION, "versions": versions(), "rows": rows}
    return (
        json.dumps(document, separators=(",", ":"))
        .replace('"guidance":', '\n"guidance":')
        .replace('"ddim"', '\n"ddim"')
    )


def main() -> None:
    """Measure what the file lacks, keep each part in the work folder, then write the file and its checksum."""
    parser = runner.command("python -m benchmarks.zoo.rules", __doc__)
    parser.add_argument("--work", type=Path, default=Path("rules-work"), help="finished rows; default %(default)s")
    parser.add_argument("-o", "--output", type=Path, default=FOLDER / RULES_FILE)
    parser.add_argument("--fresh", action="store_true", help="measure what the output has already, too")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    have: dict[Any, dict[str, Any]] = {}
    if options.output.exists() and not options.fresh:
        have = {_key(row): row for row in json.loads(options.output.read_text(encoding="utf-8"))["rows"]}
    rows = []
    todo = [(noise, rules_key(noise)) for noise in noises()]
    with Progress() as progress:
        task = progress.add_task("measuring", total=sum(len(shipped_guidance(noise)) for noise, _ in todo))
        for noise, key in todo:
            path = options.work / f"{key[-1]}-{noise.prediction}.json"
            row = json.loads(path.read_text()) if path.exists() else have.get(key) or new_row(noise)
            weights = shipped_guidance(noise)
            for weight in weights:
                if f"{weight:g}" not in row["guidance"]:
                    begin = time.perf_counter()
                    row["guidance"][f"{weight:g}"] = errors_of(noise, weight, row[HSO])
                    write_whole(path, json.dumps(row).encode())
                    print(f"{path.stem} at {weight:g}: {time.perf_counter() - begin:.0f} s", flush=True)
                progress.advance(task)
            row["guidance"] = {f"{weight:g}": row["guidance"][f"{weight:g}"] for weight in weights}
            rows.append(row)
    write(options.output, text_of(rows) + "\n")


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return (*row["ends"], row["unbounded"], row["shift"] if "shift" in row else row["noise"])


if __name__ == "__main__":
    main()
