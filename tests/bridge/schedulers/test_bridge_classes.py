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
from cases import FLOW, ONE_EACH, SD
from mixture import random_schedule, start

from bridge import with_schedule
from bridge.schedulers.rows import ROWS
from bridge.schedulers.scheduled import scheduled_class

# Those whose steps depend on nothing but their arguments, so that diffusers' own class allows threads too.
STATELESS = ("DDIMScheduler", "DDIMParallelScheduler", "CogVideoXDDIMScheduler", "DDPMScheduler")
by_class = pytest.mark.parametrize("case", ONE_EACH, ids=lambda case: case.scheduler)


@pytest.mark.parametrize("name", ROWS)
def test_step_has_the_parents_signature(name: str) -> None:
    parent, cls = getattr(diffusers, name), scheduled_class(name)
    for method in ("step", "scale_model_input", "add_noise", "batch_step_no_noise"):
        if hasattr(parent, method):
            assert inspect.signature(getattr(cls, method)) == inspect.signature(getattr(parent, method)), method
    assert set(inspect.signature(cls.set_timesteps).parameters) >= {"num_inference_steps", "timesteps", "sigmas", "mu"}


@by_class
def test_attributes_are_what_the_parents_are(case: cases.Case) -> None:
    plain, scheduled = case.build(case.predictions[0]), cases.built(case)
    plain.set_timesteps(6)
    x = start().to(torch.float16)
    if hasattr(plain, "init_noise_sigma"):
        assert type(scheduled.init_noise_sigma) is type(plain.init_noise_sigma)
        assert (x * scheduled.init_noise_sigma).dtype == torch.float16
    given = scheduled.scale_model_input(x, scheduled.timesteps[0])
    assert given.shape == x.shape and (given is x or hasattr(plain, "scale_model_input"))


def test_arguments_by_place_arrive() -> None:
    """DDIM's eta is its fourth argument, LMS's order too."""
    schedule, x, results = random_schedule(cases.noise_of("sd15"), 4, "clean", 1), start(), []
    for call in ((0.5, False, torch.Generator().manual_seed(0)), ()):
        ddim = with_schedule(diffusers.DDIMScheduler(**SD), schedule)
        ddim.set_timesteps(4)
        named = {} if call else {"eta": 0.5, "generator": torch.Generator().manual_seed(0)}
        results.append(ddim.step(torch.tanh(x), ddim.timesteps[0], x, *call, **named).prev_sample)
    assert torch.equal(*results)
    lms = with_schedule(diffusers.LMSDiscreteScheduler(**SD), schedule)
    lms.set_timesteps(4)
    given = lms.scale_model_input(x, lms.timesteps[0])
    assert isinstance(lms.step(torch.tanh(x), lms.timesteps[0], given, 2, False), tuple)
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


def changed(scheduler: Any, before: dict[str, Any]) -> set[str]:
    after = attributes(scheduler)
    assert list(after) == list(before)

    def same(x: Any, old: Any) -> bool:
        return x is old or (isinstance(x, list) and len(x) == len(old) and all(map(lambda a, b: a is b, x, old)))

    return {name for name, x in after.items() if not same(x, before[name])}


@pytest.mark.parametrize("case", [x for x in ONE_EACH if x.scheduler in STATELESS], ids=lambda x: x.scheduler)
def test_threads_sample_what_they_would_alone(case: cases.Case, switching: None) -> None:
    scheduler = cases.built(case)
    before = attributes(scheduler)

    def run(seed: int) -> torch.Tensor:
        x, options = start(seed=seed), {}
        if not case.scheduler.startswith("CogVideoX"):
            options["generator"] = torch.Generator().manual_seed(seed)
        scheduler.set_timesteps(6)
        for t in scheduler.timesteps:
            x = scheduler.step(torch.tanh(x + t / 1000), t, x, **options).prev_sample
        return x

    alone = [run(seed) for seed in range(16)]
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(run, [*range(16)] * 4))
    assert all(torch.equal(x, alone[seed % 16]) for seed, x in enumerate(together))
    assert changed(scheduler, before) <= {"timesteps", "sigmas"}  # set anew, to the same
    assert scheduler.alphas_cumprod.shape == (1000,)


MEMORY = {
    "_step_index", "model_outputs", "timestep_list", "lower_order_nums", "sample", "derivatives", "prev_derivative",
    "dt", "last_sample", "this_order", "last_noise", "is_scale_input_called", "noise_sampler", "_init_size",
}  # fmt: skip


@by_class
def test_an_error_in_step_leaves_the_model_alone(case: cases.Case) -> None:
    """The solver's own memory (step_index, model_outputs) is the parent's business; the model's levels are not."""
    scheduler, x = cases.built(case), start()
    scheduler.scale_model_input(x, scheduler.timesteps[0])
    before = attributes(scheduler)
    with pytest.raises(RuntimeError):
        cases.step(scheduler, torch.zeros(3, 7), scheduler.timesteps[0], x)
    assert changed(scheduler, before) <= MEMORY
    if case.scheduler in (*STATELESS, "PNDMScheduler"):
        scheduler.step(torch.tanh(x), scheduler.timesteps[0], x)
        before = attributes(scheduler)
        with pytest.raises(RuntimeError):
            scheduler.step(torch.zeros(3, 7), scheduler.timesteps[1], x)
        assert not changed(scheduler, before)


def test_an_error_in_set_timesteps_changes_nothing() -> None:
    scheduler = cases.built(next(case for case in ONE_EACH if case.scheduler == "UniPCMultistepScheduler"))
    before = attributes(scheduler)
    with pytest.raises(RuntimeError):
        scheduler.set_timesteps(6, device="nowhere")
    assert not changed(scheduler, before)
