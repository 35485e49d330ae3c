"""HSO, the paper's method: its lanes, its two levels on one lane, its options, and the schedules it finds.

EDM's schedule of each psi is refined by Newton steps on the nodes and judged by SPF (arXiv 2511.11688).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from hso_jax import batch
from hso_jax.batch import Progress
from hso_jax.bilevel import Effort, bilevel, randomness
from hso_jax.bounds import NodeObjective, Terms, check_objective, expansion, objective_name
from hso_jax.checkpoint import Records
from hso_jax.checks import brief, choice, flag, number
from hso_jax.compiling import platform, under_jax_defaults
from hso_jax.lane import Lane, check_lane
from hso_jax.lower import trust_region
from hso_jax.lower.trust_region import CONVERGED, NOT_FINITE, RESULTS, Feasible, Solution, spread
from hso_jax.mep_spf import PAPER_GAMMA, Spacing, paper_d_min, resolve_spacing, score, spacing_penalty
from hso_jax.noise import NoiseSchedule, stack
from hso_jax.schedule import Origin, Schedule, Scores, versions
from hso_jax.upper.evolution import Draws, Evolution

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
    """Lanes as NumPy arrays with a leading axis; in the program the traced values of one lane.

    Attributes:
        noise: the lanes' noise schedules; [L] as coefficients it has rows of the bank.
        intervals: [L] integers.
        p, d_min, least_gap, gamma: [L]; least_gap is what the lower level keeps.
        lower, upper: [L, 3] the box of (rho, t_eps, t_max).
    """

    noise: Any
    intervals: Any
    p: Any
    d_min: Any
    least_gap: Any
    gamma: Any
    lower: Any
    upper: Any


def _cut(box: Box, noise: NoiseSchedule) -> Box:
    """The box, checked, within the noise schedule's range."""
    if not isinstance(box, Box):
        raise ValueError(f"box is {brief(box)}; need a Box(rho=..., t_eps=..., t_max=...)")
    for name, pair in box._asdict().items():
        try:
            low, high = (number(name, x) for x in pair)
            if not -math.inf < low <= high < math.inf:
                raise ValueError
        except (TypeError, ValueError):
            raise ValueError(f"box {name} is {brief(pair)}; need two finite numbers, the smaller first") from None
    if box.rho[0] <= 0:
        raise ValueError(f"box rho is {box.rho}; need positive numbers")
    least, most = float(noise.t_min), float(noise.t_max)
    for name in ("t_eps", "t_max"):
        low, high = getattr(box, name)
        if not 0 < low <= high <= 1:
            raise ValueError(f"box {name} is ({low}, {high}); need 0 < low <= high <= 1")
        if high < least or low > most:
            raise ValueError(
                f"box {name} is ({low}, {high}), outside [{least:.6g}, {most:.6g}], the range of {noise.name}"
            )
    if box.t_eps[1] >= box.t_max[0]:
        raise ValueError(f"box t_eps {box.t_eps} must lie below t_max {box.t_max}")
    t_eps = (max(box.t_eps[0], least), max(box.t_eps[1], least))
    return box._replace(t_eps=t_eps, t_max=(min(box.t_max[0], most), min(box.t_max[1], most)))


class Bank(NamedTuple):
    """The tables of the distinct noise schedules of some lanes, stacked on a leading axis.

    Attributes:
        coefficients: [S, cells, 4] see `NoiseSchedule`.
        times: [S, 257] see `times_even_in_lam`.
    """

    coefficients: Any
    times: Any


_TIMES = 257
_NEWTON_STEPS = 4  # from a table of so many times: exact to float32


def times_even_in_lam(noise: NoiseSchedule) -> np.ndarray:
    """The times [257] of levels that are even in lam from t_max to t_min. NumPy."""
    noisy, clean = (float(noise.lam(float(t))) for t in (noise.t_max, noise.t_min))
    return noise.t_of_lam(np.linspace(noisy, clean, _TIMES))


def pack(lanes: Sequence[Lane], dtype: np.dtype) -> tuple[LaneArrays, Bank]:
    """Checked lanes as arrays, and their bank of noise schedules."""
    schedules = list({id(lane.noise): lane.noise for lane in lanes}.values())
    row = {id(noise): i for i, noise in enumerate(schedules)}
    methods = [lane.method for lane in lanes]
    rows = np.array([row[id(lane.noise)] for lane in lanes], np.int32)
    stacked = stack(schedules, dtype)
    numbered = dataclasses.replace(stacked, coefficients=np.arange(len(schedules), dtype=np.int32))
    columns = {
        # A number of each lane is cheaper than one that the program looks up; a table is not.
        "noise": jax.tree.map(lambda leaf: leaf[rows], numbered),
        "intervals": np.array([lane.intervals for lane in lanes], np.int32),
        "p": np.array([m.p for m in methods], dtype),
        "d_min": np.array([m.spacing for m in methods], dtype),
        "least_gap": np.array([m.spacing if m.spacing_as == "constraint" else 0.0 for m in methods], dtype),
        "gamma": np.array([m.gamma for m in methods], dtype),
        "lower": np.array([[low for low, _ in m.box] for m in methods], dtype),
        "upper": np.array([[high for _, high in m.box] for m in methods], dtype),
    }
    times = np.stack([times_even_in_lam(noise) for noise in schedules]).astype(dtype)
    return LaneArrays(**columns), Bank(stacked.coefficients, times)


