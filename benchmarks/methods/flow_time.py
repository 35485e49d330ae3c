"""Equal steps of a rectified flow's time with a shift, for a model of any kind: rules that flow pipelines use."""

from __future__ import annotations

import numpy as np

from hso_jax import NoiseSchedule, Origin, Schedule
from hso_jax.noise import lam_of_s, s_of_lam

SHIFTS = {"flow-2": 2.0, "flow-3": 3.0}
"""Name of the rule to its shift."""


def flow_time(name: str, noise: NoiseSchedule, nfe: int) -> Schedule:
    """N nodes s = s_0 c u/(1 + (c - 1) u), u = 1 - i/N, c the shift; s = sigma/(alpha + sigma), s_0 at the noise end.

    For a rectified flow s_0 is 1 and this is the shifted time of arXiv 2403.03206, eq. 23.

    Args:
        name: a key of `SHIFTS`.
        noise: the model's noise schedule, of any kind.
        nfe: N.
    """
    shift, u = SHIFTS[name], 1.0 - np.arange(nfe) / nfe
    s = float(s_of_lam(noise.noise_end)) * shift * u / (1.0 + (shift - 1.0) * u)
    lams = lam_of_s(s)
    lams[0] = noise.noise_end
    return Schedule.from_lams(noise, lams, origin=Origin(method=name))
