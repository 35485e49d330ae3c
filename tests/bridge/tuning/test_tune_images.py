"""`tune` for image-to-image: the steps that `strength` leaves, from noised images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pipelines import Family, family_of

import bridge
from bridge import tune
from bridge.pipeline import ImageToImage, PipelineJobs
from bridge.sampling import converged
from bridge.tuning.coordinates import Table, table_at
from bridge.tuning.models import PipelineModel
from hso_jax import Schedule, baseline, load, preset, zoo
from hso_jax.cli import main
from hso_jax.noise import from_level
from hso_jax.schedule import Origin

N, STRENGTH = 6, 0.6
SD = "StableDiffusionImg2ImgPipeline"
WITH_STRENGTH = [  # of each way to round
    pytest.param(family_of(cls), id=cls, marks=marks)
    for cls, marks in ((SD, []), ("FluxInpaintPipeline", pytest.mark.slow))
]
LITTLE: dict[str, Any] = {"teacher_steps": 12, "samples": 4, "batch": 4, "budget": 400}
pytestmark = pytest.mark.filterwarnings("ignore:the schedule has coefficients of its own:UserWarning")


def built(family: Family) -> tuple[Any, dict[str, Any]]:
    return family.build(0), {"strength": STRENGTH, **{k: v for k, v in family.call.items() if k != "prompt"}}


def taken(family: Family) -> int:
    return int(N - int(N - N * STRENGTH)) if family.flow else int(N * STRENGTH)


def picture(seed: int, side: int = 16) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8))


@pytest.mark.parametrize("family", WITH_STRENGTH)
def test_what_was_judged_is_what_the_pipeline_makes(family: Family) -> None:
    """The schedule installed, the pipeline called as a user calls it: the error that was reported, in as many calls."""
    pipe, call = built(family)
    noise = bridge.noise_schedule_of(pipe)
    start = baseline("beta-t", noise, N)  # no search: that is tested below, and takes time
    found = tune(pipe, N, prompts=["a fox", "a car"], start=start, **LITTLE, **call)
    steps = taken(family)
    assert found.schedule.nfe == N and found.error <= found.start_error
    assert found.schedule.lams[-steps - (found.schedule.end != "clean")] == pytest.approx(float(noise.lam(STRENGTH)))
    jobs = [(prompt, 4 + k) for k, prompt in enumerate(["a fox", "a car"])]  # those that were kept apart
    images = {k: [call.pop(k)] * 2 for k in ("image", "mask_image") if k in call}
    model = PipelineModel(PipelineJobs(pipe, jobs, None, call, images))
    made = table_at(model.part.noise, converged(model.part.noise, 12), "dpmpp-2m")
    with torch.no_grad():
        wanted = model.run(Table(*(x.tolist() for x in made)), [0, 1])
    calls: list[Any] = []
    getattr(pipe, family.network).register_forward_hook(lambda *_: calls.append(0))
    bridge.install(pipe, found.schedule)
    results = []
    for k, (prompt, seed) in enumerate(jobs):
        own = {name: values[k] for name, values in images.items()}
        generator = torch.Generator().manual_seed(seed)
        options = {"num_inference_steps": N, "generator": generator, "output_type": "latent", "return_dict": False}
        results.append(pipe(prompt=prompt, **call, **own, **options)[0])
    assert len(calls) == 2 * steps
    error = float((torch.cat(results).float() - wanted).square().mean().sqrt())
    assert error == pytest.approx(found.error, rel=1e-3)


@pytest.mark.slow
def test_gradients_images_of_their_own_and_a_known_solver() -> None:
    family = family_of(SD)
    pipe, call = built(family)
    call["image"] = [picture(k) for k in range(3)]
    prompts = ["a fox", "a car", "a hill"]
    found = tune(pipe, N, prompts=prompts, by="gradients", solver="dpmpp-2m", **LITTLE, **call)
    assert found.by == "gradients" and found.schedule.solver == "dpmpp-2m" and found.schedule.coefficients is None
    told = found.schedule.origin.tuned
    call["start"] = found.schedule
    call["image"][1] = picture(7)
    other = tune(pipe, N, prompts=prompts, by="gradients", solver="dpmpp-2m", **LITTLE, **call).schedule.origin.tuned
    assert told is not None and other is not None and told["image"] != other["image"]


def test_a_start_of_the_whole_model_is_taken_from_where_the_image_begins() -> None:
    pipe, call = built(family_of(SD))
    noise = bridge.noise_schedule_of(pipe)
    start = zoo(noise, N, "nonstationary")
    found = tune(pipe, N, start=start, **LITTLE, **call)
    assert found.start == "given" and found.error <= found.start_error
    with pytest.raises(ValueError, match="start is for"):
        tune(pipe, N, start=zoo("sd3-medium", N, "nonstationary"), **LITTLE, **call)


@pytest.mark.slow
def test_at_full_strength_every_step_is_taken_and_one_step_has_nothing_to_move() -> None:
    pipe, call = built(family_of(SD))
    start = baseline("beta-t", bridge.noise_schedule_of(pipe), N)
    whole = tune(pipe, N, start=start, **LITTLE, **{**call, "strength": 1.0})
    assert whole.schedule.lams[0] == pytest.approx(start.lams[0]) and whole.error < whole.start_error
    one = tune(pipe, N, start=start, **LITTLE, **{**call, "strength": 0.2})
    assert one.error == one.start_error and one.schedule.nfe == N


def test_a_checkpoint_is_of_one_strength(tmp_path: Path) -> None:
    pipe, call = built(family_of(SD))
    call |= {"start": baseline("beta-t", bridge.noise_schedule_of(pipe), N), "checkpoint": tmp_path / "c.json"}

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(pipe, N, progress=stop, **LITTLE, **call)
    with pytest.raises(ValueError, match=r"c\.json"):
        tune(pipe, N, **LITTLE, **{**call, "strength": 0.5})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": 0.0}, "strength is 0"),
        ({"strength": None}, "strength is None"),
        ({"strength": 1.5}, "strength is 1.5"),
        ({"strength": 0.1}, "no step of 6 is taken"),
        ({"image": [picture(0), picture(1)]}, "image has 2 images for 1 prompts"),
    ],
)
def test_bad_input_is_refused(options: dict[str, Any], message: str) -> None:
    pipe, call = built(family_of(SD))
    with pytest.raises(ValueError, match=message):
        tune(pipe, N, **LITTLE, **{**call, **options})


def test_a_pipeline_that_keeps_its_steps_to_itself_is_refused() -> None:
    class Silent:
        def __call__(self, prompt: str, strength: float = 0.5) -> None: ...

    with pytest.raises(ValueError, match="Silent does not say which steps it takes"):
        ImageToImage.of(Silent(), preset("sd15"), {})


@pytest.mark.parametrize("model", ["sd15", "pixart-alpha", "sd3-medium"])
@pytest.mark.parametrize("t", [0.2, 0.6, 0.99])
def test_a_part_of_a_noise_schedule_has_its_levels(model: str, t: float) -> None:
    noise = preset(model)
    part = from_level(noise, float(noise.lam(t)))
    inner = np.linspace(float(noise.t_min), float(part.t_max), 200)[1:]
    np.testing.assert_allclose(part.lam(inner), noise.lam(inner), atol=1e-7)
    np.testing.assert_allclose(part.timestep(inner), noise.timestep(inner), rtol=1e-7)
    assert part.noise_end == pytest.approx(float(noise.lam(t)), abs=1e-9) and part.data_end == noise.data_end
    for rule in ("trailing", "karras", "beta-t", "uniform-lam", "sgm-uniform", "linspace"):
        nodes = baseline(rule, part, 4).lams
        assert nodes[0] == pytest.approx(part.noise_end, abs=1e-6) and (np.diff(nodes) > 0.01).all()


def test_cut_and_joined_are_each_others_inverse() -> None:
    noise = preset("sd3-medium")
    part = ImageToImage.of(family_of("StableDiffusion3Img2ImgPipeline").build(0), noise, {"strength": STRENGTH})
    steps = part.steps(N)
    coefficients = np.tril(np.random.default_rng(0).normal(size=(steps, 3)), -1)
    lams = np.linspace(part.noise.noise_end, 2.0, steps)
    own = Schedule.from_lams(part.noise, lams, origin=Origin(solver="nonstationary"), coefficients=coefficients)
    joined = part.joined(own, N)
    assert joined.nfe == N and joined.lams[0] == -np.inf and not joined.coefficients[: N - steps].any()
    again = part.cut(joined)
    np.testing.assert_allclose(again.lams, own.lams, atol=1e-9)
    np.testing.assert_array_equal(again.coefficients, coefficients)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    family_of("StableDiffusionPipeline").build(0).save_pretrained("model")
    picture(0).save("photo.png")
    little = ["--budget", "300", "--teacher-steps", "10", "--samples", "2"]
    command = ["tune", "--pipeline", "model", "--nfe", str(N), *little, "--image", "photo.png", "-o", "out.json"]
    assert main([*command, "--option", "strength=0.6"]) == 0
    (found,) = load("out.json")
    noise = preset("sd15")
    assert found.nfe == N and found.lams[-3] == pytest.approx(float(noise.lam(0.6)))
    Path("empty.png").write_text("")
    assert main([*command, "--image", "empty.png"]) == 2
    assert "empty.png cannot be read" in capsys.readouterr().err
    before = Path("photo.png").read_bytes()
    assert main([*command[:-1], "photo.png"]) == 2 and Path("photo.png").read_bytes() == before