EFFORT = Effort(population=16, generations=20, steps=3, polish=3, lanes=128)
"""From EDM's start three steps usually do already. The lanes are a CPU's: as many as its caches hold."""

ACCELERATOR_LANES = 4096
"""Lanes a call on other devices, whose kernels are short of work with fewer."""

_AGAIN = 200  # steps for a lane that has not converged


def edm_nodes(noise: NoiseSchedule, psi: Array, count: int, intervals: Array, times: Array) -> Array:
    """EDM's nodes (Karras et al. 2022, eq. 5) between ksigma(t_max) and ksigma(t_eps), as times [count].

    `ksigma_i = (ksigma_max^(1/rho) + i/M (ksigma_min^(1/rho) - ksigma_max^(1/rho)))^rho`; padding repeats t_eps.
    `times` [n] is the table that the inverse starts from, see `times_even_in_lam`.
    """
    rho, t_eps, t_max = psi
    lams_of_ends = noise.lam(jnp.stack([t_max, t_eps, noise.t_max, noise.t_min]))
    noisy, clean = jnp.exp(-lams_of_ends[0] / rho), jnp.exp(-lams_of_ends[1] / rho)
    i = jnp.minimum(jnp.arange(count), intervals)
    lams = -rho * jnp.log(noisy + i / intervals * (clean - noisy))
    noisiest, cleanest = lams_of_ends[2], lams_of_ends[3]
    place = (lams - noisiest) / (cleanest - noisiest) * (len(times) - 1)
    cell = jnp.clip(jnp.floor(place).astype(int), 0, len(times) - 2)
    near = times[cell] + (place - cell) * (times[cell + 1] - times[cell])
    inner = noise.t_near(lams, near, _NEWTON_STEPS)
    return jnp.where(i == 0, t_max, jnp.where(i == intervals, t_eps, inner))


class Levels(NamedTuple):
    """What HSO gives to `bilevel`. Its psi is (rho, t_eps, t_max); a lane is one row of `LaneArrays`.

    Attributes:
        bank: of noise schedules.
        objective: of the lower level.
        nodes: K, at least the lane's number of nodes.
        steps: of the lower level.
    """

    bank: Bank
    objective: str | NodeObjective
    nodes: int
    steps: int

    def boxes(self, lane: LaneArrays) -> tuple[Array, Array]:
        """One box."""
        return lane.lower[None], lane.upper[None]

    def blank(self, lane: LaneArrays) -> Solution:
        """No nodes yet."""
        return trust_region.blank(self.nodes, lane.lower.dtype)

    def lower(self, lane: LaneArrays, psi: Array, before: Solution) -> Solution:
        """The nodes from EDM's (or those before) that minimise the objective between psi's ends."""
        edm = edm_nodes(self.noise(lane), psi, self.nodes, lane.intervals, self.bank.times[lane.noise.coefficients])
        start = jnp.where(jnp.isfinite(before.t[0]), before.t, edm)
        found = refined(self, lane, psi, start, self.steps)
        return found._replace(steps=before.steps + found.steps)

    def fitness(self, lane: LaneArrays, found: Solution) -> Array:
        """SPF: the lower level's objective and the spacing penalty."""
        return found.value + lane.gamma * spacing_penalty(found.t, lane.d_min, lane.intervals)

    def refine(self, lane: LaneArrays, starts: Evolution) -> Evolution:
        """The one start as it is."""
        return jax.tree.map(lambda x: x[0], starts)

    def noise(self, lane: LaneArrays) -> NoiseSchedule:
        """The lane's noise schedule."""
        row = lane.noise.coefficients
        return dataclasses.replace(lane.noise, coefficients=self.bank.coefficients[row])


def refined(levels: Levels, lane: LaneArrays, psi: Array, start: Array, steps: int) -> Solution:
    """The lower level from `start` [K], in so many steps."""
    _, t_eps, t_max = psi
    least = jnp.minimum(_with_margin(lane.least_gap), (t_max - t_eps) / lane.intervals)
    objective = expansion(levels.objective, Terms(lane.p, lane.intervals))
    feasible = Feasible(t_max, t_eps, least, lane.intervals)
    return trust_region.minimise(objective, levels.noise(lane), start, feasible, max_steps=steps)[0]


