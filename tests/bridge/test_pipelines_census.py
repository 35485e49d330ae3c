"""What every pipeline of diffusers does with its scheduler: a new one, or a new way, is noticed here."""

from __future__ import annotations

import ast
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import diffusers
import pytest

from bridge.schedulers import install as ways

ROOT = Path(diffusers.__file__).parent

# What all schedulers with a schedule have; pipelines read these as they do of diffusers' own.
USUAL = {
    "__class__", "_internal_dict", "add_noise", "init_noise_sigma", "num_inference_steps", "order",
    "register_to_config", "scale_model_input", "scale_noise", "set_begin_index", "set_timesteps", "step", "timesteps",
}  # fmt: skip
# Not the scheduler of a model that samples levels: tokens, their own classes (refused), or a variable of that name.
NOT_OURS = {"llada2", "diffusion_gemma", "amused", "vq_diffusion", "score_sde_ve", "stochastic_karras_ve", "repaint"}
# What is read of a config, and means the same with a schedule: the shift's rule, times, and what the network outputs.
CONFIG = {
    "base_image_seq_len", "base_shift", "clip_sample", "get", "max_image_seq_len", "max_shift", "num_train_timesteps",
    "original_inference_steps", "prediction_type", "skip_prk_steps", "steps_offset", "stochastic_sampling",
    "use_flow_sigmas", "variance_type", "timestep_spacing",
}  # fmt: skip
# Everything else, by the folder that reads it, and what becomes of it there.
SPECIAL = {
    "__dict__": {"stable_diffusion_panorama"},  # a copy for each view, ours included
    "_get_conditioning_c_in": {"cosmos"},  # EDMEuler's, inherited
    "_get_variance": {"stable_diffusion_variants", "ledits_pp"},  # refused
    "_init_step_index": {"ledits_pp"},  # refused
    "_is_ode_scheduler": {"stable_diffusion_variants"},  # refused
    "_sigma_to_alpha_sigma_t": {"ledits_pp"},  # refused
    "_step_index": {"cosmos", "ledits_pp"},  # Cosmos 1 takes it back by one: EDMEuler only
    "alphas": {"text_to_video_synthesis"},  # refused
    # refused, or read of another scheduler (inverse_scheduler), or in AudioDiffusion's `encode`
    "alphas_cumprod": {
        "audio_diffusion", "stable_diffusion_diffedit", "stable_diffusion_sag", "stable_diffusion_variants", "ledits_pp"
    },
    "batch_step_no_noise": {"stable_diffusion_variants"},  # refused
    "betas": {"stable_cascade"},  # DDPMWuerstchen only
    "config.algorithm_type": {"ledits_pp"},
    "config.eta": {"ltx2"},  # of LTXEulerAncestralRFScheduler
    "config.final_sigmas_type": {"cosmos"},  # Cosmos 2, refused
    "config.gamma": {"helios"},  # refused
    "config.sigma_data": {"cosmos", "sana"},  # Cosmos 1 and 2; SCMScheduler is refused
    "config.sigma_max": {"cosmos"},  # the schedule must start there, or is refused
    "config.solver_order": {"ledits_pp"},
    "convert_model_output": {"ledits_pp"},
    "dpm_solver_first_order_update": {"ledits_pp"},
    "final_alpha_cumprod": {"audio_diffusion", "stable_diffusion_variants", "ledits_pp"},
    "last_sample": {"chronoedit"},  # UniPC's
    "lower_order_nums": {"ledits_pp"},
    "model_outputs": {"chronoedit", "ledits_pp"},
    "ori_start_sigmas": {"helios"},  # refused
    # told to the network as s (Cosmos 2.5 and 3, AnyFlow's next level), or to turn v into x0 (LTX-2), or for callbacks
    "sigmas": {
        "anyflow", "cogview4", "cosmos", "glm_image", "helios", "ledits_pp", "ltx", "ltx2", "sana_wm",
        "stable_diffusion", "wan",
    },
    "step_index": {"ledits_pp"},
}  # fmt: skip
# `step` with more than (output, timestep, sample, generator, eta): the keywords, by the classes that pass them.
KEYWORDS = {
    "pred_original_sample": {"CosmosTextToWorldPipeline", "CosmosVideoToWorldPipeline"},
    "per_token_timesteps": {"LTXConditionPipeline", "SanaWMPipeline"},
    "use_clipped_model_output": {"DDIMPipeline"},
    "variance_noise": {"CycleDiffusionPipeline", *(f"LEditsPPPipelineStableDiffusion{xl}" for xl in ("", "XL"))},
    "prev_timestep": {"KandinskyPriorPipeline", "KandinskyV22PriorPipeline", "KandinskyV22PriorEmb2EmbPipeline"},
}
# Classes that a pipeline asks for with `isinstance` or `type`, by the folder; ours are subclasses of diffusers' own.
ASKED = {
    "CogVideoXDPMScheduler": {"cogvideo", "cogview3", "consisid"},
    "DDIMScheduler": {"bria", "audio_diffusion", "ledits_pp"},
    "DDPMWuerstchenScheduler": {"stable_cascade"},
    "DPMSolverMultistepScheduler": {"ledits_pp"},
    "EulerAncestralDiscreteScheduler": {"bria"},
    "FlowMatchEulerDiscreteScheduler": {"bria", "easyanimate", "longcat_audio_dit"},
    "LTXEulerAncestralRFScheduler": {"ltx", "ltx2"},
    "PNDMScheduler": {"stable_diffusion_variants"},
    "UniPCMultistepScheduler": {"hidream_image"},
}


