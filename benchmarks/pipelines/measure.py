"""What the images of a setting are worth: errors to the converged samples, distance to reference images; as records."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import track

from benchmarks import metrics
from benchmarks.metrics import Estimate, Moments
from benchmarks.networks import records
from benchmarks.networks.records import DIGITS, NODE_DIGITS, Record, rounded
from benchmarks.pipelines.features import Extraction, features_of
from benchmarks.pipelines.image_store import Store, unit
from benchmarks.pipelines.settings import Setting
from hso_jax.files import write_whole

_MEASURED = "measured.npz"


class Measured(NamedTuple):
    """Of the first images of a setting."""

    squares: np.ndarray  # [n] mean squared difference to the converged image, of pixels in [-1, 1]
    features: np.ndarray | None  # [n, d]


class Judge:
    """Compares settings of one store with its converged samples.

    Attributes:
        error: RMSE between the converged samples and those of half as many evaluations: at least their own error.
    """

    def __init__(
        self,
        store: Store,
        converged: Setting,
        half: Setting,
        checked: int,
        extraction: Extraction | None,
        reference: Moments | None,
        *,
        progress: bool,
    ) -> None:
        """Read what every setting is compared with.

        Args:
            store: with all images of `converged`, and the first of `half`.
            converged: many evaluations.
            half: half as many.
            checked: images of `half`.
            extraction: None to compare pixels alone.
            reference: None to compare with the converged samples alone.
            progress: show bars.

        Raises:
            ValueError: if the converged samples diverged.
        """
        for setting in (converged, half):
            if store.diverged(setting):
                raise ValueError(
                    f"the converged samples are not numbers; use --dtype bfloat16 or float32 (and another --out), or "
                    f"remove {store.folder / setting.name} to try again"
                )
        self._store, self._converged, self._extraction, self._reference = store, converged, extraction, reference
        self._progress = progress
        self.error = metrics.root_mean_square(self.measured(half, checked).squares).value
        self._features = self.measured(converged, len(store.prompts)).features

    def measured(self, setting: Setting, count: int) -> Measured:
        """Computed once for the first `count` images, then read from the setting's folder."""
        store, how = self._store, self._extraction
        facts = [self._converged.name, count, None if how is None else how.fingerprint]
        key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
        file = store.folder / setting.name / _MEASURED
        if file.is_file():
            with np.load(file) as kept:
                if str(kept["key"]) == key:
                    return Measured(kept["squares"], kept.get("features"))
        console, hidden = Console(stderr=True), not self._progress
        indices = track(range(count), f"errors: {setting.name}", console=console, disable=hidden, transient=True)
        squares = np.array([self._square(setting, i) for i in indices])
        found: dict[str, Any] = {"squares": squares, "key": key}
        if how is not None:
            files = [store.path(setting, i) for i in range(count)]
            found["features"] = features_of(files, how, f"features: {setting.name}", progress=self._progress)
        buffer = io.BytesIO()
        np.savez(buffer, **found)
        write_whole(file, buffer.getvalue())
        return Measured(squares, found.get("features"))

    def _square(self, setting: Setting, index: int) -> float:
        image, other = (unit([self._store.picture(s, index)]) for s in (setting, self._converged))
        return float(np.square(image - other, dtype=np.float64).mean())

    def record(self, setting: Setting, seconds: float, facts: Mapping[str, Any]) -> Record:
        """The record of a setting, its images made.

        Args:
            setting: in the store.
            seconds: that its schedule took to find.
            facts: model, guidance, seed and dtype.
        """
        count = len(self._store.prompts)
        estimates: dict[str, Estimate] = {}
        if not self._store.diverged(setting):
            own = self.measured(setting, count)
            estimates = metrics.compare(own.squares, own.features, self._features, self._reference)
        return Record(
            **facts,
            **setting._asdict(),
            **records.figures(estimates),  # type: ignore[arg-type]
            samples=count,
            lams=tuple(rounded(x, NODE_DIGITS) for x in self._store.lams(setting)),
            seconds=float(f"{seconds:.4g}"),
            calls=0,
            counted=setting.nfe,  # images that took another number were never written
            teacher=float(f"{self.error:.{DIGITS}g}"),
        )
