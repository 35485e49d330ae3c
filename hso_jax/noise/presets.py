"""Noise schedules of published models, by name."""

from __future__ import annotations

import dataclasses
import math

from hso_jax.checks import brief, nearest
from hso_jax.noise.from_config import from_config
from hso_jax.noise.schedule import NoiseSchedule, Preset, check_noise

_DDIM = {"_class_name": "DDIMScheduler", "num_train_timesteps": 1000}
_SD = {**_DDIM, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
_LINEAR = {**_DDIM, "beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02}
_EULER = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000}
_FLUX_SIZES = "exp(.5) at 256 tokens to exp(1.15) at 4096; a token is 16 x 16 pixels"
_LTX_SIZES = "exp(.95) at 1024 tokens, exp(2.05) at 4096, and on; a token is 32 x 32 pixels of 8 frames"
_FLUX2_SIZES = (
    "flux2_shift(tokens, N): it follows N as well up to 4300 tokens, here that of N = 50; a token is 16 x 16 pixels"
)


def _flow(
    description: str, source: str, shift: float, guidance: float = 1.0, sizes: str = "the same at every size"
) -> Preset:
    return Preset(description, source, {**_EULER, "shift": shift}, guidance, sizes)


def _unipc(
    description: str, source: str, shift: float, guidance: float, sizes: str, boundary: float | None = None
) -> Preset:
    """As `_flow`, with the scheduler that Wan's and Sana's pipelines have."""
    config = {"_class_name": "UniPCMultistepScheduler", "prediction_type": "flow_prediction", "use_flow_sigmas": True}
    return Preset(description, source, {**_EULER, **config, "flow_shift": shift}, guidance, sizes, boundary)


def _dynamic(
    description: str,
    source: str,
    shifts: tuple[float, float] = (0.5, 1.15),
    tokens: tuple[int, int] = (256, 4096),
    guidance: float = 1.0,
    sizes: str = _FLUX_SIZES,
    *,
    rule: str = "exponential",
    pipeline: str = "",
) -> Preset:
    """A flow model whose shift follows the size. `shift_terminal` is left out: it stretches a pipeline's own grid."""
    lengths = {"base_image_seq_len": tokens[0], "max_image_seq_len": tokens[1]}
    values = {"use_dynamic_shifting": True, "base_shift": shifts[0], "max_shift": shifts[1], "time_shift_type": rule}
    return Preset(description, source, {**_EULER, **values, **lengths}, guidance, sizes, pipeline=pipeline)


def _cogvideox(size: str, snr_shift_scale: float) -> Preset:
    values = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "snr_shift_scale": snr_shift_scale}
    source = "arXiv 2408.06072; diffusers' conversion of CogVideoX"
    config = {**_SD, "_class_name": "CogVideoXDDIMScheduler", **values}
    return Preset(f"CogVideoX {size} (zero terminal SNR)", source, config, 6.0)


