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


def call(nodes: ModuleType, node: str, **inputs: Any) -> torch.Tensor:
    """Run a node as ComfyUI does: by its FUNCTION, with defaults for what is not connected."""
    cls = nodes.NODE_CLASS_MAPPINGS[node]
    declared = {**cls.INPUT_TYPES()["required"], **cls.INPUT_TYPES().get("optional", {})}
    values = {}
    for name, (kind, *options) in declared.items():
        default = kind[0] if isinstance(kind, list) else None
        values[name] = options[0].get("default", default) if options else default
    assert set(inputs) <= set(values)
    result = getattr(cls(), cls.FUNCTION)(**{**values, **inputs})
    assert isinstance(result, tuple) and len(result) == len(cls.RETURN_TYPES) == 1 and cls.RETURN_TYPES == ("SIGMAS",)
    return result[0]


def basic_scheduler(all_sigmas: Any, steps: int, denoise: float) -> torch.Tensor:
    """ComfyUI's BasicScheduler, with `calculate_sigmas` replaced."""
    total_steps = steps
    if denoise < 1.0:
        if denoise <= 0.0:
            return torch.FloatTensor([])
        total_steps = int(steps / denoise)
    return all_sigmas(total_steps)[-(steps + 1) :]


def test_every_node_has_a_name(nodes: ModuleType) -> None:
    assert set(nodes.NODE_CLASS_MAPPINGS) == set(nodes.NODE_DISPLAY_NAME_MAPPINGS)
    for cls in nodes.NODE_CLASS_MAPPINGS.values():
        assert cls.CATEGORY.startswith("sampling/custom_sampling") and hasattr(cls, cls.FUNCTION)
        for kind, *_ in cls.INPUT_TYPES()["required"].values():
            assert kind in ("INT", "FLOAT", "STRING") or (isinstance(kind, list) and len(kind) > 1)


@pytest.mark.parametrize("model", ["sd15", "sdxl", "sd3-medium", "flux-dev", "edm-cifar10"])
@pytest.mark.parametrize("layout", ["node", "interval"])
def test_sigmas_of_a_rule(nodes: ModuleType, model: str, layout: str) -> None:
    for steps in (1, 5, 20):
        sigmas = call(nodes, "HsoScheduler", model=model, steps=steps, layout=layout, method="trailing")
        wanted = baseline("trailing", preset(model), steps, layout=layout).sampler_sigmas()
        assert sigmas.dtype == torch.float32 and sigmas.shape == (steps + 1,)
        np.testing.assert_array_equal(sigmas, wanted.astype(np.float32))
        assert (sigmas.diff() < 0).all() and (sigmas[-1] == 0) == (layout == "node")
        assert preset(model).kind != "flow" or sigmas[0] <= 1.0
        clean = call(nodes, "HsoScheduler", model=model, steps=steps, layout=layout, method="trailing", end="clean")
        assert clean[-1] == 0 and torch.equal(clean[:-1], sigmas[:-1])


def test_the_search_is_the_package_s_own(nodes: ModuleType) -> None:
    from hso_jax import search

    sigmas = call(nodes, "HsoScheduler", model="sdxl", steps=4, method="hso")
    wanted = search(preset("sdxl"), 4, method=Hso(relax=True))
    np.testing.assert_array_equal(sigmas, wanted.sampler_sigmas().astype(np.float32))
    assert wanted.method == "hso" and sigmas[-1] == 0


def test_the_default_is_what_the_zoo_ships_for_the_family_s_usual_guidance(nodes: ModuleType) -> None:
    for model in ("sd15", "sdxl", "flux-dev", "edm-cifar10"):
        sigmas = call(nodes, "HsoScheduler", model=model)
        np.testing.assert_array_equal(sigmas, zoo(model, 6, "dpmpp-2m").sampler_sigmas().astype(np.float32))
    for solver, guidance in (("ddim", 1.0), ("unipc-3", 7.5)):
        sigmas = call(nodes, "HsoScheduler", model="sd15", solver=solver, guidance=guidance)
        np.testing.assert_array_equal(
            sigmas, zoo("sd15", 6, solver, guidance=guidance).sampler_sigmas().astype(np.float32)
        )


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
    left_out = {
        "cogvideox-2b",
        "cogvideox-5b",
        "ddpm-cifar10",
        "edm-cifar10",
        "dit-xl-2",
    }  # their MODEL tells more; none
    assert set(PRESETS) - set(menus["model"][0]) == left_out


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
    """Epsilon models' begin at sigma/alpha = 25 or 60 of 157."""
    path, wide = tmp_path / "s.json", discrete("PixArtAlpha", "pixart-alpha")
    assert float(wide.sampling.sigma_max) > 150.0
    for nfe, first in ((3, 25.0), (6, 60.0)):
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


@pytest.mark.parametrize("denoise", [1.0, 0.75, 0.5, 0.33, 0.1, 0.0])
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
        wanted = many[source].sampler_sigmas()[-(nfe + 1) :]
        np.testing.assert_array_equal(sigmas, wanted.astype(np.float32))
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
        sigmas = call(nodes, "HsoScheduleFile", path=path, **inputs)
        np.testing.assert_array_equal(sigmas, wanted.sampler_sigmas().astype(np.float32))


