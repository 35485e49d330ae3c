"""`Profile`: a known spectrum is found again from few samples, files keep every digit, bad values are refused."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from marks import slow_but

import hso_jax
from hso_jax import Profile, SolverError, lanes, preset
from hso_jax.problems import family, power_law, spectral, spread
from hso_jax.profile import profile_of

SD = preset("sd15")
PROFILE = Profile(
    (2.0, 1.0, 0.5), 6.0, 64, "epsilon", 0.02, (-2.6, -2.0), (0.021, 0.019), (SD.noise_end, SD.data_end), 1.0, {"a": 1}
)


def drawn(count: int, deviations: Any, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, len(deviations))) * deviations


SPECTRA = [(784, 1.0, 64), (2048, 0.9, 96), (16, 1.5, 400)]


@pytest.mark.parametrize(("dimension", "exponent", "count"), slow_but(SPECTRA[::2], SPECTRA))
def test_finds_a_spectrum_again_from_few_samples(dimension: int, exponent: float, count: int) -> None:
    true = np.arange(1.0, dimension + 1) ** (-exponent / 2)
    found = [profile_of(drawn(count, true, seed)) for seed in range(4)]
    kept = len(found[0].deviations)
    assert kept == min(count // 4, dimension)
    # The mean over draws is what the correction is for: without it the eighth is 10 to 40% too large.
    ratio = np.mean([p.deviations for p in found], axis=0) / true[:kept]
    assert abs(ratio[:12] - 1.0).max() < 0.1
    assert np.mean([p.total for p in found]) == pytest.approx((true**2).sum(), rel=0.1)
    assert all(p.dimension == dimension and p.eta is None and p.ends is None for p in found)


def test_more_samples_than_directions_need_no_correction() -> None:
    data = drawn(4000, [3.0, 1.0, 0.2]) @ np.linalg.qr(drawn(3, [1.0] * 3, 1))[0]
    found = profile_of(data.reshape(4000, 3, 1), noise=SD)
    np.testing.assert_allclose(found.deviations, [3.0, 1.0, 0.2], rtol=0.05)
    assert found.total == pytest.approx(sum(s**2 for s in found.deviations))
    assert found.prediction == "epsilon" and found.ends == (SD.noise_end, SD.data_end)
    assert found.measured["samples"] == 4000 and found.measured["noise"] == SD.fingerprint()


def test_the_spectrum_of_the_project_s_own_problems() -> None:
    """Non-Gaussian data: a product of bimodal coordinates with a known spectrum."""
    of = power_law(32, 1.0)
    problem = jax.tree.map(np.asarray, spectral(jax.random.key(3), of, dimension=32, left_out=0.0))
    rng, n = np.random.default_rng(0), 512
    shares = np.exp(problem.log_weights)
    chosen = np.array([rng.choice(3, n, p=column / column.sum()) for column in shares.T]).T
    each = np.arange(32)
    data = problem.means[chosen, each] + np.sqrt(problem.variances[chosen, each]) * rng.standard_normal((n, 32))
    means = (shares * problem.means).sum(0)
    true = np.sort(np.sqrt((shares * ((problem.means - means) ** 2 + problem.variances)).sum(0)))[::-1]
    np.testing.assert_allclose(profile_of(data).deviations[:10], true[:10], rtol=0.1)


def test_the_order_of_samples_scale_and_place() -> None:
    data = drawn(64, np.arange(1.0, 41.0) ** -0.5)
    found, moved = profile_of(data), profile_of(5.0 * data + 3.0)
    np.testing.assert_allclose(moved.deviations, 5.0 * np.array(found.deviations), rtol=1e-9)
    assert moved.total == pytest.approx(25.0 * found.total)
    assert profile_of(data.astype(np.float32)).total == pytest.approx(found.total, rel=1e-5)
    assert found.total == pytest.approx(data.var(0, ddof=1).sum(), rel=1e-9)  # unbiased


@pytest.mark.parametrize(
    ("latents", "message"),
    [
        (np.zeros((15, 4)), r"shape \(15, 4\); need \[n, \.\.\.\] with at least 16 samples"),
        (np.zeros(100), "need"),
        (np.full((20, 4), np.nan), "20 of 20 samples have NaN"),
        (np.ones((20, 4)), "need samples that differ"),
        (1e12 * drawn(20, [1.0, 2.0]), "scaled to a size near 1"),
        ([["a"] * 4] * 20, "need numbers"),
    ],
    ids=["few", "axis", "nan", "same", "large", "text"],
)
def test_refuses_samples(latents: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        profile_of(latents)


@pytest.mark.parametrize("ends", [None, (-math.inf, 6.9), (-4.0, 4.0)])
def test_a_file_keeps_every_digit(ends: Any, tmp_path: Path) -> None:
    one = dataclasses.replace(PROFILE, ends=ends, deviations=(2.0 / 3.0, 0.1), eta=None, lams=(), etas=())
    one.save(tmp_path / "p.json")
    assert Profile.load(tmp_path / "p.json") == one
    text = one.to_json()
    assert Profile.from_json(text).to_json() == text and "Infinity" not in text


OLDEST = {"format": "hso-jax/profile", "version": 1, "deviations": [1.0], "total": 2.0, "dimension": 4}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (json.dumps({**OLDEST, "version": 2}), "version 2 is newer than this program knows"),
        (json.dumps({**OLDEST, "version": "1"}), "version is '1'"),
        (json.dumps({**OLDEST, "total": None}), "total is None"),
        (json.dumps({**OLDEST, "deviations": "1"}), "deviations is '1'"),
        (json.dumps({key: OLDEST[key] for key in ("format", "version", "dimension")}), "lacks deviations, total"),
        (PROFILE.to_json()[:-20], "not valid JSON"),
        ("{}", "not a profile"),
    ],
)
def test_a_file_s_faults_name_the_file(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(ValueError, match=rf"p\.json: .*{message}"):
        Profile.load(tmp_path / "p.json")


def test_the_oldest_file_is_read() -> None:
    """The fields that a profile always has, as version 1 writes them."""
    assert Profile.from_json(json.dumps(OLDEST)) == Profile((1.0,), 2.0, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"deviations": ()}, "deviations is empty"),
        ({"deviations": (1.0, math.nan)}, r"deviations\[1\] is nan; need a finite number that is positive"),
        ({"deviations": (1.0, -0.5)}, r"deviations\[1\] is -0\.5"),
        ({"deviations": (0.5, 1.0)}, r"deviations is \[0\.5, 1\.0\]; need them falling"),
        ({"deviations": (1.0,) * 65, "total": 99.0}, "65 values, dimension is 64"),
        ({"total": 5.0}, "total is 5, below the variance 5.25"),
        ({"total": math.nan}, "total is nan"),
        ({"dimension": 0}, "dimension is 0"),
        ({"prediction": "noise"}, "prediction is 'noise'; use one of epsilon"),
        ({"eta": -0.1}, "eta is -0.1"),
        ({"eta": math.inf}, "eta is inf"),
        ({"etas": (0.1, -0.1)}, r"etas\[1\] is -0\.1; need a finite number that is not negative"),
        ({"etas": (0.1,)}, "lams has 2 values and etas 1"),
        ({"lams": (1.0, 0.0)}, "lams rising"),
        ({"ends": (4.0, -4.0)}, "need the noise end"),
        ({"ends": 3.0}, "ends is 3.0; need two numbers"),
        ({"ends": (math.nan, 1.0)}, r"ends\[0\] is nan"),
        ({"guidance": -1.0}, "guidance is -1.0"),
        ({"measured": {"a": math.nan}}, "measured is .*; need JSON values"),
        ({"measured": {"a": object()}}, "measured is .*; need JSON values"),
    ],
)
def test_refuses_values(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(PROFILE, **change)


def test_a_search_takes_problems_and_error_from_it() -> None:
    (lane,) = lanes([SD], [4], method=SolverError(profile=PROFILE))
    method = lane.method
    assert method.model_error.eta == 0.02 and method.problems is PROFILE.problems()
    assert list(method.problems.is_product) == [False] * 12 + [True] * 8
    variances, counts = spread(PROFILE.problems())
    np.testing.assert_allclose((variances * counts).sum(1)[12:], PROFILE.total, rtol=1e-6)
    assert (np.sqrt(variances[12:, 0]) > 1.5).all()  # the leading interval holds the leading deviation, 2
    (again,) = lanes([lane.noise], [4], method=method)  # a checked lane is checked once more
    assert again.method.problems is method.problems
    (own,) = lanes([SD], [4], method=SolverError(profile=PROFILE, model_error=PROFILE.model_error()._replace(eta=0.5)))
    assert own.method.model_error.eta == 0.5
    unknown = dataclasses.replace(PROFILE, eta=None)
    (plain,) = lanes([SD], [4], method=SolverError(profile=unknown))
    assert plain.method.model_error.eta is None  # the prediction type's


def test_lanes_of_different_profiles_are_searched_apart() -> None:
    same = dataclasses.replace(PROFILE)
    other = dataclasses.replace(PROFILE, total=7.0)
    louder = dataclasses.replace(PROFILE, eta=0.03)
    groups = []
    for profile in (PROFILE, same, other, louder, None):
        (lane,) = lanes([SD], [4], method=SolverError(profile=profile))
        groups.append(lane.method.group(lane))  # type: ignore[union-attr]
    assert groups[0] == groups[1] and len(set(groups)) == 4


def test_a_profile_of_another_model_is_refused() -> None:
    for noise, message in (
        (preset("sd3-medium"), r"noise end is lam = -2\.68.*sd3-medium is -inf"),
        (SD.with_prediction("v_prediction"), "predicts 'epsilon', .* predicts 'v_prediction'"),
        (preset("pixart-alpha"), r"noise end is lam = -2\.68.*pixart-alpha is -5\.05"),
    ):
        with pytest.raises(ValueError, match=message):
            lanes([noise], [4], method=SolverError(profile=PROFILE))
    flow = dataclasses.replace(PROFILE, ends=(-math.inf, float(np.log(999.0))), prediction="flow_prediction")
    lanes([preset("sd3-medium")], [4], method=SolverError(profile=flow))
    with pytest.raises(ValueError, match="problems and profile are both given"):
        lanes([SD], [4], method=SolverError(profile=PROFILE, problems=[spectral(jax.random.key(0), power_law(9, 1.0))]))
    with pytest.raises(ValueError, match=r"profile is 'p\.json'; need a Profile"):
        lanes([SD], [4], method=SolverError(profile="p.json"))  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_page_s_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = (Path(hso_jax.__file__).parent.parent / "docs" / "profile.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.S):
        exec(compile(block, "docs/profile.md", "exec"), names)
    schedule = names["schedule"]
    assert schedule.result == "converged" and schedule.nfe == 4 and schedule.solver == "ddim"
    assert schedule.error > 0 and schedule.noise == names["profile"].measured["noise"]


def test_no_cluster_is_wider_than_the_data() -> None:
    """By the leading standard deviation; those that are not stay as they are, and so does everything but the unit."""
    narrow, wide = PROFILE.problems(), dataclasses.replace(PROFILE, deviations=(20.0, 1.0), total=500.0).problems()
    assert narrow.mixtures is not None and wide.mixtures is not None
    plain = family(range(12))
    np.testing.assert_allclose(np.asarray(wide.mixtures.means), np.asarray(plain.means), rtol=1e-6)
    factors = []
    for i in range(12):
        one, whole = (jax.tree.map(lambda leaf: np.asarray(leaf[i]), bank) for bank in (narrow.mixtures, plain))  # noqa: B023
        draws = np.random.default_rng(i).choice(
            32, 20_000, p=np.exp(whole.log_weights) / np.exp(whole.log_weights).sum()
        )
        data = whole.means[draws] + drawn(20_000, np.sqrt(whole.variances), i)
        factors.append(min(1.0, 2.0 / math.sqrt(np.linalg.eigvalsh(np.cov(data.T))[-1])))
        np.testing.assert_allclose(one.means, factors[-1] * whole.means, rtol=0.03, atol=1e-6)
        np.testing.assert_allclose(one.variances / whole.variances, (one.means / whole.means).flat[0] ** 2, rtol=1e-4)
    assert min(factors) < 0.3 and factors.count(1.0) >= 3
