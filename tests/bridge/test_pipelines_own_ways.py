"""Pipelines that use their scheduler in a way of their own: compared with a closed form or diffusers, or refused."""

from __future__ import annotations

import copy
import itertools
import warnings
from types import SimpleNamespace
from typing import Any

import cases
import diffusers
import numpy as np
import pytest
import torch
from cases import SD
from diffusers.configuration_utils import FrozenDict
from mixture import random_schedule
from pipelines import (
    _SHORT,
    FLUX_CONFIG,
    VISUAL_CLOZE,
    clip_encoder,
    clip_tokenizer,
    family_of,
    kandinsky_combined,
    picture,
    t5_encoder,
    t5_tokenizer,
)  # fmt: skip
from test_pipelines_schedule import told, wanted
from transformers import CLIPTextModelWithProjection

import bridge
from bridge import install, noise_schedule_of, optimize_pipeline, recommend, schedule_of, with_schedule
from bridge.schedulers import install as ways
from hso_jax import zoo
from hso_jax.schedule import Schedule

DATA = 0.5  # standard deviation of the data, whose exact denoiser is x data^2 / (data^2 + sigma^2)
EDM = {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": DATA, "final_sigmas_type": "sigma_min"}
COSMOS_2 = {**EDM, "sigma_data": 1.0}


class Network(torch.nn.Module):
    """Cosmos 1's network for Gaussian data: told log(sigma)/4, with EDM's preconditioning."""

    config = FrozenDict({"in_channels": 4})
    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[float] = []

    def forward(self, hidden_states: Any, timestep: Any, **rest: Any) -> Any:
        self.seen.append(float(timestep.flatten()[0]))
        sigma = float(np.exp(4.0 * self.seen[-1]))
        scale = 1.0 / np.hypot(sigma, DATA)
        x = hidden_states / scale
        return ((x * (DATA * scale) ** 2 - x * (DATA * scale) ** 2) / (sigma * DATA * scale),)


class Guard(torch.nn.Module):
    """Lets everything pass."""

    device = torch.device("cpu")

    def check_text_safety(self, prompt: str) -> bool:
        return True


def cosmos_1() -> Any:
    vae = diffusers.AutoencoderKLCosmos(
        latent_channels=4, encoder_block_out_channels=(8, 8, 8, 8), decode_block_out_channels=(8, 8, 8, 8),
        attention_resolutions=(8,), resolution=64, num_layers=1, scaling_factor=1.0, spatial_compression_ratio=4,
        temporal_compression_ratio=4,
    )  # fmt: skip
    pipe = diffusers.CosmosTextToWorldPipeline(
        t5_encoder(), t5_tokenizer(), Network(), vae, diffusers.EDMEulerScheduler(**EDM), Guard()
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def ltx_condition() -> Any:
    transformer = diffusers.LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, patch_size=1, patch_size_t=1, num_attention_heads=4, attention_head_dim=8,
        cross_attention_dim=32, num_layers=1, caption_channels=32,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLLTXVideo(
        latent_channels=8, block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1,) * 5, decoder_layers_per_block=(1,) * 5,
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False), decoder_inject_noise=(False,) * 5,
        upsample_residual=(False,) * 4, upsample_factor=(1,) * 4, patch_size=1, patch_size_t=1,
    )  # fmt: skip
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    pipe = diffusers.LTXConditionPipeline(scheduler, vae, t5_encoder(), t5_tokenizer(), transformer)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def shell(name: str, scheduler: Any, **parts: Any) -> Any:
    """A pipeline of that class without components, which is all that a check before installing looks at."""
    pipe = object.__new__(getattr(diffusers, name))
    for key, part in {"_internal_dict": FrozenDict(), "scheduler": scheduler, **parts}.items():
        object.__setattr__(pipe, key, part)
    return pipe


