"""Records and what is made of them: order of work, tables, pictures and the blocks of a README. No network runs."""

import csv
import functools
import io
import itertools
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.__main__ import main
from benchmarks.methods.registry import Inapplicable, Prepared
from benchmarks.models.subjects import Samples, Teacher
from benchmarks.networks import cells, charts, grids, records, report, studies, tables
from benchmarks.networks.records import Record
from hso_jax import Schedule, baseline

SETUP = {"cpu": "one", "cores": "2", "threads": "1", "python": "3"}


def record(method="trailing", rmse=0.2, fid=3.0, *, model="fashion-eps", solver="ddim", nfe=4, guidance=1.0, **more):
    """With intervals of 5 %, and the nodes of trailing spacing."""
    values = {"rmse": rmse, "rmse_low": 0.95 * rmse, "rmse_high": 1.05 * rmse}
    if fid is not None:
        values |= {"fid": fid, "fid_low": 0.95 * fid, "fid_high": 1.05 * fid}
    values |= {"seed": 0, "samples": 16, "dtype": "float32", "lams": trailing(model, nfe)}
    values |= {"seconds": 0.5, "calls": 0, "counted": nfe, "teacher": 0.001}
    return Record(
        **{**values, "model": model, "guidance": guidance, "solver": solver, "nfe": nfe, "method": method, **more}
    )


@functools.cache
def trailing(model, nfe):
    return records.nodes_of(baseline("trailing", records.noise_of(model), nfe))


def many() -> list[Record]:
    """All kinds of cells; the errors fall with N, and differ by method."""
    level = {"solver-error": 1.0, "hso": 1.2, "hso-dm-nonuni": 1.32, "mep-only": 1.24, "trailing": 1.5, "karras": 1.6}
    level |= {"dm-nonuni": 1.8, "ays": 1.4, "gits": 1.1, "direct": 0.9, "uniform-lam": 1.8, "hso-other": 1.4}
    level |= {"solver-error-other": 1.3, "hso-penalty": 1.2, "hso-no-spacing": 1.2}
    found = []
    for model, solver, nfe in itertools.product(("fashion-eps", "emoji-flow"), tables.SOLVERS, (4, 6, 8)):
        for method, factor in level.items():
            if solver != "unipc-2" and not (method == "ays" and model == "emoji-flow"):
                psi = {"rho": 7.0, "t_eps": 0.03, "t_max": 0.96} if method == "hso" else None
                found.append(
                    record(method, factor / nfe, 9 * factor / nfe, model=model, solver=solver, nfe=nfe, psi=psi)
                )
            for x, (rmse, fid) in {0.25: (1.1, 0.9), 0.5: (1.2, 0.8), 1.0: (1.4, 0.7)}.items():
                if solver == "ddim":
                    place = {"model": model, "solver": solver, "nfe": nfe}
                    found.append(record(f"detail-{x:g}", rmse / nfe, 9 * fid / nfe, **place))
    for method in ("solver-error", "hso", "trailing"):
        found.append(record(method, level[method] / 6, 1.0, guidance=4.0, nfe=6))
    return found


def test_records_are_read_as_they_were_written_and_a_cut_line_is_lost_alone(tmp_path):
    path = tmp_path / "some.jsonl"
    first = record(psi={"rho": 7.0}, fid=None)
    second = record("linspace", model="emoji-flow")
    records.append(path, first, SETUP)
    with path.open("a") as file:
        file.write('{"model":"fashion-')
    assert records.read(path).cells == [first]
    records.append(path, second, SETUP)
    assert records.read(path) == records.Records([first, second], [SETUP])
    assert len(path.read_text().splitlines()) == 3  # the setup is there once
    changed = replace(first, rmse=0.1)
    records.append(path, changed, {**SETUP, "cpu": "another"})
    assert records.read(path).cells == [second, changed] and len(records.read(path).setups) == 2
    assert records.read(tmp_path / "none.jsonl") == records.Records([], [])


def test_a_line_that_is_no_record_is_named(tmp_path):
    path = tmp_path / "some.jsonl"
    records.append(path, record(), SETUP)
    with path.open("a") as file:
        file.write('{"model":"fashion-eps"}\n')
    with pytest.raises(ValueError, match=r"some\.jsonl, line 3 is not a record"):
        records.read(path)


