"""`optimize_pipeline` ties reading the noise, the search and the installation together."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from cases import SD, noise_of
from pipelines import family_of

import bridge
from bridge import (
    install,
    noise_schedule_of,
    optimize_pipeline,
    schedule_of,
    solver_of,
    with_schedule,
    without_schedule,
)
from bridge import noise_of as noise_of_module
from bridge.at_hand import usual_guidance
from bridge.noise_of import adds_noise
from bridge.recommending import _progress
from hso_jax import SolverError, zoo
from hso_jax.noise import NoiseSchedule
from hso_jax.schedule import Schedule
from hso_jax.schedule_file import to_json
from hso_jax.shipped.expected_gain import Expected


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The search replaced by evenly spaced nodes; what it was asked for."""
    calls: list[dict[str, Any]] = []

    def search(noise: NoiseSchedule, nfe: int, *, layout: str = "node", **options: Any) -> Schedule:
        calls.append({"noise": noise, "nfe": nfe, "layout": layout, **options})
        return Schedule.from_t(noise, np.linspace(0.95, 0.05, nfe + (layout == "interval")), layout=layout)

    monkeypatch.setattr("bridge.recommending.search", search)
    return calls


def test_searches_for_the_pipelines_noise_and_installs(asked: list[dict[str, Any]]) -> None:
    pipe = SimpleNamespace(scheduler=diffusers.UniPCMultistepScheduler(**SD))
    schedule = optimize_pipeline(pipe, 5, method="hso", seed=3)
    assert asked[0]["noise"].fingerprint() == noise_of("sd15").fingerprint()
    assert (asked[0]["nfe"], asked[0]["layout"], asked[0]["seed"]) == (5, "node", 3)
    assert schedule_of(pipe).timesteps.tolist() == schedule.timesteps.tolist()
    assert (schedule.nfe, schedule.end) == (5, "clean")


def test_reads_the_noise_once(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[Any] = []
    read = noise_of_module._cached

    def counted(*key: Any) -> NoiseSchedule:
        reads.append(key)
        return read(*key)

    monkeypatch.setattr(noise_of_module, "_cached", counted)
    pipe = SimpleNamespace(scheduler=diffusers.DDIMScheduler(**SD))
    optimize_pipeline(pipe, 6, method="zoo")
    assert len(reads) == 1
    assert pipe.scheduler.config.hso_schedule == json.loads(to_json(schedule_of(pipe)))


def test_the_end_chooses_the_layout(asked: list[dict[str, Any]]) -> None:
    pipe = SimpleNamespace(scheduler=diffusers.DDIMScheduler(**SD))
    assert optimize_pipeline(pipe, 4, method="hso", end="t_eps").end == "t_eps"
    assert optimize_pipeline(pipe, 4, method="hso", end="clean", layout="interval").end == "clean"
    assert [call["layout"] for call in asked] == ["interval", "interval"]


def test_dynamic_shift_reaches_the_search(asked: list[dict[str, Any]]) -> None:
    pipe = SimpleNamespace(scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True))
    for sizes in ({"image_seq_len": 4096}, {"image_seq_len": 1024}, {"mu": 0.5}):
        optimize_pipeline(pipe, 4, method="hso", **sizes)
    assert len({call["noise"].fingerprint() for call in asked}) == 3


def test_a_failure_leaves_the_pipeline_as_it_was(asked: list[dict[str, Any]]) -> None:
    pipe = SimpleNamespace(scheduler=diffusers.EulerAncestralDiscreteScheduler(**SD, prediction_type="sample"))
    before = pipe.scheduler
    with pytest.raises(ValueError, match="prediction_type"):
        optimize_pipeline(pipe, 4, method="hso")
    assert pipe.scheduler is before