def chain(node: ast.AST) -> list[str]:
    """`self.scheduler.config.get` as its words."""
    words = []
    while isinstance(node, ast.Attribute):
        words.append(node.attr)
        node = node.value
    return [*([node.id] if isinstance(node, ast.Name) else []), *reversed(words)]


class Census(NamedTuple):
    """What the pipelines' code has of schedulers, from one pass: attributes, `step`'s keywords, `isinstance`, names."""

    reads: list[tuple[str, list[str]]]
    steps: list[tuple[str, set[str | None]]]
    asks: list[tuple[str, str]]
    classes: set[str]


@functools.cache
def census() -> Census:
    found = Census([], [], [], set())
    for file in [file for base in ("pipelines", "modular_pipelines") for file in (ROOT / base).rglob("*.py")]:
        text, folder = file.read_text(), file.parent.name
        if folder in NOT_OURS or "scheduler" not in text:
            continue
        for top in ast.parse(text).body:
            name = getattr(top, "name", "")
            if isinstance(top, ast.ClassDef):
                found.classes.add(name)
            for node in ast.walk(top):
                if isinstance(node, ast.Attribute):
                    found.reads.append((folder, chain(node)))
                elif isinstance(node, ast.Call) and chain(node.func) == ["self", "scheduler", "step"]:
                    found.steps.append((name, {word.arg for word in node.keywords}))
                elif (
                    isinstance(node, ast.Call)
                    and chain(node.func) == ["isinstance"]
                    and "scheduler" in chain(node.args[0])
                ):
                    found.asks.append((folder, ast.unparse(node.args[1])))
    return found


def beyond(found: list[tuple[str, str]], known: Mapping[str, set[str]]) -> set[tuple[str, str]]:
    """Those (who, what) that the table does not know."""
    return {(who, what) for who, what in found if who not in known.get(what, set())}


def test_pipelines_read_only_known_attributes() -> None:
    found = []
    for folder, words in census().reads:
        for name in {"scheduler", "audio_scheduler"} & set(words[:-1]):
            what = words[words.index(name) + 1 :]
            if what[0] == "config" and len(what) > 1 and what[1] not in CONFIG:
                found.append((folder, f"config.{what[1]}"))
            elif what[0] != "config" and what[0] not in USUAL:
                found.append((folder, what[0]))
    assert beyond(found, SPECIAL) == set()
    assert {what for _, what in found} == set(SPECIAL)


def test_pipelines_step_with_known_arguments() -> None:
    usual = {"model_output", "timestep", "sample", "generator", "eta", "return_dict", None}
    found = [(cls, str(word)) for cls, words in census().steps for word in words - usual]
    assert beyond(found, KEYWORDS) == set()
    assert {what for _, what in found} == set(KEYWORDS)


def test_pipelines_ask_for_known_classes() -> None:
    assert beyond(census().asks, ASKED) == set()
    assert {what for _, what in census().asks} == set(ASKED)


@pytest.mark.parametrize("name", [*ways.REFUSED, *ways.ONLY])
def test_the_tables_name_pipelines_that_there_are(name: str) -> None:
    assert name in census().classes
