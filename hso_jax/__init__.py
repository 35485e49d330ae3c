"""HSO-JAX: the few noise levels at which a diffusion or flow model is best evaluated.

Find schedules with `search`, read and write them with `load` and `save`, and hand them to diffusers with the
package `bridge`.
"""

from hso_jax.baselines import BASELINES as BASELINES
from hso_jax.baselines import baseline as baseline
from hso_jax.methods.hso.lanes import Box as Box
from hso_jax.methods.hso.lanes import Lane as Lane
from hso_jax.methods.hso.search import Effort as Effort
from hso_jax.methods.solver_error import ReferenceEffort as ReferenceEffort
from hso_jax.methods.solver_error import reference_error as reference_error
from hso_jax.noise import NoiseSchedule as NoiseSchedule
from hso_jax.noise import from_config as from_config
from hso_jax.noise import preset as preset
from hso_jax.objectives.mep_spf import mep as mep
from hso_jax.objectives.mep_spf import paper_d_min as paper_d_min
from hso_jax.objectives.mep_spf import spf as spf
from hso_jax.schedule import Schedule as Schedule
from hso_jax.schedule_file import load as load
from hso_jax.schedule_file import save as save
from hso_jax.searches import lanes as lanes
from hso_jax.searches import refine as refine
from hso_jax.searches import search as search
from hso_jax.searches import search_many as search_many
from hso_jax.shelf import zoo as zoo