@pytest.mark.parametrize(
    ("cls", "weight", "why"),
    [
        ("StableDiffusionPipeline", 7.5, "the pipeline's default guidance_scale"),
        ("StableDiffusionXLPipeline", 5.0, "the pipeline's default guidance_scale"),
        ("StableDiffusion3Pipeline", 7.0, "the pipeline's default guidance_scale"),
        ("PixArtAlphaPipeline", 4.5, "the pipeline's default guidance_scale"),
        ("FluxPipeline", 1.0, "the pipeline's default true_cfg_scale"),
    ],
)
def test_the_zoo_answers_for_the_pipelines_guidance(
    cls: str, weight: float, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe = family_of(cls).shared()
    schedule = optimize_pipeline(pipe, 6, method="zoo")
    assert schedule.guidance == weight
    said = capsys.readouterr().err
    assert f"6 steps of {schedule.solver}, levels: solver-error, for guidance {weight:g} ({why})\n" in said
    assert optimize_pipeline(pipe, 6, method="zoo", guidance=1.0).guidance == 1.0
    assert "guidance 1 (as asked)" in capsys.readouterr().err


def test_the_search_on_the_solver_s_error_too(asked: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    pipe = family_of("StableDiffusionPipeline").shared()
    optimize_pipeline(pipe, 4, method="solver-error")
    assert asked[0]["method"].guidance == 7.5
    optimize_pipeline(pipe, 4, method="hso")
    assert asked[1]["method"] == "hso"
    assert "4 steps of ddim, levels: custom, for any guidance" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("cls", "options", "lines"),
    [
        (
            "StableDiffusionXLPipeline",
            {"solver": "unipc-2"},
            "before: EulerDiscreteScheduler, levels: linspace\n"
            "now:    6 steps of unipc-2, levels: solver-error, for guidance 5 (the pipeline's default guidance_scale). "
            "Expect it. prompts=[...] measures it\n"
            "call:   pipe(..., num_inference_steps=6)\n"
            "undo:   pipe.scheduler = bridge.without_schedule(pipe.scheduler)\n",
        ),
        (
            "PixArtAlphaPipeline",
            {"method": "zoo", "guidance": 1.0},
            "before: DPMSolverMultistepScheduler, levels: sgm-uniform\n"
            "now:    6 steps of dpmpp-2m, levels: solver-error, for guidance 1 (as asked)\n"
            "call:   pipe(..., num_inference_steps=6)\n"
            "undo:   pipe.scheduler = bridge.without_schedule(pipe.scheduler)\n",
        ),
    ],
)
def test_four_lines_say_what_was_done(
    cls: str,
    options: dict[str, Any],
    lines: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Expected, "words", lambda gain, before: {"before": "Expect it."}[before])
    pipe = family_of(cls).build()
    plain = pipe.scheduler
    optimize_pipeline(pipe, 6, **options)
    said = capsys.readouterr().err
    assert said == lines
    exec(said.partition("undo:   ")[2], {"pipe": pipe, "bridge": bridge})
    assert type(pipe.scheduler) is type(plain)
    now, then = ({k: v for k, v in x.config.items() if k[0] != "_"} for x in (pipe.scheduler, plain))
    assert now == then


class Called(SimpleNamespace):
    def __call__(self, prompt: str, guidance_scale: float = 9.0) -> None: ...


class Turbo(SimpleNamespace):
    def __call__(self, prompt: str, guidance_scale: float = 0.0) -> None: ...


class Silent(SimpleNamespace):
    def __call__(self, labels: list[int]) -> None: ...


class ZImagePipeline(Called):
    def __call__(self, prompt: str, guidance_scale: float = 4.0) -> None: ...


def network(**config: Any) -> Any:
    return SimpleNamespace(config=config)


@pytest.mark.parametrize(
    ("pipe", "weight", "why"),
    [
        (Called(), 9.0, "default guidance_scale"),
        (Called(unet=network(time_cond_proj_dim=None)), 9.0, "default guidance_scale"),
        (Called(unet=network(time_cond_proj_dim=256)), 1.0, "an input of the network"),
        (Called(transformer=network(guidance_embeds=True)), 1.0, "an input of the network"),
        (Called(transformer=network(guidance_embeds=False)), 1.0, "an input of the network"),
        (Turbo(), 1.0, "the pipeline's default guidance_scale"),  # 0 is without guidance, whose weight is 1
        (Silent(), 1.0, "names no weight"),
        (SimpleNamespace(), 1.0, "names no weight"),
        (ZImagePipeline(), 5.0, "default guidance_scale"),  # cond + 4 (cond - uncond)
    ],
    ids=str,
)
def test_usual_guidance(pipe: Any, weight: float, why: str) -> None:
    found, reason = usual_guidance(pipe)
    assert found == weight and why in reason


@pytest.mark.parametrize("method", ["zoo", "recommend"])
def test_an_unshipped_weight_becomes_the_nearest(method: str, capsys: pytest.CaptureFixture[str]) -> None:
    pipe = Called(scheduler=diffusers.DDIMScheduler(**SD))
    assert optimize_pipeline(pipe, 5, method=method).guidance == 7.5
    assert "guidance 7.5 (the nearest shipped to 9, the pipeline's default guidance_scale)" in capsys.readouterr().err


def latents(pipe: Any) -> np.ndarray:
    call = family_of(type(pipe).__name__).call
    generator = torch.Generator().manual_seed(0)
    return pipe(**call, num_inference_steps=6, generator=generator, output_type="latent").images.numpy()


SWITCHED = [
    ("EulerDiscreteScheduler", "unipc-3", "UniPCMultistepScheduler", {"solver_order": 3}),
    ("EulerDiscreteScheduler", "uni_pc", "UniPCMultistepScheduler", {"solver_order": 2}),
    ("HeunDiscreteScheduler", "DPM++ 2M Karras", "DPMSolverMultistepScheduler", {}),
    ("DDPMScheduler", "euler", "DDIMScheduler", {"clip_sample": False}),
    ("UniPCMultistepScheduler", "DPMSolverMultistepScheduler", "DPMSolverMultistepScheduler", {}),
    ("PNDMScheduler", "unipc-2", "UniPCMultistepScheduler", {}),
]
DOORS: dict[str, Callable[[Any, str], Any]] = {
    "zoo": lambda pipe, solver: optimize_pipeline(pipe, 6, method="zoo", solver=solver),
    "recommend": lambda pipe, solver: optimize_pipeline(pipe, 6, solver=solver),
    "install": lambda pipe, solver: install(pipe, zoo(noise_schedule_of(pipe), 6, solver, guidance=7.5)),
    "with_schedule": lambda pipe, solver: setattr(
        pipe, "scheduler", with_schedule(pipe.scheduler, zoo(noise_schedule_of(pipe), 6, solver, guidance=7.5))
    ),
}


@pytest.mark.filterwarnings("ignore:the schedule is for solver")
@pytest.mark.parametrize(
    ("has", "asked", "cls", "config", "door"),
    [*((*row, "zoo") for row in SWITCHED), *((*SWITCHED[0], d) for d in list(DOORS)[1:])],
)
def test_the_requested_solver_takes_the_steps(
    has: str, asked: str, cls: str, config: dict[str, Any], door: str
) -> None:
    """The samples are those of diffusers' own class for the solver, at the same nodes."""
    pipe = family_of("StableDiffusionPipeline").shared()
    clips = {"clip_sample": False} if "clip_sample" in config else {}  # as DDIM clips, the noise keeps its direction
    pipe.scheduler = getattr(diffusers, has)(**SD, **clips)
    DOORS[door](pipe, asked)
    found, nodes = latents(pipe), schedule_of(pipe).sampler_sigmas()
    pipe.scheduler = with_schedule(getattr(diffusers, cls)(**SD, **config), nodes)
    np.testing.assert_allclose(found, latents(pipe), rtol=1e-3, atol=2e-3)


ANCESTRAL = [
    ("EulerAncestralDiscreteScheduler", {}),
    ("KDPM2AncestralDiscreteScheduler", {}),
    ("DDPMScheduler", {}),
    ("DDPMParallelScheduler", {}),
    ("DPMSolverSDEScheduler", {}),
    ("SASolverScheduler", {}),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    ("DPMSolverSinglestepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    ("LCMScheduler", {}),
    ("TCDScheduler", {}),
]


@pytest.mark.parametrize(("cls", "config"), ANCESTRAL)
def test_replacing_a_noisy_sampler_warns(cls: str, config: dict[str, Any]) -> None:
    plain = getattr(diffusers, cls)(**SD, **config)
    assert adds_noise(plain)
    if cls in ("LCMScheduler", "TCDScheduler"):
        with pytest.raises(ValueError, match="is distilled for that solver"):
            with_schedule(plain, zoo("sd15", 6, "dpmpp-2m"))
        return
    for method in ({"method": "zoo", "solver": "dpmpp-2m"}, {}):
        pipe = Called(scheduler=plain)
        with pytest.warns(UserWarning, match=f"in place of {cls}, which adds noise at each step; this adds none"):
            optimize_pipeline(pipe, 6, **method)
    assert without_schedule(pipe.scheduler).__class__ is plain.__class__


@pytest.mark.parametrize(
    ("cls", "config"),
    [
        ("EulerDiscreteScheduler", {}),
        ("DPMSolverMultistepScheduler", {}),
        ("PNDMScheduler", {}),
        ("EulerDiscreteScheduler", {"algorithm_type": "sde-dpmsolver++"}),  # another class's entry
    ],
)
def test_others_are_not_said_to_add_noise(cls: str, config: dict[str, Any]) -> None:
    assert not adds_noise(getattr(diffusers, cls).from_config({**SD, **config}))


def test_a_noisy_flow_sampler_has_no_known_solver() -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, stochastic_sampling=True)
    assert adds_noise(scheduler)
    with pytest.raises(ValueError, match="none of the solvers"):
        solver_of(scheduler)
    with pytest.warns(UserWarning, match="adds noise at each step"):
        with_schedule(scheduler, zoo("sd3-medium", 6, "ddim"))


def test_its_own_solver_stays_in_its_class() -> None:
    for cls, solver in (("EulerDiscreteScheduler", "ddim"), ("DPMSolverMultistepScheduler", "dpmpp-2m")):
        plain = getattr(diffusers, cls)(**SD)
        assert type(with_schedule(plain, zoo("sd15", 6, solver))).__name__ == cls
        assert type(with_schedule(plain, zoo("sd15", 6, "unipc-3").sampler_sigmas())).__name__ == cls


@pytest.mark.parametrize(
    ("cls", "config", "solver", "way"),
    [
        ("EulerDiscreteScheduler", SD, "heun", "HeunDiscreteScheduler"),
        ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, "heun-flow", "FlowMatchHeunDiscreteScheduler"),
        ("EulerDiscreteScheduler", SD, "heun-flow", None),
        ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, "heun", None),
    ],
)
def test_heun_is_refused_before_any_search(
    asked: list[dict[str, Any]], cls: str, config: dict[str, Any], solver: str, way: str | None
) -> None:
    pipe = Called(scheduler=getattr(diffusers, cls)(**config))
    for options in ({"method": "solver-error", "solver": solver}, {"method": SolverError(solver)}, {"solver": solver}):
        with pytest.raises(ValueError, match=f"diffusers.{way}.from_config" if way else "use unipc-2"):
            optimize_pipeline(pipe, 6, **options)
    assert not asked
    if way:
        pipe.scheduler = getattr(diffusers, way).from_config(pipe.scheduler.config)
        optimize_pipeline(pipe, 6, method="solver-error", solver=solver)
        assert type(pipe.scheduler).__name__ == way


