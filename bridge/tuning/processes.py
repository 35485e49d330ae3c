"""Tuning on several devices: one process each, of which the first searches and all sample.

The processes are those of a `torch.distributed` group (`accelerate launch`, `torchrun`), each with the same pipeline
on its own device. Every process calls `tune` with the same arguments and returns the same result.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import distributed

from bridge.tuning.coordinates import Table
from bridge.tuning.models import Model, Seen
from bridge.tuning.partial import Part

Result = TypeVar("Result")


def together(model: Model, search: Callable[[Model], Result]) -> Result:
    """What `search` of the model returns, its samples made by all processes of the group; or of this one alone.

    What the first process raises all raise.
    """
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return search(model)
    if distributed.get_rank() > 0:
        return _serve(model)
    try:
        found = search(_Shared(model))
    except Exception as trouble:  # an interrupt is the launcher's to pass on: the others may be amid a call
        _tell(("failed", trouble))
        raise
    _tell(("found", found))
    return found


class _Shared:
    """The model in the first process: each process samples some of the rows."""

    def __init__(self, model: Model) -> None:
        self._model, self._alone = model, False
        self.part: Part = model.part
        self.guidance, self.count = model.guidance, model.count
        self.told: Mapping[str, Any] = model.told

    def run(self, table: Table, rows: Sequence[int], seen: Seen | None = None) -> torch.Tensor:
        """See `Model`; what is watched, and what gradients are taken of, is sampled here."""
        if self._alone or seen is not None or len(rows) == 1:
            return self._model.run(table, rows, seen)
        _tell(("run", (table, list(rows))))
        parts = _gathered(_sampled(self._model, table, rows))
        for part in parts:
            if isinstance(part, BaseException):
                raise part
        found = parts[0].new_empty((len(rows), *parts[0].shape[1:]))
        for rank, part in enumerate(parts):
            if part is not None:
                found[rank :: len(parts)] = part
        return found

    @contextlib.contextmanager
    def differentiable(self, recompute: bool) -> Iterator[None]:
        """See `Model`."""
        self._alone = True
        try:
            with self._model.differentiable(recompute):
                yield
        finally:
            self._alone = False


def _serve(model: Model) -> Any:
    """Sample what the first process asks for, until it has found something."""
    while True:
        what, told = _told()
        if what == "found":
            return told
        if what == "failed":
            raise told
        with torch.no_grad():
            _gathered(_sampled(model, *told))


def _sampled(model: Model, table: Table, rows: Sequence[int]) -> torch.Tensor | Exception | None:
    """This process' share of the rows, on the CPU; None if it has none."""
    own = list(rows)[distributed.get_rank() :: distributed.get_world_size()]
    try:
        return model.run(table, own).cpu() if own else None
    except Exception as trouble:  # the others wait for an answer
        return _sendable(trouble)


def _gathered(value: Any) -> list[Any]:
    found: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(found, value)
    return found


def _tell(message: tuple[str, Any]) -> None:
    what, told = message
    distributed.broadcast_object_list([(what, _sendable(told) if isinstance(told, Exception) else told)], src=0)


def _told() -> tuple[str, Any]:
    message: list[Any] = [None]
    distributed.broadcast_object_list(message, src=0)
    return message[0]


def _sendable(trouble: Exception) -> Exception:
    """One that can be pickled, and still says when memory ran out."""
    if type(trouble) in (ValueError, MemoryError, RuntimeError):
        return trouble
    return RuntimeError(f"{type(trouble).__name__}: {trouble}")
