"""The cards of the trained models: never older than the numbers they are made of."""

import json
import shutil
from pathlib import Path

import pytest

from benchmarks.models import card
from benchmarks.models.load import CLASSIFIERS, MODELS, WEIGHTS


@pytest.mark.parametrize("name", MODELS)
def test_the_models_cards_are_up_to_date(name):
    folder = WEIGHTS / name
    assert (folder / "README.md").read_text() == card.model_card(folder)


@pytest.mark.parametrize("name", CLASSIFIERS.values())
def test_the_classifiers_cards_are_up_to_date(name):
    folder = WEIGHTS / name
    assert (folder / "README.md").read_text() == card.classifier_card(folder)


@pytest.mark.parametrize("name", MODELS)
def test_a_card_says_data_licence_seed_steps_time_loss_and_command(name):
    text, facts = (WEIGHTS / name / "README.md").read_text(), json.loads((WEIGHTS / name / "training.json").read_text())
    held_out = (WEIGHTS / name / "loss.csv").read_text().split()[-1].split(",")[-1]
    for said in (
        "licence",
        f"seed {facts['seed']}",
        f"{facts['steps']} steps",
        f"{facts['minutes']:g} min",
        f"held out {float(held_out):g}",
        f"python -m benchmarks.models.train {name}",
    ):
        assert said in text, said
    for run in facts["started_from"]:  # the former budgets too
        assert f"{run['name']}, {run['steps']} steps, {run['minutes']:g} min" in text


def copy(tmp_path: Path, name: str) -> Path:
    return Path(shutil.copytree(WEIGHTS / name, tmp_path / name))


def test_a_card_follows_its_numbers_and_does_without_a_picture(tmp_path):
    folder = copy(tmp_path, "fashion-eps")
    facts = json.loads((folder / "training.json").read_text())
    runs = [{"name": "fashion-eps", "steps": 11, "minutes": 2.5, "held_out_loss": 0.5}]
    (folder / "training.json").write_text(json.dumps({**facts, "steps": 22, "started_from": runs}))
    (folder / "samples.json").unlink()
    card.write_model_card(folder)
    text = (folder / "README.md").read_text()
    assert "fashion-eps, 11 steps, 2.5 min, held-out loss 0.5; then 22 steps" in text
    first, second = (line for line in text.splitlines() if line.startswith("python"))
    assert first.endswith("--steps 11")
    assert second.endswith("--steps 22 --start-from benchmarks/models/weights/fashion-eps --work build/models/2")
    assert "samples.png" not in text
