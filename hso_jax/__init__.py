"""HSO-JAX: the few noise levels at which a diffusion or flow model is best evaluated.

Find schedules with `search`, read and write them with `load` and `save`, and hand them to diffusers with the
package `bridge`.
"""

import importlib.metadata

from hso_jax.baselines import BASELINES, baseline
from hso_jax.bilevel import Effort
from hso_jax.lane import Lane
from hso_jax.methods import Box, Hso, Measured, Refinement, SolverError
from hso_jax.methods.solver_error import solver_error
from hso_jax.noise import NoiseSchedule, from_config, preset
from hso_jax.objectives import mep, paper_d_min, spf
from hso_jax.schedule import Schedule
from hso_jax.schedule_file import load, save
from hso_jax.searches import METHODS, lanes, refine, search, search_many
from hso_jax.shelf import zoo

__version__ = importlib.metadata.version("hso-jax")

__all__ = [
    "BASELINES",
    "METHODS",
    "Box",
    "Effort",
    "Hso",
    "Lane",
    "Measured",
    "NoiseSchedule",
    "Refinement",
    "Schedule",
    "SolverError",
    "baseline",
    "from_config",
    "lanes",
    "load",
    "mep",
    "paper_d_min",
    "preset",
    "refine",
    "save",
    "search",
    "search_many",
    "solver_error",
    "spf",
    "zoo",
]
