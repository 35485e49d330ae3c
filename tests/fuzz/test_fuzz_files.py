"""Random damage to schedule files and configs: refused with a reason, or read and then valid."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

import hso_jax
from hso_jax import files, schedule_file
from hso_jax.schedule import Origin

NOISE = hso_jax.preset("sd15")
DOCUMENT = json.loads(
    schedule_file.to_json(
        [
            hso_jax.baseline("trailing", NOISE, 4),
            hso_jax.baseline("karras", hso_jax.preset("edm-cifar10"), 3, layout="interval"),
            hso_jax.zoo("flux-dev", 2, "dpmpp-2m"),
            hso_jax.Schedule.from_t(
                NOISE, [1.0, 0.6, 0.2], origin=Origin(solver="nonstationary"),
                coefficients=[[0.0, 0.0], [0.5, 0.0], [-0.3, 0.1]],
            ),
        ]
    )
)  # fmt: skip
ODD: list[Any] = [
    None, True, False, 0, 1, -1, 2, 1e-300, 1e308, 10**400, float("nan"), float("inf"), -float("inf"), 0.5, "", "x",
    "1", [], [1], {}, {"a": 1}, [[]], "\ud800", "\x1b[31m", "[bold]", "\0", "node", "clean", "vp", "ve", "flow", 1000,
    1000.0,
]  # fmt: skip


def damaged(rng: random.Random, document: Any) -> Any:
    """A copy with one place replaced, deleted, doubled or moved."""
    copy = json.loads(json.dumps(document))
    places: list[tuple[Any, Any]] = []

    def walk(value: Any) -> None:
        for key in value if isinstance(value, dict) else range(len(value)):
            places.append((value, key))
            if isinstance(value[key], (dict, list)):
                walk(value[key])

    walk(copy)
    where, key = rng.choice(places)
    match rng.randrange(5):
        case 0:
            del where[key]
        case 1 if isinstance(where, list):
            where.insert(key, where[key])
        case 2 if isinstance(where[key], float):
            where[key] *= rng.choice([-1, 0, 2, 1.0000001, 1e300])
        case _:
            where[key] = rng.choice(ODD)
    return copy


def text_of(rng: random.Random, document: Any) -> bytes:
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        document = damaged(rng, document)
        if not document:
            break
    text = json.dumps(document).encode()
    match rng.randrange(8):
        case 0:
            text = text[: rng.randrange(len(text) + 1)]
        case 1:
            at = rng.randrange(len(text))
            text = text[:at] + bytes([rng.randrange(256)]) + text[at + 1 :]
        case 2:
            text = b"[" * rng.choice([10, 100_000]) + text
    return text


def check_schedule_file(rng: random.Random, folder: Path) -> None:
    """It is refused, or what is read is valid, shown, and written so that the same is read again."""
    file = folder / "s.json"
    content = text_of(rng, DOCUMENT)
    file.write_bytes(content)
    try:
        schedules = schedule_file.load(file)
    except ValueError as error:
        assert "s.json" in str(error)
    else:
        for s in schedules:
            assert s.nfe >= 1 and len(s.t) == s.nfe + (s.layout == "interval")
            assert (s.t[:-1] > s.t[1:]).all() and (s.lams[:-1] < s.lams[1:]).all() and (s.sigmas > 0).all()
            assert (s.coefficients is not None) == (s.solver == "nonstationary")
            assert s.coefficients is None or abs(s.coefficients).max() <= 1e3
            assert all(isinstance(x, str) for x in (s.model, s.method, s.solver, s.noise, s.result))
        schedule_file.save(schedules, folder / "again.json")
        again = schedule_file.load(folder / "again.json")
        assert schedule_file.to_json(again) == schedule_file.to_json(schedules)
    ours = files.kind_of(file) == "schedules"
    try:
        parsed = json.loads(content)
        assert ours == (isinstance(parsed, dict) and parsed.get("format") == files.FORMAT)
    except (ValueError, RecursionError):
        assert not ours or not content
    assert file.read_bytes() == content


def run(seed: int, count: int, folder: Path) -> None:
    rng = random.Random(seed)
    for i in range(count):
        state = rng.getstate()
        try:
            check_schedule_file(rng, folder)
        except BaseException as error:
            error.add_note(f"seed {seed}, input {i}: see {folder / 's.json'} (state {hash(state)})")
            raise
    assert set(os.listdir(folder)) <= {"s.json", "again.json"}


def test_five_hundred_schedule_files(tmp_path: Path) -> None:
    run(0, 500, tmp_path)


@pytest.mark.fuzz
@pytest.mark.parametrize("seed", range(1, 5))
def test_forty_thousand_schedule_files(seed: int, tmp_path: Path) -> None:
    run(seed, 10_000, tmp_path)
