"""Trains one of the benchmark models, written in diffusers' folder format, or a classifier that gives features.

    python -m benchmarks.models.train fashion-eps --data fashion_mnist.npz --minutes 30
    python -m benchmarks.models.train emoji-flow --data emoji64.npz --steps 8000 --threads 4
    python -m benchmarks.models.train emoji-classifier --data emoji64.npz --epochs 40

A model's run is kept in `--work` and can be stopped at any time: the same command goes on from the last checkpoint. The
learning rate's decay follows the share of the budget that is spent, in steps or in minutes. What is written are the
averaged weights (EMA), float32. A second run with the same steps and threads gives the same weights on the same
machine; one that was stopped and resumed draws other noise after the resumption.
"""

from __future__ import annotations

import copy
import json
import math
import os
import platform
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, UNet2DModel
from matplotlib.figure import Figure
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy

from benchmarks import runner
from benchmarks.models.card import write_card
from benchmarks.models.load import CLASSIFIERS, Classifier, Images, load_data, to_unit, unet
from benchmarks.plots import save
from benchmarks.runner import WEIGHTS

SEED, SECONDS_BETWEEN_CHECKPOINTS = 0, 120
BATCH, PEAK, WARMUP = 32, 1e-3, 200  # images a step, the learning rate after warm-up, steps of warm-up
DROPPED = 0.1  # share of labels replaced by "no label", as in Ho & Salimans 2022
CLASSIFIER_BATCH, CLASSIFIER_PEAK = 128, 3e-3
EMA, MIN_SNR = 0.999, 5.0  # Hang et al. 2023, arXiv 2303.09556


class Recipe(NamedTuple):
    """How one model is trained: its data, its channels, and what its diffusers scheduler is made with."""

    data: str
    channels: tuple[int, ...]
    scheduler: dict[str, Any]


