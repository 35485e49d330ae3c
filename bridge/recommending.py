"""What to use in the pipeline at hand: read what it has, choose or search a schedule, install it.

`recommend` reads the pipeline and answers from what is shipped; `optimize_pipeline` installs that, or what a method
finds, and says what it did. The rest tells what a pipeline has now: its levels, its guidance and its distillation.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import inspect
import math
import re
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import diffusers
import numpy as np

import hso_jax
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
from hso_jax.baselines import baseline, inapplicable
from hso_jax.batch import Progress
from hso_jax.bilevel import Effort
from hso_jax.checks import brief, check_nfe, choice
from hso_jax.lane import Method
from hso_jax.noise import NoiseSchedule, flow
from hso_jax.profile import Profile
from hso_jax.schedule import Origin, Schedule
from hso_jax.searches import METHODS, not_searched, search
from hso_jax.shipped.distilled import MOST_STEPS, named_in, of_class, of_configs, t_of_s
from hso_jax.shipped.recommend import CurrentSampling, Recommendation
from hso_jax.shipped.zoo import RULES, NotInZooError, nearest_guidance, zoo
from hso_jax.solver_error_method import SolverError
from hso_jax.solvers import EVERY, canonical

_FALLBACK = "dpmpp-2m"  # for the search where the pipeline's own solver is none that is known
_EVERY = 10.0  # seconds between two lines of progress
_OWN = "its own"
_NETWORKS = ("unet", "transformer", "transformer_2")
_TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
# Pipelines that take `sigmas` and leave FlowMatch's own grid to it where there are none, and those that give it some
# of their own without taking any.
_EVEN = ("StableDiffusion3", "LuminaP", "Sana", "HiDream", "CogView4", "GlmImage", "JoyImage", "AnyFlow", "Kandinsky6")
_GIVES = ("Bria", "ErnieImage", "LTXPipeline", "LTXImageToVideo")
# Pipelines that write guidance as cond + scale (cond - uncond): their scale is w - 1.
_ADDING = ("ZImage", "Krea2", "Cosmos2", "CosmosTextToWorld", "CosmosVideoToWorld")


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
    method: Method | str = "recommend",
    solver: str | None = None,
    guidance: float | None = None,
    distilled: str | bool | None = None,
    profile: Profile | None = None,
    end: str | None = None,
    layout: str | None = None,
    seed: int | None = None,
    effort: Effort | None = None,
    progress: Progress | None = None,
    image_seq_len: int = 4096,
    mu: float | None = None,
) -> Schedule:
    """Install what `bridge.recommend` says in a pipeline, or what a method finds for its noise levels.

    Four lines on stderr say what the pipeline had before, what it has now, how to call it and how to undo that. Where
    another solver than the pipeline's is recommended or asked for, `NonstationaryScheduler` takes its steps; a warning
    says so where the pipeline's own added noise at each step. The pipeline of a distilled model is left as it is. For
    a noise range or a number of steps of which nothing is shipped, a search on the error of the pipeline's solver takes
    its place; lines on stderr say how long it has run.

    Args:
        pipe: a diffusers pipeline (anything with a `scheduler`).
        nfe: number of model evaluations; call the pipeline with `num_inference_steps=nfe` afterwards.
        method: "recommend"; "zoo", the shipped schedule for the solver; "solver-error", a search for the solver and
            the guidance weight; "hso", a search as the paper does; or a method that carries its own options, such as
            `Hso(...)`. `bridge.tune` looks at the pipeline's own samples.
        solver: for "recommend" (by default the best), "zoo" and "solver-error" (by default the pipeline's own).
        guidance: w, for the same methods; by default the pipeline's, with "zoo" the nearest shipped.
        distilled: for "recommend", as there.
        profile: for "solver-error", as `bridge.profile` measures it.
        end: "clean" or "t_eps"; by default what the layout has. "t_eps" needs a search with the interval layout, which
            it chooses unless `layout` says otherwise.
        layout: for searches, as `seed`, `effort` and `progress`; see `hso_jax.search`.
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
    for_solver = _given(solver=solver, guidance=guidance, distilled=distilled, profile=profile)
    for_search = _given(layout=layout, seed=seed, effort=effort, progress=progress)
    _check_options(method, [*for_solver, *for_search])
    if method == "recommend" and end not in (None, "clean"):
        raise ValueError(f"end is {brief(end)}; what is recommended ends clean: use a search, method='hso'")
    noise = noise_schedule_of(pipe, image_seq_len=image_seq_len, mu=mu)
    if method == "recommend":
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
    "recommend": ("solver", "guidance", "distilled"),
    "zoo": ("solver", "guidance"),
    "solver-error": ("solver", "guidance", "profile", *_SEARCHING),
}


