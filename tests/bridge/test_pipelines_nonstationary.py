"""Non-stationary schedules through the public calls of pipelines: N network calls, at the schedule's timesteps."""

from __future__ import annotations

from pathlib import Path

import diffusers
import numpy as np
import pytest
from free import free_schedule
from pipelines import QWEN_IMAGE, Family, family_of
from test_pipelines_schedule import generate, told, wanted

from bridge import NonstationaryScheduler, install, noise_schedule_of, schedule_of, with_schedule, without_schedule

NFE = 5
_CLASSES = ("StableDiffusionPipeline", "PixArtAlphaPipeline", "FluxPipeline", "WanPipeline")
FAMILIES = [*(family_of(name) for name in _CLASSES), QWEN_IMAGE]
pytestmark = pytest.mark.filterwarnings("ignore:the schedule has coefficients of its own")


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_n_calls_at_the_schedules_timesteps(family: Family, tmp_path: Path) -> None:
    """From whatever scheduler the pipeline has; and the saved pipeline gives the same image."""
    pipe = family.shared()
    default, former = generate(pipe, family, NFE), type(pipe.scheduler)
    schedule = free_schedule(noise_schedule_of(pipe), NFE)
    install(pipe, schedule)
    assert type(pipe.scheduler) is NonstationaryScheduler and schedule_of(pipe) == schedule
    output, seen = told(pipe, family, NFE)
    np.testing.assert_array_equal(seen, wanted(schedule, family))
    assert np.isfinite(output).all() and output.std() > 0.01 and np.abs(output - default).max() > 1e-3
    np.testing.assert_array_equal(output, generate(pipe, family, NFE))
    with pytest.raises(ValueError, match=f"num_inference_steps is 7, but the installed schedule has {NFE}"):
        generate(pipe, family, 7)
    pipe.scheduler = without_schedule(pipe.scheduler)
    assert type(pipe.scheduler) is former
    np.testing.assert_array_equal(generate(pipe, family, NFE), default)
    if family is QWEN_IMAGE:
        return  # diffusers loads no pipeline without its text encoder
    pipe.scheduler = with_schedule(pipe.scheduler, schedule)
    pipe.save_pretrained(tmp_path)
    loaded = diffusers.DiffusionPipeline.from_pretrained(tmp_path, local_files_only=True)
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded.scheduler) is NonstationaryScheduler and schedule_of(loaded) == schedule
    np.testing.assert_allclose(generate(loaded, family, NFE), output, atol=1e-4)


def test_proposals_and_mu_do_not_move_the_nodes() -> None:
    """FLUX and Qwen-Image pass sigmas and mu; a caller's own, which are no even grid, are told of."""
    for family in (family_of("FluxPipeline"), QWEN_IMAGE):
        pipe = family.shared()
        schedule = free_schedule(noise_schedule_of(pipe), 4)
        pipe.scheduler = with_schedule(pipe.scheduler, schedule)
        _, seen = told(pipe, family, 4)
        np.testing.assert_array_equal(seen, wanted(schedule, family))
        with pytest.warns(UserWarning, match=r"sigmas \[1, 0.9, 0.8, 0.1\] differ .*which is used"):
            _, seen = told(pipe, family, 4, sigmas=[1.0, 0.9, 0.8, 0.1])
        np.testing.assert_array_equal(seen, wanted(schedule, family))
