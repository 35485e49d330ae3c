"""diffusers' own scheduler tests, run through the bridge.

    python -m tests.bridge.diffusers_own_tests --diffusers PATH [--only NAME]

PATH is a checkout of diffusers (its `tests` folder is what is needed). Each scheduler of the bridge's table is
replaced, in `diffusers` itself and before the tests import it, by a class that is the plain one until `set_timesteps`
asks for a grid; then a schedule equal to the plain scheduler's grid is installed, and the scheduled class does the
rest. Many tests step at timestep 0 or 1 whatever the grid: such a step is taken at the nearest node. A test is
applicable if a schedule was installed in it and it passes with the plain class. Failures that are meant are in
`EXPLAINED` and `REFUSED`; the exit code is 1 if there is another, or if an explained test passes.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from bridge import noise_schedule_of
from bridge.schedulers.rows import ROWS, SPACING_FLAGS
from bridge.schedulers.scheduled import Installed, schedule_from_list, scheduled_class
from hso_jax.schedule import Schedule

# "Class::test", or "::test" for every class -> why it cannot pass with a schedule installed.
_ZERO = "alphas_cumprod of the betas in this test reaches 0 before the last level: no noise schedule"
_TWICE = "its grid's last step goes from training level 0 to training level 0: no schedule"
_FLOAT32 = "a sum near 57000 to 0.01: the plain class noises at float32 levels, a schedule at float64 ones"
_ROUNDED = "karras timesteps are rounded by the plain class, and exact in a schedule; the test's model depends on them"
_BACK = "a schedule's timesteps (109.99999) go back as a list, which float32 and whole numbers make another grid"
_START = "starts at sigma_max, a schedule at sqrt(sigma_max^2 + 1); timesteps off a float32 table differ by 0.001"
_SIGMA_MIN = "its grid's last step goes from sigma_min to sigma_min: the schedule has a step less"
EXPLAINED: dict[str, str] = {
    "::test_betas": _ZERO,
    "::test_full_loop_with_no_set_alpha_to_one": _TWICE,
    "DDIMParallelSchedulerTest::test_batch_step_no_noise": "steps one timestep before each node, at no node itself",
    "DPMSolverMultistepSchedulerTest::test_custom_timesteps": _BACK,
    "DPMSolverSinglestepSchedulerTest::test_custom_timesteps": _BACK,
    "EulerDiscreteSchedulerTest::test_custom_timesteps": _BACK,
    "HeunDiscreteSchedulerTest::test_custom_timesteps": _BACK,
    "EulerDiscreteSchedulerTest::test_full_loop_with_noise": _FLOAT32,
    "EulerAncestralDiscreteSchedulerTest::test_full_loop_with_noise": _FLOAT32,
    "HeunDiscreteSchedulerTest::test_full_loop_with_noise": _FLOAT32,
    "KDPM2DiscreteSchedulerTest::test_full_loop_with_noise": _FLOAT32,
    "KDPM2AncestralDiscreteSchedulerTest::test_full_loop_with_noise": _FLOAT32,
    "KDPM2AncestralDiscreteSchedulerTest::test_full_loop_no_noise": _START,
    "KDPM2AncestralDiscreteSchedulerTest::test_full_loop_device": _START,
    "KDPM2AncestralDiscreteSchedulerTest::test_full_loop_with_v_prediction": _START,
    "LMSDiscreteSchedulerTest::test_full_loop_device_karras_sigmas": _START,
    "LMSDiscreteSchedulerTest::test_full_loop_with_noise": "starts late, with an order that the bridge corrects",
    "SASolverSchedulerTest::test_full_loop_device_karras_sigmas": _SIGMA_MIN,
    "UniPCMultistepSchedulerTest::test_full_loop_with_karras": _ROUNDED,
    "UniPCMultistepSchedulerTest::test_full_loop_with_karras_and_v_prediction": _ROUNDED,
    "UniPCMultistepScheduler1DTest::test_full_loop_with_karras": _ROUNDED,
    "UniPCMultistepScheduler1DTest::test_full_loop_with_karras_and_v_prediction": _ROUNDED,
    "UniPCMultistepScheduler1DTest::test_flow_and_karras_sigmas_values": "wants float32 sigmas, not float64",
    "TCDSchedulerTest::test_full_loop_multistep_deter": "it ends at training level 0, a clean end at sigma 0",
    "TCDSchedulerTest::test_full_loop_onestep_deter": "it ends at training level 0, a clean end at sigma 0",
    "LCMSchedulerTest::test_custom_timesteps": "timesteps off the distillation grid are refused",
    "TCDSchedulerTest::test_custom_timesteps": "a step from training level 0 is refused",
}
# (class, what the bridge says in refusing a grid) -> why that grid is no schedule; any other failure is not explained.
REFUSED: dict[tuple[str, str], str] = {
    ("PNDMSchedulerTest", "t must fall strictly"): _TWICE,
    ("PNDMSchedulerTest", "use skip_prk_steps=True"): "its grid has the Runge-Kutta start",
    ("EDMDPMSolverMultistepSchedulerTest", "sigmas must fall, from noise to"): "its grid ends at sigma_min twice",
}


class Count:
    """How many schedules have been installed since the test began."""

    installed = 0


def default_grid(plain: Any, layout: str) -> Schedule:
    """The schedule that a plain scheduler samples at after `set_timesteps`."""
    if layout in ("table", "plms", "grid"):
        steps = sorted({int(t) for t in plain.timesteps}, reverse=True)
        top = plain.config.num_train_timesteps
        last = float(getattr(plain, "final_alpha_cumprod", 1.0))
        if last < 1.0:  # it stops at training level 0
            return Schedule.from_t(noise_schedule_of(plain), [(t + 1) / top for t in (*steps, 0)], layout="interval")
        return Schedule.from_t(noise_schedule_of(plain), [(t + 1) / top for t in steps])
    return schedule_from_list(
        noise_schedule_of(plain), list(dict.fromkeys(torch.as_tensor(plain.sigmas).double().tolist()))
    )


def substitute(name: str) -> type:
    """A class that is the plain scheduler until `set_timesteps`, and the scheduled one after it."""
    parent, row, scheduled = getattr(diffusers, name), ROWS[name], scheduled_class(name)

    def install(self: Any, *args: Any, **options: Any) -> None:
        plain = parent.from_config({k: v for k, v in self.config.items() if not k.startswith("hso_")})
        plain.set_timesteps(*args, **options)
        grid = default_grid(plain, row.layout)
        if not isinstance(self, Installed):
            self.__class__ = after
        asked = {key: x for key, x in self.config.items() if not key.startswith(("_", "hso_"))}
        self.register_to_config(**{flag: False for flag in SPACING_FLAGS if self.config.get(flag)})
        self._adopt(grid, noise_schedule_of(self))
        # What the schedule's end replaced (it keeps the full order at a "t_eps" end), as the plain class has it.
        self.register_to_config(**asked)
        device = args[1] if len(args) > 1 else options.get("device")
        Installed.set_timesteps(self, self.schedule.nfe, device=device)
        Count.installed += 1

    @functools.wraps(parent.step)
    def step(self: Any, model_output: Any, timestep: Any, *args: Any, **options: Any) -> Any:
        known = self.timesteps
        node = known[(known - float(timestep)).abs().argmin()]
        return scheduled.step(self, model_output, node, *args, **options)

    def scale_model_input(self: Any, sample: Any, timestep: Any = None, *args: Any, **options: Any) -> Any:
        known = self.timesteps
        node = known[(known - float(timestep or 0.0)).abs().argmin()]
        return scheduled.scale_model_input(self, sample, node, *args, **options)

    @functools.wraps(parent.__init__)
    def __init__(self: Any, *args: Any, **options: Any) -> None:
        self.__dict__["_building"] = True  # some classes set their default timesteps here
        parent.__init__(self, *args, **options)
        del self._building

    def set_timesteps(self: Any, *args: Any, **options: Any) -> None:
        how = parent.set_timesteps if "_building" in self.__dict__ else install
        how(self, *args, **options)

    functools.update_wrapper(set_timesteps, parent.set_timesteps)
    before = type(
        name, (parent,), {"__module__": parent.__module__, "__init__": __init__, "set_timesteps": set_timesteps}
    )
    methods = {"set_timesteps": install, "step": step, "scale_model_input": scale_model_input}
    after = type(name, (scheduled,), {"__module__": "bridge", **methods})
    return before


class Results:
    """A pytest plugin: keeps the outcome of each applicable test."""

    def __init__(self) -> None:
        self.passed: list[str] = []
        self.failed: dict[str, str] = {}
        self.other = 0

    def pytest_runtest_setup(self, item: Any) -> None:
        """Count anew."""
        Count.installed = 0

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Sort the outcome."""
        if report.when != "call":
            return
        name = "::".join(report.nodeid.split("::")[1:])
        if report.outcome == "failed":
            crash = getattr(report.longrepr, "reprcrash", None)
            self.failed[name] = (str(report.longrepr) if crash is None else crash.message).split("\n")[0]
        elif report.outcome == "passed" and Count.installed:
            self.passed.append(name)
        else:
            self.other += 1


