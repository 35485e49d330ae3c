"""What `import hso_jax` brings along, and what it leaves alone."""

from __future__ import annotations

import subprocess
import sys

import hso_jax

SCRIPT = """
import sys
import hso_jax
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
    for name in [*names.split(), "search", "search_many", "spf"]:
        assert getattr(hso_jax, name).__doc__, name
