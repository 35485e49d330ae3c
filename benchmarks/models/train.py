"""Trains one of the benchmark models and writes it in diffusers' folder format.

    python -m benchmarks.models.train fashion-eps --data fashion_mnist.npz --minutes 30
    python -m benchmarks.models.train emoji-flow --data emoji64.npz --steps 8000 --threads 4

The run is kept in `--work` and can be stopped at any time: the same command goes on from the last checkpoint. The
learning rate's decay follows the share of the budget that is spent, in steps or in minutes. What is written are the
averaged weights (EMA), float32. A second run with the same steps and threads gives the same weights on the same
machine; one that was stopped and resumed draws other noise after the resumption.
"""

from __future__ import annotations

import argparse
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

from benchmarks.models.card import write_card
from benchmarks.models.data import Images, load_data, to_unit
from benchmarks.models.load import unet
from benchmarks.plots import save
from benchmarks.runner import WEIGHTS

SEED, SECONDS_BETWEEN_CHECKPOINTS = 0, 120
BATCH, PEAK, WARMUP = 32, 1e-3, 200  # images a step, the learning rate after warm-up, steps of warm-up
DROPPED = 0.1  # share of labels replaced by "no label", as in Ho & Salimans 2022
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


def runs_of(folder: Path) -> list[dict[str, Any]]:
    """List the runs, oldest first, that made the weights of an exported folder."""
    facts = json.loads((folder / "training.json").read_text())
    held_out = float((folder / "loss.csv").read_text().split()[-1].split(",")[-1])
    own = {"name": facts["name"], "steps": facts["steps"], "minutes": facts["minutes"], "held_out_loss": held_out}
    return [*facts["started_from"], own]


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


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Train one of the benchmark models.")
    parser.add_argument("name", choices=RECIPES)
    parser.add_argument("--data", required=True, help="the .npz file or the folder; see benchmarks/models/data.py")
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--minutes", type=float, help="of training in all, resumed runs included")
    budget.add_argument("--steps", type=int)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--start-from", type=Path, help="an exported folder to take the first weights from")
    parser.add_argument("--work", type=Path, default=Path("build/models"), help="where checkpoints are kept")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="the folder NAME is written into this")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    run = Run(args.name, load_data(RECIPES[args.name].data, args.data))
    args.work.mkdir(parents=True, exist_ok=True)
    checkpoint = args.work / f"{args.name}.pt"
    if checkpoint.exists():
        run.resume(checkpoint)
    elif args.start_from:
        weights = UNet2DModel.from_pretrained(args.start_from, subfolder="unet").state_dict()
        run.net.load_state_dict(weights)
        run.average.load_state_dict(weights)
        run.started_from = runs_of(args.start_from)
    train(run, checkpoint, args.steps, args.minutes)
    export(args.name, run, args.out / args.name)
    print(f"written to {args.out / args.name}")


if __name__ == "__main__":
    main()
