"""What to use in the pipeline at hand: read what it has, choose or search a schedule, install it.

`recommend` reads the pipeline and answers from what is shipped; `optimize_pipeline` installs that, or what a method
finds, and says what it did. The rest tells what a pipeline has now: its levels, its guidance and its distillation.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import hso_jax
from bridge.at_hand import active_loras, current_sampling, distillation_of, own_levels, usual_guidance
from bridge.noise_of import adds_noise, check_pipeline, noise_schedule_of, solver_of
from bridge.schedulers.install import (
    as_taken,
    check_solver,
    check_use,
    inner_pipelines,
    install,
    own_solver,
    replace_scheduler,
    switched,
)
from bridge.schedulers.nonstationary import NonstationaryScheduler
from bridge.schedulers.scheduled import Installed, without_schedule
from bridge.tuning.choose import choose
from hso_jax.bilevel import Effort
from hso_jax.checks import brief, check_nfe, choice
from hso_jax.lane import Method
from hso_jax.noise import NoiseSchedule, flow
from hso_jax.schedule import Schedule, in_coefficients
from hso_jax.searches import METHODS, not_searched, search
from hso_jax.shipped.distilled import MOST_STEPS, of_class
from hso_jax.shipped.recommend import CurrentSampling, Recommendation
from hso_jax.shipped.zoo import NotInZooError, nearest_guidance, zoo
from hso_jax.solver_error_method import SolverError
from hso_jax.solvers import EVERY, canonical

_FALLBACK = "dpmpp-2m"  # for the search where the pipeline's own solver is none that is known
_EVERY = 10.0  # seconds between two lines of progress


def recommend(
    pipe: Any,
    nfe: int,
    *,
    guidance: float | None = None,
    solver: str | None = None,
    distilled: str | bool | None = None,
    image_seq_len: int = 4096,
    mu: float | None = None,
    noise: NoiseSchedule | None = None,
) -> Recommendation:
    """What to use in a pipeline, as `hso_jax.recommend`, beside what the pipeline has now; nothing is installed.

    Read from the pipeline: its noise schedule and prediction type, its shift, its solver, the rule that its scheduler
    spaces levels by, and its usual guidance (1 where guidance is an input of the network, as in FLUX).

    Args:
        pipe: a diffusers pipeline (anything with a `scheduler`).
        nfe: N in 1..20.
        guidance: w; by default the pipeline's usual one. 0 and 1 are without guidance.
        solver: to keep one: `bridge.solver_of(pipe.scheduler)` is the pipeline's; by default the best.
        distilled: as in `hso_jax.recommend`; by default what the scheduler, the configs, the names of the pipeline and
            its active LoRAs, or N and guidance say. A LoRA without a telling name is not guessed at: `reason` names it.
        image_seq_len: as in `noise_schedule_of`, for flow models with a dynamic shift.
        mu: likewise.
        noise: the pipeline's `noise_schedule_of`, where that has been read already.

    Raises:
        ValueError: as `noise_schedule_of` and `hso_jax.recommend` do, and for a pipeline that no schedule works in.
    """
    check_pipeline(pipe, "bridge.recommend")
    check_use(pipe)
    told = distillation_of(pipe) if distilled is None else None
    if noise is None:
        # SCMScheduler's angles are rectified flow's levels without a shift; no schedule is installed in it.
        scm = type(pipe.scheduler).__name__ == "SCMScheduler"
        noise = flow(1.0) if scm else noise_schedule_of(pipe, image_seq_len=image_seq_len, mu=mu)
    usual, why = usual_guidance(pipe)
    found = hso_jax.recommend(
        noise, nfe, guidance=guidance, solver=solver, distilled=told[0] if told else distilled, usual=usual
    )
    now = current_sampling(pipe, noise, nfe)
    now = now._replace(error=found.errors.get(now.solver, {}).get(now.nodes))
    installed = pipe.scheduler.schedule if isinstance(pipe.scheduler, Installed) else None
    if found.distilled is None and installed in (found.schedule, in_coefficients(found.schedule)):
        now = CurrentSampling(found.solver, found.method, found.error)
    found = dataclasses.replace(found, before=now, usual=why if guidance is None else "")
    if distilled is None and told is None:
        return dataclasses.replace(found, loras=tuple(active_loras(pipe)))
    if told is None:
        return found
    own = own_levels(pipe, noise, nfe, told[0]) if of_class(type(without_schedule(pipe.scheduler)).__name__) else None
    return dataclasses.replace(found, told_by=told[1], schedule=own or found.schedule)


def optimize_pipeline(
    pipe: Any,
    nfe: int,
    *,
    prompts: Sequence[Any] | None = None,
    budget: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    call: Mapping[str, Any] | None = None,
    method: Method | str | None = None,
    solver: str | None = None,
    guidance: float | None = None,
    distilled: str | bool | None = None,
    end: str | None = None,
    layout: str | None = None,
    seed: int | None = None,
    effort: Effort | None = None,
    progress: Callable[..., Any] | None = None,
    image_seq_len: int = 4096,
    mu: float | None = None,
) -> Schedule:
    """Install in a pipeline what its own samples are best with, what `bridge.recommend` says, or what a search finds.

    With `prompts` no prediction decides: `bridge.choose` runs every candidate on the pipeline itself, for about a
    thousand evaluations, and the best is installed. Without, the recommendation is installed at once.

    Four lines on stderr say what the pipeline had before, what it has now, how to call it and how to undo that. Where
    another solver than the pipeline's is recommended or asked for, `NonstationaryScheduler` takes its steps; a warning
    says so where the pipeline's own added noise at each step. The pipeline of a distilled model is left as it is. For
    a noise range or a number of steps of which nothing is shipped, a search on the error of the pipeline's solver takes
    its place; lines on stderr say how long it has run.

    Args:
        pipe: a diffusers pipeline (anything with a `scheduler`).
        nfe: number of model evaluations; call the pipeline with `num_inference_steps=nfe` afterwards.
        prompts: texts or classes to measure with, typical ones; [""] for none.
        budget: for measuring, as in `choose`, as the two below.
        checkpoint: file that the same call resumes from.
        call: further arguments of the pipeline's call, such as {"height": 512}.
        method: "measure" (the default with prompts); "recommend" (without); "zoo", the shipped schedule for the solver;
            "solver-error", a search for the solver and the guidance weight; "hso", a search as the paper does; or a
            method that carries its own options, such as `Hso(...)`.
        solver: for "measure" and "recommend" (by default the best), "zoo" and "solver-error" (the pipeline's own).
        guidance: w, for the same methods; by default the pipeline's, with "zoo" the nearest shipped.
        distilled: for "measure" and "recommend", as there.
        end: "clean" or "t_eps"; by default what the layout has. "t_eps" needs a search with the interval layout, which
            it chooses unless `layout` says otherwise.
        layout: for searches, as `seed`, `effort` and `progress`; see `hso_jax.search`. `choose` has the two middle ones
            of its own: seed and progress.
        seed: likewise.
        effort: likewise.
        progress: likewise.
        image_seq_len: as in `noise_schedule_of`, for flow models with a dynamic shift.
        mu: likewise.

    Returns:
        The schedule, to save or to look at.

    Raises:
        ValueError: as `noise_schedule_of`, `recommend`, `search` and `install` do, and for what is no pipeline, an
            option that the method does not have, or a rule's name as the method; the pipeline is then as it was.
    """
    check_pipeline(pipe, "bridge.optimize_pipeline")
    check_use(pipe)
    check_nfe(nfe)
    method = method or ("recommend" if prompts is None else "measure")
    for_solver = _given(solver=solver, guidance=guidance, distilled=distilled)
    for_search = _given(layout=layout, seed=seed, effort=effort, progress=progress)
    measuring = _given(prompts=prompts, budget=budget, checkpoint=checkpoint, call=call)
    _check_options(method, [*for_solver, *for_search, *measuring])
    if method in ("recommend", "measure") and end not in (None, "clean"):
        raise ValueError(f"end is {brief(end)}; what is recommended ends clean: use a search, method='hso'")
    noise = noise_schedule_of(pipe, image_seq_len=image_seq_len, mu=mu)
    if method == "measure" and (distilled is False or not (distilled or distillation_of(pipe))):
        for_solver.pop("distilled", None)
        return _measured(pipe, nfe, noise, **for_solver, **for_search, **measuring)
    if method in ("recommend", "measure"):
        try:
            return _recommended(pipe, nfe, noise, for_solver)
        except NotInZooError as error:
            print(f"{error.why}; a search on the solver's error takes its place", file=sys.stderr)
        method = "solver-error"
        for_solver["solver"] = solver or own_solver(pipe.scheduler) or _FALLBACK
        for_solver.pop("distilled", None)
    elif end == "t_eps":
        for_search.setdefault("layout", "interval")
    return _found(pipe, nfe, noise, method, end, for_solver, for_search)


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


_SEARCHING = ("layout", "seed", "effort", "progress")
_OPTIONS: Mapping[str, tuple[str, ...]] = {
    "measure": ("prompts", "budget", "checkpoint", "call", "solver", "guidance", "distilled", "seed", "progress"),
    "recommend": ("solver", "guidance", "distilled"),
    "zoo": ("solver", "guidance"),
    "solver-error": ("solver", "guidance", *_SEARCHING),
}


def _check_options(method: Method | str, given: list[str]) -> None:
    if isinstance(method, str):
        known = ("measure", "recommend", "zoo", *METHODS)
        if method not in known and (rule := not_searched(method)):
            rule = rule.replace("noise", "bridge.noise_schedule_of(pipe)")
            raise ValueError(
                f"method is {brief(method)}, a rule: use bridge.install(pipe, hso_jax.{rule}); "
                f"methods: {', '.join(known)}"
            )
        choice("method", method, known)
    allowed = _OPTIONS.get(method, _SEARCHING) if isinstance(method, str) else _SEARCHING
    if wrong := [name for name in given if name not in allowed]:
        way = "say which search, as in method='hso'" if method == "recommend" else "leave it out"
        raise ValueError(
            f"method {brief(method)} does not take {', '.join(wrong)} (it takes {', '.join(allowed)}); {way}"
        )


def _recommended(pipe: Any, nfe: int, noise: NoiseSchedule, options: dict[str, Any]) -> Schedule:
    """Install the recommendation; where the pipeline cannot change its solver, what is best for that one."""
    found = recommend(pipe, nfe, noise=noise, **options)
    if found.distilled is not None:
        print(f"{type(pipe).__name__}: left as it is. {found.reason}", file=sys.stderr)
        return found.schedule
    before = pipe.scheduler
    schedule = as_taken(before, found.schedule)
    if schedule.coefficients is None:
        install(pipe, schedule, noise=noise)
    else:
        try:
            replace_scheduler(pipe, NonstationaryScheduler.from_schedule(before, schedule, noise=noise))
        except ValueError:
            own = own_solver(before)
            if own is None or "solver" in options:
                raise
            return _recommended(pipe, nfe, noise, {**options, "solver": own})
        if adds_noise(without_schedule(before)):
            warnings.warn(switched(before, found.schedule), stacklevel=3)
    now = found.before
    assert now is not None
    gain = "" if found.expected is None else f". {found.expected.words('before')} prompts=[...] measures it"
    why = _nearest_to(found.asked, found.guidance, found.usual or "as asked")
    print(_said(pipe, before, now, found.schedule, why, gain), file=sys.stderr)
    if found.loras and nfe <= MOST_STEPS:
        print(
            f"note:   a LoRA is active ({', '.join(found.loras)}). If it distils the model to few steps, pass "
            "distilled='lightning' (or 'lcm', ...); if not, pass distilled=False",
            file=sys.stderr,
        )
    return found.schedule


def _measured(
    pipe: Any, nfe: int, noise: NoiseSchedule, *, prompts: Sequence[Any] = ("",), call: Mapping[str, Any] | None = None,
    **options: Any,
) -> Schedule:  # fmt: skip
    """Install what the pipeline's own samples are best with."""
    begin = time.monotonic()

    def tell(evaluations: int, budget: int, error: float | None) -> None:
        nonlocal begin
        if time.monotonic() - begin > _EVERY:
            begin = time.monotonic()
            print(f"measuring: {evaluations} of {budget} evaluations", file=sys.stderr, flush=True)

    found = choose(pipe, nfe, prompts=prompts, **{"progress": tell, **options, **(call or {})})
    before, now = pipe.scheduler, current_sampling(pipe, noise, nfe)
    with warnings.catch_warnings():
        if not adds_noise(without_schedule(before)):  # the lines below say what takes the scheduler's place
            warnings.simplefilter("ignore")
        install(pipe, found.schedule, noise=noise)
    print(_said(pipe, before, now, found.schedule, "measured"), file=sys.stderr)
    print(found, file=sys.stderr)
    return found.schedule


def _found(
    pipe: Any,
    nfe: int,
    noise: NoiseSchedule,
    method: Method | str,
    end: str | None,
    for_solver: dict[str, Any],
    for_search: dict[str, Any],
) -> Schedule:
    """What a method finds, installed."""
    why, solver = "as asked", getattr(method, "solver", None)
    if method in ("zoo", "solver-error"):
        asked = for_solver.get("solver") or own_solver(pipe.scheduler) or solver_of(pipe.scheduler)
        for_solver["solver"] = solver = canonical(asked, EVERY)
        if "guidance" not in for_solver:
            usual, why = usual_guidance(pipe)
            weight = nearest_guidance(noise, usual) if method == "zoo" else usual
            why = _nearest_to(usual, weight, why)
            for_solver["guidance"] = weight
    if isinstance(solver, str):
        check_solver(pipe.scheduler, solver, noise.kind)
    if method == "zoo":
        try:
            schedule = zoo(noise, nfe, **for_solver)
        except NotInZooError as error:
            raise ValueError(f"{error.why}; use method='solver-error', which searches") from error
    else:
        with _progress(f"searching nodes for N = {nfe}" + (f", solver {solver}" if solver else "")):
            how = SolverError(**for_solver) if method == "solver-error" else method
            schedule = search(noise, nfe, method=how, **for_search)
    if end is not None:
        schedule = schedule.with_end(end)
    before, now = pipe.scheduler, current_sampling(pipe, noise, nfe)
    install(pipe, schedule, noise=noise)
    print(_said(pipe, before, now, schedule, why), file=sys.stderr)
    return schedule


def _nearest_to(wanted: float, weight: float, why: str) -> str:
    return why if weight == wanted else f"the nearest shipped to {wanted:g}, {why}"


def _said(pipe: Any, before: Any, now: CurrentSampling, schedule: Schedule, why: str, gain: str = "") -> str:
    """What an installation is reported by: what was there, what is there, how to call it and how to undo it."""
    solver = now.solver if schedule.solver == "any" else schedule.solver
    found_for = "any guidance" if schedule.guidance is None else f"guidance {schedule.guidance:g} ({why})"
    inner = [name for name, part in inner_pipelines(pipe).items() if part.scheduler is pipe.scheduler]
    undo = [
        f"{name}.scheduler = bridge.without_schedule({name}.scheduler)"
        for name in ("pipe", *(f"pipe.{name}" for name in inner))
    ]
    return (
        f"before: {type(before).__name__}, levels: {now.nodes}\n"
        f"now:    {schedule.nfe} steps of {solver}, levels: {schedule.method}, for {found_for}{gain}\n"
        f"call:   pipe(..., num_inference_steps={schedule.nfe})\n"
        f"undo:   {'; '.join(undo)}"
    )


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
