"""The README's examples run, and its commands are the ones CI runs."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"


def _blocks(marker: str, language: str) -> list[str]:
    return re.findall(rf"<!-- {marker} -->\n```{language}\n(.*?)```", README.read_text(), re.S)


def test_python_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    blocks = _blocks("example", "python")
    assert len(blocks) == 4
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for block in blocks:
        exec(compile(block, str(README), "exec"), names)
    printed = capsys.readouterr().out
    assert "[959 822 655 458 238  29]" in printed  # as the README's comment says
    assert len(names["every"]) == 17 and (tmp_path / "sdxl.json").is_file()
    assert len(names["schedules"]) == 4 * 3 * 2 * 2


def test_commands_are_there_and_ci_uses_the_second():
    (main_job,) = _blocks("main job", "bash")
    (tests,) = _blocks("tests", "bash")
    assert main_job.strip().endswith("hso-jax search") and tests.strip().endswith("pytest")
    assert "<!-- tests -->" in (README.parent / ".ci" / "run").read_text()


def test_nothing_is_left_to_fill_in():
    assert not re.search(r"[A-Z]+_TABLE", README.read_text())
