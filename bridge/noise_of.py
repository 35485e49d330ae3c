"""What `hso_jax` calls a diffusers scheduler or pipeline: its noise schedule, and its solver."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from hso_jax import noise as noises
from hso_jax.noise import NoiseSchedule
from hso_jax.noise.from_config import CLASSES, REFUSED, ignored_keys
from hso_jax.noise.shifts import has_rule
from hso_jax.solvers import NONSTATIONARY, SOLVERS
from hso_jax.solvers import adds_noise as named_noisy

FIRST_ORDER = ("DDIMScheduler", "EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler", "EDMEulerScheduler")
HEUN = {"HeunDiscreteScheduler": "heun", "FlowMatchHeunDiscreteScheduler": "heun-flow"}


def noise_schedule_of(
    scheduler_or_pipeline: Any, *, image_seq_len: int = 4096, mu: float | None = None, name: str | None = None
) -> NoiseSchedule:
    """The noise schedule of a loaded model, whatever its fine-tune made of it: betas, zero terminal SNR, shift.

    `hso_jax.from_config` reads the config, keys that the class ignores included. Where the scheduler's own
    `alphas_cumprod` is not what its class makes of the config (someone set it, or the config names a rule that only
    diffusers knows), that table decides.

    Args:
        scheduler_or_pipeline: a diffusers scheduler, or anything with a `scheduler`.
        image_seq_len: tokens of the image, for a dynamic shift: 4096 is 1024 x 1024 in FLUX. mu follows from it by the
            rule of the pipeline's class, where a pipeline is given.
        mu: what the pipeline passes to a flow model's scheduler: the logarithm of the shift, or the shift itself where
            `time_shift_type` is "linear"; overrides the config's.
        name: of the result; defaults to the class's name.

    Raises:
        ValueError: for a class that has no known noise schedule, or values out of range.
    """
    scheduler = getattr(scheduler_or_pipeline, "scheduler", scheduler_or_pipeline)
    if not hasattr(scheduler, "config"):
        raise ValueError(f"need a diffusers scheduler or pipeline, got {type(scheduler_or_pipeline).__name__}")
    config = {key: value for key, value in scheduler.config.items() if not key.startswith(("_", "hso_"))}
    replaced = (scheduler.config.get("hso_replaced") or {}).get("_class_name")
    config["_class_name"] = class_name = replaced or _first_known(scheduler, {**CLASSES, **REFUSED}.__contains__)
    if "_shift" in vars(scheduler):  # `set_shift` changes it, and not the config
        config["shift"] = scheduler._shift
    table = getattr(scheduler, "alphas_cumprod", None)
    key = b"" if table is None else np.asarray(table.detach().cpu(), np.float64).tobytes()
    entries = tuple(sorted((k, _hashable(v)) for k, v in config.items()))
    # What rules for mu look at in a pipeline.
    distilled = bool((getattr(scheduler_or_pipeline, "config", None) or {}).get("is_distilled"))
    pipeline = (("_class_name", _first_known(scheduler_or_pipeline, has_rule)), ("is_distilled", distilled))
    return _cached(entries, key, pipeline, image_seq_len, mu, name or class_name)


def _first_known(thing: Any, known: Callable[[str], bool]) -> str:
    """The class of a thing; for one that someone derived from a class that is known, that class."""
    names = [cls.__name__ for cls in type(thing).__mro__]
    return next((name for name in names if known(name)), names[0])


def solver_of(scheduler: Any) -> str:
    """The key of `hso_jax.solvers.SOLVERS` whose steps this scheduler takes, or "nonstationary".

    Raises:
        ValueError: for one that none of them is (stochastic ones, DEIS, LMS, PNDM, singlestep ones); the message
            names it and what to pass instead.
    """
    names = {cls.__name__ for cls in type(scheduler).__mro__}
    if "NonstationaryScheduler" in names:
        return NONSTATIONARY
    config = scheduler.config
    if names & set(FIRST_ORDER) and not adds_noise(scheduler):
        return "ddim"
    if found := names & set(HEUN):
        return HEUN[found.pop()]
    name = ""
    if "UniPCMultistepScheduler" in names:
        name = f"unipc-{config.solver_order}" + ("" if config.solver_type == "bh2" else f"-{config.solver_type}")
    elif "DPMSolverMultistepScheduler" in names and config.algorithm_type == "dpmsolver++":
        order = config.solver_order
        name = "ddim" if order == 1 else f"dpmpp-{order}m" if config.solver_type == "midpoint" else ""
    if name not in SOLVERS:
        kind = type(scheduler).__name__
        raise ValueError(
            f"{kind} is none of the solvers whose error can be searched on; pass solver= {', '.join(SOLVERS)}"
        )
    return name


def adds_noise(scheduler: Any) -> bool:
    """Whether a scheduler adds noise at each step: ancestral and SDE samplers, by their class or their config."""
    if any(named_noisy(cls.__name__) for cls in type(scheduler).__mro__):
        return True
    own = inspect.signature(type(scheduler).__init__).parameters  # another class's entries may be in the config too
    config = {name: value for name, value in scheduler.config.items() if name in own}
    return str(config.get("algorithm_type")).startswith("sde-") or bool(config.get("stochastic_sampling"))


def check_pipeline(pipe: Any, call: str) -> None:
    """Raises ValueError, saying what to pass to a call, for what is no pipeline with a scheduler."""
    kind = type(pipe).__name__
    if hasattr(pipe, "set_timesteps"):
        raise ValueError(f"{kind} is a scheduler: {call} takes the pipeline, as in {call}(pipe, 6)")
    if hasattr(getattr(pipe, "scheduler", None), "config"):
        return
    parts = vars(pipe) if hasattr(pipe, "__dict__") else {}
    if others := [name for name, part in parts.items() if hasattr(part, "set_timesteps") and hasattr(part, "config")]:
        name = others[0]
        raise ValueError(
            f"{kind} has no `scheduler`, but {', '.join(others)}: install in one by hand, pipe.{name} = "
            f"bridge.with_schedule(pipe.{name}, schedule)"
        )
    raise ValueError(f"{kind} has no scheduler: {call} takes a diffusers pipeline that has one")


def _hashable(value: Any) -> Any:
    if isinstance(value, (list, tuple, np.ndarray)):
        return tuple(map(_hashable, value))
    return value if isinstance(value, (str, int, float, bool, type(None))) else None


@functools.lru_cache(maxsize=64)
def _cached(
    entries: tuple[Any, ...], table: bytes, pipeline: tuple[Any, ...], image_seq_len: int, mu: float | None, name: str
) -> NoiseSchedule:
    config, own = dict(entries), np.frombuffer(table)
    if own.size and config["_class_name"] not in REFUSED:  # the table decides where the config has no known meaning
        known = CLASSES.get(config["_class_name"])
        if known is None:
            config["_class_name"] = "DDPMScheduler"
        elif config.get("beta_schedule", known.rules[0]) not in known.rules:
            config["beta_schedule"] = known.rules[0]
    found = noises.from_config(config, image_seq_len=image_seq_len, mu=mu, pipeline=dict(pipeline), name=name)
    if not own.size or found.kind != "vp" or _agrees(found, own):
        return found
    seen = {key: value for key, value in config.items() if key not in ignored_keys(config)}
    if seen.keys() != config.keys() and _agrees(noises.from_config(seen), own):
        return found
    ends_at_noise = own[-1] <= 2.0**-24  # what diffusers writes in place of 0
    found = noises.discrete(np.append(own[:-1], 0.0) if ends_at_noise else own, name=name)
    prediction = config.get("prediction_type")
    return found.with_prediction(prediction) if prediction in noises.PREDICTIONS else found


def _agrees(found: NoiseSchedule, own: np.ndarray[Any, Any]) -> bool:
    if len(own) != found.num_train_timesteps:
        return False
    kept = own[:-1] if found.zero_terminal_snr else own
    if not np.all((kept > 0) & (kept < 1)):
        return False
    off = np.asarray(found.lam(np.arange(1, len(kept) + 1) / len(own))) - 0.5 * np.log(kept / (1.0 - kept))
    return bool(np.abs(off).max() < 1e-3)  # float32 products of a thousand factors differ by about this
