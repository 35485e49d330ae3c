"""Every preset against numbers written down from its source."""

from __future__ import annotations

import math

import numpy as np
import problems
import pytest

from hso_jax.noise import PRESETS, flux2_shift, preset

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


EXPECTED = {
    "sd15": (SD, "vp", 2.0),
    "sd21-base": (SD, "vp", 2.0),
    "sd21": (SD, "vp", 2.0),
    "sdxl": (SD, "vp", 2.0),
    "pixart-alpha": (LINEAR, "vp", 2.0),
    "pixart-sigma": (LINEAR, "vp", 2.0),
    "dit-xl-2": (LINEAR, "vp", 2.0),
    "ddpm-cifar10": (LINEAR, "vp", 1.0),
    "edm-cifar10": (EDM, "ve", 1.0),
    "sd3-medium": (flow(3.0), "flow", 2.0),
    "sd35-medium": (flow(3.0), "flow", 2.0),
    "sd35-large": (flow(3.0), "flow", 2.0),
    "flux-dev": (flow(math.exp(1.15)), "flow", 2.0),
    "flux-schnell": (flow(1.0), "flow", 2.0),
    "flux-krea": (flow(math.exp(1.15)), "flow", 2.0),
    "flux-kontext": (flow(math.exp(1.15)), "flow", 2.0),
    # mu of 50 steps at 4096 tokens, by hand: 1.14999658 at 200 steps, 2.256245711 at 10, 2.0233511576 between.
    "flux2-dev": (flow(math.exp(2.0233511576)), "flow", 2.0),
    "qwen-image": (flow(math.exp(0.5 + 0.4 * 3840 / 7936)), "flow", 2.0),
    "flux2-klein-base": (flow(math.exp(2.0233511576)), "flow", 2.0),
    "cogview4": (flow(0.25 + 0.75 * 4.0), "flow", 2.0),
    "hidream-i1": (flow(3.0), "flow", 2.0),
    "hunyuan-image21": (flow(5.0), "flow", 2.0),
    "kandinsky5-image": (flow(3.0), "flow", 2.0),
    "kandinsky5-video": (flow(10.0), "flow", 2.0),
    "ltx-2": (flow(math.exp(2.05)), "flow", 2.0),
    "z-image": (flow(6.0), "flow", 2.0),
    "z-image-turbo": (flow(3.0), "flow", 2.0),
    "chroma": (flow(3.0), "flow", 2.0),
    "sana": (flow(3.0), "flow", 2.0),
    "auraflow": (flow(1.73), "flow", 2.0),
    "lumina2": (flow(6.0), "flow", 2.0),
    "ltx-video": (flow(math.exp(2.05)), "flow", 2.0),
    "hunyuan-video": (flow(7.0), "flow", 2.0),
    "wan21": (flow(3.0), "flow", 2.0),
    "wan22-t2v": (flow(3.0), "flow", 2.0),
    "wan22-i2v": (flow(3.0), "flow", 2.0),
    "wan22-5b": (flow(5.0), "flow", 2.0),
    "cogvideox-2b": (cogvideox(3.0), "vp", 2.0),
    "cogvideox-5b": (cogvideox(1.0), "vp", 2.0),
}


def test_every_preset_is_checked() -> None:
    assert set(EXPECTED) == set(PRESETS)


@pytest.mark.parametrize("name", EXPECTED)
def test_preset(name: str) -> None:
    lam, kind, p = EXPECTED[name]
    noise = preset(name)
    np.testing.assert_allclose(noise.lam(T), lam, rtol=0, atol=1e-9)
    assert (noise.kind, noise.name, PRESETS[name].p) == (kind, name, p)
    assert PRESETS[name].source and PRESETS[name].description
    v = dict.fromkeys(("sd21", "cogvideox-2b", "cogvideox-5b"), "v_prediction")
    assert noise.prediction == v.get(name, {"vp": "epsilon", "ve": "edm", "flow": "flow_prediction"}[kind])
    assert bool(PRESETS[name].resolution) == (kind == "flow")


def test_flux_follows_the_image_s_size() -> None:
    np.testing.assert_allclose(preset("flux-dev", image_seq_len=256).lam(T), flow(math.exp(0.5)), atol=1e-9)


def test_flux2_follows_the_image_s_size() -> None:
    np.testing.assert_allclose(preset("flux2-dev", image_seq_len=1024).lam(T), flow(flux2_shift(1024)), atol=1e-9)


def test_only_wan_22_has_two_experts() -> None:
    boundaries = {name: entry.boundary for name, entry in PRESETS.items() if entry.boundary is not None}
    assert boundaries == {"wan22-t2v": 0.875, "wan22-i2v": 0.9}


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'sd14' is not a preset; did you mean sd21.*sd21-base.*cogvideox-5b"):
        preset("sd14")
