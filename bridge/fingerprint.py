"""A short text that tells one model's weights from another's, whatever precision they are loaded in."""

from __future__ import annotations

import hashlib
import warnings
from typing import Any

import torch

from hso_jax.schedule import Schedule

NETWORKS = ("unet", "transformer", "transformer_2", "prior", "denoiser")
"""Components of pipelines that are called in every step."""

_FEW = 8


def fingerprint(pipe: Any) -> str:
    """16 hexadecimal digits of a pipeline's networks, their adapters included.

    It is made of every parameter's name, shape and first values, rounded to two digits. Half precision may change it
    where a value lies on the edge of a rounding: it is for a warning, not for proof.
    """
    digest = hashlib.sha256()
    for name in NETWORKS:
        network = getattr(pipe, name, None)
        if not isinstance(network, torch.nn.Module):
            continue
        for key, value in sorted(network.named_parameters()):
            first = value.detach().flatten()[:_FEW].float().cpu().tolist()
            digest.update(f"{name}.{key} {tuple(value.shape)} {[f'{x:.1e}' for x in first]}".encode())
    return digest.hexdigest()[:16]


def warn_of_other_weights(pipe: Any, schedule: Schedule) -> None:
    """Warn of a schedule that was tuned on other weights than a pipeline's."""
    tuned = schedule.origin.tuned or {}
    if tuned.get("weights") not in (None, fingerprint(pipe)):
        warnings.warn(
            f"this schedule was tuned on other weights ({tuned.get('pipeline')}, {tuned['weights']}) than this "
            f"{type(pipe).__name__} has; tune on these: bridge.tune(pipe, {schedule.nfe})",
            stacklevel=3,
        )
