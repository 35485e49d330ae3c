"""Networks from outside: a tiny folder of them, whose data are Gaussian, so that every sample is known exactly."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.heldout import measure, outside, picture, report
from benchmarks.heldout.__main__ import main
from benchmarks.methods.flow_time import flow_time
from benchmarks.networks import records
from benchmarks.networks.records import Record
from hso_jax import Origin, Schedule, baseline, noise, preset

NETWORKS = """
import numpy as np
import torch
NAMES = ["gauss-eps", "gauss-flow"]
SCALES = torch.tensor([2.0, 0.5])

class Net:
    def __init__(self, name):
        self.shape, self.kind, self.data_std = (2,), name.split("-")[1], 1.0
        self.alphas_cumprod = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)) if self.kind == "eps" else None
        self.sigma_min, self.sigma_max = 0.01, 158.0 if self.kind == "eps" else 1e3

    def denoise(self, x, sigma):
        return x * (SCALES**2 / (SCALES**2 + sigma**2))

def load(name):
    return Net(name)
"""


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "nets"
    place.mkdir()
    (place / "networks.py").write_text(NETWORKS)
    row = "| gauss-eps | nobody, commit 123 | points |"
    (place / "README.md").write_text(f"# Nets\n| name | from | data |\n|---|---|---|\n{row}\n")
    return place


def command(folder, path, *more):
    few = ["--nfe", "4,6", "--solvers", "ddim,unipc-3", "--methods", "trailing,karras,flow-2", "--count", "2"]
    return ["--networks", str(folder), "--records", str(path), *few, *more]


@pytest.mark.parametrize("name", ["gauss-eps", "gauss-flow"])
def test_converged_samples_are_the_exact_ones_and_calls_are_counted(folder, name):
    one = outside.Outside(outside.find(folder), name, 4)
    assert one.start.shape == (4 * outside.MANY, 2)
    # Of Gaussian data the flow keeps x/sqrt(alpha^2 v + sigma^2); at the noise end x is standard normal.
    v = np.array([2.0, 0.5]) ** 2
    sigma = math.exp(-float(one.noise.lam(float(one.noise.t_max)))) if name == "gauss-eps" else 1e3
    exact = one.start.numpy() * np.sqrt(v * (1 + sigma**2) / (v + sigma**2))
    found = one.converged()
    assert 0 < found.error < 2e-3 and np.sqrt(np.mean((found.samples.numpy() - exact) ** 2)) < 2e-3
    for solver in ("ddim", "unipc-3"):
        samples, calls = one.sample(baseline("trailing", one.noise, 5), solver, 3)
        assert calls == 5 and samples.shape == (3, 2) and bool(samples.isfinite().all())


def test_the_command_measures_resumes_and_writes_the_page(folder, tmp_path, capsys, monkeypatch):
    path = tmp_path / "new" / "heldout.jsonl"
    assert main(command(folder, path, "--nfe", "4")) == 0
    assert "12 cells measured" in capsys.readouterr().out
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:-1]) + '\n{"model":"gauss-')  # interrupted while it wrote the last one
    assert main(command(folder, path)) == 0
    assert "13 cells measured" in capsys.readouterr().out
    found = records.read(path)
    assert len(found.cells) == 24 == len({r.cell for r in found.cells})
    assert all(r.counted == r.nfe and r.rmse_low <= r.rmse <= r.rmse_high and r.samples == 32 for r in found.cells)
    origins = {s["network"]: s for s in found.setups}
    assert "commit 123" in origins["gauss-eps"]["source"] and origins["gauss-flow"]["source"] == "not stated"
    monkeypatch.setattr(outside.Outside, "sample", lambda *a: pytest.fail("a network ran"))
    before = path.read_bytes()
    assert main(command(folder, path)) == 0 and path.read_bytes() == before
    page = path.with_suffix(".md").read_text()
    assert "nobody, commit 123 points" in page and str(tmp_path) not in page
    assert main(["--records", str(path)]) == 0 and path.with_suffix(".md").read_text() == page


def test_a_solver_of_its_own_is_measured_beside_all_others(folder, tmp_path, monkeypatch):
    """Once a network and N, by the schedule's own coefficients, against the best of all known solvers."""
    rows = [[0.0], [-0.4], [-0.5], [0.0]]
    own = Origin(method="solver-error", solver="nonstationary")

    def found(noise, nfes, **_):
        return [Schedule.from_t(noise, [1.0, 0.7, 0.4, 0.1], origin=own, coefficients=rows) for _ in nfes]

    monkeypatch.setattr(measure, "search", found)
    path = tmp_path / "heldout.jsonl"
    assert main(command(folder, path, "--nfe", "4", "--methods", "trailing,nonstationary")) == 0
    cells = records.read(path).cells
    assert [(r.model, r.solver) for r in cells if r.method == "nonstationary"] == [
        ("gauss-eps", "nonstationary"),
        ("gauss-flow", "nonstationary"),
    ]
    page = path.with_suffix(".md").read_text()
    assert "## Coefficients of its own" in page and "| all | 4 |" in page
    table = page.split("## Against what pipelines do")[1].split("## Every cell")[0]
    told = [
        [text.strip() for text in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("| gauss")
    ]
    of = {(r.model, r.method, r.solver): r.rmse for r in cells}
    assert [name for name, *_ in told] == ["gauss-eps", "gauss-flow"]
    for name, _, plain, mine, ratio in told:
        wanted = of[name, "nonstationary", "nonstationary"] / of[name, "trailing", "ddim"]
        assert ratio == f"{wanted:.2f}" and float(mine) / float(plain) == pytest.approx(wanted, rel=0.01)
    one = outside.Outside(outside.find(folder), "gauss-flow", 2)
    schedule = found(one.noise, [4])[0]
    free, calls = one.sample(schedule, "nonstationary")
    ddim, _ = one.sample(Schedule.from_t(one.noise, schedule.t), "ddim")
    assert calls == 4 and bool(free.isfinite().all()) and not torch.equal(free, ddim)


def test_a_profile_is_measured_on_other_noise_and_given_to_both_searches(folder, tmp_path, monkeypatch):
    """Of Gaussian data with deviations 2 and .5; the page has a section, and a picture of what was predicted."""
    rows = [[0.0], [-0.4], [-0.5], [0.0]]
    asked = []

    def found(noise, nfes, *, method, seed):
        asked.append((method.solver, method.profile))
        free = method.solver == "nonstationary"
        own = Origin(method="solver-error", solver=method.solver)
        schedule = Schedule.from_t(noise, [1.0, 0.7, 0.4, 0.1], origin=own, coefficients=rows if free else None)
        return [schedule.with_scores(error=0.1, others={"unipc-3": 0.25, "ddim": 0.5}) for _ in nfes]

    monkeypatch.setattr(measure, "search", found)
    path = tmp_path / "heldout.jsonl"
    methods = "trailing,solver-error,nonstationary,solver-error-profile,nonstationary-profile"
    assert main(command(folder, path, "--nfe", "4", "--solvers", "ddim", "--methods", methods)) == 0
    for one in (asked[:4], asked[4:]):
        assert [(solver, known is None) for solver, known in one] == [
            ("ddim", True), ("nonstationary", True), ("ddim", False), ("nonstationary", False),
        ]  # fmt: skip
        profile = one[2][1]
        assert profile is one[3][1] and profile.dimension == 2
        assert profile.deviations == pytest.approx((2.0, 0.5), rel=0.2)
    assert asked[2][1].prediction == "epsilon" and asked[6][1].prediction == "flow_prediction"
    cells = records.read(path).cells
    assert {r.predicted for r in cells if "nonstationary" in r.method} == {0.4}
    assert {r.predicted for r in cells if "nonstationary" not in r.method} == {None}
    page = path.with_suffix(".md").read_text()
    section = page.split("## With a profile")[1].split("## Predicted and measured")[0]
    assert "`solver-error-profile` mean ratio" in section and "| all | 4 |" in section
    assert "without a profile 0.40 predicted" in page and "with a profile 0.40 predicted" in page
    assert (tmp_path / "heldout-predicted.png").read_bytes().startswith(b"\x89PNG")
    gains = picture.gains(cells)
    assert [(g.network, g.nfe, g.with_profile, g.predicted) for g in gains] == [
        (name, 4, own, 0.4) for name in ("gauss-eps", "gauss-flow") for own in (False, True)
    ]
    of = {(r.model, r.method): r.rmse for r in cells}
    assert all(
        g.measured == pytest.approx(of[g.network, "nonstationary" + end] / of[g.network, "solver-error" + end])
        for g in gains
        for end in ["-profile" if g.with_profile else ""]
    )


def test_records_of_other_files_are_not_mixed_in(folder, tmp_path, capsys):
    path = tmp_path / "heldout.jsonl"
    few = command(folder, path, "--methods", "trailing", "--nfe", "4")
    assert main(few) == 0
    (folder / "networks.py").write_text(NETWORKS.replace("2.0, 0.5", "2.0, 0.4"))
    assert main(few) == 2 and "records of gauss-eps from other files" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("NAMES =", "OTHERS ="), "has no NAMES"),
        (("self.data_std", "self.std"), "gauss-eps has no data_std"),
        (('if self.kind == "eps" else None', 'if self.kind == "vp" else None'), "is of kind 'eps'"),
        (("self.sigma_max = 0.01, 158.0", "self.sigma_max = 0.01, float('inf')"), "sigma_max inf"),
        (("return x *", "return x[:, :1] *"), None),
    ],
)
def test_networks_without_the_interface_are_refused(folder, tmp_path, capsys, change, message):
    assert change[0] in NETWORKS
    (folder / "networks.py").write_text(NETWORKS.replace(*change))
    if message is None:  # a shape that broadcasts back is no error; one that does not is
        (folder / "networks.py").write_text(NETWORKS.replace("return x *", "return x[:1] *"))
        message = "gauss-eps: denoise made (1, 2) of (32, 2)"
    assert main(command(folder, tmp_path / "heldout.jsonl")) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--solvers", "euler"], "solver 'euler' is not one of"),
        (["--methods", "cats"], "method 'cats' is not one of"),
        (["--count", "1"], "count is 1"),
    ],
)
def test_bad_options_are_named_before_any_work(folder, tmp_path, capsys, more, message):
    assert main(command(folder, tmp_path / "heldout.jsonl", *more)) == 2
    assert message in capsys.readouterr().err
    assert main(["--networks", str(tmp_path), "--records", str(tmp_path / "a.jsonl")]) == 2
    assert "has no networks.py" in capsys.readouterr().err
    assert main(["--records", str(tmp_path / "none.jsonl")]) == 2
    assert "no records to report" in capsys.readouterr().err


