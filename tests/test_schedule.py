"""`Schedule`: what is derived from t, the exports, integer timesteps, the ends, and what is refused."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from problems import KINKED, SD

from hso_jax import Schedule, preset, zoo
from hso_jax.noise import cosine, discrete, flow
from hso_jax.schedule import Origin, Scores

T = np.array([1.0, 0.8, 0.5, 0.2, 0.03])
NODE, INTERVAL = Schedule.from_t(SD, T), Schedule.from_t(SD, T, layout="interval")


@pytest.mark.parametrize(("s", "nfe", "end"), [(NODE, 5, "clean"), (INTERVAL, 4, "t_eps")])
def test_from_t_derives_the_rest(s: Schedule, nfe: int, end: str) -> None:
    np.testing.assert_allclose(s.lams, KINKED.lam(T), rtol=0, atol=1e-12)  # all of them training levels
    np.testing.assert_allclose(s.sigmas, np.exp(-KINKED.lam(T)), rtol=1e-12)
    np.testing.assert_allclose(s.timesteps, (1000 * T - 1)[:nfe], atol=1e-9)
    assert (s.nfe, len(s), s.end, s.result, s.method) == (nfe, nfe, end, "fixed", "custom")
    assert s.min_spacing == pytest.approx(0.17)
    assert (s.noise, s.num_train_timesteps, s.kind) == (SD.fingerprint(), 1000, "vp")
    with pytest.raises(ValueError, match="read-only"):
        s.t[0] = 0.5
    with pytest.raises(dataclasses.FrozenInstanceError):
        s.nfe = 3


def test_one_node_and_pure_noise() -> None:
    one, pure = Schedule.from_t(SD, [1.0]), Schedule.from_t(cosine(), [1.0, 0.5])
    assert (one.nfe, one.min_spacing, one.sampler_sigmas().shape) == (1, None, (2,))
    assert pure.lams[0] == -np.inf and pure.sigmas[0] == np.inf and "-inf" in pure._repr_html_()


def test_sampler_sigmas_by_kind_and_end() -> None:
    np.testing.assert_array_equal(NODE.sampler_sigmas(), [*NODE.sigmas, 0.0])
    np.testing.assert_array_equal(INTERVAL.sampler_sigmas(), INTERVAL.sigmas)
    clean = INTERVAL.with_end("clean")
    np.testing.assert_array_equal(clean.sampler_sigmas(), [*INTERVAL.sigmas[:4], 0.0])
    np.testing.assert_array_equal(clean.evaluated_sigmas, INTERVAL.sigmas[:4])
    np.testing.assert_array_equal(clean.with_end("t_eps").sampler_sigmas(), INTERVAL.sigmas)
    pixel, shifted = (Schedule.from_t(preset(m), [1.0, 0.5, 0.1]) for m in ("edm-cifar10", "sd3-medium"))
    np.testing.assert_allclose(pixel.sampler_sigmas()[[0, 3]], [80.0, 0.0])
    np.testing.assert_allclose(shifted.sampler_sigmas(), [1.0, 0.75, 0.25, 0.0], atol=1e-12)


@pytest.mark.parametrize("model", ["sd21-base", "sd3-medium", "edm-cifar10", "flux-dev"])
@pytest.mark.parametrize("layout", ["node", "interval"])
def test_from_sigmas_and_from_lams_invert_from_t(model: str, layout: str) -> None:
    noise = preset(model)
    s = Schedule.from_t(noise, [0.99, 0.6, 0.3, 0.02], layout=layout)
    sigmas = [*s.sigmas, 0.0] if layout == "node" else s.sigmas
    for back in (Schedule.from_sigmas(noise, sigmas, end=s.end), Schedule.from_lams(noise, s.lams, layout=layout)):
        np.testing.assert_allclose(back.t, s.t, rtol=0, atol=1e-9)
        assert (back.layout, back.nfe, back.end) == (s.layout, s.nfe, s.end)


def test_from_lams_clips_to_the_model_s_ends() -> None:
    assert Schedule.from_lams(SD, [SD.noise_end, 99.0]).t.tolist() == [1.0, SD.t_min]
    assert Schedule.from_lams(cosine(), [-np.inf, 0.0]).t[0] == Schedule.from_sigmas(cosine(), [np.inf, 1.0]).t[0] == 1


@pytest.mark.parametrize("shift", [0.2, 1.0, 12.0, 24.0, 100.0])
def test_a_flow_keeps_its_shipped_levels_at_any_shift(shift: float) -> None:
    ours, theirs = (zoo(flow(k), 20, "unipc-3") for k in (shift, 1.0))
    np.testing.assert_allclose(ours.sampler_sigmas(), theirs.sampler_sigmas(), rtol=1e-6)


def test_integer_timesteps_round_and_are_repaired() -> None:
    def steps(timesteps: list[float]) -> list[int]:
        return Schedule.from_t(preset("sd21-base"), (np.array(timesteps) + 1) / 1000).integer_timesteps().tolist()

    assert steps([999.0, 700.4, 3.6]) == [999, 700, 4]
    assert steps([10.4, 10.0, 9.6]) in ([11, 10, 9], [10, 9, 8])
    assert (steps([1.4, 1.0, 0.6, 0.2]), steps([0.2, 0.1])) == ([3, 2, 1, 0], [1, 0])
    assert Schedule.from_t(preset("sd3-medium"), [0.999, 0.5]).integer_timesteps().tolist() == [1000, 750]


@given(st.lists(st.floats(1.0, 1000.0), min_size=1, max_size=30, unique=True))
def test_integer_timesteps_never_repeat(values: list[float]) -> None:
    t = np.sort(np.array(values))[::-1] / 1000
    if np.any(np.diff(t) > -1e-9):
        return
    s = Schedule.from_t(SD, t)
    steps = s.integer_timesteps()
    assert np.all(np.diff(steps) < 0) and steps[0] <= 999 and steps[-1] >= 0
    if len(t) == 1 or -np.diff(s.timesteps).max() > 1.0:
        np.testing.assert_array_equal(steps, np.rint(s.timesteps))


def changed(**fields: object) -> Callable[[], Schedule]:
    return lambda: dataclasses.replace(INTERVAL, **fields)


def sigmas(*values: Any) -> Callable[[], Schedule]:
    return lambda: Schedule.from_sigmas(SD, [*values])


def lams(values: Any) -> Callable[[], Schedule]:
    return lambda: Schedule.from_lams(SD, values)


FOUR = discrete(alphas_cumprod=[0.9, 0.5, 0.2, 0.1])
BAD: dict[str, tuple[Callable[[], object], str]] = {
    "rising": (lambda: Schedule.from_t(SD, [0.5, 0.8]), r"t must fall strictly, but entry 0 is 0\.5 and entry 1 0\.8"),
    "equal": (lambda: Schedule.from_t(SD, [0.5, 0.5]), "fall strictly"),
    "nan": (lambda: Schedule.from_t(SD, [0.5, np.nan]), "t = nan is outside"),
    "above": (lambda: Schedule.from_t(SD, [1.2, 0.5]), r"t = 1\.2 is outside \[0\.001, 1\]"),
    "below": (lambda: Schedule.from_t(SD, [0.5, 0.0]), "t = 0 is outside"),
    "empty": (lambda: Schedule.from_t(SD, []), r"shape \(0,\)"),
    "one": (lambda: Schedule.from_t(SD, [0.5], layout="interval"), "needs 2 or more"),
    "layout": (lambda: Schedule.from_t(SD, T, layout="ddim"), "layout is 'ddim'; use one of node, interval"),
    "end": (lambda: Schedule.from_t(SD, T, end="x"), "end is 'x'"),
    "no node to stop at": (lambda: NODE.with_end("t_eps"), "end 't_eps' needs layout 'interval'"),
    "count": (changed(nfe=5), r"t has shape \(5,\); layout 'interval' at nfe 5 needs \(6,\)"),
    "nfe": (changed(nfe=2.5), r"nfe is 2\.5"),
    "timesteps": (changed(timesteps=[1.0]), r"timesteps has shape \(1,\)"),
    "text": (changed(t=["a"] * 5), r"t\[0\] is 'a'; need numbers"),
    "inf": (changed(lams=[-2.0, -1.0, np.inf, 1.0, 2.0]), r"lams\[2\] is inf"),
    "disagree": (changed(lams=KINKED.lam(T) + 1.0), "sigmas and lams disagree"),
    "pure noise in lams only": (changed(lams=[-np.inf, *KINKED.lam(T)[1:]]), "disagree"),
    "negative": (changed(sigmas=[5.0, 4.0, 3.0, 2.0, -1.0]), "sigmas above 0"),
    "kind": (changed(kind="xx"), "kind is 'xx'"),
    "sigma inf": (sigmas(np.inf, 1.0), r"sigma inf is outside \[0\.0291672, 14\.6146\]"),
    "sigma above": (sigmas(15.0, 1.0), "sigma 15 is outside"),
    "sigma below": (sigmas(1.0, 0.01), "sigma 0.01 is outside"),
    "sigma negative": (sigmas(1.0, -1.0), r"sigmas\[1\] is -1; sigmas must fall"),
    "sigma after 0": (sigmas(1.0, 0.0, 0.5), r"sigmas\[1\] is 0 and sigmas\[2\] 0.5; sigmas must fall"),
    "sigma 0 alone": (sigmas(0.0), r"sigmas is \[0.0\]; need a value above 0"),
    "sigma nan": (sigmas(1.0, np.nan), r"sigmas\[1\] is nan; sigmas must fall"),
    "sigmas empty": (sigmas(), r"shape \(0,\)"),
    "sigmas nested": (sigmas([1.0]), r"shape \(1, 1\)"),
    "sigmas rising": (sigmas(1.0, 2.0), r"sigmas\[0\] is 1 and sigmas\[1\] 2; sigmas must fall.*sort the list"),
    "lams text": (lams(["a"]), r"lams\[0\] is 'a'"),
    **{f"lams {x}": (lams(x), r"lams is .*; need") for x in ([np.nan], [0.0, np.inf], 0.0, [[0.0]])},
    "a time, no index": (Schedule.from_t(preset("edm-cifar10"), [1.0, 0.5]).integer_timesteps, r"log\(sigma\)/4"),
    "few levels": (
        Schedule.from_t(FOUR, np.linspace(1.0, 0.25, 5)).integer_timesteps,
        "5 evaluations do not fit 4 training levels",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_values_are_named(case: str) -> None:
    call, match = BAD[case]
    with pytest.raises(ValueError, match=match):
        call()


def test_numbers_of_numpy_become_python_s() -> None:
    one = np.float32(0.5)
    origin = Origin(p=np.array(2.0), seed=np.int64(3), psi={"p": one})
    s = Schedule.from_t(cosine(), T, origin=origin, scores=Scores(error=one, others_same_nodes={"ddim": one}))
    found = (s.origin.p, s.error, s.seed, s.psi["p"], s.others_same_nodes["ddim"])
    assert found == (2.0, 0.5, 3, 0.5, 0.5) and [type(x) for x in found] == [float, float, int, float, float]


def test_equality_is_exact_and_hashing_follows_it() -> None:
    one, same, other = (Schedule.from_t(SD, t) for t in (T, T, [*T[:-1], np.nextafter(T[-1], 1.0)]))
    assert one == same and hash(one) == hash(same) and one != other and len({one, same, other}) == 2
    assert one != dataclasses.replace(one, origin=Origin(seed=1)) and one != one.with_scores(error=0.1)
    assert one != "a schedule" and pickle.loads(pickle.dumps(one)) == one == copy.deepcopy(one)


def test_new_scores_are_checked_and_the_old_schedule_stays() -> None:
    scored = NODE.with_scores(error=0.1).with_scores(mep=2)
    assert (scored.error, scored.mep, NODE.error) == (0.1, 2, None) and scored.t is NODE.t
    with pytest.raises(ValueError, match="error is nan"):
        NODE.with_scores(error=np.nan)


def test_a_schedule_has_a_repr_table_and_figure() -> None:
    s = dataclasses.replace(INTERVAL, model="a\n<b>")
    assert repr(s).startswith(r"<Schedule a\n<b>: N = 4, interval, custom for any, timesteps 999 ")
    assert "\n" not in repr(s) and len(s.plot().axes[0].lines) == 1
    table = s._repr_html_()
    assert table.count("<tr>") == 1 + len(T) and "&lt;b&gt;" in table and "<b>" not in table
    many = repr(Schedule.from_t(SD, np.linspace(1.0, 0.1, 100)))
    assert len(many) < 250 and many.endswith(" ...>")