def test_cosmos_1_ends_where_ddim_does() -> None:
    pipe = cosmos_1()
    noise = torch.randn(1, 4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    schedule = Schedule.from_sigmas(noise_schedule_of(pipe), [80.0, 20.0, 5.0, 1.0, 0.3])
    install(pipe, schedule)
    call = {"prompt": "a fox", "height": 32, "width": 32, "num_frames": 9, **_SHORT, "output_type": "latent"}
    latents = pipe(num_inference_steps=5, latents=noise, **call)[0]
    np.testing.assert_allclose(pipe.transformer.seen[::2], schedule.timesteps, rtol=1e-6, atol=1e-6)
    x, sigmas = 80.0, schedule.sampler_sigmas()
    for here, then in itertools.pairwise(sigmas):
        clean = x * DATA**2 / (DATA**2 + here**2)
        x = clean + (x - clean) * then / here
    torch.testing.assert_close(latents, noise * x, rtol=1e-5, atol=1e-7)


def test_cosmos_1_needs_its_start_and_class() -> None:
    pipe = shell("CosmosVideoToWorldPipeline", diffusers.EDMEulerScheduler(**EDM))
    with pytest.raises(ValueError, match="sigma_max, 80, and the schedule at 70: use one whose first sigma is 80"):
        install(pipe, [70.0, 5.0, 1.0, 0.0])
    install(pipe, [80.0, 5.0, 1.0, 0.0])
    pipe.scheduler = diffusers.EDMDPMSolverMultistepScheduler(**EDM)
    with pytest.raises(ValueError, match=r"steps twice .* use EDMEulerScheduler"):
        install(pipe, [80.0, 5.0, 1.0, 0.0])


@pytest.mark.filterwarnings("ignore:the schedule has coefficients:UserWarning")
@pytest.mark.filterwarnings("ignore:timesteps .* differ:UserWarning")  # LTX proposes a grid of its own
@pytest.mark.parametrize("end", [0.0, 0.1])
def test_a_timestep_for_each_token(end: float) -> None:
    """As diffusers with the same timesteps; the frame that is given is told 0 in each step."""
    pipe = ltx_condition()
    call = {"prompt": "a fox", "negative_prompt": "", "height": 32, "width": 32, "num_frames": 9, **_SHORT}

    def run(**more: Any) -> torch.Tensor:
        seed = torch.Generator().manual_seed(0)
        return pipe(image=picture(32), num_inference_steps=4, generator=seed, output_type="latent", **call, **more)[0]

    plain = run(timesteps=[1000.0, 800.0, 500.0, 200.0])
    half = run(timesteps=[1000.0, 800.0, 500.0, 200.0], denoise_strength=0.5)
    install(pipe, [1.0, 0.8, 0.5, 0.2, end])
    latents = run()
    assert latents.dtype == plain.dtype
    if end == 0.0:
        torch.testing.assert_close(latents, plain)
        torch.testing.assert_close(run(denoise_strength=0.5), half)
    with pytest.raises(ValueError, match="calls step with arguments that NonstationaryScheduler does not have"):
        install(pipe, zoo("flux-dev", 4, "nonstationary"))
    assert schedule_of(pipe).sampler_sigmas()[-1] == pytest.approx(end)
    assert optimize_pipeline(pipe, 4).coefficients is None


def test_cosmos_2_5_is_told_the_sigmas() -> None:
    """Its scheduler has sigma_max 200 and Karras' rule in a flow config; the network is told `sigmas[i]`."""
    scheduler = diffusers.UniPCMultistepScheduler(
        use_karras_sigmas=True, use_flow_sigmas=True, prediction_type="flow_prediction", sigma_max=200.0, sigma_min=0.01
    )
    pipe = shell("Cosmos2_5_PredictBasePipeline", scheduler)
    with pytest.warns(UserWarning, match="use_karras_sigmas"):
        install(pipe, [0.99, 0.9, 0.5, 0.2, 0.0])
    pipe.scheduler.set_timesteps(4)
    np.testing.assert_allclose(pipe.scheduler.sigmas, [0.99, 0.9, 0.5, 0.2, 0.0], atol=1e-12)
    np.testing.assert_allclose(pipe.scheduler.timesteps, [990.0, 900.0, 500.0, 200.0])


def _scheduler_of(name: str) -> Any:
    if "Cosmos2" in name:
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True)
        scheduler.register_to_config(**COSMOS_2)
        return scheduler
    return diffusers.FlowMatchEulerDiscreteScheduler() if "LTX" in name else diffusers.DDIMScheduler()


