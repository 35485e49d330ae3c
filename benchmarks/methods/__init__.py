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

from benchmarks.methods import autodiffusion
from benchmarks.runner import ANY, SHIFTS, Inapplicable, noise_of, rounded
from benchmarks.targets import OWN_SEEDS, Target
from bridge import tune_denoiser
from hso_jax import Hso, Schedule, SolverError, baseline, search
from hso_jax import recommend as library_recommend
from hso_jax import zoo as library_zoo
from hso_jax.baselines import BASELINES, flow_time, inapplicable
from hso_jax.hso import Box
from hso_jax.schedule import Origin
from hso_jax.shipped.zoo import NotInZooError
from hso_jax.solvers import NONSTATIONARY

OTHER = {"fashion-eps": "fashion-v", "fashion-v": "fashion-eps"}
"""Models whose schedules are exchanged: the same data and the same kind of model, another noise schedule."""

DM_NONUNI_END = 1e-3  # where DM-NonUni's schedules stop in t, see `hso_jax.baselines`
DETAILS = (0.0, 0.25, 0.5, 1.0)
"""Weights of fine detail that are compared; 0 is the default."""

LATENTS = 1024
"""Noises that a method which runs the model may take from."""

EVALUATIONS, MANY_EVALUATIONS = 5000, 50_000
DIRECT_EVALUATIONS = 5000  # for each of the N


class Request(NamedTuple):
    """What a method may look at: `real` is [m, d] features of real images, or None; the rest is as for `prepare`."""

    target: Target
    solver: str
    nfe: int
    seed: int
    real: np.ndarray | None


class Made(NamedTuple):
    """A method's result: the schedule, evaluations of the network, and what else its record keeps."""

    schedule: Schedule
    calls: int = 0
    kept: Mapping[str, Any] = {}


class Prepared(NamedTuple):
    """A schedule of N evaluations with a clean end, its seconds of wall time and of compilation, and what else is kept.

    `calls` counts evaluations of the network, each of one image. A later call for the same N mostly compiles nothing.
    """

    schedule: Schedule
    seconds: float
    calls: int
    compile_seconds: float
    kept: Mapping[str, Any]


Method = Callable[[Request], Made]


def rule(name: str, request: Request) -> Made:
    """Make the schedule of a rule of `hso_jax.baselines.BASELINES`, or of a flow's time with a shift."""
    noise = request.target.noise
    if name in SHIFTS:
        return Made(flow_time(noise, request.nfe, SHIFTS[name]))
    if reason := inapplicable(name, noise):
        raise Inapplicable(reason)
    return Made(baseline(name, noise, request.nfe))


def exponential(request: Request) -> Made:
    """Space a flow's s evenly in log s between its ends, as diffusers' `use_exponential_sigmas` does.

    The sigma of other models is exp(-lam), and the nodes are those of "uniform-lam" (and of `use_lu_lambdas`).
    """
    noise = request.target.noise
    if noise.kind != "flow":
        raise Inapplicable(f"log-uniform sigma of a model of kind {noise.kind!r} is 'uniform-lam'")
    high, low = (float(noise.sigma(float(t))) for t in (noise.t_max, noise.t_min))
    s = np.geomspace(high, low, request.nfe)
    t = np.asarray(noise.t_of_lam(np.log1p(-s) - np.log(s)))
    t[0] = float(noise.t_max)
    return Made(Schedule.from_t(noise, t, origin=Origin(method="exponential")))


def searched(how: Callable[[Request], Any]) -> Method:
    """Search with the method that `how` makes of a request."""
    return lambda r: Made(search(r.target.noise, r.nfe, method=how(r), seed=r.seed))


def mep_only(request: Request) -> Hso:
    """Run the lower level on MEP between DM-NonUni's ends, without an upper level (the paper's "+ MEP")."""
    noise = request.target.noise
    t_max, t_eps = float(noise.t_max), max(float(noise.t_min), DM_NONUNI_END)
    return Hso(spacing=0.0, box=Box(t_eps=(t_eps, t_eps), t_max=(t_max, t_max)))


def of_other(method: str) -> Method:
    """Search for the other noise schedule, and take the timesteps as someone copies them."""

    def take(request: Request) -> Made:
        one = request.target
        if one.name not in OTHER:
            raise Inapplicable(f"{one.name} has no model to exchange schedules with")
        how = SolverError(request.solver, one.guidance) if method == "solver-error" else Hso(relax=True)
        schedule = search(noise_of(OTHER[one.name]), request.nfe, method=how, seed=request.seed)
        t = np.clip(schedule.t, float(one.noise.t_min), 1.0)
        return Made(Schedule.from_t(one.noise, t, origin=Origin(method=f"{schedule.method}-other")))

    return take


def solver_error(solver: str | None = None, **options: Any) -> Method:
    """Search by the solver's error on the reference problems, at the target's guidance (docs/solver-error.md).

    What is searched for no solver of the cell's is kept: the columns of all solvers share it.
    """

    def take(r: Request) -> Made:
        how = SolverError(solver or r.solver, r.target.guidance, **options)
        key = r.target.noise.fingerprint(), r.nfe, r.target.guidance, r.seed, solver, repr(options)
        if solver is None or key not in _KEPT:
            _KEPT[key] = search(r.target.noise, r.nfe, method=how, seed=r.seed)
        return Made(_KEPT[key])

    return take


_KEPT: dict[tuple[Any, ...], Schedule] = {}


