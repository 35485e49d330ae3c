"""`hso-jax apply`, `sample` and `recommend --pipeline`, by the main program, on tiny pipelines."""

from __future__ import annotations

import errno
import importlib.metadata
import json
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
from commands import Run, refused
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
from bridge.cli import pictures
from hso_jax import Schedule, baseline, load, preset, save, zoo
from hso_jax.schedule import Origin

PROMPT = '--prompt "a small fox" --option height=16 --option width=16'
CHOSEN = "schedules.json --pipeline model --nfe 6 --method hso"
APPLY, SAMPLE = f"apply {CHOSEN}", f"sample {CHOSEN} {PROMPT}"
MEASURE = "recommend --pipeline model --nfe 3,4 --budget 420 --option height=16 --option width=16"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline") / "model"
    family_of("StableDiffusionPipeline").build().save_pretrained(folder)
    return folder


@pytest.fixture
def pipe(run: Run, saved: Path) -> Any:
    """A saved pipeline in `model`, and `schedules.json` for it: N = 4 and 6, both layouts."""
    shutil.copytree(saved, "model")
    pipe = family_of("StableDiffusionPipeline").build()
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


def test_apply_installs_and_keeps_what_was_there(run: Run, pipe: Any) -> None:
    before = files(Path("model"))
    assert "num_inference_steps=6" in run(APPLY).out
    loaded = diffusers.DiffusionPipeline.from_pretrained("model", local_files_only=True)
    assert (schedule_of(loaded).nfe, schedule_of(loaded).layout) == (6, "node")
    assert type(loaded.scheduler).__module__ == "bridge"
    assert json.loads(Path("model/model_index.json").read_text())["scheduler"] == ["bridge", "DDIMScheduler"]
    pipe.scheduler = with_schedule(pipe.scheduler, schedule_of(loaded))
    np.testing.assert_allclose(output(loaded, 6), output(pipe, 6), atol=1e-5)
    # Again, with another schedule: the backup stays the first state.
    run("apply schedules.json --pipeline model --nfe 4 --layout interval")
    assert (load_scheduler("model").schedule.nfe, load_scheduler("model").schedule.end) == (4, "t_eps")
    after = files(Path("model"))
    changed = {"model_index.json", "scheduler/scheduler_config.json"}
    assert {name for name in before if before[name] != after[name]} == changed
    assert set(after) - set(before) == {f"{name}.before-hso" for name in changed}
    assert all(after[f"{name}.before-hso"] == before[name] for name in changed)


def test_solver_and_guidance_choose_the_schedule(run: Run, pipe: Any) -> None:
    many = [zoo("sd15", 6, solver, guidance=w) for solver in ("ddim", "unipc-2") for w in (1.0, 7.5)]
    save(many, "zoo.json")
    refused(run, "apply zoo.json --pipeline model --solver unipc", "choose by guidance")
    for solver, command in (
        ("unipc", "apply zoo.json --pipeline model"),
        ("uni_pc", "apply zoo.json --pipeline model --save other"),
        ("uni_pc", f"sample zoo.json --pipeline model {PROMPT} -o s.png"),
    ):
        with pytest.warns(UserWarning, match="is for solver 'unipc-2'"):
            printed = run(f"{command} --solver {solver} --guidance 7.5").out
        assert "NonstationaryScheduler" in printed or "wrote s.png" in printed
    assert load_scheduler("model").schedule.lams.tolist() == many[3].lams.tolist()
    assert isinstance(load_scheduler("other"), NonstationaryScheduler)


def test_apply_can_change_the_solver(run: Run, pipe: Any) -> None:
    run(f"{APPLY} --scheduler UniPCMultistepScheduler")
    loaded = diffusers.DiffusionPipeline.from_pretrained("model", local_files_only=True)
    assert isinstance(loaded.scheduler, diffusers.UniPCMultistepScheduler)
    assert np.isfinite(output(loaded, 6)).all()
    # Back, from a config that does not mention it, to a class that clips by default.
    config = Path("model/scheduler/scheduler_config.json")
    entries = json.loads(config.read_text())
    entries.pop("clip_sample", None)
    config.write_text(json.dumps(entries))
    run(f"{APPLY} --scheduler DDIMScheduler")
    loaded = diffusers.DiffusionPipeline.from_pretrained("model", local_files_only=True)
    assert type(loaded.scheduler).__name__ == "DDIMScheduler" and loaded.scheduler.config.clip_sample is False


