"""The rules that diffusers has too, against its schedulers: the same sigmas, for every N and both kinds of ends."""

from __future__ import annotations

import numpy as np
import pytest
from problems import SD

from hso_jax import baseline
from hso_jax.baselines import AYS
from hso_jax.noise import flow

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

pytestmark = pytest.mark.filterwarnings("ignore:__array_?.*:DeprecationWarning")

CONFIG = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "timestep_spacing": "linspace"}
FLAGS = {"karras": "use_karras_sigmas", "beta": "use_beta_sigmas", "uniform-lam": "use_exponential_sigmas"}
CASES = [(name, solver, FLAGS[name]) for name in FLAGS for solver in ("EulerDiscrete", "DPMSolverMultistep")]
RTOL = 2e-5
"""Of diffusers' float32 table: next to 1, alphas_cumprod is rounded by 3e-8, which is 1.8e-5 of the smallest sigma."""
BUDGETS = (2, 4, 7, 10, 25)


@pytest.mark.parametrize(("name", "solver", "flag"), [*CASES, ("uniform-lam", "DPMSolverMultistep", "use_lu_lambdas")])
def test_sigmas_of_a_flag(name: str, solver: str, flag: str) -> None:
    for nfe in BUDGETS:
        scheduler = getattr(diffusers, f"{solver}Scheduler").from_config({**CONFIG, flag: True})
        scheduler.set_timesteps(nfe)
        np.testing.assert_allclose(baseline(name, SD, nfe).sampler_sigmas(), scheduler.sigmas.numpy(), rtol=RTOL)


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_timestep_spacing(spacing: str) -> None:
    for nfe in BUDGETS:
        scheduler = diffusers.DDIMScheduler(**{**CONFIG, "timestep_spacing": spacing}, steps_offset=1)
        scheduler.set_timesteps(nfe)
        np.testing.assert_allclose(baseline(spacing, SD, nfe).timesteps, scheduler.timesteps.numpy(), atol=0.5 + 1e-9)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("name", ["karras", "beta"])
def test_flow_sigmas_of_a_flag(name: str, shift: float) -> None:
    """The flag takes its ends from the schedule it is given: the model's largest and smallest level here."""
    for nfe in BUDGETS:
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_config({"shift": shift, FLAGS[name]: True})
        scheduler.set_timesteps(sigmas=np.linspace(0.999, 0.001, nfe).tolist())
        found = baseline(name, flow(shift), nfe)
        np.testing.assert_allclose(found.sampler_sigmas(), scheduler.sigmas.numpy(), rtol=RTOL)
        np.testing.assert_allclose(found.timesteps, scheduler.timesteps.numpy(), rtol=RTOL)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_spacing_is_linspace(shift: float) -> None:
    """Its own grid ends at the smallest s, already shifted, and is then shifted again: another last level."""
    for nfe in BUDGETS:
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
        scheduler.set_timesteps(nfe)
        found = baseline("linspace", flow(shift), nfe).sampler_sigmas()
        np.testing.assert_allclose(found, scheduler.sigmas.numpy(), atol=1.1e-3 if shift == 1.0 else 7e-3)


def test_tables_of_align_your_steps() -> None:
    from diffusers.schedulers import AysSchedules

    names = {"ays": "StableDiffusion", "ays-sdxl": "StableDiffusionXL", "ays-svd": "StableDiffusionVideo"}
    for name, prefix in names.items():
        assert list(AYS[name][:10]) == AysSchedules[f"{prefix}Sigmas"][:10] and AysSchedules[f"{prefix}Sigmas"][10] == 0
        if (wanted := AysSchedules.get(f"{prefix}Timesteps")) is not None:
            np.testing.assert_allclose(baseline(name, SD, 10).timesteps, wanted, atol=1.0)
