"""Small untrained networks, for tests of what runs a model; and a folder of networks from outside."""

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from benchmarks import targets
from benchmarks.models.load import Trained, unet
from benchmarks.runner import WEIGHTS

OUTSIDE = """
import numpy as np
import torch
NAMES = ["gauss-eps", "gauss-flow"]
SCALES = torch.tensor([2.0, 0.5])

class Net:
    def __init__(self, name):
        self.shape, self.kind, self.data_std = (2,), name.split("-")[1], 1.0
        self.alphas_cumprod = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)) if self.kind == "eps" else None
        self.sigma_min, self.sigma_max = 0.01, 158.0 if self.kind == "eps" else 1e3

    def denoise(self, x, sigma):
        return x * (SCALES**2 / (SCALES**2 + sigma**2))

def load(name):
    return Net(name)
"""
"""networks.py whose data are Gaussian, so that every sample is known exactly."""


def tiny(name: str) -> Trained:
    """Grey images and Stable Diffusion's noise; for "fashion-v" v-prediction, for "emoji-flow" colour and a flow."""
    torch.manual_seed(0)
    if name == "emoji-flow":
        channels, scheduler = 3, FlowMatchEulerDiscreteScheduler()
    else:
        kind = "v_prediction" if name == "fashion-v" else "epsilon"
        betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
        channels, scheduler = 1, DDIMScheduler(**betas, clip_sample=False, prediction_type=kind)
    net = unet(channels, 10, (8, 32)).eval().requires_grad_(False)
    return Trained(name, net, scheduler, tuple("0123456789"), 10, name.split("-")[0], WEIGHTS / name)


class Calls:
    """Makes the project's own networks tiny, and counts the images that they are evaluated on."""

    def __init__(self, patch: pytest.MonkeyPatch):
        self.images = 0

        def counted(name):
            trained = tiny(name)
            trained.unet.register_forward_hook(self._note)
            return trained

        patch.setattr(targets, "load", counted)

    def _note(self, module, args, output):
        self.images += len(args[0])
