"""The schedule that `apply` and `sample` take where no file is named: the recommended one."""

from __future__ import annotations

import argparse
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers

from bridge.recommending import recommend
from hso_jax import files
from hso_jax.cli import terminal
from hso_jax.schedule import Schedule

_INDEX, _NETWORKS = "model_index.json", ("unet", "transformer")


def recommended(args: argparse.Namespace, pipe: Any, **sizes: Any) -> Schedule:
    """What is recommended for a pipeline, with the solver that it is for; a line says why.

    Raises:
        ValueError: without --nfe, for options that choose from a file, for distilled models, and as `recommend`.
    """
    if args.nfe is None:
        raise ValueError("--nfe is missing: say how many steps to recommend for, or name a schedule file")
    if given := [f"--{name}" for name in ("layout", "method") if getattr(args, name) is not None]:
        raise ValueError(f"{', '.join(given)}: chooses from a schedule file, and none is named")
    found = recommend(pipe, args.nfe, guidance=args.guidance, solver=args.solver, **sizes)
    terminal.warn(found.reason)
    if found.distilled is not None:
        raise ValueError("a distilled model keeps its own schedule; to change it all the same, name a schedule file")
    return found.schedule


def stand_in(folder: Path, scheduler: Any) -> Any:
    """What a pipeline folder says of its pipeline without loading the weights: its class, scheduler and configs.

    Raises:
        ValueError: for a pipeline class that is not of diffusers.
    """
    index = files.read_json(folder / _INDEX)
    name = str(index.get("_class_name"))
    cls = getattr(diffusers, name, None)
    if cls is None:
        raise ValueError(f"{folder} is a {name}, which is no pipeline of diffusers; name a schedule file")
    parts: dict[str, Any] = {
        "scheduler": scheduler,
        "name_or_path": str(index.get("_name_or_path") or folder.resolve().name),
    }
    for network in _NETWORKS:
        if (config := folder / network / "config.json").is_file():
            parts[network] = SimpleNamespace(config=files.read_json(config))
    return type(name, (SimpleNamespace,), {"__call__": cls.__call__, **_flags(cls)})(**parts)


def _flags(cls: Any) -> dict[str, Any]:
    """The property by which a pipeline says that it guides by a second evaluation."""
    return {name: getattr(cls, name) for name in ("do_classifier_free_guidance",) if hasattr(cls, name)}
