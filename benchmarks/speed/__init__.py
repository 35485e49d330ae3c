"""Speed of searches and of installed schedules."""

import time
from collections.abc import Callable


def seconds_of(function: Callable[[], object]) -> float:
    """Time one call."""
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin
