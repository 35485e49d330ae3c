"""Everything about files: read whole or refused, written whole or not at all, and nobody's file replaced unasked."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import stat
import struct
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FORMAT = "hso-jax/schedules"
"""The format field of a schedule file."""
PROFILE_FORMAT = "hso-jax/profile"
"""The format field of a model's profile."""
MARK = "hso-jax"
"""Who made a picture: PNG's text chunk "Software", the creator in an SVG's or PDF's metadata."""

_MOST_BYTES = 256 * 2**20  # to read; the largest schedule file has some hundred KiB
_STREAM = re.compile(r"-|/dev/stdout|/dev/stderr|(?:/dev|/proc/self)/fd/(\d{1,9})")
_STDOUT = ("-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")
_KINDS = {
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a pipe (FIFO)",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
}
_PNG = b"\x89PNG\r\n\x1a\n"
_SVG_CREATOR = re.compile(rb"<dc:creator>\s*<cc:Agent>\s*<dc:title>hso-jax</dc:title>")
_PDF_CREATOR = re.compile(rb"/Creator \(hso-jax\)")


def read_text(path: str | os.PathLike[str]) -> str:
    """The text of a regular file in UTF-8.

    Raises:
        ValueError: if it is a device, pipe, socket or folder (some of them never end), has more than 256 MiB, or is no
            UTF-8.
        OSError: if there is none or it cannot be read.
    """
    found = os.stat(path)
    if what := _not_regular(found):
        raise ValueError(f"it is {what}, not a regular file")
    if found.st_size > _MOST_BYTES:
        raise ValueError(f"it has {found.st_size} bytes; more than {_MOST_BYTES} are not read")
    return Path(path).read_text(encoding="utf-8")


