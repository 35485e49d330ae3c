"""Whatever the noise schedule, budget, box and spacing: monotone, finite, in the box, spacing kept."""

from __future__ import annotations

import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from problems import random_table

from hso_jax import Effort, Hso, Lane, search_many
from hso_jax.hso import Box
from hso_jax.noise import discrete
from hso_jax.schedule import LAYOUTS
from hso_jax.searches import checked

LANES, LEVELS, MOST = 8, 40, 16
EFFORT = Effort(population=8, generations=4, lanes=LANES)


@st.composite
def tables(draw: st.DrawFn) -> np.ndarray:
    """Smooth random tables, and rough ones: forty betas between 1e-3 and 0.5, each on its own."""
    if draw(st.booleans()):
        return random_table(draw(st.integers(0, 10_000)), LEVELS)
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    return np.cumprod(1.0 - 10.0 ** rng.uniform(-3.0, -0.3, LEVELS))


@st.composite
def lanes(draw: st.DrawFn) -> Lane:
    nfe, layout = draw(st.integers(2, MOST)), draw(st.sampled_from(LAYOUTS))
    t_eps = sorted(draw(st.tuples(st.floats(0.025, 0.3), st.floats(0.025, 0.3))))
    t_max = sorted(draw(st.tuples(st.floats(0.4, 1.0), st.floats(0.4, 1.0))))
    rho = sorted(draw(st.tuples(st.floats(1.0, 20.0), st.floats(1.0, 20.0))))
    intervals = nfe - (layout == "node")
    # Up to the most that fits the whole box: the search must then find a psi that has the room.
    spacing = draw(st.floats(0.0, 1.0)) * (t_max[1] - t_eps[0]) / intervals
    noise = discrete(alphas_cumprod=draw(tables()))
    box = Box(tuple(rho), tuple(t_eps), tuple(t_max))
    p, seed = draw(st.sampled_from([0.5, 1.0, 2.0, 3.0])), draw(st.integers(0, 99))
    return Lane(noise, nfe, layout, seed, Hso(p=p, spacing=spacing, box=box))


# Not shrunk: a failing example takes a tenth of a second to try, and its message names the lane.
@settings(
    max_examples=15, deadline=None, derandomize=True, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
)
@given(st.lists(lanes(), min_size=LANES - 1, max_size=LANES - 1))
def test_what_always_holds(some: list[Lane]) -> None:
    # The last lane fixes the number of nodes: one compiled shape for all examples.
    how = Hso(spacing=0.01, box=Box(t_eps=(0.03, 0.05)))
    longest = Lane(discrete(alphas_cumprod=random_table(0, LEVELS)), MOST, "interval", method=how)
    found = search_many([*some, longest], effort=EFFORT)
    for lane, s in zip(some, found, strict=False):
        box, d_min = checked([lane])[0].method.box, checked([lane])[0].method.spacing
        assert np.all(np.isfinite(s.t)) and np.all(np.isfinite(s.lams)) and np.isfinite(s.spf)
        assert np.all(np.diff(s.t) < 0) and np.all(np.diff(s.lams) > 0)
        assert box.t_max[0] <= s.t[0] <= box.t_max[1] and box.t_eps[0] <= s.t[-1] <= box.t_eps[1]
        assert s.min_spacing >= d_min - 1e-9, (d_min, s.min_spacing, lane.nfe, lane.layout, box)
        assert s.result != "not_finite"
