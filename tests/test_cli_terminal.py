"""What reaches a terminal: names as they are written, on every width, and no control characters."""

from __future__ import annotations

import dataclasses
import io
import json
import sys
from pathlib import Path

import pytest

import hso_jax
from hso_jax import Origin
from hso_jax.checks import printable
from hso_jax.cli import main
from hso_jax.plots import encoded, methods_figure, schedules_figure

NOISE = hso_jax.preset("sd15")
NAMES = {
    "markup": "[bold]model[/nothing] [link=x]",
    "escape": "\x1b[31mred\x1b]0;title\x07\r\n\t\x9b2J",
    "surrogate": "caf\udce9 \ud800",
    "formula": "$\\nothing{ $ _x^",
    "emoji": ":smile: \U0001f98a \u202eright",
    "long": "x" * 300,
}


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def named(name: str) -> list[hso_jax.Schedule]:
    schedules = [hso_jax.baseline("trailing", NOISE, n) for n in (4, 6)]
    # Different methods: a column that says the same in every row is left out.
    return [
        dataclasses.replace(s, model=name + str(i), origin=Origin(method=name + str(i)))
        for i, s in enumerate(schedules)
    ]


def clean(text: str) -> bool:
    return all(c.isprintable() or c == "\n" for c in text)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("columns", ["0", "20", "200", "5000", "many"])
def test_names_are_shown_as_they_are(
    name: str, columns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    hso_jax.save(named(NAMES[name]), "s.json")
    for argv in (["show", "s.json"], ["show", "s.json", "--nfe", "9"], ["zoo", "--model", NAMES[name]]):
        assert main(argv) in (0, 2)
        out, err = capsys.readouterr()
        assert clean(out) and clean(err)
        if argv[-1] == "s.json":
            assert f"{printable(NAMES[name])}1" in out and "999 749 499 249" in out
    assert main(["show", "s.json", "--as", "json"]) == 0
    assert hso_jax.schedule_file.from_json(capsys.readouterr().out)[1].model == NAMES[name] + "1"


@pytest.mark.parametrize("name", [name for name in NAMES if name != "long"])
def test_names_of_files_are_shown_as_they_are(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = Path(NAMES[name].replace("/", "").replace("\ud800", "") + ".json")
    hso_jax.save(named("model"), file)
    assert main(["show", str(file)]) == 0
    assert printable(file) in capsys.readouterr().out.splitlines()[0]
    for argv in (
        ["plot", str(file)],
        ["zoo", "-o", str(file), "--nfe", "4"],
        ["show", f"{file}x"],
        ["show", "-x", str(file)],
    ):
        code = main(argv)
        out, err = capsys.readouterr()
        assert code in (0, 2) and clean(out) and clean(err)
        assert printable(file.stem) in out + err or "-x" in argv


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
@pytest.mark.filterwarnings("ignore:Glyph")
def test_names_are_drawn(name: str, kind: str) -> None:
    for draw in (schedules_figure, methods_figure):
        assert len(encoded(draw(named(NAMES[name][:40])), kind)) > 1000


def test_a_terminal_without_unicode(monkeypatch: pytest.MonkeyPatch) -> None:
    hso_jax.save(named("caf\u00e9"), "s.json")
    monkeypatch.setenv("COLUMNS", "120")
    for argv in (["show", "s.json"], ["models"]):
        raw = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
        assert main(argv) == 0
        assert raw.getvalue().isascii() and (b"caf\\xe9" in raw.getvalue() or argv == ["models"])


@pytest.mark.parametrize("columns", ["0", "20", "60"])
def test_help_models_and_zoo_are_readable_where_it_is_narrow(
    columns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert main(["models"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in hso_jax.noise.PRESETS) and "\u2026" not in out
    assert main(["zoo", "--model", "sdxl", "--nfe", "4", "--solver", "dpmpp-2m"]) == 0
    out = capsys.readouterr().out
    told = " ".join(f"{x:.0f}" for x in hso_jax.zoo("sdxl", 4, "dpmpp-2m").timesteps)
    assert told in out and "\u2026" not in out
    assert main(["search", "--help"]) == 0
    assert "--spacing-as" in capsys.readouterr().out


def test_json_is_never_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    hso_jax.save(named("[b]x[/b]"), "s.json")
    assert main(["show", "s.json", "--as", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["schedules"][0]["model"] == "[b]x[/b]0"
