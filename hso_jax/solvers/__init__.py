"""Samplers of the probability-flow ODE as pure functions of (nodes, denoiser, noise)."""

from hso_jax.solvers.nonstationary import NONSTATIONARY as NONSTATIONARY
from hso_jax.solvers.nonstationary import amplification as amplification
from hso_jax.solvers.nonstationary import coefficients_of as coefficients_of
from hso_jax.solvers.nonstationary import nonstationary as nonstationary
from hso_jax.solvers.sampling import ALIASES as ALIASES
from hso_jax.solvers.sampling import EVERY as EVERY
from hso_jax.solvers.sampling import SOLVERS as SOLVERS
from hso_jax.solvers.sampling import STOCHASTIC as STOCHASTIC
from hso_jax.solvers.sampling import UNKNOWN as UNKNOWN
from hso_jax.solvers.sampling import Denoiser as Denoiser
from hso_jax.solvers.sampling import Solver as Solver
from hso_jax.solvers.sampling import added as added
from hso_jax.solvers.sampling import adds_noise as adds_noise
from hso_jax.solvers.sampling import alike as alike
from hso_jax.solvers.sampling import canonical as canonical
from hso_jax.solvers.sampling import evaluations as evaluations
from hso_jax.solvers.sampling import find as find
from hso_jax.solvers.sampling import named as named
from hso_jax.solvers.sampling import run as run
from hso_jax.solvers.sampling import sample as sample
from hso_jax.solvers.sampling import weights as weights
from hso_jax.solvers.weights import PURE_NOISE as PURE_NOISE
from hso_jax.solvers.weights import Weights as Weights
