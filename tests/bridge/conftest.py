"""What diffusers warns of by itself is not ours to fail on; and nothing here may reach for the network."""

import socket
from typing import Any

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """NumPy 2 deprecates how diffusers turns tensors into arrays; diffusers deprecates two algorithms still tested."""
    for item in items:
        item.add_marker(pytest.mark.filterwarnings("ignore:__array_?.*:DeprecationWarning"))
        item.add_marker(pytest.mark.filterwarnings("ignore:.*algorithm_type.*:FutureWarning"))


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a test tried to open a network connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
