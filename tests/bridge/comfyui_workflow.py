"""Run the example workflows in a real ComfyUI on the CPU, through its HTTP API.

    python -m tests.bridge.comfyui_workflow --comfyui PATH [--python PYTHON]

PATH is a ComfyUI checkout, which is only read, PYTHON an interpreter that has its requirements and lazy-loader, and
need not have JAX. The workflow of SD 1.5 runs from a checkpoint to a picture: `comfyui_checkpoint.py` makes SD 1.5's
layout and noise with random weights. In the others a tiny network with the model's own noise takes the place of what
loads and encodes, and a recorder that of what decodes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import hso_jax
from tests.bridge.comfyui_server import REPO, Server, serving, stand_ins

WORKFLOWS = REPO / "bridge" / "comfyui" / "example_workflows"
# Workflow -> ComfyUI's configuration of its model, and what HSO Recommend is asked: family, steps in all, guidance.
TEMPLATES = {
    "hso_sdxl": ("SDXL", "sdxl", 6, 5.0),
    "hso_image_to_image": ("SDXL", "sdxl", 15, 5.0),
    "hso_flux": ("Flux", "flux-dev", 6, 1.0),
    "hso_wan22": ("WAN21_T2V", "wan22-t2v", 6, 4.0),
}
SIZE, STEPS, CFG = 64, 6, 7.5
_WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")


def as_prompt(workflow: dict[str, Any], nodes: dict[str, Any]) -> dict[str, Any]:
    """A workflow as the page saves it, in the form that the API takes; `nodes` is `/object_info`.

    The page keeps the values of a node's widgets in the order of its inputs, and one more after each seed or upload.
    """
    sources = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    prompt: dict[str, Any] = {}
    for node in workflow["nodes"]:
        declared = nodes[node["type"]]["input"]
        values, inputs = iter(node["widgets_values"]), {}
        for name, (kind, *options) in (declared.get("required", {}) | declared.get("optional", {})).items():
            if isinstance(kind, list) or kind in _WIDGETS:
                inputs[name] = next(values)
                if options and (options[0].get("control_after_generate") or options[0].get("image_upload")):
                    next(values)
        assert next(values, None) is None, f"{node['type']} has more values than widgets"
        linked = {slot["name"]: sources[slot["link"]] for slot in node["inputs"] if slot["link"] is not None}
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs | linked}
    return prompt


def workflow_of(name: str) -> dict[str, Any]:
    return dict(json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8")))


def check_template(server: Server, name: str) -> str:
    """Run a template with stand-ins for its files; every network is evaluated at the recommended sigmas, in order."""
    config, family, steps, guidance = TEMPLATES[name]
    nodes = as_prompt(workflow_of(name), server.get("/object_info"))
    model = {"class_type": "HsoTestModel", "inputs": {"config": config}}
    for number, node in list(nodes.items()):
        kind = node["class_type"]
        if kind in ("CheckpointLoaderSimple", "UNETLoader"):
            nodes[number] = model
        elif kind == "CLIPTextEncode":  # its output 0 is the stand-in's output 1
            for other in nodes.values():
                other["inputs"] = {k: ["text", 1] if v == [number, 0] else v for k, v in other["inputs"].items()}
        elif kind == "VAEEncode":
            nodes[number] = {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}}
        elif kind.startswith("Empty"):
            node["inputs"] |= {"width": 64, "height": 64} | ({"length": 5} if "length" in node["inputs"] else {})
    (decode,) = (node for node in nodes.values() if node["class_type"] == "VAEDecode")
    (ours,) = (number for number, node in nodes.items() if node["class_type"] == "HsoRecommend")
    files = ("CLIPTextEncode", "CLIPLoader", "DualCLIPLoader", "VAELoader", "LoadImage", "VAEDecode")
    gone = [number for number, node in nodes.items() if node["class_type"].startswith((*files, "Save"))]
    kept = {number: node for number, node in nodes.items() if number not in gone}
    record = {"sigmas": [ours, 1], "latent": decode["inputs"]["samples"]}
    kept |= {"text": model, "record": {"class_type": "HsoTestRecord", "inputs": record}}
    shown = server.run(kept)
    found = hso_jax.recommend(family, steps, guidance=guidance)
    last = kept[ours]["inputs"]["steps"]
    wanted = found.schedule.sampler_sigmas()[-(last + 1) :].astype(np.float32)
    seen = [sigma for sigma, _ in itertools.groupby(shown["record"]["seen"])]
    np.testing.assert_array_equal(np.array(shown["record"]["sigmas"], np.float32), wanted)
    np.testing.assert_array_equal(np.array(seen, np.float32), wanted[:-1])
    assert shown["record"]["finite"] == [True]
    (why,) = next(value["text"] for value in shown.values() if "text" in value)
    assert why == found.reason
    return str(why)


def check_workflow(comfyui: Path, python: str) -> str:
    """Run them all; the reason that HSO Recommend shows for SD 1.5.

    Raises:
        AssertionError: if the model was evaluated at other sigmas than the recommended, or there is no picture.
        Refused: for what ComfyUI refuses.
        RuntimeError: if ComfyUI does not start.
    """
    with tempfile.TemporaryDirectory(prefix="hso-comfyui-") as name:
        folder = Path(name)
        checkpoints = folder / "models" / "checkpoints"
        checkpoints.mkdir(parents=True)
        make = [python, str(Path(__file__).with_name("comfyui_checkpoint.py")), str(checkpoints / "tiny.safetensors")]
        with stand_ins(python) as others:
            subprocess.run(make, check=True, env={**os.environ, "PYTHONPATH": f"{comfyui}:{others}"}, timeout=300)
        with serving(comfyui, python, folder) as server:
            for template in TEMPLATES:
                print(f"{template}: {check_template(server, template)}")
            prompt = as_prompt(workflow_of("hso_recommend"), server.get("/object_info"))
            of = {node["class_type"]: node["inputs"] for node in prompt.values()}
            numbers = {node["class_type"]: number for number, node in prompt.items()}
            of["CheckpointLoaderSimple"]["ckpt_name"] = "tiny.safetensors"
            of["EmptyLatentImage"] |= {"width": SIZE, "height": SIZE}
            assert (of["HsoRecommend"]["steps"], of["PrimitiveFloat"]["value"]) == (STEPS, CFG)
            sampler, recommend = numbers["SamplerCustom"], numbers["HsoRecommend"]
            prompt["watch"] = {"class_type": "HsoTestWatch", "inputs": {"model": of["SamplerCustom"]["model"]}}
            of["SamplerCustom"]["model"] = ["watch", 0]
            record = {"sigmas": [recommend, 1], "latent": [sampler, 0]}
            prompt["record"] = {"class_type": "HsoTestRecord", "inputs": record}
            shown = server.run(prompt)
        wanted = hso_jax.recommend("sd15", STEPS, guidance=CFG).schedule.sampler_sigmas().astype(np.float32)
        np.testing.assert_array_equal(np.array(shown["record"]["sigmas"], np.float32), wanted)
        np.testing.assert_array_equal(np.array(shown["record"]["seen"], np.float32), wanted[:-1])
        assert shown["record"]["finite"] == [True]
        (saved,) = shown[numbers["SaveImage"]]["images"]
        with Image.open(folder / "output" / saved["subfolder"] / saved["filename"]) as picture:
            assert picture.size == (SIZE, SIZE)
        (why,) = shown[numbers["PreviewAny"]]["text"]
        assert why == hso_jax.recommend("sd15", STEPS, guidance=CFG).reason
        return str(why)


def main(argv: list[str] | None = None) -> int:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, required=True, help="a ComfyUI checkout")
    parser.add_argument("--python", default=sys.executable, help="an interpreter for it; default this one")
    options = parser.parse_args(argv)
    print(check_workflow(options.comfyui.resolve(), options.python))
    return 0


if __name__ == "__main__":
    sys.exit(main())
