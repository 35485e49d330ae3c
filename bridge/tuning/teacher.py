"""The converged samples that a few steps are to reach: made once, and kept beside the checkpoint."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from bridge.fitness import converged
from bridge.tuning import gits
from bridge.tuning.coordinates import Table, table_at
from bridge.tuning.models import Model
from bridge.tuning.options import Options
from bridge.tuning.report import Progress
from hso_jax.checkpoint import Checkpoint
from hso_jax.files import write_whole
from hso_jax.noise import NoiseSchedule
from hso_jax.schedule import Schedule

SOLVER = "dpmpp-2m"


class Made(NamedTuple):
    """The teacher's work.

    Attributes:
        samples: [count, ...] on the CPU.
        costs: of steps on the trajectories of the samples to tune on, where they are searched by "gits"; see `gits`.
    """

    samples: torch.Tensor
    costs: np.ndarray | None


def grid(noise: NoiseSchedule, steps: int) -> Schedule:
    """The teacher's nodes."""
    return converged(noise, steps)


def targets(model: Model, options: Options, file: Checkpoint, progress: Progress | None) -> Made:
    """The converged samples, from beside the checkpoint or made now.

    Raises:
        ValueError: for samples that are not finite, or not those of the checkpoint.
    """
    kept = file.search("teacher", {}, fault)
    beside = None if file.path is None else file.path.with_name(f"{file.path.name}.samples.npz")
    if kept.done and beside is not None and beside.exists():
        return _read(beside, kept.done[0]["sha256"])
    made = _converge(model, options, progress)
    if beside is not None:
        content, arrays = io.BytesIO(), {"samples": made.samples.numpy()}
        np.savez(content, **arrays if made.costs is None else {**arrays, "costs": made.costs})
        write_whole(beside, content.getvalue())
    digest = _digest(made)
    if kept.done and kept.done[0]["sha256"] != digest:
        raise ValueError(f"the converged samples are not those of checkpoint {file.path}: the model has changed")
    if not kept.done:
        kept.add({"sha256": digest})
    return made


def _read(file: Path, digest: str) -> Made:
    try:
        with np.load(io.BytesIO(file.read_bytes())) as found:
            made = Made(torch.from_numpy(found["samples"]), found.get("costs"))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        made = None
    if made is None or _digest(made) != digest:
        raise ValueError(f"{file} is not what its checkpoint was made with; remove both, or put it back")
    return made


@torch.no_grad()
def _converge(model: Model, options: Options, progress: Progress | None) -> Made:
    table = table_at(model.part.noise, grid(model.part.noise, options.teacher_steps), SOLVER)
    plain, parts, costs = Table(*(x.tolist() for x in table)), list[torch.Tensor](), list[np.ndarray]()
    for rows in _batches(options):
        xs, x0s = list[torch.Tensor](), list[torch.Tensor]()

        def seen(x: torch.Tensor, x0: torch.Tensor, xs: list[torch.Tensor] = xs, x0s: list[torch.Tensor] = x0s) -> None:
            xs.append(x.float().cpu())
            x0s.append(x0.float().cpu())

        watched = options.by == "gits" and rows.stop <= options.samples
        parts.append(model.run(plain, rows, seen if watched else None).cpu())
        if watched:
            costs.append(gits.euler_costs([*xs, parts[-1].float()], x0s, plain.alpha, plain.sigma))
        if progress is not None:
            progress(rows.stop * options.teacher_steps, options.budget, None)
    samples = torch.cat(parts)
    if not samples.isfinite().all():
        raise ValueError(f"the converged samples ({options.teacher_steps} steps) are not finite; try another dtype")
    return Made(samples, np.sum(costs, axis=0) if costs else None)


def _batches(options: Options) -> Iterator[range]:
    """Of the samples to tune on, then of those kept apart."""
    ends = (options.samples, options.samples + options.kept_apart)
    for first, last in ((0, ends[0]), ends):
        for begin in range(first, last, options.batch):
            yield range(begin, min(begin + options.batch, last))


def _digest(made: Made) -> str:
    digest = hashlib.sha256(np.ascontiguousarray(made.samples.numpy()).tobytes())
    digest.update(b"" if made.costs is None else made.costs.tobytes())
    return digest.hexdigest()


def fault(record: Any) -> str | None:
    """What is wrong with a checkpoint's record."""
    return None if isinstance(record, dict) else f" is {record!r}, not an object"
