"""The generic problem: a seeded mixture that stands for latents nothing is known of."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from hso_jax.problems.mixture import Problem, mixture


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
        ValueError: for fewer than 2 components or 1 dimension, a share outside (0, 1), a scale or `apart` that is
            not positive, or members not in 1..components.
    """
    if dimension < 1 or components < 2 or not 1 <= members <= components:
        raise ValueError(
            f"dimension {dimension}, components {components}, members {members}: need at least 1, 2 and 1..components"
        )
    if not 0.0 < within < 1.0 or not math.isfinite(spectrum):
        raise ValueError(f"within is {within}, spectrum {spectrum}; need a share in (0, 1) and a finite exponent")
    if not 0.0 < scale < math.inf or not 0.0 < apart < math.inf:
        raise ValueError(f"scale is {scale}, apart {apart}; need a positive, finite standard deviation and ratio")
    power = np.arange(1, dimension + 1) ** -float(spectrum)
    power *= scale**2 * dimension / power.sum()
    # Drawn in float32 whatever the default: the same key is the same problem.
    draws = jax.random.normal(key, (components, dimension), jnp.float32)
    means = np.asarray(draws, np.float64) * np.sqrt(power)
    means -= means.mean(0)
    if members < components:
        away = means[:members].mean(0) - means[members:].mean(0)
        means[:members] += (math.sqrt(apart * (means**2).mean(0).sum() / (away**2).sum()) - 1.0) * away
        means -= means.mean(0)
    means *= scale * math.sqrt((1.0 - within) * dimension / (means**2).mean(0).sum())
    return mixture(np.ones(components), means, within * power, members=range(members))
