"""The page of what tuning buys, from the records alone."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from benchmarks.methods import EVALUATIONS, MANY_EVALUATIONS
from benchmarks.models.load import MODELS
from benchmarks.plots import save, tuning_figure
from benchmarks.runner import Record
from benchmarks.tables import Ratio, markdown, means, number
from benchmarks.tuning import memory
from hso_jax.files import write_whole

JUDGED, FINE = 64, 192
"""Samples that schedules are judged on (points: 16 times as many), and the evaluations of their converged samples."""

WAYS = {
    "tune": "nodes and coefficients",
    "tune-gradients": "the same, with gradients through the network",
    "nodes": "nodes for UniPC-3",
    "nodes-2m": "nodes for DPM++ 2M",
    "nodes-gradients": "nodes for UniPC-3, with gradients through the network (as LD3)",
    "gits": "GITS, nodes for UniPC-3",
    "tune-50k": "nodes and coefficients, ten times the evaluations",
    "nodes-50k": "nodes for UniPC-3, ten times the evaluations",
}
"""How a schedule is made by looking at the model."""

PLAIN, AT_END = ("rule", "zoo"), "zoo-end"
METHODS = (*PLAIN, AT_END, *WAYS)
SHOWN = (*PLAIN, "tune")  # in every cell
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
    known = [name for name in METHODS if any(r.method == name for r in records)]
    described = "\n".join(f"- `{name}`: {way}." for name, way in WAYS.items() if name in known)
    ways = [name for name in WAYS if name in known and not name.endswith("-50k")]
    equal = [place for place, cells in found.items() if {"rule", *ways} <= set(cells)]
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
{described}

## Error

`rule` / `zoo` / `tune`:

{_errors(found, "rmse")}
Ratios to the best rule and to the zoo's schedule, geometric means over the cells that both have:

{_ratios(found, ("zoo", AT_END, "tune", *LIMITS.values()), found)}
![Error against evaluations]({picture})

## All ways at equal evaluations

`nodes` searches the nodes directly, `nodes-gradients` by gradients through the network (as LD3), `gits` by dynamic
programming. The cells that have them all: {", ".join(f"{name} at N = {nfe}" for name, nfe in equal)}.

{_ratios(found, ways, equal)}
## What ten times the evaluations reach

Errors with {EVALUATIONS} evaluations over those with {MANY_EVALUATIONS}:

{means(["network", "N"], _limits(found))}
## Fréchet distance to the converged samples

Of the features of the project's own classifiers, on its own networks alone; {JUDGED} samples are few for it.
`rule` / `zoo` / `tune`:

{_errors(found, "fid")}
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


def _errors(found: Found, field: str) -> str:
    rows: dict[str, dict[int, str]] = {}
    for (name, nfe), cells in found.items():
        values = [getattr(cells.get(method), field, None) for method in SHOWN]
        if any(x is not None for x in values):
            rows.setdefault(name, {})[nfe] = " / ".join(map(number, values))
    budgets = sorted({nfe for own in rows.values() for nfe in own})
    told = ([name, *(own.get(nfe, "") for nfe in budgets)] for name, own in rows.items())
    return markdown(["network", *(f"N = {nfe}" for nfe in budgets)], told)


def _ratios(found: Found, methods: Sequence[str], places: Collection[Network]) -> str:
    """Errors of methods over those of the methods `PLAIN`, where both have one, and evaluations of the network."""
    ratios: list[Ratio] = []
    for method in methods:
        own = [place for place in places if method in found[place]]
        spent = [found[place][method].calls for place in own]
        row = (f"`{method}`", str(len(own)), f"{min(spent, default=0):,} to {max(spent, default=0):,}")
        for place in own:
            for other in PLAIN:
                if method != other and (mine := _error(found, place, method)) and (base := _error(found, place, other)):
                    ratios.append((row, f"to `{other}`", mine / base))
    return means(["method", "cells", "evaluations"], ratios, largest=True)


def _error(found: Found, place: Network, method: str) -> float | None:
    return found[place][method].rmse if method in found[place] else None


def _limits(found: Found) -> list[Ratio]:
    """What ten times the evaluations reach, a row a cell."""
    return [
        ((place[0], str(place[1])), f"`{few}`", mine / theirs)
        for place in found
        for few, many in LIMITS.items()
        if (mine := _error(found, place, few)) and (theirs := _error(found, place, many))
    ]


def _worse(records: Sequence[Record]) -> str:
    places: dict[str, list[str]] = {}
    for r in records:
        if r.method in WAYS and r.error == r.start_error:
            places.setdefault(r.method, []).append(f"{r.model} (N = {r.nfe})")
    told = [f"- `{method}`: {', '.join(own)}." for method, own in places.items()]
    head = "These found no better point on the samples kept apart, and return their start:\n\n"
    return head + "\n".join(told) if told else "None: on the samples kept apart every one is better than its start."
