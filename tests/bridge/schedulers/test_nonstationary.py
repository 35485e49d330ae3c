"""`NonstationaryScheduler` steps by the schedule's coefficients exactly, for every prediction and kind of noise."""

from __future__ import annotations

import copy
import itertools
import json
import pickle
import warnings
from pathlib import Path
from typing import Any

import cases
import diffusers
import numpy as np
import pytest
import torch
from cases import ONE_EACH, SD, public
from free import KINDS, Kind, by_hand, exact_levels, free_schedule, in_jax, of, sampled
from mixture import denoise, random_schedule, start

import bridge
from bridge import (
    Level,
    NonstationaryScheduler,
    load_scheduler,
    noise_schedule_of,
    solver_of,
    with_schedule,
    without_schedule,
)
from hso_jax import Schedule

EPS = KINDS[0]
VP = noise_schedule_of(EPS.build())


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("end", ["clean", "t_eps"])
def test_it_agrees_with_the_jax_loop(kind: Kind, end: str) -> None:
    """Every prediction, both ends, lam = -inf; N evaluations at the schedule's timesteps."""
    for history, seed in ((2, 0), (3, 1), (4, 2)):
        scheduler = of(kind, 6, end, history, seed)
        schedule = scheduler.schedule
        assert np.isinf(schedule.lams[0]) == kind.pure
        x, model = sampled(kind, scheduler, start())
        assert x.dtype == torch.float64 and len(model.told) == 6
        if not scheduler.config.get("invert_sigmas"):
            np.testing.assert_allclose(model.told, schedule.timesteps, rtol=1e-6)
        want = in_jax(schedule, start())
        np.testing.assert_allclose(x.numpy(), want, rtol=1e-10, atol=1e-10 * max(1.0, np.abs(want).max()))


def epsilon(x: torch.Tensor, level: Level) -> torch.Tensor:
    return (x - level.alpha * denoise(x, level.alpha, level.sigma)) / level.sigma


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_constant_prediction_is_exact(kind: Kind, dtype: torch.dtype) -> None:
    """To rounding, whatever the coefficients and nodes: also from a start in the middle."""
    constant = start(seed=7)
    for seed, first in ((0, 0), (1, 0), (2, 3)):
        scheduler = of(kind, 7, "clean", 2 + seed, seed)
        schedule, sign = scheduler.schedule, -1.0 if scheduler.config.get("invert_sigmas") else 1.0
        scheduler.set_timesteps(7)
        scheduler.set_begin_index(first)
        now = exact_levels(schedule)[first]
        x = (now.alpha * constant + now.sigma * start()).to(dtype)
        for i in range(first, 7):
            level, wide = exact_levels(schedule)[i], x.double()
            noise = (wide - level.alpha * constant) / level.sigma
            output = {"epsilon": noise, "sample": constant, "flow_prediction": sign * (noise - constant)}.get(
                kind.prediction, level.alpha * noise - level.sigma * constant
            )
            if kind.sigma_data is not None:
                total = (level.sigma**2 + kind.sigma_data**2) ** 0.5
                out = level.sigma * kind.sigma_data / total * (1.0 if kind.prediction == "epsilon" else -1.0)
                output = (constant - (kind.sigma_data / total) ** 2 * wide) / out
            x = scheduler.step(output.to(dtype), scheduler.timesteps[i], x).prev_sample
        finite = schedule.evaluated_sigmas[np.isfinite(schedule.evaluated_sigmas)]
        assert (x.double() - constant).abs().max() < torch.finfo(dtype).eps * 200 * max(1.0, float(finite.max()))


