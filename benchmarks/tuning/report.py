"""The page of what tuning buys, from the records alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from benchmarks.models.load import MODELS
from benchmarks.plots import save, tuning_figure
from benchmarks.runner import Record
from benchmarks.tables import geometric_mean, markdown, number, table
from benchmarks.tuning import memory
from benchmarks.tuning.measure import EVALUATIONS, FINE, JUDGED, MANY_EVALUATIONS, METHODS, PLAIN, WAYS
from hso_jax.files import write_whole

LIMITS = {"tune": "tune-50k", "nodes": "nodes-50k"}
Network = tuple[str, int]  # its name, and N


def write(records: Sequence[Record], path: Path) -> list[Path]:
    """Write the page beside the records, and its picture; returns their paths."""
    if not records:
        raise ValueError(f"{path} has no records; measure some with --measure")
    page, picture = path.with_suffix(".md"), path.with_suffix(".png")
    save(tuning_figure(records), picture)
    write_whole(page, text(records, picture.name).encode())
    return [page, picture]


def text(records: Sequence[Record], picture: str) -> str:
    """Write the page's text."""
    found = by_network(records)
    methods = [name for name in METHODS if any(r.method == name for r in records)]
    ways = "\n".join(f"- `{name}`: {way.description}." for name, way in WAYS.items() if name in methods)
    return f"""# What tuning on the model buys

Made by `python -m benchmarks.tuning`. Networks: the project's own ({", ".join(MODELS)}), and networks by other people
that nothing here was trained on. Guidance 1. Errors are root mean squares of {JUDGED} samples (16 times as many where
samples are points) to converged ones of {FINE} evaluations, on noise that no method saw. Each method may spend
{EVALUATIONS} evaluations of the network on a schedule, its converged samples and gradients (3 each) included.

- `rule`: the best of all rules, each with the best of DDIM, DPM++ 2M and UniPC-3, chosen on the very noise it is judged
  on: better than anyone could choose.
- `zoo`: `SolverError("nonstationary")`, as shipped for models that are in the zoo: no evaluation of the network.
- `zoo-end`: the same with `first="end"`, which is another schedule for the epsilon models with a noise end beyond
  sigma/alpha = 60 (up to N = 4: 25) alone, the two of digits; these numbers were chosen on them.
{ways}

## Error

{_errors(found, methods, "rmse")}

Geometric means of the ratio to the best rule and to the zoo's schedule, over the cells that both have:

{_ratios(found, methods)}

![Error against evaluations]({picture})

## All ways at equal evaluations

`nodes` searches the nodes directly, `nodes-gradients` by gradients through the network (as LD3), `gits` by dynamic
programming; geometric means of the ratio to the best rule.

{_equal(found)}

## What ten times the evaluations reach

{_limits(found)}

## Fréchet distance to the converged samples

Of the features of the project's own classifiers, on its own networks alone; {JUDGED} samples are few for it.

{_errors(found, methods, "fid")}

## Not better than its start

{_worse(records)}

## Memory of `by="gradients"`

GiB on the device beside text encoders and VAE, computed without weights: the parameters, and what one evaluation keeps
for its backward pass with fused attention. Each evaluation is checkpointed, so that one evaluation's activations count.
The default, `by="differences"`, needs what sampling needs.

{memory.table()}
"""


Found = dict[Network, dict[str, Record]]


def by_network(records: Sequence[Record]) -> Found:
    """Sort records into network and N to method to record, the project's own networks first."""
    names = list(dict.fromkeys([*MODELS, *(r.model for r in records)]))
    found: Found = {}
    for r in sorted(records, key=lambda r: (names.index(r.model), r.nfe)):
        found.setdefault((r.model, r.nfe), {})[r.method] = r
    return found


def _errors(found: Found, methods: Sequence[str], field: str) -> str:
    rows = []
    for (name, nfe), cells in found.items():
        values = [getattr(cells.get(method), field, None) for method in methods]
        if any(x is not None for x in values):
            rows.append([name, str(nfe), *map(number, values)])
    return markdown(["network", "N", *methods], rows, left=1)


def pairs(found: Found, method: str, other: str) -> dict[Network, tuple[float, float]]:
    """Collect the errors of two methods where both have one."""
    both = {
        key: (cells[method].rmse, cells[other].rmse) for key, cells in found.items() if {method, other} <= set(cells)
    }
    return {key: (mine, theirs) for key, (mine, theirs) in both.items() if mine and theirs}


def ratio(found: Found, method: str, other: str) -> tuple[float, float, int]:
    """Geometric mean and largest of the ratios of a method's error to another's, and the number of cells."""
    ratios = [mine / theirs for mine, theirs in pairs(found, method, other).values()]
    return (geometric_mean(ratios), max(ratios), len(ratios)) if ratios else (math.nan, math.nan, 0)


def _equal(found: Found) -> str:
    """Compare all ways at the same budget, over the cells that have them all."""
    ways = [m for m, way in WAYS.items() if way.budget == EVALUATIONS and any(m in cells for cells in found.values())]
    own = {key: cells for key, cells in found.items() if {"rule", *ways} <= set(cells)}
    rows = []
    for name in ways if len(ways) > 1 and own else ():
        mean, largest, _ = ratio(own, name, "rule")
        spent = [cells[name].calls for cells in own.values()]
        rows.append([f"`{name}`", f"{mean:.3f}", f"{largest:.2f}", f"{min(spent)} to {max(spent)}"])
    places = ", ".join(f"{name} at N = {nfe}" for name, nfe in own)
    made = table(["", "to rule", "largest", "evaluations spent"], rows, left=1)
    return f"Cells: {places}.\n\n{made}" if rows else made


def _limits(found: Found) -> str:
    """Show what ten times the evaluations reach, a row a cell."""
    rows = [
        [f"`{few}`", name, str(nfe), number(mine), number(theirs), f"{mine / theirs:.2f}"]
        for few, many in LIMITS.items()
        for (name, nfe), (mine, theirs) in pairs(found, few, many).items()
    ]
    return table(["", "network", "N", f"{EVALUATIONS} evaluations", f"{MANY_EVALUATIONS}", "ratio"], rows)


def _ratios(found: Found, methods: Sequence[str]) -> str:
    rows = []
    for method in methods:
        figures = []
        for other in PLAIN:
            mean, most, cells = ratio(found, method, other)
            figures += [f"{mean:.3f}", f"{most:.2f}", str(cells)] if cells and method != other else ["", "", ""]
        rows.append([method, *figures])
    return markdown(["method", "to rule", "largest", "cells", "to zoo", "largest", "cells"], rows, left=1)


def _worse(records: Sequence[Record]) -> str:
    worse = [
        f"- {r.model}, N = {r.nfe}, {r.method}: no better point, its start ({r.start}) is returned"
        for r in records
        if r.method in WAYS and r.error == r.start_error
    ]
    return "\n".join(worse) or "None: on the samples kept apart every one is better than its start."
