"""What a long search has found so far, kept in a file so that it can be interrupted and resumed."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from hso_jax.checks import brief, json_object
from hso_jax.compiling import RANDOM
from hso_jax.files import write_whole
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

    def changed_versions(self) -> str:
        """How the versions that the file was made with differ from today's, for a message."""
        return "; ".join(_differences(self._document["versions"], versions(), "")) or "the versions are the same"

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
