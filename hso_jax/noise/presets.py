"""Noise schedules of published models, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from hso_jax.checks import brief, nearest
from hso_jax.noise.from_config import from_config
from hso_jax.noise.schedule import NoiseSchedule, check_noise


class Preset(NamedTuple):
    """A published model's scheduler config and how its network works.

    Attributes:
        description: the model, in words.
        source: where the values were published.
        config: the values as a diffusers scheduler config.
        p: exponent of the model-error bound: 2 for latent, 1 for pixel models (arXiv 2511.11688, section 3).
        guidance: usual weight of classifier-free guidance (the default of the model's diffusers pipeline, or what its
            authors sample with); 1 for unconditional models and for those that guidance was distilled into.
        resolution: how the shift follows the size of the picture or the video, in words; empty where there is no shift.
        boundary: where a model of two experts changes from the one to the other: s at which the high-noise expert
            still works, the low-noise one everywhere below. None for models of one network.
        pipeline: its class in diffusers, where that has a rule of its own for the shift.
    """

    description: str
    source: str
    config: Mapping[str, Any]
    p: float = 2.0
    guidance: float = 1.0
    resolution: str = ""
    boundary: float | None = None
    pipeline: str = ""

    @property
    def prediction(self) -> str:
        """What the network predicts: "epsilon", "v_prediction", "flow_prediction" or "edm" (preconditioned x0)."""
        return from_config(self.config).prediction


_UNNAMED = Preset("", "", {})
_DDIM = {"_class_name": "DDIMScheduler", "num_train_timesteps": 1000}
_SD = {**_DDIM, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
_LINEAR = {**_DDIM, "beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02}
_FLUX = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000}
_UNIPC = {
    **_FLUX,
    "_class_name": "UniPCMultistepScheduler",
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
}
_FIXED = "the same at every size"
_FLUX_SIZES = "exp(.5) at 256 tokens to exp(1.15) at 4096; a token is 16 x 16 pixels"


def _flow(description: str, source: str, shift: float, guidance: float = 1.0) -> Preset:
    return Preset(description, source, {**_FLUX, "shift": shift}, guidance=guidance, resolution=_FIXED)


def _dynamic(base: float, most: float, base_tokens: int, most_tokens: int) -> dict[str, Any]:
    lengths = {"base_image_seq_len": base_tokens, "max_image_seq_len": most_tokens}
    return {**_FLUX, "use_dynamic_shifting": True, "base_shift": base, "max_shift": most, **lengths}


def _cogvideox(snr_shift_scale: float) -> dict[str, Any]:
    values = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "snr_shift_scale": snr_shift_scale}
    return {**_SD, "_class_name": "CogVideoXDDIMScheduler", **values}


PRESETS: Mapping[str, Preset] = {
    "sd15": Preset(
        "Stable Diffusion 1.5", "arXiv 2112.10752; stable-diffusion-v1-5 scheduler config", _SD, guidance=7.5
    ),
    "sd21-base": Preset("Stable Diffusion 2.1-base", "stable-diffusion-2-1-base scheduler config", _SD, guidance=7.5),
    "sd21": Preset(
        "Stable Diffusion 2.1 (768, v)",
        "stable-diffusion-2-1 scheduler config",
        {**_SD, "prediction_type": "v_prediction"},
        guidance=7.5,
    ),
    "sdxl": Preset(
        "Stable Diffusion XL base 1.0", "arXiv 2307.01952; sdxl-base-1.0 scheduler config", _SD, guidance=5.0
    ),
    "pixart-alpha": Preset("PixArt-alpha", "arXiv 2310.00426; PixArt-XL-2 scheduler config", _LINEAR, guidance=4.5),
    "pixart-sigma": Preset(
        "PixArt-Sigma", "arXiv 2403.04692; PixArt-Sigma-XL-2 scheduler config", _LINEAR, guidance=4.5
    ),
    "dit-xl-2": Preset("DiT-XL/2, ImageNet", "arXiv 2212.09748; DiT-XL-2 scheduler config", _LINEAR, guidance=4.0),
    "ddpm-cifar10": Preset("DDPM, CIFAR-10 pixels", "arXiv 2006.11239, section 4", _LINEAR, p=1.0),
    "edm-cifar10": Preset(
        "EDM, CIFAR-10 pixels",
        "arXiv 2206.00364, table 1",
        {"_class_name": "EDMEulerScheduler", "sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0},
        p=1.0,
    ),
    "sd3-medium": _flow(
        "Stable Diffusion 3 medium", "arXiv 2403.03206; stable-diffusion-3-medium scheduler config", 3.0, 7.0
    ),
    "sd35-medium": _flow(
        "Stable Diffusion 3.5 medium",
        "stable-diffusion-3.5-medium scheduler config; guidance of its model card",
        3.0,
        4.5,
    ),
    "sd35-large": _flow(
        "Stable Diffusion 3.5 large",
        "stable-diffusion-3.5-large scheduler config; guidance of its model card",
        3.0,
        3.5,
    ),
    "flux-dev": Preset(
        "FLUX.1-dev (shift follows the image's size; 1024 x 1024 here)",
        "FLUX.1-dev scheduler config",
        _dynamic(0.5, 1.15, 256, 4096),
        resolution=_FLUX_SIZES,
    ),
    "flux-schnell": _flow("FLUX.1-schnell", "FLUX.1-schnell scheduler config", 1.0),
    "flux-krea": Preset(
        "FLUX.1-Krea-dev (guidance is embedded)",
        "FLUX.1-Krea-dev scheduler config, that of FLUX.1-dev",
        _dynamic(0.5, 1.15, 256, 4096),
        resolution=_FLUX_SIZES,
    ),
    "flux-kontext": Preset(
        "FLUX.1-Kontext-dev (guidance is embedded)",
        "FLUX.1-Kontext-dev scheduler config, that of FLUX.1-dev",
        _dynamic(0.5, 1.15, 256, 4096),
        resolution=_FLUX_SIZES + " of the output",
    ),
    "flux2-dev": Preset(
        "FLUX.2-dev (guidance is embedded)",
        "diffusers' Flux2Pipeline: its own rule for mu, not the scheduler config's",
        _dynamic(0.5, 1.15, 256, 4096),
        resolution="flux2_shift(tokens, N): it follows N as well up to 4300 tokens, here that of N = 50; "
        "a token is 16 x 16 pixels",
        pipeline="Flux2Pipeline",
    ),
    "qwen-image": Preset(
        "Qwen-Image",
        "Qwen-Image scheduler config; diffusers' QwenImagePipeline",
        # shift_terminal .02 stretches the pipeline's own grid; schedules here choose their last node.
        _dynamic(0.5, 0.9, 256, 8192),
        guidance=4.0,
        resolution="exp(.5) at 256 tokens to exp(.9) at 8192; a token is 16 x 16 pixels",
    ),
    "z-image": _flow("Z-Image", "Z-Image scheduler config; guidance of its model card (3 to 5)", 6.0, 4.0),
    "z-image-turbo": _flow(
        "Z-Image-Turbo (8 steps, distilled)", "Z-Image-Turbo scheduler config; no guidance by its model card", 3.0
    ),
    "chroma": _flow("Chroma1-HD", "Chroma1-HD scheduler config; guidance of diffusers' page", 3.0, 3.0),
    "sana": Preset(
        "Sana 1.6B (shift 3; 4096 pixels use 6)",
        "arXiv 2410.10629; diffusers' conversion of Sana and its SanaPipeline",
        {**_UNIPC, "flow_shift": 3.0, "_class_name": "DPMSolverMultistepScheduler"},
        guidance=4.5,
        resolution="3; 6 for 4096 x 4096 pixels",
    ),
    "auraflow": _flow(
        "AuraFlow", "AuraFlow scheduler config, ComfyUI's AuraFlow; diffusers' AuraFlowPipeline", 1.73, 3.5
    ),
    "lumina2": _flow(
        "Lumina-Image 2.0", "Lumina-Image-2.0 scheduler config, ComfyUI's Lumina2; diffusers' Lumina2Pipeline", 6.0, 4.0
    ),
    "ltx-video": Preset(
        "LTX-Video 0.9.1",
        "diffusers' conversion of LTX-Video and its LTXPipeline",
        # shift_terminal .1: as with Qwen-Image.
        _dynamic(0.95, 2.05, 1024, 4096),
        guidance=3.0,
        resolution="exp(.95) at 1024 tokens, exp(2.05) at 4096, and on; a token is 32 x 32 pixels of 8 frames",
    ),
    "hunyuan-video": _flow(
        "HunyuanVideo (guidance is embedded)", "diffusers' conversion of HunyuanVideo, ComfyUI's HunyuanVideo", 7.0
    ),
    "wan21": Preset(
        "Wan 2.1 text-to-video (shift 3, for 480p; 720p uses 5)",
        "arXiv 2503.20314; Wan2.1-T2V scheduler config",
        {**_UNIPC, "flow_shift": 3.0},
        guidance=5.0,
        resolution="3 for 480p, 5 for 720p",
    ),
    "wan22-t2v": Preset(
        "Wan 2.2 A14B text-to-video, two experts",
        "diffusers' conversion of Wan 2.2; boundary and guidance (4, low noise 3) of Wan2.2's configs",
        {**_UNIPC, "flow_shift": 3.0},
        guidance=4.0,
        resolution="3 as converted for diffusers; Wan's own program samples with 12",
        boundary=0.875,
    ),
    "wan22-i2v": Preset(
        "Wan 2.2 A14B image-to-video, two experts",
        "diffusers' conversion of Wan 2.2; boundary and guidance (3.5 for both) of Wan2.2's configs",
        {**_UNIPC, "flow_shift": 3.0},
        guidance=3.5,
        resolution="3 as converted for diffusers; Wan's own program samples with 5",
        boundary=0.9,
    ),
    "wan22-5b": Preset(
        "Wan 2.2 TI2V 5B",
        "diffusers' conversion of Wan 2.2; guidance of Wan2.2's configs",
        {**_UNIPC, "flow_shift": 5.0},
        guidance=5.0,
        resolution=_FIXED,
    ),
    "cogvideox-2b": Preset(
        "CogVideoX 2B (zero terminal SNR)",
        "arXiv 2408.06072; diffusers' conversion of CogVideoX",
        _cogvideox(3.0),
        guidance=6.0,
    ),
    "cogvideox-5b": Preset(
        "CogVideoX 5B (zero terminal SNR)",
        "arXiv 2408.06072; diffusers' conversion of CogVideoX",
        _cogvideox(1.0),
        guidance=6.0,
    ),
}


def preset_name(name: str) -> str:
    """The preset that a repository's or a file's name is, as "Tongyi-MAI/Z-Image-Turbo"; else the name as it is."""
    own = name.rsplit("/", 1)[-1].lower().replace("_", "-") if isinstance(name, str) else name
    return own if own in PRESETS else name


def preset(name: str, *, image_seq_len: int = 4096) -> NoiseSchedule:
    """The noise schedule of a published model; `PRESETS` has the names, the values and their sources.

    Args:
        name: a key of `PRESETS`, also as a repository writes it ("Tongyi-MAI/Z-Image-Turbo").
        image_seq_len: tokens of the image, for models whose shift follows its size: 4096 is 1024 x 1024 in FLUX.

    Raises:
        ValueError: for an unknown name; the message lists the known ones.
    """
    name = preset_name(name)
    if not isinstance(name, str) or name not in PRESETS:
        near = nearest(name, PRESETS) if isinstance(name, str) else ""
        raise ValueError(f"model {brief(name)} is not a preset{near}; presets: {', '.join(PRESETS)}")
    found = PRESETS[name]
    pipeline = {"_class_name": found.pipeline}
    return from_config(found.config, image_seq_len=image_seq_len, pipeline=pipeline, name=name)


def named(model: str | NoiseSchedule) -> tuple[NoiseSchedule, Preset]:
    """The noise schedule that a preset's name stands for, and what is known of that model.

    Of a noise schedule nothing else is known: `p` and `guidance` are the defaults then.

    Raises:
        ValueError: for an unknown name, and for anything but a name or a noise schedule.
    """
    if isinstance(model, str):
        return preset(model), PRESETS[preset_name(model)]
    return check_noise(model), _UNNAMED
