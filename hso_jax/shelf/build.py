"""Makes the file behind `zoo`: `python -m hso_jax.shelf.build` (resumable; half an hour on one core).

The search knows a model by the two ends of its noise only, so the presets share a few shelves.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.progress import Progress

from hso_jax import solvers
from hso_jax.files import write_whole
from hso_jax.lane import Lane
from hso_jax.methods import Refinement, SolverError
from hso_jax.methods.solver_error.coefficients import Coefficients
from hso_jax.noise import PRESETS, preset
from hso_jax.noise.ends import lam_of_s, s_of_lam
from hso_jax.schedule import Schedule, versions
from hso_jax.searches import search_many
from hso_jax.shelf.shipped import FILE, FORMAT, FREE_NFE, MAX_NFE, SOLVERS, VERSION, shelf_key

BUDGETS = (range(1, 6), range(6, 11), range(11, 16), range(16, MAX_NFE + 1))
"""N of one compiled program each: padding to the largest costs work."""

REFINEMENT = {True: Refinement(), False: Refinement(more=18, steps=12, final_steps=30)}
"""Up to N = 10 and above, where a step costs more and gains less."""

MENDED = 2
"""Rounds of `mend` at most."""


def shelves() -> dict[tuple[float | None, float, bool], list[tuple[str, float]]]:
    """For each shelf's key, the presets' (name, guidance) that have it; guidance 1 first."""
    found: dict[tuple[float | None, float, bool], list[tuple[str, float]]] = {}
    for name, entry in PRESETS.items():
        shelf = found.setdefault(shelf_key(preset(name)), [(name, 1.0)])
        if entry.guidance not in [weight for _, weight in shelf]:
            shelf.append((name, entry.guidance))
    return found


def lanes(name: str, guidance: float, budgets: range) -> list[Lane]:
    """The searches of one part: all solvers, these N."""
    how: dict[str, Any] = {"refinement": REFINEMENT[budgets[0] <= 10], "compare": ()}
    return [
        Lane(preset(name), n, method=SolverError(solver=s, guidance=guidance, **how)) for s in SOLVERS for n in budgets
    ]


def parts() -> Iterator[tuple[str, float, range]]:
    """What is searched at once."""
    for budgets in BUDGETS:
        for shelf in shelves().values():
            for name, guidance in shelf:
                yield name, guidance, budgets


def search_part(name: str, guidance: float, budgets: range) -> list[dict[str, Any]]:
    """Records of one part."""
    return [_record(schedule) for schedule in search_many(lanes(name, guidance, budgets))]


def search_free(name: str, guidance: float, known: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Records of the non-stationary solver, started from those of `START`; none where a known solver is as good."""
    noise = preset(name)
    of = {(r["solver"], r["nfe"]): r for r in known}
    gain = Coefficients().gain
    how = SolverError(solvers.NONSTATIONARY, guidance, coefficients=Coefficients(gain=0.0))
    start = [Schedule.from_lams(noise, [noise.noise_end, *of[Coefficients().start, n]["lams"]]) for n in FREE_NFE]
    many = [Lane(noise, s.nfe, method=dataclasses.replace(how, start=s)) for s in start]
    found = []
    for schedule in search_many(many):
        best = min(of[s, schedule.nfe]["error"] for s in SOLVERS)
        if schedule.coefficients is not None and (schedule.error or best) <= (1.0 - gain) * best:
            coefficients = [[round(float(x), 5) for x in row] for row in schedule.coefficients]
            more = {"coefficients": coefficients, "amplification": round(schedule.scores.amplification or 0.0, 4)}
            found.append(_record(schedule) | more)
    return found


