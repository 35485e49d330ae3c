"""What the images of a setting are worth: errors to the converged samples, distance to reference images; the report.

A stats file is an `.npz` with `mu` [d] and `sigma` [d, d] of reference images, as pytorch-fid writes them.
"""

from __future__ import annotations

import functools
import hashlib
import io
import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from benchmarks import metrics
from benchmarks.metrics import Moments, moments_of
from benchmarks.networks import cost, errors
from benchmarks.pipelines.images import Store, read_picture, unit
from benchmarks.pipelines.settings import Setting
from benchmarks.runner import SOLVERS, Record, rounded
from benchmarks.tables import columns, number
from bridge.cli.pictures import Row, grid, save_png
from hso_jax.files import write_whole

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
SHOWN = 4  # images of a setting in a grid
HEADINGS = {
    "rmse": "RMSE to the converged samples",
    "feature": "Feature distance to the converged samples",
    "fid": "Frechet distance to the converged samples",
    "fid_data": "Frechet distance to the reference images",
}
HOW = """\
Rows are schedules, columns a solver and its number of network evaluations N, counted at the network. The noise of each
prompt is the same everywhere. The *converged samples* are those of {converged}; half as many make images that
differ from these by an RMSE of {error} (first {checked} prompts). RMSE is over all pixels in [-1, 1], paired by prompt,
of PNG files, whose rounding alone makes 0.003. Frechet distances are biased upwards, the more the fewer the samples:
compare them within a column. Intervals (95 %, in `records.jsonl`) are over the prompts. **Bold**: the best of a column.
*Italic*: inside the interval of the best.
"""


class Extraction(NamedTuple):
    """How features are extracted: images [n, 3, H, W] in [-1, 1] to [n, d], a digest of it, d, and images at once."""

    extract: Callable[[torch.Tensor], np.ndarray]
    digest: str
    features: int
    batch: int

    def of(self, files: Sequence[Path], label: str) -> np.ndarray:
        """[n, d] float64 features of image files of one size; `label` names the bar."""
        starts = range(0, len(files), self.batch)
        shown = track(starts, f"features: {label}", console=Console(stderr=True), transient=True)
        return np.concatenate([self.extract(torch.from_numpy(unit(files[i : i + self.batch]))) for i in shown])


def read_extraction(file: Path, batch: int) -> Extraction:
    """Read a TorchScript file that maps images to features, such as Inception, and try it. Raises ValueError."""
    if not file.is_file():
        raise ValueError(f"--extractor {str(file)!r} is not a file")
    try:
        with warnings.catch_warnings():  # deprecated in favour of torch.export, but what Inception is published as
            warnings.simplefilter("ignore", DeprecationWarning)
            network = torch.jit.load(str(file), map_location="cpu").eval()
    except RuntimeError as error:
        raise ValueError(f"--extractor {file} is not a TorchScript file: {error}") from error

    @torch.no_grad()
    def extract(images: torch.Tensor) -> np.ndarray:
        return np.asarray(network(images.clamp(-1, 1)), np.float64)

    try:
        shape = extract(torch.zeros(2, 3, 64, 64)).shape
    except RuntimeError as error:
        raise ValueError(f"--extractor {file} does not take images [2, 3, 64, 64]: {error}") from error
    if len(shape) != 2 or shape[0] != 2:
        raise ValueError(f"--extractor {file} makes {shape} of two images; it must be [2, features]")
    return Extraction(extract, hashlib.sha256(file.read_bytes()).hexdigest()[:12], shape[1], batch)


def read_reference(path: Path, how: Extraction) -> Moments | list[Path]:
    """Read a stats file, or list the images in a folder by name; folders in it are not looked at."""
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
        if len(files) < 2:
            raise ValueError(f"reference: {path} has {len(files)} images ({', '.join(SUFFIXES)}); need two or more")
        sizes: dict[tuple[int, int], str] = {}
        for file in files:
            sizes.setdefault(read_picture(file).size, file.name)
        if len(sizes) > 1:
            told = ", ".join(f"{name} {width} x {height}" for (width, height), name in sizes.items())
            raise ValueError(f"reference: {path} has images of different sizes ({told}); crop or resize them to one")
        return files
    if not path.is_file():
        raise ValueError(f"--reference {path} is neither a folder of images nor a stats file (.npz)")
    try:
        with np.load(path) as kept:
            mu, sigma = (np.asarray(kept[name], np.float64) for name in ("mu", "sigma"))
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(f"reference: {path} is not a .npz file with mu and sigma ({error})") from error
    if mu.shape != (how.features,) or sigma.shape != (how.features, how.features):
        raise ValueError(
            f"reference: {path} has mu {mu.shape} and sigma {sigma.shape}, but the extractor {how.features} features; "
            "make it with the same extractor, or give the folder of images instead"
        )
    values, vectors = np.linalg.eigh(sigma)
    return Moments(mu, np.sqrt(values.clip(0.0))[:, None] * vectors.T)


def moments_of_images(files: Sequence[Path], how: Extraction, kept: Path) -> Moments:
    """Compute the moments of image files, and keep them as a stats file that the next run may be given."""
    moments = moments_of(how.of(files, "reference images"))
    np.savez(buffer := io.BytesIO(), mu=moments.mu, sigma=moments.root.T @ moments.root)
    write_whole(kept, buffer.getvalue())
    return moments


