"""Fashion-MNIST and the colour emoji as arrays in [-1, 1], from one .npz file.

Fashion-MNIST (Xiao et al. 2017, arXiv 1708.07747; MIT licence): `train_images` and `test_images` [n, 28, 28] uint8,
`train_labels` and `test_labels` [n].

Emoji (Google Noto, Apache-2.0): `images` [n, 64, 64, 3] uint8 on white, `labels` [n] into `categories`, and `names`
of files in the npm package emoji-datasource-google.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

SIZE = 32
FASHION = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
VARIANT = re.compile(r"-(1f3f[b-f]|fe0f)")  # skin tones, and the mark that asks for a picture


class Images(NamedTuple):
    """A labelled set, split for training and judging."""

    train: np.ndarray  # [n, C, 32, 32] uint8
    train_labels: np.ndarray  # [n] int64
    test: np.ndarray  # [m, C, 32, 32] uint8
    test_labels: np.ndarray  # [m] int64
    classes: tuple[str, ...]
    chances: np.ndarray  # [n] with which training draws each image; skin-tone variants share their character's


def load_data(name: str, path: str | Path) -> Images:
    """The data set `name`, "fashion" or "emoji", from `path`; ValueError where it is not as above."""
    readers = {"fashion": _fashion, "emoji": _emoji}
    if name not in readers:
        raise ValueError(f"data set {name!r} is not one of {', '.join(readers)}")
    if not Path(path).exists():
        raise ValueError(f"{path} does not exist: give an .npz file as benchmarks/models/data.py says")
    return readers[name](path)


def to_unit(images: np.ndarray) -> np.ndarray:
    """Uint8 to float32 in [-1, 1]."""
    return images.astype(np.float32) / 127.5 - 1.0


def _fashion(path: str | Path) -> Images:
    keys = ("train_images", "train_labels", "test_images", "test_labels")
    arrays = _npz(path, keys)
    if arrays[0].shape[1:] != (28, 28):
        raise ValueError(f"{path} holds images of shape {arrays[0].shape}, not [n, 28, 28]")
    train, test = (np.pad(images, ((0, 0), (2, 2), (2, 2)))[:, None] for images in (arrays[0], arrays[2]))
    train_labels, test_labels = (labels.astype(np.int64) for labels in (arrays[1], arrays[3]))
    return Images(train, train_labels, test, test_labels, FASHION, np.full(len(train), 1 / len(train)))


def _emoji(path: str | Path) -> Images:
    images, labels, categories, names = _npz(path, ("images", "labels", "categories", "names"))
    if images.ndim != 4 or images.shape[1:] != (64, 64, 3):
        raise ValueError(f"{path} holds images of shape {images.shape}, not [n, 64, 64, 3]")
    small = images.reshape(-1, SIZE, 2, SIZE, 2, 3).astype(np.float32).mean((2, 4))  # 64 to 32: the mean of 2 x 2
    small = np.round(small).astype(np.uint8).transpose(0, 3, 1, 2)
    bases = np.array([VARIANT.sub("", str(name)) for name in names])
    unique = np.unique(bases)
    held_out = np.random.default_rng(0).permutation(len(unique))[: len(unique) // 10]
    test = np.isin(bases, unique[held_out])
    labels = labels.astype(np.int64)
    _, which, variants = np.unique(bases[~test], return_inverse=True, return_counts=True)
    chances = 1 / variants[which] / len(variants)
    return Images(small[~test], labels[~test], small[test], labels[test], tuple(str(c) for c in categories), chances)


def _npz(path: str | Path, keys: tuple[str, ...]) -> list[np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not an .npz file: {error}") from error
    if missing := [key for key in keys if key not in arrays]:
        raise ValueError(f"{path} lacks the arrays {', '.join(missing)}; it holds {', '.join(arrays)}")
    return [arrays[key] for key in keys]
