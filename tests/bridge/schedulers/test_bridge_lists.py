"""Lists of noise levels as people paste them: taken to the last digit, mended where rounding cost one, or refused."""

from __future__ import annotations

import inspect
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from cases import FLOW, SD

from bridge import NonstationaryScheduler, noise_schedule_of, with_schedule
from bridge.schedulers.rows import ROWS, distillation_grid
from hso_jax import Schedule, noise, preset
from hso_jax.checks import level_list, rounding

AYS_SDXL = [14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029]
README_SDXL = [14.615, 6.110, 2.927, 1.514, 0.850, 0.307, 0]
AYS_SVD = [700.00, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002]
SVD = {"timestep_type": "continuous", "prediction_type": "v_prediction", "sigma_min": 0.002, "sigma_max": 700.0}
FLOW_EULER = diffusers.FlowMatchEulerDiscreteScheduler()
CONFIGS = {"PNDMScheduler": {"skip_prk_steps": True}}


def plain(name: str) -> Any:
    """A scheduler of the class: Stable Diffusion's betas where it has any."""
    cls = getattr(diffusers, name)
    has = inspect.signature(cls.__init__).parameters
    return cls(**(SD if "beta_schedule" in has else {}), **CONFIGS.get(name, {}))


def levels(scheduler: Any) -> np.ndarray:
    """[N + 1] ksigma, or s for flow models, at which the scheduler steps."""
    found = scheduler._levels
    return found.sigmas if scheduler.schedule.kind == "flow" else found.sigmas / found.alphas


ENDS = [(name, clean) for name, row in ROWS.items() for clean in ((True,) if row.layout == "grid" else (True, False))]


@pytest.mark.parametrize(("name", "end"), ENDS)
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # LMS and DPMSolverSDE
def test_each_class_steps_at_the_list_itself(name: str, end: bool) -> None:
    scheduler = plain(name)
    model = noise_schedule_of(scheduler)
    if ROWS[name].layout == "grid":
        t = (distillation_grid(scheduler.config)[[45, 30, 15, 5]] + 1) / 1000
        given = [*np.asarray(model.ksigma(t)), 0.0]
    elif model.kind == "flow":
        given = [0.9999, 0.91, 0.5, 0.2, 0.0 if end else 0.0005]
    else:
        low, high = float(model.ksigma(float(model.t_min))), float(model.ksigma(float(model.t_max)))
        given = [*np.geomspace(0.9 * high, 1.1 * low, 5)[: 4 if end else 5], *([0.0] if end else [])]
    installed = with_schedule(scheduler, given)
    np.testing.assert_allclose(levels(installed), given, rtol=1e-6, atol=1e-15)
    np.testing.assert_allclose(installed.schedule.sampler_sigmas(), given, rtol=1e-6)
    assert installed.schedule.nfe == 4


@pytest.mark.parametrize(
    ("scheduler", "given"),
    [
        (diffusers.DPMSolverMultistepScheduler(**SD), README_SDXL),
        (diffusers.DPMSolverMultistepScheduler(**SD), AYS_SDXL),
        (diffusers.DDIMScheduler(**SD), [*AYS_SDXL[:-1], 0.0]),
        (diffusers.EulerDiscreteScheduler(**SD), [14.61, 6.11, 0.03]),
        (diffusers.EulerDiscreteScheduler(**SVD), AYS_SVD),
        (diffusers.EDMEulerScheduler(sigma_min=0.0024), [80.0, 5.0, 0.002]),
    ],
    ids=lambda x: getattr(x, "config", {}).get("_class_name", "") if hasattr(x, "config") else len(x),
)
def test_rounded_ends_become_the_models_ends(scheduler: Any, given: list[float]) -> None:
    model = noise_schedule_of(scheduler)
    low, high = float(model.ksigma(float(model.t_min))), float(model.ksigma(float(model.t_max)))
    want = [min(given[0], high), *given[1:-1], max(given[-1], low) if given[-1] else 0.0]
    np.testing.assert_allclose(levels(with_schedule(scheduler, given)), want, rtol=1e-6)


FORMS = {
    "tuple": tuple,
    "float32": lambda x: np.array(x, np.float32),
    "that-trains": lambda x: torch.tensor(x, requires_grad=True),
    "of-tensors": lambda x: [torch.tensor(v) for v in x],
    "commas": lambda x: ", ".join(map(str, x)),
    "blanks": lambda x: " ".join(map(str, x)),
    "lines": lambda x: "\n".join(map(str, x)) + "\n",
    "brackets": str,
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize(
    ("scheduler", "given"),
    [
        (diffusers.DPMSolverMultistepScheduler(**SD), README_SDXL),
        (diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), [1.0, 0.945, 0.853, 0.578, 0.289, 0.077, 0.0]),
    ],
    ids=["vp", "flow"],
)
def test_a_list_in_any_form_is_that_list(scheduler: Any, given: list[float], form: Any) -> None:
    want = levels(with_schedule(scheduler, given))
    np.testing.assert_allclose(levels(with_schedule(scheduler, form(given))), want, rtol=1e-6)


