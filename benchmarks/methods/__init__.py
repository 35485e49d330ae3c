"""The methods that are compared, by name, and `prepare`, which makes a schedule with any of them and says what it cost.

Every method here has the node layout: N nodes, all evaluated, and a last step to clean data. The paper uses it for DDIM
and, for UniPC, intervals that stop at t_eps; here the samples of all methods are compared with converged ones, which
are clean, at the same N. The methods that run the model never see the noise that schedules are judged on.

To add a method, write a function from `Request` to `Made` and give it a line in `METHODS`.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.methods import autodiffusion, direct, gits
from benchmarks.models.subjects import Subject
from benchmarks.runner import Inapplicable, noise_of
from hso_jax import Hso, NoiseSchedule, Schedule, SolverError, baseline, search
from hso_jax.baselines import BASELINES, inapplicable
from hso_jax.error import DETAIL
from hso_jax.hso import Box
from hso_jax.schedule import Origin
from hso_jax.solvers import NONSTATIONARY

OTHER = {"fashion-eps": "fashion-v", "fashion-v": "fashion-eps"}
"""Models whose schedules are exchanged: the same data and the same kind of model, another noise schedule."""

DM_NONUNI_END = 1e-3  # where DM-NonUni's schedules stop in t, see `hso_jax.baselines`

DETAILS = {x: "solver-error" if x == DETAIL else f"detail-{x:g}" for x in (0.0, 0.25, 0.5, 1.0)}
"""Weights of fine detail that are compared, and the method that has each."""

FREE_FIRST = "solver-error-free"


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
    """What a method may look at: `real` is [m, d] features of real images, or None; the rest is as for `prepare`."""

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


Method = Callable[[Request], Made]


def rule(name: str, request: Request) -> Made:
    """Make the schedule of a rule of `hso_jax.baselines.BASELINES`."""
    if reason := inapplicable(name, request.subject.noise):
        raise Inapplicable(reason)
    return Made(baseline(name, request.subject.noise, request.nfe))


def exponential(request: Request) -> Made:
    """Space a flow's s evenly in log s between its ends, as diffusers' `use_exponential_sigmas` does.

    The sigma of other models is exp(-lam), and the nodes are those of "uniform-lam" (and of `use_lu_lambdas`).
    """
    noise = request.subject.noise
    if noise.kind != "flow":
        raise Inapplicable(f"log-uniform sigma of a model of kind {noise.kind!r} is 'uniform-lam'")
    high, low = (float(noise.sigma(float(t))) for t in (noise.t_max, noise.t_min))
    s = np.geomspace(high, low, request.nfe)
    t = np.asarray(noise.t_of_lam(np.log1p(-s) - np.log(s)))
    t[0] = float(noise.t_max)
    return Made(Schedule.from_t(noise, t, origin=Origin(method="exponential")))


def searched(how: Callable[[Request], Any]) -> Method:
    """Search with the method that `how` makes of a request."""
    return lambda r: Made(search(r.subject.noise, r.nfe, method=how(r), seed=r.seed))


def mep_only(request: Request) -> Hso:
    """Run the lower level on MEP between DM-NonUni's ends, without an upper level (the paper's "+ MEP")."""
    noise = request.subject.noise
    t_max, t_eps = float(noise.t_max), max(float(noise.t_min), DM_NONUNI_END)
    return Hso(spacing=0.0, box=Box(t_eps=(t_eps, t_eps), t_max=(t_max, t_max)))


def of_other(method: str) -> Method:
    """Search for the other noise schedule, and take the timesteps as someone copies them."""

    def take(request: Request) -> Made:
        subject = request.subject
        if subject.name not in OTHER:
            raise Inapplicable(f"{subject.name} has no model to exchange schedules with")
        how = SolverError(request.solver, subject.guidance) if method == "solver-error" else Hso(relax=True)
        found = search(noise_of(OTHER[subject.name]), request.nfe, method=how, seed=request.seed)
        t = np.clip(found.t, float(subject.noise.t_min), 1.0)
        return Made(Schedule.from_t(subject.noise, t, origin=Origin(method=f"{found.method}-other")))

    return take


def solver_error(**options: Any) -> Method:
    """Search by the solver's error on Gaussian mixtures, at the subject's guidance (docs/solver-error.md)."""
    return searched(lambda r: SolverError(r.solver, r.subject.guidance, **options))


def nonstationary(request: Request) -> Made:
    """Search nodes and coefficients together (docs/nonstationary.md); the columns of all solvers share the result."""
    return Made(_nonstationary(request.subject.noise, request.nfe, request.subject.guidance, request.seed))


def _nonstationary(noise: NoiseSchedule, nfe: int, guidance: float, seed: int) -> Schedule:
    key = noise.fingerprint(), nfe, guidance, seed
    if key not in _FOUND:
        _FOUND[key] = search(noise, nfe, method=SolverError(NONSTATIONARY, guidance), seed=seed)
    return _FOUND[key]


_FOUND: dict[tuple[str, int, float, int], Schedule] = {}


def by_gits(request: Request) -> Made:
    """Run GITS; its costs serve every N and solver, and their time counts each time."""
    return Made(*gits.search(request.subject, request.nfe, seed=request.seed))


def by_autodiffusion(request: Request) -> Made:
    """Run AutoDiffusion's search of the timesteps, at reduced scale."""
    if request.real is None:
        raise Inapplicable("AutoDiffusion compares samples with real images: give their features as real=")
    found = autodiffusion.search(request.subject, request.solver, request.nfe, request.real, seed=request.seed)
    return Made(found.schedule, found.calls)


