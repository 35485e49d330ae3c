"""Values and files from outside, checked by kind before anything is computed from them.

Every check returns the value in Python's or NumPy's own type, or raises a ValueError that names it and what is needed.
"""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Iterable
from decimal import Decimal
from typing import Any

import numpy as np

MOST_LEVELS = 1_000_000
"""Of a training table: a thousand times the usual, and small enough to hold."""

GUIDANCE = "a finite number of at least 0 and below 1e6 (0 and 1 are without guidance)"

_SEPARATORS = re.compile(r"[\s,;|\[\](){}]+")


def brief(value: Any) -> str:
    """The value for a message: cut short, whatever its size, its depth and its own `repr`."""
    try:
        return reprlib.repr(value)
    except Exception:  # such as a number of more digits than Python prints
        return f"a {type(value).__name__} that cannot be shown"


def printable(text: object) -> str:
    r"""The text with everything that is no visible character written as an escape: ESC as \x1b, a newline as \n.

    Terminals obey control characters, and lone surrogates (bytes of an argument that are no UTF-8, or escapes in a JSON
    file) can be neither printed nor drawn.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text))


def number(
    name: str,
    value: Any,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    closed: bool = False,
    need: str | None = None,
) -> float:
    """A finite real number between low and high as a float; `closed` allows `low` itself, `need` words the message.

    NumPy's numbers and arrays of one number count; booleans and texts do not.
    """
    found = _real(value)
    if not (math.isfinite(found) and (low < found < high or (closed and found == low))):
        bounds = [f"{'at least' if closed else 'above'} {low:g}"] if math.isfinite(low) else []
        bounds += [f"below {high:g}"] if math.isfinite(high) else []
        text = " ".join(["a finite number", " and ".join(bounds)]).strip()
        raise ValueError(f"{name} is {brief(value)}; need {need or text}")
    return found


def whole(name: str, value: Any, low: int, high: int | None = None) -> int:
    """A whole number from low to high as an int; 1000.0 is one."""
    found = int(value) if isinstance(value, np.integer) else value
    if not isinstance(found, int) or isinstance(found, bool):
        real = _real(found)
        found = int(real) if math.isfinite(real) and real == int(real) else None
    if found is None or found < low or (high is not None and found > high):
        bound = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise ValueError(f"{name} is {brief(value)}; need a whole number {bound}")
    return found


def count(name: str, value: Any, low: int, high: int | None = None) -> int:
    """As `whole`, but for what is counted or numbered: a float is none, whatever its value."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise ValueError(f"{name} is {brief(value)}; need a whole number, no {type(value).__name__}")
    return whole(name, value, low, high)


def text(name: str, value: Any) -> str:
    """A text."""
    if not isinstance(value, str):
        raise ValueError(f"{name} is {brief(value)}; need a text")
    return value


def flag(name: str, value: Any) -> bool:
    """A boolean. The text "false" would count as true, so texts are refused."""
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{name} is {brief(value)}; need true or false, without quotes")
    return bool(value)


def choice(name: str, value: Any, known: Iterable[str]) -> str:
    """One of the known texts."""
    names = list(known)
    if not isinstance(value, str) or value not in names:
        near = nearest(value, names) if isinstance(value, str) else ""
        raise ValueError(f"{name} is {brief(value)}{near}; use one of {', '.join(names)}")
    return value


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean ...?`, or nothing where no known name is near."""
    import difflib  # only where something is wrong

    found = difflib.get_close_matches(name[:100], list(known), 1)
    return f"; did you mean {found[0]}?" if found else ""


def numbers(name: str, values: Any) -> np.ndarray:
    """[...] float64 of numbers: no booleans, texts, nulls, complex numbers or ragged lists."""
    bad = ""
    try:
        array = np.asarray(values)
        listed = isinstance(values, (list, tuple)) or array.dtype.kind in "iuf"  # an array of numbers has no others
        bad = _no_number(name, values if listed else array.tolist())
        if bad or array.dtype.kind not in "iufO":
            raise TypeError("no booleans, texts or nulls")
        return array.astype(np.float64)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        found = bad or f"{name} is {brief(values)}"
        raise ValueError(f"{found}; need numbers in lists of one length ({error})") from error


def _no_number(name: str, value: Any) -> str:
    """Which entry of a list, or of lists in it, is no number, though NumPy might make it one; else nothing."""
    if isinstance(value, (list, tuple)):
        return next((bad for i, x in enumerate(value) if (bad := _no_number(f"{name}[{i}]", x))), "")
    none = value is None or isinstance(value, (bool, np.bool_, str, bytes))
    return f"{name} is {brief(value)}" if none else ""


def level_list(name: str, values: Any) -> np.ndarray:
    """[K] float64 that fall, from noise to data: the first may be infinite, the last 0.

    They are numbers in a list, tuple, array or tensor, or a text of them, apart by commas, blanks or lines.
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


def check_nfe(nfe: object) -> int:
    """N, a whole number of at least 1."""
    return count("nfe", nfe, 1)


def check_seed(seed: object) -> int:
    """A whole number in 0..2^31 - 1."""
    return count("seed", seed, 0, 2**31 - 1)


def check_guidance(guidance: object, usual: float = 1.0) -> float:
    """The weight w of classifier-free guidance: the usual one for None, and 1 (no guidance) for all from 0 to 1.

    diffusers' pipelines evaluate a second time only for `guidance_scale` above 1, so 0 and 1 mean the same in them.
    """
    weight = usual if guidance is None else guidance
    return max(1.0, number("guidance", weight, low=0.0, high=1e6, closed=True, need=GUIDANCE))


def _real(value: Any) -> float:
    """The number, or NaN for what is none."""
    if isinstance(value, (bool, np.bool_, str, bytes)) or value is None:
        return math.nan
    shape, dtype = getattr(value, "shape", ()), getattr(value, "dtype", None)
    if shape not in ((), (1,)) or getattr(dtype, "kind", "f") not in "iuf":
        return math.nan
    try:
        return float(value.item() if hasattr(value, "item") else value)
    except (TypeError, ValueError, OverflowError):
        return math.nan