NO_PIPELINE = {
    "a scheduler": (diffusers.DDIMScheduler(**SD), 6, {}, "is a scheduler: bridge.optimize_pipeline takes the"),
    "a name": ("sdxl", 6, {}, "takes a diffusers pipeline"),
    "no scheduler": (SimpleNamespace(), 6, {}, "has no scheduler"),
    "another name": (
        SimpleNamespace(decoder_scheduler=diffusers.DDIMScheduler(**SD)), 6, {},
        "pipe.decoder_scheduler = bridge.with_schedule(pipe.decoder_scheduler, schedule)",
    ),
    "zero": (None, 0, {}, "nfe is 0; need a whole number of at least 1"),
    "a float": (None, 6.0, {}, "nfe is 6.0; need a whole number, no float"),
    "too many": (None, 10**6, {}, "use at most"),
    "more than shipped": (None, 21, {"method": "zoo"}, "use method='solver-error'"),
    "a rule": (None, 6, {"method": "Karras"}, "bridge.install(pipe, hso_jax.baseline('karras', "),
    "a rule beside the methods": (None, 6, {"method": "Karras"}, "methods: measure, recommend, zoo, hso, "),
    "no method": (None, 6, {"method": "best"}, "use one of measure, recommend, zoo, hso, hso-dm-nonuni, solver-error"),
    "a noisy solver": (None, 6, {"solver": "Euler a"}, "name the nearest one without noise: 'euler'"),
}  # fmt: skip


