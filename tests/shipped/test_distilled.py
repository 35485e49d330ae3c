"""How distilled models are told, and the grids they come with."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from hso_jax import preset
from hso_jax.noise import PRESETS, flow
from hso_jax.shipped.distilled import DISTILLATIONS, named_in, of_class, of_folder, own_grid

TOLD = {
    "few-step": """HunyuanImage-3.0-Instruct-Distil | Wan2.2-14B-Rapid-AllInOne | Wan2.1_FusionX_14B |
FLUX.1-dev_tdd_lora | v1-8steps-lora | my-lora-64-4steps | 4steps_1024px |
HunyuanVideo-1.5-480p_t2v_step_distilled | HunyuanImage-2.1-Distilled | FastHunyuan-diffusers |
Wan2.1-T2V-14B-StepDistill-CfgDistill | Wan2.2-Distill-Models | Wan21_AccVid_T2V_14B_lora_rank32 |
sdxs-512-dreamshaper | SwiftBrush | swiftbrush-v2 | InstaFlow-0.9B | PeRFlow | piecewise-perflow |
hansyan/perflow-sd15-dreamshaper | pi-FLUX.1 | pi-Qwen-Image | piflow | SenseFlow-SDXL | SD2.1-Nitro |
NitroFusion_1step | my-model-4step | model_4_steps | 8steps-lora | few-step-flux | onestep-sdxl |
Kandinsky-5.0-T2V-Lite-distilled16steps-5s | SD2.1-distilled | Qwen-Image-Distill-Full | StepDistill |
step-distilled | stepdistilled | sdxl-1step | Mochi-FastMochi | FastMochi-diffusers | accvideo-t2v-5-steps |
MeanFlow-XL""",
    "lcm": """dreamshaper_8LCM | epiCRealism-LCM | Kolors-LCM | latent-consistency/lcm-lora-sdxl |
SimianLuo/LCM_Dreamshaper_v7 | AnimateLCM | AnimateLCM-SVD-xt | animatelcm_sd15 | PixArt-LCM-XL-2-1024-MS | lcmxl |
LCMLoRA""",
    "lightning": """RealVisXL_V4.0_Lightning | ByteDance/SDXL-Lightning | dreamshaperXL_lightningDPMSDE |
Qwen-Image-Lightning-8steps-V1.1 | Qwen-Image-Edit-2509-Lightning-4steps | realvisxlV50_v50LightningBakedvae |
sdxl_lightning_4step_lora.safetensors | SDXL Lightning | juggernautXL_Lightning_4Steps |
animatediff_lightning_4step | AnimateDiff-Lightning""",
    "hyper": """flux-hyper-8step | HyperFlux | HyperSD3 | sdxl_hyper_lora | Hyper-SD15-8steps-lora |
ByteDance/Hyper-SD | hyper_sdxl | Realistic_Vision_V6.0_B1_hyper | realistic-vision-hyper | hypersdxl |
./Hyper-FLUX.1-dev-8steps-lora/pytorch_lora_weights.safetensors""",
    "turbo": """Wan2.2-TI2V-5B-Turbo | Qwen-Image-2512-Turbo-LoRA-2-Steps | stabilityai/sdxl-turbo |
DreamShaperXL_Turbo_v2 | Tongyi-MAI/Z-Image-Turbo | z_image_turbo_bf16.safetensors | sdxlturbo | SDXLTurbo |
SDXLturbo | sd-turbo | SD3.5-Large-Turbo | stable-diffusion-3.5-large-turbo | FLUX.1-Turbo-Alpha |
TwinFlow-Z-Image-Turbo |
/root/.cache/huggingface/hub/models--stabilityai--sdxl-turbo/snapshots/71153311d3dbb46851df1931d3ca6e939de83304/unet |
RealitiesEdgeXLLCM_TURBOXL | Step-Video-T2V-Turbo | ERNIE-Image-Turbo | acestep-v15-turbo | hunyuan-turbo""",
    "self-forcing": """Wan2_1-SelfForcing | Self-Forcing | self_forcing_dmd | Krea-realtime-video |
