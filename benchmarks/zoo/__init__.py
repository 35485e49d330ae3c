"""Makes the files behind `hso_jax.zoo` and `recommend`, part by part: a run that is stopped goes on."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hso_jax.shipped
from hso_jax.files import write_whole

FOLDER = Path(hso_jax.shipped.__file__).parent


def kept(path: Path, make: Callable[[], Any]) -> Any:
    """Read what a part's file has, made first if it is not there."""
    if not path.exists():
        begin = time.perf_counter()
        write_whole(path, json.dumps(make()).encode())
        print(f"{path.stem}: {time.perf_counter() - begin:.1f} s", flush=True)
    return json.loads(path.read_text())


def write(output: Path, content: str) -> None:
    """Write a file and its checksum."""
    write_whole(output, content.encode())
    checksum = hashlib.sha256(content.encode()).hexdigest()
    write_whole(output.with_suffix(".sha256"), f"{checksum}\n".encode())
    print(f"{output}: {len(content)} characters, sha256 {checksum}")
