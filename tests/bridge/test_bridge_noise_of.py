"""`noise_schedule_of` reads what the scheduler in hand really does."""

from __future__ import annotations

import importlib
import inspect
import json
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from cases import FLOW, SD, noise_of
from diffusers import SchedulerMixin
from diffusers.utils import is_torchsde_available

import bridge
from bridge import noise_schedule_of, with_schedule
from bridge.schedulers.rows import INSTEAD, ROWS
from hso_jax import from_config
from hso_jax.baselines import baseline
from hso_jax.noise import NoiseSchedule, flux2_shift
from hso_jax.noise.families import BETA_RULES
from hso_jax.noise.from_config import CLASSES, READERS, REFUSED
from hso_jax.schedule import Schedule


def same(found: NoiseSchedule, known: NoiseSchedule) -> bool:
    return (found.fingerprint(), found.prediction) == (known.fingerprint(), known.prediction)


def agrees_with_its_table(scheduler: Any, atol: float = 1e-3) -> NoiseSchedule:
    """The noise schedule that is read of a scheduler, which has its table's levels."""
    noise, bar = noise_schedule_of(scheduler), scheduler.alphas_cumprod.double().numpy()
    kept = bar[:-1] if noise.zero_terminal_snr else bar  # the last stands for pure noise
    t = np.arange(1, len(kept) + 1) / len(bar)
    np.testing.assert_allclose(noise.lam(t), 0.5 * np.log(kept / (1 - kept)), atol=atol)
    assert (noise.kind, noise.num_train_timesteps) == ("vp", len(bar))
    return noise


@pytest.mark.parametrize("scaler", [1.0, 2.0, 0.5])
def test_wuerstchens_clipped_cosine(scaler: float) -> None:
    scheduler = diffusers.DDPMWuerstchenScheduler(scaler=scaler, s=0.008)
    noise = noise_schedule_of(scheduler)
    t = np.linspace(float(noise.t_min), 1.0, 500)
    bar = scheduler._alpha_cumprod(torch.from_numpy(t), "cpu").double().numpy()
    np.testing.assert_allclose(noise.alpha(t) ** 2, bar, atol=2e-7)
    assert bar[0] == pytest.approx(0.9999, abs=1e-6) and noise.alpha(1.0) ** 2 == pytest.approx(1e-4, rel=1e-6)
    assert not noise.zero_terminal_snr
    np.testing.assert_array_equal(noise.timestep(t), t)


@pytest.mark.skipif(not is_torchsde_available(), reason="CosineDPMSolverMultistepScheduler needs torchsde")
@pytest.mark.parametrize("rule", ["exponential", "karras"])
def test_stable_audios_sigmas_and_timesteps(rule: str) -> None:
    scheduler = diffusers.CosineDPMSolverMultistepScheduler(sigma_schedule=rule)
    scheduler.set_timesteps(9)
    noise, t = noise_schedule_of(scheduler), np.linspace(1.0, 0.0, 9)
    np.testing.assert_allclose(noise.ksigma(t), scheduler.sigmas[:-1], rtol=1e-5)
    np.testing.assert_allclose(noise.timestep(t), scheduler.timesteps, rtol=1e-5)


def test_a_table_set_by_hand_decides() -> None:
    scheduler = diffusers.DDIMScheduler(**SD)
    table = torch.linspace(0.999, 0.01, 1000)
    for last in (table[-1:], torch.tensor([2.0**-24])):
        scheduler.alphas_cumprod = torch.cat([table[:-1], last])
        noise = agrees_with_its_table(scheduler, atol=1e-6)
        assert noise.zero_terminal_snr == (noise.noise_end == -np.inf) == (float(last) <= 2.0**-24)
    assert same(noise_schedule_of(diffusers.DDIMScheduler(**SD)), noise_of("sd15"))


