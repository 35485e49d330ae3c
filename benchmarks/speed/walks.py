"""How far a call walks: the functions and files of `hso_jax` and `bridge` that it enters.

    python -m benchmarks.speed.walks [--list]

Three walks, each after the imports and counted once from its door to its end, compiled afresh:

- `optimize_pipeline(pipe, 6, method="zoo")`, then the pipeline's six steps (a stand-in with a DDIM scheduler);
- `hso-jax search --nfe 6`, to the saved file;
- `search(noise, 6, method=SolverError())`.

A function is counted once however often it runs; comprehensions, lambdas and functions that the compiler of a
dataclass wrote count with the function that they stand in. `--list` names them.
"""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
from collections.abc import Callable, Iterator
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

    def __call__(self, num_inference_steps: int) -> torch.Tensor:
        """A sample."""
        self.scheduler.set_timesteps(num_inference_steps)
        x = torch.zeros(1, 4, 8, 8)
        for t in self.scheduler.timesteps:
            x = self.scheduler.step(torch.zeros_like(x), t, self.scheduler.scale_model_input(x, t)).prev_sample
        return x


def install_and_sample() -> None:
    """A shipped schedule, installed and sampled at."""
    pipe = Pipeline()
    bridge.optimize_pipeline(pipe, NFE, method="zoo")
    pipe(num_inference_steps=NFE)


def search_to_file() -> None:
    """The command line's search."""
    with tempfile.TemporaryDirectory() as folder:
        code = command(["search", "--nfe", str(NFE), "-o", str(Path(folder, "schedules.json")), "--no-plot"])
    if code:
        raise RuntimeError(f"hso-jax search ended with {code}")


def search_for_a_solver() -> None:
    """A search by a solver's own error."""
    hso_jax.search(hso_jax.preset("sd15"), NFE, method=hso_jax.SolverError())


WALKS: dict[str, Callable[[], None]] = {
    'optimize_pipeline(method="zoo") to the network': install_and_sample,
    "hso-jax search to the saved file": search_to_file,
    "search(method=SolverError())": search_for_a_solver,
}


@contextlib.contextmanager
def entered(found: set[tuple[str, str]]) -> Iterator[None]:
    """Collect (file, function) of every call into the packages, in this thread."""

    def note(frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(ROOTS) and not code.co_name.startswith("<"):
            found.add((code.co_filename, code.co_qualname.split(".<locals>")[0]))

    sys.setprofile(note)
    try:
        yield
    finally:
        sys.setprofile(None)


def main() -> int:
    """Walk and print."""
    parser = runner.command("python -m benchmarks.speed.walks", __doc__)
    parser.add_argument("--list", action="store_true", help="name the functions")
    given = parser.parse_args()
    for name, walk in WALKS.items():
        found: set[tuple[str, str]] = set()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()), entered(found):
            walk()
        print(f"{len(found):4d} functions in {len({file for file, _ in found}):2d} files: {name}")
        if given.list:
            for file, function in sorted(found):
                print(f"       {Path(file).relative_to(Path(ROOTS[0]).parent)}  {function}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
