"""Every baseline against its rule written down by hand, on both layouts, for every kind of model."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.optimize
import scipy.special
import scipy.stats
from oracles import scipy_search as reference
from problems import KINKED, SD

from hso_jax import baseline, preset
from hso_jax.baselines import AYS, BASELINES, inapplicable, tangent
from hso_jax.mep_spf import paper_d_min
from hso_jax.noise import discrete
from hso_jax.noise import edm as edm_noise
from hso_jax.noise import flow as flow_noise

RULES = [name for name in BASELINES if name != "dm-nonuni"]  # that one has tests of its own
AYS_OF = {"vp": {"ays", "ays-sdxl"}, "ve": {"ays-svd"}, "flow": set()}
MOCHI_8 = [1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875]
"""diffusers 0.42.1, pipelines.mochi: linear_quadratic_schedule(8, 0.025), which Mochi's pipeline calls."""
MOCHI_5 = [1.0, 0.9875, 0.975, 0.8583333333333333, 0.5333333333333333]
"""The same for N = 5."""


def test_diffusers_spacings_on_stable_diffusion() -> None:
    leading, trailing, linspace = (baseline(name, SD, 5).timesteps for name in ("leading", "trailing", "linspace"))
    np.testing.assert_allclose(leading, [801, 601, 401, 201, 1], atol=1e-9)  # steps_offset 1
    np.testing.assert_allclose(trailing, [999, 799, 599, 399, 199], atol=1e-9)
    np.testing.assert_allclose(linspace, np.linspace(999, 0, 5), atol=1e-9)
    interval = baseline("trailing", SD, 5, layout="interval")
    np.testing.assert_allclose(interval.t[:5], baseline("trailing", SD, 5).t)
    assert interval.t[-1] == 0.001 and interval.end == "t_eps"


def test_uniform_lam_and_karras() -> None:
    s = baseline("uniform-lam", SD, 6)
    np.testing.assert_allclose(s.lams, np.linspace(KINKED.lam(1.0), KINKED.lam(0.001), 6), atol=1e-9)
    low, high = np.exp(-KINKED.lam([0.001, 1.0]))
    s = baseline("karras", SD, 6, layout="interval")
    np.testing.assert_allclose(s.sigmas, reference.edm_start(7.0, low, high, 6), rtol=1e-4)  # linear, cubic
    np.testing.assert_allclose(s.sigmas[[0, -1]], [high, low], rtol=1e-9)
    pixel = preset("edm-cifar10")
    s = baseline("karras", pixel, 18)
    np.testing.assert_allclose(s.t, np.linspace(1, 0, 18), atol=1e-9)  # its t is this very ramp
    s = baseline("karras", flow_noise(3.0), 6).sampler_sigmas()[:-1]  # of a flow it spaces s
    np.testing.assert_allclose(np.diff(s ** (1 / 7), 2), 0, atol=1e-9)


@pytest.mark.parametrize("layout", ["node", "interval"])
@pytest.mark.parametrize("name", RULES)
def test_every_rule_for_every_kind_of_model(name: str, layout: str) -> None:
    for model in ("sd21-base", "sd3-medium", "edm-cifar10"):
        noise = preset(model)
        if inapplicable(name, noise):
            continue
        for nfe in (1, 2, 3, 4, 20, 64, 500):
            s = baseline(name, noise, nfe, layout=layout)
            assert (s.nfe, s.layout, s.method, len(s.t)) == (nfe, layout, name, nfe + (layout == "interval"))
            assert np.all(np.diff(s.t) < 0) and np.all(np.isfinite(s.lams))
            assert s.t[0] <= float(noise.t_max)  # models at zero terminal SNR start at their largest usable t
            if len(s.t) > 1:
                assert s.mep == pytest.approx(reference.mep(s.lams), rel=1e-9)
                assert s.spf == pytest.approx(reference.spf(s.lams, s.t, nfe), rel=1e-9)
            assert s.origin.d_min == paper_d_min(nfe) and s.result == "fixed"


@pytest.mark.slow
def test_dm_nonuni_of_few_and_of_many_nodes() -> None:
    assert baseline("dm-nonuni", SD, 1).t.tolist() == [1.0]
    assert baseline("dm-nonuni", SD, 2).t.tolist() == [1.0, 0.001]
    few = baseline("dm-nonuni", SD, 3, p=1.0, d_min=0.01)
    assert few.origin.p == 1.0 and few.origin.d_min == 0.01 and np.all(np.diff(few.t) < 0)


