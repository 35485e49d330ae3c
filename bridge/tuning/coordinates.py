"""What tuning moves: the nodes and, for the non-stationary solver, its coefficients, as numbers without constraints.

A point z holds the logarithms of the gaps between the nodes (`hso_jax.lower.quasi_newton`, the last one taken as 0; the
first node is the model's noise end, or placed like the others), then the coefficients' deviations from those of a known
solver on the same nodes. A step of 0.1 changes a gap by a tenth or a weight by a tenth, wherever it is. All solvers of
one evaluation a step are linear in the predictions, so that one loop with one table of weights runs them all.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from hso_jax import solvers
from hso_jax.lower.quasi_newton import Range, lams_of, logits_of, nodes_of
from hso_jax.noise import NoiseSchedule, alpha_sigma, s_of_lam
from hso_jax.schedule import Origin, Schedule
from hso_jax.solver_error_levels import older_of
from hso_jax.solvers.nonstationary import MAX_COEFFICIENT, MAX_HISTORY, coefficients_of, known, weights_of
from hso_jax.solvers.weights import grid


class Table(NamedTuple):
    """A schedule as a sampler's loop and the network meet it, in the model's own scaling of x.

    Attributes:
        timestep: [N] what the network is told.
        alpha, sigma: [N] x = alpha x_0 + sigma eps.
        carry: [N] weight of the sample in each step.
        predict: [N, 4] weights of the predictions of clean data, the newest first.
    """

    timestep: Any
    alpha: Any
    sigma: Any
    carry: Any
    predict: Any


@dataclasses.dataclass(frozen=True)
class Coordinates:
    """The points of one model, N and solver.

    Attributes:
        noise: the model's.
        nfe: N.
        solver: what samples: "nonstationary", or a solver of one evaluation a step.
        base: the known solver that the coefficients deviate from; `solver` itself where that is known.
        free: whether the first node moves too; else it is the model's noise end.
    """

    noise: NoiseSchedule
    nfe: int
    solver: str
    base: str
    free: bool = False

    @classmethod
    def of(cls, noise: NoiseSchedule, nfe: int, solver: str, base: str, free: bool = False) -> Coordinates:
        """For a solver by any of its names; ValueError for two evaluations a step, or no start at the noise end."""
        searched = solver == solvers.NONSTATIONARY
        base = solvers.canonical(base if searched else solver)
        older_of(base)
        if noise.noise_end == -math.inf and base.endswith("bh1"):
            raise ValueError(f"solver {base!r} cannot start at lam = -inf; use {base.removesuffix('-bh1')!r}")
        return cls(noise, nfe, solvers.NONSTATIONARY if searched else base, base, free)

    @classmethod
    def at(cls, schedule: Schedule, noise: NoiseSchedule, solver: str, base: str) -> Coordinates:
        """For a schedule: the first node is free if the schedule's is not the noise end."""
        return cls.of(noise, schedule.nfe, solver, base, float(schedule.lams[0]) > noise.noise_end + 1e-6)

    @property
    def places(self) -> np.ndarray:
        """[N, 3] bool, the coefficients that are free."""
        return known(self.nfe, MAX_HISTORY - 1) & (self.solver == solvers.NONSTATIONARY)

    @property
    def gaps(self) -> int:
        """Entries of a point that place nodes."""
        return self.nfe - 1 + self.free

    def point(self, schedule: Schedule) -> np.ndarray:
        """[M] of a schedule to clean data: its nodes and, for free coefficients, those that it or its solver has.

        A solver that the form does not have counts as the base.
        """
        with jax.enable_x64(True):
            lams = np.asarray(schedule.lams)[: self.nfe]
            logits = np.asarray(logits_of(self._range(), jnp.asarray(s_of_lam(lams))))[: self.gaps + 1]
            z = logits[:-1] - logits[-1]
            if not self.places.any():
                return z
            nodes = jnp.asarray(self.lams(z))
            wanted = schedule.coefficients
            if wanted is None:
                wanted = np.asarray(_known(nodes, self._as_known(schedule.solver)))
            return np.concatenate([z, (padded(wanted) - np.asarray(_known(nodes, self.base)))[self.places]])

    def lams(self, z: np.ndarray) -> np.ndarray:
        """[N] half log-SNR of a point's nodes; -inf for pure noise."""
        with jax.enable_x64(True):
            found = np.array(_lams(jnp.asarray(z[: self.gaps]), self._range(), self.nfe))
        if not self.free:
            found[0] = self.noise.noise_end
        return found

    def table(self, z: np.ndarray) -> Table:
        """A point's table, float64."""
        with jax.enable_x64(True):
            return Table(*map(np.array, _table(jnp.asarray(z), *self.rest())))

    def pull(self, z: np.ndarray, slopes: Table) -> np.ndarray:
        """[M] the gradient in z of what has these slopes in the entries of its table."""
        with jax.enable_x64(True):
            return np.asarray(_pull(jnp.asarray(z), Table(*map(jnp.asarray, slopes)), *self.rest()))

    def coefficients(self, z: np.ndarray, lams: np.ndarray) -> np.ndarray | None:
        """[N, H - 1] of a point with these nodes; None if none are free."""
        if not self.places.any():
            return None
        found = np.zeros((self.nfe, MAX_HISTORY - 1))
        found[self.places] = z[self.gaps :]
        with jax.enable_x64(True):
            return found + np.asarray(_known(jnp.asarray(lams), self.base))

    def allowed(self, z: np.ndarray) -> bool:
        """Whether a schedule can hold a point's coefficients: where nodes nearly meet a search may leave the limit."""
        found = self.coefficients(z, self.lams(z))
        return found is None or bool((np.abs(found) <= MAX_COEFFICIENT).all())

    def schedule(self, z: np.ndarray, origin: Origin) -> Schedule:
        """The schedule of a point."""
        lams = self.lams(z)
        return Schedule.from_lams(self.noise, lams, origin=origin, coefficients=self.coefficients(z, lams))

    def _range(self) -> Range:
        top, floor = (float(s_of_lam(x)) for x in (self.noise.noise_end, self.noise.data_end))
        return Range(jnp.asarray(top), jnp.asarray(floor), jnp.asarray(self.free), jnp.asarray(self.nfe))

    def rest(self) -> tuple[Any, ...]:
        """What the traced functions take beside a point: noise, range, and the arguments in `STATIC`."""
        noise = dataclasses.replace(self.noise, name="")  # names would compile anew
        return noise, self._range(), self.nfe, self.base, bool(self.places.any())

    def _as_known(self, name: str) -> str:
        try:
            older_of(name)
        except ValueError:
            return self.base
        return solvers.canonical(name)


STATIC = ("nfe", "base", "searched")


@functools.partial(jax.jit, static_argnames="nfe")
def _lams(logits: Array, range_: Range, nfe: int) -> Array:
    y = jnp.concatenate([logits, jnp.zeros(2, logits.dtype)])[: nfe + 1]
    return lams_of(range_, nodes_of(range_, y))


@functools.partial(jax.jit, static_argnames="name")
def _known(lams: Array, name: str) -> Array:
    """[N, 3] a known solver's coefficients in the non-stationary form."""
    end, nfe = jnp.asarray(jnp.inf, lams.dtype), jnp.asarray(lams.shape[0])
    return coefficients_of(solvers.weights(name, lams), grid(lams, end, nfe), MAX_HISTORY)


def weights_at(z: Array, range_: Range, nfe: int, base: str, searched: bool) -> solvers.Weights:
    """The solver's weights at a point, for samples with alpha^2 + sigma^2 = 1; traceable."""
    rows, columns = np.nonzero(known(nfe, MAX_HISTORY - 1))
    gaps = z.shape[0] - (len(rows) if searched else 0)
    lams = _lams(z[:gaps], range_, nfe)
    coefficients = _known(lams, base)
    if searched:
        coefficients = coefficients.at[rows, columns].add(z[gaps:])
    return weights_of(grid(lams, jnp.asarray(jnp.inf, lams.dtype), jnp.asarray(nfe)), coefficients)


