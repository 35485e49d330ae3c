"""The ComfyUI nodes, loaded as ComfyUI loads them, but without it."""

from __future__ import annotations

import importlib.util
import math
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import bridge
from hso_jax import baseline, preset, save

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
    from hso_jax import Hso, search

    sigmas = call(nodes, "HsoScheduler", model="sdxl", steps=4)
    wanted = search(preset("sdxl"), 4, method=Hso(relax=True))
    np.testing.assert_array_equal(sigmas, wanted.sampler_sigmas().astype(np.float32))
    assert wanted.method == "hso" and sigmas[-1] == 0


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
    with pytest.raises(ValueError, match=r"no 13-step schedule .*it has 4 interval, 4 node, 8 interval, 8 node"):
        call(nodes, "HsoScheduleFile", path=str(path), nfe=4, denoise=0.3)
    with pytest.raises(OSError):
        call(nodes, "HsoScheduleFile", path=str(tmp_path / "missing.json"))
    changed = nodes.NODE_CLASS_MAPPINGS["HsoScheduleFile"].IS_CHANGED
    before = changed(path=str(path), nfe=4, denoise=1.0)
    os.utime(path, (1, 1))
    assert changed(path=str(path), nfe=4, denoise=1.0) != before
    assert math.isnan(changed(path=str(tmp_path / "missing.json"), nfe=4, denoise=1.0))


def test_bad_input(nodes: ModuleType) -> None:
    for inputs, message in (
        ({"denoise": 1.5}, "denoise is 1.5"),
        ({"steps": 0}, "steps is 0"),
        ({"steps": 100, "denoise": 0.01}, "10000 in all"),
        ({"model": "nope"}, "not a preset"),
        ({"layout": "nope", "method": "hso"}, "layout is 'nope'"),
        ({"end": "nope"}, "end is 'nope'"),
    ):
        with pytest.raises(ValueError, match=message):
            call(nodes, "HsoScheduler", **inputs)


def test_the_nodes_need_no_diffusers() -> None:
    """ComfyUI has none; importing by path must not load the rest of the bridge."""
    code = (
        "import sys, importlib.util as u\n"
        "sys.modules['diffusers'] = None\n"
        f"spec = u.spec_from_file_location('custom_node', {str(FOLDER / '__init__.py')!r})\n"
        "m = u.module_from_spec(spec); sys.modules['custom_node'] = m; spec.loader.exec_module(m)\n"
        "assert m.NODE_CLASS_MAPPINGS and 'bridge' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
