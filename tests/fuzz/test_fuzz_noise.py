"""Random configs, constructions and nodes: a helpful refusal, or something that is usable. Nothing in between."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from hso_jax import NoiseSchedule, Schedule, from_config, preset
from hso_jax.noise import beta_table, cosine, discrete, dynamic_shift, edm, flow, linear_vp, ve
from hso_jax.noise.from_config import CLASSES
from hso_jax.schedule import Origin, Scores
from hso_jax.schedule_file import from_json, to_json

SHORT, LONG = 500, 1_000
REFUSALS = (ValueError, TypeError, OSError)
deep: list[Any] = []  # nested lists, deeper than `repr` goes
for _ in range(500):
    deep = [deep]
NASTY: list[Any] = [None, True, False, "", "false", "1000", "x" * 300, "\ud800", b"x", math.nan, math.inf, -math.inf]
NASTY += [0, -0.0, -1, 1, 2, 3, 1.5, 1000.0, 10**400, -(10**400), 1e30, 1e300, -1e300, 5e-324, 1e-300, 2**63, 10**7, 1j]
NASTY += [[], [1], [0.1, "x"], [[0.1, 0.2]], {}, {"a": 1}, (), deep, object(), np.nan, np.float32(0.5), np.int64(3)]
NASTY += [np.array([]), np.array(0.5), np.array([0.5, 0.1]), np.zeros((2, 2)), np.bool_(True), np.array(["a"]), len]
KEYS = {
    "num_train_timesteps": [3, 10, 1000, 1000.0],
    "beta_start": [1e-4, 0.00085, 0.3],
    "beta_end": [0.012, 0.02, 0.999],
    "beta_schedule": ["linear", "scaled_linear", "squaredcos_cap_v2"],
    "trained_betas": [None, [0.1, 0.2, 0.3], [1e-20, 0.5], np.linspace(1e-4, 0.02, 40), [0.5] * 500],
    "rescale_betas_zero_snr": [False, True],
    "snr_shift_scale": [1.0, 3.0],
    "prediction_type": ["epsilon", "v_prediction", "flow_prediction"],
    "use_flow_sigmas": [False, True],
    "flow_shift": [1.0, 3.0],
    "shift": [1.0, 3.0, 1e5],
    "use_dynamic_shifting": [False, True],
    "base_image_seq_len": [256],
    "max_image_seq_len": [4096],
    "base_shift": [0.5],
    "max_shift": [1.15, 16.0],
    "time_shift_type": ["linear", "exponential"],
    "sigma_min": [0.002, 0.01],
    "sigma_max": [80.0, 1348.0],
    "rho": [7.0, 0.1],
    "beta_min": [0.1],
    "beta_max": [20.0, 300.0],
}


def wild(rng: random.Random) -> Any:
    """A number of any size, or a value of any kind."""
    if rng.random() < 0.5:
        return rng.choice(NASTY)
    return rng.choice([1, 1, 1, -1]) * 10.0 ** rng.choice(
        [rng.uniform(-3, 3), rng.uniform(-40, 40), rng.uniform(-300, 300)]
    )


def config(rng: random.Random) -> dict[str, Any]:
    """Mostly a real class; some keys right, a few wrong."""
    cls = rng.choice(sorted(CLASSES)) if rng.random() < 0.97 else rng.choice([*NASTY, "DDIM"])
    keys = rng.sample(list(KEYS), rng.randint(0, 8))
    return {"_class_name": cls} | {k: wild(rng) if rng.random() < 0.2 else rng.choice(KEYS[k]) for k in keys}


def table(rng: random.Random) -> Any:
    """A list of betas or of alphas_cumprod that may be almost flat, almost 0 or 1, or wrong in one entry."""
    count = rng.choice([1, 2, 3, 5, 40])
    lams = sorted((rng.gauss(0, 10.0 ** rng.uniform(-9, 2)) for _ in range(count)), reverse=True)
    values = [1.0 / (1.0 + math.exp(min(-2.0 * lam, 700.0))) for lam in lams]
    if rng.random() < 0.2:
        values[-1] = 0.0
    if rng.random() < 0.2:
        values[rng.randrange(count)] = wild(rng)
    return values


def construction(rng: random.Random) -> Callable[[], NoiseSchedule]:
    """One call of a constructor."""

    def some(*usual: Any) -> Any:
        return wild(rng) if rng.random() < 0.25 else rng.choice(usual) * 10.0 ** rng.uniform(-2, 2)

    few = rng.choice([1000, 10, wild(rng)])
    calls: list[Callable[[], Any]] = [
        partial(linear_vp, some(0.1), some(20.0), t_min=some(1e-3)),
        partial(cosine, some(0.008), t_min=some(1e-3)),
        partial(ve, some(0.01), some(50.0)),
        partial(edm, some(0.002), some(80.0), some(7.0)),
        partial(flow, some(3.0), num_train_timesteps=rng.choice([1000, 3, 50, wild(rng)])),
        partial(discrete, alphas_cumprod=table(rng)),
        partial(discrete, alphas_cumprod=table(rng), rescale_betas_zero_snr=True),
        partial(discrete, betas=[some(0.01) for _ in range(rng.choice([2, 5]))]),
        partial(lambda a, b: discrete(betas=beta_table("linear", a, b, few)), some(1e-3), some(0.02)),
        partial(lambda a, b: flow(dynamic_shift(4096, base_shift=a, max_shift=b)), some(0.5), some(1.15)),
        partial(preset, rng.choice(["sd15", "flux-dev", wild(rng)]), image_seq_len=wild(rng)),
    ]
    return rng.choice(calls)


def accepted(call: Callable[[], Any], what: Any) -> Any:
    """What the call gives; None if it refused with a message that says something. Anything else fails, naming it."""
    try:
        return call()
    except REFUSALS as error:
        assert len(str(error)) > 10, f"{type(error).__name__} without a message for {what!r:.500}"
        return None
    except BaseException as error:
        raise AssertionError(f"{type(error).__name__} ({error}) for {what!r:.500}") from error


def check_noise(noise: NoiseSchedule, rng: random.Random) -> None:
    """Every function is finite between the ends, lam falls and is inverted, and a schedule crosses a file."""
    low, high = float(noise.t_min), float(noise.t_max)
    assert 0 <= low < high <= 1 and type(noise.num_train_timesteps) is int
    t = np.sort(low + (high - low) * np.array([0.0, 1.0, *(rng.random() for _ in range(60))]))
    lam, slope, bend = noise.lam_derivatives(t)
    assert np.isfinite([lam, slope, bend]).all() and (np.diff(lam)[np.diff(t) > 1e-3 * (high - low)] < 0).all()
    assert (np.diff(lam) <= 1e-12 * (1 + np.abs(lam[1:]))).all()
    back = noise.lam(noise.t_of_lam(lam))
    rounding = 1e-12 * (np.abs(slope) + 1.0 + np.abs(lam))  # in t it is 1e-12
    assert (np.abs(back - lam) <= 1e-6 + 10 * rounding).all(), np.abs(back - lam).max()  # as `from_knots` says
    for values in (noise.alpha(t), noise.sigma(t), noise.ksigma(t), noise.timestep(t)):
        assert np.isfinite(values).all()
    assert noise.lam(1.0) == -np.inf if noise.zero_terminal_snr else np.isfinite(noise.lam(high))
    nodes = np.linspace(high, low, rng.randint(2, 9))
    made = Schedule.from_t(noise, nodes, layout=rng.choice(["node", "interval"]))
    assert to_json(from_json(to_json(made))) == to_json(made)
    again = Schedule.from_sigmas(noise, made.sigmas)
    np.testing.assert_allclose(again.lams, made.lams, rtol=0, atol=1e-6)


def check_configs(seed: int, count: int) -> int:
    rng, kept = random.Random(seed), 0
    for _ in range(count):
        given, length = config(rng), wild(rng) if rng.random() < 0.1 else 4096
        noise = accepted(partial(from_config, given, image_seq_len=length), (given, length))
        if noise is not None:
            check_noise(noise, rng)
            kept += 1
    return kept


def check_constructions(seed: int, count: int) -> int:
    rng, kept = random.Random(seed), 0
    for i in range(count):
        noise = accepted(construction(rng), (seed, i))
        if noise is not None:
            check_noise(noise, rng)
            kept += 1
    return kept


ORIGIN = {"solver": ["ddim"], "p": [2.0], "method": ["mine"], "d_min": [0.0], "seed": [0], "guidance": [7.5]}
ORIGIN |= {"psi": [{"p": 1.0}], "versions": [{"a": "1"}], "iterations": [3], "tuned": [{"by": "rmse", "budget": 100}]}
SCORES = {"others_same_nodes": [{"ddim": 1.0}], "error": [0.1], "mep": [None], "fitness": [3]}


def chosen(rng: random.Random, usual: dict[str, list[Any]]) -> dict[str, Any]:
    """Some of the arguments, mostly as they should be."""
    names = rng.sample(list(usual), rng.randint(0, min(4, len(usual))))
    return {name: wild(rng) if rng.random() < 0.1 else rng.choice(usual[name]) for name in names}


def check_schedules(seed: int, count: int) -> int:
    rng, kept = random.Random(seed), 0
    noises = [preset(name) for name in ("sd15", "flux-dev", "edm-cifar10")] + [cosine(), ve(), flow(12.0)]
    for _ in range(count):
        noise: Any = rng.choice(noises) if rng.random() < 0.97 else wild(rng)
        values: Any = sorted((rng.random() for _ in range(rng.randint(0, 6))), reverse=rng.random() < 0.9)
        if values and rng.random() < 0.2:
            values[rng.randrange(len(values))] = wild(rng)
        values = wild(rng) if rng.random() < 0.1 else values
        rule = rng.choice([Schedule.from_t, Schedule.from_sigmas])
        options = chosen(rng, {"layout": ["node", "interval"], "end": ["clean", "t_eps", None]})
        if rule == Schedule.from_sigmas:
            options.pop("layout", None)
        parts = (Origin, chosen(rng, ORIGIN)), (Scores, chosen(rng, SCORES))
        for kind, fields in parts:
            if (part := accepted(lambda k=kind, f=fields: k(**f), fields)) is not None:
                options[kind.__name__.lower()] = part
        given = (rule.__name__, noise, values, options)
        made = accepted(lambda n=noise, v=values, o=options, r=rule: r(n, v, **o), given)
        if made is not None:
            assert to_json(from_json(to_json(made))) == to_json(made), given
            assert (np.diff(made.t) < 0).all() and (np.diff(made.lams) > 0).all()
            kept += 1
    return kept


CHECKS = (check_configs, check_constructions, check_schedules)


@pytest.fixture(autouse=True)
def warnings_are_errors() -> Any:
    """Also inside threads and callbacks: a warning is a traceback in the making."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize("check", CHECKS)
def test_short(check: Callable[[int, int], int]) -> None:
    assert check(CHECKS.index(check), SHORT) > SHORT // 8


@pytest.mark.fuzz
@pytest.mark.parametrize("seed", range(10))
def test_long(seed: int) -> None:
    for check in CHECKS:
        check(100 + seed, LONG)
