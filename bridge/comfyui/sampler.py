"""A non-stationary solver with k-diffusion's signature, and as a ComfyUI SAMPLER that knows its own sigmas."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from tqdm.auto import trange

from hso_jax.schedule import Schedule, known_coefficients
from hso_jax.solvers import SOLVERS
from hso_jax.solvers.nonstationary import check_coefficients, known


@torch.no_grad()
def sample_nonstationary(
    model: Callable[..., torch.Tensor],
    x: torch.Tensor,
    sigmas: torch.Tensor,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callable[[dict[str, Any]], Any] | None = None,
    disable: bool | None = None,
    *,
    coefficients: Any,
) -> torch.Tensor:
    """A sampler as k-diffusion's are: N calls of the model, with coefficients of its own at every step.

    With r = sigma'/sigma a step is x' = r x + (1 - r) times the weighted mean of the predictions so far, whether sigma
    is sigma/alpha of x0 + sigma eps or a flow's s of (1 - s) x0 + s eps.

    Args:
        model: `(x, sigma [B], **extra_args) -> x0`, the predicted clean data.
        x: [B, ...] the sample at the first sigma.
        sigmas: [N + 1] falling; the last is 0 or where to stop (`Schedule.sampler_sigmas`).
        extra_args: for the model.
        callback: called in each step with "x", "i", "sigma", "sigma_hat" and "denoised".
        disable: whether to show no progress bar.
        coefficients: [N, H - 1] as `Schedule.coefficients`.

    Returns:
        [B, ...] the sample at the last sigma.

    Raises:
        ValueError: for sigmas that do not fall, or bad coefficients.
    """
    falling = _checked(sigmas)
    rows = check_coefficients(coefficients, len(falling) - 1)
    ones, extra = x.new_ones([x.shape[0]]), dict(extra_args or {})
    past: list[torch.Tensor] = []
    for i in trange(len(falling) - 1, disable=disable):
        denoised = model(x, sigmas[i] * ones, **extra)
        if callback is not None:
            callback({"x": x, "i": i, "sigma": sigmas[i], "sigma_hat": sigmas[i], "denoised": denoised})
        past = [denoised, *past][: rows.shape[1] + 1]
        ratio = falling[i + 1] / falling[i]
        then = denoised * ((1.0 - ratio) * (1.0 - rows[i].sum()))
        for weight, before in zip(rows[i].tolist(), past[1:], strict=False):
            then = then + before * ((1.0 - ratio) * weight)
        x = then + x * ratio if ratio else then
    return x


def sampler_options(schedule: Schedule, steps: int) -> dict[str, Any]:
    """What `sample_own_nodes` needs for a schedule's last `steps` steps; ValueError for one that has no such solver.

    A schedule for a known solver is sampled by its formula in lam, which is a point of the same form.
    """
    rows, solver = schedule.coefficients, SOLVERS.get(schedule.solver)
    if rows is None and (solver is None or solver.calls != 1):
        raise ValueError(
            f"the schedule ({schedule.method}) is made for solver {schedule.solver!r}, which has no coefficients; take "
            "its SIGMAS from HSO Scheduler or HSO Schedule File, and a sampler of your choice"
        )
    rows = known_coefficients(schedule) if rows is None else rows
    return {"nodes": schedule.sampler_sigmas()[-(steps + 1) :].tolist(), "coefficients": rows[-steps:].tolist()}


def sample_own_nodes(
    model: Callable[..., torch.Tensor],
    x: torch.Tensor,
    sigmas: torch.Tensor,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callable[[dict[str, Any]], Any] | None = None,
    disable: bool | None = None,
    *,
    nodes: list[float],
    coefficients: list[list[float]],
    unscaled: bool = False,
) -> torch.Tensor:
    """`sample_nonstationary` at the `nodes` [N + 1] that the coefficients belong to, or a run of them (SplitSigmas).

    Coefficients of predictions from before the run are left out. `unscaled` says that the model takes
    x/sqrt(1 + sigma^2), and ComfyUI does not divide (CogVideoX). ValueError for other sigmas: the coefficients mean
    nothing there.
    """
    given, own = _checked(sigmas), np.asarray(nodes)
    first = int(np.abs(own - given[0]).argmin())
    mine = own[first : first + len(given)]
    if len(mine) != len(given) or not np.allclose(given, mine, rtol=1e-4, atol=1e-6):
        raise ValueError(
            f"the sigmas {_short(given)} are not this sampler's, {_short(own)}, to which its coefficients belong; "
            "connect the SIGMAS output of the same node"
        )
    rows = np.asarray(coefficients)[first : first + len(given) - 1]
    rows = np.where(known(*rows.shape), rows, 0.0)

    def scaled(x: torch.Tensor, sigma: torch.Tensor, **extra: Any) -> torch.Tensor:
        return model(x / (1.0 + sigma**2).sqrt().reshape(-1, *[1] * (x.ndim - 1)), sigma, **extra)

    network = scaled if unscaled else model
    return sample_nonstationary(network, x, sigmas, extra_args, callback, disable, coefficients=rows)


def _checked(sigmas: torch.Tensor) -> list[float]:
    levels = [float(x) for x in sigmas]
    falling = all(a > b for a, b in itertools.pairwise(levels))
    if len(levels) < 2 or not falling or not all(math.isfinite(x) for x in levels) or levels[-1] < 0:
        raise ValueError(f"sigmas are {_short(levels)}; need at least two finite numbers that fall to 0 or more")
    return levels


def _short(values: Any) -> str:
    shown = [f"{x:.4g}" for x in values]
    return f"[{', '.join(shown if len(shown) <= 8 else [*shown[:6], '...', shown[-1]])}]"
