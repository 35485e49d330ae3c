"""Every method gives a schedule of N evaluations with a clean end and says what it cost, or says why it has none."""

import functools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from benchmarks.models.subjects import OWN_SEEDS, REFINEMENTS
from diffusers import FlowMatchEulerDiscreteScheduler
from tiny_models import tiny, tiny_subject

import bridge
from benchmarks import methods
from benchmarks.compared import SOLVERS, fine_schedule, flow_time
from benchmarks.methods import METHODS, autodiffusion, direct, gits, prepare, union_length
from benchmarks.metrics import frechet, rmse
from benchmarks.runner import Inapplicable, noise_of
from hso_jax import Schedule, baseline, preset, zoo
from hso_jax.lower.quasi_newton import SPACING
from hso_jax.noise import flow, s_of_lam
from hso_jax.schedule import Origin

RUN_THE_MODEL = {"gits", "autodiffusion", "direct"}
KINDS = ("fashion-eps", "fashion-v", "emoji-flow")


@pytest.fixture
def cheap(monkeypatch):
    for module, small in {
        gits: {"images": 3, "levels": 8},
        autodiffusion: {"images": 3, "budget": 60},
        direct: {"rows": 2, "budget": 400},
    }.items():
        monkeypatch.setattr(module, "search", functools.partial(module.search, **small))


def real(count=40):
    return np.random.default_rng(1).standard_normal((count, 96))


# ---- all of them


@pytest.mark.parametrize("method", [m for m in METHODS if m not in ("exponential", "ays-svd", "nonstationary")])
def test_every_method_has_n_evaluations_and_a_clean_end(method, calls, cheap):
    subject, solver = tiny_subject(), "dpmpp-2m"  # the solver of `--quick`: its test runs the same compiled search
    prepared = prepare(method, subject, solver, 4, real=real())
    schedule = prepared.schedule
    assert (schedule.nfe, schedule.layout, schedule.end) == (4, "node", "clean")
    assert schedule.sampler_sigmas()[-1] == 0 and schedule.model == "fashion-eps"
    assert 0 <= prepared.seconds < 600 and prepared.compile_seconds >= 0
    assert (prepared.calls > 0) == (method in RUN_THE_MODEL) == (calls.images > 0)
    before = calls.images
    assert subject.sample(schedule, solver).calls == 4  # counted at the network
    assert calls.images - before == 4 * subject.count


def test_coefficients_of_its_own_are_searched_once_and_installed(calls, monkeypatch):
    """The search itself is tests/methods/test_nonstationary_search.py's: here it is a schedule that is at hand."""
    subject, asked = tiny_subject(), []
    own = Origin(method="solver-error", solver="nonstationary")
    rows = [[0.0], [-0.4], [-0.5], [0.0]]
    made = Schedule.from_t(subject.noise, [1.0, 0.7, 0.4, 0.1], origin=own, coefficients=rows)
    monkeypatch.setattr(methods, "search", lambda *args, **options: asked.append(options) or made)
    monkeypatch.setattr(methods, "_FOUND", {})
    for solver in ("ddim", "dpmpp-2m"):
        assert prepare("nonstationary", subject, solver, 4).schedule is made
    assert len(asked) == 1 and asked[0]["method"].solver == "nonstationary" and calls.images == 0
    found = subject.sample(made, "nonstationary")
    assert found.calls == 4 and bool(found.images.isfinite().all()) and calls.images == 4 * subject.count


@pytest.mark.parametrize(
    ("method", "model", "reason"),
    [
        ("ays", "emoji-flow", "table for models of kind 'vp'"),
        ("ays-svd", "fashion-eps", "table for models of kind 've'"),
        ("exponential", "fashion-eps", "'uniform-lam'"),
        ("autodiffusion", "fashion-eps", "real="),
        ("hso-other", "emoji-flow", "no model to exchange"),
    ],
)
def test_a_method_without_a_schedule_says_why(method, model, reason, calls):
    with pytest.raises(Inapplicable, match=reason):
        prepare(method, tiny_subject(model), "ddim", 4)
    assert calls.images == 0


@pytest.mark.parametrize("nfe", [1, 4, 10])
def test_exponential_is_diffusers_on_a_flow(nfe):
    noise = flow(name="flow")
    found = prepare("exponential", SimpleNamespace(noise=noise), "ddim", nfe).schedule
    scheduler = FlowMatchEulerDiscreteScheduler(use_exponential_sigmas=True)
    scheduler.set_timesteps(sigmas=np.linspace(0.999, 0.001, nfe) if nfe > 1 else np.array([0.999]))
    np.testing.assert_allclose(found.sampler_sigmas(), scheduler.sigmas, rtol=2e-6)


