"""What the ComfyUI nodes answer to MODELs of every kind, without ComfyUI: its classes by their names and formulas."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mixture import denoise, start
from test_comfyui import Patcher, call, discrete, float32, shifted
from test_comfyui import nodes as nodes  # the fixture
from test_comfyui_recommend import recommend
from test_comfyui_sampler import _comfy as _comfy  # the fixture

import hso_jax
from bridge import sample
from hso_jax import baseline, preset, save, solver_error, zoo
from hso_jax.baselines import inapplicable
from hso_jax.noise.families import beta_table, rescale_zero_terminal_snr
from hso_jax.optional_jax import INSTALLED

COMFYUI_ZERO = 4.8973451890853435e-08
"""alphas_cumprod where ComfyUI's tables of zero terminal SNR end."""

RULES = ("trailing", "karras", "beta-t", "uniform-lam")


def table(who: str, betas: np.ndarray, *kinds: str, zero_snr: bool = False) -> Patcher:
    """A MODEL of ComfyUI's ModelSamplingDiscrete on these betas."""
    bar = np.cumprod(1.0 - betas)
    if zero_snr:
        bar = np.append(rescale_zero_terminal_snr(bar)[:-1], COMFYUI_ZERO)
    sigmas = torch.tensor(np.sqrt((1.0 - bar) / bar), dtype=torch.float32)
    ends = {"sigma_min": sigmas[0], "sigma_max": sigmas[-1]}
    return Patcher(who, "ModelSamplingDiscrete", *kinds, sigmas=sigmas, **ends)


def continuous(who: str, low: float, high: float, *kinds: str) -> Patcher:
    ends = {"sigma_min": torch.tensor(low), "sigma_max": torch.tensor(high)}
    return Patcher(who, "ModelSamplingContinuousEDM", *kinds, **ends)


SD = beta_table("scaled_linear", 0.00085, 0.012, 1000)
ZERO = table("SDXL", SD, "V_PREDICTION", "EPS", zero_snr=True)
COGVIDEOX = table("CogVideoX_T2V", SD, "V_PREDICTION_DDPM", zero_snr=True)
SVD = continuous("SVD_img2vid", 0.002, 700.0, "V_PREDICTION", "EPS")
KOLORS = table("Kolors", beta_table("scaled_linear", 0.00085, 0.014, 1100), "EPS")
NOT_SHIPPED = {
    "svd": SVD,
    "cosxl": continuous("SDXL", 0.002, 120.0, "V_PREDICTION", "EPS"),
    "stable-audio": continuous("StableAudio", 0.03, 500.0, "ModelSamplingContinuousV", "V_PREDICTION", "EPS"),
    "kolors": KOLORS,
    "hunyuan-dit": table("HunyuanDiT1", beta_table("scaled_linear", 0.00085, 0.03, 1000), "V_PREDICTION", "EPS"),
    "upscaler": table("SD_X4Upscaler", beta_table("scaled_linear", 0.0001, 0.02, 1000), "V_PREDICTION", "EPS"),
    "x0": table("SDXL", beta_table("scaled_linear", 0.00085, 0.02, 1000), "X0", "EPS"),
}


@pytest.mark.parametrize("model", [ZERO, COGVIDEOX], ids=["v-prediction", "CogVideoX"])
def test_zero_terminal_snr_begins_at_comfyui_s_last_level(nodes: ModuleType, model: Patcher, tmp_path: Path) -> None:
    wanted = zoo("cogvideox-5b", 6, "dpmpp-2m", guidance=6.0).sampler_sigmas()
    assert np.isinf(wanted[0])
    wanted[0] = math.sqrt((1.0 - COMFYUI_ZERO) / COMFYUI_ZERO)
    inputs = {"diffusion_model": model, "guidance": 6.0, "solver": "dpmpp_2m"}
    np.testing.assert_allclose(call(nodes, "HsoScheduler", model="from MODEL", **inputs), wanted, rtol=2e-3)
    path = str(tmp_path / "s.json")
    save(zoo("cogvideox-5b", 6, "dpmpp-2m", guidance=6.0), path)
    np.testing.assert_allclose(call(nodes, "HsoScheduleFile", path=path, diffusion_model=model), wanted, rtol=1e-6)
    _, sigmas, why = recommend(nodes, model="from MODEL", guidance=6.0, diffusion_model=model)
    assert float(sigmas[0]) == float(model.sampling.sigma_max) and "Expect about" in why
    save(zoo("sdxl", 6, "dpmpp-2m"), path)
    with pytest.raises(ValueError, match=r"made for sdxl, .* do not fit .* then pure noise"):
        call(nodes, "HsoScheduleFile", path=path, diffusion_model=model)


