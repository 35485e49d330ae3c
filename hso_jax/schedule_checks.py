"""What every `Schedule` holds to, whoever made it."""

from __future__ import annotations

from typing import Any

import numpy as np

from hso_jax.checks import brief, choice, numbers, text
from hso_jax.origin import Origin, Scores
from hso_jax.solvers.nonstationary import NONSTATIONARY

LAYOUTS = ("node", "interval")
ENDS = ("clean", "t_eps")


def frozen(name: str, values: Any) -> np.ndarray:
    """Checked numbers as float64 that nobody can change."""
    array = numbers(name, values).copy()
    array.setflags(write=False)
    return array


def check_schedule(s: Any) -> None:
    """Check the counts, the order and the agreement of a schedule's fields. Raises ValueError that names the field."""
    choice("layout", s.layout, LAYOUTS)
    choice("end", s.end, ENDS)
    choice("kind", s.kind, ("vp", "ve", "flow"))
    text("model", s.model)
    text("noise", s.noise)
    for name, kind in (("origin", Origin), ("scores", Scores)):
        if not isinstance(getattr(s, name), kind):
            raise ValueError(f"{name} is {brief(getattr(s, name))}; need a {kind.__name__}")
    if s.layout == "node" and s.end == "t_eps":
        raise ValueError("end 't_eps' needs layout 'interval': layout 'node' has no node to stop at")
    if (s.coefficients is None) != (s.origin.solver != NONSTATIONARY):
        had = "none" if s.coefficients is None else "some"
        raise ValueError(f"coefficients: {had} for solver {s.origin.solver!r}; {NONSTATIONARY!r} alone has them")
    nodes = s.nfe + (s.layout == "interval")
    _check_nodes(s, nodes)
    if not (s.t[-1] >= 0 and s.t[0] <= 1 and s.sigmas[-1] > 0):
        raise ValueError(
            f"t must lie in [0, 1] and sigmas above 0; got t {s.t[-1]:.6g}..{s.t[0]:.6g}, last sigma {s.sigmas[-1]:.6g}"
        )
    if np.isinf(s.lams[0]) != np.isinf(s.sigmas[0]):
        raise ValueError(f"lams and sigmas disagree: lams[0] is {s.lams[0]}, sigmas[0] {s.sigmas[0]}")
    with np.errstate(over="ignore"):
        off = np.abs(np.log(s.sigmas[np.isfinite(s.lams)]) + s.lams[np.isfinite(s.lams)])
    if off.size and off.max() > 1e-6:
        raise ValueError(f"sigmas and lams disagree: sigma must be exp(-lam), off by {off.max():.3g} in the logarithm")


def _check_nodes(s: Any, nodes: int) -> None:
    for name, size in {"t": nodes, "lams": nodes, "sigmas": nodes, "timesteps": s.nfe}.items():
        array = getattr(s, name)
        if array.shape != (size,):
            raise ValueError(f"{name} has shape {array.shape}; layout {s.layout!r} at nfe {s.nfe} needs ({size},)")
        pure_noise = name in ("lams", "sigmas") and np.isinf(array[:1]).all()
        finite = np.isfinite(array)
        if not finite[1 if pure_noise else 0 :].all():
            i = int(np.flatnonzero(~finite)[-1])
            raise ValueError(f"{name}[{i}] is {array[i]}; every entry must be finite")
        steps = np.diff(array) * (1 if name == "lams" else -1)
        if not (steps > 0).all():
            i = int(np.flatnonzero(~(steps > 0))[0])
            order = "rise" if name == "lams" else "fall"
            raise ValueError(
                f"{name} must {order} strictly, but entry {i} is {array[i]:.9g} and entry {i + 1} {array[i + 1]:.9g}"
            )
