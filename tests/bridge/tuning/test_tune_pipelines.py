"""`tune` on tiny pipelines of each kind, through their own loops; and the command."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pipelines import family_of

import bridge
from bridge import tune
from bridge.pipeline import PipelineJobs
from bridge.tuning import search
from bridge.tuning.coordinates import Coordinates, Table
from bridge.tuning.models import PipelineModel
from bridge.tuning.tune import Options, drawn
from hso_jax import load, zoo
from hso_jax.cli import main

KINDS = ["StableDiffusionPipeline", "FluxPipeline", pytest.param("WanPipeline", marks=pytest.mark.slow)]
N = 3
pytestmark = pytest.mark.filterwarnings("ignore:the schedule has coefficients of its own:UserWarning")
LITTLE: dict[str, Any] = {"teacher_steps": 8, "samples": 2, "batch": 2}


def built(kind: str, seed: int = 0) -> tuple[Any, dict[str, Any]]:
    family = family_of(kind)
    call = {k: v for k, v in family.call.items() if k != "prompt"}
    return family.build(seed), call


@pytest.mark.parametrize("kind", KINDS)
def test_a_pipeline_is_tuned_with_gradients_through_its_own_loop(kind: str) -> None:
    pipe, call = built(kind)
    before = pipe.scheduler
    network = getattr(pipe, family_of(kind).network)
    found = tune(pipe, N, prompts=["a fox", "a car", "a hill"], by="gradients", budget=180, **LITTLE, **call)
    assert found.by == "gradients" and found.error <= found.start_error and found.evaluations <= 180
    assert pipe.scheduler is before
    assert all(p.requires_grad for p in network.parameters()) and "forward" not in vars(network)
    told = found.schedule.origin.tuned
    assert told is not None and told["pipeline"] == kind and len(told["weights"]) == 16 and told["prompts"]
    bridge.install(pipe, found.schedule)
    assert pipe(prompt="a fox", num_inference_steps=N, output_type="latent", **call)[0] is not None


def test_gradients_are_those_of_differences_through_a_pipeline() -> None:
    pipe, call = built("StableDiffusionPipeline")
    for part in (pipe.unet, pipe.text_encoder, pipe.vae):
        part.double()
    model = PipelineModel(PipelineJobs(pipe, [("a fox", 0)], None, call))
    coordinates = Coordinates.of(model.part.noise, N, "nonstationary", "dpmpp-2m")
    z = coordinates.point(zoo(model.part.noise, N, "nonstationary"))

    def value(point: np.ndarray) -> float:
        with torch.no_grad():
            return float(model.run(Table(*(x.tolist() for x in coordinates.table(point))), [0]).square().mean())

    slopes = {}
    for recompute in (False, True):
        with model.differentiable(recompute):
            table = Table(*(torch.from_numpy(x.copy()).requires_grad_(True) for x in coordinates.table(z)))
            model.run(table, [0]).square().mean().backward()
        slopes[recompute] = coordinates.pull(z, Table(*(x.grad.numpy() for x in table)))
    np.testing.assert_allclose(slopes[True], slopes[False], rtol=1e-9)
    step = 1e-4 * np.eye(len(z))
    wanted = [(value(z + e) - value(z - e)) / 2e-4 for e in step]
    np.testing.assert_allclose(slopes[False], wanted, rtol=0.02, atol=1e-3 * np.abs(wanted).max())


def test_other_weights_are_warned_of() -> None:
    pipe, call = built("StableDiffusionPipeline")
    found = tune(pipe, N, budget=160, **LITTLE, **call)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "this schedule was tuned")
        bridge.install(pipe, found.schedule)
    other, _ = built("StableDiffusionPipeline", seed=1)
    with pytest.warns(UserWarning, match="tuned on other weights"):
        bridge.install(other, found.schedule)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": []}, "prompts"),
        ({"strength": 0.5}, "does not take strength"),
        ({"num_inference_steps": 5}, "set by the schedule"),
        ({"budget": 50}, "budget is 50"),
    ],
)
def test_bad_input_is_refused(options: dict[str, Any], message: str) -> None:
    pipe, call = built("StableDiffusionPipeline")
    with pytest.raises(ValueError, match=message):
        tune(pipe, N, **{**LITTLE, **call, **options})


def test_the_command_writes_the_best_so_far_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    built("StableDiffusionPipeline")[0].save_pretrained("model")
    Path("prompts.txt").write_text("a fox\na car\n")
    command = ["tune", "--pipeline", "model", "--nfe", str(N), "--prompts", "prompts.txt", "--budget", "200"]
    command += ["--teacher-steps", "8", "--samples", "2", "--option", "height=16", "--option", "width=16"]
    given_up = search.differences

    def interrupted(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(search, "differences", interrupted)
    assert main([*command, "-o", "tuned.json"]) == 130
    (first,) = load("tuned.json")
    monkeypatch.setattr(search, "differences", given_up)
    assert main([*command, "-o", "tuned.json"]) == 0
    (found,) = load("tuned.json")
    assert found.method == "tuned" and found.fitness <= first.fitness
    assert "use it: hso-jax apply tuned.json --pipeline model" in capsys.readouterr().out
    once = Path("tuned.json").read_bytes()
    assert main([*command, "-o", "tuned.json"]) == 0 and Path("tuned.json").read_bytes() == once
    Path("notes.txt").write_text("mine")
    assert main([*command, "-o", "notes.txt"]) == 2 and Path("notes.txt").read_text() == "mine"
    with Path("tuned.json.checkpoint").open("rb") as held:
        import fcntl

        fcntl.flock(held, fcntl.LOCK_EX)
        assert main([*command, "-o", "tuned.json"]) == 2
    assert "in use by another process" in capsys.readouterr().err


def test_prompts_kept_apart_are_no_prompts_that_are_tuned_on() -> None:
    options = Options(4, "ddim", budget=1, samples=8)
    every = drawn(6, options)
    assert not {prompt for prompt, _ in every[:8]} & {prompt for prompt, _ in every[8:]}
    assert [seed for _, seed in every] == list(range(12))