@pytest.mark.parametrize("name", ["sd15", "sd3-medium", "edm-cifar10"])
def test_flow_time_starts_at_the_noise_end_of_any_model(name):
    model = preset(name)
    schedule = flow_time("flow-2", model, 6)
    s, u = 1 / (1 + np.exp(schedule.lams)), 1 - np.arange(6) / 6
    np.testing.assert_allclose(s, s[0] * 2 * u / (1 + u), rtol=1e-5)
    assert schedule.lams[0] == (-np.inf if model.kind == "flow" else pytest.approx(float(model.lam(1.0))))


def test_compilation_is_told_apart_and_counted_once(calls):
    assert union_length([(0.0, 1.0), (0.25, 0.5), (0.75, 2.0), (3.0, 4.0)]) == 3.0
    assert union_length([]) == 0.0
    first, again = (prepare("hso", tiny_subject(), "ddim", 4) for _ in range(2))
    assert again.compile_seconds == 0 < again.seconds
    np.testing.assert_array_equal(first.schedule.lams, again.schedule.lams)


def test_preparation_has_noise_of_its_own(calls):
    subject = tiny_subject(guidance=2.0, count=3, seed=5)
    own, other = subject.for_preparation(6, 0), subject.for_preparation(6, 1)
    assert (own.name, own.guidance, own.count) == ("fashion-eps", 2, 6)
    noises = torch.cat([x.start for x in (subject, own, other)]).flatten(1)
    similarity = torch.nn.functional.cosine_similarity(noises[None], noises[:, None], dim=-1)
    assert (similarity - torch.eye(len(noises))).abs().max() < 0.2
    for seed, of in ((-1, subject), (0, tiny_subject(seed=OWN_SEEDS))):
        with pytest.raises(ValueError, match=f"seed is {seed},"):
            of.for_preparation(2, seed)


