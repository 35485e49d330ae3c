"""Further tiny pipelines: HunyuanDiT and LCM, which look for `generator`, and pipelines that are made of pipelines."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from pipelines import (
    _TEXT_WIDTH,
    Family,
    clip_encoder,
    clip_tokenizer,
    picture,
    stable_diffusion,
    t5_encoder,
    t5_tokenizer,
    unet,
    vae,
)

LINEAR = {"beta_schedule": "linear", "beta_start": 0.00085, "beta_end": 0.012}
SIZE = {"height": 16, "width": 16}


def hunyuan_dit() -> dict[str, Any]:
    """Components of HunyuanDiT."""
    transformer = diffusers.HunyuanDiT2DModel(
        sample_size=8, num_layers=2, patch_size=2, attention_head_dim=8, num_attention_heads=3, in_channels=4,
        cross_attention_dim=_TEXT_WIDTH, cross_attention_dim_t5=_TEXT_WIDTH, pooled_projection_dim=16, hidden_size=24,
        activation_fn="gelu-approximate",
    )  # fmt: skip
    return {
        "transformer": transformer,
        "vae": vae(),
        "text_encoder": clip_encoder(),
        "tokenizer": clip_tokenizer(),
        "text_encoder_2": t5_encoder(),
        "tokenizer_2": t5_tokenizer(),
        "scheduler": diffusers.DDPMScheduler(**LINEAR, clip_sample=False),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }


def latent_consistency() -> dict[str, Any]:
    """Components of an LCM: Stable Diffusion's, with guidance as an input of the U-Net."""
    parts = stable_diffusion()
    parts["unet"] = unet(cross_attention_dim=_TEXT_WIDTH, attention_head_dim=2, time_cond_proj_dim=32)
    parts["scheduler"] = diffusers.LCMScheduler(original_inference_steps=50)
    return parts


def qwen_image() -> dict[str, Any]:
    """Components of Qwen-Image, without its text encoder: the call brings embeddings."""
    transformer = diffusers.QwenImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, axes_dims_rope=(8, 4, 4),
    )  # fmt: skip
    autoencoder = diffusers.AutoencoderKLQwenImage(
        base_dim=8, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, latents_mean=[0.0] * 4, latents_std=[1.0] * 4
    )
    shift = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 0.9, "shift_terminal": 0.02}
    return {
        "transformer": transformer,
        "vae": autoencoder,
        "text_encoder": None,
        "tokenizer": None,
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(**shift),
    }


def visual_cloze() -> dict[str, Any]:
    """Components of VisualCloze: generation, then upsampling, both by FLUX's inpainting network."""
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=12, out_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=6,
        num_attention_heads=2, joint_attention_dim=_TEXT_WIDTH, pooled_projection_dim=_TEXT_WIDTH,
        axes_dims_rope=(2, 2, 2),
    )  # fmt: skip
    autoencoder = diffusers.AutoencoderKL(
        sample_size=32, block_out_channels=(4,), layers_per_block=1, latent_channels=1, norm_num_groups=1,
        use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.06, scaling_factor=1.5,
    )  # fmt: skip
    return {
        "transformer": transformer,
        "vae": autoencoder,
        "text_encoder": clip_encoder(),
        "tokenizer": clip_tokenizer(),
        "text_encoder_2": t5_encoder(),
        "tokenizer_2": t5_tokenizer(),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(),
        "resolution": 32,
    }


def kandinsky_combined() -> Any:
    """Kandinsky 2.2's combined pipeline, whose networks are never run: a prior and a decoder, a scheduler each."""
    networks = ("unet", "prior_prior", "prior_image_encoder", "prior_text_encoder", "prior_tokenizer")
    return diffusers.KandinskyV22CombinedPipeline(
        scheduler=diffusers.DDIMScheduler(**LINEAR, clip_sample=False),
        movq=diffusers.VQModel(block_out_channels=(8,), norm_num_groups=4),
        prior_scheduler=diffusers.UnCLIPScheduler(prediction_type="sample"),
        prior_image_processor=None,
        **dict.fromkeys(networks),
    )


_PROMPT = {"prompt": "a small fox", **SIZE}
HUNYUAN = Family("HunyuanDiTPipeline", hunyuan_dit, {**_PROMPT, "use_resolution_binning": False})
LCM = Family("LatentConsistencyModelPipeline", latent_consistency, {**_PROMPT, "original_inference_steps": 50}, "unet")
VISUAL_CLOZE = Family(
    "VisualClozePipeline",
    visual_cloze,
    {
        "task_prompt": "from a picture to a picture",
        "content_prompt": "a fox",
        "image": [[picture(32), picture(32, 1)], [picture(32, 2), None]],
        "max_sequence_length": 16,
        "upsampling_height": 32,
        "upsampling_width": 32,
        "upsampling_strength": 0.5,
    },
    told=1000.0,
)

_EMBEDDED = {
    "prompt_embeds": torch.randn(1, 7, 16, generator=torch.Generator().manual_seed(0)),
    "prompt_embeds_mask": torch.ones(1, 7, dtype=torch.long),
}
QWEN_IMAGE = Family("QwenImagePipeline", qwen_image, {**_EMBEDDED, **SIZE}, told=1000.0)
