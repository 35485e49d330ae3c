"""HSO-JAX: the few noise levels at which a diffusion or flow model is best evaluated.

Find schedules with `search`, read and write them with `load` and `save`, and hand them to diffusers with the
package `bridge`.
"""

import lazy_loader

# `__init__.pyi` lists the names and where they are. Each is imported at its first use: JAX takes a second, in which a
# command line shall hear Ctrl-C.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
