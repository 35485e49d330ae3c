"""Hierarchical schedule optimization (arXiv 2511.11688)."""

from hso_jax.methods.hso.lanes import Box as Box
from hso_jax.methods.hso.method import Hso as Hso
