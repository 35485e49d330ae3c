"""The trained models and the classifiers that give features, from the committed folders, offline.

>>> trained = load("fashion-eps")
>>> images = sample(trained, labels=torch.arange(10), steps=50, guidance=2.0)
>>> vectors = features("fashion")(images)

The data sets are .npz files. Fashion-MNIST (Xiao et al. 2017, arXiv 1708.07747; MIT licence): `train_images` and
`test_images` [n, 28, 28] uint8, `train_labels` and `test_labels` [n]. Emoji (Google Noto, Apache-2.0): `images` [n, 64,
64, 3] uint8 on white, `labels` [n] into `categories`, and `names` of files in the npm package
emoji-datasource-google.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, UNet2DModel
from safetensors.torch import load_file
from torch import nn

from benchmarks.runner import WEIGHTS

SIZE = 32
FASHION = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
VARIANT = re.compile(r"-(1f3f[b-f]|fe0f)")  # skin tones, and the mark that asks for a picture
MODELS = ("fashion-eps", "emoji-flow", "fashion-v")
CLASSIFIERS = {"fashion": "fashion-classifier", "emoji": "emoji-classifier"}
ATTEND_AT = 8  # attention where the feature map is this wide or narrower


def unet(in_channels: int, classes: int, channels: tuple[int, ...]) -> UNet2DModel:
    """Build a U-Net for 32 x 32 images, [B, C, 32, 32] to [B, C, 32, 32].

    Label `classes`, one past the last, stands for "no label" (classifier-free guidance, Ho & Salimans 2022).
    """
    wide = [SIZE >> level > ATTEND_AT for level in range(len(channels))]
    return UNet2DModel(
        sample_size=SIZE,
        in_channels=in_channels,
        out_channels=in_channels,
        block_out_channels=channels,
        layers_per_block=1,
        down_block_types=tuple("DownBlock2D" if w else "AttnDownBlock2D" for w in wide),
        up_block_types=tuple("UpBlock2D" if w else "AttnUpBlock2D" for w in reversed(wide)),
        norm_num_groups=8,
        attention_head_dim=32,
        time_embedding_dim=128,
        num_class_embeds=classes + 1,
    )


class Classifier(nn.Module):
    """Four convolutions, a global mean and two dense layers; `features` is the penultimate layer, [B, 96]."""

    def __init__(self, in_channels: int, classes: int):
        super().__init__()
        layers: list[nn.Module] = []
        before = in_channels
        for after, stride in ((32, 1), (64, 2), (96, 2), (128, 2)):
            layers += [nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
            before = after
        self.body = nn.Sequential(*layers)
        self.embed = nn.Linear(before, 96)
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(96, classes)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """[B, C, 32, 32] in [-1, 1] to [B, 96], before the last activation and layer."""
        return self.embed(self.body(x).mean((2, 3)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, C, 32, 32] in [-1, 1] to logits [B, classes]."""
        return self.head(self.dropout(torch.relu(self.features(x))))


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
        """Evaluate the network at timestep t (in 0..1000), guided: none + guidance (labelled - none); [B, C, H, W].

        Guidance 1 calls the network once, any other value on a batch twice as large.
        """
        t = torch.as_tensor(t, dtype=torch.float32).expand(len(x))
        if guidance == 1.0:
            return self.unet(x, t, class_labels=labels).sample
        both = torch.cat([torch.full_like(labels, self.no_label), labels])
        none, labelled = self.unet(torch.cat([x, x]), torch.cat([t, t]), class_labels=both).sample.chunk(2)
        return none + guidance * (labelled - none)

    def denoise(self, x: torch.Tensor, level: Any, labels: torch.Tensor, guidance: float) -> torch.Tensor:
        """Predict the clean data of x [B, C, H, W] at a `bridge.Level`.

        Its timestep, alpha and sigma may be 0-dim tensors: the result is differentiable in x and in all three
        (`UNet2DModel` embeds a float timestep as it is).
        """
        output = self.predict(x, level.timestep, labels, guidance)
        kind = self.scheduler.config.get("prediction_type", "flow")
        if kind == "epsilon":
            return (x - level.sigma * output) / level.alpha
        return (level.alpha * x if kind == "v_prediction" else x) - level.sigma * output


