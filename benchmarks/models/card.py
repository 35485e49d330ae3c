"""Writes the card (README.md) of a trained folder from the numbers that lie beside the weights.

    python -m benchmarks.models.card

writes all; training and drawing samples write the card of what they made.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.runner import WEIGHTS

LOSS = {
    "epsilon": "mean squared error of eps with the Min-SNR weight (gamma 5)",
    "v_prediction": "mean squared error of v with the Min-SNR weight (gamma 5)",
    "flow": "mean squared error of noise - data at logit-normal levels",
}


DATA = {
    "fashion": (
        "Fashion-MNIST (Xiao et al. 2017, arXiv 1708.07747), grey, with a border of 2 black pixels; licence MIT "
        "(Zalando SE)",
        "fashion_mnist.npz",
    ),
    "emoji": (
        "Noto emoji by category, on white, 64 x 64 averaged to 32 x 32; licence Apache-2.0 (Google)",
        "emoji64.npz",
    ),
}
"""The data behind the weights and its licence, and the file."""

SEEN = {
    "fashion-eps": "Every row is its class at a glance. Prints on shirts are smears, many dresses and sandals are "
    "torn, and some black backgrounds keep grey specks of noise.",
    "fashion-v": "Every row is its class at a glance. Outlines are cleaner than those of fashion-eps and backgrounds "
    "blacker; prints are smears and a few sandals have lost their shape.",
    "emoji-flow": "Faces, signs, flags and portraits can be told; clocks too. Activities, animals, food and objects "
    "are blots of the right colours, and the plates of skin tones are all that Component has. Backgrounds are not "
    "quite white: faint coloured grain.",
}
"""What a person sees in samples.png; to be looked at again when a model is trained again."""

LICENCE = "Apache-2.0, as this repository"
MODEL_END = (
    "Made for judging schedules on a real network that is quick to run; a small, briefly trained model, no good for "
    "pictures."
)
CLASSIFIER_END = (
    "Its features measure distances between pictures of this one kind: they compare samplers of one model, and say "
    "nothing of other data. The distances are on another scale than those of Inception."
)


def write_card(folder: Path) -> None:
    """Write the card of a model from its training.json, loss.csv, scheduler and, where there is one, samples.json.

    That of a classifier is written from its config.json.
    """
    text = classifier_card(folder) if (folder / "config.json").exists() else model_card(folder)
    (folder / "README.md").write_text(text)


def model_card(folder: Path) -> str:
    """Write the text of a model's card."""
    facts = _read(folder / "training.json")
    levels = _read(folder / "scheduler" / "scheduler_config.json")
    size = (folder / "unet" / "diffusion_pytorch_model.safetensors").stat().st_size
    channels = _read(folder / "unet" / "config.json")["in_channels"]
    trained, held_out = (float(x) for x in (folder / "loss.csv").read_text().split()[-1].split(",")[2:])
    (source, file), kind = DATA[facts["data"]], levels.get("prediction_type", "flow")
    if kind == "flow":
        noise = f"rectified flow, shift {levels['shift']:g}, timestep = 1000 sigma; predicts noise - data"
    else:
        betas = f"betas {levels['beta_schedule']} {levels['beta_start']:g}..{levels['beta_end']:g}"
        noise = f"{levels['num_train_timesteps']} levels, {betas}; predicts {kind.removesuffix('_prediction')}"
    runs = [
        f"{run['name']}, {run['steps']} steps, {run['minutes']:g} min, held-out loss {run['held_out_loss']:g}"
        for run in facts["started_from"]
    ]
    before = f"started from the weights of {'; then '.join(runs)}; then " if runs else ""
    threads = f"{facts['threads']} thread{'s' if facts['threads'] > 1 else ''}"
    rows = {
        "network": f"diffusers `UNet2DModel`, {channels} x 32 x 32, class-conditional; label {facts['no_label']} is "
        "none",
        "size": f"{size / 1e6:.1f} MB, float32, averaged weights",
        "noise": noise,
        "data": source,
        "classes": ", ".join(facts["classes"]),
        "training": f"{before}{facts['steps']} steps of {facts['batch']} images, {facts['minutes']:g} min on {threads} "
        f"of a shared {facts['machine']} CPU, seed {facts['seed']}, torch {facts['torch']}",
        "loss": f"{LOSS[kind]}: training {trained:g} (last batches), held out {held_out:g} ([curve](loss.png))",
        "licence": LICENCE,
    }
    samples = folder / "samples.json"
    seen = _seen(facts["name"], _read(samples)) if samples.exists() else []
    return _card(facts["name"], rows, _commands(facts, file), [*seen, MODEL_END])


def _commands(facts: dict[str, Any], file: str) -> list[str]:
    """List the commands that train it: this run and those it started from."""
    lines: list[str] = []
    before: list[str] = []
    for run in [*facts["started_from"], facts]:
        line = f"python -m benchmarks.models.train {run['name']} --data {file} --steps {run['steps']}"
        if before:
            line += f" --start-from benchmarks/models/weights/{before[-1]}"
        if run["name"] in before:
            line += f" --work build/models/{len(before) + 1}"  # not to resume the run before
        lines.append(line)
        before.append(run["name"])
    return lines


def _seen(name: str, drawn: dict[str, Any]) -> list[str]:
    shares = drawn["agreement"]
    least = ", ".join(f"{label} ({shares[label]:.0%})" for label in sorted(shares, key=shares.__getitem__)[:3])
    mean = sum(shares.values()) / len(shares)
    how = f"{drawn['steps']} steps, guidance {drawn['guidance']:g}, seed {drawn['seed']}"
    told = f"{drawn['columns']} samples of each class, {how}. The classifier gives {mean:.0%} of them their label; "
    told += f"least often {least}."
    return ["![samples, a row for each class](samples.png)", "", told, *([SEEN[name]] if name in SEEN else []), ""]


def classifier_card(folder: Path) -> str:
    """Write the text of a classifier's card."""
    facts = _read(folder / "config.json")
    data = folder.name.removesuffix("-classifier")
    source, file = DATA[data]
    size = (folder / "model.safetensors").stat().st_size
    rows = {
        "network": "four convolutions with batch norm, a global mean, two dense layers; features are the 96 numbers "
        f"before the last activation; {facts['in_channels']} x 32 x 32 in [-1, 1]",
        "size": f"{size / 1e6:.1f} MB, float32",
        "data": source,
        "classes": ", ".join(facts["classes"]),
        "training": f"{facts['epochs']} epochs, {facts['minutes']:g} min, seed {facts['seed']}",
        "accuracy": f"{facts['test_accuracy']:.1%} of {facts['test_images']} held-out images; mean of the classes' own "
        f"{facts['mean_of_classes']:.1%}; always saying the commonest class {facts['commonest_class']:.1%}",
        "licence": LICENCE,
    }
    command = f"python -m benchmarks.models.train_classifier {data} --data {file} --epochs {facts['epochs']}"
    return _card(folder.name, rows, [command], [CLASSIFIER_END])


def _card(title: str, rows: dict[str, str], commands: list[str], end: list[str]) -> str:
    table = ["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())]
    return "\n".join([f"# {title}", "", *table, "", "```bash", *commands, "```", "", *end]) + "\n"


def _read(file: Path) -> Any:
    return json.loads(file.read_text())


if __name__ == "__main__":
    for place in sorted(path for path in WEIGHTS.iterdir() if path.is_dir()):
        write_card(place)
        print(place / "README.md")
