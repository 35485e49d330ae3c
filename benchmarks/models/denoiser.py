"""What methods that run the model work with: noise that nothing is judged on, and the predictor of clean data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.models.subjects import Subject

OWN_SEEDS = 1_000_000
"""Subjects with seeds from here on belong to preparation; schedules are judged on smaller ones."""


def own_subject(subject: Subject, count: int, seed: int, dtype: str | None = None) -> Subject:
    """The same model and guidance on `count` other noises, so that nothing is judged on what it was prepared with.

    Args:
        subject: what is judged.
        count: of noises.
        seed: of the preparation; 0, 1, ... each have their own noises.
        dtype: of the network, the subject's by default.

    Raises:
        ValueError: for a negative seed, or a subject whose seed is one of preparation.
    """
    if seed < 0 or subject.seed >= OWN_SEEDS:
        raise ValueError(
            f"seed is {seed} and the subject's {subject.seed}; need 0 or more, and a subject below {OWN_SEEDS}"
        )
    return Subject(subject.name, subject.guidance, count=count, seed=OWN_SEEDS + seed, dtype=dtype or subject.dtype)


def denoiser(subject: Subject, rows: slice) -> Callable[[torch.Tensor, Any], torch.Tensor]:
    """`(x, level) -> x0`, the guided prediction of clean data for `x` [n, C, 32, 32] that stands at `rows`' noise.

    `level` is a `bridge.sampling.Level`. Its timestep, alpha and sigma may be 0-dim tensors: the result is
    differentiable in x and in all three (`UNet2DModel` embeds a float timestep as it is).
    """
    # Not `Subject.predict`, which is under `no_grad`.
    trained, labels, guidance = subject._trained, subject.labels[rows], subject.guidance
    kind = "flow" if subject.noise.kind == "flow" else trained.scheduler.config.prediction_type

    def predict(x: torch.Tensor, level: Any) -> torch.Tensor:
        output = trained.predict(x, level.timestep, labels, guidance)
        if kind == "epsilon":
            return (x - level.sigma * output) / level.alpha
        if kind == "v_prediction":
            return level.alpha * x - level.sigma * output
        return x - level.sigma * output

    return predict
