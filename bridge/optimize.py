"""A schedule for the pipeline at hand, found and installed in one call."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any

from bridge.guidance import shipped, usual_guidance
from bridge.noise_of import adds_noise, check_pipeline, noise_schedule_of, solver_of
from bridge.recommending import recommend
from bridge.schedulers.installing import as_taken, check_solver, install, own_solver, replace_scheduler, switched
from bridge.schedulers.nonstationary import NonstationaryScheduler
from bridge.schedulers.pipelines import check_use
from bridge.schedulers.plain import without_schedule
from hso_jax.checks import brief, check_nfe, choice
from hso_jax.noise import NoiseSchedule
from hso_jax.schedule import Schedule
from hso_jax.searches import METHODS, not_searched, search
from hso_jax.shipped.recommend import Recommendation
from hso_jax.shipped.zoo import NotInZooError, zoo
from hso_jax.solver_error_method import SolverError
from hso_jax.solvers import EVERY, canonical

RECOMMEND = "recommend"
_FALLBACK = "dpmpp-2m"  # for the search where the pipeline's own solver is none that is known
_EVERY = 10.0  # seconds between two lines of progress

_OF_A_SOLVER = {"solver-error": ("solver", "guidance", "profile"), "zoo": ("solver", "guidance")}
"""Options that are the method's own."""

_OF_RECOMMEND = ("solver", "guidance", "distilled")


def optimize_pipeline(
    pipe: Any, nfe: int, *, end: str | None = None, image_seq_len: int = 4096, mu: float | None = None, **options: Any
) -> Schedule:
    """Install what `bridge.recommend` says in a pipeline, or what a search finds for its own noise levels.

    A line on stderr says what was installed: for which N, solver and guidance, its predicted error and what the
    pipeline had before. Where another solver than the pipeline's is recommended or asked for,
    `NonstationaryScheduler` takes its steps; `bridge.without_schedule(pipe.scheduler)` goes back, and a warning says
    where the pipeline's added noise at each step. The pipeline of a distilled model is left as it is. For a
    noise range or a number of steps of which nothing is shipped, a search on the error of the pipeline's solver takes
    its place; lines on stderr say how long it has run.

    `method="hso"` searches as the paper does; `method="solver-error"` for the pipeline's solver and guidance weight;
    `method="zoo"` takes the shipped schedule for the solver. `bridge.tune` looks at the pipeline's own samples.

    Args:
        pipe: a diffusers pipeline (anything with a `scheduler`).
        nfe: number of model evaluations; call the pipeline with `num_inference_steps=nfe` afterwards.
        end: "clean" or "t_eps"; None leaves what the search's layout has. "t_eps" needs the interval layout,
            which it chooses unless `layout` says otherwise, and a search.
        image_seq_len: as in `noise_schedule_of`, for flow models with a dynamic shift.
        mu: likewise.
        **options: `method`, "recommend" by default; with it `solver`, `guidance` and `distilled` of `recommend`; with
            others those of `hso_jax.search` (`layout`, `seed`, ...); with the methods "solver-error" and "zoo"
            also `solver`, the scheduler's own unless given, and `guidance`, the pipeline's (with "zoo" the nearest
            shipped); and with "solver-error" `profile`, as `bridge.profile` measures it.

    Returns:
        The schedule, to save or to look at.

    Raises:
        ValueError: as `noise_schedule_of`, `recommend`, `search` and `install` do, and for what is no pipeline, an
            option that the method does not have, or a rule's name as the method; the pipeline is then as it was.
    """
    check_pipeline(pipe, "bridge.optimize_pipeline")
    check_use(pipe)
    check_nfe(nfe)
    method = options.get("method", RECOMMEND)
    if isinstance(method, str):
        _check_method(method)
    noise = noise_schedule_of(pipe, image_seq_len=image_seq_len, mu=mu)
    if method == RECOMMEND:
        options.pop("method", None)
        _check_options(end, options)
        return _recommended(pipe, nfe, noise, options)
    if end == "t_eps":
        options.setdefault("layout", "interval")
    return _found(pipe, nfe, noise, end, options)


def _check_method(method: str) -> None:
    known = (RECOMMEND, "zoo", *METHODS)
    if method not in known and (rule := not_searched(method)):
        rule = rule.replace("noise", "bridge.noise_schedule_of(pipe)")
        raise ValueError(
            f"method is {brief(method)}, a rule: use bridge.install(pipe, hso_jax.{rule}); methods: {', '.join(known)}"
        )
    choice("method", method, known)