@pytest.mark.parametrize("begin", ["index", "timestep"])
@pytest.mark.parametrize("first", [1, 3, 5])
def test_img2img_folds_missing_history_into_the_newest(first: int, begin: str) -> None:
    scheduler = of(EPS, 6, "t_eps", 4)
    schedule = scheduler.schedule
    scheduler.set_timesteps(6)
    if begin == "index":
        scheduler.set_begin_index(first)
    image, noise = start(seed=3), start(seed=4)
    x = scheduler.add_noise(image, noise, scheduler.timesteps[first : first + 1])
    level = exact_levels(schedule)[first]
    assert torch.allclose(x, level.alpha * image + level.sigma * noise, rtol=1e-12)
    want = by_hand(schedule, x, first)
    for t, level in zip(scheduler.timesteps[first:], exact_levels(schedule)[first:], strict=False):
        assert scheduler.scale_model_input(x, t) is x
        x = scheduler.step(epsilon(x, level), t, x).prev_sample
    assert (x - want).abs().max() < 1e-12
    assert scheduler.step_index == 6 and scheduler.begin_index == (first if begin == "index" else None)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_the_networks_alone(dtype: torch.dtype) -> None:
    """Samples and predictions stay float32: as with float32 latents that only the network sees rounded."""
    scheduler = of(KINDS[6], 6)

    def run(low: bool, spoil: int = -1, copied: bool = False) -> torch.Tensor:
        scheduler.set_timesteps(6)
        x = start(64).to(dtype)
        x = x if low else x.float()
        for i, t in enumerate(scheduler.timesteps):
            output = torch.tanh(3 * x.to(dtype)).to(dtype)
            x = x.clone() if copied else x
            if i == spoil:  # what a pipeline puts into the sample (an inpainting's known part) is taken as it is
                x[0] = 0.25
            x = scheduler.step(output, t, x).prev_sample
            assert x.dtype == (dtype if low else torch.float32)
        return x if low else x.to(dtype)

    for spoil, copied in itertools.product((-1, 3), (False, True)):
        assert torch.equal(run(True, spoil, copied), run(False, spoil))
    with torch.inference_mode():
        assert torch.equal(run(True, 3), run(False, 3))
    assert scheduler._past == () and scheduler._state is None  # nothing is held when the image is done


def test_gradients_pass_and_nothing_given_is_written_into() -> None:
    scheduler = of(EPS, 4)
    scheduler.set_timesteps(4)
    first = start().requires_grad_()
    x = first
    for t in scheduler.timesteps:
        output = torch.tanh(x)
        before = x.detach().clone(), output.detach().clone()
        then = scheduler.step(output, t, x).prev_sample
        assert torch.equal(x, before[0]) and torch.equal(output, before[1])
        x = then
    (slope,) = torch.autograd.grad(x.sum(), first)
    assert torch.isfinite(slope).all() and slope.abs().max() > 0


@pytest.mark.parametrize(
    "options", [{"thresholding": True}, {"clip_sample": True}, {"clip_sample": True, "clip_sample_range": 2.5}]
)
def test_pixel_models_are_clipped_as_their_scheduler_did(options: dict[str, Any]) -> None:
    plain = diffusers.DDIMScheduler(**SD, **{"clip_sample": False, **options})
    scheduler = NonstationaryScheduler.from_schedule(plain, free_schedule(VP, 4))
    x = 3 * torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    clean, reach = x / exact_levels(scheduler.schedule)[0].alpha, options.get("clip_sample_range", 1.0)
    want = plain._threshold_sample(clean) if "thresholding" in options else clean.clamp(-reach, reach)
    for one in (scheduler, NonstationaryScheduler.from_config(scheduler.config)):
        one.set_timesteps(4)
        got = one.step(torch.zeros_like(x), one.timesteps[0], x).pred_original_sample
        assert torch.allclose(got, want, rtol=1e-5) and got.abs().max() <= reach


def test_a_learned_variance_is_left_out() -> None:
    plain = diffusers.DDPMScheduler(**SD, clip_sample=False, variance_type="learned_range")
    scheduler = NonstationaryScheduler.from_schedule(plain, free_schedule(VP, 3))
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    both = torch.randn(2, 6, 4, 4, generator=torch.Generator().manual_seed(1))
    got = scheduler.step(both, scheduler.timesteps[0], x).prev_sample
    assert got.shape == x.shape
    scheduler.set_timesteps(3)
    assert torch.equal(got, scheduler.step(both[:, :3], scheduler.timesteps[0], x).prev_sample)


def test_further_steps_and_unknown_timesteps_are_refused() -> None:
    scheduler = of(EPS, 2)
    x = start()
    with pytest.raises(ValueError, match="timestep 3 is not in the installed schedule"):
        scheduler.step(x, 3, x)
    for t in scheduler.timesteps:
        x = scheduler.step(torch.tanh(x), t, x)[0]
    with pytest.raises(ValueError, match="all 2 steps are taken; call set_timesteps"):
        scheduler.step(x, t, x)
    with pytest.raises(ValueError, match="num_inference_steps is 3, but the installed schedule has 2"):
        scheduler.set_timesteps(3)
    with pytest.raises(ValueError, match=r"timesteps .* differ from those of the installed"):
        scheduler.set_timesteps(timesteps=[900, 30])