def record(method, rmse, **more):
    own = {"model": "a", "guidance": 1.0, "solver": "ddim", "nfe": 4, "method": method, "seed": 0, "samples": 8}
    own |= {"dtype": "float32", "lams": (-1.0, 0.0, 1.0, 2.0), "seconds": 0.1, "calls": 0, "counted": 4}
    high = None if rmse is None else 1.1 * rmse
    return Record(**{**own, "teacher": 1e-4, "rmse": rmse, "rmse_low": rmse, "rmse_high": high, **more})


def test_wins_ties_losses_and_ratios_are_counted_against_the_best_of_all_rules():
    found = [
        record("trailing", 0.2), record("flow-3", 0.1), record("hso", 0.05), record("solver-error", 0.105),
        record("trailing", 0.2, nfe=6), record("hso", None, nfe=6), record("solver-error", 0.4, nfe=6),
    ]  # fmt: skip
    outcomes = [(v.best.method, v.outcome) for v in report.versus(found, "solver-error")]
    assert outcomes == [("flow-3", 1), ("trailing", 2)]
    text = report.summary(found)
    assert "| a | DDIM | 0 / 1 / 1 | 1.45 | 2.00 | 1 / 0 / 1 | inf | inf |" in text
    assert text.count("\n") == 2 + 3
    other = [replace(r, model="b", solver="unipc-3") for r in found]
    assert "| all | all | 0 / 2 / 2 | 1.45 | 2.00 | 2 / 0 / 2 | inf | inf |" in report.summary([*found, *other])
    assert "| a | DDIM | 4 | `flow-3` | 0.100 | 0.110 | 0.0500 | 0.50 | 0.105 | 1.05 |" in report.cells(found)


