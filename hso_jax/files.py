"""Reading and writing files: read whole or refused, written whole or not at all, no user's file replaced unasked."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import stat
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

Read = TypeVar("Read")

FORMAT = "hso-jax/schedules"
"""The format field of a schedule file."""
MARK = "hso-jax"
"""The maker of a picture: PNG's text chunk "Software", the creator in an SVG's or PDF's metadata."""

_MAX_BYTES = 256 * 2**20  # to read; the largest schedule file has some hundred KiB
_DESCRIPTOR = re.compile(r"(?:/dev|/proc/self)/fd/(\d{1,9})")
_KINDS = {stat.S_IFIFO: "a pipe (FIFO)", stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a folder"}
_PICTURE = re.compile(  # how hso-jax signs a picture; a PNG chunk begins with the length of its data
    rb"\x89PNG\r\n\x1a\n.*(?:\0\0\0\x10tEXtSoftware\0hso-jax|\0\0\0\x14iTXtSoftware\0{5}hso-jax)"
    rb"|%PDF-.*/Creator \(hso-jax\)|<\?xml.*<dc:creator>\s*<cc:Agent>\s*<dc:title>hso-jax</dc:title>",
    re.DOTALL,
)


def read_text(path: str | os.PathLike[str]) -> str:
    """The text of a regular file of at most 256 MiB in UTF-8; ValueError for all else (some devices never end)."""
    found = os.stat(path)
    if what := _not_regular(found):
        raise ValueError(f"it is {what}, not a regular file")
    if found.st_size > _MAX_BYTES:
        raise ValueError(f"it has {found.st_size} bytes; more than {_MAX_BYTES} are not read")
    return Path(path).read_text(encoding="utf-8")


def parse_json(text: str) -> Any:
    """Parse a JSON document; raise ValueError if it is none or nested too deep."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not valid JSON, or truncated ({error})") from error


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read the JSON document in a file; raises as `read_text` and `parse_json` do."""
    return parse_json(read_text(path))


def read(path: str | os.PathLike[str], parse: Callable[[str], Read]) -> Read:
    """What `parse` makes of the text of a file; a ValueError names the file."""
    try:
        return parse(read_text(path))
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from error


def check_format(document: Any, name: str, what: str, newest: int) -> None:
    """Raise ValueError unless it is the object of a file with that format field, in a version up to the newest."""
    if not isinstance(document, dict) or document.get("format") != name:
        raise ValueError(f'not a {what}: it must be an object with "format": "{name}"')
    version = document.get("version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise ValueError(f"version is {version!r}; need a whole number of at least 1")
    if version > newest:
        raise ValueError(f"version {version} is newer than this program knows ({newest}); update hso-jax")


def json_text(document: Any) -> str:
    """Write a document as strict JSON: infinity (pure noise) and NaN become null."""

    def strict(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: strict(x) for key, x in value.items()}
        if isinstance(value, (list, tuple)):
            return [strict(x) for x in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(strict(document), indent=1, allow_nan=False) + "\n"


def _descriptor(path: str | os.PathLike[str]) -> int | None:
    """The number of the open stream that a name stands for, as `/dev/fd/N` in `>(command)` does; else None."""
    text = os.fspath(path)
    if text in ("-", "/dev/stdout", "/dev/stderr"):
        return 2 if text == "/dev/stderr" else 1
    match = _DESCRIPTOR.fullmatch(text)
    return int(match[1]) if match else None


def is_stream(path: str | os.PathLike[str]) -> bool:
    """Whether a name stands for an open stream: `-`, /dev/stdout, /dev/stderr or /dev/fd/N."""
    return _descriptor(path) is not None


def is_stdout(path: str | os.PathLike[str]) -> bool:
    """Whether a name stands for standard output."""
    return _descriptor(path) == 1


def figure_kind(path: Path, stream: bool = False) -> str:
    """The picture format of a path's ending, and PNG for a stream; raise ValueError unless png, svg or pdf."""
    kind = "png" if stream and is_stream(path) else path.suffix.lower().removeprefix(".")
    if kind not in ("png", "svg", "pdf"):
        raise ValueError(f"cannot draw {path}: use a name that ends in .png, .svg or .pdf")
    return kind


def check_writable(path: Path, kind: str, force: bool, apart_from: Sequence[Path | None] = ()) -> None:
    """Check before any work that `path` can be written, and that no file of the user's would be lost (ValueError).

    A file that is there must be one that hso-jax wrote as this `kind` ("schedules" or "picture"), or empty,
    unless `force`, and none of `apart_from`, which are read or written too. Links are followed.
    """
    if (number := _descriptor(path)) is not None:
        try:
            os.fstat(number)
        except OSError:
            raise ValueError(f"cannot write {path}: no such stream is open") from None
        return
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise ValueError(f"cannot write {path}: the folder {path.parent} does not exist")
    found = None
    with contextlib.suppress(FileNotFoundError):
        found = os.stat(target)
    if found is not None and (what := _not_regular(found)):
        raise ValueError(f"cannot write {path}: it is {what}, not a regular file; - writes to standard output")
    if not os.access(target.parent, os.W_OK) or (found is not None and not os.access(target, os.W_OK)):
        raise ValueError(f"cannot write {path}: permission denied")
    if any(other is not None and os.path.realpath(other) == str(target) for other in apart_from):
        raise ValueError(f"cannot write {path}: the command reads or writes the same file; choose another name")
    if found is not None and not force and kind_of(target) not in (kind, "empty"):
        what = "schedule file" if kind == "schedules" else kind
        raise ValueError(f"{path} exists and is no {what} of hso-jax; choose another name, or --force to replace it")


def kind_of(path: Path) -> str | None:
    """What a regular file is: "schedules" or "picture" of hso-jax, "empty", or None for anything else."""
    size = path.stat().st_size
    if size == 0 or size > _MAX_BYTES:
        return None if size else "empty"
    content = path.read_bytes()
    if _PICTURE.match(content):
        return "picture"
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        return None
    found = document.get("format") if isinstance(document, dict) else None
    return "schedules" if found == FORMAT else None


def write_whole(path: str | os.PathLike[str], content: bytes) -> None:
    """Write one file as `write_all` does."""
    write_all([(Path(path), content)], [])


def write_all(contents: Sequence[tuple[Path, bytes]], written: list[Path]) -> None:
    """Write files beside their places, then rename them; streams come last. A link stays a link: its target is written.

    Each path is appended to `written` once it is in place. OSError names the path that failed; what is not in `written`
    then has its old content, and nothing is left beside it.
    """
    staged: list[tuple[Path, str, str]] = []
    path = Path()
    try:
        for path, content in contents:
            if not is_stream(path):
                staged.append((path, *_stage(path, content)))
        while staged:  # all are on the disk before one is replaced
            path, temporary, target = staged[0]
            os.replace(temporary, target)
            staged.pop(0)
            written.append(path)
        for path, content in contents:
            if (number := _descriptor(path)) is None:
                continue
            if number == 1:
                sys.stdout.flush()
                sys.stdout.buffer.write(content)
                sys.stdout.buffer.flush()
            else:
                with os.fdopen(os.dup(number), "wb") as file:
                    file.write(content)
            written.append(path)
    except OSError as error:  # writing to an open file does not tell its name
        raise OSError(error.errno, error.strerror or str(error), os.fspath(path)) from error
    finally:
        for _, temporary, _ in staged:
            Path(temporary).unlink(missing_ok=True)


def _stage(path: Path, content: bytes) -> tuple[str, str]:
    # A file beside `path` with the content and its final permissions: its name, and its final name.
    target = os.path.realpath(path)
    mask = os.umask(0)
    os.umask(mask)
    mode = 0o666 & ~mask
    with contextlib.suppress(FileNotFoundError):
        found = os.stat(target)
        if what := _not_regular(found):
            raise OSError(errno.EINVAL, f"it is {what}, not a regular file")
        mode = found.st_mode & 0o777
    handle, temporary = tempfile.mkstemp(dir=os.path.dirname(target), prefix=".hso-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(temporary, mode)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return temporary, target


def _not_regular(found: os.stat_result) -> str | None:
    return None if stat.S_ISREG(found.st_mode) else _KINDS.get(stat.S_IFMT(found.st_mode), "a device")
