"""Draws samples of a trained model, a row for each class, and says how often the classifier agrees with the label.

Beside the picture it writes what the model's card says of it (the .json of the same name).

python -m benchmarks.models.picture fashion-eps --out samples.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from benchmarks.models.card import write_card
from benchmarks.models.load import MODELS, classifier, load, sample
from benchmarks.plots import pictures

HOW: dict[str, Any] = {"columns": 12, "steps": 50, "guidance": 2.0, "seed": 0}


def grid(images: torch.Tensor, columns: int, zoom: int = 2) -> Image.Image:
    """Put images [n, C, H, W] in [-1, 1], n a multiple of `columns`, side by side."""
    shown = [one.resize((zoom * one.width, zoom * one.height), Image.Resampling.NEAREST) for one in pictures(images)]
    width, height = shown[0].size
    sheet = Image.new(shown[0].mode, (columns * width, len(shown) // columns * height))
    for i, one in enumerate(shown):
        sheet.paste(one, (i % columns * width, i // columns * height))
    return sheet


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Draw samples of a benchmark model.")
    parser.add_argument("name", choices=MODELS)
    parser.add_argument("--out", type=Path, help="the picture; samples.png in the model's folder if not given")
    args = parser.parse_args(argv)
    trained = load(args.name)
    labels = torch.arange(len(trained.classes)).repeat_interleave(HOW["columns"])
    images = sample(trained, labels, HOW["steps"], HOW["guidance"], HOW["seed"])
    out = args.out or trained.folder / "samples.png"
    grid(images, HOW["columns"]).save(out, optimize=True)
    with torch.no_grad():
        agrees = (classifier(trained.data)(images).argmax(1) == labels).float().reshape(-1, HOW["columns"]).mean(1)
    shares = {name: round(share, 3) for name, share in zip(trained.classes, agrees.tolist(), strict=True)}
    print(f"{out}; the classifier gives {agrees.mean():.1%} of the samples their label: {shares}")
    out.with_suffix(".json").write_text(json.dumps({**HOW, "agreement": shares}, indent=1) + "\n")
    if args.out is None:
        write_card(trained.folder)


if __name__ == "__main__":
    main()