def test_sgm_uniform_is_comfyui_s() -> None:
    np.testing.assert_allclose(baseline("sgm-uniform", SD, 5).timesteps, np.linspace(999, 0, 6)[:-1], atol=1e-9)
    interval = baseline("sgm-uniform", SD, 5, layout="interval")
    np.testing.assert_allclose(interval.t, baseline("linspace", SD, 5, layout="interval").t, atol=1e-12)
    shifted = baseline("sgm-uniform", preset("sd3-medium"), 4).t  # the first is the last level before pure noise
    np.testing.assert_allclose(shifted, [0.999, *np.linspace(1, 0.001, 5)[1:-1]], atol=1e-12)


@pytest.mark.parametrize("nfe", [1, 2, 7, 20])
def test_beta_in_t_is_comfyui_s(nfe: int) -> None:
    quantiles = scipy.stats.beta.ppf(1 - np.linspace(0, 1, nfe, endpoint=False), 0.6, 0.6)
    np.testing.assert_allclose(baseline("beta-t", SD, nfe).timesteps, 999 * quantiles, atol=1e-6)
    for model in ("sd3-medium", "edm-cifar10"):
        noise = preset(model)
        s = baseline("beta-t", noise, nfe, layout="interval")
        low, high = float(noise.t_min), float(noise.t_max)
        np.testing.assert_allclose(s.t, low + (high - low) * np.append(quantiles, 0), atol=1e-9)


def test_beta_in_sigma_at_median_and_ends() -> None:
    for model in ("sd15", "edm-cifar10", "sd3-medium"):
        noise = preset(model)
        low, high = (float((noise.sigma if noise.kind == "flow" else noise.ksigma)(float(t)))
                     for t in (noise.t_min, noise.t_max))  # fmt: skip
        levels = baseline("beta", noise, 3).sampler_sigmas()[:-1]
        np.testing.assert_allclose(levels, [high, (low + high) / 2, low], rtol=1e-8)
    outer = baseline("beta", SD, 4).sigmas
    assert outer[0] - outer[1] < outer[1] - outer[2]  # the quantiles crowd at both ends


@pytest.mark.parametrize("published", [MOCHI_8, MOCHI_5])
def test_linear_quadratic_is_mochi_s(published: list[float]) -> None:
    nfe = len(published)
    for shift in (1.0, 3.0):  # not applied
        s = baseline("linear-quadratic", flow_noise(shift), nfe).sampler_sigmas()
        np.testing.assert_allclose(s[1:-1], published[1:], atol=1e-9)
        assert s[0] == pytest.approx(shift * 0.999 / (1 + (shift - 1) * 0.999))  # the last level before pure noise
    for model in ("sd15", "edm-cifar10"):  # ComfyUI multiplies by the largest sigma
        noise = preset(model)
        levels = baseline("linear-quadratic", noise, nfe).sigmas
        np.testing.assert_allclose(levels, float(noise.ksigma(float(noise.t_max))) * np.array(published), rtol=1e-8)


def test_linear_quadratic_of_mochi_s_own_64_steps() -> None:
    """Its second level, 0.99922, lies past the last one before pure noise: the line starts there instead."""
    s = baseline("linear-quadratic", flow_noise(1.0), 64).sampler_sigmas()
    np.testing.assert_allclose(s[:33], np.linspace(0.999, 0.975, 33), atol=1e-9)
    i = np.arange(1, 33)  # the parabola through 0.975 with the line's slope, that reaches 0 after 32 steps
    np.testing.assert_allclose(s[33:], 0.975 - 0.025 / 32 * i - (0.975 - 0.025) * (i / 32) ** 2, atol=1e-9)


def euler_deviation(ksigmas: np.ndarray, deviation: float) -> float:
    """The deviation after Euler steps in sigma/alpha, the last to 0, with the exact denoiser of a Gaussian."""
    x = math.hypot(ksigmas[0], deviation)
    for now, then in itertools.pairwise([*ksigmas, 0.0]):
        x += (then - now) * x * now / (now**2 + deviation**2)
    return x


