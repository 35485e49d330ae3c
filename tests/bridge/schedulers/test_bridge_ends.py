"""Both ends of a schedule, and the traps between a schedule and diffusers' attributes."""

from __future__ import annotations

import functools
from typing import Any

import cases
import diffusers
import numpy as np
import oracles.one_step as solvers
import pytest
import torch
from cases import FLOW, SD
from mixture import Model, denoise, random_schedule, start
from oracles import multistep

from bridge import Level, with_schedule
from bridge.sampling import levels
from bridge.schedulers.rows import ROWS
from hso_jax import noise as noises
from hso_jax.schedule import Schedule

NOISE = cases.noise_of("sd15")
FLOW_NOISE = cases.noise_of("sd3-medium")
LOG_SNR = [name for name, row in ROWS.items() if row.log_snr and not row.k_scaled]


def last_step(scheduler: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The sample after all steps, which is finite, and x0 as predicted at the last evaluation."""
    scheduler.set_timesteps(scheduler.schedule.nfe)
    x, x0 = start(), start()
    for t, level in zip(scheduler.timesteps, levels(scheduler.schedule)[:-1], strict=True):
        noise = Model("epsilon")(x, t, level)
        x0 = (x - level.sigma * noise) / level.alpha
        x = scheduler.step(noise, t, x).prev_sample
    assert torch.isfinite(x).all()
    return x, x0


def run(scheduler: Any) -> torch.Tensor:
    """A sample of no model in particular, which is finite."""
    scheduler.set_timesteps(scheduler.schedule.nfe)
    x = start() * float(scheduler.init_noise_sigma) if hasattr(scheduler, "init_noise_sigma") else start()
    for t in scheduler.timesteps:
        x = scheduler.step(torch.tanh(scheduler.scale_model_input(x, t)), t, x).prev_sample
    assert torch.isfinite(x).all()
    return x


@pytest.mark.parametrize("name", LOG_SNR)
def test_clean_end_returns_the_predicted_data(name: str) -> None:
    """DEIS gives NaN at sigma 0, UniPC inf or a singular matrix unless the order falls; N >= 15 has other rules."""
    orders = {"solver_order": 3} if name != "SASolverScheduler" else {"predictor_order": 3, "corrector_order": 3}
    plain = getattr(diffusers, name)(**SD, **orders, lower_order_final=False)
    for nfe in (1, 2, 6, 15):
        x, x0 = last_step(with_schedule(plain, random_schedule(NOISE, nfe, "clean", 5)))
        torch.testing.assert_close(x, x0, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("variant", ["bh1", "bh2"])
def test_unipc_clean_end_is_finite_for_noise_prediction_too(variant: str) -> None:
    plain = diffusers.UniPCMultistepScheduler(**SD, solver_type=variant, predict_x0=False, solver_order=3)
    x, x0 = last_step(with_schedule(plain, random_schedule(NOISE, 6, "clean", 1)))
    assert (x - x0).abs().max() < 0.5  # it keeps the last correction of x


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler"])
def test_a_t_eps_end_keeps_full_order(name: str) -> None:
    """By default diffusers lowers the order of the last steps for N < 15, even to a sigma > 0."""
    schedule = random_schedule(NOISE, 6, "t_eps", 1)
    default = getattr(diffusers, name)(**SD, solver_order=3)
    explicit = getattr(diffusers, name)(**SD, solver_order=3, lower_order_final=False)
    installed = with_schedule(default, schedule)
    assert (default.config.lower_order_final, installed.config.lower_order_final) == (True, False)
    assert torch.equal(last_step(installed)[0], last_step(with_schedule(explicit, schedule))[0])


def test_another_end_restores_what_the_first_replaced() -> None:
    interval = random_schedule(NOISE, 6, "t_eps", 1)
    there = with_schedule(diffusers.DPMSolverMultistepScheduler(**SD, euler_at_final=True), interval)
    for scheduler in (there, type(there).from_config(there.config)):
        assert (scheduler.config.euler_at_final, scheduler.config.final_sigmas_type) == (False, "sigma_min")
        back = with_schedule(scheduler, interval.with_end("clean"))
        assert (back.config.euler_at_final, back.config.final_sigmas_type) == (True, "zero")


@pytest.mark.parametrize(
    "name", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "DDIMScheduler", "PNDMScheduler"]
)
def test_close_timesteps_are_neither_truncated_nor_repeated(name: str) -> None:
    """diffusers truncates to [999, 999, ...] and then starts at index 1."""
    extra = {"skip_prk_steps": True} if name == "PNDMScheduler" else {}
    schedule = Schedule.from_t(NOISE, [0.9999, 0.9995, 0.9991, 0.5])
    scheduler = with_schedule(getattr(diffusers, name)(**SD, **extra), schedule)
    run(scheduler)
    assert torch.unique(scheduler.timesteps).numel() == 4
    assert scheduler.index_for_timestep(scheduler.timesteps[0]) == 0


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
        ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True}),
        ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0, "shift_terminal": 0.1}),
        ("FlowMatchHeunDiscreteScheduler", {"shift": 3.0}),
        ("UniPCMultistepScheduler", FLOW),
        ("UniPCMultistepScheduler", {**FLOW, "use_dynamic_shifting": True}),
        ("DPMSolverMultistepScheduler", FLOW),
        ("DPMSolverMultistepScheduler", {**FLOW, "use_dynamic_shifting": True}),
        ("DEISMultistepScheduler", FLOW),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:sigmas .* differ from those of the installed schedule:UserWarning")  # as it should
def test_shift_is_not_applied_twice(name: str, config: dict[str, Any]) -> None:
    schedule = random_schedule(FLOW_NOISE, 5, "t_eps", 2)
    scheduler = with_schedule(getattr(diffusers, name)(**config), schedule)
    wanted, told = schedule.sampler_sigmas(), np.float32(schedule.timesteps)
    for call in ({"num_inference_steps": 5}, {"sigmas": np.linspace(1, 0.2, 5)}, {"sigmas": [1.0] * 5, "mu": 1.15}):
        scheduler.set_timesteps(**call, device="cpu")
        distinct = np.unique(scheduler.sigmas.numpy())[::-1]
        np.testing.assert_array_equal(distinct, wanted)
        np.testing.assert_array_equal(np.unique(scheduler.timesteps.numpy())[::-1][:5], told)


@pytest.mark.parametrize("name", ["FlowMatchEulerDiscreteScheduler", *LOG_SNR])
def test_flow_starts_at_pure_noise(name: str) -> None:
    if FLOW["prediction_type"] not in ROWS[name].predictions:
        return
    config = {"shift": 3.0} if name.startswith("FlowMatch") else FLOW
    scheduler = with_schedule(getattr(diffusers, name)(**config), Schedule.from_t(FLOW_NOISE, [1.0, 0.8, 0.5, 0.2]))
    run(scheduler)
    assert scheduler.sigmas[0] == (1.0 if name.startswith("FlowMatch") else 1.0 - 1e-6)
    assert scheduler.timesteps[0] == 1000.0


@pytest.mark.parametrize(
    "name", ["DDIMScheduler", "UniPCMultistepScheduler", "EulerDiscreteScheduler", "DDPMScheduler"]
)
def test_zero_terminal_snr(name: str) -> None:
    config = {**SD, "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    base = getattr(diffusers, name)(**config)
    noise = noises.discrete(betas=noises.beta_table(), rescale_betas_zero_snr=True)
    schedule = Schedule.from_t(noise, [1.0, 0.8, 0.4, 0.1])
    assert np.isinf(schedule.sigmas[0])
    scheduler = with_schedule(base, schedule)
    run(scheduler)
    assert scheduler.timesteps[0] == 999.0
    if hasattr(scheduler, "sigmas"):  # the level diffusers itself uses for pure noise
        base.set_timesteps(1000)
        assert float(scheduler.sigmas[0]) == pytest.approx(float(base.sigmas[0]), rel=1e-3)
    with pytest.raises(ValueError, match="pure noise"):
        with_schedule(getattr(diffusers, name)(**{**config, "prediction_type": "epsilon"}), schedule)


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "HeunDiscreteScheduler", "LMSDiscreteScheduler"])
def test_a_start_below_t_max_is_scaled(name: str) -> None:
    schedule = Schedule.from_t(NOISE, [0.6, 0.3])
    scheduler = with_schedule(getattr(diffusers, name)(**SD, timestep_spacing="trailing"), schedule)
    scheduler.set_timesteps(2)
    assert scheduler.init_noise_sigma == pytest.approx((schedule.sigmas[0] ** 2 + 1) ** 0.5, rel=1e-12)
    # In the network's scaling the start is standard normal, as in DDIM.
    torch.testing.assert_close(
        scheduler.scale_model_input(start() * scheduler.init_noise_sigma, scheduler.timesteps[0]), start()
    )


@pytest.mark.parametrize(
    ("name", "config"), [("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}), ("UniPCMultistepScheduler", FLOW)]
)
def test_bfloat16_sample_and_timesteps(name: str, config: dict[str, Any]) -> None:
    """FLUX pipelines hand the network t in bfloat16 (975.3 becomes 976); the scheduler still finds its step."""
    scheduler = with_schedule(getattr(diffusers, name)(**config), random_schedule(FLOW_NOISE, 8, "clean", 4))
    scheduler.set_timesteps(8)
    rounded = scheduler.timesteps.to(torch.bfloat16)
    assert scheduler.timesteps.dtype == torch.float32 and not torch.equal(rounded.float(), scheduler.timesteps)
    assert [scheduler.index_for_timestep(t) for t in rounded] == list(range(8))
    x = start(dtype=torch.bfloat16)
    for t in scheduler.timesteps:
        x = scheduler.step(torch.tanh(x), t, x, return_dict=False)[0]
        assert x.dtype == torch.bfloat16 and torch.isfinite(x).all()


def test_parallel_ddim_steps_many_timesteps_at_once() -> None:
    schedule = random_schedule(NOISE, 4, "clean", 0)
    scheduler = with_schedule(diffusers.DDIMParallelScheduler(**SD, clip_sample=False), schedule)
    scheduler.set_timesteps(4)
    noise, x = start(4, seed=1), start(4, seed=2)
    together = scheduler.batch_step_no_noise(noise, scheduler.timesteps, x)
    alone = [scheduler.step(noise[i : i + 1], t, x[i : i + 1]).prev_sample for i, t in enumerate(scheduler.timesteps)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-10, atol=1e-10)


NFE = 7


def sliced(case: cases.Case, scheduler: Any, prediction: str, skip: int, told: bool) -> torch.Tensor:
    """Noise clean data to the level at which sampling begins, then sample, as img2img pipelines do."""
    scheduler.set_timesteps(NFE)
    begin = skip * getattr(scheduler, "order", 1)  # Wuerstchen's has none
    timesteps = cases.timesteps_of(scheduler)[begin:]
    if told and hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    noising = scheduler.scale_noise if hasattr(scheduler, "scale_noise") else None
    data, noise = start(seed=5), start(seed=6)
    first = timesteps[:1].repeat(len(data)) if case.scheduler != "FlowMatchHeunDiscreteScheduler" else timesteps[0]
    x = noising(data, first, noise) if noising else scheduler.add_noise(data, noise, first)
    expected = cases.evaluations(scheduler, scheduler.schedule)[begin:]
    options = {**case.step, **cases.seeded(scheduler, 1)}
    return cases.advance(case, scheduler, prediction, timesteps, expected, x, **options)[0]


def wanted(case: cases.Case, scheduler: Any, skip: int, **more: Any) -> torch.Tensor:
    """The independent solver on the levels that are left."""
    generator = torch.Generator().manual_seed(1)
    grid = levels(scheduler.schedule)[skip:]
    data, noise = start(seed=5), start(seed=6)
    x = grid[0].alpha * data + grid[0].sigma * noise

    def x0(y: torch.Tensor, level: Level) -> torch.Tensor:
        return denoise(y, level.alpha, level.sigma)

    def draw() -> torch.Tensor:
        return torch.randn(x.shape, generator=generator, dtype=case.draws or x.dtype)

    solver, options = case.reference, {}
    if isinstance(solver, functools.partial):
        solver, options = solver.func, dict(solver.keywords)
    if solver is multistep.dpm_singlestep:
        options["orders"] = scheduler.order_list[skip:]
    if solver is solvers.dpm_sde:
        options["highest"] = float(scheduler.schedule.sigmas[0])
    if solver is solvers.euler and "churn" in options:  # spread over the whole schedule
        options["churn"] = options["churn"] * (len(grid) - 1) / NFE
    return solver(x0, grid, x / grid[0].alpha if case.k else x, draw, **options, **more)


@pytest.mark.parametrize("skip", [2, 5])
@pytest.mark.parametrize("case", [x for x in cases.CORNERS if not x.id.startswith("PNDM")])
def test_sliced_schedule_is_exact(case: cases.Case, skip: int) -> None:
    end = case.ends[skip % len(case.ends)]
    prediction = case.predictions[skip % len(case.predictions)]
    schedule = random_schedule(cases.noise_of(case.model), NFE, end, seed=skip)
    # Adding noise before the first step uses the start index where the pipeline told it, else the timestep.
    for told in (True, False):
        scheduler = cases.installed(case, prediction, schedule)
        got, reference = sliced(case, scheduler, prediction, skip, told), wanted(case, scheduler, skip)
        assert ((got - reference).abs().max() / reference.abs().max()).item() < 1e-10


def test_pndm_begins_one_level_earlier() -> None:
    """A start between the two entries of the second level evaluates twice there, and uses the first."""
    schedule = random_schedule(cases.noise_of("sd15"), NFE, "clean", 0)
    case = next(c for c in cases.CASES if c.scheduler == "PNDMScheduler")
    for skip in (1, 2, 4, 6, 7):
        scheduler = with_schedule(diffusers.PNDMScheduler(**SD, skip_prk_steps=True), schedule)
        begin = max(skip - 1, 1)
        got, reference = sliced(case, scheduler, "epsilon", skip, True), wanted(case, scheduler, begin, twice=False)
        torch.testing.assert_close(got, reference, rtol=1e-10, atol=1e-10)
