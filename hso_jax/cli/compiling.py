"""JAX as the commands use it."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def prepare_jax() -> None:
    """One device per core on the CPU, and compiled programs kept between runs. The caller's own settings win.

    Raises:
        ValueError: if the device that the caller's settings name is not there.
    """
    import jax

    from hso_jax.compiling import platform

    if "JAX_NUM_CPU_DEVICES" not in os.environ and "xla_force_host_platform" not in os.environ.get("XLA_FLAGS", ""):
        with contextlib.suppress(RuntimeError):  # JAX is running already, with the devices of whoever started it
            jax.config.update("jax_num_cpu_devices", min(os.cpu_count() or 1, 8))
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(base / "hso-jax" / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    platform()
