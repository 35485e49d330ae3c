"""The schedule file: versioned JSON, written whole or not at all. docs/file-format.md describes it."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hso_jax.schedule import Schedule

FORMAT = "hso-jax/schedules"
VERSION = 1

_ARRAYS = ("t", "lams", "sigmas", "timesteps")
_NUMBERS = ("p", "d_min", "mep", "spf", "min_spacing", "stationarity", "guidance", "error", "fitness")
_NULLABLE = ("mep", "spf", "min_spacing", "stationarity", "seed", "psi", "guidance", "error", "fitness")
_TEXTS = ("model", "layout", "end", "method", "solver", "kind", "noise", "result")
_COUNTS = ("nfe", "num_train_timesteps", "iterations", "seed")
_FIELDS = tuple(field.name for field in dataclasses.fields(Schedule))
_OPTIONAL = ("iterations", "stationarity", "versions", "p", "d_min", "guidance", "error", "others", "fitness")

_RENAMED = {
    "reference": "solver-error",
    "mep/reference": "mep/solver-error",
    "dm-nonuni/reference": "dm-nonuni/solver-error",
}
"""Methods whose name older files have."""


def to_json(schedules: Schedule | Iterable[Schedule]) -> str:
    """The file's text for one or many schedules. Numbers keep every digit; the same schedules give the same text."""
    many = [schedules] if isinstance(schedules, Schedule) else list(schedules)
    document = {"format": FORMAT, "version": VERSION, "schedules": [_record(s) for s in many]}
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def save(schedules: Schedule | Iterable[Schedule], path: str | os.PathLike[str]) -> None:
    """Write schedules to a file: beside it first, then renamed onto it.

    Raises:
        OSError: if the folder does not exist or cannot be written; an existing file is then as it was.
    """
    write_whole(path, to_json(schedules).encode())


def load(path: str | os.PathLike[str]) -> list[Schedule]:
    """The schedules in a file.

    Raises:
        ValueError: for a file that is not one of ours, of a newer version, truncated, or with a bad entry; the
            message says which schedule and which field.
        OSError: if it cannot be read.
    """
    try:
        return from_json(Path(path).read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from error


def from_json(text: str) -> list[Schedule]:
    """The schedules in a file's text. Raises ValueError as `load` does."""
    try:
        document = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"not valid JSON, or truncated ({error})") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ValueError(f'not a schedule file: it must be an object with "format": "{FORMAT}"')
    version = document.get("version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise ValueError(f"version is {version!r}; need a whole number")
    if version > VERSION:
        raise ValueError(f"version {version} is newer than this program knows ({VERSION}); update hso-jax")
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


def write_whole(path: str | os.PathLike[str], content: bytes) -> None:
    """Write beside `path`, then rename onto it. Raises OSError and leaves no trace if it cannot."""
    target = Path(path)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, target.stat().st_mode & 0o777 if target.exists() else 0o666 & ~mask)
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _record(schedule: Schedule) -> dict[str, Any]:
    record: dict[str, Any] = {}
    for name in _FIELDS:
        value = getattr(schedule, name)
        if isinstance(value, np.ndarray):  # JSON has no infinity: null is pure noise, only ever in the first place
            record[name] = [float(x) if math.isfinite(x) else None for x in value]
        elif isinstance(value, Mapping):
            record[name] = dict(value)
        else:
            record[name] = value.item() if isinstance(value, np.generic) else value
    return record


def _schedule(record: Any) -> Schedule:
    if not isinstance(record, dict):
        raise ValueError(f"must be an object, is {type(record).__name__}")
    if missing := [name for name in _FIELDS if name not in record and name not in _OPTIONAL]:
        raise ValueError(f"lacks {', '.join(missing)}")
    values = {name: record[name] for name in _FIELDS if name in record}
    if isinstance(values["method"], str) and values["method"] in _RENAMED:
        values["method"] = _RENAMED[values["method"]]
    for name, value in values.items():
        if value is None and name in _NULLABLE:
            continue
        if name in _ARRAYS:
            values[name] = _array(name, value)
        elif name in _NUMBERS and not _is_number(value):
            raise ValueError(f"{name} is {value!r}; need a finite number")
        elif name in _TEXTS and not isinstance(value, str):
            raise ValueError(f"{name} is {value!r}; need a text")
        elif name in _COUNTS and (not isinstance(value, int) or isinstance(value, bool)):
            raise ValueError(f"{name} is {value!r}; need a whole number")
        elif name in ("psi", "others") and not (isinstance(value, dict) and all(map(_is_number, value.values()))):
            raise ValueError(f"{name} is {value!r}; need an object of finite numbers")
        elif name == "versions" and not (isinstance(value, dict) and all(isinstance(v, str) for v in value.values())):
            raise ValueError(f"versions is {value!r}; need an object of texts")
    return Schedule(**values)


def _array(name: str, value: Any) -> list[float]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"{name} must be a list of numbers")
    infinite = {"lams": -math.inf, "sigmas": math.inf}
    if value[0] is None and name in infinite:
        value = [infinite[name], *value[1:]]
    for i, x in enumerate(value):
        if not _is_number(x) and not (i == 0 and isinstance(x, float) and x == infinite.get(name)):
            raise ValueError(f"{name}[{i}] is {x!r}; need a finite number")
    return [float(x) for x in value]


def _is_number(value: Any) -> bool:
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # a whole number beyond the largest float
        return False
