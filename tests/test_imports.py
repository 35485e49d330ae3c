"""What `import hso_jax` brings along, and what it leaves alone."""

from __future__ import annotations

import inspect
import subprocess
import sys

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
    names = "Box Effort Lane NoiseSchedule Schedule baseline from_config lanes load mep paper_d_min preset refine save"
    for name in [*names.split(), "search", "search_many", "solver_error", "spf", "zoo"]:
        assert name in hso_jax.__all__ and name in dir(hso_jax)
        assert getattr(hso_jax, name).__doc__, name
    assert hso_jax.__version__.count(".") == 2
    with pytest.raises(AttributeError, match="no_such_name"):
        hso_jax.no_such_name  # noqa: B018


def test_no_module_stands_in_a_functions_place() -> None:
    """Importing `hso_jax.x` sets the attribute x of the package."""
    modules = {"noise", "problems", "schedule_file", "solvers"}
    for name in set(hso_jax.__all__) - modules:
        assert not inspect.ismodule(getattr(hso_jax, name)), name
    for name in modules:
        assert inspect.ismodule(getattr(hso_jax, name)), name