def _with_margin(gap: Array) -> Array:
    """A gap that is still kept after the rounding of up to 64 summed gaps."""
    return jnp.where(gap > 0, gap + 16.0 * jnp.finfo(gap.dtype).eps, gap)


@batch.by_arguments
def search_lane(
    objective: str | NodeObjective, nodes: int, effort: Any
) -> Callable[[tuple[LaneArrays, Draws], Bank], Evolution]:
    """The bilevel search of one lane, ((lane, its random numbers), bank) -> result. Pure; map it over lanes."""

    def search(row: tuple[LaneArrays, Draws], bank: Bank) -> Evolution:
        return bilevel(Levels(bank, objective, nodes, effort.steps), *row, effort)

    return search


def run(
    lanes: Sequence[Lane],
    effort: Any,
    *,
    nodes: int | None = None,
    progress: batch.Progress | None = None,
    records: Records | None = None,
) -> Evolution:
    """Search checked lanes of one objective, each with at least one interval; NumPy results in the lanes' order."""
    effort = effort.over(EFFORT if platform() == "cpu" else EFFORT._replace(lanes=ACCELERATOR_LANES))
    effort = effort._replace(polish=effort.polish if effort.steps else 0)
    arrays, bank = pack(lanes, np.dtype(jax.dtypes.canonicalize_dtype(float)))
    rows = arrays, randomness([lane.seed for lane in lanes], effort, len(PAPER_BOX))
    count = nodes or 1 + max(lane.intervals for lane in lanes)
    objective = lanes[0].method.objective
    search = search_lane(objective, count, effort)
    found = batch.run(search, rows, bank, chunk=effort.lanes, progress=progress, records=records)
    return found if effort.steps == 0 else _finish(lanes, found, objective)


def _finish(lanes: Sequence[Lane], found: Evolution, objective: str | NodeObjective) -> Evolution:
    """Refine the few lanes that have not converged again, one by one in float64 and with many more steps.

    They are those whose objective is concave at the start (EDM's noise with p = 2 at large N) or whose curvature
    spans more than float32 resolves (flow models with many held gaps).
    """
    hard = np.flatnonzero(found.memo.result != CONVERGED)
    if not hard.size:
        return found
    columns = [np.array(x, np.float64 if x.dtype.kind == "f" else x.dtype) for x in found.memo]
    with jax.enable_x64(True):
        for i in hard.tolist():
            arrays, bank = pack([lanes[i]], np.dtype(np.float64))
            lane = jax.tree.map(lambda column: column[0], arrays)
            again = _refine_again(lane, bank, found.best[i].astype(np.float64), columns[0][i], objective)
            again = again._replace(steps=again.steps + found.memo.steps[i])
            for column, value in zip(columns, again, strict=True):
                column[i] = value
    return found._replace(memo=Solution(*columns))  # type: ignore[arg-type]


@under_jax_defaults
@functools.partial(jax.jit, static_argnames="objective")
def _refine_again(lane: LaneArrays, bank: Bank, psi: Array, t: Array, objective: str | NodeObjective) -> Solution:
    return refined(Levels(bank, objective, len(t), _AGAIN), lane, psi, t, _AGAIN)


_DISTINCT = 1e-6  # in t: nodes that the objective merges (p > 2 without a spacing) stay this far apart


def schedule_of(lane: Lane, found: Evolution | None) -> Schedule:
    """The result in float64: ends as psi has them, spacing exact, everything else derived from t.

    Nodes that are not finite (an objective that has no value there) are replaced by equal gaps; `result` says so.

    Args:
        lane: checked.
        found: its row of the program's results; None for a lane without intervals.
    """
    hso = lane.method
    name = objective_name(hso.objective)
    fields: dict[str, Any] = {
        "p": hso.p,
        "d_min": hso.spacing,
        "versions": versions(),
        "method": "hso" if name == "mep" else f"hso-{name}",
    }
    if found is None:  # a single node: nothing to place, pure noise is where every sampler starts
        return Schedule.from_t(lane.noise, [hso.box.t_max[1]], layout=lane.layout, origin=Origin(**fields))
    code = int(found.memo.result)
    t = np.asarray(found.memo.t[: lane.intervals + 1], np.float64)
    psi = np.asarray(found.best)
    if not (np.isfinite(psi).all() and np.isfinite(t).all() and np.isfinite(found.memo.value)):
        code, psi = NOT_FINITE, np.asarray([(low + high) / 2 for low, high in hso.box])
        t = np.linspace(psi[2], psi[1], lane.intervals + 1)
    rho, t_eps, t_max = (_shortest(x) for x in psi)
    t_eps = float(np.clip(t_eps, *hso.box.t_eps))
    t_max = float(np.clip(t_max, *hso.box.t_max))
    least = _DISTINCT
    if hso.spacing_as == "constraint":  # rounding took some of the room that the spacing needs: out, within the box
        needed = lane.intervals * hso.spacing
        t_max = min(max(t_max, t_eps + needed), hso.box.t_max[1])
        t_eps = max(min(t_eps, t_max - needed), hso.box.t_eps[0])
        least = max(hso.spacing, least)
    t[0], t[-1] = t_max, t_eps
    t = spread(t, min(least, (t_max - t_eps) / lane.intervals))
    lams = lane.noise.lam(t)
    ends = np.exp(-lams[[-1, 0]])
    stationarity = float(found.memo.stationarity)
    origin = Origin(
        psi={"rho": rho, "t_eps": t_eps, "t_max": t_max, "ksigma_min": float(ends[0]), "ksigma_max": float(ends[1])},
        result=RESULTS[code],
        iterations=int(found.memo.steps),
        stationarity=stationarity if np.isfinite(stationarity) else None,
        seed=int(lane.seed),
        **fields,
    )
    scores = Scores(**score(lams, t, p=hso.p, d_min=hso.spacing, gamma=hso.gamma))
    return Schedule.from_t(lane.noise, t, layout=lane.layout, origin=origin, scores=scores, lams=lams)