@pytest.mark.parametrize("shift", [0.3, 3.0, 12.0])
@pytest.mark.parametrize("name", ["FlowMatchEulerDiscreteScheduler", "UniPCMultistepScheduler"])
def test_flow_takes_any_s_at_any_shift(name: str, shift: float) -> None:
    given = np.array([0.9999, 0.9, 0.5, 0.005, 1e-5])
    config = {"shift": shift} if name.startswith("Flow") else {**FLOW, "flow_shift": shift}
    installed = with_schedule(getattr(diffusers, name)(**config), given)
    installed.set_timesteps(4)
    np.testing.assert_allclose(levels(installed), given, rtol=1e-9)
    np.testing.assert_allclose(installed.timesteps, 1000 * given[:-1], rtol=1e-6)


def run(scheduler: Any, steps: int, data: float = 0.5) -> torch.Tensor:
    """Diffusers' own loop on Gaussian data, whose exact denoiser looks at the scheduler's sigmas."""
    scheduler.set_timesteps(steps)
    x = torch.linspace(-2, 2, 8, dtype=torch.float64).reshape(1, 2, 4)
    flow = scheduler.config.get("use_flow_sigmas") or type(scheduler).__name__.startswith("FlowMatch")
    scaled = type(scheduler).__name__.startswith(("Euler", "LMS"))
    x = x * (float(scheduler.sigmas[0]) if scaled else 1.0)
    for i, t in enumerate(scheduler.timesteps):
        if scaled:
            scheduler.scale_model_input(x, t)
        sigma = float(scheduler.sigmas[i])
        alpha = 1.0 - sigma if flow else 1.0 if scaled else (1.0 + sigma**2) ** -0.5
        sigma = sigma if flow or scaled else alpha * sigma
        clean = x * alpha * data**2 / (alpha**2 * data**2 + sigma**2)
        noise = (x - alpha * clean) / sigma
        x = scheduler.step(noise - clean if flow else noise, t, x).prev_sample.double()
    return x


OWN = [
    ("EulerDiscreteScheduler", SD),
    ("EulerDiscreteScheduler", {**SD, "use_karras_sigmas": True, "timestep_spacing": "trailing"}),
    ("LMSDiscreteScheduler", SD),
    ("DPMSolverMultistepScheduler", SD),
    ("UniPCMultistepScheduler", SD),
    ("UniPCMultistepScheduler", {**FLOW, "flow_shift": 12.0}),
    ("FlowMatchEulerDiscreteScheduler", {"shift": 7.0}),
]


@pytest.mark.parametrize(("name", "config"), OWN)
@pytest.mark.filterwarnings("ignore:.*the schedule replaces use_karras_sigmas")
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_a_schedulers_own_sigmas_give_its_own_samples(name: str, config: dict[str, Any]) -> None:
    scheduler = getattr(diffusers, name)(**config)
    scheduler.set_timesteps(6)
    own = scheduler.sigmas.double().numpy()
    installed = with_schedule(scheduler, scheduler.sigmas)
    np.testing.assert_allclose(levels(installed), own, rtol=2e-6, atol=1e-12)
    torch.testing.assert_close(run(installed, 6), run(scheduler, 6), rtol=2e-5, atol=2e-6)


# DDPM's betas reach sigma 15406 one level before zero terminal SNR, and 4096 is a level of theirs.
FINITE = {"beta_start": 1e-4, "beta_end": 0.02, "rescale_betas_zero_snr": True}


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler"])
@pytest.mark.parametrize("config", [{**SD, "final_sigmas_type": "sigma_min"}, FINITE], ids=["stops-early", "4096"])
def test_own_sigmas_are_kept(name: str, config: dict[str, Any]) -> None:
    scheduler = getattr(diffusers, name)(**config)
    scheduler.set_timesteps(10)
    installed = with_schedule(scheduler, scheduler.sigmas)
    installed.set_timesteps(10)
    np.testing.assert_allclose(installed.sigmas, scheduler.sigmas, rtol=1e-6)
    np.testing.assert_allclose(levels(installed), scheduler.sigmas, rtol=1e-6)


def test_zero_terminal_snr_has_4096_for_pure_noise() -> None:
    scheduler = diffusers.EulerDiscreteScheduler(**SD, rescale_betas_zero_snr=True, prediction_type="v_prediction")
    scheduler.set_timesteps(4)
    assert float(scheduler.sigmas[0]) == pytest.approx(4096.0)
    assert with_schedule(scheduler, scheduler.sigmas).schedule.t[0] == 1.0


