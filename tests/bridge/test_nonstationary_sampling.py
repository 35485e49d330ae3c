"""A schedule's own coefficients outside diffusers: `bridge.sample`, and a sampler with k-diffusion's signature."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from cases import noise_of
from free import exact_levels, free_schedule, in_jax
from mixture import denoise, random_schedule, start

from bridge import Level, sample, sample_nonstationary
from hso_jax import noise
from hso_jax.schedule import Schedule

MODELS = ["sd15", "sd3-medium", "edm-cifar10", "cosine"]


def free(model: str, nfe: int, end: str, seed: int = 0, history: int = 3) -> Schedule:
    found = noise.cosine() if model == "cosine" else noise_of(model)
    return free_schedule(found, nfe, end, history, seed, pure=model in ("cosine", "sd3-medium"))


def mixture(x: torch.Tensor, level: Level) -> torch.Tensor:
    return denoise(x, level.alpha, level.sigma)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("end", ["clean", "t_eps"])
def test_sample_agrees_with_the_jax_loop(model: str, end: str) -> None:
    """To 1e-10, with a start at pure noise; it is what a schedule with coefficients is sampled with unasked."""
    for seed, history in ((0, 2), (1, 3), (2, 4)):
        schedule, seen = free(model, 6, end, seed, history), []

        def counted(x: torch.Tensor, level: Level, seen: list[Level] = seen) -> torch.Tensor:
            seen.append(level)
            return mixture(x, level)

        x = sample(counted, schedule, start())
        assert [level.timestep for level in seen] == schedule.timesteps.tolist()
        assert [level.lam for level in seen] == schedule.lams[:6].tolist()
        np.testing.assert_allclose(x.numpy(), in_jax(schedule, start()), rtol=1e-10, atol=1e-11)
        assert torch.equal(x, sample(mixture, schedule, start(), solver="nonstationary"))
        assert not torch.allclose(x, sample(mixture, schedule, start(), solver="unipc"))


def test_other_schedules_are_sampled_as_before() -> None:
    schedule = random_schedule(noise_of("sd15"), 5, "clean", 1)
    for name in ("unipc-2", "unipc"):  # diffusers' default order, as everywhere
        assert torch.equal(sample(mixture, schedule, start()), sample(mixture, schedule, start(), solver=name))
    with pytest.raises(ValueError, match="for solver 'any' and holds no coefficients"):
        sample(mixture, schedule, start(), solver="nonstationary")


@pytest.mark.parametrize("model", ["sd15", "sd3-medium", "edm-cifar10"])
@pytest.mark.parametrize("end", ["clean", "t_eps"])
def test_k_diffusions_signature(model: str, end: str) -> None:
    """In its scaling, x0 + sigma eps or (1 - s) x0 + s eps: the samples of `bridge.sample`, its callback's dict."""
    schedule = free(model, 5, end)
    grid = exact_levels(schedule)
    scale = np.array([1.0 if schedule.kind == "flow" else level.alpha for level in grid])
    sigmas = torch.tensor(schedule.sampler_sigmas())
    told: list[dict[str, Any]] = []
    asked: list[torch.Tensor] = []

    def network(x: torch.Tensor, sigma: torch.Tensor, *, cond: float) -> torch.Tensor:
        assert cond == 0.5
        asked.append(sigma)
        s = float(sigma[0])
        return denoise(x, 1.0 - s if schedule.kind == "flow" else 1.0, s)

    x = start()
    if schedule.kind == "ve":
        x = x * (1.0 + grid[0].sigma ** 2) ** 0.5
    got = sample_nonstationary(
        network, x / scale[0], sigmas, {"cond": 0.5}, told.append, True, coefficients=schedule.coefficients
    )
    want = sample(mixture, schedule, start())
    end_scale = scale[-1] if end == "t_eps" else 1.0
    np.testing.assert_allclose(got * end_scale, want, rtol=1e-10, atol=1e-10)
    assert torch.equal(torch.stack(asked), sigmas[:5, None].expand(5, 4))
    assert [call["i"] for call in told] == list(range(5))
    assert all(set(call) == {"x", "i", "sigma", "sigma_hat", "denoised"} for call in told)
    assert [float(call["sigma"]) for call in told] == [float(call["sigma_hat"]) for call in told] == sigmas[:5].tolist()
    if end == "clean":
        c = schedule.coefficients[-1]
        m = [call["denoised"] for call in told[::-1]]
        assert torch.allclose(got, (1 - c.sum()) * m[0] + c[0] * m[1] + c[1] * m[2])


@pytest.mark.parametrize(
    ("sigmas", "coefficients", "message"),
    [
        ([1.0, 2.0, 0.0], [[0.0], [0.0]], r"sigmas are \[1, 2, 0\]; need .* that fall"),
        ([1.0, float("nan"), 0.0], [[0.0], [0.0]], "need at least two finite numbers"),
        ([float("inf"), 1.0, 0.0], [[0.0], [0.0]], "need at least two finite numbers"),
        ([1.0], [[0.0]], "need at least two finite numbers"),
        ([2.0, 1.0, 0.0], [[0.0]], r"coefficients has shape \(1, 1\); need \(2, H - 1\)"),
        ([2.0, 1.0, 0.0], [[0.0], [float("nan")]], r"coefficients\[1\]\[0\] is nan"),
        ([2.0, 1.0, 0.0], [[0.3], [0.0]], "step 0 has 0 earlier predictions"),
    ],
)
def test_bad_input_is_refused_before_the_model_is_called(sigmas: list[float], coefficients: Any, message: str) -> None:
    def never(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        raise AssertionError

    with pytest.raises(ValueError, match=message):
        sample_nonstationary(never, start(), torch.tensor(sigmas), coefficients=coefficients)
