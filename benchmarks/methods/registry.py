"""The methods that are compared, by name, and `prepare`, which makes a schedule with any of them and says what it cost.

Every method here has the node layout: N nodes, all evaluated, and a last step to clean data. The paper uses it for DDIM
and, for UniPC, intervals that stop at t_eps; here the samples of all methods are compared with converged ones, which
are clean, at the same N. The methods that run the model never see the noise that schedules are judged on.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import numpy as np

from benchmarks.methods import autodiffusion, direct, gits
from benchmarks.models.subjects import Subject
from benchmarks.solvers import SOLVERS
from hso_jax import BASELINES, Hso, NoiseSchedule, Schedule, SolverError, baseline, search
from hso_jax.baselines import inapplicable
from hso_jax.schedule import Origin
from hso_jax.solvers import NONSTATIONARY


class Inapplicable(Exception):
    """A method has no schedule for this model; the message says why."""


class Prepared(NamedTuple):
    """A schedule and what it cost.

    Attributes:
        schedule: of N evaluations, with a clean end.
        seconds: of wall time, without tracing and compilation.
        calls: evaluations of the network, each of a single image; 0 for methods that do not run it.
        compile_seconds: of tracing and compilation, which a later call for the same N mostly saves.
    """

    schedule: Schedule
    seconds: float
    calls: int
    compile_seconds: float = 0.0


class Request(NamedTuple):
    """What a method may look at.

    Attributes:
        subject, solver, nfe, seed: as given to `prepare`.
        real: [m, d] features of real images, or None.
    """

    subject: Subject
    solver: str
    nfe: int
    seed: int
    real: np.ndarray | None


class Made(NamedTuple):
    """A method's result: the schedule, evaluations of the network, and seconds if they are not those of the call."""

    schedule: Schedule
    calls: int = 0
    seconds: float | None = None


class Method(NamedTuple):
    """A way to make a schedule."""

    make: Callable[[Request], Made]
    description: str


def rule(name: str, request: Request) -> Made:
    """A rule of `hso_jax.BASELINES`."""
    if reason := inapplicable(name, request.subject.noise):
        raise Inapplicable(reason)
    return Made(baseline(name, request.subject.noise, request.nfe))


def exponential(request: Request) -> Made:
    """Log-uniform in the sampler's sigma, diffusers' `use_exponential_sigmas`; for flow models, whose sigma is s.

    Of other models sigma is exp(-lam), and the nodes are those of "uniform-lam" (and of `use_lu_lambdas`) to the digit.
    """
    noise = request.subject.noise
    if noise.kind != "flow":
        raise Inapplicable(f"log-uniform sigma of a model of kind {noise.kind!r} is 'uniform-lam'")
    return Made(Schedule.from_t(noise, exponential_t(noise, request.nfe), origin=Origin(method="exponential")))


def exponential_t(noise: NoiseSchedule, nfe: int) -> np.ndarray:
    """[N] t of levels s between the ends of a flow's noise schedule, evenly in log s."""
    high, low = (float(noise.sigma(float(t))) for t in (noise.t_max, noise.t_min))
    s = np.geomspace(high, low, nfe)
    t = np.asarray(noise.t_of_lam(np.log1p(-s) - np.log(s)))
    t[0] = float(noise.t_max)
    return t


def hso(request: Request) -> Made:
    """The paper's method: its box and constants (p = 2, of latent models), the spacing as large as fits."""
    return Made(search(request.subject.noise, request.nfe, method=Hso(relax=True), seed=request.seed))


def hso_dm_nonuni(request: Request) -> Made:
    """The paper's "+ bilevel": both levels on DM-NonUni's bound, without a spacing."""
    how = Hso(objective="dm-nonuni", spacing=0.0)
    return Made(search(request.subject.noise, request.nfe, method=how, seed=request.seed))


def solver_error(request: Request) -> Made:
    """By the error of the solver itself on Gaussian mixtures, at the subject's guidance (docs/solver-error.md)."""
    subject = request.subject
    how = SolverError(request.solver, subject.guidance)
    return Made(search(subject.noise, request.nfe, method=how, seed=request.seed))


