"""Noise schedules of one shape, so that one compiled program serves every model."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np

from hso_jax.noise.noise_schedule import NoiseSchedule, namespace
from hso_jax.optional_jax import jax

CELLS = 1024
"""Rows of a padded table: enough for a thousand training levels; longer tables take the next power of two."""


def anonymous(noise: NoiseSchedule) -> NoiseSchedule:
    """The schedule with nothing left that a program would be compiled for: no name, a table of a common length.

    `lam` and its inverse are the same (the rows that are added are never read). What turns lam into alpha, sigma and
    timesteps is the model's own affair, and lost.
    """
    xp = namespace(noise.coefficients)
    table = xp.asarray(noise.coefficients)
    rows = CELLS
    while rows < len(table):
        rows *= 2
    padded = xp.concatenate([table, xp.repeat(table[-1:], rows - len(table), axis=0)])
    return dataclasses.replace(
        noise, coefficients=padded, kind="vp", num_train_timesteps=1000, timestep_rule="index", name=""
    )


def stack(schedules: Iterable[NoiseSchedule], dtype: np.dtype) -> NoiseSchedule:
    """`anonymous` schedules on a leading axis, their tables padded to the longest."""
    many = [anonymous(schedule) for schedule in schedules]
    rows = max(len(s.coefficients) for s in many)
    longest = [
        dataclasses.replace(s, coefficients=np.pad(s.coefficients, ((0, rows - len(s.coefficients)), (0, 0)), "edge"))
        for s in many
    ]
    return jax.tree.map(lambda *leaves: np.stack([np.asarray(x, dtype) for x in leaves]), *longest)
