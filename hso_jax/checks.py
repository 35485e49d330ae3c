"""Checks of what callers pass in, with messages that name the value and the fix."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, TypeGuard

import numpy as np


def check_nfe(nfe: object) -> int:
    """`nfe` as an int. Raises ValueError unless it is a whole number of at least 1."""
    if not is_whole(nfe) or nfe < 1:
        raise ValueError(f"nfe is {nfe!r}; need whole numbers of at least 1")
    return int(nfe)


def check_seed(seed: object) -> int:
    """`seed` as an int. Raises ValueError unless it is a whole number in 0..2^31 - 1."""
    if not is_whole(seed) or not 0 <= seed < 2**31:
        raise ValueError(f"seed is {seed!r}; need a whole number from 0 to 2^31 - 1")
    return int(seed)


def check_choice(name: str, value: object, known: Iterable[str], more: str = "") -> None:
    """Raises ValueError unless the value is one of the known names."""
    names = list(known)
    if not (isinstance(value, str) and value in names):
        raise ValueError(f"{name} is {value!r}; use one of {', '.join(names)}{more}")


def check_guidance(guidance: object) -> float:
    """A weight of classifier-free guidance as a float. Raises ValueError unless finite and at least 0."""
    if not is_number(guidance) or not 0 <= guidance < math.inf:
        raise ValueError(f"guidance is {guidance!r}; need a finite number of at least 0 (1 is no guidance)")
    return float(guidance)


def is_whole(value: Any) -> TypeGuard[int]:
    """Whether it is a whole number; True and False are none."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def is_number(value: Any) -> TypeGuard[float]:
    """Whether it is a number; True and False are none."""
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
