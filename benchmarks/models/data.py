"""Fashion-MNIST and the colour emoji as arrays in [-1, 1], from one .npz file or from the standard copies.

Fashion-MNIST (Xiao et al. 2017, arXiv 1708.07747; MIT licence): an .npz with `train_images`, `train_labels`,
`test_images`, `test_labels`; or the folder with the four IDX files of github.com/zalandoresearch/fashion-mnist, gzipped
or not.

Emoji (Google Noto, Apache-2.0): an .npz with `images`, `labels`, `categories`, `names`; or the `package` folder of the
npm package emoji-datasource-google (`emoji.json`, `img/google/64/*.png`).
"""

from __future__ import annotations

import gzip
import json
import re
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np

SIZE = 32
FASHION = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
IDX = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
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
    """The data set `name`, "fashion" or "emoji", from `path`; ValueError where it is not one of the forms above."""
    readers = {"fashion": _fashion, "emoji": _emoji}
    if name not in readers:
        raise ValueError(f"data set {name!r} is not one of {', '.join(readers)}")
    if not Path(path).exists():
        raise ValueError(f"{path} does not exist: give an .npz file or a folder as benchmarks/models/data.py says")
    return readers[name](path)


def to_unit(images: np.ndarray) -> np.ndarray:
    """Uint8 to float32 in [-1, 1]."""
    return images.astype(np.float32) / 127.5 - 1.0


def _fashion(path: str | Path) -> Images:
    keys = ("train_images", "train_labels", "test_images", "test_labels")
    arrays = [_idx(Path(path), name) for name in IDX] if Path(path).is_dir() else _npz(path, keys)
    if arrays[0].shape[1:] != (28, 28):
        raise ValueError(f"{path} holds images of shape {arrays[0].shape}, not [n, 28, 28]")
    train, test = (np.pad(images, ((0, 0), (2, 2), (2, 2)))[:, None] for images in (arrays[0], arrays[2]))
    train_labels, test_labels = (labels.astype(np.int64) for labels in (arrays[1], arrays[3]))
    return Images(train, train_labels, test, test_labels, FASHION, np.full(len(train), 1 / len(train)))


def _emoji(path: str | Path) -> Images:
    if Path(path).is_dir():
        images, labels, categories, names = _emoji_from_package(Path(path))
    else:
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


def _idx(folder: Path, name: str) -> np.ndarray:
    """One file of the IDX format: two zero bytes, 8 for uint8, the number of axes, their big-endian sizes, the data."""
    path = next((p for p in (folder / name, folder / f"{name}.gz") if p.exists()), None)
    if path is None:
        raise ValueError(f"{folder} has neither {name} nor {name}.gz")
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    shape = struct.unpack_from(f">{raw[3]}I", raw, 4)
    data = np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3])
    return data.reshape(shape)


def _emoji_from_package(folder: Path) -> list[np.ndarray]:
    """Images on white, in the order of their file names; each category's index is its place in alphabetical order."""
    from PIL import Image

    listing = folder / "emoji.json"
    if not listing.exists():
        raise ValueError(f"{folder} has no emoji.json: give the package folder of emoji-datasource-google")
    category_of: dict[str, str] = {}
    for entry in json.loads(listing.read_text()):
        for variant in (entry, *entry.get("skin_variations", {}).values()):
            category_of[variant["image"]] = entry["category"]
    categories = sorted(set(category_of.values()))
    images, labels, names = [], [], []
    for name, category in sorted(category_of.items()):
        file = folder / "img" / "google" / "64" / name
        if file.exists():
            tile = Image.open(file).convert("RGBA")
            images.append(np.asarray(Image.alpha_composite(Image.new("RGBA", tile.size, "white"), tile))[..., :3])
            labels.append(categories.index(category))
            names.append(name)
    return [np.stack(images), np.array(labels), np.array(categories), np.array(names)]