def _entries(weights: solvers.Weights, noise: NoiseSchedule) -> Table:
    """The table of a solver without corrector."""
    first = jnp.arange(weights.lams.shape[0]) == 0
    pure = jnp.isneginf(weights.lams[0])
    # No derivative is defined at -inf, where nothing moves: the first entries come from a place that has one.
    begin = jnp.where(pure, 0.0, weights.lams[0])
    inner = jnp.where(first, begin, weights.lams)
    ends = (jnp.where(pure, end, x) for end, x in zip((0.0, 1.0), alpha_sigma(begin, noise.kind), strict=True))
    alpha, sigma = (jnp.where(first, e, x) for e, x in zip(ends, alpha_sigma(inner, noise.kind), strict=True))
    told = noise.timestep(noise.t_of_lam(inner))
    timestep = jnp.where(first & pure, noise.timestep(jnp.ones(())), told)
    # Weights are for alpha^2 + sigma^2 = 1: a step from that scaling to itself becomes one between the model's own.
    scale = jnp.sqrt(alpha**2 + sigma**2)
    then = jnp.append(scale[1:], 1.0)
    return Table(timestep, alpha, sigma, weights.carry * then / scale, weights.predict * then[:, None])


def table_of(z: Array, noise: NoiseSchedule, range_: Range, nfe: int, base: str, searched: bool) -> Table:
    """The table of a point; traceable."""
    return _entries(weights_at(z, range_, nfe, base, searched), noise)


def padded(coefficients: np.ndarray) -> np.ndarray:
    """[N, 3] with zeros for the predictions that they do not use."""
    return np.pad(coefficients, ((0, 0), (0, MAX_HISTORY - 1 - coefficients.shape[1])))


def coefficients_at(schedule: Schedule, solver: str) -> np.ndarray:
    """[N, 3] a schedule's own coefficients, or those of a known solver on its nodes."""
    if schedule.coefficients is not None:
        return padded(schedule.coefficients)
    with jax.enable_x64(True):
        return np.asarray(_known(jnp.asarray(schedule.lams[: schedule.nfe]), solvers.canonical(solver)))


def table_at(noise: NoiseSchedule, schedule: Schedule, solver: str) -> Table:
    """The table of a schedule to clean data, with its own coefficients or those of a known solver, float64."""
    with jax.enable_x64(True):
        lams, coefficients = jnp.asarray(schedule.lams[: schedule.nfe]), coefficients_at(schedule, solver)
        return Table(*map(np.array, _with(lams, jnp.asarray(coefficients), dataclasses.replace(noise, name=""))))


@jax.jit
def _with(lams: Array, coefficients: Array, noise: NoiseSchedule) -> Table:
    steps = grid(lams, jnp.asarray(jnp.inf, lams.dtype), jnp.asarray(lams.shape[0]))
    return _entries(weights_of(steps, coefficients), noise)


_table = jax.jit(table_of, static_argnames=STATIC)


@functools.partial(jax.jit, static_argnames=STATIC)
def _pull(z: Array, slopes: Table, noise: NoiseSchedule, range_: Range, nfe: int, base: str, searched: bool) -> Array:
    return jax.vjp(lambda z: table_of(z, noise, range_, nfe, base, searched), z)[1](slopes)[0]


def with_coefficients(schedule: Schedule, noise: NoiseSchedule, solver: str, base: str) -> Schedule:
    """A schedule with its known solver's coefficients where these are free: any sampler then takes the same steps."""
    coordinates = Coordinates.at(schedule, noise, solver, base)
    if schedule.coefficients is not None or not coordinates.places.any():  # one step is the same by all solvers
        return schedule
    origin = dataclasses.replace(schedule.origin, solver=solvers.NONSTATIONARY)
    return coordinates.schedule(coordinates.point(schedule), origin)
