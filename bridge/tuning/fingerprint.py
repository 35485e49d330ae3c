"""A short text that tells one model's weights from another's, whatever precision they are loaded in."""

from __future__ import annotations

import hashlib
from typing import Any

import torch

from bridge.tuning.models import NETWORKS

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
