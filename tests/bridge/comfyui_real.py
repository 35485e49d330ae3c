"""Run the ComfyUI nodes in a real ComfyUI on the CPU, through its HTTP API.

    python -m tests.bridge.comfyui_real --comfyui PATH [--python PYTHON] [--only CHECK ...]

PATH is a ComfyUI checkout, PYTHON an interpreter that has its requirements and lazy-loader. What needs no ComfyUI, such
as every choice of the menus, is in `test_comfyui.py`. Models, outputs and the custom nodes are in a temporary folder;
the checkout is only read. The models have a tiny network and the noise levels that ComfyUI itself gives to SD 1.5,
SDXL, PixArt, SVD, SD3, FLUX and, where it has them, HiDream-O1 and CogVideoX; they record at which sigmas they are
evaluated. torchvision and torchaudio need not be there: ComfyUI imports them, a run on the CPU calls neither, and
`comfyui_server` gives it empty stand-ins.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bridge.comfyui.model import FAMILIES as MENU
from hso_jax import baseline, preset, recommend, save, zoo
from hso_jax.noise import PRESETS
from hso_jax.schedule import Schedule
from hso_jax.shipped.zoo import SOLVERS
from hso_jax.solvers import NONSTATIONARY
from tests.bridge.comfyui_server import Refused, Server, Sigmas, serving, stand_ins

FAMILIES = {"SD15": "sd15", "SDXL": "sdxl", "PixArtAlpha": "pixart-alpha", "SD3": "sd3-medium", "Flux": "flux-dev"}
CHECKS = ("sampling", "recommend", "samplers", "files", "models", "every-model")
SAMPLERS = ("euler", "ddim", "dpmpp_2m", "uni_pc_bh2")


def expected(schedule: Schedule, steps: int | None = None) -> Sigmas:
    """The last sigmas of a schedule, as the node should return them."""
    return schedule.sampler_sigmas()[-((steps or schedule.nfe) + 1) :].astype(np.float32)


def check_models(server: Server) -> int:
    """Every family with every MODEL: taken where the noise is the same, else refused with both names."""
    node, count = "HsoScheduler", 0
    for config, family in itertools.product((*FAMILIES, "SVD_img2vid", "FluxSchnell"), MENU):
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
        np.testing.assert_allclose(sigmas, expected(zoo(family, 6, "dpmpp-2m", guidance=1.0)), rtol=2e-3)
        count += 1
    shifted = server.sigmas(node, "SD3", ("ModelSamplingSD3", {"shift": 5.0}), model="from MODEL", method="sgm-uniform")
    t = 1 - np.arange(6) / 6 * 0.999
    np.testing.assert_allclose(shifted[1:-1], (5 * t / (1 + 4 * t))[1:], rtol=1e-3)
    zero = ("ModelSamplingDiscrete", {"sampling": "v_prediction", "zsnr": True})
    wanted = np.append(4518.6587, expected(zoo("cogvideox-5b", 6, "dpmpp-2m", guidance=6.0))[1:])
    found = server.sigmas(node, "SDXL", zero, model="from MODEL", guidance=5.0)
    np.testing.assert_allclose(found, wanted, rtol=2e-3)
    for patch in (
        ("ModelSamplingDiscrete", {"sampling": "v_prediction", "zsnr": True}),
        ("ModelSamplingDiscrete", {"sampling": "lcm", "zsnr": False}),
        ("ModelSamplingSD3", {"shift": 3.0}),
    ):
        assert "MODEL SDXL" in server.refusal(node, "SDXL", patch, method="trailing")
    v = ("ModelSamplingDiscrete", {"sampling": "v_prediction", "zsnr": False})
    assert len(server.sigmas(node, "SDXL", v)) == 7
    return count + 6


def check_every_model(comfyui: Path, python: str) -> int:
    """HSO Recommend on every configuration that this ComfyUI knows, see `comfyui_every_model`."""
    script = Path(__file__).with_name("comfyui_every_model.py")
    paths = f"{comfyui}:{script.parents[2]}"
    environment = {**os.environ, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"}
    with stand_ins(python) as folder:
        environment["PYTHONPATH"] += f":{folder}"
        done = subprocess.run([python, str(script)], env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    return len(done.stdout.splitlines())


def check_files(server: Server, folder: Path) -> int:
    """Every choice of the file node, and what it refuses."""
    node = "HsoScheduleFile"
    sd = [baseline(m, preset("sdxl"), 6, layout=at) for m in ("karras", "trailing") for at in ("node", "interval")]
    many = [*sd, *(zoo("sdxl", 6, s, guidance=w) for s in SOLVERS for w in (1.0, 5.0))]
    path, single, flow = (str(folder / name) for name in ("many.json", "one.json", "flow.json"))
    save(many, path)
    save(sd[:2], single)
    save(zoo("flux-dev", 6, "dpmpp-2m"), flow)
    count = 0
    for layout in server.menu(node, "layout"):
        wanted = sd[1] if layout == "interval" else sd[0]
        np.testing.assert_array_equal(server.sigmas(node, path=single, layout=layout), expected(wanted))
        chosen = server.sigmas(node, path=path, layout=layout, method="trailing")
        np.testing.assert_array_equal(chosen, expected(sd[3 if layout == "interval" else 2]))
        count += 2
    for solver, weight in itertools.product(server.menu(node, "solver"), (0.0, 1.0, 5.0)):
        inputs = {"path": path, "method": "solver-error", "solver": solver, "guidance": weight}
        if solver == NONSTATIONARY:
            assert "no such schedule" in server.refusal(node, **inputs)
        elif solver == "any" or weight == 0:
            assert "differ in" in server.refusal(node, **inputs)
        else:
            np.testing.assert_array_equal(
                server.sigmas(node, **inputs), expected(zoo("sdxl", 6, solver, guidance=weight))
            )
        count += 1
    message = server.refusal(node, path=path)
    assert "differ in method" in message and "karras" in message and "solver-error" in message, message
    assert "path is empty" in server.refusal(node, path="")
    missing = server.refusal(node, path="missing.json")
    assert all(f"base/{name}" in missing for name in ("input", "output", "models")), missing
    (folder / "base" / "input" / "copied.json").write_bytes(Path(single).read_bytes())
    np.testing.assert_array_equal(server.sigmas(node, path="copied.json"), expected(sd[0]))
    assert "no such schedule" in server.refusal(node, path=path, nfe=7)
    np.testing.assert_array_equal(server.sigmas(node, path=single, nfe=3, denoise=0.5), expected(sd[0], 3))
    assert len(server.sigmas(node, path=single, denoise=0.0)) == 0
    message = server.refusal(node, "Flux", path=single)
    assert "sdxl, karras" in message and "MODEL Flux" in message, message
    assert "MODEL SDXL" in server.refusal(node, "SDXL", path=flow)
    np.testing.assert_array_equal(server.sigmas(node, "Flux", path=flow), expected(zoo("flux-dev", 6, "dpmpp-2m")))
    return count + 10


def check_sampling(server: Server, folder: Path) -> int:
    """The model is evaluated at exactly the node's sigmas, in their order, for SD 1.5, SDXL, PixArt, SD3 and FLUX."""
    count = 0
    for (config, family), sampler in itertools.product(FAMILIES.items(), SAMPLERS):
        path = str(folder / f"{family}.json")
        save(zoo(family, 6, "dpmpp-2m"), path)
        for node, inputs in (("HsoScheduler", {"model": family}), ("HsoScheduleFile", {"path": path})):
            sigmas, seen = server.sample(node, config, sampler, **inputs)
            wanted = expected(zoo(family, 6, "dpmpp-2m"))[:-1]  # uni_pc writes 0.001 over the last one, where it stands
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


