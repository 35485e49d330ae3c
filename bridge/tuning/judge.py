"""How far samples are from the converged ones, by schedule or by point: errors, gradients and residuals, in a budget.

The converged samples are made once and kept beside the checkpoint (`targets`). What was judged is recorded in the
checkpoint (`Judge`), so that a call that was interrupted asks the network for nothing twice.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import hashlib
import io
import itertools
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from bridge.sampling import converged
from bridge.tuning import gits
from bridge.tuning.coordinates import Coordinates, Table, table_at
from bridge.tuning.models import Model
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

Error = Callable[[torch.Tensor, torch.Tensor], Any]
"""(samples, converged samples) [n, ...] -> a number, the smaller the better."""

Score = Callable[[Schedule], Any]
"""Schedule -> a number, the smaller the better."""


class SpentError(Exception):
    """The budget does not cover another judgement."""


class Residuals(NamedTuple):
    """Of some samples at a point: the logarithm of their root-mean-square error, and [n, S] sketches of them.

    The mean of squares of the sketches is about the sum of all squares.
    """

    value: float
    rows: np.ndarray


class Judge:
    """The error of a model's samples; what was found out is recorded, and not asked of the network again.

    Attributes:
        squares: whether the error is a sum of squares, with residuals.
        evaluations: of the network so far, each of a single sample; guidance does not double them.
        notes: what had to be done otherwise than asked, in words.
        coordinates: of the points that are asked for; set before the first of them.
    """

    coordinates: Coordinates

    def __init__(
        self,
        model: Model,
        records: Records,
        targets: torch.Tensor,
        *,
        budget: int,
        spent: int = 0,
        batch: int = 1,
        error: Error | None = None,
        detail: float = 0.0,
    ) -> None:
        """Targets [count, ...] are the converged samples, which took `spent` evaluations of the budget."""
        self._model, self._targets, self._batch, self._error = model, targets, batch, error
        self.squares, self.budget, self.evaluations = error is None, budget, spent
        self._filter = _detail_filter(targets, detail) if self.squares and detail else None
        self._records, self._done = records, 0
        self._recompute = False
        self.notes = list[str]()

    def affordable(self, nfe: int, rows: Sequence[int]) -> int:
        """Judgements of these samples by N evaluations each that the rest of the budget covers."""
        return (self.budget - self.evaluations) // (nfe * len(rows))

    def errors(self, schedule: Schedule, rows: Sequence[int]) -> np.ndarray:
        """[len(rows)] mean square error of each sample by a schedule's solver, or the caller's error of its batch.

        It raises SpentError before any evaluation, as the methods below do.
        """
        cost = schedule.nfe * len(rows)
        found = self._ask("errors", cost, lambda: {"errors": [*map(_finite, self._each(schedule, rows)[0])]})["errors"]
        return np.array([np.nan if x is None else x for x in found], np.float64)

    def value(self, place: np.ndarray | Schedule, rows: Sequence[int]) -> float:
        """Logarithm of the samples' root-mean-square error at a point or by a schedule's solver; or the caller's."""
        if isinstance(place, Schedule):
            return self.of(self.errors(place, rows))
        make = lambda: {"value": _finite(self.of(self._each(self.coordinates.table(place), rows)[0]))}  # noqa: E731
        return _value(self._ask("value", self.coordinates.nfe * len(rows), make))

    def of(self, errors: np.ndarray) -> float:
        """The value of samples that have these errors."""
        mean = float(np.mean(errors))
        if not self.squares:
            return mean
        return 0.5 * float(np.log(mean)) if mean > 0 else float("nan")

    def residuals(self, z: np.ndarray, rows: Sequence[int]) -> Residuals:
        """The value with the samples' residuals; see `value`."""

        def make() -> dict[str, Any]:
            errors, sketches = self._each(self.coordinates.table(z), rows, sketched=True)
            return {"value": _finite(self.of(errors)), "rows": _packed(np.concatenate(sketches))}

        found = self._ask("residuals", self.coordinates.nfe * len(rows), make)
        return Residuals(_value(found), _unpacked(found["rows"], len(rows)) / np.sqrt(len(rows)))

    def gradient(self, z: np.ndarray, rows: Sequence[int]) -> tuple[float, np.ndarray]:
        """The value and its gradient in z; see `value`.

        It raises MemoryError where there is not enough for one sample's gradient, nothing of the network kept, and
        ValueError if the samples do not depend on the nodes by autograd.
        """

        def make() -> dict[str, Any]:
            value, slope = self._slope(z, rows)
            return {"value": _finite(value), "rows": _packed(slope[None])}

        found = self._ask("gradient", GRADIENT * self.coordinates.nfe * len(rows), make)
        return _value(found), _unpacked(found["rows"], 1)[0]

    def _ask(self, kind: str, cost: int, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        if self.evaluations + cost > self.budget:
            raise SpentError
        known = self._done < len(self._records.done)
        record = self._records.done[self._done] if known else {"kind": kind, "cost": cost, **make()}
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
    def _each(
        self, steps: Table | Schedule, rows: Sequence[int], sketched: bool = False
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        """[len(rows)] errors, and sketches of the residuals where they are wanted."""
        steps = steps if isinstance(steps, Schedule) else Table(*(x.tolist() for x in steps))
        errors, sketches, place = list[float](), list[np.ndarray](), 0
        while place < len(rows):
            part = rows[place : place + self._batch]
            try:
                found, target = self._pair(steps, part)
            except (RuntimeError, MemoryError) as trouble:
                self._smaller(trouble)
                continue
            if self._error is not None:
                errors += [float(self._error(found, target))] * len(part)
            else:
                flat = self._residual(found, target).double()
                errors += flat.square().mean(1).tolist()
                if sketched:
                    sketches.append(_sketched(flat.cpu(), part))
            place += len(part)
        return np.array(errors), sketches

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
                if not _is_memory(trouble):
                    raise ValueError(f"no gradient through the model ({trouble}); use by='differences'") from trouble
                self._smaller(trouble, gradients=True)
                continue
            moved = (table.timestep, table.alpha, table.sigma)
            if len(arrays.carry) > 1 and all(x.grad is None or not x.grad[1:].any() for x in moved):
                raise ValueError("the network's output does not depend on the noise level by autograd")
            total += float(error.detach()) * (len(part) / len(rows))
            for sum_, x in zip(slopes, table, strict=True):
                sum_ += 0.0 if x.grad is None else x.grad.numpy()
            place += len(part)
        slope = self.coordinates.pull(z, slopes)
        return self.of(np.array([total])), slope if self._error else 0.5 * slope / total

    def _pair(self, steps: Table | Schedule, rows: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        found = self._model.run(steps, rows)
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

    def _smaller(self, trouble: BaseException, gradients: bool = False) -> None:
        """After the memory ran out: keep less. Raises what is no such trouble, or MemoryError where nothing is left."""
        if not _is_memory(trouble):
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

    def __init__(self, score: Score, model: Model, records: Records, budget: int) -> None:
        super().__init__(model, records, torch.empty(0), budget=budget)
        self.squares, self._score = False, score
        self._known: dict[str, float] = {}

    def affordable(self, nfe: int, rows: Sequence[int]) -> int:
        """Scores that are left."""
        return self.budget - self.evaluations

    def errors(self, schedule: Schedule, rows: Sequence[int]) -> np.ndarray:
        """[1] the score, NaN where it is not finite; it is of no samples."""
        key = hashlib.sha256(np.rint(schedule.t / SAME).tobytes())
        if schedule.coefficients is not None:
            key.update(np.rint(schedule.coefficients / SAME).tobytes())
        name = f"score {key.hexdigest()[:16]}"
        if name not in self._known:
            self._known[name] = _value(self._ask(name, 1, lambda: {"value": _finite(self._scored(schedule))}))
        return np.array([self._known[name]])

    def value(self, place: np.ndarray | Schedule, rows: Sequence[int]) -> float:
        """The score."""
        if not isinstance(place, Schedule):
            if not self.coordinates.allowed(place):
                return float("nan")
            place = self.coordinates.schedule(place, Origin(method="tuned", solver=self.coordinates.solver))
        return float(self.errors(place, rows)[0])

    def _scored(self, schedule: Schedule) -> float:
        value = self._score(schedule)
        try:
            return float(value)
        except (TypeError, ValueError) as error:
            raise ValueError(f"score returned {brief(value)}; return a number, the smaller the better") from error


def _is_memory(trouble: BaseException) -> bool:
    return isinstance(trouble, (MemoryError, torch.OutOfMemoryError)) or "out of memory" in str(trouble).lower()


def _detail_filter(targets: torch.Tensor, detail: float) -> torch.Tensor:
    """[height, width] what each spatial frequency's error is multiplied by: its variance^(-detail/2) in the targets.

    Scaled so that the targets' own variance weighs what it does without. Frequencies are binned by their length.
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


def _finite(value: float) -> float | None:
    """A number as files have it: None where it is not finite."""
    return float(value) if np.isfinite(value) else None


def _packed(rows: np.ndarray) -> str:
    kind = "f8" if rows.dtype == np.float64 else "f4"
    return kind + base64.b64encode(rows.astype(f"<{kind}").tobytes()).decode()


def _unpacked(text: str, rows: int) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text[2:]), f"<{text[:2]}").astype(np.float64).reshape(rows, -1)


class Made(NamedTuple):
    """[count, ...] converged samples on the CPU, and the costs of steps on their trajectories (`gits`)."""

    samples: torch.Tensor
    costs: np.ndarray | None


def targets(
    model: Model,
    file: Checkpoint,
    batches: Sequence[range],
    steps: int,
    costed: int = 0,
    made: Callable[[int], None] = lambda evaluations: None,
) -> Made:
    """The converged samples, from beside the checkpoint or made now by so many steps, in batches of noises.

    The trajectories of the first `costed` samples are watched; `made` is called with the evaluations so far. It raises
    ValueError for samples that are not finite, or not those of the checkpoint.
    """
    kept = file.records("teacher")
    beside = None if file.path is None else file.path.with_name(f"{file.path.name}.samples.npz")
    if kept.done and beside is not None and beside.exists():
        return _read(beside, kept.done[0]["sha256"])
    found = _converge(model, batches, steps, costed, made)
    if beside is not None:
        content, arrays = io.BytesIO(), {"samples": found.samples.numpy()}
        np.savez(content, **arrays if found.costs is None else {**arrays, "costs": found.costs})
        write_whole(beside, content.getvalue())
    digest = _digest(found)
    if kept.done and kept.done[0]["sha256"] != digest:
        raise ValueError(f"the converged samples are not those of checkpoint {file.path}: the model has changed")
    if not kept.done:
        kept.add({"sha256": digest})
    return found


def _read(file: Path, digest: str) -> Made:
    try:
        with np.load(io.BytesIO(file.read_bytes())) as found:
            made = Made(torch.from_numpy(found["samples"]), found.get("costs"))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        made = None
    if made is None or _digest(made) != digest:
        raise ValueError(f"{file} is not what its checkpoint was made with; remove both, or put it back")
    return made


def _keep(xs: list[torch.Tensor], x0s: list[torch.Tensor], x: torch.Tensor, x0: torch.Tensor) -> None:
    xs.append(x.float().cpu())
    x0s.append(x0.float().cpu())


@torch.no_grad()
def _converge(model: Model, batches: Iterable[range], steps: int, costed: int, made: Callable[[int], None]) -> Made:
    origin = Origin(method="converged", solver=model.solver or TEACHER_SOLVER)
    schedule = dataclasses.replace(converged(model.part.noise, steps), origin=origin)
    parts, costs = list[torch.Tensor](), list[np.ndarray]()
    for rows in batches:
        xs, x0s = list[torch.Tensor](), list[torch.Tensor]()

        watched = rows.stop <= costed
        seen = functools.partial(_keep, xs, x0s) if watched else None
        parts.append(model.run(schedule, rows, seen).cpu())
        if watched:
            table = table_at(model.part.noise, schedule, TEACHER_SOLVER)
            costs.append(gits.euler_costs([*xs, parts[-1].float()], x0s, table.alpha.tolist(), table.sigma.tolist()))
        made(rows.stop * steps)
    samples = torch.cat(parts)
    if not samples.isfinite().all():
        raise ValueError(f"the converged samples ({steps} steps) are not finite; try another dtype")
    return Made(samples, np.sum(costs, axis=0) if costs else None)


def batches(size: int, *counts: int) -> list[range]:
    """Noises in parts, each in batches."""
    ends = list(itertools.accumulate(counts, initial=0))
    return [range(i, min(i + size, b)) for a, b in itertools.pairwise(ends) for i in range(a, b, size)]


def _digest(made: Made) -> str:
    digest = hashlib.sha256(np.ascontiguousarray(made.samples.numpy()).tobytes())
    digest.update(b"" if made.costs is None else made.costs.tobytes())
    return digest.hexdigest()
