"""The page and the picture of what tuning buys, from the records alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.models.load import MODELS
from benchmarks.networks.charts import save
from benchmarks.networks.tables import geometric_mean, markdown, number
from benchmarks.tuning import memory
from benchmarks.tuning.measure import EVALUATIONS, MANY_EVALUATIONS, METHODS, PLAIN, WAYS, Key
from benchmarks.tuning.targets import FINE, JUDGED
from hso_jax.files import write_whole

LIMITS = {"tune": "tune-50k", "nodes": "nodes-50k"}

Records = Mapping[Key, Mapping[str, Any]]


def write(records: Records, path: Path) -> list[Path]:
    """The page beside the records, and its picture; returns their paths."""
    if not records:
        raise ValueError(f"{path} has no records; measure some with --measure")
    page, picture = path.with_suffix(".md"), path.with_suffix(".png")
    save(figure(records), picture)
    write_whole(page, text(records, picture.name).encode())
    return [page, picture]


def text(records: Records, picture: str) -> str:
    """The page."""
    methods = [name for name in METHODS if any(key[2] == name for key in records)]
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

{_errors(records, methods, "rmse")}

Geometric means of the ratio to the best rule and to the zoo's schedule, over the cells that both have:

{_ratios(records, methods)}

![Error against evaluations]({picture})

## All ways at equal evaluations

`nodes` searches the nodes directly, `nodes-gradients` by gradients through the network (as LD3), `gits` by dynamic
programming; geometric means of the ratio to the best rule.

{_equal(records)}

## What ten times the evaluations reach

{_limits(records)}

## Fréchet distance to the converged samples

Of the features of the project's own classifiers, on its own networks alone; {JUDGED} samples are few for it.

{_errors(records, methods, "fid")}

## Not better than its start

{_worse(records)}

## Memory of `by="gradients"`

GiB on the device beside text encoders and VAE, computed without weights: the parameters, and what one evaluation keeps
for its backward pass with fused attention. Each evaluation is checkpointed, so that one evaluation's activations count.
The default, `by="differences"`, needs what sampling needs.

{memory.table()}
"""


def _cells(records: Records) -> list[tuple[str, int]]:
    names = dict.fromkeys([*MODELS, *(key[0] for key in records)])
    found = {key[:2] for key in records}
    return [(name, nfe) for name in names for nfe in sorted({n for _, n in found}) if (name, nfe) in found]


def _errors(records: Records, methods: Sequence[str], field: str) -> str:
    rows = []
    for name, nfe in _cells(records):
        found = [records.get((name, nfe, method), {}).get(field) for method in methods]
        if any(x is not None for x in found):
            rows.append([name, str(nfe), *map(number, found)])
    return markdown(["network", "N", *methods], rows, left=1)


def ratio(records: Records, method: str, other: str) -> tuple[float, float, int]:
    """Geometric mean and largest of the ratios of a method's error to another's, and the number of cells."""
    ratios = []
    for name, nfe in _cells(records):
        mine, theirs = (records.get((name, nfe, m), {}).get("rmse") for m in (method, other))
        if mine and theirs:
            ratios.append(mine / theirs)
    return (geometric_mean(ratios), max(ratios), len(ratios)) if ratios else (math.nan, math.nan, 0)


def _equal(records: Records) -> str:
    """All ways at the same budget, over the cells that have them all."""
    ways = [name for name, way in WAYS.items() if way.budget == EVALUATIONS and any(k[2] == name for k in records)]
    every = [cell for cell in _cells(records) if all((*cell, m) in records for m in ("rule", *ways))]
    own = {key: record for key, record in records.items() if key[:2] in every}
    rows = []
    for name in ways:
        mean, largest, _ = ratio(own, name, "rule")
        spent = [record["evaluations"] for key, record in own.items() if key[2] == name]
        rows.append([f"`{name}`", f"{mean:.3f}", f"{largest:.2f}", f"{min(spent)} to {max(spent)}"])
    if len(ways) < 2 or not every:
        return "Not measured.\n"
    cells = ", ".join(f"{name} at N = {nfe}" for name, nfe in every)
    return f"Cells: {cells}.\n\n{markdown(['', 'to rule', 'largest', 'evaluations spent'], rows, left=1)}"


def _limits(records: Records) -> str:
    """What ten times the evaluations reach, a row a cell."""
    rows = []
    for few, many in LIMITS.items():
        for name, nfe in _cells(records):
            mine, theirs = (records.get((name, nfe, m), {}).get("rmse") for m in (few, many))
            if mine and theirs:
                rows.append([f"`{few}`", name, str(nfe), number(mine), number(theirs), f"{mine / theirs:.2f}"])
    head = ["", "network", "N", f"{EVALUATIONS} evaluations", f"{MANY_EVALUATIONS}", "ratio"]
    return markdown(head, rows, left=2) if rows else "Not measured.\n"


def _ratios(records: Records, methods: Sequence[str]) -> str:
    rows = []
    for method in methods:
        figures = []
        for other in PLAIN:
            mean, most, cells = ratio(records, method, other)
            figures += [f"{mean:.3f}", f"{most:.2f}", str(cells)] if cells and method != other else ["", "", ""]
        rows.append([method, *figures])
    return markdown(["method", "to rule", "largest", "cells", "to zoo", "largest", "cells"], rows, left=1)


def _worse(records: Records) -> str:
    worse = [
        f"- {r['network']}, N = {r['nfe']}, {r['method']}: no better point, its start ({r['start']}) is returned"
        for r in records.values()
        if r["method"] in WAYS and r["error"] == r["start_error"]
    ]
    return "\n".join(worse) or "None: on the samples kept apart every one is better than its start."


def figure(records: Records) -> Figure:
    """Error on the samples kept apart, as a share of the start's, against evaluations; a line a cell of `tune`."""
    shown = Figure(figsize=(7, 4), layout="constrained")
    axes = shown.subplots()
    colours = {nfe: f"C{i}" for i, nfe in enumerate(sorted({key[1] for key in records}))}
    for (_, nfe, method), record in records.items():
        if method == "tune" and record["history"]:
            spent = [0, *(point[0] for point in record["history"])]
            least = np.minimum.accumulate([1.0, *(point[2] / record["start_error"] for point in record["history"])])
            axes.step(spent, least, where="post", color=colours[nfe], alpha=0.7, linewidth=1.2)
    for nfe, colour in colours.items():
        axes.plot([], [], color=colour, label=f"N = {nfe}")
    axes.set(
        xlabel="evaluations of the network", ylabel="error as a share of the start's", ylim=(0, 1.05), xlim=(0, None)
    )
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    return shown
