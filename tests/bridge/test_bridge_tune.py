"""`optimize_pipeline` ties reading the noise, the search and the installation together."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
from cases import SD, noise_of

from bridge import optimize_pipeline, schedule_of
from hso_jax.methods.hso.search import Effort
from hso_jax.noise import NoiseSchedule
from hso_jax.schedule import Schedule


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The search replaced by evenly spaced nodes; what it was asked for."""
    calls: list[dict[str, Any]] = []

    def search(noise: NoiseSchedule, nfe: int, *, layout: str = "node", **options: Any) -> Schedule:
        calls.append({"noise": noise, "nfe": nfe, "layout": layout, **options})
        return Schedule.from_t(noise, np.linspace(0.95, 0.05, nfe + (layout == "interval")), layout=layout)

    monkeypatch.setattr("bridge.tune.search", search)
    return calls


def test_searches_for_the_pipelines_noise_and_installs(asked: list[dict[str, Any]]) -> None:
    pipe = SimpleNamespace(scheduler=diffusers.UniPCMultistepScheduler(**SD))
    schedule = optimize_pipeline(pipe, 5, seed=3)
    assert asked[0]["noise"].fingerprint() == noise_of("sd15").fingerprint()
    assert (asked[0]["nfe"], asked[0]["layout"], asked[0]["seed"]) == (5, "node", 3)
    assert schedule_of(pipe).timesteps.tolist() == schedule.timesteps.tolist()
    assert (schedule.nfe, schedule.end) == (5, "clean")


def test_the_end_chooses_the_layout(asked: list[dict[str, Any]]) -> None:
    pipe = SimpleNamespace(scheduler=diffusers.DDIMScheduler(**SD))
    assert optimize_pipeline(pipe, 4, end="t_eps").end == "t_eps"
    assert optimize_pipeline(pipe, 4, end="clean", layout="interval").end == "clean"
    assert [call["layout"] for call in asked] == ["interval", "interval"]


def test_dynamic_shift_reaches_the_search(asked: list[dict[str, Any]]) -> None:
    pipe = SimpleNamespace(scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True))
    for sizes in ({"image_seq_len": 4096}, {"image_seq_len": 1024}, {"mu": 0.5}):
        optimize_pipeline(pipe, 4, **sizes)
    assert len({call["noise"].fingerprint() for call in asked}) == 3


def test_a_failure_leaves_the_pipeline_as_it_was(asked: list[dict[str, Any]]) -> None:
    pipe = SimpleNamespace(scheduler=diffusers.EulerDiscreteScheduler(**SD, use_karras_sigmas=True))
    before = pipe.scheduler
    with pytest.raises(ValueError, match="use_karras_sigmas"):
        optimize_pipeline(pipe, 4)
    assert pipe.scheduler is before


def test_with_the_real_search() -> None:
    pipe = SimpleNamespace(scheduler=diffusers.DPMSolverMultistepScheduler(**SD))
    schedule = optimize_pipeline(pipe, 4, effort=Effort(population=8, generations=2))
    pipe.scheduler.set_timesteps(4)
    assert pipe.scheduler.timesteps.tolist() == np.float32(schedule.timesteps).tolist()
    assert schedule.method == "hso"
