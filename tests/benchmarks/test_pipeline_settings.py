"""The scheduler of every solver for every family of pipelines, and how methods are searched."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest

from benchmarks.pipelines import settings
from benchmarks.pipelines.settings import Setting
from bridge import noise_schedule_of, solver_of
from hso_jax import baseline

sys.path.append(str(Path(__file__).parents[1] / "bridge"))
from pipelines import family_of

SD, FLUX = "StableDiffusionPipeline", "FluxPipeline"


@pytest.mark.parametrize(
    "cls", [SD, FLUX, "StableDiffusionXLPipeline", "PixArtAlphaPipeline", "StableDiffusion3Pipeline"]
)
@pytest.mark.parametrize("solver", settings.SOLVERS)
def test_every_solver_of_every_family(cls, solver):
    pipe = family_of(cls).build()
    noise = noise_schedule_of(pipe)
    flow = noise.kind == "flow"
    own = settings.scheduler(pipe.scheduler, solver, flow, None)
    assert solver_of(own) == solver and noise_schedule_of(own).kind == noise.kind
    assert type(own) is getattr(diffusers, type(own).__name__)
    np.testing.assert_allclose(noise_schedule_of(own).lam(0.5), noise.lam(0.5), atol=1e-3)
    installed = settings.scheduler(pipe.scheduler, solver, flow, baseline("trailing", noise, 5))
    installed.set_timesteps(5)
    np.testing.assert_allclose(installed.timesteps, baseline("trailing", noise, 5).timesteps, atol=1e-3)


def test_a_spacing_of_the_config_stays_in_the_default_alone():
    own = diffusers.EulerDiscreteScheduler(beta_schedule="scaled_linear", use_karras_sigmas=True)
    assert settings.scheduler(own, "dpmpp-2m", False, None).config.use_karras_sigmas
    schedule = baseline("trailing", noise_schedule_of(own), 4)
    assert not settings.scheduler(own, "dpmpp-2m", False, schedule).config.use_karras_sigmas


def test_methods_are_searched_once_for_all_n_at_the_pipelines_weight(monkeypatch):
    noise = noise_schedule_of(family_of(SD).build())
    asked: list[tuple[str, Any, dict[str, Any]]] = []

    def search(noise, nfes, **options):
        asked.append(("search", nfes, options))
        return [baseline("trailing", noise, n) for n in nfes]

    def zoo(noise, nfe, solver, **options):
        asked.append(("zoo", (nfe, solver), options))
        return baseline("karras", noise, nfe)

    monkeypatch.setattr(settings.hso_jax, "search", search)
    monkeypatch.setattr(settings.hso_jax, "zoo", zoo)
    methods = settings.read_methods(["hso", "solver-error", "zoo", "default"])
    wanted = [Setting(method, "unipc-3", n) for n in (4, 6) for method in methods]
    found = settings.prepare(wanted, methods, noise, 7.5)
    assert list(found) == wanted
    how = asked[1][2].pop("method")
    assert (how.solver, how.guidance) == ("unipc-3", 7.5)
    assert asked == [
        ("search", [4, 6], {}),
        ("search", [4, 6], {}),
        ("zoo", (4, "unipc-3"), {"guidance": 7.5}),
        ("zoo", (6, "unipc-3"), {"guidance": 7.5}),
    ]
    assert found[Setting("default", "unipc-3", 4)].schedule is None
    assert found[Setting("zoo", "unipc-3", 6)].schedule.nfe == 6
    monkeypatch.setattr(settings.hso_jax, "zoo", lambda noise, nfe, *a, **k: baseline("karras", noise, nfe + 1))
    with pytest.raises(RuntimeError, match="zoo made 5 nodes where 4"):
        settings.prepare(wanted, methods, noise, 7.5)