def zoo(request: Request) -> Made:
    """Take what is shipped for a solver, or what the library searches where nothing is."""
    one, solver = request.target, NONSTATIONARY if request.solver == ANY else request.solver
    try:
        return Made(library_zoo(one.noise, request.nfe, solver, guidance=one.guidance))
    except NotInZooError:
        return solver_error(solver)(request)


def recommend(request: Request) -> Made:
    """Take what `hso_jax.recommend` says; where nothing is shipped, what the search that it names finds."""
    try:
        found = library_recommend(request.target.noise, request.nfe, guidance=request.target.guidance, distilled=False)
        return Made(found.schedule)
    except NotInZooError:
        return zoo(request._replace(solver=NONSTATIONARY))


def by_autodiffusion(request: Request) -> Made:
    """Run AutoDiffusion's search of the timesteps, at reduced scale."""
    if request.real is None:
        raise Inapplicable("AutoDiffusion compares samples with real images: give their features as real=")
    found = autodiffusion.search(request.target, request.solver, request.nfe, request.real, seed=request.seed)
    return Made(found.schedule, found.calls)


def tuned(solver: str | None = None, by: str = "auto", budget: int | None = EVALUATIONS) -> Method:
    """Look at the model: `bridge.tune_denoiser` on noise that nothing is judged on.

    By default for the cell's solver, or UniPC-3 where it has none; without a budget, by `DIRECT_EVALUATIONS` N.
    """

    def take(r: Request) -> Made:
        one, known = r.target, "unipc-3" if r.solver == ANY else r.solver
        try:
            made = tune_denoiser(
                one.denoiser, one.noise, r.nfe, latents=one.latents(LATENTS, OWN_SEEDS + r.seed),
                condition=one.condition(LATENTS), guidance=one.guidance, solver=solver or known, by=by,
                budget=budget or DIRECT_EVALUATIONS * r.nfe,
            )  # fmt: skip
        except ValueError as reason:
            if by != "gradients":
                raise
            raise Inapplicable(str(reason)) from reason  # a network without gradients
        history = [[count, rounded(own), rounded(apart)] for count, own, apart in made.history]
        errors = {"start_error": rounded(made.start_error), "error": rounded(made.error)}
        return Made(made.schedule, made.evaluations, {"start": made.start, "history": history, **errors})

    return take


TUNED: Mapping[str, Method] = {
    "tune": tuned(NONSTATIONARY),
    "tune-gradients": tuned(NONSTATIONARY, "gradients"),
    "nodes": tuned("unipc-3"),
    "nodes-2m": tuned("dpmpp-2m"),
    "nodes-gradients": tuned("unipc-3", "gradients"),
    "tune-50k": tuned(NONSTATIONARY, budget=MANY_EVALUATIONS),
    "nodes-50k": tuned("unipc-3", budget=MANY_EVALUATIONS),
}
"""What looks at the model, for a solver of its own."""

RULES = (*BASELINES, *SHIFTS)

_ALONE: dict[str, Any] = {"compare": ()}  # nothing of other solvers is told

METHODS: Mapping[str, Method] = {
    **{name: functools.partial(rule, name) for name in RULES},
    "exponential": exponential,
    "hso": searched(lambda r: Hso(relax=True)),  # the paper's box and constants, the spacing as large as fits
    "hso-dm-nonuni": searched(lambda r: Hso(objective="dm-nonuni", spacing=0.0)),  # the paper's "+ bilevel"
    "solver-error": solver_error(),
    NONSTATIONARY: solver_error(NONSTATIONARY),
    "zoo": zoo,
    "recommend": recommend,
    "gits": tuned(by="gits"),
    "autodiffusion": by_autodiffusion,
    "direct": tuned(by="gradients", budget=None),  # all nodes on the model itself: the limit
    "zoo-end": solver_error(NONSTATIONARY, first="end"),
    **TUNED,
    # Schedules that only studies compare: the paper's, and those behind defaults of the solver-error method.
    "hso-no-spacing": searched(lambda r: Hso(spacing_as="penalty", gamma=0.0)),  # the paper's "without penalty"
    "hso-penalty": searched(lambda r: Hso(spacing_as="penalty")),  # the paper's SPF to the letter
    "mep-only": searched(mep_only),
    "hso-other": of_other("hso"),
    "solver-error-other": of_other("solver-error"),
    **{f"detail-{x:g}": solver_error(detail=x, **_ALONE) for x in DETAILS[1:]},
}

ABLATIONS = (
    *("hso-no-spacing", "hso-penalty", "mep-only", "hso-other", "solver-error-other"),
    *(f"detail-{x:g}" for x in DETAILS[1:]),
)

OWN_SOLVER = (NONSTATIONARY, "recommend", "zoo-end", *TUNED)
"""Methods whose schedule is for a solver of its own, whatever the cell's is."""


def prepare(
    method: str, target: Target, solver: str, nfe: int, *, seed: int = 0, real: np.ndarray | None = None
) -> Prepared:
    """Make a method's schedule for a target, a solver and N.

    `real` has [m, d] features of real images that nothing is judged with, for "autodiffusion" alone.
    """
    compiling = _compiling()
    compiling.clear()
    begin = time.perf_counter()
    made = METHODS[method](Request(target, solver, nfe, seed, real))
    wall = time.perf_counter() - begin
    compiled = min(union_length(compiling), wall)
    return Prepared(made.schedule, wall - compiled, made.calls, compiled, made.kept)


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
