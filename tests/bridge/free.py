"""Schedules with random coefficients, the models they are for, and the JAX loop that they must agree with."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import torch
from cases import FLOW, SD
from mixture import MEANS, VARIANCES, Model, denoise, random_t

from bridge import Level, NonstationaryScheduler, noise_schedule_of
from bridge.schedulers.scheduled import end_timestep
from hso_jax import Schedule, solvers
from hso_jax.noise import NoiseSchedule, alpha_sigma
from hso_jax.schedule import Origin

FREE = Origin(solver=solvers.NONSTATIONARY)


class Kind(NamedTuple):
    """A scheduler's class and config as a pipeline has it, and its network's prediction."""

    cls: str
    config: dict[str, Any]
    prediction: str
    sigma_data: float | None = None
    pure: bool = False

    @property
    def name(self) -> str:
        marks = ("pure",) * self.pure + ("inverted",) * ("invert_sigmas" in self.config)
        return "-".join([self.cls.removesuffix("Scheduler"), self.prediction, *marks])

    def build(self) -> Any:
        """A new scheduler."""
        return getattr(diffusers, self.cls)(**self.config)


def _vp(cls: str, prediction: str, **config: Any) -> Kind:
    pure = config.get("rescale_betas_zero_snr", False)
    return Kind(cls, {**SD, "prediction_type": prediction, **config}, prediction, pure=pure)


_ZERO_SNR = {"rescale_betas_zero_snr": True, "clip_sample": False}
_VIDEO = {"timestep_type": "continuous", "sigma_min": 0.002, "sigma_max": 700.0, "prediction_type": "v_prediction"}
KINDS = [
    _vp("DPMSolverMultistepScheduler", "epsilon"),
    _vp("DDIMScheduler", "v_prediction", clip_sample=False),
    _vp("EulerDiscreteScheduler", "sample"),
    _vp("DDIMScheduler", "v_prediction", **_ZERO_SNR),
    _vp("DDIMScheduler", "sample", **_ZERO_SNR),
    Kind("UniPCMultistepScheduler", FLOW, "flow_prediction", pure=True),
    Kind("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, "flow_prediction", pure=True),
    Kind("FlowMatchEulerDiscreteScheduler", {"invert_sigmas": True}, "flow_prediction", pure=True),
    Kind("EDMEulerScheduler", {}, "epsilon", 0.5),
    Kind("EDMDPMSolverMultistepScheduler", {"prediction_type": "v_prediction"}, "v_prediction", 0.5),
    Kind("EulerDiscreteScheduler", _VIDEO, "v_prediction", 1.0),
]


def free_schedule(
    noise: NoiseSchedule, nfe: int, end: str = "clean", history: int = 3, seed: int = 0, pure: bool = False
) -> Schedule:
    """Random nodes and coefficients; the first node at pure noise if asked."""
    rng = np.random.default_rng([seed, nfe])
    t = random_t(noise, nfe, end, rng)
    if pure:
        t[0] = 1.0
    c = np.tril(rng.normal(scale=0.4, size=(nfe, history - 1)), -1)
    layout = "node" if end == "clean" else "interval"
    return Schedule.from_t(noise, t, layout=layout, end=end, origin=FREE, coefficients=c)


def of(kind: Kind, nfe: int = 6, end: str = "clean", history: int = 3, seed: int = 0) -> NonstationaryScheduler:
    """The scheduler of a random schedule."""
    plain = kind.build()
    schedule = free_schedule(noise_schedule_of(plain), nfe, end, history, seed, kind.pure)
    return NonstationaryScheduler.from_schedule(plain, schedule)


def exact_levels(schedule: Schedule) -> list[Level]:
    """The nodes in the model's own scaling; pure noise is alpha 0."""
    alphas, sigmas = alpha_sigma(schedule.lams, schedule.kind)
    told = np.append(schedule.timesteps, [end_timestep(schedule)] * (len(schedule.t) - schedule.nfe))
    return [Level(*map(float, row)) for row in zip(told, alphas, sigmas, schedule.lams, strict=True)]


