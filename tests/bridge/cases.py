"""Every supported scheduler, how it is set up, and the independent solver it must agree with."""

from __future__ import annotations

import functools
import inspect
import itertools
import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from types import MappingProxyType
from typing import Any, NamedTuple

import diffusers
import numpy as np
import oracles.one_step as solvers
import pytest
import torch
from diffusers.utils import is_torchsde_available
from mixture import Model, denoise, random_schedule
from oracles import multistep, plain

from bridge import Level, with_schedule
from bridge.sampling import levels
from hso_jax.noise import PRESETS, NoiseSchedule, from_config, preset
from hso_jax.schedule import Schedule

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
ALL = ("epsilon", "v_prediction", "sample")
NO_SAMPLE = ("epsilon", "v_prediction")
# Models without a preset: the class whose config is theirs.
OWN_NOISE = {"stable-audio": "CosineDPMSolverMultistepScheduler", "wuerstchen": "DDPMWuerstchenScheduler"}
SIGMA_DATA = {"edm-cifar10": 0.5, "stable-audio": 1.0}


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
        fixed = self.scheduler.startswith("FlowMatch") or self.model == "wuerstchen"
        if "prediction_type" not in config and not fixed:
            config["prediction_type"] = prediction
        return getattr(diffusers, self.scheduler)(**config)


P = functools.partial
_NO_CLIP = {"clip_sample": False}
_DPM, _SINGLE, _UNIPC = "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "UniPCMultistepScheduler"
_SA, _DEIS, _LCM = "SASolverScheduler", "DEISMultistepScheduler", "FlowMatchLCMScheduler"
_FLOW_EULER, _EDM_DPM = "FlowMatchEulerDiscreteScheduler", "EDMDPMSolverMultistepScheduler"


def flowing(scheduler: str, config: dict[str, Any], reference: Callable[..., torch.Tensor]) -> Case:
    return Case(scheduler, config, reference, ("flow_prediction",), model="sd3-medium")


def edm(scheduler: str, config: dict[str, Any], reference: Callable[..., torch.Tensor]) -> Case:
    return Case(scheduler, config, reference, NO_SAMPLE, model="edm-cifar10")


def _dpm_cases() -> list[Case]:
    cases = [Case(_DPM, {}, plain.dpmpp_2m), flowing(_DPM, FLOW, plain.dpmpp_2m)]
    cases.append(flowing(_SINGLE, FLOW, multistep.dpm_singlestep))
    kinds = [(1, "midpoint"), (2, "midpoint"), (2, "heun"), (3, "midpoint"), (3, "heun")]
    algorithms = ("dpmsolver++", "sde-dpmsolver++", "dpmsolver", "sde-dpmsolver")
    for algorithm, (order, kind) in itertools.product(algorithms, kinds):
        config = {"algorithm_type": algorithm, "solver_order": order, "solver_type": kind}
        if not algorithm.endswith("++"):
            config["final_sigmas_type"] = "sigma_min"
        options = {"algorithm": algorithm, "order": order, "kind": kind}
        if algorithm != "sde-dpmsolver":
            cases.append(Case(_SINGLE, config, P(multistep.dpm_singlestep, **options)))
        if (order, kind) != (3, "heun") and not (algorithm == "sde-dpmsolver" and order == 3):
            ends = ("t_eps",) if algorithm == "sde-dpmsolver" else ("clean", "t_eps")
            config = {**config, "lower_order_final": False}
            cases.append(Case(_DPM, config, P(multistep.dpm, **options), ends=ends, draws=torch.float32))
    return cases


def _unipc_cases() -> list[Case]:
    cases = []
    for order, variant in itertools.product((1, 2, 3), ("bh1", "bh2")):
        config = {"solver_order": order, "solver_type": variant}
        reference = P(plain.unipc, order=order, variant=variant)
        cases += [Case(_UNIPC, config, reference), flowing(_UNIPC, {**config, **FLOW}, reference)]
    return cases


def _sa(predictor: int, corrector: int) -> Case:
    config = {"predictor_order": predictor, "corrector_order": corrector}
    return Case(_SA, config, P(multistep.sa_solver, predictor=predictor, corrector=corrector))


def _tree_cases() -> list[Case]:
    """Their noise comes from a Brownian path, for which diffusers needs torchsde."""
    if not is_torchsde_available():
        return []
    cosine = [
        Case("CosineDPMSolverMultistepScheduler", {"lower_order_final": False, **config},
             P(multistep.stable_audio, **options), NO_SAMPLE, model="stable-audio")
        for config, options in (
            ({}, {}), ({"solver_order": 1}, {"order": 1}), ({"solver_type": "heun"}, {"kind": "heun"})
        )
    ]  # fmt: skip
    return [Case("DPMSolverSDEScheduler", {"noise_sampler_seed": 1}, solvers.dpm_sde, NO_SAMPLE, k=True), *cosine]


