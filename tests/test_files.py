"""What may be written where, and what is whose."""

from __future__ import annotations

import errno
import json
import os
import socket
import stat
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import hso_jax
from hso_jax import files, schedule_file
from hso_jax.plots import encoded, plot

SCHEDULE = hso_jax.baseline("trailing", hso_jax.preset("sd15"), 4)
DOCUMENT = schedule_file.to_json(SCHEDULE)


def entries(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def make(kind: str, path: Path) -> None:
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as end:
            end.bind(str(path))
    else:
        path.mkdir()


def as_device(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """The system says of one regular file that it is a character device."""
    real = os.stat

    def told(name: Any, *args: Any, **kwargs: Any) -> os.stat_result:
        found = real(name, *args, **kwargs)
        if not isinstance(name, int) and os.path.realpath(name) == os.path.realpath(path):
            return os.stat_result((stat.S_IFCHR | 0o666, *found[1:]))
        return found

    monkeypatch.setattr(os, "stat", told)


@pytest.mark.parametrize("kind", ["pipe", "socket", "folder", "device"])
@pytest.mark.parametrize("linked", [False, True])
def test_what_is_no_regular_file_is_neither_read_nor_replaced(
    kind: str, linked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the name of a socket is at most 108 bytes long
    place = Path("it.json")
    if kind == "device":
        place.write_text(DOCUMENT)
        as_device(monkeypatch, place)
    else:
        make(kind, place)
    path = Path("link.json") if linked else place
    if linked:
        path.symlink_to("it.json")
    before = entries(tmp_path), place.lstat().st_ino
    for force in (False, True):
        with pytest.raises(ValueError, match=f"{path}: it is a {kind}.*not a regular file"):
            files.check_writable(path, "schedules", force)
    with pytest.raises(OSError, match=f"it is a {kind}.*{path}"):
        schedule_file.save(SCHEDULE, path)
    with pytest.raises(ValueError, match=f"it is a {kind}"):
        schedule_file.load(path)
    with pytest.raises(ValueError, match=f"it is a {kind}" if kind != "folder" else "scheduler_config"):
        hso_jax.from_config(path)
    assert (entries(tmp_path), place.lstat().st_ino) == before


def test_a_link_stays_a_link_and_its_target_is_written(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    target, link = tmp_path / "far" / "s.json", tmp_path / "link.json"
    link.symlink_to("far/s.json")
    for _ in range(2):  # a dangling link first
        files.check_writable(link, "schedules", force=False)
        schedule_file.save(SCHEDULE, link)
        assert link.is_symlink() and not target.is_symlink() and target.read_text() == DOCUMENT
    assert entries(tmp_path) == ["far", "link.json"] and entries(tmp_path / "far") == ["s.json"]
    loop = tmp_path / "loop"
    loop.symlink_to("loop")
    with pytest.raises(OSError, match="loop"):
        files.check_writable(loop, "schedules", force=True)


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444])
def test_a_file_written_anew_keeps_its_permissions(mode: int, tmp_path: Path) -> None:
    """What nobody else may read stays so; a new file has what the umask leaves."""
    place, fresh = tmp_path / "s.json", tmp_path / "new.json"
    place.write_text(DOCUMENT)
    place.chmod(mode)
    schedule_file.save(SCHEDULE, place)
    schedule_file.save(SCHEDULE, fresh)
    assert stat.S_IMODE(place.stat().st_mode) == mode
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(fresh.stat().st_mode) == 0o666 & ~mask


CHECKPOINT = {"format": "hso-jax/judgements", "version": 1, "arguments": {"solver": "hso-jax/schedules"}}
FOREIGN = {
    "notes": b"I ran hso-jax and got a file of hso-jax/schedules.",
    "json notes": b'{"mine": "hso-jax/schedules"}',
    "checkpoint": json.dumps(CHECKPOINT).encode(),
    "the format elsewhere": json.dumps({"a": {"format": files.FORMAT}}).encode(),
    "a list": json.dumps([{"format": files.FORMAT}]).encode(),
    "truncated": DOCUMENT[:-30].encode(),
    "bytes": b"\xff\xfe hso-jax",
    "deep": b"[" * 100_000,
    "zoo": b'{"format": "hso-jax/zoo", "version": 1}',
    "svg of another": b'<?xml version="1.0"?><svg><desc>hso-jax</desc></svg>',
    "pdf of another": b"%PDF-1.4\n/Title (hso-jax)",
    "broken png": b"\x89PNG\r\n\x1a\n\xff\xff\xff\xfftEXtSoftware\0hso-jax",
}


@pytest.mark.parametrize("name", FOREIGN)
def test_files_of_others_need_force(name: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(FOREIGN[name])
    for kind in ("schedules", "picture"):
        with pytest.raises(ValueError, match="--force"):
            files.check_writable(file, kind, force=False)
        files.check_writable(file, kind, force=True)
    assert file.read_bytes() == FOREIGN[name]


def test_pictures_are_recognised_by_their_metadata(tmp_path: Path) -> None:
    figure = plot([SCHEDULE])
    for kind in ("png", "svg", "pdf"):
        ours = tmp_path / f"ours.{kind}"
        ours.write_bytes(encoded(figure, kind))
        assert files.kind_of(ours) == "picture"
        figure.savefig(tmp_path / f"theirs.{kind}", format=kind)
        assert files.kind_of(tmp_path / f"theirs.{kind}") is None
        with pytest.raises(ValueError, match="no schedule file"):
            files.check_writable(ours, "schedules", force=False)
    info = PngInfo()
    info.add_itxt("Software", "hso-jax")
    Image.new("RGB", (2, 2)).save(tmp_path / "sampled.png", pnginfo=info)
    assert files.kind_of(tmp_path / "sampled.png") == "picture"
    other = PngInfo()
    other.add_text("Comment", "Software hso-jax")
    other.add_text("Software", "GIMP, after hso-jax")
    Image.new("RGB", (2, 2)).save(tmp_path / "edited.png", pnginfo=other)
    assert files.kind_of(tmp_path / "edited.png") is None


def test_what_is_read_or_written_besides_is_another_file(tmp_path: Path) -> None:
    file, link = tmp_path / "s.json", tmp_path / "link"
    schedule_file.save(SCHEDULE, file)
    link.symlink_to("s.json")
    with pytest.raises(ValueError, match="the same file"):
        files.check_writable(link, "schedules", True, [None, file])


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("step", ["fdopen", "chmod"])
def test_all_files_are_on_the_disk_before_one_is_replaced(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_bytes(b"old")
    real, calls, written = getattr(os, step), [], []

    def once(*args: Any) -> Any:
        calls.append(args)
        return full() if len(calls) == 2 else real(*args)

    monkeypatch.setattr(os, step, once)
    with pytest.raises(OSError, match=f"No space left.*{second}"):
        files.write_all([(first, b"new"), (second, b"new")], written)
    assert written == [] and entries(tmp_path) == ["a"] and first.read_bytes() == b"old"


def test_what_was_written_is_told_where_a_rename_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    real, written = os.replace, []
    monkeypatch.setattr(os, "replace", lambda source, target: full() if target.endswith("b") else real(source, target))
    with pytest.raises(OSError, match=f"No space left.*{second}"):
        files.write_all([(first, b"new"), (second, b"new")], written)
    assert written == [first] and entries(tmp_path) == ["a"]


def test_a_long_name_is_written(tmp_path: Path) -> None:
    file = tmp_path / ("x" * 250 + ".json")
    schedule_file.save(SCHEDULE, file)
    assert entries(tmp_path) == [file.name]


def test_a_descriptor_is_written_as_a_stream() -> None:
    reader, writer = os.pipe()
    for folder in ("/dev/fd", "/proc/self/fd"):
        path = Path(f"{folder}/{writer}")
        files.check_writable(path, "picture", force=False)
        files.write_whole(path, b"content")
        assert os.read(reader, 100) == b"content"
    os.close(reader)
    with pytest.raises(BrokenPipeError, match=str(writer)):
        files.write_whole(path, b"content")
    os.close(writer)
    with pytest.raises(ValueError, match="no such stream is open"):
        files.check_writable(path, "picture", force=False)


def test_a_file_without_end_is_refused_by_its_size(tmp_path: Path) -> None:
    huge = tmp_path / "huge.json"
    with huge.open("wb") as file:
        file.truncate(2**40)  # sparse
    with pytest.raises(ValueError, match=r"huge\.json: it has 1099511627776 bytes"):
        schedule_file.load(huge)
    with pytest.raises(ValueError, match="--force"):
        files.check_writable(huge, "schedules", force=False)