@pytest.mark.parametrize("name", [name for name in ways.REFUSED if hasattr(diffusers, name)])
def test_refused_pipelines_are_left_as_they_are(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    pipe = shell(name, _scheduler_of(name))
    before = pipe.scheduler
    doors = (lambda: install(pipe, [0.9, 0.5, 0.0]), lambda: optimize_pipeline(pipe, 4), lambda: recommend(pipe, 4))
    for door in doors:
        with pytest.raises(ValueError, match=f"{name} cannot sample at a schedule") as refusal:
            door()
        assert len(str(refusal.value)) <= 210
    assert pipe.scheduler is before
    assert "installed" not in capsys.readouterr().err


def test_cosmos_2s_scheduler_is_refused_without_its_pipeline() -> None:
    scheduler = _scheduler_of("Cosmos2TextToImagePipeline")
    for schedule in (zoo("flux-dev", 4, "ddim"), zoo("flux-dev", 4, "nonstationary")):
        with pytest.raises(ValueError, match=r"Cosmos-Predict2's pipelines .* call the pipeline without a schedule"):
            with_schedule(scheduler, schedule)


@pytest.mark.parametrize("name", [name for name in ways.ONLY if hasattr(diffusers, name)])
def test_some_pipelines_take_certain_classes_only(name: str) -> None:
    allowed = ways.ONLY[name].schedulers
    configs = {"EDMEulerScheduler": EDM, "UniPCMultistepScheduler": cases.FLOW}
    for kind in allowed:
        usual = {} if kind.startswith(("FlowMatch", "DDPMWuerstchen")) else SD
        pipe = shell(name, getattr(diffusers, kind)(**configs.get(kind, usual)))
        noise = noise_schedule_of(pipe)
        first = float(noise.ksigma(1.0 if noise.kind == "ve" else 0.9))
        install(pipe, Schedule.from_sigmas(noise, [first, first / 3, first / 20]))
        assert schedule_of(pipe).nfe == 3
    pipe = shell(name, diffusers.HeunDiscreteScheduler(**SD))
    with pytest.raises(ValueError, match=f"{name} .* use {allowed[0]}"):
        install(pipe, [10.0, 1.0, 0.0])


@pytest.mark.parametrize(
    ("name", "scheduler"),
    [
        ("KandinskyV22Pipeline", diffusers.UniPCMultistepScheduler(**SD)),
        ("MarigoldDepthPipeline", diffusers.PNDMScheduler(**SD, skip_prk_steps=True)),
        ("SanaWMPipeline", diffusers.FlowMatchHeunDiscreteScheduler()),
    ],
)
def test_unknown_arguments_of_step_are_refused(name: str, scheduler: Any) -> None:
    with pytest.raises(ValueError, match="calls step with arguments"):
        install(shell(name, scheduler), [0.9, 0.5, 0.2, 0.0])


def test_an_audio_scheduler_of_its_own_is_refused() -> None:
    flow = diffusers.FlowMatchEulerDiscreteScheduler
    pipe = shell("LTX2ConditionPipeline", flow(), audio_scheduler=flow())
    with pytest.raises(ValueError, match=r"set pipe\.audio_scheduler = None"):
        install(pipe, [1.0, 0.5, 0.0])
    pipe = shell("LTX2ConditionPipeline", flow(), audio_scheduler=None)
    install(pipe, [1.0, 0.5, 0.0])


def test_proposals_below_noise_must_start_with_the_schedule() -> None:
    """Stable Audio 3 noises its audio to `init_noise_level`, the first s that it proposes; LTX-2's second stage too."""
    scheduler = with_schedule(diffusers.FlowMatchEulerDiscreteScheduler(), [1.0, 0.6, 0.3, 0.0])
    with pytest.raises(ValueError, match=r"s = 0\.6, .* schedule starts at 1: install .* sigma is 0\.6"):
        scheduler.set_timesteps(sigmas=[0.6, 0.4, 0.2])
    scheduler = with_schedule(scheduler, [0.6, 0.5, 0.3, 0.0])
    with pytest.warns(UserWarning, match="which is used"):
        scheduler.set_timesteps(sigmas=[0.6, 0.4, 0.2])
    np.testing.assert_allclose(scheduler.sigmas, [0.6, 0.5, 0.3, 0.0])


def test_a_users_own_pipeline_is_checked() -> None:
    """A subclass is its parent; a class whose `step` call fits is taken."""

    class Mine(diffusers.Cosmos2TextToImagePipeline):  # type: ignore[misc]
        pass

    with pytest.raises(ValueError, match="Mine cannot sample at a schedule"):
        ways.check_class(Mine)
    pipe = family_of("FluxPipeline").build()
    with pytest.warns(UserWarning, match="takes its steps"):
        install(pipe, zoo("flux-dev", 4, "nonstationary"))
    ways.check_use(pipe, pipe.scheduler)
    assert FLUX_CONFIG.items() <= dict(pipe.scheduler.config).items()


STEPS = 5
_FRAMES = {"prompt": "a small fox", "height": 16, "width": 16, "output_type": "latent", **_SHORT}
_CASCADE = {"prompt": "a small fox", "height": 128, "width": 128, "output_type": "np"}


def mochi() -> Any:
    transformer = diffusers.MochiTransformer3DModel(
        patch_size=2, num_attention_heads=2, attention_head_dim=8, num_layers=2, pooled_projection_dim=16,
        in_channels=12, out_channels=None, text_embed_dim=32, time_embed_dim=4, max_sequence_length=16,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLMochi(
        latent_channels=12, out_channels=3, encoder_block_out_channels=(32, 32, 32, 32),
        decoder_block_out_channels=(32, 32, 32, 32), layers_per_block=(1, 1, 1, 1, 1),
    )  # fmt: skip
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    return diffusers.MochiPipeline(scheduler, vae, t5_encoder(), t5_tokenizer(), transformer)


def cogvideox() -> Any:
    transformer = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=4, attention_head_dim=8, in_channels=4, out_channels=4, time_embed_dim=2,
        text_embed_dim=32, num_layers=1, sample_width=2, sample_height=2, sample_frames=9, patch_size=2,
        temporal_compression_ratio=4, max_text_seq_length=16,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=2,
        down_block_types=("CogVideoXDownBlock3D",) * 4, up_block_types=("CogVideoXUpBlock3D",) * 4,
    )  # fmt: skip
    scheduler = diffusers.CogVideoXDPMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True)
    return diffusers.CogVideoXPipeline(t5_tokenizer(), t5_encoder(), vae, transformer, scheduler)


