"""Where a noise end leaves much of the data, samples begin with noised data."""

from __future__ import annotations

import numpy as np

from hso_jax.objectives.solver_error import PURE, error_data
from hso_jax.problems import family

PROBLEMS = family(range(3))


def test_samples_begin_as_pure_noise_or_as_noised_data() -> None:
    deep, shallow = (error_data(lam, problems=PROBLEMS, samples=64, steps=16) for lam in (PURE - 0.1, PURE + 1.0))
    alpha2 = 1.0 / (1.0 + np.exp(-2.0 * (PURE + 1.0)))
    variance = np.asarray(shallow.truth).var((0, 1))
    assert abs(float(np.asarray(deep.noise).var()) - 1.0) < 0.05
    wanted = alpha2 * variance + 1.0 - alpha2
    np.testing.assert_allclose(np.asarray(shallow.noise).var((0, 1)), wanted, rtol=0.5)
    assert float(np.asarray(shallow.noise).var((0, 1))[0]) > 1.1
    again = error_data(PURE + 1.0, problems=PROBLEMS, samples=64, steps=16)
    np.testing.assert_array_equal(again.noise, shallow.noise)