def parse_json(text: str) -> Any:
    """The JSON document in a text. Raises ValueError if it is none or nested too deep."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not valid JSON, or truncated ({error})") from error


def read_json(path: str | os.PathLike[str]) -> Any:
    """The JSON document in a file.

    Raises:
        ValueError: as `read_text`, or if it is no JSON or nested too deep.
        OSError: as `read_text`.
    """
    return parse_json(read_text(path))


def is_stream(path: str | os.PathLike[str]) -> bool:
    """Whether a name stands for an open stream: `-`, /dev/stdout, /dev/stderr, /dev/fd/N (as in `>(command)`)."""
    return _STREAM.fullmatch(os.fspath(path)) is not None


def is_stdout(path: str | os.PathLike[str]) -> bool:
    """Whether a name stands for standard output."""
    return os.fspath(path) in _STDOUT


def check_writable(path: Path, kind: str, force: bool, apart_from: Sequence[Path | None] = ()) -> None:
    """Before any work: can `path` be written, and is what is there ours to replace?

    Links are followed. An empty file is anybody's to fill.

    Args:
        path: as the user named it.
        kind: "schedules", "profile" or "picture": what will be written.
        force: replace any regular file.
        apart_from: what else is read or written, and must be other files.

    Raises:
        ValueError: if the folder is missing or not writable, it is no regular file, or a file would be lost that is
            none of this kind of hso-jax.
        OSError: if the name is unusable.
    """
    if is_stream(path):
        try:
            os.fstat(1 if is_stdout(path) else _number(path))
        except OSError:
            raise ValueError(f"cannot write {path}: no such stream is open") from None
        return
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise ValueError(f"cannot write {path}: the folder {path.parent} does not exist")
    try:
        found = os.stat(target)
    except FileNotFoundError:
        found = None
    if found is not None and (what := _not_regular(found)):
        raise ValueError(f"cannot write {path}: it is {what}, not a regular file; - writes to standard output")
    if not os.access(target.parent, os.W_OK) or (found is not None and not os.access(target, os.W_OK)):
        raise ValueError(f"cannot write {path}: permission denied")
    if any(other is not None and os.path.realpath(other) == str(target) for other in apart_from):
        raise ValueError(f"cannot write {path}: the same file is read or written besides; choose another name")
    if found is not None and not force and kind_of(target) not in (kind, "empty"):
        what = "schedule file" if kind == "schedules" else kind
        raise ValueError(f"{path} exists and is no {what} of hso-jax; choose another name, or --force to replace it")


def kind_of(path: Path) -> str | None:
    """What a regular file is: "schedules", "profile" or "picture" of hso-jax, "empty", or None for anything else."""
    size = path.stat().st_size
    if size == 0:
        return "empty"
    if size > _MOST_BYTES:
        return None
    content = path.read_bytes()
    if content.startswith(_PNG):
        return "picture" if MARK.encode() in _png_software(content) else None
    if content.startswith(b"%PDF-"):
        return "picture" if _PDF_CREATOR.search(content) else None
    if content.startswith(b"<?xml"):
        return "picture" if _SVG_CREATOR.search(content[:4096]) else None
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        return None
    found = document.get("format") if isinstance(document, dict) else None
    return {FORMAT: "schedules", PROFILE_FORMAT: "profile"}.get(found) if isinstance(found, str) else None


def json_text(document: Any) -> str:
    """A document as JSON has it: null stands for the numbers that JSON has not, infinity (pure noise) and NaN."""
    return json.dumps(_with_nulls(document), indent=1, allow_nan=False) + "\n"


def _with_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_nulls(x) for key, x in value.items()}
    if isinstance(value, (list, tuple)):
        return [_with_nulls(x) for x in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_whole(path: str | os.PathLike[str], content: bytes) -> None:
    """Write beside the file, then rename onto it; a link stays a link, its target is written.

    Raises:
        OSError: with the path, if it is no regular file or cannot be written; what was there is then as it was, and
            nothing is left beside it.
    """
    write_all([(Path(path), content)], [])


def write_all(contents: Sequence[tuple[Path, bytes]], written: list[Path]) -> None:
    """Write several files: none is replaced before all are on the disk. Streams come last.

    Args:
        contents: paths, each with what it shall hold.
        written: paths are appended as they are in place, so that it is true even where this raises.

    Raises:
        OSError: with the path that failed.
    """
    staged: list[tuple[Path, str, str]] = []
    try:
        for path, content in contents:
            if not is_stream(path):
                with _naming(path):
                    staged.append((path, *_stage(path, content)))
        while staged:
            path, temporary, target = staged[0]
            with _naming(path):
                os.replace(temporary, target)
            staged.pop(0)
            written.append(path)
    finally:
        for _, temporary, _ in staged:
            Path(temporary).unlink(missing_ok=True)
    for path, content in contents:
        if is_stream(path):
            with _naming(path):
                _send(path, content)
            written.append(path)


def figure_kind(path: Path, stream: bool = False) -> str:
    """The picture format of a path's ending; PNG on a stream. Raises ValueError for others than png, svg and pdf."""
    if stream and is_stream(path):
        return "png"
    kind = path.suffix.lower().removeprefix(".")
    if kind not in ("png", "svg", "pdf"):
        raise ValueError(f"cannot draw {path}: use a name that ends in .png, .svg or .pdf")
    return kind


def _stage(path: Path, content: bytes) -> tuple[str, str]:
    """A file beside `path` with the content and the permissions it shall have, and the name it shall get."""
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


def _send(path: Path, content: bytes) -> None:
    if is_stdout(path):
        sys.stdout.flush()
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
        return
    with os.fdopen(os.dup(_number(path)), "wb") as file:
        file.write(content)


def _number(path: Path) -> int:
    """The descriptor that a stream's name stands for."""
    match = _STREAM.fullmatch(os.fspath(path))
    return int(match[1]) if match and match[1] else 2


@contextlib.contextmanager
def _naming(path: Path) -> Any:
    """Writing to an open file does not tell its name when it fails."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), os.fspath(path)) from error


def _not_regular(found: os.stat_result) -> str | None:
    return None if stat.S_ISREG(found.st_mode) else _KINDS.get(stat.S_IFMT(found.st_mode), "something unknown")


def _png_software(content: bytes) -> list[bytes]:
    """The texts named Software in a PNG file."""
    texts, at = [], len(_PNG)
    while at + 12 <= len(content):
        (length,) = struct.unpack(">I", content[at : at + 4])
        kind, data = content[at + 4 : at + 8], content[at + 8 : at + 8 + length]
        if len(data) == length and kind in (b"tEXt", b"iTXt") and data.startswith(b"Software\0"):
            texts.append(data[9:].lstrip(b"\0"))  # iTXt has flags, language and translated keyword between, all empty
        at += 12 + length
    return texts
