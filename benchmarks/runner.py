"""Cells, records and the loop over cells, the same for networks, pipelines, held-out networks and tuning.

A *cell* is one setting: a model, guidance, solver, N and method. A *record* is a measured cell. Records are lines of
JSON in a file, appended whole as soon as a cell is done, so that a run can be stopped and the same command goes on. A
line with "setup" says on what machine, and with which versions, records of the file were made. Every figure of the
reports comes from these lines alone.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import functools
import json
import os
import platform
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from hso_jax import NoiseSchedule, Schedule, from_config
from hso_jax.cli.common import parse_nfe
from hso_jax.files import write_whole
from hso_jax.schedule import Origin, versions
from hso_jax.solvers import NONSTATIONARY

WEIGHTS = Path(__file__).parent / "models" / "weights"
METRICS = ("rmse", "feature", "fid", "fid_data")
SOLVERS = {"ddim": "DDIM", "dpmpp-2m": "DPM++ 2M", "unipc-2": "UniPC-2", "unipc-3": "UniPC-3"}
"""Name in `hso_jax.solvers` to title, in the order of the tables."""

COMPARED = ("ddim", "dpmpp-2m", "unipc-3")
"""The solvers that every study measures."""

SHIFTS = {"flow-2": 2.0, "flow-3": 3.0}
"""Rule to shift, see `hso_jax.baselines.flow_time`."""

ANY = "any"
"""The solver of a cell whose method chooses its own."""


class Inapplicable(Exception):
    """A cell cannot be measured, and the message says why: its method has no schedule for the model, say."""


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

    Errors have their 95 % interval in _low and _high.
    """

    model: str
    guidance: float
    solver: str
    nfe: int
    method: str
    seed: int
    samples: int
    dtype: str
    lams: tuple[float | None, ...] = ()  # [N] half log-SNR of the evaluated nodes; None for -inf, pure noise
    seconds: float = 0.0  # that the preparation of the schedule took
    calls: int = 0  # network evaluations of one image that it took
    counted: int = 0  # the same while sampling: equal to nfe
    teacher: float = 0.0  # error of the converged samples, an RMSE
    compile_seconds: float = 0.0  # of the preparation, mostly only once for an N
    psi: dict[str, float] | None = None  # the upper level's choice
    coefficients: Sequence[Sequence[float]] | None = None  # [N, H - 1] of a non-stationary solver
    problem_error: float | None = None  # predicted: the error on the reference problems
    predicted: float | None = None  # until 0.2.0, of coefficients of their own: that over the best known solver's
    rmse: float | None = None  # root-mean-square error to the converged samples
    rmse_low: float | None = None
    rmse_high: float | None = None
    feature: float | None = None  # the same of features
    feature_low: float | None = None
    feature_high: float | None = None
    fid: float | None = None  # Frechet distance of features to the converged samples
    fid_low: float | None = None
    fid_high: float | None = None
    fid_data: float | None = None  # and to held-out data
    fid_data_low: float | None = None
    fid_data_high: float | None = None
    chosen: str | None = None  # the solver that the method chose, where the cell's is `ANY`
    start: str | None = None  # where tuning started, that one's error, and the result's
    start_error: float | None = None
    error: float | None = None
    history: Sequence[Any] | None = None  # [evaluations, error, error on samples kept apart] of each better point

    @property
    def cell(self) -> Cell:
        """The key."""
        return Cell(*(getattr(self, name) for name in Cell._fields))

    def interval(self, metric: str) -> tuple[float | None, float | None, float | None]:
        """Value, low and high of one of `METRICS`."""
        return getattr(self, metric), getattr(self, f"{metric}_low"), getattr(self, f"{metric}_high")

    def with_schedule(self, schedule: Schedule, problem_error: float | None = None) -> Record:
        """Keep what a record says of a schedule: its nodes and coefficients, psi, and its predicted error."""
        if schedule.end != "clean":
            raise ValueError(f"the schedule ends at {schedule.end!r}; what is compared ends with a step to clean data")
        rows = schedule.coefficients
        return dataclasses.replace(
            self,
            lams=tuple(rounded(float(lam), 9) for lam in schedule.lams[: schedule.nfe]),  # float32 needs no more digits
            coefficients=None if rows is None else [[float(f"{x:.9g}") for x in row] for row in rows],
            psi=None if schedule.psi is None else {name: float(f"{x:.6g}") for name, x in schedule.psi.items()},
            problem_error=rounded(problem_error),
        )

    def with_estimates(self, estimates: Mapping[str, tuple[float, float, float]]) -> Record:
        """Keep what `metrics.compare` found: each value, and the ends of its interval."""
        values: dict[str, Any] = {}
        for name, estimate in estimates.items():
            for suffix, x in zip(("", "_low", "_high"), estimate, strict=True):
                values[name + suffix] = rounded(x)
        return dataclasses.replace(self, **values)


class Records(NamedTuple):
    """A records file, in its order: one record a cell (the last written), and the distinct setups."""

    cells: list[Record]
    setups: list[dict[str, str]]


def read(path: Path) -> Records:
    """Read a records file; there is none in one that does not exist. A last line that was cut off is left out."""
    cells: dict[Cell, Record] = {}
    setups: list[dict[str, str]] = []
    for number, line in enumerate(_whole_lines(path).decode().splitlines() if path.exists() else (), 1):
        try:
            entry = json.loads(line)
            if set(entry) == {"setup"}:
                if entry["setup"] not in setups:
                    setups.append(entry["setup"])
            else:
                entry = _renamed(entry) if "network" in entry else entry
                record = Record(**{**entry, "lams": tuple(entry.get("lams", ()))})
                cells.pop(record.cell, None)
                cells[record.cell] = record
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path}, line {number} is not a record ({error}); mend or remove it") from error
    return Records(list(cells.values()), setups)


