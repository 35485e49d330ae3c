"""Every method gives a schedule of N evaluations with a clean end and says what it cost, or says why it has none."""

import functools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from tiny_models import tiny_subject

from benchmarks.methods import registry
from benchmarks.methods.registry import METHODS, Inapplicable, prepare, union_length
from benchmarks.models.denoiser import OWN_SEEDS, denoiser, own_subject
from bridge.sampling import Level
from hso_jax import BASELINES, Origin, Schedule, baseline
from hso_jax.noise import flow

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array_?.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers.*"),
]

SEARCHED = {"solver-error", "nonstationary"}
RUN_THE_MODEL = {"gits", "autodiffusion", "direct"}


@pytest.fixture
def cheap(monkeypatch):
    for name, small in {
        "gits": {"images": 3, "levels": 8},
        "autodiffusion": {"images": 3, "budget": 60},
        "direct": {"rows": 2, "budget": 400},
    }.items():
        module = getattr(registry, name)
        monkeypatch.setattr(module, "search", functools.partial(module.search, **small))


def real(count=40):
    return np.random.default_rng(1).standard_normal((count, 96))


def test_there_is_every_rule_and_every_search():
    assert set(METHODS) == {*BASELINES, "exponential", "hso", "hso-dm-nonuni", *SEARCHED, *RUN_THE_MODEL}
    assert all(method.description for method in METHODS.values())


@pytest.mark.parametrize(
    "method", [name for name in METHODS if name not in ("exponential", "ays-svd", "nonstationary")]
)
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


def test_coefficients_of_its_own_are_searched_once_and_installed(calls, monkeypatch, caplog):
    """The search itself is tests/methods/test_nonstationary_search.py's: here it is a schedule that is at hand."""
    subject, asked = tiny_subject(), []
    own = Origin(method="solver-error", solver="nonstationary")
    rows = [[0.0], [-0.4], [-0.5], [0.0]]
    made = Schedule.from_t(subject.noise, [1.0, 0.7, 0.4, 0.1], origin=own, coefficients=rows)
    monkeypatch.setattr(registry, "search", lambda *args, **options: asked.append((args, options)) or made)
    monkeypatch.setattr(registry, "_FREE", {})
    for solver in ("ddim", "dpmpp-2m"):
        assert prepare("nonstationary", subject, solver, 4).schedule is made
    assert len(asked) == 1 and asked[0][1]["method"].solver == "nonstationary" and calls.images == 0
    found = subject.sample(made, "nonstationary")
    assert found.calls == 4 and bool(found.images.isfinite().all()) and calls.images == 4 * subject.count


@pytest.mark.parametrize(
    ("method", "model", "reason"),
    [
        ("ays", "emoji-flow", "table for models of kind 'vp'"),
        ("ays-sdxl", "emoji-flow", "table for models of kind 'vp'"),
        ("ays-svd", "fashion-eps", "table for models of kind 've'"),
        ("exponential", "fashion-eps", "'uniform-lam'"),
        ("autodiffusion", "fashion-eps", "real="),
    ],
)
def test_a_method_without_a_schedule_says_why(method, model, reason, calls):
    with pytest.raises(Inapplicable, match=reason):
        prepare(method, tiny_subject(model), "ddim", 4)
    assert calls.images == 0


@pytest.mark.parametrize(("method", "solver", "nfe"), [("simple", "ddim", 4), ("hso", "heun", 4), ("hso", "ddim", 0)])
def test_unknown_names_are_refused(method, solver, nfe, calls):
    with pytest.raises(ValueError, match=f"{method!r}, solver {solver!r}, N {nfe}"):
        prepare(method, tiny_subject(), solver, nfe)


@pytest.mark.parametrize("nfe", [1, 4, 10])
def test_exponential_is_diffusers_on_a_flow_and_uniform_in_lam_otherwise(nfe, calls):
    noise = flow(name="flow")
    found = prepare("exponential", SimpleNamespace(noise=noise), "ddim", nfe).schedule
    scheduler = FlowMatchEulerDiscreteScheduler(use_exponential_sigmas=True)
    scheduler.set_timesteps(sigmas=np.linspace(0.999, 0.001, nfe) if nfe > 1 else np.array([0.999]))
    np.testing.assert_allclose(found.sampler_sigmas(), scheduler.sigmas, rtol=2e-6)
    if nfe > 1:
        vp = tiny_subject().noise
        sigmas = -np.asarray(vp.lam(np.array([1.0, float(vp.t_min)])))
        np.testing.assert_allclose(
            np.log(baseline("uniform-lam", vp, nfe).sigmas), np.linspace(*sigmas, nfe), atol=1e-9
        )
        assert not np.allclose(found.lams, baseline("uniform-lam", noise, nfe).lams, atol=0.1)


def test_compilation_is_told_apart_and_counted_once(calls):
    assert union_length([(0.0, 1.0), (0.25, 0.5), (0.75, 2.0), (3.0, 4.0)]) == 3.0
    assert union_length([]) == 0.0
    first, again = (prepare("hso", tiny_subject(), "ddim", 4) for _ in range(2))
    assert again.compile_seconds == 0 < again.seconds
    np.testing.assert_array_equal(first.schedule.lams, again.schedule.lams)


def test_preparation_has_noise_of_its_own(calls):
    subject = tiny_subject(guidance=2.0, count=3, seed=5)
    own, other = own_subject(subject, 6, 0), own_subject(subject, 6, 1, dtype="bfloat16")
    assert (own.name, own.guidance, own.count, own.dtype, other.dtype) == ("fashion-eps", 2, 6, "float32", "bfloat16")
    noises = torch.cat([x.start for x in (subject, own, other)]).flatten(1)
    similarity = torch.nn.functional.cosine_similarity(noises[None], noises[:, None], dim=-1)
    assert (similarity - torch.eye(len(noises))).abs().max() < 0.2
    for seed, of in ((-1, subject), (0, tiny_subject(seed=OWN_SEEDS))):
        with pytest.raises(ValueError, match=f"seed is {seed} "):
            own_subject(of, 2, seed)


@pytest.mark.parametrize("name", ["fashion-eps", "fashion-v", "emoji-flow"])
def test_the_denoiser_of_an_exact_network_returns_the_data(name, calls):
    subject = tiny_subject(name)
    x0, eps = torch.randn(2, *subject.start[:2].shape, generator=torch.Generator().manual_seed(0))
    alpha, sigma = (0.3, 0.7) if name == "emoji-flow" else (0.6, 0.8)
    output = {"fashion-eps": eps, "fashion-v": alpha * eps - sigma * x0, "emoji-flow": eps - x0}[name]
    told = []

    def predict(x, timestep, labels, guidance):
        told.append((timestep, labels.tolist(), guidance))
        return output

    exact = SimpleNamespace(
        _trained=SimpleNamespace(predict=predict, scheduler=subject._trained.scheduler),
        noise=subject.noise, labels=subject.labels, guidance=3.0,
    )  # fmt: skip
    found = denoiser(exact, slice(1, 3))(alpha * x0 + sigma * eps, Level(123.4, alpha, sigma, 0.0))
    torch.testing.assert_close(found, x0, rtol=1e-5, atol=1e-5)
    assert told == [(123.4, [1, 2], 3.0)]
