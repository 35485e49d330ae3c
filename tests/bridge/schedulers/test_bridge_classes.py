"""To whoever looks, a scheduled class is its parent: signatures, types of attributes, methods, messages."""

from __future__ import annotations

import inspect
import json
import logging
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
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


SCHEDULE = random_schedule(cases.noise_of("sd15"), 6, "clean", 1)
# Those whose steps depend on nothing but their arguments, so that diffusers' own class allows it too.
STATELESS = ["DDIMScheduler", "DDIMParallelScheduler", "CogVideoXDDIMScheduler", "DDPMScheduler"]
NAMES = list(dict.fromkeys(case.scheduler for case in CASES))


@pytest.fixture
def switching() -> Iterator[None]:
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def attributes(scheduler: Any) -> dict[str, Any]:
    """With lists copied, since solvers write into them."""
    return {name: list(x) if isinstance(x, list) else x for name, x in vars(scheduler).items()}


def changed(scheduler: Any, before: dict[str, Any]) -> list[str]:
    after = attributes(scheduler)
    assert list(after) == list(before)
    same = {
        name: x is old
        or (isinstance(x, list) and len(x) == len(old) and all(a is b for a, b in zip(x, old, strict=True)))
        for (name, x), old in zip(after.items(), before.values(), strict=True)
    }
    return [name for name, x in same.items() if not x]


@pytest.mark.parametrize("name", STATELESS)
def test_threads_sample_what_they_would_alone(name: str, switching: None) -> None:
    options = {"snr_shift_scale": 1.0} if name.startswith("CogVideoX") else {"clip_sample": False}
    scheduler = with_schedule(getattr(diffusers, name)(**SD, **options), SCHEDULE)
    scheduler.set_timesteps(6)
    before = attributes(scheduler)

    def run(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        x = start(seed=seed)
        scheduler.set_timesteps(6)
        for t in scheduler.timesteps:
            given = {} if name.startswith("CogVideoX") else {"generator": generator}
            x = scheduler.step(torch.tanh(x + t / 1000), t, x, **given).prev_sample
        return x

    alone = [run(seed) for seed in range(16)]
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(run, [*range(16)] * 4))
    for seed, x in enumerate(together):
        assert torch.equal(x, alone[seed % 16])
    assert set(changed(scheduler, before)) <= {"timesteps", "sigmas"}  # set anew, to the same
    assert scheduler.alphas_cumprod.shape == (1000,)


def built(name: str) -> Any:
    """A scheduler that samples at the schedule."""
    case = next(case for case in CASES if case.scheduler == name)
    scheduler = with_schedule(
        case.build(case.predictions[0]), random_schedule(cases.noise_of(case.model), 6, "clean", 1)
    )
    scheduler.set_timesteps(6)
    return scheduler


@pytest.mark.parametrize("name", NAMES)
def test_an_error_in_step_leaves_the_model_alone(name: str) -> None:
    """The solver's own memory (step_index, model_outputs) is the parent's business; the model's levels are not."""
    scheduler, x = built(name), start()
    scheduler.scale_model_input(x, scheduler.timesteps[0])
    before, t = attributes(scheduler), scheduler.timesteps[0]
    arguments = {
        "CogVideoXDPMScheduler": (None, t, None, x),
        "DDPMWuerstchenScheduler": (t.expand(len(x)), x),
    }.get(name, (t, x))
    with pytest.raises(RuntimeError):
        scheduler.step(torch.zeros(3, 7), *arguments)
    memory = {
        "_step_index",
        "model_outputs",
        "timestep_list",
        "lower_order_nums",
        "sample",
        "derivatives",
        "prev_derivative",
    }
    memory |= {"dt", "last_sample", "this_order", "last_noise", "is_scale_input_called", "noise_sampler", "_init_size"}
    assert set(changed(scheduler, before)) <= memory


@pytest.mark.parametrize("name", [*STATELESS, "PNDMScheduler"])
def test_an_error_in_a_table_step_changes_nothing(name: str) -> None:
    scheduler, x = built(name), start()
    scheduler.step(torch.tanh(x), scheduler.timesteps[0], x)
    before = attributes(scheduler)
    with pytest.raises(RuntimeError):
        scheduler.step(torch.zeros(3, 7), scheduler.timesteps[1], x)
    assert changed(scheduler, before) == []


def test_an_error_in_set_timesteps_changes_nothing() -> None:
    scheduler = with_schedule(diffusers.UniPCMultistepScheduler(**SD), SCHEDULE)
    scheduler.set_timesteps(6)
    before = attributes(scheduler)
    with pytest.raises(RuntimeError):
        scheduler.set_timesteps(6, device="nowhere")
    assert changed(scheduler, before) == []
