"""`Schedule`: what is derived from t, the exports, integer timesteps, the ends, and what is refused."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from problems import KINKED, SD

from hso_jax import Schedule, preset, zoo
from hso_jax.noise import cosine, discrete, flow
from hso_jax.schedule import Origin, Scores

T = np.array([1.0, 0.8, 0.5, 0.2, 0.03])


def test_from_t_on_both_layouts() -> None:
    node, interval = Schedule.from_t(SD, T), Schedule.from_t(SD, T, layout="interval")
    for s in (node, interval):
        np.testing.assert_allclose(s.lams, KINKED.lam(T), rtol=0, atol=1e-12)  # all of them training levels
        np.testing.assert_allclose(s.sigmas, np.exp(-KINKED.lam(T)), rtol=1e-12)
        np.testing.assert_allclose(s.timesteps, (1000 * T - 1)[: s.nfe], atol=1e-9)
        assert s.min_spacing == pytest.approx(0.17) and s.result == "fixed" and s.method == "custom"
        assert s.noise == SD.fingerprint() and s.num_train_timesteps == 1000 and s.kind == "vp"
    assert (node.nfe, node.end) == (5, "clean") and (interval.nfe, interval.end) == (4, "t_eps")
    with pytest.raises(ValueError, match="read-only"):
        node.t[0] = 0.5
    with pytest.raises(dataclasses.FrozenInstanceError):
        node.nfe = 3


def test_a_single_node() -> None:
    s = Schedule.from_t(SD, [1.0])
    assert s.nfe == 1 and s.min_spacing is None and s.sampler_sigmas().shape == (2,)


def test_pure_noise_may_come_first_only() -> None:
    s = Schedule.from_t(cosine(), [1.0, 0.5])
    assert s.lams[0] == -np.inf and s.sigmas[0] == np.inf
    flow = Schedule.from_t(preset("sd3-medium"), [1.0, 0.5, 0.1])
    np.testing.assert_allclose(flow.sampler_sigmas(), [1.0, 0.75, 0.25, 0.0], atol=1e-12)


def test_sampler_sigmas_by_kind_and_end() -> None:
    node, interval = Schedule.from_t(SD, T), Schedule.from_t(SD, T, layout="interval")
    np.testing.assert_array_equal(node.sampler_sigmas(), [*node.sigmas, 0.0])
    np.testing.assert_array_equal(interval.sampler_sigmas(), interval.sigmas)
    clean = interval.with_end("clean")
    np.testing.assert_array_equal(clean.sampler_sigmas(), [*interval.sigmas[:4], 0.0])
    np.testing.assert_array_equal(clean.evaluated_sigmas, interval.sigmas[:4])
    np.testing.assert_array_equal(clean.with_end("t_eps").sampler_sigmas(), interval.sigmas)
    pixel = Schedule.from_t(preset("edm-cifar10"), [1.0, 0.5])
    np.testing.assert_allclose(pixel.sampler_sigmas()[[0, 2]], [80.0, 0.0])


def test_with_end_refuses_what_has_no_node_to_stop_at() -> None:
    with pytest.raises(ValueError, match="end 't_eps' needs layout 'interval'"):
        Schedule.from_t(SD, T).with_end("t_eps")
    with pytest.raises(ValueError, match="end is 'noisy'"):
        Schedule.from_t(SD, T).with_end("noisy")


@pytest.mark.parametrize("model", ["sd21-base", "sd3-medium", "edm-cifar10", "flux-dev"])
def test_from_sigmas_is_the_inverse_of_the_export(model: str) -> None:
    noise = preset(model)
    for layout in ("node", "interval"):
        s = Schedule.from_t(noise, [0.99, 0.6, 0.3, 0.02], layout=layout)
        sigmas = [*s.sigmas, 0.0] if layout == "node" else s.sigmas
        back = Schedule.from_sigmas(noise, sigmas, end=s.end)
        np.testing.assert_allclose(back.t, s.t, rtol=0, atol=1e-9)
        assert (back.layout, back.nfe, back.end) == (s.layout, s.nfe, s.end)


def test_from_sigmas_takes_pure_noise_and_refuses_the_rest() -> None:
    assert Schedule.from_sigmas(cosine(), [np.inf, 1.0, 0.0]).t[0] == 1.0
    for sigmas, match in (
        ([np.inf, 1.0], r"sigma inf is outside \[0\.0291672, 14\.6146\]"),
        ([15.0, 1.0], "sigma 15 is outside"),
        ([1.0, 0.01], "sigma 0.01 is outside"),
        ([1.0, -1.0], r"sigmas\[1\] is -1; sigmas must fall"),
        ([1.0, 0.0, 0.5], r"sigmas\[1\] is 0 and sigmas\[2\] 0.5; sigmas must fall"),
        ([0.0], r"sigmas is \[0.0\]; need a value above 0"),
        ([1.0, np.nan], r"sigmas\[1\] is nan; sigmas must fall"),
        ([], r"shape \(0,\)"),
        ([[1.0]], r"shape \(1, 1\)"),
        ([1.0, 2.0], r"sigmas\[0\] is 1 and sigmas\[1\] 2; sigmas must fall.*sort the list"),
    ):
        with pytest.raises(ValueError, match=match):
            Schedule.from_sigmas(SD, sigmas)


def test_integer_timesteps_round_and_are_repaired() -> None:
    def steps(timesteps: list[float], model: str = "sd21-base") -> list[int]:
        t = (np.array(timesteps) + 1) / 1000
        return Schedule.from_t(preset(model), t).integer_timesteps().tolist()

    assert steps([999.0, 700.4, 3.6]) == [999, 700, 4]
    assert steps([10.4, 10.0, 9.6]) in ([11, 10, 9], [10, 9, 8])
    assert steps([1.4, 1.0, 0.6, 0.2]) == [3, 2, 1, 0]
    assert steps([0.2, 0.1]) == [1, 0]
    assert Schedule.from_t(preset("sd3-medium"), [0.999, 0.5]).integer_timesteps().tolist() == [1000, 750]
    with pytest.raises(ValueError, match=r"log\(sigma\)/4"):
        Schedule.from_t(preset("edm-cifar10"), [1.0, 0.5]).integer_timesteps()


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


def test_more_evaluations_than_levels_have_no_integer_timesteps() -> None:
    noise = discrete(alphas_cumprod=[0.9, 0.5, 0.2, 0.1])
    s = Schedule.from_t(noise, np.linspace(1.0, 0.25, 5))
    with pytest.raises(ValueError, match="5 evaluations do not fit 4 training levels"):
        s.integer_timesteps()


def changed(**fields: object) -> Callable[[], Schedule]:
    return lambda: dataclasses.replace(Schedule.from_t(SD, T, layout="interval"), **fields)


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
    "count": (changed(nfe=5), r"t has shape \(5,\); layout 'interval' at nfe 5 needs \(6,\)"),
    "nfe": (changed(nfe=2.5), r"nfe is 2\.5"),
    "timesteps": (changed(timesteps=[1.0]), r"timesteps has shape \(1,\)"),
    "text": (changed(t=["a"] * 5), r"t\[0\] is 'a'; need numbers"),
    "inf": (changed(lams=[-2.0, -1.0, np.inf, 1.0, 2.0]), r"lams\[2\] is inf"),
    "disagree": (changed(lams=KINKED.lam(T) + 1.0), "sigmas and lams disagree"),
    "pure noise in lams only": (changed(lams=[-np.inf, *KINKED.lam(T)[1:]]), "disagree"),
    "negative": (changed(sigmas=[5.0, 4.0, 3.0, 2.0, -1.0]), "sigmas above 0"),
    "kind": (changed(kind="xx"), "kind is 'xx'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_schedules_are_named(case: str) -> None:
    call, match = BAD[case]
    with pytest.raises(ValueError, match=match):
        call()


def test_numbers_of_numpy_become_python_s() -> None:
    one = np.float32(0.5)
    origin = Origin(p=np.array(2.0), seed=np.int64(3), psi={"p": one})
    s = Schedule.from_t(cosine(), T, origin=origin, scores=Scores(error=one, others_same_nodes={"ddim": one}))
    assert [type(x) for x in (s.origin.p, s.error, s.seed, s.psi["p"], s.others_same_nodes["ddim"])] == [
        float,
        float,
        int,
        float,
        float,
    ]
    assert (s.origin.p, s.error, s.seed) == (2.0, 0.5, 3)


def test_equality_is_exact_and_hashing_follows_it() -> None:
    one, same, other = (Schedule.from_t(SD, t) for t in (T, T, [*T[:-1], np.nextafter(T[-1], 1.0)]))
    assert one == same and hash(one) == hash(same) and one != other and len({one, same, other}) == 2
    assert one != dataclasses.replace(one, origin=Origin(seed=1)) and one != one.with_scores(error=0.1)
    assert one != "a schedule" and pickle.loads(pickle.dumps(one)) == one == copy.deepcopy(one)


def test_a_schedule_shows_itself_in_one_line_and_in_a_table() -> None:
    s = dataclasses.replace(Schedule.from_t(SD, T, layout="interval"), model="a\n<b>")
    assert len(s) == s.nfe == len(T) - 1
    assert repr(s).startswith(
        r"<Schedule a\n<b>: N = 4, interval, custom for any, timesteps 999 "
    ) and "\n" not in repr(s)
    table = s._repr_html_()
    assert table.count("<tr>") == 1 + len(T) and "&lt;b&gt;" in table and "<b>" not in table
    many = repr(Schedule.from_t(SD, np.linspace(1.0, 0.1, 100)))
    assert len(many) < 250 and many.endswith(" ...>")
    assert "-inf" in Schedule.from_t(cosine(), [1.0, 0.5])._repr_html_()


def test_plot_is_the_figure_of_one() -> None:
    assert len(Schedule.from_t(SD, T).plot().axes[0].lines) == 1


@pytest.mark.parametrize("model", ["sd21-base", "sd3-medium", "edm-cifar10"])
def test_from_lams_is_the_inverse_of_from_t(model: str) -> None:
    noise = preset(model)
    s = Schedule.from_t(noise, [1.0, 0.6, 0.3, 0.02], layout="interval")
    back = Schedule.from_lams(noise, s.lams, layout="interval")
    np.testing.assert_allclose(back.t, s.t, rtol=0, atol=1e-9)
    assert back.t[0] == 1.0 and Schedule.from_lams(noise, [noise.noise_end, 99.0]).t.tolist() == [1.0, noise.t_min]
    with pytest.raises(ValueError, match=r"lams\[0\] is 'a'"):
        Schedule.from_lams(noise, ["a"])
    for lams in ([np.nan], [0.0, np.inf], 0.0, [[0.0]]):
        with pytest.raises(ValueError, match=r"lams is .*; need"):
            Schedule.from_lams(noise, lams)


@pytest.mark.parametrize("shift", [0.2, 1.0, 12.0, 24.0, 100.0])
def test_a_flow_keeps_its_shipped_levels_at_any_shift(shift: float) -> None:
    ours, theirs = (zoo(flow(k), 20, "unipc-3") for k in (shift, 1.0))
    np.testing.assert_allclose(ours.sampler_sigmas(), theirs.sampler_sigmas(), rtol=1e-6)
