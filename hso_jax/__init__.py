"""HSO-JAX: the few noise levels at which a diffusion or flow model is best evaluated.

Find schedules with `search`, read and write them with `load` and `save`, and hand them to diffusers with the
package `bridge`.
"""

import importlib
import warnings
from typing import Any

import lazy_loader

from hso_jax._moved import MOVED

# `__init__.pyi` lists the names and where they are. Each is imported at its first use: JAX takes a second, in which a
# command line shall hear Ctrl-C.
_public, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

_REMOVED = {"Measured": "bridge.tune_score(function, noise, nfe, budget=...)"}
"""Public names of earlier versions, and what does their work now; told for one release."""


def __getattr__(name: str) -> Any:
    """A public name, or a module of an older version, at its first use."""
    if name in _REMOVED:
        warnings.warn(f"hso_jax.{name} is removed; use {_REMOVED[name]}", FutureWarning, stacklevel=2)
    return importlib.import_module(f"hso_jax.{name}") if name in MOVED else _public(name)
