"""Direct search of all nodes on the model itself: what a schedule can reach at best for its error to the teacher.

    python -m benchmarks.methods.direct fashion-eps --solver unipc-3 --nfe 6

The solver runs in torch with its weights from `hso_jax.solvers`, so that the gradient of the error in the nodes is
exact: torch differentiates through the network in the solver's weights and in each level's timestep, alpha and sigma,
JAX takes it on to the nodes.

The error has ripples. A network that was trained on whole timesteps and is told fractional ones oscillates with the
embedding's fastest component, sin(t): on fashion-eps (UniPC-3, N = 6) the RMSE rises and falls by a percent or two
every few timesteps. Descent stops in the first such dent. A derivative-free trust region wider than the ripples
therefore finds the valley, and gradients its floor.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from rich.progress import Progress
from scipy.optimize import minimize

import hso_jax
from benchmarks import runner
from benchmarks.compared import SOLVERS, fine_schedule
from benchmarks.metrics import rmse
from benchmarks.models.load import MODELS
from benchmarks.models.subjects import REFINEMENTS, Subject
from bridge import Level
from hso_jax import NoiseSchedule, Schedule, solvers
from hso_jax.baselines import BASELINES, inapplicable
from hso_jax.lower.quasi_newton import SPACING
from hso_jax.noise import alpha_sigma, lam_of_s, s_of_lam
from hso_jax.schedule import Origin

ROWS = 48
BUDGET = 5_000  # for each of the N
_COBYQA = {"initial_tr_radius": 0.3, "final_tr_radius": 0.02}  # in logarithms of gaps
_LBFGS = {"ftol": 1e-5, "gtol": 1e-4}  # of the logarithm of the RMSE
_BATCH = 16  # images at once: their activations are kept for the gradient, 1 GiB at N = 10
_EDGE = 1e-7  # in s: nodes stay this far inside the model's range, where time has both its derivatives

Predict = Callable[[torch.Tensor, Level], torch.Tensor]


class Table(NamedTuple):
    """A schedule as the solver and the network meet it, in the model's own scaling of x; arrays or tensors.

    Attributes:
        timestep, alpha, sigma: [N] of the evaluated levels.
        carry, predict, keep, correct: as in `hso_jax.solvers.Weights`; keep and correct are None without a corrector.
    """

    timestep: Any
    alpha: Any
    sigma: Any
    carry: Any
    predict: Any
    keep: Any
    correct: Any


@functools.partial(jax.jit, static_argnames="solver")
def table(s: jax.Array, noise: NoiseSchedule, solver: str) -> Table:
    """Tabulate the schedule with nodes s = sigma/(alpha + sigma) [N], falling, and a last step to clean data."""
    lams = jnp.log1p(-s) - jnp.log(s)
    weights = solvers.weights(solver, lams)
    alpha, sigma = alpha_sigma(lams, noise.kind)
    # Weights are for alpha^2 + sigma^2 = 1: a step from that scaling to itself becomes one between the model's own.
    scale = alpha / alpha_sigma(lams, "vp")[0]
    then, before = jnp.append(scale[1:], 1.0), jnp.append(1.0, scale[:-1])
    keep = None if weights.keep is None else weights.keep * scale / before
    correct = None if weights.correct is None else weights.correct * scale[:, None]
    carry, predict = weights.carry * then / scale, weights.predict * then[:, None]
    return Table(noise.timestep(noise.t_of_lam(lams)), alpha, sigma, carry, predict, keep, correct)


@functools.partial(jax.jit, static_argnames="solver")
def _pull(s: jax.Array, noise: NoiseSchedule, cotangent: Table, solver: str) -> jax.Array:
    return jax.vjp(lambda nodes: table(nodes, noise, solver), s)[1](cotangent)[0]


def solve(predict: Predict, entries: Table, start: torch.Tensor) -> torch.Tensor:
    """Sample `start` [n, ...] with the solver; `predict` makes clean data of x and its level."""
    x = base = start
    past: list[torch.Tensor] = []
    for i in range(len(entries.carry)):
        level = Level(entries.timestep[i], entries.alpha[i], entries.sigma[i], float("nan"))
        past = [predict(x, level), *past[:3]]
        if entries.correct is None:
            base = x
        elif i:
            base = _combine(entries.keep[i] * base, entries.correct[i], past)
        x = _combine(entries.carry[i] * base, entries.predict[i], past)
    return x


def _combine(x: torch.Tensor, weights: torch.Tensor, past: list[torch.Tensor]) -> torch.Tensor:
    # Weights of predictions that are not there yet are zeros.
    return x + sum(weight * prediction for weight, prediction in zip(weights, past, strict=False))


class Error:
    """The mean squared error of a solver's samples of a subject to given targets, as a function of the nodes.

    Attributes:
        rows: n, the samples.
        calls: evaluations of the network so far, each of a single image; a backward pass, in the input alone, costs
            what an evaluation does and counts as one.
    """

    def __init__(self, subject: Subject, solver: str, targets: torch.Tensor) -> None:
        """`targets` [n, C, 32, 32] are for the first n of the subject's noises."""
        self._noise = dataclasses.replace(subject.noise, name="")  # names would compile anew
        self._solver, self._subject, self._targets = solver, subject, targets
        self._parts = [slice(i, min(i + _BATCH, len(targets))) for i in range(0, len(targets), _BATCH)]
        self.calls, self.rows = 0, len(targets)

    @torch.no_grad()
    def value(self, s: np.ndarray, batches: int | None = None) -> float:
        """Evaluate at nodes s [N], for all samples or for the first `batches` of `_BATCH`."""
        return self._sum(self._entries(s), self._parts[:batches], gradient=False)

    def value_and_gradient(self, s: np.ndarray) -> tuple[float, np.ndarray]:
        """Evaluate at nodes s [N]: the value, and the gradient [N] in them."""
        entries = self._entries(s)
        for tensor in entries:
            if tensor is not None:
                tensor.requires_grad_(True)
        value = self._sum(entries, self._parts, gradient=True)
        slopes = (None if x is None else np.zeros(x.shape) if x.grad is None else x.grad.numpy() for x in entries)
        with jax.enable_x64(True):
            return value, np.asarray(_pull(np.asarray(s), self._noise, Table(*slopes), self._solver))

    def _entries(self, s: np.ndarray) -> Table:
        with jax.enable_x64(True):
            found = table(np.asarray(s, np.float64), self._noise, self._solver)
        return Table(*(None if x is None else torch.from_numpy(np.array(x)) for x in found))

    def _sum(self, entries: Table, parts: list[slice], gradient: bool) -> float:
        total, count, one = 0.0, parts[-1].stop, self._subject
        for rows in parts:
            predict = lambda x, level, rows=rows: one.trained.denoise(x, level, one.labels[rows], one.guidance)  # noqa: E731
            error = (solve(predict, entries, one.start[rows]) - self._targets[rows]).square().mean()
            error = error * ((rows.stop - rows.start) / count)
            if gradient:
                error.backward()
            total += float(error.detach())
        self.calls += count * len(entries.carry) * (2 if gradient else 1)
        return total


