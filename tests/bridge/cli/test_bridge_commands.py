"""`hso-jax apply` and `hso-jax sample`, by the main program, on tiny pipelines."""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
from free import free_schedule
from mixture import random_schedule
from PIL import Image
from test_pipelines_schedule import family_of, generate

from bridge import (
    NonstationaryScheduler,
    load_scheduler,
    noise_schedule_of,
    schedule_of,
    with_schedule,
    without_schedule,
)
from bridge.cli import image_grid, pictures
from hso_jax import Origin, Schedule, baseline, preset, save, zoo
from hso_jax.cli import main

PROMPT = ["--prompt", "a small fox", "--height", "16", "--width", "16"]


@pytest.fixture
def pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A saved pipeline in `model`, and `schedules.json` for it: N = 4 and 6, both layouts."""
    monkeypatch.chdir(tmp_path)
    pipe = family_of("StableDiffusionPipeline").build()
    pipe.save_pretrained("model")
    noise = noise_schedule_of(pipe)
    schedules = [
        Schedule.from_t(noise, np.linspace(0.97, 0.03, nfe + extra) ** 1.2, layout=layout, origin=Origin(method="hso"))
        for nfe in (4, 6)
        for layout, extra in (("interval", 1), ("node", 0))
    ]
    save([*schedules, baseline("karras", noise, 6)], "schedules.json")
    return pipe


def files(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def opened(path: str) -> Image.Image:
    with Image.open(path) as image:
        image.load()
        return image


def output(pipe: Any, steps: int) -> np.ndarray:
    pipe.set_progress_bar_config(disable=True)
    return generate(pipe, family_of("StableDiffusionPipeline"), steps)


def test_apply_installs_and_keeps_what_was_there(pipe: Any, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(Path("model"))
    assert main(["apply", "schedules.json", "--pipeline", "model", "--nfe", "6", "--method", "hso"]) == 0
    assert "num_inference_steps=6" in capsys.readouterr().out
    loaded = diffusers.DiffusionPipeline.from_pretrained("model", local_files_only=True)
    assert (schedule_of(loaded).nfe, schedule_of(loaded).layout) == (6, "node")
    assert type(loaded.scheduler).__module__ == "bridge"
    pipe.scheduler = with_schedule(pipe.scheduler, schedule_of(loaded))
    np.testing.assert_allclose(output(loaded, 6), output(pipe, 6), atol=1e-5)
    # Again, with another schedule: the backup stays the first state.
    assert main(["apply", "schedules.json", "--pipeline", "model", "--nfe", "4", "--layout", "interval"]) == 0
    assert (load_scheduler("model").schedule.nfe, load_scheduler("model").schedule.end) == (4, "t_eps")
    after = files(Path("model"))
    changed = {"model_index.json", "scheduler/scheduler_config.json"}
    assert {name for name in before if before[name] != after[name]} == changed
    assert set(after) - set(before) == {f"{name}.before-hso" for name in changed}
    for name in changed:
        assert after[f"{name}.before-hso"] == before[name]


def test_apply_takes_the_schedule_that_solver_and_guidance_name(pipe: Any, capsys: pytest.CaptureFixture[str]) -> None:
    many = [zoo("sd15", 6, solver, guidance=w) for solver in ("ddim", "unipc-2") for w in (1.0, 7.5)]
    save(many, "zoo.json")
    command = ["apply", "zoo.json", "--pipeline", "model"]
    assert main([*command, "--solver", "unipc"]) == 2
    assert "choose by guidance" in capsys.readouterr().err
    with pytest.warns(UserWarning, match="is for solver 'unipc-2'"):
        assert main([*command, "--solver", "unipc", "--guidance", "7.5"]) == 0
    assert load_scheduler("model").schedule.lams.tolist() == many[3].lams.tolist()
    assert "NonstationaryScheduler" in capsys.readouterr().out
    for argv in ([*command, "--save", "other"], ["sample", "zoo.json", "--pipeline", "model", *PROMPT, "-o", "s.png"]):
        with pytest.warns(UserWarning, match="is for solver 'unipc-2'"):
            assert main([*argv, "--solver", "uni_pc", "--guidance", "7.5"]) == 0
    assert isinstance(load_scheduler("other"), NonstationaryScheduler)


def test_apply_can_change_the_solver(pipe: Any) -> None:
    command = ["apply", "schedules.json", "--pipeline", "model", "--nfe", "6", "--method", "hso", "--scheduler"]
    assert main([*command, "UniPCMultistepScheduler"]) == 0
    loaded = diffusers.DiffusionPipeline.from_pretrained("model", local_files_only=True)
    assert isinstance(loaded.scheduler, diffusers.UniPCMultistepScheduler)
    assert np.isfinite(output(loaded, 6)).all()
    # Back, from a config that does not mention it, to a class that clips by default.
    config = Path("model/scheduler/scheduler_config.json")
    entries = json.loads(config.read_text())
    entries.pop("clip_sample", None)
    config.write_text(json.dumps(entries))
    assert main([*command, "DDIMScheduler"]) == 0
    loaded = diffusers.DiffusionPipeline.from_pretrained("model", local_files_only=True)
    assert type(loaded.scheduler).__name__ == "DDIMScheduler" and loaded.scheduler.config.clip_sample is False


def test_apply_save_shares_the_weights(pipe: Any, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(Path("model"))
    command = ["apply", "schedules.json", "--pipeline", "model", "--nfe", "6", "--method", "hso", "--save", "fast"]
    assert main(command) == 0
    assert files(Path("model")) == before
    assert (Path("fast/unet")).resolve() == Path("model/unet").resolve()
    loaded = diffusers.DiffusionPipeline.from_pretrained("fast", local_files_only=True)
    assert schedule_of(loaded).nfe == 6
    assert sorted(p.name for p in Path("fast/scheduler").iterdir()) == ["scheduler_config.json"]
    assert main(command) == 2
    assert "fast exists" in capsys.readouterr().err
    assert not [p for p in Path().iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize("failing", range(1, 5))
def test_a_failed_apply_changes_nothing(
    failing: int, pipe: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The disk is full at the first, ... fourth rename: of a backup, the config, the index."""
    before, replace = files(Path("model")), os.replace
    left = failing

    def full(source: Any, target: Any) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    assert main(["apply", "schedules.json", "--pipeline", "model", "--nfe", "6", "--method", "hso"]) == 74
    assert "No space left on device; nothing was written" in capsys.readouterr().err
    assert files(Path("model")) == before
    left = 1
    assert (
        main(["apply", "schedules.json", "--pipeline", "model", "--nfe", "6", "--method", "hso", "--save", "fast"])
        == 74
    )
    assert "nothing was written" in capsys.readouterr().err
    assert sorted(p.name for p in Path().iterdir()) == ["model", "schedules.json"]


