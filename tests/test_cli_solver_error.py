"""The command line's method solver-error: what it hands to the search, what it writes, and what it refuses."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import solver_error_cells as shared
from solver_error_cells import find

from hso_jax.cli import main
from hso_jax.schedule_file import from_json
from hso_jax.solver_error_method import COMPARED

SEARCH = ["search", "--model", "sd3-medium", "--method", "solver-error"]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")  # the tests' own JAX is running: leave its settings alone
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "120")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The lanes that were searched: on the tests' small family, in the tests' one program."""
    lanes: list[Any] = []

    def search(many: list[Any], *, progress: Any) -> list[Any]:
        lanes.extend(many)
        progress(len(many), len(many))
        # The program is compiled for two weights: the result of another one would be a compilation.
        lanes_of_tests = [
            shared.lane(x.noise, x.nfe, x.layout, x.method.solver, 5.0, seed=x.seed, compare=COMPARED) for x in many
        ]
        return find(lanes_of_tests)

    monkeypatch.setattr(importlib.import_module("hso_jax.cli.searches"), "search_many", search)
    return lanes


def test_json_is_a_schedule_file_for_the_solver(asked: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--solver", "unipc", "--nfe", "2", "--layout", "node", "--guidance", "7.5", "--seed", "3", "--json"]
    code = main([*SEARCH, *options])
    printed = capsys.readouterr().out
    (s,), (record,) = from_json(printed), json.loads(printed)["schedules"]
    assert code == (0 if s.result == "converged" else 1)
    assert (s.model, s.nfe, s.layout, s.solver, s.method) == ("sd3-medium", 2, "node", "unipc-2", "solver-error")
    assert s.error > 0 and sorted(record["others_same_nodes"]) == ["ddim", "dpmpp-2m", "unipc-3"]
    (lane,) = asked
    how = lane.method
    assert (lane.nfe, lane.layout, how.solver, how.guidance, lane.seed) == (2, "node", "unipc-2", 7.5, 3)
    assert how.first == "auto" and lane.noise.name == "sd3-medium"
    assert [p.name for p in Path().iterdir() if p.name != "cache"] == []


def test_defaults_files_and_advice(asked: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    code = main([*SEARCH, "--nfe", "1,3", "--solver", "ddim", "--first", "end", "--no-plot", "-o", "x.json"])
    printed = capsys.readouterr()
    schedules = from_json(Path("x.json").read_text())
    assert code == (0 if all(s.result == "converged" for s in schedules) else 1)
    assert [(lane.nfe, lane.layout, lane.method.guidance, lane.method.first) for lane in asked] == [
        (1, "node", 1.0, "end"), (3, "node", 1.0, "end")
    ]  # fmt: skip
    assert (
        "solver-error schedules for sd3-medium" in printed.out and "error" in printed.out and "SPF" not in printed.out
    )
    for s in schedules:
        advised = f"N = {s.nfe}: {s.better_solver} does better than ddim at guidance 5" in printed.err
        assert advised == (s.better_solver is not None)


def test_both_layouts_when_asked_for(asked: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    code = main([*SEARCH, "--nfe", "2", "--solver", "ddim", "--layout", "both", "--json"])
    results = {s.result for s in from_json(capsys.readouterr().out)}
    assert code == (0 if results == {"converged"} else 1)
    assert [lane.layout for lane in asked] == ["node", "interval"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["search", "--solver", "unipc"],
            "--solver: only with --method solver-error; --method hso does not look at it",
        ),
        (["search", "--guidance", "1", "--first", "end"], "--guidance, --first: only with --method solver-error"),
        (["search", "--method", "hso-dm-nonuni", "--solver", "ddim"], "--method hso-dm-nonuni does not look at it"),
        ([*SEARCH, "--solver", "adams"], "solver is 'adams'; use one of ddim"),
        ([*SEARCH, "--guidance", "-1"], "guidance is -1.0"),
        ([*SEARCH, "--guidance", "nan"], "guidance is nan"),
        ([*SEARCH, "--solver", "heun", "--first", "end"], "cannot start at lam = -inf, where sd3-medium ends"),
        ([*SEARCH, "--nfe", "1000"], "nfe is 1000: 1000 nodes"),
        ([*SEARCH, "--seed", "-1"], "seed is -1"),
        (["zoo", "--nfe", "21"], "nfe is 21; the zoo has 1..20"),
        (["zoo", "--model", "sd9"], "model 'sd9' is neither a preset nor a file or folder"),
        (["zoo", "--solver", "heun"], "solver 'heun' is not in the zoo"),
    ],
)
def test_bad_input_is_refused_before_any_work(
    argv: list[str], message: str, asked: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ") and message in printed.err and "Traceback" not in printed.err
    assert not asked and not [p for p in Path().iterdir() if p.name != "cache"]


@pytest.mark.parametrize(
    "options", [["--spacing", "0.05"], ["--spacing-as", "penalty"], ["--relax"], ["--p", "1"], ["--t-max", "0.9", "1"]]
)
def test_options_of_the_other_method_are_refused(
    options: list[str], asked: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*SEARCH, "--nfe", "2", "--json", *options]) == 2
    assert options[0] in capsys.readouterr().err and not asked
