"""A family of generic problems: what holds for their mean is not fitted to one of them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hso_jax.compiling import random_key
from hso_jax.problems.generic import generic
from hso_jax.problems.mixture import Problem


class Kind(NamedTuple):
    """What a generic problem is like, see `generic`.

    Attributes:
        spectrum: exponent of the variances. Natural images and their latents lie between 1 and 2 (Field 1987).
        within: share of the variance inside components: how non-linear the denoiser is, and when.
        scale: standard deviation of the data. Latents are scaled to about 1, pixels in [-1, 1] have about a half.
    """

    spectrum: float = 1.5
    within: float = 0.3
    scale: float = 1.0


SPECTRA, WITHIN, SCALES = (1.0, 1.5, 2.0), (0.1, 0.3, 0.5, 0.7), (0.5, 1.0, 2.0)

KINDS = tuple(Kind(SPECTRA[(i + i // 12) % 3], WITHIN[i % 4], SCALES[i % 3]) for i in range(36))
"""Every combination once, so ordered that any few neighbours are mixed."""


def family(seeds: Sequence[int] = range(len(KINDS)), kinds: Sequence[Kind] = KINDS, **options: Any) -> Problem:
    """Generic problems of different seeds and kinds, stacked on a leading axis [P].

    Args:
        seeds: one a problem.
        kinds: taken in turn.
        options: further arguments of `generic`, the same for all.

    Raises:
        ValueError: without seeds or kinds, and as `generic`.
    """
    if not len(seeds) or not len(kinds):
        raise ValueError(f"{len(seeds)} seeds and {len(kinds)} kinds; need at least one of each")
    turns = itertools.cycle(kinds)
    return stack_problems([generic(random_key(seed), **next(turns)._asdict(), **options) for seed in seeds])


def stack_problems(problems: Sequence[Problem]) -> Problem:
    """Problems of one shape, stacked on a leading axis [P].

    Raises:
        ValueError: if there are none, or if their numbers of components or dimensions differ.
    """
    shapes = {problem.means.shape for problem in problems}
    if len(shapes) != 1:
        raise ValueError(f"problems have means of shapes {sorted(shapes)}; need one shape [components, dimension]")
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *problems)
