"""The trained models: what is shipped, their cards, and the readers of the data they were trained on."""

import gzip
import json
import shutil
import struct
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from benchmarks.models.subjects import Subject
from PIL import Image
from safetensors import safe_open

import bridge
import hso_jax
from benchmarks.compared import SOLVERS, fine_schedule
from benchmarks.models import card, subjects, train
from benchmarks.models.data import FASHION, load_data, to_unit
from benchmarks.models.load import CLASSIFIERS, MODELS, classifier, features, load, sample
from benchmarks.runner import WEIGHTS


@pytest.fixture(scope="module", params=MODELS)
def trained(request):
    return load(request.param)


def npz(folder: Path, **arrays) -> Path:
    np.savez(folder / "data.npz", **arrays)
    return folder / "data.npz"


def test_noise_schedules_are_sds_pixarts_and_rectified_flow():
    sd, flow, pixart = (load(name).scheduler.config for name in ("fashion-eps", "emoji-flow", "fashion-v"))
    assert (sd.beta_schedule, sd.beta_start, sd.beta_end) == ("scaled_linear", 0.00085, 0.012)
    assert (pixart.beta_schedule, pixart.beta_start, pixart.beta_end) == ("linear", 0.0001, 0.02)
    assert (sd.prediction_type, pixart.prediction_type) == ("epsilon", "v_prediction")
    assert {c.num_train_timesteps for c in (sd, flow, pixart)} == {1000}
    assert flow.shift == 1.0 and not flow.use_dynamic_shifting


def test_forward_pass_has_the_shape_of_an_image_and_depends_on_the_label(trained):
    x = torch.randn(2, *trained.shape, generator=torch.Generator().manual_seed(0))
    out = trained.predict(x, 500.0, torch.tensor([0, 1]), guidance=1.0)
    none = trained.predict(x, 500.0, torch.full((2,), trained.no_label), guidance=1.0)
    assert out.shape == x.shape and out.isfinite().all()
    assert (out - none).abs().mean() > 1e-3
    guided = trained.predict(x, 500.0, torch.tensor([0, 1]), guidance=3.0)
    torch.testing.assert_close(guided, none + 3 * (out - none), rtol=1e-3, atol=1e-4)


def test_samples_are_what_was_asked_for(trained):
    labels = torch.tensor([1, 3, 5, 8]).repeat_interleave(3)  # emoji: animals, flags, objects, symbols
    images = sample(trained, labels, steps=10, guidance=2.0)
    assert images.shape == (12, *trained.shape) and images.abs().max() <= 1
    agreement = (classifier(trained.data)(images).argmax(1) == labels).float().mean()
    assert agreement > 0.5  # chance is 0.1


def fashion_arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "train_images": rng.integers(0, 256, (6, 28, 28), np.uint8),
        "train_labels": np.arange(6, dtype=np.uint8),
        "test_images": rng.integers(0, 256, (2, 28, 28), np.uint8),
        "test_labels": np.array([9, 0], np.uint8),
    }


def test_fashion_reads_the_same_from_npz_and_idx(tmp_path):
    arrays = fashion_arrays()
    one = load_data("fashion", npz(tmp_path, **arrays))
    for name, array in zip(
        ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"), arrays.values(), strict=True
    ):
        raw = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()
        (tmp_path / f"{name}-ubyte.gz").write_bytes(gzip.compress(raw))
    other = load_data("fashion", tmp_path)
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)
    assert one.train.shape == (6, 1, 32, 32) and one.classes == FASHION
    np.testing.assert_array_equal(one.train[:, 0, 2:-2, 2:-2], arrays["train_images"])
    assert to_unit(one.train).min() == -1 and to_unit(one.train).dtype == np.float32


NAMES = [f"{code:x}{tone}.png" for code in range(0x1F440, 0x1F454) for tone in ("", "-1f3fb", "-1f3ff-fe0f")]


def emoji_arrays() -> dict[str, np.ndarray]:
    images = np.random.default_rng(0).integers(0, 256, (len(NAMES), 64, 64, 3), np.uint8)
    labels = np.arange(len(NAMES), dtype=np.uint8) // 30
    return {"images": images, "labels": labels, "categories": np.array(["A", "B"]), "names": np.array(NAMES)}


def test_emoji_are_split_by_character_and_variants_share_their_chance(tmp_path):
    arrays = emoji_arrays()
    data = load_data("emoji", npz(tmp_path, **arrays))
    assert len(data.train) == 54 and len(data.test) == 6  # 2 characters of 20, with their variants, are held out
    assert data.classes == ("A", "B") and data.chances.sum() == pytest.approx(1)
    means = arrays["images"][:, :2, :2].mean((1, 2)).round()
    held_out = [any((np.abs(mean - corner) < 1.01).all() for corner in data.test[:, :, 0, 0]) for mean in means]
    characters = [name.split(".")[0].split("-")[0] for name, out in zip(NAMES, held_out, strict=True) if out]
    assert len(set(characters)) == 2 and len(characters) == 6


