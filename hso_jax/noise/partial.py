"""The part of a noise schedule that image-to-image samples with."""

from __future__ import annotations

import dataclasses

import numpy as np

from hso_jax.noise.noise_schedule import NoiseSchedule, cubic_coefficients

_CELLS = 4096


def from_level(noise: NoiseSchedule, lam: float) -> NoiseSchedule:
    """The levels from lam on to clean data: what is noised no further begins there, in place of the model's noise end.

    Times, and what the network is told, stay the model's own. Where the model's noise end is pure noise, lam lies
    within 1e-7 of its own (1e-4 for a part up to t = .999); elsewhere it is the same to the bit.

    Args:
        noise: the model's, with concrete leaves.
        lam: the new noise end, finite and between the model's ends.
    """
    end = float(noise.t_of_lam(np.asarray(float(lam))))
    part = dataclasses.replace(noise, t_max=np.asarray(end), tail=np.zeros(()))
    if not noise.log_1mt > 0:
        return part
    # The logarithm that takes lam to -inf at t = 1 joins the cubic part.
    first = float(noise.first)
    smooth = dataclasses.replace(noise, log_t=np.zeros(())).lam(np.linspace(first, end, _CELLS + 1))
    return dataclasses.replace(
        part,
        coefficients=cubic_coefficients(smooth),
        cells=np.asarray(float(_CELLS)),
        spacing=np.asarray((end - first) / _CELLS),
        log_1mt=np.zeros(()),
    )