krea-realtime-wan | RollingForcing""",
    "flash": """FlashDiffusion | Chroma1-Flash | chroma-unlocked-v47-flash-heun | flash-sd3 | jasperai/flash-sdxl |
Qwen-Image-Flash | sdxl-flash | SDXLFlash | Flash-SDXL""",
    "schnell": "black-forest-labs/FLUX.1-schnell",
    "tcd": "h1t/TCD-SDXL-LoRA | StableDiffusionXL_TCD",
    "dmd": "tianweiy/DMD2 | dmd2_sdxl_4step_lora_fp16.safetensors | SDXL-DMD2 | TDM_sdxl_lora",
    "lightx2v": """Wan2.1_lightx2v_4steps | Wan21_T2V_14B_lightx2v_cfg_step_distill_lora_rank32 |
wan2.2_t2v_lightx2v_4steps_lora_v1.1_high_noise | LightX2V""",
    "ltx": """LTX-Video-0.9.7-distilled | ltxv-13b-0.9.8-distilled-fp8 | LTX-2.3-Distilled-Diffusers |
ltx-2-19b-distilled | ltx2_distilled | LTXV-distilled""",
    "causvid": """FastWan2.1-T2V-1.3B | FastWan2.2-TI2V-5B-FullAttn-Diffusers | CausVid |