def test_flow() -> None:
    euler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    assert noise_schedule_of(euler).fingerprint() == noise_of("sd3-medium").fingerprint()
    assert noise_schedule_of(diffusers.UniPCMultistepScheduler(**FLOW)).fingerprint() == noise_of("wan21").fingerprint()
    dynamic = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    dynamic.set_timesteps(10, mu=1.15)
    noise = noise_schedule_of(dynamic, image_seq_len=4096)
    steps = np.linspace(1, 1 / 1000, 10)  # the parent shifts these
    np.testing.assert_allclose(noise.sigma(steps[1:]), dynamic.sigmas[1:-1], rtol=1e-5)
    assert noise_schedule_of(dynamic, image_seq_len=256).fingerprint() != noise.fingerprint()
    assert noise_schedule_of(dynamic, mu=1.15).fingerprint() == noise.fingerprint()
    assert float(noise_schedule_of(dynamic, mu=math.log(3.0)).sigma(0.5)) == pytest.approx(0.75)
    with pytest.raises(ValueError, match="mu is the logarithm"):
        noise_schedule_of(diffusers.DDIMScheduler(**SD), mu=1.0)


SQUARE_ROOT = {"time_shift_type": "linear", "base_shift": 0.25, "max_shift": 0.75}


@pytest.mark.parametrize(
    ("pipeline", "config", "tokens", "shift"),
    [
        ("FluxPipeline", {}, 4096, math.exp(1.15)),
        ("Flux2KleinPipeline", {}, 4096, flux2_shift(4096)),
        ("CogView4Pipeline", SQUARE_ROOT, 4096, 3.25),
        ("GlmImagePipeline", SQUARE_ROOT, 1024, 1.75),
        ("HunyuanVideoFramepackPipeline", {}, 65536, 7.0),
        ("HiDreamImagePipeline", {"max_shift": 0.9}, 256, math.exp(1.15)),
        ("Ideogram4Pipeline", {"use_dynamic_shifting": False}, 4096, 2.0),
    ],
)
def test_a_pipeline_s_own_rule_for_the_shift(pipeline: str, config: dict[str, Any], tokens: int, shift: float) -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(**{"use_dynamic_shifting": True, **config})
    for name in (pipeline, "MyOwn"):  # the class, and one that someone derived from it
        base = type(pipeline, (SimpleNamespace,), {})
        pipe = base(scheduler=scheduler) if name == pipeline else type(name, (base,), {})(scheduler=scheduler)
        assert noise_schedule_of(pipe, image_seq_len=tokens).ksigma(0.5) == pytest.approx(shift)


def test_krea_2_distilled_has_one_shift() -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    for distilled, mu in ((True, 1.15), (False, 0.5)):
        pipe = type("Krea2Pipeline", (SimpleNamespace,), {})(scheduler=scheduler, config={"is_distilled": distilled})
        assert noise_schedule_of(pipe, image_seq_len=256).ksigma(0.5) == pytest.approx(math.exp(mu))


SVD = {"timestep_type": "continuous", "prediction_type": "v_prediction", "sigma_min": 0.002, "sigma_max": 700.0}


