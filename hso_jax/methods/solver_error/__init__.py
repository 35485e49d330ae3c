"""Schedules by the error of the solver itself, on problems whose exact solution is known."""

from hso_jax.methods.solver_error.lanes import ReferenceLane as ReferenceLane
from hso_jax.methods.solver_error.schedules import reference_error as reference_error
from hso_jax.methods.solver_error.schedules import reference_schedules as reference_schedules
from hso_jax.methods.solver_error.search import ReferenceEffort as ReferenceEffort
from hso_jax.objectives.solver_error import Reference as Reference
from hso_jax.objectives.solver_error import reference as reference
