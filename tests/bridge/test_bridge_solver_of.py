"""A scheduler's solver by its name in `hso_jax.solvers`, read from its class and config."""

from types import SimpleNamespace

import diffusers
import pytest

import bridge
from hso_jax import Schedule

CASES = [
    ("DDIMScheduler", {}, "ddim"),
    ("EulerDiscreteScheduler", {}, "ddim"),
    ("FlowMatchEulerDiscreteScheduler", {}, "ddim"),
    ("UniPCMultistepScheduler", {}, "unipc-2"),
    ("UniPCMultistepScheduler", {"solver_order": 3}, "unipc-3"),
    ("UniPCMultistepScheduler", {"solver_type": "bh1"}, "unipc-2-bh1"),
    ("DPMSolverMultistepScheduler", {}, "dpmpp-2m"),
    ("DPMSolverMultistepScheduler", {"solver_order": 3}, "dpmpp-3m"),
    ("DPMSolverMultistepScheduler", {"solver_order": 1}, "ddim"),
    ("HeunDiscreteScheduler", {}, "heun"),
    ("FlowMatchHeunDiscreteScheduler", {}, "heun-flow"),
]


@pytest.mark.parametrize(("kind", "config", "name"), CASES)
def test_solver_of_a_scheduler_and_of_the_same_with_a_schedule(kind: str, config: dict, name: str) -> None:
    scheduler = getattr(diffusers, kind)(**config)
    assert bridge.solver_of(scheduler) == name
    schedule = Schedule.from_t(bridge.noise_schedule_of(scheduler), [0.9, 0.5, 0.2])
    assert bridge.solver_of(bridge.with_schedule(scheduler, schedule)) == name


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("EulerAncestralDiscreteScheduler", {}),
        ("DEISMultistepScheduler", {}),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    ],
)
def test_other_solvers_are_refused_by_name(kind: str, config: dict) -> None:
    with pytest.raises(ValueError, match=f"{kind}.*pass solver= ddim, dpmpp-2m"):
        bridge.solver_of(getattr(diffusers, kind)(**config))


def test_optimize_pipeline_takes_the_shipped_schedule_of_the_pipelines_solver() -> None:
    betas = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    pipe = SimpleNamespace(scheduler=diffusers.UniPCMultistepScheduler(**betas, solver_order=3))
    schedule = bridge.optimize_pipeline(pipe, 6, method="zoo", guidance=7.5)
    assert (schedule.solver, schedule.guidance, schedule.method) == ("unipc-3", 7.5, "solver-error")
    pipe.scheduler.set_timesteps(6)
    assert bridge.schedule_of(pipe.scheduler).t.tolist() == schedule.t.tolist()
