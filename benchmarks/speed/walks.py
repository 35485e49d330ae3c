"""How far a call walks: the functions and files of `hso_jax` and `bridge` that it enters.

    python -m benchmarks.speed.walks [--list]

Three walks, each after the imports and counted once from its door to its end, compiled afresh. A function is counted
once however often it runs; comprehensions, lambdas and functions that the compiler of a dataclass wrote count with the
function that they stand in. `--list` names them.
"""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import diffusers
import torch

import bridge
import hso_jax
from benchmarks import runner
from hso_jax.cli import main as command

ROOTS = tuple(str(Path(package.__file__).parent) + "/" for package in (hso_jax, bridge) if package.__file__)
SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False}
NFE = 6


class Pipeline:
    """What `optimize_pipeline` needs of a pipeline, and six steps around a network that says nothing."""

    def __init__(self) -> None:
        self.scheduler: Any = diffusers.DDIMScheduler(**SD)

    def __call__(self, num_inference_steps: int) -> None:
        """Sample."""
        self.scheduler.set_timesteps(num_inference_steps)
        x = torch.zeros(1, 4, 8, 8)
        for t in self.scheduler.timesteps:
            x = self.scheduler.step(torch.zeros_like(x), t, self.scheduler.scale_model_input(x, t)).prev_sample


def install_and_sample(folder: str) -> None:
    """Install a shipped schedule, and sample at it."""
    pipe = Pipeline()
    bridge.optimize_pipeline(pipe, NFE, method="zoo")
    pipe(num_inference_steps=NFE)


def search_to_file(folder: str) -> None:
    """Run the command line's search."""
    if code := command(["search", "--nfe", str(NFE), "-o", f"{folder}/schedules.json", "--no-plot"]):
        raise RuntimeError(f"hso-jax search ended with {code}")


def search_for_a_solver(folder: str) -> None:
    """Search by a solver's own error."""
    hso_jax.search(hso_jax.preset("sd15"), NFE, method=hso_jax.SolverError())


WALKS: dict[str, Callable[[str], None]] = {
    'optimize_pipeline(method="zoo") to the network': install_and_sample,
    "hso-jax search to the saved file": search_to_file,
    "search(method=SolverError())": search_for_a_solver,
}


def entered(walk: Callable[[str], None]) -> list[tuple[str, str]]:
    """List (file, function) of every call into the packages, in this thread."""
    found: set[tuple[str, str]] = set()

    def note(frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(ROOTS) and not code.co_name.startswith("<"):
            found.add((code.co_filename, code.co_qualname.split(".<locals>")[0]))

    quiet = io.StringIO()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
        sys.setprofile(note)
        try:
            walk(folder)
        finally:
            sys.setprofile(None)
    return sorted(found)


def main() -> None:
    """Walk and print."""
    parser = runner.command("python -m benchmarks.speed.walks", __doc__)
    parser.add_argument("--list", action="store_true", help="name the functions")
    named = parser.parse_args().list
    for name, walk in WALKS.items():
        found = entered(walk)
        print(f"{len(found):4d} functions in {len({file for file, _ in found}):2d} files: {name}")
        for file, function in found if named else ():
            print(f"       {Path(file).relative_to(Path(ROOTS[0]).parent)}  {function}")


if __name__ == "__main__":
    main()
