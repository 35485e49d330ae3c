"""Run every choice of both ComfyUI nodes' menus in a real ComfyUI on the CPU, through its HTTP API.

    python -m tests.bridge.comfyui_real --comfyui PATH [--python PYTHON] [--only CHECK ...]

PATH is a ComfyUI checkout, PYTHON an interpreter that has its requirements and hso-jax's. Models, outputs and the
custom nodes are in a temporary folder; the checkout is only read. The models have a tiny network and the noise levels
that ComfyUI itself gives to SD 1.5, SDXL, PixArt, SVD, SD3 and FLUX; they record at which sigmas they are evaluated.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hso_jax import BASELINES, baseline, preset, save, zoo
from hso_jax.baselines import inapplicable
from hso_jax.noise import PRESETS
from hso_jax.schedule import Schedule
from hso_jax.shelf.shipped import SOLVERS

REPO = Path(__file__).parents[2]
FAMILIES = {"SD15": "sd15", "SDXL": "sdxl", "PixArtAlpha": "pixart-alpha", "SD3": "sd3-medium", "Flux": "flux-dev"}
CHECKS = ("sampling", "files", "inputs", "models", "rules", "searches")
SAMPLERS = ("euler", "ddim", "dpmpp_2m", "uni_pc_bh2")
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

    def sigmas(self, node: str, config: str | None = None, patch: Any = None, **inputs: Any) -> Sigmas:
        """A node's sigmas, with a model connected to it where `config` names one."""
        graph = self._graph(node, inputs, config, patch)
        graph["record"] = {"class_type": "HsoTestRecord", "inputs": {"sigmas": ["node", 0]}}
        shown = self.run(graph)["record"]
        assert shown["dtype"] == ["torch.float32"]
        return np.array(shown["sigmas"], np.float32)

    def sample(self, node: str, config: str, sampler: str, **inputs: Any) -> tuple[Sigmas, Sigmas]:
        """A node's sigmas, and those at which the model was evaluated when it was sampled with them."""
        graph = self._graph(node, inputs, config, None)
        values = {
            "model": ["model", 0], "add_noise": True, "noise_seed": next(self.seeds), "cfg": 1.0,
            "positive": ["model", 1], "negative": ["model", 1], "sampler": ["sampler", 0], "sigmas": ["node", 0],
            "latent_image": ["latent", 0],
        }  # fmt: skip
        graph |= {
            "latent": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
            "sampler": {"class_type": "KSamplerSelect", "inputs": {"sampler_name": sampler}},
            "sample": {"class_type": "SamplerCustom", "inputs": values},
            "record": {"class_type": "HsoTestRecord", "inputs": {"sigmas": ["node", 0], "latent": ["sample", 0]}},
        }
        shown = self.run(graph)["record"]
        assert shown["finite"] == [True], f"{sampler} on {config}: the result is not finite"
        return np.array(shown["sigmas"], np.float32), np.array(shown["seen"], np.float32)

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
        return list((inputs["required"] | inputs["optional"])[name][0])


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
    environment = {**os.environ, "PYTHONPATH": str(REPO), "PYTHONDONTWRITEBYTECODE": "1"}
    log = folder / "server.log"
    with log.open("w") as output:
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


def expected(schedule: Schedule, steps: int | None = None) -> Sigmas:
    """The last sigmas of a schedule, as the node should return them."""
    return schedule.sampler_sigmas()[-((steps or schedule.nfe) + 1) :].astype(np.float32)


def check_rules(server: Server) -> int:
    """Every family with every rule and the zoo, both layouts; what a rule refuses must be refused with its reason."""
    count = 0
    for family, method, layout in itertools.product(PRESETS, ("zoo", *BASELINES), ("node", "interval")):
        if method == "zoo" and layout == "interval":
            continue
        inputs = {"model": family, "method": method, "layout": layout, "steps": 5}
        count += 1
        if method != "zoo" and (reason := inapplicable(method, preset(family))):
            assert reason in server.refusal("HsoScheduler", **inputs)
            continue
        p = PRESETS[family].p
        wanted = zoo(family, 5) if method == "zoo" else baseline(method, preset(family), 5, layout=layout, p=p)
        np.testing.assert_array_equal(server.sigmas("HsoScheduler", **inputs), expected(wanted), str(inputs))
    return count


