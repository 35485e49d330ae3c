"""What `import hso_jax` brings along, and what it leaves alone."""

from __future__ import annotations

import ast
import graphlib
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import hso_jax

SCRIPT = """
import sys
import hso_jax
light = {name.split(".")[0] for name in sys.modules}
assert not light & {"jax", "numpy", "scipy", "matplotlib", "rich", "evosax", "optax"}, light
hso_jax.search, hso_jax.preset("sd21-base")
heavy = sorted({name.split(".")[0] for name in sys.modules} & {"torch", "diffusers", "transformers", "benchmarks"})
assert not heavy, heavy
import jax
assert not jax.config.jax_enable_x64
from jax._src import xla_bridge
assert not xla_bridge._backends, "the import started a JAX backend"
"""


def test_importing_brings_no_torch_and_starts_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_the_public_names_are_there_and_documented() -> None:
    """Importing `hso_jax.x` sets the attribute x of the package: no module may stand in a function's place."""
    names = "Effort Hso Lane NoiseSchedule Recommendation Schedule SolverError baseline compare from_config"
    names += " lanes load mep plot preset recommend refine save search search_many solver_error spf zoo"
    modules = {"noise", "problems", "schedule_file", "solvers"}
    assert sorted(names.split()) == sorted(set(hso_jax.__all__) - modules - {"__version__"})
    for name in names.split():
        assert name in dir(hso_jax) and getattr(hso_jax, name).__doc__, name
        assert not inspect.ismodule(getattr(hso_jax, name)), name
    assert all(inspect.ismodule(getattr(hso_jax, name)) for name in (*modules, "schedule", "baselines"))
    assert hso_jax.__version__.count(".") == 2
    with pytest.raises(AttributeError, match="no_such_name"):
        hso_jax.no_such_name  # noqa: B018


ROOT = Path(__file__).parent.parent
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in ("hso_jax", "bridge")
    for path in (ROOT / package).rglob("*.py")
}


def module_of(package: str, name: str) -> str:
    """The module that `from package import name` needs: a stub tells where a package's lazy names are."""
    if f"{package}.{name}" in FILES:
        return f"{package}.{name}"
    stub = FILES[package].with_suffix(".pyi") if package in FILES else None
    if stub is not None and stub.exists():
        for node in ast.parse(stub.read_text()).body:
            if isinstance(node, ast.ImportFrom) and name in {found.asname for found in node.names}:
                return module_of(f"{package}.{node.module}" if node.module else package, name)
    return package


def running(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes below one, without what is imported for type checkers alone."""
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)):
            yield child
            yield from running(child)


def imports(path: Path) -> set[str]:
    """The modules that a file imports, at its top or inside a function."""
    found: set[str] = set()
    for node in running(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {module_of(node.module, alias.name) for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & FILES.keys()


def test_no_imports_run_in_a_circle() -> None:
    graph = {name: imports(path) - {name} for name, path in FILES.items()}
    tuple(graphlib.TopologicalSorter(graph).static_order())  # CycleError names the circle


def test_hso_jax_never_imports_bridge_torch_or_diffusers() -> None:
    """Not inside a function either."""
    for path in (path for name, path in FILES.items() if name.startswith("hso_jax")):
        for node in running(ast.parse(path.read_text())):
            found = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not {name.split(".")[0] for name in found} & {"bridge", "torch", "diffusers"}, path
