"""The plain sampler: what can be said of it without another solver at hand (for the rest see exactness and order)."""

from __future__ import annotations

import cases
import pytest
import torch
from mixture import denoise, random_schedule, start

from bridge import Level, sample
from bridge.sampling import levels
from hso_jax.schedule import Schedule

SOLVERS = [("ddim", {}), ("dpmpp-2m", {})] + [
    ("unipc", {"order": n, "variant": v}) for n in (1, 2, 3) for v in ("bh1", "bh2")
]
MODELS = ["sd15", "sd3-medium", "edm-cifar10"]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("end", ["clean", "t_eps"])
@pytest.mark.parametrize(("solver", "options"), SOLVERS, ids=str)
def test_exact_for_a_constant_prediction_and_calls_n_times(model: str, end: str, solver: str, options: dict) -> None:
    schedule = random_schedule(cases.noise_of(model), 6, end, 0)
    data, seen = torch.tensor([[0.4, -0.7]], dtype=torch.float64), []

    def constant(x: torch.Tensor, level: Level) -> torch.Tensor:
        seen.append(level)
        return data.expand_as(x)

    noise = start()
    got = sample(constant, schedule, noise, solver, **options)
    grid = levels(schedule)
    first = noise * (1 + grid[0].sigma ** 2) ** 0.5 if model == "edm-cifar10" else noise
    wanted = grid[-1].alpha * data + grid[-1].sigma * (first - grid[0].alpha * data) / grid[0].sigma
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
    assert seen == grid[:-1]
    assert [level.timestep for level in seen] == schedule.timesteps.tolist()


@pytest.mark.parametrize(("solver", "options"), SOLVERS, ids=str)
@pytest.mark.parametrize("model", ["sd3-medium"])
def test_starts_at_pure_noise(solver: str, options: dict, model: str) -> None:
    schedule = Schedule.from_t(cases.noise_of(model), [1.0, 0.7, 0.4, 0.1])
    got = sample(lambda x, level: denoise(x, level.alpha, level.sigma), schedule, start(), solver, **options)
    assert torch.isfinite(got).all()


def test_dtype_and_shape_follow_the_noise() -> None:
    schedule = random_schedule(cases.noise_of("sd15"), 5, "clean", 0)
    for dtype in (torch.float32, torch.bfloat16):
        noise = torch.randn(2, 3, 4, 4).to(dtype)
        got = sample(lambda x, level: torch.tanh(x), schedule, noise)
        assert got.dtype == dtype and got.shape == noise.shape


def test_refuses_unknown_choices() -> None:
    schedule = random_schedule(cases.noise_of("sd15"), 5, "clean", 0)
    for options, message in (({"solver": "rk4"}, "'ddim'"), ({"order": 4}, "order 4"), ({"variant": "bh3"}, "'bh3'")):
        with pytest.raises(ValueError, match=message):
            sample(lambda x, level: x, schedule, start(), **options)
