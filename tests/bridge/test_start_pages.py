"""Every block of code on the first pages runs, in order, as a reader runs it; each page installs as the README does."""

from __future__ import annotations

import json
import re
import shlex
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_pipelines_schedule import family_of

import bridge
from hso_jax.cli import main

ROOT = Path(__file__).parents[2]
PAGES = ("start-diffusers", "start-comfyui", "start-paper", "neighbours")
BLOCK = re.compile(r"(?:<!-- (install|skrample|not run: [^>]+) -->\n)?```(python|bash)\n(.*?)```", re.S)


def blocks(page: str) -> list[tuple[str, str, str]]:
    """(mark, language, text) of each."""
    return BLOCK.findall((ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8"))


def sample_dpmpp_2m(model: Any, x: torch.Tensor, sigmas: torch.Tensor, disable: bool | None = None) -> torch.Tensor:
    """DPM++ 2M with k-diffusion's signature: `model(x, sigma [n])` predicts the clean data."""
    before: torch.Tensor | None = None
    for sigma, after, earlier in zip(sigmas[:-1], sigmas[1:], [None, *sigmas[:-2]], strict=True):
        clean = model(x, sigma.expand(len(x)))
        used = clean
        if before is not None and after > 0:
            ratio = torch.log(earlier / sigma) / torch.log(sigma / after)
            used = clean + (clean - before) / (2 * ratio)
        x, before = after / sigma * x + (1 - after / sigma) * used, clean
    return x


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a pipeline, in which the clone's `examples` and a k-diffusion can be imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT))
    package, sampling = types.ModuleType("k_diffusion"), types.ModuleType("k_diffusion.sampling")
    vars(sampling)["sample_dpmpp_2m"] = sample_dpmpp_2m
    monkeypatch.setitem(sys.modules, "k_diffusion", package)
    monkeypatch.setitem(sys.modules, "k_diffusion.sampling", sampling)
    return tmp_path


def run(page: str, mark: str = "") -> dict[str, Any]:
    """Run the blocks of a page that bear this mark or none; the names that they leave."""
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    for found, language, text in blocks(page):
        if found not in ("", mark):
            continue
        if language == "python":
            exec(compile(text, page, "exec"), names)
            continue
        for line in text.splitlines():
            program, *arguments = shlex.split(line, comments=True)
            assert program == "hso-jax", f"{page}: only hso-jax is run here, not {line!r}"
            assert main(arguments) == 0, line
    return names


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the schedule (is for solver|has coefficients of its own)")
@pytest.mark.filterwarnings("ignore:__array_?.*:DeprecationWarning")  # how diffusers turns tensors into arrays
def test_start_in_diffusers(place: Path) -> None:
    family_of("StableDiffusionPipeline").build().save_pretrained("my-model")
    names = run("start-diffusers")
    rows = {name: np.stack([np.asarray(image, float) for image in images]) for name, images in names["rows"].items()}
    before, after = (np.sqrt(np.mean((rows[f"4 steps, {x}"] - rows["40 steps"]) ** 2)) for x in ("before", "after"))
    assert after < 0.6 * before
    assert (place / "compare.png").is_file() and (place / "grid.png").is_file() and names["tuned"].schedule.nfe == 4


def test_start_in_comfyui(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("start-comfyui")
    printed = capsys.readouterr().out.split()
    assert len(printed) >= 7 and place.joinpath("sdxl.json").is_file()


@pytest.mark.slow
def test_start_with_the_paper(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = run("start-paper")
    printed = capsys.readouterr().out
    assert "3.83" in printed and "16504" in printed and "3.19675" in printed
    assert "[959 708 376  29]" in printed and names["schedule"].nfe == 4


def test_neighbours_take_the_sigmas(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """k-diffusion's contract gives what diffusers' solver gives; ComfyUI's ManualSigmas reads what is printed."""
    names = run("neighbours")

    def denoiser(x: torch.Tensor, level: Any) -> torch.Tensor:
        return x * level.alpha * 0.25 / (level.alpha**2 * 0.25 + level.sigma**2)

    noise = names["x"] / float(names["levels"][0] ** 2 + 1) ** 0.5
    ours = bridge.sample(denoiser, names["schedule"], noise, solver="dpmpp-2m")
    torch.testing.assert_close(names["image"], ours, atol=1e-5, rtol=1e-5)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("14.6")]
    read = [float(x) for x in re.findall(r"[-+]?(?:\d*\.*\d+)", line)]  # ManualSigmas of ComfyUI 0.33
    np.testing.assert_allclose(read, names["sigmas"], atol=1e-4)
    (levels,) = names["SixSteps"]().levels()
    assert levels.dtype == torch.float32 and len(levels) == 7 and names["SixSteps"].INPUT_TYPES() == {"required": {}}


@pytest.mark.skipif(sys.version_info < (3, 12), reason="skrample needs Python 3.12")
def test_skrample_takes_the_sigmas(place: Path) -> None:
    names = run("neighbours", "skrample")

    def denoiser(x: torch.Tensor, level: Any) -> torch.Tensor:
        return x * level.alpha * 0.25 / (level.alpha**2 * 0.25 + level.sigma**2)

    ours = bridge.sample(denoiser, names["schedule"], torch.ones(3, dtype=torch.float64), solver="dpmpp-2m")
    np.testing.assert_allclose(names["image"], ours.numpy(), rtol=1e-6)


@pytest.mark.parametrize("page", PAGES)
def test_first_pages_install_as_the_readme_does(page: str) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (plain,) = set(
        re.findall(r"python3 -m venv \.venv && \.venv/bin/pip install -q -c constraints\.txt -e \.(?= |\n)", readme)
    )
    for mark, _, text in blocks(page):
        if mark == "install":
            assert text.strip() in (plain, plain.replace("-e .", '-e ".[torch]"')), text


def test_the_paper_s_page_has_the_records_numbers() -> None:
    text = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
    lines = (ROOT / "docs" / "results" / "benchmarks.jsonl").read_text(encoding="utf-8").splitlines()
    cells = [row for row in map(json.loads, lines) if row.get("nfe") == 4 and row.get("guidance") == 1.0]
    fid = {row["method"]: row["fid"] for row in cells if (row["model"], row["solver"]) == ("fashion-eps", "ddim")}
    assert f"it is {fid['hso']:.2f} against {fid['dm-nonuni']:.2f}" in text