def sampled(kind: Kind, scheduler: NonstationaryScheduler, x: torch.Tensor) -> tuple[torch.Tensor, Model]:
    """Through the scheduler as a pipeline does it."""
    scheduler.set_timesteps(scheduler.schedule.nfe)
    model, sign = Model(kind.prediction), -1.0 if scheduler.config.get("invert_sigmas") else 1.0
    x = x * scheduler.init_noise_sigma
    for t, level in zip(scheduler.timesteps, exact_levels(scheduler.schedule), strict=False):
        output = sign * model(scheduler.scale_model_input(x, t), t, level, kind.sigma_data)
        x = scheduler.step(output, t, x).prev_sample
    return x, model


def _denoiser(x: jax.Array, lam: jax.Array) -> jax.Array:
    """`mixture.denoise` in VP's scaling."""
    means, variances = jnp.asarray(MEANS.numpy()), jnp.asarray(VARIANCES.numpy())
    alpha, sigma = alpha_sigma(lam, "vp")
    variance = alpha**2 * variances + sigma**2
    offset = x[:, None] - alpha * means
    weight = jax.nn.softmax(-(offset**2).sum(-1) / (2 * variance) - jnp.log(variance), axis=-1)
    return (weight[..., None] * (means + (alpha * variances / variance)[:, None] * offset)).sum(1)


_QUICK = {"xla_backend_optimization_level": 0}  # compiling takes longer than running


@functools.partial(jax.jit, compiler_options=_QUICK)
def _loop(lams: jax.Array, coefficients: jax.Array, end: jax.Array, x: jax.Array) -> jax.Array:
    return solvers.run(_denoiser, solvers.nonstationary(lams, coefficients, end=end), x)


@functools.partial(jax.jit, static_argnames="solver", compiler_options=_QUICK)
def _known(lams: jax.Array, end: jax.Array, nfe: jax.Array, x: jax.Array, solver: str) -> jax.Array:
    return solvers.sample(_denoiser, lams, x, solver=solver, end=end, nfe=nfe)


def in_jax(schedule: Schedule, noise: torch.Tensor, solver: str | None = None) -> np.ndarray:
    """The same through `hso_jax.solvers`, in the model's own scaling at its end; a known solver if one is named."""
    last = np.inf if schedule.end == "clean" else float(schedule.lams[-1])
    lams, nfe, start = schedule.lams.copy(), schedule.nfe, noise.numpy()
    if solver is not None:  # which begins near pure noise
        lams[0] = max(lams[0], solvers.PURE_NOISE.get(schedule.kind, -np.inf))
    if schedule.kind == "ve":
        start = start * np.hypot(1.0, schedule.sigmas[0])
    scale = np.hypot(*alpha_sigma(lams, schedule.kind))
    with jax.enable_x64(True):
        if solver is None:
            found = _loop(lams[:nfe], schedule.coefficients, np.float64(last), start / scale[0])
        else:  # padded to one shape
            lams = np.append(lams[:nfe], np.full(16 - nfe, np.nan))
            found = _known(lams, np.float64(last), nfe, start / scale[0], solver=solver)
    return np.asarray(found) if schedule.end == "clean" else np.asarray(found) * scale[-1]


def by_hand(schedule: Schedule, x: torch.Tensor, first: int = 0) -> torch.Tensor:
    """The form, read from its definition, from node `first` on; coefficients of what is missing are left out."""
    grid = exact_levels(schedule)
    past: list[torch.Tensor] = []
    for i in range(first, schedule.nfe):
        now = grid[i]
        past.insert(0, denoise(x, now.alpha, now.sigma))
        c = schedule.coefficients[i][: i - first]
        mean = (1 - c.sum()) * past[0] + sum(w * m for w, m in zip(c, past[1:], strict=False))
        if i + 1 == schedule.nfe and schedule.end == "clean":
            return mean
        then = grid[i + 1]
        x = then.sigma / now.sigma * x + (then.alpha - now.alpha * then.sigma / now.sigma) * mean
    return x
