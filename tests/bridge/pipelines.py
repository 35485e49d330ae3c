"""Tiny pipelines of each family with random weights, built here: no downloads, and a step takes milliseconds."""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import diffusers
import numpy as np
import torch
from cases import FLOW, SD
from PIL import Image
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
    UMT5EncoderModel,
)

LINEAR = {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02}
SD_CONFIG = {**SD, "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}  # Stable Diffusion 1.5's
FLUX_CONFIG = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}
_LETTERS = string.ascii_lowercase + string.digits + ".,!-'"
_TEXT_WIDTH = 32


def clip_tokenizer() -> CLIPTokenizer:
    """Letters alone and at a word's end, as CLIP's byte pairs would be without a merge."""
    words = [*_LETTERS, *(f"{letter}</w>" for letter in _LETTERS), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=77)


def t5_tokenizer() -> T5Tokenizer:
    """Letters, each as good as any other."""
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0), *((x, -2.0) for x in _LETTERS)]
    return T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=512)


def clip_encoder(cls: Any = CLIPTextModel) -> Any:
    """A CLIP text model of width 32."""
    tokens = len(clip_tokenizer())
    ids = {"bos_token_id": tokens - 2, "eos_token_id": tokens - 1, "pad_token_id": tokens - 1}
    sizes = {"hidden_size": _TEXT_WIDTH, "intermediate_size": 37, "projection_dim": _TEXT_WIDTH}
    layers = {"num_attention_heads": 4, "num_hidden_layers": 2}
    return cls(CLIPTextConfig(vocab_size=tokens, **ids, **sizes, **layers)).eval()


def t5_encoder(cls: Any = T5EncoderModel, width: int = _TEXT_WIDTH) -> Any:
    """A T5 encoder."""
    sizes = {"d_model": width, "d_kv": 8, "d_ff": 37, "num_heads": 4, "num_layers": 1}
    return cls(T5Config(vocab_size=len(t5_tokenizer()), **sizes)).eval()


def texts(*encoders: Any) -> dict[str, Any]:
    """Text encoders, each with its tokenizer, by the names that pipelines have for them."""
    found: dict[str, Any] = {}
    for i, encoder in enumerate(encoders):
        ending = f"_{i + 1}" if i else ""
        clip = isinstance(encoder, (CLIPTextModel, CLIPTextModelWithProjection))
        found |= {f"text_encoder{ending}": encoder, f"tokenizer{ending}": clip_tokenizer() if clip else t5_tokenizer()}
    return found


def vae(channels: int = 4, **config: Any) -> Any:
    """An image autoencoder that halves each side."""
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, sample_size=32, norm_num_groups=4,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=channels, **config,
    )  # fmt: skip


def unet(**config: Any) -> Any:
    """A conditional U-Net of 8 x 8 latents."""
    return diffusers.UNet2DConditionModel(
        block_out_channels=(8, 16), layers_per_block=1, sample_size=8, norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        **config,
    )  # fmt: skip


_NO_CHECKER = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def stable_diffusion(in_channels: int = 4) -> dict[str, Any]:
    """Components of StableDiffusion."""
    return {
        "unet": unet(cross_attention_dim=_TEXT_WIDTH, attention_head_dim=2, in_channels=in_channels),
        "vae": vae(),
        **texts(clip_encoder()),
        "scheduler": diffusers.DDIMScheduler(**SD_CONFIG),
        **_NO_CHECKER,
    }


def inpainting_model() -> dict[str, Any]:
    """Components of the model that was made for inpainting: mask and image are inputs of its U-Net."""
    return stable_diffusion(in_channels=9)


def stable_diffusion_xl() -> dict[str, Any]:
    """Components of StableDiffusionXL."""
    sizes = {"cross_attention_dim": 2 * _TEXT_WIDTH, "attention_head_dim": (2, 4), "use_linear_projection": True}
    added = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}
    return {
        "unet": unet(**sizes, **added, projection_class_embeddings_input_dim=_TEXT_WIDTH + 6 * 8),
        "vae": vae(),
        **texts(clip_encoder(), clip_encoder(CLIPTextModelWithProjection)),
        "scheduler": diffusers.EulerDiscreteScheduler(**SD, steps_offset=1),
    }


def pixart() -> dict[str, Any]:
    """Components of PixArtAlpha."""
    transformer = diffusers.PixArtTransformer2DModel(
        sample_size=8, num_layers=2, patch_size=2, attention_head_dim=8, num_attention_heads=2, cross_attention_dim=16,
        caption_channels=_TEXT_WIDTH, in_channels=4, out_channels=8, use_additional_conditions=False,
    )  # fmt: skip
    scheduler = diffusers.DPMSolverMultistepScheduler(**LINEAR, thresholding=False)
    return {"transformer": transformer, "vae": vae(), "scheduler": scheduler, **texts(t5_encoder())}


