"""The shift of a model by the rule of its pipeline: the functions in diffusers' own pipelines are the oracle."""

from __future__ import annotations

import argparse
import ast
import importlib.util
import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hso_jax import from_config
from hso_jax.cli import common, main
from hso_jax.noise import dynamic_shift, flux2_shift
from hso_jax.noise.shifts import MU_RULES, pipeline_mu

FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True}
# The config of a published model, with values of its own everywhere.
OWN = {**FLOW, "base_image_seq_len": 512, "max_image_seq_len": 6400, "base_shift": 0.6, "max_shift": 1.3}
TOKENS = (256, 1024, 4096, 5000, 16384)
LENGTHS = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")


def _pipelines() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Each pipeline of the installed diffusers that computes a mu: its class, its source, its module's rules for mu."""
    spec = importlib.util.find_spec("diffusers")
    assert spec is not None and spec.submodule_search_locations is not None
    for file in sorted(Path(spec.submodule_search_locations[0], "pipelines").rglob("pipeline_*.py")):
        module = ast.parse(file.read_text())
        rules: dict[str, Any] = {"math": math}
        for node in module.body:
            if isinstance(node, ast.FunctionDef) and node.name in ("calculate_shift", "compute_empirical_mu"):
                exec(compile(ast.Module([node], []), str(file), "exec"), rules)
        for node in module.body:
            if isinstance(node, ast.ClassDef) and re.search(r"\bmu ?=(?! ?torch)", source := ast.unparse(node)):
                yield node.name, source, rules


def _oracle(source: str, rules: dict[str, Any]) -> Callable[[int], float]:
    """mu by the pipeline's own source, of tokens."""
    if "compute_empirical_mu(" in source:
        return lambda tokens: float(rules["compute_empirical_mu"](tokens, 50))
    if "calculate_shift(self.transformer.max_seq)" in source:
        return lambda tokens: float(rules["calculate_shift"](4096))
    if "mu=1)" in source:
        return lambda tokens: 1.0
    if "mu = (image_latents.shape[1] / base_seqlen) ** 0.5" in source:
        return lambda tokens: float((tokens / 256) ** 0.5)
    square_root = "max_image_seq_len" not in source
    given = [OWN[key] for key in LENGTHS if not (square_root and key == "max_image_seq_len")]
    rule = rules.get("calculate_shift") or FLUX_RULE
    if "mu = min(mu, math.log(exp_max))" in source:
        return lambda tokens: float(min(rule(tokens, *given), math.log(7.0)))
    return lambda tokens: float(rule(tokens, *given))


FOUND = {name: (source, rules) for name, source, rules in _pipelines()}
FLUX_RULE = FOUND["FluxPipeline"][1]["calculate_shift"]


def test_the_pipelines_are_all_looked_at() -> None:
    assert len(FOUND) >= 70
    assert all(any(name.startswith(start) for name in FOUND) for start in MU_RULES)


@pytest.mark.parametrize("name", [name for name in FOUND if name != "Ideogram4Pipeline"])
def test_mu_is_the_pipeline_s(name: str) -> None:
    oracle = _oracle(*FOUND[name])
    for tokens in TOKENS:
        assert pipeline_mu({"_class_name": name}, OWN, tokens) == pytest.approx(oracle(tokens), rel=1e-9)


