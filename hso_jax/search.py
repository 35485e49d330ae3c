"""The public search: from noise schedules to `Schedule`s, for every step budget at once."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, overload

import jax
import jax.numpy as jnp
import numpy as np

from hso_jax import batch, trust_region
from hso_jax.batch import Effort, Progress
from hso_jax.curvature import interval_objective
from hso_jax.lanes import Lane, check, check_nfe, relaxed
from hso_jax.measured import Fitness, measured_schedules
from hso_jax.noise import NoiseSchedule
from hso_jax.objectives import mep, mep_interval_derivatives, spf
from hso_jax.reference.lanes import ReferenceLane, pack, s_of_lam
from hso_jax.reference.lanes import check as check_reference
from hso_jax.reference.schedules import reference_schedules
from hso_jax.reference.search import ReferenceEffort
from hso_jax.schedule import LAYOUTS, Schedule, versions

DEFAULT_EFFORT = Effort()
_DISTINCT = 1e-6  # in t: nodes that the objective merges (p > 2 without a spacing) stay this far apart
METHODS: Mapping[str, tuple[str, str]] = {
    "hso": ("mep", "spf"),
    "hso-dm-nonuni": ("dm-nonuni", "spf"),
    "reference": ("reference", "reference"),
}
"""Name -> (objective of the lower level, fitness of the upper level)."""

OBJECTIVES = ("mep", "dm-nonuni", "reference")
FITNESSES = ("spf", "reference")
DATA = ("problems", "samples", "model_error", "detail", "power")
"""Arguments of `reference.reference` that a search takes."""


def lanes(
    noises: Iterable[NoiseSchedule],
    nfes: Iterable[int],
    *,
    layouts: Iterable[str] = ("node",),
    seeds: Iterable[int] = (0,),
    relax: bool = False,
    **options: Any,
) -> list[Lane]:
    """Every combination, in the order noises, layouts, nfes, seeds.

    Args:
        noises: noise schedules.
        nfes: numbers of evaluations.
        layouts: "node", "interval" or both.
        seeds: of the upper level.
        relax: reduce a spacing that does not fit to the largest that does, instead of raising.
        options: further fields of `Lane`, the same for all.

    Raises:
        ValueError: as `lanes.check`.
    """
    combinations = itertools.product(list(noises), list(layouts), [check_nfe(n) for n in nfes], list(seeds))
    many = [Lane(noise, nfe, layout, seed=seed, **options) for noise, layout, nfe, seed in combinations]
    return [check(relaxed(lane) if relax else lane) for lane in many]


def search_many(
    many: Sequence[Lane],
    *,
    effort: Effort = DEFAULT_EFFORT,
    progress: Progress | None = None,
) -> list[Schedule]:
    """Search every lane; one compiled program for all lanes of one objective.

    A lane's schedule depends on the lane and the seed, not on the lanes beside it: to the bit where they are padded
    to the same number of nodes and run in chunks of the same size, to float32 rounding (about 1e-5 in t) otherwise.

    Args:
        many: checked or unchecked lanes.
        effort: population, generations and chunk size.
        progress: called with (done, total) after each chunk.

    Raises:
        ValueError: as `lanes.check`, before any work.
    """
    checked = [check(lane) for lane in many]
    schedules: dict[int, Schedule] = {i: _schedule(lane, None) for i, lane in enumerate(checked) if lane.intervals == 0}
    done = len(schedules)
    for objective in dict.fromkeys(lane.objective for lane in checked):
        index = [i for i, lane in enumerate(checked) if lane.intervals > 0 and lane.objective == objective]
        if not index:
            continue
        report = None if progress is None else functools.partial(_shifted, progress, done, len(checked))
        found = batch.run([checked[i] for i in index], effort, progress=report)
        for row, i in enumerate(index):
            schedules[i] = _schedule(checked[i], jax.tree.map(lambda x: x[row], found))  # noqa: B023
        done += len(index)
    return [schedules[i] for i in range(len(checked))]


@overload
def search(noise: NoiseSchedule, nfe: int, **options: Any) -> Schedule: ...
@overload
def search(noise: NoiseSchedule, nfe: Iterable[int], **options: Any) -> list[Schedule]: ...
def search(
    noise: NoiseSchedule,
    nfe: int | Iterable[int],
    *,
    layout: str = "node",
    method: str = "hso",
    objective: str | None = None,
    fitness: str | Fitness | None = None,
    seed: int = 0,
    effort: Effort | ReferenceEffort | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Schedule | list[Schedule]:
    """Find the schedule of a model for one N, or the schedules for many, in one compiled call.

    Args:
        noise: the model's noise schedule: `preset("sd21-base")`, `from_config(...)`, `discrete(betas=...)`, ...
        nfe: the number of model evaluations N, or several.
        layout: "node" (N nodes and a last step to sigma 0) or "interval" (N + 1 nodes, stops at the last).
        method: a key of `METHODS`, that is a pair (objective, fitness): "hso", the paper's; "hso-dm-nonuni", the same
            on DM-NonUni's bound; "reference", by the error of the solver itself on problems with an exact solution.
        objective: what the lower level minimises over the nodes, instead of the method's: "mep", "dm-nonuni" or
            "reference".
        fitness: what the upper level chooses psi by, instead of the method's: "spf", "reference", or any function of a
            `Schedule` that returns a number, the smaller the better (`measured.Fitness`; what is not finite counts as
            +inf). With "reference" and a function psi is (p, t_eps, t_max), free up to the model's ends; with "spf"
            (rho, t_eps, t_max) in `box`.
        seed: of the upper level.
        effort: how hard to search: an `Effort` for the fitness "spf", a `ReferenceEffort` for "reference".
        progress: called with (lanes done, lanes in all), in calls of the model where the fitness is a function.
        options: with "reference": solver, guidance, first (fields of `ReferenceLane`), problems, samples, model_error,
            detail, power (arguments of `reference.reference`). With "spf": relax (reduce a spacing that does not fit
            instead of raising), p, spacing, spacing_as, gamma, box (fields of `Lane`). The objective "reference" with
            the fitness "spf", HSO's schedule refined on the error, takes both, and refine_effort, a `ReferenceEffort`.
            With a function: budget (required), calls of the model that its judgements may take for each N, never
            exceeded: each takes `fitness.calls(nfe)` of them if there is such a method, else 1; starts, schedules that
            are judged too and are the result (as they are, but for `Schedule.fitness`) if nothing better is found;
            checkpoint, a file that each judgement is written to and that the same call resumes from, to the same
            bytes; the budget may then be another, and N may be added.

    Returns:
        One `Schedule` for an int, a list in the order of `nfe` otherwise.

    Raises:
        ValueError: for any bad value, naming it, before any work.
        Exception: what a fitness raises, as it is; the checkpoint then has all judgements before.
    """
    lower, upper = _levels(method, objective, fitness)
    many = list(nfe) if isinstance(nfe, Iterable) else [nfe]
    if not many:
        raise ValueError("nfe is empty; give at least one number of evaluations")
    if layout not in LAYOUTS:
        raise ValueError(f"layout is {layout!r}; use one of {', '.join(LAYOUTS)}")
    kinds = _taken(options, "solver", "guidance", "first")
    data = _taken(options, *DATA, "compare")
    refining = _taken(options, "refine_effort")
    measuring = _taken(options, "budget", "starts", "checkpoint")
    found: list[Schedule]
    if callable(upper):
        _refuse({**kinds, **data, **refining, **options}, "a fitness of your own")
        if effort is not None:
            raise ValueError(f"effort is {effort!r}; a fitness of your own is searched by as far as its budget goes")
        wanted = [ReferenceLane(noise, n, layout, seed=seed, objective=lower) for n in many]
        found = measured_schedules(wanted, upper, progress=progress, **measuring)
    elif upper == "reference":
        _refuse({**refining, **measuring, **options}, "fitness 'reference'")
        _expect("effort", effort, ReferenceEffort)
        wanted = [ReferenceLane(noise, n, layout, seed=seed, objective=lower, **kinds) for n in many]
        found = reference_schedules(wanted, effort=effort, progress=progress, **data)  # type: ignore[arg-type]
    else:
        _refuse(measuring, "fitness 'spf'")
        _expect("effort", effort, Effort)
        if lower != "reference":
            _refuse({**kinds, **data, **refining}, f"objective {lower!r} with fitness 'spf'")
        options["objective"] = "mep" if lower == "reference" else lower
        every = lanes([noise], many, layouts=[layout], seeds=[seed], **options)
        run = functools.partial(search_many, every, effort=effort or DEFAULT_EFFORT, progress=progress)  # type: ignore[arg-type]
        if lower != "reference":
            found = run()
        else:
            wanted = [ReferenceLane(noise, n, layout, seed=seed, **kinds) for n in many]
            found = _refined(run, wanted, refining.get("refine_effort"), **data)
    return found if isinstance(nfe, Iterable) else found[0]


def _refined(
    run: Callable[[], list[Schedule]], many: Sequence[ReferenceLane], effort: ReferenceEffort | None, **data: Any
) -> list[Schedule]:
    """What `run` finds, refined on the reference error. Everything is checked before it runs."""
    _expect("refine_effort", effort, ReferenceEffort)
    wanted = [check_reference(lane) for lane in many]
    starts = np.full((len(wanted), 1, max(lane.nodes for lane in wanted)), np.nan)
    # Refuses bad data; the solutions of the default problems are kept, and would be needed next anyway.
    names = [lane.solver for lane in wanted]
    pack(wanted, names, starts, (effort or ReferenceEffort()).chunk, **_taken({**data}, *DATA))
    for row, schedule in zip(starts, run(), strict=True):
        row[:, : len(schedule.lams)] = s_of_lam(schedule.lams)
        row[:, len(schedule.lams) :] = s_of_lam(schedule.lams[-1])
    return reference_schedules(wanted, effort=effort, starts=starts, **data)


def _taken(options: dict[str, Any], *names: str) -> dict[str, Any]:
    """Those of the options that have these names; they are taken out of `options`."""
    return {name: options.pop(name) for name in names if name in options}


def _levels(method: str, objective: str | None, fitness: str | Fitness | None) -> tuple[str, str | Fitness]:
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; use one of {', '.join(METHODS)}")
    lower, upper = METHODS[method]
    known = {"objective": (objective, OBJECTIVES, ""), "fitness": (fitness, FITNESSES, " or a function of a schedule")}
    for name, (value, names, more) in known.items():
        if value is not None and value not in names and not (more and callable(value)):
            raise ValueError(f"{name} is {value!r}; use one of {', '.join(names)}{more}")
    return objective or lower, upper if fitness is None else fitness


def _refuse(options: Mapping[str, Any], what: str) -> None:
    if options:
        raise ValueError(f"{', '.join(options)}: not an option of {what}")


def _expect(name: str, effort: object, kind: type) -> None:
    if effort is not None and not isinstance(effort, kind):
        raise ValueError(f"{name} is {effort!r}; this search takes {kind.__name__}(...)")


@functools.partial(jax.jit, static_argnames="max_steps")
def refine(
    noise: NoiseSchedule,
    start: jax.Array,
    *,
    t_max: jax.Array | float,
    t_eps: jax.Array | float,
    p: jax.Array | float = 2.0,
    spacing: jax.Array | float = 0.0,
    max_steps: int = trust_region.MAX_STEPS_DEFAULT,
) -> trust_region.Solution:
    """The lower level alone: the MEP-optimal nodes between fixed ends, from any start.

    Differentiable (first order) in the noise schedule's leaves, the ends, p and the spacing, by the implicit
    function theorem. Works under `vmap`. Nothing raises on values: read `result`.

    Args:
        noise: the noise schedule.
        start: [M + 1] nodes to start from, in t.
        t_max: the first node.
        t_eps: the last node, below t_max.
        p: exponent of the model-error bound.
        spacing: least gap; cut to (t_max - t_eps)/M if it does not fit.
        max_steps: static.

    Returns:
        A `Solution`; its `t` is [M + 1].
    """
    start = jnp.asarray(start)
    intervals = start.shape[0] - 1
    t_max, t_eps, spacing = (jnp.asarray(x, start.dtype) for x in (t_max, t_eps, spacing))
    least = jnp.minimum(spacing, (t_max - t_eps) / intervals)
    feasible = trust_region.Feasible(t_max, t_eps, least, jnp.asarray(intervals))
    objective = interval_objective(functools.partial(mep_interval_derivatives, p=p))
    return trust_region.solve(objective, noise, start, feasible, max_steps=max_steps)


def score(schedule: Schedule, *, p: float, d_min: float, gamma: float) -> dict[str, float | None]:
    """Mep and spf of a schedule in float64; None where they are undefined (one node, or lam = -inf)."""
    if len(schedule.lams) < 2 or not np.isfinite(schedule.lams).all():
        return {"mep": None, "spf": None}
    lams, t = schedule.lams, schedule.t
    return {"mep": float(mep(lams, p)), "spf": float(spf(lams, t, d_min, p=p, gamma=gamma))}


def spread(t: np.ndarray, spacing: float) -> np.ndarray:
    """Falling nodes moved, by no more than they must, until neighbours are `spacing` apart; the ends stay.

    What float32 leaves of the lower level's constraint is rounding; this makes it exact in float64.
    """
    steps = spacing * np.arange(len(t))
    below = np.minimum.accumulate(t + steps) - steps  # at least the spacing below the node before
    below[-1] = t[-1]
    above = np.maximum.accumulate((below + steps)[::-1])[::-1] - steps  # and above the node after
    return np.concatenate([t[:1], above[1:-1], t[-1:]])


def _shifted(progress: Progress, before: int, total: int, done: int, _: int) -> None:
    progress(before + done, total)


def _schedule(lane: Lane, found: batch.Found | None) -> Schedule:
    """The result in float64: ends as psi has them, spacing exact, everything else derived from t."""
    fields: dict[str, Any] = {"p": float(lane.p), "d_min": lane.d_min, "versions": versions(), "method": _method(lane)}
    if found is None:  # a single node: nothing to place, pure noise is where every sampler starts
        return Schedule.from_t(lane.noise, [lane.box.t_max[1]], layout=lane.layout, **fields)
    rho, t_eps, t_max = (_shortest(x) for x in found.psi)
    t_eps = float(np.clip(t_eps, *lane.box.t_eps))
    t_max = float(np.clip(t_max, *lane.box.t_max))
    t_eps, t_max = _with_room(t_eps, t_max, lane)
    t = np.asarray(found.refined.t[: lane.intervals + 1], np.float64)
    t[0], t[-1] = t_max, t_eps
    least = max(lane.d_min if lane.spacing_as == "constraint" else 0.0, _DISTINCT)
    t = spread(t, min(least, (t_max - t_eps) / lane.intervals))
    ends = lane.noise.ksigma(np.array([t_eps, t_max]))
    psi = {"rho": rho, "t_eps": t_eps, "t_max": t_max, "ksigma_min": float(ends[0]), "ksigma_max": float(ends[1])}
    schedule = Schedule.from_t(
        lane.noise,
        t,
        layout=lane.layout,
        psi=psi,
        result=trust_region.RESULTS[int(found.refined.result)],
        iterations=int(found.refined.steps),
        stationarity=_finite(found.refined.stationarity),
        seed=int(lane.seed),
        **fields,
    )
    scores = score(schedule, p=lane.p, d_min=lane.d_min, gamma=lane.gamma)
    return Schedule(**{**vars(schedule), **scores})


def _with_room(t_eps: float, t_max: float, lane: Lane) -> tuple[float, float]:
    """The ends moved outward in the box by what rounding took of the room that the spacing needs."""
    if lane.spacing_as != "constraint":
        return t_eps, t_max
    needed = lane.intervals * lane.d_min
    t_max = min(max(t_max, t_eps + needed), lane.box.t_max[1])
    return max(min(t_eps, t_max - needed), lane.box.t_eps[0]), t_max


def _finite(x: jax.Array) -> float | None:
    return float(x) if np.isfinite(x) else None


def _method(lane: Lane) -> str:
    return "hso" if lane.objective == "mep" else "hso-dm-nonuni"


def _shortest(x: np.floating[Any]) -> float:
    """The float with the fewest digits that is this float32: 0.03, not 0.029999999329."""
    return float(str(x))