@pytest.mark.parametrize("model", ["fashion-eps", "emoji-flow"])
def test_a_schedule_survives_its_record(model):
    noise = records.noise_of(model)
    schedule = Schedule.from_t(noise, [1.0, 0.7, 0.31234567, float(noise.t_min)])
    again = records.schedule_of(record(model=model, lams=records.nodes_of(schedule)))
    np.testing.assert_allclose(again.t, schedule.t, rtol=1e-6)
    assert np.isneginf(again.lams[0]) == (model == "emoji-flow")
    with pytest.raises(ValueError, match="ends at 't_eps'"):
        records.nodes_of(Schedule.from_t(noise, [0.9, 0.5, 0.1], layout="interval"))


def test_the_order_of_work_finishes_columns_and_leaves_costly_methods_to_the_end():
    plan = cells.plan()
    assert len(plan) == len(set(plan))
    main = [c for c in plan if c.guidance == 1.0 and c.method not in cells.COSTLY and c.method not in cells.ABLATIONS]
    assert main == plan[: len(main)] and [n for n, _ in itertools.groupby(c.nfe for c in main)] == list(cells.BUDGETS)
    columns = [key for key, _ in itertools.groupby((c.model, c.solver, c.nfe) for c in main)]
    assert len(columns) == len(set(columns)) == 3 * 3 * 6
    late = [c for c in plan if c.method in cells.COSTLY]
    assert late == plan[-len(late) :] and {c.method for c in late} == set(cells.COSTLY)
    guided = [c for c in plan if c.guidance != 1.0]
    assert {c.method for c in guided} == set(cells.GUIDED) and {c.nfe for c in guided} == {4, 5, 6, 7, 8, 10}
    assert len(guided) == 2 * 3 * 3 * 6 * len(cells.GUIDED)
    studied = [c for c in plan if c.method in cells.ABLATIONS and c.guidance == 1.0]
    assert len(studied) == 3 * 3 * 6 * len(cells.ABLATIONS)


def test_a_plan_of_nothing_or_of_unknown_things_is_refused():
    for options, message in (
        ({"methods": ["ddim"]}, "method 'ddim' is not one of"),
        ({"models": ["sd"]}, "model 'sd' is not one of"),
        ({"solvers": ["euler"]}, "solver 'euler' is not one of"),
        ({"guidance": [2.0], "methods": ["gits"]}, "nothing to measure"),
        ({"samples": 1}, "samples is 1"),
    ):
        with pytest.raises(ValueError, match=message):
            cells.plan(**options)


class FakeSubject:
    """Samples are zeros plus the schedule's last sigma; the converged samples are zeros. Counts what is asked of it."""

    asked = 0
    data = "fashion"

    def __init__(self, name, guidance, count, seed, dtype):
        self.name, self.guidance, self.count = name, guidance, count
        self.noise = records.noise_of(name)

    def sample(self, schedule, solver, rows=None):
        FakeSubject.asked += 1
        bad = np.inf if schedule.method == "linspace" else 1.0
        images = torch.linspace(0.5, 1.5, self.count)[:, None, None, None] * torch.ones(self.count, 1, 32, 32)
        return Samples((images * float(schedule.sigmas[-1]) * bad)[rows or slice(None)], schedule.nfe)

    def teacher(self):
        if self.guidance == 4.0:
            raise RuntimeError("it still moves")
        return Teacher(torch.zeros(self.count, 1, 32, 32), 1e-4)

    def features(self, images):
        return np.asarray(images.mean((2, 3)).expand(-1, 3) * torch.tensor([1.0, 2.0, 3.0]))


def rules(method, subject, solver, nfe, *, seed, real):
    if method == "karras":
        raise Inapplicable("not today")
    return Prepared(baseline(method, subject.noise, nfe), 0.25, 7)