def dit() -> dict[str, Any]:
    """Components of DiT; its caller chooses a class, not a text."""
    transformer = diffusers.DiTTransformer2DModel(
        sample_size=8, num_layers=2, patch_size=2, attention_head_dim=8, num_attention_heads=2, in_channels=4,
        out_channels=8, num_embeds_ada_norm=1000, norm_elementwise_affine=False,
    )  # fmt: skip
    return {"transformer": transformer, "vae": vae(), "scheduler": diffusers.DDIMScheduler(**LINEAR, clip_sample=False)}


def stable_diffusion_3() -> dict[str, Any]:
    """Components of StableDiffusion3."""
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=1, in_channels=16, num_layers=1, attention_head_dim=8, num_attention_heads=4,
        joint_attention_dim=2 * _TEXT_WIDTH, caption_projection_dim=32, pooled_projection_dim=2 * _TEXT_WIDTH,
        out_channels=16,
    )  # fmt: skip
    return {
        "transformer": transformer,
        "vae": vae(16, shift_factor=0.06, scaling_factor=1.5),
        **texts(*(clip_encoder(CLIPTextModelWithProjection) for _ in "12"), t5_encoder(width=2 * _TEXT_WIDTH)),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    }


def flux() -> dict[str, Any]:
    """Components of FLUX.1-dev: guidance is an input of the network, the shift follows the image's size."""
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=_TEXT_WIDTH, pooled_projection_dim=_TEXT_WIDTH, axes_dims_rope=(4, 4, 8),
        guidance_embeds=True,
    )  # fmt: skip
    return {
        "transformer": transformer,
        "vae": vae(shift_factor=0.12, scaling_factor=0.36, use_quant_conv=False, use_post_quant_conv=False),
        **texts(clip_encoder(), t5_encoder()),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(**FLUX_CONFIG, shift=3.0),
    }


def wan() -> dict[str, Any]:
    """Components of Wan 2.1, text to video."""
    transformer = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=16, out_channels=16,
        text_dim=_TEXT_WIDTH, freq_dim=32, ffn_dim=32, num_layers=1, cross_attn_norm=True, rope_max_seq_len=32,
    )  # fmt: skip
    return {
        "transformer": transformer,
        "vae": diffusers.AutoencoderKLWan(
            base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
        ),
        **texts(t5_encoder(UMT5EncoderModel)),
        "scheduler": diffusers.UniPCMultistepScheduler(**FLOW),
    }  # fmt: skip


