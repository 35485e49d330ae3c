"""What a long search has found so far, appended to a file so that the search can be interrupted and resumed.

The file has a JSON document on each line: first the arguments of the call, then a record each time something is found.
The same call makes the same records in the same order, so they are all there is to resume from: the call runs again
from its start and reads what it found until the records end. With several hosts process 0 alone reads and writes the
file, and sends the others what it holds.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from hso_jax.checks import brief
from hso_jax.compiling import RANDOM
from hso_jax.noise import NoiseSchedule
from hso_jax.schedule import versions

FORMAT, VERSION = "hso-jax/checkpoint", 2


class Checkpoint:
    """A file of records, for each of several named searches. One process has it at a time, from here to `close`."""

    def __init__(self, path: str | os.PathLike[str] | None, arguments: Mapping[str, Any]) -> None:
        """Read the file if there is one, else begin it. `arguments` are JSON values: all that the records depend on.

        Without a path nothing is kept.

        Raises:
            ValueError: if the file is no checkpoint, is in use, or was made with other arguments: it names what
                differs. The file is left as it is.
            OSError: if it cannot be read or written.
        """
        if path is not None and not isinstance(path, (str, os.PathLike)):
            raise ValueError(f"checkpoint is {brief(path)}; need a path or None")
        self.path = None if path is None else Path(path)
        self._file: IO[bytes] | None = None
        self._records: dict[str, list[Any]] = {}
        try:
            arguments = json.loads(json.dumps({**arguments, "random": RANDOM}, allow_nan=False))
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError("the search has settings that are not made of texts and finite numbers") from error
        if self.path is None:
            return
        if self.path.exists() and not self.path.is_file():
            raise ValueError(f"{path} is no checkpoint: it is not a regular file")
        self._file = open(self.path, "a+b")  # noqa: SIM115  # it is held, and locked, until close()
        try:
            if not _lock(self._file):
                raise ValueError(f"checkpoint {path} is in use by another process; wait for it, or give another file")
            self._file.seek(0)
            header, *lines = self._file.read().split(b"\n")
            if header:
                self._check_header(header if lines else b"", arguments)
                for number, line in enumerate(lines[:-1], 2):
                    try:
                        found = json.loads(line)
                        self._records.setdefault(found["search"], []).append(dict(found["record"]))
                    except (ValueError, RecursionError, TypeError, KeyError) as error:
                        raise damaged(self.path, f"line {number} is no record") from error
                self._file.truncate(self._file.tell() - len(lines[-1]))  # of a record that was cut off
            else:
                self._append({"format": FORMAT, "version": VERSION, "arguments": arguments})
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let another process have the file."""
        if self._file is not None:
            self._file.close()

    def records(self, name: str) -> Records:
        """The records of one search."""
        return Records(self, name, self._records.setdefault(name, []))

    def _append(self, document: Any) -> None:
        if self._file is not None:
            self._file.write(json.dumps(document, allow_nan=False).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())

    def _check_header(self, line: bytes, arguments: Mapping[str, Any]) -> None:
        try:
            found = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{self.path} is no checkpoint: not valid JSON, or cut off") from error
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise ValueError(f'{self.path} is no checkpoint: its first line must have "format": "{FORMAT}"')
        if found.get("version") is not VERSION:
            raise ValueError(
                f"checkpoint {self.path} has version {brief(found.get('version'))}, and this program knows {VERSION}: "
                "finish the search with the release that began it, or give another file"
            )
        if faults := list(_differences(found.get("arguments"), arguments, "")):
            more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
            raise ValueError(
                f"checkpoint {self.path} was made with other arguments: {'; '.join(faults[:3])}{more}; "
                "call with the same, or give another file"
            )


class Records:
    """The records of one search; `done` are those so far."""

    def __init__(self, checkpoint: Checkpoint, name: str, done: list[Any]) -> None:
        self.checkpoint, self.name, self.done = checkpoint, name, done

    def add(self, record: Mapping[str, Any]) -> None:
        """Append a record of JSON values to the file. Without a file nothing is kept."""
        if self.checkpoint.path is not None:
            self.done.append(record)
            self.checkpoint._append({"search": self.name, "record": record})

    def part(self, name: str) -> Records:
        """The records of a search that is a part of this one."""
        return self.checkpoint.records(f"{self.name}/{name}")


def damaged(path: Path | None, fault: str) -> ValueError:
    """The error for a file that holds what this program does not write."""
    return ValueError(f"checkpoint {path} is damaged: {fault}; give another file")


