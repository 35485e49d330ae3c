"""How tests run a command line: in this process, in a folder of its own."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from hso_jax.cli import main


class Ran(NamedTuple):
    """What a command printed."""

    out: str
    err: str


Run = Callable[..., Ran]


def contents() -> dict[str, bytes]:
    """The files of this folder, without JAX's cache."""
    return {str(p): p.read_bytes() for p in Path().rglob("*") if p.is_file() and "cache" not in p.parts}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command, given as a line or as arguments; its exit code must be `code`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")  # the tests' own JAX is running: leave its settings alone
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "120")

    def ran(command: str | Sequence[str], code: int = 0) -> Ran:
        capsys.readouterr()
        found = main(shlex.split(command) if isinstance(command, str) else list(command))
        out, err = capsys.readouterr()
        assert found == code, f"{command}: {err}"
        return Ran(out, err)

    return ran


def refused(run: Run, command: str | Sequence[str], message: str) -> str:
    """Run a command that must exit with 2, end with one line that says why, and write nothing; returns the line."""
    before = contents()
    out, err = run(command, 2)
    line = err.splitlines()[-1]  # diffusers may have told something before
    assert err.count("error: ") == 1 and "Traceback" not in err, err
    assert line.startswith("error: ") and message in line, line
    assert not out and contents() == before
    return line