def picture(size: int = 16, seed: int = 0) -> Image.Image:
    """An image to start from."""
    values = np.random.default_rng(seed).integers(0, 256, (size // 4, size // 4, 3), np.uint8)
    return Image.fromarray(values).resize((size, size))


def mask(size: int = 16) -> Image.Image:
    """Paint the right half anew."""
    values = np.zeros((size, size), np.uint8)
    values[:, size // 2 :] = 255
    return Image.fromarray(values)


class Family(NamedTuple):
    """A pipeline class: its components, the arguments of a call, and how its network is told the time.

    `network` is the component that is called `calls` times a step, with or without guidance; `told` the factor by which
    its `timestep` is smaller than the schedule's; `strength` whether the call takes one; `variant` distinguishes two
    rows of one class.
    """

    cls: str
    components: Callable[[], dict[str, Any]]
    call: Mapping[str, Any]
    network: str = "transformer"
    told: float = 1.0
    strength: bool = False
    calls: int = 1
    variant: str = ""

    @property
    def name(self) -> str:
        return self.cls.removesuffix("Pipeline") + self.variant

    @property
    def flow(self) -> bool:
        """Whether the model is a rectified flow."""
        return self.components in (stable_diffusion_3, flux, wan)

    def build(self, seed: int = 0) -> Any:
        """The pipeline, with the same weights for the same seed."""
        torch.manual_seed(seed)
        pipe = getattr(diffusers, self.cls)(**self.components())
        getattr(pipe, self.network).eval()  # DiT drops classes in training
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def shared(self) -> Any:
        """The pipeline, built once a process, with its own scheduler: for tests that change that alone."""
        if self.name not in _BUILT:
            pipe = self.build()
            _BUILT[self.name] = pipe, pipe.scheduler
        pipe, pipe.scheduler = _BUILT[self.name]
        return pipe


_BUILT: dict[str, tuple[Any, Any]] = {}
_PROMPT = {"prompt": "a small fox", "height": 16, "width": 16}
_IMAGE = {"prompt": "a small fox", "image": picture()}
_INPAINT = {"prompt": "a small fox", "image": picture(), "mask_image": mask(), "height": 16, "width": 16}
_SHORT = {"max_sequence_length": 16}
_PIXART = {**_PROMPT, **_SHORT, "use_resolution_binning": False, "clean_caption": False}

FAMILIES = [
    Family("StableDiffusionPipeline", stable_diffusion, _PROMPT, "unet"),
    Family("StableDiffusionImg2ImgPipeline", stable_diffusion, _IMAGE, "unet", strength=True),
    Family("StableDiffusionInpaintPipeline", stable_diffusion, _INPAINT, "unet", strength=True),
    Family("StableDiffusionInpaintPipeline", inpainting_model, _INPAINT, "unet", strength=True, variant="9"),
    Family("StableDiffusionXLPipeline", stable_diffusion_xl, _PROMPT, "unet"),
    Family("StableDiffusionXLImg2ImgPipeline", stable_diffusion_xl, _IMAGE, "unet", strength=True),
    Family("StableDiffusionXLInpaintPipeline", stable_diffusion_xl, _INPAINT, "unet", strength=True),
    Family("PixArtAlphaPipeline", pixart, _PIXART),
    Family("DiTPipeline", dit, {"class_labels": [3]}),
    Family("StableDiffusion3Pipeline", stable_diffusion_3, {**_PROMPT, **_SHORT}),
    Family("StableDiffusion3Img2ImgPipeline", stable_diffusion_3, {**_IMAGE, "height": 16, "width": 16}, strength=True),
    Family("StableDiffusion3InpaintPipeline", stable_diffusion_3, _INPAINT, strength=True),
    Family("FluxPipeline", flux, {**_PROMPT, **_SHORT}, told=1000.0),
    Family("FluxImg2ImgPipeline", flux, {**_IMAGE, **_SHORT, "height": 16, "width": 16}, told=1000.0, strength=True),
    Family("FluxInpaintPipeline", flux, {**_INPAINT, **_SHORT}, told=1000.0, strength=True),
    Family("WanPipeline", wan, {**_PROMPT, **_SHORT, "num_frames": 5}, calls=2),
]  # fmt: skip


def family_of(cls: str) -> Family:
    """The first row of a pipeline class."""
    return next(family for family in FAMILIES if family.cls == cls)


LINEAR_SD = {"beta_schedule": "linear", "beta_start": 0.00085, "beta_end": 0.012}
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
        **texts(clip_encoder(), t5_encoder()),
        "scheduler": diffusers.DDPMScheduler(**LINEAR_SD, clip_sample=False),
        **_NO_CHECKER,
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
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(**shift)
    networks = {"transformer": transformer, "vae": autoencoder, "text_encoder": None, "tokenizer": None}
    return {**networks, "scheduler": scheduler}


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
        **texts(clip_encoder(), t5_encoder()),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(),
        "resolution": 32,
    }


def kandinsky_combined() -> Any:
    """Kandinsky 2.2's combined pipeline, whose networks are never run: a prior and a decoder, a scheduler each."""
    networks = ("unet", "prior_prior", "prior_image_encoder", "prior_text_encoder", "prior_tokenizer")
    return diffusers.KandinskyV22CombinedPipeline(
        scheduler=diffusers.DDIMScheduler(**LINEAR_SD, clip_sample=False),
        movq=diffusers.VQModel(block_out_channels=(8,), norm_num_groups=4),
        prior_scheduler=diffusers.UnCLIPScheduler(prediction_type="sample"),
        prior_image_processor=None,
        **dict.fromkeys(networks),
    )


_SMALL = {"prompt": "a small fox", **SIZE}
HUNYUAN = Family("HunyuanDiTPipeline", hunyuan_dit, {**_SMALL, "use_resolution_binning": False})
LCM = Family("LatentConsistencyModelPipeline", latent_consistency, {**_SMALL, "original_inference_steps": 50}, "unet")
VISUAL_CLOZE = Family(
    "VisualClozePipeline",
    visual_cloze,
    {
        "task_prompt": "from a picture to a picture", "content_prompt": "a fox", "max_sequence_length": 16,
        "image": [[picture(32), picture(32, 1)], [picture(32, 2), None]],
        "upsampling_height": 32, "upsampling_width": 32, "upsampling_strength": 0.5,
    },
    told=1000.0,
)  # fmt: skip

_EMBEDDED = {
    "prompt_embeds": torch.randn(1, 7, 16, generator=torch.Generator().manual_seed(0)),
    "prompt_embeds_mask": torch.ones(1, 7, dtype=torch.long),
}
QWEN_IMAGE = Family("QwenImagePipeline", qwen_image, {**_EMBEDDED, **SIZE}, told=1000.0)
