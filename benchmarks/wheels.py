"""Trained networks by others that ship inside PyPI wheels: fetched by name with pip, never copied into the project.

| name | wheel | data |
|---|---|---|
| hsc32, ztf32, lsst60 | galaxygrad 0.1.9 (arXiv 2401.07313; states no licence) | galaxies of three surveys |
| spectra21 | 21cmPSDenoiser 1.0.2 (MIT) | 21-cm power spectra given a noisy one, 32 x 16 |

The definitions are written anew from the published ones; weights are read without pickle. All four are trained on
continuous variance-preserving noise that reaches within 6 % of sigma/alpha where DDPM's linear schedule ends, and are
sampled on that schedule; beyond the trained range the network is told its end.
"""

from __future__ import annotations

import functools
import hashlib
import io
import itertools
import math
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

WHEELS = {"galaxygrad": "galaxygrad==0.1.9", "21cmpsdenoiser": "21cmPSDenoiser==1.0.2"}
GALAXIES = {"hsc32": ("hsc", 32), "ztf32": ("ZTF", 32), "lsst60": ("lsst", 60)}
SPECTRA = "spectra21"
NAMES = (*GALAXIES, SPECTRA)

CONDITIONS = 8
"""Noisy spectra that spectra21 is conditioned on, in turn: none ships, so they are made (`_conditions`)."""

BETA = (0.1, 20.0)  # of spectra21's noise; DDPM's linear schedule is a discretisation of it


