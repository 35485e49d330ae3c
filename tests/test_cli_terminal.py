"""What reaches a terminal: names as they are written, on every width, and no control characters."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from commands import Run, contents

import hso_jax
from hso_jax.checks import printable
from hso_jax.plots import encoded, methods_figure, plot
from hso_jax.schedule import Origin

NOISE = hso_jax.preset("sd15")
NAMES = {
    "markup": "[bold]model[/nothing] [link=x]",
    "escape": "\x1b[31mred\x1b]0;title\x07\r\n\t\x9b2J",
    "surrogate": "caf\udce9 \ud800",
    "formula": "$\\nothing{ $ _x^",
    "emoji": ":smile: \U0001f98a \u202eright",
    "long": "x" * 300,
}


def named(name: str) -> list[hso_jax.Schedule]:
    """Of different methods: a column that says the same in every row is left out."""
    both = enumerate(hso_jax.baseline("trailing", NOISE, n) for n in (4, 6))
    return [dataclasses.replace(s, model=f"{name}{i}", origin=Origin(method=f"{name}{i}")) for i, s in both]


def clean(text: str) -> bool:
    return all(c.isprintable() or c == "\n" for c in text)


WIDTHS = [*((name, "200") for name in NAMES), *(("markup", columns) for columns in ("0", "20", "5000", "many"))]


@pytest.mark.parametrize(("name", "columns"), WIDTHS)
def test_names_are_shown_as_they_are(run: Run, name: str, columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    hso_jax.save(named(NAMES[name]), "s.json")
    out, err = run(["show", "s.json"])
    assert clean(out + err) and f"{printable(NAMES[name])}1" in out and "999 749 499 249" in out
    for argv in (["show", "s.json", "--nfe", "9"], ["zoo", "--model", NAMES[name]]):
        assert clean("".join(run(argv, 2)))
    assert hso_jax.schedule_file.from_json(run("show s.json --as json").out)[1].model == NAMES[name] + "1"


@pytest.mark.parametrize("name", [name for name in NAMES if name != "long"])
def test_names_of_files_are_shown_as_they_are(run: Run, name: str) -> None:
    file = Path(NAMES[name].replace("/", "").replace("\ud800", "") + ".json")
    hso_jax.save(named("model"), file)
    assert printable(file) in run(["show", str(file)]).out.splitlines()[0]
    for argv, code in (
        (["plot", str(file)], 0),
        (["zoo", "-o", str(file), "--nfe", "4"], 0),
        (["show", f"{file}x"], 2),
        (["show", "-x", str(file)], 2),
    ):
        out, err = run(argv, code)
        assert clean(out + err) and (printable(file.stem) in out + err or "-x" in argv)


PICTURES = [("markup", "png"), ("formula", "png"), ("escape", "svg"), ("surrogate", "pdf")]


@pytest.mark.parametrize(("name", "kind"), PICTURES)
@pytest.mark.filterwarnings("ignore:Glyph")
def test_names_are_drawn(name: str, kind: str) -> None:
    for draw in (plot, methods_figure):
        assert len(encoded(draw(named(NAMES[name][:40])), kind)) > 1000


def test_a_terminal_without_unicode(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    hso_jax.save(named("caf\u00e9"), "s.json")
    for command in ("show s.json", "models"):
        raw = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
        run(command)
        assert raw.getvalue().isascii() and (b"caf\\xe9" in raw.getvalue() or command == "models")


@pytest.mark.parametrize("columns", ["0", "20", "60"])
def test_narrow_terminals_are_readable(run: Run, columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    out = run("models").out
    assert all(name in out for name in hso_jax.noise.PRESETS) and "\u2026" not in out
    out = run("zoo --model sdxl --nfe 4 --solver dpmpp-2m").out
    levels = " ".join(f"{x:.0f}" for x in hso_jax.zoo("sdxl", 4, "dpmpp-2m").timesteps)
    assert levels in out and "\u2026" not in out
    assert "--spacing-as" in run("search --help").out


def test_quiet_prints_errors_and_json_alone(run: Run) -> None:
    command = "zoo --model sd15 --nfe 4 --solver ddim --quiet"
    assert run(command) == ("", "")
    assert json.loads(run(f"{command} --json").out)["schedules"][0]["model"] == "sd15"
    assert run("zoo --model sd9 --quiet", 2).err.startswith("error: ") and not contents()


@pytest.mark.parametrize(("option", "said"), [([], b"loading\r\x1b[K"), (["--quiet"], b"")])
def test_a_terminal_is_told_while_jax_is_loaded(option: list[str], said: bytes) -> None:
    mine, its = pytest.importorskip("pty").openpty()
    subprocess.run(
        [sys.executable, "-m", "hso_jax", "models", *option], stdout=subprocess.DEVNULL, stderr=its, check=True
    )
    os.write(its, b".")
    assert os.read(mine, 1000) == said + b"."
    os.close(mine)
    os.close(its)