def test_cogvideox_samples_are_scaled_for_its_network(nodes: ModuleType) -> None:
    """ComfyUI gives the network x0 + sigma eps as it is; this sampler divides, as a VP network needs."""
    sampler, sigmas, _ = recommend(nodes, model="from MODEL", guidance=6.0, diffusion_model=COGVIDEOX)

    def network(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        alpha = 1.0 / math.hypot(1.0, float(sigma[0]))
        return denoise(x, alpha, float(sigma[0]) * alpha)

    found = hso_jax.recommend("cogvideox-5b", 6, guidance=6.0).schedule
    got = sampler.run(network, math.hypot(1.0, float(sigmas[0])) * start(), sigmas)
    want = sample(lambda x, level: denoise(x, level.alpha, level.sigma), found, start())
    np.testing.assert_allclose(got, want, atol=2e-3)


@pytest.mark.parametrize("scale", [1.0, 7.5, 8.0])
def test_a_flow_model_s_noise_scale_is_in_its_levels(nodes: ModuleType, scale: float) -> None:
    """x = (1 - s) x0 + s scale eps, so that sigma/alpha is scale s / (1 - s): HiDream-O1's are 8 and 7.5."""
    model = shifted("HiDreamO1", 3.0)
    model.sampling.noise_scale = scale
    for steps in (6, 20):
        sampler, sigmas, _ = recommend(nodes, model="from MODEL", steps=steps, guidance=5.0, diffusion_model=model)
        s = np.array(sampler.options["nodes"])[1:-1]
        wanted = hso_recommended(steps)
        np.testing.assert_allclose(scale * s / (1.0 - s), wanted, rtol=1e-5)
        assert float(sigmas[0]) == 1.0
        np.testing.assert_allclose(sigmas, sampler.options["nodes"], rtol=1e-6)
    inputs = {"model": "sd3-medium", "method": "trailing"}  # of another family, too
    s = call(nodes, "HsoScheduler", diffusion_model=model, **inputs).numpy()[1:-1]
    plain = call(nodes, "HsoScheduler", **inputs).numpy()[1:-1]
    np.testing.assert_allclose(scale * s / (1.0 - s), plain / (1.0 - plain), rtol=1e-4)


def hso_recommended(steps: int) -> np.ndarray:
    """Sigma/alpha of what is recommended for a flow model of guidance 5, between its ends."""
    return hso_jax.recommend(preset("wan21"), steps, guidance=5.0, distilled=False).schedule.sigmas[1:]


@pytest.mark.parametrize(
    ("name", "steps", "denoise"),
    [
        *((name, 6, 1.0) for name in NOT_SHIPPED),
        ("svd", 1, 1.0),
        ("x0", 20, 1.0),
        ("kolors", 6, 0.25),
        ("svd", 20, 0.05),
    ],
)
def test_what_nothing_is_shipped_for_takes_the_nearest(
    nodes: ModuleType, name: str, steps: int, denoise: float
) -> None:
    model = NOT_SHIPPED[name]
    _, sigmas, why = recommend(
        nodes, model="from MODEL", steps=steps, denoise=denoise, guidance=5.0, diffusion_model=model
    )
    assert len(sigmas) == steps + 1 and (sigmas.diff() < 0).all() and sigmas[-1] == 0
    first = float(sigmas[0]) / float(model.sampling.sigma_max)
    assert first == pytest.approx(1.0, rel=1e-3) if denoise == 1.0 and name != "kolors" else first < 1.001
    assert ("nothing is shipped: they are made for noise up to" in why) and ("between" in why) == (denoise < 1.0)


@pytest.mark.slow
@pytest.mark.skipif(not INSTALLED, reason="the predicted error needs JAX")
@pytest.mark.parametrize(
    ("model", "steps", "guidance"),
    [
        # Beyond the 20 steps that are shipped Karras' rule with UniPC-2 has 9% less error than the fitted nodes.
        pytest.param("sdxl", 24, 5.0, marks=pytest.mark.xfail(strict=True)),
        ("qwen-image", 30, 4.0),
        (KOLORS, 10, 5.0),
    ],
)
def test_the_nearest_is_better_than_every_rule(nodes: ModuleType, model: Any, steps: int, guidance: float) -> None:
    """By the solver's error on the reference problems, for the solver that is chosen."""
    noise = preset(model) if isinstance(model, str) else inside(nodes, "model").noise_of(model)
    found, _ = inside(nodes, "model").fitted(noise, steps, guidance)
    error = solver_error(found, noise, guidance=guidance)
    rules = [baseline(rule, noise, steps) for rule in RULES if not inapplicable(rule, noise)]
    assert error < min(solver_error(rule, noise, solver=found.solver, guidance=guidance) for rule in rules)


def inside(nodes: ModuleType, module: str) -> ModuleType:
    return sys.modules[f"{nodes.__name__}.{module}"]


@pytest.mark.parametrize("denoise", [0.25, 0.2])
def test_more_steps_than_are_shipped_are_the_last_of_so_many(nodes: ModuleType, denoise: float) -> None:
    """int(6 / denoise) is 24 and 30: shipped are 20, whose ends they have."""
    _, sigmas, why = recommend(nodes, model="sdxl", steps=6, denoise=denoise)
    shipped = zoo("sdxl", 20).sampler_sigmas()
    assert float(sigmas[-2]) == pytest.approx(shipped[-2], rel=1e-6) and f"For {int(6 / denoise)} steps" in why
    before = np.interp(np.log(sigmas[:-1]), np.log(shipped[-2::-1]), np.arange(20.0)[::-1])
    np.testing.assert_allclose(np.diff(before), 19.0 / (int(6 / denoise) - 1), rtol=0.2)


class CONST:
    """ComfyUI's mixing of noise into a flow model's sample, by name."""


def test_a_class_that_mixes_noise_in_its_own_way_is_refused(nodes: ModuleType) -> None:
    for kind in ("IMG_TO_IMG", "IMG_TO_IMG_FLOW"):
        with pytest.raises(ValueError, match=r"MODEL LotusD .* maps pictures to pictures.*use BasicScheduler"):
            recommend(
                nodes, model="from MODEL", guidance=1.0, diffusion_model=discrete("LotusD", "sdxl", kind, "CONST")
            )
    model = shifted("Custom", 3.0)
    rescaled = type("Rescaled", (CONST,), {"noise_scaling": lambda self, sigma, noise, latent: latent})
    model.sampling = rescaled()
    with pytest.raises(ValueError, match=r"MODEL Custom .* unknown kind \(Rescaled\).*use BasicScheduler"):
        recommend(nodes, model="from MODEL", guidance=1.0, diffusion_model=model)


@pytest.mark.parametrize("model", ["z-image", "from MODEL"])
@pytest.mark.parametrize("shift", [3.0, 6.0])
def test_the_few_step_grid_has_the_connected_model_s_shift(nodes: ModuleType, model: str, shift: float) -> None:
    """ComfyUI's ZImage has 3, which is Turbo's; ModelSamplingAuraFlow sets another."""
    inputs = {"diffusion_model": shifted("ZImage", shift), "guidance": 1.0}
    sampler, sigmas, _ = recommend(nodes, model=model, steps=8, **inputs)
    t = 1.0 - np.arange(9) / 8
    np.testing.assert_allclose(sigmas, shift * t / (1.0 + (shift - 1.0) * t), atol=1e-3)
    assert sampler == "euler"


def test_a_derived_configuration_has_its_base_s_usual_guidance(nodes: ModuleType) -> None:
    model = shifted("WAN22_Camera", 8.0)
    config = type("WAN22_Camera", (type("WAN21_T2V", (), {}),), {})
    model.model = SimpleNamespace(model_config=config())
    assert recommend(nodes, model="from MODEL", steps=4, guidance=1.0, diffusion_model=model)[0] == "euler"
    flux = shifted("Flux", 3.16)  # guidance is an input of its network
    assert recommend(nodes, model="from MODEL", steps=4, guidance=1.0, diffusion_model=flux)[0] != "euler"


@pytest.mark.parametrize("shift", [0.0, 1e30])
def test_a_shift_that_leaves_no_levels_is_refused(nodes: ModuleType, shift: float) -> None:
    with pytest.raises(ValueError, match="leave no levels between noise and picture; disconnect the node"):
        recommend(nodes, model="from MODEL", guidance=1.0, diffusion_model=shifted("SD3", shift))


def test_menus_have_what_can_succeed_and_everything_a_tooltip(nodes: ModuleType) -> None:
    for name, cls in nodes.NODE_CLASS_MAPPINGS.items():
        inputs = cls.INPUT_TYPES()
        declared = {**inputs["required"], **inputs["optional"]}
        assert all(len(entry) > 1 and entry[1]["tooltip"] for entry in declared.values()), name
        assert len(cls.OUTPUT_TOOLTIPS) == len(cls.RETURN_TYPES) and all(cls.OUTPUT_TOOLTIPS)
        if "model" in declared:
            assert not {"ddpm-cifar10", "edm-cifar10", "dit-xl-2"} & set(declared["model"][0])
        if "solver" in declared:
            assert {"euler", "dpmpp_2m", "uni_pc_bh2"} <= set(declared["solver"][0])
    rules = nodes.NODE_CLASS_MAPPINGS["HsoSampler"].INPUT_TYPES()["required"]["method"][0]
    assert rules == ["zoo", "solver-error"]  # the others are made for no solver


def test_choices_of_older_graphs_still_run(nodes: ModuleType) -> None:
    """ComfyUI leaves an input to the node where VALIDATE_INPUTS names it."""
    for name, old in (
        ("HsoScheduler", {"model": "edm-cifar10", "method": "zoo", "solver": "dpmpp-2m"}),
        ("HsoScheduler", {"model": "ddpm-cifar10", "solver": "ddim"}),
        ("HsoScheduler", {"model": "dit-xl-2", "solver": "unipc-3"}),
    ):
        cls = nodes.NODE_CLASS_MAPPINGS[name]
        assert cls.VALIDATE_INPUTS(**old) is True
        np.testing.assert_array_equal(call(nodes, name, **old), float32(zoo(old["model"], 6, old["solver"])))
    assert nodes.NODE_CLASS_MAPPINGS["HsoRecommend"].VALIDATE_INPUTS(model="edm-cifar10") is True
    assert nodes.NODE_CLASS_MAPPINGS["HsoScheduleFile"].VALIDATE_INPUTS(solver="dpmpp-2m") is True


def test_comfyui_s_names_are_the_package_s_solvers(nodes: ModuleType, tmp_path: Path) -> None:
    path = str(tmp_path / "s.json")
    save([zoo("sdxl", 6, solver) for solver in ("ddim", "dpmpp-2m", "unipc-3")], path)
    for theirs, ours in (("euler", "ddim"), ("dpmpp_2m", "dpmpp-2m"), ("uni_pc_bh2", "unipc-3")):
        wanted = float32(zoo("sdxl", 6, ours))
        np.testing.assert_array_equal(call(nodes, "HsoScheduler", solver=theirs), wanted)
        np.testing.assert_array_equal(call(nodes, "HsoScheduleFile", path=path, solver=theirs), wanted)


def test_a_file_is_looked_for_in_comfyui_s_folders(
    nodes: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = {name: tmp_path / name for name in ("input", "output", "models", "server")}
    for folder in folders.values():
        folder.mkdir()
    monkeypatch.chdir(folders["server"])
    theirs = SimpleNamespace(
        get_input_directory=lambda: str(folders["input"]),
        get_output_directory=lambda: str(folders["output"]),
        models_dir=str(folders["models"]),
    )
    monkeypatch.setitem(sys.modules, "folder_paths", theirs)
    with pytest.raises(FileNotFoundError, match=r"there is no file s\.json in .*; copy it there") as refused:
        call(nodes, "HsoScheduleFile", path="s.json")
    assert all(str(folder) in str(refused.value) for folder in folders.values())
    changed = nodes.NODE_CLASS_MAPPINGS["HsoScheduleFile"].IS_CHANGED
    for folder in folders.values():
        save(zoo("sdxl", 6, "dpmpp-2m"), folder / "s.json")
        assert len(call(nodes, "HsoScheduleFile", path='"s.json"')) == 7 and changed(path="s.json") > 0
        (folder / "s.json").unlink()
    assert math.isnan(changed(path="s.json"))


def test_every_refusal_is_one_short_sentence_without_code(nodes: ModuleType, tmp_path: Path) -> None:
    sdxl, flux = discrete("SDXL", "sdxl"), shifted("Flux", 3.16)
    refused: list[dict[str, Any]] = [
        {"model": "from MODEL"},
        {"model": "from MODEL", "diffusion_model": sdxl},
        {"model": "sdxl", "diffusion_model": flux},
        {"model": "sd9"},
        {"method": "nope"},
        {"model": "flux-dev", "method": "ays"},
        {"model": "cogvideox-5b"},
        {"steps": 100, "denoise": 0.05},
        {"model": "sdxl", "diffusion_model": discrete("LotusD", "sdxl", "IMG_TO_IMG", "EPS")},
        {"path": ""},
        {"path": str(tmp_path / "no.json")},
    ]
    for inputs in refused:
        with pytest.raises((ValueError, OSError)) as error:
            call(nodes, "HsoScheduleFile" if "path" in inputs else "HsoScheduler", **inputs)
        text = str(error.value)
        assert len(text.replace(str(tmp_path), "")) <= 220, text
        assert ". " not in text.replace("...", "") and "=" not in text.replace("sigma = ", ""), text
