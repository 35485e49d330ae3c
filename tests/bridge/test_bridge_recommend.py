"""What is recommended for the pipeline at hand, what it has now, and that it is what `optimize_pipeline` installs."""

from __future__ import annotations

import warnings
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
from bridge.at_hand import distillation_of, rule_of
from bridge.guidance import guidance_call, usual_guidance
from hso_jax.noise import edm, flow, preset
from hso_jax.shipped.recommend import OWN, Before

LEADING = {**SD, "timestep_spacing": "leading", "steps_offset": 1}
DYNAMIC = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}
UNIPC_FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}


DMD = SimpleNamespace(base_model_name_or_path="dmd2")


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
    assert found.before.error > found.error and f"{found.before.error:.3g}" in found.reason
    assert "default guidance_scale" in found.reason


def test_embedded_guidance_is_none() -> None:
    """FLUX evaluates once, whatever its guidance_scale."""
    network = SimpleNamespace(config={"guidance_embeds": True})
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(**DYNAMIC)
    found = bridge.recommend(pipeline(scheduler, "FluxPipeline", 3.5, transformer=network), 6, image_seq_len=4096)
    assert found.guidance == 1.0 and found.distilled is None and "an input of the network" in found.reason
    assert found.solver == hso_jax.recommend("flux-dev", 6).solver
    assert found.error == pytest.approx(hso_jax.recommend("flux-dev", 6).error)


def test_the_solver_is_kept_where_it_is_asked_for() -> None:
    pipe = pipeline(diffusers.UniPCMultistepScheduler(**SD, solver_order=3))
    kept = bridge.recommend(pipe, 6, solver=bridge.solver_of(pipe.scheduler))
    assert kept.solver == "unipc-3" and kept.gain > 0 and "Switching to" in kept.reason


def test_solvers_that_are_not_known_are_named() -> None:
    found = bridge.recommend(pipeline(diffusers.EulerAncestralDiscreteScheduler(**SD)), 6)
    assert found.before == Before("EulerAncestralDiscreteScheduler", "linspace", None)
    assert "EulerAncestralDiscreteScheduler" in found.reason