class Judge:
    """Compares settings of one store with its converged samples.

    Attributes:
        error: RMSE between the converged samples and those of half as many evaluations: at least their own error.
    """

    def __init__(
        self, store: Store, counts: Mapping[Setting, int], how: Extraction | None, reference: Moments | None
    ) -> None:
        """`counts` is how many images a setting has, first the converged samples, then those of half the evaluations.

        Without `how` pixels alone are compared, without a reference the converged samples alone.
        """
        self._converged, half = list(counts)[:2]
        for setting in (self._converged, half):
            if store.diverged(setting):
                raise ValueError(
                    f"the converged samples are not numbers; use --dtype bfloat16 or float32 (and another --out), or "
                    f"remove {store.folder / setting.name} to try again"
                )
        self._store, self._how, self._reference = store, how, reference
        self.error = metrics.root_mean_square(self._squares(half, counts[half])).value

    def _squares(self, setting: Setting, count: int) -> np.ndarray:
        """[n] mean squared differences to the converged image, of pixels in [-1, 1]."""
        squares = []
        for i in track(range(count), f"errors: {setting.name}", console=Console(stderr=True), transient=True):
            image, other = unit([self._store.place(s, i) for s in (setting, self._converged)])
            squares.append(float(np.square(image - other, dtype=np.float64).mean()))
        return np.array(squares)

    def _features(self, setting: Setting) -> np.ndarray | None:
        if self._how is None:
            return None
        count = len(self._store.prompts)
        kept = self._store.place(setting, f"features-{self._how.digest}-{count}.npy")
        if not kept.is_file():
            found = self._how.of([self._store.place(setting, i) for i in range(count)], setting.name)
            np.save(buffer := io.BytesIO(), found)
            write_whole(kept, buffer.getvalue())
        return np.asarray(np.load(kept))

    @functools.cached_property
    def _wanted(self) -> np.ndarray | None:
        return self._features(self._converged)

    def record(self, setting: Setting, seconds: float, facts: Mapping[str, Any]) -> Record:
        """Make the record of a setting, its images made; `facts` are model, guidance, seed and dtype."""
        count = len(self._store.prompts)
        record = Record(
            **facts,
            **setting._asdict(),
            samples=count,
            lams=tuple(rounded(x, 9) for x in self._store.lams(setting)),
            seconds=rounded(seconds, 4) or 0.0,
            counted=setting.nfe,  # images that took another number were never written
            teacher=rounded(self.error) or 0.0,
        )
        if self._store.diverged(setting):
            return record
        squares, own = self._squares(setting, count), self._features(setting)
        return record.with_estimates(metrics.compare(squares, own, self._wanted, self._reference))


def write(
    records: Sequence[Record], store: Store, converged: Setting, checked: int, facts: Mapping[str, str]
) -> list[Path]:
    """Write `results.md` and the grids beside the images; returns the files.

    `checked` is how many converged samples were made with half as many evaluations too; `facts` are for the head.
    """
    files = [_sheet(list(cells.values()), store, converged) for cells in columns(records).values()]
    made = f"{SOLVERS[converged.solver]} with {converged.nfe} evaluations"
    parts = [f"# Schedules for {records[0].model}\n", "".join(f"- {name}: {value}\n" for name, value in facts.items())]
    parts.append(HOW.format(converged=made, error=number(records[0].teacher), checked=checked))
    for metric, heading in HEADINGS.items():
        if any(getattr(record, metric) is not None for record in records):
            parts += [f"## {heading}\n", errors(records, metric)]
    parts += ["## Preparation\n", "Seconds to find one schedule, compilation included.\n", cost(records)]
    parts += ["## Images\n", "\n\n".join(f"![{file.stem}]({file.name})" for file in files) + "\n"]
    report = store.folder / "results.md"
    write_whole(report, "\n".join(parts).encode())
    return [report, *files]


def _sheet(records: Sequence[Record], store: Store, converged: Setting) -> Path:
    """Draw the grid of one solver and N: a row for each schedule, the converged samples last."""
    solver, nfe, shown = records[0].solver, records[0].nfe, range(min(SHOWN, len(store.prompts)))

    def row(setting: Setting, told: str) -> Row:
        return Row(setting.method, told, [read_picture(store.place(setting, i)) for i in shown])

    rows = []
    for record in records:
        setting = Setting(record.method, solver, nfe)
        if not store.diverged(setting):
            distance = "" if record.fid is None else f"\nFrechet {number(record.fid)}"
            rows.append(row(setting, f"RMSE {number(record.rmse)}{distance}"))
    rows.append(row(converged, f"{converged.nfe} evaluations"))
    labels = [textwrap.shorten(store.prompts[i], 32, placeholder=" …") for i in shown]
    text = "The same noise in each column. Errors are those of all prompts, to the converged samples."
    title = f"{records[0].model}: {nfe} evaluations, {SOLVERS[solver]}"
    file = store.folder / f"grid-{solver}-{nfe}.png"
    save_png(grid(rows, labels, title, text), file, {})
    return file
