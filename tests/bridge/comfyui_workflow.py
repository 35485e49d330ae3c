"""Run the example workflow in a real ComfyUI on the CPU, through its HTTP API, from a checkpoint to a picture.

    python -m tests.bridge.comfyui_workflow --comfyui PATH [--python PYTHON]

PATH is a ComfyUI checkout, which is only read, PYTHON an interpreter that has its requirements and lazy-loader, and
need not have JAX. The checkpoint is made by `comfyui_checkpoint.py`: SD 1.5's layout and noise, random weights.
"""

from __future__ import annotations

import argparse
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
from tests.bridge.comfyui_server import REPO, serving, stand_ins

WORKFLOW = REPO / "bridge" / "comfyui" / "example_workflows" / "hso_recommend.json"
SIZE, STEPS, CFG = 64, 6, 7.5
_WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")


def as_prompt(workflow: dict[str, Any], nodes: dict[str, Any]) -> dict[str, Any]:
    """A workflow as the page saves it, in the form that the API takes; `nodes` is `/object_info`.

    The page keeps the values of a node's widgets in the order of its inputs, and one more after each seed.
    """
    sources = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    prompt: dict[str, Any] = {}
    for node in workflow["nodes"]:
        declared = nodes[node["type"]]["input"]
        values, inputs = iter(node["widgets_values"]), {}
        for name, (kind, *options) in (declared.get("required", {}) | declared.get("optional", {})).items():
            if isinstance(kind, list) or kind in _WIDGETS:
                inputs[name] = next(values)
                if options and options[0].get("control_after_generate"):
                    next(values)
        assert next(values, None) is None, f"{node['type']} has more values than widgets"
        linked = {slot["name"]: sources[slot["link"]] for slot in node["inputs"] if slot["link"] is not None}
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs | linked}
    return prompt


def check_workflow(comfyui: Path, python: str) -> str:
    """Run it; the reason that HSO Recommend shows.

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
            prompt = as_prompt(json.loads(WORKFLOW.read_text(encoding="utf-8")), server.get("/object_info"))
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
