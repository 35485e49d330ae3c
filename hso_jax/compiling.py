"""How programs are compiled, and random draws that are compiled so."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax import Array

Made = TypeVar("Made")


def compiler_options(platform: str) -> dict[str, int] | None:
    """On the CPU LLVM's full optimisation doubles the compilation and gains nothing in the run (measured)."""
    return {"xla_backend_optimization_level": 1} if platform == "cpu" else None


def platform() -> str:
    """The platform that JAX runs on.

    Raises:
        ValueError: where the one that was asked for is not there, naming the variable that asks for it.
    """
    try:
        return jax.default_backend()
    except (RuntimeError, AssertionError, KeyError) as error:
        set_by = next((name for name in ("JAX_PLATFORMS", "JAX_PLATFORM_NAME") if os.environ.get(name)), None)
        name = set_by or "jax_platforms"
        asked = f"{name} is {os.environ[name]!r}" if set_by else "jax_platforms is set"
        raise ValueError(
            f"{asked}, and JAX finds no such device here: unset {name}, or install JAX for the device"
        ) from error


def jit(function: Callable[..., Made], **options: Any) -> Callable[..., Made]:
    """`jax.jit` with `compiler_options` of the platform, which is asked for at the first call, not at import."""

    @functools.cache
    def compiled(name: str) -> Callable[..., Made]:
        return jax.jit(function, compiler_options=compiler_options(name), **options)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Made:
        return compiled(platform())(*args, **kwargs)

    return call


@functools.partial(jit, static_argnames=("shape", "dtype"))
def normal(key: Array, shape: tuple[int, ...], dtype: Any = np.float32) -> Array:
    """`jax.random.normal`; in float32 whatever JAX's default is, so that a key has the same values."""
    return jax.random.normal(key, shape, dtype)


@functools.partial(jit, static_argnames=("shape", "dtype"))
def uniform(key: Array, shape: tuple[int, ...], dtype: Any = np.float32) -> Array:
    """`jax.random.uniform`, likewise."""
    return jax.random.uniform(key, shape, dtype)
