"""Prompts from the files they come in: a text with one a line, COCO's captions, a table with a column of them."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np

COLUMNS = ("prompt", "caption")


def read_prompts(
    path: Path, *, column: str | None = None, count: int | None = None, shuffle: int | None = None
) -> list[str]:
    """The prompts of a file.

    Args:
        path: `.json`: an object with `annotations`, each with `image_id` and `caption` (COCO's captions); the first
            caption of each image, in the order of image ids. `.csv`, `.tsv`: with a header. Anything else: UTF-8 text,
            a prompt a line, empty lines left out.
        column: of a table; by default the one called prompt or caption.
        count: how many; all by default. A larger count begins with the same prompts.
        shuffle: seed of a random order to take them in; by default the file's.

    Raises:
        ValueError: for a file that does not exist, is empty or not of its kind, a table without the column, or fewer
            prompts than `count`.
    """
    if not path.is_file():
        raise ValueError(f"prompts: {path} does not exist; give a text file, a COCO captions .json, a .csv or a .tsv")
    suffix = path.suffix.lower()
    if column is not None and suffix not in (".csv", ".tsv"):
        raise ValueError(f"prompts: {path} is not a .csv or .tsv file, so it has no column {column!r}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"prompts: {path} is not UTF-8 text ({error}); convert it") from error
    if suffix == ".json":
        found = _coco(text, path)
    elif suffix in (".csv", ".tsv"):
        found = _table(text, path, column)
    else:
        found = text.split("\n")
    prompts = [" ".join(prompt.split()) for prompt in found if prompt.strip()]
    if not prompts:
        raise ValueError(f"prompts: there is none in {path}")
    if shuffle is not None:
        prompts = [prompts[i] for i in np.random.default_rng(shuffle).permutation(len(prompts))]
    if count is not None and not 1 <= count <= len(prompts):
        raise ValueError(f"prompts: {path} has {len(prompts)}; count is {count}, which must be 1 to {len(prompts)}")
    return prompts[:count]


def _coco(text: str, path: Path) -> list[str]:
    try:
        annotations: Any = json.loads(text)["annotations"]
        first: dict[int, str] = {}
        for entry in annotations:
            first.setdefault(int(entry["image_id"]), str(entry["caption"]))
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"prompts: {path} is not a file of COCO captions, an object with annotations that have image_id and "
            f"caption ({type(error).__name__}: {error})"
        ) from error
    return [first[image] for image in sorted(first)]


def _table(text: str, path: Path, column: str | None) -> list[str]:
    tab = path.suffix.lower() == ".tsv"
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter="\t" if tab else ",")
    header = list(rows.fieldnames or ())
    wanted = COLUMNS if column is None else (column.lower(),)
    named = [name for name in header if name.strip().lower() in wanted]
    if len(named) != 1:
        have = ", ".join(header) or "none"
        asked = " or ".join(wanted)
        raise ValueError(f"prompts: {path} needs one column {asked}, it has: {have}; name it with --column")
    return [row[named[0]] or "" for row in rows]
