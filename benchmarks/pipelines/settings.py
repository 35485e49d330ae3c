"""What images are made of: the prompts, a schedule for each method, solver and N, and a scheduler that obeys it."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import hso_jax
from benchmarks.runner import SOLVERS, check_names
from benchmarks.targets import fine_schedule
from bridge import solver_of, with_schedule
from bridge.cli.commands import plain
from bridge.schedulers.rows import SPACING_FLAGS
from hso_jax import NoiseSchedule, Schedule, schedule_file
from hso_jax.baselines import BASELINES, inapplicable
from hso_jax.noise import lam_of_s
from hso_jax.solvers import canonical

METHODS = ("default", "hso", "solver-error", "zoo", *BASELINES)
CONVERGED, CONVERGED_SOLVER = "converged", "unipc-3"


class Setting(NamedTuple):
    """What images are made with: a method's schedule of `nfe` nodes, under a solver of `SOLVERS`."""

    method: str
    solver: str
    nfe: int

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.method}-{self.solver}-{self.nfe}"


class Prepared(NamedTuple):
    """A setting's schedule, None for the scheduler's own spacing, and the seconds it took to find."""

    schedule: Schedule | None
    seconds: float


def read_prompts(
    path: Path, *, column: str | None = None, count: int | None = None, shuffle: int | None = None
) -> list[str]:
    """Read the first `count` prompts of a file, in its order or in a random one.

    `.json`: COCO's captions, the first of each image, by image id. `.csv`, `.tsv`: with a header; `column` is by
    default the one called prompt or caption. Anything else: UTF-8 text, a prompt a line.
    """
    suffix = path.suffix.lower()
    if not path.is_file():
        raise ValueError(f"prompts: {path} does not exist; give a text file, a COCO captions .json, a .csv or a .tsv")
    if column is not None and suffix not in (".csv", ".tsv"):
        raise ValueError(f"prompts: {path} is not a .csv or .tsv file, so it has no column {column!r}")
    try:
        text = path.read_text(encoding="utf-8-sig")
        if suffix == ".json":
            entries = reversed(json.loads(text)["annotations"])  # the first of an image comes last
            captions = {int(entry["image_id"]): str(entry["caption"]) for entry in entries}
            found = [captions[image] for image in sorted(captions)]
        else:
            found = _table(text, path, column) if suffix in (".csv", ".tsv") else text.split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"prompts: {path} is not UTF-8 text ({error}); convert it") from error
    except (json.JSONDecodeError, TypeError, KeyError) as error:
        raise ValueError(f"prompts: {path} is not a file of COCO captions, with annotations ({error!r})") from error
    prompts = [" ".join(prompt.split()) for prompt in found if prompt.strip()]
    if not prompts:
        raise ValueError(f"prompts: there is none in {path}")
    if shuffle is not None:
        prompts = [prompts[i] for i in np.random.default_rng(shuffle).permutation(len(prompts))]
    if count is not None and not 1 <= count <= len(prompts):
        raise ValueError(f"prompts: {path} has {len(prompts)}; count is {count}, which must be 1 to {len(prompts)}")
    return prompts[:count]


def _table(text: str, path: Path, column: str | None) -> list[str]:
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
    header, wanted = list(rows.fieldnames or ()), ("prompt", "caption") if column is None else (column.lower(),)
    named = [name for name in header if name.strip().lower() in wanted]
    if len(named) != 1:
        told = f"one column {' or '.join(wanted)}, it has: {', '.join(header) or 'none'}"
        raise ValueError(f"prompts: {path} needs {told}; name it with --column")
    return [row[named[0]] or "" for row in rows]


def read_methods(names: Iterable[str]) -> dict[str, Path | None]:
    """Read name to schedule file; a name of `METHODS` to None. A file (`.json`) is called by its stem."""
    found: dict[str, Path | None] = {}
    for name in names:
        path = Path(name) if name.endswith(".json") else None
        if path is None and name not in METHODS:
            raise ValueError(f"method {name!r} is not one of {', '.join(METHODS)}, nor a schedule file (.json)")
        if path is not None and not path.is_file():
            raise ValueError(f"method {name}: there is no such schedule file; `hso-jax search -o {name}` writes one")
        label = name if path is None else path.stem
        if label in found or (path is not None and label in (*METHODS, CONVERGED)):
            raise ValueError(f"two methods are called {label!r}; rename the file")
        found[label] = path
    return found


