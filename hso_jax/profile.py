"""`Profile`: what is known of one model and its data - spectrum, size of the network's error - and its JSON form."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from hso_jax.checks import brief, check_guidance, choice, number, numbers, whole
from hso_jax.compiling import random_key
from hso_jax.files import PROFILE_FORMAT, check_format, parse_json, read, write_whole
from hso_jax.noise import PREDICTIONS, NoiseSchedule, check_noise
from hso_jax.problems.bank import Bank, collect
from hso_jax.problems.mixture import family, shrunk
from hso_jax.problems.model_error import ModelError
from hso_jax.problems.product import from_components, spectral
from hso_jax.schedule import versions

VERSION = 1

PRODUCTS, CLUSTERS = 8, 12
"""Problems of a profile: products with its spectrum, and mixtures of the default family beside them, none wider."""

ENDS_TOLERANCE = 1e-3
"""In lam: two readings of one model's ends differ by less, other models' by more."""

MAX_DIMENSION = 10**12
"""Most directions: a film of minutes has a hundredth of that."""

FEWEST, FOLDS = 16, 8
"""Fewest samples that a spectrum is measured from, and the parts that they are divided into."""


@dataclasses.dataclass(frozen=True)
class Profile:
    """What a search may know of a model.

    Attributes:
        deviations: [K] leading standard deviations of the data along their principal components, falling.
        total: variance of the data along all directions.
        dimension: number of all directions: values of one sample.
        prediction: what the network predicts, a key of `problems.ETA`; None if no network was looked at.
        eta: size of its error, as `problems.ModelError.eta`; None if it was not, or could not be, measured: the
            default of the prediction type then holds.
        lams: [n] half log-SNR at which eta was measured, rising, finite; may be empty.
        etas: [n] the values there.
        ends: half log-SNR of the model's noise end (-inf for pure noise) and data end; None without a model.
        guidance: w that the samples were made with.
        measured: how: JSON values by name (samples, steps, evaluations, seed, pipeline, versions, ...).

    Raises:
        ValueError: for a value that cannot be, naming it.
    """

    deviations: tuple[float, ...]
    total: float
    dimension: int
    prediction: str | None = None
    eta: float | None = None
    lams: tuple[float, ...] = ()
    etas: tuple[float, ...] = ()
    ends: tuple[float, float] | None = None
    guidance: float = 1.0
    measured: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        """Check every value."""
        checked: dict[str, Any] = {
            "deviations": _row("deviations", self.deviations, "positive", lambda x: x > 0),
            "lams": _row("lams", self.lams),
            "etas": _row("etas", self.etas, "not negative", lambda x: x >= 0),
            "dimension": whole("dimension", self.dimension, 1, MAX_DIMENSION),
            "total": number("total", self.total, low=0.0),
            "guidance": check_guidance(self.guidance),
            "ends": _ends(self.ends),
            "eta": None if self.eta is None else number("eta", self.eta, low=0.0, high=1e3, closed=True),
        }
        if self.prediction is not None:
            choice("prediction", self.prediction, PREDICTIONS)
        _check_spectrum(checked["deviations"], checked["total"], checked["dimension"])
        lams, etas = checked["lams"], checked["etas"]
        if len(lams) != len(etas) or (np.diff(lams) <= 0).any():
            raise ValueError(f"lams has {len(lams)} values and etas {len(etas)}; need as many, and lams rising")
        try:
            checked["measured"] = json.loads(json.dumps(dict(self.measured), allow_nan=False))
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"measured is {brief(self.measured)}; need JSON values by name ({error})") from error
        self.__dict__.update(checked)

    def problems(self) -> Bank:
        """Reference problems that resemble the data: products with its spectrum, and clusters of the default family.

        Clusters that are wider than the data, by their leading standard deviation, are shrunk to it: how far apart
        they are says at which noise a sample decides between them.
        """
        return _problems(self.deviations, self.total, self.dimension)

    def model_error(self) -> ModelError:
        """The network's error as it was measured; that of the prediction type where it was not."""
        return ModelError(eta=self.eta)

    def check_noise(self, noise: NoiseSchedule) -> None:
        """Raises ValueError for the noise schedule of a model with other ends or another prediction type."""
        for name, mine, other in zip(
            ("noise", "data"), self.ends or (), (noise.noise_end, noise.data_end), strict=False
        ):
            if mine != other and not abs(mine - other) <= ENDS_TOLERANCE:
                raise ValueError(
                    f"the profile is of a model whose {name} end is lam = {mine:.6g}; that of {noise.name} is "
                    f"{other:.6g}: measure a profile of this model"
                )
        if self.prediction not in (None, noise.prediction):
            raise ValueError(
                f"the profile is of a network that predicts {self.prediction!r}, {noise.name}'s predicts "
                f"{noise.prediction!r}: measure a profile of this model, or use noise.with_prediction(...)"
            )

    def to_json(self) -> str:
        """The file's text; numbers keep every digit, and pure noise, lam = -inf, is null."""
        record = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if self.ends is not None:
            record["ends"] = [end if math.isfinite(end) else None for end in self.ends]
        return json.dumps({"format": PROFILE_FORMAT, "version": VERSION, **record}, indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Profile:
        """The profile in a file's text. Raises ValueError for a text that is none, a newer version, or a bad value."""
        record = parse_json(text)
        check_format(record, PROFILE_FORMAT, "profile", VERSION)
        if missing := [name for name in ("deviations", "total", "dimension") if name not in record]:
            raise ValueError(f"lacks {', '.join(missing)}")
        values = {field.name: record[field.name] for field in dataclasses.fields(cls) if field.name in record}
        if isinstance(values.get("ends"), list) and values["ends"][:1] == [None]:
            values["ends"] = [-math.inf, *values["ends"][1:]]
        return cls(**values)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file, whole or not at all. Raises OSError if it cannot be written."""
        write_whole(path, self.to_json().encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Profile:
        """The profile in a file. Raises ValueError as `from_json`, naming the file, or OSError."""
        return read(path, cls.from_json)


def profile_of(latents: Any, *, noise: NoiseSchedule | None = None) -> Profile:
    """A profile from data alone: its spectrum. See `spectrum_of` for how; eta stays the prediction type's default.

    Args:
        latents: [n, ...] data as the network sees it (latents scaled, pixels in its range), n >= 16; each sample is
            flattened. A hundred are plenty.
        noise: the model's noise schedule, whose ends and prediction type are then checked by a search.

    Raises:
        ValueError: for fewer samples, NaN, or samples that are all the same.
    """
    spectrum = spectrum_of(latents)
    measured: dict[str, Any] = {"from": "data", "samples": len(latents), "versions": versions()}
    facts: dict[str, Any] = {}
    if noise is not None:
        facts = {"prediction": check_noise(noise).prediction, "ends": (noise.noise_end, noise.data_end)}
        measured["noise"] = noise.fingerprint()
    return Profile(*spectrum, **facts, measured=measured)


def spectrum_of(latents: Any, fewest: int = FEWEST) -> tuple[tuple[float, ...], float, int]:
    """Leading standard deviations, total variance and dimension of n samples in D directions.

    With n no larger than D the principal components of a sample fit its accidents: the variance of the sample along
    them is too large, that of other samples too small, by about the same factor (with 64 samples of a `k^-1` spectrum
    in 784 directions the first eight deviations are 1.03 to 1.25 and .9 to .8 of the true ones). Returned is the
    geometric mean of both; for the second the components of seven eighths of the samples are found, and the other
    eighth is measured along them, for each eighth in turn. A quarter as many components as samples are told; the total
    variance has no such bias.

    Args:
        latents: as of `profile_of`.
        fewest: samples that are asked for, at least `FOLDS`.

    Raises:
        ValueError: as `profile_of`.
    """
    data = numbers("latents", latents)
    if data.ndim < 2 or len(data) < fewest:
        raise ValueError(f"latents has shape {data.shape}; need [n, ...] with at least {fewest} samples")
    data = data.reshape(len(data), -1)
    count, dimension = data.shape
    if bad := int((~np.isfinite(data).all(1)).sum()):
        raise ValueError(f"latents: {bad} of {count} samples have NaN or infinite entries")
    data = data - data.mean(0)
    largest = np.abs(data).max(initial=0.0)
    if not 1e-9 < largest < 1e9:
        raise ValueError(
            f"latents differ from their mean by at most {largest:.3g}; need samples that differ, scaled to a size near "
            "1, as the network sees them"
        )
    if count < dimension:  # the same samples in the coordinates of their own span
        values, vectors = np.linalg.eigh(data @ data.T)
        data = vectors * np.sqrt(np.maximum(values, 0.0))
    total = float((data**2).sum() / (count - 1))
    keep = min(count // 4, dimension)
    inside = np.sqrt(np.maximum(np.linalg.eigvalsh(data.T @ data)[::-1][:keep], 0.0) / (count - 1))
    deviations = np.sort(np.sqrt(inside * _held_out(data, keep)))[::-1]
    deviations = deviations[deviations > 1e-6 * deviations[0]]
    known = float((deviations**2).sum())
    if known > total:  # by the rounding and the means of samples that lie in these directions alone
        deviations *= math.sqrt(total / known)
    elif len(deviations) == dimension:
        total = known
    return tuple(deviations.tolist()), total, dimension


def _held_out(data: np.ndarray, keep: int) -> np.ndarray:
    """[keep] standard deviations of each eighth of the samples along the leading components of the others."""
    fold = np.arange(len(data)) % FOLDS
    squares = np.zeros(keep)
    for f in range(FOLDS):
        others, held = data[fold != f], data[fold == f]
        mean = others.mean(0)
        axes = np.linalg.eigh((others - mean).T @ (others - mean))[1][:, ::-1][:, :keep]
        # The mean's own error adds a share 1/len(others) of the variance.
        squares += (((held - mean) @ axes) ** 2).sum(0) / (1.0 + 1.0 / len(others))
    return np.sqrt(squares / len(data))


@functools.lru_cache(maxsize=8)
def _problems(deviations: tuple[float, ...], total: float, dimension: int) -> Bank:
    with jax.enable_x64(True), jax.ensure_compile_time_eval():
        of = from_components(deviations, total, dimension)
        products = [spectral(random_key(seed), of) for seed in range(PRODUCTS)]
        return collect([shrunk(family(range(CLUSTERS)), deviations[0]), *products])


def _row(name: str, values: Any, need: str = "", holds: Callable[[float], bool] = math.isfinite) -> tuple[float, ...]:
    if isinstance(values, (str, bytes)) or not isinstance(values, (Sequence, np.ndarray)):
        raise ValueError(f"{name} is {brief(values)}; need a list of numbers")
    need = f"a finite number{need and f' that is {need}'}"
    row = tuple(number(f"{name}[{i}]", x, need=need) for i, x in enumerate(values))
    for i in (i for i, x in enumerate(row) if not holds(x)):
        raise ValueError(f"{name}[{i}] is {brief(values[i])}; need {need}")
    return row


def _ends(ends: Any) -> tuple[float, float] | None:
    if ends is None:
        return None
    if not isinstance(ends, (tuple, list)) or len(ends) != 2:
        raise ValueError(f"ends is {brief(ends)}; need two numbers, the lam of the noise end and of the data end")
    noisy = -math.inf if isinstance(ends[0], float) and ends[0] == -math.inf else number("ends[0]", ends[0])
    clean = number("ends[1]", ends[1])
    if not noisy < clean:
        raise ValueError(f"ends is {brief(ends)}; need the noise end, the smaller lam, first")
    return noisy, clean


def _check_spectrum(deviations: tuple[float, ...], total: float, dimension: int) -> None:
    if not deviations:
        raise ValueError("deviations is empty; need at least one leading standard deviation")
    if (np.diff(deviations) > 0).any():
        raise ValueError(f"deviations is {brief(list(deviations))}; need them falling")
    if len(deviations) > dimension:
        raise ValueError(f"deviations has {len(deviations)} values, dimension is {dimension}; need at most as many")
    known = sum(s**2 for s in deviations)
    if known > total * (1.0 + 1e-6):  # sums of variances are rounded
        raise ValueError(
            f"total is {total:.6g}, below the variance {known:.6g} of the {len(deviations)} leading directions; "
            "need the variance of all directions"
        )