def _folder(path: Path, pipeline: dict[str, Any], config: dict[str, Any]) -> Path:
    (path / "scheduler").mkdir()
    (path / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    (path / "model_index.json").write_text(json.dumps(pipeline))
    return path


SQUARE_ROOT = {**FLOW, "time_shift_type": "linear", "base_shift": 0.25, "max_shift": 0.75}
# Pipeline, scheduler's config, tokens, shift.
FOLDERS: dict[str, tuple[dict[str, Any], dict[str, Any], int, float]] = {
    "Flux": ({"_class_name": "FluxPipeline"}, FLOW, 4096, math.exp(1.15)),
    "Flux2": ({"_class_name": "Flux2KleinPipeline"}, FLOW, 4096, flux2_shift(4096)),
    "CogView4": ({"_class_name": "CogView4Pipeline"}, SQUARE_ROOT, 4096, 3.25),
    "GLM-Image": ({"_class_name": "GlmImagePipeline"}, SQUARE_ROOT, 1024, 1.75),
    "FramePack": ({"_class_name": "HunyuanVideoFramepackPipeline"}, FLOW, 65536, 7.0),
    "Krea 2": ({"_class_name": "Krea2Pipeline"}, OWN, 6400, math.exp(1.3)),
    "Krea 2, distilled": ({"_class_name": "Krea2Pipeline", "is_distilled": True}, OWN, 6400, math.exp(1.15)),
    "Ideogram 4": ({"_class_name": "Ideogram4Pipeline"}, {**FLOW, "use_dynamic_shifting": False}, 4096, 2.0),
    "a constant shift": ({"_class_name": "Flux2Pipeline"}, {"_class_name": FLOW["_class_name"], "shift": 3.0}, 9, 3.0),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_a_folder_has_the_shift_of_its_pipeline(case: str, tmp_path: Path) -> None:
    pipeline, config, tokens, shift = FOLDERS[case]
    folder = _folder(tmp_path, pipeline, config)
    for place in (folder, folder / "scheduler", folder / "scheduler" / "scheduler_config.json"):
        assert from_config(place, image_seq_len=tokens).ksigma(0.5) == pytest.approx(shift, rel=1e-9)


def test_ideogram_s_grid_has_the_shift_s_middle() -> None:
    mu = 0.5 * math.log(1024 * 1024 / (512 * 512))  # its pipeline's _resolution_aware_mu; at the middle ndtri is 0
    noise = from_config({**FLOW, "use_dynamic_shifting": False}, pipeline={"_class_name": "Ideogram4Pipeline"})
    assert noise.sigma(0.5) == pytest.approx(1.0 / (1.0 + math.exp(-mu)))


def test_mu_is_the_shift_of_linear_time_shifts() -> None:
    assert from_config(SQUARE_ROOT, mu=3.25).ksigma(0.5) == pytest.approx(3.25)
    assert from_config(FLOW, mu=math.log(3.25)).ksigma(0.5) == pytest.approx(3.25)
    bad = [(SQUARE_ROOT, x, r"mu is .*; need a") for x in (0.0, -1.0, math.nan, "3")]
    bad += [(FLOW, 60.0, "mu is 60.0, the logarithm of the shift")]
    bad += [({"_class_name": "DDIMScheduler"}, 1.0, "DDIMScheduler: mu is the logarithm of a flow model's shift")]
    for config, mu, message in bad:
        with pytest.raises(ValueError, match=message):
            from_config(config, mu=mu)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("pipeline", "config", "shift"),
    [
        ("StableDiffusion3Pipeline", {}, math.exp(1.16)),
        ("Krea2Pipeline", {}, math.exp(0.5 + 0.65 * (4096 - 256) / (6400 - 256))),
        ("LTX2Pipeline", {}, math.exp(2.05)),
        ("CogView4Pipeline", {"time_shift_type": "linear"}, 3.25),
        ("FluxPipeline", {}, math.exp(1.15)),
    ],
)
def test_what_another_class_s_config_leaves_out(pipeline: str, config: dict[str, Any], shift: float) -> None:
    unipc = {"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True, "use_dynamic_shifting": True}
    found = from_config({**unipc, **config}, pipeline={"_class_name": pipeline})
    assert found.ksigma(0.5) == pytest.approx(shift)


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("recommend --model sdxl --nfe 6", "changes nothing for sdxl: its noise is the same at every size"),
        (
            "recommend --model flux-dev --nfe 5,6",
            "no level for flux-dev: the shipped schedule is the same at any shift",
        ),
        ("zoo --model qwen-image --nfe 6", "changes no level for qwen-image"),
    ],
)
def test_a_size_that_changes_nothing_is_told_once(command: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command.split(), "--image-seq-len", "1024"]) == 0
    assert " ".join(capsys.readouterr().err.split()).count(says) == 1
    assert main(command.split()) == 0
    assert "image-seq-len" not in capsys.readouterr().err


def test_searches_follow_the_size_where_the_shift_does(capsys: pytest.CaptureFixture[str]) -> None:
    common.warn_of_unused_size(argparse.Namespace(model=["flux-dev", "sdxl"], image_seq_len=256))
    told = capsys.readouterr().err
    assert told.count("--image-seq-len changes nothing for sdxl") == 1 and "flux" not in told


def test_dynamic_shift_is_flux_s() -> None:
    assert dynamic_shift(256) == pytest.approx(math.exp(0.5), rel=1e-14)
    assert dynamic_shift(4096) == pytest.approx(math.exp(1.15), rel=1e-14)
    assert dynamic_shift(1024) == pytest.approx(math.exp(0.5 + 0.65 * (1024 - 256) / (4096 - 256)), rel=1e-14)
    assert dynamic_shift(2176, time_shift_type="linear") == pytest.approx(0.825, rel=1e-14)


@pytest.mark.parametrize(
    ("tokens", "steps", "mu"),
    [
        (4096, 10, 8.73809524e-05 * 4096 + 1.89833333),
        (1024, 105, ((8.73809524e-05 + 0.00016927) * 1024 + 1.89833333 + 0.45666666) / 2),
        (4300, 10, 8.73809524e-05 * 4300 + 1.89833333),
        (4301, 10, 0.00016927 * 4301 + 0.45666666),
    ],
)
def test_flux2_s_shift(tokens: int, steps: int, mu: float) -> None:
    assert flux2_shift(tokens, steps) == pytest.approx(math.exp(mu), rel=1e-9)


@pytest.mark.parametrize(
    ("rule", "name", "values", "message"),
    [
        (flux2_shift, "image_seq_len", [0, 10**6], "image_seq_len is"),
        (flux2_shift, "nfe", [0], "nfe is 0"),
        (dynamic_shift, "image_seq_len", [0], "image_seq_len is 0"),
        (dynamic_shift, "max_image_seq_len", [256, "0.5", None], "max_image_seq_len (is|are) .*(need|differ)"),
        (dynamic_shift, "base_image_seq_len", ["0.5", True], "base_image_seq_len is .*; need"),
        (dynamic_shift, "base_shift", ["0.5", math.nan], "base_shift is .*; need"),
        (dynamic_shift, "max_shift", [None, [1]], "max_shift is .*; need"),
        (dynamic_shift, "max_shift", [1e6], "give 4096 tokens a shift of exp"),
        (dynamic_shift, "time_shift_type", ["cubic", None], "time_shift_type is .*; use"),
    ],
)
def test_a_bad_value_is_named(rule: Any, name: str, values: list[Any], message: str) -> None:
    for value in values:
        with pytest.raises(ValueError, match=message):
            rule(**{"image_seq_len": 4096, name: value})
    with pytest.raises(ValueError, match="give 256 tokens a shift of 0"):
        dynamic_shift(256, base_shift=0.0, time_shift_type="linear")