@pytest.mark.parametrize("name", KINDS)
def test_the_denoiser_of_an_exact_network_returns_the_data(name, monkeypatch):
    x0, eps = torch.randn(2, 2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    alpha, sigma = (0.3, 0.7) if name == "emoji-flow" else (0.6, 0.8)
    output = {"fashion-eps": eps, "fashion-v": alpha * eps - sigma * x0, "emoji-flow": eps - x0}[name]
    trained, told = tiny(name), []
    monkeypatch.setattr(type(trained), "predict", lambda self, x, *given: told.append(given) or output)
    found = trained.denoise(alpha * x0 + sigma * eps, bridge.Level(123.4, alpha, sigma, 0.0), "labels", 3.0)
    torch.testing.assert_close(found, x0, rtol=1e-5, atol=1e-5)
    assert told == [(123.4, "labels", 3.0)]


# ---- direct search


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name", KINDS)
def test_the_solver_of_the_direct_search_is_diffusers(name, solver, calls):
    subject = tiny_subject(name, guidance=1.0 if name == "fashion-eps" else 3.0, count=2)
    schedule = baseline("beta-t", subject.noise, 5)
    wanted = subject.sample(schedule, solver).images
    error = direct.Error(subject, solver, wanted)
    assert error.value(s_of_lam(schedule.lams)) < 1e-11 * float(wanted.square().mean()) and error.calls == 2 * 5


class SmoothTime(torch.nn.Module):
    """diffusers' embedding of the timestep, which is float32 always, in float64."""

    def forward(self, t):
        angle = t[:, None] * torch.logspace(0, -4, 4, dtype=torch.float64)
        return torch.cat([angle.cos(), angle.sin()], dim=-1)


@pytest.mark.parametrize(("name", "solver"), [("fashion-eps", "unipc-3"), ("emoji-flow", "dpmpp-2m")])
def test_the_gradient_of_the_direct_search_is_that_of_differences(name, solver, calls, monkeypatch):
    monkeypatch.setattr(direct, "_BATCH", 1)  # two batches
    subject = tiny_subject(name, count=2)
    net = subject.trained.unet.double()
    net.time_proj, subject.start = SmoothTime(), subject.start.double()

    def predict(self, x, t, labels, guidance):
        assert t.dtype == torch.float64
        output = net(x, t.expand(len(x)), class_labels=labels, return_dict=False)
        return output[0]

    monkeypatch.setattr(type(subject.trained), "predict", predict)
    monkeypatch.setattr(subject.trained.unet, "_forward_hooks", {})
    generator = torch.Generator().manual_seed(1)
    error = direct.Error(subject, solver, torch.randn(subject.start.shape, dtype=torch.float64, generator=generator))
    s, step = np.array([0.93, 0.8, 0.55, 0.2]), 1e-6
    value, gradient = error.value_and_gradient(s)
    assert value == pytest.approx(error.value(s), rel=1e-12)
    numeric = [(error.value(s + move) - error.value(s - move)) / (2 * step) for move in step * np.eye(4)]
    np.testing.assert_allclose(gradient, numeric, rtol=1e-5, atol=1e-6 * np.abs(gradient).max())
    assert error.calls == 2 * 4 * (2 + 1 + 8)


@pytest.mark.parametrize("nfe", [1, 2, 5])
def test_coordinates_of_the_direct_search_are_schedules(nfe):
    noise = noise_of("fashion-eps")
    gaps = direct.Gaps.of(noise, nfe)
    low, high = (float(s_of_lam(noise.lam(float(t)))) for t in (noise.t_min, noise.t_max))
    draw = np.random.default_rng(nfe)
    for scale in (1.0, 30.0):
        s = gaps.nodes(scale * draw.standard_normal(nfe))
        assert s.shape == (nfe,) and low < s[-1] and s[0] < high and (-np.diff(s) >= SPACING * (1 - 1e-9)).all()
    z, weights = 0.5 * draw.standard_normal(nfe), draw.standard_normal(nfe)
    np.testing.assert_allclose(gaps.coordinates(gaps.nodes(z)), z, atol=1e-9)
    numeric = [(weights @ (gaps.nodes(z + e) - gaps.nodes(z - e))) / 2e-6 for e in 1e-6 * np.eye(nfe)]
    np.testing.assert_allclose(gaps.slope(z, weights), numeric, atol=1e-8)
    outside = np.linspace(high, low, nfe)  # the ends themselves have no coordinates, their neighbours do
    assert np.abs(gaps.nodes(gaps.coordinates(outside)) - outside).max() < 5e-3


def test_a_direct_search_gets_better_within_its_budget(calls, monkeypatch):
    subject = tiny_subject("fashion-v")
    monkeypatch.setattr(direct.hso_jax, "search", lambda *_, **__: zoo("sd15", 4, "dpmpp-2m"))  # needs no compilation
    found = direct.search(subject, "dpmpp-2m", 4, rows=3, budget=800)
    assert set(found.starts) >= {"solver-error", "trailing"} and "ays-svd" not in found.starts
    assert found.error < 0.95 * min(found.starts.values())
    backward = found.calls - calls.images
    assert found.calls <= 800 and backward > 0 and backward % 12 == 0
    own = subject.for_preparation(3, 0)
    teacher = own.sample(fine_schedule(own.noise, REFINEMENTS[0]), "unipc-3").images
    again = rmse(own.sample(found.schedule, "dpmpp-2m").images, teacher).value
    assert again == pytest.approx(found.error, rel=1e-4)
    with pytest.raises(ValueError, match="budget is 100; the teacher and the starts alone take"):
        direct.search(subject, "ddim", 4, budget=100)


# ---- GITS; its dynamic programme is tested in tests/bridge/tuning/test_coordinates.py


@pytest.mark.parametrize("name", ["fashion-eps", "emoji-flow"])
def test_gits_costs_are_those_of_euler_steps_from_the_teacher(name, calls):
    subject = tiny_subject(name)
    grid = gits.teacher_grid(subject.noise, 5)
    costs = gits.euler_costs(subject, grid, slice(0, 3))
    assert calls.images == 5 * 3

    def predict(x, level):
        return subject.trained.denoise(x, level, subject.labels[:3], 1.0)

    alphas, sigmas = np.asarray(subject.noise.alpha(grid.t)), np.asarray(subject.noise.sigma(grid.t))
    x = subject.start[:3]
    x0 = predict(x, bridge.Level(grid.timesteps[0], alphas[0], sigmas[0], 0.0))
    assert costs[0, 1] < 1e-6 * (x / alphas[0]).norm()  # the teacher's first step is an Euler step as well
    clean = bridge.sample(predict, grid, x, solver="dpmpp-2m")
    assert costs[0, 5] == pytest.approx(float((x0 - clean).flatten(1).norm(dim=1).sum()), rel=1e-4)
    assert np.isinf(costs[np.tril_indices(6)]).all() and np.isfinite(costs[np.triu_indices(6, 1)]).all()


def test_gits_steps_to_a_single_image_cost_nothing(monkeypatch):
    noise, image = preset("sd15"), torch.full((2, 1, 32, 32), 0.5)
    grid, trained = gits.teacher_grid(noise, 6), tiny("fashion-eps")

    def predict(self, x, timestep, labels, guidance):  # eps of data that is `image` alone
        t = (float(timestep) + 1) / 1000
        return (x - float(noise.alpha(t)) * image) / float(noise.sigma(t))

    monkeypatch.setattr(type(trained), "predict", predict)
    start = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    point = SimpleNamespace(trained=trained, noise=noise, guidance=1.0, labels=torch.zeros(2), start=start)
    costs = gits.euler_costs(point, grid, slice(0, 2))
    assert costs[np.triu_indices(7, 1)].max() < 1e-5 * grid.sigmas[0] * 32 * 2


def test_gits_has_karras_levels_and_one_warm_up_for_every_n(calls):
    subject = tiny_subject()
    found = {n: gits.search(subject, n, images=3, levels=8) for n in (1, 3, 8)}
    assert calls.images == 3 * 8 and {calls for _, calls, _ in found.values()} == {24}
    grid = gits.teacher_grid(subject.noise, 8)
    np.testing.assert_allclose(np.diff(grid.sigmas ** (1 / 7)), np.diff(grid.sigmas ** (1 / 7)).mean(), rtol=1e-6)
    np.testing.assert_array_equal(found[8][0].t, grid.t)  # as many evaluations as levels: all of them
    assert set(found[3][0].t) < set(grid.t) and found[3][0].t[0] == 1.0
    assert found[1][0].timesteps.tolist() == [999.0] and found[1][2] > 0
    costs, _ = gits.mean_costs(subject, 3, 8, 0)
    own = subject.for_preparation(3, 0)
    np.testing.assert_allclose(costs, gits.euler_costs(own, grid, slice(0, 3)) / 3, rtol=1e-5)
    with pytest.raises(ValueError, match="nfe is 61; the teacher's grid has 60"):
        gits.search(subject, 61)


# ---- AutoDiffusion

LEVELS = np.arange(1, 51)
START, BEST = (50, 40, 30, 20, 10), (47, 31, 30, 12, 3)


def far(row):
    return float(np.square(np.subtract(row, BEST)).sum())


@pytest.mark.parametrize("seed", range(3))
def test_evolution_rates_new_rows_of_the_levels_and_gets_better(seed):
    seen = []
    found = autodiffusion.evolve(lambda row: seen.append(row) or far(row), START, LEVELS, 400, seed)
    assert len(seen) == len(set(seen)) == len(found) == 400 and seen[0] == START
    for row in seen:
        assert sorted(set(row), reverse=True) == list(row) and len(row) == 5 and set(row) <= set(LEVELS.tolist())
    best = np.minimum.accumulate(list(found.values()))
    assert best[9] > best[-1] < 0.2 * far(START)


def test_evolution_repeats_with_the_seed_and_a_longer_one_begins_alike():
    first, again, longer, other = (
        list(autodiffusion.evolve(far, START, LEVELS, n, seed)) for n, seed in ((60, 0), (60, 0), (90, 0), (60, 1))
    )
    assert first == again == longer[:60] and first != other
    assert set(autodiffusion.evolve(sum, (3, 2), np.arange(1, 4), 100, 0)) == {(3, 2), (3, 1), (2, 1)}
    kept = np.array([len(set(row) & set(START)) for row in autodiffusion.evolve(far, START, LEVELS, 10, 0)])
    assert (kept[6:] >= 2).all() and kept[1:6].mean() < 2  # the first round: the start, random rows, mutations


def test_autodiffusion_is_the_best_of_its_own_measure(calls):
    subject = tiny_subject("emoji-flow")
    found = autodiffusion.search(subject, "ddim", 3, real(), images=4, budget=150)
    assert found.calls == calls.images == 144  # 12 candidates
    assert found.distance <= found.start
    own = subject.for_preparation(4, 0)
    for schedule, value in ((found.schedule, found.distance), (baseline("trailing", own.noise, 3), found.start)):
        features = own.features(own.sample(schedule, "ddim").images)
        assert frechet(features, real(), paired=False).value == pytest.approx(value, rel=0.02)
    np.testing.assert_allclose(found.schedule.t * 1000, np.rint(found.schedule.t * 1000), atol=1e-9)


@pytest.mark.parametrize(("images", "budget", "count"), [(4, 11, 40), (1, 100, 40), (4, 100, 1)])
def test_an_evolution_that_cannot_be_done_is_refused(images, budget, count, calls):
    with pytest.raises(ValueError, match=f"budget is {budget}, with {images} samples, {count} real images and N = 3"):
        autodiffusion.search(tiny_subject(), "ddim", 3, real()[:count], images=images, budget=budget)
    assert calls.images == 0
