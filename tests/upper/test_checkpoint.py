"""Checkpoints: what a file must be to be resumed from. No bad one is overwritten."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hso_jax.upper.checkpoint import FORMAT, Judgements, plain

ARGUMENTS = {"solver": "ddim", "seed": 0}
T = np.array([1.0, 0.5])


def written(path: Path) -> dict[str, Any]:
    """A document as the program writes it: N = 2, one start, one judgement."""
    judgements = Judgements(path, ARGUMENTS)
    judgements.begin(2, ["a start"])
    judgements.add(2, T, 0.25)
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


RECORD = ("searches", "2", "judged", 0)
DAMAGED: dict[str, tuple[tuple[Any, ...], Any, str]] = {
    "no arguments": (("arguments",), ..., "arguments is None, not an object"),
    "versions a list": (("versions",), ["1"], r"versions is \['1'\], not an object"),
    "searches a text": (("searches",), "none", "searches is 'none', not an object"),
    "a search a number": (("searches", "2"), 1, r"searches\['2'\] must be an object of starts and judged"),
    "no judged": (("searches", "2", "judged"), ..., "must be an object of starts and judged"),
    "judged an object": (("searches", "2", "judged"), {}, "judged is {}, not a list"),
    "starts a text": (("searches", "2", "starts"), "abc", "starts is 'abc', not a list of texts"),
    "starts of numbers": (("searches", "2", "starts"), [1], r"starts is \[1\], not a list of texts"),
    "a record a list": (RECORD, [], r"judged\[0\] must be an object of t and fitness"),
    "no fitness": ((*RECORD, "fitness"), ..., r"judged\[0\] must be an object of t and fitness"),
    "fitness true": ((*RECORD, "fitness"), True, "fitness is True, not a number or null"),
    "fitness a text": ((*RECORD, "fitness"), "0.1", "fitness is '0.1', not a number or null"),
    "fitness too large": ((*RECORD, "fitness"), 10**400, "fitness is 1000.*, not a number or null"),
    "fitness infinite": ((*RECORD, "fitness"), float("inf"), "fitness is inf, not a number or null"),
    "t a number": ((*RECORD, "t"), 1.0, "t is 1.0, not a list of numbers"),
    "t of texts": ((*RECORD, "t"), ["1"], "not a list of numbers"),
    "t too large": ((*RECORD, "t"), [10**400, 0.5], "not a list of numbers"),
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
        Judgements(file, ARGUMENTS)
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
        Judgements(file, ARGUMENTS)
    assert str(file) in str(caught.value) and file.read_text() == text


def test_a_checkpoint_cut_off_at_any_byte(tmp_path: Path) -> None:
    file = tmp_path / "c.json"
    written(file)
    whole = file.read_bytes()
    for length in range(0, len(whole) - 1, 17):
        file.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"c\.json is not a checkpoint: not valid JSON, or truncated"):
            Judgements(file, ARGUMENTS)
        assert file.read_bytes() == whole[:length]


def test_a_pipe_or_a_folder_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, message in ((tmp_path / "pipe", "it is a pipe"), (tmp_path, "it is a folder")):
        with pytest.raises(ValueError, match=message):
            Judgements(path, ARGUMENTS)


@pytest.mark.parametrize("path", [7, True, b"c.json", ["c.json"]])
def test_what_is_no_path(path: Any) -> None:
    with pytest.raises(ValueError, match=r"checkpoint is .*; need a path or None"):
        Judgements(path, ARGUMENTS)


def test_failed_judgements_and_other_nodes(tmp_path: Path) -> None:
    file = tmp_path / "c.json"
    written(file)
    judgements = Judgements(file, ARGUMENTS)
    judgements.add(2, T, float("nan"))
    assert [judgements.recall(2, i, T) for i in range(3)] == [0.25, float("inf"), None]
    with pytest.raises(ValueError, match=r"schedule 0 at N = 2 is not the one .*the versions are the same"):
        judgements.recall(2, 0, T / 2)


def test_settings_too_deep_for_a_file() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    for value in (deep, float("nan"), {1, 2}):
        with pytest.raises(ValueError, match=r"settings is .*; it must be made of texts and finite numbers"):
            plain(value, "settings")