def check_recommend(server: Server) -> int:
    """What `recommend` has for every family; MODELs are evaluated at exactly its sigmas, and say their own noise."""
    node, count = "HsoRecommend", 0
    for family in MENU:
        entry = PRESETS[family]
        for steps, weight in itertools.product((4, 12), (0.0, 1.0)):
            wanted = expected(recommend(family, steps, guidance=weight or entry.guidance).schedule)
            sigmas = server.sigmas(node, model=family, steps=steps, guidance=weight, slot=1)
            np.testing.assert_array_equal(sigmas, wanted)
            count += 1
    for config, family in FAMILIES.items():
        for steps, denoise in ((6, 1.0), (3, 0.5)):
            sigmas, seen, _ = server.sampled(node, config, None, model=family, steps=steps, denoise=denoise)
            np.testing.assert_array_equal(sigmas, expected(zoo(family, 6), steps))
            np.testing.assert_array_equal(seen, sigmas[:-1])
            count += 1
        weight = PRESETS[family].guidance
        own = server.sampled(node, config, None, model="from MODEL", guidance=weight)[1]
        np.testing.assert_allclose(own, expected(zoo(family, 6))[:-1], rtol=2e-3)
        assert "set guidance to the cfg" in server.refusal(node, config, model="from MODEL", slot=1)
        count += 2
    assert "MODEL Flux" in server.refusal(node, "Flux", model="sdxl", slot=1)
    for denoise in (0.25, 0.2):  # the last of 24 and of 30 steps, more than are shipped
        sigmas, seen, _ = server.sampled(node, "SDXL", None, model="sdxl", denoise=denoise)
        assert len(sigmas) == 7 and 0.1 < sigmas[0] < 1.0
        np.testing.assert_array_equal(seen, sigmas[:-1])
    for config in server.menu("HsoTestModel", "config"):
        if config in ("SVD_img2vid", "HiDreamO1", "CogVideoX_T2V"):
            sigmas, seen, _ = server.sampled(node, config, None, model="from MODEL", guidance=5.0)
            np.testing.assert_array_equal(seen, sigmas[:-1])
            count += 1
    return count + 3