# fmt: off
PRESETS: dict[str, Preset] = {
    "sd15": Preset("Stable Diffusion 1.5", "arXiv 2112.10752; stable-diffusion-v1-5 scheduler config", _SD, 7.5),
    "sd21-base": Preset("Stable Diffusion 2.1-base", "stable-diffusion-2-1-base scheduler config", _SD, 7.5),
    "sd21": Preset("Stable Diffusion 2.1 (768, v)", "stable-diffusion-2-1 scheduler config",
        {**_SD, "prediction_type": "v_prediction"}, 7.5),
    "sdxl": Preset("Stable Diffusion XL base 1.0", "arXiv 2307.01952; sdxl-base-1.0 scheduler config", _SD, 5.0),
    "pixart-alpha": Preset("PixArt-alpha", "arXiv 2310.00426; PixArt-XL-2 scheduler config", _LINEAR, 4.5),
    "pixart-sigma": Preset("PixArt-Sigma", "arXiv 2403.04692; PixArt-Sigma-XL-2 scheduler config", _LINEAR, 4.5),
    "dit-xl-2": Preset("DiT-XL/2, ImageNet", "arXiv 2212.09748; DiT-XL-2 scheduler config", _LINEAR, 4.0),
    "ddpm-cifar10": Preset("DDPM, CIFAR-10 pixels", "arXiv 2006.11239, section 4", _LINEAR, latent=False),
    "edm-cifar10": Preset("EDM, CIFAR-10 pixels", "arXiv 2206.00364, table 1",
        {"_class_name": "EDMEulerScheduler", "sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0}, latent=False),
    "sd3-medium": _flow("Stable Diffusion 3 medium", "arXiv 2403.03206; stable-diffusion-3-medium scheduler config",
        3.0, 7.0),
    "sd35-medium": _flow("Stable Diffusion 3.5 medium",
        "stable-diffusion-3.5-medium scheduler config; guidance of its model card", 3.0, 4.5),
    "sd35-large": _flow("Stable Diffusion 3.5 large",
        "stable-diffusion-3.5-large scheduler config; guidance of its model card", 3.0, 3.5),
    "flux-dev": _dynamic("FLUX.1-dev (shift follows the image's size; 1024 x 1024 here)",
        "FLUX.1-dev scheduler config"),
    "flux-schnell": _flow("FLUX.1-schnell", "FLUX.1-schnell scheduler config", 1.0),
    "flux-krea": _dynamic("FLUX.1-Krea-dev (guidance is embedded)",
        "FLUX.1-Krea-dev scheduler config, that of FLUX.1-dev"),
    "flux-kontext": _dynamic("FLUX.1-Kontext-dev (guidance is embedded)",
        "FLUX.1-Kontext-dev scheduler config, that of FLUX.1-dev", sizes=_FLUX_SIZES + " of the output"),
    "flux2-dev": _dynamic("FLUX.2-dev (guidance is embedded)",
        "diffusers' Flux2Pipeline: its own rule for mu, not the scheduler config's", sizes=_FLUX2_SIZES,
        pipeline="Flux2Pipeline"),
    "flux2-klein-base": _dynamic("FLUX.2-klein-base",
        "diffusers' Flux2KleinPipeline: its own rule for mu, and its guidance", guidance=4.0, sizes=_FLUX2_SIZES,
        pipeline="Flux2KleinPipeline"),
    "qwen-image": _dynamic("Qwen-Image", "Qwen-Image scheduler config; diffusers' QwenImagePipeline", (0.5, 0.9),
        (256, 8192), 4.0, "exp(.5) at 256 tokens to exp(.9) at 8192; a token is 16 x 16 pixels"),
    "qwen-image21": _dynamic("Qwen-Image 2.1 (made for use without guidance)",
        "Qwen-Image-2.1 scheduler config; diffusers' QwenImage21Pipeline", (0.5, 0.9), (256, 8192),
        sizes="exp(.5) at 256 tokens to exp(.9) at 8192, and on; a token is 16 x 16 pixels"),
    "krea2-turbo": _flow("Krea 2 Turbo (8 steps, distilled)",
        "diffusers' Krea2Pipeline: mu 1.15 for its distilled model, no guidance", math.exp(1.15)),
    "z-image": _flow("Z-Image",
        "Z-Image scheduler config; guidance_scale 4 of its model card, which its pipeline adds to 1", 6.0, 5.0),
    "z-image-turbo": _flow("Z-Image-Turbo (8 steps, distilled)",
        "Z-Image-Turbo scheduler config; no guidance by its model card", 3.0),
    "chroma": _flow("Chroma1-HD", "Chroma1-HD scheduler config; guidance of diffusers' page", 3.0, 3.0),
    "sana": _unipc("Sana 1.6B (shift 3; 4096 pixels use 6)",
        "arXiv 2410.10629; diffusers' conversion of Sana and its SanaPipeline", 3.0, 4.5,
        "3; 6 for 4096 x 4096 pixels"),
    "auraflow": _flow("AuraFlow", "AuraFlow scheduler config, ComfyUI's AuraFlow; diffusers' AuraFlowPipeline", 1.73,
        3.5),
    "lumina2": _flow("Lumina-Image 2.0",
        "Lumina-Image-2.0 scheduler config, ComfyUI's Lumina2; diffusers' Lumina2Pipeline", 6.0, 4.0),
    "cogview4": _dynamic("CogView4", "diffusers' conversion of CogView4 and its CogView4Pipeline", (0.25, 0.75),
        guidance=5.0, sizes=".25 + .75 sqrt(tokens / 256); a token is 16 x 16 pixels", rule="linear",
        pipeline="CogView4Pipeline"),
    "hidream-i1": _flow("HiDream-I1-Full",
        "HiDream-I1's own program, ComfyUI's HiDream; diffusers' HiDreamImagePipeline", 3.0, 5.0),
    "hunyuan-image21": _flow("HunyuanImage 2.1", "HunyuanImage-2.1's own program (guidance 3.5)", 5.0, 3.5),
    "kandinsky5-image": _flow("Kandinsky 5.0 text-to-image",
        "Kandinsky 5.0's own program and configs; diffusers' pipeline", 3.0, 3.5),
    "kandinsky5-video": _flow("Kandinsky 5.0 text-to-video",
        "Kandinsky 5.0's own program and configs; diffusers' pipeline", 10.0, 5.0, "10; 5 for some checkpoints"),
    "ltx-2": _dynamic("LTX-2", "diffusers' conversion of LTX-2 and its LTX2Pipeline", (0.95, 2.05), (1024, 4096), 3.0,
        _LTX_SIZES),
    "ltx-video": _dynamic("LTX-Video 0.9.1", "diffusers' conversion of LTX-Video and its LTXPipeline", (0.95, 2.05),
        (1024, 4096), 3.0, _LTX_SIZES),
    "hunyuan-video": _flow("HunyuanVideo (guidance is embedded)",
        "diffusers' conversion of HunyuanVideo, ComfyUI's HunyuanVideo", 7.0),
    "wan21": _unipc("Wan 2.1 text-to-video (shift 3, for 480p; 720p uses 5)",
        "arXiv 2503.20314; Wan2.1-T2V scheduler config", 3.0, 5.0, "3 for 480p, 5 for 720p"),
    "wan22-t2v": _unipc("Wan 2.2 A14B text-to-video, two experts",
        "diffusers' conversion of Wan 2.2; boundary and guidance (4, low noise 3) of Wan2.2's configs", 3.0, 4.0,
        "3 as converted for diffusers; Wan's own program samples with 12", 0.875),
    "wan22-i2v": _unipc("Wan 2.2 A14B image-to-video, two experts",
        "diffusers' conversion of Wan 2.2; boundary and guidance (3.5 for both) of Wan2.2's configs", 3.0, 3.5,
        "3 as converted for diffusers; Wan's own program samples with 5", 0.9),
    "wan22-5b": _unipc("Wan 2.2 TI2V 5B", "diffusers' conversion of Wan 2.2; guidance of Wan2.2's configs", 5.0, 5.0,
        "the same at every size"),
    "cosmos25-transfer": _unipc("Cosmos-Transfer 2.5",
        "diffusers' conversion of Cosmos; guidance_scale 3 of its Cosmos2_5_TransferPipeline, which adds it to 1", 1.0,
        4.0, "the same at every size"),
    "cogvideox-2b": _cogvideox("2B", 3.0),
    "cogvideox-5b": _cogvideox("5B", 1.0),
}
# fmt: on


_ON_THE_HUB = """
    sd15              stable-diffusion-v1-5
    sd21-base         stable-diffusion-2-1-base
    sd21              stable-diffusion-2-1
    sdxl              stable-diffusion-xl-base-1.0
    pixart-alpha      pixart-xl-2-1024-ms pixart-xl-2-512x512
    pixart-sigma      pixart-sigma-xl-2-1024-ms pixart-sigma-xl-2-512-ms
    dit-xl-2          dit-xl-2-256
    ddpm-cifar10      ddpm-cifar10-32
    sd3-medium        stable-diffusion-3-medium stable-diffusion-3-medium-diffusers
    sd35-medium       stable-diffusion-3.5-medium
    sd35-large        stable-diffusion-3.5-large
    flux-dev          flux.1-dev
    flux-schnell      flux.1-schnell
    flux-krea         flux.1-krea-dev
    flux-kontext      flux.1-kontext-dev
    flux2-dev         flux.2-dev
    flux2-klein-base  flux.2-klein-base-4b flux.2-klein-base-9b
    qwen-image21      qwen-image-2.1
    krea2-turbo       krea-2-turbo
    chroma            chroma1-hd
    sana              sana-1600m-1024px-diffusers sana-1600m-1024px-bf16-diffusers
    lumina2           lumina-image-2.0
    cogview4          cogview4-6b
    hidream-i1        hidream-i1-full
    hunyuan-image21   hunyuanimage-2.1 hunyuanimage-2.1-diffusers
    kandinsky5-image  kandinsky-5.0-t2i-lite-sft-diffusers
    kandinsky5-video  kandinsky-5.0-t2v-lite-sft-5s-diffusers
    hunyuan-video     hunyuanvideo
    wan21             wan2.1-t2v-1.3b-diffusers wan2.1-t2v-14b-diffusers
    wan22-t2v         wan2.2-t2v-a14b-diffusers
    wan22-i2v         wan2.2-i2v-a14b-diffusers
    wan22-5b          wan2.2-ti2v-5b-diffusers
    cosmos25-transfer cosmos-transfer2.5-2b
"""
ALIASES = {alias: key for key, *names in map(str.split, _ON_THE_HUB.strip().splitlines()) for alias in names}
"""A preset by the name of its model's repository, without the owner, in small letters, "-" for "_"."""


def preset_name(name: str) -> str:
    """The preset that a repository's name stands for, as "stabilityai/stable-diffusion-xl-base-1.0"; else the name.

    Nothing is downloaded: the names are known.
    """
    short = name.rsplit("/", 1)[-1].lower().replace("_", "-") if isinstance(name, str) else name
    return short if short in PRESETS else ALIASES.get(short, name)


def is_preset(name: str) -> bool:
    """Whether a name, or a repository's name, is of a preset."""
    return preset_name(name) in PRESETS


def preset(name: str, *, image_seq_len: int = 4096) -> NoiseSchedule:
    """The noise schedule of a published model; `PRESETS` has the names, the values and their sources.

    Args:
        name: a key of `PRESETS`, or a repository's name ("stabilityai/stable-diffusion-xl-base-1.0"), see `ALIASES`.
        image_seq_len: tokens of the image, for models whose shift follows its size: 4096 is 1024 x 1024 in FLUX.

    Raises:
        ValueError: for an unknown name; the message lists the known ones.
    """
    name = preset_name(name)
    if not isinstance(name, str) or name not in PRESETS:
        near = nearest(name, PRESETS) if isinstance(name, str) else ""
        raise ValueError(f"model {brief(name)} is not a preset{near}; presets: {', '.join(PRESETS)}")
    model = PRESETS[name]
    noise = from_config(model.config, image_seq_len=image_seq_len, pipeline={"_class_name": model.pipeline}, name=name)
    return dataclasses.replace(noise, model=model)


def named(model: str | NoiseSchedule) -> tuple[NoiseSchedule, Preset]:
    """The noise schedule that a preset's name stands for, and what is known of that model.

    A noise schedule is taken as it is, with the defaults of `p` and `guidance`, also where it is a preset's. Raises
    ValueError for an unknown name, and for anything but a name or a noise schedule.
    """
    if isinstance(model, str):
        noise = preset(model)
        return noise, noise.model or Preset()
    return check_noise(model), Preset()
