"""Checkpoints: what a file must be to be resumed from. No bad one is overwritten."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hso_jax.checkpoint import FORMAT, Checkpoint

ARGUMENTS = {"solver": "ddim", "seed": 0}
RECORD = {"t": [1.0, 0.5]}


def written(path: Path) -> str:
    """A file as the program writes it, with one record."""
    with Checkpoint(path, ARGUMENTS) as checkpoint:
        checkpoint.records("2").add(RECORD)
    return path.read_text()


def header(**changed: Any) -> str:
    return json.dumps({"format": FORMAT, "version": 2, "arguments": {}, **changed}) + "\n"


BAD: dict[str, tuple[str, str]] = {
    "another object": ("{}\n", 'is no checkpoint: its first line must have "format"'),
    "no JSON": ("notes\n", "is no checkpoint: not valid JSON, or cut off"),
    "too deep": ("[" * 100_000 + "\n", "is no checkpoint: not valid JSON"),
    "null": ("null\n", "is no checkpoint"),
    "a list as format": (header(format=[FORMAT]), "is no checkpoint"),
    "the last version": (header(version=1), "has version 1, and this program knows 2: finish the search with the"),
    "version true": (header(version=True), "has version True"),
    "no arguments": (header(arguments=None), "other arguments: arguments was None, is"),
    "more arguments": (header(arguments={"a": 1, "b": 2}), "random was None, is .*; and 2 more; call with the same"),
    "a record without a name": ("{HEADER}" + json.dumps({"record": {}}) + "\n", "is damaged: line 2 is no record"),
    "a record that is a text": ("{HEADER}" + json.dumps({"search": "2", "record": "t"}) + "\n", "line 2 is no record"),
    "a list as name": ("{HEADER}" + json.dumps({"search": [], "record": {}}) + "\n", "line 2 is no record"),
    "no JSON in between": ("{HEADER}x\n{}\n", "line 2 is no record"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_and_left_alone(name: str, tmp_path: Path) -> None:
    text, message = BAD[name]
    file = tmp_path / "c.json"
    text = text.replace("{HEADER}", written(file).split("\n")[0] + "\n")
    file.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        Checkpoint(file, ARGUMENTS)
    assert str(file) in str(caught.value) and file.read_text() == text


def test_a_file_cut_off_at_any_byte(tmp_path: Path) -> None:
    """In its first line it is refused; a record that was cut off is dropped, and written again."""
    file = tmp_path / "c.json"
    whole = written(file).encode()
    first = whole.index(b"\n") + 1
    for length in (*range(1, first, 17), first - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"c\.json is no checkpoint: not valid JSON, or cut off"):
            Checkpoint(file, ARGUMENTS)
        assert file.read_bytes() == whole[:length]
    for length in (0, first, first + 5, len(whole) - 1):
        file.write_bytes(whole[:length])
        with Checkpoint(file, ARGUMENTS) as checkpoint:
            assert checkpoint.records("2").done == []
            checkpoint.records("2").add(RECORD)
        assert file.read_bytes() == whole


def test_what_cannot_be_a_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(ValueError, match="it is not a regular file"):
            Checkpoint(path, ARGUMENTS)
    for bad in (7, True, b"c.json", ["c.json"]):
        with pytest.raises(ValueError, match=r"checkpoint is .*; need a path or None"):
            Checkpoint(bad, ARGUMENTS)  # type: ignore[arg-type]


def test_records_are_appended_and_come_back_in_order(tmp_path: Path) -> None:
    file = tmp_path / "c.json"
    before = written(file)
    with Checkpoint(file, ARGUMENTS) as checkpoint:
        records = checkpoint.records("2")
        records.add({"t": [0.5]})
        records.part("known").add(RECORD)
        assert records.done == [RECORD, {"t": [0.5]}]
    text = file.read_text()
    assert text.startswith(before) and len(text.splitlines()) == 4
    with Checkpoint(file, ARGUMENTS) as again:
        assert again.records("2").done == records.done and again.records("2/known").done == [RECORD]
    assert file.read_text() == text


def test_what_differs_is_named(tmp_path: Path) -> None:
    file = tmp_path / "c.json"
    text = written(file)
    with pytest.raises(ValueError, match=r"other arguments: seed was 0, is 1; call with the same"):
        Checkpoint(file, {**ARGUMENTS, "seed": 1})
    assert file.read_text() == text


def test_one_process_at_a_time(tmp_path: Path) -> None:
    """Also through a link, and within one process; the lock of a killed process is gone, and leaves no file."""
    file, link = tmp_path / "c.json", tmp_path / "link.json"
    link.symlink_to(file)
    code = "import sys, time; from hso_jax.checkpoint import Checkpoint; c = Checkpoint(sys.argv[1], {}); print(1)"
    command = [sys.executable, "-c", f"{code}; sys.stdout.flush(); time.sleep(60)", str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "1\n"
        for path in (file, link):
            with pytest.raises(ValueError, match="json is in use by another process; wait for it"):
                Checkpoint(path, {})
        other.kill()
    with Checkpoint(file, {}), pytest.raises(ValueError, match="is in use by another process"):
        Checkpoint(file, {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.json", "link.json"]


def test_settings_that_no_file_can_hold() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    for value in (deep, float("nan"), {1, 2}):
        with pytest.raises(ValueError, match="settings that are not made of texts and finite numbers"):
            Checkpoint(None, {"settings": value})
