"""A small family of generic problems: what holds for their mean is not fitted to one of them."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from hso_jax.problems.generic import generic
from hso_jax.problems.mixture import Problem

SPECTRA = (1.0, 1.5, 2.0)
"""Exponents that the members take in turn: natural images and their latents lie between (Field 1987)."""


def family(seeds: Sequence[int] = range(16), *, spectra: Sequence[float] = SPECTRA, **options: float | int) -> Problem:
    """Generic problems of different seeds and spectra, stacked on a leading axis [P].

    Args:
        seeds: one a problem.
        spectra: exponents, taken in turn.
        options: further arguments of `generic`, the same for all.

    Raises:
        ValueError: without seeds or spectra, and as `generic`.
    """
    if not len(seeds) or not len(spectra):
        raise ValueError(f"{len(seeds)} seeds and {len(spectra)} spectra; need at least one of each")
    many = [
        generic(jax.random.key(seed), spectrum=spectra[i % len(spectra)], **options)  # type: ignore[arg-type]
        for i, seed in enumerate(seeds)
    ]
    return stack_problems(many)


def stack_problems(problems: Sequence[Problem]) -> Problem:
    """Problems of one shape, stacked on a leading axis [P].

    Raises:
        ValueError: if there are none, or if their numbers of components or dimensions differ.
    """
    shapes = {problem.means.shape for problem in problems}
    if len(shapes) != 1:
        raise ValueError(f"problems have means of shapes {sorted(shapes)}; need one shape [components, dimension]")
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *problems)
