"""A published solver of velocities, run as it is."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks import neuralsolver
from benchmarks.targets import Target
from hso_jax import noise


def gaussian() -> Target:
    def denoiser(x: torch.Tensor, level) -> torch.Tensor:
        return x * level.alpha * 4.0 / (level.alpha**2 * 4.0 + level.sigma**2)

    return Target("gauss", noise.flow(name="gauss"), denoiser, (3,), 0, None)


def test_its_own_velocity_alone_is_euler_and_older_ones_are_weighed() -> None:
    one, s = gaussian(), np.linspace(1.0, 0.0, 6)
    latents = one.latents(40, 0).double()
    euler = latents
    for now, then in itertools.pairwise(s):
        v = (euler - one.denoiser(euler, SimpleNamespace(alpha=1.0 - now, sigma=now))) / now
        euler = euler + (then - now) * v
    found = neuralsolver.sample(one, neuralsolver.Learned(s, np.eye(5)), latents)
    torch.testing.assert_close(found, euler, rtol=1e-6, atol=1e-6)
    halves = 0.5 * (np.eye(5) + np.eye(5, k=-1))
    halves[0, 0] = 1.0
    other = neuralsolver.sample(one, neuralsolver.Learned(s, halves), latents)
    assert (other - euler).abs().max() > 0.01


def test_the_file_is_read_and_others_are_refused(tmp_path: Path) -> None:
    note = json.dumps({"coeffs": [[0.0, 0.0], [-1.25, 0.0]]})
    entry = {"source": "NeuralSolver (2505)", "N": 2, "values": [1.0, 0.5, 0.0001], "note": note}
    file = tmp_path / "published.json"
    file.write_text(json.dumps({"entries": [entry, {"source": "AYS"}]}))
    (solver,) = neuralsolver.read(file).values()
    np.testing.assert_array_equal(solver.weights, [[1.0, 0.0], [-1.25, 2.25]])
    assert solver.s[-1] == 0.0
    for text in ("[]", json.dumps({"entries": [{"source": "AYS"}]}), json.dumps({"entries": [{**entry, "note": "x"}]})):
        file.write_text(text)
        with pytest.raises(ValueError, match="has no coefficients of NeuralSolver"):
            neuralsolver.read(file)
    assert neuralsolver.main(["--file", str(file), "-o", str(tmp_path / "out.md")]) == 2
