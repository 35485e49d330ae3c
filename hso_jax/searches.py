"""The public search: from noise schedules to `Schedule`s, for every step budget and method at once."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import os
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TypedDict, Unpack, overload

import jax
import jax.numpy as jnp

from hso_jax.baselines import rule_named
from hso_jax.batch import Progress
from hso_jax.bilevel import Effort
from hso_jax.bounds import Terms, expansion
from hso_jax.checkpoint import open_for_lanes
from hso_jax.checks import brief, choice, whole
from hso_jax.compiling import platform, quiet, under_jax_defaults
from hso_jax.hso import Hso
from hso_jax.lane import Lane, Method
from hso_jax.lower import trust_region
from hso_jax.noise import NoiseSchedule, named, strip_static
from hso_jax.schedule import Schedule
from hso_jax.solver_error_method import SolverError

METHODS: Mapping[str, Method] = {
    "hso": Hso(),
    "hso-dm-nonuni": Hso(objective="dm-nonuni"),
    "solver-error": SolverError(),
}
"""What a method's name stands for."""


def lanes(
    noises: Iterable[NoiseSchedule | str] | NoiseSchedule | str,
    nfes: Iterable[int],
    *,
    method: Method | str = "hso",
    layouts: Iterable[str] = ("node",),
    seeds: Iterable[int] = (0,),
) -> list[Lane]:
    """Every combination, in the order noises, layouts, nfes, seeds, checked.

    Args:
        noises: noise schedules and names of presets, or a single one of them. As in `search`, a preset's name also
            says its p, where the method leaves it open.
        nfes: numbers of evaluations.
        method: as in `search`.
        layouts: "node", "interval".
        seeds: of the upper level.

    Raises:
        ValueError: for a lane that cannot be searched; it is named by its index.
    """
    noises = [noises] if isinstance(noises, (str, NoiseSchedule)) else noises
    for what, values in {"noises": noises, "nfes": nfes, "layouts": layouts, "seeds": seeds}.items():
        if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
            raise ValueError(f"{what} is {brief(values)}; need a list")
    models = [_model(noise, method_of(method)) for noise in noises]
    combinations = itertools.product(models, list(layouts), list(nfes), list(seeds))
    return checked([Lane(noise, nfe, layout, seed, how) for (noise, how), layout, nfe, seed in combinations])


def _model(noise: NoiseSchedule | str, how: Method) -> tuple[NoiseSchedule, Method]:
    """The noise schedule that a preset's name stands for, and the method with the preset's p, if it leaves it open."""
    if not isinstance(noise, str):
        return noise, how
    found, facts = named(noise)
    return found, dataclasses.replace(how, p=facts.p) if isinstance(how, Hso) and how.p is None else how


def search_many(
    many: Sequence[Lane],
    *,
    effort: Effort | None = None,
    progress: Progress | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
) -> list[Schedule]:
    """Search every lane, of any methods; one compiled program for all lanes that can share one.

    A lane's schedule depends on the lane and the seed, not on the lanes beside it: to the bit where they are padded
    to the same number of nodes and run in chunks of the same size, to float32 rounding (about 1e-5 in t) otherwise.
    A lane that fails has a schedule too, whose `result` says so.

    Args:
        many: checked or unchecked lanes.
        effort: how hard to search; each method's own by default.
        progress: called with (done, total) after each chunk: lanes.
        checkpoint: file that each chunk's results are written to, and that the same call resumes from; on the same
            devices to the same bytes. With several hosts process 0 writes it.

    Raises:
        ValueError: for a lane that cannot be searched, named by its index, before any work; for a checkpoint of
            other lanes, effort or versions, or in use, which is left as it is.
        OSError: if the checkpoint cannot be read or written.
    """
    every = checked(many)
    _check_effort(effort)
    platform()
    groups: dict[Hashable, list[int]] = {}
    for i, lane in enumerate(every):
        groups.setdefault(lane.method.group(lane), []).append(i)
    schedules: dict[int, Schedule] = {}
    with contextlib.ExitStack() as stack:
        stack.enter_context(quiet())
        file = None if checkpoint is None else stack.enter_context(open_for_lanes(checkpoint, every, effort))
        for number, index in enumerate(groups.values()):
            report = progress
            if progress is not None and len(groups) > 1:
                report = functools.partial(_shifted, progress, len(schedules), len(every), len(index))
            records = None if file is None else file.records(str(number))
            found = every[index[0]].method.search([every[i] for i in index], effort, report, records)
            schedules.update(zip(index, found, strict=True))
    return [schedules[i] for i in range(len(every))]


def checked(many: Iterable[Lane]) -> list[Lane]:
    """The lanes as they are searched, methods' names replaced by methods.

    Raises:
        ValueError: naming the value that is wrong, and the lane's index if there are several.
    """
    rows = list(many)
    found = []
    for i, lane in enumerate(rows):
        try:
            method = method_of(lane.method)
            found.append(method.check(lane._replace(method=method)))
        except ValueError as error:
            raise ValueError(f"lanes[{i}]: {error}" if len(rows) > 1 else str(error)) from error
    return found


