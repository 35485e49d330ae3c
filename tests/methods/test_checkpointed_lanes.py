"""A batch of lanes that is interrupted and resumed: the same bytes; and what such a checkpoint refuses."""

from __future__ import annotations

import functools
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from worker import checkpointed, solver_error_lanes, worker_lanes

from hso_jax import Effort, Lane, search_many
from hso_jax.checkpoint import Checkpoint, record_of, rows_of
from hso_jax.noise import discrete

WORKER = Path(__file__).with_name("worker.py")
EFFORT = Effort(population=4, generations=1, lanes=2)


class Stop(Exception):
    pass


@functools.cache
def whole() -> str:
    """What a run without a checkpoint finds."""
    return checkpointed(None)


@pytest.mark.slow
@pytest.mark.parametrize("chunks", [4, 10])
def test_interrupted_after_any_chunk_and_resumed(chunks: int, tmp_path: Path) -> None:
    file, told = tmp_path / "c.json", []

    def stop(*done: int) -> None:
        told.append(done)
        if len(told) == chunks:
            raise Stop

    with pytest.raises(Stop):
        checkpointed(str(file), progress=stop)
    before, rest = file.read_bytes(), []
    assert checkpointed(str(file), progress=lambda *done: rest.append(done)) == whole()
    assert rest[0] >= told[-1] and rest[0][0] - told[-1][0] <= 4 and rest[-1] == (24, 24)
    text = file.read_bytes()
    assert text.startswith(before)  # nothing was searched twice
    assert checkpointed(str(file)) == whole() and file.read_bytes() == text


@pytest.mark.slow
def test_killed_at_random_moments_and_resumed(tmp_path: Path) -> None:
    rng, file = random.Random(0), tmp_path / "c.json"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(str(WORKER.parents[n]) for n in (2, 1, 0))}
    wanted = whole()
    # A copy of the compiled programs: one killed as it writes there harms nobody.
    env["JAX_COMPILATION_CACHE_DIR"] = str(shutil.copytree(jax.config.jax_compilation_cache_dir, tmp_path / "xla"))
    for _ in range(2):
        command = [sys.executable, str(WORKER), "killed", str(file)]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, env=env, stdin=pipe, stdout=pipe, bufsize=0) as process:
            assert process.stdin is not None and process.stdout is not None
            for _ in range(rng.randint(1, 3)):  # it waits at every chunk, else a quick one would be done
                assert process.stdout.readline()
                process.stdin.write(b"\n")
            time.sleep(rng.random() * 0.02)
            process.kill()
    records = [json.loads(line) for line in file.read_text().splitlines()[1:]]
    assert sum(one["record"]["lanes"] for one in records if one["search"] == "0") > 0
    assert checkpointed(str(file)) == wanted


OTHER: dict[str, tuple[dict[str, Any], str]] = {
    "seed": ({"lanes": [lane._replace(seed=7) for lane in worker_lanes(4)]}, r"lanes\[0\].seed was 0, is 7"),
    "nfe": ({"lanes": [lane._replace(nfe=3) for lane in worker_lanes(4)]}, r"lanes\[0\].nfe was 4, is 3"),
    "more lanes": ({"lanes": worker_lanes(5)}, r"count was 4, is 5"),
    "method": ({"lanes": solver_error_lanes(4)}, r"lanes\[0\].method.box was .*, is None"),
    "model": (
        {"lanes": [x._replace(noise=discrete(alphas_cumprod=np.linspace(0.99, 0.01, 40))) for x in worker_lanes(4)]},
        r"lanes\[0\].noise was '.* [0-9a-f]{16}', is '.* [0-9a-f]{16}'",
    ),
    "effort": ({"effort": EFFORT._replace(steps=2)}, "effort.steps was None, is 2"),
}


@pytest.mark.parametrize("case", [*OTHER, "versions", "damaged", "too many lanes"])
def test_another_search_leaves_the_file_alone(case: str, tmp_path: Path) -> None:
    file = tmp_path / "c.json"
    call: dict[str, Any] = {"lanes": worker_lanes(4), "effort": EFFORT}

    def run(lanes: list[Lane], effort: Effort) -> None:
        search_many(lanes, effort=effort, checkpoint=file)

    run(**call)
    documents = [json.loads(line) for line in file.read_text().splitlines()]
    if case == "versions":
        documents[0]["arguments"]["versions"]["jax"] = "0.0.1"
        message = r"versions.jax was '0\.0\.1', is"
    elif case == "damaged":
        documents[2]["record"]["arrays"][0] = "AAAA"
        message = "damaged: record 1 is not what this search finds"
    elif case == "too many lanes":
        documents.append(documents[2])
        message = "damaged: it has 6 lanes of 4"
    else:
        call, message = call | OTHER[case][0], OTHER[case][1]
    file.write_text("".join(json.dumps(document) + "\n" for document in documents))
    text = file.read_bytes()
    with pytest.raises(ValueError, match=message) as caught:
        run(**call)
    assert str(file) in str(caught.value) and file.read_bytes() == text
    assert [p.name for p in tmp_path.iterdir()] == ["c.json"]


@pytest.mark.slow
def test_the_documented_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    page = Path(__file__).parents[2] / "docs" / "batch.md"
    (code,) = re.findall(r"<!-- batch-example -->\n```python\n(.*?)```", page.read_text(), re.S)
    assert "range(250)" in code  # ten thousand lanes
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code.replace("range(250)", "range(1)"), names)
    first, printed = (tmp_path / "schedules.json").read_bytes(), capsys.readouterr().out
    assert len(names["lanes"]) == 40 and printed.split("\n")[-2] == "40 of 40"
    exec(code.replace("range(250)", "range(1)"), {})
    assert (tmp_path / "schedules.json").read_bytes() == first and capsys.readouterr().out == "40 of 40\n"


def test_a_record_is_exact() -> None:
    rows = {"a": np.array([[np.nan, -0.0, np.inf], [1e-45, 0.1, -np.inf]], np.float32), "b": np.array([True, False])}
    records = Checkpoint(None, {}).records("0")
    records.done.append(json.loads(json.dumps(record_of(rows))))
    (found,), done = rows_of(records, lambda: rows, 2)
    assert done == 2 and all(found[k].tobytes() == rows[k].tobytes() for k in rows)
