"""What may be written where, what is whose, and that a file is written whole or not at all."""

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


def make(kind: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thing of this kind; for a device the system says so of one regular file."""
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as end:
            end.bind(str(path))
    elif kind == "folder":
        path.mkdir()
    else:
        path.write_text(DOCUMENT)
        real, target = os.stat, os.path.realpath(path)

        def told(name: Any, *args: Any, **kwargs: Any) -> os.stat_result:
            found = real(name, *args, **kwargs)
            device = not isinstance(name, int) and os.path.realpath(name) == target
            return os.stat_result((stat.S_IFCHR | 0o666, *found[1:])) if device else found

        monkeypatch.setattr(os, "stat", told)


@pytest.mark.parametrize("kind", ["pipe", "socket", "folder", "device"])
@pytest.mark.parametrize("linked", [False, True])
def test_only_regular_files_are_read_or_replaced(
    kind: str, linked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the name of a socket is at most 108 bytes long
    place = Path("it.json")
    make(kind, place, monkeypatch)
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


def test_a_link_stays_and_its_target_is_written(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    target, link, loop = tmp_path / "far" / "s.json", tmp_path / "link.json", tmp_path / "loop"
    link.symlink_to("far/s.json")
    for _ in range(2):  # a dangling link first
        files.check_writable(link, "schedules", force=False)
        schedule_file.save(SCHEDULE, link)
        assert link.is_symlink() and not target.is_symlink() and target.read_text() == DOCUMENT
    assert entries(tmp_path) == ["far", "link.json"] and entries(tmp_path / "far") == ["s.json"]
    with pytest.raises(ValueError, match="the same file"):
        files.check_writable(link, "schedules", True, [None, target])
    loop.symlink_to("loop")
    with pytest.raises(OSError, match="loop"):
        files.check_writable(loop, "schedules", force=True)


@pytest.mark.parametrize("mode", [None, 0o600, 0o640, 0o444])
def test_permissions_follow_the_old_file_or_umask(mode: int | None, tmp_path: Path) -> None:
    place = tmp_path / ("x" * 250 + ".json")  # as long as a name may be
    if mode is not None:
        place.write_text(DOCUMENT)
        place.chmod(mode)
    schedule_file.save(SCHEDULE, place)
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(place.stat().st_mode) == (0o666 & ~mask if mode is None else mode)
    assert entries(tmp_path) == [place.name]


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


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_pictures_are_recognised_by_their_metadata(kind: str, tmp_path: Path) -> None:
    figure, ours, theirs = plot(SCHEDULE), tmp_path / f"ours.{kind}", tmp_path / f"theirs.{kind}"
    ours.write_bytes(encoded(figure, kind))
    figure.savefig(theirs, format=kind)
    files.check_writable(ours, "picture", force=False)
    for path, what in ((ours, "schedules"), (theirs, "picture")):
        with pytest.raises(ValueError, match=r"is no .* of hso-jax"):
            files.check_writable(path, what, force=False)


@pytest.mark.parametrize(("software", "kind"), [("hso-jax", "picture"), ("GIMP, after hso-jax", None)])
def test_pillow_s_pictures_are_recognised(software: str, kind: str | None, tmp_path: Path) -> None:
    info = PngInfo()
    info.add_text("Comment", "Software hso-jax")
    info.add_itxt("Software", software)
    Image.new("RGB", (2, 2)).save(tmp_path / "x.png", pnginfo=info)
    assert files.kind_of(tmp_path / "x.png") == kind


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("step", "nth", "kept"), [("fdopen", 2, 0), ("chmod", 2, 0), ("replace", 1, 0), ("replace", 2, 1)]
)
def test_files_are_staged_before_any_is_replaced(
    step: str, nth: int, kept: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, written, calls, real = [tmp_path / "a", tmp_path / "b"], [], [], getattr(os, step)
    paths[0].write_bytes(b"old")

    def once(*args: Any) -> Any:
        calls.append(args)
        return full() if len(calls) == nth else real(*args)

    monkeypatch.setattr(os, step, once)
    with pytest.raises(OSError, match=f"No space left.*{paths[kept if step == 'replace' else 1]}"):
        files.write_all([(path, b"new") for path in paths], written)
    assert written == paths[:kept] and entries(tmp_path) == ["a"]
    assert paths[0].read_bytes() == (b"new" if kept else b"old")


def test_folders_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for place in (tmp_path / "none" / "s.json", tmp_path / "file" / "s.json", tmp_path):
        with pytest.raises(OSError, match=r"."):
            schedule_file.save(SCHEDULE, place)
    with pytest.raises((TypeError, ValueError, AttributeError)):
        schedule_file.save([SCHEDULE, 3], tmp_path / "file")
    assert os.listdir(tmp_path) == ["file"] and (tmp_path / "file").read_text() == "x"
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    if not os.access(locked, os.W_OK):  # root may write anywhere
        with pytest.raises(OSError, match="Permission"):
            schedule_file.save(SCHEDULE, locked / "s.json")


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
    for read in (schedule_file.load, hso_jax.from_config):
        with pytest.raises(ValueError, match=r"huge\.json.*: it has 1099511627776 bytes"):
            read(huge)
    with pytest.raises(ValueError, match="--force"):
        files.check_writable(huge, "schedules", force=False)


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_json_writes_null_for_no_number(value: float) -> None:
    text = files.json_text({"a": [value, (1.0, {"b": value})], "c": "inf"})
    assert json.loads(text) == {"a": [None, [1.0, {"b": None}]], "c": "inf"}