def test_a_copy_goes_on_in_the_middle() -> None:
    scheduler = of(EPS, 5)
    x, results = start(), []
    for t in scheduler.timesteps[:3]:
        x = scheduler.step(torch.tanh(x), t, x)[0]
    for s in (copy.deepcopy(scheduler), scheduler):
        y = x
        for t in s.timesteps[3:]:
            y = s.step(torch.tanh(y), t, y)[0]
        results.append(y)
    assert torch.equal(*results)


def test_its_timesteps_follow_the_device() -> None:
    scheduler = of(EPS, 4)
    scheduler.set_timesteps(4, device="meta")
    assert scheduler.timesteps.device.type == "meta" and scheduler.sigmas.device.type == "cpu"
    scheduler.set_timesteps(4, device="cpu")
    assert scheduler.timesteps.tolist() == np.float32(scheduler.schedule.timesteps).tolist()
    np.testing.assert_allclose(scheduler.sigmas, scheduler.schedule.sampler_sigmas(), rtol=1e-15)


NOISE = cases.noise_of("sd15")
UNFIT = ("LCMScheduler", "TCDScheduler", "FlowMatchLCMScheduler", "DDPMWuerstchenScheduler")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_way_to_rebuild_it(kind: Kind, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scheduler = of(kind, 5, "t_eps")
    want, _ = sampled(kind, scheduler, start())
    scheduler.save_pretrained(tmp_path)
    rebuilt = [
        load_scheduler(tmp_path),
        NonstationaryScheduler.from_pretrained(tmp_path),
        NonstationaryScheduler.from_config(scheduler.config),
        copy.deepcopy(scheduler),
        pickle.loads(pickle.dumps(scheduler)),
        with_schedule(scheduler, scheduler.schedule),
    ]
    for other in rebuilt:
        assert type(other) is bridge.NonstationaryScheduler and other.schedule == scheduler.schedule
        assert torch.equal(sampled(kind, other, start())[0], want)
        assert noise_schedule_of(other).fingerprint() == noise_schedule_of(kind.build()).fingerprint()
        assert solver_of(other) == "nonstationary"
        plain = without_schedule(other)
        assert type(plain) is getattr(diffusers, kind.cls)
        assert public(plain.config) == public(kind.build().config)
    assert "not expected" not in caplog.text


@pytest.mark.parametrize("case", ONE_EACH, ids=lambda case: case.scheduler)
def test_from_whatever_the_pipeline_has(case: cases.Case) -> None:
    """With and without a schedule in it; where the model is distilled for a solver, it says so."""
    plain, installed = case.build(case.predictions[0]), cases.built(case, nfe=4)
    schedule, before = free_schedule(noise_schedule_of(plain), 4), dict(plain.config)
    if case.scheduler in UNFIT:
        with pytest.raises(ValueError, match=f"{case.scheduler}"):
            NonstationaryScheduler.from_schedule(plain, schedule)
        return
    scheduler, again = (NonstationaryScheduler.from_schedule(one, schedule) for one in (plain, installed))
    assert dict(plain.config) == before and again.config.hso_replaced == scheduler.config.hso_replaced
    assert type(without_schedule(again)) is type(plain)
    scheduler.set_timesteps(4)
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    for t in scheduler.timesteps:
        x = scheduler.step(torch.tanh(scheduler.scale_model_input(x, t)), t, x).prev_sample
    assert torch.isfinite(x).all()


def test_with_schedule_says_that_the_class_is_another() -> None:
    plain, schedule = diffusers.DPMSolverMultistepScheduler(**SD), free_schedule(NOISE, 4)
    with pytest.warns(UserWarning, match="NonstationaryScheduler takes its steps in place of DPMSolverMultistep"):
        first = with_schedule(plain, schedule)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second = with_schedule(first, free_schedule(NOISE, 5, seed=1))
        back = with_schedule(second, Schedule.from_t(NOISE, [0.9, 0.4]))
        again = NonstationaryScheduler.from_schedule(back, schedule)
    assert type(second) is NonstationaryScheduler and second.schedule.nfe == 5
    assert type(back) is bridge.DPMSolverMultistepScheduler
    assert again.schedule == schedule


def test_a_table_set_by_hand_is_kept() -> None:
    plain = diffusers.DDIMScheduler(**SD)
    plain.alphas_cumprod = plain.alphas_cumprod**2
    own = noise_schedule_of(plain)
    scheduler = NonstationaryScheduler.from_schedule(plain, free_schedule(own, 4))
    assert noise_schedule_of(scheduler).fingerprint() == own.fingerprint()
    for other in (free_schedule(own, 5), random_schedule(own, 5, "clean", 1)):
        again = with_schedule(scheduler, other)
        assert noise_schedule_of(without_schedule(again)).fingerprint() == own.fingerprint()
    with pytest.raises(ValueError, match="other noise levels"):
        NonstationaryScheduler.from_schedule(diffusers.DDIMScheduler(**SD), scheduler.schedule)


def test_another_solver_from_its_config_is_the_models() -> None:
    scheduler = of(KINDS[1], 4)
    other = diffusers.UniPCMultistepScheduler.from_config(scheduler.config)
    assert other.config.prediction_type == "v_prediction" and other.config.beta_end == SD["beta_end"]
    changed = NonstationaryScheduler.from_config(scheduler.config, prediction_type="sample")
    assert changed.config.prediction_type == without_schedule(changed).config.prediction_type == "sample"
    assert {"DDIMScheduler", "UniPCMultistepScheduler"} <= {c.__name__ for c in scheduler.compatibles}


class Odd(diffusers.DDIMScheduler):
    """Not diffusers' own."""


COEFFICIENTS = [[0.0], [0.1], [0.1]]
LIST = [14.0, 3.0, 0.5, 0.0]
BAD: dict[str, tuple[Any, Any, Any, str]] = {
    "no coefficients": (EPS.build(), random_schedule(NOISE, 4, "clean", 1), None, "for solver 'any' and has no coeff"),
    "a list without": (EPS.build(), LIST, None, "for solver 'any' and has no coeff"),
    "another shape": (EPS.build(), LIST, COEFFICIENTS[:2], r"coefficients has shape \(2, 1\); need \(3, H - 1\)"),
    "twice": (EPS.build(), free_schedule(NOISE, 3), COEFFICIENTS, "coefficients go with a list of sigmas"),
    "another model": (EPS.build(), free_schedule(cases.noise_of("sd3-medium"), 4), None, "noise of kind 'flow'"),
    "noise at pure noise": (
        diffusers.DDIMScheduler(**SD, rescale_betas_zero_snr=True),
        free_schedule(noise_schedule_of(KINDS[3].build()), 4, pure=True), None,
        "predicted noise does not determine the data",
    ),
    "a user's class": (Odd(**SD), free_schedule(NOISE, 4), None, "is not a scheduler class of diffusers"),
    "tokens": (diffusers.AmusedScheduler(0), free_schedule(NOISE, 4), None, "AmusedScheduler is not supported: it sam"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_refused(name: str) -> None:
    plain, schedule, coefficients, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        NonstationaryScheduler.from_schedule(plain, schedule, coefficients=coefficients)


def test_a_config_without_its_schedule_is_refused() -> None:
    plain = EPS.build()
    for config in (plain.config, with_schedule(plain, random_schedule(NOISE, 4, "clean", 1)).config):
        with pytest.raises(ValueError, match=r"needs a schedule and .* use NonstationaryScheduler\.from_schedule"):
            NonstationaryScheduler.from_config(config)


def test_no_other_class_takes_its_schedule() -> None:
    """Its nodes alone, in another solver, are another schedule."""
    config = of(KINDS[0], 4).config
    for name in ("DDIMScheduler", "UniPCMultistepScheduler", "DPMSolverMultistepScheduler"):
        with pytest.raises(ValueError, match=f"{name} samples by its own formula .* use with_schedule"):
            getattr(bridge, name).from_config(config)
    with pytest.raises(ValueError, match="belong to its own coefficients"):
        free_schedule(NOISE, 4).diffusers_sigmas(diffusers.EulerDiscreteScheduler(**SD))


def test_a_damaged_config_is_refused(tmp_path: Path) -> None:
    """In its schedule, or in the config of the scheduler that it stands for."""
    of(EPS, 3).save_pretrained(tmp_path)
    file = tmp_path / "scheduler_config.json"
    text = file.read_text()
    for where, key, value in (
        ("schedule", "coefficients", [[0.0]]), ("schedule", "coefficients", [[float("nan"), 0.0]] * 3),
        ("schedule", "t", None), ("schedule", "nfe", True), ("config", "hso_schedule", []),
        ("config", "hso_replaced", 1), ("config", "hso_replaced", {}),
        ("model", "_class_name", "AmusedScheduler"), ("model", "beta_end", "x"), ("model", "trained_betas", {}),
    ):  # fmt: skip
        config = json.loads(text)
        places = {"config": config, "model": config["hso_replaced"], "schedule": config["hso_schedule"]["schedules"][0]}
        places[where][key] = value
        file.write_text(json.dumps(config))
        with pytest.raises(ValueError, match=r"\w"):
            load_scheduler(tmp_path)
