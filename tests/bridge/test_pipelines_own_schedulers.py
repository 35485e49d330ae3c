"""Pipelines whose schedulers are theirs alone: Mochi runs time backwards, CogVideoX passes two timesteps, Stable
Cascade a ratio for each sample."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from mixture import random_schedule
from pipelines import _SHORT, clip_encoder, clip_tokenizer, t5_encoder, t5_tokenizer
from transformers import CLIPTextModelWithProjection

from bridge import noise_schedule_of, with_schedule

NFE = 5
_PROMPT = {"prompt": "a small fox", "height": 16, "width": 16, "output_type": "latent"}


def mochi() -> Any:
    transformer = diffusers.MochiTransformer3DModel(
        patch_size=2, num_attention_heads=2, attention_head_dim=8, num_layers=2, pooled_projection_dim=16,
        in_channels=12, out_channels=None, text_embed_dim=32, time_embed_dim=4, max_sequence_length=16,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLMochi(
        latent_channels=12, out_channels=3, encoder_block_out_channels=(32, 32, 32, 32),
        decoder_block_out_channels=(32, 32, 32, 32), layers_per_block=(1, 1, 1, 1, 1),
    )  # fmt: skip
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    return diffusers.MochiPipeline(scheduler, vae, t5_encoder(), t5_tokenizer(), transformer)


def cogvideox() -> Any:
    transformer = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=4, attention_head_dim=8, in_channels=4, out_channels=4, time_embed_dim=2,
        text_embed_dim=32, num_layers=1, sample_width=2, sample_height=2, sample_frames=9, patch_size=2,
        temporal_compression_ratio=4, max_text_seq_length=16,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=2,
        down_block_types=("CogVideoXDownBlock3D",) * 4, up_block_types=("CogVideoXUpBlock3D",) * 4,
    )  # fmt: skip
    scheduler = diffusers.CogVideoXDPMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True)
    return diffusers.CogVideoXPipeline(t5_tokenizer(), t5_encoder(), vae, transformer, scheduler)


def stable_cascade_prior() -> Any:
    prior = diffusers.StableCascadeUNet(
        conditioning_dim=128, block_out_channels=(8, 8), num_attention_heads=(2, 2), down_num_layers_per_block=(1, 1),
        up_num_layers_per_block=(1, 1), switch_level=(False,), clip_image_in_channels=768, clip_text_in_channels=32,
        clip_text_pooled_in_channels=32, dropout=(0.1, 0.1), in_channels=4, out_channels=4, self_attn=True,
    )  # fmt: skip
    text_encoder = clip_encoder(CLIPTextModelWithProjection)
    return diffusers.StableCascadePriorPipeline(
        clip_tokenizer(), text_encoder, prior.eval(), diffusers.DDPMWuerstchenScheduler()
    )


def run(pipe: Any, network: str, call: dict[str, Any], seed: int = 0) -> tuple[np.ndarray, list[float]]:
    """The latents, and what the network was told, once a step."""
    seen: list[float] = []

    def hook(module: Any, args: Any, kwargs: Any) -> None:
        given = kwargs.get("timestep", kwargs.get("timestep_ratio"))
        seen.append(float(given.flatten()[0]))

    handle = getattr(pipe, network).register_forward_pre_hook(hook, with_kwargs=True)
    output = pipe(num_inference_steps=NFE, generator=torch.Generator().manual_seed(seed), **call)
    handle.remove()
    return np.asarray(output[0]), seen


@pytest.mark.filterwarnings("ignore:In CPU autocast:UserWarning")  # Mochi asks for it whatever its dtype
@pytest.mark.filterwarnings("ignore:sigmas .* differ:UserWarning")  # and proposes a grid of its own
@pytest.mark.parametrize("end", ["clean", "t_eps"])
@pytest.mark.parametrize(
    ("build", "network", "call", "told"),
    [
        (
            mochi,
            "transformer",
            {**_PROMPT, **_SHORT, "num_frames": 7},
            lambda s: 1000.0 * (1.0 - s.sampler_sigmas()[:-1]),
        ),
        (cogvideox, "transformer", {**_PROMPT, **_SHORT, "num_frames": 8}, lambda s: s.timesteps),
        (
            stable_cascade_prior,
            "prior",
            {"prompt": "a small fox", "height": 128, "width": 128, "output_type": "np"},
            lambda s: s.timesteps,
        ),
    ],
    ids=["mochi", "cogvideox", "stable-cascade"],
)
def test_the_network_is_told_the_schedules_levels(
    build: Any, network: str, call: dict[str, Any], told: Any, end: str
) -> None:
    torch.manual_seed(0)
    pipe = build()
    pipe.set_progress_bar_config(disable=True)
    default, _ = run(pipe, network, call)
    schedule = random_schedule(noise_schedule_of(pipe), NFE, end, seed=1)
    pipe.scheduler = with_schedule(pipe.scheduler, schedule)
    output, seen = run(pipe, network, call)
    np.testing.assert_allclose(seen, told(schedule), rtol=1e-6, atol=1e-4 if max(seen) > 2 else 1e-6)
    assert np.isfinite(output).all() and output.shape == default.shape
    np.testing.assert_array_equal(output, run(pipe, network, call)[0])
    assert not np.array_equal(output, run(pipe, network, call, seed=1)[0])
    assert np.abs(output - default).max() > 1e-3
