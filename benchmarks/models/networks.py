"""The networks: a small class-conditional U-Net of diffusers' class, and a classifier that gives features."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import UNet2DModel
from torch import nn

from benchmarks.models.data import SIZE

ATTEND_AT = 8  # attention where the feature map is this wide or narrower


def unet(in_channels: int, classes: int, channels: tuple[int, ...], **options: Any) -> UNet2DModel:
    """A U-Net for 32 x 32 images, [B, C, 32, 32] to [B, C, 32, 32].

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
        **options,
    )


class Classifier(nn.Module):
    """Four convolutions, a global mean and two dense layers; `features` is the penultimate layer, [B, 96]."""

    def __init__(self, in_channels: int, classes: int, width: int = 32, dims: int = 96, dropout: float = 0.2):
        super().__init__()
        layers: list[nn.Module] = []
        before = in_channels
        for after, stride in ((width, 1), (2 * width, 2), (3 * width, 2), (4 * width, 2)):
            layers += [nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
            before = after
        self.body = nn.Sequential(*layers)
        self.embed = nn.Linear(before, dims)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(dims, classes)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """[B, C, 32, 32] in [-1, 1] to [B, dims], before the last activation and layer."""
        return self.embed(self.body(x).mean((2, 3)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, C, 32, 32] in [-1, 1] to logits [B, classes]."""
        return self.head(self.dropout(torch.relu(self.features(x))))