def nonstationary(request: Request) -> Made:
    """Nodes and coefficients together (docs/nonstationary.md), or the known solver that is as good."""
    subject = request.subject
    key = subject.noise.fingerprint(), request.nfe, subject.guidance, request.seed
    if key not in _FREE:  # the columns of all solvers share it
        how = SolverError(NONSTATIONARY, subject.guidance)
        _FREE[key] = search(subject.noise, request.nfe, method=how, seed=request.seed)
    return Made(_FREE[key])


_FREE: dict[tuple[str, int, float, int], Schedule] = {}


def by_gits(request: Request) -> Made:
    """GITS; its costs serve every N and solver, and their time counts each time."""
    found = gits.search(request.subject, request.nfe, seed=request.seed)
    return Made(found.schedule, found.calls, found.seconds)


def by_autodiffusion(request: Request) -> Made:
    """AutoDiffusion's search of the timesteps, at reduced scale."""
    if request.real is None:
        raise Inapplicable("AutoDiffusion compares samples with real images: give their features as real=")
    found = autodiffusion.search(request.subject, request.solver, request.nfe, request.real, seed=request.seed)
    return Made(found.schedule, found.calls)


def by_direct(request: Request) -> Made:
    """Direct search of the nodes on the model."""
    found = direct.search(request.subject, request.solver, request.nfe, seed=request.seed)
    return Made(found.schedule, found.calls)


METHODS: Mapping[str, Method] = {
    **{name: Method(functools.partial(rule, name), f"rule {name} (docs/method.md)") for name in BASELINES},
    "exponential": Method(exponential, "log-uniform s, flow models only"),
    "hso": Method(hso, "HSO (arXiv 2511.11688), the paper's box"),
    "hso-dm-nonuni": Method(hso_dm_nonuni, "both levels of HSO on DM-NonUni's bound, without a spacing"),
    "solver-error": Method(solver_error, "error of the solver on reference problems"),
    NONSTATIONARY: Method(nonstationary, "nodes and coefficients on reference problems; whatever the column's solver"),
    "gits": Method(by_gits, "GITS (arXiv 2405.11326), on the model's trajectories"),
    "autodiffusion": Method(
        by_autodiffusion, "AutoDiffusion (arXiv 2309.10438), by the Frechet distance to real images"
    ),
    "direct": Method(by_direct, "all nodes by the RMSE on the model itself: the limit"),
}


def prepare(
    method: str, subject: Subject, solver: str, nfe: int, *, seed: int = 0, real: np.ndarray | None = None
) -> Prepared:
    """A method's schedule for a subject, a solver and N.

    Args:
        method: of `METHODS`.
        subject: what the schedule is for.
        solver: of `benchmarks.solvers.SOLVERS`; most methods do not look at it.
        nfe: N.
        seed: of the method's random streams.
        real: [m, d] `subject.features` of real images, for "autodiffusion" alone; not those that are judged with.

    Raises:
        Inapplicable: where the method has no schedule for the model.
        ValueError: for an unknown method or solver, or an N below 1, before any work.
    """
    if method not in METHODS or solver not in SOLVERS or nfe < 1:
        raise ValueError(
            f"method is {method!r}, solver {solver!r}, N {nfe}; use one of {', '.join(METHODS)} with one of "
            f"{', '.join(SOLVERS)} and 1 or more evaluations"
        )
    compiling = _compiling()
    compiling.clear()
    begin = time.perf_counter()
    made = METHODS[method].make(Request(subject, solver, nfe, seed, real))
    wall = time.perf_counter() - begin
    compiled = min(union_length(compiling), wall)
    return Prepared(made.schedule, wall - compiled if made.seconds is None else made.seconds, made.calls, compiled)


@functools.cache
def _compiling() -> list[tuple[float, float]]:
    """Begin and end of every tracing and compilation in this process since the list was last cleared."""
    spans: list[tuple[float, float]] = []

    def note(event: str, duration_secs: float, **_: str | int) -> None:
        if event.startswith("/jax/core/compile/"):
            end = time.perf_counter()
            spans.append((end - duration_secs, end))

    jax.monitoring.register_event_duration_secs_listener(note)
    return spans


def union_length(spans: list[tuple[float, float]]) -> float:
    """How long at least one of the spans was under way: a traced function traces others."""
    total, reached = 0.0, -np.inf
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total