Wan21_CausVid_14B_T2V_lora_rank32""",
    "rcm": "TurboDiffusion | TurboWan2.1-T2V-1.3B-480P | rcm-Wan | rCM_Wan2.1",
    "klein": "FLUX.2-klein-4B | FLUX.2-klein-9B | flux2_klein_4b",
    "sprint": "Sana_Sprint_1.6B_1024px_diffusers | SANA-Sprint",
    "pcm": "PCM_SDXL_4step",
}
"""Names of models that were distilled to a few steps, by what they tell."""

OTHERS = """HyperLoRA | hyper-lora | lora_r4_steps2000 | rank4-steps2000 | ACE-Step-1.5 | turbojpeg |
flash-linear-attention | flashinfer | Wan2.1-Fun-1.3B-Control | Z-Image-Turbo-De-Distilled | distil-gpt2 | LightVAE |
run3_step8000 | stabilityai/stable-diffusion-xl-base-1.0 | hyperrealism_v3 | HyperRealism | hyper-realistic-vision |
realcmsd | realcm-v2 | black-forest-labs/FLUX.1-dev | turbocharged | turbo-charged-v2 | TurboCharger |
lightningstrike | lightning-strike | lightning_logs | pytorch-lightning | LightningDiT-XL | hypernetwork |
HyperNetwork | hyper-network | HyperTile | flashlight | flash-attention | FlashAttention-sdxl | flash_attn |
camera-flash | flash-photography | flashback | HunyuanVideo-1.5-480p_t2v_cfg_distill | HunyuanVideo_cfg_distilled |
cfgdistill | CfgDistill | guidance-distilled | guidance_distill | FLUX.1-dev-De-Distill | flux-dev-dedistilled |
undistilled | non-distilled | Z-Image-De-Turbo | not-distilled | FLUX.2-klein-base-4B | flux2-klein-base-9b |
FLUX.2-dev | yves-klein-blue | SRPO | FLUX.1-Krea-dev | rectified-flow | 2-rectified-flow | checkpoint-4000-steps |
4000steps | epoch-3-step-8000 | step4 | lora_1000steps | 20steps | 30-step | distilbert-base | distilgpt2 |
distil-whisper | realistic-vision | Wan2.1-T2V-14B | HunyuanVideo | HunyuanImage-2.1 | LTX-Video | LTX-2 | Z-Image |
Qwen-Image | SANA1.5_1.6B | Nitro-T-0.6B | Nitro-E | nitrogen | sprinter | tcdm | atcd | dmdx | pcmark | lcmdreams |
/home/turbo/models/sdxl-base | /data/lightning/sd15/unet | FastVideo/Wan2.1-VSA | lightx2v/Encoders |
openai/consistency-decoder | knowledge-distilled-sd | Step1X-Edit | ACE-Step-v1-3.5B | stepvideo-t2v | distillery |
instillation | SkyReels-V2-DF-1.3B | diffusion-forcing | teacher-forcing | Stable-Cascade | hyperion | Hyper-V |
turbofan | turbot | SDXL-1.0 | v1.4-step | CogView4-6B | Kandinsky-5.0-T2V-Lite-nocfg-5s | sdxl-vae-fp16-fix |
fastsd | AuraFlow | Chroma1-HD | Chroma1-Base | Lumina-Image-2.0 | HiDream-I1-Full | thunderstorm-lightning-bolt |
default_0 | base"""
"""Base models, models of distilled guidance or size, de-distilled ones, folders above, and words by accident."""


def names(table: str) -> list[str]:
    return [name for line in table.strip().splitlines() for name in line.strip(" |").split(" | ")]


@pytest.mark.parametrize("kind", TOLD)
def test_names_tell(kind: str) -> None:
    told = {name: named_in(["base", name]) for name in names(TOLD[kind])}
    assert told == {name: (kind, name) for name in told}


def test_other_names_do_not() -> None:
    models = sorted(set(PRESETS) - {"flux-schnell", "krea2-turbo", "z-image-turbo"})
    found = {
        name: named_in([name]) for name in ("", "DPMSolverSinglestepScheduler", "LCMScheduler", *names(OTHERS), *models)
    }
    assert set(found.values()) == {None}, {name: kind for name, kind in found.items() if kind}


def test_classes_tell() -> None:
    classes = ("LCMScheduler", "TCDScheduler", "FlowMatchLCMScheduler", "EulerDiscreteScheduler")
    assert [of_class(name) for name in classes] == ["lcm", "tcd", "lcm", None]


def test_folders_tell_by_scheduler_network_and_name(tmp_path: Path) -> None:
    def folder(name: str, scheduler: str = "EulerDiscreteScheduler", **files: dict) -> Path:
        path = tmp_path / name
        (path / "scheduler").mkdir(parents=True)
        (path / "unet").mkdir()
        (path / "scheduler" / "scheduler_config.json").write_text(json.dumps({"_class_name": scheduler}))
        for key, content in files.items():
            (path / key.replace("__", "/")).with_suffix(".json").write_text(json.dumps(content))
        return path

    assert of_folder(folder("plain")) is None
    assert of_folder(folder("a", "LCMScheduler")) == "lcm"
    assert of_folder(folder("b", unet__config={"time_cond_proj_dim": 256})) == "lcm"
    assert of_folder(folder("c", unet__config={"time_cond_proj_dim": None})) is None
    assert of_folder(folder("d", model_index={"_name_or_path": "stabilityai/sdxl-turbo"})) == "turbo"
    assert of_folder(folder("my-lightning")) == "lightning"
    assert of_folder(folder("my-turbo") / "scheduler" / "scheduler_config.json") == "turbo"
    assert of_folder(folder("f", model_index={"is_distilled": True, "_class_name": "Flux2KleinPipeline"})) == "klein"
    assert of_folder(folder("klein-4B", model_index={"is_distilled": False})) is None
    assert of_folder(folder("lcm-models/plain")) is None


def test_lcm_s_grid_is_diffusers() -> None:
    """`LCMScheduler.set_timesteps`, 50 levels of the training (arXiv 2310.04378)."""
    diffusers = pytest.importorskip("diffusers")
    for name, cls in (("lcm", diffusers.LCMScheduler), ("tcd", diffusers.TCDScheduler)):
        for nfe in (1, 2, 4, 8):
            theirs = cls(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
            theirs.set_timesteps(nfe)
            assert own_grid(name, preset("sdxl"), nfe).integer_timesteps().tolist() == theirs.timesteps.tolist()
    with pytest.raises(ValueError, match="50 levels"):
        own_grid("lcm", preset("sdxl"), 51)


LTX = [1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875]


def s_of(*angles: float) -> list[float]:
    return [math.sin(a) / (math.sin(a) + math.cos(a)) for a in angles]


@pytest.mark.parametrize(
    ("kind", "levels"),
    [
        ("ltx", LTX),
        ("ltx", LTX[:7]),
        ("causvid", [1.0, 0.757, 0.522]),
        ("rcm", s_of(math.atan(80.0), 1.5, 1.4, 1.0)),
        ("rcm", s_of(math.atan(80.0), 1.5)),
    ],
)
@pytest.mark.parametrize("shift", [1.0, 3.0, 8.0])
def test_published_lists_are_the_levels_themselves(kind: str, levels: list[float], shift: float) -> None:
    found = own_grid(kind, flow(shift), len(levels)).sampler_sigmas()
    np.testing.assert_allclose(found, [*levels, 0.0], atol=1.01e-3)  # pure noise is t = .999


def test_ltx_s_list_is_diffusers() -> None:
    utils = pytest.importorskip("diffusers.pipelines.ltx2.utils")
    assert utils.DISTILLED_SIGMA_VALUES == LTX


@pytest.mark.parametrize("nfe", [1, 2, 4])
@pytest.mark.parametrize("shift", [1.0, 3.0, 7.0])
def test_grids_of_flows_are_diffusers(nfe: int, shift: float) -> None:
    """SanaSprintPipeline tells its network sin / (sin + cos) of its scheduler's angles."""
    diffusers = pytest.importorskip("diffusers")
    sprint, lcm = diffusers.SCMScheduler(), diffusers.FlowMatchLCMScheduler(shift=shift)
    sprint.set_timesteps(nfe, intermediate_timesteps=1.3 if nfe == 2 else None)
    lcm.set_timesteps(nfe)
    for kind, wanted in (("sprint", [*s_of(*sprint.timesteps[:-1].tolist()), 0.0]), ("lcm", lcm.sigmas)):
        np.testing.assert_allclose(own_grid(kind, flow(shift), nfe).sampler_sigmas(), wanted, atol=1.01e-3)


