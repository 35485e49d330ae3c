"""What diffusers warns of by itself is not ours to fail on."""

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """NumPy 2 deprecates how diffusers turns tensors into arrays; diffusers deprecates two algorithms still tested.

    torchsde rounds the ends of a path, and warns when diffusers asks for increments up to them.
    """
    for item in items:
        item.add_marker(pytest.mark.filterwarnings("ignore:__array_?.*:DeprecationWarning"))
        item.add_marker(pytest.mark.filterwarnings("ignore:.*algorithm_type.*:FutureWarning"))
        item.add_marker(pytest.mark.filterwarnings("ignore:Should have t[ab].=t[01]:UserWarning"))
