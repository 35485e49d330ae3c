"""Trained networks by others that ship inside a PyPI wheel: fetched by name with pip, never copied into the project.

hsc32 and ztf32 score galaxies of two surveys: galaxygrad 0.1.9 (arXiv 2401.07313; states no licence). The definition is
written anew from the published one; weights are read without pickle. Both are trained on continuous variance-preserving
noise that reaches within 6 % of sigma/alpha where DDPM's linear schedule ends, and are sampled on that schedule; beyond
the trained range the network is told its end.
"""

from __future__ import annotations

import hashlib
import io
import math
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

WHEEL = "galaxygrad==0.1.9"
GALAXIES = {"hsc32": ("hsc", 32), "ztf32": ("ZTF", 32)}


def fetch(folder: Path) -> None:
    """Download the wheel with pip where a folder does not have it yet, and say so."""
    if not list(folder.glob("galaxygrad-*.whl")):
        print(f"downloading {WHEEL} from the package index with pip into {folder}", flush=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", str(folder), WHEEL]
        if subprocess.run(command, check=False).returncode:
            raise ValueError(f"pip could not download {WHEEL}; put the wheel into {folder} yourself")


def wheel_of(folder: Path) -> Path:
    """Find the wheel that holds the networks."""
    if not (found := sorted(folder.glob("galaxygrad-*.whl"))):
        raise ValueError(f"{folder} has no wheel of {WHEEL}; `fetch` downloads it")
    return found[0]


def provenance(folder: Path, name: str) -> dict[str, str]:
    """Say where a network is from, and a digest of its wheel."""
    wheel = wheel_of(folder)
    source = f"| {name} | {wheel.name} | galaxies |"
    return {"network": name, "sha256": hashlib.sha256(wheel.read_bytes()).hexdigest(), "source": source}


def load(name: str, folder: Path) -> Any:
    """Load a network from the wheel of a folder, with the attributes of `targets.FIELDS`."""
    return Galaxies(name, zipfile.ZipFile(wheel_of(folder)))


class _Mixing(nn.Module):
    """A block: mix patches, then channels, each over a normalised copy."""

    def __init__(self, channels: int, patches: int, hidden: int) -> None:
        super().__init__()

        def layers(n: int) -> nn.Sequential:
            return nn.Sequential(nn.Linear(n, hidden), nn.ReLU(), nn.Linear(hidden, n))

        self.patches, self.channels = layers(patches), layers(channels)
        self.before, self.between = nn.LayerNorm((channels, patches)), nn.LayerNorm((patches, channels))

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        z = z + self.patches(self.before(z))
        z = z.transpose(1, 2)
        return (z + self.channels(self.between(z))).transpose(1, 2)


class _Mixer(nn.Module):
    """Patches of 4 x 4 pixels and the time, mixed in four blocks; parameters in the order in which they are stored."""

    def __init__(self, size: int, channels: int = 64, hidden: int = 512) -> None:
        super().__init__()
        patches = (size // 4) ** 2
        self.enter = nn.Conv2d(2, channels, 4, stride=4)
        self.leave = nn.ConvTranspose2d(channels, 1, 4, stride=4)
        self.blocks = nn.ModuleList(_Mixing(channels, patches, hidden) for _ in range(4))
        self.norm = nn.LayerNorm((channels, patches))

    def forward(self, y: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        z = self.enter(torch.cat([y, time.to(y.dtype).expand_as(y)], 1))
        height, width = z.shape[2:]
        z = z.flatten(2)
        for block in self.blocks:
            z = block(z)
        return self.leave(self.norm(z).unflatten(2, (height, width)))


class Galaxies:
    """An MLP-Mixer that predicts the score of galaxies; alpha = exp(-t/2), t in (1e-3, 10)."""

    kind, data_std = "eps", 1.0
    alphas_cumprod = np.cumprod(1.0 - np.linspace(1e-4, 0.02, 1000))  # DDPM's linear schedule
    sigma_min, sigma_max, t_max = math.sqrt(math.expm1(1e-3)), math.sqrt(math.expm1(10.0)), 10.0

    def __init__(self, name: str, wheel: zipfile.ZipFile) -> None:
        survey, size = GALAXIES[name]
        self.shape = (1, size, size)
        stream = io.BytesIO(wheel.read(f"galaxygrad/eqx_{survey}_ScoreNet{size}.eqx"))
        self.module = _Mixer(size).eval().requires_grad_(False)
        for path, parameter in self.module.named_parameters():  # one array after the other
            stored = torch.from_numpy(np.load(stream, allow_pickle=False))
            if path == "leave.weight":  # equinox has [out, in, ...] and correlates with the dilated input
                stored = stored.flip(2, 3).transpose(0, 1)
            parameter.copy_(stored.reshape(parameter.shape))

    def denoise(self, x: torch.Tensor, sigma: Any) -> torch.Tensor:
        """Predict the clean data of x = x0 + sigma noise."""
        sigma = torch.as_tensor(sigma, dtype=torch.float64).clamp(self.sigma_min, self.sigma_max)
        alpha = (1.0 + sigma**2).rsqrt()
        score = self.module(y := x * alpha.to(x.dtype), torch.log1p(sigma**2) / self.t_max)
        return x + sigma.to(x.dtype) * (score * (sigma * alpha).to(y.dtype))
