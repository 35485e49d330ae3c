"""The methods: each a set of options that knows how to search a lane."""

from hso_jax.methods.hso import Box as Box
from hso_jax.methods.hso import Hso as Hso
from hso_jax.methods.solver_error import Coefficients as Coefficients
from hso_jax.methods.solver_error import Refinement as Refinement
from hso_jax.methods.solver_error import SolverError as SolverError