def check_inputs(server: Server) -> int:
    """Every solver, several guidances, every end, denoise 0 to 1, and what is out of range."""
    node, count = "HsoScheduler", 0
    for solver, guidance in itertools.product(server.menu(node, "solver"), (0.0, 1.0, 5.0)):
        sigmas = server.sigmas(node, solver=solver, guidance=guidance, steps=6)
        np.testing.assert_array_equal(sigmas, expected(zoo("sdxl", 6, solver, guidance=guidance or None)))
        count += 1
    for end in server.menu(node, "end"):
        sigmas = server.sigmas(node, method="trailing", layout="interval", end=end)
        assert (sigmas[-1] == 0) == (end == "clean") and len(sigmas) == 7
        count += 1
    for denoise in (0.0, 0.01, 0.3, 0.5, 1.0):
        sigmas = server.sigmas(node, method="karras", steps=4, denoise=denoise)
        total = int(4 / denoise) if denoise else 0
        wanted = expected(baseline("karras", preset("sdxl"), total), 4) if denoise else np.zeros(0)
        np.testing.assert_array_equal(sigmas, wanted)
        count += 1
    assert "at most 9 steps" in server.refusal(node, steps=100, denoise=0.01)
    assert "0.11 or more" in server.refusal(node, steps=100, denoise=0.01)
    assert "connect MODEL" in server.refusal(node, model="from MODEL")
    assert "sampler" in server.refusal(node, "SDXL", model="from MODEL")
    return count + 4


