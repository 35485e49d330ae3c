"""The generic problem: a seeded mixture that stands for latents nothing is known of."""

from __future__ import annotations

import math

import numpy as np
from jax import Array

from hso_jax.checks import number, whole
from hso_jax.compiling import normal
from hso_jax.problems.mixture import Problem, mixture

MOST = 100_000
"""Dimensions, and components, of a problem."""


def generic(
    key: Array,
    *,
    dimension: int = 32,
    components: int = 32,
    spectrum: float = 1.5,
    within: float = 0.3,
    scale: float = 1.0,
    members: int = 4,
    apart: float = 1.5,
) -> Problem:
    """A random mixture that stands for latents nothing is known of.

    Means are normal, with variances proportional to `k^-spectrum` along coordinate k (natural images' power law), and
    so is the within-covariance. Centred and scaled so that the variance is `scale^2` a dimension in the mean, of which
    the share `within` is inside components. Equal weights; the first `members` components are the class. A class drawn
    like the others would lie near the centre, and guidance would have little to do. So it is moved until its centre's
    squared distance from the centre of the others is `apart` times the variance that the means had: by default the
    class's centre then holds about six tenths of the data's variance (a class of Fashion-MNIST four, and a prompt says
    more). Without guidance its place hardly matters, because the flow moves along with it.

    Raises:
        ValueError: for fewer than 2 components or 1 dimension, a share outside (0, 1), a spectrum outside (-10, 10), a
            scale or `apart` outside (0, 1e6), or members not in 1..components.
    """
    dimension, components = whole("dimension", dimension, 1, MOST), whole("components", components, 2, MOST)
    members = whole("members", members, 1, components)
    within = number("within", within, low=0.0, high=1.0)
    spectrum = number("spectrum", spectrum, low=-10.0, high=10.0)
    scale, apart = number("scale", scale, low=0.0, high=1e6), number("apart", apart, low=0.0, high=1e6)
    power = np.arange(1, dimension + 1) ** -float(spectrum)
    power *= scale**2 * dimension / power.sum()
    means = np.asarray(normal(key, (components, dimension)), np.float64) * np.sqrt(power)
    means -= means.mean(0)
    if members < components:
        away = means[:members].mean(0) - means[members:].mean(0)
        means[:members] += (math.sqrt(apart * (means**2).mean(0).sum() / (away**2).sum()) - 1.0) * away
        means -= means.mean(0)
    means *= scale * math.sqrt((1.0 - within) * dimension / (means**2).mean(0).sum())
    return mixture(np.ones(components), means, within * power, members=range(members))
