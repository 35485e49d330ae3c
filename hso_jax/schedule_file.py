"""The schedule file: versioned JSON, written whole or not at all. docs/file-format.md describes it."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterable
from typing import Any

from hso_jax.checks import check_guidance
from hso_jax.files import FORMAT, check_format, parse_json, read, write_whole
from hso_jax.schedule import ARRAYS, Origin, Schedule, Scores
from hso_jax.solvers import NONSTATIONARY, named

VERSION = 2
"""Of what is written; 1 had no `coefficients`."""

_ORIGIN, _SCORES, _OWN = (
    tuple(field.name for field in dataclasses.fields(group) if field.name not in ("origin", "scores"))
    for group in (Origin, Scores, Schedule)
)
_REQUIRED = (*_OWN[:-1], "method", "solver", "psi", "mep", "spf", "result", "seed")
_ORDER = (
    *("model", "nfe", "layout", "end", "method", "solver", "t", "lams", "sigmas", "timesteps", "kind"),
    *("num_train_timesteps", "noise", "psi", "p", "d_min", "mep", "spf", "min_spacing", "result", "iterations"),
    *("stationarity", "seed", "guidance", "error", "others_same_nodes", "others_own_nodes", "fitness", "versions"),
    *("amplification", "tuned", "coefficients"),
)
"""Of the file's fields. `min_spacing` follows from t: it is written for readers, and not read."""

_RENAMED = {f"{of}reference": f"{of}solver-error" for of in ("", "mep/", "dm-nonuni/")}
"""Methods whose name older files have."""


def to_json(schedules: Schedule | Iterable[Schedule]) -> str:
    """The file's text for one or many schedules. Numbers keep every digit; the same schedules give the same text."""
    return json.dumps(to_document(schedules), indent=1, allow_nan=False) + "\n"


def to_document(schedules: Schedule | Iterable[Schedule]) -> dict[str, Any]:
    """The file's content as plain lists, dicts, texts and numbers; see `to_json`."""
    many = [schedules] if isinstance(schedules, Schedule) else list(schedules)
    return {"format": FORMAT, "version": VERSION, "schedules": [_record(s) for s in many]}


def save(schedules: Schedule | Iterable[Schedule], path: str | os.PathLike[str]) -> None:
    """Write schedules to a file: beside it first, then renamed onto it; through a link, to its target.

    Raises OSError if it cannot be written, or is no regular file; an existing file is then as it was.
    """
    write_whole(path, to_json(schedules).encode())


def load(path: str | os.PathLike[str]) -> list[Schedule]:
    """The schedules in a file.

    Raises:
        ValueError: for a file that is not one of ours, of a newer version, truncated, or with a bad entry; the
            message says which schedule and which field.
        OSError: if it cannot be read.
    """
    return read(path, from_json)


def from_json(text: str) -> list[Schedule]:
    """The schedules in a file's text. Raises ValueError as `load` does."""
    return from_document(parse_json(text))


def from_document(document: Any) -> list[Schedule]:
    """The schedules of a file's content as `to_document` has it. Raises ValueError as `load` does."""
    check_format(document, FORMAT, "schedule file", VERSION)
    records = document.get("schedules")
    if not isinstance(records, list):
        raise ValueError('"schedules" must be a list')
    schedules = []
    for i, record in enumerate(records):
        try:
            schedules.append(_schedule(record))
        except ValueError as error:
            raise ValueError(f"schedules[{i}]: {error}") from error
    return schedules


