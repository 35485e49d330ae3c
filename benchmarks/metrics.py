"""How far samples are from others, each with a 95 % bootstrap interval: RMSE, feature distance, Frechet distance.

The Frechet distance is a singular value problem no larger than the number of images: seconds with Inception's 2048
features, resampled sets included, where the square root of a matrix takes minutes.

Images are judged as they are given, not clipped.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

RESAMPLES = 1000
FRECHET_RESAMPLES = 100


class Estimate(NamedTuple):
    """A value and its 95 % interval over the choice of images."""

    value: float
    low: float
    high: float


class Moments(NamedTuple):
    """Of a set of features: the mean, and the covariance as root^T root."""

    mu: np.ndarray  # [d]
    root: np.ndarray  # [k, d], k at most d


def compare(
    squares: np.ndarray, features: np.ndarray | None, converged: np.ndarray | None, data: np.ndarray | Moments | None
) -> dict[str, Estimate]:
    """Say what a record keeps of samples, by its fields: from `mean_squares` [n], and features [n, d] where given."""
    found = {"rmse": root_mean_square(squares)}
    if features is not None and converged is not None:
        found["feature"] = feature_distance(features, converged)
        found["fid"] = frechet(features, converged)
        if data is not None:
            found["fid_data"] = frechet(features, data, paired=False)
    return found


def mean_squares(a: Any, b: Any) -> np.ndarray:
    """[n] mean square of a - b over the pixels of each image, images [n, ...] in pairs."""
    a, b = _pair(a, b)
    return np.asarray(np.square(a - b).reshape(len(a), -1).mean(1))


def feature_distance(a: Any, b: Any, seed: int = 0) -> Estimate:
    """Root of the mean squared Euclidean distance of features [n, d] in pairs; images are resampled."""
    a, b = _pair(a, b)
    return root_mean_square(np.square(a - b).reshape(len(a), -1).sum(1), seed)


def frechet(a: Any, b: Any, *, paired: bool = True, seed: int = 0) -> Estimate:
    """Squared Frechet distance of features [n, d] to others [m, d], or to a set of which only the moments are known.

    The distance of n samples to m others is biased upwards, by about as much as the two sets differ by chance: small
    sets only compare with sets of the same size. Between the samples of two solvers from the same noise the chance is
    the same on both sides, and the bias vanishes as they approach each other; `paired` then resamples both alike.
    A resampled set differs from its twin more than the sets themselves do, so that the resampled distances are too
    large on average; the interval has their spread, moved so that its centre of mass is the value. Moments are not
    resampled: the interval is then over the choice of the n images.
    """
    a, draw = np.asarray(a, np.float64), np.random.default_rng(seed)
    b = b if isinstance(b, Moments) else np.asarray(b, np.float64)
    sizes = a.shape, (2, len(b.mu)) if isinstance(b, Moments) else b.shape
    if any(len(size) != 2 or size[0] < 2 for size in sizes) or sizes[0][1] != sizes[1][1]:
        raise ValueError(f"features of shapes {sizes[0]} and {sizes[1]}: need two images or more, and as many features")
    whole, again = b, lambda i: b
    if isinstance(b, Moments):
        _check_finite(a)
    else:
        _check_finite(a, b)
        if paired and len(a) != len(b):
            raise ValueError(f"{len(a)} and {len(b)} images are no pairs; use paired=False")
        whole, again = moments_of(b), lambda i: moments_of(b[i if paired else draw.integers(len(b), size=len(b))])
    value = frechet_distance(moments_of(a), whole)
    resampled = []
    for _ in range(FRECHET_RESAMPLES):
        i = draw.integers(len(a), size=len(a))
        resampled.append(frechet_distance(moments_of(a[i]), again(i)))
    low, high = (float(x) for x in np.quantile(resampled, (0.025, 0.975)) - np.mean(resampled))
    return Estimate(value, max(0.0, value + low), value + high)


def moments_of(features: np.ndarray) -> Moments:
    """Of features [n, d], n > 1."""
    mu = features.mean(0)
    root = (features - mu) / np.sqrt(len(features) - 1)
    if len(root) > root.shape[1]:
        root = np.linalg.qr(root, mode="r")
    return Moments(mu, root)


def frechet_distance(a: Moments, b: Moments) -> float:
    """|mu_a - mu_b|^2 + tr(A + B - 2 (A B)^(1/2)), squared Frechet distance of two normal distributions.

    The eigenvalues of A B are the squared singular values of root_a root_b^T.

    Source: Dowson & Landau 1982, J. Multivariate Anal. 12; for images Heusel et al. 2017, arXiv 1706.08500, eq. 6.
    """
    shared = np.linalg.svd(a.root @ b.root.T, compute_uv=False).sum()
    spread = np.square(a.root).sum() + np.square(b.root).sum()
    return max(0.0, float(np.square(a.mu - b.mu).sum() + spread - 2.0 * shared))


def root_mean_square(squares: np.ndarray, seed: int = 0) -> Estimate:
    """Of one mean square an image [n]; images are resampled."""
    draw = np.random.default_rng(seed)
    again = squares[draw.integers(len(squares), size=(RESAMPLES, len(squares)))].mean(1)
    low, high = np.quantile(again, (0.025, 0.975))
    return Estimate(*(float(x) ** 0.5 for x in (squares.mean(), low, high)))


def _pair(a: Any, b: Any) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape or a.ndim < 2 or not len(a):
        raise ValueError(f"shapes {a.shape} and {b.shape}: need the same, one image or more")
    _check_finite(a, b)
    return a, b


def _check_finite(*arrays: np.ndarray) -> None:
    if bad := sum(int((~np.isfinite(x)).sum()) for x in arrays):
        raise ValueError(f"{bad} values are not finite; the samples diverged")
