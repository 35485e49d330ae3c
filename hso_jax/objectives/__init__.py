"""What a schedule costs: bounds that need the nodes alone, and the solver's error, which is measured on problems."""

from hso_jax.objectives.expansion import OBJECTIVES as OBJECTIVES
from hso_jax.objectives.expansion import NodeObjective as NodeObjective
from hso_jax.objectives.expansion import Terms as Terms
from hso_jax.objectives.expansion import expansion as expansion
from hso_jax.objectives.mep_spf import mep as mep
from hso_jax.objectives.mep_spf import paper_d_min as paper_d_min
from hso_jax.objectives.mep_spf import spf as spf
