"""The solvers against the installed diffusers schedulers and the bridge's plain samplers, in float64."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
import pytest

from hso_jax import solvers
from hso_jax.noise import alpha_sigma, discrete, preset
from hso_jax.problems import Problem, denoise, generic
from hso_jax.schedule import Schedule

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

pytestmark = pytest.mark.filterwarnings("ignore:__array_?.*:DeprecationWarning")

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
UNIPC = "UniPCMultistepScheduler"
DPM = "DPMSolverMultistepScheduler"
TABLE = {
    "ddim": ("DDIMScheduler", {"clip_sample": False}, "FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    "dpmpp-2m": (DPM, {}, DPM, FLOW),
    "dpmpp-3m": (DPM, {"solver_order": 3}, DPM, {"solver_order": 3, **FLOW}),
    "heun": ("HeunDiscreteScheduler", {}, None, {}),
    "heun-flow": (None, {}, "FlowMatchHeunDiscreteScheduler", {"shift": 3.0}),
}
for _order in (1, 2, 3):
    for _name, _type in ((f"unipc-{_order}", "bh2"), (f"unipc-{_order}-bh1", "bh1")):
        _config = {"solver_order": _order, "solver_type": _type}
        TABLE[_name] = (UNIPC, _config, UNIPC, {**_config, **FLOW})

BATCH, DIMENSION, SLOTS = 3, 4, 24


with jax.enable_x64(True):
    PROBLEM = generic(jax.random.key(3), dimension=DIMENSION, components=5, members=2)
    ARRAYS = [np.asarray(x) for x in PROBLEM]


def noise() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((BATCH, DIMENSION))


@functools.cache
def random_schedule(model: str, nfe: int, end: str) -> Schedule:
    rng = np.random.default_rng(nfe)
    count = nfe + (end == "t_eps")
    gaps = rng.uniform(0.1, 1.0, count + 1)
    t = (0.99 - 0.97 * np.cumsum(gaps) / gaps.sum())[:count]
    return Schedule.from_t(preset(model), t, layout="node" if end == "clean" else "interval", end=end)


@functools.cache
def compiled(solver: str) -> Any:
    def run(problem: Problem, lams: Any, x: Any, end: Any, nfe: Any) -> jax.Array:
        return solvers.sample(lambda y, lam: denoise(problem, y, lam, 2.0), lams, x, solver=solver, end=end, nfe=nfe)

    return jax.jit(run, compiler_options={"xla_backend_optimization_level": 0})


def ours(solver: str, schedule: Schedule, x: np.ndarray) -> np.ndarray:
    """Padded with NaN to one shape, so that one compilation serves all N and both ends."""
    lams = np.append(schedule.lams[: schedule.nfe], np.full(SLOTS - schedule.nfe, np.nan))
    end = np.inf if schedule.end == "clean" else schedule.lams[-1]
    return np.asarray(compiled(solver)(PROBLEM, lams, x, end, schedule.nfe))


def predicted(x: torch.Tensor, lam: float) -> torch.Tensor:
    """The guided prediction again, in NumPy."""
    log_weights, class_log_weights, means, variances = ARRAYS
    alpha, sigma = alpha_sigma(np.float64(lam), "vp")
    total = alpha**2 * variances + sigma**2
    logits = -0.5 * ((x.numpy()[:, None] - alpha * means) ** 2 / total).sum(-1)
    whole, part = (np.exp(logits - logits.max() + w) for w in (log_weights, class_log_weights))
    whole, part = whole / whole.sum(1, keepdims=True), part / part.sum(1, keepdims=True)
    mean = (2.0 * part - whole) @ means
    return torch.from_numpy(mean + alpha * variances / total * (x.numpy() - alpha * mean))


@functools.cache
def built(name: str, config: tuple[tuple[str, Any], ...], kind: str) -> Any:
    return getattr(diffusers, name)(**dict(config), **(SD if kind == "vp" else {}))


def theirs(name: str, config: dict[str, Any], schedule: Schedule, start: np.ndarray) -> tuple[np.ndarray, int]:
    """diffusers as a pipeline runs it, from and to VP-equivalent scaling; also how often the model was called."""
    from bridge import with_schedule

    scheduler = with_schedule(built(name, tuple(config.items()), schedule.kind), schedule)
    scheduler.set_timesteps(schedule.nfe)
    scaled = bool(scheduler._row.k_scaled)
    sigmas = np.append(schedule.sigmas[: schedule.nfe], 0.0 if schedule.end == "clean" else schedule.sigmas[-1])
    told = sigmas[:-1]
    if "Heun" in name:  # a step's second call is at its end, unless that is clean
        told = np.stack([sigmas[:-1], sigmas[1:]], axis=1).ravel()
        told = told[told > 0]
    x = torch.tensor(start) * model_scale(schedule.kind, scaled, sigmas[0])
    assert len(told) == len(scheduler.timesteps)
    for t, ksigma in zip(scheduler.timesteps, told, strict=True):
        lam = -np.log(ksigma)
        alpha, sigma = (float(v) for v in alpha_sigma(np.float64(lam), schedule.kind))
        data = predicted(x / model_scale(schedule.kind, scaled, ksigma), lam)
        if schedule.kind == "flow":
            output = (x - data) / sigma
        else:
            output = (x / ((1.0 + ksigma**2) ** 0.5 if scaled else 1.0) - alpha * data) / sigma
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(x, t)
        x = scheduler.step(output, t, x).prev_sample
    return (x / model_scale(schedule.kind, scaled, sigmas[-1])).numpy(), len(told)


def model_scale(kind: str, k_scaled: bool, ksigma: float) -> float:
    """x in the sampler's scaling over x in VP-equivalent scaling."""
    root = (1.0 + ksigma**2) ** 0.5
    return root / (1.0 + ksigma) if kind == "flow" else root if k_scaled else 1.0


