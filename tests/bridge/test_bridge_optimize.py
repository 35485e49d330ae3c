"""`optimize_pipeline` ties reading the noise, the search and the installation together."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
from cases import SD, noise_of
from pipelines import family_of

from bridge import noise_of as noise_of_module
from bridge import optimize_pipeline, schedule_of
from bridge.guidance import usual_guidance
from hso_jax.bilevel import Effort
from hso_jax.noise import NoiseSchedule
from hso_jax.profile import Profile
from hso_jax.schedule import Schedule
from hso_jax.schedule_file import to_json


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The search replaced by evenly spaced nodes; what it was asked for."""
    calls: list[dict[str, Any]] = []

    def search(noise: NoiseSchedule, nfe: int, *, layout: str = "node", **options: Any) -> Schedule:
        calls.append({"noise": noise, "nfe": nfe, "layout": layout, **options})
        return Schedule.from_t(noise, np.linspace(0.95, 0.05, nfe + (layout == "interval")), layout=layout)

    monkeypatch.setattr("bridge.optimize.search", search)
    return calls


def test_searches_for_the_pipelines_noise_and_installs(asked: list[dict[str, Any]]) -> None:
    pipe = SimpleNamespace(scheduler=diffusers.UniPCMultistepScheduler(**SD))
    schedule = optimize_pipeline(pipe, 5, method="hso", seed=3)
    assert asked[0]["noise"].fingerprint() == noise_of("sd15").fingerprint()
    assert (asked[0]["nfe"], asked[0]["layout"], asked[0]["seed"]) == (5, "node", 3)
    assert schedule_of(pipe).timesteps.tolist() == schedule.timesteps.tolist()
    assert (schedule.nfe, schedule.end) == (5, "clean")


def test_reads_the_noise_once(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[Any] = []
    read = noise_of_module._cached

    def counted(*key: Any) -> NoiseSchedule:
        reads.append(key)
        return read(*key)

    monkeypatch.setattr(noise_of_module, "_cached", counted)
    pipe = SimpleNamespace(scheduler=diffusers.DDIMScheduler(**SD))
    optimize_pipeline(pipe, 6, method="zoo")
    assert len(reads) == 1
    assert pipe.scheduler.config.hso_schedule == json.loads(to_json(schedule_of(pipe)))


def test_the_end_chooses_the_layout(asked: list[dict[str, Any]]) -> None:
    pipe = SimpleNamespace(scheduler=diffusers.DDIMScheduler(**SD))
    assert optimize_pipeline(pipe, 4, method="hso", end="t_eps").end == "t_eps"
    assert optimize_pipeline(pipe, 4, method="hso", end="clean", layout="interval").end == "clean"
    assert [call["layout"] for call in asked] == ["interval", "interval"]


def test_dynamic_shift_reaches_the_search(asked: list[dict[str, Any]]) -> None:
    pipe = SimpleNamespace(scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True))
    for sizes in ({"image_seq_len": 4096}, {"image_seq_len": 1024}, {"mu": 0.5}):
        optimize_pipeline(pipe, 4, method="hso", **sizes)
    assert len({call["noise"].fingerprint() for call in asked}) == 3


def test_a_failure_leaves_the_pipeline_as_it_was(asked: list[dict[str, Any]]) -> None:
    pipe = SimpleNamespace(scheduler=diffusers.EulerAncestralDiscreteScheduler(**SD, prediction_type="sample"))
    before = pipe.scheduler
    with pytest.raises(ValueError, match="prediction_type"):
        optimize_pipeline(pipe, 4, method="hso")
    assert pipe.scheduler is before