def mend(records: dict[tuple[str, float], list[dict[str, Any]]]) -> int:
    """Search again, from the schedule of N - 1 with one node more, where N is worse than N - 1; how many got better.

    Above N = 10 the landscape is rough, and a search from scratch may end in a poor minimum.
    """
    todo: list[tuple[dict[str, Any], Lane]] = []
    for (name, guidance), rows in records.items():
        of = {(r["solver"], r["nfe"]): r for r in rows}
        for (solver, nfe), record in of.items():
            if nfe == 1 or record["error"] <= of[solver, nfe - 1]["error"]:
                continue
            noise = preset(name)
            s = s_of_lam([noise.noise_end, *of[solver, nfe - 1]["lams"]])
            widest = int(np.argmax(s[:-1] - s[1:])) if nfe > 2 else 0
            more = 0.5 * (s[widest] + s[widest + 1]) if nfe > 2 else 0.5 * s[0]
            start = Schedule.from_lams(noise, lam_of_s(np.insert(s, widest + 1, more)))
            how = SolverError(solver, guidance, refinement=REFINEMENT[False], start=start, compare=())
            todo.append((record, Lane(noise, nfe, method=how)))
    if not todo:
        return 0
    better = 0
    for (record, _), schedule in zip(todo, search_many([lane for _, lane in todo]), strict=True):
        new = _record(schedule)
        if new["error"] < record["error"]:
            record.update(new)
            better += 1
    return better


def _record(schedule: Schedule) -> dict[str, Any]:
    """What the file keeps: lams after the first, which is the model's noise end, to 5 digits."""
    return {
        "solver": schedule.solver,
        "nfe": schedule.nfe,
        "lams": [round(float(x), 5) for x in schedule.lams[1:]],
        "error": round(schedule.error or 0.0, 6),
        "result": schedule.result,
    }


def assemble(records: dict[tuple[str, float], list[dict[str, Any]]]) -> str:
    """The file's text."""
    rows = []
    for (*ends, unbounded), shelf in shelves().items():
        weights: dict[str, Any] = {}
        for name, guidance in shelf:
            entries: dict[str, Any] = {s: {} for s in (*SOLVERS, solvers.NONSTATIONARY)}
            for record in sorted(records[name, guidance], key=lambda r: r["nfe"]):
                kept = {k: v for k, v in record.items() if k not in ("solver", "nfe")}
                entries[record["solver"]][str(record["nfe"])] = kept
            weights[f"{guidance:g}"] = entries
        rows.append({"ends": ends, "unbounded": unbounded, "guidance": weights})
    document = {"format": FORMAT, "version": VERSION, "versions": versions(), "shelves": rows}
    return json.dumps(document, separators=(",", ":")).replace('{"lams"', '\n{"lams"') + "\n"


def main() -> None:
    """Search what the work folder does not have yet, then write the file and its checksum."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--work", type=Path, default=Path("zoo-work"), help="finished parts; default %(default)s")
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).with_name(FILE))
    options = parser.parse_args()
    if "JAX_NUM_CPU_DEVICES" not in os.environ:
        jax.config.update("jax_num_cpu_devices", min(os.cpu_count() or 1, 8))
    options.work.mkdir(parents=True, exist_ok=True)
    records: dict[tuple[str, float], list[dict[str, Any]]] = {}
    todo = list(parts())
    with Progress() as progress:
        task = progress.add_task("searching", total=len(todo))
        for name, guidance, budgets in todo:
            path = options.work / f"{name}-{guidance:g}-{budgets[0]}.json"
            if not path.exists():
                begin = time.perf_counter()
                found = search_part(name, guidance, budgets)
                write_whole(path, json.dumps(found).encode())
                print(f"{path.stem}: {time.perf_counter() - begin:.1f} s", flush=True)
            records.setdefault((name, guidance), []).extend(json.loads(path.read_text()))
            progress.advance(task)
    for _ in range(MENDED):
        if not mend(records):
            break
    for (name, guidance), known in records.items():
        path = options.work / f"{name}-{guidance:g}-{solvers.NONSTATIONARY}.json"
        if not path.exists():
            begin = time.perf_counter()
            write_whole(path, json.dumps(search_free(name, guidance, known)).encode())
            print(f"{path.stem}: {time.perf_counter() - begin:.1f} s", flush=True)
        known.extend(json.loads(path.read_text()))
    content = assemble(records)
    write_whole(options.output, content.encode())
    checksum = hashlib.sha256(content.encode()).hexdigest()
    write_whole(options.output.with_suffix(".sha256"), f"{checksum}\n".encode())
    print(f"{options.output}: {len(content)} characters, sha256 {checksum}")


if __name__ == "__main__":
    main()
