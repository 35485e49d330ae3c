"""Noise schedules of published models, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from hso_jax.checks import brief
from hso_jax.noise.from_config import from_config
from hso_jax.noise.noise_schedule import NoiseSchedule


class Preset(NamedTuple):
    """A published model's scheduler config and how its network works.

    Attributes:
        description: the model, in words.
        source: where the values were published.
        config: the values as a diffusers scheduler config.
        prediction: "epsilon", "v_prediction", "flow_prediction" or "edm" (preconditioned x0).
        p: exponent of the model-error bound: 2 for latent, 1 for pixel models (arXiv 2511.11688, section 3).
        guidance: usual weight of classifier-free guidance (the default of the model's diffusers pipeline); 1 for
            unconditional models and for those that guidance was distilled into.
    """

    description: str
    source: str
    config: Mapping[str, Any]
    prediction: str = "epsilon"
    p: float = 2.0
    guidance: float = 1.0


def _vp(rule: str, start: float, end: float) -> dict[str, Any]:
    values = {"beta_schedule": rule, "beta_start": start, "beta_end": end, "num_train_timesteps": 1000}
    return {"_class_name": "DDIMScheduler", **values}


_SD = _vp("scaled_linear", 0.00085, 0.012)
_LINEAR = _vp("linear", 0.0001, 0.02)
_FLUX = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000}
_DYNAMIC = {
    "use_dynamic_shifting": True,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
}

PRESETS: Mapping[str, Preset] = {
    "sd15": Preset(
        "Stable Diffusion 1.5", "arXiv 2112.10752; stable-diffusion-v1-5 scheduler config", _SD, guidance=7.5
    ),
    "sd21-base": Preset("Stable Diffusion 2.1-base", "stable-diffusion-2-1-base scheduler config", _SD, guidance=7.5),
    "sd21": Preset(
        "Stable Diffusion 2.1 (768, v)", "stable-diffusion-2-1 scheduler config", _SD, "v_prediction", guidance=7.5
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
        "edm",
        1.0,
    ),
    "sd3-medium": Preset(
        "Stable Diffusion 3 medium",
        "arXiv 2403.03206; stable-diffusion-3-medium scheduler config",
        {**_FLUX, "shift": 3.0},
        "flow_prediction",
        guidance=7.0,
    ),
    "flux-dev": Preset(
        "FLUX.1-dev (shift follows the image's size; 1024 x 1024 here)",
        "FLUX.1-dev scheduler config",
        {**_FLUX, **_DYNAMIC},
        "flow_prediction",
    ),
    "flux-schnell": Preset(
        "FLUX.1-schnell", "FLUX.1-schnell scheduler config", {**_FLUX, "shift": 1.0}, "flow_prediction"
    ),
    "wan21": Preset(
        "Wan 2.1 text-to-video (shift 3, for 480p; 720p uses 5)",
        "arXiv 2503.20314; Wan2.1-T2V scheduler config",
        {
            "_class_name": "UniPCMultistepScheduler",
            "prediction_type": "flow_prediction",
            "use_flow_sigmas": True,
            "flow_shift": 3.0,
            "num_train_timesteps": 1000,
        },
        "flow_prediction",
        guidance=5.0,
    ),
}


def preset(name: str, *, image_seq_len: int = 4096) -> NoiseSchedule:
    """The noise schedule of a published model; `PRESETS` has the names, the values and their sources.

    - `sd15`, `sd21-base`, `sd21`, `sdxl`: scaled_linear 0.00085..0.012, T = 1000 (arXiv 2112.10752).
    - `pixart-alpha`, `pixart-sigma`, `dit-xl-2`, `ddpm-cifar10`: linear 0.0001..0.02, T = 1000 (arXiv 2006.11239).
    - `edm-cifar10`: sigma 0.002..80, rho 7 (arXiv 2206.00364).
    - `sd3-medium`: rectified flow, shift 3 (arXiv 2403.03206); `wan21`: the same (480p).
    - `flux-dev`: rectified flow, shift exp(0.5..1.15) by `image_seq_len`; `flux-schnell`: shift 1.

    Raises:
        ValueError: for an unknown name; the message lists the known ones.
    """
    if not isinstance(name, str) or name not in PRESETS:
        raise ValueError(f"model {brief(name)} is not a preset; presets: {', '.join(PRESETS)}")
    found = PRESETS[name]
    return from_config(found.config, image_seq_len=image_seq_len, name=name).with_prediction(found.prediction)
