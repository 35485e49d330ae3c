"""The benchmark on the trained networks: order of work, cells, tables and grids. No network runs here."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from benchmarks.models.subjects import Samples, Teacher
from PIL import Image

from benchmarks import methods, plots, runner, tables
from benchmarks.__main__ import main
from benchmarks.networks import cells, grids, report
from benchmarks.runner import Record, nodes_of, noise_of
from hso_jax import baseline


def record(method="trailing", rmse=0.2, fid=3.0, *, model="fashion-eps", solver="ddim", nfe=4, guidance=1.0, **more):
    """With intervals of 5 %, and the nodes of trailing spacing."""
    values = {"rmse": rmse, "rmse_low": 0.95 * rmse, "rmse_high": 1.05 * rmse, "seconds": 0.5, "counted": nfe}
    if fid is not None:
        values |= {"fid": fid, "fid_low": 0.95 * fid, "fid_high": 1.05 * fid}
    values["lams"] = nodes_of(baseline("trailing", noise_of(model), nfe))
    return Record(model, guidance, solver, nfe, method, 0, 16, "float32", **{**values, **more})


def test_the_order_of_work_finishes_columns_and_leaves_costly_methods_to_the_end():
    plan = cells.plan()
    assert len(plan) == len(set(plan))
    first = [c for c in plan if c.guidance == 1.0 and c.method not in (*cells.COSTLY, *methods.ABLATIONS)]
    assert first == plan[: len(first)]
    assert [n for n, _ in itertools.groupby(c.nfe for c in first)] == list(cells.BUDGETS)
    columns = [key for key, _ in itertools.groupby((c.model, c.solver, c.nfe) for c in first)]
    assert len(columns) == len(set(columns)) == 3 * 3 * 6
    late = [c for c in plan if c.method in cells.COSTLY]
    assert late == plan[-len(late) :] and {c.method for c in late} == set(cells.COSTLY)
    guided = [c for c in plan if c.guidance != 1.0]
    assert {c.method for c in guided} == set(cells.GUIDED) and len(guided) == 2 * 3 * 3 * 6 * len(cells.GUIDED)


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


class FakeSubject:
    """Samples are the schedule's last sigma; the converged samples are zeros."""

    data = "fashion"

    def __init__(self, name, guidance, count, seed):
        self.name, self.guidance, self.count, self.noise = name, guidance, count, noise_of(name)

    def sample(self, schedule, solver, rows=None):
        bad = np.inf if schedule.method == "karras" else 1.0
        images = torch.linspace(0.5, 1.5, self.count)[:, None, None, None] * torch.ones(self.count, 1, 32, 32)
        return Samples((images * float(schedule.sigmas[-1]) * bad)[rows or slice(None)], schedule.nfe)

    def teacher(self):
        if self.guidance == 4.0:
            raise RuntimeError("it still moves")
        return Teacher(torch.zeros(self.count, 1, 32, 32), 1e-4)

    def features(self, images):
        return np.asarray(images.mean((2, 3)).expand(-1, 3) * torch.tensor([1.0, 2.0, 3.0]))


def test_a_cell_is_compared_with_converged_samples_and_says_what_it_cost(tmp_path, capsys):
    plan = cells.plan(["fashion-eps"], ["ddim"], [4], ["trailing", "karras"], [1.0, 4.0], samples=8)
    path = tmp_path / "some.jsonl"
    assert cells.run(plan, path, subject=FakeSubject, progress=False) == 2
    assert "guidance 4: left out, it still moves" in capsys.readouterr().out
    found = {r.method: r for r in runner.read(path).cells}
    one, diverged = found["trailing"], found["karras"]
    last = float(baseline("trailing", noise_of("fashion-eps"), 4).sigmas[-1])
    assert one.rmse == pytest.approx(last * np.sqrt(np.mean(np.linspace(0.5, 1.5, 8) ** 2)), rel=1e-4)
    assert one.rmse_low < one.rmse < one.rmse_high and one.fid > 0 and one.fid_data is None
    assert (one.calls, one.counted, one.teacher) == (0, 4, 1e-4) and one.seconds > 0
    assert diverged.rmse is None and "diverged" in report.errors([one, diverged], "rmse")


# ---- tables


def test_the_best_is_bold_what_lies_in_its_interval_italic_and_the_limit_is_not_ranked():
    column = {r.method: r for r in (record("hso", 0.2), record("trailing", 0.2099), record("karras", 0.2101))}
    column["direct"] = record("direct", 0.1)
    marked = {"hso": "**0.200**", "trailing": "*0.210*", "karras": "0.210", "direct": "0.100"}
    assert tables.marked(column, "rmse", "direct") == marked
    numbers = {None: "-", 0.0123456: "0.0123", 12.3456: "12.3", 123.456: "123", 12345.6: "12346"}
    assert {x: tables.number(x) for x in numbers} == numbers


