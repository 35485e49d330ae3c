"""Prompts from the files they come in: a text with one a line, COCO's captions, a table with a column of them."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np

COLUMNS = ("prompt", "caption")


def read_prompts(
    path: Path, *, column: str | None = None, count: int | None = None, shuffle: int | None = None
) -> list[str]:
    """Read the first `count` prompts of a file, in its order or in a random one.

    `.json`: COCO's captions, the first of each image, by image id. `.csv`, `.tsv`: with a header; `column` is by
    default the one called prompt or caption. Anything else: UTF-8 text, a prompt a line.
    """
    suffix = path.suffix.lower()
    if not path.is_file():
        raise ValueError(f"prompts: {path} does not exist; give a text file, a COCO captions .json, a .csv or a .tsv")
    if column is not None and suffix not in (".csv", ".tsv"):
        raise ValueError(f"prompts: {path} is not a .csv or .tsv file, so it has no column {column!r}")
    try:
        text = path.read_text(encoding="utf-8-sig")
        if suffix == ".json":
            first: dict[int, str] = {}
            for entry in json.loads(text)["annotations"]:
                first.setdefault(int(entry["image_id"]), str(entry["caption"]))
            found = [first[image] for image in sorted(first)]
        else:
            found = _table(text, path, column) if suffix in (".csv", ".tsv") else text.split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"prompts: {path} is not UTF-8 text ({error}); convert it") from error
    except (json.JSONDecodeError, TypeError, KeyError) as error:
        told = f"{type(error).__name__}: {error}"
        raise ValueError(f"prompts: {path} is not a file of COCO captions, with annotations ({told})") from error
    prompts = [" ".join(prompt.split()) for prompt in found if prompt.strip()]
    if not prompts:
        raise ValueError(f"prompts: there is none in {path}")
    if shuffle is not None:
        prompts = [prompts[i] for i in np.random.default_rng(shuffle).permutation(len(prompts))]
    if count is not None and not 1 <= count <= len(prompts):
        raise ValueError(f"prompts: {path} has {len(prompts)}; count is {count}, which must be 1 to {len(prompts)}")
    return prompts[:count]


def _table(text: str, path: Path, column: str | None) -> list[str]:
    tab = path.suffix.lower() == ".tsv"
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter="\t" if tab else ",")
    header = list(rows.fieldnames or ())
    wanted = COLUMNS if column is None else (column.lower(),)
    named = [name for name in header if name.strip().lower() in wanted]
    if len(named) != 1:
        told = f"one column {' or '.join(wanted)}, it has: {', '.join(header) or 'none'}"
        raise ValueError(f"prompts: {path} needs {told}; name it with --column")
    return [row[named[0]] or "" for row in rows]