def _renamed(entry: dict[str, Any]) -> dict[str, Any]:
    """Read a line as tuning wrote them until 0.2.0, with names of its own and without what was the same in all."""
    rest = {name: x for name, x in entry.items() if name not in ("network", "evaluations", "solver", "rule")}
    chosen = " ".join(entry[name] for name in ("rule", "solver") if entry.get(name))
    same = {"guidance": 1.0, "solver": ANY, "seed": 0, "samples": 64, "dtype": "float32"}
    return {"model": entry["network"], "calls": entry["evaluations"], "chosen": chosen, **same, **rest}


def append(path: Path, record: Record, setup: dict[str, str]) -> None:
    """Add a record, and before it the setup if the file does not have it yet. Fields that are None are left out."""
    if path.exists() and len(kept := _whole_lines(path)) < path.stat().st_size:
        write_whole(path, kept)  # what an interrupted program left of a line
    with path.open("ab") as file:
        file.write(_lines([] if setup in read(path).setups else [setup], [record]))
        file.flush()
        os.fsync(file.fileno())


def amend(path: Path, change: Callable[[Record], Record]) -> None:
    """Write a records file anew, each record changed."""
    found = read(path)
    write_whole(path, _lines(found.setups, [change(record) for record in found.cells]))


def _lines(setups: Iterable[dict[str, str]], records: Iterable[Record]) -> bytes:
    entries: list[dict[str, Any]] = [{"setup": setup} for setup in setups]
    entries += [{k: v for k, v in dataclasses.asdict(record).items() if v is not None} for record in records]
    return "".join(json.dumps(entry, separators=(",", ":"), allow_nan=False) + "\n" for entry in entries).encode()


def _whole_lines(path: Path) -> bytes:
    content = path.read_bytes()
    return content[: content.rfind(b"\n") + 1]


def run(
    path: Path,
    cells: Sequence[Cell],
    measure: Callable[[Cell], Record],
    setup: Callable[[Cell], dict[str, str]] | None = None,
    *,
    again: Collection[str] = (),
    progress: bool = True,
) -> int:
    """Measure what the records in `path` do not have yet, in the order of the cells; returns how many were measured.

    `measure` raises `Inapplicable` for a cell that cannot be measured: it is named and left out. `setup` says on what a
    cell is measured, by default on this machine. `again` are methods that are measured anew.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    finished = {record.cell for record in read(path).cells if record.method not in again}
    waiting = [cell for cell in cells if cell not in finished]
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    measured = 0
    with Progress(*columns, TextColumn("{task.description}"), disable=not progress) as bar:
        task = bar.add_task("", total=len(cells), completed=len(cells) - len(waiting))
        for cell in waiting:
            bar.update(task, description=str(cell))
            try:
                append(path, measure(cell), setup(cell) if setup else this_setup())
                measured += 1
            except Inapplicable as reason:
                bar.console.print(f"{cell}: left out, {reason}")
            bar.advance(task)
    return measured


def check_names(what: str, chosen: Iterable[str], known: Iterable[str]) -> None:
    """Raise ValueError for a name that is not known."""
    known = tuple(known)
    if unknown := [x for x in chosen if x not in known]:
        raise ValueError(f"{what} {unknown[0]!r} is not one of {', '.join(known)}")


def rounded(x: float | None, digits: int = 5) -> float | None:
    """Round to few digits, less than intervals are wide; None for what is not finite."""
    return float(f"{x:.{digits}g}") if x is not None and np.isfinite(x) else None


def schedule_of(record: Record, noise: NoiseSchedule | None = None) -> Schedule:
    """Rebuild the schedule of a record, by default of one of the project's own models."""
    lams = np.array([-np.inf if lam is None else lam for lam in record.lams])
    origin = Origin(method=record.method, solver="any" if record.coefficients is None else NONSTATIONARY)
    noise = noise_of(record.model) if noise is None else noise
    return Schedule.from_lams(noise, lams, origin=origin, coefficients=record.coefficients)


@functools.cache
def noise_of(model: str) -> NoiseSchedule:
    """Read the noise schedule of one of the project's own models from its config; the network is not loaded."""
    return from_config(WEIGHTS / model / "scheduler", name=model)


def main_group(records: Sequence[Record]) -> list[Record]:
    """Keep the records of the seed, count and dtype that most have: only these are compared with each other."""
    groups = collections.Counter((r.seed, r.samples, r.dtype) for r in records)
    chosen = groups.most_common(1)[0][0] if groups else None
    return [r for r in records if (r.seed, r.samples, r.dtype) == chosen]


def this_setup() -> dict[str, str]:
    """Describe the machine, without its name, and the versions that figures and seconds depend on."""
    import diffusers
    import torch

    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.machine(),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        **versions(),
    }


# ---- command lines


def command(prog: str, doc: str | None) -> argparse.ArgumentParser:
    """Make a parser that describes itself by a module's docstring: its first line, and the rest below the options."""
    summary, _, examples = (doc or "").partition("\n\n")
    return argparse.ArgumentParser(
        prog=prog, description=summary, epilog=examples, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def names(text: str) -> tuple[str, ...]:
    """Read a comma-separated list."""
    return tuple(part.strip() for part in text.split(","))


def budgets(text: str) -> list[int]:
    """Read numbers of evaluations such as 4,6,8 or 4-8."""
    try:
        return parse_nfe(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def exit_code(work: Callable[[argparse.Namespace], int], args: argparse.Namespace, kept: str) -> int:
    """Run a command: 2 for bad input, 130 when interrupted, with a line on stderr; `kept` is what is not lost then."""
    try:
        return work(args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"interrupted; {kept} are kept, the same command goes on", file=sys.stderr)
        return 130
