"""Checkpoints: what a file must be to be resumed from. No bad one is overwritten."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hso_jax.checkpoint import FORMAT, Checkpoint, plain

ARGUMENTS = {"solver": "ddim", "seed": 0}
RECORD = {"t": [1.0, 0.5]}


def good(record: Any) -> str | None:
    return None if isinstance(record, dict) else " must be an object"


def written(path: Path) -> dict[str, Any]:
    """A document as the program writes it: one search with an argument and a record."""
    with Checkpoint(path, ARGUMENTS) as checkpoint:
        checkpoint.search("2", {"starts": ["a start"]}, good).add(RECORD)
    return json.loads(path.read_text())


def changed(path: Path, *keys: Any, value: Any) -> str:
    """The text of `written` with one entry exchanged; a value of ... deletes it."""
    document = written(path)
    place = document
    for key in keys[:-1]:
        place = place[key]
    if value is ...:
        del place[keys[-1]]
    else:
        place[keys[-1]] = value
    return json.dumps(document)


SEARCH = ("searches", "2")
DAMAGED: dict[str, tuple[tuple[Any, ...], Any, str]] = {
    "no arguments": (("arguments",), ..., "arguments is None, not an object"),
    "versions a list": (("versions",), ["1"], r"versions is \['1'\], not an object"),
    "searches a text": (("searches",), "none", "searches is 'none', not an object"),
    "a search a number": (SEARCH, 1, r"searches\['2'\] must be an object of arguments and records"),
    "no records": ((*SEARCH, "records"), ..., "must be an object of arguments and records"),
    "records an object": ((*SEARCH, "records"), {}, "records is {}, not a list"),
    "a search's arguments a text": ((*SEARCH, "arguments"), "abc", "arguments is 'abc', not an object"),
    "version true": (("version",), True, "has version True; this program knows 1"),
    "version deep": (("version",), [[[[1]]]], "has version .*; this program knows 1"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_checkpoint_is_refused_by_its_entry_and_left_alone(name: str, tmp_path: Path) -> None:
    keys, value, message = DAMAGED[name]
    file = tmp_path / "c.json"
    text = changed(file, *keys, value=value)
    file.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        Checkpoint(file, ARGUMENTS)
    assert str(file) in str(caught.value) and file.read_text() == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "is not a checkpoint"),
        ("", "not valid JSON, or truncated"),
        ("[" * 100_000, "not valid JSON"),
        ("1" * 5000, "not valid JSON"),
        ("null", "holds a JSON NoneType, not a checkpoint"),
        (json.dumps({"format": [FORMAT]}), "is not a checkpoint"),
        (json.dumps({"format": FORMAT, "version": 1}), "arguments is None"),
    ],
)
def test_what_is_no_checkpoint_is_left_alone(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "c.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        Checkpoint(file, ARGUMENTS)
    assert str(file) in str(caught.value) and file.read_text() == text


def test_a_checkpoint_cut_off_at_any_byte(tmp_path: Path) -> None:
    file = tmp_path / "c.json"
    written(file)
    whole = file.read_bytes()
    for length in range(0, len(whole) - 1, 17):
        file.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"c\.json is not a checkpoint: not valid JSON, or truncated"):
            Checkpoint(file, ARGUMENTS)
        assert file.read_bytes() == whole[:length]


def test_a_pipe_or_a_folder_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, message in ((tmp_path / "pipe", "it is a pipe"), (tmp_path, "it is a folder")):
        with pytest.raises(ValueError, match=message):
            Checkpoint(path, ARGUMENTS)


@pytest.mark.parametrize("path", [7, True, b"c.json", ["c.json"]])
def test_what_is_no_path(path: Any) -> None:
    with pytest.raises(ValueError, match=r"checkpoint is .*; need a path or None"):
        Checkpoint(path, ARGUMENTS)


def test_records_come_back_in_their_order(tmp_path: Path) -> None:
    file = tmp_path / "c.json"
    written(file)
    with Checkpoint(file, ARGUMENTS) as checkpoint:
        records = checkpoint.search("2", {"starts": ["a start"]}, good)
        records.add({"t": [0.5]})
        assert records.done == [RECORD, {"t": [0.5]}] == json.loads(file.read_text())["searches"]["2"]["records"]


def test_what_differs_is_named_and_the_file_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "c.json"
    written(file)
    text = file.read_text()
    with pytest.raises(ValueError, match=r"other arguments: seed was 0, is 1; call with the same"):
        Checkpoint(file, {**ARGUMENTS, "seed": 1})
    with Checkpoint(file, ARGUMENTS) as checkpoint:
        with pytest.raises(ValueError, match=r"other arguments of search 2: starts was \['a start'\], is \[\]"):
            checkpoint.search("2", {"starts": []}, good)
        with pytest.raises(ValueError, match=r"damaged: searches\['2'\].records\[0\] is bad"):
            checkpoint.search("2", {"starts": ["a start"]}, lambda record: " is bad")
    assert file.read_text() == text


def test_one_process_at_a_time(tmp_path: Path) -> None:
    """Also through a link, and within one process; a lock whose process was killed is nobody's."""
    file, link = tmp_path / "c.json", tmp_path / "link.json"
    link.symlink_to(file)
    code = "import sys, time; from hso_jax.checkpoint import Checkpoint; Checkpoint(sys.argv[1], {}); print(1)"
    command = [
        sys.executable,
        "-c",
        f"{code.replace('Checkpoint(sys', 'c = Checkpoint(sys')}; sys.stdout.flush(); time.sleep(60)",
        str(file),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "1\n"
        for path in (file, link):
            with pytest.raises(ValueError, match=rf"json is in use by process {other.pid}; wait for it"):
                Checkpoint(path, {})
        other.kill()
    assert (tmp_path / "c.json.lock").exists()
    with Checkpoint(file, {}), pytest.raises(ValueError, match="is in use by process"):
        Checkpoint(file, {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.json", "link.json"]
    (tmp_path / "c.json.lock").write_text("mine")
    with pytest.raises(ValueError, match=r"c\.json\.lock is no lock of hso-jax"):
        Checkpoint(file, {})
    assert (tmp_path / "c.json.lock").read_text() == "mine"


def test_settings_too_deep_for_a_file() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    for value in (deep, float("nan"), {1, 2}):
        with pytest.raises(ValueError, match=r"settings is .*; it must be made of texts and finite numbers"):
            plain(value, "settings")