def _check_options(method: Method | str, given: list[str]) -> None:
    if isinstance(method, str):
        known = ("recommend", "zoo", *METHODS)
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
        raise ValueError(f"{', '.join(wrong)}: not of method {brief(method)} (its own: {', '.join(allowed)}); {way}")


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
    order = ""  # predicted errors order choices; they do not measure them
    if now.error is not None and found.error is not None:
        order = f"; predicted error: {'lower' if found.error < now.error else 'not lower'} than before"
    why = _nearest_to(found.asked, found.guidance, found.usual or "as asked")
    print(_said(pipe, before, now, found.schedule, why, order), file=sys.stderr)
    if found.loras and nfe <= MOST_STEPS:
        print(
            f"note:   a LoRA is active ({', '.join(found.loras)}). If it distils the model to few steps, pass "
            "distilled='lightning' (or 'lcm', ...); if not, pass distilled=False",
            file=sys.stderr,
        )
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
    return why if weight == wanted else f"shipped; the nearest to {wanted:g}, {why}"


def _said(pipe: Any, before: Any, now: CurrentSampling, schedule: Schedule, why: str, order: str = "") -> str:
    """What an installation is reported by: what was there, what is there, how to call it and how to undo it."""
    solver = now.solver if schedule.solver == "any" else schedule.solver
    found_for = "any guidance" if schedule.guidance is None else f"guidance {schedule.guidance:g} ({why})"
    inner = [name for name, part in inner_pipelines(pipe).items() if part.scheduler is pipe.scheduler]
    undo = [
        f"{name}.scheduler = bridge.without_schedule({name}.scheduler)"
        for name in ("pipe", *(f"pipe.{name}" for name in inner))
    ]
    return (
        f"{type(pipe).__name__}\n"
        f"before: {type(before).__name__}, levels: {now.nodes}\n"
        f"now:    {schedule.nfe} steps of {solver}, levels: {schedule.method}, for {found_for}{order}\n"
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


def current_sampling(pipe: Any, noise: NoiseSchedule, nfe: int) -> CurrentSampling:
    """The solver and the nodes that a pipeline samples with now."""
    scheduler = pipe.scheduler
    if isinstance(scheduler, Installed):
        installed = scheduler.schedule
        nodes = installed.method if installed.nfe == nfe else f"{installed.method} for N = {installed.nfe}"
        return CurrentSampling(installed.solver if installed.solver != "any" else _solver(scheduler), nodes, None)
    return CurrentSampling(_solver(scheduler), rule_of(pipe, noise, nfe), None)


def _solver(scheduler: Any) -> str:
    try:
        return solver_of(scheduler)
    except ValueError:
        return type(scheduler).__name__


def rule_of(pipe: Any, noise: NoiseSchedule, nfe: int) -> str:
    """The rule whose levels a pipeline's scheduler takes for N steps; "its own" where it is none of `RULES`."""
    try:
        theirs = _timesteps(pipe, noise, nfe)
    except Exception:  # some classes take fewer steps than asked for, or insist on arguments of their own
        return _OWN
    found: list[tuple[float, str]] = []
    for rule in RULES:
        if inapplicable(rule, noise) is not None:
            continue
        try:
            ours = np.asarray(baseline(rule, noise, nfe).timesteps)
        except ValueError:  # too little room for the rule
            continue
        if ours.shape == theirs.shape:
            found.append((float(np.abs(ours - theirs).max()), rule))
    off, nearest = min(found, default=(math.inf, _OWN))
    # What rounding to training levels makes of a timestep; FlowMatch shifts the end of its own grid twice.
    near = (0.01 if noise.kind == "flow" else 0.0015) * noise.num_train_timesteps
    if noise.kind == "ve" or noise.num_train_timesteps == 1:
        near = 0.01
    return nearest if off <= near else _OWN


def own_levels(pipe: Any, noise: NoiseSchedule, nfe: int, kind: str) -> Schedule | None:
    """The levels that a distilled pipeline's own scheduler takes; None where it takes none for so many steps."""
    try:
        told = _timesteps(pipe, noise, nfe)
        if len(told) != nfe:  # SCMScheduler's angles and their end
            return None
        levels = noise.num_train_timesteps
        t = t_of_s(noise, told / levels) if noise.kind == "flow" else (told + 1.0) / levels
        return Schedule.from_t(noise, np.clip(t, noise.t_min, noise.t_max), origin=Origin(method=f"own-{kind}"))
    except Exception:  # as in `rule_of`
        return None


def _timesteps(pipe: Any, noise: NoiseSchedule, nfe: int) -> np.ndarray:
    """[N] what the network would be told, by a copy of the scheduler."""
    scheduler = copy.deepcopy(pipe.scheduler)
    known = inspect.signature(scheduler.set_timesteps).parameters
    call: dict[str, Any] = {"num_inference_steps": nfe}
    if noise.kind == "flow" and "sigmas" in known and "FlowMatch" in type(scheduler).__name__:
        if scheduler.config.get("use_dynamic_shifting"):
            call["mu"] = -float(noise.lam(0.5))
            if scheduler.config.get("time_shift_type") == "linear":
                call["mu"] = math.exp(call["mu"])
        name = type(pipe).__name__
        takes = "sigmas" in inspect.signature(getattr(diffusers, name, type(pipe)).__call__).parameters
        if name.startswith(_GIVES) or (takes and not name.startswith(_EVEN)):  # 1, 1 - 1/N, ..., 1/N, to be shifted
            call["sigmas"] = np.linspace(1.0, 1.0 / nfe, nfe)
    scheduler.set_timesteps(**call)
    return np.asarray(scheduler.timesteps.cpu(), np.float64)


def usual_guidance(pipe: Any) -> tuple[float, str]:
    """The pipeline's default weight w (1 where it guides by no second evaluation), and how that is known.

    `guidance_scale` is the weight, except where the network takes it as an input (FLUX, HunyuanVideo, LCM): those
    evaluate once, and guide as others do only by `true_cfg_scale`.
    """
    call = inspect.signature(type(pipe).__call__).parameters if callable(pipe) else {}
    for name in ("true_cfg_scale", "guidance_scale"):
        default = call[name].default if name in call else None
        if isinstance(default, bool) or not isinstance(default, (int, float)):
            continue
        if name == "guidance_scale" and _takes_guidance(pipe):
            return 1.0, "its guidance_scale is an input of the network, not classifier-free guidance"
        weight = float(default) + type(pipe).__name__.startswith(_ADDING)
        return max(weight, 1.0), f"the pipeline's default {name}"
    return 1.0, "the pipeline names no weight"


def guidance_call(pipe: Any, weight: float, call: Mapping[str, Any]) -> dict[str, float]:
    """The argument by which a pipeline runs at a weight w.

    Args:
        pipe: a pipeline.
        weight: w; 1 is without guidance.
        call: its further arguments, which must not have that one.

    Raises:
        ValueError: if it has, or the pipeline guides by no second evaluation.
    """
    known = inspect.signature(type(pipe).__call__).parameters if callable(pipe) else {}
    for name in ("true_cfg_scale", "guidance_scale"):
        if name not in known or (name == "guidance_scale" and _takes_guidance(pipe)):
            continue
        if name in call:
            raise ValueError(f"{name} is {call[name]!r} and guidance {weight!r}; leave one out")
        return {name: weight - type(pipe).__name__.startswith(_ADDING)}
    if weight != 1.0:
        raise ValueError(f"guidance is {weight!r}; {type(pipe).__name__} has no classifier-free guidance: leave it out")
    return {}


def _takes_guidance(pipe: Any) -> bool:
    for name in ("transformer", "unet"):
        config = getattr(getattr(pipe, name, None), "config", None) or {}
        if config.get("guidance_embeds") or config.get("time_cond_proj_dim") is not None:
            return True
        if "guidance_embeds" in config:  # FLUX.1-schnell: the network was distilled, and takes no weight at all
            return not hasattr(type(pipe), "do_classifier_free_guidance")
    return False


def distillation_of(pipe: Any) -> tuple[str, str] | None:
    """The key of the distillation that a pipeline's scheduler, configs or names tell, and how it is told."""
    scheduler = without_schedule(pipe.scheduler)
    if (kind := of_class(type(scheduler).__name__)) is not None:
        return kind, f"its scheduler is {type(scheduler).__name__}"
    index = {"_class_name": type(pipe).__name__, **_config(pipe)}
    networks = [_config(network) for network in _networks(pipe)]
    for config in networks or [{}]:
        if (kind := of_configs(index, config)) is not None:
            lcm = config.get("time_cond_proj_dim") is not None
            return kind, "its network takes the guidance weight as an input" if lcm else "its config says so"
    flux1 = re.match(r"Flux(?!\d)", type(pipe).__name__)  # FLUX.2's base models have no embedded guidance either
    if flux1 and any(config.get("guidance_embeds") is False for config in networks):
        return "schnell", "its network takes no guidance"
    names = [*map(_name, (pipe, *_networks(pipe))), index["_class_name"]]
    found = named_in(_lora_names(pipe) if index.get("is_distilled") is False else [*names, *_lora_names(pipe)])
    return None if found is None else (found[0], f"it names {found[1]}")


def active_loras(pipe: Any) -> list[str]:
    """The names of the LoRAs that change what a pipeline's networks predict: active ones, and those fused into them.

    diffusers keeps no file's name: an adapter is called "default_0" unless its loader was told otherwise. One that is
    disabled, has weight 0 or is in a text encoder alone does not count.
    """
    names = [name for network in _networks(pipe) for name in _active(network)]
    parts = [getattr(pipe, name, None) for name in (*_NETWORKS, *_TEXT_ENCODERS)]
    loaded = {name for part in parts for name in getattr(part, "peft_config", None) or ()}
    fused = getattr(pipe, "fused_loras", None) or getattr(pipe, "_merged_adapters", None) or ()
    return list(dict.fromkeys([*names, *(name for name in sorted(fused) if name not in loaded)]))


def _networks(pipe: Any) -> list[Any]:
    return [network for name in _NETWORKS if (network := getattr(pipe, name, None)) is not None]


def _config(part: Any) -> Mapping[str, Any]:
    return getattr(part, "config", None) or {}


def _name(part: Any) -> str:
    """What a pipeline or a network is called."""
    return str(getattr(part, "name_or_path", None) or _config(part).get("_name_or_path") or "")


def _lora_names(pipe: Any) -> list[str]:
    """What the active LoRAs are called, and the models that they were made for."""
    configs = {n: c for network in _networks(pipe) for n, c in (getattr(network, "peft_config", None) or {}).items()}
    names = active_loras(pipe)
    return [*names, *(str(getattr(configs.get(name), "base_model_name_or_path", None) or "") for name in names)]


def _active(network: Any) -> list[str]:
    """The adapters of a network that are not disabled, with a weight that is not 0."""
    loaded = list(getattr(network, "peft_config", None) or {})
    modules = network.modules() if callable(getattr(network, "modules", None)) else ()
    layers = [m for m in modules if hasattr(m, "disable_adapters") and hasattr(m, "merged_adapters")]  # peft's
    if layers:
        return [name for name in loaded if any(_acts(layer, name) for layer in layers)]
    active = getattr(network, "active_adapters", None)
    if not callable(active):
        return loaded
    try:
        names = active()
    except ValueError:  # nothing is loaded any more
        return []
    names = [names] if isinstance(names, str) else list(names or ())
    return [name for name in loaded if name in names]


def _acts(layer: Any, name: str) -> bool:
    if layer.disable_adapters or name not in (*layer.active_adapters, *layer.merged_adapters):
        return False
    return bool(getattr(layer, "scaling", {}).get(name, 0.0) != 0.0)
