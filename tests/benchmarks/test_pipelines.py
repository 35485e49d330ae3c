"""Schedules compared in a pipeline: what is evaluated, what is kept, what is measured, and what is refused."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import metrics, runner
from benchmarks.pipelines import images as generate
from benchmarks.pipelines import judge, settings
from benchmarks.pipelines.__main__ import main
from benchmarks.pipelines.settings import Setting, read_prompts
from bridge import noise_schedule_of, solver_of, with_schedule
from hso_jax import Schedule, baseline, save
from hso_jax.schedule import Origin

sys.path.append(str(Path(__file__).parents[1] / "bridge"))
from pipelines import family_of

PROMPTS = [f"a small fox, number {i}" for i in range(5)]
SIZE = ["--option", "height=16", "--option", "width=16"]
SD, FLUX = "StableDiffusionPipeline", "FluxPipeline"


class Shrink(torch.nn.Module):
    """Features of any image: its means over quarters."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.interpolate(images, size=(2, 2), mode="area").flatten(1)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A folder with two pipelines, an extractor, prompts and a schedule."""
    folder = tmp_path_factory.mktemp("models")
    for cls in (SD, FLUX):
        family_of(cls).build().save_pretrained(folder / cls)
    torch.jit.trace(Shrink(), torch.zeros(2, 3, 8, 8)).save(str(folder / "shrink.pt"))
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    noise = noise_schedule_of(family_of(SD).build())
    save(
        [Schedule.from_t(noise, np.linspace(0.97, 0.05, n), origin=Origin(method="hso")) for n in (3, 4)],
        folder / "mine.json",
    )
    return folder


@pytest.fixture
def calls(monkeypatch) -> list[tuple[str, torch.Tensor]]:
    """Every evaluation of a network: what it is called and its first input."""
    seen: list[tuple[str, torch.Tensor]] = []
    for cls, name in ((diffusers.UNet2DConditionModel, "sample"), (diffusers.FluxTransformer2DModel, "hidden_states")):

        def forward(self, *args, _own=cls.forward, _name=name, **kwargs):
            given = kwargs.get(_name, args[0] if args else None)
            seen.append((type(self).__name__, given.clone()))
            return _own(self, *args, **kwargs)

        monkeypatch.setattr(cls, "forward", forward)
    return seen


def command(models: Path, out: Path, *more: str, pipeline: str = SD, count: int = 5) -> list[str]:
    fixed = ["--pipeline", str(models / pipeline), "--prompts", str(models / "prompts.txt"), "--out", str(out)]
    return [*fixed, *SIZE, "--device", "cpu", "--batch", "2", "--count", str(count), "--converged", "16", *more]


SMALL = ["--solvers", "ddim,dpmpp-2m", "--nfe", "3", "--methods", "default,trailing"]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image, np.float64) / 127.5 - 1.0


@pytest.fixture(scope="module")
def made(models, tmp_path_factory) -> Path:
    """The results of one small comparison."""
    out = tmp_path_factory.mktemp("made") / "out"
    assert main(command(models, out, *SMALL, "--extractor", str(models / "shrink.pt"))) == 0
    return out


# ---- a whole comparison


def test_every_setting_takes_exactly_n_evaluations(models, tmp_path, calls):
    mine = str(models / "mine.json")
    more = ["--solvers", "ddim,unipc-3", "--nfe", "3-4", "--methods", f"default,trailing,{mine}", "--guidance", "3"]
    out = tmp_path / "out"
    assert main(command(models, out, *more, count=3)) == 0
    batches = 2  # of 2 images and 1
    budgets = [16, 8, *(n for _ in range(2) for n in (3, 4) for _ in range(3))]
    assert len(calls) == batches * sum(budgets)
    starts = np.cumsum([0, *(n for n in budgets for _ in range(batches))])[:-1]
    first = [calls[i][1] for i in starts]
    for i, given in enumerate(first):  # guidance doubles the batch, and the call counts once
        assert given.shape[0] == (4, 2)[i % 2]
        torch.testing.assert_close(given, first[i % 2], rtol=0, atol=0)
    assert not torch.equal(first[0][0], first[0][1])
    kept = runner.read(out / "records.jsonl").cells
    assert [(r.method, r.nfe, r.counted) for r in kept[:6]] == [
        (m, n, n) for n in (3, 4) for m in ("default", "trailing", "mine")
    ]
    assert len(kept) == 12 and {r.guidance for r in kept} == {3.0} and all(len(r.lams) == r.nfe for r in kept)
    wanted = baseline("trailing", noise_schedule_of(family_of(SD).build()), 3).lams
    np.testing.assert_allclose(kept[1].lams, wanted, rtol=1e-3)  # the network is told float32 timesteps


