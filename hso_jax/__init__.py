"""HSO-JAX: the few noise levels at which a diffusion or flow model is best evaluated.

Find schedules with `search`, read and write them with `load` and `save`, and hand them to diffusers with the
package `bridge`.
"""

import warnings
from typing import Any

import lazy_loader

# `__init__.pyi` lists the names and where they are. Each is imported at its first use: JAX takes a second, in which a
# command line shall hear Ctrl-C.
_import, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

_REMOVED = {"Measured": "bridge.tune_score(function, noise, nfe, budget=...)"}
"""Public names of earlier versions, and what does their work now; told for one release."""


def __getattr__(name: str) -> Any:
    """A public name at its first use."""
    if name in _REMOVED:
        warnings.warn(f"hso_jax.{name} is removed; use {_REMOVED[name]}", FutureWarning, stacklevel=2)
    return _import(name)
