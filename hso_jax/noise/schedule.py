"""The noise schedule of a model: half log-SNR as a smooth, invertible function of time.

Every family is written in one form, so that schedules of different models can be stacked and searched
in one compiled program:

    lam(t) = cubic(t) - log_t * log(t + offset) + log_1mt * log(1 - t)

The cubic part is a table (the model's own training table for discrete models); the two logarithms carry
the singular ends of the closed forms, which a table cannot. `lam` is C1 and strictly decreasing in t.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from hso_jax.checks import brief, choice, printable, text
from hso_jax.optional_jax import is_array, jax, jnp, register_dataclass

Array = Any
"""A NumPy or a JAX array. NumPy in, NumPy (float64) out; JAX in, JAX out."""
CONTINUOUS_LEVELS = 1000  # what stands for T, as a count, where the network is told a time in [0, 1] (T = 1)

LARGEST_LAM = 80.0
"""sigma/alpha and its inverse stay floats of 32 bits, in which schedules are searched."""

SMALLEST_FALL = 1e-3
"""Least fall of lam between the ends: with less, rounding to fewer digits makes levels equal."""

INVERSE_TOLERANCE = 1e-6
"""In lam. Newton's method fails on a table whose slope falls by many orders. NumPy's `t_of_lam` bisects there; compiled
programs do not, so such tables are refused."""

PREDICTIONS = ("epsilon", "v_prediction", "flow_prediction", "edm", "sample")
"""What a network may predict: diffusers' `prediction_type`, and "edm" for x_0 by EDM's preconditioning."""


@dataclasses.dataclass(frozen=True)
class Preset:
    """A published model: its scheduler config, and how its network is used.

    Attributes:
        description, source: the model, in words; where the values were published.
        config: the values as a diffusers scheduler config.
        guidance: usual weight of classifier-free guidance (the default of the model's diffusers pipeline, or what its
            authors sample with); 1 for unconditional models and for those that guidance was distilled into.
        resolution: how the shift follows the size of the picture or the video, in words; empty where there is no shift.
        boundary: where a model of two experts changes from the one to the other: s at which the high-noise expert
            still works, the low-noise one everywhere below. None for models of one network.
        pipeline: its class in diffusers, where that has a rule of its own for the shift.
        latent: whether the network sees latents; False for pixels.
    """

    description: str = ""
    source: str = ""
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    guidance: float = 1.0
    resolution: str = ""
    boundary: float | None = None
    pipeline: str = ""
    latent: bool = True

    @property
    def p(self) -> float:
        """Exponent of the model-error bound: 2 for latent, 1 for pixel models (arXiv 2511.11688, section 3)."""
        return 2.0 if self.latent else 1.0


def namespace(*arrays: Array) -> Any:
    """`jax.numpy` if any argument is a JAX array or tracer, else `numpy`."""
    return jnp if any(is_array(array) for array in arrays) else np


def cubic_coefficients(values: Array) -> Array:
    """[n - 1, 4] the monotone C1 cubic through values [n] at equal distances: of 1, x, x^2, x^3, x in [0, 1], per cell.

    Fourth-order central slopes, limited as by Fritsch and Carlson (SIAM J. Numer. Anal. 17, 1980), so
    that a monotone table stays monotone; on smooth tables the limiter does nothing.
    """
    xp = namespace(values)
    steps = values[1:] - values[:-1]
    if values.shape[0] < 5:
        inner = 0.5 * (steps[1:] + steps[:-1])
        slopes = xp.concatenate([steps[:1], inner, steps[-1:]])
    else:
        central = (8.0 * (values[3:-1] - values[1:-3]) - (values[4:] - values[:-4])) / 12.0
        start = xp.stack([_one_sided(values[:4]), _second(values[:4])])
        end = xp.stack([-_second(values[:-5:-1]), -_one_sided(values[:-5:-1])])
        slopes = xp.concatenate([start, central, end])
    # A slope of at most three times the smaller neighbouring step, of the same sign, keeps each cell monotone.
    before = xp.concatenate([steps[:1], steps])
    after = xp.concatenate([steps, steps[-1:]])
    bound = 3.0 * xp.minimum(xp.abs(before), xp.abs(after))
    direction = xp.where(before * after > 0, xp.sign(after), 0.0)
    slopes = direction * xp.clip(slopes * direction, 0.0, bound)
    left, right = slopes[:-1], slopes[1:]
    return xp.stack([values[:-1], left, 3.0 * steps - 2.0 * left - right, left + right - 2.0 * steps], axis=-1)


def _one_sided(v: Array) -> Array:
    # Third-order slope at the first of four equally spaced values; `_second`: at the second.
    return (-11.0 * v[0] + 18.0 * v[1] - 9.0 * v[2] + 2.0 * v[3]) / 6.0


def _second(v: Array) -> Array:
    return (-2.0 * v[0] - 3.0 * v[1] + 6.0 * v[2] - v[3]) / 6.0


@register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class NoiseSchedule:
    """`x_t = alpha_t x_0 + sigma_t eps` for t in [t_min, t_max], as a pytree.

    Build one with `discrete`, `linear_vp`, `cosine`, `ve`, `edm`, `flow`, `from_config` or `preset`. The array
    fields are leaves (float64 NumPy until traced), so that `jit`, `vmap` and `grad` take a schedule.

    Attributes:
        coefficients: [at least cells, 4] cubic per table cell; rows after `cells` are padding.
        cells: number of cells, as a float.
        first, spacing: t at the table's first knot, and the distance of the knots in t.
        log_t, offset, log_1mt: the singular part, see the module's docstring.
        t_min, t_max: the smallest and the largest usable t; lam is finite there.
        tail: coefficient of the logarithm that continues a table which ends before t = 1 (zero terminal SNR), else 0.
        kind: "vp", "ve" or "flow": how alpha and sigma follow from lam.
        num_train_timesteps: T of the model's own time scale.
        timestep_rule: what the network is told: "index" (T t - 1), "time" (t), "sigma" (T sigma), "log_ksigma"
            (log(ksigma)/4) or "arctan_ksigma" (2/pi arctan(ksigma)).
        name: for messages and files.
        predicts: what the network predicts, an index into `PREDICTIONS`: a number, so that no program depends on it.
        model: what is known of the model beside its noise (p, guidance, ...); None but for presets.
    """

    coefficients: Array
    cells: Array
    first: Array
    spacing: Array
    log_t: Array
    offset: Array
    log_1mt: Array
    t_min: Array
    t_max: Array
    tail: Array
    kind: str = dataclasses.field(default="vp", metadata={"static": True})
    num_train_timesteps: int = dataclasses.field(default=1000, metadata={"static": True})
    timestep_rule: str = dataclasses.field(default="index", metadata={"static": True})
    name: str = dataclasses.field(default="custom", metadata={"static": True})
    predicts: Array = dataclasses.field(default_factory=lambda: np.zeros(()))
    model: Preset | None = dataclasses.field(default=None, metadata={"static": True})

    def lam(self, t: Array) -> Array:
        """Half log-SNR `log(alpha/sigma)` at t (any shape). -inf at t = 1 for a model of zero terminal SNR."""
        return self.lam_derivatives(t)[0]

    def lam_derivatives(self, t: Array) -> tuple[Array, Array, Array]:
        """`lam`, its first and its second derivative in t, each of t's shape."""
        return self._derivatives(namespace(t, self.coefficients), t)

    def _derivatives(self, xp: Any, t: Array) -> tuple[Array, Array, Array]:
        t = xp.asarray(t)
        coefficients = xp.asarray(self.coefficients)
        position = (t - self.first) / self.spacing
        cell = xp.clip(xp.floor(position), 0, self.cells - 1)
        x = xp.where(position > self.cells, self.cells, position) - cell  # at the last knot still the slope of t
        c = coefficients[xp.asarray(cell, dtype=np.int32)]
        c0, c1, c2, c3 = c[..., 0], c[..., 1], c[..., 2], c[..., 3]
        lam = c0 + x * (c1 + x * (c2 + x * c3))
        d1 = (c1 + x * (2.0 * c2 + 3.0 * x * c3)) / self.spacing
        d2 = (2.0 * c2 + 6.0 * x * c3) / self.spacing**2
        # Past the table's last knot (only at zero terminal SNR) a logarithm goes on to -inf at t = 1.
        end = self.first + self.cells * self.spacing
        beyond = (t > end) & (self.tail > 0)
        weight = xp.where(beyond, self.tail, self.log_1mt)
        level = xp.log(xp.where(self.tail > 0, 1.0 - end, 1.0))
        d1, d2 = xp.where(beyond, 0.0, d1), xp.where(beyond, 0.0, d2)
        near_0, near_1 = t + self.offset, 1.0 - t
        log_0, rate_0 = _weighted_log(xp, self.log_t, near_0)
        log_1, rate_1 = _weighted_log(xp, weight, near_1)
        lam = lam - log_0 + log_1 - xp.where(beyond, self.tail * level, 0.0)
        d1 = d1 - rate_0 - rate_1
        d2 = d2 + rate_0 / xp.where(near_0 > 0, near_0, 1.0) - rate_1 / xp.where(near_1 > 0, near_1, 1.0)
        return lam, d1, d2

    def t_near(self, lam: Array, near: Array, iterations: int) -> Array:
        """The inverse of `lam` by so many Newton steps from `near`, for values within the range. Not differentiable."""
        return self._newton(namespace(lam, near), lam, iterations, near)[0]

    def t_of_lam(self, lam: Array, iterations: int = 40) -> Array:
        """The inverse of `lam` (any shape) by Newton's method, differentiable.

        Values beyond [t_min, t_max] are taken to that end.
        """
        xp = namespace(lam, self.coefficients)
        frozen, target = jax.lax.stop_gradient((self, lam)) if xp is jnp else (self, lam)
        target = xp.asarray(target)
        t, low, high = frozen._newton(xp, target, iterations)
        highest, lowest = frozen.lam(xp.stack([xp.asarray(frozen.t_min), xp.asarray(frozen.t_max)]))
        inside = (lowest < target) & (target < highest)
        if xp is jnp:  # its derivatives, of any order, by the implicit function theorem
            safe = jnp.where(inside, t, 0.5 * (frozen.t_min + frozen.t_max))
            t = jax.lax.custom_root(
                lambda t: self.lam(t) - lam, safe, lambda _, t: t, lambda linear, y: y / linear(jnp.ones_like(y))
            )
        elif (missed := inside & (np.abs(frozen.lam(t) - target) > 1e-3 * INVERSE_TOLERANCE)).any():
            for _ in range(64):  # bisection: lam is so flat, and steep beside it, that Newton's steps lead nowhere
                middle = 0.5 * (low + high)
                above = self.lam(middle) > target
                low, high = np.where(above, middle, low), np.where(above, high, middle)
            t = np.where(missed, 0.5 * (low + high), t)
        return xp.where(target <= lowest, self.t_max, xp.where(target >= highest, self.t_min, t))

    def _newton(self, xp: Any, target: Array, iterations: int, near: Array | None = None) -> tuple[Array, Array, Array]:
        """The inverse, and a bracket around it, by Newton's method inside a bracket that it keeps shrinking."""
        low, high = xp.zeros_like(target) + self.t_min, xp.zeros_like(target) + self.t_max

        def narrow(_: Any, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            t, low, high = carry
            value, slope, _ = self._derivatives(xp, t)
            low, high = xp.where(value > target, t, low), xp.where(value > target, high, t)
            newton = t - (value - target) / xp.where(slope < 0, slope, -1.0)
            return xp.where((newton >= low) & (newton <= high), newton, 0.5 * (low + high)), low, high

        carry = (0.5 * (low + high) if near is None else xp.clip(near, low, high), low, high)
        if xp is not np:
            return jax.lax.fori_loop(0, iterations, narrow, carry)
        for i in range(iterations):
            carry = narrow(i, carry)
        return carry

    def ksigma(self, t: Array) -> Array:
        """`sigma/alpha = exp(-lam)`, the sigma of k-diffusion, EDM and diffusers' `scheduler.sigmas`."""
        lam = self.lam(t)
        return namespace(lam).exp(-lam)

    def alpha(self, t: Array) -> Array:
        """The signal's coefficient at t."""
        return alpha_sigma(self.lam(t), self.kind)[0]

    def sigma(self, t: Array) -> Array:
        """The noise's coefficient at t."""
        return alpha_sigma(self.lam(t), self.kind)[1]

    def timestep(self, t: Array) -> Array:
        """What the network is given as time at t, as a float (diffusers' convention)."""
        xp = namespace(t, self.coefficients)
        if self.timestep_rule == "index":
            return self.num_train_timesteps * xp.asarray(t) - 1.0
        if self.timestep_rule == "sigma":
            return self.num_train_timesteps * self.sigma(t)
        if self.timestep_rule == "time":
            return xp.asarray(t)
        if self.timestep_rule == "arctan_ksigma":
            return xp.arctan(self.ksigma(t)) * (2.0 / np.pi)
        return -0.25 * self.lam(t)

    @property
    def levels(self) -> int:
        """How many distinct training levels there are: T, or `CONTINUOUS_LEVELS` where T = 1."""
        return self.num_train_timesteps if self.num_train_timesteps > 1 else CONTINUOUS_LEVELS

    @property
    def zero_terminal_snr(self) -> bool:
        """Whether lam = -inf at t = 1; `t_max` is then the last level before it. Needs concrete leaves."""
        return bool(self.log_1mt > 0 or self.tail > 0)

    @property
    def noise_end(self) -> float:
        """The model's lam at its noisiest level: -inf for flow and zero terminal SNR."""
        return -np.inf if self.zero_terminal_snr else float(self.lam(float(self.t_max)))

    @property
    def data_end(self) -> float:
        """The largest lam a node may have. Flow models are continuous in s: 0.001, whatever their shift calls it."""
        return float(np.log(999.0)) if self.kind == "flow" else float(self.lam(float(self.t_min)))

    def __repr__(self) -> str:
        try:
            ends = f"lam {self.noise_end:.4g} .. {self.data_end:.4g}"
        except (TypeError, ValueError):  # inside jit or vmap, or several in one
            ends = "of several, or traced"
        return f"<NoiseSchedule {printable(self.name)}: {self.kind}, T = {self.num_train_timesteps}, {ends}>"

    @property
    def prediction(self) -> str:
        """What the network predicts, one of `PREDICTIONS`. Needs concrete leaves."""
        return PREDICTIONS[int(self.predicts)]

    def with_prediction(self, prediction: str) -> NoiseSchedule:
        """The same noise levels of a network that predicts another of `PREDICTIONS`. Raises ValueError for others."""
        index = PREDICTIONS.index(choice("prediction", prediction, PREDICTIONS))
        return dataclasses.replace(self, predicts=np.asarray(float(index)))

    def fingerprint(self) -> str:
        """16 hexadecimal digits that identify the noise levels (rounded to 5 digits), not the name."""
        return self._fingerprint

    @functools.cached_property
    def _fingerprint(self) -> str:
        t = np.linspace(float(self.t_min), float(self.t_max), 65)[1:-1]
        levels = np.round(np.asarray(self.lam(t), np.float64), 5) + 0.0
        return hashlib.sha256(f"{self.kind} {levels.tolist()}".encode()).hexdigest()[:16]


def check_noise(noise: object) -> NoiseSchedule:
    """`noise` itself. Raises ValueError for anything but a noise schedule: a model's name is none."""
    if not isinstance(noise, NoiseSchedule):
        raise ValueError(f"noise is {brief(noise)}; need a noise schedule, such as preset(name) or from_config(path)")
    return noise


def _weighted_log(xp: Any, weight: Array, argument: Array) -> tuple[Array, Array]:
    """`weight * log(argument)` and `weight / argument`, both 0 where the weight is (whatever the argument)."""
    positive = argument > 0
    safe = xp.where(positive, argument, 1.0)
    value = xp.where((weight > 0) & ~positive, -np.inf, weight * xp.log(safe))
    return value, weight / safe


def alpha_sigma(lam: Array, kind: str) -> tuple[Array, Array]:
    """Alpha and sigma from lam: alpha^2 + sigma^2 = 1 ("vp"), alpha = 1 ("ve"), alpha + sigma = 1 ("flow")."""
    xp = namespace(lam)
    lam = xp.asarray(lam)
    if kind == "ve":
        return xp.ones_like(lam), xp.exp(-lam)
    # exp of -|lam| only: neither end overflows. (The derivative of |lam| at 0 would be 0.)
    small = xp.exp(xp.where(lam > 0, -lam, lam))
    if kind == "flow":
        large_share, small_share = 1.0 / (1.0 + small), small / (1.0 + small)
    elif kind == "vp":
        large_share = 1.0 / xp.sqrt(1.0 + small * small)
        small_share = small * large_share
    else:
        raise ValueError(f"kind is {kind!r}; use 'vp', 've' or 'flow'")
    clean = lam > 0
    return xp.where(clean, large_share, small_share), xp.where(clean, small_share, large_share)


def from_knots(
    values: Array,
    first: float,
    spacing: float,
    *,
    log_t: float = 0.0,
    offset: float = 0.0,
    log_1mt: float = 0.0,
    t_min: float | None = None,
    t_max: float = 1.0,
    kind: str = "vp",
    num_train_timesteps: int = 1000,
    timestep_rule: str = "index",
    name: str = "custom",
) -> NoiseSchedule:
    """A schedule from the cubic part's values at equally spaced knots (see the module's docstring).

    A table that ends before t = 1 while `t_max` is its last knot belongs to a model at zero terminal SNR: it is
    continued to lam = -inf at t = 1 by a logarithm with the same slope. Raises ValueError unless lam is finite in
    [t_min, t_max], within +-80, falls strictly, by at least 0.001 in all, is inverted by `t_of_lam`, and the network is
    told different times; or for a name that is no text. (Traced values are not checked.)
    """
    text("name", name)
    xp, coefficients = namespace(values), cubic_coefficients(values)
    end, tail = first + (len(values) - 1) * spacing, 0.0
    if log_1mt == 0.0 and end < 1.0 - 1e-9:
        slope = (coefficients[-1, 1] + 2.0 * coefficients[-1, 2] + 3.0 * coefficients[-1, 3]) / spacing
        # A limited slope may be 0, where the logarithm would never leave: the last step's then.
        slope = xp.where(slope < 0, slope, (values[-1] - values[-2]) / spacing)
        tail = -slope * (1.0 - end)
    fields = [len(coefficients), first, spacing, log_t, offset, log_1mt, first if t_min is None else t_min, t_max, tail]
    leaves = [xp.asarray(x, coefficients.dtype) for x in fields]
    noise = NoiseSchedule(coefficients, *leaves, kind, num_train_timesteps, timestep_rule, name)  # type: ignore[call-arg]
    if xp is np:
        _check_usable(noise)
    return noise


def _check_usable(noise: NoiseSchedule) -> None:
    """Raise ValueError unless every function of the schedule is defined between its ends, and invertible."""
    low, high = float(noise.t_min), float(noise.t_max)
    if not low < high:
        raise ValueError(f"{noise.name}: t_min is {low:.9g}, t_max {high:.9g}; t_min must lie below")
    t = np.linspace(low, high, max(257, 2 * int(noise.cells) + 1))
    with np.errstate(all="ignore"):
        lam = noise.lam(t)
    if bad := np.flatnonzero(~(np.abs(lam) <= LARGEST_LAM)).tolist():
        raise ValueError(
            f"{noise.name}: lam is {lam[bad[0]]:.6g} at t = {t[bad[0]]:.6g}; need lam = log(alpha/sigma) within "
            f"+-{LARGEST_LAM:g}, sigma/alpha between {np.exp(-LARGEST_LAM):.0e} and {np.exp(LARGEST_LAM):.0e}: "
            "use a narrower range"
        )
    if (flat := np.flatnonzero(np.diff(lam) >= 0)).size or lam[0] - lam[-1] < SMALLEST_FALL:
        i, j = (int(flat[0]), int(flat[0]) + 1) if flat.size else (0, -1)
        raise ValueError(
            f"{noise.name}: lam is {lam[i]:.9g} at t = {t[i]:.9g} and {lam[j]:.9g} at t = {t[j]:.9g}; need it to fall, "
            f"in all by at least {SMALLEST_FALL:g}: use levels further apart"
        )
    some = slice(None, None, max(1, len(t) // 1000))
    missed = np.abs(noise.lam(noise._newton(np, lam[some], 40)[0]) - lam[some])  # what compiled programs have
    if missed.max() > INVERSE_TOLERANCE:
        at = t[some][int(missed.argmax())]
        raise ValueError(
            f"{noise.name}: lam is so flat or so steep near t = {at:.6g} that its inverse is off by "
            f"{missed.max():.3g}; use levels whose distances in lam differ by less"
        )
    told = noise.timestep(t)
    if (same := np.flatnonzero(np.diff(told) <= 0)).size:
        i = int(same[0])
        raise ValueError(
            f"{noise.name}: the network is told {told[i]:.9g} at t = {t[i]:.6g} and {told[i + 1]:.9g} at "
            f"t = {t[i + 1]:.6g}; use a noise (a shift) whose levels differ by more than rounding"
        )


def first_ksigma(nfe: int) -> float:
    """Largest sigma/alpha at which N steps begin where the network predicts epsilon: 2.5 N^2, at least 16.

    The network's error in the clean data grows as sigma/alpha there, and the first step takes all of it. Beginning at
    pure noise of k standard deviations in place of the model's end misses the data's mean by 1/k, and more along the
    data's widest directions: few steps can spare more than many. Networks differ (docs/solver-error.md).
    """
    return max(16.0, 2.5 * nfe**2)


def first_lam(noise: Any, nfe: int) -> float:
    """Lam of the first of N nodes by default: the noise end; of epsilon models `first_ksigma` where that is less."""
    end = float(noise.noise_end)
    if noise.prediction != "epsilon" or np.isneginf(end):
        return end
    return max(end, -float(np.log(first_ksigma(nfe))))


def noise_end_t(noise: Any) -> float:
    """T of the noise end: 1 for a whole model, less for the part that image-to-image samples with."""
    return 1.0 if noise.zero_terminal_snr else float(noise.t_max)


def s_of_lam(lam: Any) -> Any:
    """S = sigma/(alpha + sigma) in [0, 1], NumPy float64: rectified flow's time, and every model's coordinate."""
    with np.errstate(over="ignore"):
        return 1.0 / (1.0 + np.exp(np.asarray(lam, np.float64)))


def lam_of_s(s: Any) -> np.ndarray:
    """The inverse of `s_of_lam`."""
    s = np.asarray(s, np.float64)
    with np.errstate(divide="ignore"):
        return np.log1p(-s) - np.log(s)


def from_level(noise: NoiseSchedule, lam: float) -> NoiseSchedule:
    """The levels from lam (finite, between the model's ends) to clean data, which image-to-image samples with.

    Times, and what the network is told, stay the model's own. Where the model's noise end is pure noise, lam lies
    within 1e-7 of its own (1e-4 for a part up to t = .999); elsewhere it is the same to the bit.
    """
    end = float(noise.t_of_lam(np.asarray(float(lam))))
    part = dataclasses.replace(noise, t_max=np.asarray(end), tail=np.zeros(()))
    if not noise.log_1mt > 0:
        return part
    # The logarithm that takes lam to -inf at t = 1 joins the cubic part.
    first, cells = float(noise.first), 4096
    smooth = dataclasses.replace(noise, log_t=np.zeros(())).lam(np.linspace(first, end, cells + 1))
    return dataclasses.replace(
        part,
        coefficients=cubic_coefficients(smooth),
        cells=np.asarray(float(cells)),
        spacing=np.asarray((end - first) / cells),
        log_1mt=np.zeros(()),
    )


def strip_static(noise: NoiseSchedule) -> NoiseSchedule:
    """The schedule with nothing left that a program would be compiled for: no name, a table of a common length.

    `lam` and its inverse are the same (the rows that are added are never read). What turns lam into alpha, sigma and
    timesteps is the model's own affair, and lost.
    """
    # A table of 1024 rows is enough for 1000 training levels; of more, of a power of two.
    padded = _pad(noise, max(1024, 1 << (len(noise.coefficients) - 1).bit_length()))
    return dataclasses.replace(padded, kind="vp", num_train_timesteps=1000, timestep_rule="index", name="", model=None)


def _pad(noise: NoiseSchedule, rows: int) -> NoiseSchedule:
    table = noise.coefficients
    wide = namespace(table).pad(table, ((0, rows - len(table)), (0, 0)), "edge")
    return dataclasses.replace(noise, coefficients=wide)


def stack(schedules: Iterable[NoiseSchedule], dtype: np.dtype) -> NoiseSchedule:
    """Schedules after `strip_static` on a leading axis, their tables padded to the longest: one program serves all."""
    many = [strip_static(schedule) for schedule in schedules]
    rows = max(len(s.coefficients) for s in many)
    longest = [_pad(s, rows) for s in many]
    return jax.tree.map(lambda *leaves: np.stack([np.asarray(x, dtype) for x in leaves]), *longest)
