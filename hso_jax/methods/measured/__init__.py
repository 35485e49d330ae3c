"""Schedules by a fitness of the caller's own."""

from hso_jax.methods.measured.method import Measured as Measured
from hso_jax.methods.measured.search import Fitness as Fitness
