"""HSO-JAX: the few noise levels at which a diffusion or flow model is best evaluated.

Find schedules with `search`, read and write them with `load` and `save`, and hand them to diffusers with the
package `bridge`.
"""

import importlib
import importlib.util
from typing import Any

import lazy_loader

from hso_jax import _moved

# `__init__.pyi` lists the names and where they are. Each is imported at its first use: JAX takes a second, in which a
# command line shall hear Ctrl-C.
_public, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    """A public name, one of an older version, or a module, at its first use."""
    found = _moved.public(name)
    if found is None and name not in __all__ and importlib.util.find_spec(f"hso_jax.{name}"):
        return importlib.import_module(f"hso_jax.{name}")
    return _public(name) if found is None else found