def _lock(file: IO[bytes]) -> bool:
    # Whether the open file could be locked; the system unlocks it when it is closed, or its process ends.
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(file.fileno(), 2**40, os.SEEK_SET)  # far behind the text: what is locked cannot be read
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _differences(theirs: Any, ours: Any, name: str) -> Iterator[str]:
    if isinstance(theirs, Mapping) and isinstance(ours, Mapping):
        for key in sorted({*theirs, *ours}):
            yield from _differences(theirs.get(key), ours.get(key), f"{name}.{key}" if name else key)
    elif isinstance(theirs, list) and isinstance(ours, list) and len(theirs) == len(ours) and name == "lanes":
        for i, (a, b) in enumerate(zip(theirs, ours, strict=True)):
            yield from _differences(a, b, f"{name}[{i}]")
    elif theirs != ours:
        yield f"{name or 'arguments'} was {brief(theirs)}, is {brief(ours)}"


def open_for_lanes(path: str | os.PathLike[str], lanes: Sequence[Any], effort: Any) -> Checkpoint:
    """The checkpoint of checked lanes at this effort, made by the same versions: its bytes are to be theirs.

    Raises as `Checkpoint`, in every process; an OSError is a ValueError in those that do not write.
    """
    noises = {id(lane.noise): _described(lane.noise) for lane in lanes}
    arguments = {
        "count": len(lanes),
        "dtype": str(jax.dtypes.canonicalize_dtype(float)),
        "effort": _described(effort),
        "lanes": [_described(lane._replace(noise=noises[id(lane.noise)])) for lane in lanes],
        "versions": versions(),
    }
    checkpoint, error = Checkpoint(None, {}), None
    try:
        checkpoint = Checkpoint(path if jax.process_index() == 0 else None, arguments)
    except (OSError, ValueError) as caught:
        error = caught
    message = _from_first(None if error is None else str(error))
    if message is not None:
        checkpoint.close()
        raise error or ValueError(message)
    return checkpoint


def _described(value: Any) -> Any:
    """What a result depends on, as a JSON value: options by name, arrays by a digest, functions by their name alone."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, NoiseSchedule):
        return f"{value.name} {_digest(jax.tree.leaves(value))}"
    if isinstance(value, (np.ndarray, jax.Array)):
        return _digest([value])
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {"kind": type(value).__name__, **_described(fields)}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return _described(value._asdict())
    if isinstance(value, Mapping):
        return {str(key): _described(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_described(entry) for entry in value]
    kind = value if hasattr(value, "__qualname__") else type(value)
    settings = getattr(value, "settings", None)  # of a function that is an object
    name = f"{kind.__module__}.{kind.__qualname__}"
    return name if settings is None else {"kind": name, "settings": _described(settings)}


def _digest(arrays: Sequence[Any]) -> str:
    found = hashlib.sha256()
    for array in map(np.asarray, arrays):
        found.update(f"{array.dtype.str} {array.shape} ".encode() + array.tobytes())
    return found.hexdigest()[:16]


def record_of(rows: Any) -> dict[str, Any]:
    """The results of some lanes, a pytree of arrays [L, ...], as a record: exact, also where they are not finite."""
    leaves = [np.ascontiguousarray(leaf) for leaf in jax.tree.leaves(rows)]
    return {"lanes": len(leaves[0]), "arrays": [base64.b64encode(leaf.tobytes()).decode() for leaf in leaves]}


def rows_of(records: Records, like: Callable[[], Any], total: int) -> tuple[list[Any], int]:
    """What the records of a search have: for each a pytree of arrays [l, ...], and how many lanes these are.

    `like` is called if there are records: a pytree with the shapes [C, ...] and dtypes of a chunk's results. `total`
    is how many lanes the search has. Raises ValueError for records of another shape, or of more lanes.
    """
    found = _from_first(records.done)
    if not found:
        return [], 0
    leaves, structure = jax.tree.flatten(like())
    parts, done = [], 0
    for i, record in enumerate(found):
        try:
            texts = [base64.b64decode(text, validate=True) for text in record["arrays"]]
            shaped = zip(texts, leaves, strict=True)
            arrays = [np.frombuffer(b, x.dtype).reshape(record["lanes"], *x.shape[1:]) for b, x in shaped]
            done += len(arrays[0])
        except (TypeError, ValueError, KeyError, OverflowError) as error:
            raise damaged(records.checkpoint.path, f"record {i} is not what this search finds") from error
        parts.append(jax.tree.unflatten(structure, arrays))
    if done > total:
        raise damaged(records.checkpoint.path, f"it has {done} lanes of {total}")
    return parts, done


def _from_first(value: Any) -> Any:
    """A JSON value as process 0 has it, in every process."""
    if jax.process_count() == 1:
        return value
    content = np.frombuffer(json.dumps(value).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(content))))
    mine = content if jax.process_index() == 0 else np.zeros(size, np.uint8)
    return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(mine)).tobytes())
