"""GITS: the nodes of the teacher's own trajectories between which Euler steps stray least, by dynamic programming.

Source: Chen et al. 2024, "On the Trajectory Regularity of ODE-based Diffusion Sampling", ICML, arXiv 2405.11326: the
cost of a step is the distance to the teacher's trajectory after a single Euler step from it, with the sample divided by
alpha. The trajectories are there once the converged samples are made: N nodes for any solver take no more evaluations.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

COEFFICIENT = 1.15
"""By how much more each further step counts; the authors' for 5 to 10 evaluations."""


def euler_costs(
    xs: Sequence[torch.Tensor], x0s: Sequence[torch.Tensor], alpha: Sequence[float], sigma: Sequence[float]
) -> np.ndarray:
    """[L + 1, L + 1] sums over samples: how far an Euler step from level i ends from the teacher at j > i; else inf.

    The trajectory is xs [L + 1] of [n, ...], alpha x_0 + sigma eps, the last clean, with the predictions of clean data
    x0s [L]; alpha and sigma are [L], alpha 0 at pure noise.
    """
    levels = len(x0s)
    data = [x.flatten(1) / a for x, a in zip(xs, (*alpha, 1.0), strict=True) if a > 0]
    first = levels + 1 - len(data)  # levels of pure noise: no step ends there
    trajectory = torch.stack(data)
    ends_at = torch.tensor([*(s / a for s, a in zip(sigma, alpha, strict=True) if a > 0), 0.0], dtype=trajectory.dtype)
    costs = np.full((levels + 1, levels + 1), np.inf)
    for i, (x, x0) in enumerate(zip(xs, x0s, strict=False)):
        later = max(i + 1, first)
        clean = x0.flatten(1)
        noise = (x.flatten(1) - alpha[i] * clean) / sigma[i]
        there = clean + ends_at[later - first :, None, None] * noise
        costs[i, later:] = torch.linalg.vector_norm(there - trajectory[later - first :], dim=-1).sum(1)
    return costs


def best_path(costs: np.ndarray, nfe: int, coefficient: float = 1.0) -> np.ndarray:
    """Indices [N] of the levels where the cheapest path of N steps from level 0 to the last one (left out) steps.

    A step's cost counts `coefficient` to the power of the steps before it: above 1 it accounts for later steps that
    start off the trajectory. `V_1(i) = costs[i, L]` and `V_k(i) = min over j of costs[i, j] + coefficient V_{k-1}(j)`.
    """
    value = costs[:, -1]
    choices = []
    for _ in range(nfe - 1):
        through = costs + coefficient * value
        choices.append(through.argmin(1))
        value = through.min(1)
    path = [0]
    for choice in reversed(choices):
        path.append(int(choice[path[-1]]))
    return np.array(path)