def _shortest(x: np.floating[Any]) -> float:
    """The float with the fewest digits that is this float32: 0.03, not 0.029999999329."""
    return float(str(x))


@dataclasses.dataclass(frozen=True)
class Hso:
    """Hierarchical schedule optimization (arXiv 2511.11688): no network, no problems, a bound alone.

    Attributes:
        objective: what the lower level minimises: "mep"; "dm-nonuni", the baseline's bound; or any JAX function of
            (lams [K], terms), see `hso_jax.bounds.NodeObjective`.
        p: exponent of the model-error bound, 2 for latent, 1 for pixel models. None is the preset's own where the
            noise schedule is given by a preset's name, else 2.
        spacing: least distance in t, a number or a function of N; the paper's rule by default.
        spacing_as: "constraint" (the lower level keeps it) or "penalty" (the paper's SPF: only the fitness sees it).
        gamma: weight of the penalty in the fitness.
        box: for psi; its ends are cut to the noise schedule's range.
        relax: reduce a spacing that does not fit to the largest that does, instead of raising.
    """

    objective: str | NodeObjective = "mep"
    p: float | None = None
    spacing: Spacing = paper_d_min
    spacing_as: str = "constraint"
    gamma: float = PAPER_GAMMA
    box: Box = PAPER_BOX
    relax: bool = False

    def check(self, lane: Lane) -> Lane:
        """The lane with p and its spacing as numbers, and its box cut to the noise schedule's range.

        Raises:
            ValueError: naming the value that is wrong; in particular when the spacing does not fit into the box.
        """
        lane = check_lane(lane)
        check_objective("objective", self.objective)
        choice("spacing_as", self.spacing_as, SPACING_AS)
        flag("relax", self.relax)
        p = 2.0 if self.p is None else self.p
        p = number("p", p, low=-100.0, high=100.0, need="a finite number (2 for latent, 1 for pixel models)")
        number("gamma", self.gamma, low=0.0, high=1e30, closed=True, need="a finite number of at least 0")
        box = _cut(self.box, lane.noise)
        room = box.t_max[1] - box.t_eps[0]
        spacing = resolve_spacing(self.spacing, lane.nfe)
        if self.relax and lane.intervals * spacing > room:
            spacing = room / lane.intervals
        if self.spacing_as == "constraint" and lane.intervals * spacing > room + 1e-12:
            raise ValueError(
                f"spacing {spacing:.6g} does not fit: {lane.intervals} intervals (nfe {lane.nfe}, layout "
                f"{lane.layout}) need {lane.intervals * spacing:.6g} of t, but t_max - t_eps is at most {room:.6g} for "
                f"{lane.noise.name}; use a spacing of at most {room / lane.intervals:.6g}, a wider box, or relax=True"
            )
        return lane._replace(method=dataclasses.replace(self, p=p, spacing=spacing, box=box))

    def group(self, lane: Lane) -> Hashable:
        """One program for all lanes of one objective."""
        return Hso, self.objective

    def search(
        self,
        lanes: Sequence[Lane],
        effort: Effort | None,
        progress: Progress | None,
        records: Records | None = None,
    ) -> list[Schedule]:
        """Search checked lanes of this objective, each by its own options."""
        moving = [i for i, lane in enumerate(lanes) if lane.intervals > 0]
        found = {}
        if moving:
            rows = run([lanes[i] for i in moving], effort or Effort(), progress=progress, records=records)
            found = {i: jax.tree.map(lambda x: x[row], rows) for row, i in enumerate(moving)}  # noqa: B023
        return [schedule_of(lane, found.get(i)) for i, lane in enumerate(lanes)]
