"""A schedule stays with its scheduler: saved, loaded, rebuilt, copied, pickled, alone and in a pipeline."""

from __future__ import annotations

import copy
import pickle
import sys
import warnings
from pathlib import Path
from typing import Any

import cases
import diffusers
import numpy as np
import pytest
import torch
from cases import ONE_EACH, SD, public
from mixture import random_schedule, start

import bridge
from bridge import load_scheduler, noise_schedule_of, schedule_of, with_schedule, without_schedule
from hso_jax.schedule import Schedule

NOISE = cases.noise_of("sd15")


def same(a: Any, b: Any) -> None:
    """Both sample at the same levels and step alike."""
    assert type(a) is type(b)
    results, x = [], start()
    for scheduler in (a, b):
        scheduler.set_timesteps(a.schedule.nfe)
        t = scheduler.timesteps[0]
        scheduler.scale_model_input(x, t)
        results.append(cases.step(scheduler, torch.tanh(x), t, x, **cases.seeded(scheduler, 0)))
    assert a.timesteps.tolist() == b.timesteps.tolist()
    assert not hasattr(a, "sigmas") or a.sigmas.tolist() == b.sigmas.tolist()
    assert torch.equal(*results)


@pytest.mark.parametrize("case", ONE_EACH, ids=lambda case: case.scheduler)
def test_every_way_to_rebuild_a_scheduler(case: cases.Case, tmp_path: Path) -> None:
    base, end = case.build(case.predictions[0]), case.ends[-1]
    before = dict(base.config)
    scheduler = with_schedule(base, random_schedule(cases.noise_of(case.model), 6, end, 1))
    assert isinstance(scheduler, getattr(diffusers, case.scheduler))
    assert dict(base.config) == before and type(base) is getattr(diffusers, case.scheduler)
    scheduler.save_pretrained(tmp_path)
    same(scheduler, load_scheduler(tmp_path))
    same(scheduler, type(scheduler).from_pretrained(tmp_path))
    same(scheduler, type(scheduler).from_config(scheduler.config))
    same(scheduler, copy.deepcopy(scheduler))
    assert getattr(bridge, case.scheduler) is type(scheduler)
    # In these diffusers keeps a lambda (tau, or its Brownian path's).
    if case.scheduler not in ("SASolverScheduler", "DPMSolverSDEScheduler", "CosineDPMSolverMultistepScheduler"):
        same(scheduler, pickle.loads(pickle.dumps(scheduler)))
    assert scheduler.schedule.timesteps.tolist() == schedule_of(load_scheduler(tmp_path)).timesteps.tolist()


def test_the_config_takes_the_schedule_along(tmp_path: Path) -> None:
    ddim = with_schedule(diffusers.DDIMScheduler(**SD), random_schedule(NOISE, 6, "clean", 1))
    unipc = bridge.UniPCMultistepScheduler.from_config(ddim.config)
    same(unipc, with_schedule(diffusers.UniPCMultistepScheduler(**SD), ddim.schedule))
    ddim.save_pretrained(tmp_path)
    plain = diffusers.DDIMScheduler.from_pretrained(tmp_path)  # keeps the record, and does not obey it
    plain.set_timesteps(10)
    assert len(plain.timesteps) == 10
    same(ddim, with_schedule(plain, schedule_of(plain)))
    second = with_schedule(ddim, random_schedule(NOISE, 4, "t_eps", 2))
    assert (ddim.schedule.nfe, second.schedule.nfe) == (6, 4) and type(ddim) is type(second)


def test_from_config_checks_again() -> None:
    scheduler = with_schedule(diffusers.EulerDiscreteScheduler(**SD), random_schedule(NOISE, 6, "clean", 1))
    with pytest.warns(UserWarning, match="use_karras_sigmas, now switched off"):
        assert not type(scheduler).from_config(scheduler.config, use_karras_sigmas=True).config.use_karras_sigmas
    with pytest.raises(ValueError, match="other noise levels"):
        type(scheduler).from_config(scheduler.config, beta_end=0.02)
    with pytest.raises(ValueError, match="needs a schedule"):
        type(scheduler)()


def tiny_pipeline() -> Any:
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8, 8), norm_num_groups=4,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
    )  # fmt: skip
    return diffusers.DDPMPipeline(unet=unet, scheduler=diffusers.DDIMScheduler(**SD))


def generate(pipe: Any, steps: int) -> np.ndarray:
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return np.asarray(pipe(num_inference_steps=steps, generator=generator, output_type="np").images)


