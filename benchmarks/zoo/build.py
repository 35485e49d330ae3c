"""Makes the file behind `zoo`: `python -m benchmarks.zoo.build` (resumable; 4 minutes a key and weight on two cores).

The search knows a model by the two ends of its noise and what its error is like: the presets share a few keys. What
the file has already stays as it is, so that a new preset costs what is new about it; `--fresh` searches everything.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.progress import Progress

from benchmarks import runner
from benchmarks.zoo import FOLDER, kept, write
from hso_jax import solvers
from hso_jax.lane import Lane
from hso_jax.noise import PRESETS, first_lam, lam_of_s, preset, s_of_lam
from hso_jax.schedule import Schedule, versions
from hso_jax.searches import search_many
from hso_jax.shipped.zoo import MAX_NFE, NONSTATIONARY_NFE, SOLVERS, ZOO_FILE, zoo_key
from hso_jax.solver_error_levels import Coefficients, Refinement, start_of
from hso_jax.solver_error_method import SolverError

FORMAT, VERSION = "hso-jax/zoo", 2

BUDGETS = (range(1, 5), range(5, 9))
"""N that are searched from scratch, of one compiled program each: padding to the largest costs work."""

EXTENDED_NFE = range(BUDGETS[-1].stop, MAX_NFE + 1)
"""N that start from the schedule of N - 1 with one node more: a step costs more there, and gains less."""

EXTENSION_REFINEMENT = Refinement(more=18, steps=12, final_steps=30)

MEND_ROUNDS = 2
"""Rounds of `mend` at most."""


def presets_by_key() -> dict[tuple[float | None, float, bool], list[tuple[str, float]]]:
    """For each `zoo_key`, the presets' (name, guidance) that have it; guidance 1 first."""
    found: dict[tuple[float | None, float, bool], list[tuple[str, float]]] = {}
    for name, entry in PRESETS.items():
        presets = found.setdefault(zoo_key(preset(name)), [(name, 1.0)])
        if entry.guidance not in [weight for _, weight in presets]:
            presets.append((name, entry.guidance))
    return found


def lanes(name: str, guidance: float, budgets: range) -> list[Lane]:
    """The searches of one part: all solvers, these N."""
    return [Lane(preset(name), n, method=SolverError(s, guidance, compare=())) for s in SOLVERS for n in budgets]


def parts(have: Collection[tuple[str, float]] = ()) -> Iterator[tuple[str, float, range]]:
    """What is searched from scratch at once, but for these (name, guidance)."""
    for budgets in BUDGETS:
        for presets in presets_by_key().values():
            for name, guidance in presets:
                if (name, guidance) not in have:
                    yield name, guidance, budgets


def search_part(name: str, guidance: float, budgets: range) -> list[dict[str, Any]]:
    """Records of one part."""
    return [_record(schedule) for schedule in search_many(lanes(name, guidance, budgets))]


def one_more(name: str, guidance: float, record: dict[str, Any]) -> Lane:
    """The search from a record's schedule with one node more, in the middle of its widest step in s."""
    noise = preset(name)
    s = s_of_lam([first_lam(noise, record["nfe"] + 1, guidance), *record["lams"]])
    widest = int(np.argmax(s[:-1] - s[1:])) if len(s) > 1 else 0
    more = 0.5 * (s[widest] + s[widest + 1]) if len(s) > 1 else 0.5 * s[0]
    start = Schedule.from_lams(noise, lam_of_s(np.insert(s, widest + 1, more)))
    how = SolverError(record["solver"], guidance, refinement=EXTENSION_REFINEMENT, start=start, compare=())
    return Lane(noise, start.nfe, method=how)


Records = dict[tuple[str, float], list[dict[str, Any]]]
"""By the preset's name and guidance."""


def found_in(content: str) -> Records:
    """The records that a file's text has of today's keys and weights."""
    document = json.loads(content)
    of = {(*row["ends"], row["unbounded"]): row["guidance"] for row in document["shelves"]}
    records: Records = {}
    for key, presets in presets_by_key().items():
        for name, guidance in presets:
            if (entries := of.get(key, {}).get(f"{guidance:g}")) is not None:
                records[name, guidance] = [
                    {"solver": solver, "nfe": int(nfe), **entry}
                    for solver, rows in entries.items()
                    for nfe, entry in rows.items()
                ]
    return records


def extend(records: Records, nfe: int) -> list[tuple[str, float, dict[str, Any]]]:
    """All keys' schedules of N from those of N - 1, (name, guidance, record)."""
    places = [(n, w, r) for (n, w), rows in records.items() for r in rows if r["nfe"] == nfe - 1]
    found = search_many([one_more(*place) for place in places])
    return [(n, w, _record(schedule)) for (n, w, _), schedule in zip(places, found, strict=True)]


