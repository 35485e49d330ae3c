"""A real ComfyUI in a process of its own, and graphs through its HTTP API."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

REPO = Path(__file__).parents[2]
_START_SECONDS, _PROMPT_SECONDS = 240, 600
Sigmas = np.ndarray


class Refused(Exception):
    """ComfyUI refused a graph, or a node of it raised; the message is ComfyUI's."""


class Server:
    """A ComfyUI that runs."""

    def __init__(self, port: int) -> None:
        self.address = f"http://127.0.0.1:{port}"
        self.seeds = itertools.count()

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.address + path, timeout=30) as answer:
            return json.load(answer)

    def run(self, graph: dict[str, Any]) -> dict[str, Any]:
        """What each output node of a graph showed. Raises Refused."""
        body = json.dumps({"prompt": graph}).encode()
        request = urllib.request.Request(self.address + "/prompt", body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                name = json.load(answer)["prompt_id"]
        except urllib.error.HTTPError as error:
            raise Refused(error.read().decode()) from error
        end = time.monotonic() + _PROMPT_SECONDS
        while time.monotonic() < end:
            if entry := self.get(f"/history/{name}").get(name):
                if entry["status"]["status_str"] == "success":
                    return dict(entry["outputs"])
                raise Refused(
                    next(m["exception_message"] for k, m in entry["status"]["messages"] if k.endswith("error"))
                )
            time.sleep(0.02)
        raise TimeoutError(f"no result in {_PROMPT_SECONDS} s for {graph}")

    def sigmas(self, node: str, config: str | None = None, patch: Any = None, slot: int = 0, **inputs: Any) -> Sigmas:
        """A node's sigmas, which it gives at `slot`, with a model connected to it where `config` names one."""
        graph = self._graph(node, inputs, config, patch)
        graph["record"] = {"class_type": "HsoTestRecord", "inputs": {"sigmas": ["node", slot]}}
        shown = self.run(graph)["record"]
        assert shown["dtype"] == ["torch.float32"]
        return np.array(shown["sigmas"], np.float32)

    def sample(self, node: str, config: str, sampler: str, **inputs: Any) -> tuple[Sigmas, Sigmas]:
        """A node's sigmas, and those at which the model was evaluated when it was sampled with them."""
        return self.sampled(node, config, sampler, **inputs)[:2]

    def sampled(
        self, node: str, config: str, sampler: str | None, seed: int | None = None, **inputs: Any
    ) -> tuple[Sigmas, Sigmas, np.ndarray]:
        """As `sample`, and the first values of the latent; without a sampler, the node gives one before its sigmas."""
        graph = self._graph(node, inputs, config, None)
        sigmas = ["node", int(sampler is None)]
        values = {
            "model": ["model", 0], "add_noise": True, "noise_seed": next(self.seeds) if seed is None else seed,
            "cfg": 1.0, "positive": ["model", 1], "negative": ["model", 1], "sigmas": sigmas,
            "sampler": ["node" if sampler is None else "sampler", 0], "latent_image": ["latent", 0],
        }  # fmt: skip
        graph |= {
            "latent": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
            "sampler": {"class_type": "KSamplerSelect", "inputs": {"sampler_name": sampler or "euler"}},
            "sample": {"class_type": "SamplerCustom", "inputs": values},
            "record": {"class_type": "HsoTestRecord", "inputs": {"sigmas": sigmas, "latent": ["sample", 0]}},
        }
        shown = self.run(graph)["record"]
        assert shown["finite"] == [True], f"{sampler or node} on {config}: the result is not finite"
        seen, latent = np.array(shown["seen"], np.float32), np.array(shown["latent"])
        return np.array(shown["sigmas"], np.float32), seen, latent

    def refusal(self, node: str, config: str | None = None, patch: Any = None, **inputs: Any) -> str:
        """The message with which a node refuses its inputs."""
        try:
            sigmas = self.sigmas(node, config, patch, **inputs)
        except Refused as error:
            return str(error)
        raise AssertionError(f"{node} took {inputs} for {config}: {sigmas}")

    def _graph(self, node: str, inputs: dict[str, Any], config: str | None, patch: Any) -> dict[str, Any]:
        graph: dict[str, Any] = {}
        if config is not None:
            graph["model"] = {"class_type": "HsoTestModel", "inputs": {"config": config}}
            inputs = {**inputs, "diffusion_model": ["model", 0]}
        if patch is not None:
            graph["patch"] = {"class_type": patch[0], "inputs": {"model": ["model", 0], **patch[1]}}
            inputs = {**inputs, "diffusion_model": ["patch", 0]}
        graph["node"] = {"class_type": node, "inputs": {**self.defaults(node), **inputs}}
        return graph

    def defaults(self, node: str) -> dict[str, Any]:
        """The required widgets' defaults: what a graph that was saved before the other inputs existed sends."""
        declared = self.get(f"/object_info/{node}")[node]["input"]["required"]
        return {name: options.get("default", kind[0]) for name, (kind, options) in declared.items()}

    def menu(self, node: str, name: str) -> list[str]:
        """The choices of a node's menu."""
        inputs = self.get(f"/object_info/{node}")[node]["input"]
        return list((inputs["required"] | inputs.get("optional", {}))[name][0])


_STAND_IN = '''
"""Stands for a package that ComfyUI imports and a run on the CPU does not call: any name in it is an empty class."""
import importlib.abc, importlib.machinery, sys, types

class Names(type):
    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Nothing

class Nothing(metaclass=Names):
    pass

class Module(types.ModuleType):
    __getattr__ = Names.__getattr__

class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        mine = name.startswith(__name__ + ".")
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if mine else None
    def create_module(self, spec):
        return Module(spec.name)
    def exec_module(self, module):
        pass

sys.meta_path.append(Finder())
sys.modules[__name__].__class__ = Module
'''


@contextlib.contextmanager
def stand_ins(python: str) -> Iterator[Path]:
    """A folder for PYTHONPATH with stand-ins for torchvision and torchaudio, where an interpreter has none."""
    with tempfile.TemporaryDirectory(prefix="hso-stand-ins-") as name:
        for package in ("torchvision", "torchaudio"):
            if subprocess.run([python, "-c", f"import {package}"], capture_output=True).returncode:
                folder = Path(name) / package
                folder.mkdir()
                (folder / "__init__.py").write_text(_STAND_IN, encoding="utf-8")
        yield Path(name)


@contextlib.contextmanager
def serving(comfyui: Path, python: str, folder: Path) -> Iterator[Server]:
    """A ComfyUI whose only custom nodes are ours and the test's, with all its files in `folder`."""
    nodes = folder / "custom_nodes"
    nodes.mkdir(parents=True)
    (nodes / "hso-jax").symlink_to(REPO / "bridge" / "comfyui", target_is_directory=True)
    (nodes / "hso_test_nodes.py").symlink_to(Path(__file__).with_name("comfyui_test_nodes.py"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        python, "main.py", "--cpu", "--listen", "127.0.0.1", "--port", str(port), "--base-directory", str(folder),
        "--database-url", f"sqlite:///{folder}/comfyui.db", "--disable-api-nodes", "--disable-auto-launch",
    ]  # fmt: skip
    log = folder / "server.log"
    with stand_ins(python) as others, log.open("w") as output:
        environment = {**os.environ, "PYTHONPATH": f"{REPO}:{others}", "PYTHONDONTWRITEBYTECODE": "1"}
        process = subprocess.Popen(command, cwd=comfyui, env=environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            server = Server(port)
            _wait(server, process, log)
            yield server
        finally:
            process.terminate()
            process.wait(30)


def _wait(server: Server, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            server.get("/system_stats")
            return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"ComfyUI does not answer:\n{log.read_text()[-4000:]}")