_LATE = {"lower_order_final": False}
_FIXED = {**_NO_CLIP, "variance_type": "fixed_large"}
CASES: list[Case] = [
    Case("DDIMScheduler", _NO_CLIP, solvers.ddim),
    Case("DDIMScheduler", _NO_CLIP, P(solvers.ddim, eta=0.7), step={"eta": 0.7}),
    Case("DDIMScheduler", {**_NO_CLIP, "set_alpha_to_one": False}, solvers.ddim),
    Case("DDIMParallelScheduler", _NO_CLIP, P(solvers.ddim, eta=1.0), step={"eta": 1.0}),
    Case("CogVideoXDDIMScheduler", {"snr_shift_scale": 1.0}, solvers.ddim),
    Case("CogVideoXDPMScheduler", {"snr_shift_scale": 1.0}, multistep.cogvideox_dpm),
    Case("DDPMParallelScheduler", _NO_CLIP, solvers.ddpm),
    Case("DDPMWuerstchenScheduler", {}, solvers.ddpm, ("epsilon",), model="wuerstchen"),
    Case("DDPMScheduler", _NO_CLIP, solvers.ddpm),
    Case("DDPMScheduler", _FIXED, P(solvers.ddpm, variance="fixed_large")),
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
    *(Case(_DEIS, {"solver_order": n, **_LATE}, P(multistep.deis, order=n)) for n in (1, 2, 3)),
    flowing(_DEIS, FLOW, multistep.deis),
    *(_sa(*orders) for orders in ((1, 1), (2, 2), (3, 3), (3, 4))),
    Case(_SA, {"algorithm_type": "noise_prediction"}, P(multistep.sa_solver, data_prediction=False), ends=("t_eps",)),
    flowing(_SA, FLOW, multistep.sa_solver),
    flowing(_FLOW_EULER, {"shift": 3.0}, solvers.flow_euler),
    flowing(_FLOW_EULER, {"shift": 3.0, "stochastic_sampling": True}, P(solvers.flow_euler, stochastic=True)),
    flowing(_FLOW_EULER, {"shift": 1.0, "invert_sigmas": True}, solvers.flow_euler),
    flowing(_LCM, {"shift": 3.0}, P(solvers.flow_euler, stochastic=True)),
    *_tree_cases(),
    flowing("FlowMatchHeunDiscreteScheduler", {"shift": 3.0}, solvers.flow_heun),
    edm("EDMEulerScheduler", {}, solvers.ddim),
    edm(_EDM_DPM, _LATE, multistep.dpm),
    edm(_EDM_DPM, {**_LATE, "solver_order": 3}, P(multistep.dpm, order=3)),
    edm(_EDM_DPM, {**_LATE, "algorithm_type": "sde-dpmsolver++"}, P(multistep.dpm, algorithm="sde-dpmsolver++")),
]
ONE_EACH = list({case.scheduler: case for case in CASES}.values())
HIGHEST = {(x.scheduler, x.model): x for x in sorted(CASES, key=lambda x: x.config.get("solver_order", 0))}
CORNERS = [
    pytest.param(case, id=case.name, marks=[] if any(case is one for one in ONE_EACH) else pytest.mark.slow)
    for case in CASES
    if any(case is one for one in (*ONE_EACH, *HIGHEST.values()))
]
"""One of each class, and its highest order for each kind of noise, which is marked slow."""


@functools.cache
def noise_of(model: str) -> NoiseSchedule:
    return preset(model) if model in PRESETS else from_config({"_class_name": OWN_NOISE[model]}, name=model)


def evaluations(scheduler: Any, schedule: Schedule) -> list[Level]:
    """The levels, in order, at which the network must be called: the nodes, and what a second evaluation adds."""
    grid = levels(schedule)
    layout = scheduler._row.layout
    if layout == "plms":
        return [grid[0], *grid[1:2], *grid[1:-1]] if schedule.nfe > 1 else grid[:1]
    if scheduler.config.get("invert_sigmas"):
        return [level._replace(timestep=1000.0 * level.alpha) for level in grid[:-1]]
    if layout not in ("pairs", "ancestral", "midpoints", "middles"):
        return grid[:-1]
    noise = noise_of("sd15" if schedule.kind == "vp" else "sd3-medium")
    result = []
    for now, then in pairwise(grid):
        result.append(now)
        if then.sigma > 0:
            lam = (now.lam + then.lam) / 2 if layout in ("midpoints", "middles") else then.lam
            t = noise.t_of_lam(np.float64(lam))
            result.append(
                solvers.k_level(math.exp(-lam))._replace(timestep=float(noise.timestep(t)))
                if schedule.kind == "vp"
                else then._replace(timestep=1000.0 * then.sigma)
            )
    return result


