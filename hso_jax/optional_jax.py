"""JAX, or what says that it is missing: shipped schedules, files and rules are plain NumPy and work without it.

Modules that those need take `jax` and `jnp` from here; all others import JAX as usual.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

Class = TypeVar("Class", bound=type)


class _Missing:
    """Stands for a module of JAX where it is not installed."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what Python itself asks of any object
            raise AttributeError(name)
        raise ImportError(f"this needs JAX, which is not installed (pip install jax); it was asked for {name!r}")


if TYPE_CHECKING:
    import jax
    import jax.numpy as jnp
    from jax import Array

    INSTALLED = True
else:
    try:
        import jax
        import jax.numpy as jnp
        from jax import Array

        INSTALLED = True
    except ModuleNotFoundError:
        jax = jnp = _Missing()
        Array = Any
        INSTALLED = False


def register_dataclass(cls: Class) -> Class:
    """`jax.tree_util.register_dataclass` where there is JAX; the class itself."""
    if INSTALLED:
        jax.tree_util.register_dataclass(cls)
    return cls


def is_array(value: Any) -> bool:
    """Whether it is an array of JAX, traced or not."""
    return INSTALLED and isinstance(value, jax.Array)


def is_traced(value: Any) -> bool:
    """Whether it is traced: its numbers are not known yet."""
    return INSTALLED and isinstance(value, jax.core.Tracer)
