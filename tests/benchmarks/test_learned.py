"""Coefficients that others learned: how they are read, and that their steps are what the docstring says."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks import learned


def entry(nfe, coefficients, levels=None):
    note = json.dumps({"coeffs": coefficients})
    return {"N": nfe, "values": list(levels or np.linspace(1.0, -0.0002, nfe + 1)), "note": note}


def written(tmp_path, *entries):
    path = tmp_path / "published.json"
    path.write_text(json.dumps({"entries": list(entries)}))
    return path


def test_entries_with_coefficients_are_read(tmp_path):
    """Others are passed over; a last level that is nearly 0 is 0."""
    found = learned.read(written(tmp_path, {"N": 3, "values": [1, 0.5, 0.2, 0]}, entry(2, [[0, 0], [-0.5, 0]])))
    assert list(found) == [2] and found[2].levels[-1] == 0.0 and found[2].coefficients[1, 0] == -0.5


@pytest.mark.parametrize("coefficients", [[[0, 0]], [[0, 0.1], [0, 0]]])
def test_coefficients_that_do_not_fit_are_refused(tmp_path, coefficients):
    with pytest.raises(ValueError, match=r"entries\[0\]: coefficients"):
        learned.read(written(tmp_path, entry(2, coefficients)))
    with pytest.raises(ValueError, match="no entry with coefficients"):
        learned.read(written(tmp_path, {"N": 2, "values": [1, 0.5, 0]}))


def test_steps_are_those_of_velocities():
    """A constant velocity is exact; two steps by hand."""
    start = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    one = learned.Learned(np.array([1.0, 0.6, 0.0]), np.array([[0.0, 0.0], [-0.5, 0.0]]))
    constant = SimpleNamespace(start=start, predict=lambda x, t: torch.full_like(x, 3.0))
    assert torch.allclose(learned.run(one, constant), start - 3.0)
    moving = SimpleNamespace(start=start, predict=lambda x, t: x * t / 1000.0)
    first = start - 0.4 * start
    by_hand = first - 0.6 * (1.5 * first * 0.6 - 0.5 * start)
    assert torch.allclose(learned.run(one, moving), by_hand)
