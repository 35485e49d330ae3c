"""Solvers that others learned, with their coefficients, and the rules that they beat, run on the reference problems.

A learned solver steps along dx/dt with weighted derivatives of its own and earlier evaluations. On the problems its
error is known, and so is that of each rule: problems that are true to real models rank it first.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hso_jax import NoiseSchedule, Schedule
from hso_jax.error import Chunks, denoiser, mean_error
from hso_jax.noise import lam_of_s
from hso_jax.solver_error_method import measure

ROWS = 20
"""Steps that every solver is padded to: one compilation serves all."""

ADAMS = ((1.0,), (1.5, -0.5), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))
"""Adams-Bashforth's weights for equal steps, which iPNDM takes for all (arXiv 2204.13902)."""


class Steps(NamedTuple):
    """A solver as x + sum_j gains_ij d_j, d the derivative of x in t.

    Of a `flow` t is a rectified flow's time and x its sample; else t is sigma/alpha and x = x_0 + t noise.
    """

    flow: bool
    levels: np.ndarray  # [n] t of the sample at each evaluation
    told: np.ndarray  # [n] t that the network is told there
    gains: np.ndarray  # [n, n] lower triangular
    analytic: bool = False  # the first derivative is x/sqrt(1 + t^2), without an evaluation (AFS, arXiv 2210.05475)


def steps_of(entry: Mapping[str, Any]) -> Steps | None:
    """The solver of an entry of the published file; None where it has nodes alone."""
    flow = entry["unit"] == "sigma (flow)"
    if "weights" in entry and "t_true" in entry:  # DyWeight: steps of its own grid's levels, from where it stands
        levels, weights = np.array(entry["t_true"], np.float64), np.array(entry["weights"], np.float64)
        analytic = len(weights) == entry["N"] + 1
        told = np.abs(levels[:-1] * np.array([1.0] * analytic + list(entry["t_scale"])))
        gains = weights * (np.array(entry["base_grid"][1:]) - levels[:-1])[:, None]
        return Steps(flow, levels[:-1], np.minimum(told, 1.0) if flow else told, gains, analytic)
    if entry["source"].startswith("NeuralSolver"):  # each row's weights of older velocities; all sum to 1
        older = np.tril(np.array(json.loads(entry["note"])["coeffs"], np.float64), -1)
        levels = np.array([*entry["values"][: entry["N"]], 0.0])
        weights = older + np.diag(1.0 - older.sum(1))
        return Steps(flow, levels[:-1], levels[:-1], weights * np.diff(levels)[:, None])
    return None


def adams(levels: np.ndarray, flow: bool) -> Steps:
    """The steps of iPNDM, order 4, on n levels and a last one, where they end."""
    gains = np.zeros((len(levels) - 1,) * 2)
    for i, step in enumerate(np.diff(levels)):
        for j, weight in enumerate(ADAMS[min(i, 3)]):
            gains[i, i - j] = weight * step
    return Steps(flow, levels[:-1], levels[:-1], gains)


def grids(noise: NoiseSchedule, nfe: int) -> dict[str, np.ndarray]:
    """The levels, N and a last one, of the rules that learned solvers are compared with: in sigma/alpha, or in s."""
    if noise.kind == "flow":
        u = 1.0 - np.arange(nfe + 1) / nfe
        return {f"shift {shift:g}": shift * u / (1.0 + (shift - 1.0) * u) for shift in (1.0, 1.88, 3.0)}
    ends = [float(np.exp(-lam)) for lam in (noise.noise_end, noise.data_end)]
    share = np.linspace(0.0, 1.0, nfe + 1)
    polynomial = (ends[0] ** (1 / 7) + share * (ends[1] ** (1 / 7) - ends[0] ** (1 / 7))) ** 7
    even = np.exp(np.linspace(np.log(ends[0]), np.log(ends[1]), nfe + 1))
    if noise.kind == "ve":  # time-uniform of the linear VP SDE that has these ends at t = 1 and t = .001 (EDM's code)
        logs = np.log1p(np.square(ends))
        slope = 2.0 * (logs[1] / 1e-3 - logs[0]) / (1e-3 - 1.0)
        times = 1.0 + share * (1e-3 - 1.0)
        uniform = np.sqrt(np.expm1(0.5 * slope * times**2 + (logs[0] - 0.5 * slope) * times))
    else:
        t_end = float(noise.t_of_lam(np.asarray(noise.data_end)))
        times = float(noise.t_max) + share * (t_end - float(noise.t_max))
        uniform = np.exp(-np.array([float(noise.lam(t)) for t in times]))
    return {"rho 7": polynomial, "uniform t": uniform, "uniform lam": even}


