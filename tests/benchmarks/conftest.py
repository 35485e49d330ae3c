"""What several test modules of the benchmarks share."""

import pytest
from tiny_models import Calls


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """The count of images that a network is evaluated on; all networks are tiny."""
    return Calls(monkeypatch)


def pytest_collection_modifyitems(items):
    """Warnings of diffusers and torch that no benchmark can help."""
    for item in items:
        if "tests/benchmarks" in str(item.path):
            for message in (
                "ignore:__array_?.*:DeprecationWarning",
                "ignore::FutureWarning:diffusers.*",
                "ignore:.*torch.jit:DeprecationWarning",
            ):
                item.add_marker(pytest.mark.filterwarnings(message))
