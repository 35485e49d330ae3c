"""`bridge.profile`: a pipeline whose network is an exact denoiser plus an error of known size; its budget; refusals."""

from __future__ import annotations

import functools
import math
from typing import Any

import diffusers
import jax
import numpy as np
import pytest
import torch
from test_bridge_pipeline import pipeline, seen_by
from test_pipelines_schedule import family_of, use

import bridge
from bridge import noise_schedule_of, schedule_of
from hso_jax import SolverError, lanes, problems
from hso_jax.noise import alpha_sigma
from hso_jax.problems.model_error import ALIKE, exact_variance, measure_eta
from hso_jax.problems.product import predict

DDPM = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear", "timestep_spacing": "trailing"}
SCHEDULERS = {
    "epsilon": lambda: diffusers.DPMSolverMultistepScheduler(**DDPM),
    "euler": lambda: diffusers.EulerDiscreteScheduler(**DDPM),
    "v_prediction": lambda: diffusers.DDIMScheduler(
        **DDPM, clip_sample=False, rescale_betas_zero_snr=True, prediction_type="v_prediction"
    ),
    "flow_prediction": lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    "edm": lambda: diffusers.EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, sigma_data=1.0),
}
PROBLEM = problems.spectral(jax.random.key(1), problems.power_law(48, 1.0), dimension=24, leading=0.0)
TRUE = np.sqrt(problems.spread(problems.collect([PROBLEM]))[0][0])  # along each of the 24 coordinates


def unit_error(prediction: str, lam: float) -> float:
    """The error in x_0 of a network whose error in what it predicts is 1."""
    return problems.ModelError(eta=1.0).size(prediction, lam)


@functools.cache
def exact_denoiser() -> Any:
    return jax.jit(functools.partial(predict, PROBLEM))


