"""Records: one finished cell of the benchmark is one line of JSON, appended whole.

Fields that are null are left out. A line with "setup" says on what machine, and with which versions, records of the
file were made. Every figure of the reports comes from these lines alone.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.metrics import Estimate
from benchmarks.models.card import WEIGHTS
from hso_jax import NoiseSchedule, Schedule, from_config
from hso_jax.files import write_whole
from hso_jax.origin import Origin
from hso_jax.schedule import versions

METRICS = ("rmse", "feature", "fid", "fid_data")
DIGITS = 5  # of the figures; intervals are wider than what this loses
NODE_DIGITS = 9  # of lams: a schedule read back gives the same samples to float32 rounding


class Cell(NamedTuple):
    """What is measured: the key of a record."""

    model: str
    guidance: float
    solver: str
    nfe: int
    method: str
    seed: int
    samples: int
    dtype: str

    def __str__(self) -> str:
        """For messages."""
        guided = "" if self.guidance == 1.0 else f", guidance {self.guidance:g}"
        return f"{self.model}, {self.solver}, N = {self.nfe}, {self.method}{guided}"


@dataclasses.dataclass(frozen=True)
class Record:
    """One cell, measured. None is unknown; a `rmse` of None says that the samples were not finite.

    Attributes:
        model, guidance, solver, nfe, method, seed, samples, dtype: the key, see `Cell`.
        lams: [N] half log-SNR of the evaluated nodes; None for -inf, pure noise.
        seconds: that the preparation of the schedule took, without compilation.
        calls: network evaluations of one image that it took.
        counted: network evaluations of one image while sampling, counted at the model; equal to nfe.
        teacher: error of the converged samples, an RMSE.
        compile_seconds: of the preparation; most of it only once for an N.
        psi: the upper level's choice, where there was one.
        predicted: of coefficients of their own, the error on the reference problems divided by that of the best known
            solver with its own nodes.
        rmse, feature: root-mean-square error to the converged samples, of pixels and of features.
        fid, fid_data: Frechet distance of features to the converged samples and to held-out data.
        *_low, *_high: 95 % interval.
    """

    model: str
    guidance: float
    solver: str
    nfe: int
    method: str
    seed: int
    samples: int
    dtype: str
    lams: tuple[float | None, ...]
    seconds: float
    calls: int
    counted: int
    teacher: float
    compile_seconds: float = 0.0
    psi: dict[str, float] | None = None
    predicted: float | None = None
    rmse: float | None = None
    rmse_low: float | None = None
    rmse_high: float | None = None
    feature: float | None = None
    feature_low: float | None = None
    feature_high: float | None = None
    fid: float | None = None
    fid_low: float | None = None
    fid_high: float | None = None
    fid_data: float | None = None
    fid_data_low: float | None = None
    fid_data_high: float | None = None

    @property
    def cell(self) -> Cell:
        """The key."""
        return Cell(*(getattr(self, name) for name in Cell._fields))

    def interval(self, metric: str) -> tuple[float | None, float | None, float | None]:
        """Value, low and high of one of `METRICS`."""
        return getattr(self, metric), getattr(self, f"{metric}_low"), getattr(self, f"{metric}_high")


FIELDS = tuple(field.name for field in dataclasses.fields(Record))


class Records(NamedTuple):
    """A records file.

    Attributes:
        cells: one record a key, the last written; in the order of the file.
        setups: the distinct setups, in the order of the file.
    """

    cells: list[Record]
    setups: list[dict[str, str]]


def read(path: Path) -> Records:
    """The records in a file; none if it does not exist. A last line that was cut off is left out.

    Raises:
        ValueError: for a line that is not a record, with its number.
    """
    if not path.exists():
        return Records([], [])
    cells: dict[Cell, Record] = {}
    setups: list[dict[str, str]] = []
    for number, line in enumerate(_whole_lines(path).decode().splitlines(), 1):
        try:
            entry = json.loads(line)
            if set(entry) == {"setup"}:
                if entry["setup"] not in setups:
                    setups.append(entry["setup"])
            else:
                record = Record(**{**entry, "lams": tuple(entry["lams"])})
                cells.pop(record.cell, None)
                cells[record.cell] = record
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path}, line {number} is not a record ({error}); mend or remove it") from error
    return Records(list(cells.values()), setups)


def append(path: Path, record: Record, setup: dict[str, str]) -> None:
    """Add a record, and before it the setup if the file does not have it yet."""
    if path.exists() and len(kept := _whole_lines(path)) < path.stat().st_size:
        write_whole(path, kept)  # what an interrupted program left of a line
    entries: list[dict[str, Any]] = [] if setup in read(path).setups else [{"setup": setup}]
    entries.append({name: value for name, value in dataclasses.asdict(record).items() if value is not None})
    text = "".join(json.dumps(entry, separators=(",", ":"), allow_nan=False) + "\n" for entry in entries)
    with path.open("ab") as file:
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())


def rounded(x: float | None, digits: int = DIGITS) -> float | None:
    """`x` with few digits; None for what is not finite."""
    return float(f"{x:.{digits}g}") if x is not None and np.isfinite(x) else None


def figures(estimates: Mapping[str, Estimate]) -> dict[str, float | None]:
    """The fields of a record for what `metrics.compare` found: each value, and the ends of its interval."""
    return {
        f"{name}{suffix}": rounded(x)
        for name, estimate in estimates.items()
        for suffix, x in zip(("", "_low", "_high"), estimate, strict=True)
    }


def predicted(schedule: Schedule) -> float | None:
    """What a record says of it, see `Record.predicted`."""
    scores = schedule.scores
    if schedule.coefficients is None or scores.error is None or not scores.others_own_nodes:
        return None
    return float(f"{scores.error / min(scores.others_own_nodes.values()):.4g}")


def nodes_of(schedule: Schedule) -> tuple[float | None, ...]:
    """What a record keeps of a schedule: the lams of its evaluated nodes.

    Raises:
        ValueError: for a schedule that does not end in a step to clean data.
    """
    if schedule.end != "clean":
        raise ValueError(f"the schedule ends at {schedule.end!r}; methods are compared with a last step to clean data")
    return tuple(rounded(float(lam), NODE_DIGITS) for lam in schedule.lams[: schedule.nfe])


def schedule_of(record: Record) -> Schedule:
    """The schedule of a record, for its model."""
    noise = noise_of(record.model)
    lams = np.array([-np.inf if lam is None else lam for lam in record.lams])
    return Schedule.from_lams(noise, lams, origin=Origin(method=record.method))


@functools.cache
def noise_of(model: str) -> NoiseSchedule:
    """The noise schedule of a benchmark model, from its scheduler's config; the network is not loaded."""
    return from_config(WEIGHTS / model / "scheduler", name=model)


def this_setup(threads: int) -> dict[str, str]:
    """The machine, without its name, and the versions that figures and seconds depend on."""
    import diffusers
    import torch

    own = versions()
    packages = {"torch": torch.__version__, "diffusers": diffusers.__version__, **own}
    return {
        "cpu": _cpu(),
        "cores": str(os.cpu_count()),
        "threads": str(threads),
        "python": platform.python_version(),
        **packages,
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _whole_lines(path: Path) -> bytes:
    content = path.read_bytes()
    return content[: content.rfind(b"\n") + 1]