def mend(records: Records) -> int:
    """Search again, from the schedule of N - 1 with one node more, where N is worse than N - 1; how many got better.

    The landscape is rough, and a search from scratch may end in a poor minimum.
    """
    todo: list[tuple[dict[str, Any], Lane]] = []
    for (name, guidance), rows in records.items():
        of = {(r["solver"], r["nfe"]): r for r in rows}
        for (solver, nfe), record in of.items():
            if nfe > 1 and record["error"] > of[solver, nfe - 1]["error"]:
                todo.append((record, one_more(name, guidance, of[solver, nfe - 1])))
    if not todo:
        return 0
    better = 0
    for (record, _), schedule in zip(todo, search_many([lane for _, lane in todo]), strict=True):
        new = _record(schedule)
        if new["error"] < record["error"]:
            record.update(new)
            better += 1
    return better


def search_free(name: str, guidance: float, known: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Records of the non-stationary solver, started from a known solver's; none where a known solver is as good."""
    noise = preset(name)
    of = {(r["solver"], r["nfe"]): r for r in known}
    gain = Coefficients().gain
    how = SolverError(solvers.NONSTATIONARY, guidance, coefficients=Coefficients(gain=0.0))
    known_at = {n: [first_lam(noise, n, guidance), *of[start_of(guidance), n]["lams"]] for n in NONSTATIONARY_NFE}
    start = [Schedule.from_lams(noise, lams) for lams in known_at.values()]
    many = [Lane(noise, s.nfe, method=dataclasses.replace(how, start=s)) for s in start]
    found = []
    for schedule in search_many(many):
        best = min(of[s, schedule.nfe]["error"] for s in SOLVERS)
        if schedule.coefficients is not None and (schedule.error or best) <= (1.0 - gain) * best:
            coefficients = [[round(float(x), 5) for x in row] for row in schedule.coefficients]
            more = {"coefficients": coefficients, "amplification": round(schedule.scores.amplification or 0.0, 4)}
            found.append(_record(schedule) | more)
    return found


def _record(schedule: Schedule) -> dict[str, Any]:
    """What the file keeps: lams after the first, which is `first_lam`, to 5 digits."""
    return {
        "solver": schedule.solver,
        "nfe": schedule.nfe,
        "lams": [round(float(x), 5) for x in schedule.lams[1:]],
        "error": round(schedule.error or 0.0, 6),
        "result": schedule.result,
    }


def assemble(records: Records) -> str:
    """The file's text."""
    rows = []
    for (*ends, unbounded), presets in presets_by_key().items():
        weights: dict[str, Any] = {}
        for name, guidance in presets:
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
    parser = runner.command("python -m benchmarks.zoo.build", __doc__)
    parser.add_argument("--work", type=Path, default=Path("zoo-work"), help="finished parts; default %(default)s")
    parser.add_argument("-o", "--output", type=Path, default=FOLDER / ZOO_FILE)
    parser.add_argument("--fresh", action="store_true", help="search what the output has already, too")
    options = parser.parse_args()
    if "JAX_NUM_CPU_DEVICES" not in os.environ:
        jax.config.update("jax_num_cpu_devices", min(os.cpu_count() or 1, 8))
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    have = {} if options.fresh or not options.output.exists() else found_in(options.output.read_text(encoding="utf-8"))
    records: Records = {}
    todo = list(parts(have))
    with Progress() as progress:
        task = progress.add_task("searching", total=len(todo) + len(EXTENDED_NFE) + len({t[:2] for t in todo}))
        for name, guidance, budgets in todo:
            path = work / f"{name}-{guidance:g}-{budgets[0]}.json"
            found = kept(path, functools.partial(search_part, name, guidance, budgets))
            records.setdefault((name, guidance), []).extend(found)
            progress.advance(task)
        for nfe in EXTENDED_NFE:
            for name, guidance, record in kept(work / f"all-{nfe}.json", functools.partial(extend, records, nfe)):
                records[name, guidance].append(record)
            progress.advance(task)
        for _ in range(MEND_ROUNDS):
            if not mend(records):
                break
        for (name, guidance), known in records.items():
            path = work / f"{name}-{guidance:g}-free.json"
            known.extend(kept(path, functools.partial(search_free, name, guidance, known)))
            progress.advance(task)
    write(options.output, assemble(have | records))


if __name__ == "__main__":
    main()
