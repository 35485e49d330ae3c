"""The schedule file: exact round trips, what is refused and how it says so, writing whole or not at all."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from problems import SD

from hso_jax import Schedule, baseline, load, preset, save, zoo
from hso_jax.noise import cosine
from hso_jax.schedule import Origin, Scores
from hso_jax.schedule_file import from_json, select, to_json

T = [1.0, 0.7431234567890123, 1 / 3, 0.03]
FULL = Schedule.from_t(
    SD,
    T,
    layout="interval",
    origin=Origin(
        method="hso",
        psi={"rho": 7.1, "t_eps": 0.03},
        seed=3,
        d_min=0.1,
        iterations=5,
        stationarity=1e-300,
        versions={"jax": "0.10"},
        result="converged",
    ),
    scores=Scores(mep=0.1 + 0.2, spf=1e9 / 7),
)
MANY = [
    FULL,
    Schedule.from_t(SD, [1.0]),
    Schedule.from_t(cosine(), [1.0, 0.5]),
    baseline("karras", preset("edm-cifar10"), 5),
]


def same(a: Schedule, b: Schedule) -> bool:
    """Whether also the kinds of numbers are the same."""
    pairs = [(getattr(x, n), getattr(y, n)) for x, y in ((a.origin, b.origin), (a.scores, b.scores)) for n in vars(x)]
    return a == b and all(type(x) is type(y) for x, y in pairs)


def test_round_trip_is_exact(tmp_path: Path) -> None:
    save(MANY, tmp_path / "s.json")
    back = load(tmp_path / "s.json")
    assert len(back) == len(MANY) and all(same(a, b) for a, b in zip(MANY, back, strict=True))
    save(FULL, str(tmp_path / "one.json"))
    assert same(load(str(tmp_path / "one.json"))[0], FULL)
    assert to_json(back) == (tmp_path / "s.json").read_text() == to_json(MANY)
    assert from_json(to_json([])) == []


def test_the_document_is_what_the_issue_says() -> None:
    document = json.loads(to_json(MANY), parse_constant=lambda text: pytest.fail(f"{text} is not JSON"))
    assert document["format"] == "hso-jax/schedules" and document["version"] == 2
    wanted = "model nfe layout end method solver t lams sigmas timesteps psi mep spf min_spacing result seed"
    assert all(set(wanted.split()) <= set(record) for record in document["schedules"])
    full, single, noise, _ = document["schedules"]
    assert full["t"] == T and len(full["timesteps"]) == full["nfe"] == 3
    assert single["mep"] is None and single["seed"] is None
    assert noise["lams"][0] is None and noise["sigmas"][0] is None and noise["lams"][1] is not None


OTHERS = {"a search's": ("dpmpp-2m", 0, "same"), "the zoo's": ("dpmpp-2m", None, "own")}


@pytest.mark.parametrize("case", OTHERS)
def test_others_of_older_files_are_read_as_what_they_meant(case: str) -> None:
    solver, seed, meant = OTHERS[case]
    document = json.loads(to_json(Schedule.from_t(SD, T, origin=Origin(solver=solver, seed=seed))))
    (record,) = document["schedules"]
    del record["others_same_nodes"], record["others_own_nodes"]
    (read,) = from_json(json.dumps({**document, "schedules": [{**record, "others": {"ddim": 0.5}}]}))
    both = {"same": read.others_same_nodes, "own": read.others_own_nodes}
    assert both == {"same": {}, "own": {}, meant: {"ddim": 0.5}}
    with pytest.warns(DeprecationWarning, match="others_own_nodes"):
        assert read.others == {"ddim": 0.5}


def test_the_zoo_s_others_have_nodes_of_their_own() -> None:
    schedule = zoo("sd15", 6, "ddim")
    assert not schedule.others_same_nodes and schedule.better_solver in schedule.others_own_nodes
    assert schedule.others_own_nodes[schedule.better_solver] < schedule.error


def test_numpy_scalars_are_written_as_numbers() -> None:
    s = Schedule.from_t(
        SD, T, scores=Scores(mep=np.float64(1.5)), origin=Origin(seed=np.int64(4), iterations=np.int32(2))
    )
    assert same(
        from_json(to_json(s))[0], Schedule.from_t(SD, T, scores=Scores(mep=1.5), origin=Origin(seed=4, iterations=2))
    )


BAD_TEXTS = {
    "empty": ("", "not valid JSON"),
    "truncated": (to_json(FULL)[:-40], "not valid JSON, or truncated"),
    "a list": ("[]", "not a schedule file"),
    "foreign": ('{"format": "gltf", "version": 1}', 'must be an object with "format": "hso-jax/schedules"'),
    "scheduler config": ('{"_class_name": "DDIMScheduler"}', "not a schedule file"),
    "newer": ('{"format": "hso-jax/schedules", "version": 3, "schedules": []}', "version 3 is newer .* update"),
    "no version": ('{"format": "hso-jax/schedules", "schedules": []}', "version is None"),
    "text version": ('{"format": "hso-jax/schedules", "version": "1", "schedules": []}', "version is '1'"),
    "true version": ('{"format": "hso-jax/schedules", "version": true, "schedules": []}', "version is True"),
    "zero": ('{"format": "hso-jax/schedules", "version": 0, "schedules": []}', "version is 0"),
    "no list": ('{"format": "hso-jax/schedules", "version": 1, "schedules": {}}', '"schedules" must be a list'),
    "a number": (
        '{"format": "hso-jax/schedules", "version": 1, "schedules": [3]}',
        r"schedules\[0\]: must be an object",
    ),
    "deep": ("[" * 100_000, "not valid JSON"),
}


@pytest.mark.parametrize("case", BAD_TEXTS)
def test_what_is_no_schedule_file_is_refused(case: str, tmp_path: Path) -> None:
    text, match = BAD_TEXTS[case]
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(ValueError, match=match) as caught:
        load(tmp_path / "bad.json")
    assert "bad.json" in str(caught.value)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(ValueError, match=r"bad\.json"):
        load(tmp_path / "bad.json")
    with pytest.raises(OSError, match=r"none\.json"):
        load(tmp_path / "none.json")


BAD_FIELDS: dict[str, tuple[dict[str, Any], str]] = {
    "rising t": ({"t": [0.1, 0.2, 0.05, 0.01]}, r"schedules\[1\]: t must fall strictly, but entry 0"),
    "nan": ({"t": [1.0, float("nan"), 0.3, 0.03]}, r"schedules\[1\]: t\[1\] is nan"),
    "infinite": ({"t": [float("inf"), 0.5, 0.3, 0.03]}, r"t\[0\] is inf"),
    "null in t": ({"t": [None, 0.5, 0.3, 0.03]}, r"t\[0\] is None"),
    "null late": ({"lams": [-2.0, None, 0.0, 1.0]}, r"lams\[1\] is None"),
    "text": ({"sigmas": [1.0, "a", 0.3, 0.03]}, r"sigmas\[1\] is 'a'"),
    "bool": ({"t": [True, 0.5, 0.3, 0.03]}, r"t\[0\] is True"),
    "not a list": ({"timesteps": 3}, r"timesteps has shape \(\)"),
    "empty list": ({"timesteps": []}, r"timesteps has shape \(0,\)"),
    "count": ({"nfe": 4}, r"layout 'interval' at nfe 4 needs \(5,\)"),
    "nfe": ({"nfe": 3.0}, r"nfe is 3\.0"),
    "no levels": ({"num_train_timesteps": 0}, "num_train_timesteps is 0; need"),
    "levels beyond floats": ({"num_train_timesteps": 10**400}, "num_train_timesteps is 1000.*; need"),
    "layout": ({"layout": "both"}, "layout is 'both'"),
    "end": ({"end": None}, "end is None"),
    "mep": ({"mep": "low"}, "mep is 'low'"),
    "infinite mep": ({"mep": float("inf")}, "mep is inf"),
    "psi": ({"psi": {"rho": "7"}}, r"psi\['rho'\] is '7'"),
    "versions": ({"versions": {"jax": 1}}, "versions is"),
    "seed": ({"seed": 1.5}, r"seed is 1\.5"),
    "disagree": ({"sigmas": [9.0, 4.0, 2.0, 1.0]}, "sigmas and lams disagree"),
    "an integer beyond floats": ({"t": [10**400, 0.5, 0.3, 0.03]}, "t is .*too large"),
    "pure noise in lams only": ({"lams": [None, *FULL.lams[1:].tolist()]}, "disagree"),
}


@pytest.mark.parametrize("case", BAD_FIELDS)
def test_a_bad_field_is_named_with_its_schedule(case: str) -> None:
    change, match = BAD_FIELDS[case]
    document = json.loads(to_json([FULL, FULL]))
    document["schedules"][1] |= change
    with pytest.raises(ValueError, match=match):
        from_json(json.dumps(document))


def test_missing_fields_are_named_and_optional_ones_have_defaults() -> None:
    document = json.loads(to_json(FULL))
    for name in ("model", "t", "psi", "seed", "mep"):
        short = copy.deepcopy(document)
        del short["schedules"][0][name]
        with pytest.raises(ValueError, match=rf"schedules\[0\]: lacks {name}"):
            from_json(json.dumps(short))
    for name in ("iterations", "versions", "d_min"):
        del document["schedules"][0][name]
    assert from_json(json.dumps(document | {"comment": "ours"}))[0].origin.iterations == 0


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "s.json"
    save(FULL, file)
    before = file.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    for name in ("replace", "chmod", "fdopen"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, fail)
            with pytest.raises(OSError, match="disk full"):
                save(MANY, file)
        assert file.read_bytes() == before and os.listdir(tmp_path) == ["s.json"]
    with pytest.raises((TypeError, ValueError, AttributeError)):
        save([FULL, 3], file)
    assert file.read_bytes() == before


def test_folders_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for place in (tmp_path / "none" / "s.json", tmp_path / "file" / "s.json", tmp_path):
        with pytest.raises(OSError, match=r"."):
            save(FULL, place)
    assert os.listdir(tmp_path) == ["file"]
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    if not os.access(locked, os.W_OK):  # root may write anywhere
        with pytest.raises(OSError, match="Permission"):
            save(FULL, locked / "s.json")


def test_permissions_are_those_of_the_old_file_or_of_the_umask(tmp_path: Path) -> None:
    file = tmp_path / "s.json"
    save(FULL, file)
    mask = os.umask(0)
    os.umask(mask)
    assert file.stat().st_mode & 0o777 == 0o666 & ~mask
    file.chmod(0o640)
    save(MANY, file)
    assert file.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("old", ["reference", "mep/reference", "dm-nonuni/reference"])
def test_methods_of_older_files_have_today_s_name(old: str) -> None:
    document = json.loads(to_json(FULL))
    document["schedules"][0]["method"] = old
    (s,) = from_json(json.dumps(document))
    assert s.method == old.replace("reference", "solver-error")
    assert same(s, dataclasses.replace(FULL, origin=dataclasses.replace(FULL.origin, method=s.method)))


RULES = [
    baseline(m, preset("sdxl"), n, layout=at)
    for n, m, at in itertools.product((4, 6), ("karras", "trailing"), ("interval", "node"))
]
SHIPPED = [zoo("sdxl", 6, solver, guidance=w) for solver, w in itertools.product(("ddim", "unipc-2"), (1.0, 5.0))]


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"nfe": 6, "method": "trailing"}, RULES[7]),  # of the two layouts, node
        ({"nfe": 6, "method": "trailing", "layout": "interval"}, RULES[6]),
        ({"nfe": 4, "method": "karras", "solver": "ddim", "guidance": 5.0}, RULES[1]),  # a rule looks at neither
        ({"method": "solver-error", "solver": "ddim", "guidance": 1.0}, SHIPPED[0]),
        ({"method": "solver-error", "solver": "unipc-2", "guidance": 5.0}, SHIPPED[3]),
        ({"method": "solver-error", "solver": "unipc", "guidance": 5.0}, SHIPPED[3]),
    ],
)
def test_select_takes_what_is_named(options: dict[str, Any], wanted: Schedule) -> None:
    assert select([*RULES, *SHIPPED], **options) is wanted


@pytest.mark.parametrize(
    ("many", "options", "message"),
    [
        (RULES, {"nfe": 6}, "differ in method: karras; trailing; choose by method"),
        ([*RULES, *SHIPPED], {"nfe": 6, "solver": "ddim", "guidance": 1}, "differ in method and solver and guidance"),
        (SHIPPED, {}, "ddim guidance 1; for ddim guidance 5; for unipc-2 guidance 1; for unipc-2 guidance 5"),
        (SHIPPED, {"guidance": 5}, "differ in solver: for ddim; for unipc-2; choose by solver"),
        (RULES, {"method": "karras"}, "differ in nfe: 4; 6; choose by nfe"),
        (RULES[:2], {"nfe": 5}, r"no such schedule \(nfe 5\); there are: 4 interval karras .*; 4 node karras"),
        (RULES[:2], {"method": "hso", "layout": "node"}, r"no such schedule \(layout node, method hso\)"),
        ([RULES[1], baseline("karras", preset("sd15"), 4)], {}, r"models: sdxl, sd15\) that no option tells apart"),
        ([], {}, "there are: none"),
    ],
)
def test_select_refuses_what_is_missing_or_ambiguous(
    many: list[Schedule], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        select(many, **options)
