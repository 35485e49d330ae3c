"""Writes the card (README.md) of a trained folder from the numbers that lie beside the weights.

python -m benchmarks.models.card                      all cards; training writes that of what it made
python -m benchmarks.models.card --draw fashion-eps   after new samples, a row for each class, and their numbers
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from benchmarks import runner
from benchmarks.models.load import MODELS, classifier, load, sample
from benchmarks.plots import pictures
from benchmarks.runner import WEIGHTS
from bridge.cli.pictures import Row, grid, save_png

HOW: dict[str, Any] = {"columns": 12, "steps": 50, "guidance": 2.0, "seed": 0}
"""Of the samples."""

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

MODEL_END = "Made for judging schedules on a real network that is quick to run; briefly trained, no good for pictures."
CLASSIFIER_END = "Its features compare samplers of one model. Distances are on another scale than those of Inception."


def write_card(folder: Path) -> None:
    """Write the card of a model, or of a classifier, which has a config.json."""
    (folder / "README.md").write_text(card(folder))


def card(folder: Path) -> str:
    """Write the card's text: facts, the commands that train it, and what its samples look like."""
    facts = _read(folder / ("config.json" if (folder / "config.json").exists() else "training.json"))
    data = facts.get("data", folder.name.removesuffix("-classifier"))
    source, file = DATA[data]
    size = sum(weights.stat().st_size for weights in folder.rglob("*.safetensors"))
    rows = {"weights": f"{size / 1e6:.1f} MB, float32; Apache-2.0, as this repository", "data": source}
    if "epochs" in facts:
        commands = [f"python -m benchmarks.models.train {folder.name} --data {file} --epochs {facts['epochs']}"]
        end = [CLASSIFIER_END]
    else:
        levels = _read(folder / "scheduler" / "scheduler_config.json")
        noise = ("prediction_type", "num_train_timesteps", "beta_schedule", "beta_start", "beta_end", "shift")
        rows["noise"] = ", ".join(f"{name} {levels[name]}" for name in noise if name in levels)
        trained, held_out = (float(x) for x in (folder / "loss.csv").read_text().split()[-1].split(",")[2:])
        rows["loss"] = f"training {trained:g} (last batches), held out {held_out:g} ([curve](loss.png))"
        commands, end = _commands(facts, file), [*_samples(folder), MODEL_END]
    rows |= {name: _told(value) for name, value in facts.items() if name not in ("name", "data")}
    table = ["| | |", "|---|---|", *(f"| {key.replace('_', ' ')} | {value} |" for key, value in rows.items())]
    return "\n".join([f"# {folder.name}", "", *table, "", "```bash", *commands, "```", "", *end]) + "\n"


def _told(value: Any) -> str:
    if isinstance(value, list):
        return "; ".join(map(_told, value)) or "-"
    return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)


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


def _samples(folder: Path) -> list[str]:
    """What `draw` drew, where it did."""
    if not (file := folder / "samples.json").exists():
        return []
    drawn = _read(file)
    shares = drawn["agreement"]
    least = ", ".join(f"{label} ({shares[label]:.0%})" for label in sorted(shares, key=shares.__getitem__)[:3])
    how = f"{drawn['columns']} samples of each class, {drawn['steps']} steps, guidance {drawn['guidance']:g}"
    mean = sum(shares.values()) / len(shares)
    told = f"{how}. The classifier gives {mean:.0%} of them their label; least often {least}."
    return ["![samples, a row for each class](samples.png)", "", told, SEEN.get(folder.name, ""), ""]


def _read(file: Path) -> Any:
    return json.loads(file.read_text())


def draw(name: str) -> None:
    """Draw samples of a model, and write beside them how often the classifier gives them their label."""
    trained, columns = load(name), HOW["columns"]
    labels = torch.arange(len(trained.classes)).repeat_interleave(columns)
    images = sample(trained, labels, HOW["steps"], HOW["guidance"], HOW["seed"])
    with torch.no_grad():
        agrees = (classifier(trained.data)(images).argmax(1) == labels).float().reshape(-1, columns).mean(1)
    shares = {label: round(share, 3) for label, share in zip(trained.classes, agrees.tolist(), strict=True)}
    shown = pictures(images)
    rows = [Row(x, f"{shares[x]:.0%} get it", shown[i * columns :][:columns]) for i, x in enumerate(trained.classes)]
    title = f"{name}, {HOW['steps']} steps, guidance {HOW['guidance']:g}"
    text = "A row is a class; how many samples the classifier gives their label."
    save_png(grid(rows, [""] * columns, title, text), trained.folder / "samples.png", {})
    (trained.folder / "samples.json").write_text(json.dumps({**HOW, "agreement": shares}, indent=1) + "\n")


def main() -> None:
    """Draw what was asked for, and write all cards."""
    parser = runner.command("python -m benchmarks.models.card", __doc__)
    parser.add_argument("--draw", choices=MODELS, help="draw samples of a model first")
    if name := parser.parse_args().draw:
        draw(name)
    for place in sorted(path for path in WEIGHTS.iterdir() if path.is_dir()):
        write_card(place)
        print(place / "README.md")


if __name__ == "__main__":
    main()
