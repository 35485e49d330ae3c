"""How far samples are from others, each with a 95 % bootstrap interval: RMSE, feature distance, Frechet distance.

The Frechet distance is a singular value problem no larger than the number of images: seconds with Inception's 2048
features, resampled sets included, where the square root of a matrix takes minutes.

Images are judged as they are given; `benchmarks.models.subjects` does not clip them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.models.load import features as classifier_features

Extractor = Callable[[torch.Tensor], np.ndarray]

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
    squares: np.ndarray,
    features: np.ndarray | None,
    converged: np.ndarray | None,
    data: np.ndarray | Moments | None,
) -> dict[str, Estimate]:
    """What a record says of a schedule's samples, by the record's field; what is not given is left out.

    Args:
        squares: [n] `mean_squares` to the converged samples.
        features: [n, d] of the samples.
        converged: [n, d] of the converged samples.
        data: [m, d] of real images, or their moments.
    """
    found = {"rmse": root_mean_square(squares)}
    if features is not None and converged is not None:
        found["feature"] = feature_distance(features, converged)
        found["fid"] = frechet(features, converged)
        if data is not None:
            found["fid_data"] = frechet(features, data, paired=False)
    return found


def mean_squares(a: Any, b: Any) -> np.ndarray:
    """[n] mean square of a - b over the pixels of each image, images [n, ...] in pairs.

    Raises:
        ValueError: if the shapes differ, there is no image, or something is not finite.
    """
    a, b = _pair(a, b)
    return np.asarray(np.square(a - b).reshape(len(a), -1).mean(1))


def rmse(a: Any, b: Any, seed: int = 0) -> Estimate:
    """Root of the mean square of a - b over all pixels, images [n, ...] in pairs; images are resampled.

    Raises:
        ValueError: as `mean_squares`.
    """
    return root_mean_square(mean_squares(a, b), seed)


def feature_distance(a: Any, b: Any, seed: int = 0) -> Estimate:
    """Root of the mean squared Euclidean distance of features [n, d] in pairs; images are resampled.

    Raises:
        ValueError: as `rmse`.
    """
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

    Raises:
        ValueError: as `rmse`, for fewer than two images, or for pairs of sets of different size.
    """
    a, draw = _features(a), np.random.default_rng(seed)
    if isinstance(b, Moments):
        _check_sizes(a.shape, (2, len(b.mu)))
        whole, again = b, lambda i: b
    else:
        b = _features(b)
        _check_sizes(a.shape, b.shape)
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


def extractor(name: str | Path, data: str) -> Extractor:
    """Images [n, C, 32, 32] in [-1, 1] to features [n, d], float64.

    Args:
        name: "classifier", the shipped one for `data`; or a TorchScript file that maps such images to features, for
            example Inception with its resizing.
        data: "fashion" or "emoji".

    Raises:
        ValueError: for data without a classifier, or a file that does not exist or does not hold such a module.
    """
    if str(name) == "classifier":
        network: Any = classifier_features(data)
    else:
        if not Path(name).is_file():
            raise ValueError(f"extractor {str(name)!r} is neither 'classifier' nor a file")
        try:
            with warnings.catch_warnings():  # deprecated in favour of torch.export, but what Inception is published as
                warnings.simplefilter("ignore", DeprecationWarning)
                network = torch.jit.load(str(name), map_location="cpu").eval()
        except RuntimeError as error:
            raise ValueError(f"{name} is not a TorchScript file: {error}") from error

    def extract(images: torch.Tensor) -> np.ndarray:
        with torch.no_grad():
            return np.asarray(network(images.clamp(-1, 1)), np.float64)

    return extract


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


def _features(x: Any) -> np.ndarray:
    x = np.asarray(x, np.float64)
    if x.ndim != 2:
        raise ValueError(f"features have shape {x.shape}; need [images, features]")
    _check_finite(x)
    return x


def _check_sizes(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    if a[1] != b[1] or min(a[0], b[0]) < 2:
        raise ValueError(f"features of shapes {a} and {b}: need two images or more, and as many features")


def _check_finite(*arrays: np.ndarray) -> None:
    if bad := sum(int((~np.isfinite(x)).sum()) for x in arrays):
        raise ValueError(f"{bad} values are not finite; the samples diverged")
