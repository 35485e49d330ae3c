"""The trained models: what is shipped, their cards, and the readers of the data they were trained on."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks.models import card, train
from benchmarks.models.load import CLASSIFIERS, FASHION, MODELS, classifier, features, load, load_data, sample, to_unit
from benchmarks.runner import WEIGHTS


@pytest.fixture(scope="module", params=MODELS)
def trained(request):
    return load(request.param)


def npz(folder: Path, **arrays) -> Path:
    np.savez(folder / "data.npz", **arrays)
    return folder / "data.npz"


def test_the_network_depends_on_label_and_guidance(trained):
    x = torch.randn(2, *trained.shape, generator=torch.Generator().manual_seed(0))
    out = trained.predict(x, 500.0, torch.tensor([0, 1]), guidance=1.0)
    none = trained.predict(x, 500.0, torch.full((2,), trained.no_label), guidance=1.0)
    assert out.shape == x.shape and out.isfinite().all()
    assert (out - none).abs().mean() > 1e-3
    guided = trained.predict(x, 500.0, torch.tensor([0, 1]), guidance=3.0)
    torch.testing.assert_close(guided, none + 3 * (out - none), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
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


def test_fashion_has_a_border(tmp_path):
    arrays = fashion_arrays()
    one = load_data("fashion", npz(tmp_path, **arrays))
    assert one.train.shape == (6, 1, 32, 32) and one.classes == FASHION and one.test_labels.tolist() == [9, 0]
    np.testing.assert_array_equal(one.train[:, 0, 2:-2, 2:-2], arrays["train_images"])
    assert to_unit(one.train).min() == -1 and to_unit(one.train).dtype == np.float32


NAMES = [f"{code:x}{tone}.png" for code in range(0x1F440, 0x1F454) for tone in ("", "-1f3fb", "-1f3ff-fe0f")]


def emoji_arrays() -> dict[str, np.ndarray]:
    images = np.random.default_rng(0).integers(0, 256, (len(NAMES), 64, 64, 3), np.uint8)
    labels = np.arange(len(NAMES), dtype=np.uint8) // 30
    return {"images": images, "labels": labels, "categories": np.array(["A", "B"]), "names": np.array(NAMES)}


def test_emoji_are_split_by_character(tmp_path):
    arrays = emoji_arrays()
    data = load_data("emoji", npz(tmp_path, **arrays))
    assert len(data.train) == 54 and len(data.test) == 6  # 2 characters of 20, with their variants, are held out
    assert data.classes == ("A", "B") and data.chances.sum() == pytest.approx(1)
    means = arrays["images"][:, :2, :2].mean((1, 2)).round()
    held_out = [any((np.abs(mean - corner) < 1.01).all() for corner in data.test[:, :, 0, 0]) for mean in means]
    characters = [name.split(".")[0].split("-")[0] for name, out in zip(NAMES, held_out, strict=True) if out]
    assert len(set(characters)) == 2 and len(characters) == 6


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
        ("emoji", tmp_path, "is not an .npz file"),
    ):
        with pytest.raises(ValueError, match=told):
            load_data(name, place)
    with pytest.raises(ValueError, match="'sd' is not one of fashion-eps"):
        load("sd")


@pytest.mark.parametrize("name", [*MODELS, *CLASSIFIERS.values()])
def test_the_cards_are_up_to_date(name):
    assert (WEIGHTS / name / "README.md").read_text() == card.card(WEIGHTS / name)


def test_a_card_follows_its_numbers(tmp_path):
    folder = Path(shutil.copytree(WEIGHTS / "fashion-eps", tmp_path / "fashion-eps"))
    facts = json.loads((folder / "training.json").read_text())
    runs = [{"name": "fashion-eps", "steps": 11, "minutes": 2.5, "held_out_loss": 0.5}]
    (folder / "training.json").write_text(json.dumps({**facts, "steps": 22, "started_from": runs}))
    (folder / "samples.json").unlink()
    card.write_card(folder)
    text = (folder / "README.md").read_text()
    assert "| started from | name fashion-eps, steps 11, minutes 2.5, held_out_loss 0.5 |\n| steps | 22 |" in text
    first, second = (line for line in text.splitlines() if line.startswith("python"))
    assert first.endswith("--steps 11")
    assert second.endswith("--steps 22 --start-from benchmarks/models/weights/fashion-eps --work build/models/2")
    assert "samples.png" not in text


@pytest.mark.parametrize("data", CLASSIFIERS)
def test_features_have_96_dimensions_and_clip_the_images(data):
    channels = 1 if data == "fashion" else 3
    images = torch.randn(5, channels, 32, 32, generator=torch.Generator().manual_seed(0))
    vectors = features(data, batch=2)(images)
    assert vectors.shape == (5, 96) and vectors.std() > 0
    torch.testing.assert_close(features(data)(images.clamp(-1, 1)), vectors)
