"""What the tests share: noise families with their closed forms, random noise, known minimisers, a batched solver.

Oracles are written from the formulas of the papers and share no code with `hso_jax`; the larger ones are in
`tests/oracles/scipy_search.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from oracles import scipy_search as reference

from hso_jax import Effort, Hso, Lane
from hso_jax.lower import trust_region
from hso_jax.lower.trust_region import interval_objective
from hso_jax.mep_spf import mep_interval_derivatives
from hso_jax.noise import NoiseSchedule, cosine, discrete, edm, flow, linear_vp, stack, ve

SD_TABLE = reference.sd_lam_table()
"""alphas_cumprod of Stable Diffusion, from the oracle's own formula."""

METHOD_MINIMISERS = {
    3: ([999, 733, 370, 9], 3.5820),
    4: ([999, 813, 570, 279, 9], 3.4454),
    8: ([999, 913, 816, 705, 579, 440, 288, 131, 9], 3.3222),
    10: ([999, 931, 857, 774, 682, 580, 470, 351, 226, 102, 9], 3.3080),
}
"""Measured minimisers of MEP (p = 2, t from 1 to 0.01, SD noise) by M: diffusers timesteps, rounded, and J."""


def lam_of_bar(alphas_cumprod: np.ndarray) -> np.ndarray:
    """`log sqrt(acp/(1 - acp))`, straight from the definition."""
    return np.log(np.sqrt(alphas_cumprod / (1.0 - alphas_cumprod)))


class Family(NamedTuple):
    """A noise schedule and its half log-SNR in closed form (float64)."""

    noise: NoiseSchedule
    lam: Callable[[np.ndarray], np.ndarray]


def _linear_vp(t: np.ndarray) -> np.ndarray:
    alpha2 = np.exp(-(0.1 * t + 0.5 * 19.9 * t * t))
    return 0.5 * (np.log(alpha2) - np.log1p(-alpha2))


def _cosine(t: np.ndarray) -> np.ndarray:
    angle = 0.5 * np.pi * (t + 0.008) / 1.008
    return np.log(np.cos(angle)) - np.log(np.sin(angle))


def _flow(t: np.ndarray, shift: float) -> np.ndarray:
    s = shift * t / (1.0 + (shift - 1.0) * t)
    return np.log((1.0 - s) / s)


def _edm(t: np.ndarray) -> np.ndarray:
    return -np.log((0.002 ** (1 / 7) + t * (80.0 ** (1 / 7) - 0.002 ** (1 / 7))) ** 7)


CLOSED_FORMS = {
    "linear-vp": Family(linear_vp(), _linear_vp),
    "cosine": Family(cosine(), _cosine),
    "ve": Family(ve(), lambda t: -np.log(0.01 * (50.0 / 0.01) ** t)),
    "edm": Family(edm(), _edm),
    "flow": Family(flow(), functools.partial(_flow, shift=1.0)),
    "flow-3": Family(flow(3.0), functools.partial(_flow, shift=3.0)),
}

TABLES = {
    "scaled-linear": SD_TABLE,
    "linear": np.cumprod(1.0 - np.linspace(1e-4, 0.02, 1000)),
    "three": np.array([0.9, 0.5, 0.1]),
    "two": np.array([0.8, 0.2]),
    "stairs": np.cumprod(1.0 - np.tile([1e-4, 0.3], 20)),
}
"""alphas_cumprod of discrete models: published ones, the shortest, and one whose slope jumps by a thousand."""


def every_noise() -> dict[str, NoiseSchedule]:
    """One schedule of each family, among them three at zero terminal SNR."""
    noises = {name: family.noise for name, family in CLOSED_FORMS.items()}
    noises |= {name: discrete(alphas_cumprod=table) for name, table in TABLES.items()}
    return noises | {"zero-snr": discrete(alphas_cumprod=SD_TABLE, rescale_betas_zero_snr=True)}


