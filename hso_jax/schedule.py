"""`Schedule`: the few noise levels at which a model is evaluated, how they were found and how they score. NumPy."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import html
import importlib.metadata
import math
import operator
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from hso_jax.checks import MOST_LEVELS, brief, choice, count, level_list, number, numbers, printable, text, to_range
from hso_jax.noise import NoiseSchedule, alpha_sigma, check_noise
from hso_jax.noise.shifts import diffusers_sigmas
from hso_jax.solvers import NONSTATIONARY, PURE_NOISE, SOLVERS, coefficients_of
from hso_jax.solvers.nonstationary import MAX_HISTORY, check_coefficients
from hso_jax.solvers.weights import grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LAYOUTS = ("node", "interval")
ENDS = ("clean", "t_eps")
ARRAYS = ("t", "lams", "sigmas", "timesteps")
_PURE_NOISE = 4095.0  # diffusers writes sqrt(2^24 - 1) for zero terminal SNR
_LEAST_S = 1e-20  # far below what float32 tells apart from clean data


def _plain(name: str, value: Any) -> Any:
    # A finite number as Python's own, which a file can hold.
    real = number(name, value)
    return int(value) if isinstance(value, (int, np.integer)) else real


def _by_name(name: str, value: object, texts: bool = False) -> dict[str, Any]:
    # Finite numbers by name; texts and None among them if `texts`.
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ValueError(f"{name} is {brief(value)}; need numbers{' and texts' * texts} by name")
    return {
        key: x if texts and (x is None or isinstance(x, str)) else _plain(f"{name}[{key!r}]", x)
        for key, x in value.items()
    }


@dataclasses.dataclass(frozen=True)
class Origin:
    """How the nodes were found.

    Attributes:
        method: "hso", "solver-error", a baseline's name, ..., "custom".
        solver: the solver they were chosen for, "any" if the method does not look at it.
        guidance: weight of classifier-free guidance they were made for; None for methods that do not look at it.
        psi: the upper level's choice (rho, t_eps, t_max, ksigma_min, ksigma_max), if there was one.
        p: exponent of the model-error bound in `Scores.mep`.
        d_min: the spacing asked for, in t.
        seed: of the search, None where nothing was random.
        result: the lower level's ("converged", ...), "fixed" for a schedule that was not optimised.
        iterations, stationarity: steps the lower level took; largest entry of the projected gradient in t at its end.
        versions: of the packages that made it.
        tuned: what a schedule was tuned on and how (`bridge.tune`), numbers and texts by name; None for others.
    """

    method: str = "custom"
    solver: str = "any"
    guidance: float | None = None
    psi: Mapping[str, float] | None = None
    p: float = 2.0
    d_min: float = 0.0
    seed: int | None = None
    result: str = "fixed"
    iterations: int = 0
    stationarity: float | None = None
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    tuned: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        """Check every value. Raises ValueError."""
        checks: dict[str, Callable[[str, Any], Any]] = {
            **dict.fromkeys(("method", "solver", "result"), text),
            **dict.fromkeys(("p", "d_min", "guidance", "stationarity"), _plain),
            **dict.fromkeys(
                ("seed", "iterations"), functools.partial(count, low=0, high=2**63 - 1)
            ),  # as JSON's readers
            **{"psi": _by_name, "tuned": functools.partial(_by_name, texts=True)},
        }
        versions = self.versions
        if not isinstance(versions, Mapping) or not all(isinstance(x, str) for kv in versions.items() for x in kv):
            raise ValueError(f"versions is {brief(versions)}; need texts by name")
        self.__dict__["versions"] = dict(versions)
        for name, check in checks.items():
            value = getattr(self, name)
            if value is not None or name not in ("guidance", "stationarity", "seed", "psi", "tuned"):
                self.__dict__[name] = check(name, value)


@dataclasses.dataclass(frozen=True)
class Scores:
    """What was measured of the nodes; None where it was not, or is undefined.

    Attributes:
        mep: Midpoint Error Proxy of the nodes; undefined for one node or lam = -inf.
        spf: fitness of HSO's upper level, MEP and spacing penalty; undefined where mep is.
        error: root-mean-square error of the solver's samples on the reference problems.
        others_same_nodes: the same for other solvers on these nodes: at least what each has on nodes of its own.
        others_own_nodes: the same for other solvers, each on the nodes that were found for it.
        fitness: what the callable that a search was given said of it.
        amplification: of errors in the predictions by a non-stationary solver, see `solvers.amplification`.
    """

    mep: float | None = None
    spf: float | None = None
    error: float | None = None
    others_same_nodes: Mapping[str, float] = dataclasses.field(default_factory=dict)
    others_own_nodes: Mapping[str, float] = dataclasses.field(default_factory=dict)
    fitness: float | None = None
    amplification: float | None = None

    def __post_init__(self) -> None:
        """Check every value. Raises ValueError."""
        for name, value in self.__dict__.items():
            if name.startswith("others"):
                self.__dict__[name] = _by_name(name, value)
            elif value is not None:
                self.__dict__[name] = _plain(name, value)


@dataclasses.dataclass(frozen=True, eq=False)
class Schedule:
    """One schedule for one model and one number of function evaluations (NFE, N).

    Nodes run from noise to data. Layout "node" (the paper's DDIM) has N nodes, all evaluated; "interval" (its
    UniPC) has N + 1, of which the first N are evaluated and the last is where sampling stops. The end says what
    follows the last evaluation: "clean" is a step to sigma = 0, "t_eps" a step to the interval layout's last node.

    Attributes:
        model: preset's name, or what the noise schedule was called.
        nfe: N.
        layout: "node" or "interval".
        end: "clean" or "t_eps" ("t_eps" needs the interval layout).
        t: [K] continuous time in (0, 1], falling; K = N (node) or N + 1 (interval).
        lams: [K] half log-SNR, rising; the first may be -inf (pure noise).
        sigmas: [K] ksigma = sigma/alpha = exp(-lam), falling; the final 0 of a clean end is not in it.
        timesteps: [N] what the network is told at the evaluated nodes, as floats.
        kind: "vp", "ve" or "flow" (see `NoiseSchedule`).
        num_train_timesteps: T of the model's time scale.
        noise: fingerprint of the noise schedule.
        origin: how the nodes were found; its method, solver, guidance, psi, seed and result are properties here.
        scores: what was measured of them; its mep, spf, error, others_same_nodes, others_own_nodes and fitness are
            properties here.
        coefficients: [N, H - 1] of the non-stationary solver that the nodes were found with, see
            `solvers.nonstationary`; None for every other solver.
    """

    model: str
    nfe: int
    layout: str
    end: str
    t: np.ndarray
    lams: np.ndarray
    sigmas: np.ndarray
    timesteps: np.ndarray
    kind: str
    num_train_timesteps: int
    noise: str
    origin: Origin = Origin()
    scores: Scores = Scores()
    coefficients: np.ndarray | None = None

    def __post_init__(self) -> None:
        plain: dict[str, Any] = {name: numbers(name, getattr(self, name)).copy() for name in ARRAYS}
        plain["nfe"] = count("nfe", self.nfe, 1)
        plain["num_train_timesteps"] = count("num_train_timesteps", self.num_train_timesteps, 1, MOST_LEVELS)
        if self.coefficients is not None:
            plain["coefficients"] = check_coefficients(self.coefficients, self.nfe).copy()
        for value in plain.values():
            if isinstance(value, np.ndarray):
                value.setflags(write=False)
        self.__dict__.update(plain)
        choice("layout", self.layout, LAYOUTS)
        choice("end", self.end, ENDS)
        choice("kind", self.kind, ("vp", "ve", "flow"))
        text("model", self.model)
        text("noise", self.noise)
        for name, kind in (("origin", Origin), ("scores", Scores)):
            if not isinstance(getattr(self, name), kind):
                raise ValueError(f"{name} is {brief(getattr(self, name))}; need a {kind.__name__}")
        if self.layout == "node" and self.end == "t_eps":
            raise ValueError("end 't_eps' needs layout 'interval': layout 'node' has no node to stop at")
        if (self.coefficients is None) != (self.origin.solver != NONSTATIONARY):
            had = "none" if self.coefficients is None else "some"
            raise ValueError(f"coefficients: {had} for solver {self.origin.solver!r}; {NONSTATIONARY!r} alone has them")
        for name in ARRAYS:
            array: np.ndarray = getattr(self, name)
            size = self.nfe + (self.layout == "interval" and name != "timesteps")
            if array.shape != (size,):
                raise ValueError(
                    f"{name} has shape {array.shape}; layout {self.layout!r} at nfe {self.nfe} needs ({size},)"
                )
            pure_noise = name in ("lams", "sigmas") and np.isinf(array[0])
            if (bad := np.flatnonzero(~np.isfinite(array[int(pure_noise) :]))).size:
                i = int(bad[-1]) + int(pure_noise)
                raise ValueError(f"{name}[{i}] is {array[i]}; every entry must be finite")
            if (bad := np.flatnonzero(~(np.diff(array) * (1 if name == "lams" else -1) > 0))).size:
                i, order = int(bad[0]), "rise" if name == "lams" else "fall"
                entries = f"entry {i} is {array[i]:.9g} and entry {i + 1} {array[i + 1]:.9g}"
                raise ValueError(f"{name} must {order} strictly, but {entries}")
        t, lams, sigmas = self.t, self.lams, self.sigmas
        if not (t[-1] >= 0 and t[0] <= 1 and sigmas[-1] > 0):
            raise ValueError(
                f"t must lie in [0, 1] and sigmas above 0; got t {t[-1]:.6g}..{t[0]:.6g}, last sigma {sigmas[-1]:.6g}"
            )
        if np.isinf(lams[0]) != np.isinf(sigmas[0]):
            raise ValueError(f"lams and sigmas disagree: lams[0] is {lams[0]}, sigmas[0] {sigmas[0]}")
        first = int(np.isinf(lams[0]))
        off = np.abs(np.log(sigmas[first:]) + lams[first:])
        if off.size and off.max() > 1e-6:
            raise ValueError(
                f"sigmas and lams disagree: sigma must be exp(-lam), off by {off.max():.3g} in the logarithm"
            )

    @classmethod
    def from_t(
        cls,
        noise: NoiseSchedule,
        t: Any,
        *,
        layout: str = "node",
        end: str | None = None,
        origin: Origin = Origin(),
        scores: Scores = Scores(),
        coefficients: Any = None,
        lams: np.ndarray | None = None,
    ) -> Schedule:
        """A schedule from its nodes' times (falling, in the noise schedule's range); the rest is derived.

        Where the caller has `lams` of these times already, they are not computed again.

        Raises ValueError if t is empty, not finite, not strictly falling or outside (0, 1], or layout or end unknown.
        """
        check_noise(noise)
        t = numbers("t", t)
        choice("layout", layout, LAYOUTS)
        least = 1 if layout == "node" else 2
        if t.ndim != 1 or t.size < least:
            raise ValueError(f"t has shape {t.shape}; layout {layout!r} needs {least} or more nodes")
        # A flow's network is told s itself, between the levels of its training grid too.
        low = _LEAST_S if noise.kind == "flow" else float(noise.t_min)
        if bad := [float(x) for x in t if not low * (1 - 1e-6) <= x <= 1.0]:
            raise ValueError(f"t = {bad[0]:.9g} is outside [{low:.6g}, 1], the range of {noise.name}")
        t = np.maximum(t, low)
        lams = np.asarray(noise.lam(t) if lams is None else lams, np.float64)
        nfe = len(t) if layout == "node" else len(t) - 1
        with np.errstate(over="ignore"):
            sigmas = np.exp(-lams)
        end = end if end is not None else ("clean" if layout == "node" else "t_eps")
        timesteps = np.asarray(noise.timestep(t[:nfe]), np.float64)
        of_model = noise.kind, noise.num_train_timesteps, noise.fingerprint()
        return cls(noise.name, nfe, layout, end, t, lams, sigmas, timesteps, *of_model, origin, scores, coefficients)

    @classmethod
    def from_lams(cls, noise: NoiseSchedule, lams: Any, **options: Any) -> Schedule:
        """A schedule from its nodes' half log-SNR, rising; -inf is pure noise, what is out of range goes to its end.

        `options` and what is raised are as of `from_t`.
        """
        check_noise(noise)
        lams = numbers("lams", lams)
        pure = np.isneginf(lams)
        if lams.ndim != 1 or not (pure | np.isfinite(lams)).all():
            raise ValueError(f"lams is {brief(lams)}; need a list of finite numbers, or -inf for pure noise")
        return cls.from_t(noise, np.where(pure, 1.0, noise.t_of_lam(np.where(pure, 0.0, lams))), **options)

    @classmethod
    def from_sigmas(cls, noise: NoiseSchedule, sigmas: Any, *, end: str = "clean", **options: Any) -> Schedule:
        """A schedule from a list of ksigma (k-diffusion's convention); a final 0 is taken as the clean end.

        With `end="clean"` every value is evaluated; with "t_eps" the last is where sampling stops. `options` are
        `origin`, `scores` and `coefficients`. A value that leaves the model's range by no more than it was rounded
        (14.615 for 14.6146) is taken to the range's end; a flow model is told any level, whatever its shift. Raises
        ValueError as `from_t` and `level_list`, or for a value that the noise schedule does not reach.
        """
        check_noise(noise)
        choice("end", end, ENDS)
        values = level_list("sigmas", sigmas)
        if end == "clean" and values[-1] == 0.0:
            values = values[:-1]
        if values.size == 0 or values[-1] == 0.0:
            raise ValueError(f"sigmas is {brief(sigmas)}; need a value above 0 to evaluate or to stop at")
        values = _reached(noise, values)
        with np.errstate(divide="ignore"):
            t = t_of_lams(noise, -np.log(values))
        return cls.from_t(noise, t, layout="node" if end == "clean" else "interval", end=end, **options)

    # What is most often asked of the origin and of the scores.
    method, solver, guidance, psi, seed, result = (
        property(operator.attrgetter(f"origin.{name}"))
        for name in ("method", "solver", "guidance", "psi", "seed", "result")
    )
    mep, spf, error, fitness, others_same_nodes, others_own_nodes = (
        property(operator.attrgetter(f"scores.{name}"))
        for name in ("mep", "spf", "error", "fitness", "others_same_nodes", "others_own_nodes")
    )

    @property
    def others(self) -> Mapping[str, float]:
        """Both in one, as older versions had them; warns."""
        told = "Schedule.others is now others_same_nodes (of a search) and others_own_nodes (of the zoo)"
        warnings.warn(told, DeprecationWarning, stacklevel=2)
        return {**self.others_same_nodes, **self.others_own_nodes}

    @property
    def min_spacing(self) -> float | None:
        """The smallest gap of neighbouring t; None for a single node."""
        return float((self.t[:-1] - self.t[1:]).min()) if len(self.t) > 1 else None

    @property
    def better_solver(self) -> str | None:
        """The other solver with the smallest error, on these nodes or its own, if that is 1% below this schedule's."""
        others = {**self.others_own_nodes, **self.others_same_nodes}
        if self.error is None or not others:
            return None
        name = min(others, key=others.__getitem__)
        return name if others[name] < 0.99 * self.error else None

    @property
    def evaluated_sigmas(self) -> np.ndarray:
        """[N] ksigma at the nodes where the network is called."""
        return self.sigmas[: self.nfe]

    def sampler_sigmas(self) -> np.ndarray:
        """[N + 1] sigmas as k-diffusion, ComfyUI and diffusers' samplers take them, float64; the last one is the end.

        ksigma for "vp" and "ve" models, s = sigma (alpha + sigma = 1) for "flow". For a diffusers pipeline's `sigmas=`
        take `diffusers_sigmas`: FlowMatch schedulers shift what they are given.
        """
        values = self.sigmas if self.kind != "flow" else alpha_sigma(self.lams, "flow")[1]
        return np.append(values[: self.nfe], 0.0 if self.end == "clean" else values[-1])

    def diffusers_sigmas(
        self, scheduler: Any, *, mu: float | None = None, image_seq_len: int | None = None
    ) -> np.ndarray:
        """What to pass as a pipeline's `sigmas=` for these levels, where no schedule is installed in its scheduler.

        FlowMatch schedulers (FLUX, SD3, Qwen, ...) shift the sigmas they are given: `sampler_sigmas()` would be
        shifted a second time. This is its inverse under s -> k s / (1 + (k - 1) s), N values, to which the scheduler
        appends the end; it is exact to the scheduler's float32. EulerDiscrete takes `sampler_sigmas()` as they are.

        Args:
            scheduler: of the pipeline, or the pipeline; only its class's name, `config` and `shift` are read.
            mu: what the pipeline computes for `use_dynamic_shifting`: k = exp(mu) ("exponential") or mu ("linear").
            image_seq_len: tokens of the image (4096 for 1024 x 1024 in FLUX), from which mu follows by the config.
                Neither is needed for a constant shift.

        Raises:
            ValueError: for a scheduler that would not follow them exactly, an end or a kind of noise that it does not
                have, a dynamic shift without mu or image_seq_len, or a schedule with coefficients; the message says
                what to use instead.
        """
        if self.coefficients is not None:
            raise ValueError("the sigmas belong to its own coefficients; use bridge.with_schedule(scheduler, schedule)")
        return diffusers_sigmas(self.sampler_sigmas(), self.kind, scheduler, mu=mu, image_seq_len=image_seq_len)

    def integer_timesteps(self) -> np.ndarray:
        """[N] timesteps rounded to integers in 0..T - 1, strictly falling.

        Of two that round alike the later one is moved down, or up where there is no level left below. Raises ValueError
        for more evaluations than training levels, or a model whose timesteps are not indices.
        """
        levels = self.num_train_timesteps
        if self.kind == "ve":
            raise ValueError(
                "a variance-exploding model is told log(sigma)/4, not an index: there are no integer timesteps"
            )
        if levels == 1:
            raise ValueError("this model is told a time in [0, 1], not an index: there are no integer timesteps")
        if self.nfe > levels:
            raise ValueError(f"{self.nfe} evaluations do not fit {levels} training levels without repeating a timestep")
        top = levels if self.kind == "flow" else levels - 1
        steps = np.clip(np.rint(self.timesteps), top - levels + 1, top).astype(np.int64)
        for i in range(1, self.nfe):
            steps[i] = min(steps[i], steps[i - 1] - 1)
        for i in range(self.nfe - 1, -1, -1):  # what was pushed below the last level comes back up
            steps[i] = max(steps[i], top - levels + 1 + (self.nfe - 1 - i))
        return steps

    def weights_table(self) -> np.ndarray:
        """[N, 1 + H] the arithmetic of a non-stationary solver's steps, for a loop in any language.

        Column 0 weighs the sample, the others the predictions of clean data, the newest first; one that does not exist
        yet has weight 0. They are for samples in the model's own scaling: alpha^2 + sigma^2 = 1 ("vp"), alpha = 1
        ("ve") or alpha + sigma = 1 ("flow"). Raises ValueError without coefficients.
        """
        if self.coefficients is None:
            raise ValueError(
                f"the schedule is for solver {self.solver!r} and holds no coefficients; {NONSTATIONARY!r} ones have a "
                "table of weights (hso_jax.solvers.weights computes those of a named solver)"
            )
        start = self.lams[: self.nfe]
        stop = np.append(start[1:], math.inf if self.end == "clean" else self.lams[-1])
        with np.errstate(over="ignore"):
            before, (alpha, sigma) = alpha_sigma(start, self.kind)[1], alpha_sigma(stop, self.kind)
        gain = alpha * -np.expm1(start - stop)  # alpha' - alpha sigma'/sigma, without its cancellation
        bracket = np.column_stack([1.0 - self.coefficients.sum(axis=1), self.coefficients])
        return np.column_stack([sigma / before, gain[:, None] * bracket])

    def python_literal(self) -> str:
        """Python's text of `sigmas` (those of `sampler_sigmas`), `timesteps` and, where there are any, `coefficients`.

        Every digit is kept: `with_schedule(scheduler, sigmas)` and `NonstationaryScheduler.from_schedule(scheduler,
        sigmas, coefficients=coefficients)` of the bridge sample at them again.
        """
        # The names come from a file: nothing in them may end the comment.
        about = f"{self.model}: N = {self.nfe}, {self.method} for {self.solver}, {self.kind} noise"
        lines = [f"# {about!a}", f"sigmas = {_list(self.sampler_sigmas())}", f"timesteps = {_list(self.timesteps)}"]
        if self.coefficients is not None:
            scaling = "(1 - sigma) x0 + sigma eps" if self.kind == "flow" else "x0 + sigma eps"
            rows = "".join(f"    {_list(row)},\n" for row in self.coefficients)
            lines.append(f"{_FORM.format(scaling=scaling)}coefficients = [\n{rows}]")
        return "\n".join(lines) + "\n"

    def with_end(self, end: str) -> Schedule:
        """The same nodes with the other end; "clean" on an interval layout replaces its last node by sigma = 0.

        Raises ValueError for an unknown end, or "t_eps" on the node layout (it has no node to stop at).
        """
        return dataclasses.replace(self, end=end)

    def with_scores(self, **scores: Any) -> Schedule:
        """The same schedule with these entries of `scores` replaced."""
        found = copy.copy(self)  # its nodes are checked already
        found.__dict__["scores"] = dataclasses.replace(self.scores, **scores)
        return found

    def plot(self) -> Figure:
        """A picture of it, as `hso_jax.plot` draws several."""
        from hso_jax.plots import plot  # Matplotlib takes as long to import as a search does

        return plot(self)

    def __len__(self) -> int:
        """N."""
        return self.nfe

    def __eq__(self, other: object) -> bool:
        """Whether every field is the same; arrays to the last digit."""
        if not isinstance(other, Schedule):
            return NotImplemented
        return all(np.array_equal(getattr(self, f.name), getattr(other, f.name)) for f in dataclasses.fields(self))

    def __hash__(self) -> int:
        return hash((self.model, self.layout, self.end, *self.t.tolist()))

    def __repr__(self) -> str:
        told = " ".join(f"{x:.5g}" for x in self.timesteps[:20]) + (" ..." if self.nfe > 20 else "")
        how = f"{self.method} for {self.solver}"
        return f"<Schedule {printable(f'{self.model}: N = {self.nfe}, {self.layout}, {how}, timesteps {told}')}>"

    def _repr_html_(self) -> str:
        """A table of the nodes, for notebooks."""
        c = np.zeros((self.nfe, 0)) if self.coefficients is None else self.coefficients
        rows = [["step", "t", "lam", "sigma/alpha", "timestep", *(f"c{j + 1}" for j in range(c.shape[1]))]]
        for i, (t, lam, sigma) in enumerate(zip(self.t, self.lams, self.sigmas, strict=True)):
            told = [] if i >= self.nfe else [self.timesteps[i], *c[i]]
            cells = [f"{x:.6g}" for x in (t, lam, sigma, *told)]
            rows.append([str(i), *cells, *[""] * (1 + c.shape[1] - len(told))])
        body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
        return f"<table><caption>{html.escape(repr(self))}</caption>{body}</table>"


def t_of_lams(noise: NoiseSchedule, lams: np.ndarray) -> np.ndarray:
    """The times of half log-SNRs, -inf among them; a flow model's beyond its training grid too, whatever its shift."""
    pure = np.isneginf(lams)
    t = np.where(pure, 1.0, noise.t_of_lam(np.where(pure, 0.0, lams)))
    if noise.kind != "flow":
        return t
    with np.errstate(over="ignore"):  # s = k t / (1 + (k - 1) t) has an inverse beyond the training grid too
        exact = 1.0 / (1.0 + np.exp(lams - noise.lam(0.5)))
    return np.where((exact < noise.t_min) | (exact > noise.t_max), exact, t)


def _reached(noise: NoiseSchedule, values: np.ndarray) -> np.ndarray:
    """Ksigma that the noise schedule reaches: rounded ends are mended, pure noise is inf. Raises ValueError."""
    if noise.kind == "flow":
        return values
    low, high = (float(np.exp(-noise.lam(float(t)))) for t in (noise.t_min, noise.t_max))
    # diffusers' value for pure noise, where it is no finite level of a model that predicts noise.
    named = (values >= _PURE_NOISE) & (values <= _PURE_NOISE + 2.0)
    finite = (noise.prediction == "epsilon") & (values <= high)
    pure = noise.zero_terminal_snr & (np.isinf(values) | (named & ~finite))
    values = np.where(pure, np.inf, to_range(values, low * (1 - 1e-5), high * (1 + 1e-5)))
    for value in values[~pure]:
        if not low * (1 - 2e-5) <= value <= high * (1 + 2e-5):
            cure = "give sigma/alpha in it"
            if noise.kind == "vp" and value > 10 * high:
                cure = f"of timesteps t make Schedule.from_t(noise, [(t + 1) / {noise.num_train_timesteps}, ...])"
            raise ValueError(f"sigma {value:.9g} is outside [{low:.6g}, {high:.6g}], the range of {noise.name}; {cure}")
    return values


@functools.cache
def versions() -> dict[str, str]:
    """Versions of the packages a result depends on, those that are installed."""
    found = {}
    for name in ("hso-jax", "jax", "jaxlib", "evosax", "numpy"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


_FORM = """\
# Step i, for samples x = {scaling} and predictions m[0], m[1], ... of x0, the newest first:
# r = sigmas[i + 1] / sigmas[i]; c = coefficients[i]; x = r x + (1 - r) ((1 - sum(c)) m[0] + c[0] m[1] + c[1] m[2] ...)
"""


def known_coefficients(schedule: Schedule) -> np.ndarray:
    """[N, 3] a known solver's coefficients on the schedule's nodes; that solver has one evaluation a step."""
    last = math.inf if schedule.end == "clean" else float(schedule.lams[-1])
    evaluated = schedule.lams[: schedule.nfe].copy()
    if np.isinf(evaluated[0]):  # pure noise has the finite lam that `bridge.sample` takes there
        evaluated[0] = PURE_NOISE[schedule.kind]
    with np.errstate(all="ignore"):  # infinite ends are computed, and then not used
        steps = grid(evaluated, np.asarray(last), np.asarray(schedule.nfe))
        return np.asarray(coefficients_of(SOLVERS[schedule.solver].weights(steps), steps, MAX_HISTORY))


def in_coefficients(schedule: Schedule) -> Schedule:
    """The same steps of the same solver as coefficients of their own; a schedule that has some is returned as it is."""
    if schedule.coefficients is not None:
        return schedule
    origin = dataclasses.replace(schedule.origin, solver=NONSTATIONARY)
    return dataclasses.replace(schedule, origin=origin, coefficients=known_coefficients(schedule))


def _list(values: np.ndarray) -> str:
    return "[" + ", ".join(repr(x) if math.isfinite(x) else 'float("inf")' for x in values.tolist()) + "]"
