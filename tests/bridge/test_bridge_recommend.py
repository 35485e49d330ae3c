"""What is recommended for the pipeline at hand, what it has now, and that it is what `optimize_pipeline` installs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from cases import SD
from pipelines import family_of

import bridge
import hso_jax
from bridge.at_hand import active_loras, distillation_of, guidance_call, rule_of, usual_guidance
from hso_jax import SolverError
from hso_jax.bilevel import Effort
from hso_jax.shipped.recommend import OWN, CurrentSampling

LEADING = {**SD, "timestep_spacing": "leading", "steps_offset": 1}
DYNAMIC = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}
UNIPC_FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}


def pipeline(scheduler: Any, name: str = "Pipeline", guidance: float = 5.0, **parts: Any) -> Any:
    """Something with a scheduler that is called as pipelines are."""

    def call(self: Any, prompt: str, guidance_scale: float = guidance) -> None: ...

    return type(name, (SimpleNamespace,), {"__call__": call})(scheduler=scheduler, **parts)


@pytest.mark.parametrize(
    ("scheduler", "name", "rule"),
    [
        (lambda: diffusers.DDIMScheduler(**LEADING), "StableDiffusionPipeline", "leading"),
        (lambda: diffusers.EulerDiscreteScheduler(**LEADING), "StableDiffusionXLPipeline", "leading"),
        (lambda: diffusers.EulerDiscreteScheduler(**SD), "StableDiffusionXLPipeline", "linspace"),
        (lambda: diffusers.DDIMScheduler(**SD, timestep_spacing="trailing"), "StableDiffusionPipeline", "trailing"),
        (lambda: diffusers.EulerDiscreteScheduler(**SD, use_karras_sigmas=True), "StableDiffusionXLPipeline", "karras"),
        (lambda: diffusers.EulerDiscreteScheduler(**SD, use_beta_sigmas=True), "StableDiffusionXLPipeline", "beta"),
        (lambda: diffusers.EulerDiscreteScheduler(**SD, use_exponential_sigmas=True), "SDXL", "uniform-lam"),
        (lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), "FluxPipeline", "trailing"),
        (lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), "StableDiffusion3Pipeline", "linspace"),
        (lambda: diffusers.FlowMatchEulerDiscreteScheduler(**DYNAMIC), "FluxPipeline", "trailing"),
        (lambda: diffusers.EDMEulerScheduler(), "Pipeline", "karras"),
        (lambda: diffusers.EDMEulerScheduler(sigma_schedule="exponential"), "Pipeline", "uniform-lam"),
        (lambda: diffusers.DPMSolverMultistepScheduler(**LEADING), "Pipeline", "its own"),  # spaced for N + 1 steps
        (lambda: diffusers.HeunDiscreteScheduler(**SD), "Pipeline", "its own"),  # every inner node twice
    ],
)
def test_the_rule_that_spaces_the_levels_is_told(scheduler: Any, name: str, rule: str) -> None:
    pipe = pipeline(scheduler(), name)
    assert rule_of(pipe, bridge.noise_schedule_of(pipe), 6) == rule


@pytest.mark.parametrize(
    ("scheduler", "name", "same"),
    [
        (lambda: diffusers.EulerDiscreteScheduler(**LEADING), "StableDiffusionXLPipeline", ("sdxl", 5.0)),
        (lambda: diffusers.DDIMScheduler(**LEADING, prediction_type="v_prediction"), "Pipeline", ("sd21", 7.5)),
        (lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), "StableDiffusion3Pipeline", ("sd3-medium", 7.0)),
        (lambda: diffusers.UniPCMultistepScheduler(**UNIPC_FLOW), "WanPipeline", ("wan21", 5.0)),
    ],
)
def test_it_is_the_model_s(scheduler: Any, name: str, same: tuple[str, float]) -> None:
    model, guidance = same
    scheduler = scheduler()
    found = bridge.recommend(pipeline(scheduler, name, guidance), 6)
    expected = hso_jax.recommend(model, 6)
    np.testing.assert_allclose(found.schedule.lams[1:], expected.schedule.lams[1:], atol=1e-6)
    assert (found.solver, found.error, found.guidance) == (expected.solver, expected.error, guidance)
    assert found.before is not None and found.before.solver == bridge.solver_of(scheduler)
    assert found.before.error == found.errors[found.before.solver][found.before.nodes]
    assert found.before.error > found.error and found.expected is not None
    assert found.expected.words(f"the pipeline's {found.before.solver} with {found.before.nodes}") in found.reason
    assert "default guidance_scale" in found.reason


def test_embedded_guidance_is_none() -> None:
    """FLUX evaluates once, whatever its guidance_scale."""
    network = SimpleNamespace(config={"guidance_embeds": True})
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(**DYNAMIC)
    found = bridge.recommend(pipeline(scheduler, "FluxPipeline", 3.5, transformer=network), 6, image_seq_len=4096)
    assert found.guidance == 1.0 and found.distilled is None and "an input of the network" in found.reason
    assert found.solver == hso_jax.recommend("flux-dev", 6).solver
    assert found.error == pytest.approx(hso_jax.recommend("flux-dev", 6).error)


def test_a_requested_solver_is_kept() -> None:
    pipe = pipeline(diffusers.UniPCMultistepScheduler(**SD, solver_order=3))
    kept = bridge.recommend(pipe, 6, solver=bridge.solver_of(pipe.scheduler))
    assert kept.solver == "unipc-3" and f"By prediction {kept.better} has less error." in kept.reason


def test_solvers_that_are_not_known_are_named() -> None:
    found = bridge.recommend(pipeline(diffusers.EulerAncestralDiscreteScheduler(**SD)), 6)
    assert found.before == CurrentSampling("EulerAncestralDiscreteScheduler", "linspace", None)
    assert "EulerAncestralDiscreteScheduler" in found.reason


EULER = diffusers.EulerDiscreteScheduler(**SD)
FLOW_EULER = diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0)


def net(**config: Any) -> Any:
    return SimpleNamespace(config=config)


def lora(name: str, loaded: Any = None, **more: Any) -> Any:
    return SimpleNamespace(config={}, peft_config={name: loaded}, **more)


@pytest.mark.parametrize(
    ("pipe", "kind", "how"),
    [
        (pipeline(diffusers.LCMScheduler(**SD)), "lcm", "LCMScheduler"),
        (pipeline(diffusers.TCDScheduler(**SD)), "tcd", "TCDScheduler"),
        (pipeline(diffusers.FlowMatchLCMScheduler()), "lcm", "FlowMatchLCMScheduler"),
        (pipeline(diffusers.DDIMScheduler(**SD), unet=net(time_cond_proj_dim=256)), "lcm", "guidance weight"),
        (pipeline(FLOW_EULER, "FluxPipeline", transformer=net(guidance_embeds=False)), "schnell", "takes no guidance"),
        (pipeline(EULER, name_or_path="stabilityai/sdxl-turbo"), "turbo", "sdxl-turbo"),
        (pipeline(EULER, unet=net(_name_or_path="ByteDance/SDXL-Lightning")), "lightning", "SDXL-Lightning"),
        (pipeline(EULER, unet=lora("hyper", active_adapters=lambda: ["hyper"])), "hyper", "hyper"),
        (pipeline(EULER, transformer=lora("a", SimpleNamespace(base_model_name_or_path="dmd2"))), "dmd", "dmd2"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_distilled_models_keep_their_own(pipe: Any, kind: str, how: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = distillation_of(pipe)
    assert found is not None and found[0] == kind and how in found[1]
    before = pipe.scheduler
    best = bridge.recommend(pipe, 4)
    assert best.distilled == kind and best.solver == OWN and how in best.reason
    assert bridge.optimize_pipeline(pipe, 4).method == f"own-{kind}"
    assert pipe.scheduler is before and "left as it is" in capsys.readouterr().err


def test_a_lora_without_a_telling_name_is_noted(capsys: pytest.CaptureFixture[str]) -> None:
    unet = SimpleNamespace(config={}, peft_config={"style": None}, active_adapters=lambda: ["style"])
    for nfe in (6, 12):  # too many for a distilled model
        bridge.optimize_pipeline(pipeline(diffusers.DDIMScheduler(**SD), unet=unet), nfe, guidance=7.5)
        assert ("note:   a LoRA is active (style)" in capsys.readouterr().err) == (nfe == 6)


def test_inactive_loras_do_not_count() -> None:
    unet = SimpleNamespace(config={}, peft_config={"style": None, "lcm": None}, active_adapters=lambda: ["style"])
    assert distillation_of(pipeline(diffusers.DDIMScheduler(**SD), unet=unet)) is None


def test_few_steps_without_guidance_mean_distilled() -> None:
    pipe = pipeline(diffusers.EulerDiscreteScheduler(**SD))
    assert bridge.recommend(pipe, 4, guidance=0.0).distilled == "few-step"
    assert bridge.recommend(pipe, 4, guidance=1.0, distilled=False).distilled is None


@pytest.mark.parametrize("family", ["StableDiffusionXLPipeline", "StableDiffusion3Pipeline", "FluxPipeline"])
def test_optimize_pipeline_installs_it(family: str, capsys: pytest.CaptureFixture[str]) -> None:
    pipe = family_of(family).shared()
    best = bridge.recommend(pipe, 6)
    schedule = bridge.optimize_pipeline(pipe, 6)
    assert schedule == best.schedule
    said = capsys.readouterr().err
    assert said.startswith("before: ") and f"now:    6 steps of {best.solver}, " in said
    assert best.expected is not None and best.expected.words("before") in said
    np.testing.assert_allclose(bridge.schedule_of(pipe).timesteps, schedule.timesteps)
    again = bridge.recommend(pipe, 6)
    assert again.before == CurrentSampling(best.solver, "solver-error", best.error) and again.is_there


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "interval"}, "method 'recommend' does not take layout .*method='hso'"),
        ({"seed": 1, "effort": Effort()}, "does not take seed, effort"),
        ({"method": "hso", "solver": "ddim"}, "method 'hso' does not take solver .*leave it out"),
        ({"method": "zoo", "seed": 0}, "method 'zoo' does not take seed"),
        ({"method": SolverError("ddim"), "guidance": 3.0}, "method SolverError.* does not take guidance"),
        ({"end": "t_eps"}, "method='hso'"),
    ],
)
def test_options_of_a_search_need_one(options: dict[str, Any], message: str) -> None:
    pipe = pipeline(diffusers.DDIMScheduler(**SD))
    before = pipe.scheduler
    with pytest.raises(ValueError, match=message):
        bridge.optimize_pipeline(pipe, 4, **options)
    assert pipe.scheduler is before


def test_a_pipeline_may_keep_its_solver() -> None:
    """Pipelines with CosineDPMSolver count on its own form of timesteps."""
    pipe = pipeline(diffusers.EulerDiscreteScheduler(**SD))
    refuse = SimpleNamespace(calls=0)

    def from_schedule(*args: Any, **kwargs: Any) -> None:
        refuse.calls += 1
        raise ValueError("no")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bridge.recommending.NonstationaryScheduler", SimpleNamespace(from_schedule=from_schedule))
        schedule = bridge.optimize_pipeline(pipe, 6)
        with pytest.raises(ValueError, match="no"):
            bridge.optimize_pipeline(pipe, 6, solver="unipc-3")
    assert refuse.calls == 2 and schedule.solver == "ddim"
    assert type(pipe.scheduler).__name__ == "EulerDiscreteScheduler" and bridge.schedule_of(pipe) is not None


def test_added_guidance_is_one_less() -> None:
    """Z-Image and Cosmos write cond + scale (cond - uncond)."""
    for name, scale in (("ZImagePipeline", 4.0), ("StableDiffusionPipeline", 5.0)):
        pipe = pipeline(diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), name)
        assert guidance_call(pipe, 5.0, {}) == {"guidance_scale": scale}
        assert usual_guidance(pipe)[0] == pytest.approx(5.0 + (5.0 - scale))


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
def test_loras_count_while_they_are_active(parts: dict[str, Any], active: list[str]) -> None:
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
def test_distilled_schedulers_keep_their_own_levels(scheduler: Any) -> None:
    for nfe in (1, 4):
        found = bridge.recommend(pipeline(scheduler, "WanPipeline"), nfe).schedule
        scheduler.set_timesteps(nfe)
        np.testing.assert_allclose(found.timesteps, scheduler.timesteps, atol=1.01)


def test_sigmas_that_a_pipeline_gives_are_used() -> None:
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
def test_without_sigmas_the_scheduler_has_its_grid(name: str, rule: str) -> None:
    pipe = pipeline(diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), name)
    assert bridge.recommend(pipe, 6).before.nodes == rule