def fetch(folder: Path) -> None:
    """Download the wheels that a folder does not have yet with pip, and say so."""
    wanted = [pin for name, pin in WHEELS.items() if not list(folder.glob(f"{name}-*.whl"))]
    if wanted:
        print(f"downloading {', '.join(wanted)} from the package index with pip into {folder}", flush=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", str(folder), *wanted]
        if subprocess.run(command, check=False).returncode:
            raise ValueError(f"pip could not download {', '.join(wanted)}; put the wheels into {folder} yourself")


def wheel_of(folder: Path, name: str) -> Path:
    """Find the wheel that holds a network."""
    package = "galaxygrad" if name in GALAXIES else "21cmpsdenoiser"
    found = sorted(folder.glob(f"{package}-*.whl"))
    if not found:
        raise ValueError(f"{folder} has no wheel of {WHEELS[package]}; `fetch` downloads it")
    return found[0]


def provenance(folder: Path, name: str) -> dict[str, str]:
    """Say where a network is from, and a digest of its wheel."""
    wheel = wheel_of(folder, name)
    source = (
        f"| {name} | {wheel.name} | galaxies |" if name in GALAXIES else f"| {name} | {wheel.name} | power spectra |"
    )
    return {"network": name, "sha256": hashlib.sha256(wheel.read_bytes()).hexdigest(), "source": source}


def load(name: str, folder: Path) -> Any:
    """Load a network from the wheels of a folder, with the attributes of `targets.FIELDS`."""
    wheel = zipfile.ZipFile(wheel_of(folder, name))
    return Galaxies(name, wheel) if name in GALAXIES else Spectra(wheel)


def ddpm_linear() -> np.ndarray:
    """[1000] products of alpha of DDPM's linear schedule."""
    return np.cumprod(1.0 - np.linspace(1e-4, 0.02, 1000))


class _Continuous:
    """What the four have in common: x0 from eps at any sigma/alpha within the trained range."""

    kind, data_std, labels, alphas_cumprod = "eps", 1.0, 0, ddpm_linear()
    sigma_min: float
    sigma_max: float

    def denoise(self, x: torch.Tensor, sigma: Any, label: torch.Tensor | None = None) -> torch.Tensor:
        """Predict the clean data of x = x0 + sigma noise."""
        sigma = torch.as_tensor(sigma, dtype=torch.float64).clamp(self.sigma_min, self.sigma_max)
        alpha = (1.0 + sigma**2).rsqrt()
        return x - sigma.to(x.dtype) * self._eps(x * alpha.to(x.dtype), sigma, label)

    def _eps(self, y: torch.Tensor, sigma: torch.Tensor, label: torch.Tensor | None) -> torch.Tensor:
        """The predicted noise in y = alpha x0 + sqrt(1 - alpha^2) noise."""
        raise NotImplementedError


# ---- galaxies: an MLP-Mixer that predicts the score, int beta = t up to 10


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


class Galaxies(_Continuous):
    """A score network of galaxies; alpha = exp(-t/2), t in (1e-3, 10)."""

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

    def _eps(self, y: torch.Tensor, sigma: torch.Tensor, label: torch.Tensor | None) -> torch.Tensor:
        score = self.module(y, torch.log1p(sigma**2) / self.t_max)
        return -score * (sigma * (1.0 + sigma**2).rsqrt()).to(y.dtype)


# ---- power spectra: a U-Net with attention that predicts eps, beta from .1 to 20


class _Standardised(nn.Conv2d):
    """Weights are centred and *multiplied* by their deviation, as the release does; the norm that follows hides it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        variance, mean = torch.var_mean(self.weight, (1, 2, 3), keepdim=True, correction=0)
        return functional.conv2d(x, (self.weight - mean) * (variance + 1e-5).sqrt(), self.bias, padding=1)


class _Convolved(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.proj, self.norm = _Standardised(before, after, 3), nn.GroupNorm(4, after)

    def forward(self, x: torch.Tensor, scale: torch.Tensor | float = 0.0, shift: torch.Tensor | float = 0.0) -> Any:
        return functional.silu(self.norm(self.proj(x)) * (1.0 + scale) + shift)


class _Residual(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(128, 2 * after))
        self.block1, self.block2 = _Convolved(before, after), _Convolved(after, after)
        self.res_conv = nn.Conv2d(before, after, 1) if before != after else nn.Identity()

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        scale, shift = self.mlp(time)[:, :, None, None].chunk(2, 1)
        return self.block2(self.block1(x, scale, shift)) + self.res_conv(x)


class _Attention(nn.Module):
    """Four heads of 32 over all places; `linear` mixes keys and values first (cost linear in the places)."""

    def __init__(self, channels: int, linear: bool = True) -> None:
        super().__init__()
        self.norm, self.to_qkv = nn.GroupNorm(1, channels), nn.Conv2d(channels, 384, 1, bias=False)
        out = nn.Conv2d(128, channels, 1)
        self.linear, self.to_out = linear, nn.Sequential(out, nn.GroupNorm(1, channels)) if linear else out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = (part.flatten(2).unflatten(1, (4, 32)) for part in self.to_qkv(self.norm(x)).chunk(3, 1))
        if self.linear:
            context = torch.einsum("bhdn,bhen->bhde", key.softmax(-1), value)
            mixed = torch.einsum("bhde,bhdn->bhen", context, query.softmax(-2) * 32**-0.5)
        else:
            weights = torch.einsum("bhdi,bhdj->bhij", query * 32**-0.5, key).softmax(-1)
            mixed = torch.einsum("bhij,bhdj->bhdi", weights, value)
        return x + self.to_out(mixed.flatten(1, 2).unflatten(2, x.shape[2:]))


class _Waves(nn.Module):
    """Sines and cosines of the time at 16 frequencies each."""

    def forward(self, time: torch.Tensor) -> torch.Tensor:
        angles = time[:, None] * torch.exp(-math.log(1e4) / 15 * torch.arange(16))
        return torch.cat([angles.sin(), angles.cos()], -1)


class _UNet(nn.Module):
    """Channels 32 to 256 at four sizes; named as the stored weights are."""

    def __init__(self) -> None:
        super().__init__()
        self.time_mlp = nn.Sequential(_Waves(), nn.Linear(32, 128), nn.GELU(), nn.Linear(128, 128))
        self.init_conv = nn.Conv2d(2, 16, 1)
        steps = [(16, 32), (32, 64), (64, 128), (128, 256)]
        self.downs = nn.ModuleList(
            nn.ModuleList([
                _Residual(a, a), _Residual(a, a), _Attention(a),
                nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(4 * a, b, 1)) if b < 256
                else nn.Conv2d(a, b, 3, padding=1),
            ])
            for a, b in steps
        )  # fmt: skip
        self.mid_block1, self.mid_attn, self.mid_block2 = (
            _Residual(256, 256),
            _Attention(256, False),
            _Residual(256, 256),
        )
        self.ups = nn.ModuleList(
            nn.ModuleList([
                _Residual(a + b, b), _Residual(a + b, b), _Attention(b),
                nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(b, a, 3, padding=1)) if a > 16
                else nn.Conv2d(b, a, 3, padding=1),
            ])
            for a, b in reversed(steps)
        )  # fmt: skip
        self.final_res_block, self.final_conv = _Residual(32, 32), nn.ConvTranspose2d(32, 1, 1)

    def forward(self, x: torch.Tensor, time: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        embedded = self.time_mlp(time)
        first = x = self.init_conv(torch.cat([x, condition], 1))
        kept = []
        for one, two, attend, shrink in self.downs:
            kept.append(x := one(x, embedded))
            kept.append(x := attend(two(x, embedded)))
            x = shrink(x)
        x = self.mid_block2(self.mid_attn(self.mid_block1(x, embedded)), embedded)
        for one, two, attend, grow in self.ups:
            x = one(torch.cat([x, kept.pop()], 1), embedded)
            x = grow(attend(two(torch.cat([x, kept.pop()], 1), embedded)))
        return self.final_conv(self.final_res_block(torch.cat([x, first], 1), embedded))


class Spectra(_Continuous):
    """A denoiser of power spectra; its "classes" are the conditions."""

    shape, labels = (1, 32, 16), CONDITIONS

    def __init__(self, wheel: zipfile.ZipFile) -> None:
        stored = torch.load(io.BytesIO(wheel.read("psdenoiser/denoiser_model.pt")), "cpu", weights_only=True)
        self.module = _UNet().eval().requires_grad_(False)
        names = {name: name.replace(".fn.fn.", ".").replace(".fn.norm", ".norm") for name in stored}
        self.module.load_state_dict({names[name]: value for name, value in stored.items()})
        low, step = BETA[0], BETA[1] - BETA[0]
        self.sigma_min, self.sigma_max = (
            math.sqrt(math.expm1(low * t + step * t * t / 2.0))
            for t in (1e-3, 1.0)  # theirs
        )

    def _eps(self, y: torch.Tensor, sigma: torch.Tensor, label: torch.Tensor | None) -> torch.Tensor:
        """`label` is a condition's number for each of y, by default in turn."""
        given = torch.arange(len(y)) % CONDITIONS if label is None else label
        return self._predict(y, sigma, self.conditions[given])

    def _predict(self, y: torch.Tensor, sigma: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        step = BETA[1] - BETA[0]
        # log(1 + sigma^2) = beta_0 t + step t^2/2
        time = (torch.sqrt(BETA[0] ** 2 + 2.0 * step * torch.log1p(sigma**2)) - BETA[0]) / step
        return self.module(y, (999.0 * time).float().expand(len(y)), condition)

    @functools.cached_property
    def conditions(self) -> torch.Tensor:
        """Smooth spectra, replaced four times by what the network makes of them: they then look like its data."""
        draw = torch.Generator().manual_seed(21)
        slopes = torch.randn(CONDITIONS, 1, 3, generator=draw)
        rows, columns = torch.linspace(-1, 1, 32)[:, None], torch.linspace(-1, 1, 16)
        found = (0.4 * (slopes[..., :1, None] + slopes[..., 1:2, None] * rows + slopes[..., 2:, None] * columns)).tanh()
        sigmas = torch.cat([torch.logspace(math.log10(self.sigma_max), -1.5, 12, dtype=torch.float64), torch.zeros(1)])
        with torch.no_grad():
            for _ in range(4):
                x = float(sigmas[0]) * torch.randn(CONDITIONS, *self.shape, generator=draw)
                for sigma, then in itertools.pairwise(sigmas):
                    alpha = (1.0 + sigma**2).rsqrt()
                    x = x + float(then - sigma) * self._predict((x * alpha).float(), sigma, found)
                found = x
        return found
