"""The one runner: records are written whole, read again in every form they ever had, and no cell is measured twice."""

import json
from dataclasses import replace

import numpy as np
import pytest

from benchmarks import runner
from benchmarks.runner import Cell, Inapplicable, Record
from hso_jax import Schedule
from hso_jax.schedule import Origin

SETUP = {"cpu": "one", "cores": "2"}
CELL = Cell("fashion-eps", 1.0, "ddim", 4, "trailing", 0, 16, "float32")
RECORD = Record(*CELL, lams=(-2.0, 0.0, 1.0, 2.0), counted=4, rmse=0.2, psi={"rho": 7.0})


def test_records_are_read_as_written(tmp_path):
    path, other = tmp_path / "some.jsonl", replace(RECORD, method="linspace")
    runner.append(path, RECORD, SETUP)
    with path.open("a") as file:
        file.write('{"model":"fashion-')
    assert runner.read(path).cells == [RECORD]
    runner.append(path, other, SETUP)
    assert runner.read(path) == runner.Records([RECORD, other], [SETUP])
    assert len(path.read_text().splitlines()) == 3  # the setup is there once
    changed = replace(RECORD, rmse=0.1)
    runner.append(path, changed, {**SETUP, "cpu": "another"})
    assert runner.read(path).cells == [other, changed] and len(runner.read(path).setups) == 2
    assert runner.read(tmp_path / "none.jsonl") == runner.Records([], [])
    with path.open("a") as file:
        file.write('{"model":"fashion-eps"}\n')
    with pytest.raises(ValueError, match=r"some\.jsonl, line 6 is not a record"):
        runner.read(path)


def test_an_old_line_of_tuning_is_read(tmp_path):
    line = {"network": "a", "nfe": 4, "method": "tune", "solver": "ddim", "evaluations": 99, "rmse": 0.3}
    (tmp_path / "old.jsonl").write_text(json.dumps(line) + "\n")
    (found,) = runner.read(tmp_path / "old.jsonl").cells
    assert (found.model, found.solver, found.chosen, found.calls, found.rmse) == ("a", runner.ANY, "ddim", 99, 0.3)
    assert found.cell == Cell("a", 1.0, runner.ANY, 4, "tune", 0, 64, "float32")


def test_a_cell_is_measured_once(tmp_path, capsys):
    path, asked = tmp_path / "new" / "some.jsonl", []
    cells = [CELL._replace(method=name) for name in ("trailing", "karras", "linspace")]

    def measure(cell):
        asked.append(cell.method)
        if cell.method == "karras":
            raise Inapplicable("not today")
        return Record(*cell)

    def run(cells, **more):
        return runner.run(path, cells, measure, lambda cell: SETUP, progress=False, **more)

    assert run(cells[:2]) == 1 == run(cells) and run(cells) == 0
    assert asked == ["trailing", "karras", "karras", "linspace", "karras"]
    assert run(cells, again=("linspace",)) == 1
    assert [r.method for r in runner.read(path).cells] == ["trailing", "linspace"]
    assert "karras: left out, not today" in capsys.readouterr().out


def test_records_are_amended_in_place(tmp_path):
    path = tmp_path / "some.jsonl"
    for method in ("trailing", "karras"):
        runner.append(path, replace(RECORD, method=method), SETUP)
    runner.amend(path, lambda r: replace(r, problem_error=0.5 if r.method == "karras" else None))
    found = runner.read(path)
    assert [(r.method, r.problem_error) for r in found.cells] == [("trailing", None), ("karras", 0.5)]
    assert found.setups == [SETUP] and len(path.read_text().splitlines()) == 3


@pytest.mark.parametrize("model", ["fashion-eps", "emoji-flow"])
def test_a_schedule_survives_its_record(model):
    noise = runner.noise_of(model)
    rows = [[0.0], [-0.4], [-0.5123456789], [0.0]]
    schedule = Schedule.from_t(
        noise, [1.0, 0.7, 0.31234567, float(noise.t_min)], origin=Origin(solver="nonstationary"), coefficients=rows
    )
    kept = replace(RECORD, model=model).with_schedule(schedule, 0.1234567)
    again = runner.schedule_of(kept)
    np.testing.assert_allclose(again.t, schedule.t, rtol=1e-6)
    np.testing.assert_allclose(again.coefficients, rows, rtol=1e-8)
    assert np.isneginf(again.lams[0]) == (model == "emoji-flow") and kept.problem_error == 0.12346
    with pytest.raises(ValueError, match="ends at 't_eps'"):
        RECORD.with_schedule(Schedule.from_t(noise, [0.9, 0.5, 0.1], layout="interval"))


def test_only_records_of_the_main_group_are_compared():
    found = [RECORD, replace(RECORD, method="karras"), replace(RECORD, samples=3)]
    assert runner.main_group(found) == found[:2] and runner.main_group([]) == []
