"""What the commands write, and the care they take of what is there already."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING

from hso_jax.schedule_file import FORMAT, write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARK = "hso-jax"


def check_writable(path: Path, force: bool) -> None:
    """Before any work: can `path` be written, and is what is there ours to replace?

    Raises:
        ValueError: if the folder is missing or not writable, or a foreign file would be lost.
    """
    folder = path.parent
    if not folder.is_dir():
        raise ValueError(f"cannot write {path}: the folder {folder} does not exist")
    if path.is_dir():
        raise ValueError(f"cannot write {path}: it is a folder")
    if not os.access(folder, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise ValueError(f"cannot write {path}: permission denied")
    if path.exists() and not force and not _ours(path):
        raise ValueError(f"{path} exists and was not written by hso-jax; choose another name, or --force to replace it")


def save_figure(figure: Figure, path: Path) -> None:
    """Draw into memory, then write whole; the format follows the ending (.png, .svg, .pdf).

    Raises:
        ValueError: for an ending that matplotlib cannot write.
    """
    kind = figure_kind(path)
    buffer = io.BytesIO()
    metadata = {"png": {"Software": MARK}, "svg": {"Creator": MARK, "Date": None}}.get(
        kind, {"Creator": MARK, "CreationDate": None}
    )
    figure.savefig(buffer, format=kind, metadata=metadata, dpi=130)
    write_whole(path, buffer.getvalue())


def figure_kind(path: Path) -> str:
    """The picture format of a path's ending. Raises ValueError for others than png, svg and pdf."""
    kind = path.suffix.lower().removeprefix(".")
    if kind not in ("png", "svg", "pdf"):
        raise ValueError(f"cannot draw {path}: use a name that ends in .png, .svg or .pdf")
    return kind


def _ours(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(4096)
    return not head or FORMAT.encode() in head or MARK.encode() in head
