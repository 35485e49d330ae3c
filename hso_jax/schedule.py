"""`Schedule`: the few noise levels at which a model is evaluated, as plain NumPy data."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
from collections.abc import Mapping
from typing import Any

import numpy as np

from hso_jax.checks import brief, choice, number, numbers
from hso_jax.diffusers_sigmas import diffusers_sigmas
from hso_jax.noise import NoiseSchedule, alpha_sigma
from hso_jax.noise.noise_schedule import check_noise

LAYOUTS = ("node", "interval")
ENDS = ("clean", "t_eps")
_TEXTS = ("model", "method", "solver", "noise", "result")
_NUMBERS = ("p", "d_min", "mep", "spf", "min_spacing", "stationarity", "guidance", "error", "fitness")
_COUNTS = {"num_train_timesteps": 1, "iterations": 0, "seed": 0}


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
        method: how the nodes were chosen ("hso", a baseline's name, "custom").
        solver: the solver they were chosen for, "any" if the method does not look at it.
        t: [K] continuous time in (0, 1], falling; K = N (node) or N + 1 (interval).
        lams: [K] half log-SNR, rising; the first may be -inf (pure noise).
        sigmas: [K] ksigma = sigma/alpha = exp(-lam), falling; the final 0 of a clean end is not in it.
        timesteps: [N] what the network is told at the evaluated nodes, as floats.
        kind: "vp", "ve" or "flow" (see `NoiseSchedule`).
        num_train_timesteps: T of the model's time scale.
        noise: fingerprint of the noise schedule.
        psi: the upper level's choice (rho, t_eps, t_max, ksigma_min, ksigma_max), if there was one.
        p: exponent of the model-error bound in `mep`.
        d_min: the spacing asked for, in t.
        mep: Midpoint Error Proxy of the nodes; None where it is undefined (one node, or lam = -inf).
        spf: fitness, MEP and spacing penalty; None where mep is.
        min_spacing: smallest gap of neighbouring t; None for a single node.
        result: the lower level's result ("converged", ...) or "fixed" for a schedule that was not optimised.
        iterations: steps the lower level took.
        stationarity: largest entry of the projected gradient at the nodes, in t.
        seed: of the search, None where nothing was random.
        guidance: weight of classifier-free guidance it was made for; None for methods that do not look at it.
        error: root-mean-square error of the solver's samples on the reference problems; None if not measured.
        others: the same for other solvers: at most what they would reach with a schedule of their own.
        fitness: what the callable that a search was given said of it; None if it was not asked.
        versions: of the packages that made it.
    """

    model: str
    nfe: int
    layout: str
    end: str
    method: str
    solver: str
    t: np.ndarray
    lams: np.ndarray
    sigmas: np.ndarray
    timesteps: np.ndarray
    kind: str
    num_train_timesteps: int
    noise: str
    psi: Mapping[str, float] | None = None
    p: float = 2.0
    d_min: float = 0.0
    mep: float | None = None
    spf: float | None = None
    min_spacing: float | None = None
    result: str = "fixed"
    iterations: int = 0
    stationarity: float | None = None
    seed: int | None = None
    guidance: float | None = None
    error: float | None = None
    others: Mapping[str, float] = dataclasses.field(default_factory=dict)
    fitness: float | None = None
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the counts and the order of everything, whoever made it."""
        for name in ("t", "lams", "sigmas", "timesteps"):
            object.__setattr__(self, name, _frozen(name, getattr(self, name)))
        _check(self)
        for name in (*_NUMBERS, *_COUNTS, "nfe"):
            object.__setattr__(self, name, _plain(getattr(self, name)))
        for name in ("psi", "others"):
            if (mapping := getattr(self, name)) is not None:
                object.__setattr__(self, name, {key: _plain(x) for key, x in mapping.items()})

    @classmethod
    def from_t(
        cls,
        noise: NoiseSchedule,
        t: Any,
        *,
        layout: str = "node",
        end: str | None = None,
        method: str = "custom",
        solver: str = "any",
        **fields: Any,
    ) -> Schedule:
        """A schedule from its nodes' times (falling, in the noise schedule's range); the rest is derived.

        Raises:
            ValueError: if t is empty, not finite, not strictly falling or outside (0, 1], or layout or end unknown.
        """
        check_noise(noise)
        t = numbers("t", t)
        choice("layout", layout, LAYOUTS)
        if t.ndim != 1 or t.size < (1 if layout == "node" else 2):
            raise ValueError(
                f"t has shape {t.shape}; layout {layout!r} needs {'1' if layout == 'node' else '2'} or more nodes"
            )
        low, high = float(noise.t_min), 1.0
        if bad := [float(x) for x in t if not low * (1 - 1e-6) <= x <= high]:
            raise ValueError(f"t = {bad[0]:.9g} is outside [{low:.6g}, {high:.6g}], the range of {noise.name}")
        t = np.maximum(t, low)
        lams = np.asarray(noise.lam(t), np.float64)
        nfe = len(t) if layout == "node" else len(t) - 1
        gaps = t[:-1] - t[1:]
        with np.errstate(over="ignore"):
            sigmas = np.exp(-lams)
        return cls(
            model=noise.name,
            nfe=nfe,
            layout=layout,
            end=end if end is not None else ("clean" if layout == "node" else "t_eps"),
            method=method,
            solver=solver,
            t=t,
            lams=lams,
            sigmas=sigmas,
            timesteps=np.asarray(noise.timestep(t[:nfe]), np.float64),
            kind=noise.kind,
            num_train_timesteps=noise.num_train_timesteps,
            noise=noise.fingerprint(),
            min_spacing=float(gaps.min()) if gaps.size else None,
            **fields,
        )

    @classmethod
    def from_sigmas(cls, noise: NoiseSchedule, sigmas: Any, *, end: str = "clean", **fields: Any) -> Schedule:
        """A schedule from a list of ksigma (k-diffusion's convention); a final 0 is taken as the clean end.

        With `end="clean"` every value is evaluated; with "t_eps" the last is where sampling stops.

        Raises:
            ValueError: as `from_t`, or for a value that the noise schedule does not reach.
        """
        check_noise(noise)
        choice("end", end, ENDS)
        values = numbers("sigmas", sigmas)
        if values.ndim != 1 or values.size == 0:
            raise ValueError(f"sigmas has shape {values.shape}; need one axis with at least one value")
        if end == "clean" and values[-1] == 0.0:
            values = values[:-1]
        if values.size == 0 or not np.all(values > 0):
            raise ValueError(f"sigmas must be positive (but for a final 0), got {brief(sigmas)}")
        with np.errstate(divide="ignore"):
            lams = -np.log(values)
        highest, lowest = float(noise.lam(float(noise.t_min))), float(noise.lam(float(noise.t_max)))
        for value, lam in zip(values, lams, strict=True):
            if not (lam <= highest + 1e-5 and (lam >= lowest - 1e-5 or (np.isinf(lam) and noise.zero_terminal_snr))):
                bounds = f"[{np.exp(-highest):.6g}, {np.exp(-lowest):.6g}]"
                raise ValueError(f"sigma {value:.9g} is outside {bounds}, the range of {noise.name}")
        t = np.where(np.isinf(lams), 1.0, noise.t_of_lam(np.where(np.isinf(lams), 0.0, lams)))
        layout = "node" if end == "clean" else "interval"
        return cls.from_t(noise, t, layout=layout, end=end, **fields)

    @property
    def better_solver(self) -> str | None:
        """The solver of `others` with the smallest error, if that is at least 1% below this schedule's own."""
        if self.error is None or not self.others:
            return None
        name = min(self.others, key=self.others.__getitem__)
        return name if self.others[name] < 0.99 * self.error else None

    @property
    def evaluated_sigmas(self) -> np.ndarray:
        """[N] ksigma at the nodes where the network is called."""
        return self.sigmas[: self.nfe]

    def sampler_sigmas(self) -> np.ndarray:
        """[N + 1] sigmas as k-diffusion, ComfyUI and diffusers' samplers take them, float64.

        For a diffusers pipeline's `sigmas=` take `diffusers_sigmas`: FlowMatch schedulers shift what they are given.
        ksigma for "vp" and "ve" models and s = sigma (alpha + sigma = 1) for "flow"; the last one is 0 for a
        clean end and the last node's for "t_eps".
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
            image_seq_len: tokens of the image (4096 for 1024 x 1024 in FLUX), from which mu follows by the config's
                `base_shift`, `max_shift` and lengths. Neither is looked at for a constant shift, nor needed where the
                two shifts are equal.

        Raises:
            ValueError: for a scheduler that would not follow them exactly, an end or a kind of noise that it does not
                have, or a dynamic shift without mu or image_seq_len; the message says what to use instead.
        """
        return diffusers_sigmas(self.sampler_sigmas(), self.kind, scheduler, mu=mu, image_seq_len=image_seq_len)

    def integer_timesteps(self) -> np.ndarray:
        """[N] timesteps rounded to integers in 0..T - 1, strictly falling.

        Rounding may make two timesteps equal; the later one is then moved down until it is below the earlier, or up
        where there is no level left below.

        Raises:
            ValueError: for more evaluations than training levels, or a model whose timesteps are not indices.
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

    def with_end(self, end: str) -> Schedule:
        """The same nodes with the other end; "clean" on an interval layout replaces its last node by sigma = 0.

        Raises:
            ValueError: for an unknown end, or "t_eps" on the node layout (it has no node to stop at).
        """
        return dataclasses.replace(self, end=end)


@functools.cache
def versions() -> dict[str, str]:
    """Versions of the packages a result depends on."""
    return {name: importlib.metadata.version(name) for name in ("hso-jax", "jax", "jaxlib", "evosax", "numpy")}


def _frozen(name: str, values: Any) -> np.ndarray:
    array = numbers(name, values).copy()
    array.setflags(write=False)
    return array


def _plain(value: Any) -> Any:
    """NumPy's numbers as Python's, which a file can hold."""
    return value.item() if isinstance(value, (np.generic, np.ndarray)) else value


def _is_count(value: Any, least: int) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and least <= int(value) < 2**63


def _check_mapping(name: str, value: Any) -> None:
    if value is None and name == "psi":
        return
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ValueError(f"{name} is {brief(value)}; need numbers by name")
    for key, x in value.items():
        number(f"{name}[{key!r}]", x)


def _check(s: Schedule) -> None:
    choice("layout", s.layout, LAYOUTS)
    choice("end", s.end, ENDS)
    choice("kind", s.kind, ("vp", "ve", "flow"))
    if not isinstance(s.nfe, (int, np.integer)) or isinstance(s.nfe, bool) or s.nfe < 1:
        raise ValueError(f"nfe is {brief(s.nfe)}; need a whole number of at least 1")
    for name in _TEXTS:
        if not isinstance(getattr(s, name), str):
            raise ValueError(f"{name} is {brief(getattr(s, name))}; need a text")
    for name in _NUMBERS:
        if getattr(s, name) is not None or name in ("p", "d_min"):
            number(name, getattr(s, name))
    for name, least in _COUNTS.items():
        value = getattr(s, name)
        if (value is not None or name != "seed") and not _is_count(value, least):
            raise ValueError(f"{name} is {brief(value)}; need a whole number of at least {least}, not a float")
    for name in ("psi", "others"):
        _check_mapping(name, getattr(s, name))
    if not isinstance(s.versions, Mapping) or not all(isinstance(x, str) for kv in s.versions.items() for x in kv):
        raise ValueError(f"versions is {brief(s.versions)}; need texts by name")
    if s.layout == "node" and s.end == "t_eps":
        raise ValueError("end 't_eps' needs layout 'interval': layout 'node' has no node to stop at")
    nodes = s.nfe + (s.layout == "interval")
    for name, count in {"t": nodes, "lams": nodes, "sigmas": nodes, "timesteps": s.nfe}.items():
        array = getattr(s, name)
        if array.shape != (count,):
            raise ValueError(f"{name} has shape {array.shape}; layout {s.layout!r} at nfe {s.nfe} needs ({count},)")
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