def random_table(seed: int, levels: int = 100, swing: float = 1.2) -> np.ndarray:
    """A random alphas_cumprod [levels]: smooth, with a log-SNR whose rate of fall varies by exp(2 swing)."""
    rng = np.random.default_rng(seed)
    t = np.arange(1, levels + 1) / levels
    waves = sum(rng.normal() / k * np.cos(np.pi * k * t + rng.uniform(0, np.pi)) for k in range(1, 5))
    fall = np.cumsum(np.exp(np.clip(waves, -swing, swing)))
    fall = (fall - fall[0]) / (fall[-1] - fall[0])
    high, low = rng.uniform(2.0, 5.0), rng.uniform(-5.0, -1.0)
    return 1.0 / (1.0 + np.exp(-2.0 * (high + (low - high) * fall)))


class Smooth:
    """A noise schedule as the SciPy oracle wants it, with the exact derivative."""

    def __init__(self, noise: NoiseSchedule) -> None:
        self.lam = noise.lam
        self.dlam_dt = lambda t: noise.lam_derivatives(t)[1]


class Problem(NamedTuple):
    """One lower-level problem. `start` is in t, all M + 1 nodes; uniform in t if None."""

    noise: NoiseSchedule
    intervals: int
    t_max: float = 1.0
    t_eps: float = 0.01
    p: float = 2.0
    spacing: float = 0.0
    start: np.ndarray | None = None

    def starting_nodes(self) -> np.ndarray:
        """[M + 1] the nodes to start from."""
        return np.linspace(self.t_max, self.t_eps, self.intervals + 1) if self.start is None else self.start


BATCH, NODES = 16, 65


@functools.partial(jax.jit, static_argnames="max_steps")
def _solve(noise: Any, start: Any, feasible: Any, p: Any, max_steps: int = 40) -> trust_region.Solution:
    def one(noise: Any, start: Any, feasible: Any, p: Any) -> trust_region.Solution:
        objective = interval_objective(functools.partial(mep_interval_derivatives, p=p))
        return trust_region.solve(objective, noise, start, feasible, max_steps=max_steps)

    return jax.vmap(one)(noise, start, feasible, p)


def solve(problems: Sequence[Problem], dtype: type = np.float32) -> list[trust_region.Solution]:
    """The lower level's answers (NumPy, nodes cut to M + 1). One compiled shape for all of them, per dtype."""
    answers: list[trust_region.Solution] = []
    for begin in range(0, len(problems), BATCH):
        part = list(problems[begin : begin + BATCH])
        rows = part + [part[0]] * (BATCH - len(part))
        with jax.enable_x64(dtype is np.float64):
            found = _solve(*_arrays(rows, dtype))
            found = jax.tree.map(np.asarray, found)
        for i, problem in enumerate(part):
            row = jax.tree.map(lambda x, i=i: x[i], found)
            answers.append(row._replace(t=row.t[: problem.intervals + 1]))
    return answers


def _arrays(rows: Sequence[Problem], dtype: type) -> tuple[Any, ...]:
    # The longest table comes last, so that every call has the same shape.
    longest = discrete(alphas_cumprod=SD_TABLE)
    noise = jax.tree.map(lambda x: x[:-1], stack([*(r.noise for r in rows), longest], np.dtype(dtype)))
    start = np.stack([_padded(r.starting_nodes(), NODES) for r in rows]).astype(dtype)

    def column(name: str, kind: type = dtype) -> jax.Array:
        return jnp.asarray(np.array([getattr(r, name) for r in rows], kind))

    ends = (column("t_max"), column("t_eps"), column("spacing"))
    feasible = trust_region.Feasible(*ends, column("intervals", np.int32))
    return jax.tree.map(jnp.asarray, noise), jnp.asarray(start), feasible, column("p")


def _padded(values: np.ndarray, count: int) -> np.ndarray:
    return np.concatenate([values, np.full(count - len(values), values[-1])])


SD = discrete(alphas_cumprod=SD_TABLE, name="sd")
KINKED = reference.LinearNoise(SD_TABLE)
"""The same levels as the oracle has them, log alpha linear between the levels."""
EFFORT = Effort(lanes=32)


def filled(lanes: Sequence[Lane]) -> list[Lane]:
    """The lanes and, after them, copies of one with 21 nodes, to whole chunks: every search on SD has one shape."""
    return [*lanes, *[Lane(SD, 20, "interval", method=Hso())] * (-len(lanes) % EFFORT.lanes or EFFORT.lanes)]
