"""The installed version, in a module of its own: reading it takes as long as all else of `import hso_jax`."""

import importlib.metadata

__version__ = importlib.metadata.version("hso-jax")
