"""Schedules by the error of the solver itself, on problems whose exact solution is known."""

from hso_jax.methods.solver_error.coefficients import Coefficients as Coefficients
from hso_jax.methods.solver_error.method import SolverError as SolverError
from hso_jax.methods.solver_error.schedules import solver_error as solver_error
from hso_jax.methods.solver_error.search import Refinement as Refinement