def test_bad_input(nodes: ModuleType) -> None:
    for inputs, message in (
        ({"denoise": 1.5}, "denoise is 1.5"),
        ({"steps": 0}, "steps is 0"),
        ({"steps": 100, "denoise": 0.01}, "of 10000 steps.*use at most 9 steps, or a denoise of 0.11 or more"),
        ({"steps": 100, "denoise": 0.1}, "of 1000 steps.*use at most 99 steps, or a denoise of 0.11 or more"),
        ({"steps": 2000}, "of 2000 steps.*use at most 998 steps$"),
        ({"solver": "heun-nope", "guidance": 6.3}, "solver is 'heun-nope'"),
        ({"model": "nope"}, "not a preset"),
        ({"layout": "nope", "method": "hso"}, "layout is 'nope'"),
        ({"end": "nope"}, "end is 'nope'"),
    ):
        with pytest.raises(ValueError, match=message):
            call(nodes, "HsoScheduler", **inputs)


def test_the_nodes_need_neither_diffusers_nor_jax(tmp_path: Path) -> None:
    """ComfyUI has none, nor JAX; importing by path must not load the rest of the bridge."""
    code = (
        "import sys, importlib.util as u\n"
        "from pathlib import Path\n"
        "for name in ('diffusers', 'jax', 'jaxlib', 'chex', 'optax', 'evosax', 'rich', 'matplotlib'):\n"
        "    sys.modules[name] = None\n"
        f"spec = u.spec_from_file_location('custom_node', {str(FOLDER / '__init__.py')!r})\n"
        "m = u.module_from_spec(spec); sys.modules['custom_node'] = m; spec.loader.exec_module(m)\n"
        "assert m.NODE_CLASS_MAPPINGS and 'bridge' not in sys.modules\n"
        "n = m.NODE_CLASS_MAPPINGS['HsoScheduler']()\n"
        "for method in ('zoo', 'trailing', 'ays'):\n"
        "    s, = n.get_sigmas(model='sdxl', steps=6, layout='node', denoise=1.0, method=method)\n"
        "    assert len(s) == 7 and s[-1] == 0\n"
        "import hso_jax\n"
        "from custom_node.sampler import sampler_options\n"
        "for family in ('sd15', 'flux-dev', 'cogvideox-5b'):\n"
        "    for solver in ('ddim', 'dpmpp-2m', 'unipc-3', 'nonstationary'):\n"
        "        schedule = hso_jax.zoo(family, 6, solver)\n"
        "        assert len(sampler_options(schedule, 6)['coefficients']) == 6\n"
        "    hso_jax.save(schedule, sys.argv[1])\n"
        "    assert hso_jax.load(sys.argv[1]) == [schedule]\n"
        "    Path(sys.argv[1]).unlink()\n"
        "try:\n"
        "    n.get_sigmas(model='sdxl', steps=6, layout='node', denoise=1.0, method='hso')\n"
        "except ValueError as error:\n"
        "    assert 'a search needs JAX' in str(error)\n"
        "else:\n"
        "    raise AssertionError('it searched')\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "file.json")], check=True, timeout=120)


@pytest.mark.skipif("HSO_COMFYUI" not in os.environ, reason="HSO_COMFYUI does not name the folder of a ComfyUI")
def test_in_a_real_comfyui() -> None:
    """HSO_COMFYUI_PYTHON names an interpreter that has ComfyUI's requirements, where this one has not."""
    python = os.environ.get("HSO_COMFYUI_PYTHON", sys.executable)
    module = ["-m", "tests.bridge.comfyui_real", "--comfyui", os.environ["HSO_COMFYUI"], "--python", python]
    subprocess.run([sys.executable, *module], check=True, cwd=Path(bridge.__file__).parents[1], timeout=1800)


@pytest.mark.skipif("HSO_COMFYUI" not in os.environ, reason="HSO_COMFYUI does not name the folder of a ComfyUI")
def test_the_example_workflow_in_a_real_comfyui() -> None:
    """From a tiny checkpoint to a picture; HSO_COMFYUI_PYTHON as above."""
    python = os.environ.get("HSO_COMFYUI_PYTHON", sys.executable)
    module = ["-m", "tests.bridge.comfyui_workflow", "--comfyui", os.environ["HSO_COMFYUI"], "--python", python]
    subprocess.run([sys.executable, *module], check=True, cwd=Path(bridge.__file__).parents[1], timeout=600)


def test_models_of_one_name_are_told_apart_by_their_levels(nodes: ModuleType) -> None:
    """A patched MODEL keeps its config's class."""
    for family, first in (("sd15", 14.615), ("pixart-alpha", 157.4), ("sd15", 14.615)):
        inputs = {"model": "from MODEL", "method": "karras", "diffusion_model": discrete("SD15", family)}
        assert float(call(nodes, "HsoScheduler", **inputs)[0]) == pytest.approx(first, rel=1e-3)
