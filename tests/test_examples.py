"""The examples run from an empty folder, leave nothing there, and print what they promise."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

import bridge

ROOT = Path(__file__).parent.parent


def printed_by(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.chdir(folder)
    runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
    assert not list(folder.iterdir())
    return capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:__array_?.*:DeprecationWarning")  # how diffusers turns tensors into arrays
def test_a_diffusers_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    printed = printed_by("diffusers_user.py", tmp_path, monkeypatch, capsys)
    assert "solver unipc-2" in printed and "timesteps [942 " in printed  # sigma/alpha = 90: its linear betas end at 157
    difference = re.search(r"default schedule's picture: ([\d.]+)", printed)
    assert difference and float(difference[1]) > 0
    assert printed.endswith("saved and loaded: the same picture\n")


@pytest.mark.slow
def test_a_new_objective(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    rows = printed_by("new_objective.py", tmp_path, monkeypatch, capsys).splitlines()
    assert [row[:14].strip() for row in rows] == ["MEP", "squared steps", "trailing"]
    assert [row.split("error")[0].split()[-1] for row in rows] == ["converged", "converged", "fixed"]
    nodes = [row.split("timesteps")[1] for row in rows]
    assert len(set(nodes)) == 3  # the objective decides
    errors = [float(row.split("error")[1].split()[0]) for row in rows]
    assert all(0.05 < error < 0.3 for error in errors), errors


@pytest.mark.slow
def test_tuning_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    report, *rows = printed_by("tune_a_network.py", tmp_path, monkeypatch, capsys).splitlines()
    error, start = map(float, re.findall(r"error ([\d.]+) on samples kept apart, ([\d.]+) at the start", report)[0])
    (spent,) = map(int, re.findall(r"(\d+) evaluations, by differences", report))
    assert error <= start and 700 < spent <= 800
    trailing, recommended, tuned = (float(row.split()[-1]) for row in rows)
    assert max(recommended, tuned) < 0.8 * trailing


def test_the_emoji_pipeline_is_one_for_the_bridge() -> None:
    example = runpy.run_path(str(ROOT / "examples" / "emoji_pipeline.py"))
    pipe = example["load"]()
    rows = {"two steps": pipe([7, 3], guidance_scale=2, num_inference_steps=2).images}
    assert example["side_by_side"](rows, scale=2).size == (150 + 2 * 68, 68)
    assert bridge.recommend(pipe, 4, guidance=2).schedule.kind == "flow" and len(example["CLASSES"]) == 10


def test_every_example_is_tested() -> None:
    text = Path(__file__).read_text(encoding="utf-8")
    names = [file.name for file in (ROOT / "examples").glob("*.py")]
    assert names and all(f'"{name}"' in text for name in names)
