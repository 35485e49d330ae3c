"""The schedule file: exact round trips, older versions, what is refused and how it says so, and choosing from it."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from problems import SD

from hso_jax import Schedule, baseline, load, preset, save, zoo
from hso_jax.noise import cosine
from hso_jax.schedule import Origin, Scores
from hso_jax.schedule_file import from_document, from_json, select, to_document, to_json
from hso_jax.solvers import NONSTATIONARY

T = [1.0, 0.7431234567890123, 1 / 3, 0.03]
ORIGIN = Origin(
    **{"method": "hso", "psi": {"rho": 7.1, "t_eps": 0.03}, "seed": 3, "d_min": 0.1, "iterations": 5},
    **{"stationarity": 1e-300, "versions": {"jax": "0.10"}, "result": "converged"},
)
FULL = Schedule.from_t(SD, T, layout="interval", origin=ORIGIN, scores=Scores(mep=0.1 + 0.2, spf=1e9 / 7))
FREE = Schedule.from_t(
    *(SD, [1.0, 0.8, 0.5, 0.3, 0.1]),
    origin=Origin(solver=NONSTATIONARY, tuned={"by": "rmse", "budget": 5000, "extra": None}),
    coefficients=np.tril(np.random.default_rng(0).normal(size=(5, 2)), -1),
)
NUMPY = Schedule.from_t(
    SD, T, scores=Scores(mep=np.float64(1.5)), origin=Origin(seed=np.int64(4), iterations=np.int32(2))
)
MANY = [
    *(FULL, FREE, NUMPY, Schedule.from_t(SD, [1.0]), Schedule.from_t(cosine(), [1.0, 0.5])),
    baseline("karras", preset("edm-cifar10"), 5),
]


def same(a: Schedule, b: Schedule) -> bool:
    """Whether also the kinds of numbers are the same."""
    pairs = [(getattr(x, n), getattr(y, n)) for x, y in ((a.origin, b.origin), (a.scores, b.scores)) for n in vars(x)]
    return a == b and all(type(x) is type(y) for x, y in pairs)


def test_round_trip_is_exact(tmp_path: Path) -> None:
    for given in (MANY, FULL, []):
        many = [given] if isinstance(given, Schedule) else given
        save(given, str(tmp_path / "s.json"))
        back = load(tmp_path / "s.json")
        assert all(same(a, b) for a, b in zip(many, back, strict=True))
        assert to_json(back) == (tmp_path / "s.json").read_text() == to_json(given)


def test_the_document_has_the_fields_that_readers_need() -> None:
    document = json.loads(to_json(MANY), parse_constant=lambda text: pytest.fail(f"{text} is not JSON"))
    assert document["format"] == "hso-jax/schedules" and document["version"] == 2
    wanted = "model nfe layout end method solver t lams sigmas timesteps psi mep spf min_spacing result seed"
    assert all(set(wanted.split()) <= set(record) for record in document["schedules"])
    full, own, _, single, noise, _ = document["schedules"]
    assert full["t"] == T and len(full["timesteps"]) == full["nfe"] == 3 and full["coefficients"] is None
    assert own["coefficients"] == FREE.coefficients.tolist()
    assert single["mep"] is None and single["seed"] is None
    assert noise["lams"][0] is None and noise["sigmas"][0] is None and noise["lams"][1] is not None


def test_a_file_of_version_1_is_read() -> None:
    """It was written by the program before there were coefficients."""
    file = Path(__file__).parent / "data" / "schedules-version-1.json"
    found = load(file)
    assert [s.nfe for s in found] == [3, 2, 2] and all(s.coefficients is None for s in found)
    old, new = json.loads(file.read_text()), json.loads(to_json(found))
    assert old.pop("version") == 1 and new.pop("version") == 2
    for before, after in zip(old["schedules"], new["schedules"], strict=True):
        assert {**after["others_same_nodes"], **after["others_own_nodes"]} == before.pop("others")
        assert {name: after.pop(name) for name in list(after) if name not in before}["coefficients"] is None
    assert old == new


@pytest.mark.parametrize(("seed", "meant"), [(0, "same"), (None, "own")], ids=["a search's", "the zoo's"])
def test_others_of_older_files_keep_their_meaning(seed: int | None, meant: str) -> None:
    document = to_document(Schedule.from_t(SD, T, origin=Origin(solver="dpmpp-2m", seed=seed)))
    (record,) = document["schedules"]
    del record["others_same_nodes"], record["others_own_nodes"]
    (read,) = from_document({**document, "schedules": [{**record, "others": {"ddim": 0.5}}]})
    both = {"same": read.others_same_nodes, "own": read.others_own_nodes}
    assert both == {"same": {}, "own": {}, meant: {"ddim": 0.5}}
    with pytest.warns(DeprecationWarning, match="others_own_nodes"):
        assert read.others == {"ddim": 0.5}


@pytest.mark.parametrize("old", ["reference", "mep/reference", "dm-nonuni/reference"])
def test_methods_of_older_files_have_today_s_name(old: str) -> None:
    document = to_document(FULL)
    document["schedules"][0]["method"] = old
    (s,) = from_document(document)
    assert s.method == old.replace("reference", "solver-error")
    assert same(s, dataclasses.replace(FULL, origin=dataclasses.replace(FULL.origin, method=s.method)))


def test_a_schedule_that_a_profile_went_into_is_read() -> None:
    """Profiles were removed in 0.3.0; 0.2.0 tuned from one, and benchmarks named a method after it."""
    file = to_document(FULL)
    told = {"method": "solver-error-profile", "tuned": {"start": "profile", "samples": 8}}
    file["schedules"][0] |= told
    (s,) = from_document(json.loads(json.dumps(file)))
    assert s.method == "solver-error-profile" and s.origin.tuned == told["tuned"]
    assert same(s, dataclasses.replace(FULL, origin=dataclasses.replace(FULL.origin, **told)))


def document(**fields: Any) -> str:
    return json.dumps({"format": "hso-jax/schedules", "version": 1, "schedules": [], **fields})


BAD_TEXTS = {
    "empty": ("", "not valid JSON"),
    "truncated": (to_json(FULL)[:-40], "not valid JSON, or truncated"),
    "deep": ("[" * 100_000, "not valid JSON"),
    "no text": (b"\xff\xfe\x00\x80", "decode"),
    "a list": ("[]", "not a schedule file"),
    "foreign": (document(format="gltf"), 'must be an object with "format": "hso-jax/schedules"'),
    "scheduler config": ('{"_class_name": "DDIMScheduler"}', "not a schedule file"),
    "newer": (document(version=3), "version 3 is newer .* update"),
    **{f"version {v!r}": (document(version=v), f"version is {v!r}") for v in (None, "1", True, 0)},
    "no list": (document(schedules={}), '"schedules" must be a list'),
    "a number": (document(schedules=[3]), r"schedules\[0\]: must be an object"),
}


@pytest.mark.parametrize("case", BAD_TEXTS)
def test_what_is_no_schedule_file_is_refused(case: str, tmp_path: Path) -> None:
    text, match = BAD_TEXTS[case]
    (tmp_path / "bad.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=match) as caught:
        load(tmp_path / "bad.json")
    assert "bad.json" in str(caught.value)
    with pytest.raises(OSError, match=r"none\.json"):
        load(tmp_path / "none.json")


NAN = float("nan")
BAD_FIELDS: dict[str, tuple[dict[str, Any], str]] = {
    "rising t": ({"t": [0.1, 0.2, 0.05, 0.01]}, r"t must fall strictly, but entry 0"),
    "nan": ({"t": [1.0, NAN, 0.3, 0.03]}, r"t\[1\] is nan"),
    "infinite": ({"t": [float("inf"), 0.5, 0.3, 0.03]}, r"t\[0\] is inf"),
    "null in t": ({"t": [None, 0.5, 0.3, 0.03]}, r"t\[0\] is None"),
    "null late": ({"lams": [-2.0, None, 0.0, 1.0]}, r"lams\[1\] is None"),
    "text": ({"sigmas": [1.0, "a", 0.3, 0.03]}, r"sigmas\[1\] is 'a'"),
    "bool": ({"t": [True, 0.5, 0.3, 0.03]}, r"t\[0\] is True"),
    "an integer beyond floats": ({"t": [10**400, 0.5, 0.3, 0.03]}, "t is .*too large"),
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
    "tuned": ({"tuned": {"a": [1]}}, r"tuned\['a'\] is \[1\]"),
    "versions": ({"versions": {"jax": 1}}, "versions is"),
    "seed": ({"seed": 1.5}, r"seed is 1\.5"),
    "disagree": ({"sigmas": [9.0, 4.0, 2.0, 1.0]}, "sigmas and lams disagree"),
    "pure noise in lams only": ({"lams": [None, *FULL.lams[1:].tolist()]}, "disagree"),
    "coefficients of a known solver": ({"coefficients": [[0.0]] * 3}, "coefficients: some for solver 'any'"),
}
BAD_COEFFICIENTS: dict[str, tuple[Any, str]] = {
    "a text": ("x", "is 'x'; need numbers"),
    "flat": ([0.0] * 5, r"has shape \(5,\)"),
    "a row short": ([[0.0]] * 4, r"has shape \(4, 1\)"),
    "ragged": ([[0.0], [0.0, 0.0], [0.0], [0.0], [0.0]], "is .* one length"),
    "NaN": ([[0.0], [NAN], [0.0], [0.0], [0.0]], r"\[1\]\[0\] is nan"),
    "infinite": ([[0.0], [0.0], [0.0], [0.0], [1e999]], r"\[4\]\[0\] is inf"),
    "null inside": ([[0.0], [None], [0.0], [0.0], [0.0]], r"\[1\]\[0\] is None; need"),
    "true inside": ([[0.0], [True], [0.0], [0.0], [0.0]], r"\[1\]\[0\] is True; need"),
    "early": ([[0.5], [0.0], [0.0], [0.0], [0.0]], r"\[0\]\[0\] is 0.5; step 0 has 0"),
    "missing": (None, ": none for solver 'nonstationary'"),
}
BAD_FIELDS |= {f"coefficients {k}": ({"coefficients": c}, f"coefficients{m}" if m[0] in "\\:" else f"coefficients {m}")
               for k, (c, m) in BAD_COEFFICIENTS.items()}  # fmt: skip


@pytest.mark.parametrize("case", BAD_FIELDS)
def test_a_bad_field_is_named_with_its_schedule(case: str) -> None:
    change, match = BAD_FIELDS[case]
    document = json.loads(to_json([FULL, FREE if f"{case}"[13:] in BAD_COEFFICIENTS else FULL]))
    document["schedules"][1] |= change
    with pytest.raises(ValueError, match=rf"schedules\[1\]: .*{match}"):
        from_json(json.dumps(document))


def test_missing_fields_are_named_and_optional_ones_have_defaults() -> None:
    document = to_document(FULL)
    (record,) = document["schedules"]
    for name in ("model", "t", "psi", "seed", "mep"):
        short = {key: value for key, value in record.items() if key != name}
        with pytest.raises(ValueError, match=rf"schedules\[0\]: lacks {name}$"):
            from_document({**document, "schedules": [short]})
    for name in ("iterations", "versions", "d_min", "coefficients", "min_spacing"):
        del record[name]
    assert from_document(document | {"comment": "ours"})[0].origin.iterations == 0


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