@pytest.mark.parametrize("deviation", [0.5, 1.0])
@pytest.mark.parametrize("model", ["sd15", "sd3-medium", "edm-cifar10"])
def test_tangent_is_the_best_for_a_gaussian(model: str, deviation: float) -> None:
    """SciPy moves the nodes after the first, each to a share of the one before, to where Euler loses the least."""
    noise, nfe = preset(model), 5
    found = np.exp(-noise.lam(tangent(noise, nfe, "node", deviation)))

    def nodes(logits: np.ndarray) -> np.ndarray:
        return np.cumprod([found[0], *scipy.special.expit(logits)])

    def lost(logits: np.ndarray) -> float:
        return -math.log(euler_deviation(nodes(logits), deviation) / deviation)

    start = np.array([math.log(deviation / found[0]), *np.zeros(nfe - 2)])
    best = scipy.optimize.minimize(lost, start, tol=1e-12)
    np.testing.assert_allclose(found, nodes(best.x), rtol=1e-3)
    theta = math.atan(found[0] / deviation)
    assert best.fun == pytest.approx(-nfe * math.log(math.cos(theta / nfe)), rel=1e-8)


def test_tangent_ends_at_the_smallest_level() -> None:
    """Of many nodes, and in the interval layout: ComfyUI's kl_optimal, the tangent between two arctangents."""
    high, low = (float(SD.ksigma(t)) for t in (1.0, 0.001))
    for nfe, layout in ((60, "node"), (5, "interval")):
        share = np.linspace(1.0, 0.0, nfe + (layout == "interval"))
        expected = np.tan(share * math.atan(high) + (1.0 - share) * math.atan(low))
        np.testing.assert_allclose(
            baseline("tangent", SD, nfe, layout=layout).sigmas[: len(share)], expected, rtol=1e-8
        )
    few = baseline("tangent", SD, 6).sigmas[-1]
    assert few > low and few == pytest.approx(math.tan(math.atan(high) / 6), rel=1e-8)


def test_which_rules_apply_to_which_models() -> None:
    for model in ("sd15", "sd3-medium", "edm-cifar10"):
        noise = preset(model)
        left_out = {name for name in BASELINES if inapplicable(name, noise)}
        assert left_out == set(AYS) - AYS_OF[noise.kind]
        for name in left_out:
            with pytest.raises(ValueError, match=f"{name} is a table for models of kind .* {model} is"):
                baseline(name, noise, 4)


@pytest.mark.parametrize("name", ["ays", "ays-sdxl"])
def test_align_your_steps_is_its_table_at_ten(name: str) -> None:
    table = np.array(AYS[name])
    np.testing.assert_allclose(baseline(name, SD, 10).sigmas, np.minimum(table[:10], np.exp(-SD.lam(1.0))), rtol=1e-9)
    interval = baseline(name, SD, 5, layout="interval").sigmas
    np.testing.assert_allclose(interval[1:], np.maximum(table[2::2], np.exp(-SD.lam(SD.t_min))), rtol=1e-9)
    seven = baseline(name, SD, 7).sigmas  # node 3 lies at 30/7 of the table
    np.testing.assert_allclose(seven[3], table[4] ** (5 / 7) * table[5] ** (2 / 7), rtol=1e-9)


def test_align_your_steps_on_models_of_another_range() -> None:
    wide = baseline("ays", preset("pixart-alpha"), 10).sigmas  # from 157: the table fits as it is
    np.testing.assert_allclose(wide, AYS["ays"][:10], rtol=1e-9)
    narrow = discrete(alphas_cumprod=np.linspace(0.99, 0.05, 1000))  # up to 4.4: of two levels above, one stays
    s = baseline("ays", narrow, 9, layout="interval").sigmas
    np.testing.assert_allclose(s[1:-1], AYS["ays"][2:10], rtol=1e-9)
    np.testing.assert_allclose(s[[0, -1]], np.sqrt([19.0, 1 / 99]), rtol=1e-6)
    assert np.all(np.diff(baseline("ays", narrow, 40).sigmas) < 0)
    video = baseline("ays-svd", edm_noise(0.002, 700.0), 10, layout="interval").sigmas
    np.testing.assert_allclose(video, AYS["ays-svd"], rtol=1e-9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: baseline("edm", SD, 4), "baseline is 'edm'; use one of leading"),
        (lambda: inapplicable("euler", SD), "use one of leading"),
        (lambda: baseline("ays", preset("edm-cifar10"), 4), "use 'ays-svd'"),
        (lambda: baseline("karras", SD, 4, layout="both"), "layout is 'both'"),
        *((lambda n=nfe: baseline("karras", SD, n), "nfe is") for nfe in (0, -1, 2.5, "4", None, True)),
        (lambda: baseline("trailing", SD, 999), "only 1000 levels"),
    ],
)
def test_bad_values_are_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