def by_direct(request: Request) -> Made:
    """Search all nodes by the RMSE on the model itself: the limit."""
    found = direct.search(request.subject, request.solver, request.nfe, seed=request.seed)
    return Made(found.schedule, found.calls)


METHODS: Mapping[str, Method] = {
    **{name: functools.partial(rule, name) for name in BASELINES},
    "exponential": exponential,
    "hso": searched(lambda r: Hso(relax=True)),  # the paper's box and constants, the spacing as large as fits
    "hso-dm-nonuni": searched(lambda r: Hso(objective="dm-nonuni", spacing=0.0)),  # the paper's "+ bilevel"
    "solver-error": solver_error(),
    NONSTATIONARY: nonstationary,
    "gits": by_gits,
    "autodiffusion": by_autodiffusion,
    "direct": by_direct,
}

ABLATIONS: Mapping[str, Method] = {
    "hso-no-spacing": searched(lambda r: Hso(spacing_as="penalty", gamma=0.0)),  # the paper's "without penalty"
    "hso-penalty": searched(lambda r: Hso(spacing_as="penalty")),  # the paper's SPF to the letter
    "mep-only": searched(mep_only),
    "hso-other": of_other("hso"),
    "solver-error-other": of_other("solver-error"),
    FREE_FIRST: solver_error(first="free", compare=()),
    **{name: solver_error(detail=x, compare=()) for x, name in DETAILS.items() if x != DETAIL},
}
"""Schedules that only studies compare: the paper's, and those behind two defaults of the solver-error method."""


def prepare(
    method: str, subject: Subject, solver: str, nfe: int, *, seed: int = 0, real: np.ndarray | None = None
) -> Prepared:
    """Make a method's schedule for a subject, a solver and N.

    Args:
        method: of `METHODS` or `ABLATIONS`.
        subject: what the schedule is for.
        solver: of `benchmarks.compared.SOLVERS`; most methods do not look at it.
        nfe: N.
        seed: of the method's random streams.
        real: [m, d] `subject.features` of real images, for "autodiffusion" alone; not those that are judged with.
    """
    compiling = _compiling()
    compiling.clear()
    begin = time.perf_counter()
    made = (METHODS.get(method) or ABLATIONS[method])(Request(subject, solver, nfe, seed, real))
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
    """Say how long at least one of the spans was under way: a traced function traces others."""
    total, reached = 0.0, -np.inf
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total
