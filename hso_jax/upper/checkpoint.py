"""What a fitness said of the schedules it was shown, kept in a file so that a long search can be interrupted."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hso_jax.checks import brief, is_number, json_object
from hso_jax.files import write_whole
from hso_jax.schedule import versions

FORMAT, VERSION = "hso-jax/judgements", 1


class Judgements:
    """Judgements in the order they were made, for each N.

    A search that is called with the same arguments asks for the same schedules in the same order. What it was told is
    therefore all there is to resume from: it runs again from its start, and is told the same until the file ends.
    """

    def __init__(self, path: str | os.PathLike[str] | None, arguments: Mapping[str, Any]) -> None:
        """Read the file if there is one, and write it otherwise.

        Args:
            path: of the file; None keeps nothing.
            arguments: JSON values: all that the order of schedules and their fitness depend on, but N and the starts.

        Raises:
            ValueError: if the file is none of these, or was made with other arguments: it names what differs.
            OSError: if it cannot be read or written.
        """
        if path is not None and not isinstance(path, (str, os.PathLike)):
            raise ValueError(f"checkpoint is {brief(path)}; need a path or None")
        self._path = None if path is None else Path(path)
        self._document: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "arguments": dict(arguments),
            "versions": versions(),
            "searches": {},
        }
        if self._path is None:
            return
        if self._path.exists():
            found = _read(self._path)
            self._refuse(found["arguments"], arguments, "")
            self._document = found
        else:
            self._write()

    def begin(self, nfe: int, starts: Sequence[str]) -> None:
        """Announce the search for N with these starts.

        Raises:
            ValueError: if the file has one for this N with others.
        """
        search = self._document["searches"].setdefault(str(nfe), {"starts": list(starts), "judged": []})
        self._refuse({"starts": search["starts"]}, {"starts": list(starts)}, f" at N = {nfe}")

    def recall(self, nfe: int, number: int, t: np.ndarray) -> float | None:
        """What was said of the schedule that was judged as the `number`-th for N; None if none was yet.

        Args:
            nfe: N.
            number: from 0.
            t: [K] nodes of the schedule that is to be judged now.

        Raises:
            ValueError: if it was another schedule.
        """
        judged = self._document["searches"][str(nfe)]["judged"]
        if number >= len(judged):
            return None
        if judged[number]["t"] != t.tolist():
            changed = list(_differences(self._document["versions"], versions(), ""))
            raise ValueError(
                f"schedule {number} at N = {nfe} is not the one in {self._path}, which was made with other versions or "
                f"on another machine ({'; '.join(changed) or 'the versions are the same'}); give another checkpoint"
            )
        value = judged[number]["fitness"]
        return math.inf if value is None else float(value)

    def add(self, nfe: int, t: np.ndarray, value: float) -> None:
        """Append a judgement of the nodes t [K], +inf for one that failed, and write the file."""
        record = {"t": t.tolist(), "fitness": value if math.isfinite(value) else None}
        self._document["searches"][str(nfe)]["judged"].append(record)
        self._write()

    def _write(self) -> None:
        if self._path is not None:
            write_whole(self._path, (json.dumps(self._document, allow_nan=False) + "\n").encode())

    def _refuse(self, theirs: Any, ours: Mapping[str, Any], where: str) -> None:
        if found := list(_differences(theirs, ours, "")):
            raise ValueError(
                f"checkpoint {self._path} was made with other arguments{where}: {'; '.join(found)}; "
                "call with the same, or give another file"
            )


def plain(value: Any, name: str) -> Any:
    """A value as it comes back from a JSON file. Raises ValueError, with its name, if it cannot be written to one."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{name} is {brief(value)}; it must be made of texts and finite numbers") from error


def _differences(theirs: Any, ours: Any, name: str) -> Iterator[str]:
    if isinstance(theirs, Mapping) and isinstance(ours, Mapping):
        for key in sorted({*theirs, *ours}):
            yield from _differences(theirs.get(key), ours.get(key), f"{name}.{key}" if name else key)
    elif theirs != ours:
        yield f"{name} was {brief(theirs)}, is {brief(ours)}"


def _read(path: Path) -> dict[str, Any]:
    """The document, checked as far as this program relies on it."""
    document = json_object(path, "a checkpoint")
    if document.get("format") != FORMAT:
        raise ValueError(f'{path} is not a checkpoint: it must be an object with "format": "{FORMAT}"')
    version = document.get("version")
    if isinstance(version, bool) or version != VERSION:
        raise ValueError(f"checkpoint {path} has version {brief(version)}; this program knows {VERSION}")
    if fault := _fault(document):
        raise ValueError(f"checkpoint {path} is damaged: {fault}; give another file")
    return document


def _fault(document: Mapping[str, Any]) -> str | None:
    """The first entry that is not what `Judgements` writes; None if there is none."""
    for name in ("arguments", "versions", "searches"):
        if not isinstance(document.get(name), dict):
            return f"{name} is {brief(document.get(name))}, not an object"
    for nfe, search in document["searches"].items():
        where = f"searches[{brief(nfe)}]"
        if not isinstance(search, dict) or set(search) != {"starts", "judged"}:
            return f"{where} must be an object of starts and judged"
        starts, judged = search["starts"], search["judged"]
        if not isinstance(starts, list) or not all(isinstance(start, str) for start in starts):
            return f"{where}.starts is {brief(starts)}, not a list of texts"
        if not isinstance(judged, list):
            return f"{where}.judged is {brief(judged)}, not a list"
        for i, record in enumerate(judged):
            if not isinstance(record, dict) or set(record) != {"t", "fitness"}:
                return f"{where}.judged[{i}] must be an object of t and fitness"
            t, value = record["t"], record["fitness"]
            if not isinstance(t, list) or not all(map(is_number, t)):
                return f"{where}.judged[{i}].t is {brief(t)}, not a list of numbers"
            if value is not None and not is_number(value):
                return f"{where}.judged[{i}].fitness is {brief(value)}, not a number or null"
    return None