def test_a_run_measures_each_cell_once_and_goes_on_where_it_stopped(tmp_path, capsys):
    path = tmp_path / "some.jsonl"
    plan = cells.plan(["fashion-eps"], ["ddim"], [4], ["trailing", "karras", "linspace"], [1.0], samples=8)
    options = {"subject": FakeSubject, "prepare": rules, "progress": False}
    FakeSubject.asked = 0
    assert cells.run(plan[:2], path, **options) + cells.run(plan, path, **options) == 2
    assert FakeSubject.asked == 2 and cells.run(plan, path, **options) == 0 == FakeSubject.asked - 2
    assert "karras: left out, not today" in capsys.readouterr().out
    found = {r.method: r for r in records.read(path).cells}
    one, diverged = found["trailing"], found["linspace"]
    last = float(baseline("trailing", records.noise_of("fashion-eps"), 4).sigmas[-1])
    assert one.rmse == pytest.approx(last * np.sqrt(np.mean(np.linspace(0.5, 1.5, 8) ** 2)), rel=1e-4)
    assert one.rmse_low < one.rmse < one.rmse_high and one.fid > 0 and one.fid_data is None
    assert (one.seconds, one.calls, one.counted, one.teacher) == (0.25, 7, 4, 1e-4)
    assert diverged.rmse is None and "diverged" in tables.errors([one, diverged], "rmse")


def test_a_subject_without_converged_samples_is_left_out_and_the_others_go_on(tmp_path, capsys):
    plan = cells.plan(["fashion-eps"], ["ddim"], [6], ["trailing"], [4.0, 2.0], samples=8)
    assert cells.run(plan, tmp_path / "a", subject=FakeSubject, prepare=rules, progress=False) == 1
    assert "guidance 4: left out, it still moves" in capsys.readouterr().out


def test_the_best_is_bold_what_lies_in_its_interval_italic_and_the_limit_is_not_ranked():
    column = {r.method: r for r in (record("hso", 0.2), record("trailing", 0.2099), record("karras", 0.2101))}
    column["direct"] = record("direct", 0.1)
    assert tables.marked(column, "rmse") == {
        "hso": "**0.200**", "trailing": "*0.210*", "karras": "0.210", "direct": "0.100",
    }  # fmt: skip
    assert [tables.number(x) for x in (None, 0.0123456, 12.3456, 123.456, 12345.6)] == [
        "-", "0.0123", "12.3", "123", "12346",
    ]  # fmt: skip


def test_what_the_solver_error_method_loses_is_counted_and_listed():
    wins = [record("solver-error", 0.1, solver="ddim"), record("trailing", 0.2, solver="ddim"), record("gits", 0.05)]
    ties = [record("solver-error", 0.1, solver="unipc-3"), record("hso", 0.099, solver="unipc-3")]
    loses = [record("solver-error", 0.2, nfe=6), record("hso", 0.15, nfe=6), record("karras", 0.1, nfe=6)]
    alone = [record("solver-error", 0.1, nfe=8)]
    lost, looked = tables.losses([*wins, *ties, *loses, *alone], "rmse")
    assert looked == 3 and [(x.best.method, x.beyond) for x in lost] == [("karras", True), ("hso", False)]
    guided = [record("solver-error", 0.1, guidance=4.0), record("trailing", 0.2, guidance=4.0)]
    other = [record("solver-error", 0.1, model="fashion-v"), record("trailing", 0.2, model="fashion-v")]
    text = tables.tally([*wins, *ties, *loses, *guided, *other])
    assert "| guidance | model | RMSE | FID | FID to held-out data |" in text
    for row in (
        "1 | fashion-eps | 1 / 1 / 1",
        "1 | fashion-v | 1 / 0 / 0",
        "1 | all | 2 / 1 / 1",
        "4 | all | 1 / 0 / 0",
    ):
        assert f"| {row} |" in text
    assert "| 4 | fashion-v |" not in text
    assert tables.lost_cells(wins, "rmse") == "None.\n"
    assert "| fashion-eps | DDIM | 6 | 1 | `karras` | 0.100 | 0.105 | 0.200 | yes |" in tables.lost_cells(loses, "rmse")


def test_tables_have_a_cell_for_every_head(tmp_path):
    found = many()
    text = report.report(records.Records(found, [SETUP]), tmp_path)
    for table in re.findall(r"(?:^\|.*\n)+", text, re.M):
        widths = {line.replace("\\|", "").count("|") for line in table.splitlines()}
        assert len(widths) == 1, table
    assert "None" not in text.replace("None.", "") and "nan" not in text


