"""Schedules by the error of the solver itself, on problems whose exact solution is known."""

from hso_jax.reference.data import Reference as Reference
from hso_jax.reference.data import reference as reference
from hso_jax.reference.lanes import ReferenceLane as ReferenceLane
from hso_jax.reference.schedules import reference_error as reference_error
from hso_jax.reference.schedules import reference_schedules as reference_schedules
from hso_jax.reference.search import ReferenceEffort as ReferenceEffort
