"""`hso-jax profile` and `hso-jax search --profile`, by the main program, on a tiny pipeline."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
from test_pipelines_schedule import family_of

from bridge import noise_schedule_of
from hso_jax import Profile, baseline
from hso_jax.cli import main

COMMAND = ["profile", "--pipeline", "model", "--budget", "128", "--steps", "8", "-o", "p.json", "--guidance", "2"]
COMMAND += ["--option", "height=16", "--option", "width=16", "--scheduler", "DPMSolverMultistepScheduler"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline") / "model"
    family_of("StableDiffusionPipeline").build().save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def _own_folder(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    Path("model").symlink_to(model)
    Path("prompts.txt").write_text("a small fox\n\n  rain \n")


def test_measures_and_a_search_takes_it(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main([*COMMAND, "--prompts", "prompts.txt", "--seed", "5"]) == 0
    said = capsys.readouterr().out
    assert "16 samples of 256 values, 128 evaluations" in said and "--profile p.json" in said
    found = Profile.load("p.json")
    assert found.guidance == 2.0 and found.measured["prompts"] == ["a small fox", "rain"]
    assert found.measured["seed"] == 5 and found.measured["solver"] == "DPMSolverMultistepScheduler"
    assert main([*COMMAND, "--prompts", "prompts.txt", "--seed", "6"]) == 0  # its own file is replaced
    assert Profile.load("p.json") != found

    asked: list[Any] = []

    def search(many: list[Any], *, progress: Any) -> list[Any]:
        asked.extend(many)
        return [baseline("trailing", lane.noise, lane.nfe) for lane in many]

    monkeypatch.setattr(importlib.import_module("hso_jax.cli.searches"), "search_many", search)
    options = ["--method", "solver-error", "--nfe", "4", "--profile", "p.json", "--json"]
    assert main(["search", "--model", "model", *options]) == 0
    assert asked[0].method.profile == Profile.load("p.json")
    assert asked[0].noise.fingerprint() == noise_schedule_of(family_of("StableDiffusionPipeline").build()).fingerprint()
    capsys.readouterr()
    for more, message in (
        (["search", "--model", "sd3-medium", *options], "noise end is lam = "),
        (["search", "--model", "model", "--nfe", "4", "--profile", "p.json"], "--profile: only with --method"),
        (["search", "--model", "model", *options[:-2], "prompts.txt", "--json"], "prompts.txt: not valid JSON"),
        (["search", "--model", "model", *options[:-2], "no.json", "--json"], "no.json: No such file"),
        (["search", "--model", "model", *options[:-1], "-o", "p.json", "--force"], "the same file is read or written"),
    ):
        assert main(more) == 2 and message in capsys.readouterr().err


def test_an_interrupted_one_leaves_no_file(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(pipe: Any, **options: Any) -> Any:
        options["progress"](8, 128)
        raise KeyboardInterrupt

    monkeypatch.setattr("bridge.cli.commands.measure", interrupted)
    assert main(COMMAND) == 130
    assert "interrupted" in capsys.readouterr().err
    assert sorted(p.name for p in Path().iterdir()) == ["model", "prompts.txt"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--budget", "100"], "budget is 100: 12 samples of 8 evaluations"),
        (["--pipeline", "prompts.txt"], "prompts.txt is not a folder"),
        (["--prompts", "nothing.txt"], "nothing.txt: No such file"),
        (["-o", "prompts.txt"], "prompts.txt exists and is no profile of hso-jax"),
        (["-o", "nowhere/p.json"], "the folder nowhere does not exist"),
        (["--scheduler", "PNDMScheduler"], "does not follow the probability flow"),
        (["--option", "generator=1"], "--option generator: that is set by --prompts, --steps or --seed"),
        (["--option", "guidance_scale=4"], "guidance_scale is 4 and guidance 2.0; leave one out"),
    ],
)
def test_refuses(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*COMMAND, *options]) == 2
    assert message in capsys.readouterr().err and not Path("p.json").exists()