def test_images_are_those_of_the_pipeline_with_the_schedule(models, made):
    pipe = diffusers.DiffusionPipeline.from_pretrained(models / SD, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    noise = noise_schedule_of(pipe)
    pipe.scheduler = with_schedule(pipe.scheduler, baseline("trailing", noise, 3))
    seeds = [torch.Generator().manual_seed(generate.noise_seed(0, i)) for i in (2, 3)]
    own = pipe(PROMPTS[2:4], num_inference_steps=3, height=16, width=16, generator=seeds, output_type="np").images
    for i in (2, 3):
        kept = pixels(made / "trailing-ddim-3" / f"{i:05d}.png")
        np.testing.assert_allclose(kept, own[i - 2].clip(0, 1) * 2 - 1, atol=1.01 / 127.5)


def test_errors_are_what_the_images_say(models, made):
    many = made / "converged-unipc-3-16"
    shrink = judge.read_extraction(models / "shrink.pt", 16).extract
    kept = runner.read(made / "records.jsonl").cells
    assert len(kept) == 4 and {r.samples for r in kept} == {5} and {r.fid_data for r in kept} == {None}
    for r in kept:
        own = made / f"{r.method}-{r.solver}-{r.nfe}"
        a, b = (np.stack([pixels(p) for p in sorted(folder.glob("*.png"))]) for folder in (own, many))
        assert r.rmse == pytest.approx(np.sqrt(np.square(a - b).mean()), rel=1e-4)
        fa, fb = (shrink(torch.from_numpy(x.transpose(0, 3, 1, 2).astype(np.float32))) for x in (a, b))
        assert r.feature == pytest.approx(np.sqrt(np.square(fa - fb).sum(1).mean()), rel=1e-4)
        assert r.fid == pytest.approx(metrics.frechet(fa, fb).value, rel=1e-3)
        assert r.rmse_low < r.rmse < r.rmse_high and r.fid_low <= r.fid <= r.fid_high
        assert 0 < r.teacher < r.rmse
    report = (made / "results.md").read_text()
    assert "| `trailing` |" in report and "## Frechet distance to the converged samples" in report
    for name in ("grid-ddim-3.png", "grid-dpmpp-2m-3.png"):
        assert name in report and min(pixels(made / name).shape[:2]) > 3 * 224


def test_a_flow_with_embedded_guidance_and_reference_images(models, tmp_path, calls):
    """FLUX: Euler as ddim, DPM++ and UniPC on flow sigmas; what schedules are searched for is weight 1."""
    folder = tmp_path / "real"
    folder.mkdir()
    for i in range(4):
        values = np.random.default_rng(i).integers(0, 256, (24, 24, 3), np.uint8)
        Image.fromarray(values).save(folder / f"{i}.png")
    more = ["--solvers", "euler,dpmpp-2m,unipc-2", "--nfe", "4", "--methods", "default,trailing,karras"]
    more += ["--option", "max_sequence_length=16", "--extractor", str(models / "shrink.pt"), "--reference"]
    asked = command(models, tmp_path / "out", *more, str(folder), pipeline=FLUX, count=2)
    assert main(asked) == 0
    assert len(calls) == 16 + 8 + 9 * 4
    kept = runner.read(tmp_path / "out" / "records.jsonl").cells
    assert [r.solver for r in kept[::3]] == ["ddim", "dpmpp-2m", "unipc-2"]
    assert {r.guidance for r in kept} == {1.0} and {r.counted for r in kept} == {4}
    assert all(r.fid_data is not None and r.fid_data > r.fid for r in kept)
    # The reference's stats, as a file for the next run, give the same distances.
    calls.clear()
    before = (tmp_path / "out" / "records.jsonl").read_bytes()
    asked[-1] = str(tmp_path / "out" / "reference.npz")
    with np.load(asked[-1]) as stats:
        assert set(stats) == {"mu", "sigma"}
    assert main(asked) == 0 and not calls
    again = runner.read(tmp_path / "out" / "records.jsonl").cells
    np.testing.assert_allclose([r.fid_data for r in again], [r.fid_data for r in kept], rtol=1e-4)
    assert (tmp_path / "out" / "records.jsonl").read_bytes().startswith(before)


def test_a_pipeline_has_its_own_default_guidance(models, tmp_path):
    family_of("PixArtAlphaPipeline").build().save_pretrained(tmp_path / "pixart")
    asked = command(models, tmp_path / "out", "--solvers", "unipc-3", "--nfe", "4", "--methods", "default,trailing")
    options = ["--option", "use_resolution_binning=false", "--option", "clean_caption=false"]
    assert main([*asked, *options, "--pipeline", str(tmp_path / "pixart"), "--count", "2"]) == 0
    kept = runner.read(tmp_path / "out" / "records.jsonl").cells
    assert [(r.model, r.method, r.counted) for r in kept] == [("pixart", "default", 4), ("pixart", "trailing", 4)]
    assert all(0 < r.rmse < 1 and None not in r.lams for r in kept) and {r.guidance for r in kept} == {4.5}


# ---- stopping and going on


def test_a_second_run_makes_nothing(models, made, calls, capsys):
    before = contents(made)
    assert main(command(models, made, *SMALL, "--extractor", str(models / "shrink.pt"))) == 0
    assert not calls and contents(made) == before
    assert "0 images to make" in capsys.readouterr().out


def test_only_missing_images_are_made_again(models, made, calls):
    before = contents(made)
    (made / "trailing-ddim-3" / "00003.png").unlink()
    (made / "converged-unipc-3-16" / "00004.png").unlink()
    assert main(command(models, made, *SMALL, "--extractor", str(models / "shrink.pt"))) == 0
    assert len(calls) == 3 + 16  # the batches of 2, 3 and of 4 alone
    assert contents(made) == before


def test_the_seed_decides_the_images(models, made, tmp_path):
    assert main(command(models, tmp_path / "a", *SMALL[:4], "--methods", "trailing")) == 0
    images = {name: data for name, data in contents(tmp_path / "a").items() if name.count("/") and name.endswith("png")}
    assert len(images) == 4 * 5
    assert images == {name: (made / name).read_bytes() for name in images}
    assert main(command(models, tmp_path / "b", *SMALL[:4], "--methods", "trailing", "--seed", "1", count=2)) == 0
    name = "trailing-ddim-3/00000.png"
    assert (tmp_path / "b" / name).read_bytes() != images[name]


def test_more_prompts_go_on_and_other_options_are_refused(models, tmp_path, calls, capsys):
    few = ["--solvers", "ddim", "--nfe", "3", "--methods", "trailing"]
    out = tmp_path / "out"
    assert main(command(models, out, *few, count=2)) == 0
    assert len(calls) == 3 + 16 + 8
    calls.clear()
    before = contents(out)
    for change, told in (
        (["--seed", "1"], "made with seed = 0, now it is 1"),
        (["--guidance", "2"], "made with call = "),
        (["--batch", "3"], "made with batch = 2, now it is 3"),
        (["--shuffle", "1"], "made with prompt 0 = "),
    ):
        assert main([*command(models, out, *few, count=2), *change]) == 2
        error = capsys.readouterr().err
        assert told in error and "--out" in error
    assert not calls and contents(out) == before
    assert main(command(models, out, *few, count=4)) == 0
    assert len(calls) == 3 + 16 + 8
    assert main(command(models, out, *few, count=2)) == 0  # fewer are looked at, none is lost
    assert len(list((out / "trailing-ddim-3").glob("*.png"))) == 4
    assert len(json.loads((out / "manifest.json").read_text())["prompts"]) == 4


def test_another_schedule_of_an_old_name_is_refused(models, tmp_path, capsys):
    few = ["--solvers", "ddim", "--nfe", "3", "--methods", str(tmp_path / "mine.json")]
    noise = noise_schedule_of(family_of(SD).build())
    save(Schedule.from_t(noise, [0.9, 0.5, 0.1]), tmp_path / "mine.json")
    assert main(command(models, tmp_path / "out", *few, count=2)) == 0
    save(Schedule.from_t(noise, [0.9, 0.5, 0.2]), tmp_path / "mine.json")
    assert main(command(models, tmp_path / "out", *few, count=2)) == 2
    assert "has images of another schedule" in capsys.readouterr().err


def test_images_that_are_not_numbers_end_their_setting_alone(models, tmp_path, monkeypatch):
    own = generate.Sampler.images

    def broken(self, scheduler, nfe, prompts, indices):
        found = own(self, scheduler, nfe, prompts, indices)
        return found * np.nan if solver_of(scheduler) == "dpmpp-2m" else found

    monkeypatch.setattr(generate.Sampler, "images", broken)
    out = tmp_path / "out"
    assert main(command(models, out, *SMALL, count=3)) == 0
    kept = runner.read(out / "records.jsonl").cells
    assert {(r.solver, r.rmse is None) for r in kept} == {("ddim", False), ("dpmpp-2m", True)}
    assert "diverged" in (out / "results.md").read_text()
    assert not list((out / "trailing-dpmpp-2m-3").glob("*.png"))


def test_two_calls_a_step_are_refused(models):
    pipe = diffusers.DiffusionPipeline.from_pretrained(models / SD, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    sampler = generate.Sampler(pipe, noise_schedule_of(pipe), {"height": 16, "width": 16}, 0)
    twice = diffusers.HeunDiscreteScheduler.from_config(pipe.scheduler.config)
    with pytest.raises(RuntimeError, match="called its network 5 times in 3 steps of HeunDiscreteScheduler"):
        sampler.images(twice, 3, PROMPTS[:1], [0])


# ---- several processes


@pytest.mark.slow
def test_two_processes_make_the_same_images(models, made, tmp_path):
    """What `accelerate launch` sets, without its launcher; each process says how often it called the network."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    script = (
        "import sys, diffusers; from benchmarks.pipelines.__main__ import main; n = []\n"
        "own = diffusers.UNet2DConditionModel.forward\n"
        "diffusers.UNet2DConditionModel.forward = lambda *a, **k: n.append(1) or own(*a, **k)\n"
        "code = main(sys.argv[1:]); print('calls', len(n)); sys.exit(code)"
    )
    ranks = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    asked = command(models, tmp_path / "out", *SMALL)
    running = [
        subprocess.Popen(
            [sys.executable, "-c", script, *asked],
            env={**os.environ, **ranks, "RANK": str(i), "LOCAL_RANK": str(i), "OMP_NUM_THREADS": "1"},
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    said = [process.communicate(timeout=240) for process in running]
    assert [process.returncode for process in running] == [0, 0], said
    counts = [int(out.rpartition("calls ")[2]) for out, _ in said]
    assert sum(counts) == 3 * (16 + 8 + 4 * 3) and min(counts) >= sum(counts) // 3
    assert "images to make" in said[0][0] and "images to make" not in said[1][0]
    images = {name: data for name, data in contents(tmp_path / "out").items() if name.endswith("0.png")}
    assert images and images == {name: (made / name).read_bytes() for name in images}


# ---- bad input, before any work


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (["--methods", "trailing,nonsense"], "method 'nonsense' is not one of default, hso, solver-error, zoo"),
        (["--methods", "gone.json"], "no such schedule file"),
        (["--methods", "trailing,trailing"], "two methods are called 'trailing'"),
        (["--methods", "ays-svd"], "'vp': use 'ays'"),
        (["--solvers", "heun"], "solver 'heun' is not one of ddim"),
        (["--prompts", "gone.txt"], "gone.txt does not exist"),
        (["--pipeline", "gone"], "gone is not a folder"),
        (["--pipeline", "empty"], "it has no model_index.json"),
        (["--converged", "8"], "at least 4 times the largest N, 12"),
        (["--batch", "0"], "--batch is 0"),
        (["--option", "steps"], "write KEY=VALUE"),
        (["--option", "generator=1"], "--option generator"),
        (["--option", "nonsense=1"], "does not take nonsense; it takes: prompt"),
        (["--reference", "empty"], "--reference needs --extractor"),
        (["--extractor", "gone.pt"], "is not a file"),
        (["--extractor", "prompts.txt"], "not a TorchScript file"),
        (["--extractor", "state.pt"], "not a TorchScript file"),
        (["--extractor", "shrink.pt", "--reference", "gone"], "neither a folder of images nor a stats file"),
        (["--extractor", "shrink.pt", "--reference", "empty"], "empty has 0 images"),
        (["--extractor", "shrink.pt", "--reference", "mixed"], "0.png 8 x 8, 1.png 9 x 8"),
        (["--extractor", "shrink.pt", "--reference", "small.npz"], "mu (3,) and sigma (3, 3), but the extractor 12"),
        (["--extractor", "shrink.pt", "--reference", "none.npz"], "not a .npz file with mu and sigma"),
        (["--out", "empty/.."], "has no manifest.json"),
    ],
)
def test_bad_input_is_named_with_what_to_do(models, tmp_path, monkeypatch, calls, capsys, change, told):
    monkeypatch.chdir(tmp_path)
    for name in ("shrink.pt", "prompts.txt"):
        Path(name).symlink_to(models / name)
    for folder in ("empty", "mixed"):
        Path(folder).mkdir()
    for i in range(2):
        Image.new("RGB", (8 + i, 8)).save(f"mixed/{i}.png")
    torch.save({"weights": 1}, "state.pt")
    np.savez("small.npz", mu=np.zeros(3), sigma=np.eye(3))
    np.savez("none.npz", mu=np.zeros(12))
    assert main([*command(models, tmp_path / "out", *SMALL), *change]) == 2
    _, marked, error = capsys.readouterr().err.rpartition("error: ")  # bars stand before it
    assert marked and told in error
    assert not calls and not (tmp_path / "out").exists()


# ---- prompt lists and COCO captions


COCO = {
    "annotations": [
        {"image_id": 9, "id": 1, "caption": "late"},
        {"image_id": 2, "id": 7, "caption": " early\n"},
        {"image_id": 2, "id": 3, "caption": "second of the same image"},
    ]
}


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("a.txt", "\ufeffone\r\n\n  two \n", ["one", "two"]),
        ("a.json", json.dumps(COCO), ["early", "late"]),
        ("a.csv", 'id,Prompt\n1,"one, with a\nbreak"\n2,two\n3,\n', ["one, with a break", "two"]),
        ("a.tsv", "caption\tid\none\t1\ntwo, too\t2\n", ["one", "two, too"]),
    ],
)
def test_prompts_of_every_kind(tmp_path, name, text, wanted):
    (tmp_path / name).write_text(text, newline="")
    assert read_prompts(tmp_path / name) == wanted
    assert read_prompts(tmp_path / name, count=1) == wanted[:1]


def test_a_column_may_be_named(tmp_path):
    (tmp_path / "a.csv").write_text("text,prompt\n" + "".join(f"t{i},p{i}\n" for i in range(20)))
    path = tmp_path / "a.csv"
    assert read_prompts(path, column="text", count=2) == ["t0", "t1"]
    ten, five = (read_prompts(path, count=n, shuffle=1) for n in (10, 5))
    assert ten[:5] == five and len(set(ten)) == 10 and ten != read_prompts(path, count=10)
    assert ten == read_prompts(path, count=10, shuffle=1) != read_prompts(path, count=10, shuffle=2)


@pytest.mark.parametrize(
    ("name", "text", "options", "told"),
    [
        ("a.txt", "\n \n", {}, "there is none"),
        ("a.txt", "one", {"count": 2}, "has 1; count is 2"),
        ("a.txt", "one", {"count": 0}, "count is 0"),
        ("a.txt", "one", {"column": "text"}, "has no column 'text'"),
        ("a.json", "[1]", {}, "not a file of COCO captions"),
        ("a.json", '{"annotations": [{"image_id": 1}]}', {}, "caption"),
        ("a.csv", "text,id\nx,1\n", {}, "needs one column prompt or caption, it has: text, id"),
        ("a.csv", "prompt,caption\nx,y\n", {}, "--column"),
        ("b.txt", None, {}, "does not exist"),
        ("a.txt", b"\xff\xfe\x00", {}, "not UTF-8"),
    ],
)
def test_prompts_that_are_none(tmp_path, name, text, options, told):
    if text is not None:
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match="prompts: ") as error:
        read_prompts(tmp_path / name, **options)
    assert told in str(error.value) and name in str(error.value)


# ---- the scheduler of every solver for every family, and how methods are searched


@pytest.mark.parametrize(
    "cls", [SD, FLUX, "StableDiffusionXLPipeline", "PixArtAlphaPipeline", "StableDiffusion3Pipeline"]
)
@pytest.mark.parametrize("solver", settings.SOLVERS)
def test_every_solver_of_every_family(cls, solver):
    pipe = family_of(cls).build()
    noise = noise_schedule_of(pipe)
    flow = noise.kind == "flow"
    own = settings.scheduler(pipe.scheduler, solver, flow, None)
    assert solver_of(own) == solver and noise_schedule_of(own).kind == noise.kind
    assert type(own) is getattr(diffusers, type(own).__name__)
    np.testing.assert_allclose(noise_schedule_of(own).lam(0.5), noise.lam(0.5), atol=1e-3)
    installed = settings.scheduler(pipe.scheduler, solver, flow, baseline("trailing", noise, 5))
    installed.set_timesteps(5)
    np.testing.assert_allclose(installed.timesteps, baseline("trailing", noise, 5).timesteps, atol=1e-3)


def test_only_the_default_keeps_the_config_s_spacing():
    own = diffusers.EulerDiscreteScheduler(beta_schedule="scaled_linear", use_karras_sigmas=True)
    assert settings.scheduler(own, "dpmpp-2m", False, None).config.use_karras_sigmas
    schedule = baseline("trailing", noise_schedule_of(own), 4)
    assert not settings.scheduler(own, "dpmpp-2m", False, schedule).config.use_karras_sigmas


def test_methods_know_solver_and_guidance(monkeypatch, tmp_path):
    noise, asked = noise_schedule_of(family_of(SD).build()), []
    made = baseline("trailing", noise, 4)
    monkeypatch.setattr(settings.hso_jax, "search", lambda *given, **more: asked.append((given, more)) or made)
    monkeypatch.setattr(settings.hso_jax, "zoo", lambda *given, **more: asked.append((given, more)) or made)
    for method in ("hso", "solver-error", "zoo"):
        assert settings.prepare(Setting(method, "unipc-3", 4), None, noise, 7.5).schedule is made
    how = asked[1][1].pop("method")
    assert (how.solver, how.guidance) == ("unipc-3", 7.5)
    assert asked == [((noise, 4), {}), ((noise, 4), {}), ((noise, 4, "unipc-3"), {"guidance": 7.5})]
    assert settings.prepare(Setting("default", "unipc-3", 4), None, noise, 7.5).schedule is None
    save(made, tmp_path / "mine.json")
    mine = settings.prepare(Setting("mine", "ddim", 4), tmp_path / "mine.json", noise, 7.5).schedule
    np.testing.assert_array_equal(mine.lams, made.lams)
