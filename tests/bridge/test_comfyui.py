"""The ComfyUI nodes, loaded as ComfyUI loads them, but without it."""

from __future__ import annotations

import importlib.util
import math
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import bridge
from hso_jax import Hso, Lane, NoiseSchedule, Schedule, baseline, preset, save, zoo
from hso_jax.baselines import BASELINES
from hso_jax.noise import PRESETS
from hso_jax.searches import checked

FOLDER = Path(bridge.__file__).parent / "comfyui"


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The package, linked into a folder and imported from there by its path, as ComfyUI does."""
    link = tmp_path_factory.mktemp("custom_nodes") / "hso-jax"
    link.symlink_to(FOLDER, target_is_directory=True)
    name = str(link).replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(name, link / "__init__.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def outputs(nodes: ModuleType, node: str, **inputs: Any) -> tuple[Any, ...]:
    """Run a node as ComfyUI does: by its FUNCTION, with defaults for what is not connected."""
    cls = nodes.NODE_CLASS_MAPPINGS[node]
    declared = {**cls.INPUT_TYPES()["required"], **cls.INPUT_TYPES()["optional"]}
    values = {}
    for name, (kind, options) in declared.items():
        values[name] = options.get("default", kind[0] if isinstance(kind, list) else None)
    assert set(inputs) <= set(values)
    result = getattr(cls(), cls.FUNCTION)(**{**values, **inputs})
    assert isinstance(result, tuple) and len(result) == len(cls.RETURN_TYPES)
    return result


def call(nodes: ModuleType, node: str, **inputs: Any) -> torch.Tensor:
    """The output of a node that gives SIGMAS alone."""
    (sigmas,) = outputs(nodes, node, **inputs)
    return sigmas


def float32(schedule: Schedule, last: int = 0) -> np.ndarray:
    """The sigmas of a schedule, or of its last steps, as a node gives them."""
    return schedule.sampler_sigmas()[-(last + 1) if last else 0 :].astype(np.float32)


def basic_scheduler(all_sigmas: Any, steps: int, denoise: float) -> torch.Tensor:
    """ComfyUI's BasicScheduler, with `calculate_sigmas` replaced."""
    total_steps = steps
    if denoise < 1.0:
        if denoise <= 0.0:
            return torch.FloatTensor([])
        total_steps = int(steps / denoise)
    return all_sigmas(total_steps)[-(steps + 1) :]


@pytest.mark.parametrize("model", ["sd15", "sdxl", "sd3-medium", "flux-dev", "edm-cifar10"])
@pytest.mark.parametrize("layout", ["node", "interval"])
def test_sigmas_of_a_rule(nodes: ModuleType, model: str, layout: str) -> None:
    for steps in (1, 5, 20):
        sigmas = call(nodes, "HsoScheduler", model=model, steps=steps, layout=layout, method="trailing")
        assert sigmas.dtype == torch.float32 and sigmas.shape == (steps + 1,)
        np.testing.assert_array_equal(sigmas, float32(baseline("trailing", preset(model), steps, layout=layout)))
        assert (sigmas.diff() < 0).all() and (sigmas[-1] == 0) == (layout == "node")
        assert preset(model).kind != "flow" or sigmas[0] <= 1.0
        clean = call(nodes, "HsoScheduler", model=model, steps=steps, layout=layout, method="trailing", end="clean")
        assert clean[-1] == 0 and torch.equal(clean[:-1], sigmas[:-1])


def test_the_default_is_what_the_zoo_ships_for_the_family_s_usual_guidance(nodes: ModuleType) -> None:
    for model in ("sd15", "sdxl", "flux-dev", "edm-cifar10"):
        np.testing.assert_array_equal(call(nodes, "HsoScheduler", model=model), float32(zoo(model, 6, "dpmpp-2m")))
    for solver, guidance in (("ddim", 1.0), ("unipc-3", 7.5)):
        sigmas = call(nodes, "HsoScheduler", model="sd15", solver=solver, guidance=guidance)
        np.testing.assert_array_equal(sigmas, float32(zoo("sd15", 6, solver, guidance=guidance)))