def check_searches(server: Server) -> int:
    """Every method that searches; the zoo's own search comes near what the zoo ships."""
    node = "HsoScheduler"
    kinds = (("hso", "sdxl"), ("hso-dm-nonuni", "flux-dev"), ("hso", "flux-dev"), ("hso-dm-nonuni", "sdxl"))
    for i, (method, family) in enumerate(kinds):
        layout = ("node", "interval")[i // 2]
        sigmas = server.sigmas(node, model=family, method=method, layout=layout)
        assert len(sigmas) == 7 and (np.diff(sigmas) < 0).all() and (sigmas[-1] == 0) == (layout == "node")
    found = server.sigmas(node, method="solver-error")
    np.testing.assert_allclose(found, expected(zoo("sdxl", 6)), rtol=0.05)
    odd = server.sigmas(node, method="zoo", guidance=6.3)  # not shipped: searched
    assert len(odd) == 7 and (np.diff(odd) < 0).all() and not np.array_equal(odd, found)
    interval = server.sigmas(node, model="flux-dev", method="zoo", layout="interval")
    assert len(interval) == 7 and (np.diff(interval) < 0).all() and interval[-1] > 0
    return len(kinds) + 3


def check_models(server: Server) -> int:
    """Every family with every MODEL: taken where the noise is the same, else refused with both names."""
    node, count = "HsoScheduler", 0
    for config, family in itertools.product((*FAMILIES, "SVD_img2vid", "FluxSchnell"), PRESETS):
        count += 1
        inputs = {"model": family, "method": "trailing"}
        own = FAMILIES.get(config, "flux-schnell" if config == "FluxSchnell" else "")
        if own and preset(own).kind == preset(family).kind and _top(own) == _top(family):
            assert len(server.sigmas(node, config, **inputs)) == 7
        else:
            message = server.refusal(node, config, **inputs)
            assert f"made for {family} " in message and f"MODEL {config} " in message, message
    for config, family in FAMILIES.items():
        sigmas = server.sigmas(node, config, model="from MODEL", guidance=1.0)
        np.testing.assert_allclose(sigmas, expected(zoo(family, 6, guidance=1.0)), rtol=2e-3)
        count += 1
    shifted = server.sigmas(node, "SD3", ("ModelSamplingSD3", {"shift": 5.0}), model="from MODEL", method="sgm-uniform")
    t = 1 - np.arange(6) / 6 * 0.999
    np.testing.assert_allclose(shifted[1:-1], (5 * t / (1 + 4 * t))[1:], rtol=1e-3)
    for patch in (
        ("ModelSamplingDiscrete", {"sampling": "v_prediction", "zsnr": True}),
        ("ModelSamplingDiscrete", {"sampling": "lcm", "zsnr": False}),
        ("ModelSamplingSD3", {"shift": 3.0}),
    ):
        assert "MODEL SDXL" in server.refusal(node, "SDXL", patch, method="trailing")
    v = ("ModelSamplingDiscrete", {"sampling": "v_prediction", "zsnr": False})
    assert len(server.sigmas(node, "SDXL", v)) == 7
    return count + 5


def check_files(server: Server, folder: Path) -> int:
    """Every choice of the file node, and what it refuses."""
    node = "HsoScheduleFile"
    sd = [baseline(m, preset("sdxl"), 6, layout=at) for m in ("karras", "trailing") for at in ("node", "interval")]
    many = [*sd, *(zoo("sdxl", 6, s, guidance=w) for s in SOLVERS for w in (1.0, 5.0))]
    path, single, flow = (str(folder / name) for name in ("many.json", "one.json", "flow.json"))
    save(many, path)
    save(sd[:2], single)
    save(zoo("flux-dev", 6), flow)
    count = 0
    for layout in server.menu(node, "layout"):
        wanted = sd[1] if layout == "interval" else sd[0]
        np.testing.assert_array_equal(server.sigmas(node, path=single, layout=layout), expected(wanted))
        chosen = server.sigmas(node, path=path, layout=layout, method="trailing")
        np.testing.assert_array_equal(chosen, expected(sd[3 if layout == "interval" else 2]))
        count += 2
    for solver, weight in itertools.product(server.menu(node, "solver"), (0.0, 1.0, 5.0)):
        inputs = {"path": path, "method": "solver-error", "solver": solver, "guidance": weight}
        if solver == "any" or weight == 0:
            assert "differ in" in server.refusal(node, **inputs)
        else:
            np.testing.assert_array_equal(
                server.sigmas(node, **inputs), expected(zoo("sdxl", 6, solver, guidance=weight))
            )
        count += 1
    message = server.refusal(node, path=path)
    assert "differ in method" in message and "karras" in message and "solver-error" in message, message
    assert "path is empty" in server.refusal(node, path="")
    assert "no such schedule" in server.refusal(node, path=path, nfe=7)
    np.testing.assert_array_equal(server.sigmas(node, path=single, nfe=3, denoise=0.5), expected(sd[0], 3))
    assert len(server.sigmas(node, path=single, denoise=0.0)) == 0
    message = server.refusal(node, "Flux", path=single)
    assert "sdxl, karras" in message and "MODEL Flux" in message, message
    assert "MODEL SDXL" in server.refusal(node, "SDXL", path=flow)
    np.testing.assert_array_equal(server.sigmas(node, "Flux", path=flow), expected(zoo("flux-dev", 6)))
    return count + 8


def check_sampling(server: Server, folder: Path) -> int:
    """The model is evaluated at exactly the node's sigmas, in their order, for SD 1.5, SDXL, PixArt, SD3 and FLUX."""
    count = 0
    for (config, family), sampler in itertools.product(FAMILIES.items(), SAMPLERS):
        path = str(folder / f"{family}.json")
        save(zoo(family, 6), path)
        for node, inputs in (("HsoScheduler", {"model": family}), ("HsoScheduleFile", {"path": path})):
            sigmas, seen = server.sample(node, config, sampler, **inputs)
            wanted = expected(zoo(family, 6))[:-1]  # uni_pc writes 0.001 over the last one, where it stands
            np.testing.assert_array_equal(sigmas[:-1], wanted)
            np.testing.assert_array_equal(seen, wanted, f"{node} {config} {sampler}")
            count += 1
        sigmas, seen = server.sample(
            "HsoScheduler", config, sampler, model=family, steps=4, denoise=0.5, method="trailing"
        )
        np.testing.assert_array_equal(seen, expected(baseline("trailing", preset(family), 8), 4)[:-1])
        assert len(sigmas) == 5
        count += 1
    return count


def check_all(comfyui: Path, python: str, names: Sequence[str] = CHECKS) -> None:
    """Start the server and run these checks.

    Raises:
        AssertionError: for what the nodes do wrong.
        Refused: for what they refuse and should not.
        RuntimeError: if ComfyUI does not start.
    """
    with tempfile.TemporaryDirectory(prefix="hso-comfyui-") as name:
        folder = Path(name)
        with serving(comfyui, python, folder / "base") as server:
            nodes = server.get("/object_info")
            assert {"HsoScheduler", "HsoScheduleFile"} <= set(nodes), "ComfyUI did not load the nodes"
            checks = {
                "sampling": lambda: check_sampling(server, folder),
                "files": lambda: check_files(server, folder),
                "inputs": lambda: check_inputs(server),
                "models": lambda: check_models(server),
                "rules": lambda: check_rules(server),
                "searches": lambda: check_searches(server),
            }
            for what in names:
                began = time.monotonic()
                print(f"{what}: {checks[what]()} graphs, {time.monotonic() - began:.0f} s", flush=True)


def _top(family: str) -> float:
    noise = preset(family)
    return 1.0 if noise.kind == "flow" else round(float(noise.ksigma(float(noise.t_max))), 3)


def main(argv: list[str] | None = None) -> int:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, required=True, help="a ComfyUI checkout")
    parser.add_argument(
        "--python", default=sys.executable, help="an interpreter with its requirements; default this one"
    )
    parser.add_argument("--only", nargs="+", default=CHECKS, choices=CHECKS, help="the checks to run; default all")
    args = parser.parse_args(argv)
    check_all(args.comfyui.resolve(), args.python, args.only)
    return 0


if __name__ == "__main__":
    sys.exit(main())
