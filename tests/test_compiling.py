"""Compiled programs that a later process finds without tracing them."""

from __future__ import annotations

import dataclasses
import functools
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import solver_error_cells as cells
from jax.experimental.compilation_cache import compilation_cache
from problems import SD

import hso_jax
from hso_jax import batch, compiling, solvers
from hso_jax.searches import checked
from hso_jax.solver_error_method import errors_on
from hso_jax.solvers.multistep import ddim, dpmpp

TRACED: list[int] = []


@batch.by_arguments
def powers(power: int, function: Callable[[Any], Any] | None = None) -> batch.Search:
    """A search: the sum of some powers of a lane's numbers."""

    def search(lane: Any, shared: Any) -> Any:
        TRACED.append(power)
        return {"sum": jnp.sum(lane**power) + shared, "lane": lane}

    return search


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    compilation_cache.reset_cache()  # JAX's own looks for its folder once
    yield tmp_path
    jax.config.update("jax_compilation_cache_dir", before)
    compilation_cache.reset_cache()


def found(search: Any, lanes: int = 3) -> tuple[list[float], bool]:
    """What it finds in a process that has compiled nothing yet, and whether it was traced."""
    TRACED.clear()
    batch.program.cache_clear()
    compiling._in_memory.cache_clear()
    rows = np.arange(2.0 * lanes, dtype=np.float32).reshape(lanes, 2)
    return batch.run(search, rows, np.float32(1.0), chunk=2)["sum"].tolist(), bool(TRACED)


def test_a_program_is_traced_once_for_all_processes(folder: Path) -> None:
    sums = [2.0, 14.0, 42.0]
    assert found(powers(2)) == (sums, True)
    assert found(powers(2)) == (sums, False)
    assert found(powers(1)) == ([2.0, 6.0, 10.0], True)
    assert found(powers(2), lanes=1) == (sums[:1], True)  # of another shape
    with jax.default_matmul_precision("high"):
        assert found(powers(2)) == (sums, True)
    assert len(list(folder.glob("hso-jax-*"))) == 4