@pytest.mark.parametrize("name", ["sd15", "sd3-medium", "edm-cifar10"])
def test_flow_time_starts_at_the_noise_end_of_any_model(name):
    model = preset(name)
    schedule = flow_time("flow-2", model, 6)
    s = 1 / (1 + np.exp(schedule.lams))
    u = 1 - np.arange(6) / 6
    np.testing.assert_allclose(s, s[0] * 2 * u / (1 + u), rtol=1e-5)
    assert schedule.lams[0] == (-np.inf if model.kind == "flow" else pytest.approx(float(model.lam(1.0))))


def test_every_method_has_schedules_for_a_model_of_each_kind():
    for model in (noise.edm(), noise.flow(), preset("sd15")):
        for rule in measure.RULES:
            if rule in measure.SHIFTS or not measure.inapplicable(rule, model):
                assert measure.schedules(rule, "ddim", [4], model, 0)[0].nfe == 4


def test_lines_of_the_records_are_whole_json(folder, tmp_path):
    path = tmp_path / "heldout.jsonl"
    assert main(command(folder, path, "--nfe", "4", "--methods", "trailing", "--solvers", "ddim")) == 0
    assert [set(json.loads(line)) >= {"model"} for line in path.read_text().splitlines()] == [False, True] * 2


def test_a_profile_s_noise_is_not_what_is_judged(folder, monkeypatch):
    one, seen = outside.Outside(outside.find(folder), "gauss-eps", 8), []
    solve = one._solve
    monkeypatch.setattr(one, "_solve", lambda weights, x, *more: seen.append(x) or solve(weights, x, *more))
    assert one.profile() == one.profile() and torch.equal(*seen)
    assert len(seen[0]) == outside.PROFILED and not torch.isin(seen[0], one.start).any()


def test_the_weight_of_detail_has_a_row_a_network_and_kind():
    assert report.detail([record("solver-error", 0.1)]) == ""
    found = [record(name, 0.1 * (1 + i)) for i, name in enumerate(("solver-error", *SOLVER_DETAILS))]
    text = report.detail(found)
    assert "| a | `solver-error` | 1.000 |" in text and "| all | `solver-error` | 1.000 |" in text
    assert "nonstationary" not in text and text.count("\n|") == 4


SOLVER_DETAILS = [name for name, (kind, _) in measure.DETAILED.items() if kind == "solver-error"]
