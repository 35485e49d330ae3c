"""The direct search: its solver against diffusers, its gradients against differences, and that it gets better."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_models import tiny, tiny_subject

from benchmarks.converged import fine_schedule
from benchmarks.methods import direct
from benchmarks.metrics import rmse
from benchmarks.models.denoiser import denoiser, own_subject
from benchmarks.models.subjects import REFINEMENTS
from benchmarks.solvers import SOLVERS
from hso_jax import baseline, zoo
from hso_jax.solver_error_levels import SPACING, s_of_lam

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array_?.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers.*"),
]


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name", ["fashion-eps", "fashion-v", "emoji-flow"])
def test_the_solver_is_diffusers(name, solver, calls):
    subject = tiny_subject(name, guidance=1.0 if name == "fashion-eps" else 3.0, count=2)
    schedule = baseline("beta-t", subject.noise, 5)
    wanted = subject.sample(schedule, solver).images
    error = direct.Error(subject, solver, wanted)
    assert error.value(s_of_lam(schedule.lams)) < 1e-11 * float(wanted.square().mean())
    assert error.calls == 2 * 5


class SmoothTime(torch.nn.Module):
    """diffusers' embedding of the timestep, which is float32 always, in float64."""

    def forward(self, t):
        angle = t[:, None] * torch.logspace(0, -4, 4, dtype=torch.float64)
        return torch.cat([angle.cos(), angle.sin()], dim=-1)


def in_float64(name) -> SimpleNamespace:
    trained = tiny(name)
    net, reference = trained.unet.double(), tiny_subject(name, count=2)
    net.time_proj = SmoothTime()

    def predict(x, t, labels, guidance):
        assert t.dtype == torch.float64
        return net(x, t.expand(len(x)), class_labels=labels).sample

    return SimpleNamespace(
        _trained=SimpleNamespace(predict=predict, scheduler=trained.scheduler),
        noise=reference.noise, start=reference.start.double(), labels=reference.labels, guidance=1.0,
    )  # fmt: skip


@pytest.mark.parametrize(("name", "solver"), [("fashion-eps", "unipc-3"), ("emoji-flow", "dpmpp-2m")])
def test_the_gradient_is_that_of_differences(name, solver, calls, monkeypatch):
    monkeypatch.setattr(direct, "_BATCH", 1)  # two batches
    subject = in_float64(name)
    generator = torch.Generator().manual_seed(1)
    error = direct.Error(subject, solver, torch.randn(subject.start.shape, dtype=torch.float64, generator=generator))
    s = np.array([0.93, 0.8, 0.55, 0.2])
    value, gradient = error.value_and_gradient(s)
    assert value == pytest.approx(error.value(s), rel=1e-12)
    step = 1e-6
    moves = step * np.eye(4)
    numeric = [(error.value(s + move) - error.value(s - move)) / (2 * step) for move in moves]
    np.testing.assert_allclose(gradient, numeric, rtol=1e-5, atol=1e-6 * np.abs(gradient).max())
    assert error.calls == 2 * 4 * (2 + 1 + 8)


def test_the_network_is_differentiable_in_its_timestep(calls):
    subject = tiny_subject()
    predict = denoiser(subject, slice(0, 2))
    level = SimpleNamespace(timestep=torch.tensor(300.3, requires_grad=True), alpha=0.6, sigma=0.8)
    total = predict(subject.start[:2], level).square().sum()
    (slope,) = torch.autograd.grad(total, level.timestep)
    ends = []
    for step in (-0.1, 0.1):
        level.timestep = torch.tensor(300.3 + step)
        ends.append(float(predict(subject.start[:2], level).double().square().sum()))
    assert float(slope) == pytest.approx((ends[1] - ends[0]) / 0.2, rel=0.05)


@pytest.mark.parametrize("first", ["free", "end"])
@pytest.mark.parametrize("nfe", [1, 2, 5])
def test_coordinates_are_schedules(nfe, first, calls):
    noise = tiny_subject().noise
    gaps = direct.Gaps.of(noise, nfe, first)
    low, high = (float(s_of_lam(noise.lam(float(t)))) for t in (noise.t_min, noise.t_max))
    draw = np.random.default_rng(nfe)
    for scale in (1.0, 30.0):
        z = scale * draw.standard_normal(nfe - (first == "end"))
        s = gaps.nodes(z)
        assert s.shape == (nfe,) and low < s[-1] and s[0] < high and (-np.diff(s) >= SPACING * (1 - 1e-9)).all()
        assert first == "free" or s[0] == pytest.approx(high, abs=2e-7)
    z = 0.5 * draw.standard_normal(nfe - (first == "end"))
    np.testing.assert_allclose(gaps.coordinates(gaps.nodes(z)), z, atol=1e-9)
    weights = draw.standard_normal(nfe)
    numeric = [(weights @ (gaps.nodes(z + e) - gaps.nodes(z - e))) / 2e-6 for e in 1e-6 * np.eye(len(z))]
    np.testing.assert_allclose(gaps.slope(z, weights), numeric, atol=1e-8)
    outside = np.linspace(high, low, nfe)  # the ends themselves have no coordinates, their neighbours do
    assert np.abs(gaps.nodes(gaps.coordinates(outside)) - outside).max() < 5e-3


def test_a_search_gets_better_within_its_budget(calls, monkeypatch):
    subject = tiny_subject("fashion-v")
    monkeypatch.setattr(direct.hso_jax, "search", lambda *_, **__: zoo("sd15", 4, "dpmpp-2m"))  # needs no compilation
    found = direct.search(subject, "dpmpp-2m", 4, rows=3, budget=800)
    assert set(found.starts) >= {"solver-error", "trailing"} and "ays-svd" not in found.starts
    assert found.error < 0.95 * min(found.starts.values())
    assert 3 * (REFINEMENTS[0] + 4 * len(found.starts)) < found.calls <= 800
    backward = found.calls - calls.images
    assert backward > 0 and backward % 12 == 0
    own = own_subject(subject, 3, 0)
    teacher = own.sample(fine_schedule(own.noise, REFINEMENTS[0]), "unipc-3").images
    again = rmse(own.sample(found.schedule, "dpmpp-2m").images, teacher).value
    assert again == pytest.approx(found.error, rel=1e-4)
    pinned, repeated = (direct.search(subject, "dpmpp-2m", 4, rows=3, budget=500, first="end") for _ in range(2))
    assert pinned.schedule.t[0] == pytest.approx(1.0, abs=1e-5)
    np.testing.assert_array_equal(pinned.schedule.lams, repeated.schedule.lams)


def test_what_cannot_be_searched_is_refused(calls):
    subject = tiny_subject()
    for solver, options, message in (
        ("heun", {}, "solver is 'heun'"),
        ("ddim", {"first": "last"}, "first 'last'"),
        ("ddim", {"nfe": 0}, "nfe is 0 and rows 48"),
        ("ddim", {"rows": 0}, "nfe is 4 and rows 0"),
        ("ddim", {"budget": 100}, "budget is 100; the teacher and the starts alone take"),
    ):
        with pytest.raises(ValueError, match=message):
            direct.search(subject, solver, **{"nfe": 4, **options})
    assert calls.images == 0