def test_edm_and_stable_video() -> None:
    assert noise_schedule_of(diffusers.EDMEulerScheduler()).fingerprint() == noise_of("edm-cifar10").fingerprint()
    scheduler = diffusers.EulerDiscreteScheduler(**SD, **SVD)
    noise = noise_schedule_of(scheduler)
    assert noise.kind == "ve" and float(noise.ksigma(1.0)) == pytest.approx(700.0)
    schedule = Schedule.from_sigmas(noise, [700.0, 20.0, 1.0, 0.05])
    installed = with_schedule(scheduler, schedule)
    installed.set_timesteps(4)
    np.testing.assert_allclose(installed.timesteps, 0.25 * np.log([700.0, 20.0, 1.0, 0.05]), rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(installed.sigmas, [700.0, 20.0, 1.0, 0.05, 0.0], rtol=1e-12)
    with pytest.raises(ValueError, match="sigma_min and sigma_max"):
        noise_schedule_of(diffusers.EulerDiscreteScheduler(timestep_type="continuous", prediction_type="v_prediction"))


def test_pipelines_installed_schedulers_and_other_things() -> None:
    plain = diffusers.DDIMScheduler(**SD)
    installed = with_schedule(plain, Schedule.from_t(noise_of("sd15"), [0.9, 0.5]))
    assert (
        noise_schedule_of(SimpleNamespace(scheduler=installed)).fingerprint() == noise_schedule_of(plain).fingerprint()
    )
    assert noise_schedule_of(plain, name="mine").name == "mine"
    with pytest.raises(ValueError, match="need a diffusers scheduler"):
        noise_schedule_of(3)
    with pytest.raises(ValueError, match=r"IPNDMScheduler is not supported: .*; use PNDMScheduler or"):
        noise_schedule_of(diffusers.IPNDMScheduler())


NEED = {
    "AmusedScheduler": {"mask_token_id": 7},
    "RFD4ProteinaScheduler": {"schedule_mode": "log", "noise_mode": "1/t", "tsr_k": 1.0, "tsr_sigma": 1.0},
    "VQDiffusionScheduler": {"num_vec_classes": 7},
}
WAN_S_OWN = {"FlowDPMSolverMultistepScheduler", "FlowUniPCMultistepScheduler"}  # in no version of diffusers


def _every_class() -> dict[str, type]:
    """The scheduler classes of the whole package, its pipelines and what is deprecated included."""
    root, found = Path(diffusers.__file__).parent, {}
    for file in root.rglob("*.py"):
        if names := re.findall(r"^class (\w*Scheduler)\(.*SchedulerMixin", file.read_text(), re.M):
            module = importlib.import_module(".".join(["diffusers", *file.relative_to(root).with_suffix("").parts]))
            found.update({name: getattr(module, name) for name in names})
    return found


EVERY = _every_class()
if not is_torchsde_available():
    for needs in ("DPMSolverSDEScheduler", "CosineDPMSolverMultistepScheduler"):
        EVERY.pop(needs)


def by_both(scheduler: Any) -> list[NoiseSchedule | str]:
    """What the two doors make of a scheduler: of the config that it saves, and of itself."""
    found: list[NoiseSchedule | str] = []
    for door, given in ((from_config, json.loads(scheduler.to_json_string())), (noise_schedule_of, scheduler)):
        try:
            found.append(door(given))  # type: ignore[operator]
        except ValueError as error:
            found.append(str(error))
    return found


def test_every_class_is_in_one_table() -> None:
    assert len(EVERY) > 50
    assert set(EVERY) <= set(CLASSES) | set(REFUSED) and not set(CLASSES) & set(REFUSED)
    assert set(CLASSES) <= set(ROWS) | set(INSTEAD) | WAN_S_OWN
    assert all(issubclass(cls, SchedulerMixin) for cls in EVERY.values())


READ_AS_VP = [name for name in EVERY if name in CLASSES and CLASSES[name].family == "vp"]
TABLES: dict[str, dict[str, Any]] = {
    **{rule: {"beta_schedule": rule} for rule in (*BETA_RULES, "cosine", "sigmoid", "exp")},
    "sd": SD,
    "trained": {"trained_betas": np.linspace(1e-4, 0.03, 1000)},
    "zero SNR": {**SD, "rescale_betas_zero_snr": True},
}


@pytest.mark.parametrize("name", READ_AS_VP)
def test_each_class_is_read_as_its_table(name: str) -> None:
    known = inspect.signature(EVERY[name].__init__).parameters
    for rule in (rule for rule, config in TABLES.items() if config.keys() <= known.keys()):
        try:
            scheduler = EVERY[name](**TABLES[rule])
        except (NotImplementedError, ValueError):
            with pytest.raises(ValueError, match=f"{name}: beta_schedule is '{rule}'; use one of"):
                from_config({**TABLES[rule], "_class_name": name})
            continue
        noise = agrees_with_its_table(scheduler, atol=2e-3)
        if rule not in ("sigmoid", "exp"):  # which only diffusers knows: no config says their table
            assert same(from_config(json.loads(scheduler.to_json_string())), noise), rule
        assert noise.zero_terminal_snr == (rule == "zero SNR")


# Keys and values as configs have them; each class takes those that it knows.
OFTEN: dict[str, dict[str, Any]] = {
    "nothing": {},
    "rescaled": {**SD, "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
    "trained": {"trained_betas": np.linspace(1e-4, 0.03, 1000)},
    "few levels": {**SD, "num_train_timesteps": 100},
    "SNR shift": {**SD, "snr_shift_scale": 2.0, "rescale_betas_zero_snr": True},
    "clipped": {**SD, "clip_sample": True, "thresholding": True, "sample_max_value": 3.0},
    "spaced": {**SD, "use_karras_sigmas": True, "timestep_spacing": "trailing", "steps_offset": 1},
    "flow": {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0, "shift": 3.0},
    "stretched": {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "shift_terminal": 0.1, "shift": 2.0},
    "from data to noise": {"invert_sigmas": True, "shift": 2.0},
    "dynamic": {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "use_dynamic_shifting": True},
    "EDM": {"sigma_min": 0.01, "sigma_max": 50.0, "sigma_data": 1.0, "rho": 5.0, "interpolation_type": "log_linear"},
    "SVD": {**SD, **SVD, "sigma_data": 1.0},
}


@pytest.mark.parametrize("name", EVERY)
def test_both_doors_read_what_configs_often_say(name: str) -> None:
    if name in REFUSED:
        assert by_both(EVERY[name](**NEED.get(name, {}))) == [f"{name} is not supported: {REFUSED[name]}"] * 2
        return
    known = inspect.signature(EVERY[name].__init__).parameters
    for case, often in OFTEN.items():
        given = {key: value for key, value in often.items() if key in known}
        if name == "UnCLIPScheduler":  # it knows one rule
            given.pop("beta_schedule", None)
        by_path, at_hand = by_both(EVERY[name](**given))
        if case == "nothing":
            assert isinstance(by_path, NoiseSchedule) and isinstance(at_hand, NoiseSchedule)
        if isinstance(by_path, str) or isinstance(at_hand, str):
            assert by_path == at_hand, case
        else:
            assert same(by_path, at_hand), case


def test_a_derived_class_is_read_as_its_parent() -> None:
    class Mine(diffusers.DDIMScheduler):  # type: ignore[misc]
        pass

    assert noise_schedule_of(Mine(**SD)).fingerprint() == noise_schedule_of(diffusers.DDIMScheduler(**SD)).fingerprint()


@pytest.mark.parametrize("name", sorted(WAN_S_OWN))
def test_wan_s_and_hidream_s_own_classes(name: str) -> None:
    noise = from_config({"_class_name": name, "shift": 3.0, "prediction_type": "flow_prediction"})
    assert noise.kind == "flow" and noise.ksigma(0.5) == pytest.approx(3.0)


V = {**SD, "prediction_type": "v_prediction", "snr_shift_scale": 1.0}
# What a config of the model says, as its JSON file does.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "rescale_betas_zero_snr": ("EulerDiscreteScheduler", {**V, "rescale_betas_zero_snr": True}),
    "snr_shift_scale": ("CogVideoXDDIMScheduler", {**V, "snr_shift_scale": 3.0}),
    "timestep_type": ("EulerDiscreteScheduler", {**V, **SVD}),
}
DATA_STD = 0.5
STEPS = 200
OPTIONS = {"skip_prk_steps": True, "clip_sample": False}


def made_from(name: str, key: str) -> Any:
    """A scheduler of the class `name` from the config of a model that has `key`."""
    cls = getattr(diffusers, name)
    known = inspect.signature(cls.__init__).parameters
    return cls.from_config(MODELS[key][1], **{k: v for k, v in OPTIONS.items() if k in known})


def predicted_v(noise: Any, z: torch.Tensor, timestep: float) -> torch.Tensor:
    """What a perfect network of data N(0, DATA_STD^2) says, told a timestep, of a sample scaled as VP."""
    if noise.kind == "ve":
        k = np.exp(4.0 * timestep)
    else:  # beyond the last level but one the model of zero terminal SNR sees noise alone
        t = (timestep + 1.0) / noise.num_train_timesteps
        k = np.inf if noise.zero_terminal_snr and t > 1.0 - 1e-6 else float(noise.ksigma(t))
    alpha, sigma = 1.0 / np.hypot(1.0, k), 1.0 if np.isinf(k) else k / np.hypot(1.0, k)
    return z * (alpha * sigma * (1.0 - DATA_STD**2) / (alpha**2 * DATA_STD**2 + sigma**2))


IGNORING = [(name, key) for key in MODELS for name in ROWS if name in READ_AS_VP and key not in CLASSES[name].reads]


@pytest.mark.parametrize(("name", "key"), IGNORING)
def test_ignored_keys_describe_the_model_by_both_doors(name: str, key: str) -> None:
    origin, config = MODELS[key]
    model, t = from_config({**config, "_class_name": origin}), np.linspace(0.05, 0.95, 9)
    for read in (bridge.noise_schedule_of(made_from(name, key)), from_config({**config, "_class_name": name})):
        assert (read.kind, read.prediction) == (model.kind, model.prediction)
        np.testing.assert_allclose(read.lam(t), model.lam(t), atol=1e-12)


def refused(name: str, key: str) -> bool:
    """Its steps go by its own training table, which is another model's."""
    return ROWS[name].layout == "grid" or (key == "timestep_type" and ROWS[name].layout in ("table", "plms"))


@pytest.mark.parametrize(("name", "key"), [x for x in IGNORING if refused(*x)])
def test_a_class_of_other_levels_is_refused(name: str, key: str) -> None:
    scheduler = made_from(name, key)
    schedule = baseline("karras", bridge.noise_schedule_of(scheduler), 6)
    with pytest.raises(ValueError, match=f"{name} ignores {key} of its config.*use {READERS[key]}.from_config"):
        bridge.with_schedule(scheduler, schedule)


@pytest.mark.parametrize(("name", "key"), [x for x in IGNORING if not refused(*x)])
def test_the_others_sample_right_and_warn(name: str, key: str) -> None:
    scheduler, steps = made_from(name, key), 50 if name == "DPMSolverSDEScheduler" else STEPS
    noise = bridge.noise_schedule_of(scheduler)
    with pytest.warns(UserWarning, match=f"{name} ignores {key} of its config"):
        installed = bridge.with_schedule(scheduler, baseline("karras", noise, steps))
    installed.set_timesteps(steps)
    draws = torch.Generator().manual_seed(0)
    sample = torch.randn(4000, 1, 1, 1, generator=draws, dtype=torch.float64) * installed.init_noise_sigma
    seeded = {"generator": draws} if "generator" in inspect.signature(installed.step).parameters else {}
    for timestep in installed.timesteps:
        seen = installed.scale_model_input(sample, timestep)
        sample = installed.step(predicted_v(noise, seen, float(timestep)), timestep, sample, **seeded).prev_sample
    assert float(sample.std()) == pytest.approx(DATA_STD, rel=0.06)


KEYED = [name for name in ROWS if name != "DPMSolverSDEScheduler" or is_torchsde_available()]


@pytest.mark.parametrize("name", KEYED)
def test_the_table_says_what_diffusers_classes_read(name: str) -> None:
    known = inspect.signature(getattr(diffusers, name).__init__).parameters
    assert {key for key in READERS if key in CLASSES[name].reads} == {key for key in READERS if key in known}
    for default, parameter in zip(CLASSES[name].betas, ("beta_start", "beta_end", "beta_schedule"), strict=True):
        assert parameter not in known or known[parameter].default == default


FLOW_KEYS = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
CONTRADICTIONS = {
    "flow in VP": ("UniPCMultistepScheduler", {"shift": 3.0}, "shift is 3.0, .* a flow model's"),
    "flow in DDIM": ("DDIMScheduler", {"base_shift": 0.5}, "base_shift is 0.5, .* a flow model's"),
    "EDM in VP": ("EulerDiscreteScheduler", {"sigma_data": 0.5}, "sigma_data is 0.5, .*EDMEulerScheduler"),
    "Wuerstchen in VP": ("DDPMScheduler", {"scaler": 1.0}, "scaler is 1.0, .*DDPMWuerstchenScheduler"),
    "VP in flow": ("FlowMatchEulerDiscreteScheduler", SD, "beta_schedule is .*, .*UniPCMultistepScheduler"),
    "VP in EDM": ("EDMEulerScheduler", SD, "beta_schedule is .*, .*UniPCMultistepScheduler"),
    "flow in EDM": ("EDMEulerScheduler", FLOW_KEYS, "use_flow_sigmas is True, .*FlowMatchEulerDiscreteScheduler"),
    "SVD in EDM": ("EDMEulerScheduler", MODELS["timestep_type"][1], r"EDMEulerScheduler.from_config\(.*sigma_data=1.0"),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_another_familys_config_is_refused_by_both_doors(case: str) -> None:
    name, config, match = CONTRADICTIONS[case]
    messages = []
    for door, given in (
        (from_config, {**config, "_class_name": name}),
        (bridge.noise_schedule_of, getattr(diffusers, name).from_config(config)),
    ):
        with pytest.raises(ValueError, match=match) as caught:
            door(given)  # type: ignore[operator]
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


@pytest.mark.parametrize(
    ("name", "config", "match"),
    [
        ("EulerDiscreteScheduler", {"use_flow_sigmas": True}, "ignores use_flow_sigmas .*use UniPCMultistepScheduler"),
        ("DDIMScheduler", {"use_flow_sigmas": True}, "ignores use_flow_sigmas .*use UniPCMultistepScheduler"),
        ("FlowMatchHeunDiscreteScheduler", {"invert_sigmas": True}, "ignores invert_sigmas .*use FlowMatchEuler"),
        ("UniPCMultistepScheduler", {**FLOW_KEYS, "invert_sigmas": True}, "ignores invert_sigmas .*use FlowMatchEuler"),
    ],
)
def test_flow_models_need_a_class_that_knows_them(name: str, config: dict[str, Any], match: str) -> None:
    scheduler = getattr(diffusers, name).from_config(config)
    with pytest.raises(ValueError, match=match):
        bridge.with_schedule(scheduler, baseline("trailing", bridge.noise_schedule_of(scheduler), 4))


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("FlowMatchEulerDiscreteScheduler", {**FLOW_KEYS, **SD, "flow_shift": 3.0}),
        ("FlowMatchHeunDiscreteScheduler", {"flow_shift": 3.0}),
        ("UniPCMultistepScheduler", {**FLOW_KEYS, "shift": 3.0}),
    ],
)
def test_a_shift_under_the_other_class_s_name(name: str, config: dict[str, Any]) -> None:
    scheduler = getattr(diffusers, name).from_config(config)
    for noise in (bridge.noise_schedule_of(scheduler), from_config({**config, "_class_name": name})):
        assert noise.sigma(0.5) == pytest.approx(0.75)  # 3 s / (1 + 2 s)


SOLVERS = [
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


@pytest.mark.parametrize(("kind", "config", "name"), SOLVERS)
def test_solver_of_a_scheduler(kind: str, config: dict, name: str) -> None:
    scheduler = getattr(diffusers, kind)(**config)
    assert bridge.solver_of(scheduler) == name
    schedule = Schedule.from_t(bridge.noise_schedule_of(scheduler), [0.9, 0.5, 0.2])
    assert bridge.solver_of(bridge.with_schedule(scheduler, schedule)) == name


@pytest.mark.parametrize("kind", ["EulerAncestralDiscreteScheduler", "DEISMultistepScheduler", "sde-dpmsolver++"])
def test_other_solvers_are_refused_by_name(kind: str) -> None:
    stochastic = diffusers.DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++")
    scheduler = stochastic if kind.startswith("sde") else getattr(diffusers, kind)()
    with pytest.raises(ValueError, match=f"{type(scheduler).__name__}.*pass solver= ddim, dpmpp-2m"):
        bridge.solver_of(scheduler)