def _recommended(pipe: Any, nfe: int, noise: NoiseSchedule, options: dict[str, Any]) -> Schedule:
    """Install the recommendation, and say so."""
    try:
        found = recommend(pipe, nfe, noise=noise, **options)
    except NotInZooError as error:
        print(f"{error.why}; a search on the solver's error takes its place", file=sys.stderr)
        kept = {name: value for name, value in options.items() if name != "distilled"}
        kept["solver"] = kept.get("solver") or own_solver(pipe.scheduler) or _FALLBACK
        return _found(pipe, nfe, noise, None, {"method": "solver-error", **kept})
    if found.distilled is None:
        found = _installed(pipe, nfe, noise, found, options)
    done = "left as it is" if found.distilled else f"installed for N = {nfe}, call it with num_inference_steps={nfe}"
    print(f"{type(pipe).__name__}: {done}. {found.reason}", file=sys.stderr)
    return found.schedule


def _installed(
    pipe: Any, nfe: int, noise: NoiseSchedule, found: Recommendation, options: dict[str, Any]
) -> Recommendation:
    """Install it; where the pipeline cannot change its solver, what is best for that one."""
    schedule = as_taken(pipe.scheduler, found.schedule)
    if schedule.coefficients is None:
        install(pipe, schedule, noise=noise)
        return found
    before = pipe.scheduler
    try:
        replace_scheduler(pipe, NonstationaryScheduler.from_schedule(before, schedule, noise=noise))
    except ValueError:
        own = own_solver(pipe.scheduler)
        if own is None or options.get("solver") is not None:
            raise
        options = {**options, "solver": own}
        return _installed(pipe, nfe, noise, recommend(pipe, nfe, noise=noise, **options), options)
    if adds_noise(without_schedule(before)):
        warnings.warn(switched(before, found.schedule), stacklevel=4)
    return found


def _check_options(end: str | None, options: dict[str, Any]) -> None:
    if end not in (None, "clean"):
        raise ValueError(f"end is {brief(end)}; what is recommended ends clean: use a search, method='hso'")
    if unknown := [name for name in options if name not in _OF_RECOMMEND]:
        raise ValueError(
            f"{', '.join(unknown)}: not of method 'recommend' (its own: {', '.join(_OF_RECOMMEND)}); say which search, "
            "as in method='hso'"
        )


def _found(pipe: Any, nfe: int, noise: NoiseSchedule, end: str | None, options: dict[str, Any]) -> Schedule:
    """What a method finds, installed."""
    why = "as asked"
    method = options.get("method")
    own = _OF_A_SOLVER.get(method, ()) if isinstance(method, str) else ()
    kind = {name: options.pop(name) for name in own if name in options}
    if own:
        asked = kind.get("solver") or own_solver(pipe.scheduler) or solver_of(pipe.scheduler)
        kind["solver"] = canonical(asked, EVERY)
        if kind.get("guidance") is None:
            weight = usual_guidance(pipe)
            kind["guidance"], why = shipped(noise, *weight) if method == "zoo" else weight
    solver = kind.get("solver") or getattr(method, "solver", None)
    if isinstance(solver, str):
        check_solver(pipe.scheduler, solver, noise.kind)
    if method == "zoo":
        try:
            schedule = zoo(noise, nfe, **kind)
        except NotInZooError as error:
            raise ValueError(f"{error.why}; use method='solver-error', which searches") from error
    else:
        with _progress(f"searching nodes for N = {nfe}" + (f", solver {solver}" if solver else "")):
            schedule = search(noise, nfe, **{**options, "method": SolverError(**kind)} if kind else options)
    if end is not None:
        schedule = schedule.with_end(end)
    install(pipe, schedule, noise=noise)
    print(_said(pipe, schedule, why), file=sys.stderr)
    return schedule


@contextlib.contextmanager
def _progress(words: str) -> Iterator[None]:
    """Says on stderr what is done, and again and again for how long by now."""
    begin, done = time.monotonic(), threading.Event()

    def tell() -> None:
        while not done.wait(_EVERY):
            print(f"{words}: {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)

    print(f"{words}; most of the time is compilation, once a process", file=sys.stderr, flush=True)
    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        done.set()
        teller.join()


def _said(pipe: Any, schedule: Schedule, why: str) -> str:
    guidance = "any guidance" if schedule.guidance is None else f"guidance {schedule.guidance:g} ({why})"
    solver = "any solver" if schedule.solver == "any" else f"solver {schedule.solver}"
    if isinstance(pipe.scheduler, NonstationaryScheduler):
        solver += f" (in place of {type(without_schedule(pipe.scheduler)).__name__})"
    return (
        f"{type(pipe).__name__}: installed a schedule of method {schedule.method!r} for N = {schedule.nfe}, {solver}, "
        f"{guidance}; call it with num_inference_steps={schedule.nfe}"
    )