@pytest.mark.parametrize("shift", [1.0, 3.0, 6.0])
def test_the_grid_follows_the_shift_of_the_noise(shift: float) -> None:
    t = 1.0 - np.arange(8) / 8
    for kind in ("turbo", "lightning", "few-step", "dmd", "klein", "hyper", "flash", "self-forcing"):
        found = own_grid(kind, flow(shift), 8).sampler_sigmas()[:-1]
        np.testing.assert_allclose(found, shift * t / (1.0 + (shift - 1.0) * t), atol=1.01e-3)


@pytest.mark.parametrize(
    ("kind", "model", "shift"),
    [
        ("turbo", "z-image", 3.0),
        ("few-step", "z-image", 3.0),
        ("turbo", "z-image-turbo", 3.0),
        ("lightning", "qwen-image", 3.0),
        ("schnell", "flux-dev", 1.0),
        ("self-forcing", "wan21", 5.0),
    ],
)
def test_distilled_models_have_their_own_shift(kind: str, model: str, shift: float) -> None:
    found, wanted = own_grid(kind, preset(model), 4), own_grid(kind, flow(shift), 4)
    np.testing.assert_allclose(found.sampler_sigmas(), wanted.sampler_sigmas(), atol=1e-9)


@pytest.mark.parametrize("model", ["sdxl", "sd21", "flux-schnell", "edm-cifar10"])
def test_every_kind_has_a_grid_for_every_noise(model: str) -> None:
    for kind in DISTILLATIONS:
        found = own_grid(kind, preset(model), 4)
        assert found.nfe == 4 and found.method == f"own-{kind}" and found.end == "clean"