def error_of(steps: Steps, data: Chunks) -> float:
    """Root-mean-square error on all samples; inf where it is not finite."""
    n = len(steps.levels)
    pad = (0, ROWS - n)
    levels, told = (np.pad(x, pad, mode="edge") for x in (steps.levels, steps.told))
    lams = lam_of_s(told) if steps.flow else -np.log(told)
    gains = np.zeros((ROWS, ROWS))
    gains[:n, :n] = steps.gains
    arrays = [jnp.asarray(x, data.noise.dtype) for x in (levels, np.where(np.isfinite(lams), lams, -30.0), gains)]
    value = float(_error(data, *arrays, jnp.asarray(steps.flow), jnp.asarray(steps.analytic)))
    return value if np.isfinite(value) else float("inf")


@functools.partial(jax.jit)
def _error(
    data: Chunks, levels: jax.Array, lams: jax.Array, gains: jax.Array, flow: jax.Array, analytic: jax.Array
) -> jax.Array:
    pieces = data.problem.shape[0]

    def of(i: jax.Array) -> jax.Array:
        model, p = denoiser(data, i), data.problem[i]
        begin = jnp.where(flow, 1.0, jnp.sqrt(1.0 + levels[0] ** 2))

        def step(carry: tuple[jax.Array, jax.Array], k: jax.Array) -> tuple[tuple[jax.Array, jax.Array], None]:
            x, slopes = carry
            t, lam = levels[k], lams[k]
            # What the network is given: x for the level that it is told, at unit variance of data and noise.
            told = jnp.where(flow, jax.nn.sigmoid(-lam), jnp.exp(-lam))
            size = jnp.where(flow, jnp.sqrt((1.0 - told) ** 2 + told**2), jnp.sqrt(1.0 + told**2))
            predicted = model(x / size, lam)
            slope = (x - predicted) / jnp.where(flow, told, t)
            slopes = slopes.at[k].set(jnp.where(analytic & (k == 0), x / jnp.sqrt(1.0 + t * t), slope))
            return (x + jnp.tensordot(gains[k], slopes, 1), slopes), None

        x = begin * data.noise[i]
        slopes = jnp.zeros((levels.shape[0], *x.shape), x.dtype)
        (x, _), _ = jax.lax.scan(step, (x, slopes), jnp.arange(levels.shape[0]))
        return jnp.mean((x - data.truth[i]) ** 2, axis=0) @ data.importance[p]

    return jnp.sqrt(mean_error(data, jax.lax.map(of, jnp.arange(pieces)), pieces))


def rule_errors(noise: NoiseSchedule, nfe: int, data: Chunks) -> dict[str, float]:
    """The error of each rule's levels with iPNDM, DPM-Solver++(2M) and UniPC-3, N evaluations."""
    found = {}
    for name, levels in grids(noise, nfe).items():
        if name != "uniform lam":  # iPNDM's steps are equal in t or in EDM's ramp, wherever it was published
            found[f"{name}, iPNDM"] = error_of(adams(levels, noise.kind == "flow"), data)
        lams = lam_of_s(levels[:-1]) if noise.kind == "flow" else -np.log(levels[:-1])
        lams[0] = noise.noise_end
        schedule = Schedule.from_lams(noise, lams)
        for solver in ("dpmpp-2m", "unipc-3"):
            found[f"{name}, {solver}"] = measure(schedule, solver, data)
    return found
