"""Every preset against numbers written down from its source, and what its docstring promises."""

from __future__ import annotations

import math

import numpy as np
import problems
import pytest

from hso_jax.noise import PRESETS, preset

T = np.arange(1, 1000) / 1000
SD = problems.lam_of_bar(problems.SD_TABLE)[:-1]
LINEAR = problems.lam_of_bar(np.cumprod(1.0 - np.linspace(1e-4, 0.02, 1000)))[:-1]
EDM = problems.CLOSED_FORMS["edm"].lam(T)


def flow(shift: float) -> np.ndarray:
    return np.log((1.0 - T) / T) - math.log(shift)


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
    "flux-dev": (flow(math.exp(1.15)), "flow", 2.0),
    "flux-schnell": (flow(1.0), "flow", 2.0),
    "wan21": (flow(3.0), "flow", 2.0),
}


def test_the_issue_s_presets_are_all_there() -> None:
    assert set(EXPECTED) <= set(PRESETS)


@pytest.mark.parametrize("name", EXPECTED)
def test_preset(name: str) -> None:
    lam, kind, p = EXPECTED[name]
    noise = preset(name)
    np.testing.assert_allclose(noise.lam(T), lam, rtol=0, atol=1e-9)
    assert (noise.kind, noise.name, PRESETS[name].p) == (kind, name, p)
    assert PRESETS[name].source and PRESETS[name].description
    assert name in preset.__doc__
    assert PRESETS[name].prediction == {"sd21": "v_prediction"}.get(
        name, {"vp": "epsilon", "ve": "edm", "flow": "flow_prediction"}[kind]
    )


def test_flux_follows_the_image_s_size() -> None:
    np.testing.assert_allclose(preset("flux-dev", image_seq_len=256).lam(T), flow(math.exp(0.5)), atol=1e-9)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'sd14' is not a preset; presets: .*sd21-base.*wan21"):
        preset("sd14")