def test_a_file_that_is_cut_off_is_made_again(folder: Path) -> None:
    sums, _ = found(powers(2))
    (file,) = folder.glob("hso-jax-*")
    whole = file.read_bytes()
    wrong = bytearray(whole)
    wrong[len(whole) // 2] ^= 255
    for content in (b"", whole[:100], whole[: len(whole) // 2], b"text", bytes(wrong)):
        file.write_bytes(content)
        assert found(powers(2)) == (sums, True)
    assert found(powers(2)) == (sums, False)


def test_a_file_of_another_program_is_made_again(folder: Path) -> None:
    sums, _ = found(powers(2))
    (file,) = folder.glob("hso-jax-*")
    found(powers(1))
    (other,) = set(folder.glob("hso-jax-*")) - {file}
    other.replace(file)
    assert found(powers(2)) == (sums, True)


def test_a_program_that_jax_has_kept_too_runs_when_it_is_found(folder: Path) -> None:
    before = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    try:
        sums, _ = found(powers(2))
        assert jax.jit(lambda x: x + 1)(1.0) == 2.0 and len(list(folder.iterdir())) > 1  # JAX's cache is on
        (file,) = folder.glob("hso-jax-*")
        file.unlink()
        assert found(powers(2)) == (sums, True)
        assert found(powers(2)) == (sums, False)
    finally:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", before)


def test_another_process_runs_a_program_that_calls_lapack(tmp_path: Path) -> None:
    program = tmp_path / "spectrum.py"
    program.write_text("""if True:
        import sys
        import jax, numpy as np
        from jax import numpy as jnp
        from hso_jax import batch
        jax.config.update("jax_compilation_cache_dir", sys.argv[1])

        @batch.by_arguments
        def spectrum(size):
            def search(lane, shared):
                print("traced")
                return {"values": jnp.linalg.eigh(lane * jnp.eye(size))[0]}
            return search

        print(batch.run(spectrum(2), np.ones(1, np.float32), (), chunk=1)["values"].tolist())
    """)
    told = [
        subprocess.run(
            [sys.executable, program, str(tmp_path)], capture_output=True, text=True, check=True, timeout=300
        ).stdout.split("\n")
        for _ in range(2)
    ]
    assert told[0][-2:] == told[1][-2:] == ["[[1.0, 1.0]]", ""]
    assert "traced" in told[0] and "traced" not in told[1]


@dataclasses.dataclass(frozen=True)
class Times:
    """A function that is an object; its text does not tell what it does."""

    factor: float

    def __call__(self, x: Any) -> Any:
        return self.factor * x


class Plus(NamedTuple):
    """Another one."""

    term: float

    def __call__(self, x: Any) -> Any:
        return x + self.term


def test_what_is_not_told_by_its_text_is_not_stored(folder: Path) -> None:
    for function in (abs, Times(2.0), Plus(2.0)):
        assert found(powers(2, function))[1] and found(powers(2, function))[1]
    assert found(lambda lane, shared: powers(2)(lane, shared))[1]
    assert not list(folder.glob("hso-jax-*"))


def test_a_function_around_a_search_is_another_search(folder: Path) -> None:
    found(powers(2))
    inner = powers(2)

    @functools.wraps(inner)
    def negative(lane: Any, shared: Any) -> Any:
        return jax.tree.map(jnp.negative, inner(lane, shared))

    assert found(negative) == ([-2.0, -14.0, -42.0], True)


def test_a_changed_file_makes_another_program(folder: Path) -> None:
    file = folder / "mine.py"
    results = []
    for factor in (2.0, 3.0):
        file.write_text(f"def times():\n    return lambda lane, shared: {{'sum': (lane * {factor}).sum()}}\n")
        names: dict[str, Any] = {"__name__": "mine"}
        exec(compile(file.read_text(), file, "exec"), names)
        results.append(found(batch.by_arguments(names["times"])())[0])
    assert results == [[2.0, 10.0, 18.0], [3.0, 15.0, 27.0]]
    assert len(list(folder.glob("hso-jax-*"))) == 2


def test_a_solver_of_one_s_own_is_another_one_when_it_changes(folder: Path) -> None:
    schedule = hso_jax.baseline("karras", SD, 4)
    errors = []
    try:
        for function in (ddim, functools.partial(dpmpp, order=2)):
            solvers.SOLVERS["mine"] = solvers.Solver(function, order=1, calls=1, description="")
            (lane,) = checked([cells.lane(SD, 4, "node", "mine")])
            options = {"problems": cells.small_family(), "samples": cells.SAMPLES, **cells.PLAIN}
            (searched,) = errors_on([schedule], [lane], ["mine"])[0]
            errors.append((hso_jax.solver_error(schedule, SD, solver="mine", **options), searched))
    finally:
        solvers.SOLVERS.pop("mine")
    np.testing.assert_allclose(*np.transpose(errors), rtol=1e-5)
    assert errors[0][0] != errors[1][0]
    assert not list(folder.glob("hso-jax-*"))


def test_the_sources_are_those_that_were_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is changed while a process runs is not what its programs are made of."""
    before = compiling._sources()
    compiling._sources.cache_clear()
    monkeypatch.setattr(Path, "read_bytes", lambda path: b"changed")
    assert compiling._sources() == before


@pytest.mark.parametrize("change", ["sources", "no cache", "no folder"])
def test_other_sources_and_no_cache_compile_again(folder: Path, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found(powers(2))
    if change == "sources":
        monkeypatch.setattr(compiling, "_sources", lambda: ["others"])
    elif change == "no folder":
        jax.config.update("jax_compilation_cache_dir", None)
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", change != "no cache")
    try:
        assert found(powers(2))[1]
    finally:
        jax.config.update("jax_enable_compilation_cache", before)


def test_a_folder_that_cannot_be_written_does_no_harm(folder: Path) -> None:
    (folder / "file").write_text("")
    jax.config.update("jax_compilation_cache_dir", str(folder / "file"))
    assert found(powers(2)) == ([2.0, 14.0, 42.0], True)