@pytest.mark.parametrize(("pipe", "nfe", "options", "cure"), NO_PIPELINE.values(), ids=NO_PIPELINE)
def test_what_cannot_be_done_names_the_cure(pipe: Any, nfe: Any, options: dict[str, Any], cure: str) -> None:
    pipe = SimpleNamespace(scheduler=diffusers.DDIMScheduler(**SD)) if pipe is None else pipe
    with pytest.raises(ValueError, match=re.escape(cure)) as caught:
        optimize_pipeline(pipe, nfe, **options)
    assert len(str(caught.value)) <= 200


@pytest.mark.parametrize(
    ("cls", "config", "nfe", "solver"),
    [
        ("DDIMScheduler", {**SD, "beta_end": 0.03}, 6, "ddim"),  # a noise range of its own
        ("EulerAncestralDiscreteScheduler", {**SD, "beta_end": 0.03}, 6, "dpmpp-2m"),
        ("DDIMScheduler", SD, 21, "ddim"),
        ("UniPCMultistepScheduler", SD, 30, "unipc-2"),
    ],
)
@pytest.mark.filterwarnings("ignore:the schedule is for solver")
def test_what_is_not_shipped_is_searched(
    asked: list[dict[str, Any]], capsys: pytest.CaptureFixture[str], cls: str, config: dict, nfe: int, solver: str
) -> None:
    pipe = Called(scheduler=getattr(diffusers, cls)(**config))
    optimize_pipeline(pipe, nfe)
    assert (asked[0]["method"].solver, asked[0]["method"].guidance) == (solver, 9.0)
    with pytest.raises(ValueError, match="SolverError"):
        bridge.recommend(pipe, nfe)
    said = capsys.readouterr().err.splitlines()
    assert "a search on the solver's error takes its place" in said[0]
    assert said[1].startswith(f"searching nodes for N = {nfe}, solver {solver}")


def test_a_long_search_reports_its_time(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("bridge.recommending._EVERY", 0.02)
    with _progress("searching"):
        time.sleep(0.2)
    first, *more = capsys.readouterr().err.splitlines()
    assert first.startswith("searching;") and len(more) > 2 and set(more) <= {"searching: 0 s", "searching: 1 s"}
