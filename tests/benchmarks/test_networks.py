"""The benchmark on the trained networks: order of work, a quick run, tables and grids."""

import dataclasses
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_models import Calls

from benchmarks import __main__ as cells
from benchmarks import measure, methods, networks, runner, tables, targets
from benchmarks.__main__ import main
from benchmarks.runner import Record, noise_of
from hso_jax import baseline


def record(method="trailing", rmse=0.2, fid=3.0, *, model="fashion-eps", solver="ddim", nfe=4, guidance=1.0, **more):
    """With intervals of 5 %, and the nodes of trailing spacing."""
    values = {"rmse": rmse, "rmse_low": 0.95 * rmse, "rmse_high": 1.05 * rmse, "seconds": 0.5, "counted": nfe}
    if fid is not None:
        values |= {"fid": fid, "fid_low": 0.95 * fid, "fid_high": 1.05 * fid}
    own = Record(model, guidance, solver, nfe, method, 0, 16, "float32", **{**values, **more})
    return own.with_schedule(baseline("trailing", noise_of(model), nfe))


def test_whole_columns_come_first_and_costly_methods_last():
    plan = cells.plan()
    assert len(plan) == len(set(plan)) and all(c.method in methods.METHODS for c in plan)
    first = [c for c in plan if c.guidance == 1.0 and c.method in cells.FAST]
    assert first == plan[: len(first)]
    assert [n for n, _ in itertools.groupby(c.nfe for c in first)] == list(cells.NFES)
    columns = [key for key, _ in itertools.groupby((c.model, c.solver, c.nfe) for c in first)]
    assert len(columns) == len(set(columns)) == 3 * 3 * 6
    late = [c for c in plan if c.method in cells.COSTLY]
    assert late == plan[-len(late) :] and {c.method for c in late} == set(cells.COSTLY)
    assert {c.method for c in plan if c.guidance != 1.0} == set(cells.GUIDED) - set(cells.SHIPPED)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--methods", "cats"], "method 'cats' is not one of"),
        (["--models", "sd"], "model 'sd' is not one of"),
        (["--solvers", "euler"], "solver 'euler' is not one of"),
        (["--guidance", "2", "--methods", "gits"], "nothing to measure"),
        (["--samples", "1"], "samples is 1"),
        (["--data", "fashion=none.npz"], "does not exist"),
        (["--report-only", "--records", "none"], "no records to report"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_any_work(options, told, tmp_path, capsys):
    out = tmp_path / "out"
    assert main([*options, "--out", str(out)]) == 2 and told in capsys.readouterr().err and not out.exists()


QUICK = ["--quick", "--samples", "4", "--methods", "zoo,trailing,leading"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What `--quick` leaves of tiny networks, its converged samples of few evaluations."""
    root = tmp_path_factory.mktemp("quick")
    with pytest.MonkeyPatch.context() as patch:
        Calls(patch)
        patch.setattr(targets, "CACHE", root / "cache")
        patch.setattr(measure, "FINE", 24)
        patch.setattr(networks, "FINE", 24)
        patch.setattr(measure.run, "__kwdefaults__", {**measure.run.__kwdefaults__, "fine": 24})
        assert main([*QUICK, "--out", str(root / "out")]) == 0
        yield root / "out"


def test_a_quick_run_has_every_cell_with_all_figures(folder, capsys):
    found = runner.read(folder / "benchmarks.jsonl").cells
    assert len(found) == 2 * 2 * 3 == len((folder / "benchmarks.jsonl").read_text().splitlines()) - 1
    for r in found:
        assert r.counted == r.nfe == len(r.lams) and r.samples == 4 and r.seconds > 0
        for metric in ("rmse", "feature", "fid"):
            value, low, high = r.interval(metric)
            assert 0 <= low <= value <= high, (r.cell, metric)
    assert all(r.problem_error for r in found if r.method == "zoo")
    text = (folder / "benchmarks.md").read_text()
    assert "4 samples a cell" in text and (folder / "benchmarks-rmse.png").stat().st_size > 10_000
    before = {file: file.read_bytes() for file in folder.iterdir()}
    assert main([*QUICK, "--out", str(folder)]) == 0 and "0 cells measured" in capsys.readouterr().out
    assert {file: file.read_bytes() for file in folder.iterdir()} == before


def test_errors_are_those_to_the_converged_samples(folder, tmp_path, monkeypatch):
    """Of a cell measured again, by hand; a method named in `again` is measured twice."""
    Calls(monkeypatch)
    monkeypatch.setattr(targets, "CACHE", tmp_path / "cache")
    cell = cells.plan(["fashion-eps"], ["dpmpp-2m"], [4], ["trailing"], [1.0], samples=4)
    path = tmp_path / "again.jsonl"
    for count, again in ((1, ()), (0, ()), (1, ("trailing",))):
        assert measure.run(path, cell, images=4, fine=24, again=again, progress=False) == count
    (again,) = runner.read(path).cells
    first = next(r for r in runner.read(folder / "benchmarks.jsonl").cells if r.cell == again.cell)
    assert again == dataclasses.replace(first, seconds=again.seconds, compile_seconds=again.compile_seconds)
    target = targets.own("fashion-eps")
    judged = targets.Judged(target, 4, 24)
    samples = target.sample(baseline("trailing", target.noise, 4), "dpmpp-2m", judged.latents)
    assert again.rmse == pytest.approx(float((samples - judged.converged).square().mean().sqrt()), rel=1e-4)
    assert judged.error == pytest.approx(again.teacher, rel=1e-3)


def test_converged_samples_are_solved_once_for_each_setting(tmp_path, monkeypatch):
    calls = Calls(monkeypatch)
    monkeypatch.setattr(targets, "CACHE", tmp_path)
    first = targets.Judged(targets.own("fashion-v"), 3, 8)
    assert calls.images == 3 * 8 + 3 * 16
    again = targets.Judged(targets.own("fashion-v"), 3, 8)
    assert calls.images == 3 * 8 + 3 * 16 and torch.equal(first.converged, again.converged)
    for guidance, count, fine, seed in ((2.0, 3, 8, 0), (1.0, 2, 8, 0), (1.0, 3, 9, 0), (1.0, 3, 8, 1)):
        before = calls.images
        targets.Judged(targets.own("fashion-v", guidance), count, fine, seed)
        assert calls.images > before


# ---- tables


def test_the_best_is_bold_and_ties_are_italic():
    column = {r.method: r for r in (record("hso", 0.2), record("trailing", 0.2099), record("karras", 0.2101))}
    column |= {"direct": record("direct", 0.1), "ays": replace(record("ays"), rmse=None)}
    marked = {"hso": "**0.200**", "trailing": "*0.210*", "karras": "0.210", "direct": "0.100", "ays": "diverged"}
    assert tables.marked(column, "rmse", "direct") == marked
    numbers = {None: "-", 0.0123456: "0.0123", 12.3456: "12.3", 123.456: "123", 12345.6: "12346"}
    assert {x: tables.number(x) for x in numbers} == numbers


def test_outcomes_are_counted_against_the_best_other():
    found = [
        record("trailing", 0.2), record("karras", 0.1), record("hso", 0.05), record("ours", 0.105),
        record("trailing", 0.2, nfe=6), record("ours", 0.4, nfe=6), record("ours", 0.4, nfe=8),
        replace(record("karras", nfe=6), rmse=None),
        record("trailing", 0.2, nfe=10), record("ours", 0.1, nfe=10),
    ]  # fmt: skip
    pairs = tables.versus(found, "ours", ("trailing", "karras"))
    assert [(v.best.method, v.outcome) for v in pairs] == [("karras", 1), ("trailing", 2), ("trailing", 0)]
    assert tables.outcomes(pairs) == "1 / 1 / 1" and [v.ratio for v in pairs] == pytest.approx([1.05, 2.0, 0.5])
    (lost,) = tables.versus([found[0], replace(found[3], rmse=None)], "ours", ("trailing",))
    assert lost.ratio == np.inf and lost.outcome == 2
    assert tables.geometric_mean([1.0, 4.0]) == 2.0 and tables.geometric_mean([1.0, np.inf]) == np.inf
    assert tables.with_all([(("a", "b"), "c", 2.0)])[1] == (("all", "b"), "c", 2.0)


def test_diverged_samples_count_nowhere():
    found = [replace(record("hso"), rmse=None, fid=None), record("trailing", 0.2), record("nonstationary", 0.1)]
    assert networks.relative(found, [("hso", "trailing")]) == tables.NONE
    text = networks.own_coefficients([*found, record("trailing", nfe=6)])
    assert "| 1 | 4 | 0.50 | 0.50 | 1.00 | 1.00 |" in text and "| 1 | 6 |" not in text
