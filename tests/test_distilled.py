"""How distilled models are told, and the grids they come with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hso_jax import preset
from hso_jax.distilled import DISTILLATIONS, named_in, of_class, of_folder, own_grid


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("ByteDance/SDXL-Lightning", "lightning"),
        ("dreamshaperXL_lightningDPMSDE", "lightning"),
        ("stabilityai/sdxl-turbo", "turbo"),
        ("DreamShaperXL_Turbo_v2", "turbo"),
        ("Tongyi-MAI/Z-Image-Turbo", "turbo"),
        ("black-forest-labs/FLUX.1-schnell", "schnell"),
        ("latent-consistency/lcm-lora-sdxl", "lcm"),
        ("SimianLuo/LCM_Dreamshaper_v7", "lcm"),
        ("h1t/TCD-SDXL-LoRA", "tcd"),
        ("Hyper-SD15-8steps-lora", "hyper"),
        ("tianweiy/DMD2", "dmd"),
        ("Wan2.1_lightx2v_4steps", "lightx2v"),
        ("stabilityai/stable-diffusion-xl-base-1.0", None),
        ("hyperrealism_v3", None),
        ("realcmsd", None),
        ("realcm-v2", None),
        ("black-forest-labs/FLUX.1-dev", None),
    ],
)
def test_names_tell(name: str, kind: str | None) -> None:
    found = named_in(["base", name])
    assert found == (None if kind is None else (kind, name))


def test_classes_tell() -> None:
    assert [of_class(name) for name in ("LCMScheduler", "TCDScheduler", "FlowMatchLCMScheduler")] == [
        "lcm",
        "tcd",
        "lcm",
    ]
    assert of_class("EulerDiscreteScheduler") is None


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


@pytest.mark.parametrize("kind", DISTILLATIONS)
@pytest.mark.parametrize("model", ["sdxl", "sd21", "flux-schnell", "edm-cifar10"])
def test_every_kind_has_a_grid_for_every_kind_of_noise(kind: str, model: str) -> None:
    found = own_grid(kind, preset(model), 4)
    assert found.nfe == 4 and found.method == f"own-{kind}" and found.end == "clean"