def test_coefficients_of_their_own_stand_beside_the_best_known_solver_and_are_no_rival():
    found = report.without_ablations(many())
    assert tables.own_coefficients(found) == "Not measured.\n"
    before = tables.tally(found)
    own = [record("nonstationary", 0.1, 0.9, solver=solver, nfe=4) for solver in ("ddim", "unipc-3")]
    assert tables.tally([*found, *own]) == before
    row, mean = tables.own_coefficients([*found, *own]).splitlines()[2:]
    assert "| 1 | fashion-eps | 4 | DDIM, `solver-error` | 0.250 | 0.100 | 0.40 |" in row and row.endswith("| 0.40 |")
    assert "geometric mean" in mean and mean.count("0.40") == 2


def test_what_is_recommended_stands_beside_the_default():
    assert tables.against_default([record()]) == "Not measured.\n"
    errors = {4: {"leading": 0.4, "nonstationary": 0.1}, 6: {"leading": 0.1, "nonstationary": 0.4}}
    found = [record(m, x, 2 * x, nfe=n) for n, pair in errors.items() for m, x in pair.items()]
    guided = [record(m, x, None, guidance=2.0) for m, x in (("trailing", 0.2), ("nonstationary", 0.1))]
    rmse, fid, *_, last = tables.against_default(found).splitlines()[2:]
    assert rmse == "| 1 | fashion-eps | `leading` | RMSE | 1.00 | 4.00 (N = 6) |" and "| FID | 1.00 |" in fid
    assert last == "At least as good in 1 of 2 cells by RMSE, 1 of 2 cells by FID."
    assert "| 2 | fashion-eps | `trailing` | RMSE | 0.50 | 0.50 (N = 4) |" in tables.against_default(guided)


def test_every_study_has_its_rows():
    found = many()
    assert studies.against_dm_nonuni(found).count("\n") == 2 + 2 * 3 * 3
    assert "0.450 / 0.300 / 0.250" in studies.against_dm_nonuni(found)
    assert "| 7.00 | 0.0300 | 0.960 |" in studies.psi(found)
    assert "0.300 / 0.350" in studies.adaptivity(found)
    robustness = studies.robustness(found)
    assert "| none | 999 749 499 249 | 0.250 | 2.70 / 2.70 / 2.70 | 0.300 / 0.300 / 0.300 |" in robustness
    assert robustness.count("\n") == 2 + 2 * 3 * len(studies.SPACING)  # solvers side by side
    own = [replace(r, lams=[0.9 * x for x in r.lams]) if r.solver == "unipc-3" else r for r in found]
    assert studies.robustness(own).count("\n") == 2 + 2 * 2 * 3 * len(studies.SPACING)  # another schedule, another row
    assert "| 4.05 | 2.97 | 2.79 | 2.70 | 0.450 | 0.330 | 0.310 | 0.300 |" in studies.ablation(found)
    assert "| 0.225 | 0.250 | 0.300 | 11 % | 33 % |" in tables.limit(found)
    assert studies.psi([]) == studies.NONE and studies.ablation(found[:3]) == studies.NONE


def test_the_report_is_written_whole_and_the_same_again(tmp_path):
    found = records.Records([*many(), record(samples=3)], [SETUP])
    files = report.write(found, tmp_path)
    assert [f.name for f in files] == [
        "benchmarks.md",
        "benchmarks.csv",
        "benchmarks-rmse.png",
        "benchmarks-fid.png",
        "benchmarks-detail.png",
    ]
    before = {f: f.read_bytes() for f in files}
    report.write(found, tmp_path)
    assert {f: f.read_bytes() for f in files} == before
    text = files[0].read_text()
    for link in re.findall(r"!\[.*?\]\((.*?)\)", text):
        assert (tmp_path / link).stat().st_size > 10_000
    (tmp_path / "grid-emoji-flow-6.png").touch()  # a grid is shown once it has been drawn
    assert "![emoji-flow, N = 6](grid-emoji-flow-6.png)" in report.report(found, tmp_path)
    assert "- 1 cells with another seed, count or dtype" in text and "16 samples a cell" in text
    rows = list(csv.DictReader(io.StringIO(files[1].read_text())))
    assert len(rows) == len(found.cells) and list(rows[0]) == list(records.FIELDS)
    assert [float(x) for x in rows[0]["lams"].split()] == list(found.cells[0].lams)
    with pytest.raises(ValueError, match="no records to report"):
        report.report(records.Records([], []), tmp_path)