VP: dict[str, Any] = {"num_train_timesteps": 1000, "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
SD = {**VP, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
PIXART = {**VP, "beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02, "prediction_type": "v_prediction"}
RECIPES = {
    "fashion-eps": Recipe("fashion", (16, 32, 64, 112), SD),
    "emoji-flow": Recipe("emoji", (24, 40, 72, 104), {"num_train_timesteps": 1000, "shift": 1.0}),
    "fashion-v": Recipe("fashion", (16, 32, 64, 112), PIXART),
}


def make_scheduler(recipe: Recipe) -> Any:
    """Make the diffusers scheduler that the model is stored with: its config holds the noise schedule."""
    kind = FlowMatchEulerDiscreteScheduler if "shift" in recipe.scheduler else DDIMScheduler
    return kind(**recipe.scheduler)


def loss_of(net: Any, scheduler: Any, x: torch.Tensor, labels: Any, noise: torch.Tensor, u: torch.Tensor) -> Any:
    """Mean weighted squared error of one batch; x and noise [B, C, 32, 32], u [B] uniform in (0, 1) picks the level.

    Rectified flow: logit-normal t and no weight (Esser et al. 2024). VP: uniform t and the Min-SNR weight.
    """
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        s = torch.special.ndtri(u).sigmoid()
        alpha, sigma, t, weight, target = 1 - s, s, 1000 * s, torch.ones_like(s), noise - x
    else:
        t = (u * len(scheduler.alphas_cumprod)).long()
        squared = scheduler.alphas_cumprod[t]
        alpha, sigma, snr = squared.sqrt(), (1 - squared).sqrt(), squared / (1 - squared)
        if scheduler.config.prediction_type == "epsilon":
            target, weight = noise, snr.clamp(max=MIN_SNR) / snr
        else:
            target = alpha[:, None, None, None] * noise - sigma[:, None, None, None] * x
            weight = snr.clamp(max=MIN_SNR) / (snr + 1)
    noisy = alpha[:, None, None, None] * x + sigma[:, None, None, None] * noise
    with torch.autocast("cpu", torch.bfloat16):
        out = net(noisy, t, class_labels=labels).sample
    return (weight * (out.float() - target).square().mean((1, 2, 3))).mean()


class Run:
    """One training run: the state that a checkpoint keeps, and a step of it."""

    def __init__(self, name: str, data: Images):
        self.recipe, self.data = RECIPES[name], data
        torch.manual_seed(SEED)
        self.net = unet(data.train.shape[1], len(data.classes), self.recipe.channels)
        self.average = copy.deepcopy(self.net).requires_grad_(False)
        self.scheduler = make_scheduler(self.recipe)
        self.optimiser = torch.optim.Adam(self.net.parameters(), lr=PEAK, betas=(0.9, 0.99), fused=True)
        self.step, self.seconds = 0, 0.0
        self.started_from: list[dict[str, Any]] = []  # the runs before this one: name, steps, minutes, held-out loss
        self.curve: list[tuple[int, float, float, float]] = []  # step, seconds, training loss, held-out loss
        self.draw = np.random.default_rng(SEED)
        self.train, self.labels = torch.from_numpy(to_unit(data.train)), torch.from_numpy(data.train_labels)

    def advance(self, spent: float) -> float:
        """Take one step at `spent`, the share of the budget used so far; returns the batch's loss."""
        pick = torch.from_numpy(self.draw.choice(len(self.train), BATCH, p=self.data.chances))
        x, labels = self.train[pick], self.labels[pick]
        labels = torch.where(torch.rand(BATCH) < DROPPED, len(self.data.classes), labels)
        u = (torch.arange(BATCH) + torch.rand(BATCH)) / BATCH  # stratified: less noise in the loss
        loss = loss_of(self.net, self.scheduler, x, labels, torch.randn_like(x), u.clamp(1e-4, 1 - 1e-4))
        decay = 0.01 + 0.99 * math.cos(math.pi / 2 * spent) ** 2
        self.optimiser.param_groups[0]["lr"] = PEAK * min((self.step + 1) / WARMUP, decay)
        self.optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimiser.step()
        self.step += 1
        keep = min(EMA, self.step / (self.step + 10))
        torch._foreach_lerp_(list(self.average.parameters()), list(self.net.parameters()), 1 - keep)
        return float(loss.detach())

    @torch.no_grad()
    def held_out(self, count: int = 512) -> float:
        """Loss of the averaged weights on the first test images, always at the same levels with the same noise."""
        generator = torch.Generator().manual_seed(1)
        x, labels = torch.from_numpy(to_unit(self.data.test[:count])), torch.from_numpy(self.data.test_labels[:count])
        u = (torch.randperm(len(x), generator=generator) + 0.5) / len(x)
        return float(loss_of(self.average, self.scheduler, x, labels, torch.randn(x.shape, generator=generator), u))

    def save(self, file: Path) -> None:
        """Write beside, then rename: a stop while writing loses nothing."""
        state = {key: getattr(self, key).state_dict() for key in ("net", "average", "optimiser")}
        state |= {key: getattr(self, key) for key in ("step", "seconds", "curve", "started_from")}
        torch.save(state, file.with_suffix(".part"))
        os.replace(file.with_suffix(".part"), file)

    def resume(self, file: Path) -> None:
        """Go on from a checkpoint, with fresh draws."""
        state = torch.load(file, weights_only=True)
        for key in ("net", "average", "optimiser"):
            getattr(self, key).load_state_dict(state[key])
        for key in ("step", "seconds", "curve", "started_from"):
            setattr(self, key, state[key])
        torch.manual_seed(SEED + self.step)
        self.draw = np.random.default_rng((SEED, self.step))

    def start_from(self, folder: Path) -> None:
        """Take the first weights from an exported folder, and keep which runs made these, oldest first."""
        weights = UNet2DModel.from_pretrained(folder, subfolder="unet").state_dict()
        self.net.load_state_dict(weights)
        self.average.load_state_dict(weights)
        facts = json.loads((folder / "training.json").read_text())
        loss = float((folder / "loss.csv").read_text().split()[-1].split(",")[-1])
        own = {"name": facts["name"], "steps": facts["steps"], "minutes": facts["minutes"], "held_out_loss": loss}
        self.started_from = [*facts["started_from"], own]


def train(run: Run, file: Path, steps: int | None, minutes: float | None) -> None:
    """Advance `run` to its budget, with a checkpoint and a line every two minutes and at the end."""

    def spent() -> float:
        return run.step / steps if steps else run.seconds / (60 * (minutes or 1))

    losses: list[float] = []
    start, before, saved = time.monotonic(), run.seconds, time.monotonic()
    while spent() < 1:
        losses.append(run.advance(min(1.0, spent())))
        run.seconds = before + time.monotonic() - start
        if time.monotonic() - saved > SECONDS_BETWEEN_CHECKPOINTS or spent() >= 1:
            run.curve.append((run.step, run.seconds, float(np.mean(losses)), run.held_out()))
            run.save(file)
            told = f"loss {run.curve[-1][2]:.4f}, held-out {run.curve[-1][3]:.4f}"
            print(f"{spent():.0%}: step {run.step}, {run.seconds / 60:.1f} min, {told}", flush=True)
            losses, saved = [], time.monotonic()


def export(name: str, run: Run, folder: Path) -> None:
    """Write the model as a diffusers folder, with the loss curve as numbers and as a picture."""
    UNet2DModel.save_pretrained(run.average, folder / "unet")
    run.scheduler.save_pretrained(folder / "scheduler")
    facts = {
        "name": name, "data": run.recipe.data, "classes": list(run.data.classes), "no_label": len(run.data.classes),
        "seed": SEED, "started_from": run.started_from, "steps": run.step, "batch": BATCH,
        "minutes": round(run.seconds / 60, 1), "threads": torch.get_num_threads(), "machine": platform.machine(),
        "torch": torch.__version__,
    }  # fmt: skip
    (folder / "training.json").write_text(json.dumps(facts, indent=1) + "\n")
    rows = ["step,seconds,training_loss,held_out_loss", *(f"{a},{b:.0f},{c:.5f},{d:.5f}" for a, b, c, d in run.curve)]
    (folder / "loss.csv").write_text("\n".join(rows) + "\n")
    curve, figure = np.array(run.curve), Figure(figsize=(6, 3.2), layout="constrained")
    panel = figure.subplots()
    panel.plot(curve[:, 0], curve[:, 2], label="training")
    panel.plot(curve[:, 0], curve[:, 3], label="held out, averaged weights")
    panel.set(xlabel="step", ylabel="weighted loss", yscale="log", title=name)
    panel.legend()
    save(figure, folder / "loss.png")
    write_card(folder)


def augment(x: torch.Tensor, draw: np.random.Generator) -> torch.Tensor:
    """Flip or not and shift each image [B, C, 32, 32] by up to 2 pixels, edges repeated; colours change brightness."""
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


def classify(data: Images, epochs: int) -> Classifier:
    """Train a classifier: AdamW and a one-cycle learning rate. It is returned in evaluation mode."""
    torch.manual_seed(SEED)
    draw = np.random.default_rng(SEED)
    net = Classifier(data.train.shape[1], len(data.classes))
    per_epoch = len(data.train) // CLASSIFIER_BATCH
    optimiser = torch.optim.AdamW(net.parameters(), lr=CLASSIFIER_PEAK, weight_decay=0.05)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, CLASSIFIER_PEAK, total_steps=epochs * per_epoch)
    for epoch in range(epochs):
        order = draw.choice(len(data.train), (per_epoch, CLASSIFIER_BATCH), p=data.chances)
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


def export_classifier(folder: Path, net: Classifier, data: Images, epochs: int, minutes: float) -> None:
    """Write a classifier, and how often it is right."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(net.state_dict(), folder / "model.safetensors")
    facts = {
        "in_channels": data.train.shape[1], "classes": list(data.classes), "seed": SEED, "epochs": epochs,
        "minutes": round(minutes, 1), **judge(net, data.test, data.test_labels),
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(facts, indent=1) + "\n")
    write_card(folder)


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = runner.command("python -m benchmarks.models.train", __doc__)
    add = parser.add_argument
    add("name", choices=(*RECIPES, *CLASSIFIERS.values()))
    add("--data", required=True, help="the .npz file; see benchmarks/models/load.py")
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--minutes", type=float, help="of training in all, resumed runs included")
    budget.add_argument("--steps", type=int)
    budget.add_argument("--epochs", type=int, help="of a classifier")
    add("--threads", type=int, default=1)
    add("--start-from", type=Path, help="an exported folder to take the first weights from")
    add("--work", type=Path, default=Path("build/models"), help="where checkpoints are kept")
    add("--out", type=Path, default=WEIGHTS, help="the folder NAME is written into this")
    args = parser.parse_args(argv)
    if (args.name in RECIPES) == (args.epochs is not None):
        parser.error("a classifier takes --epochs, a model --steps or --minutes")
    torch.set_num_threads(args.threads)
    data, folder = load_data(args.name.split("-")[0], args.data), args.out / args.name
    args.work.mkdir(parents=True, exist_ok=True)
    if args.name in RECIPES:
        run, checkpoint = Run(args.name, data), args.work / f"{args.name}.pt"
        if checkpoint.exists():
            run.resume(checkpoint)
        elif args.start_from:
            run.start_from(args.start_from)
        train(run, checkpoint, args.steps, args.minutes)
        export(args.name, run, folder)
    else:
        begin = time.monotonic()
        net = classify(data, args.epochs)
        export_classifier(folder, net, data, args.epochs, (time.monotonic() - begin) / 60)
    print(f"written to {folder}")


if __name__ == "__main__":
    main()