def select(
    schedules: Iterable[Schedule],
    *,
    nfe: int | None = None,
    layout: str | None = None,
    method: str | None = None,
    solver: str | None = None,
    guidance: float | None = None,
) -> Schedule:
    """The one schedule that the options name; what is None is not asked for.

    Of two that differ in the layout alone it is the node layout's, which every sampler takes. Nothing else is guessed:
    a method, a solver or a guidance weight that the options leave open is for the caller to choose.

    Args:
        schedules: what a file holds.
        nfe: N.
        layout: "node" or "interval".
        method: as `Schedule.method`.
        solver: the solver it was made for, by any of its names. Schedules for any solver ("any") are kept beside it.
        guidance: the weight it was made for. Schedules that do not look at it are kept beside it.

    Raises:
        ValueError: if there is none, which lists what there is, or more than one, which lists those and how to choose.
    """
    every = list(schedules)
    solver = (named(solver) or solver) if solver else None
    guidance = None if guidance is None else check_guidance(guidance)
    wanted = {"nfe": nfe, "layout": layout, "method": method, "solver": solver, "guidance": guidance}
    any_of = {"solver": "any", "guidance": None}  # what a schedule says that was made for every one
    kept = [
        s for s in every if all(x is None or getattr(s, name) in (x, any_of.get(name, x)) for name, x in wanted.items())
    ]
    if not kept:
        asked = ", ".join(f"{name} {value}" for name, value in wanted.items() if value is not None) or "any"
        raise ValueError(f"no such schedule ({asked}); there are: {_listed(every, wanted)}")
    if len({s.nfe for s in kept}) == 1:
        kept = [s for s in kept if s.layout == "node"] or kept
    if len(kept) == 1:
        return kept[0]
    names = [name for name in wanted if len({getattr(s, name) for s in kept}) > 1]
    if not names:
        models = ", ".join(dict.fromkeys(s.model for s in kept))
        what = f"{len(kept)} schedules of N = {kept[0].nfe} and method {kept[0].method} (models: {models})"
        raise ValueError(f"{what} that no option tells apart; keep one of them in the file")
    names = ["nfe"] if "nfe" in names else names
    which = " and ".join(names)
    raise ValueError(f"{len(kept)} schedules differ in {which}: {_listed(kept, names)}; choose by {which}")


def _listed(schedules: Iterable[Schedule], names: Iterable[str]) -> str:
    def shown(name: str, value: Any) -> str:
        if name == "guidance":
            return "any guidance" if value is None else f"guidance {value:g}"
        return f"for {value}" if name == "solver" else str(value)

    texts = (" ".join(shown(name, getattr(s, name)) for name in names) for s in schedules)
    return "; ".join(dict.fromkeys(texts)) or "none"


def _record(schedule: Schedule) -> dict[str, Any]:
    record = {name: getattr(schedule, name) for name in (*_OWN, "min_spacing")}
    for name in ARRAYS:  # JSON has no infinity: null is pure noise, only ever in the first place
        record[name] = [x if math.isfinite(x) else None for x in record[name].tolist()]
    if schedule.coefficients is not None:
        record["coefficients"] = schedule.coefficients.tolist()
    record |= vars(schedule.origin) | vars(schedule.scores)
    return {name: record[name] for name in _ORDER}


def _schedule(record: Any) -> Schedule:
    if not isinstance(record, dict):
        raise ValueError(f"must be an object, is {type(record).__name__}")
    if missing := [name for name in _ORDER if name in _REQUIRED and name not in record]:
        raise ValueError(f"lacks {', '.join(missing)}")
    values = dict(record)
    for name, pure_noise in (("lams", -math.inf), ("sigmas", math.inf)):
        if isinstance(values[name], list) and values[name][:1] == [None]:
            values[name] = [pure_noise, *values[name][1:]]
    if (others := record.get("others")) is not None:  # older files have one field: of a search, or of the zoo
        searched = values["seed"] is not None and values["solver"] != NONSTATIONARY
        values.setdefault("others_same_nodes" if searched else "others_own_nodes", others)
    if isinstance(values["method"], str):
        values["method"] = _RENAMED.get(values["method"], values["method"])
    origin, scores, own = ({k: values[k] for k in names if k in values} for names in (_ORIGIN, _SCORES, _OWN))
    return Schedule(**own, origin=Origin(**origin), scores=Scores(**scores))
