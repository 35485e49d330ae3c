"""How far a point's samples are from the converged ones: value, gradient and residuals, within a budget.

The converged samples are made once and kept beside the checkpoint (`targets`). What was judged is recorded in the
checkpoint (`Judge`), so that a call that was interrupted asks the network for nothing twice.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from bridge.sampling import converged
from bridge.tuning import gits
from bridge.tuning.coordinates import Coordinates, Table, table_at, with_coefficients
from bridge.tuning.models import Model
from bridge.tuning.options import Options, Score
from hso_jax import solvers
from hso_jax.checkpoint import Checkpoint, Records, damaged
from hso_jax.checks import brief
from hso_jax.files import write_whole
from hso_jax.schedule import Origin, Schedule

TEACHER_SOLVER = "dpmpp-2m"

GRADIENT = 3
"""Evaluations that one with its gradient counts as: a pass back costs what two forward do."""

SAME = 1e-5
"""Schedules that differ by less, in t and coefficients, are scored once: a hundredth of a training level."""

SKETCH = 256
"""Numbers that the residual of one sample is summed to, with random signs: steps need its products alone."""


class SpentError(Exception):
    """The budget does not cover another judgement."""


class Residuals(NamedTuple):
    """Of some samples at a point.

    Attributes:
        value: logarithm of their root-mean-square error.
        rows: [n, S] sketches of their residuals; the mean of squares is about the sum of all squares.
    """

    value: float
    rows: np.ndarray


class Judge:
    """The error of a model's samples at points; what was found out is recorded, and not asked of the network again.

    Attributes:
        squares: whether the error is a sum of squares, with residuals.
        evaluations: of the network so far, each of a single sample; guidance does not double them.
        notes: what had to be done otherwise than asked, in words.
        coordinates: of the points that are asked for; set before the first of them.
    """

    coordinates: Coordinates

    def __init__(self, model: Model, options: Options, base: str, targets: torch.Tensor, records: Records) -> None:
        """Targets [count, ...] are the converged samples; `base` is the solver of schedules that name none."""
        self._model, self._options, self._base, self._targets = model, options, base, targets
        self._nfe, self._batch, self._error = model.part.steps(options.nfe), options.batch, options.error
        self.squares = options.error is None
        self._filter = detail_filter(targets, options.detail) if self.squares and options.detail else None
        self._records, self._done = records, 0
        self._recompute = False
        self.evaluations, self.notes = len(targets) * options.teacher_steps, list[str]()

    def affordable(self, rows: Sequence[int]) -> int:
        """Judgements of these samples that the rest of the budget covers."""
        return (self._options.budget - self.evaluations) // (self._nfe * len(rows))

    def value(self, place: np.ndarray | Schedule, rows: Sequence[int]) -> float:
        """Logarithm of the root-mean-square error of these samples at a place, or the caller's error of them.

        Args:
            place: a point; or a schedule with its coefficients, or else of the solver that it names or is asked for.
            rows: indices of samples.

        Raises:
            SpentError: before any evaluation.
        """

        def make() -> dict[str, Any]:
            table = self._table(place) if isinstance(place, Schedule) else self.coordinates.table(place)
            return {"value": self._sum(table, rows, None)}

        return _value(self._ask("value", len(rows), make))

    def _table(self, schedule: Schedule) -> Table:
        asked = self._options.solver
        known = schedule.solver if asked == solvers.NONSTATIONARY else asked
        return table_at(self._model.part.noise, schedule, known if known in solvers.SOLVERS else self._base)

    def residuals(self, z: np.ndarray, rows: Sequence[int]) -> Residuals:
        """The value with the samples' residuals; see `value`."""

        def make() -> dict[str, Any]:
            sketches: list[np.ndarray] = []
            value = self._sum(self.coordinates.table(z), rows, sketches)
            return {"value": value, "rows": _packed(np.concatenate(sketches))}

        found = self._ask("residuals", len(rows), make)
        return Residuals(_value(found), _unpacked(found["rows"], len(rows)) / np.sqrt(len(rows)))

    def gradient(self, z: np.ndarray, rows: Sequence[int]) -> tuple[float, np.ndarray]:
        """The value and its gradient in z; see `value`.

        Raises:
            MemoryError: where there is not enough for one sample's gradient, nothing of the network kept.
            ValueError: if the samples do not depend on the nodes by autograd.
        """

        def make() -> dict[str, Any]:
            value, slope = self._slope(z, rows)
            return {"value": value, "rows": _packed(slope[None])}

        found = self._ask("gradient", GRADIENT * len(rows), make)
        return _value(found), _unpacked(found["rows"], 1)[0]

    def _ask(self, kind: str, cost: int, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        cost *= self._nfe
        if self.evaluations + cost > self._options.budget:
            raise SpentError
        known = self._done < len(self._records.done)
        record = self._records.done[self._done] if known else {"kind": kind, "cost": cost, **make()}
        if not known and not np.isfinite(record["value"]):
            record["value"] = None  # as files have it
        if known and (record["kind"], record["cost"]) != (kind, cost):
            if kind == "gradient":
                raise MemoryError("given up before the search was interrupted")
            raise damaged(self._records.checkpoint.path, f"records[{self._done}] is of another judgement")
        if not known:
            self._records.add(record)
        self._done += 1
        self.evaluations += cost
        return record

    @torch.no_grad()
    def _sum(self, table: Table, rows: Sequence[int], sketches: list[np.ndarray] | None) -> float:
        """The value; sketches are appended to the list, if there is one."""
        plain, total, place = Table(*(x.tolist() for x in table)), 0.0, 0
        while place < len(rows):
            part = rows[place : place + self._batch]
            try:
                found, target = self._pair(plain, part)
            except (RuntimeError, MemoryError) as trouble:
                self._smaller(trouble)
                continue
            if self._error is not None:
                total += float(self._error(found, target)) * len(part)
            else:
                flat = self._residual(found, target).double()
                total += float(flat.square().sum()) / flat.shape[1]
                if sketches is not None:
                    sketches.append(_sketched(flat.cpu(), part))
            place += len(part)
        return self._scaled(total / len(rows))

    def _slope(self, z: np.ndarray, rows: Sequence[int]) -> tuple[float, np.ndarray]:
        arrays = self.coordinates.table(z)
        total, slopes, place = 0.0, Table(*(np.zeros_like(x) for x in arrays)), 0
        while place < len(rows):
            part = rows[place : place + self._batch]
            table = Table(*(torch.from_numpy(x.copy()).requires_grad_(True) for x in arrays))
            try:
                with self._model.differentiable(self._recompute):
                    found, target = self._pair(table, part)
                    error = self._error(found, target) if self._error else self._residual(found, target).square().mean()
                    if not (isinstance(error, torch.Tensor) and error.requires_grad):
                        raise ValueError("the error does not depend on the samples by autograd; use by='differences'")
                    (error * (len(part) / len(rows))).backward()
            except (RuntimeError, MemoryError) as trouble:
                if not is_memory(trouble):
                    raise ValueError(f"no gradient through the model ({trouble}); use by='differences'") from trouble
                self._smaller(trouble, gradients=True)
                continue
            moved = (table.timestep, table.alpha, table.sigma)
            if self._nfe > 1 and all(x.grad is None or not x.grad[1:].any() for x in moved):
                raise ValueError("the network's output does not depend on the noise level by autograd")
            total += float(error.detach()) * (len(part) / len(rows))
            for sum_, x in zip(slopes, table, strict=True):
                sum_ += 0.0 if x.grad is None else x.grad.numpy()
            place += len(part)
        slope = self.coordinates.pull(z, slopes)
        return self._scaled(total), slope if self._error else 0.5 * slope / total

    def _pair(self, table: Table, rows: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        found = self._model.run(table, rows)
        target = self._targets[list(rows)].to(found.device)
        if found.shape != target.shape:
            raise ValueError(f"the model made samples {tuple(found.shape)} now, {tuple(target.shape)} before")
        return found, target

    def _residual(self, found: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """[n, D] weighted so that the mean of squares is the error's."""
        difference = found - target
        if self._filter is not None:
            waves = torch.fft.fft2(difference) * self._filter.to(difference.device)
            difference = torch.fft.ifft2(waves).real
        return difference.flatten(1)

    def _scaled(self, mean: float) -> float:
        if self._error is not None:
            return mean
        return 0.5 * float(np.log(mean)) if mean > 0 else float("nan")

    def _smaller(self, trouble: BaseException, gradients: bool = False) -> None:
        """After the memory ran out: keep less. Raises what is no such trouble, or MemoryError where nothing is left."""
        if not is_memory(trouble):
            raise trouble
        if gradients and not self._recompute:
            self._recompute, note = True, "activations of the network are computed again for gradients"
        elif self._batch > 1:
            self._batch, note = 1, "one sample at a time"
        else:
            raise MemoryError("not enough memory for a single sample") from trouble
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.notes.append(f"out of memory: {note}")


class ScoreJudge(Judge):
    """The caller's own number for schedules, in place of an error of samples; each is asked for once."""

    def __init__(self, score: Score, model: Model, options: Options, base: str, records: Records) -> None:
        super().__init__(model, options, base, torch.empty(0), records)
        self.squares, self._nfe, self._score = False, 1, score
        self._known: dict[str, float] = {}

    def value(self, place: np.ndarray | Schedule, rows: Sequence[int]) -> float:
        """The score, NaN where it is not finite; it is of no samples, whatever the rows. See `Judge.value`."""
        if isinstance(place, Schedule):
            schedule = with_coefficients(place, self._model.part.noise, self._options.solver, self._base)
        else:
            schedule = self.coordinates.schedule(place, Origin(method="tuned", solver=self.coordinates.solver))
        key = hashlib.sha256(np.rint(schedule.t / SAME).tobytes())
        if schedule.coefficients is not None:
            key.update(np.rint(schedule.coefficients / SAME).tobytes())
        name = f"score {key.hexdigest()[:16]}"
        if name not in self._known:
            self._known[name] = _value(self._ask(name, 1, lambda: {"value": self._scored(schedule)}))
        return self._known[name]

    def _scored(self, schedule: Schedule) -> float:
        value = self._score(schedule)
        try:
            return float(value)
        except (TypeError, ValueError) as error:
            raise ValueError(f"score returned {brief(value)}; return a number, the smaller the better") from error


def is_memory(trouble: BaseException) -> bool:
    """Whether an exception says that memory ran out."""
    return isinstance(trouble, (MemoryError, torch.OutOfMemoryError)) or "out of memory" in str(trouble).lower()


def detail_filter(targets: torch.Tensor, detail: float) -> torch.Tensor:
    """[height, width] what each spatial frequency's error is multiplied by: its variance^(-detail/2) in the targets.

    Scaled so that the targets' own variance weighs what it does without. Frequencies are binned by their length.

    Raises:
        ValueError: for samples without two last axes in space.
    """
    if targets.dim() < 4 or min(targets.shape[-2:]) < 4:
        raise ValueError(
            f"detail is {detail}, and the samples have shape {tuple(targets.shape[1:])}: frequencies need height and "
            "width as the last two axes; use detail=0, or a function of the samples as error"
        )
    spectrum = torch.fft.fft2(targets.double() - targets.double().mean(0)).abs().square()
    spectrum = spectrum.flatten(0, -3).mean(0)
    rows, columns = (torch.fft.fftfreq(n, dtype=torch.float64) for n in targets.shape[-2:])
    bins = torch.round((rows[:, None] ** 2 + columns[None] ** 2).sqrt() * min(targets.shape[-2:])).long()
    count = torch.bincount(bins.flatten()).clamp_min(1)
    variance = (torch.bincount(bins.flatten(), spectrum.flatten()) / count)[bins]
    weight = variance.clamp_min(1e-6 * float(variance.max())) ** -detail
    weight *= variance.sum() / (weight * variance).sum()
    return weight.sqrt().float()


@functools.lru_cache(maxsize=4)
def _places(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(size)
    signs = torch.randint(0, 2, (size,), generator=generator, dtype=torch.int8) * 2 - 1
    return signs, torch.randint(0, SKETCH, (size,), generator=generator)


def _sketched(flat: torch.Tensor, rows: Sequence[int]) -> np.ndarray:
    """[n, S] float32 sums of the entries of residuals [n, D] with random signs, as they are where D is small."""
    flat = flat / flat.shape[1] ** 0.5
    if flat.shape[1] <= SKETCH:
        return flat.float().numpy()
    signs, places = _places(flat.shape[1])
    sums = torch.zeros(len(rows), SKETCH, dtype=torch.float64)
    return sums.index_add_(1, places, flat * signs).float().numpy()


def _value(record: Mapping[str, Any]) -> float:
    return float("nan") if record["value"] is None else float(record["value"])


def _packed(rows: np.ndarray) -> str:
    kind = "f8" if rows.dtype == np.float64 else "f4"
    return kind + base64.b64encode(rows.astype(f"<{kind}").tobytes()).decode()


def _unpacked(text: str, rows: int) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text[2:]), f"<{text[:2]}").astype(np.float64).reshape(rows, -1)


class Made(NamedTuple):
    """The teacher's work.

    Attributes:
        samples: [count, ...] on the CPU.
        costs: of steps on the trajectories of the samples to tune on, where they are searched by "gits"; see `gits`.
    """

    samples: torch.Tensor
    costs: np.ndarray | None


def targets(model: Model, options: Options, file: Checkpoint) -> Made:
    """The converged samples, from beside the checkpoint or made now.

    Raises:
        ValueError: for samples that are not finite, or not those of the checkpoint.
    """
    kept = file.search("teacher", {}, fault)
    beside = None if file.path is None else file.path.with_name(f"{file.path.name}.samples.npz")
    if kept.done and beside is not None and beside.exists():
        return _read(beside, kept.done[0]["sha256"])
    made = _converge(model, options)
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
def _converge(model: Model, options: Options) -> Made:
    table = table_at(model.part.noise, converged(model.part.noise, options.teacher_steps), TEACHER_SOLVER)
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
        if options.progress is not None:
            options.progress(rows.stop * options.teacher_steps, options.budget, None)
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