def test_apply_save_shares_the_weights(run: Run, pipe: Any) -> None:
    before = files(Path("model"))
    run(f"{APPLY} --save fast")
    assert files(Path("model")) == before
    assert (Path("fast/unet")).resolve() == Path("model/unet").resolve()
    loaded = diffusers.DiffusionPipeline.from_pretrained("fast", local_files_only=True)
    assert schedule_of(loaded).nfe == 6
    assert sorted(p.name for p in Path("fast/scheduler").iterdir()) == ["scheduler_config.json"]
    refused(run, f"{APPLY} --save fast", "fast exists")
    assert not [p for p in Path().iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize("failing", range(1, 5))
def test_a_failed_apply_changes_nothing(run: Run, failing: int, pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert "No space left on device; nothing was written" in run(APPLY, 74).err
    assert files(Path("model")) == before
    left = 1
    assert "nothing was written" in run(f"{APPLY} --save fast", 74).err
    assert sorted(p.name for p in Path().iterdir()) == ["model", "schedules.json"]


def test_sample_writes_one_picture(run: Run, pipe: Any) -> None:
    run(f"{SAMPLE} -o fox.png --option guidance_scale=7.5")
    image = opened("fox.png")
    assert image.size == (16, 16)
    assert image.text["Software"] == "hso-jax" and image.text["prompt"] == "a small fox"
    chosen = [s for s in load("schedules.json") if (s.nfe, s.layout, s.method) == (6, "node", "hso")]
    pipe.scheduler = with_schedule(pipe.scheduler, *chosen)
    wanted = np.round(output(pipe, 6)[0] * 255)
    assert np.abs(np.asarray(image, np.float64) - wanted).max() <= 1
    first = Path("fox.png").read_bytes()
    for options, same in (("", True), ("--seed 1", False)):
        run(f"{SAMPLE} -o fox.png {options}")
        assert (Path("fox.png").read_bytes() == first) == same


def test_compare_has_a_row_for_each_schedule(run: Run, pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[str, Any] = {}
    real = pictures.grid

    def watch(rows: Any, columns: Any, title: str, subtitle: str) -> Image.Image:
        drawn.update(rows=rows, columns=columns, title=title, subtitle=subtitle)
        return real(rows, columns, title, subtitle)

    monkeypatch.setattr(pictures, "grid", watch)
    run(f"{SAMPLE} -o rows.png --compare --seed 0-2 --reference 12")
    assert [row.name for row in drawn["rows"]] == ["reference", "default", "trailing", "HSO", "karras", "HSO"]
    assert drawn["columns"] == ["seed 0", "seed 1", "seed 2"] and drawn["title"] == "a small fox"
    assert "831 665 499 333 167 1" in drawn["rows"][1].detail
    assert "999 832 666 499 332 166" in drawn["rows"][2].detail
    assert "stops at t" in drawn["rows"][3].detail and "to clean" in drawn["rows"][5].detail
    assert all("RMS to reference" in row.detail for row in drawn["rows"][1:])
    for index, steps in enumerate((12, 6)):
        wanted = np.round(output(pipe, steps)[0] * 255)
        assert np.abs(np.asarray(drawn["rows"][index].images[0], np.float64) - wanted).max() <= 1
    assert len({image.tobytes() for row in drawn["rows"] for image in row.images}) == 18
    assert opened("rows.png").size[0] > 3 * 224
    # A folder with a schedule in it compares with the default it had before.
    run("apply schedules.json --pipeline model --nfe 4")
    run(f"{SAMPLE} -o rows.png --compare --seed 0")
    assert "831 665 499 333 167 1" in drawn["rows"][0].detail


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        ("DiTPipeline", "--prompt 3 --option guidance_scale=2"),
        ("WanPipeline", "--prompt fox --option height=16 --option width=16 --option num_frames=5"),
        ("FluxPipeline", "--prompt fox --option height=16 --option width=16 --option max_sequence_length=16"),
        ("StableDiffusionImg2ImgPipeline", None),
    ],
)
def test_other_kinds_of_pipeline(run: Run, cls: str, options: str | None) -> None:
    pipe = family_of(cls).build()
    pipe.save_pretrained("model")
    save(random_schedule(noise_schedule_of(pipe), 3, "clean", 1), "s.json")
    if options is None:
        refused(run, "sample s.json --pipeline model --prompt fox -o a.png", f"{cls} needs image")
        return
    run(f"sample s.json --pipeline model {options} --compare --seed 0,2 -o a.png")
    assert np.asarray(opened("a.png")).std() > 1


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("apply schedules.json --pipeline model", "differ in nfe: 4; 6; choose by nfe"),
        ("apply schedules.json --pipeline model --nfe 5", "schedules.json: no such schedule"),
        ("apply schedules.json --pipeline model --nfe 6", "choose by method"),
        ("apply --pipeline model", "--nfe must be given"),
        ("apply --pipeline model --nfe 6 --layout node", "--layout: needs a schedule file"),
        ("apply schedules.json --pipeline stabilityai/sdxl --nfe 6 --method hso", "is not a folder"),
        ("apply schedules.json --pipeline . --nfe 6 --method hso", "has no model_index.json"),
        ("apply missing.json --pipeline model --nfe 6 --method hso", "missing.json"),
        ("apply flow.json --pipeline model", "noise of kind 'flow'"),
        (f"{APPLY} --scheduler Nope", "scheduler class 'Nope' is not known"),
        (f"{APPLY} --save a/b", "does not exist"),
        (f"{SAMPLE} -o a.jpg", "ends in .png"),
        (f"{SAMPLE} -o foreign.png", "--force"),
        (f"{SAMPLE} -o no/a.png", "does not exist"),
        (f"{SAMPLE} -o a.png --seed x", "seed 'x'"),
        (f"{SAMPLE} -o a.png --option nonsense=1", "does not take nonsense"),
        (f"{SAMPLE} -o a.png --option nonsense", "KEY=VALUE"),
        (f"{SAMPLE} -o a.png --option num_inference_steps=7", "the schedule, --prompt or --seed sets it"),
        (f"{SAMPLE} -o a.png --reference 9", "--compare"),
        (f"{SAMPLE} -o a.png --device cuda:77", "cannot be used"),
        (f"{MEASURE} --pipeline prompts.txt", "prompts.txt is not a folder"),
        (f"{MEASURE} --prompts nothing.txt", "nothing.txt does not exist"),
        (f"{MEASURE} -o prompts.txt", "prompts.txt exists and is no schedule file of hso-jax"),
        (f"{MEASURE} -o nowhere/m.json", "the folder nowhere does not exist"),
        (f"{MEASURE} --option generator=1", "--option generator: leave it out; --prompts, --nfe or --seed sets it"),
        (f"{MEASURE} --guidance 2 --option guidance_scale=4", "guidance_scale is 4 and guidance 2.0; leave one out"),
    ],
)
def test_bad_input_is_refused(run: Run, pipe: Any, command: str, message: str) -> None:
    save(baseline("trailing", preset("sd3-medium"), 6), "flow.json")
    Path("foreign.png").write_bytes(b"somebody's")
    Path("prompts.txt").write_text("a small fox\n\n  rain \n")
    refused(run, command, message)