def stable_cascade_prior() -> Any:
    prior = diffusers.StableCascadeUNet(
        conditioning_dim=128, block_out_channels=(8, 8), num_attention_heads=(2, 2), down_num_layers_per_block=(1, 1),
        up_num_layers_per_block=(1, 1), switch_level=(False,), clip_image_in_channels=768, clip_text_in_channels=32,
        clip_text_pooled_in_channels=32, dropout=(0.1, 0.1), in_channels=4, out_channels=4, self_attn=True,
    )  # fmt: skip
    text_encoder = clip_encoder(CLIPTextModelWithProjection)
    return diffusers.StableCascadePriorPipeline(
        clip_tokenizer(), text_encoder, prior.eval(), diffusers.DDPMWuerstchenScheduler()
    )


def run_latents(pipe: Any, network: str, call: dict[str, Any], seed: int = 0) -> tuple[np.ndarray, list[float]]:
    """The latents, and what the network was told, once a step."""
    seen: list[float] = []

    def hook(module: Any, args: Any, kwargs: Any) -> None:
        given = kwargs.get("timestep", kwargs.get("timestep_ratio"))
        seen.append(float(given.flatten()[0]))

    handle = getattr(pipe, network).register_forward_pre_hook(hook, with_kwargs=True)
    output = pipe(num_inference_steps=STEPS, generator=torch.Generator().manual_seed(seed), **call)
    handle.remove()
    return np.asarray(output[0]), seen


