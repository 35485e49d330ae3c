"""Lists of noise levels as people paste them: text or numbers, rounded, with or without a final 0."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

import numpy as np

from hso_jax.checks import brief, numbers

_SEPARATORS = re.compile(r"[\s,;|\[\](){}]+")
_SHOWN = 100  # characters of a list in a message


def level_list(name: str, values: Any) -> np.ndarray:
    """[K] float64 that fall, from noise to data; the last may be 0.

    Args:
        name: of the list, for messages.
        values: numbers in a list, tuple, array or tensor; or a text of them, apart by commas, blanks or lines.

    Raises:
        ValueError: for no values, more than one axis, what is no number, NaN, a negative or an infinite one (but for
            the first), and values that do not fall; it names the entry.
    """
    if isinstance(values, str):
        words = [word for word in _SEPARATORS.split(values) if word]
        try:
            values = [float(word) for word in words]
        except ValueError as error:
            raise ValueError(f"{name} is {brief(values)}; need numbers apart by commas or blanks ({error})") from error
    array = numbers(name, values.tolist() if hasattr(values, "tolist") else values)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{name} has shape {array.shape}; need one list of N + 1 values, the last of them the end")
    rule = f"{name} must fall, from noise to an end of 0 or more"
    for i, value in enumerate(array):
        if np.isnan(value) or value < 0 or (np.isinf(value) and i > 0):
            raise ValueError(f"{name}[{i}] is {value:g}; {rule}: leave it out")
        if i > 0 and not value < array[i - 1]:
            cure = "give it once" if value == array[i - 1] else "sort the list"
            raise ValueError(f"{name}[{i - 1}] is {array[i - 1]:.9g} and {name}[{i}] {value:.9g}; {rule}: {cure}")
    return array


def rounding(values: np.ndarray) -> np.ndarray:
    """By how much each value may be off: half a unit of its last written digit, or a float32's precision.

    A float64 that is a float32 (as a tensor's `tolist` gives it) counts with the digits of that.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        single = values.astype(np.float32)
    texts = [str(s) if float(s) == x else repr(float(x)) for x, s in zip(values, single, strict=True)]
    units = [float(Decimal(text).as_tuple().exponent) if np.isfinite(float(text)) else -np.inf for text in texts]
    return np.maximum(0.5 * 10.0 ** np.asarray(units), 1e-6 * np.where(np.isfinite(values), values, 0.0))


def to_range(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """The values, those that leave [low, high] by no more than their rounding taken to that end."""
    ends = np.clip(values, low, high)
    return np.where(np.abs(values - ends) <= rounding(values), ends, values)