@pytest.mark.parametrize(
    ("cls", "weight", "why"),
    [
        ("StableDiffusionPipeline", 7.5, "the pipeline's default guidance_scale"),
        ("StableDiffusionXLPipeline", 5.0, "the pipeline's default guidance_scale"),
        ("StableDiffusion3Pipeline", 7.0, "the pipeline's default guidance_scale"),
        ("PixArtAlphaPipeline", 4.5, "the pipeline's default guidance_scale"),
        ("FluxPipeline", 1.0, "the pipeline's default true_cfg_scale"),
    ],
)
def test_the_zoo_is_asked_for_the_pipelines_guidance_and_says_so(
    cls: str, weight: float, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe = family_of(cls).build()
    schedule = optimize_pipeline(pipe, 6, method="zoo")
    said = capsys.readouterr().err
    assert schedule.guidance == weight
    for part in (cls, "N = 6", f"solver {schedule.solver}", f"guidance {weight:g} ({why})", "num_inference_steps=6"):
        assert part in said
    assert optimize_pipeline(pipe, 6, method="zoo", guidance=1.0).guidance == 1.0
    assert "guidance 1 (as asked)" in capsys.readouterr().err


def test_the_search_on_the_solver_s_error_too(asked: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    pipe = family_of("StableDiffusionPipeline").build()
    optimize_pipeline(pipe, 4, method="solver-error")
    assert asked[0]["method"].guidance == 7.5
    optimize_pipeline(pipe, 4, method="hso")
    assert asked[1]["method"] == "hso"
    assert "N = 4, any solver, any guidance" in capsys.readouterr().err
    profile = Profile((1.0,), 2.0, 4)
    optimize_pipeline(pipe, 4, method="solver-error", profile=profile)
    assert asked[2]["method"].profile is profile and asked[2]["method"].guidance == 7.5


class Called(SimpleNamespace):
    def __call__(self, prompt: str, guidance_scale: float = 9.0) -> None: ...


class Turbo(SimpleNamespace):
    def __call__(self, prompt: str, guidance_scale: float = 0.0) -> None: ...


class Silent(SimpleNamespace):
    def __call__(self, labels: list[int]) -> None: ...


class ZImagePipeline(Called):
    def __call__(self, prompt: str, guidance_scale: float = 4.0) -> None: ...


def network(**config: Any) -> Any:
    return SimpleNamespace(config=config)


@pytest.mark.parametrize(
    ("pipe", "weight", "why"),
    [
        (Called(), 9.0, "default guidance_scale"),
        (Called(unet=network(time_cond_proj_dim=None)), 9.0, "default guidance_scale"),
        (Called(unet=network(time_cond_proj_dim=256)), 1.0, "an input of the network"),
        (Called(transformer=network(guidance_embeds=True)), 1.0, "an input of the network"),
        (Called(transformer=network(guidance_embeds=False)), 1.0, "an input of the network"),
        (Silent(), 1.0, "names no weight"),
        (SimpleNamespace(), 1.0, "names no weight"),
        (ZImagePipeline(), 5.0, "default guidance_scale"),  # cond + 4 (cond - uncond)
    ],
    ids=str,
)
def test_usual_guidance(pipe: Any, weight: float, why: str) -> None:
    found, reason = usual_guidance(pipe)
    assert found == weight and why in reason


def test_a_weight_that_is_not_shipped_becomes_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    pipe = Called(scheduler=diffusers.DDIMScheduler(**SD))
    assert optimize_pipeline(pipe, 5, method="zoo").guidance == 7.5
    assert "guidance 7.5 (shipped; the nearest to 9, the pipeline's default guidance_scale)" in capsys.readouterr().err


def test_with_the_real_search() -> None:
    pipe = SimpleNamespace(scheduler=diffusers.DPMSolverMultistepScheduler(**SD))
    schedule = optimize_pipeline(pipe, 4, method="hso", effort=Effort(population=8, generations=2))
    pipe.scheduler.set_timesteps(4)
    assert pipe.scheduler.timesteps.tolist() == np.float32(schedule.timesteps).tolist()
    assert schedule.method == "hso"


def test_a_weight_below_1_is_no_guidance_at_all() -> None:
    """Turbo pipelines say 0 for it; the weight of the class itself is 1."""
    assert usual_guidance(Turbo()) == (1.0, "the pipeline's default guidance_scale")
