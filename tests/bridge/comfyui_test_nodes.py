"""Nodes for a ComfyUI that is under test: models with a tiny network and ComfyUI's own noise levels, and a recorder.

`comfyui_real.py` puts this file into the server's `custom_nodes`; nothing else imports it.
"""

from __future__ import annotations

from typing import Any

import comfy.model_base
import comfy.model_patcher
import comfy.supported_models
import torch

_KINDS = {
    **{"SD15": "EPS", "SDXL": "EPS", "PixArtAlpha": "EPS", "SVD_img2vid": "V_PREDICTION_EDM"},
    **{"SD3": "FLOW", "Flux": "FLUX", "FluxSchnell": "FLOW", "HiDreamO1": "FLOW", "CogVideoX_T2V": "V_PREDICTION_DDPM"},
    "WAN21_T2V": "FLOW",
}
CONFIGS = tuple(name for name in _KINDS if hasattr(comfy.supported_models, name))
_SEEN: list[float] = []


class Tiny(torch.nn.Module):
    """A network of one layer, with the signature ComfyUI calls."""

    dtype = torch.float32

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(channels, channels)

    def forward(self, x: torch.Tensor, timesteps: torch.Tensor, **_: Any) -> torch.Tensor:
        assert x.std() < 1000.0, f"the network's input has standard deviation {float(x.std()):.3g}"
        return torch.tanh(2 * self.layer(x.movedim(1, -1))).movedim(-1, 1)  # pictures and videos


class Recorded(comfy.model_base.BaseModel):
    """ComfyUI's model, which also notes the sigma of each evaluation."""

    def _apply_model(self, x: torch.Tensor, t: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        _SEEN.append(float(t[0]))
        return super()._apply_model(x, t, *args, **kwargs)


class TestModel:
    RETURN_TYPES = ("MODEL", "CONDITIONING")
    FUNCTION = "build"
    CATEGORY = "testing"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"config": (list(CONFIGS),)}}

    def build(self, config: str) -> tuple[Any, Any]:
        settings = getattr(comfy.supported_models, config)({"disable_unet_model_creation": True})
        kind = comfy.model_base.ModelType[_KINDS[config]]
        torch.manual_seed(0)
        model = Recorded(settings, kind, device=torch.device("cpu"))
        model.diffusion_model = Tiny(settings.latent_format.latent_channels)
        cpu = torch.device("cpu")
        return comfy.model_patcher.ModelPatcher(model, cpu, cpu), [[torch.zeros(1, 1, 8), {}]]


class TestWatch:
    """A MODEL that notes the sigma of each step in which it is evaluated."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "watch"
    CATEGORY = "testing"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"model": ("MODEL",)}}

    def watch(self, model: Any) -> tuple[Any]:
        def evaluate(apply: Any, given: dict[str, Any]) -> torch.Tensor:
            sigma = float(given["timestep"][0])
            if not _SEEN or _SEEN[-1] != sigma:  # with and without the prompt, in one batch or in two
                _SEEN.append(sigma)
            return apply(given["input"], given["timestep"], **given["c"])

        watched = model.clone()
        watched.set_model_unet_function_wrapper(evaluate)
        return (watched,)


class TestRecord:
    RETURN_TYPES = ()
    FUNCTION = "record"
    CATEGORY = "testing"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"sigmas": ("SIGMAS",)}, "optional": {"latent": ("LATENT",)}}

    def record(self, sigmas: torch.Tensor, latent: dict[str, torch.Tensor] | None = None) -> dict[str, Any]:
        seen = list(_SEEN)
        _SEEN.clear()
        samples = torch.zeros(0) if latent is None else latent["samples"].flatten()
        shown = {"finite": [bool(torch.isfinite(samples).all())], "latent": samples[:64].tolist()}
        return {"ui": {"sigmas": [float(x) for x in sigmas], "dtype": [str(sigmas.dtype)], "seen": seen, **shown}}


NODE_CLASS_MAPPINGS = {"HsoTestModel": TestModel, "HsoTestRecord": TestRecord, "HsoTestWatch": TestWatch}