def timesteps_of(scheduler: Any) -> torch.Tensor:
    """What a pipeline goes through; Wuerstchen's leave out the last, which is the end."""
    return scheduler.timesteps[:-1] if scheduler._row.layout == "times" else scheduler.timesteps


def step(scheduler: Any, output: torch.Tensor, t: torch.Tensor, x: torch.Tensor, **options: Any) -> torch.Tensor:
    """The next sample, from a first step; two classes have their arguments in an order or a shape of their own."""
    if isinstance(scheduler, diffusers.CogVideoXDPMScheduler):
        return scheduler.step(output, None, t, None, x, **options)[0]
    told = t.expand(len(x)) if isinstance(scheduler, diffusers.DDPMWuerstchenScheduler) else t
    return scheduler.step(output, told, x, **options).prev_sample


def seeded(scheduler: Any, seed: int) -> dict[str, torch.Generator]:
    """A generator where the class's step takes one."""
    takes = "generator" in inspect.signature(type(scheduler).step).parameters
    return {"generator": torch.Generator().manual_seed(seed)} if takes else {}


def advance(
    case: Case, scheduler: Any, prediction: str, timesteps: torch.Tensor, expected: list[Level], x: torch.Tensor,
    **options: Any,
) -> tuple[torch.Tensor, Model]:  # fmt: skip
    """The pipeline's loop: scale_model_input, model and step at each timestep."""
    model, old, back = Model(prediction), None, None
    sign = -1.0 if scheduler.config.get("invert_sigmas") else 1.0  # d x / d s, or against s
    for t, level in zip(timesteps, expected, strict=True):
        output = sign * model(scheduler.scale_model_input(x, t), t, level, SIGMA_DATA.get(case.model))
        if case.scheduler == "CogVideoXDPMScheduler":
            x, old = scheduler.step(output, old, t, back, x, **options)
            back = t
        else:
            x = step(scheduler, output, t, x, **options)
    return x, model


def run(case: Case, scheduler: Any, prediction: str, x: torch.Tensor, seed: int = 1) -> tuple[torch.Tensor, Model]:
    """Sample as a pipeline does: set_timesteps, scale the start; scale_model_input, model and step at each timestep."""
    schedule = scheduler.schedule
    scheduler.set_timesteps(schedule.nfe)
    expected = evaluations(scheduler, schedule)
    x = x * float(getattr(scheduler, "init_noise_sigma", 1.0))
    options = {**case.step, **seeded(scheduler, seed)}
    return advance(case, scheduler, prediction, timesteps_of(scheduler), expected, x, **options)


def reference(case: Case, schedule: Schedule, x: torch.Tensor, seed: int = 1) -> tuple[torch.Tensor, int]:
    """The independent solver's sample, and how often it evaluated."""
    generator = torch.Generator().manual_seed(seed)
    grid, calls = levels(schedule), []

    def x0(y: torch.Tensor, level: Level) -> torch.Tensor:
        calls.append(level)
        return denoise(y, level.alpha, level.sigma)

    def draw() -> torch.Tensor:
        return torch.randn(x.shape, generator=generator, dtype=case.draws or x.dtype)

    if case.k:
        x = x * math.sqrt(1.0 + solvers.k_sigma(grid[0]) ** 2)
    elif schedule.kind == "ve":
        x = x * math.sqrt(1.0 + grid[0].sigma ** 2)
    return case.reference(x0, grid, x, draw), len(calls)


def built(case: Case, end: str = "", nfe: int = 6) -> Any:
    """A scheduler that is ready to sample at a random schedule."""
    end = end if end in case.ends else case.ends[0]
    scheduler = installed(case, case.predictions[0], random_schedule(noise_of(case.model), nfe, end, 1))
    scheduler.set_timesteps(nfe)
    return scheduler


def public(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config without diffusers' private entries."""
    return {key: value for key, value in config.items() if not key.startswith("_")}


def installed(case: Case, prediction: str, schedule: Schedule) -> Any:
    return with_schedule(_built(CASES.index(case), prediction), schedule)


@functools.cache
def _built(index: int, prediction: str) -> Any:
    return CASES[index].build(prediction)  # with_schedule leaves it as it is
