"""`noise_schedule_of` reads what the scheduler in hand really does."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from cases import FLOW, SD, noise_of
from diffusers.utils import is_torchsde_available

from bridge import noise_schedule_of, with_schedule
from bridge.schedulers.rows import ROWS
from hso_jax.noise import flux2_shift
from hso_jax.schedule import Schedule


def table_lams(scheduler: Any) -> np.ndarray:
    bar = scheduler.alphas_cumprod.double().numpy()
    bar = bar[bar > 2.0**-24]  # all but the level that stands for pure noise
    return 0.5 * np.log(bar / (1 - bar))


OTHER = ("EDM", "FlowMatch", "Cosine", "DDPMWuerstchen", *(() if is_torchsde_available() else ("DPMSolverSDE",)))
VP = [name for name in ROWS if not name.startswith(OTHER)]


@pytest.mark.parametrize("name", VP)
@pytest.mark.parametrize(
    "config", [{}, SD, {"trained_betas": np.linspace(1e-4, 0.03, 1000).tolist()}], ids=["own", "sd", "betas"]
)
def test_is_the_schedulers_table(name: str, config: dict[str, Any]) -> None:
    scheduler = getattr(diffusers, name)(**config)
    noise = noise_schedule_of(scheduler)
    t = np.arange(1, 1001) / 1000
    np.testing.assert_allclose(noise.lam(t), table_lams(scheduler), atol=1e-3)
    assert (noise.kind, noise.num_train_timesteps) == ("vp", 1000)


@pytest.mark.parametrize("scaler", [1.0, 2.0, 0.5])
def test_wuerstchens_clipped_cosine(scaler: float) -> None:
    scheduler = diffusers.DDPMWuerstchenScheduler(scaler=scaler, s=0.008)
    noise = noise_schedule_of(scheduler)
    t = np.linspace(float(noise.t_min), 1.0, 500)
    bar = scheduler._alpha_cumprod(torch.from_numpy(t), "cpu").double().numpy()
    np.testing.assert_allclose(noise.alpha(t) ** 2, bar, atol=2e-7)
    assert bar[0] == pytest.approx(0.9999, abs=1e-6) and noise.alpha(1.0) ** 2 == pytest.approx(1e-4, rel=1e-6)
    assert not noise.zero_terminal_snr
    np.testing.assert_array_equal(noise.timestep(t), t)


@pytest.mark.skipif(not is_torchsde_available(), reason="CosineDPMSolverMultistepScheduler needs torchsde")
@pytest.mark.parametrize("rule", ["exponential", "karras"])
def test_stable_audios_sigmas_and_what_its_network_is_told(rule: str) -> None:
    scheduler = diffusers.CosineDPMSolverMultistepScheduler(sigma_schedule=rule)
    scheduler.set_timesteps(9)
    noise, t = noise_schedule_of(scheduler), np.linspace(1.0, 0.0, 9)
    np.testing.assert_allclose(noise.ksigma(t), scheduler.sigmas[:-1], rtol=1e-5)
    np.testing.assert_allclose(noise.timestep(t), scheduler.timesteps, rtol=1e-5)


@pytest.mark.parametrize("name", ["DDIMScheduler", "UniPCMultistepScheduler"])
def test_zero_terminal_snr(name: str) -> None:
    scheduler = getattr(diffusers, name)(**SD, rescale_betas_zero_snr=True)
    noise = noise_schedule_of(scheduler)
    assert noise.zero_terminal_snr
    np.testing.assert_allclose(noise.lam(np.arange(1, 1000) / 1000), table_lams(scheduler), atol=1e-3)


def test_rules_only_diffusers_knows_and_tables_set_by_hand() -> None:
    for scheduler in (
        diffusers.DDPMScheduler(beta_schedule="sigmoid"),
        diffusers.HeunDiscreteScheduler(beta_schedule="exp"),
    ):
        np.testing.assert_allclose(
            noise_schedule_of(scheduler).lam(np.arange(1, 1001) / 1000), table_lams(scheduler), atol=1e-3
        )
    scheduler = diffusers.DDIMScheduler(**SD)
    scheduler.alphas_cumprod = torch.linspace(0.999, 0.01, 1000)
    np.testing.assert_allclose(
        noise_schedule_of(scheduler).lam(np.arange(1, 1001) / 1000), table_lams(scheduler), atol=1e-6
    )
    assert noise_schedule_of(diffusers.DDIMScheduler(**SD)).fingerprint() == noise_of("sd15").fingerprint()


def test_float32_tables_have_the_presets_fingerprint() -> None:
    for name in ("DDIMScheduler", "UniPCMultistepScheduler", "EulerDiscreteScheduler"):
        assert noise_schedule_of(getattr(diffusers, name)(**SD)).fingerprint() == noise_of("sd15").fingerprint()


def test_flow() -> None:
    euler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    assert noise_schedule_of(euler).fingerprint() == noise_of("sd3-medium").fingerprint()
    assert noise_schedule_of(diffusers.UniPCMultistepScheduler(**FLOW)).fingerprint() == noise_of("wan21").fingerprint()
    dynamic = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    dynamic.set_timesteps(10, mu=1.15)
    noise = noise_schedule_of(dynamic, image_seq_len=4096)
    steps = np.linspace(1, 1 / 1000, 10)  # the parent shifts these
    np.testing.assert_allclose(noise.sigma(steps[1:]), dynamic.sigmas[1:-1], rtol=1e-5)
    assert noise_schedule_of(dynamic, image_seq_len=256).fingerprint() != noise.fingerprint()
    assert noise_schedule_of(dynamic, mu=1.15).fingerprint() == noise.fingerprint()
    assert float(noise_schedule_of(dynamic, mu=math.log(3.0)).sigma(0.5)) == pytest.approx(0.75)
    with pytest.raises(ValueError, match="mu is the logarithm"):
        noise_schedule_of(diffusers.DDIMScheduler(**SD), mu=1.0)


SQUARE_ROOT = {"time_shift_type": "linear", "base_shift": 0.25, "max_shift": 0.75}


@pytest.mark.parametrize(
    ("pipeline", "config", "tokens", "shift"),
    [
        ("FluxPipeline", {}, 4096, math.exp(1.15)),
        ("Flux2KleinPipeline", {}, 4096, flux2_shift(4096)),
        ("CogView4Pipeline", SQUARE_ROOT, 4096, 3.25),
        ("GlmImagePipeline", SQUARE_ROOT, 1024, 1.75),
        ("HunyuanVideoFramepackPipeline", {}, 65536, 7.0),
        ("HiDreamImagePipeline", {"max_shift": 0.9}, 256, math.exp(1.15)),
        ("Ideogram4Pipeline", {"use_dynamic_shifting": False}, 4096, 2.0),
    ],
)
def test_a_pipeline_s_own_rule_for_the_shift(pipeline: str, config: dict[str, Any], tokens: int, shift: float) -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(**{"use_dynamic_shifting": True, **config})
    for name in (pipeline, "MyOwn"):  # the class, and one that someone derived from it
        base = type(pipeline, (SimpleNamespace,), {})
        pipe = base(scheduler=scheduler) if name == pipeline else type(name, (base,), {})(scheduler=scheduler)
        assert noise_schedule_of(pipe, image_seq_len=tokens).ksigma(0.5) == pytest.approx(shift)


def test_krea_2_distilled_has_one_shift() -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    for distilled, mu in ((True, 1.15), (False, 0.5)):
        pipe = type("Krea2Pipeline", (SimpleNamespace,), {})(scheduler=scheduler, config={"is_distilled": distilled})
        assert noise_schedule_of(pipe, image_seq_len=256).ksigma(0.5) == pytest.approx(math.exp(mu))


def test_mu_is_what_the_scheduler_makes_of_it() -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, **SQUARE_ROOT)
    scheduler.set_timesteps(sigmas=np.array([1.0, 0.75, 0.5, 0.25]), mu=3.25)
    noise = noise_schedule_of(scheduler, mu=3.25)
    np.testing.assert_allclose(noise.sigma(np.array([0.75, 0.5, 0.25])), scheduler.sigmas[1:-1], rtol=1e-6)
    assert noise_schedule_of(scheduler).fingerprint() == noise.fingerprint()  # 4096 tokens, without a pipeline


def test_edm_and_stable_video() -> None:
    assert noise_schedule_of(diffusers.EDMEulerScheduler()).fingerprint() == noise_of("edm-cifar10").fingerprint()
    video = {"timestep_type": "continuous", "prediction_type": "v_prediction", "sigma_min": 0.002, "sigma_max": 700.0}
    scheduler = diffusers.EulerDiscreteScheduler(**SD, **video)
    noise = noise_schedule_of(scheduler)
    assert noise.kind == "ve" and float(noise.ksigma(1.0)) == pytest.approx(700.0)
    schedule = Schedule.from_sigmas(noise, [700.0, 20.0, 1.0, 0.05])
    installed = with_schedule(scheduler, schedule)
    installed.set_timesteps(4)
    np.testing.assert_allclose(installed.timesteps, 0.25 * np.log([700.0, 20.0, 1.0, 0.05]), rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(installed.sigmas, [700.0, 20.0, 1.0, 0.05, 0.0], rtol=1e-12)
    with pytest.raises(ValueError, match="sigma_min and sigma_max"):
        noise_schedule_of(diffusers.EulerDiscreteScheduler(timestep_type="continuous", prediction_type="v_prediction"))


def test_pipelines_installed_schedulers_and_other_things() -> None:
    plain = diffusers.DDIMScheduler(**SD)
    installed = with_schedule(plain, Schedule.from_t(noise_of("sd15"), [0.9, 0.5]))
    assert (
        noise_schedule_of(SimpleNamespace(scheduler=installed)).fingerprint() == noise_schedule_of(plain).fingerprint()
    )
    assert noise_schedule_of(plain, name="mine").name == "mine"
    with pytest.raises(ValueError, match="need a diffusers scheduler"):
        noise_schedule_of(3)
    with pytest.raises(ValueError, match=r"IPNDMScheduler is not supported: .*; use PNDMScheduler or"):
        noise_schedule_of(diffusers.IPNDMScheduler())