@pytest.mark.parametrize(
    ("pipe", "kind", "how"),
    [
        (pipeline(diffusers.LCMScheduler(**SD)), "lcm", "LCMScheduler"),
        (pipeline(diffusers.TCDScheduler(**SD)), "tcd", "TCDScheduler"),
        (pipeline(diffusers.FlowMatchLCMScheduler()), "lcm", "FlowMatchLCMScheduler"),
        (
            pipeline(diffusers.DDIMScheduler(**SD), unet=SimpleNamespace(config={"time_cond_proj_dim": 256})),
            "lcm",
            "guidance weight",
        ),
        (
            pipeline(
                diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0),
                "FluxPipeline",
                transformer=SimpleNamespace(config={"guidance_embeds": False}),
            ),
            "schnell",
            "takes no guidance",
        ),
        (
            pipeline(diffusers.EulerDiscreteScheduler(**SD), name_or_path="stabilityai/sdxl-turbo"),
            "turbo",
            "sdxl-turbo",
        ),
        (
            pipeline(
                diffusers.EulerDiscreteScheduler(**SD),
                unet=SimpleNamespace(config={"_name_or_path": "ByteDance/SDXL-Lightning"}),
            ),
            "lightning",
            "SDXL-Lightning",
        ),
        (
            pipeline(
                diffusers.EulerDiscreteScheduler(**SD),
                unet=SimpleNamespace(config={}, peft_config={"hyper": None}, active_adapters=lambda: ["hyper"]),
            ),
            "hyper",
            "hyper",
        ),
        (
            pipeline(
                diffusers.EulerDiscreteScheduler(**SD),
                transformer=SimpleNamespace(
                    config={}, peft_config={"a": SimpleNamespace(base_model_name_or_path="dmd2")}
                ),
            ),
            "dmd",
            "dmd2",
        ),
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


def test_other_loras_are_none_and_inactive_ones_do_not_count() -> None:
    unet = SimpleNamespace(config={}, peft_config={"style": None, "lcm": None}, active_adapters=lambda: ["style"])
    assert distillation_of(pipeline(diffusers.DDIMScheduler(**SD), unet=unet)) is None


def test_few_steps_without_guidance_are_a_distilled_model_s() -> None:
    pipe = pipeline(diffusers.EulerDiscreteScheduler(**SD))
    assert bridge.recommend(pipe, 4, guidance=0.0).distilled == "few-step"
    assert bridge.recommend(pipe, 4, guidance=1.0, distilled=False).distilled is None


@pytest.mark.parametrize("family", ["StableDiffusionXLPipeline", "StableDiffusion3Pipeline", "FluxPipeline"])
def test_optimize_pipeline_installs_it(family: str, capsys: pytest.CaptureFixture[str]) -> None:
    pipe = family_of(family).build()
    best = bridge.recommend(pipe, 6)
    schedule = bridge.optimize_pipeline(pipe, 6)
    assert schedule == best.schedule
    said = capsys.readouterr().err
    assert family in said and "N = 6" in said and best.reason in said and "num_inference_steps=6" in said
    np.testing.assert_allclose(bridge.schedule_of(pipe).timesteps, schedule.timesteps)
    assert bridge.recommend(pipe, 6).before == Before("nonstationary", "solver-error", best.error)


def test_a_known_solver_is_installed_in_its_own_class_or_as_coefficients() -> None:
    own = pipeline(diffusers.DPMSolverMultistepScheduler(**SD))
    bridge.optimize_pipeline(own, 6, solver="dpmpp-2m")
    assert type(own.scheduler).__name__ == "DPMSolverMultistepScheduler"
    other = pipeline(diffusers.EulerDiscreteScheduler(**SD))
    schedule = bridge.optimize_pipeline(other, 6, solver="dpmpp-2m")
    assert type(other.scheduler).__name__ == "NonstationaryScheduler" and schedule.solver == "dpmpp-2m"
    x = {}
    for pipe in (own, other):
        scheduler = pipe.scheduler
        scheduler.set_timesteps(6)
        x[pipe is own] = torch.linspace(-1.0, 1.0, 8, dtype=torch.float64)
        for t in scheduler.timesteps:
            x[pipe is own] = scheduler.step(torch.tanh(x[pipe is own]), t, x[pipe is own]).prev_sample
    torch.testing.assert_close(x[True], x[False], rtol=1e-4, atol=1e-4)
    assert type(bridge.without_schedule(other.scheduler)).__name__ == "EulerDiscreteScheduler"


def test_what_is_not_shipped_is_searched(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked = []

    def search(noise: Any, nfe: int, *, method: Any) -> Any:
        asked.append(method)
        return hso_jax.Schedule.from_t(noise, np.linspace(0.9, 0.1, nfe))

    monkeypatch.setattr("bridge.optimize.search", search)
    pipe = pipeline(diffusers.EDMEulerScheduler(sigma_min=0.01, sigma_max=11.0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bridge.optimize_pipeline(pipe, 4)
        bridge.optimize_pipeline(pipe, 4, guidance=3.0, distilled=False)
    assert [(how.solver, how.guidance) for how in asked] == [("ddim", 5.0), ("ddim", 3.0)]
    assert "a search on the solver's error takes its place" in capsys.readouterr().err
    with pytest.raises(ValueError, match="SolverError"):
        bridge.recommend(pipe, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "interval"}, "layout: not of method 'recommend'.*method='hso'"),
        ({"seed": 1, "effort": None}, "seed, effort: not of method"),
        ({"end": "t_eps"}, "method='hso'"),
    ],
)
def test_options_of_a_search_need_one(options: dict[str, Any], message: str) -> None:
    pipe = pipeline(diffusers.DDIMScheduler(**SD))
    before = pipe.scheduler
    with pytest.raises(ValueError, match=message):
        bridge.optimize_pipeline(pipe, 4, **options)
    assert pipe.scheduler is before


def test_a_pipeline_that_cannot_change_its_solver_keeps_it() -> None:
    """Pipelines with CosineDPMSolver count on its own form of timesteps."""
    pipe = pipeline(diffusers.EulerDiscreteScheduler(**SD))
    refuse = SimpleNamespace(calls=0)

    def from_schedule(*args: Any, **kwargs: Any) -> None:
        refuse.calls += 1
        raise ValueError("no")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bridge.optimize.NonstationaryScheduler", SimpleNamespace(from_schedule=from_schedule))
        schedule = bridge.optimize_pipeline(pipe, 6)
    assert refuse.calls == 1 and schedule.solver == "ddim"
    assert type(pipe.scheduler).__name__ == "EulerDiscreteScheduler" and bridge.schedule_of(pipe) is not None


def test_rules_are_told_for_every_kind_of_noise() -> None:
    for noise in (preset("sdxl"), flow(3.0), edm()):
        scheduler = {
            "vp": lambda: diffusers.DDIMScheduler(**SD),
            "flow": lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
            "ve": lambda: diffusers.EDMEulerScheduler(),
        }[noise.kind]()
        assert rule_of(pipeline(scheduler), bridge.noise_schedule_of(scheduler), 5)


def test_a_pipeline_that_adds_its_guidance_is_called_with_one_less() -> None:
    """Z-Image and Cosmos write cond + scale (cond - uncond)."""
    for name, scale in (("ZImagePipeline", 4.0), ("StableDiffusionPipeline", 5.0)):
        pipe = pipeline(diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), name)
        assert guidance_call(pipe, 5.0, {}) == {"guidance_scale": scale}
        assert usual_guidance(pipe)[0] == pytest.approx(5.0 + (5.0 - scale))