def run(folder: Path, only: str, plain: bool) -> Results:
    """Run the tests of `folder`/tests/schedulers, of the files whose name contains `only`."""
    replaced = {} if plain else {name: substitute(name) for name in ROWS}
    for name, cls in replaced.items():
        setattr(diffusers, name, cls)
    for name in [name for name in sys.modules if name.split(".")[0] == "tests"]:
        del sys.modules[name]  # theirs has the same name as the package that this module is in
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    found = [
        path for path in sorted((folder / "tests" / "schedulers").glob("test_scheduler_*.py")) if only in path.name
    ]
    ours = [path for path in found if any(f"scheduler_classes = ({name}," in path.read_text() for name in ROWS)]
    results = Results()
    options = ["-q", "--no-header", "--tb=no", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", str(folder)]
    with contextlib.redirect_stdout(io.StringIO()):
        pytest.main([*options, "--show-capture=no", "-W", "ignore", *map(str, ours)], plugins=[results])
    return results


def explanation(test: str, message: str) -> str | None:
    """Why a test may fail with this message."""
    cls, name = test.split("::")[0], test.split("::")[-1]
    refused = (why for (who, said), why in REFUSED.items() if who == cls and said in message)
    return EXPLAINED.get(test) or next(refused, None) or EXPLAINED.get(f"::{name}")


def main() -> int:
    """Run and report."""
    parser = argparse.ArgumentParser(description="diffusers' own scheduler tests, run through the bridge")
    parser.add_argument("--diffusers", type=Path, required=True, help="a checkout of diffusers")
    parser.add_argument("--only", default="", help="part of a test file's name")
    parser.add_argument("--plain", action="store_true", help="only list what fails with diffusers' own classes")
    given = parser.parse_args()
    folder = given.diffusers.resolve()
    if not (folder / "tests" / "schedulers").is_dir():
        parser.error(f"{folder} has no tests/schedulers")
    if given.plain:
        print("\n".join(run(folder, given.only, plain=True).failed))
        return 0
    command = [sys.executable, "-m", "tests.bridge.diffusers_own_tests", "--diffusers", str(folder), "--plain"]
    done = subprocess.run([*command, "--only", given.only], capture_output=True, text=True, check=True)
    results = run(folder, given.only, plain=False)
    return report(results, set(done.stdout.splitlines()))


def report(results: Results, plain_fails: set[str]) -> int:
    """Print what failed and why, and the numbers; the exit code."""
    failed = {test: why for test, why in results.failed.items() if test not in plain_fails}
    unexplained = {test for test, why in failed.items() if explanation(test, why) is None}
    stale = [test for test in results.passed if test in EXPLAINED]
    for test, why in failed.items():
        print(f"{test}\n    {explanation(test, why) or 'NOT EXPLAINED: ' + why[:300]}")
    for test in stale:
        print(f"{test} passes, though EXPLAINED says it cannot")
    print(
        f"diffusers {diffusers.__version__}: applicable {len(results.passed) + len(failed)}, passed "
        f"{len(results.passed)}, explained {len(failed) - len(unexplained)}, not explained {len(unexplained)}\n"
        f"not applicable: {len(results.failed) - len(failed)} fail with the plain class as well, "
        f"{results.other} set no grid of a supported scheduler, or are skipped"
    )
    return int(bool(unexplained or stale))


if __name__ == "__main__":
    sys.exit(main())