@pytest.mark.parametrize(
    ("inputs", "options"),
    [
        ({"method": "solver-error"}, {"guidance": 5.0}),
        ({"method": "zoo", "guidance": 6.3, "solver": "ddim"}, {"guidance": 6.3, "solver": "ddim"}),
        ({"method": "zoo", "steps": 21}, {"nfe": 21, "guidance": 5.0}),
        ({"method": "zoo", "layout": "interval"}, {"layout": "interval", "guidance": 5.0}),
        ({"method": "hso"}, {"relax": True, "p": 2.0}),
    ],
)
def test_what_is_searched(
    nodes: ModuleType, monkeypatch: pytest.MonkeyPatch, inputs: dict[str, Any], options: dict[str, Any]
) -> None:
    """The search itself is replaced by one that checks the lane."""
    asked: dict[str, Any] = {}

    def search(noise: NoiseSchedule, nfe: int, **given: Any) -> Schedule:
        asked.update(given, **vars(given["method"]), nfe=nfe)
        checked([Lane(noise, nfe, given["layout"], method=given["method"])])
        return baseline("trailing", noise, nfe, layout=given["layout"])

    nodes_module = sys.modules[nodes.__name__ + ".nodes"]
    monkeypatch.setattr("hso_jax.searches.search", search)
    monkeypatch.setattr(nodes_module, "_FOUND", {})
    sigmas = call(nodes, "HsoScheduler", **inputs)
    wanted = {"nfe": 6, "layout": "node", **options}
    assert isinstance(asked["method"], Hso) == (inputs["method"] == "hso")
    assert {name: asked[name] for name in wanted} == wanted and len(sigmas) == wanted["nfe"] + 1
    asked.clear()
    assert torch.equal(call(nodes, "HsoScheduler", **inputs), sigmas) and not asked  # remembered


def test_graphs_saved_before_keep_their_inputs(nodes: ModuleType) -> None:
    """By name in the API's form; by place in the page's, where widgets are a list: the first ones must not move."""
    before = {
        "HsoScheduler": ["model", "steps", "layout", "denoise", "method", "end", "image_seq_len"],
        "HsoScheduleFile": ["path", "nfe", "denoise", "layout"],
    }
    for name, old in before.items():
        inputs = nodes.NODE_CLASS_MAPPINGS[name].INPUT_TYPES()
        assert list({**inputs["required"], **inputs["optional"]})[: len(old)] == old
    menus = nodes.NODE_CLASS_MAPPINGS["HsoScheduler"].INPUT_TYPES()["required"]
    assert {"hso", "hso-dm-nonuni", "solver-error", *BASELINES} <= set(menus["method"][0])
    left_out = set(PRESETS) - set(menus["model"][0])  # their MODEL tells more; none
    assert left_out == {"cogvideox-2b", "cogvideox-5b", "ddpm-cifar10", "edm-cifar10", "dit-xl-2"}


class Patcher:
    """A MODEL as far as the nodes look at it: ComfyUI's classes by their names, its attributes by theirs."""

    def __init__(self, who: str, *kinds: str, **attributes: Any) -> None:
        sampling = type("ModelSampling", tuple(type(kind, (), {}) for kind in kinds), {})()
        for name, value in attributes.items():
            setattr(sampling, name, value)
        self.model = SimpleNamespace(model_config=type(who, (), {})())
        self.sampling = sampling

    def get_model_object(self, name: str) -> Any:
        assert name == "model_sampling"
        return self.sampling


def discrete(who: str, family: str, *kinds: str) -> Patcher:
    levels = preset(family)
    sigmas = torch.tensor(levels.ksigma(np.arange(1, 1001) / 1000), dtype=torch.float32)
    kinds = ("ModelSamplingDiscrete", *(kinds or ("EPS",)))
    return Patcher(who, *kinds, sigmas=sigmas, sigma_min=sigmas[0], sigma_max=sigmas[-1])


def shifted(who: str, shift: float) -> Patcher:
    def at(t: float) -> float:
        return shift * t / (1 + (shift - 1) * t)

    ends = {"sigma_min": torch.tensor(at(0.001)), "sigma_max": torch.tensor(1.0)}
    return Patcher(who, "ModelSamplingFlux", "CONST", percent_to_sigma=lambda percent: at(1 - percent), **ends)


