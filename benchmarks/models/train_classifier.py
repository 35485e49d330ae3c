"""Trains the classifiers whose penultimate layer serves as feature extractor.

python -m benchmarks.models.train_classifier fashion --data fashion_mnist.npz
python -m benchmarks.models.train_classifier emoji --data emoji64.npz --epochs 40

AdamW, a one-cycle learning rate, random shifts of up to 2 pixels, flips and (colour only) changed brightness.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
import torch
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy

from benchmarks.models.card import write_card
from benchmarks.models.data import Images, load_data, to_unit
from benchmarks.models.load import CLASSIFIERS, Classifier
from benchmarks.runner import WEIGHTS

BATCH, PEAK, SEED = 128, 3e-3, 0


def augment(x: torch.Tensor, draw: np.random.Generator) -> torch.Tensor:
    """Flip or not and shift each image of a batch [B, C, 32, 32]; edges are repeated."""
    flip = torch.from_numpy(draw.random(len(x)) < 0.5)
    x = torch.where(flip[:, None, None, None], x.flip(3), x)
    wide = torch.nn.functional.pad(x, (2, 2, 2, 2), mode="replicate")
    dy, dx = (torch.from_numpy(draw.integers(0, 5, len(x)))[:, None, None] for _ in range(2))
    rows, columns = torch.arange(32)[:, None] + dy, torch.arange(32) + dx
    x = wide[torch.arange(len(x))[:, None, None], :, rows, columns].permute(0, 3, 1, 2).contiguous()
    if x.shape[1] == 3:
        scale = torch.from_numpy(draw.uniform(0.8, 1.0, (len(x), 1, 1, 1)).astype(np.float32))
        x = (x + 1) * scale - 1
    return x


def train(data: Images, epochs: int) -> Classifier:
    """Train the classifier; it is returned in evaluation mode."""
    torch.manual_seed(SEED)
    draw = np.random.default_rng(SEED)
    net = Classifier(data.train.shape[1], len(data.classes))
    per_epoch = len(data.train) // BATCH
    optimiser = torch.optim.AdamW(net.parameters(), lr=PEAK, weight_decay=0.05)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, PEAK, total_steps=epochs * per_epoch)
    for epoch in range(epochs):
        order = draw.choice(len(data.train), (per_epoch, BATCH), p=data.chances)
        for pick in order:
            x = augment(torch.from_numpy(to_unit(data.train[pick])), draw)
            with torch.autocast("cpu", torch.bfloat16):
                out = net(x)
            loss = cross_entropy(out.float(), torch.from_numpy(data.train_labels[pick]), label_smoothing=0.1)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            rate.step()
        print(f"epoch {epoch + 1} of {epochs}: loss {float(loss.detach()):.3f}", flush=True)
    return net.eval()


@torch.no_grad()
def judge(net: Classifier, images: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Count the images [n, C, 32, 32] uint8 that get their label: share of all, mean of the classes' shares, by chance.

    Chance is the share of the commonest class.
    """
    given = torch.cat([net(part).argmax(1) for part in torch.from_numpy(to_unit(images)).split(500)]).numpy()
    right, present = given == labels, np.unique(labels)
    return {
        "test_images": len(images),
        "test_accuracy": round(float(right.mean()), 4),
        "mean_of_classes": round(float(np.mean([right[labels == label].mean() for label in present])), 4),
        "commonest_class": round(float(np.bincount(labels).max() / len(labels)), 4),
    }


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train a classifier for features.")
    parser.add_argument("name", choices=CLASSIFIERS)
    parser.add_argument("--data", required=True, help="the .npz file or the folder; see benchmarks/models/data.py")
    parser.add_argument("--epochs", type=int, default=8)
    args = parser.parse_args(argv)
    data, start = load_data(args.name, args.data), time.monotonic()
    net = train(data, args.epochs)
    folder = WEIGHTS / CLASSIFIERS[args.name]
    folder.mkdir(parents=True, exist_ok=True)
    save_file(net.state_dict(), folder / "model.safetensors")
    facts = {
        "in_channels": data.train.shape[1],
        "classes": list(data.classes),
        "seed": SEED,
        "epochs": args.epochs,
        "minutes": round((time.monotonic() - start) / 60, 1),
        **judge(net, data.test, data.test_labels),
    }
    (folder / "config.json").write_text(json.dumps(facts, indent=1) + "\n")
    write_card(folder)
    print(facts)


if __name__ == "__main__":
    main()
