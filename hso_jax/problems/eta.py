"""The size of a network's error, from how its predictions vary where an exact denoiser's hardly do.

At the noise end x says nothing of the data: an exact denoiser predicts their mean, whatever x. Next to it the
prediction is linear in x, and its variance follows from the spectrum alone,

    sum_j s_j^4 alpha^2/(alpha^2 s_j^2 + sigma^2),

to leading order in alpha for data of any shape (exactly for Gaussian ones). What a network's predictions vary by
beyond that is `(eta c(lam))^2` times the data's total variance, see `model_error.py`. Towards clean data the exact part
soon is all there is; so eta is told for the levels from the noise end up to where it can no longer be told apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from hso_jax.noise import alpha_sigma
from hso_jax.problems.model_error import CAP
from hso_jax.problems.spectrum import Spectrum

RESOLUTION = 0.02
"""What an exact denoiser's variance may be taken for, at most."""


class Eta(NamedTuple):
    """What was found.

    Attributes:
        eta: root of the mean square over the levels, None if there are none.
        lams: [n] the levels, rising; but for pure noise, lam = -inf, which eta takes in.
        etas: [n] the size there.
    """

    eta: float | None
    lams: tuple[float, ...]
    etas: tuple[float, ...]


def measure_eta(
    lams: Sequence[float],
    variances: Sequence[float],
    of: Spectrum,
    total: float,
    prediction: str,
    guidance: float = 1.0,
) -> Eta:
    """Eta at each level from the noise end on, as far as the error stands out.

    A level counts if the exact denoiser's variance, whatever the data's shape, could not pass for an eta above
    `RESOLUTION`, or is at most half of the network's; the first that does neither ends the list. Where the noise end
    itself knows much of the data there is none: Stable Diffusion's is lam = -2.7, and the leading standard deviations
    of its latents are tens.

    Under guidance both branches are taken to err independently, as `ModelError` has it: eta is that of one branch.

    Args:
        lams: [n] half log-SNR, rising, from -inf on.
        variances: [n] total variance of the (guided) data prediction over samples of the same prompt.
        of: spectrum of the data of one prompt.
        total: variance of the data of all prompts, eta's unit.
        prediction: what the network predicts.
        guidance: w.
    """
    found, branches = [], guidance**2 + (1.0 - guidance) ** 2
    for lam, variance in zip(lams, variances, strict=True):
        exact, unit = exact_variance(of, lam), size(prediction, lam) ** 2 * branches * total
        # Other data than Gaussian have terms of relative order |alpha x_0|^2/sigma^2; all of it is the data's variance.
        most = min(exact * (1.0 + math.exp(2.0 * lam) * of.total), of.total)
        if most > 0.5 * variance and most > RESOLUTION**2 * unit:
            break
        found.append((float(lam), math.sqrt(max(variance - exact, 0.0) / unit)))
    eta = math.sqrt(sum(x * x for _, x in found) / len(found)) if found else None
    finite = [(lam, x) for lam, x in found if lam > -math.inf]
    return Eta(eta, tuple(lam for lam, _ in finite), tuple(x for _, x in finite))


def exact_variance(of: Spectrum, lam: float) -> float:
    """Total variance of an exact denoiser's prediction, for Gaussian data."""
    alpha, sigma = (float(x) for x in alpha_sigma(np.float64(lam), "vp"))
    squares = of.deviations**2
    return float((of.counts * squares * (alpha**2 * squares / (alpha**2 * squares + sigma**2))).sum())


def size(prediction: str, lam: float) -> float:
    """c(lam) of a prediction type: what an error in x_0 is for one of 1 in what the network predicts."""
    alpha, sigma = (float(x) for x in alpha_sigma(np.float64(lam), "vp"))
    return sigma / math.sqrt(alpha**2 + (sigma / CAP[prediction]) ** 2)
