"""Makes the file behind `zoo`: `python -m benchmarks.zoo.build` (resumable; a minute a key and weight on two cores).

The search knows a model by the two ends of its noise and what its error is like: the presets share a few keys. What
the file has already stays as it is, so that a new preset costs what is new about it; `--fresh` searches everything.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.progress import Progress

import hso_jax.shipped
from benchmarks import runner
from hso_jax import solvers
from hso_jax.error import Chunks, error_data, in_chunks
from hso_jax.files import write_whole
from hso_jax.lane import Lane
from hso_jax.noise import PRESETS, NoiseSchedule, first_lam, lam_of_s, preset, s_of_lam
from hso_jax.schedule import Schedule, versions
from hso_jax.searches import search_many
from hso_jax.shipped.zoo import MAX_NFE, NONSTATIONARY_NFE, SOLVERS, ZOO_FILE, zoo_key
from hso_jax.solver_error_levels import Coefficients, Refinement, start_of
from hso_jax.solver_error_method import SolverError, measure

FORMAT, VERSION = "hso-jax/zoo", 2

FOLDER = Path(hso_jax.shipped.__file__).parent

SAMPLES, CHUNKS = 16, 36
"""Noise samples a problem that nodes are searched on, and chunks of so many; errors are told on the default number."""


class Stage(NamedTuple):
    """N of one compiled program (padding to the largest costs work), and the steps of the search at most."""

    budgets: range
    steps: int


STAGES = (Stage(range(1, 9), 25), Stage(range(9, 15), 15), Stage(range(15, MAX_NFE + 1), 8))
"""The first from equal steps of a flow's time with shift 2, the others from the largest N before, `stretched`: nodes
that start smooth in i and in N stay so, and a step costs more at large N and gains less."""

MENDED = 15
"""Steps of a search that mends, at most."""


Place = tuple[str, float]
"""The preset's name and guidance."""

Records = list[dict[str, Any]]


def options_of(prog: str, doc: str | None, work: str, file: str) -> argparse.Namespace:
    """Read the options of a command that makes a shipped file, and make its work folder."""
    parser = runner.command(prog, doc)
    parser.add_argument("--work", type=Path, default=Path(work), help="finished parts; default %(default)s")
    parser.add_argument("-o", "--output", type=Path, default=FOLDER / file)
    parser.add_argument("--fresh", action="store_true", help="make what the output has already, too")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    return options


def kept(path: Path, make: Callable[[], Any]) -> Any:
    """Read what a part's file has, made first if it is not there."""
    if not path.exists():
        begin = time.perf_counter()
        write_whole(path, json.dumps(make()).encode())
        print(f"{path.stem}: {time.perf_counter() - begin:.1f} s", flush=True)
    return json.loads(path.read_text())


def write(output: Path, content: str) -> None:
    """Write a file and its checksum."""
    write_whole(output, content.encode())
    checksum = hashlib.sha256(content.encode()).hexdigest()
    write_whole(output.with_suffix(".sha256"), f"{checksum}\n".encode())
    print(f"{output}: {len(content)} characters, sha256 {checksum}")


def presets_by_key() -> dict[tuple[float | None, float, bool], list[tuple[str, float]]]:
    """For each `zoo_key`, the presets' (name, guidance) that have it; guidance 1 first."""
    found: dict[tuple[float | None, float, bool], list[tuple[str, float]]] = {}
    for name, entry in PRESETS.items():
        presets = found.setdefault(zoo_key(preset(name)), [(name, 1.0)])
        if entry.guidance not in [weight for _, weight in presets]:
            presets.append((name, entry.guidance))
    return found


def parts(have: Collection[Place] = ()) -> Iterator[Place]:
    """What is searched, but for these."""
    for presets in presets_by_key().values():
        yield from (place for place in presets if place not in have)


def smooth(noise: NoiseSchedule, nfe: int) -> Schedule:
    """Equal steps of a flow's time with shift 2, from the first node on."""
    first, u = first_lam(noise, nfe), 1.0 - np.arange(nfe) / nfe
    lams = lam_of_s(2.0 * u / (1.0 + u) * min(float(s_of_lam(first)), 0.999))
    return Schedule.from_lams(noise, [first, *np.minimum(lams[1:], noise.data_end - 0.05)])


def stretched(noise: NoiseSchedule, lams: Sequence[float], nfe: int) -> Schedule:
    """N nodes on the curve of fewer, lam over i/n, which is drawn on at either end; its last step is to clean data."""
    n, known = len(lams), np.asarray(lams[1:], np.float64)
    at, wanted, first = np.arange(1, n) / n, np.arange(1, nfe) / nfe, first_lam(noise, nfe)
    placed = np.interp(wanted, at, known)
    before = (known[0] - first) / at[0] if np.isfinite(first) else 0.9 * (known[1] - known[0]) * n
    placed = np.where(wanted < at[0], known[0] + (wanted - at[0]) * before, placed)
    after = 1.2 * (known[-1] - known[-2]) * n
    placed = np.where(wanted > at[-1], known[-1] + (wanted - at[-1]) * after, placed)
    return Schedule.from_lams(noise, [first, *np.minimum(placed, noise.data_end - 0.02)])


def search_known(name: str, guidance: float, stage: Stage, known: Records) -> Records:
    """Records of all solvers and the stage's N, from the largest N that is known of each."""
    noise, lanes = preset(name), []
    refinement = Refinement(more=CHUNKS, steps=stage.steps, final_steps=5)
    for solver in SOLVERS:
        own = [r for r in known if r["solver"] == solver]
        before = max(own, key=lambda r: r["nfe"], default=None)
        for nfe in stage.budgets:
            start = smooth(noise, nfe)
            if before is not None:
                start = stretched(noise, [first_lam(noise, before["nfe"]), *before["lams"]], nfe)
            how = SolverError(solver, guidance, start=start, refinement=refinement, samples=SAMPLES, compare=())
            lanes.append(Lane(noise, nfe, method=how))
    data = judged(noise, guidance)
    return [_record(schedule, data) for schedule in search_many(lanes)]


def mend(name: str, guidance: float, known: Records) -> Records:
    """Search again, from the curve of N - 1, where N is worse, or its second node cleaner, than that of N - 1."""
    noise, of = preset(name), {(r["solver"], r["nfe"]): r for r in known}
    lanes = []
    for (solver, nfe), record in of.items():
        before = of.get((solver, nfe - 1))
        if before is None or nfe < 4 or not (record["error"] > before["error"] or cleaner(before, record)):
            continue
        start = stretched(noise, [first_lam(noise, nfe - 1), *before["lams"]], nfe)
        refinement = Refinement(more=CHUNKS, steps=MENDED, final_steps=5)
        how = SolverError(solver, guidance, start=start, refinement=refinement, samples=SAMPLES, compare=())
        lanes.append(Lane(noise, nfe, method=how))
    data = judged(noise, guidance)
    for schedule in search_many(lanes) if lanes else []:
        place = schedule.solver, schedule.nfe
        new, before = _record(schedule, data), of[place[0], place[1] - 1]
        evener = cleaner(before, of[place]) and not cleaner(before, new) and new["error"] < 1.02 * of[place]["error"]
        if new["error"] < of[place]["error"] or evener:
            of[place] = new
    return list(of.values())


def cleaner(before: dict[str, Any], record: dict[str, Any]) -> bool:
    """Whether the second of N nodes has less noise than that of N - 1."""
    return bool(record["lams"][0] > before["lams"][0])


def judged(noise: NoiseSchedule, guidance: float) -> Chunks:
    """The samples that errors are told on."""
    data = error_data(noise.noise_end, guidance, prediction=noise.prediction)
    return in_chunks(data, data.noise.shape[1])


def search_free(name: str, guidance: float, known: Records) -> Records:
    """Records of the non-stationary solver, from a known solver's nodes; none where a known solver is as good."""
    noise = preset(name)
    of = {(r["solver"], r["nfe"]): r for r in known}
    begin = start_of(guidance)
    coefficients = Coefficients(start=begin, known=(begin,), gain=0.0)
    how = SolverError(solvers.NONSTATIONARY, guidance, coefficients=coefficients, samples=SAMPLES, compare=())
    starts = [Schedule.from_lams(noise, [first_lam(noise, nfe), *of[begin, nfe]["lams"]]) for nfe in NONSTATIONARY_NFE]
    lanes = [Lane(noise, start.nfe, method=dataclasses.replace(how, start=start)) for start in starts]
    found, data = [], judged(noise, guidance)
    for schedule in search_many(lanes):
        best = min(of[s, schedule.nfe]["error"] for s in SOLVERS)
        record = _record(schedule, data)
        if schedule.coefficients is not None and record["error"] <= (1.0 - Coefficients().gain) * best:
            rows = [[round(float(x), 5) for x in row] for row in schedule.coefficients]
            more = {"coefficients": rows, "amplification": round(schedule.scores.amplification or 0.0, 4)}
            found.append(record | more)
    return found


def _record(schedule: Schedule, data: Chunks) -> dict[str, Any]:
    """What the file keeps: lams after the first, which is `first_lam`, to 5 digits; the error on `data`."""
    return {
        "solver": schedule.solver,
        "nfe": schedule.nfe,
        "lams": [round(float(x), 5) for x in schedule.lams[1:]],
        "error": round(measure(schedule, schedule.solver, data), 6),
        "result": schedule.result,
    }


def found_in(content: str) -> dict[Place, Records]:
    """The records that a file's text has of today's keys and weights."""
    document = json.loads(content)
    of = {(*row["ends"], row["unbounded"]): row["guidance"] for row in document["shelves"]}
    records: dict[Place, Records] = {}
    for key, presets in presets_by_key().items():
        for name, guidance in presets:
            if (entries := of.get(key, {}).get(f"{guidance:g}")) is not None:
                records[name, guidance] = [
                    {"solver": solver, "nfe": int(nfe), **entry}
                    for solver, rows in entries.items()
                    for nfe, entry in rows.items()
                ]
    return records


def assemble(records: Mapping[Place, Records]) -> str:
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


def search_place(name: str, guidance: float) -> Records:
    """All records of one preset's noise and a weight."""
    records: Records = []
    for stage in STAGES:
        records += search_known(name, guidance, stage, records)
    records = mend(name, guidance, records)
    return records + search_free(name, guidance, records)


def main() -> None:
    """Search what the work folder does not have yet, then write the file and its checksum."""
    options = options_of("python -m benchmarks.zoo.build", __doc__, "zoo-work", ZOO_FILE)
    have = {} if options.fresh or not options.output.exists() else found_in(options.output.read_text(encoding="utf-8"))
    todo = list(parts(have))

    def made(place: tuple[str, float]) -> Records:
        name, guidance = place
        found: Records = kept(options.work / f"{name}-{guidance:g}.json", lambda: search_place(name, guidance))
        progress.advance(task)
        return found

    # A place is one lane after the other: threads use the cores.
    with Progress() as progress, ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
        task = progress.add_task("searching", total=len(todo))
        records = dict(zip(todo, pool.map(made, todo), strict=True))
    write(options.output, assemble(have | records))


if __name__ == "__main__":
    main()
