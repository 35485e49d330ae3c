"""HSO's lanes, checked on the host and packed for the batched program."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jax import Array

from hso_jax.checks import brief, choice, flag, number
from hso_jax.lane import Lane, check_lane
from hso_jax.noise import NoiseSchedule, stack
from hso_jax.objectives.expansion import check_objective
from hso_jax.objectives.mep_spf import resolve_spacing

SPACING_AS = ("constraint", "penalty")


class Box(NamedTuple):
    """Where the upper level searches psi; equal ends fix a value. The defaults are the paper's.

    Attributes:
        rho: exponent of the initial EDM schedule.
        t_eps: time of the last node. (ksigma_min is ksigma(t_eps).)
        t_max: time of the first node. (ksigma_max is ksigma(t_max).)
    """

    rho: tuple[float, float] = (3.0, 16.0)
    t_eps: tuple[float, float] = (0.01, 0.03)
    t_max: tuple[float, float] = (0.96, 1.0)


PAPER_BOX = Box()


class LaneArrays(NamedTuple):
    """Lanes as arrays with a leading axis; `noise` indexes a bank of noise schedules.

    Attributes:
        noise, intervals, seed: [L] integers.
        p, d_min, least_gap, gamma: [L]; least_gap is what the lower level keeps.
        lower, upper: [L, 3] the box of (rho, t_eps, t_max).
    """

    noise: Array
    intervals: Array
    seed: Array
    p: Array
    d_min: Array
    least_gap: Array
    gamma: Array
    lower: Array
    upper: Array


def check(lane: Lane) -> Lane:
    """The lane with its spacing as a number and its box cut to the noise schedule's range; `method` is an `Hso`.

    Raises:
        ValueError: naming the value that is wrong; in particular when the spacing does not fit into the box.
    """
    lane = check_lane(lane)
    hso: Any = lane.method
    check_objective("objective", hso.objective)
    choice("spacing_as", hso.spacing_as, SPACING_AS)
    flag("relax", hso.relax)
    p = 2.0 if hso.p is None else hso.p
    p = number("p", p, low=-100.0, high=100.0, need="a finite number (2 for latent, 1 for pixel models)")
    number("gamma", hso.gamma, low=0.0, high=1e30, closed=True, need="a finite number of at least 0")
    box = _cut(hso.box, lane.noise)
    room = box.t_max[1] - box.t_eps[0]
    d_min = resolve_spacing(hso.spacing, lane.nfe)
    if hso.relax and lane.intervals * d_min > room:
        d_min = room / lane.intervals
    if hso.spacing_as == "constraint" and lane.intervals * d_min > room + 1e-12:
        raise ValueError(
            f"spacing {d_min:.6g} does not fit: {lane.intervals} intervals (nfe {lane.nfe}, layout {lane.layout}) "
            f"need {lane.intervals * d_min:.6g} of t, but t_max - t_eps is at most {room:.6g} for {lane.noise.name}; "
            f"use a spacing of at most {room / lane.intervals:.6g}, a wider box, or relax=True"
        )
    return lane._replace(method=dataclasses.replace(hso, p=p, spacing=d_min, box=box))


def _cut(box: Box, noise: NoiseSchedule) -> Box:
    low, high = float(noise.t_min), float(noise.t_max)
    if not isinstance(box, Box):
        raise ValueError(f"box is {brief(box)}; need a Box(rho=..., t_eps=..., t_max=...)")
    for name, pair in box._asdict().items():
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise ValueError(f"box {name} is {brief(pair)}; need two finite numbers, the smaller first")
        try:
            a, b = (number(name, x) for x in pair)
        except ValueError:
            raise ValueError(f"box {name} is {brief(pair)}; need two finite numbers, the smaller first") from None
        if not (math.isfinite(a) and math.isfinite(b) and a <= b):
            raise ValueError(f"box {name} is ({a}, {b}); need two finite numbers, the smaller first")
    if box.rho[0] <= 0:
        raise ValueError(f"box rho is {box.rho}; need positive numbers")
    for name in ("t_eps", "t_max"):
        a, b = getattr(box, name)
        if not 0 < a <= b <= 1:
            raise ValueError(f"box {name} is ({a}, {b}); need 0 < low <= high <= 1")
        if b < low or a > high:
            raise ValueError(f"box {name} is ({a}, {b}), outside [{low:.6g}, {high:.6g}], the range of {noise.name}")
    if box.t_eps[1] >= box.t_max[0]:
        raise ValueError(f"box t_eps {box.t_eps} must lie below t_max {box.t_max}")
    t_eps = (max(box.t_eps[0], low), max(box.t_eps[1], low))
    return box._replace(t_eps=t_eps, t_max=(min(box.t_max[0], high), min(box.t_max[1], high)))


def pack(lanes: Sequence[Lane], dtype: np.dtype) -> tuple[LaneArrays, NoiseSchedule]:
    """Checked lanes as arrays, and the bank: the distinct noise schedules stacked on a leading axis."""
    bank: dict[int, int] = {}
    schedules: list[NoiseSchedule] = []
    for lane in lanes:
        if id(lane.noise) not in bank:
            bank[id(lane.noise)] = len(schedules)
            schedules.append(lane.noise)
    methods: list[Any] = [lane.method for lane in lanes]
    columns = {
        "noise": np.array([bank[id(lane.noise)] for lane in lanes], np.int32),
        "intervals": np.array([lane.intervals for lane in lanes], np.int32),
        "seed": np.array([lane.seed for lane in lanes], np.int32),
        "p": np.array([m.p for m in methods], dtype),
        "d_min": np.array([m.spacing for m in methods], dtype),
        "least_gap": np.array([m.spacing if m.spacing_as == "constraint" else 0.0 for m in methods], dtype),
        "gamma": np.array([m.gamma for m in methods], dtype),
        "lower": np.array([[low for low, _ in m.box] for m in methods], dtype),
        "upper": np.array([[high for _, high in m.box] for m in methods], dtype),
    }
    return LaneArrays(**columns), stack(schedules, dtype)  # type: ignore[arg-type]