def method_of(method: Method | str) -> Method:
    """The method that a name stands for; a method is returned as it is. Raises ValueError for an unknown name."""
    if isinstance(method, str):
        if instead := not_searched(method):
            more = "" if instead.startswith(method) else ", or recommend(noise, nfe) or zoo(noise, nfe)"
            raise ValueError(f"method is {brief(method)}, which searches nothing: use {instead}{more}")
        return METHODS[choice("method", method, METHODS)]
    if not (hasattr(method, "check") and hasattr(method, "group") and hasattr(method, "search")):
        raise ValueError(
            f"method is {brief(method)}; use one of {', '.join(METHODS)}, or Hso(...), SolverError(...), ..."
        )
    return method


def not_searched(method: str) -> str | None:
    """The call that a rule's name, "recommend" or "zoo" stands for; None for what is none of them."""
    if method in ("recommend", "zoo"):
        return f"{method}(noise, nfe)"
    rule = rule_named(method)
    return None if rule is None else f"baseline({rule!r}, noise, nfe)"


class _Options(TypedDict, total=False):
    method: Method | str
    layout: str
    seed: int
    effort: Effort | None
    progress: Progress | None


@overload
def search(noise: NoiseSchedule | str, nfe: int, **options: Unpack[_Options]) -> Schedule: ...
@overload
def search(noise: NoiseSchedule | str, nfe: Iterable[int], **options: Unpack[_Options]) -> list[Schedule]: ...
def search(
    noise: NoiseSchedule | str,
    nfe: int | Iterable[int],
    *,
    method: Method | str = "hso",
    layout: str = "node",
    seed: int = 0,
    effort: Effort | None = None,
    progress: Progress | None = None,
) -> Schedule | list[Schedule]:
    """Find the schedule of a model for one N, or the schedules for many, in one compiled call.

    Args:
        noise: the model's noise schedule (`preset("sd21-base")`, `from_config(...)`, `discrete(betas=...)`, ...), or
            a preset's name.
        nfe: the number of model evaluations N, or several.
        method: `Hso(...)`, the paper's, on a bound; `SolverError(...)`, by the error of the solver itself on problems
            with an exact solution; or a key of `METHODS`.
        layout: "node" (N nodes and a last step to sigma 0) or "interval" (N + 1 nodes, stops at the last).
        seed: of the upper level.
        effort: how hard to search; the method's own by default.
        progress: called with (lanes done, lanes in all).

    Returns:
        One `Schedule` for an int, a list in the order of `nfe` otherwise.

    Raises:
        ValueError: for any bad value, naming it, before any work.
    """
    noise, how = _model(noise, method_of(method))
    many = list(nfe) if isinstance(nfe, Iterable) else [nfe]
    if not many:
        raise ValueError("nfe is empty; give at least one number of evaluations")
    found = search_many([Lane(noise, n, layout, seed, how) for n in many], effort=effort, progress=progress)
    return found if isinstance(nfe, Iterable) else found[0]


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

    Differentiable, any number of times, in the noise schedule's leaves, the ends, p and the spacing, by the implicit
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
    platform()
    return _refine(strip_static(noise), start, t_max, t_eps, p, spacing, max_steps=max_steps)


@under_jax_defaults
@functools.partial(jax.jit, static_argnames="max_steps")
def _refine(
    noise: NoiseSchedule,
    start: jax.Array,
    t_max: jax.Array | float,
    t_eps: jax.Array | float,
    p: jax.Array | float,
    spacing: jax.Array | float,
    max_steps: int,
) -> trust_region.Solution:
    start = jnp.asarray(start)
    intervals = start.shape[0] - 1
    t_max, t_eps, spacing = (jnp.asarray(x, start.dtype) for x in (t_max, t_eps, spacing))
    least = jnp.minimum(spacing, (t_max - t_eps) / intervals)
    feasible = trust_region.Feasible(t_max, t_eps, least, jnp.asarray(intervals))
    objective = expansion("mep", Terms(p, jnp.asarray(intervals)))  # type: ignore[arg-type]
    return trust_region.solve(objective, noise, start, feasible, max_steps=max_steps)


def _check_effort(effort: object) -> None:
    if effort is not None and not isinstance(effort, Effort):
        raise ValueError(f"effort is {brief(effort)}; need an Effort(...)")
    for field, value in effort._asdict().items() if effort is not None else ():
        if value is not None:
            whole(f"effort.{field}", value, {"population": 4, "lanes": 1}.get(field, 0), 10**6)


def _shifted(progress: Progress, before: int, total: int, lanes: int, done: int, of: int) -> None:
    progress(before + done * lanes // of, total)
