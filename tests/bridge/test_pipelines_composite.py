"""A pipeline that is made of pipelines: its inner schedulers get the schedule too, or are named."""

from __future__ import annotations

import copy
import warnings
from types import SimpleNamespace
from typing import Any

import cases
import diffusers
import numpy as np
import pytest
from cases import SD
from mixture import random_schedule
from more_pipelines import VISUAL_CLOZE, kandinsky_combined
from pipelines import family_of
from test_pipelines_schedule import told, wanted

import bridge
from bridge import install, noise_schedule_of, schedule_of
from hso_jax.schedule import Schedule

NFE = 4


def test_visual_cloze_samples_at_the_schedule_in_both_its_pipelines() -> None:
    pipe = VISUAL_CLOZE.build()
    schedule = random_schedule(noise_schedule_of(pipe), NFE, "clean", 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        install(pipe, schedule)
    for part in (pipe, pipe.generation_pipe, pipe.upsampling_pipe):
        assert part.scheduler is pipe.scheduler
        part.set_progress_bar_config(disable=True)
    output, seen = told(pipe, VISUAL_CLOZE, NFE)
    np.testing.assert_array_equal(seen, [*wanted(schedule, VISUAL_CLOZE), *wanted(schedule, VISUAL_CLOZE, skip=2)])
    assert np.isfinite(output).all()


def test_installing_again_reaches_inner_schedulers_that_fell_behind() -> None:
    pipe = VISUAL_CLOZE.build()
    pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)  # the inner ones keep the old
    install(pipe, random_schedule(noise_schedule_of(pipe), NFE, "clean", 1))
    assert pipe.generation_pipe.scheduler is pipe.upsampling_pipe.scheduler is pipe.scheduler


def test_kandinskys_prior_keeps_its_scheduler_and_is_named() -> None:
    pipe = kandinsky_combined()
    prior = pipe.prior_pipe.scheduler
    schedule = random_schedule(noise_schedule_of(pipe), NFE, "clean", 1)
    with pytest.warns(UserWarning, match=r"prior_pipe of KandinskyV22CombinedPipeline .*keeps its UnCLIPScheduler"):
        install(pipe, schedule)
    assert schedule_of(pipe.decoder_pipe) is schedule and pipe.decoder_pipe.scheduler is pipe.scheduler
    assert pipe.prior_pipe.scheduler is prior is pipe.prior_scheduler


def test_one_scheduler_for_two_models_is_refused() -> None:
    scheduler = diffusers.DDIMScheduler(**SD)
    pipe = SimpleNamespace(
        scheduler=scheduler,
        prior_scheduler=scheduler,
        prior_pipe=SimpleNamespace(scheduler=scheduler),
        decoder_pipe=SimpleNamespace(scheduler=scheduler),
    )
    before = copy.copy(vars(pipe))
    with pytest.raises(ValueError, match="prior_pipe and decoder_pipe share one scheduler"):
        install(pipe, random_schedule(cases.noise_of("sd15"), NFE, "clean", 1))
    assert vars(pipe) == before and pipe.decoder_pipe.scheduler is scheduler


def test_optimize_pipeline_and_a_fitness_reach_them_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def search(noise: Any, nfe: int, **options: Any) -> Schedule:
        return Schedule.from_t(noise, np.linspace(0.95, 0.05, nfe))

    monkeypatch.setattr("bridge.optimize.search", search)
    pipe = VISUAL_CLOZE.build()
    schedule = bridge.optimize_pipeline(pipe, NFE)
    assert schedule_of(pipe.generation_pipe) is schedule_of(pipe.upsampling_pipe) is schedule


def test_a_pipeline_without_inner_ones() -> None:
    pipe = family_of("DiTPipeline").build()
    schedule = random_schedule(noise_schedule_of(pipe), NFE, "clean", 1)
    install(pipe, schedule)
    assert schedule_of(pipe) is schedule
    with pytest.raises(ValueError, match="kind 'flow'"):
        install(pipe, random_schedule(cases.noise_of("sd3-medium"), NFE, "clean", 1))
    assert schedule_of(pipe) is schedule
