"""Models as the benchmarks judge them: the solvers, what is counted, the fixed noise and the converged samples."""

import shutil

import numpy as np
import pytest
import torch

import bridge
import hso_jax
from benchmarks.compared import SOLVERS, fine_schedule
from benchmarks.models import subjects
from benchmarks.models.load import MODELS
from benchmarks.models.subjects import Subject


@pytest.fixture(scope="module", params=MODELS)
def subject(request):
    return Subject(request.param, guidance=2.0, count=4, batch=3)


@pytest.fixture(scope="module")
def fashion():
    return Subject("fashion-eps", count=4)


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """Converged samples from few evaluations, in an empty cache."""
    monkeypatch.setattr(subjects, "CACHE", tmp_path)
    monkeypatch.setattr(subjects, "REFINEMENTS", (2, 6, 8))
    monkeypatch.setattr(subjects, "LIMIT", 0.5)
    return tmp_path


def own_loop(subject: Subject, schedule: hso_jax.Schedule, solver: str) -> torch.Tensor:
    """The bridge's plain sampler, which shares no code with diffusers' schedulers."""

    def denoiser(x, level):
        return subject.trained.denoise(x, level, subject.labels, subject.guidance)

    with torch.no_grad():
        return bridge.sample(denoiser, schedule, subject.start, solver)


@pytest.mark.parametrize("solver", SOLVERS)
def test_each_solver_is_the_one_that_searches_know_and_steps_alike(subject, solver):
    assert bridge.solver_of(subject.scheduler(solver)) == solver
    schedule = hso_jax.baseline("karras", subject.noise, 4)
    found = subject.sample(schedule, solver)
    assert found.images.shape == subject.start.shape and found.images.dtype == torch.float32
    assert found.calls == 4  # with guidance too
    torch.testing.assert_close(found.images, own_loop(subject, schedule, solver), rtol=0, atol=2e-4)


def test_the_noise_schedule_is_the_models_from_its_config(subject):
    assert subject.noise.name == subject.name
    assert subject.noise.fingerprint() == hso_jax.from_config(dict(subject.scheduler("ddim").config)).fingerprint()


def test_rows_pick_from_the_fixed_noise_which_does_not_depend_on_the_count(fashion):
    schedule = hso_jax.baseline("trailing", fashion.noise, 3)
    whole = fashion.sample(schedule, "dpmpp-2m").images
    torch.testing.assert_close(fashion.sample(schedule, "dpmpp-2m", slice(1, 3)).images, whole[1:3], rtol=0, atol=1e-4)
    torch.testing.assert_close(
        fashion.sample(schedule, "dpmpp-2m", slice(-1, None)).images, whole[3:], rtol=0, atol=1e-4
    )
    more = Subject("fashion-eps", count=25)
    assert torch.equal(more.start[:4], fashion.start)
    assert more.labels.tolist() == [*range(10), *range(10), *range(5)]
    assert not torch.equal(Subject("fashion-eps", count=4, seed=1).start, fashion.start)


def test_a_wrong_number_of_network_calls_is_noticed(fashion, monkeypatch):
    once = fashion._solve

    def twice(scheduler, nfe, part):
        once(scheduler, nfe, part)
        return once(scheduler, nfe, part)

    monkeypatch.setattr(fashion, "_solve", twice)
    with pytest.raises(RuntimeError, match="called the network 4 times for a schedule of 2"):
        fashion.sample(hso_jax.baseline("trailing", fashion.noise, 2), "ddim")


def test_guidance_moves_the_samples_away_from_those_without_a_label(fashion):
    schedule = hso_jax.baseline("trailing", fashion.noise, 1)
    plain, guided = (Subject("fashion-eps", w, count=4).sample(schedule, "ddim").images for w in (1.0, 3.0))
    none = Subject("fashion-eps", 0.0, count=4).sample(schedule, "ddim").images
    torch.testing.assert_close(guided, none + 3 * (plain - none), rtol=1e-3, atol=1e-3)


def test_the_fine_schedule_covers_the_whole_model(subject):
    schedule = fine_schedule(subject.noise, 256)
    assert schedule.end == "clean" and schedule.nfe == 256
    assert schedule.t[0] == 1.0 and schedule.t[-1] == pytest.approx(float(subject.noise.t_min))
    assert np.max(-np.diff(schedule.t)) * 1000 < 6.28  # shorter than the time embedding's fastest sine
    assert schedule.timesteps[0] == pytest.approx(1000 if subject.noise.kind == "flow" else 999)


def test_the_teacher_is_solved_once_and_kept_whole(quick, monkeypatch):
    first = Subject("fashion-eps", count=3).teacher()
    assert first.images.shape == (3, 1, 32, 32) and 0 < first.error < 0.5
    assert [file.suffix for file in quick.iterdir()] == [".npz"]

    def refuse(*args, **kwargs):
        raise AssertionError("solved again")

    monkeypatch.setattr(Subject, "sample", refuse)
    again = Subject("fashion-eps", count=3).teacher()
    assert torch.equal(again.images, first.images) and again.error == first.error
    for other in ({"guidance": 2.0}, {"count": 4}, {"seed": 1}, {"batch": 2}):
        with pytest.raises(AssertionError, match="solved again"):
            Subject("fashion-eps", **{"count": 3, **other}).teacher()
    monkeypatch.setattr(subjects, "REFINEMENTS", (2, 7, 8))
    with pytest.raises(AssertionError, match="solved again"):
        Subject("fashion-eps", count=3).teacher()


def test_a_teacher_that_has_not_converged_or_could_not_be_written_leaves_nothing(quick, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(subjects, "LIMIT", 1e-6)
        with pytest.raises(RuntimeError, match="still move by"):
            Subject("fashion-eps", count=2).teacher()
    assert not list(quick.iterdir())

    def full(*args, **kwargs):
        raise OSError("no space left")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="no space"):
        Subject("fashion-eps", count=2).teacher()
    assert not list(quick.iterdir())


def test_bad_input_is_refused_before_any_work(fashion):
    for options, told in (
        ({"name": "sd"}, "'sd' is not one of"),
        ({"count": 0}, "count is 0"),
        ({"guidance": float("nan")}, "guidance nan"),
    ):
        with pytest.raises(ValueError, match=told):
            Subject(**{"name": "fashion-eps", **options})
    with pytest.raises(ValueError, match="'heun'; use one of ddim"):
        fashion.sample(hso_jax.baseline("trailing", fashion.noise, 2), "heun")


def test_other_weights_are_another_teacher(fashion, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(fashion.trained.folder / "unet", folder / "unet")
    other = Subject("fashion-eps", count=4)
    other.trained = fashion.trained._replace(folder=folder)
    assert other._key() == fashion._key()
    with (folder / "unet" / "diffusion_pytorch_model.safetensors").open("r+b") as stream:
        stream.seek(-1, 2)
        last = stream.read(1)
        stream.seek(-1, 2)
        stream.write(bytes([last[0] ^ 1]))
    assert other._key() != fashion._key()
