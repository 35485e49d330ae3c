"""Lanes: what one search is asked to do, checked on the host, and packed for the batched program."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax import Array

from hso_jax.noise import NoiseSchedule
from hso_jax.objectives.mep_spf import PAPER_GAMMA, Spacing, paper_d_min, resolve_spacing
from hso_jax.schedule import LAYOUTS

OBJECTIVES = ("mep", "dm-nonuni")
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


class Lane(NamedTuple):
    """One search: a noise schedule, a number of evaluations and everything else its result depends on.

    Attributes:
        noise: the model's noise schedule.
        nfe: N, at least 1.
        layout: "node" (N nodes) or "interval" (N + 1 nodes).
        p: exponent of the model-error bound, 2 for latent, 1 for pixel models.
        seed: of the upper level's random stream.
        spacing: least distance in t, a number or a function of N; the paper's rule by default.
        spacing_as: "constraint" (the lower level keeps it) or "penalty" (the paper's SPF: only the fitness sees it).
        gamma: weight of the penalty in the fitness.
        box: for psi; its ends are cut to the noise schedule's range.
        objective: "mep", or "dm-nonuni" for the baseline's bound.
    """

    noise: NoiseSchedule
    nfe: int
    layout: str = "node"
    p: float = 2.0
    seed: int = 0
    spacing: Spacing = paper_d_min
    spacing_as: str = "constraint"
    gamma: float = PAPER_GAMMA
    box: Box = Box()
    objective: str = "mep"

    @property
    def intervals(self) -> int:
        """M: N - 1 for "node", N for "interval"."""
        return self.nfe - (self.layout == "node")

    @property
    def d_min(self) -> float:
        """The spacing asked for at this N, in t."""
        return resolve_spacing(self.spacing, self.nfe)


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


def check_nfe(nfe: object) -> int:
    """`nfe` as an int. Raises ValueError unless it is a whole number of at least 1."""
    if isinstance(nfe, bool) or not isinstance(nfe, (int, np.integer)) or nfe < 1:
        raise ValueError(f"nfe is {nfe!r}; need whole numbers of at least 1")
    return int(nfe)


def check_seed(seed: object) -> None:
    """Raises ValueError unless it is a whole number in 0..2^31 - 1."""
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**31:
        raise ValueError(f"seed is {seed!r}; need a whole number from 0 to 2^31 - 1")


def check(lane: Lane) -> Lane:
    """The lane with its box cut to the noise schedule's range.

    Raises:
        ValueError: naming the value that is wrong; in particular when the spacing does not fit into the box.
    """
    check_nfe(lane.nfe)
    choices = {"layout": LAYOUTS, "objective": OBJECTIVES, "spacing_as": SPACING_AS}
    for name, known in choices.items():
        if getattr(lane, name) not in known:
            raise ValueError(f"{name} is {getattr(lane, name)!r}; use one of {', '.join(known)}")
    if not math.isfinite(lane.p):
        raise ValueError(f"p is {lane.p}; need a finite number (2 for latent, 1 for pixel models)")
    if not (math.isfinite(lane.gamma) and lane.gamma >= 0):
        raise ValueError(f"gamma is {lane.gamma}; need a finite number of at least 0")
    check_seed(lane.seed)
    box = _cut(lane.box, lane.noise)
    room = box.t_max[1] - box.t_eps[0]
    if lane.spacing_as == "constraint" and lane.intervals * lane.d_min > room + 1e-12:
        raise ValueError(
            f"spacing {lane.d_min:.6g} does not fit: {lane.intervals} intervals (nfe {lane.nfe}, layout {lane.layout}) "
            f"need {lane.intervals * lane.d_min:.6g} of t, but t_max - t_eps is at most "
            f"{room:.6g} for {lane.noise.name}; "
            f"use a spacing of at most {room / lane.intervals:.6g}, a wider box, or relax=True"
        )
    return lane._replace(box=box)


def relaxed(lane: Lane) -> Lane:
    """The lane with its spacing reduced, if it must be, to the largest that fits its box."""
    box = _cut(lane.box, lane.noise)
    room = box.t_max[1] - box.t_eps[0]
    if lane.intervals and lane.intervals * lane.d_min > room:
        return lane._replace(spacing=room / lane.intervals)
    return lane


def _cut(box: Box, noise: NoiseSchedule) -> Box:
    low, high = float(noise.t_min), float(noise.t_max)
    for name, (a, b) in box._asdict().items():
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
    lower = [[lane.box.rho[0], lane.box.t_eps[0], lane.box.t_max[0]] for lane in lanes]
    upper = [[lane.box.rho[1], lane.box.t_eps[1], lane.box.t_max[1]] for lane in lanes]
    least = [lane.d_min if lane.spacing_as == "constraint" else 0.0 for lane in lanes]
    columns = {
        "noise": np.array([bank[id(lane.noise)] for lane in lanes], np.int32),
        "intervals": np.array([lane.intervals for lane in lanes], np.int32),
        "seed": np.array([lane.seed for lane in lanes], np.int32),
        "p": np.array([lane.p for lane in lanes], dtype),
        "d_min": np.array([lane.d_min for lane in lanes], dtype),
        "least_gap": np.array(least, dtype),
        "gamma": np.array([lane.gamma for lane in lanes], dtype),
        "lower": np.array(lower, dtype),
        "upper": np.array(upper, dtype),
    }
    return LaneArrays(**columns), stack(schedules, dtype)  # type: ignore[arg-type]


def stack(schedules: Iterable[NoiseSchedule], dtype: np.dtype) -> NoiseSchedule:
    """Noise schedules stacked on a leading axis; shorter tables are padded with cells that are never read."""
    many = list(schedules)
    cells = max(len(s.coefficients) for s in many)
    leaves = []
    for s in many:
        table = np.asarray(s.coefficients, dtype)
        padded = np.concatenate([table, np.repeat(table[-1:], cells - len(table), axis=0)])
        numbers = jax.tree.leaves(s)[1:]
        leaves.append([padded, *(np.asarray(x, dtype) for x in numbers)])
    structure = jax.tree.structure(many[0])
    return jax.tree.unflatten(structure, [np.stack(column) for column in zip(*leaves, strict=True)])
