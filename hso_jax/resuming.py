"""Lanes that can be interrupted: what a checkpoint of them is compared by, and their results as its records.

With several hosts process 0 alone reads and writes the file, and tells the others what it holds.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from hso_jax.noise import NoiseSchedule
from hso_jax.schedule import versions
from hso_jax.upper.checkpoint import Checkpoint, Records, damaged


def opened(
    path: str | os.PathLike[str], lanes: Sequence[Any], effort: Any, groups: int
) -> tuple[Checkpoint, list[Records]]:
    """The checkpoint of checked lanes at this effort, and the records of each group of them.

    It is one of the same versions only, for its bytes are to be theirs.

    Raises:
        ValueError: as `Checkpoint`, in every process.
        OSError: as `Checkpoint`; a ValueError in the processes that do not write.
    """
    arguments = {
        "count": len(lanes),
        "dtype": str(jax.dtypes.canonicalize_dtype(float)),
        "effort": described(effort),
        "lanes": [described(lane) for lane in lanes],
        "versions": versions(),
    }
    error: OSError | ValueError | None = None
    checkpoint = Checkpoint(None, {})
    records = []
    try:
        checkpoint = Checkpoint(path if jax.process_index() == 0 else None, arguments)
        records = [checkpoint.search(str(k), {}, fault) for k in range(groups)]
    except (OSError, ValueError) as caught:
        error = caught
    told = _from_first(None if error is None else str(error))
    if told is not None:
        checkpoint.close()
        raise error or ValueError(told)
    return checkpoint, records


def described(value: Any) -> Any:
    """What a result depends on, as a JSON value: options by name, arrays by a digest, functions by their name alone."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, NoiseSchedule):
        return f"{value.name} {_digest(jax.tree.leaves(value))}"
    if isinstance(value, (np.ndarray, jax.Array)):
        return _digest([value])
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {"kind": type(value).__name__, **described(fields)}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return described(value._asdict())
    if isinstance(value, Mapping):
        return {str(key): described(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [described(entry) for entry in value]
    named = value if hasattr(value, "__qualname__") else type(value)
    settings = getattr(value, "settings", None)
    name = f"{named.__module__}.{named.__qualname__}"
    return name if settings is None else {"kind": name, "settings": described(settings)}


def record_of(rows: Any) -> dict[str, Any]:
    """The results of some lanes, a pytree of arrays [L, ...], as a record: exact, also where they are not finite."""
    leaves = [np.ascontiguousarray(leaf) for leaf in jax.tree.leaves(rows)]
    arrays = [
        {"dtype": leaf.dtype.str, "shape": list(leaf.shape), "bytes": base64.b64encode(leaf.tobytes()).decode()}
        for leaf in leaves
    ]
    return {"lanes": len(leaves[0]), "arrays": arrays}


def fault(record: Any) -> str | None:
    """What is wrong with a record that was read."""
    if not isinstance(record, dict) or set(record) != {"lanes", "arrays"}:
        return " must be an object of lanes and arrays"
    count, arrays = record["lanes"], record["arrays"]
    if isinstance(count, bool) or not isinstance(count, int) or count < 1 or not isinstance(arrays, list):
        return " must have a number of lanes and a list of arrays"
    for i, array in enumerate(arrays):
        try:
            _array(array, count)
        except (TypeError, ValueError, KeyError, IndexError):
            return f".arrays[{i}] is no array of {count} rows"
    return None


def rows_of(records: Records, like: Callable[[], Any], total: int) -> tuple[list[Any], int]:
    """What the records have: for each a pytree of arrays [l, ...], and how many lanes these are.

    Args:
        records: of one search.
        like: asked if there are records: a pytree with the shapes [C, ...] and dtypes of a chunk's results.
        total: lanes of the search.

    Raises:
        ValueError: if they are not of that shape.
    """
    found = _from_first(records.done)
    if not found:
        return [], 0
    leaves, structure = jax.tree.flatten(like())
    wanted = [(leaf.dtype, leaf.shape[1:]) for leaf in leaves]
    parts, done = [], 0
    for i, record in enumerate(found):
        arrays = [_array(array, record["lanes"]) for array in record["arrays"]]
        done += record["lanes"]
        if [(a.dtype, a.shape[1:]) for a in arrays] != wanted or done > total:
            where = f"searches['{records.name}'].records[{i}]"
            raise damaged(records.checkpoint.path, f"{where} is not what this search finds")
        parts.append(jax.tree.unflatten(structure, arrays))
    return parts, done


def _array(array: Any, rows: int) -> np.ndarray:
    found = np.frombuffer(base64.b64decode(array["bytes"], validate=True), np.dtype(array["dtype"]))
    found = found.reshape(array["shape"])
    if found.shape[0] != rows:
        raise ValueError("another number of rows")
    return found


def _digest(arrays: Sequence[Any]) -> str:
    found = hashlib.sha256()
    for array in map(np.asarray, arrays):
        found.update(f"{array.dtype.str} {array.shape} ".encode() + array.tobytes())
    return found.hexdigest()[:16]


def _from_first(value: Any) -> Any:
    """A JSON value as process 0 has it, in every process."""
    if jax.process_count() == 1:
        return value
    content = np.frombuffer(json.dumps(value).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(content))))
    mine = content if jax.process_index() == 0 else np.zeros(size, np.uint8)
    return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(mine)).tobytes())