def test_sample_writes_one_picture(pipe: Any) -> None:
    command = [
        "sample",
        "schedules.json",
        "--pipeline",
        "model",
        "--nfe",
        "6",
        "--method",
        "hso",
        *PROMPT,
        "-o",
        "fox.png",
    ]
    assert main([*command, "--guidance-scale", "7.5"]) == 0
    image = opened("fox.png")
    assert image.size == (16, 16)
    assert image.text["Software"] == "hso-jax" and image.text["prompt"] == "a small fox"
    chosen = load_chosen(6)
    pipe.scheduler = with_schedule(pipe.scheduler, chosen)
    wanted = np.round(output(pipe, 6)[0] * 255)
    assert np.abs(np.asarray(image, np.float64) - wanted).max() <= 1
    first = Path("fox.png").read_bytes()
    assert main(command) == 0 and Path("fox.png").read_bytes() == first
    assert main([*command, "--seed", "1"]) == 0 and Path("fox.png").read_bytes() != first


def load_chosen(nfe: int) -> Schedule:
    from hso_jax import load

    return next(s for s in load("schedules.json") if (s.nfe, s.layout, s.method) == (nfe, "node", "hso"))


def test_compare_has_a_row_for_each_schedule(
    pipe: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn: dict[str, Any] = {}
    real = image_grid.grid

    def watch(rows: Any, columns: Any, title: str, subtitle: str) -> Image.Image:
        drawn.update(rows=rows, columns=columns, title=title, subtitle=subtitle)
        return real(rows, columns, title, subtitle)

    monkeypatch.setattr(pictures, "grid", watch)
    command = [
        "sample",
        "schedules.json",
        "--pipeline",
        "model",
        "--nfe",
        "6",
        "--method",
        "hso",
        *PROMPT,
        "-o",
        "rows.png",
    ]
    assert main([*command, "--compare", "--seed", "0-2", "--reference", "12"]) == 0
    assert [row.name for row in drawn["rows"]] == ["reference", "default", "trailing", "HSO", "karras", "HSO"]
    assert drawn["columns"] == ["seed 0", "seed 1", "seed 2"] and drawn["title"] == "a small fox"
    assert "831 665 499 333 167 1" in drawn["rows"][1].detail
    assert "999 832 666 499 332 166" in drawn["rows"][2].detail
    assert "stops at t" in drawn["rows"][3].detail and "to clean" in drawn["rows"][5].detail
    assert all("RMS to reference" in row.detail for row in drawn["rows"][1:])
    for index, (scheduler, steps) in enumerate([(pipe.scheduler, 12), (pipe.scheduler, 6)]):
        pipe.scheduler = scheduler
        wanted = np.round(output(pipe, steps)[0] * 255)
        assert np.abs(np.asarray(drawn["rows"][index].images[0], np.float64) - wanted).max() <= 1
    assert len({image.tobytes() for row in drawn["rows"] for image in row.images}) == 18
    assert opened("rows.png").size[0] > 3 * 224
    # A folder with a schedule in it compares with the default it had before.
    assert main(["apply", "schedules.json", "--pipeline", "model", "--nfe", "4"]) == 0
    assert main([*command, "--compare", "--seed", "0"]) == 0
    assert "831 665 499 333 167 1" in drawn["rows"][0].detail


def test_other_kinds_of_pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cases = {
        "DiTPipeline": ["--prompt", "3", "--option", "guidance_scale=2"],
        "WanPipeline": ["--prompt", "fox", "--height", "16", "--width", "16", "--option", "num_frames=5"],
        "FluxPipeline": ["--prompt", "fox", "--height", "16", "--width", "16", "--option", "max_sequence_length=16"],
    }
    for cls, options in cases.items():
        pipe = family_of(cls).build()
        pipe.save_pretrained(cls)
        save(random_schedule(noise_schedule_of(pipe), 3, "clean", 1), "s.json")
        assert main(["sample", "s.json", "--pipeline", cls, *options, "--compare", "--seed", "0,2", "-o", "a.png"]) == 0
        assert np.asarray(opened("a.png")).std() > 1
    image_to_image = family_of("StableDiffusionImg2ImgPipeline").build()
    image_to_image.save_pretrained("i2i")
    save(random_schedule(noise_schedule_of(image_to_image), 3, "clean", 1), "s.json")
    assert main(["sample", "s.json", "--pipeline", "i2i", "--prompt", "fox", "-o", "b.png"]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["apply", "schedules.json", "--pipeline", "model"], "4, 6 evaluations; choose one by nfe"),
        (["apply", "schedules.json", "--pipeline", "model", "--nfe", "5"], "schedules.json: no such schedule"),
        (["apply", "schedules.json", "--pipeline", "model", "--nfe", "6"], "choose by method"),
        (
            ["apply", "schedules.json", "--pipeline", "stabilityai/sdxl", "--nfe", "6", "--method", "hso"],
            "is not a folder",
        ),
        (["apply", "schedules.json", "--pipeline", ".", "--nfe", "6", "--method", "hso"], "has no model_index.json"),
        (["apply", "missing.json", "--pipeline", "model", "--nfe", "6", "--method", "hso"], "missing.json"),
        (["apply", "flow.json", "--pipeline", "model"], "noise of kind 'flow'"),
        (
            ["apply", "schedules.json", "--pipeline", "model", "--nfe", "6", "--method", "hso", "--scheduler", "Nope"],
            "'Nope' is not known",
        ),
        (
            ["apply", "schedules.json", "--pipeline", "model", "--nfe", "6", "--method", "hso", "--save", "a/b"],
            "does not exist",
        ),
        (["sample", "-o", "a.jpg"], "ends in .png"),
        (["sample", "-o", "foreign.png"], "--force"),
        (["sample", "-o", "no/a.png"], "does not exist"),
        (["sample", "-o", "a.png", "--seed", "x"], "seed 'x'"),
        (["sample", "-o", "a.png", "--option", "nonsense=1"], "does not take nonsense"),
        (["sample", "-o", "a.png", "--option", "nonsense"], "KEY=VALUE"),
        (["sample", "-o", "a.png", "--option", "num_inference_steps=7"], "set by the schedule"),
        (["sample", "-o", "a.png", "--reference", "9"], "--compare"),
        (["sample", "-o", "a.png", "--device", "cuda:77"], "cannot be used"),
    ],
)
def test_bad_input(pipe: Any, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    save(baseline("trailing", preset("sd3-medium"), 6), "flow.json")
    Path("foreign.png").write_bytes(b"somebody's")
    before = files(Path())
    if arguments[0] == "sample":
        common = ["schedules.json", "--pipeline", "model", "--nfe", "6", "--method", "hso", *PROMPT]
        arguments = ["sample", *common, *arguments[1:]]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert files(Path()) == before


def test_without_torch_the_message_says_what_to_install(
    pipe: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name == "bridge" or name.startswith("bridge.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert main(["apply", "schedules.json", "--pipeline", "model", "--nfe", "6", "--method", "hso"]) == 2
    assert 'pip install -e ".[torch]"' in capsys.readouterr().err


def test_help_says_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("apply", "sample"):
        assert main([command, "--help"]) == 0
        text = capsys.readouterr().out
        assert "examples:" in text and "--nfe" in text


def test_the_index_names_the_package_that_loads_the_scheduler(pipe: Any) -> None:
    assert main(["apply", "schedules.json", "--pipeline", "model", "--nfe", "6", "--method", "hso"]) == 0
    assert json.loads(Path("model/model_index.json").read_text())["scheduler"] == ["bridge", "DDIMScheduler"]


@pytest.mark.filterwarnings("ignore:the schedule has coefficients of its own")
def test_apply_and_sample_a_schedule_that_is_a_solver_too(pipe: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """In the folder it is a NonstationaryScheduler; another schedule then has the former class again."""
    schedule = free_schedule(noise_schedule_of(pipe), 5)
    save(schedule, "free.json")
    assert main(["apply", "free.json", "--pipeline", "model"]) == 0
    assert "(node, end clean, NonstationaryScheduler)" in capsys.readouterr().out
    loaded = diffusers.DiffusionPipeline.from_pretrained("model", local_files_only=True)
    assert type(loaded.scheduler) is NonstationaryScheduler and schedule_of(loaded) == schedule
    pipe.scheduler = with_schedule(pipe.scheduler, schedule)
    np.testing.assert_allclose(output(loaded, 5), output(pipe, 5), atol=1e-5)
    assert main(["sample", "free.json", "--pipeline", "model", *PROMPT, "--compare", "-o", "rows.png"]) == 0
    assert "its own solver" in opened("rows.png").text["schedule"]
    assert main(["apply", "schedules.json", "--pipeline", "model", "--nfe", "6", "--method", "hso"]) == 0
    again = load_scheduler("model")
    assert type(again).__name__ == type(without_schedule(pipe.scheduler)).__name__ and again.schedule.nfe == 6


def test_a_picture_s_tokens_are_two_by_two_latents() -> None:
    def asked(scale: int, **call: int) -> int:
        return pictures.tokens(SimpleNamespace(vae_scale_factor=scale), pictures.Plan("", (0,), call, False, None))

    assert (asked(8, height=1024, width=1024), asked(8, height=512, width=1024), asked(8)) == (4096, 2048, 4096)
    assert asked(16, height=64, width=96) == 6