@pytest.mark.filterwarnings("ignore:In CPU autocast:UserWarning")  # Mochi asks for it whatever its dtype
@pytest.mark.filterwarnings("ignore:sigmas .* differ:UserWarning")  # and proposes a grid of its own
@pytest.mark.parametrize("end", ["clean", "t_eps"])
@pytest.mark.parametrize(
    ("build", "network", "call", "told"),
    [
        (mochi, "transformer", {**_FRAMES, "num_frames": 7}, lambda s: 1000.0 * (1.0 - s.sampler_sigmas()[:-1])),
        (cogvideox, "transformer", {**_FRAMES, "num_frames": 8}, lambda s: s.timesteps),
        (stable_cascade_prior, "prior", _CASCADE, lambda s: s.timesteps),
    ],
    ids=["mochi", "cogvideox", "stable-cascade"],
)
def test_the_network_is_told_the_schedules_levels(
    build: Any, network: str, call: dict[str, Any], told: Any, end: str
) -> None:
    torch.manual_seed(0)
    pipe = build()
    pipe.set_progress_bar_config(disable=True)
    default, _ = run_latents(pipe, network, call)
    schedule = random_schedule(noise_schedule_of(pipe), STEPS, end, seed=1)
    pipe.scheduler = with_schedule(pipe.scheduler, schedule)
    output, seen = run_latents(pipe, network, call)
    np.testing.assert_allclose(seen, told(schedule), rtol=1e-6, atol=1e-4 if max(seen) > 2 else 1e-6)
    assert np.isfinite(output).all() and output.shape == default.shape
    np.testing.assert_array_equal(output, run_latents(pipe, network, call)[0])
    assert not np.array_equal(output, run_latents(pipe, network, call, seed=1)[0])
    assert np.abs(output - default).max() > 1e-3


INNER = 4


def test_visual_cloze_samples_at_the_schedule_twice() -> None:
    pipe = VISUAL_CLOZE.build()
    schedule = random_schedule(noise_schedule_of(pipe), INNER, "clean", 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        install(pipe, schedule)
    for part in (pipe, pipe.generation_pipe, pipe.upsampling_pipe):
        assert part.scheduler is pipe.scheduler
        part.set_progress_bar_config(disable=True)
    output, seen = told(pipe, VISUAL_CLOZE, INNER)
    np.testing.assert_array_equal(seen, [*wanted(schedule, VISUAL_CLOZE), *wanted(schedule, VISUAL_CLOZE, skip=2)])
    assert np.isfinite(output).all()


def test_installing_again_reaches_inner_schedulers_that_fell_behind() -> None:
    pipe = VISUAL_CLOZE.build()
    pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)  # the inner ones keep the old
    install(pipe, random_schedule(noise_schedule_of(pipe), INNER, "clean", 1))
    assert pipe.generation_pipe.scheduler is pipe.upsampling_pipe.scheduler is pipe.scheduler


def test_kandinskys_prior_keeps_its_scheduler_and_is_named() -> None:
    pipe = kandinsky_combined()
    prior = pipe.prior_pipe.scheduler
    schedule = random_schedule(noise_schedule_of(pipe), INNER, "clean", 1)
    with pytest.warns(UserWarning, match=r"prior_pipe of KandinskyV22CombinedPipeline .*keeps its UnCLIPScheduler"):
        install(pipe, schedule)
    assert schedule_of(pipe.decoder_pipe) is schedule and pipe.decoder_pipe.scheduler is pipe.scheduler
    assert pipe.prior_pipe.scheduler is prior is pipe.prior_scheduler


def test_one_scheduler_for_two_models_is_refused() -> None:
    scheduler = diffusers.DDIMScheduler(**SD)
    pipe = SimpleNamespace(
        scheduler=scheduler,
        prior_scheduler=scheduler,
        prior_pipe=SimpleNamespace(scheduler=scheduler),
        decoder_pipe=SimpleNamespace(scheduler=scheduler),
    )
    before = copy.copy(vars(pipe))
    with pytest.raises(ValueError, match="prior_pipe and decoder_pipe share one scheduler"):
        install(pipe, random_schedule(cases.noise_of("sd15"), INNER, "clean", 1))
    assert vars(pipe) == before and pipe.decoder_pipe.scheduler is scheduler


def test_optimize_pipeline_and_its_undo_reach_inner_pipelines(capsys: pytest.CaptureFixture[str]) -> None:
    pipe = VISUAL_CLOZE.build()
    bridge.optimize_pipeline(pipe, INNER)
    parts = (pipe, pipe.generation_pipe, pipe.upsampling_pipe)
    assert all(schedule_of(part) is schedule_of(pipe) is not None for part in parts)
    exec(capsys.readouterr().err.partition("undo:   ")[2], {"pipe": pipe, "bridge": bridge})
    assert all(schedule_of(part) is None for part in parts)