def test_emoji_read_the_same_from_npz_and_package(tmp_path):
    arrays = emoji_arrays()
    (tmp_path / "img/google/64").mkdir(parents=True)
    for name, image in zip(NAMES, arrays["images"], strict=True):
        Image.fromarray(image).save(tmp_path / "img/google/64" / name)
    listing = [
        {"image": a, "category": "AB"[i // 10], "skin_variations": {"1": {"image": b}, "2": {"image": c}}}
        for i, (a, b, c) in enumerate(zip(NAMES[::3], NAMES[1::3], NAMES[2::3], strict=True))
    ]
    (tmp_path / "emoji.json").write_text(json.dumps(listing))
    one, other = load_data("emoji", npz(tmp_path, **arrays)), load_data("emoji", tmp_path)
    assert sorted(map(bytes, one.test)) == sorted(map(bytes, other.test))
    assert sorted(map(bytes, one.train)) == sorted(map(bytes, other.train))


@pytest.mark.parametrize("name", MODELS)
def test_the_loss_is_zero_for_the_exact_prediction(name):
    scheduler = train.make_scheduler(train.RECIPES[name])
    x, noise = torch.randn(2, 4, 1, 32, 32, generator=torch.Generator().manual_seed(0)).double()
    u = torch.tensor([0.01, 0.3, 0.6, 0.99])

    def exact(noisy, t, class_labels):
        if name == "emoji-flow":
            level = (t / 1000)[:, None, None, None]
            torch.testing.assert_close(noisy, (1 - level) * x + level * noise)
            return SimpleNamespace(sample=noise - x)
        alpha = scheduler.alphas_cumprod[t][:, None, None, None].sqrt()
        sigma = (1 - alpha**2).sqrt()
        return SimpleNamespace(sample=noise if name == "fashion-eps" else (alpha * noisy - x) / sigma)

    assert train.loss_of(exact, scheduler, x, torch.zeros(4), noise, u) < 1e-9


def test_training_resumes_from_its_checkpoint_and_exports_a_folder(tmp_path, monkeypatch):
    small = train.RECIPES["fashion-eps"]._replace(channels=(32, 32, 32))
    monkeypatch.setitem(train.RECIPES, "fashion-eps", small)
    monkeypatch.setattr(train, "BATCH", 2)
    data = str(npz(tmp_path, **fashion_arrays()))
    command = ["fashion-eps", "--data", data, "--work", str(tmp_path), "--out", str(tmp_path)]
    train.main([*command, "--steps", "2"])
    train.main([*command, "--steps", "3"])
    assert json.loads((tmp_path / "fashion-eps/training.json").read_text())["steps"] == 3
    assert [row.split(",")[0] for row in (tmp_path / "fashion-eps/loss.csv").read_text().split()[1:]] == ["2", "3"]
    again = load("fashion-eps", tmp_path / "fashion-eps")
    assert sample(again, torch.tensor([0]), steps=2).shape == (1, 1, 32, 32)


def test_data_that_is_none_is_refused(tmp_path):
    arrays = fashion_arrays()
    del arrays["train_labels"]
    for name, place, told in (
        ("cats", ".", "'cats' is not one of fashion, emoji"),
        ("fashion", tmp_path / "nothing.npz", "does not exist"),
        ("fashion", npz(tmp_path, **arrays), "lacks the arrays train_labels"),
        ("fashion", tmp_path, "neither train-images-idx3-ubyte nor"),
        ("emoji", tmp_path, r"no emoji\.json"),
    ):
        with pytest.raises(ValueError, match=told):
            load_data(name, place)
    with pytest.raises(ValueError, match="'sd' is not one of fashion-eps"):
        load("sd")


@pytest.mark.parametrize("name", [*MODELS, *CLASSIFIERS.values()])
def test_the_cards_are_up_to_date(name):
    folder = WEIGHTS / name
    assert (folder / "README.md").read_text() == (
        card.classifier_card if name in CLASSIFIERS.values() else card.model_card
    )(folder)


def test_a_card_follows_its_numbers_and_does_without_a_picture(tmp_path):
    folder = Path(shutil.copytree(WEIGHTS / "fashion-eps", tmp_path / "fashion-eps"))
    facts = json.loads((folder / "training.json").read_text())
    runs = [{"name": "fashion-eps", "steps": 11, "minutes": 2.5, "held_out_loss": 0.5}]
    (folder / "training.json").write_text(json.dumps({**facts, "steps": 22, "started_from": runs}))
    (folder / "samples.json").unlink()
    card.write_card(folder)
    text = (folder / "README.md").read_text()
    assert "fashion-eps, 11 steps, 2.5 min, held-out loss 0.5; then 22 steps" in text
    first, second = (line for line in text.splitlines() if line.startswith("python"))
    assert first.endswith("--steps 11")
    assert second.endswith("--steps 22 --start-from benchmarks/models/weights/fashion-eps --work build/models/2")
    assert "samples.png" not in text


def test_no_weights_are_larger_than_10_mb_and_all_are_float32():
    files = list(WEIGHTS.rglob("*.safetensors"))
    assert len(files) == len(MODELS) + len(CLASSIFIERS)
    for file in files:
        assert file.stat().st_size <= 10e6, file
        with safe_open(file, "pt") as tensors:
            kinds = {tensors.get_slice(key).get_dtype() for key in tensors.keys()}  # noqa: SIM118
        assert kinds <= {"F32", "I64"}, file


@pytest.mark.parametrize("data", CLASSIFIERS)
def test_features_have_96_dimensions_and_clip_the_images(data):
    channels = 1 if data == "fashion" else 3
    images = torch.randn(5, channels, 32, 32, generator=torch.Generator().manual_seed(0))
    vectors = features(data, batch=2)(images)
    assert vectors.shape == (5, 96) and vectors.std() > 0
    torch.testing.assert_close(features(data)(images.clamp(-1, 1)), vectors)


# ---- models as the benchmarks judge them


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