def load(name: str, folder: Path | None = None) -> Trained:
    """Load the model `name` in evaluation mode, float32; `folder` where it is not the committed one."""
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
    """Load the classifier of "fashion" or "emoji" images, in evaluation mode."""
    if data not in CLASSIFIERS:
        raise ValueError(f"no classifier of {data!r}, only of {', '.join(CLASSIFIERS)}")
    folder = WEIGHTS / CLASSIFIERS[data]
    config = json.loads((folder / "config.json").read_text())
    net = Classifier(config["in_channels"], len(config["classes"]))
    net.load_state_dict(load_file(folder / "model.safetensors"))
    return net.eval().requires_grad_(False)


def features(data: str, batch: int = 500) -> Callable[[torch.Tensor], torch.Tensor]:
    """Make the map of images [n, C, 32, 32] in [-1, 1] (clipped to it) to features [n, 96] of the penultimate layer."""
    net = classifier(data)
    return lambda images: torch.cat([net.features(part.clamp(-1, 1)) for part in images.split(batch)])


@torch.no_grad()
def sample(
    trained: Trained, labels: torch.Tensor, steps: int = 50, guidance: float = 2.0, seed: int = 0, solver: Any = None
) -> torch.Tensor:
    """Sample [B, C, H, W] in [-1, 1]: DPM++ 2M for VP models, Euler for flows, or the diffusers scheduler `solver`."""
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


# ---- data sets


class Images(NamedTuple):
    """A labelled set, split for training and judging."""

    train: np.ndarray  # [n, C, 32, 32] uint8
    train_labels: np.ndarray  # [n] int64
    test: np.ndarray  # [m, C, 32, 32] uint8
    test_labels: np.ndarray  # [m] int64
    classes: tuple[str, ...]
    chances: np.ndarray  # [n] with which training draws each image; skin-tone variants share their character's


def load_data(name: str, path: str | Path) -> Images:
    """The data set `name`, "fashion" or "emoji", from `path`; ValueError where it is not as above."""
    readers = {"fashion": _fashion, "emoji": _emoji}
    if name not in readers:
        raise ValueError(f"data set {name!r} is not one of {', '.join(readers)}")
    if not Path(path).exists():
        raise ValueError(f"{path} does not exist: give an .npz file as benchmarks/models/load.py says")
    return readers[name](path)


def to_unit(images: np.ndarray) -> np.ndarray:
    """Uint8 to float32 in [-1, 1]."""
    return images.astype(np.float32) / 127.5 - 1.0


def _fashion(path: str | Path) -> Images:
    keys = ("train_images", "train_labels", "test_images", "test_labels")
    arrays = _npz(path, keys)
    if arrays[0].shape[1:] != (28, 28):
        raise ValueError(f"{path} holds images of shape {arrays[0].shape}, not [n, 28, 28]")
    train, test = (np.pad(images, ((0, 0), (2, 2), (2, 2)))[:, None] for images in (arrays[0], arrays[2]))
    train_labels, test_labels = (labels.astype(np.int64) for labels in (arrays[1], arrays[3]))
    return Images(train, train_labels, test, test_labels, FASHION, np.full(len(train), 1 / len(train)))


def _emoji(path: str | Path) -> Images:
    images, labels, categories, names = _npz(path, ("images", "labels", "categories", "names"))
    if images.ndim != 4 or images.shape[1:] != (64, 64, 3):
        raise ValueError(f"{path} holds images of shape {images.shape}, not [n, 64, 64, 3]")
    small = images.reshape(-1, SIZE, 2, SIZE, 2, 3).astype(np.float32).mean((2, 4))  # 64 to 32: the mean of 2 x 2
    small = np.round(small).astype(np.uint8).transpose(0, 3, 1, 2)
    bases = np.array([VARIANT.sub("", str(name)) for name in names])
    unique = np.unique(bases)
    held_out = np.random.default_rng(0).permutation(len(unique))[: len(unique) // 10]
    test = np.isin(bases, unique[held_out])
    labels = labels.astype(np.int64)
    _, which, variants = np.unique(bases[~test], return_inverse=True, return_counts=True)
    chances = 1 / variants[which] / len(variants)
    return Images(small[~test], labels[~test], small[test], labels[test], tuple(str(c) for c in categories), chances)


def _npz(path: str | Path, keys: tuple[str, ...]) -> list[np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not an .npz file: {error}") from error
    if missing := [key for key in keys if key not in arrays]:
        raise ValueError(f"{path} lacks the arrays {', '.join(missing)}; it holds {', '.join(arrays)}")
    return [arrays[key] for key in keys]