class Toy:
    """A pipeline as diffusers' are: text, guidance, a progress bar, a loop over its scheduler's steps.

    The network is the problem's exact denoiser; its error is a smooth function of x and the level without linear part,
    of the size eta c(lam) in units of the data's standard deviation.
    """

    def __init__(self, prediction: str, eta: float) -> None:
        self.scheduler, self.eta, self.evaluated = SCHEDULERS[prediction](), eta, []
        self.noise = noise_schedule_of(self.scheduler)
        rng, d = np.random.default_rng(0), len(TRUE)
        self.wave = 2.0 * rng.standard_normal((2, d, d)) / math.sqrt(d)
        self.phase = rng.uniform(0.0, 2.0 * math.pi, (2, d))

    def set_progress_bar_config(self, **kwargs: Any) -> None:
        pass

    def __call__(
        self,
        prompt: Any = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 1.0,
        generator: Any = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> Any:
        scheduler = self.scheduler
        scheduler.set_timesteps(num_inference_steps)
        d = len(TRUE)
        x = torch.stack([torch.randn(d, generator=g, dtype=torch.float64) for g in generator]).float()
        x = x * getattr(scheduler, "init_noise_sigma", 1.0)
        nodes = schedule_of(scheduler).lams.copy()
        if np.isinf(nodes[0]):
            nodes[0] = -8.3 if self.noise.kind == "vp" else math.log(1e-6)
        for t, lam in zip(scheduler.timesteps, nodes, strict=True):
            self.evaluated.append(len(x))
            output = self.network(x, float(lam), guidance_scale)
            x = scheduler.step(output, t, x, return_dict=False)[0]
        return (x,)

    def network(self, sample: torch.Tensor, lam: float, guidance: float) -> torch.Tensor:
        scheduler, k = self.scheduler, math.exp(-lam)
        alpha, sigma = (float(v) for v in alpha_sigma(np.float64(lam), "vp"))
        own = [float(v) for v in alpha_sigma(np.float64(lam), self.noise.kind)]
        scaled = hasattr(scheduler, "precondition_outputs") or isinstance(scheduler, diffusers.EulerDiscreteScheduler)
        x = sample.double().numpy() * (alpha if scaled else alpha / own[0])
        clean = np.array(exact_denoiser()(x.astype(np.float32), alpha, sigma, guidance)[0], np.float64)
        waves = [np.cos(x @ a + 0.7 * lam + p) * math.sqrt(2.0) for a, p in zip(self.wave, self.phase, strict=True)]
        c = unit_error(self.noise.prediction, lam)
        clean += self.eta * c * TRUE * (waves[0] + guidance * (waves[1] - waves[0]))
        outputs = {
            "epsilon": (x - alpha * clean) / sigma,
            "v_prediction": (alpha * x - clean) / sigma,
            "flow_prediction": (x * own[0] / alpha - clean) / own[1],
            "edm": (clean - x * alpha) / sigma,  # unit data: c_skip = alpha^2 of x/alpha, c_out = k alpha
        }
        assert k > 0
        return torch.from_numpy(outputs[self.noise.prediction]).float()


@pytest.mark.parametrize(
    ("prediction", "eta", "guidance"),
    [
        ("epsilon", 0.02, 1.0),
        ("epsilon", 0.1, 1.0),
        ("epsilon", 0.03, 3.0),
        ("euler", 0.05, 1.0),
        ("v_prediction", 0.05, 1.0),
        ("flow_prediction", 0.05, 1.0),
        ("edm", 0.15, 1.0),
    ],
)
def test_finds_the_error_and_the_spectrum_again(prediction: str, eta: float, guidance: float) -> None:
    pipe = Toy(prediction, eta)
    found = bridge.profile(pipe, guidance=guidance, budget=9600, batch=100)
    assert found.prediction == pipe.noise.prediction and found.guidance == guidance
    assert found.ends == (pipe.noise.noise_end, pipe.noise.data_end) and found.dimension == 24
    w = guidance  # the branches of `Toy` err independently, those that eta is of alike
    eta *= math.sqrt((w**2 + (1 - w) ** 2) / (w**2 + (1 - w) ** 2 + 2 * ALIKE * w * (1 - w)))
    assert found.eta is not None and eta / 1.5 < found.eta < 1.5 * eta
    assert found.lams[0] < -4.3 and max(found.etas) < 2.0 * min(found.etas)
    if eta <= 0.05 and guidance == 1.0:  # a larger error is seen in the samples
        np.testing.assert_allclose(found.deviations[:6], np.sort(TRUE)[::-1][:6], rtol=0.1)
        assert found.total == pytest.approx((TRUE**2).sum(), rel=0.1)
    lanes([pipe.noise], [6], method=SolverError(profile=found))


def test_an_exact_network_has_next_to_no_error() -> None:
    found = bridge.profile(Toy("epsilon", 0.0), budget=3000)
    assert found.eta is not None and found.eta < 0.002


def test_the_budget_is_never_exceeded_and_told_as_it_goes() -> None:
    pipe, told = Toy("epsilon", 0.0), []
    found = bridge.profile(pipe, prompts=["a", "b", "c"], budget=1999, batch=7, progress=lambda *x: told.append(x))
    # 62 samples of 32 evaluations, as many of each of three prompts: 60.
    assert sum(pipe.evaluated) == 60 * 32 == found.measured["evaluations"]
    assert told[-1] == (1920, 1920) and [x for x, _ in told] == np.cumsum(pipe.evaluated).tolist()
    assert found.measured["samples"] == 60 and found.measured["prompts"] == ["a", "b", "c"]
    again = bridge.profile(Toy("epsilon", 0.0), prompts=["a", "b", "c"], budget=1999, batch=7)
    assert again == found


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 511}, r"budget is 511: 15 samples .* at least 16 of each, a budget of 512"),
        ({"budget": 639, "prompts": list("abcdefghij")}, "1 samples .* for each of 10 prompts; need at least 2"),
        ({"budget": 0}, "budget is 0"),
        ({"budget": 3e3}, "budget is 3000.0"),
        ({"steps": 4}, "steps is 4"),
        ({"batch": 1}, "batch is 1"),
        ({"seed": -1}, "seed is -1"),
        ({"guidance": math.nan}, "guidance is nan"),
        ({"guidance": 2.0, "guidance_scale": 3.0}, "guidance_scale is 3.0 and guidance 2.0; leave one out"),
        ({"prompts": []}, r"prompts is \[\]"),
        ({"prompts": "a fox"}, "prompts is 'a fox'; need a list"),
        ({"strengh": 1}, "does not take strengh"),
    ],
)
def test_refuses_before_any_evaluation(options: dict[str, Any], message: str) -> None:
    pipe = Toy("epsilon", 0.0)
    with pytest.raises(ValueError, match=message):
        bridge.profile(pipe, **options)
    assert not pipe.evaluated


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (lambda: diffusers.EulerAncestralDiscreteScheduler(**DDPM), "EulerAncestralDiscreteScheduler does not follow"),
        (
            lambda: diffusers.HeunDiscreteScheduler(),
            "HeunDiscreteScheduler does not follow the .* one evaluation a step",
        ),
        (lambda: diffusers.PNDMScheduler(**DDPM), r"use another, pipe\.scheduler = DPMSolverMultistep"),
        (lambda: diffusers.FlowMatchEulerDiscreteScheduler(stochastic_sampling=True), "stochastic_sampling=True"),
    ],
)
def test_refuses_schedulers_that_leave_the_flow(scheduler: Any, message: str) -> None:
    pipe = Toy("epsilon", 0.0)
    pipe.scheduler = scheduler()
    with pytest.raises(ValueError, match=message):
        bridge.profile(pipe)
    assert not pipe.evaluated


