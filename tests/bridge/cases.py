"""Every supported scheduler, how it is set up, and the independent solver it must agree with."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from types import MappingProxyType
from typing import Any, NamedTuple

import diffusers
import numpy as np
import reference_multistep as multistep
import reference_solvers as solvers
import torch
from mixture import Model, denoise

from bridge import Level, sample, with_schedule
from bridge.sampling import levels
from hso_jax.noise import NoiseSchedule, preset
from hso_jax.schedule import Schedule

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
ALL = ("epsilon", "v_prediction", "sample")
NO_SAMPLE = ("epsilon", "v_prediction")


class Case(NamedTuple):
    """A scheduler, its config, its reference, its predictions; `k` marks the scaling x/alpha."""

    scheduler: str
    config: dict[str, Any]
    reference: Callable[..., torch.Tensor]
    predictions: tuple[str, ...] = ALL
    model: str = "sd15"
    k: bool = False
    ends: tuple[str, ...] = ("clean", "t_eps")
    step: Mapping[str, Any] = MappingProxyType({})
    draws: torch.dtype | None = None

    @property
    def name(self) -> str:
        words = [str(v) for k, v in self.config.items() if k not in SD and k not in FLOW and k != "clip_sample"]
        flow = ["flow"] if self.model == "sd3-medium" else []
        return "-".join(
            [self.scheduler.removesuffix("Scheduler"), *words, *flow, *(f"{k}{v}" for k, v in self.step.items())]
        )

    def build(self, prediction: str) -> Any:
        """A new scheduler."""
        config = dict(self.config)
        if self.model == "sd15":
            config = {**SD, **config}
        if "prediction_type" not in config and not self.scheduler.startswith("FlowMatch"):
            config["prediction_type"] = prediction
        return getattr(diffusers, self.scheduler)(**config)


def unipc(x0: Any, grid: Any, x: Any, draw: Any, schedule: Schedule, **options: Any) -> torch.Tensor:
    return sample(x0, schedule, x, "unipc", **options)


def two_m(x0: Any, grid: Any, x: Any, draw: Any, schedule: Schedule) -> torch.Tensor:
    return sample(x0, schedule, x, "dpmpp-2m")


def plain_ddim(x0: Any, grid: Any, x: Any, draw: Any, schedule: Schedule) -> torch.Tensor:
    return sample(x0, schedule, x, "ddim")


def edm_euler(x0: Any, grid: Any, x: Any, draw: Any) -> torch.Tensor:
    return solvers.ddim(x0, grid, x, draw)


P = functools.partial
_NO_CLIP = {"clip_sample": False}
_DPM = "DPMSolverMultistepScheduler"
_SINGLE = "DPMSolverSinglestepScheduler"


def _dpm_cases() -> list[Case]:
    cases = [Case(_DPM, {}, two_m)]
    for algorithm in ("dpmsolver++", "sde-dpmsolver++", "dpmsolver", "sde-dpmsolver"):
        for order in (1, 2, 3):
            for kind in ("midpoint", "heun") if order == 2 else ("midpoint",):
                if algorithm == "sde-dpmsolver" and order == 3:
                    continue
                config = {
                    "algorithm_type": algorithm,
                    "solver_order": order,
                    "solver_type": kind,
                    "lower_order_final": False,
                }
                if not algorithm.endswith("++"):
                    config["final_sigmas_type"] = "sigma_min"
                ends = ("t_eps",) if algorithm == "sde-dpmsolver" else ("clean", "t_eps")
                reference = P(multistep.dpm, algorithm=algorithm, order=order, kind=kind)
                cases.append(Case(_DPM, config, reference, ends=ends, draws=torch.float32))
    for algorithm in ("dpmsolver++", "sde-dpmsolver++", "dpmsolver"):
        for order, kind in ((1, "midpoint"), (2, "midpoint"), (2, "heun"), (3, "midpoint"), (3, "heun")):
            config = {"algorithm_type": algorithm, "solver_order": order, "solver_type": kind}
            if algorithm == "dpmsolver":
                config["final_sigmas_type"] = "sigma_min"
            cases.append(
                Case(_SINGLE, config, P(multistep.dpm_singlestep, algorithm=algorithm, order=order, kind=kind))
            )
    flow = {"model": "sd3-medium", "predictions": ("flow_prediction",)}
    cases.append(Case(_DPM, FLOW, two_m, **flow))
    cases.append(Case(_SINGLE, FLOW, multistep.dpm_singlestep, **flow))
    return cases


def _unipc_cases() -> list[Case]:
    cases = []
    for order in (1, 2, 3):
        for variant in ("bh1", "bh2"):
            config = {"solver_order": order, "solver_type": variant}
            reference = P(unipc, order=order, variant=variant)
            cases.append(Case("UniPCMultistepScheduler", config, reference))
            cases.append(
                Case("UniPCMultistepScheduler", {**config, **FLOW}, reference, ("flow_prediction",), model="sd3-medium")
            )
    return cases


def _adams_cases() -> list[Case]:
    cases = [
        Case("DEISMultistepScheduler", {"solver_order": n, "lower_order_final": False}, P(multistep.deis, order=n))
        for n in (1, 2, 3)
    ]
    cases.append(Case("DEISMultistepScheduler", FLOW, multistep.deis, ("flow_prediction",), model="sd3-medium"))
    for predictor, corrector in ((1, 1), (2, 2), (3, 3), (3, 4)):
        config = {"predictor_order": predictor, "corrector_order": corrector}
        reference = P(multistep.sa_solver, predictor=predictor, corrector=corrector)
        cases.append(Case("SASolverScheduler", config, reference))
    noise = {"algorithm_type": "noise_prediction"}
    cases.append(Case("SASolverScheduler", noise, P(multistep.sa_solver, data_prediction=False), ends=("t_eps",)))
    cases.append(Case("SASolverScheduler", FLOW, multistep.sa_solver, ("flow_prediction",), model="sd3-medium"))
    return cases


CASES: list[Case] = [
    Case("DDIMScheduler", _NO_CLIP, plain_ddim),
    Case("DDIMScheduler", _NO_CLIP, P(solvers.ddim, eta=0.7), step={"eta": 0.7}),
    Case("DDIMScheduler", {**_NO_CLIP, "set_alpha_to_one": False}, solvers.ddim),
    Case("DDIMParallelScheduler", _NO_CLIP, P(solvers.ddim, eta=1.0), step={"eta": 1.0}),
    Case("CogVideoXDDIMScheduler", {"snr_shift_scale": 1.0}, solvers.ddim),
    Case("DDPMScheduler", _NO_CLIP, solvers.ddpm),
    Case("DDPMScheduler", {**_NO_CLIP, "variance_type": "fixed_large"}, P(solvers.ddpm, variance="fixed_large")),
    Case("PNDMScheduler", {"skip_prk_steps": True}, multistep.plms, ("epsilon",)),
    Case("PNDMScheduler", {"skip_prk_steps": True}, P(multistep.plms, mix_v=True), ("v_prediction",)),
    Case("EulerDiscreteScheduler", {}, solvers.euler, k=True),
    Case("EulerDiscreteScheduler", {}, P(solvers.euler, churn=1.0), ("epsilon",), k=True, step={"s_churn": 1.0}),
    Case("EulerAncestralDiscreteScheduler", {}, solvers.euler_ancestral, NO_SAMPLE, k=True),
    Case("HeunDiscreteScheduler", {}, solvers.heun, k=True),
    Case("KDPM2DiscreteScheduler", {}, solvers.dpm2, NO_SAMPLE, k=True),
    Case("KDPM2AncestralDiscreteScheduler", {}, solvers.dpm2_ancestral, NO_SAMPLE, k=True),
    Case("LMSDiscreteScheduler", {}, multistep.lms, k=True),
    *_dpm_cases(),
    *_unipc_cases(),
    *_adams_cases(),
    Case(
        "FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, solvers.flow_euler, ("flow_prediction",), model="sd3-medium"
    ),
    Case(
        "FlowMatchEulerDiscreteScheduler",
        {"shift": 3.0, "stochastic_sampling": True},
        P(solvers.flow_euler, stochastic=True),
        ("flow_prediction",),
        model="sd3-medium",
    ),
    Case("FlowMatchHeunDiscreteScheduler", {"shift": 3.0}, solvers.flow_heun, ("flow_prediction",), model="sd3-medium"),
    Case("EDMEulerScheduler", {}, edm_euler, NO_SAMPLE, model="edm-cifar10"),
    Case("EDMDPMSolverMultistepScheduler", {"lower_order_final": False}, multistep.dpm, NO_SAMPLE, model="edm-cifar10"),
    Case(
        "EDMDPMSolverMultistepScheduler",
        {"lower_order_final": False, "solver_order": 3},
        P(multistep.dpm, order=3),
        NO_SAMPLE,
        model="edm-cifar10",
    ),
    Case(
        "EDMDPMSolverMultistepScheduler",
        {"lower_order_final": False, "algorithm_type": "sde-dpmsolver++"},
        P(multistep.dpm, algorithm="sde-dpmsolver++"),
        NO_SAMPLE,
        model="edm-cifar10",
    ),
]


@functools.cache
def noise_of(model: str) -> NoiseSchedule:
    return preset(model)


def evaluations(scheduler: Any, schedule: Schedule) -> list[Level]:
    """The levels, in order, at which the network must be called: the nodes, and what a second evaluation adds."""
    grid = levels(schedule)
    layout = scheduler._row.layout
    if layout == "plms":
        return [grid[0], *grid[1:2], *grid[1:-1]] if schedule.nfe > 1 else grid[:1]
    if layout not in ("pairs", "ancestral", "midpoints"):
        return grid[:-1]
    noise = noise_of("sd15" if schedule.kind == "vp" else "sd3-medium")
    result = []
    for now, then in pairwise(grid):
        result.append(now)
        if then.sigma > 0:
            lam = (now.lam + then.lam) / 2 if layout == "midpoints" else then.lam
            t = noise.t_of_lam(np.float64(lam))
            result.append(
                solvers.k_level(math.exp(-lam))._replace(timestep=float(noise.timestep(t)))
                if schedule.kind == "vp"
                else then._replace(timestep=1000.0 * then.sigma)
            )
    return result


def run(case: Case, scheduler: Any, prediction: str, x: torch.Tensor, seed: int = 1) -> tuple[torch.Tensor, Model]:
    """Sample as a pipeline does: set_timesteps, scale the start; scale_model_input, model and step at each timestep."""
    schedule = scheduler.schedule
    generator = torch.Generator().manual_seed(seed)
    scheduler.set_timesteps(schedule.nfe)
    expected = evaluations(scheduler, schedule)
    assert len(scheduler.timesteps) == len(expected)
    model = Model(prediction)
    sigma_data = 0.5 if case.model == "edm-cifar10" else None
    x = x * float(getattr(scheduler, "init_noise_sigma", 1.0))
    parent = getattr(diffusers, case.scheduler)
    options = {**case.step, **({"generator": generator} if "generator" in parent.step.__code__.co_varnames else {})}
    for t, level in zip(scheduler.timesteps, expected, strict=True):
        given = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(model(given, t, level, sigma_data), t, x, **options).prev_sample
    return x, model


def reference(case: Case, schedule: Schedule, x: torch.Tensor, seed: int = 1) -> tuple[torch.Tensor, int]:
    """The independent solver's sample, and how often it evaluated."""
    generator = torch.Generator().manual_seed(seed)
    grid, calls = levels(schedule), []

    def x0(y: torch.Tensor, level: Level) -> torch.Tensor:
        calls.append(level)
        return denoise(y, level.alpha, level.sigma)

    def draw() -> torch.Tensor:
        return torch.randn(x.shape, generator=generator, dtype=case.draws or x.dtype)

    named = case.reference.func if isinstance(case.reference, functools.partial) else case.reference
    if named in (unipc, two_m, plain_ddim):
        return case.reference(x0, grid, x, draw, schedule), len(calls)
    if case.k:
        x = x * math.sqrt(1.0 + solvers.k_sigma(grid[0]) ** 2)
    elif schedule.kind == "ve":
        x = x * math.sqrt(1.0 + grid[0].sigma ** 2)
    return case.reference(x0, grid, x, draw), len(calls)


def installed(case: Case, prediction: str, schedule: Schedule) -> Any:
    return with_schedule(_built(CASES.index(case), prediction), schedule)


@functools.cache
def _built(index: int, prediction: str) -> Any:
    return CASES[index].build(prediction)  # with_schedule leaves it as it is
