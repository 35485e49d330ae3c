"""Every preset against numbers written down from its source."""

from __future__ import annotations

import math

import numpy as np
import problems
import pytest

from hso_jax import zoo
from hso_jax.noise import PRESETS, flux2_shift, from_config, named, preset, strip_static
from hso_jax.noise.presets import ALIASES

T = np.arange(1, 1000) / 1000
SD = problems.lam_of_bar(problems.SD_TABLE)[:-1]
LINEAR = problems.lam_of_bar(np.cumprod(1.0 - np.linspace(1e-4, 0.02, 1000)))[:-1]
EDM = problems.CLOSED_FORMS["edm"].lam(T)


def flow(shift: float) -> np.ndarray:
    return np.log((1.0 - T) / T) - math.log(shift)


def cogvideox(scale: float) -> np.ndarray:
    """SD's table with its SNR divided by `scale`, then brought to zero SNR (arXiv 2305.08891, algorithm 1)."""
    snr = problems.SD_TABLE / (1.0 - problems.SD_TABLE) / scale
    root = np.sqrt(snr / (1.0 + snr))
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return problems.lam_of_bar(root[:-1] ** 2)


FLUX2 = math.exp(2.0233511576)  # mu at 4096 tokens by hand: 1.14999658 at 200 steps, 2.256245711 at 10
SHIFTS = {
    **{"sd3-medium": 3.0, "sd35-medium": 3.0, "sd35-large": 3.0, "flux-schnell": 1.0, "hunyuan-video": 7.0},
    **dict.fromkeys(("flux-dev", "flux-krea", "flux-kontext"), math.exp(1.15)),
    **dict.fromkeys(("flux2-dev", "flux2-klein-base"), FLUX2),
    **dict.fromkeys(("ltx-video", "ltx-2"), math.exp(2.05)),
    **{"qwen-image": math.exp(0.5 + 0.4 * 3840 / 7936), "cogview4": 0.25 + 0.75 * 4.0, "hidream-i1": 3.0},
    **{"hunyuan-image21": 5.0, "kandinsky5-image": 3.0, "kandinsky5-video": 10.0, "z-image": 6.0, "z-image-turbo": 3.0},
    **{"chroma": 3.0, "sana": 3.0, "auraflow": 1.73, "lumina2": 6.0},
    **{"qwen-image21": math.exp(0.5 + 0.4 * 3840 / 7936), "krea2-turbo": math.exp(1.15), "cosmos25-transfer": 1.0},
    **{"wan21": 3.0, "wan22-t2v": 3.0, "wan22-i2v": 3.0, "wan22-5b": 5.0},
}
EXPECTED = {
    **dict.fromkeys(("sd15", "sd21-base", "sdxl"), (SD, "vp", "epsilon")),
    "sd21": (SD, "vp", "v_prediction"),
    **dict.fromkeys(("pixart-alpha", "pixart-sigma", "dit-xl-2", "ddpm-cifar10"), (LINEAR, "vp", "epsilon")),
    "edm-cifar10": (EDM, "ve", "edm"),
    **{name: (flow(shift), "flow", "flow_prediction") for name, shift in SHIFTS.items()},
    "cogvideox-2b": (cogvideox(3.0), "vp", "v_prediction"),
    "cogvideox-5b": (cogvideox(1.0), "vp", "v_prediction"),
}
PIXELS = {"ddpm-cifar10", "edm-cifar10"}


def test_every_preset_is_checked() -> None:
    assert set(EXPECTED) == set(PRESETS)


@pytest.mark.parametrize("name", EXPECTED)
def test_preset(name: str) -> None:
    (lam, kind, prediction), entry, noise = EXPECTED[name], PRESETS[name], preset(name)
    np.testing.assert_allclose(noise.lam(T), lam, rtol=0, atol=1e-9)
    assert (noise.kind, noise.name, noise.prediction, noise.model) == (kind, name, prediction, entry)
    assert entry.source and entry.description and bool(entry.resolution) == (kind == "flow")
    assert (entry.latent, entry.p) == ((False, 1.0) if name in PIXELS else (True, 2.0))


@pytest.mark.parametrize(
    ("repository", "name"),
    [
        ("stabilityai/stable-diffusion-xl-base-1.0", "sdxl"),
        ("black-forest-labs/FLUX.1-dev", "flux-dev"),
        ("Efficient-Large-Model/Sana_1600M_1024px_diffusers", "sana"),
        ("Tongyi-MAI/Z-Image-Turbo", "z-image-turbo"),
        ("Qwen/Qwen-Image-2.1", "qwen-image21"),
        ("krea/Krea-2-Turbo", "krea2-turbo"),
        ("nvidia/Cosmos-Transfer2.5-2B", "cosmos25-transfer"),
    ],
)
def test_a_repository_s_name_is_its_preset(repository: str, name: str) -> None:
    assert preset(repository).name == name and zoo(repository, 6) == zoo(name, 6)


def test_aliases_are_of_presets_and_none_themselves() -> None:
    assert set(ALIASES.values()) <= set(PRESETS) and not set(ALIASES) & set(PRESETS)
    assert all(alias == alias.lower().replace("_", "-") for alias in ALIASES)


def test_only_a_preset_knows_its_model() -> None:
    assert from_config(PRESETS["sd15"].config).model is None and strip_static(preset("sd15")).model is None
    assert named("sd15")[1].guidance == 7.5 and named(preset("sd15"))[1].guidance == 1.0


def test_the_shift_follows_the_image_s_size() -> None:
    for name, shift in (("flux-dev", math.exp(0.5)), ("cogview4", 1.0), ("flux2-dev", flux2_shift(256))):
        np.testing.assert_allclose(preset(name, image_seq_len=256).lam(T), flow(shift), atol=1e-9)


def test_only_wan_22_has_two_experts() -> None:
    boundaries = {name: entry.boundary for name, entry in PRESETS.items() if entry.boundary is not None}
    assert boundaries == {"wan22-t2v": 0.875, "wan22-i2v": 0.9}


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'sd14' is not a preset; did you mean sd21.*sd21-base.*cogvideox-5b"):
        preset("sd14")
