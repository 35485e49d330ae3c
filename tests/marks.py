"""Families of tests: a plain run has a few members, CI has all."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def slow_but(kept: Iterable[Any], every: Iterable[Any]) -> list[Any]:
    """List all members for `parametrize`; those that are not kept are slow."""
    kept, values = list(kept), ((x, x if isinstance(x, tuple) else (x,)) for x in every)
    return [pytest.param(*given, marks=[pytest.mark.slow] * (x not in kept)) for x, given in values]
