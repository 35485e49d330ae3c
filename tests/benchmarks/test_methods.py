"""Every method gives a schedule of N evaluations with a clean end and says what it cost, or says why it has none."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from tiny_models import tiny

import bridge
from benchmarks import methods, targets
from benchmarks.methods import autodiffusion, prepare, union_length
from benchmarks.metrics import frechet
from benchmarks.pipelines.settings import scheduler as pipeline_scheduler
from benchmarks.runner import ANY, COMPARED, Inapplicable
from benchmarks.targets import fine_schedule
from hso_jax import baseline, preset, recommend, zoo
from hso_jax.baselines import flow_time
from hso_jax.noise import flow

FAST = [m for m in (*methods.RULES, "zoo", "recommend") if m not in ("ays-svd", "dm-nonuni")]


def real(count=40):
    return np.random.default_rng(1).standard_normal((count, 96))


@pytest.mark.parametrize("method", FAST)
def test_a_method_has_n_evaluations_and_a_clean_end(method, calls):
    target = targets.own("fashion-eps")
    made = prepare(method, target, "dpmpp-2m", 4)
    assert (made.schedule.nfe, made.schedule.layout, made.schedule.end) == (4, "node", "clean")
    assert made.schedule.sampler_sigmas()[-1] == 0 and made.schedule.model == "fashion-eps"
    assert made.calls == calls.images == 0 <= made.seconds


def test_what_is_shipped_and_recommended_is_the_librarys(calls):
    target = targets.own("fashion-eps", 7.5)
    wanted = recommend(target.noise, 6, guidance=7.5).schedule
    assert np.array_equal(prepare("recommend", target, ANY, 6).schedule.lams, wanted.lams)
    for solver in ("ddim", "nonstationary"):
        own = zoo(target.noise, 6, solver, guidance=7.5)
        assert np.array_equal(prepare("zoo", target, solver, 6).schedule.lams, own.lams)


def test_what_is_not_shipped_is_searched_for_each_solver(monkeypatch):
    searched = []

    def search(noise, nfe, *, method, seed):
        searched.append(method.solver)
        return baseline("trailing", noise, nfe)

    monkeypatch.setattr(methods, "search", search)
    monkeypatch.setattr(methods, "_KEPT", {})
    target = targets.own("fashion-eps", 3.3)
    for solver in (*COMPARED, *COMPARED):
        prepare("zoo", target, solver, 6)
    assert searched == list(COMPARED)


def test_where_nothing_is_shipped_the_search_takes_its_place(calls, monkeypatch):
    target, asked = targets.own("fashion-eps", 3.3), []
    made = baseline("trailing", target.noise, 4)
    monkeypatch.setattr(methods, "search", lambda noise, nfe, **more: asked.append(more["method"]) or made)
    monkeypatch.setattr(methods, "_KEPT", {})
    assert prepare("zoo", target, ANY, 4).schedule is made
    assert (asked[0].solver, asked[0].guidance) == ("nonstationary", 3.3)
    for solver in COMPARED:  # the columns of all solvers share what is searched for none of them
        assert prepare("nonstationary", target, solver, 4).schedule is made
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("method", "model", "reason"),
    [
        ("ays", "emoji-flow", "table for models of kind 'vp'"),
        ("exponential", "fashion-eps", "'uniform-lam'"),
        ("autodiffusion", "fashion-eps", "real="),
        ("hso-other", "emoji-flow", "no model to exchange"),
    ],
)
def test_a_method_without_a_schedule_says_why(method, model, reason, calls):
    with pytest.raises(Inapplicable, match=reason):
        prepare(method, targets.own(model), "ddim", 4)


@pytest.mark.slow
def test_what_looks_at_the_model_counts_evaluations(calls, monkeypatch):
    monkeypatch.setattr(methods, "DIRECT_EVALUATIONS", 200)
    target = targets.own("fashion-eps")
    found = prepare("direct", target, "dpmpp-2m", 3)
    assert found.schedule.solver == "dpmpp-2m" and 0 < found.calls <= 600 and calls.images <= found.calls
    assert found.kept["error"] <= found.kept["start_error"] and found.kept["history"]
    assert (target.latents(8, targets.OWN_SEEDS) - target.latents(8, 0)).abs().mean() > 0.5


@pytest.mark.parametrize("nfe", [1, 4, 10])
def test_exponential_is_diffusers_on_a_flow(nfe):
    target = SimpleNamespace(noise=flow(name="flow"))
    scheduler = FlowMatchEulerDiscreteScheduler(use_exponential_sigmas=True)
    scheduler.set_timesteps(sigmas=np.linspace(0.999, 0.001, nfe) if nfe > 1 else np.array([0.999]))
    found = prepare("exponential", target, "ddim", nfe).schedule
    np.testing.assert_allclose(found.sampler_sigmas(), scheduler.sigmas, rtol=2e-6)


@pytest.mark.parametrize("name", ["sd15", "sd3-medium", "edm-cifar10"])
def test_flow_time_starts_at_the_noise_end(name):
    model = preset(name)
    schedule = flow_time(model, 6, 2.0)
    s, u = 1 / (1 + np.exp(schedule.lams)), 1 - np.arange(6) / 6
    np.testing.assert_allclose(s, s[0] * 2 * u / (1 + u), rtol=1e-5)
    assert schedule.lams[0] == (-np.inf if model.kind == "flow" else pytest.approx(float(model.lam(1.0))))


def test_the_fine_schedule_covers_the_model_in_short_steps():
    noise = preset("sd15")
    schedule = fine_schedule(noise, 256)
    assert schedule.end == "clean" and schedule.t[0] == 1.0
    assert schedule.t[-1] == pytest.approx(float(noise.t_min))
    assert np.max(-np.diff(schedule.t)) * 1000 < 6.28  # shorter than the time embedding's fastest sine


def test_compilation_is_counted_once():
    assert union_length([(0.0, 1.0), (0.25, 0.5), (0.75, 2.0), (3.0, 4.0)]) == 3.0 and union_length([]) == 0.0


@pytest.mark.parametrize("name", ["fashion-eps", "fashion-v", "emoji-flow"])
def test_the_denoiser_of_an_exact_network_returns_the_data(name, monkeypatch):
    x0, eps = torch.randn(2, 2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    alpha, sigma = (0.3, 0.7) if name == "emoji-flow" else (0.6, 0.8)
    output = {"fashion-eps": eps, "fashion-v": alpha * eps - sigma * x0, "emoji-flow": eps - x0}[name]
    trained, told = tiny(name), []
    monkeypatch.setattr(type(trained), "predict", lambda self, x, *given: told.append(given) or output)
    found = trained.denoise(alpha * x0 + sigma * eps, bridge.Level(123.4, alpha, sigma, 0.0), "labels", 3.0)
    torch.testing.assert_close(found, x0, rtol=1e-5, atol=1e-5)
    assert told == [(123.4, "labels", 3.0)]


@pytest.mark.parametrize("name", ["fashion-eps", "emoji-flow"])
@pytest.mark.parametrize("solver", COMPARED)
def test_samples_are_those_of_diffusers_schedulers(name, solver, calls):
    """Of the same noise, labels and guidance, at the schedule that the bridge installs."""
    target, trained = targets.own(name, 3.0), tiny(name)
    schedule, is_flow = baseline("karras", target.noise, 4), target.noise.kind == "flow"
    scheduler = pipeline_scheduler(trained.scheduler, solver, is_flow, schedule)
    assert bridge.solver_of(scheduler) == solver
    scheduler.set_timesteps(4)
    x, labels = target.latents(3, 0), torch.arange(3)
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(trained.predict(x, t, labels, 3.0), t, x).prev_sample
    torch.testing.assert_close(target.sample(schedule, solver, target.latents(3, 0)), x, rtol=1e-5, atol=2e-4)


# ---- AutoDiffusion

LEVELS, START, BEST = np.arange(1, 51), (50, 40, 30, 20, 10), (47, 31, 30, 12, 3)


def far(row):
    return float(np.square(np.subtract(row, BEST)).sum())


def test_evolution_rates_new_rows_and_gets_better():
    seen = []
    found = autodiffusion.evolve(lambda row: seen.append(row) or far(row), START, LEVELS, 400, 0)
    assert len(seen) == len(set(seen)) == len(found) == 400 and seen[0] == START
    for row in seen:
        assert sorted(set(row), reverse=True) == list(row) and len(row) == 5 and set(row) <= set(LEVELS.tolist())
    best = np.minimum.accumulate(list(found.values()))
    assert best[9] > best[-1] < 0.2 * far(START)
    again, other = (list(autodiffusion.evolve(far, START, LEVELS, 60, seed)) for seed in (0, 1))
    assert again == seen[:60] and again != other
    assert set(autodiffusion.evolve(sum, (3, 2), np.arange(1, 4), 100, 0)) == {(3, 2), (3, 1), (2, 1)}


def test_autodiffusion_is_the_best_of_its_own_measure(calls):
    target = targets.own("emoji-flow")
    found = autodiffusion.search(target, "ddim", 3, real(), images=4, budget=150)
    assert found.calls == calls.images == 144 and found.distance <= found.start  # 12 candidates
    latents = target.latents(4, targets.OWN_SEEDS)
    for schedule, value in ((found.schedule, found.distance), (baseline("trailing", target.noise, 3), found.start)):
        features = target.features(target.sample(schedule, "ddim", latents)).numpy()
        assert frechet(features, real(), paired=False).value == pytest.approx(value, rel=0.02)
    with pytest.raises(ValueError, match="budget is 11, with 4 samples, 40 real images and N = 3"):
        autodiffusion.search(target, "ddim", 3, real(), images=4, budget=11)
