"""`python -m benchmarks --quick` on the trained models: properties that hold whatever the figures are."""

import dataclasses
from pathlib import Path

import pytest

from benchmarks import runner
from benchmarks.__main__ import QUICK, main
from benchmarks.models import subjects
from benchmarks.networks import cells
from benchmarks.runner import Record

EXTRA = ["--methods", "trailing", "--nfe", "10"]  # a cell that many steps make clearly better than few


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the command leaves, its converged samples solved anew: these are the work, so there are few."""
    root = tmp_path_factory.mktemp("quick")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subjects, "CACHE", root / "cache")
        patch.setattr(subjects, "CHECKED", 2)
        patch.setitem(QUICK, "samples", 4)
        assert main(["--quick", "--out", str(root / "out")]) == 0
        assert main(["--quick", "--out", str(root / "out"), *EXTRA]) == 0
        yield root / "out"


@pytest.fixture(scope="module")
def found(folder: Path) -> list[Record]:
    return runner.read(folder / "benchmarks.jsonl").cells


def rows(found: list[Record], method: str) -> dict[tuple[str, str, int], Record]:
    return {(r.model, r.solver, r.nfe): r for r in found if r.method == method}


def test_every_cell_is_there_once_with_all_figures(folder, found):
    lines = (folder / "benchmarks.jsonl").read_text().splitlines()
    each = len(QUICK["models"]) * len(QUICK["solvers"])
    assert len(found) == each * (len(QUICK["nfes"]) * len(QUICK["methods"]) + 1) == len(lines) - 1
    for r in found:
        for metric in ("rmse", "feature", "fid"):
            value, low, high = r.interval(metric)
            assert 0 <= low <= value <= high, (r.cell, metric)
        assert r.samples == QUICK["samples"] and r.seconds > 0


def test_every_schedule_was_evaluated_exactly_n_times(found):
    assert found and all(r.counted == r.nfe == len(r.lams) for r in found)


def test_the_converged_samples_are_known_far_better_than_the_errors(found):
    for r in found:
        assert 0 < r.teacher < 0.1 * r.rmse, r.cell  # adds less than 1 % to an RMSE of its own


def test_ten_steps_are_better_than_four(found):
    trailing = rows(found, "trailing")
    for model in QUICK["models"]:
        for solver in QUICK["solvers"]:
            assert trailing[model, solver, 10].rmse < trailing[model, solver, 4].rmse


def test_solver_error_is_better_than_leading_where_the_two_are_apart(found):
    """Leading spacing starts well below pure noise: the two are apart at few steps, whatever the model."""
    ours, leading = rows(found, "solver-error"), rows(found, "leading")
    apart = [k for k, r in ours.items() if not leading[k].rmse_low <= r.rmse <= leading[k].rmse_high]
    assert apart and all(ours[k].rmse < leading[k].rmse for k in apart)


def test_the_report_is_there_with_its_pictures(folder):
    text = (folder / "benchmarks.md").read_text()
    pictures = {f"grid-{model}-{nfe}.png" for model in QUICK["models"] for nfe in QUICK["nfes"]}
    for file in pictures | {"benchmarks-rmse.png", "benchmarks-fid.png"}:
        assert f"({file})" in text and (folder / file).stat().st_size > 10_000
    assert f"{QUICK['samples']} samples a cell" in text


def test_a_second_run_computes_nothing(folder, monkeypatch, capsys):
    before = {file: file.read_bytes() for file in folder.iterdir()}
    monkeypatch.setattr(subjects.Subject, "__init__", lambda *args, **options: pytest.fail("a model was loaded"))
    assert main(["--quick", "--out", str(folder)]) == 0
    assert "0 cells measured" in capsys.readouterr().out
    assert {file: file.read_bytes() for file in folder.iterdir()} == before


def test_the_same_seed_gives_the_same_records(found, tmp_path):
    methods = ["hso", "trailing"]
    plan = cells.plan(["fashion-eps"], QUICK["solvers"], [4], methods, [1.0], samples=QUICK["samples"])
    assert cells.run(plan, tmp_path / "again.jsonl", progress=False) == len(plan)
    again = runner.read(tmp_path / "again.jsonl").cells
    first = {r.cell: r for r in found}
    times = [{"seconds": r.seconds, "compile_seconds": r.compile_seconds} for r in again]
    assert again == [dataclasses.replace(first[r.cell], **time) for r, time in zip(again, times, strict=True)]