def read_solvers(names: Iterable[str]) -> list[str]:
    """Read names of `SOLVERS`; "euler", which is DDIM for a flow, and "unipc" are known as well."""
    found = [{"euler": "ddim", "unipc": "unipc-2"}.get(name, name) for name in names]
    check_names("solver", found, SOLVERS)
    return list(dict.fromkeys(found))


def check(methods: Iterable[str], noise: NoiseSchedule) -> None:
    """Raise ValueError for a model, or for a rule with this model, that cannot be compared."""
    check_names("noise of kind", [noise.kind], ("vp", "flow"))
    for method in methods:
        if method in BASELINES and (reason := inapplicable(method, noise)):
            raise ValueError(f"{reason}, or leave it out of --methods")


def prepare(setting: Setting, file: Path | None, noise: NoiseSchedule, guidance: float) -> Prepared:
    """Make a setting's schedule, or read it from its method's file; `guidance` is w, 1 for none."""
    method, solver, nfe = setting
    makers: Mapping[str, Callable[[], Schedule | None]] = {
        "default": lambda: None,
        "hso": lambda: hso_jax.search(noise, nfe),
        "solver-error": lambda: hso_jax.search(noise, nfe, method=hso_jax.SolverError(solver, guidance)),
        "zoo": lambda: hso_jax.zoo(noise, nfe, solver, guidance=guidance),
        CONVERGED: lambda: fine_schedule(noise, nfe),
    }
    begin = time.perf_counter()
    if file is not None:
        schedule: Schedule | None = schedule_file.select(schedule_file.load(file), nfe=nfe, layout="node")
    else:
        schedule = makers.get(method, lambda: hso_jax.baseline(method, noise, nfe))()
    return Prepared(schedule, time.perf_counter() - begin)


def scheduler(own: Any, solver: str, flow: bool, schedule: Schedule | None) -> Any:
    """Make a diffusers scheduler with the noise of a pipeline's scheduler `own` that takes the solver's steps.

    Without a schedule the spacing is what the pipeline's config says.
    """
    shift = own.config.get("shift", own.config.get("flow_shift", 1.0))
    if solver == "ddim":
        kind, changed = ("FlowMatchEulerDiscreteScheduler", {"shift": shift}) if flow else ("DDIMScheduler", {})
    elif solver == "dpmpp-2m":
        kind = "DPMSolverMultistepScheduler"
        changed = {"solver_order": 2, "solver_type": "midpoint", "algorithm_type": "dpmsolver++"}
    else:
        kind, changed = "UniPCMultistepScheduler", {"solver_order": int(solver[-1])}
        changed |= {"solver_type": "bh2", "predict_x0": True}
    if flow and solver != "ddim":
        changed |= {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": shift}
    built = plain(own, kind)
    if schedule is not None:
        changed |= {flag: False for flag in SPACING_FLAGS if built.config.get(flag)}
    built = type(built).from_config(built.config, **changed)
    if solver_of(built) != canonical(solver):
        raise ValueError(f"{type(built).__name__} with the pipeline's config is {solver_of(built)}, not {solver}")
    return built if schedule is None else with_schedule(built, schedule)


def told_lams(timesteps: Any, noise: NoiseSchedule) -> list[float | None]:
    """Read half log-SNR of the levels that a scheduler [N] told the pipeline's network; None for pure noise."""
    t = np.asarray(timesteps.cpu(), np.float64) / noise.num_train_timesteps
    lams = lam_of_s(t) if noise.kind == "flow" else noise.lam(t + 1.0 / noise.num_train_timesteps)
    return [float(x) if np.isfinite(x) else None for x in np.asarray(lams, np.float64)]
