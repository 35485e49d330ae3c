"""Bytes that a gradient keeps, against a count by hand, and against a real device."""

from __future__ import annotations

import pytest
import torch

from benchmarks.tuning import memory


class Block(torch.nn.Module):
    """Attention over itself, and a layer with an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(8, 16)

    def forward(self, x: torch.Tensor, return_dict: bool) -> torch.Tensor:
        x = torch.nn.functional.scaled_dot_product_attention(x, x, x)
        return torch.relu(self.layer(x))


def test_it_is_the_count_by_hand() -> None:
    def call() -> dict[str, torch.Tensor]:
        return {"x": torch.empty(2, 5, 8, dtype=memory.DTYPE, device="meta")}

    parameters, activations = memory.gradient_bytes(memory.Network(Block, call, "here"))
    assert parameters == 2 * (8 * 16 + 16)
    assert activations == 2 * (2 * 5 * 8 + 2 * 5 * 8 + 2 * 5 * 16)  # x, what attention makes of it, what relu makes


@pytest.mark.filterwarnings("ignore")
def test_every_network_is_counted() -> None:
    rows = [line.split("|")[1:-1] for line in memory.table().strip().splitlines()[2:]]
    assert [row[0].strip() for row in rows] == list(memory.NETWORKS)
    known = {"SD 1.5": 0.8595, "SDXL": 2.5675, "FLUX": 11.9}  # billions of parameters, as published
    for name, billions in known.items():
        (row,) = [row for row in rows if row[0].strip().startswith(name)]
        assert float(row[1]) == pytest.approx(2e9 * billions / memory.GIB, rel=0.02)
