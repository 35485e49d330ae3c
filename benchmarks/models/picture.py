"""Draws samples of a trained model, a row for each class, and says how often the classifier agrees with the label.

Beside the picture it writes what the model's card says of it (the .json of the same name).

python -m benchmarks.models.picture fashion-eps --out samples.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.models.card import write_model_card
from benchmarks.models.load import MODELS, classifier, load, sample


def grid(images: torch.Tensor, columns: int, zoom: int = 2) -> Image.Image:
    """Images [n, C, H, W] in [-1, 1], n a multiple of `columns`, side by side."""
    n, c, h, w = images.shape
    pixels = ((images + 1) * 127.5).round().to(torch.uint8).numpy()
    sheet = pixels.reshape(n // columns, columns, c, h, w).transpose(0, 3, 1, 4, 2)
    sheet = sheet.reshape(n // columns * h, columns * w, c).repeat(zoom, 0).repeat(zoom, 1)
    return Image.fromarray(sheet[..., 0] if c == 1 else np.ascontiguousarray(sheet))


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Draw samples of a benchmark model.")
    parser.add_argument("name", choices=MODELS)
    parser.add_argument("--columns", type=int, default=12, help="samples of each class")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="the model's, where it is not the committed one")
    parser.add_argument("--out", type=Path, help="the picture; samples.png in the model's folder if not given")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    trained = load(args.name, args.folder)
    labels = torch.arange(len(trained.classes)).repeat_interleave(args.columns)
    images = sample(trained, labels, args.steps, args.guidance, args.seed)
    out = args.out or trained.folder / "samples.png"
    grid(images, args.columns).save(out, optimize=True)
    with torch.no_grad():
        agrees = (classifier(trained.data)(images).argmax(1) == labels).float()
    print(f"{out}; the classifier gives {agrees.mean():.1%} of the samples their label")
    shares = dict(zip(trained.classes, agrees.reshape(-1, args.columns).mean(1).tolist(), strict=True))
    for name, share in shares.items():
        print(f"  {name}: {share:.0%}")
    facts = {key: getattr(args, key) for key in ("columns", "steps", "guidance", "seed")}
    facts["agreement"] = {name: round(share, 3) for name, share in shares.items()}
    out.with_suffix(".json").write_text(json.dumps(facts, indent=1) + "\n")
    if out == trained.folder / "samples.png":
        write_model_card(trained.folder)


if __name__ == "__main__":
    main()
