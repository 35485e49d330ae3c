"""What diffusers warns of by itself is not ours to fail on."""

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """NumPy 2 deprecates how diffusers turns tensors into arrays; diffusers deprecates two algorithms still tested."""
    for item in items:
        item.add_marker(pytest.mark.filterwarnings("ignore:__array_?.*:DeprecationWarning"))
        item.add_marker(pytest.mark.filterwarnings("ignore:.*algorithm_type.*:FutureWarning"))
