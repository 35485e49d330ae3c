"""Models as the benchmarks judge them: the solvers, what is counted, the fixed noise and the converged samples."""

import dataclasses

import numpy as np
import pytest
import torch

import bridge
import hso_jax
from benchmarks.converged import fine_schedule
from benchmarks.models import subjects
from benchmarks.models.load import MODELS, features
from benchmarks.models.subjects import Subject
from benchmarks.solvers import SOLVERS

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array_?.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers.*"),
]


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
    kind = subject.scheduler("ddim").config.get("prediction_type", "flow")

    def denoiser(x, level):
        out = subject.predict(x, level.timestep)
        if kind == "epsilon":
            return (x - level.sigma * out) / level.alpha
        return level.alpha * x - level.sigma * out if kind == "v_prediction" else x - level.sigma * out

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


def test_bfloat16_networks_give_float32_samples_close_to_the_others(fashion):
    schedule = hso_jax.baseline("trailing", fashion.noise, 4)
    found = Subject("fashion-eps", count=4, dtype="bfloat16").sample(schedule, "dpmpp-2m").images
    difference = (found - fashion.sample(schedule, "dpmpp-2m").images).square().mean().sqrt()
    assert found.dtype == torch.float32 and 1e-5 < difference < 0.05


def test_the_fine_schedule_covers_the_whole_model(subject):
    schedule = fine_schedule(subject.noise, 256)
    assert schedule.end == "clean" and schedule.nfe == 256
    assert schedule.t[0] == 1.0 and schedule.t[-1] == pytest.approx(float(subject.noise.t_min))
    assert np.max(-np.diff(schedule.t)) * 1000 < 6.28  # shorter than the time embedding's fastest sine
    assert schedule.timesteps[0] == pytest.approx(1000 if subject.noise.kind == "flow" else 999)


def test_more_evaluations_come_closer_to_the_converged_samples(fashion):
    converged = fashion.sample(fine_schedule(fashion.noise, 64), "dpmpp-2m", slice(0, 2)).images

    def error(n: int) -> float:
        found = fashion.sample(hso_jax.baseline("trailing", fashion.noise, n), "dpmpp-2m", slice(0, 2)).images
        return float((found - converged).square().mean().sqrt())

    assert error(16) < 0.5 * error(4)


def test_the_teacher_is_solved_once_and_kept_whole(quick, monkeypatch):
    first = Subject("fashion-eps", count=3).teacher()
    assert first.images.shape == (3, 1, 32, 32) and 0 < first.error < 0.5
    assert [file.suffix for file in quick.iterdir()] == [".npz"]

    def refuse(*args, **kwargs):
        raise AssertionError("solved again")

    monkeypatch.setattr(Subject, "sample", refuse)
    again = Subject("fashion-eps", count=3).teacher()
    assert torch.equal(again.images, first.images) and again.error == first.error
    for other in ({"guidance": 2.0}, {"count": 4}, {"seed": 1}, {"dtype": "bfloat16"}, {"batch": 2}):
        with pytest.raises(AssertionError, match="solved again"):
            Subject("fashion-eps", **{"count": 3, **other}).teacher()
    monkeypatch.setattr(subjects, "REFINEMENTS", (2, 7, 8))
    with pytest.raises(AssertionError, match="solved again"):
        Subject("fashion-eps", count=3).teacher()


def test_other_weights_are_another_teacher(fashion, tmp_path):
    import shutil

    folder = tmp_path / "copy"
    shutil.copytree(fashion._trained.folder / "unet", folder / "unet")
    other = Subject("fashion-eps", count=4)
    other._trained = fashion._trained._replace(folder=folder)
    assert other._key() == fashion._key()
    with (folder / "unet" / "diffusion_pytorch_model.safetensors").open("r+b") as stream:
        stream.seek(-1, 2)
        last = stream.read(1)
        stream.seek(-1, 2)
        stream.write(bytes([last[0] ^ 1]))
    assert other._key() != fashion._key()


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


def test_features_are_the_classifiers(fashion):
    found = fashion.features(fashion.start)
    assert found.shape == (4, 96)
    np.testing.assert_array_equal(found, features("fashion")(fashion.start))


def test_bad_input_is_refused_before_any_work(fashion):
    with pytest.raises(ValueError, match="'sd' is not one of"):
        Subject("sd")
    with pytest.raises(ValueError, match="'float16'; use one of float32, bfloat16"):
        Subject("fashion-eps", dtype="float16")
    with pytest.raises(ValueError, match="count is 0"):
        Subject("fashion-eps", count=0)
    with pytest.raises(ValueError, match="guidance is nan"):
        Subject("fashion-eps", guidance=float("nan"))
    schedule = hso_jax.baseline("trailing", fashion.noise, 2)
    with pytest.raises(ValueError, match="'heun'; use one of ddim"):
        fashion.sample(schedule, "heun")
    with pytest.raises(ValueError, match=r"slice\(9, None, None\) picks no row of 4"):
        fashion.sample(schedule, "ddim", slice(9, None))
    with pytest.raises(ValueError):
        fashion.sample(dataclasses.replace(schedule, noise="0" * 16, lams=schedule.lams - 1), "ddim")