def test_a_saved_pipeline_loads_with_its_schedule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = tiny_pipeline()
    default = generate(pipe, 4)
    pipe.scheduler = with_schedule(pipe.scheduler, random_schedule(NOISE, 4, "clean", 1))
    image = generate(pipe, 4)
    assert np.isfinite(image).all() and not np.array_equal(image, default)
    with pytest.raises(ValueError, match=r"num_inference_steps is 1000.*4 evaluations"):
        pipe()
    pipe.save_pretrained(tmp_path)
    loaded = diffusers.DiffusionPipeline.from_pretrained(tmp_path)
    np.testing.assert_allclose(generate(loaded, 4), image, atol=1e-5)  # the loaded weights are aligned otherwise
    same(loaded.scheduler, pipe.scheduler)
    again = diffusers.DDPMPipeline.from_pretrained(tmp_path, local_files_only=True)
    assert schedule_of(again).nfe == 4
    other = diffusers.DDPMPipeline(**loaded.components)
    assert schedule_of(other).nfe == 4
    assert schedule_of(copy.deepcopy(pipe.scheduler)).nfe == 4
    # DDIMPipeline alone rebuilds its scheduler as diffusers' own class; the record is still there.
    rebuilt = diffusers.DDIMPipeline(**loaded.components)
    assert type(rebuilt.scheduler) is diffusers.DDIMScheduler
    rebuilt.scheduler = with_schedule(rebuilt.scheduler, schedule_of(rebuilt))
    same(rebuilt.scheduler, pipe.scheduler)
    # Without `import bridge`, diffusers says what to do; it never samples by default levels in silence.
    monkeypatch.delitem(sys.modules, "bridge")
    with pytest.raises(ValueError, match="import bridge before calling"):
        diffusers.DiffusionPipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("kind", "wanted", "before"),
    [
        ("dpm", [0.9, 0.5, 0.2], diffusers.DPMSolverMultistepScheduler(**SD, euler_at_final=True)),
        ("nonstationary", [14.0, 3.0, 0.5], diffusers.DDIMScheduler(**SD)),
    ],
)
def test_a_scheduler_saved_by_version_0_2_loads(kind: str, wanted: list[float], before: Any, tmp_path: Path) -> None:
    """The files in tests/data are what `save_pretrained` of 0.2.0 wrote, of the lists and times here.

    One was tuned there, from a profile as its start.
    """
    file = Path(__file__).parents[2] / "data" / f"scheduler-0.2.0-{kind}.json"
    text = file.read_text()
    if kind == "dpm":
        assert text.count('"tuned": null') == 1
        text = text.replace('"tuned": null', '"tuned": {"start": "profile"}')
    (tmp_path / "scheduler_config.json").write_text(text)
    loaded = load_scheduler(tmp_path)
    schedule = getattr(bridge, type(loaded).__name__).from_pretrained(tmp_path).schedule
    assert schedule == loaded.schedule
    assert schedule.origin.tuned == ({"start": "profile"} if kind == "dpm" else None)
    np.testing.assert_allclose(schedule.t[:3] if kind == "dpm" else schedule.sampler_sigmas()[:3], wanted, rtol=1e-6)
    back = without_schedule(loaded)
    assert type(back) is type(before)
    assert public(back.config) == public(before.config)


def test_timesteps_follow_the_device() -> None:
    for name in ("DDIMScheduler", "UniPCMultistepScheduler", "DPMSolverMultistepScheduler", "DDPMScheduler"):
        scheduler = with_schedule(getattr(diffusers, name)(**SD), random_schedule(NOISE, 4, "clean", 1))
        scheduler.set_timesteps(4, device="meta")
        assert scheduler.timesteps.device.type == "meta"
        scheduler.set_timesteps(4)
        assert scheduler.timesteps.device.type == "cpu"


VP = random_schedule(cases.noise_of("sd15"), 4, "clean", 1)
FLOWING = random_schedule(cases.noise_of("sd3-medium"), 4, "clean", 1)
FLAGGED = [
    ("EulerDiscreteScheduler", {**SD, "use_karras_sigmas": True}, VP),
    ("UniPCMultistepScheduler", {**SD, "use_exponential_sigmas": True}, VP),
    ("HeunDiscreteScheduler", {**SD, "use_beta_sigmas": True}, VP),
    ("DPMSolverMultistepScheduler", {**SD, "use_lu_lambdas": True}, VP),
    ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0, "use_beta_sigmas": True}, FLOWING),
]


@pytest.mark.parametrize(("name", "config", "schedule"), FLAGGED, ids=lambda x: x if isinstance(x, str) else "")
def test_spacing_flags_are_switched_off_and_back(name: str, config: dict[str, Any], schedule: Schedule) -> None:
    flag = next(key for key, value in config.items() if value is True)
    plain = getattr(diffusers, name)(**config)
    with pytest.warns(UserWarning, match=f"{name}: the schedule replaces {flag}, now switched off"):
        scheduler = with_schedule(plain, schedule)
    assert (plain.config[flag], scheduler.config[flag]) == (True, False)
    scheduler.set_timesteps(4)
    told = np.unique(scheduler.timesteps.numpy())[::-1]
    assert set(np.float32(schedule.timesteps)) <= set(told)
    assert set(schedule.sampler_sigmas()) == set(scheduler.sigmas.tolist())
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        again = with_schedule(scheduler, schedule)
        rebuilt = type(again).from_config(again.config)
        back = without_schedule(rebuilt)
    assert (again.config[flag], rebuilt.config[flag], back.config[flag]) == (False, False, True)
    assert type(back) is type(plain)
    assert public(back.config) == public(plain.config)
    assert without_schedule(plain) is plain
    plain.set_timesteps(4)
    back.set_timesteps(4)
    np.testing.assert_array_equal(back.sigmas, plain.sigmas)


@pytest.mark.parametrize("name", ["FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"])
def test_one_training_timestep(name: str) -> None:
    """Stable Audio 3 and ACE-Step: the network is told s itself."""
    plain = getattr(diffusers, name)(num_train_timesteps=1, shift=3.0)
    noise = noise_schedule_of(plain)
    schedule = Schedule.from_t(noise, [1.0, 0.7, 0.4, 0.1])
    scheduler = with_schedule(plain, schedule)
    scheduler.set_timesteps(4)
    wanted = schedule.sampler_sigmas()
    np.testing.assert_array_equal(np.unique(scheduler.sigmas)[::-1], wanted)
    np.testing.assert_allclose(np.unique(scheduler.timesteps.numpy())[::-1], wanted[:4], rtol=1e-6)
    with pytest.raises(ValueError, match=r"counts timesteps to 1000.*to 1"):
        with_schedule(plain, FLOWING)
    with pytest.raises(ValueError, match=r"told a time in \[0, 1\]"):
        schedule.integer_timesteps()