def test_sigmas_for_another_model_are_refused_by_both_names(nodes: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    save(baseline("karras", preset("sdxl"), 6), path)
    sdxl, flux = discrete("SDXL", "sdxl"), shifted("Flux", 3.16)
    wide = discrete("PixArtAlpha", "pixart-alpha")
    for model, family in ((sdxl, "sd15"), (flux, "sd3-medium"), (wide, "pixart-sigma")):
        assert len(call(nodes, "HsoScheduler", model=family, diffusion_model=model)) == 7
    assert len(call(nodes, "HsoScheduleFile", path=str(path), diffusion_model=sdxl)) == 7
    for model, family in ((flux, "sdxl"), (wide, "sdxl"), (sdxl, "flux-dev"), (sdxl, "pixart-alpha")):
        who = type(model.model.model_config).__name__
        with pytest.raises(ValueError, match=f"made for {family} .*do not fit the connected MODEL {who} "):
            call(nodes, "HsoScheduler", model=family, denoise=0.5, diffusion_model=model)
    for model, who in ((flux, r"Flux \(flow"), (wide, r"PixArtAlpha \(eps or v")):
        with pytest.raises(ValueError, match=f"made for sdxl, karras .*do not fit the connected MODEL {who}"):
            call(nodes, "HsoScheduleFile", path=str(path), diffusion_model=model)


def test_few_steps_that_begin_below_the_noise_end_fit_their_model(nodes: ModuleType, tmp_path: Path) -> None:
    """Epsilon models' begin at sigma/alpha = 2.5 N^2 of 157."""
    path, wide = tmp_path / "s.json", discrete("PixArtAlpha", "pixart-alpha")
    assert float(wide.sampling.sigma_max) > 150.0
    for nfe, first in ((4, 40.0), (6, 90.0)):
        save(zoo("pixart-alpha", nfe, "dpmpp-2m"), path)
        sigmas = call(nodes, "HsoScheduleFile", path=str(path), nfe=nfe, diffusion_model=wide)
        assert float(sigmas[0]) == pytest.approx(first)
    with pytest.raises(ValueError, match="do not fit the connected MODEL SDXL"):
        call(nodes, "HsoScheduleFile", path=str(path), diffusion_model=discrete("SDXL", "sdxl"))
    ends = {"sigma_min": torch.tensor(0.002), "sigma_max": torch.tensor(80.0)}
    wide = Patcher("EDM", "ModelSamplingContinuousEDM", "EPS", **ends)  # whose error is bounded there
    for first in (41.0, 30.0):
        lams = -np.log([first, 9.0, 2.0, 0.5, 0.2, 0.05])
        save(Schedule.from_lams(preset("edm-cifar10"), lams), path)
        if first > 40.0:
            assert len(call(nodes, "HsoScheduleFile", path=str(path), diffusion_model=wide)) == 7
    with pytest.raises(ValueError, match="do not fit the connected MODEL EDM"):
        call(nodes, "HsoScheduleFile", path=str(path), diffusion_model=wide)


def test_pure_noise_of_infinite_sigma_is_in_no_menu_and_refused(nodes: ModuleType, tmp_path: Path) -> None:
    for name in ("HsoScheduler", "HsoSampler", "HsoRecommend"):
        menu = nodes.NODE_CLASS_MAPPINGS[name].INPUT_TYPES()["required"]["model"][0]
        assert "cogvideox-5b" not in menu and {"sdxl", "pixart-alpha", "sd35-large"} <= set(menu)
    path = tmp_path / "s.json"
    save(zoo("cogvideox-5b", 6, "dpmpp-2m"), path)
    for name, inputs in (("HsoScheduler", {"model": "cogvideox-5b"}), ("HsoScheduleFile", {"path": str(path)})):
        with pytest.raises(ValueError, match=r"cogvideox-5b, solver-error.*sigma = inf.*'from MODEL'"):
            call(nodes, name, **inputs)
    assert len(call(nodes, "HsoScheduleFile", path=str(path), denoise=0.5, nfe=3)) == 4


@pytest.mark.parametrize("kind", ["ModelSamplingDiscreteDistilled", "StableCascadeSampling", "COSMOS_RFLOW"])
def test_a_model_with_a_grid_of_its_own_is_refused(nodes: ModuleType, kind: str) -> None:
    with pytest.raises(ValueError, match=r"MODEL SDXL is .*use BasicScheduler"):
        call(nodes, "HsoScheduler", model="sdxl", diffusion_model=discrete("SDXL", "sdxl", kind, "EPS"))
    with pytest.raises(ValueError, match="unknown kind"):
        call(nodes, "HsoScheduler", model="sdxl", diffusion_model=discrete("SDXL", "sdxl", "Other"))


def test_the_noise_is_read_from_the_model(nodes: ModuleType) -> None:
    edm = Patcher("SVD", "ModelSamplingContinuousEDM", "EPS", sigma_min=torch.tensor(0.002), sigma_max=80.0)
    for model, family in (
        (discrete("SDXL", "sdxl"), "sdxl"),
        (discrete("PixArtAlpha", "pixart-alpha"), "pixart-alpha"),
        (shifted("SD3", 3.0), "sd3-medium"),
        (edm, "edm-cifar10"),
    ):
        inputs = {"model": "from MODEL", "diffusion_model": model}
        sigmas = call(nodes, "HsoScheduler", guidance=1.0, **inputs)
        np.testing.assert_allclose(sigmas, zoo(family, 6, "dpmpp-2m", guidance=1.0).sampler_sigmas(), rtol=1e-3)
        rule = call(nodes, "HsoScheduler", method="sgm-uniform", **inputs)
        np.testing.assert_allclose(rule, baseline("sgm-uniform", preset(family), 6).sampler_sigmas(), rtol=1e-3)
        with pytest.raises(ValueError, match="guidance is 0"):
            call(nodes, "HsoScheduler", **inputs)
    with pytest.raises(ValueError, match="nothing is connected to diffusion_model"):
        call(nodes, "HsoScheduler", model="from MODEL")


@pytest.mark.parametrize("denoise", [1.0, 0.7, 0.5, 0.33, 0.1, 0.0])
def test_denoise_is_basic_schedulers(nodes: ModuleType, denoise: float) -> None:
    def all_sigmas(steps: int) -> torch.Tensor:
        values = baseline("karras", preset("sd15"), steps).sampler_sigmas()
        return torch.from_numpy(values).to(torch.float32)

    for steps in (1, 4, 7):
        sigmas = call(nodes, "HsoScheduler", model="sd15", steps=steps, method="karras", denoise=denoise)
        wanted = basic_scheduler(all_sigmas, steps, denoise)
        assert torch.equal(sigmas, wanted) and sigmas.dtype == wanted.dtype
        assert len(sigmas) == (0 if denoise == 0 else steps + 1)


def test_the_file_loader(nodes: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    many = [baseline("trailing", preset("sd15"), n, layout=layout) for n in (4, 8) for layout in ("interval", "node")]
    save(many, path)
    for nfe, denoise, layout, source in ((4, 1.0, "any", 1), (4, 0.5, "any", 3), (8, 1.0, "interval", 2)):
        sigmas = call(nodes, "HsoScheduleFile", path=str(path), nfe=nfe, denoise=denoise, layout=layout)
        np.testing.assert_array_equal(sigmas, float32(many[source], nfe))
    assert call(nodes, "HsoScheduleFile", path=str(path), denoise=0.0).numel() == 0
    with pytest.raises(ValueError, match=r"end of 13 evaluations\): no such schedule .*there are: 4 interval trailing"):
        call(nodes, "HsoScheduleFile", path=str(path), nfe=4, denoise=0.3)
    for empty in ("", " "):
        with pytest.raises(ValueError, match=r"path is empty; give the schedule file that .* wrote"):
            call(nodes, "HsoScheduleFile", path=empty)
    with pytest.raises(OSError):
        call(nodes, "HsoScheduleFile", path=str(tmp_path / "missing.json"))
    changed = nodes.NODE_CLASS_MAPPINGS["HsoScheduleFile"].IS_CHANGED
    before = changed(path=str(path), nfe=4, denoise=1.0)
    os.utime(path, (1, 1))
    assert changed(path=str(path), nfe=4, denoise=1.0) != before
    assert math.isnan(changed(path=str(tmp_path / "missing.json"), nfe=4, denoise=1.0))


def test_a_file_with_several_methods_is_asked_about(nodes: ModuleType, tmp_path: Path) -> None:
    """It was "hso" wherever there was one, without a word."""
    path = str(tmp_path / "s.json")
    rule = baseline("trailing", preset("sdxl"), 6)
    many = [rule, *(zoo("sdxl", 6, solver, guidance=w) for solver in ("ddim", "unipc-2") for w in (1.0, 5.0))]
    save(many, path)
    with pytest.raises(ValueError, match=r"differ in method.*trailing.*solver-error.*choose by method"):
        call(nodes, "HsoScheduleFile", path=path)
    with pytest.raises(ValueError, match="differ in solver: for ddim; for unipc-2"):
        call(nodes, "HsoScheduleFile", path=path, method="solver-error", guidance=5.0)
    chosen = ({"method": "trailing"}, {"method": "solver-error", "solver": "unipc-2", "guidance": 1.0})
    for inputs, wanted in zip(chosen, (rule, many[3]), strict=True):
        np.testing.assert_array_equal(call(nodes, "HsoScheduleFile", path=path, **inputs), float32(wanted))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"denoise": 1.5}, "denoise is 1.5"),
        ({"steps": 0}, "steps is 0"),
        ({"steps": 100, "denoise": 0.01}, "of 10000 steps.*use at most 9 steps, or a denoise of 0.11 or more"),
        ({"steps": 100, "denoise": 0.1}, "of 1000 steps.*use at most 99 steps, or a denoise of 0.11 or more"),
        ({"steps": 2000}, "of 2000 steps.*use at most 998 steps$"),
        ({"solver": "heun-nope", "guidance": 6.3}, "solver is 'heun-nope'"),
        ({"model": "nope"}, "not a preset"),
        ({"layout": "nope", "method": "hso"}, "layout is 'nope'"),
        ({"end": "nope"}, "end is 'nope'"),
    ],
)
def test_bad_input(nodes: ModuleType, inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(nodes, "HsoScheduler", **inputs)


def test_the_nodes_need_neither_diffusers_nor_jax(tmp_path: Path) -> None:
    """In a Python of its own: menus without searches, and an answer where nothing is shipped, or what to choose."""
    code = f"""
import importlib.util as u, sys
for name in ("diffusers", "jax", "jaxlib", "chex", "optax", "evosax", "rich", "matplotlib"):
    sys.modules[name] = None
spec = u.spec_from_file_location("custom_node", {str(FOLDER / "__init__.py")!r})
m = u.module_from_spec(spec); sys.modules["custom_node"] = m; spec.loader.exec_module(m)
assert "bridge" not in sys.modules
node = m.NODE_CLASS_MAPPINGS["HsoScheduler"]
menu = node.INPUT_TYPES()["required"]["method"][0]
assert not {{"hso", "hso-dm-nonuni", "solver-error", "dm-nonuni"}} & set(menu) and "trailing" in menu
assert m.NODE_CLASS_MAPPINGS["HsoSampler"].INPUT_TYPES()["required"]["method"][0] == ["zoo"]
plain = dict(model="sdxl", steps=6, layout="node", denoise=1.0, method="zoo")
several = [dict(more, solver=solver) for solver in ("euler", "dpmpp_2m", "unipc-2", "uni_pc_bh2")
           for more in (dict(guidance=6.3), dict(denoise=0.2), dict(steps=30), dict(steps=100, denoise=0.2))]
for more in (*several, dict(method="trailing"), dict(method="ays")):
    (found,) = node().get_sigmas(**{{**plain, **more}})
    assert len(found) == more.get("steps", 6) + 1 and (found.diff() < 0).all() and found[-1] == 0
for more, told in (
    (dict(method="hso"), "a search needs JAX, which is not installed in this Python; choose zoo"),
    (dict(method="dm-nonuni"), "choose zoo"),
    (dict(layout="interval"), "choose layout node"),
    (dict(guidance=6.3, solver="heun"), "choose dpmpp_2m"),
):
    try:
        node().get_sigmas(**{{**plain, **more}})
    except ValueError as error:
        assert told in str(error), error
    else:
        raise AssertionError(more)
import hso_jax
from custom_node.sampler import sampler_options
for family in ("sd15", "flux-dev", "cogvideox-5b"):
    for solver in ("ddim", "dpmpp-2m", "unipc-3", "nonstationary"):
        schedule = hso_jax.zoo(family, 6, solver)
        assert len(sampler_options(schedule, 6)["coefficients"]) == 6
hso_jax.save(schedule, sys.argv[1])
assert hso_jax.load(sys.argv[1]) == [schedule]
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "file.json")], check=True, timeout=120)


@pytest.mark.skipif("HSO_COMFYUI" not in os.environ, reason="HSO_COMFYUI does not name the folder of a ComfyUI")
@pytest.mark.parametrize("module", ["comfyui_real", "comfyui_workflow"])
def test_in_a_real_comfyui(module: str) -> None:
    """HSO_COMFYUI_PYTHON names an interpreter that has ComfyUI's requirements, where this one has not."""
    python = os.environ.get("HSO_COMFYUI_PYTHON", sys.executable)
    options = ["-m", f"tests.bridge.{module}", "--comfyui", os.environ["HSO_COMFYUI"], "--python", python]
    subprocess.run([sys.executable, *options], check=True, cwd=Path(bridge.__file__).parents[1], timeout=1800)


def test_models_of_one_name_are_told_apart_by_their_levels(nodes: ModuleType) -> None:
    """A patched MODEL keeps its config's class."""
    for family, first in (("sd15", 14.615), ("pixart-alpha", 157.4), ("sd15", 14.615)):
        inputs = {"model": "from MODEL", "method": "karras", "diffusion_model": discrete("SD15", family)}
        assert float(call(nodes, "HsoScheduler", **inputs)[0]) == pytest.approx(first, rel=1e-3)
