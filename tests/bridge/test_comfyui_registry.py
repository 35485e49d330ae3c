"""What the Comfy registry and ComfyUI's template browser read from the nodes' folder."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

from test_comfyui import FOLDER
from test_comfyui import nodes as nodes  # the fixture

from hso_jax.noise import PRESETS
from tests.bridge.comfyui_workflow import WORKFLOW, as_prompt

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


def test_the_example_workflow_fits_the_nodes(nodes: ModuleType) -> None:
    """As the page would load it: the values of our nodes' widgets in their order, and links to slots that exist."""
    workflow = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    ours = [node for node in workflow["nodes"] if node["type"].startswith("Hso")]
    declared = {name: {"input": cls.INPUT_TYPES()} for name, cls in nodes.NODE_CLASS_MAPPINGS.items()}
    (node,) = as_prompt({"nodes": ours, "links": workflow["links"]}, declared).values()
    assert node["class_type"] == "HsoRecommend" and set(node["inputs"]) == {
        "model", "steps", "guidance", "denoise", "diffusion_model"
    }  # fmt: skip
    assert node["inputs"]["model"] in PRESETS and node["inputs"]["steps"] == 6 and node["inputs"]["denoise"] == 1.0
    outputs = nodes.NODE_CLASS_MAPPINGS["HsoRecommend"].RETURN_NAMES
    assert [slot["name"] for slot in ours[0]["outputs"]] == list(outputs)
    of = {node["id"]: node for node in workflow["nodes"]}
    for number, source, out, target, slot, _ in workflow["links"]:
        assert number in of[source]["outputs"][out]["links"] and of[target]["inputs"][slot]["link"] == number
