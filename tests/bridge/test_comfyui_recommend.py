"""HSO Recommend without ComfyUI: what it takes from the zoo, and what it refuses."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from test_comfyui import discrete, float32, outputs
from test_comfyui import nodes as nodes  # the fixture
from test_comfyui_sampler import Ksampler
from test_comfyui_sampler import _comfy as _comfy  # the fixture

import hso_jax
from hso_jax import zoo


def recommend(nodes: ModuleType, **inputs: Any) -> tuple[Ksampler, torch.Tensor, str]:
    sampler, sigmas, why = outputs(nodes, "HsoRecommend", **inputs)
    return sampler, sigmas, why


@pytest.mark.parametrize("model", ["sdxl", "sd35-large", "qwen-image", "flux-dev", "pixart-sigma", "edm-cifar10"])
def test_it_is_what_recommend_says_at_the_usual_guidance(nodes: ModuleType, model: str) -> None:
    sampler, sigmas, why = recommend(nodes, model=model)
    wanted = hso_jax.recommend(model, 6)
    np.testing.assert_array_equal(sigmas, float32(wanted.schedule))
    assert sigmas.dtype == torch.float32 and sampler.options["nodes"] == wanted.schedule.sampler_sigmas().tolist()
    if wanted.schedule.coefficients is not None:
        assert sampler.options["coefficients"] == wanted.schedule.coefficients.tolist()
    assert why == wanted.reason


@pytest.mark.parametrize(("guidance", "shipped"), [(1.2, 1.0), (3.0, 5.0), (6.5, 7.5), (30.0, 7.5), (5.0, 5.0)])
def test_the_nearest_guidance_that_is_shipped_is_named(nodes: ModuleType, guidance: float, shipped: float) -> None:
    _, sigmas, why = recommend(nodes, guidance=guidance, steps=9)
    wanted = hso_jax.recommend("sdxl", 9, guidance=shipped).schedule
    np.testing.assert_array_equal(sigmas, float32(wanted))
    assert ("that is shipped)" in why) == (guidance != shipped) and f"guidance {shipped:g}" in why


@pytest.mark.parametrize(
    ("inputs", "sampler"),
    [({"model": "flux-schnell", "steps": 4}, "euler"), ({"guidance": 1.0, "steps": 4}, "euler")],
)
def test_distilled_models_keep_their_own(nodes: ModuleType, inputs: dict[str, Any], sampler: str) -> None:
    found, sigmas, why = recommend(nodes, **inputs)
    assert found == sampler and len(sigmas) == 5 and "distilled" in why
    assert (sigmas.numpy() / float(sigmas[0]) <= 1.0).all() and float(sigmas[-1]) == 0.0


def test_a_model_says_its_noise(nodes: ModuleType) -> None:
    for kinds, family in ((("EPS",), "sd15"), (("V_PREDICTION", "EPS"), "sd21")):
        model = discrete("SD15", family, *kinds)
        _, sigmas, _ = recommend(nodes, model="from MODEL", guidance=7.5, diffusion_model=model)
        np.testing.assert_allclose(sigmas, hso_jax.recommend(family, 6).schedule.sampler_sigmas(), rtol=1e-4)
    assert not np.allclose(zoo("sd15", 6).sampler_sigmas(), zoo("sd21", 6).sampler_sigmas(), rtol=1e-2)
    model = discrete("SD15", "sd15")
    with pytest.raises(ValueError, match="MODEL"):
        recommend(nodes, model="flux-dev", diffusion_model=model)
    with pytest.raises(ValueError, match=r"guidance is 0, .* set guidance to the cfg"):
        recommend(nodes, model="from MODEL", diffusion_model=model)


def test_denoise_keeps_the_last_steps(nodes: ModuleType) -> None:
    sampler, sigmas, _ = recommend(nodes, steps=3, denoise=0.5)
    np.testing.assert_array_equal(sigmas, float32(hso_jax.recommend("sdxl", 6).schedule, 3))
    assert len(sampler.options["coefficients"]) == 3
    assert len(recommend(nodes, denoise=0.0)[1]) == 0


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"model": "sd9"}, "'sd9' is not a preset"),
        ({"steps": 20, "denoise": 0.02}, "of 1000 steps.*use at most 19 steps, or a denoise of 0.03 or more"),
        ({"model": "from MODEL"}, "connect MODEL"),
        ({"denoise": 1.5}, "denoise is 1.5"),
    ],
)
def test_what_is_refused(nodes: ModuleType, inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recommend(nodes, **inputs)