def check_samplers(server: Server, folder: Path) -> int:
    """SAMPLER and SIGMAS together, from the zoo and from files: ComfyUI's own latents where it has the solver."""
    count = 0
    for config, family in FAMILIES.items():
        flow = preset(family).kind == "flow"
        for solver, theirs in (("ddim", "euler"), ("dpmpp-2m", "dpmpp_2m")):
            inputs = {"model": family, "solver": solver}
            sigmas, seen, latent = server.sampled("HsoSampler", config, None, seed=7, **inputs)
            np.testing.assert_array_equal(sigmas, expected(zoo(family, 6, solver)))
            np.testing.assert_array_equal(seen, sigmas[:-1])
            if solver == "ddim" or not flow:  # ComfyUI's dpmpp_2m takes another variable than lam for flow models
                _, _, wanted = server.sampled("HsoScheduler", config, theirs, seed=7, **inputs)
                np.testing.assert_allclose(
                    latent, wanted, atol=2e-4 * np.abs(wanted).max(), err_msg=f"{config} {solver}"
                )
            count += 2
        base, path = zoo(family, 6, "dpmpp-2m"), str(folder / f"free-{family}.json")
        c = np.tril(np.random.default_rng(0).normal(scale=0.3, size=(6, 2)), -1)
        free = dataclasses.replace(
            base, origin=dataclasses.replace(base.origin, solver=NONSTATIONARY, method="tuned"), coefficients=c
        )
        save(
            [
                free,
                dataclasses.replace(free, coefficients=0 * c, origin=dataclasses.replace(free.origin, guidance=9.0)),
            ],
            path,
        )
        own, still = ({"path": path, "solver": NONSTATIONARY, "guidance": w} for w in (base.guidance, 9.0))
        sigmas, seen, latent = server.sampled("HsoSamplerFile", config, None, seed=7, **own)
        np.testing.assert_array_equal(sigmas, expected(free))
        np.testing.assert_array_equal(seen, sigmas[:-1])
        _, _, plain = server.sampled("HsoSamplerFile", config, None, seed=7, **still)
        _, _, euler = server.sampled("HsoScheduler", config, "euler", seed=7, model=family)
        np.testing.assert_allclose(plain, euler, atol=2e-4 * np.abs(euler).max())
        assert np.abs(latent - plain).max() > 1e-3 * np.abs(plain).max(), (latent[:4], plain[:4])
        part, seen, _ = server.sampled("HsoSamplerFile", config, None, nfe=3, denoise=0.5, **own)
        np.testing.assert_array_equal(part, sigmas[3:])
        np.testing.assert_array_equal(seen, part[:-1])
        assert len(server.sampled("HsoSamplerFile", config, None, denoise=0.0, **own)[0]) == 0
        assert "HSO Sampler File" in server.refusal("HsoScheduleFile", **own)
        count += 6
    assert "which has no coefficients" in _refused(
        lambda: server.sampled("HsoSampler", "SDXL", None, method="trailing")
    )
    return count + 1


def _refused(work: Any) -> str:
    try:
        work()
    except Refused as error:
        return str(error)
    raise AssertionError("nothing was refused")


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
            assert {"HsoRecommend", "HsoScheduler", "HsoScheduleFile", "HsoSampler", "HsoSamplerFile"} <= set(nodes), (
                "ComfyUI did not load the nodes"
            )
            checks = {
                "sampling": lambda: check_sampling(server, folder),
                "recommend": lambda: check_recommend(server),
                "samplers": lambda: check_samplers(server, folder),
                "files": lambda: check_files(server, folder),
                "models": lambda: check_models(server),
                "every-model": lambda: check_every_model(comfyui, python),
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
