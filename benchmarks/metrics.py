"""How far samples are from others, each with a 95 % bootstrap interval: RMSE, feature distance, Frechet distance.

The Frechet distance is torchmetrics' `FrechetInceptionDistance`, fed with features that were extracted before: its
public interface takes any extractor, and it looks for Inception's weights only where they are asked for. torchmetrics
is light (it brings one small package), and its distance is in float64 and by eigenvalues, so that a bootstrap is quick.
torch-fidelity has the same distance, but installs torchvision and downloads its network.

Images are judged as they are given; `benchmarks.models.subjects` does not clip them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torchmetrics.image.fid import FrechetInceptionDistance

from benchmarks.models.load import features as classifier_features

Extractor = Callable[[torch.Tensor], np.ndarray]

RESAMPLES = 1000
FRECHET_RESAMPLES = 100  # of 2 ms each at 96 features


class Estimate(NamedTuple):
    """A value and its 95 % interval over the choice of images."""

    value: float
    low: float
    high: float


def rmse(a: Any, b: Any, seed: int = 0) -> Estimate:
    """Root of the mean square of a - b over all pixels, images [n, ...] in pairs; images are resampled.

    Raises:
        ValueError: if the shapes differ, there is no image, or something is not finite.
    """
    a, b = _pair(a, b)
    return _root_mean(np.square(a - b).reshape(len(a), -1).mean(1), seed)


def feature_distance(a: Any, b: Any, seed: int = 0) -> Estimate:
    """Root of the mean squared Euclidean distance of features [n, d] in pairs; images are resampled.

    Raises:
        ValueError: as `rmse`.
    """
    a, b = _pair(a, b)
    return _root_mean(np.square(a - b).reshape(len(a), -1).sum(1), seed)


def frechet(a: Any, b: Any, *, paired: bool = True, seed: int = 0) -> Estimate:
    """Frechet distance |mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)) of features [n, d] and [m, d].

    Source: Dowson & Landau 1982, J. Multivariate Anal. 12; for images Heusel et al. 2017, arXiv 1706.08500, eq. 6.

    The distance of n samples to m others is biased upwards, by about as much as the two sets differ by chance: small
    sets only compare with sets of the same size. Between the samples of two solvers from the same noise the chance is
    the same on both sides, and the bias vanishes as they approach each other; `paired` then resamples both alike.
    A resampled set differs from its twin more than the sets themselves do, so that the resampled distances are too
    large on average; the interval has their spread, moved so that its centre of mass is the value.

    Raises:
        ValueError: as `rmse`, for fewer than two images, or for pairs of sets of different size.
    """
    a, b = _features(a), _features(b)
    if a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(f"features of shapes {a.shape} and {b.shape}: need two images or more, and as many features")
    if paired and len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} images are no pairs; use paired=False")
    draw = np.random.default_rng(seed)
    metric = FrechetInceptionDistance(_Given(a.shape[1]))
    value = _distance(metric, a, b)
    again = np.empty(FRECHET_RESAMPLES)
    for k in range(FRECHET_RESAMPLES):
        i = draw.integers(len(a), size=len(a))
        j = i if paired else draw.integers(len(b), size=len(b))
        again[k] = _distance(metric, a[i], b[j])
    low, high = (float(x) for x in np.quantile(again, (0.025, 0.975)) - again.mean())
    return Estimate(value, max(0.0, value + low), value + high)


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """`frechet` without its interval."""
    a, b = _features(a), _features(b)
    return _distance(FrechetInceptionDistance(_Given(a.shape[1])), a, b)


class _Given(torch.nn.Module):
    """An extractor of features that were extracted before."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The features themselves."""
        return x


def _distance(metric: FrechetInceptionDistance, a: np.ndarray, b: np.ndarray) -> float:
    metric.reset()
    metric.update(torch.from_numpy(a), real=True)
    metric.update(torch.from_numpy(b), real=False)
    return max(0.0, float(metric.compute()))


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


def _root_mean(squares: np.ndarray, seed: int) -> Estimate:
    """From one mean square an image."""
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


def _check_finite(*arrays: np.ndarray) -> None:
    if bad := sum(int((~np.isfinite(x)).sum()) for x in arrays):
        raise ValueError(f"{bad} values are not finite; the samples diverged")
