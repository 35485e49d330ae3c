"""Where a noise end leaves much of the data, samples begin with noised data."""

from __future__ import annotations

import math

import numpy as np

from hso_jax.error import PURE, error_data
from hso_jax.problems import family

PROBLEMS = family(range(3))


def test_samples_begin_as_pure_noise_or_as_noised_data() -> None:
    lam = PURE + 3.0
    pure, deep, shallow = (
        error_data(x, problems=PROBLEMS, samples=256, steps=16) for x in (-math.inf, PURE - 0.1, lam)
    )
    alpha2 = 1.0 / (1.0 + np.exp(-2.0 * lam))
    variance = np.asarray(pure.truth).var(1)  # of the class
    assert abs(float(np.asarray(deep.noise).var()) - 1.0) < 0.05
    wanted = alpha2 * variance.mean(1) + 1.0 - alpha2
    np.testing.assert_allclose(np.asarray(shallow.noise).var(1).mean(1), wanted, rtol=0.15)
    assert np.abs(wanted - 1.0).max() > 0.3  # so that pure noise would not do
    again = error_data(lam, problems=PROBLEMS, samples=256, steps=16)
    np.testing.assert_array_equal(again.noise, shallow.noise)