class Result(NamedTuple):
    """The best schedule of a direct search.

    Attributes:
        schedule: with the nodes found.
        error: RMSE to the teacher on the noise of the search.
        starts: the same of every schedule that the search could start from.
        calls: evaluations of the network, each of a single image, gradients and the teacher's included.
    """

    schedule: Schedule
    error: float
    starts: Mapping[str, float]
    calls: int


class Gaps(NamedTuple):
    """Coordinates without constraints: logarithms of the gaps between the model's ends and the nodes, in s.

    `gaps = least + room softmax([z, 0])`, from the noise end to the first node, between neighbours, and from the last
    node to the data end. Every z [N] is a schedule, with neighbours at least `SPACING` apart.
    """

    high: float
    least: np.ndarray  # [N + 1]
    room: float

    @classmethod
    def of(cls, noise: NoiseSchedule, nfe: int) -> Gaps:
        """Take a model's ends, for N nodes."""
        low, high = (float(s_of_lam(noise.lam(float(t)))) for t in (noise.t_min, noise.t_max))
        least = np.array([_EDGE, *[SPACING] * (nfe - 1), _EDGE])
        return cls(high, least, high - low - float(least.sum()))

    def nodes(self, z: np.ndarray) -> np.ndarray:
        """[N] s, falling."""
        return self.high - np.cumsum(self.least + self.room * self._shares(z))[:-1]

    def slope(self, z: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        """[N] the gradient in z of what has `gradient` [N] in the nodes."""
        shares = self._shares(z)
        by_gap = np.append(-np.cumsum(gradient[::-1])[::-1], 0.0)
        return (self.room * shares * (by_gap - shares @ by_gap))[:-1]

    def coordinates(self, s: np.ndarray) -> np.ndarray:
        """[N] of the nodes s [N], or of the nearest where they have no coordinates."""
        low = self.high - self.room - self.least.sum()
        gaps = np.maximum(-np.diff([self.high, *s, low]) - self.least, SPACING)
        return np.log(gaps[:-1] / gaps[-1])

    def _shares(self, z: np.ndarray) -> np.ndarray:
        logits = np.append(z, 0.0)
        shares = np.exp(logits - logits.max())
        return shares / shares.sum()


class _Spent(Exception):
    """The budget allows no further gradient."""


def search(
    subject: Subject, solver: str, nfe: int, *, rows: int = ROWS, budget: int | None = None, seed: int = 0
) -> Result:
    """Find the nodes with the least RMSE to the converged samples, on other noises than the subject's.

    From the solver-error schedule and from the best rule a derivative-free search (SciPy's COBYQA) on the first samples
    finds a valley, with a quarter of the budget each at most; the better of the two is refined by L-BFGS-B with exact
    gradients on all samples, until a step gains next to nothing or the budget is spent.

    Args:
        subject: what the schedule is for.
        solver: of `benchmarks.compared.SOLVERS`.
        nfe: N.
        rows: number of samples searched on.
        budget: evaluations of the network, as `Result.calls`; `BUDGET` N by default.
        seed: of the samples.
    """
    noise = subject.noise
    rules = [rule for rule in BASELINES if not inapplicable(rule, noise)]
    needed = rows * (REFINEMENTS[0] + nfe * (len(rules) + 1))
    budget = BUDGET * nfe if budget is None else budget
    if budget < needed:
        raise ValueError(f"budget is {budget}; the teacher and the starts alone take {needed} evaluations")
    own, gaps = subject.for_preparation(rows, seed), Gaps.of(noise, nfe)
    schedules = {rule: hso_jax.baseline(rule, noise, nfe) for rule in rules}
    schedules["solver-error"] = hso_jax.search(noise, nfe, method=hso_jax.SolverError(solver, own.guidance))
    teacher = fine_schedule(noise, REFINEMENTS[0])
    error = Error(own, solver, own.sample(teacher, "unipc-3").images)
    error.calls = rows * teacher.nfe
    points = {name: gaps.coordinates(s_of_lam(schedule.lams)) for name, schedule in schedules.items()}
    starts = {name: error.value(gaps.nodes(z)) for name, z in points.items()}
    begins = [points["solver-error"], points[min(rules, key=starts.__getitem__)]]
    best, least = _refined(error, gaps, begins, budget, f"{own.name} {solver} {nfe}: direct")
    if min(starts.values()) <= least:
        name = min(starts, key=starts.__getitem__)
        best, least = points[name], starts[name]
    origin = Origin(method="direct", solver=solver, guidance=own.guidance, seed=seed)
    schedule = Schedule.from_lams(noise, lam_of_s(gaps.nodes(best)), origin=origin)
    return Result(schedule, math.sqrt(least), {name: math.sqrt(x) for name, x in starts.items()}, error.calls)


def _refined(error: Error, gaps: Gaps, begins: list[np.ndarray], budget: int, title: str) -> tuple[np.ndarray, float]:
    """The best coordinates that gradients came by, and their error: a valley from each begin, then the deeper's floor.

    The error is infinite where there is no budget for a gradient.
    """
    nfe, best, least = len(gaps.least) - 1, begins[0], math.inf
    with Progress(transient=True) as progress:
        task = progress.add_task(title, total=budget, completed=error.calls)

        def coarse(z: np.ndarray) -> float:
            """Half the logarithm of the error, whose scale is the same for all cells."""
            progress.update(task, completed=error.calls)
            return 0.5 * math.log(error.value(gaps.nodes(z), batches=1))

        def fine(z: np.ndarray) -> tuple[float, np.ndarray]:
            nonlocal best, least
            if error.calls + 2 * nfe * error.rows > budget:
                raise _Spent
            value, gradient = error.value_and_gradient(gaps.nodes(z))
            progress.update(task, completed=error.calls)
            if value < least:
                best, least = z.copy(), value
            return 0.5 * math.log(value), gaps.slope(z, 0.5 * gradient / value)

        share = (budget - error.calls) // 4 // (nfe * min(_BATCH, error.rows))
        options = {**_COBYQA, "maxfev": max(share, 1)}
        valleys = [minimize(coarse, z, method="COBYQA", options=options) for z in begins]
        with contextlib.suppress(_Spent):
            minimize(fine, min(valleys, key=lambda found: found.fun).x, jac=True, method="L-BFGS-B", options=_LBFGS)
    return best, least


def main(argv: list[str] | None = None) -> None:
    """Search one cell and print the error on both noises."""
    parser = runner.command("python -m benchmarks.methods.direct", __doc__)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--solver", choices=SOLVERS, default="unipc-3", help="default %(default)s")
    parser.add_argument("--nfe", type=int, default=6, help="default %(default)s")
    args = parser.parse_args(argv)
    subject, begin = Subject(args.model), time.perf_counter()
    found = search(subject, args.solver, args.nfe)
    judged = rmse(subject.sample(found.schedule, args.solver).images, subject.teacher().images)
    print(f"searched {found.error:.4f}, judged {judged.value:.4f} ({judged.low:.4f}..{judged.high:.4f})")
    print(f"{found.calls} evaluations, {time.perf_counter() - begin:.0f} s")
    print(f"timesteps {np.round(found.schedule.timesteps, 1).tolist()}")
    print(f"starts {', '.join(f'{name} {x:.4f}' for name, x in sorted(found.starts.items(), key=lambda x: x[1]))}")


if __name__ == "__main__":
    main()
