"""What a long search has found so far, kept in a file so that it can be interrupted and resumed.

First the file, then the results of lanes as its records. With several hosts process 0 alone reads and writes the file,
and tells the others what it holds.
"""

from __future__ import annotations

import base64
import contextlib
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

from hso_jax.checks import brief, json_object
from hso_jax.compiling import RANDOM
from hso_jax.files import write_whole
from hso_jax.noise import NoiseSchedule
from hso_jax.schedule import versions

FORMAT, VERSION = "hso-jax/checkpoint", 1

Fault = Callable[[Any], str | None]
"""What is wrong with a record that was read from a file; None for a good one."""


class Checkpoint:
    """Records in the order they were made, for each of several named searches.

    A search that is called with the same arguments makes the same records in the same order. They are therefore all
    there is to resume from: it runs again from its start, and is told what it found until the records end.

    One process at a time: `PATH.lock` is locked (by the system, so that a process that dies leaves none) until `close`.
    """

    def __init__(self, path: str | os.PathLike[str] | None, arguments: Mapping[str, Any]) -> None:
        """Read the file if there is one, and write it otherwise.

        Args:
            path: of the file; None keeps nothing.
            arguments: JSON values: all that the records depend on, but each search's own arguments.

        Raises:
            ValueError: if the file is none of these, is in use, or was made with other arguments: it names what
                differs.
            OSError: if it cannot be read or written.
        """
        if path is not None and not isinstance(path, (str, os.PathLike)):
            raise ValueError(f"checkpoint is {brief(path)}; need a path or None")
        self.path = None if path is None else Path(path)
        self._lock: IO[str] | None = None
        arguments = {**arguments, "random": RANDOM}
        self._document: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "arguments": arguments,
            "versions": versions(),
            "searches": {},
        }
        if self.path is None:
            return
        self._lock = _locked(self.path)
        try:
            if self.path.exists():
                found = _read(self.path)
                found["arguments"].setdefault("random", RANDOM)  # older files do not name their generator
                self._refuse(found["arguments"], arguments, "")
                self._document = found
            else:
                self._write()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let another process have the file."""
        if self._lock is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._lock.name)
            self._lock.close()
            self._lock = None

    def search(self, name: str, arguments: Mapping[str, Any], fault: Fault) -> Records:
        """Announce a search with its own arguments, JSON values.

        Raises:
            ValueError: if the file has one of this name with others, or with a record that has a fault.
        """
        search = self._document["searches"].setdefault(name, {"arguments": dict(arguments), "records": []})
        self._refuse(search["arguments"], arguments, f" of search {name}")
        for i, record in enumerate(search["records"]):
            if wrong := fault(record):
                raise damaged(self.path, f"searches[{brief(name)}].records[{i}]{wrong}")
        return Records(self, name, search["records"])

    def _write(self) -> None:
        if self.path is not None:
            write_whole(self.path, (json.dumps(self._document, allow_nan=False) + "\n").encode())

    def _refuse(self, theirs: Any, ours: Mapping[str, Any], where: str) -> None:
        if found := list(_differences(theirs, plain(ours, "arguments"), "")):
            more = f"; and {len(found) - 3} more" if len(found) > 3 else ""
            raise ValueError(
                f"checkpoint {self.path} was made with other arguments{where}: {'; '.join(found[:3])}{more}; "
                "call with the same, or give another file"
            )


class Records:
    """The records of one search; `done` are those so far."""

    def __init__(self, checkpoint: Checkpoint, name: str, done: list[Any]) -> None:
        self.checkpoint, self.name, self.done = checkpoint, name, done

    def add(self, record: Any) -> None:
        """Append a record, JSON values, and write the file. With no file nothing is kept."""
        if self.checkpoint.path is not None:
            self.done.append(record)
            self.checkpoint._write()

    def search(self, name: str, arguments: Mapping[str, Any], fault: Fault) -> Records:
        """A search that is a part of this one; see `Checkpoint.search`."""
        return self.checkpoint.search(f"{self.name}/{name}", arguments, fault)


def damaged(path: Path | None, fault: str) -> ValueError:
    """The error for a file that holds what this program does not write."""
    return ValueError(f"checkpoint {path} is damaged: {fault}; give another file")


def plain(value: Any, name: str) -> Any:
    """A value as it comes back from a JSON file. Raises ValueError, with its name, if it cannot be written to one."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{name} is {brief(value)}; it must be made of texts and finite numbers") from error


def _locked(path: Path) -> IO[str]:
    """The open lock file beside `path`. Raises ValueError, naming the process, if another one has it."""
    name = f"{os.path.realpath(path)}.lock"
    while True:
        lock = open(name, "a+")  # noqa: SIM115  # it is held until close()
        if not _lock(lock):
            lock.seek(0)
            owner = lock.read(32).strip()
            lock.close()
            raise ValueError(
                f"checkpoint {path} is in use by process {owner or '(unknown)'}; wait for it, or give another file"
            )
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock.fileno()), os.stat(name)):
                lock.seek(0)
                left = lock.read(32).strip()
                if left and not left.isdigit():
                    lock.close()
                    raise ValueError(f"{name} is no lock of hso-jax; remove it, or give another checkpoint")
                lock.truncate(0)
                lock.write(f"{os.getpid()}\n")
                lock.flush()
                return lock
        lock.close()  # who had it has removed it between the two calls


def _lock(file: IO[str]) -> bool:
    """Whether the open file could be locked; the system unlocks it when it is closed, or its process ends."""
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(file.fileno(), 2**30, os.SEEK_SET)  # far behind the text: what is locked cannot be read
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
        raise damaged(path, fault)
    return document


