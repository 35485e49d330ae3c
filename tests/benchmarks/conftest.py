"""A fixture that several test modules of the benchmarks share."""

import pytest
from tiny_models import Calls


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """The count of images that a network is evaluated on; all networks are tiny."""
    return Calls(monkeypatch)
