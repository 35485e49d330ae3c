"""Makes the file behind `zoo`: `python -m hso_jax.zoo_build` (resumable; some twenty minutes on two cores).

The search knows a model by the two ends of its noise only, so the presets share a few shelves.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from rich.progress import Progress

from hso_jax.noise import PRESETS, preset
from hso_jax.reference import ReferenceEffort, ReferenceLane, reference_schedules
from hso_jax.schedule import versions
from hso_jax.schedule_file import write_whole
from hso_jax.zoo import FILE, FORMAT, MAX_NFE, SOLVERS, VERSION, ends_key

BUDGETS = (range(1, 6), range(6, 11), range(11, 16), range(16, MAX_NFE + 1))
"""N of one compiled program each: padding to the largest costs work."""

EFFORT = {True: ReferenceEffort(), False: ReferenceEffort(more=8, final_steps=12)}
"""Up to N = 10 and above, where a step costs more and gains less."""


def shelves() -> dict[tuple[float | None, float], list[tuple[str, float]]]:
    """For each pair of ends, the presets' (name, guidance) that have it; guidance 1 first."""
    found: dict[tuple[float | None, float], list[tuple[str, float]]] = {}
    for name, entry in PRESETS.items():
        shelf = found.setdefault(ends_key(ReferenceLane(preset(name), 1)), [(name, 1.0)])
        if entry.guidance not in [weight for _, weight in shelf]:
            shelf.append((name, entry.guidance))
    return found


def lanes(name: str, guidance: float, budgets: range) -> list[ReferenceLane]:
    """The searches of one part: all solvers, these N."""
    return [ReferenceLane(preset(name), n, solver=s, guidance=guidance) for s in SOLVERS for n in budgets]


def parts() -> Iterator[tuple[str, float, range]]:
    """What is searched at once."""
    for budgets in BUDGETS:
        for shelf in shelves().values():
            for name, guidance in shelf:
                yield name, guidance, budgets


def search_part(name: str, guidance: float, budgets: range) -> list[dict[str, Any]]:
    """Records of one part; lams to 5 digits, which is less than their tolerance."""
    every = lanes(name, guidance, budgets)
    found = reference_schedules(every, effort=EFFORT[budgets[0] <= 10], compare=False)
    return [
        {
            "solver": s.solver,
            "nfe": s.nfe,
            "lams": [round(float(x), 5) for x in s.lams],
            "error": round(s.error or 0.0, 6),
            "result": s.result,
        }
        for s in found
    ]


def assemble(records: dict[tuple[str, float], list[dict[str, Any]]]) -> str:
    """The file's text."""
    rows = []
    for ends, shelf in shelves().items():
        weights: dict[str, Any] = {}
        for name, guidance in shelf:
            of = {(r["solver"], r["nfe"]): r for r in records[name, guidance]}
            weights[f"{guidance:g}"] = {
                s: [{k: of[s, n][k] for k in ("lams", "error", "result")} for n in range(1, MAX_NFE + 1)]
                for s in SOLVERS
            }
        rows.append({"ends": list(ends), "guidance": weights})
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
    content = assemble(records)
    write_whole(options.output, content.encode())
    checksum = hashlib.sha256(content.encode()).hexdigest()
    write_whole(options.output.with_suffix(".sha256"), f"{checksum}\n".encode())
    print(f"{options.output}: {len(content)} characters, sha256 {checksum}")


if __name__ == "__main__":
    main()
