"""A `NonstationaryScheduler` is saved, rebuilt and copied from its config; what is damaged or unfit never installs."""

from __future__ import annotations

import copy
import json
import pickle
import random
import warnings
from pathlib import Path
from typing import Any

import cases
import diffusers
import numpy as np
import pytest
import torch
from cases import FLOW, SD
from free import KINDS, Kind, free_schedule, of, sampled
from mixture import random_schedule, start

import bridge
from bridge import NonstationaryScheduler, load_scheduler, noise_schedule_of, solver_of, with_schedule, without_schedule
from hso_jax import Schedule, noise

NOISE = cases.noise_of("sd15")
ONE_EACH = list({case.scheduler: case for case in cases.CASES}.values())
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
        public = {k: v for k, v in plain.config.items() if not k.startswith("_")}
        assert public == {k: v for k, v in kind.build().config.items() if not k.startswith("_")}
    assert "not expected" not in caplog.text


@pytest.mark.parametrize("case", ONE_EACH, ids=lambda case: case.scheduler)
def test_from_whatever_the_pipeline_has(case: cases.Case) -> None:
    """With and without a schedule in it; where the model is distilled for a solver, it says so."""
    plain = case.build(case.predictions[0])
    model = noise_schedule_of(plain)
    schedule = free_schedule(model, 4)
    if case.scheduler in UNFIT:
        with pytest.raises(ValueError, match=f"{case.scheduler}"):
            NonstationaryScheduler.from_schedule(plain, schedule)
        return
    before = dict(plain.config)
    scheduler = NonstationaryScheduler.from_schedule(plain, schedule)
    assert dict(plain.config) == before
    scheduler.set_timesteps(4)
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    for t in scheduler.timesteps:
        scheduler.scale_model_input(x, t)
        x = scheduler.step(torch.tanh(x), t, x).prev_sample
    assert torch.isfinite(x).all()
    installed = with_schedule(plain, random_schedule(model, 4, "clean" if "clean" in case.ends else "t_eps", 1))
    again = NonstationaryScheduler.from_schedule(installed, schedule)
    assert again.config.hso_replaced == scheduler.config.hso_replaced
    assert type(without_schedule(again)) is type(plain)


def test_with_schedule_says_that_the_class_is_another() -> None:
    plain, schedule = diffusers.DPMSolverMultistepScheduler(**SD), free_schedule(NOISE, 4)
    with pytest.warns(UserWarning, match="NonstationaryScheduler samples by them in place of DPMSolverMultistep"):
        first = with_schedule(plain, schedule)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second = with_schedule(first, free_schedule(NOISE, 5, seed=1))
        back = with_schedule(second, Schedule.from_t(NOISE, [0.9, 0.4]))
        again = NonstationaryScheduler.from_schedule(back, schedule)
    assert type(second) is NonstationaryScheduler and second.schedule.nfe == 5
    assert type(back) is bridge.DPMSolverMultistepScheduler
    assert again.schedule == schedule


def test_it_is_made_from_pasted_text() -> None:
    for model, plain in (
        (NOISE, diffusers.DDIMScheduler(**SD)),
        (noise.flow(3.0), diffusers.UniPCMultistepScheduler(**FLOW)),
    ):
        schedule = free_schedule(model, 4, "t_eps")
        pasted: dict[str, Any] = {}
        exec(schedule.python_literal(), pasted)
        found = NonstationaryScheduler.from_schedule(
            plain, pasted["sigmas"], coefficients=pasted["coefficients"]
        ).schedule
        np.testing.assert_allclose(found.lams, schedule.lams, rtol=1e-9)
        np.testing.assert_allclose(found.timesteps, schedule.timesteps, rtol=1e-6)
        assert found.coefficients.tolist() == schedule.coefficients.tolist()


def test_a_table_that_only_the_scheduler_knows_is_its_noise() -> None:
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