def _fault(document: Mapping[str, Any]) -> str | None:
    """The first entry that is not what `Checkpoint` writes; None if there is none."""
    for name in ("arguments", "versions", "searches"):
        if not isinstance(document.get(name), dict):
            return f"{name} is {brief(document.get(name))}, not an object"
    for name, search in document["searches"].items():
        where = f"searches[{brief(name)}]"
        if not isinstance(search, dict) or set(search) != {"arguments", "records"}:
            return f"{where} must be an object of arguments and records"
        if not isinstance(search["arguments"], dict):
            return f"{where}.arguments is {brief(search['arguments'])}, not an object"
        if not isinstance(search["records"], list):
            return f"{where}.records is {brief(search['records'])}, not a list"
    return None


def opened(
    path: str | os.PathLike[str], lanes: Sequence[Any], effort: Any, groups: int
) -> tuple[Checkpoint, list[Records]]:
    """The checkpoint of checked lanes at this effort, and the records of each group of them.

    It is one of the same versions only, for its bytes are to be theirs.

    Raises:
        ValueError: as `Checkpoint`, in every process.
        OSError: as `Checkpoint`; a ValueError in the processes that do not write.
    """
    arguments = {
        "count": len(lanes),
        "dtype": str(jax.dtypes.canonicalize_dtype(float)),
        "effort": described(effort),
        "lanes": [described(lane) for lane in lanes],
        "versions": versions(),
    }
    error: OSError | ValueError | None = None
    checkpoint = Checkpoint(None, {})
    records = []
    try:
        checkpoint = Checkpoint(path if jax.process_index() == 0 else None, arguments)
        records = [checkpoint.search(str(k), {}, fault) for k in range(groups)]
    except (OSError, ValueError) as caught:
        error = caught
    told = _from_first(None if error is None else str(error))
    if told is not None:
        checkpoint.close()
        raise error or ValueError(told)
    return checkpoint, records


def described(value: Any) -> Any:
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
        return {"kind": type(value).__name__, **described(fields)}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return described(value._asdict())
    if isinstance(value, Mapping):
        return {str(key): described(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [described(entry) for entry in value]
    named = value if hasattr(value, "__qualname__") else type(value)
    settings = getattr(value, "settings", None)
    name = f"{named.__module__}.{named.__qualname__}"
    return name if settings is None else {"kind": name, "settings": described(settings)}


def record_of(rows: Any) -> dict[str, Any]:
    """The results of some lanes, a pytree of arrays [L, ...], as a record: exact, also where they are not finite."""
    leaves = [np.ascontiguousarray(leaf) for leaf in jax.tree.leaves(rows)]
    arrays = [
        {"dtype": leaf.dtype.str, "shape": list(leaf.shape), "bytes": base64.b64encode(leaf.tobytes()).decode()}
        for leaf in leaves
    ]
    return {"lanes": len(leaves[0]), "arrays": arrays}


def fault(record: Any) -> str | None:
    """What is wrong with a record that was read."""
    if not isinstance(record, dict) or set(record) != {"lanes", "arrays"}:
        return " must be an object of lanes and arrays"
    count, arrays = record["lanes"], record["arrays"]
    if isinstance(count, bool) or not isinstance(count, int) or count < 1 or not isinstance(arrays, list):
        return " must have a number of lanes and a list of arrays"
    for i, array in enumerate(arrays):
        try:
            _array(array, count)
        except (TypeError, ValueError, KeyError, IndexError):
            return f".arrays[{i}] is no array of {count} rows"
    return None


def rows_of(records: Records, like: Callable[[], Any], total: int) -> tuple[list[Any], int]:
    """What the records have: for each a pytree of arrays [l, ...], and how many lanes these are.

    Args:
        records: of one search.
        like: asked if there are records: a pytree with the shapes [C, ...] and dtypes of a chunk's results.
        total: lanes of the search.

    Raises:
        ValueError: if they are not of that shape.
    """
    found = _from_first(records.done)
    if not found:
        return [], 0
    leaves, structure = jax.tree.flatten(like())
    wanted = [(leaf.dtype, leaf.shape[1:]) for leaf in leaves]
    parts, done = [], 0
    for i, record in enumerate(found):
        arrays = [_array(array, record["lanes"]) for array in record["arrays"]]
        done += record["lanes"]
        if [(a.dtype, a.shape[1:]) for a in arrays] != wanted or done > total:
            where = f"searches['{records.name}'].records[{i}]"
            raise damaged(records.checkpoint.path, f"{where} is not what this search finds")
        parts.append(jax.tree.unflatten(structure, arrays))
    return parts, done


def _array(array: Any, rows: int) -> np.ndarray:
    found = np.frombuffer(base64.b64decode(array["bytes"], validate=True), np.dtype(array["dtype"]))
    found = found.reshape(array["shape"])
    if found.shape[0] != rows:
        raise ValueError("another number of rows")
    return found


def _digest(arrays: Sequence[Any]) -> str:
    found = hashlib.sha256()
    for array in map(np.asarray, arrays):
        found.update(f"{array.dtype.str} {array.shape} ".encode() + array.tobytes())
    return found.hexdigest()[:16]


def _from_first(value: Any) -> Any:
    """A JSON value as process 0 has it, in every process."""
    if jax.process_count() == 1:
        return value
    content = np.frombuffer(json.dumps(value).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(content))))
    mine = content if jax.process_index() == 0 else np.zeros(size, np.uint8)
    return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(mine)).tobytes())