def test_without_torch_it_says_what_to_install(run: Run, pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name == "bridge" or name.startswith("bridge.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    line = '`hso-jax apply` needs torch and diffusers: in your clone, pip install -e ".[torch]" (import of torch halted'
    refused(run, APPLY, line)


def test_an_old_installation_says_how_to_register(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **_: importlib.metadata.EntryPoints())
    refused(run, APPLY, '`hso-jax apply` is not registered in this installation: in your clone, pip install -e ".[')


@pytest.mark.filterwarnings("ignore:the schedule has coefficients of its own")
def test_a_schedule_can_bring_its_solver(run: Run, pipe: Any) -> None:
    """In the folder it is a NonstationaryScheduler; another schedule then has the former class again."""
    schedule = free_schedule(noise_schedule_of(pipe), 5)
    save(schedule, "free.json")
    assert "(node, end clean, NonstationaryScheduler)" in run("apply free.json --pipeline model").out
    loaded = diffusers.DiffusionPipeline.from_pretrained("model", local_files_only=True)
    assert type(loaded.scheduler) is NonstationaryScheduler and schedule_of(loaded) == schedule
    pipe.scheduler = with_schedule(pipe.scheduler, schedule)
    np.testing.assert_allclose(output(loaded, 5), output(pipe, 5), atol=1e-5)
    run(f"sample free.json --pipeline model {PROMPT} --compare -o rows.png")
    assert "its own solver" in opened("rows.png").text["schedule"]
    run(APPLY)
    again = load_scheduler("model")
    assert type(again).__name__ == type(without_schedule(pipe.scheduler)).__name__ and again.schedule.nfe == 6


def test_a_picture_s_tokens_are_two_by_two_latents() -> None:
    def tokens(scale: int, **call: int) -> int:
        return pictures.tokens(SimpleNamespace(vae_scale_factor=scale), pictures.Plan("", (0,), call, False, None))

    assert (tokens(8, height=1024, width=1024), tokens(8, height=512, width=1024), tokens(8)) == (4096, 2048, 4096)
    assert tokens(16, height=64, width=96) == 6


def test_recommend_measures_a_pipeline_and_goes_on_where_it_was(run: Run, pipe: Any) -> None:
    Path("prompts.txt").write_text("a small fox\nrain\n")
    before = files(Path("model"))
    printed = run(f"{MEASURE} --prompts prompts.txt -o measured.json --plot p.png").out
    assert "of the error of the pipeline as it is" in " ".join(printed.split())
    assert all(printed.count(choice) == 2 for choice in ("recommended", "yours"))
    found, once = load("measured.json"), Path("measured.json").read_bytes()
    assert [s.nfe for s in found] == [3, 4] and all(s.origin.tuned["budget"] == 420 for s in found)
    assert opened("p.png").size[0] > 300 and files(Path("model")) == before
    run(f"{MEASURE} --prompts prompts.txt -o measured.json --plot p.png")
    assert Path("measured.json").read_bytes() == once
    told = json.loads(run(f"{MEASURE} --prompts prompts.txt -o measured.json --json").out)
    assert told["evaluations"] <= 420 and set(told["measured"]) == {"3", "4"}
    everything = run(f"{MEASURE} --prompts prompts.txt -o measured.json --all").out
    assert all(row["name"].split(" with ")[0] in everything for row in told["measured"]["4"])
    for options, message in (
        ("--model sdxl", "--model and --pipeline"),
        ("--distilled lcm", "leave out --pipeline"),
        ("--budget 20", "budget is 20"),
        ("-o prompts.txt", "prompts.txt"),
        ("--pipeline nowhere", "is not a folder"),
    ):
        refused(run, f"{MEASURE} --prompts prompts.txt {options}", message)