@pytest.mark.parametrize(
    ("scheduler", "given", "message"),
    [
        (diffusers.DPMSolverMultistepScheduler(**SD), [14.7, 3.0, 0.0], r"sigma 14\.7 is outside \[0\.02.*14\.6146\]"),
        (diffusers.DPMSolverMultistepScheduler(**SD), [15.0, 3.0, 0.0], r"sigma 15 is outside \[0\.02.*14\.6146\]"),
        (diffusers.DPMSolverMultistepScheduler(**SD), [14.0, 3.0, 0.02], r"sigma 0\.02 is outside .*sigma/alpha"),
        (diffusers.DPMSolverMultistepScheduler(**SD), [999, 500, 100, 0], r"sigma 999 .* of timesteps t make .*from_t"),
        (diffusers.EDMEulerScheduler(), [81.0, 3.0, 0.0], r"sigma 81 is outside \[0\.002, 80\]"),
        (FLOW_EULER, [1.5, 0.5, 0.0], r"s = 1\.5 is above 1; .* s in \(0, 1\]"),
        (FLOW_EULER, [1000, 500, 0], r"s = 1000 .*of timesteps pass t / 1000"),
        (FLOW_EULER, [0.5, 0.9, 0.0], r"0\.5 and sigmas\[1\] 0\.9; .* sort the list"),
        (FLOW_EULER, [0.9, 0.5, 0.5, 0.0], r"sigmas\[1\] is 0\.5 .* give it once"),
        (FLOW_EULER, [0.9, 0.5, 0, 0], r"sigmas\[2\] is 0 .* give it once"),
        (FLOW_EULER, [0.9, float("nan"), 0], r"sigmas\[1\] is nan; .* must fall"),
        (FLOW_EULER, [0.9, float("inf"), 0], r"sigmas\[1\] is inf; .* must fall"),
        (FLOW_EULER, [0.9, -0.1], r"sigmas\[1\] is -0\.1; .* must fall"),
        (FLOW_EULER, [], r"need one list of N \+ 1 values"),
        (FLOW_EULER, [[0.9, 0.5], [0.5, 0.0]], r"need one list of N \+ 1 values"),
        (FLOW_EULER, "", r"need one list of N \+ 1 values"),
        (FLOW_EULER, [0.9], r"N \+ 1 values.*append a final 0"),
        (FLOW_EULER, "0.9, half, 0", r"numbers apart by commas or blanks .*'half'"),
        (FLOW_EULER, [0.9, "0.5", 0], r"sigmas\[1\] is .*need numbers"),
        (FLOW_EULER, None, r"sigmas is None"),
    ],
    ids=lambda x: str(x)[:24] if not hasattr(x, "config") else "",
)
def test_a_refusal_names_the_entry(scheduler: Any, given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as refusal:
        with_schedule(scheduler, given)
    assert len(str(refusal.value)) <= 200


def test_the_other_doors_take_the_same_lists() -> None:
    text = "14.615, 6.110, 2.927, 1.514, 0.850, 0.307, 0"
    want = Schedule.from_sigmas(preset("sdxl"), README_SDXL)
    assert Schedule.from_sigmas(preset("sdxl"), text).sigmas.tolist() == want.sigmas.tolist()
    assert want.sigmas[0] == pytest.approx(float(preset("sdxl").ksigma(1.0)), rel=1e-12)
    own = NonstationaryScheduler.from_schedule(diffusers.DDIMScheduler(**SD), text, coefficients=np.zeros((6, 2)))
    assert own.schedule.sigmas.tolist() == want.sigmas.tolist()
    flowing = Schedule.from_sigmas(noise.flow(7.0), [1e4, 1.0, 0.004])
    np.testing.assert_allclose(flowing.sigmas, [1e4, 1.0, 0.004], rtol=1e-9)


def test_a_rounded_list_passed_on_is_accepted() -> None:
    scheduler = with_schedule(diffusers.EulerDiscreteScheduler(**SD), README_SDXL)
    scheduler.set_timesteps(sigmas=README_SDXL)
    scheduler.set_timesteps(sigmas=[14.6, 6.11, 2.93, 1.51, 0.85, 0.307])
    with pytest.raises(ValueError, match="differ from those of the installed schedule"):
        scheduler.set_timesteps(sigmas=[14.6, 6.11, 2.93, 1.51, 0.85, 0.32])
    stops = with_schedule(diffusers.EulerDiscreteScheduler(**SD), AYS_SDXL)
    stops.set_timesteps(sigmas=AYS_SDXL)
    with pytest.raises(ValueError, match=r"is 11, but .* has 10 evaluations: append a final 0"):
        stops.set_timesteps(11)


def test_rounding_is_half_the_last_digit() -> None:
    given = np.array([14.615, 80.0, 0.029, 1e-5, float(np.float32(14.615))])
    np.testing.assert_allclose(rounding(given)[:4], [5e-4, 0.05, 5e-4, 5e-6])
    assert rounding(given)[4] == pytest.approx(5e-4)
    assert level_list("sigmas", "[14.615; 6.1]\n0").tolist() == [14.615, 6.1, 0.0]
