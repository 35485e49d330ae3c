"""To whoever looks, a scheduled class is its parent: signatures, types of attributes, methods, messages."""

from __future__ import annotations

import inspect
import json
import logging
from typing import Any

import cases
import diffusers
import pytest
import torch
from cases import CASES, FLOW, SD
from mixture import random_schedule, start

from bridge import with_schedule
from bridge.schedulers.rows import ROWS
from bridge.schedulers.scheduled import scheduled_class

ONE_EACH = list({case.scheduler: case for case in CASES}.values())


@pytest.mark.parametrize("name", ROWS)
def test_step_has_the_parents_signature(name: str) -> None:
    parent, cls = getattr(diffusers, name), scheduled_class(name)
    for method in ("step", "scale_model_input", "add_noise", "batch_step_no_noise"):
        if hasattr(parent, method):
            assert inspect.signature(getattr(cls, method)) == inspect.signature(getattr(parent, method)), method
    assert set(inspect.signature(cls.set_timesteps).parameters) >= {"num_inference_steps", "timesteps", "sigmas", "mu"}


@pytest.mark.parametrize("case", ONE_EACH, ids=lambda case: case.scheduler)
def test_attributes_are_what_the_parents_are(case: cases.Case) -> None:
    plain = case.build(case.predictions[0])
    scheduled = with_schedule(plain, random_schedule(cases.noise_of(case.model), 6, case.ends[0], 1))
    for scheduler in (plain, scheduled):
        scheduler.set_timesteps(6)
    if hasattr(plain, "init_noise_sigma"):
        assert type(scheduled.init_noise_sigma) is type(plain.init_noise_sigma)
    x = start().to(torch.float16)
    if hasattr(scheduled, "init_noise_sigma"):
        assert (x * scheduled.init_noise_sigma).dtype == torch.float16
    assert scheduled.scale_model_input(x, scheduled.timesteps[0]).shape == x.shape


@pytest.mark.parametrize("name", ["FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"])
def test_a_flow_models_input_is_the_sample(name: str) -> None:
    schedule = random_schedule(cases.noise_of("sd3-medium"), 4, "clean", 1)
    scheduler = with_schedule(getattr(diffusers, name)(), schedule)
    scheduler.set_timesteps(4)
    x = start()
    assert scheduler.scale_model_input(x, scheduler.timesteps[0]) is x


def test_arguments_by_place_arrive() -> None:
    """DDIM's eta is its fourth argument, LMS's order too."""
    schedule = random_schedule(cases.noise_of("sd15"), 4, "clean", 1)
    x = start()
    results = []
    for call in ((0.5, False, torch.Generator().manual_seed(0)), ()):
        ddim = with_schedule(diffusers.DDIMScheduler(**SD), schedule)
        ddim.set_timesteps(4)
        named = {} if call else {"eta": 0.5, "generator": torch.Generator().manual_seed(0)}
        results.append(ddim.step(torch.tanh(x), ddim.timesteps[0], x, *call, **named).prev_sample)
    assert torch.equal(*results)
    lms = with_schedule(diffusers.LMSDiscreteScheduler(**SD), schedule)
    lms.set_timesteps(4)
    assert isinstance(
        lms.step(torch.tanh(x), lms.timesteps[0], lms.scale_model_input(x, lms.timesteps[0]), 2, False), tuple
    )
    with pytest.raises(TypeError, match="multiple values"):
        ddim.step(x, ddim.timesteps[0], x, 0.5, eta=0.5)


@pytest.mark.parametrize(("name", "config"), [("DDIMScheduler", SD), ("UniPCMultistepScheduler", FLOW)])
def test_a_config_in_a_warning_is_short(name: str, config: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    """diffusers' own class says that it does not know the schedule; the schedule is a thousand letters long."""
    model = "sd3-medium" if config is FLOW else "sd15"
    scheduler = with_schedule(getattr(diffusers, name)(**config), random_schedule(cases.noise_of(model), 8, "clean", 1))
    logger = logging.getLogger("diffusers")
    caplog.set_level(logging.WARNING, "diffusers")  # whatever a test before this one has left
    logger.addHandler(caplog.handler)
    try:
        plain = getattr(diffusers, name).from_config(scheduler.config)
    finally:
        logger.removeHandler(caplog.handler)
    assert [len(record.getMessage()) < 400 for record in caplog.records] == [True]
    assert "schedule of 8 evaluations" in caplog.text
    assert len(json.loads(plain.to_json_string())["hso_schedule"]["schedules"][0]["t"]) == 8
