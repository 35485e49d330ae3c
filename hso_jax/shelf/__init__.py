"""The schedules that are shipped, and the program that makes them."""

from hso_jax.shelf.shipped import zoo as zoo
