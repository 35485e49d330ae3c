"""Write a checkpoint that ComfyUI takes for SD 1.5: a UNet of one level, a tiny VAE, and random weights.

    PYTHONPATH=COMFYUI PYTHON tests/bridge/comfyui_checkpoint.py OUTPUT.safetensors

COMFYUI is a checkout, PYTHON an interpreter with its requirements. The text encoder has its full size, which is most of
the 330 MB; what it and the VAE make of random weights is noise, but a number everywhere.
"""

from __future__ import annotations

import sys

from comfy.cli_args import args

args.cpu = True  # before any other module of ComfyUI looks for a GPU

import comfy.ldm.modules.diffusionmodules.openaimodel as unets  # noqa: E402
import comfy.sd1_clip  # noqa: E402
import comfy.taesd.taesd  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "num_res_blocks": [1],
    "channel_mult": (1,),
    "num_heads": 8,
    "use_spatial_transformer": True,
    "transformer_depth": [1],
    "transformer_depth_output": [1, 1],
    "transformer_depth_middle": 1,
    "context_dim": 768,
    "legacy": False,
}
SCALE = 0.02


def main(output: str) -> None:
    """Write it."""
    torch.manual_seed(0)
    parts = {
        "model.diffusion_model.": unets.UNetModel(**UNET),
        "first_stage_model.": comfy.taesd.taesd.TAESD(),
        "cond_stage_model.": comfy.sd1_clip.SDClipModel(device="cpu", dtype=torch.float16),
    }
    tensors = {}
    for prefix, module in parts.items():
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                norm = name.endswith("weight") and value.ndim == 1
                value = torch.ones_like(value) if norm or value.ndim == 0 else SCALE * torch.randn(value.shape)
            tensors[prefix + name] = value.to(torch.float16).contiguous()
    save_file(tensors, output)


if __name__ == "__main__":
    main(sys.argv[1])
