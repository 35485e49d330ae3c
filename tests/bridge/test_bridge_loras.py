"""Distilled pipelines: LoRAs that are active, fused, disabled or unloaded, configs, and the levels of their own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from cases import SD
from test_bridge_recommend import pipeline

import bridge
from bridge.at_hand import active_loras, distillation_of

EULER = diffusers.EulerDiscreteScheduler(**SD)


class Layer(torch.nn.Module):
    """What peft 0.21 leaves in a network that has adapters."""

    def __init__(self, active: list[str], weights: dict[str, float], fused: tuple[str, ...] = (), off: bool = False):
        super().__init__()
        self.active_adapters, self.scaling, self.merged_adapters, self.disable_adapters = active, weights, fused, off


def network(*layers: Layer, names: tuple[str, ...] = ("default_0", "style")) -> torch.nn.Module:
    found = torch.nn.Sequential(torch.nn.Linear(1, 1), *layers)
    found.config, found.peft_config = {}, dict.fromkeys(names, SimpleNamespace(base_model_name_or_path=None))
    return found


@pytest.mark.parametrize(
    ("parts", "active"),
    [
        ({"unet": network(Layer(["default_0"], {"default_0": 4.0, "style": 4.0}))}, ["default_0"]),
        ({"unet": network(Layer(["default_0", "style"], {"default_0": 4.0, "style": 0.0}))}, ["default_0"]),
        ({"unet": network(Layer(["default_0"], {"default_0": 0.0}))}, []),
        ({"unet": network(Layer(["style"], {"style": 0.0}), Layer(["style"], {"style": 1.0}))}, ["style"]),
        ({"unet": network(Layer(["style"], {"style": 4.0}, off=True))}, []),
        ({"unet": network(Layer([], {"style": 4.0}, fused=("style",))), "fused_loras": {"style"}}, ["style"]),
        ({"unet": SimpleNamespace(config={}), "_merged_adapters": {"default_0"}}, ["default_0"]),  # and unloaded
        ({"unet": SimpleNamespace(config={}), "_merged_adapters": set()}, []),
        ({"transformer_2": network(Layer(["default_0"], {"default_0": 1.0}))}, ["default_0"]),
        ({"text_encoder": network(Layer(["default_0"], {"default_0": 1.0})), "fused_loras": {"default_0"}}, []),
        ({"unet": SimpleNamespace(config={}, peft_config={"a": None}, active_adapters=lambda: "a")}, ["a"]),
    ],
)
def test_loras_count_while_they_change_what_the_network_predicts(parts: dict[str, Any], active: list[str]) -> None:
    pipe = pipeline(EULER, **parts)
    assert active_loras(pipe) == active
    assert distillation_of(pipe) is None
    reason = bridge.recommend(pipe, 4).reason
    assert ("LoRA" in reason and "`distilled=`" in reason) == bool(active)
    assert "LoRA" not in bridge.recommend(pipe, 4, distilled=False).reason
    assert "LoRA" not in bridge.recommend(pipe, 9).reason


def test_a_fused_lora_with_a_telling_name_tells() -> None:
    pipe = pipeline(EULER, unet=SimpleNamespace(config={}), fused_loras={"sdxl_lightning_4step"})
    assert bridge.recommend(pipe, 4).distilled == "lightning"


@pytest.mark.parametrize(
    ("name", "parts", "kind"),
    [
        ("Flux2KleinPipeline", {"config": {"is_distilled": True}}, "klein"),
        ("Flux2KleinPipeline", {"config": {"is_distilled": False}}, None),
        ("Flux2Pipeline", {"transformer": SimpleNamespace(config={"guidance_embeds": False})}, None),
        ("Krea2Pipeline", {"config": {"is_distilled": True}}, "few-step"),
        ("AceStepPipeline", {"transformer": SimpleNamespace(config={"is_turbo": True})}, "turbo"),
        ("DreamLiteMobilePipeline", {}, "few-step"),
        ("FluxPipeline", {"name_or_path": "./FLUX.1-dev-De-Distill"}, None),
        ("WanPipeline", {"name_or_path": "Wan-AI/Wan2.1-T2V-14B"}, None),
    ],
)
def test_configs_and_classes_of_pipelines_tell(name: str, parts: dict[str, Any], kind: str | None) -> None:
    found = distillation_of(pipeline(diffusers.FlowMatchEulerDiscreteScheduler(), name, **parts))
    assert (found and found[0]) == kind


@pytest.mark.parametrize(
    "scheduler",
    [
        diffusers.FlowMatchLCMScheduler(shift=3.0),
        diffusers.LCMScheduler(**SD),
        diffusers.LCMScheduler(**SD, original_inference_steps=100),
        diffusers.TCDScheduler(**SD),
    ],
)
@pytest.mark.parametrize("nfe", [1, 2, 4, 8])
def test_a_scheduler_of_distilled_models_keeps_its_own_levels(scheduler: Any, nfe: int) -> None:
    found = bridge.recommend(pipeline(scheduler, "WanPipeline"), nfe).schedule
    scheduler.set_timesteps(nfe)
    np.testing.assert_allclose(found.timesteps, scheduler.timesteps, atol=1.01)


def test_a_pipeline_that_gives_its_scheduler_sigmas_samples_at_those() -> None:
    found = bridge.recommend(pipeline(diffusers.FlowMatchLCMScheduler(shift=3.0), "FluxPipeline"), 4).schedule
    t = 1.0 - np.arange(4) / 4
    np.testing.assert_allclose(found.sampler_sigmas()[:-1], 3.0 * t / (1.0 + 2.0 * t), atol=1.01e-3)


@pytest.mark.parametrize("nfe", [1, 2, 4])
def test_sana_sprint_keeps_its_angles(nfe: int) -> None:
    found = bridge.recommend(pipeline(diffusers.SCMScheduler(), "SanaSprintPipeline"), nfe)
    angles = {1: [np.pi / 2], 2: [np.pi / 2, 1.3], 4: np.pi / 2 * np.array([1.0, 0.75, 0.5, 0.25])}[nfe]
    wanted = np.sin(angles) / (np.sin(angles) + np.cos(angles))
    assert found.distilled == "sprint"
    np.testing.assert_allclose(found.schedule.sampler_sigmas()[:-1], wanted, atol=1.01e-3)


@pytest.mark.parametrize(
    ("name", "rule"), [("FluxPipeline", "trailing"), ("WanPipeline", "linspace"), ("LTXPipeline", "trailing")]
)
def test_pipelines_that_give_no_sigmas_leave_the_grid_to_the_scheduler(name: str, rule: str) -> None:
    pipe = pipeline(diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), name)
    assert bridge.recommend(pipe, 6).before.nodes == rule
