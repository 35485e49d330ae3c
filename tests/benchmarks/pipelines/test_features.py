"""The Frechet distance of many features against the textbook formula."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg

from benchmarks import metrics
from benchmarks.pipelines import features


@pytest.mark.parametrize("n", [5, 40])  # fewer and more images than features
def test_frechet_is_what_the_matrix_square_root_says(n, tmp_path):
    draw = np.random.default_rng(0)
    a, b = draw.normal(size=(n, 12)), draw.normal(size=(n + 3, 12)) @ np.diag(np.linspace(0.5, 2.0, 12)) + 0.3
    ca, cb = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(ca @ cb + 1e-14 * np.eye(12)).real
    wanted = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(ca + cb - 2 * root)
    known = metrics.moments_of(b)
    found = metrics.frechet(a, known)
    assert found.value == pytest.approx(wanted, rel=1e-5) and found.low < found.value < found.high
    np.savez(tmp_path / "stats.npz", mu=b.mean(0), sigma=cb)
    assert metrics.frechet(a, features.read_stats(tmp_path / "stats.npz", 12)).value == pytest.approx(found.value)
    assert metrics.frechet(a, a) == pytest.approx((0, 0, 0), abs=1e-9)
