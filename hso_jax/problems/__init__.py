"""Reference problems: distributions whose exact denoiser, score and probability-flow solution are known."""

from hso_jax.problems.exact import Exact as Exact
from hso_jax.problems.exact import exact as exact
from hso_jax.problems.family import KINDS as KINDS
from hso_jax.problems.family import Kind as Kind
from hso_jax.problems.family import family as family
from hso_jax.problems.family import stack_problems as stack_problems
from hso_jax.problems.fit import fit as fit
from hso_jax.problems.generic import generic as generic
from hso_jax.problems.mixture import Problem as Problem
from hso_jax.problems.mixture import denoise as denoise
from hso_jax.problems.mixture import denoiser as denoiser
from hso_jax.problems.mixture import log_density as log_density
from hso_jax.problems.mixture import mixture as mixture
from hso_jax.problems.mixture import score as score
from hso_jax.problems.mixture import variance as variance
from hso_jax.problems.mixture import with_class as with_class
