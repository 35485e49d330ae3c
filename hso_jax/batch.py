"""Many lanes in one compiled program, in chunks, over all devices of all hosts. Knows no method.

A lane is a row of a pytree of arrays. No lane talks to another, so nothing is exchanged between them; a lane that
fails has a result that says so, beside the others' results.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from hso_jax.checkpoint import Records, record_of, rows_of
from hso_jax.compiling import compiler_options, stored, under_jax_defaults

Progress = Callable[[int, int], None]
"""Called with (lanes done, lanes in all)."""

Search = Callable[[Any, Any], Any]
"""(one lane, what all lanes share) -> its result: pytrees of arrays. Programs are kept by its identity."""

HOSTS, DEVICES = "hosts", "devices"
"""Axes of the mesh: the processes, and the devices of each."""


Factory = TypeVar("Factory", bound=Callable[..., Search])


_TEXTS: dict[Search, str] = {}


def by_arguments(factory: Factory) -> Factory:
    """The factory of searches, which makes one for equal arguments.

    A later process knows its program by their text, and by the text of the factory's file, if the arguments are plain.
    """
    file = _file_of(factory)

    @functools.lru_cache(maxsize=64)
    @functools.wraps(factory)
    def made(*arguments: Any, **options: Any) -> Search:
        search = factory(*arguments, **options)
        if file is not None and _plain((arguments, *options.values())):
            _TEXTS[search] = f"{factory.__module__}.{factory.__qualname__} {file} {arguments} {options}"
        return search

    return made  # type: ignore[return-value]


def _file_of(factory: Any) -> str | None:
    """A digest of the file that the factory is defined in, if it is one."""
    try:
        return hashlib.sha256(Path(factory.__code__.co_filename).read_bytes()).hexdigest()
    except (AttributeError, OSError):
        return None


def _plain(value: Any) -> bool:
    """Whether the text of a value tells all of it; what an object with functions does, it does not tell."""
    if isinstance(value, tuple) and not callable(value):
        return all(map(_plain, value))
    return value is None or type(value) in (str, bool, int, float)


class Split(NamedTuple):
    """How the devices of a host share the work of each lane, instead of taking lanes of their own.

    Attributes:
        shared: pytree of PartitionSpec for what all lanes share; the search adds up over the axis `DEVICES`.
        length: of the axes that are split: as many devices are used as divide it.
    """

    shared: Any
    length: int


def run(
    search: Search,
    lanes: Any,
    shared: Any,
    *,
    chunk: int,
    at_once: int | None = None,
    split: Split | None = None,
    progress: Progress | None = None,
    records: Records | None = None,
) -> Any:
    """The results of all lanes, NumPy arrays with a leading axis [L], in their order.

    With several hosts (`jax.distributed`) every process calls this with the same lanes and gets all results.

    Args:
        search: a pure function of one lane, the same object for the same computation.
        lanes: pytree of NumPy arrays [L, ...], L >= 1.
        shared: pytree of NumPy arrays.
        chunk: lanes a call for each taker of lanes, at most: bounds the memory, and says how often progress is told.
        at_once: lanes that are computed together, which a chunk has at least; all of a chunk by default.
        split: see `Split`; by default each device takes lanes of its own.
        progress: called after each chunk, and with what the records have before the first.
        records: each chunk's results are appended to them; lanes that they have already are not searched again. With
            several hosts those of process 0 count.
    """
    mesh = _mesh(split)
    chunk = max(chunk, at_once or 1)
    takers = mesh.size if split is None else mesh.shape[HOSTS]
    total = len(jax.tree.leaves(lanes)[0])
    calls = -(-total // (takers * chunk))
    size = takers * -(-total // (takers * calls))  # as even as can be: what fills the last chunk is wasted
    spread = PartitionSpec((HOSTS, DEVICES)) if split is None else PartitionSpec(HOSTS)
    specs = PartitionSpec() if split is None else split.shared
    jitted = program(search, mesh, spread, specs, at_once)
    name = repr((_TEXTS.get(search, search), spread, specs, at_once))
    shared = _placed(shared, mesh, specs)
    parts: list[Any] = []
    done = 0
    if records is not None:
        first = jax.tree.map(lambda x: jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype), lanes)
        parts, done = rows_of(records, lambda: under_jax_defaults(jax.eval_shape)(jitted, first, shared), total)
        if progress is not None and done:
            progress(done, total)

    def start(begin: int) -> Any:
        # The last chunk is filled up with the last lane: one shape, one compilation.
        rows = np.minimum(np.arange(begin, begin + size), total - 1)
        here = _placed(jax.tree.map(lambda column: column[rows], lanes), mesh, spread)
        return under_jax_defaults(lambda: stored(jitted, name, here, shared)(here, shared))()

    ahead = start(done) if done < total else None
    for begin in range(done, total, size):
        found, ahead = ahead, start(begin + size) if begin + size < total else None  # the device waits for no host
        found = multihost_utils.process_allgather(found, tiled=True) if jax.process_count() > 1 else found
        kept = min(size, total - begin)
        parts.append(jax.tree.map(lambda x: np.asarray(x)[:kept], found))  # noqa: B023
        if records is not None:
            records.add(record_of(parts[-1]))
        if progress is not None:
            progress(begin + kept, total)
    return jax.tree.map(lambda *xs: np.concatenate(xs), *parts)


@functools.lru_cache(maxsize=64)
def program(
    search: Search, mesh: Mesh, spread: PartitionSpec, specs: Any, at_once: int | None
) -> Callable[[Any, Any], Any]:
    """The compiled search of one chunk: (lanes [C, ...], shared) -> results [C, ...]."""

    def every(lanes: Any, shared: Any) -> Any:
        def one(lane: Any) -> Any:
            return search(lane, shared)

        if at_once is None:
            return jax.vmap(one)(lanes)
        return jax.lax.map(one, lanes, batch_size=at_once if at_once > 1 else None)

    sharded = jax.shard_map(every, mesh=mesh, in_specs=(spread, specs), out_specs=spread, check_vma=False)
    return jax.jit(sharded, compiler_options=compiler_options(mesh.devices.flat[0].platform))


def _mesh(split: Split | None) -> Mesh:
    hosts: dict[int, list[jax.Device]] = {}
    for device in jax.devices():
        hosts.setdefault(device.process_index, []).append(device)
    use = min(len(devices) for devices in hosts.values())
    while split is not None and split.length % use:
        use -= 1
    return Mesh(np.array([devices[:use] for _, devices in sorted(hosts.items())]), (HOSTS, DEVICES))


def _placed(tree: Any, mesh: Mesh, specs: Any) -> Any:
    """Host arrays, the same in every process, as global arrays over the mesh; specs as a prefix of the tree."""

    def place(spec: PartitionSpec, part: Any) -> Any:
        sharding = NamedSharding(mesh, spec)
        return jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, sharding, lambda index: x[index]), part)

    return jax.tree.map(place, specs, tree, is_leaf=lambda leaf: isinstance(leaf, PartitionSpec))