def test_samples_that_are_not_finite_are_no_profile() -> None:
    with pytest.raises(ValueError, match="not finite"):
        bridge.profile(Toy("epsilon", math.nan), budget=512)


def test_a_pipeline_of_diffusers_with_guidance_is_left_as_it_is() -> None:
    pipe = pipeline()
    before = {name: id(value) for name, value in vars(pipe).items()}
    call: dict[str, Any] = {"height": 16, "width": 16, "negative_prompt": "grey"}
    found, batches = seen_by(
        pipe.unet, lambda: bridge.profile(pipe, prompts=["a fox", "rain"], guidance=5.0, budget=144, steps=8, **call)
    )
    # 18 samples in calls of 8, 8 and 2, each with and without its prompt, which counts once.
    assert batches == [16] * 16 + [4] * 8 and found.measured["evaluations"] == 144
    assert found.guidance == 5.0 and found.dimension == 4 * 8 * 8 and len(found.deviations) == 4
    assert {name: id(value) for name, value in vars(pipe).items()} == before and schedule_of(pipe) is None
    assert "seen" not in pipe.scheduler.step.__qualname__


def test_a_class_conditional_pipeline_steps_with_each_sample_twice() -> None:
    family = family_of("DiTPipeline")
    pipe = family.build()
    use(pipe, family, "DDIMScheduler")
    found = bridge.profile(pipe, prompts=[1, 2], guidance=2.0, budget=128, steps=8)
    assert found.measured["samples"] == 16 and found.measured["evaluations"] == 128
    with pytest.raises(ValueError, match="takes classes: give some"):
        bridge.profile(pipe)


def test_the_exact_variance_is_that_of_a_gaussian_s_denoiser() -> None:
    of = problems.spectrum([2.0, 0.5], [1, 3])
    rng, lam = np.random.default_rng(0), -1.0
    alpha, sigma = (float(v) for v in alpha_sigma(np.float64(lam), "vp"))
    s = np.array([2.0, 0.5, 0.5, 0.5])
    x = alpha * s * rng.standard_normal((200_000, 4)) + sigma * rng.standard_normal((200_000, 4))
    denoised = x * alpha * s**2 / (alpha**2 * s**2 + sigma**2)
    assert exact_variance(of, lam) == pytest.approx(denoised.var(0).sum(), rel=0.01)


def test_a_noise_end_that_knows_the_data_tells_no_eta() -> None:
    """Stable Diffusion's: its latents' leading deviations are tens, its largest sigma/alpha is 15."""
    of = problems.named("latents-4")
    found = measure_eta([-2.68, -2.0], [0.9 * of.total, of.total], of, of.total, "epsilon")
    assert found == (None, (), ())
    noisy = measure_eta([-math.inf, -9.0], [0.01, 0.01], problems.spectrum([1.0]), 1.0, "v_prediction")
    assert noisy.eta == pytest.approx(0.1, rel=1e-3) and noisy.lams == (-9.0,)


def test_eta_is_one_branch_s_under_guidance() -> None:
    """The guided prediction errs as w and 1 - w times errors of the branches that are alike by nine tenths."""
    of, total = problems.spectrum([1.0]), 1.0
    variances = [0.04**2 * unit_error("flow_prediction", lam) ** 2 * total for lam in (-math.inf, -7.0)]
    for weight, branches in ((1.0, 1.0), (3.0, 9.0 + 4.0 - 1.8 * 6.0), (7.5, 7.5**2 + 6.5**2 - 1.8 * 7.5 * 6.5)):
        found = measure_eta([-math.inf, -7.0], [branches * v for v in variances], of, total, "flow_prediction", weight)
        assert found.eta == pytest.approx(0.04, rel=1e-2)
