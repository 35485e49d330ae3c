"""What the Comfy registry and ComfyUI's template browser read from the nodes' folder."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image
from test_comfyui import FOLDER
from test_comfyui import nodes as nodes  # the fixture

from hso_jax import recommend
from hso_jax.noise import PRESETS
from tests.bridge.comfyui_workflow import TEMPLATES, WORKFLOWS, as_prompt, workflow_of

ROOT = Path(__file__).parents[2]


def read(folder: Path) -> dict[str, Any]:
    return tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))


def test_the_registry_s_version_is_the_program_s() -> None:
    ours, root = read(FOLDER), read(ROOT)["project"]
    project = ours["project"]
    assert project["version"] == root["version"] and re.fullmatch(r"\d+\.\d+\.\d+", project["version"])
    names = {re.split(r"[<>=~!]", line)[0] for line in project["dependencies"]}
    assert names == {"lazy-loader"} and set(project["dependencies"]) <= set(
        root["dependencies"]
    )  # no JAX, nor ourselves
    assert project["license"] == {"text": root["license"]} and project["requires-python"] == root["requires-python"]
    assert re.fullmatch(r"[a-z][a-z0-9]*([-_.][a-z0-9]+)*", project["name"]) and "comfyui" not in project["name"]
    assert {"PublisherId", "DisplayName", "requires-comfyui"} <= set(ours["tool"]["comfy"])
    assert {"Repository"} <= set(project["urls"])


def test_the_package_has_all_that_the_folder_needs() -> None:
    packed = read(ROOT)["tool"]["setuptools"]["package-data"]["bridge"]
    files = [path for path in FOLDER.glob("**/*") if path.suffix not in (".py", ".pyc") and path.is_file()]
    for path in files:
        assert any(path.relative_to(FOLDER.parent).match(pattern) for pattern in packed), path


@pytest.mark.parametrize("name", ["hso_recommend", *TEMPLATES])
def test_the_example_workflows_fit_the_nodes(nodes: ModuleType, name: str) -> None:
    """As the page would load them: the values of our nodes' widgets in their order, and links to slots that exist."""
    workflow = workflow_of(name)
    ours = [node for node in workflow["nodes"] if node["type"].startswith("Hso")]
    declared = {name: {"input": cls.INPUT_TYPES()} for name, cls in nodes.NODE_CLASS_MAPPINGS.items()}
    (node,) = as_prompt({"nodes": ours, "links": workflow["links"]}, declared).values()
    inputs = node["inputs"]
    assert set(inputs) == {"model", "steps", "guidance", "denoise", "diffusion_model"}
    _, family, total, _ = TEMPLATES.get(name, ("SD15", "sd15", 6, 7.5))
    assert inputs["model"] == family and int(inputs["steps"] / inputs["denoise"]) == total
    outputs = nodes.NODE_CLASS_MAPPINGS["HsoRecommend"].RETURN_NAMES
    assert [slot["name"] for slot in ours[0]["outputs"]] == list(outputs)
    of = {node["id"]: node for node in workflow["nodes"]}
    for number, source, out, target, slot, _ in workflow["links"]:
        assert number in of[source]["outputs"][out]["links"] and of[target]["inputs"][slot]["link"] == number
    with Image.open(WORKFLOWS / f"{name}.jpg") as picture:  # what ComfyUI shows for it
        assert picture.size[0] > 400 and picture.format == "JPEG"


def test_wans_experts_change_at_their_boundary() -> None:
    (split,) = (node for node in workflow_of("hso_wan22")["nodes"] if node["type"] == "SplitSigmas")
    (node,) = (node for node in workflow_of("hso_wan22")["nodes"] if node["type"] == "HsoRecommend")
    model, steps, guidance, _ = node["widgets_values"]
    sigmas = recommend(model, steps, guidance=guidance).schedule.sampler_sigmas()
    assert split["widgets_values"] == [int((sigmas >= PRESETS[model].boundary).sum())]