def test_wins_ties_losses_and_ratios_are_counted_against_the_best_of_others():
    found = [
        record("trailing", 0.2), record("karras", 0.1), record("hso", 0.05), record("ours", 0.105),
        record("trailing", 0.2, nfe=6), record("ours", 0.4, nfe=6), record("ours", 0.4, nfe=8),
        record("trailing", 0.2, nfe=10), record("ours", 0.1, nfe=10),
    ]  # fmt: skip
    pairs = tables.versus(found, "ours", ("trailing", "karras"))
    assert [(v.best.method, v.outcome) for v in pairs] == [("karras", 1), ("trailing", 2), ("trailing", 0)]
    assert tables.outcomes(pairs) == [1, 1, 1] and [v.ratio for v in pairs] == pytest.approx([1.05, 2.0, 0.5])
    diverged = replace(found[3], rmse=None)
    (lost,) = tables.versus([found[0], diverged], "ours", ("trailing",))
    assert lost.ratio == np.inf and lost.outcome == 2
    assert tables.geometric_mean([1.0, 4.0]) == 2.0 and tables.geometric_mean([1.0, np.inf]) == np.inf


def test_the_summary_counts_the_solver_error_method_without_methods_that_look_at_the_network():
    found = [record("solver-error", 0.1), record("trailing", 0.2), record("gits", 0.05), record("nonstationary", 0.01)]
    found += [record("solver-error", 0.2, nfe=6), record("karras", 0.1, nfe=6), record("trailing", 0.4, nfe=6)]
    assert "| 1 | fashion-eps | 1 / 0 / 1 | 2 / 0 / 0 | - |" in report.tally(found)
    assert "| 1 | fashion-eps | `karras` 1 | none |" in report.lost(found)
    assert "| 1 | fashion-eps | none | none |" in report.lost(found[:4])


def test_ratios_are_geometric_means_over_networks_a_row_a_solver_and_n():
    found = [
        *(record(m, x) for m, x in (("hso", 0.2), ("dm-nonuni", 0.1))),
        *(record(m, x, model="fashion-v") for m, x in (("hso", 0.2), ("dm-nonuni", 0.4), ("trailing", 1.0))),
        *(replace(record(m, nfe=6), rmse=x) for m, x in (("hso", None), ("dm-nonuni", 0.1), ("trailing", 0.2))),
        *(record(m, 0.1, nfe=report.BETWEEN) for m in ("hso", "dm-nonuni")),
    ]
    pairs = [("hso", "dm-nonuni"), ("trailing", "hso")]
    assert "| DDIM | 4 | 1.00 | 5.00 |\n" in (text := report.relative(found, pairs, ("rmse",)))
    assert text.count("\n") == 3  # N = 6 diverged, and 7 has no row
    assert report.relative(found, pairs, ("rmse",), every_nfe=False).endswith("| DDIM | 1.00 | 5.00 |\n")
    guided = report.relative([replace(r, guidance=2.0) for r in found], pairs, ("rmse",))
    assert "| 2 | DDIM | 4 | 1.00 | 5.00 |" in guided and report.relative([], pairs) == tables.NONE


def test_coefficients_are_counted_against_the_best_known_solver():
    found = [record("trailing", 0.4), record("hso", 0.2, solver="unipc-3"), record("direct", 0.01)]
    found += [record("nonstationary", 0.1, nfe=n) for n in (4, 6)]
    text = report.own_coefficients(found)
    assert "| 1 | 4 | 0.50 | 0.50 | 1.00 | 1.00 |" in text and "| 1 | 6 |" not in text and "| 1 | all | 0.50" in text
    assert "| 1 | fashion-eps | `leading` | 0.25 |" in report.against_default([*found, record("leading", 0.4)])


def test_grids_show_each_schedule_on_the_same_noise(tmp_path):
    found = [record(m, solver=grids.SOLVER, nfe=n) for n in (4, 8) for m in grids.ROWS]
    file, other = grids.write(found, tmp_path, FakeSubject)
    assert file.name == "grid-fashion-eps-4.png" and grids.sheets(found[:2]) == {}
    assert other.name == "grid-fashion-eps-8.png" and other.read_bytes() != file.read_bytes()
    with Image.open(file) as picture:
        assert picture.width > 8 * 224 and picture.height > 4 * 224
    file.unlink()
    assert grids.write(found, tmp_path, FakeSubject, anew=False) == [file]
    pixels = [np.asarray(p) for p in plots.pictures(torch.tensor([-2.0, 0.0, 1.0])[:, None, None, None])]
    assert [int(p[0, 0]) for p in pixels] == [0, 128, 255] and plots.pictures(torch.zeros(1, 3, 2, 2))[0].mode == "RGB"


def test_no_line_of_the_plot_leaves_its_panel_and_the_legend_covers_none():
    names = [*list(plots.LINES)[:3], "solver-error"]
    figure = plots.error_figure([record(m, 1.0 / n, nfe=n) for m in names for n in (4, 8)], "rmse")
    figure.canvas.draw()
    legend = figure.legends[0].get_window_extent()
    for axis in figure.axes:
        assert not axis.get_window_extent().overlaps(legend)
        low, high = axis.get_ylim()
        assert all(low <= line.get_ydata().min() and line.get_ydata().max() <= high for line in axis.lines)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == names[::-1]