@pytest.mark.parametrize("end", ["clean", "t_eps"])
@pytest.mark.parametrize("model", ["sd15", "sd3-medium"])
@pytest.mark.parametrize("solver", list(solvers.SOLVERS))
def test_agrees_with_diffusers(solver: str, model: str, end: str) -> None:
    name, config = TABLE[solver][:2] if model == "sd15" else TABLE[solver][2:]
    if name is None:
        pytest.skip("diffusers has it for the other kind of model only")
    with jax.enable_x64(True):
        for nfe in (1, 2, 3, 4, 5, 6, 9, 20):
            schedule = random_schedule(model, nfe, end)
            wanted, calls = theirs(name, config, schedule, noise())
            got = ours(solver, schedule, noise())
            assert np.abs(got - wanted).max() < 1e-10 * np.abs(wanted).max(), nfe
            assert solvers.evaluations(solver, nfe, end=end) == calls


@pytest.mark.parametrize("solver", ["ddim", "dpmpp-2m", "unipc-2", "unipc-3", "unipc-3-bh1"])
@pytest.mark.parametrize("model", ["sd15", "sd3-medium", "zero-snr"])
def test_agrees_with_the_bridge_from_pure_noise_too(solver: str, model: str) -> None:
    from bridge import Level, sample

    if model == "zero-snr":
        table = np.cumprod(1.0 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
        model_noise = discrete(alphas_cumprod=table, rescale_betas_zero_snr=True)
    else:
        model_noise = preset(model)
    with jax.enable_x64(True):
        schedule = Schedule.from_t(model_noise, [1.0, 0.8, 0.5, 0.3, 0.1])
        first = schedule.lams[0] if np.isfinite(schedule.lams[0]) else solvers.PURE_NOISE[schedule.kind]

        def x0(x: torch.Tensor, level: Level) -> torch.Tensor:
            return predicted(x / model_scale(schedule.kind, False, np.exp(-level.lam)), level.lam)

        wanted = sample(x0, schedule, torch.tensor(noise()), solver).numpy()
        x = noise() / model_scale(schedule.kind, False, np.exp(-first))
        lams = np.append(first, schedule.lams[1:])
        got = np.asarray(compiled(solver)(PROBLEM, lams, x, np.inf, 5))
    assert np.abs(got - wanted).max() < 1e-10 * np.abs(wanted).max()