def test_no_line_of_the_plot_leaves_its_panel_and_the_legend_covers_none():
    figure = charts.error_figure(many(), "rmse")
    figure.canvas.draw()
    legend = figure.legends[0].get_window_extent()
    assert len(figure.axes) == 6
    for axis in figure.axes:
        assert not axis.get_window_extent().overlaps(legend)
        low, high = axis.get_ylim()
        assert all(low <= line.get_ydata().min() and line.get_ydata().max() <= high for line in axis.lines)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["direct", "solver-error", "hso", "gits", "uniform-lam", "ays", "karras", "trailing"]


def test_grids_show_each_schedule_on_the_same_noise(tmp_path):
    found = [record(m, model="fashion-eps", solver=grids.SOLVER, nfe=n) for n in (4, 8) for m in grids.ROWS]
    found += [record(grids.LAST, model="fashion-eps", solver=grids.SOLVER, nfe=4)]
    file, other = grids.write(found, tmp_path, FakeSubject)
    assert file.name == "grid-fashion-eps-4.png" and grids.sheets(found[:2]) == []
    assert other.name == "grid-fashion-eps-8.png" and other.read_bytes() != file.read_bytes()
    with Image.open(file) as picture:
        assert picture.width > 8 * 224 and picture.height > 4 * 224
    assert grids.write(found, tmp_path, FakeSubject, anew=False) == []
    file.unlink()
    assert grids.write(found, tmp_path, FakeSubject, anew=False) == [file]
    pixels = [np.asarray(p) for p in grids.pictures(torch.tensor([-2.0, 0.0, 1.0])[:, None, None, None])]
    assert [int(p[0, 0]) for p in pixels] == [0, 128, 255]
    assert grids.pictures(torch.zeros(1, 3, 2, 2))[0].mode == "RGB"


def test_the_command_reports_from_records_alone(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cells, "run", lambda *args, **options: pytest.fail("a cell was measured"))
    for one in many()[:40]:
        records.append(tmp_path / "some.jsonl", one, SETUP)
    new = tmp_path / "a" / "new" / "folder"
    command = ["--report-only", "--records", str(tmp_path / "some.jsonl"), "--out", str(new)]
    assert main(command) == 0 and (new / "benchmarks.md").exists()
    assert main(["--report-only", "--records", str(tmp_path / "none"), "--out", str(tmp_path / "other")]) == 2
    assert not (tmp_path / "other").exists()
    assert main(["--methods", "cats"]) == 2
    assert "method 'cats' is not one of" in capsys.readouterr().err


def test_held_out_data_is_checked_before_any_work(tmp_path):
    cell = SimpleNamespace()
    with pytest.raises(ValueError, match="does not exist"):
        cells.run([cell], tmp_path / "a", data={"fashion": tmp_path / "none.npz"}, subject=pytest.fail)


def test_what_detail_trades_is_relative_to_none():
    """Means over solvers and N that have every exponent; the picture shows what the table says."""
    ratios = studies.detail_ratios(many())
    assert set(ratios) == set(itertools.product(("fashion-eps", "emoji-flow"), ("rmse", "fid")))
    for (_, metric), found in ratios.items():
        assert found == pytest.approx([1.0, *({"rmse": (1.1, 1.2, 1.4), "fid": (0.9, 0.8, 0.7)}[metric])])
    assert "| fashion-eps | RMSE | 1.000 | 1.100 | 1.200 | 1.400 |" in studies.detail(many())
    (panel,) = charts.detail_figure(ratios).axes
    lines = [list(line.get_ydata()) for line in panel.get_lines()[:4]]
    assert lines == [list(x) for x in ratios.values()]
    assert studies.detail([r for r in many() if r.method != "detail-1"]) == studies.NONE
