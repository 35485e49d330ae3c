"""The ComfyUI nodes that give SAMPLER and SIGMAS together, without ComfyUI: its KSAMPLER is a stand-in."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from free import by_hand, exact_levels, free_schedule
from mixture import denoise, random_schedule, start
from test_comfyui import call as sigmas_of
from test_comfyui import discrete, float32
from test_comfyui import nodes as nodes  # the fixture
from test_comfyui import outputs as both

from bridge import sample
from hso_jax import Schedule, baseline, preset, save, zoo

SDXL = preset("sdxl")
FREE = free_schedule(SDXL, 6)


class Ksampler(NamedTuple):
    """What ComfyUI's KSAMPLER keeps; `run` is what its `sample` does."""

    function: Any
    options: dict[str, Any]

    def run(self, model: Any, x: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
        return self.function(model, x, sigmas, extra_args={}, callback=None, disable=True, **self.options)


@pytest.fixture(autouse=True)
def _comfy(monkeypatch: pytest.MonkeyPatch) -> None:
    samplers = SimpleNamespace(KSAMPLER=Ksampler, sampler_object=lambda name: name)
    monkeypatch.setitem(sys.modules, "comfy", SimpleNamespace(samplers=samplers))
    monkeypatch.setitem(sys.modules, "comfy.samplers", samplers)


def network(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    return denoise(x, 1.0, float(sigma[0]))


def flow_network(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    return denoise(x, 1.0 - float(sigma[0]), float(sigma[0]))


def test_a_file_s_coefficients_are_the_sampler(nodes: ModuleType, tmp_path: Path) -> None:
    path = str(tmp_path / "s.json")
    save([FREE, baseline("trailing", SDXL, 6)], path)
    sampler, sigmas = both(nodes, "HsoSamplerFile", path=path, nfe=6, solver="nonstationary", method="custom")
    np.testing.assert_array_equal(sigmas, float32(FREE))
    alpha = exact_levels(FREE)[0].alpha
    got = sampler.run(network, start() / alpha, sigmas)
    want = sample(lambda x, level: denoise(x, level.alpha, level.sigma), FREE, start())
    np.testing.assert_allclose(got, want, atol=1e-4)
    with pytest.raises(
        ValueError, match="has solver coefficients, and its sigmas work only with them; use HSO Sampler"
    ):
        sigmas_of(nodes, "HsoScheduleFile", path=path, nfe=6, solver="nonstationary", method="custom")
    with pytest.raises(ValueError, match=r"differ in method and solver|differ in"):
        both(nodes, "HsoSamplerFile", path=path, nfe=6)


def test_denoise_and_split_sigmas_leave_missing_predictions_out(nodes: ModuleType, tmp_path: Path) -> None:
    """As the scheduler in img2img; the high part of a split needs none."""
    path = str(tmp_path / "s.json")
    save(FREE, path)
    sampler, sigmas = both(nodes, "HsoSamplerFile", path=path, nfe=3, denoise=0.5)
    assert len(sigmas) == 4
    x = start(seed=2)
    alpha = exact_levels(FREE)[3].alpha
    want = by_hand(FREE, x, first=3)
    np.testing.assert_allclose(sampler.run(network, x / alpha, sigmas), want, atol=1e-4)
    whole, every = both(nodes, "HsoSamplerFile", path=path, nfe=6)
    np.testing.assert_allclose(whole.run(network, x / alpha, every[3:]), want, atol=1e-4)
    high = whole.run(network, 14.0 * x, every[:4])
    assert not torch.allclose(whole.run(network, high, every[3:]), whole.run(network, 14.0 * x, every))
    none, empty = both(nodes, "HsoSamplerFile", path=path, nfe=3, denoise=0.0)
    assert isinstance(none, Ksampler) and len(empty) == 0


def test_other_sigmas_are_refused(nodes: ModuleType, tmp_path: Path) -> None:
    path = str(tmp_path / "s.json")
    save(FREE, path)
    sampler, sigmas = both(nodes, "HsoSamplerFile", path=path, nfe=6)
    other = torch.tensor(baseline("trailing", SDXL, 6).sampler_sigmas(), dtype=torch.float32)
    for wrong in (other, sigmas * 1.01, torch.cat([sigmas[:2], sigmas[3:]])):
        with pytest.raises(ValueError, match=r"are not this sampler's, .* connect the SIGMAS output of the same node"):
            sampler.run(network, start(), wrong)


@pytest.mark.parametrize("model", ["sdxl", "flux-dev", "edm-cifar10"])
@pytest.mark.parametrize("solver", ["ddim", "dpmpp-2m", "unipc-2", "unipc-3"])
def test_known_solvers_are_the_package_s(nodes: ModuleType, model: str, solver: str) -> None:
    """By their formula in lam, for flow models too, whose samplers in ComfyUI work in another variable."""
    schedule = zoo(model, 6, solver)
    sampler, sigmas = both(nodes, "HsoSampler", model=model, steps=6, solver=solver)
    np.testing.assert_array_equal(sigmas, float32(schedule))
    flow = schedule.kind == "flow"
    level = exact_levels(schedule)[0]
    scale = 1.0 if flow else math.hypot(level.alpha, level.sigma) / level.alpha  # samples are x0 + sigma eps
    got = sampler.run(flow_network if flow else network, scale * start(), sigmas)
    want = sample(lambda x, level: denoise(x, level.alpha, level.sigma), schedule, start(), solver=solver)
    np.testing.assert_allclose(got, want, atol=2e-3)


def test_a_schedule_found_with_its_coefficients(nodes: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """By name as from a file; the node without a sampler has no such solver."""
    inside = sys.modules[nodes.NODE_CLASS_MAPPINGS["HsoSampler"].__module__]
    monkeypatch.setattr(inside, "zoo", lambda noise, nfe, solver, guidance: {"nonstationary": FREE}[solver])
    monkeypatch.setattr(inside, "_FOUND", {})
    sampler, sigmas = both(nodes, "HsoSampler", model="sdxl", steps=6, solver="nonstationary")
    assert sampler.options["coefficients"] == FREE.coefficients.tolist()
    np.testing.assert_array_equal(sigmas, float32(FREE))
    menus = [
        nodes.NODE_CLASS_MAPPINGS[n].INPUT_TYPES()["optional"]["solver"][0] for n in ("HsoScheduler", "HsoSampler")
    ]
    assert "nonstationary" in menus[1] and menus[1][: len(menus[0])] == menus[0]


def test_what_is_made_for_no_solver_or_for_two_evaluations_has_no_sampler(nodes: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\(trailing\) is made for solver 'any', which has no coefficients; take its"):
        both(nodes, "HsoSampler", method="trailing")
    path = str(tmp_path / "s.json")
    save(random_schedule(SDXL, 6, "clean", 1), path)
    with pytest.raises(ValueError, match="made for solver 'any'"):
        both(nodes, "HsoSamplerFile", path=path, nfe=6)


def test_a_model_with_other_noise_is_refused(nodes: ModuleType, tmp_path: Path) -> None:
    path = str(tmp_path / "s.json")
    save(Schedule.from_t(SDXL, FREE.t, origin=FREE.origin, coefficients=FREE.coefficients), path)
    assert len(both(nodes, "HsoSamplerFile", path=path, nfe=6, diffusion_model=discrete("SDXL", "sdxl", "EPS"))[1]) == 7
    flow = free_schedule(preset("sd3-medium"), 6)
    save(flow, path)
    with pytest.raises(ValueError, match="do not fit the connected MODEL SDXL"):
        both(nodes, "HsoSamplerFile", path=path, nfe=6, diffusion_model=discrete("SDXL", "sdxl", "EPS"))
