"""The trained models and the feature networks, from the committed folders, offline.

>>> trained = load("fashion-eps")
>>> images = sample(trained, labels=torch.arange(10), steps=50, guidance=2.0)
>>> vectors = features("fashion")(images)
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, UNet2DModel
from safetensors.torch import load_file

from benchmarks.models.card import WEIGHTS
from benchmarks.models.networks import Classifier

MODELS = ("fashion-eps", "emoji-flow", "fashion-v")
CLASSIFIERS = {"fashion": "fashion-classifier", "emoji": "emoji-classifier"}


class Trained(NamedTuple):
    """A model as it was stored."""

    name: str
    unet: UNet2DModel
    scheduler: Any  # DDIMScheduler or FlowMatchEulerDiscreteScheduler: its config holds the noise schedule
    classes: tuple[str, ...]
    no_label: int  # the label that stands for none, in guidance
    data: str  # "fashion" or "emoji": which feature network fits
    folder: Path

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        return self.unet.config.in_channels, self.unet.config.sample_size, self.unet.config.sample_size

    def predict(self, x: torch.Tensor, t: torch.Tensor | float, labels: torch.Tensor, guidance: float) -> torch.Tensor:
        """The network's output [B, C, H, W] at timestep t (in 0..1000), guided: none + guidance (labelled - none).

        Guidance 1 calls the network once, any other value on a batch twice as large.
        """
        t = torch.as_tensor(t, dtype=torch.float32).expand(len(x))
        if guidance == 1.0:
            return self.unet(x, t, class_labels=labels).sample
        both = torch.cat([torch.full_like(labels, self.no_label), labels])
        out = self.unet(torch.cat([x, x]), torch.cat([t, t]), class_labels=both).sample
        none, labelled = out.chunk(2)
        return none + guidance * (labelled - none)


def load(name: str, folder: Path | None = None) -> Trained:
    """The model `name`, in evaluation mode, float32; `folder` where it is not the committed one."""
    if name not in MODELS and folder is None:
        raise ValueError(f"model {name!r} is not one of {', '.join(MODELS)}")
    folder = folder or WEIGHTS / name
    facts = json.loads((folder / "training.json").read_text())
    kind = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())["_class_name"]
    classes = {"DDIMScheduler": DDIMScheduler, "FlowMatchEulerDiscreteScheduler": FlowMatchEulerDiscreteScheduler}
    return Trained(
        name=name,
        unet=UNet2DModel.from_pretrained(folder / "unet", local_files_only=True).eval().requires_grad_(False),
        scheduler=classes[kind].from_pretrained(folder / "scheduler", local_files_only=True),
        classes=tuple(facts["classes"]),
        no_label=facts["no_label"],
        data=facts["data"],
        folder=folder,
    )


def classifier(data: str) -> Classifier:
    """The classifier of "fashion" or "emoji" images, in evaluation mode."""
    if data not in CLASSIFIERS:
        raise ValueError(f"no classifier of {data!r}, only of {', '.join(CLASSIFIERS)}")
    folder = WEIGHTS / CLASSIFIERS[data]
    config = json.loads((folder / "config.json").read_text())
    net = Classifier(config["in_channels"], len(config["classes"]))
    net.load_state_dict(load_file(folder / "model.safetensors"))
    return net.eval().requires_grad_(False)


def features(data: str, batch: int = 500) -> Callable[[torch.Tensor], torch.Tensor]:
    """Maps images [n, C, 32, 32] in [-1, 1] (clipped to it) to feature vectors [n, 96] of the penultimate layer."""
    net = classifier(data)
    return lambda images: torch.cat([net.features(part.clamp(-1, 1)) for part in images.split(batch)])


@torch.no_grad()
def sample(
    trained: Trained, labels: torch.Tensor, steps: int = 50, guidance: float = 2.0, seed: int = 0, solver: Any = None
) -> torch.Tensor:
    """[B, C, H, W] in [-1, 1], by DPM++ 2M for VP models and Euler for flows, or the diffusers scheduler `solver`."""
    if solver is None:
        solver = trained.scheduler
        if isinstance(solver, DDIMScheduler):
            solver = DPMSolverMultistepScheduler.from_config(solver.config, timestep_spacing="linspace")
    else:
        solver = type(solver).from_config(solver.config)
    solver.set_timesteps(steps)
    x = torch.randn(len(labels), *trained.shape, generator=torch.Generator().manual_seed(seed))
    for t in solver.timesteps:
        x = solver.step(trained.predict(x, t, labels, guidance), t, x).prev_sample
    return x.clamp(-1, 1)