BAD: dict[str, tuple[Any, Any, str]] = {
    "no coefficients": (KINDS[0].build(), random_schedule(NOISE, 4, "clean", 1), "for solver 'any' and has no coeff"),
    "another model": (KINDS[0].build(), free_schedule(cases.noise_of("sd3-medium"), 4), "noise of kind 'flow'"),
    "noise at pure noise": (
        diffusers.DDIMScheduler(**SD, rescale_betas_zero_snr=True),
        free_schedule(noise_schedule_of(KINDS[3].build()), 4, pure=True),
        "a model that predicts noise says nothing",
    ),
    "a user's class": (Odd(**SD), free_schedule(NOISE, 4), "is not a scheduler class of diffusers"),
    "tokens": (diffusers.AmusedScheduler(0), free_schedule(NOISE, 4), "AmusedScheduler is not supported: it samples"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_refused(name: str) -> None:
    plain, schedule, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        NonstationaryScheduler.from_schedule(plain, schedule)


def test_sigmas_and_coefficients_are_checked() -> None:
    plain, sigmas = KINDS[0].build(), [14.0, 3.0, 0.5, 0.0]
    with pytest.raises(ValueError, match=r"coefficients has shape \(2, 1\); need \(3, H - 1\)"):
        NonstationaryScheduler.from_schedule(plain, sigmas, coefficients=[[0.0], [0.1]])
    with pytest.raises(ValueError, match="the schedule is for solver 'any' and has no coefficients"):
        NonstationaryScheduler.from_schedule(plain, sigmas)
    with pytest.raises(ValueError, match="coefficients go with a list of sigmas"):
        NonstationaryScheduler.from_schedule(plain, free_schedule(NOISE, 3), coefficients=[[0.0]] * 3)
    for config in (plain.config, with_schedule(plain, random_schedule(NOISE, 4, "clean", 1)).config):
        with pytest.raises(ValueError, match=r"needs a schedule and .* use NonstationaryScheduler\.from_schedule"):
            NonstationaryScheduler.from_config(config)


def test_no_other_class_takes_its_schedule() -> None:
    """Its nodes alone, in another solver, are another schedule."""
    config = of(KINDS[0], 4).config
    for name in ("DDIMScheduler", "UniPCMultistepScheduler", "DPMSolverMultistepScheduler"):
        with pytest.raises(ValueError, match=f"{name} has a formula of its own, .* use with_schedule"):
            getattr(bridge, name).from_config(config)
    with pytest.raises(ValueError, match="belong to its own coefficients"):
        free_schedule(NOISE, 4).diffusers_sigmas(diffusers.EulerDiscreteScheduler(**SD))


ODD: list[Any] = [None, True, "x", [], {}, [1], float("nan"), float("inf"), -1, 0, 1e9, 10**400, "AmusedScheduler"]


def test_a_damaged_config_never_installs(tmp_path: Path) -> None:
    """Whatever is put in a place of its schedule or of the config behind it: ValueError, or a valid scheduler."""
    rng, file = random.Random(0), tmp_path / "scheduler_config.json"
    scheduler = of(KINDS[0], 3)
    scheduler.save_pretrained(tmp_path)
    text, refused = file.read_text(), 0
    for _ in range(250):
        document = json.loads(text)
        places: list[tuple[Any, Any]] = []

        def walk(value: Any, places: list[tuple[Any, Any]] = places) -> None:
            for key in value if isinstance(value, dict) else range(len(value)):
                places.append((value, key))
                if isinstance(value[key], (dict, list)):
                    walk(value[key])

        walk(document["hso_schedule"]["schedules"][0]["coefficients"])
        if rng.randrange(2):
            walk(document["hso_schedule"])
            places += [(document, "hso_schedule"), (document, "hso_replaced")]
            places += [(document["hso_replaced"], key) for key in ("_class_name", "beta_end", "trained_betas")]
        where, key = rng.choice(places)
        where[key] = rng.choice(ODD)
        file.write_text(json.dumps(document))
        try:
            found = load_scheduler(tmp_path)
        except ValueError:
            refused += 1
        else:
            assert np.isfinite(found.schedule.weights_table()).all() and found.schedule.coefficients.shape == (3, 2)
    assert refused > 100
