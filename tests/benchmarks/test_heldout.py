"""Networks from outside: a tiny folder of them, whose data are Gaussian, so that every sample is known exactly."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_models import OUTSIDE

from benchmarks import runner, targets
from benchmarks.heldout import measure, report
from benchmarks.heldout.__main__ import main
from benchmarks.runner import Record
from hso_jax import Schedule, SolverError, baseline, noise, preset
from hso_jax.schedule import Origin


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "nets"
    place.mkdir()
    (place / "networks.py").write_text(OUTSIDE)
    row = "| gauss-eps | nobody, commit 123 | points |"
    (place / "README.md").write_text(f"# Nets\n| name | from | data |\n|---|---|---|\n{row}\n")
    return place


def command(folder, path, *more):
    few = ["--nfe", "4", "--solvers", "ddim,unipc-3", "--methods", "trailing,karras,flow-2", "--count", "2"]
    return ["--networks", str(folder), "--records", str(path), *few, *more]


@pytest.mark.parametrize("name", ["gauss-eps", "gauss-flow"])
def test_converged_samples_are_the_exact_ones_and_calls_are_counted(folder, name):
    one = targets.target(name, folder)
    judged = targets.Judged(one, 4, measure.FINE)
    assert judged.latents.shape == (4 * targets.MANY, 2)
    # Of Gaussian data the flow keeps x/sqrt(alpha^2 v + sigma^2); at the noise end x is standard normal.
    v = np.array([2.0, 0.5]) ** 2
    sigma = math.exp(-float(one.noise.lam(float(one.noise.t_max)))) if name == "gauss-eps" else 1e3
    exact = judged.latents.numpy() * np.sqrt(v * (1 + sigma**2) / (v + sigma**2))
    assert 0 < judged.error() < 2e-3 and np.sqrt(np.mean((judged.converged.numpy() - exact) ** 2)) < 2e-3
    with pytest.raises(RuntimeError, match=f"heun called {name} 9 times for N = 5"):
        one.sample(baseline("trailing", one.noise, 5), "heun", judged.latents)


def test_the_command_measures_resumes_and_writes_the_page(folder, tmp_path, capsys, monkeypatch):
    path = tmp_path / "new" / "heldout.jsonl"
    assert main(command(folder, path)) == 0
    assert "12 cells measured" in capsys.readouterr().out
    found = runner.read(path)
    assert all(r.counted == r.nfe and r.rmse_low <= r.rmse <= r.rmse_high and r.samples == 32 for r in found.cells)
    origins = {s["network"]: s for s in found.setups}
    assert "commit 123" in origins["gauss-eps"]["source"] and origins["gauss-flow"]["source"] == "not stated"
    monkeypatch.setattr(targets.Target, "sample", lambda *a: pytest.fail("a network ran"))
    before = path.read_bytes()
    assert main(command(folder, path)) == 0 and path.read_bytes() == before
    page = path.with_suffix(".md").read_text()
    assert "nobody, commit 123 points" in page and str(tmp_path) not in page
    (folder / "networks.py").write_text(OUTSIDE.replace("2.0, 0.5", "2.0, 0.4"))
    assert main(command(folder, path)) == 2 and "records of gauss-eps from other files" in capsys.readouterr().err


def test_searches_are_given_the_profile_and_coefficients_are_installed(folder, tmp_path, monkeypatch):
    """Of Gaussian data with deviations 2 and .5; the page has a section, and a picture of what was predicted."""
    rows, asked = [[0.0], [-0.4], [-0.5], [0.0]], []

    def found(noise, nfes, *, method, seed):
        asked.append((method.solver, method.profile))
        own = Origin(method="solver-error", solver=method.solver)
        free = method.solver == "nonstationary"
        schedule = Schedule.from_t(noise, [1.0, 0.7, 0.4, 0.1], origin=own, coefficients=rows if free else None)
        return [schedule.with_scores(error=0.1, others_own_nodes={"unipc-3": 0.25, "ddim": 0.5}) for _ in nfes]

    monkeypatch.setattr(measure, "search", found)
    path = tmp_path / "heldout.jsonl"
    names = "trailing,solver-error,nonstationary,solver-error-profile,nonstationary-profile"
    assert main(command(folder, path, "--solvers", "ddim", "--methods", names)) == 0
    searches = [("ddim", True), ("nonstationary", True), ("ddim", False), ("nonstationary", False)]
    assert [(solver, known is None) for solver, known in asked] == searches * 2
    for (_, profile), prediction in ((asked[2], "epsilon"), (asked[6], "flow_prediction")):
        assert profile.deviations == pytest.approx((2.0, 0.5), rel=0.2) and profile.prediction == prediction
    cells = runner.read(path).cells
    assert {r.predicted for r in cells if "nonstationary" in r.method} == {0.4}
    page = path.with_suffix(".md").read_text()
    for told in (
        "## With a profile",
        "without a profile 0.40 predicted",
        "| all | without | ",
        "## Against what pipelines do",
    ):
        assert told in page
    assert (tmp_path / "heldout-predicted.png").read_bytes().startswith(b"\x89PNG")
    one = targets.target("gauss-flow", folder)
    own, usual = (
        found(one.noise, [4], method=SolverError("nonstationary"), seed=0)[0],
        baseline("trailing", one.noise, 4),
    )
    free, plain = (one.sample(s, solver, one.latents(8, 0)) for s, solver in ((own, "nonstationary"), (usual, "ddim")))
    assert bool(free.isfinite().all()) and not torch.equal(free, plain)
    assert not torch.isin(one.latents(targets.PROFILED, 2**31), one.latents(8, 0)).any()  # not what is judged


def test_a_flow_that_does_not_start_at_pure_noise_starts_smaller(folder, monkeypatch):
    """x = (1 - s) x0 + s eps of unit data and noise has the deviation sqrt(s^2 + (1 - s)^2)."""
    one, given = measure._Network(targets.find(folder), "gauss-flow", [4], 2), []
    judged, own = one.judged, targets.Target.sample
    monkeypatch.setattr(targets.Target, "sample", lambda *a: given.append(a[-1]) or own(*a))
    one.measure(runner.Cell("gauss-flow", 1.0, "ddim", 4, "leading", 0, 32, "float32"))
    s = 1 / (1 + np.exp(baseline("leading", one.target.noise, 4).lams[0]))
    assert s < 0.9
    torch.testing.assert_close(given[0], judged.latents * np.hypot(s, 1 - s), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("NAMES =", "OTHERS ="), "has no NAMES"),
        (("self.data_std", "self.std"), "gauss-eps has no data_std"),
        (('if self.kind == "eps" else None', 'if self.kind == "vp" else None'), "is of kind 'eps'"),
        (("self.sigma_max = 0.01, 158.0", "self.sigma_max = 0.01, float('inf')"), "sigma_max inf"),
        (("return x *", "return x[:1] *"), "gauss-eps: denoise made (1, 2) of (32, 2)"),
    ],
)
def test_networks_without_the_interface_are_refused(folder, tmp_path, capsys, change, message):
    assert change[0] in OUTSIDE
    (folder / "networks.py").write_text(OUTSIDE.replace(*change))
    assert main(command(folder, tmp_path / "heldout.jsonl")) == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--solvers", "euler"], "solver 'euler' is not one of"),
        (["--methods", "cats"], "method 'cats' is not one of"),
        (["--count", "1"], "count is 1"),
        (["--networks", "."], "has no networks.py"),
    ],
)
def test_bad_options_are_named_before_any_work(folder, tmp_path, capsys, more, message):
    assert main(command(folder, tmp_path / "heldout.jsonl", *more)) == 2 and message in capsys.readouterr().err
    assert main(["--records", str(tmp_path / "none.jsonl")]) == 2
    assert "no records to report" in capsys.readouterr().err


def record(method, rmse, **more):
    own = Record("a", 1.0, "ddim", 4, method, 0, 8, "float32", lams=(-1.0, 0.0, 1.0, 2.0), teacher=1e-4)
    high = None if rmse is None else 1.1 * rmse
    return replace(own, rmse=rmse, rmse_low=rmse, rmse_high=high, **more)


def test_wins_ties_losses_and_ratios_are_counted_against_the_best_of_all_rules():
    found = [
        record("trailing", 0.2), record("flow-3", 0.1), record("hso", 0.05), record("solver-error", 0.105),
        record("trailing", 0.2, nfe=6), record("hso", None, nfe=6), record("solver-error", 0.4, nfe=6),
    ]  # fmt: skip
    text = report.summary(found)
    assert "| a | all | 0 / 1 / 1 | 1.45 | 2.00 | 1 / 0 / 1 | inf | inf |" in text
    other = [replace(r, model="b", solver="unipc-3") for r in found]
    assert "| all | all | 0 / 2 / 2 | 1.45 | 2.00 | 2 / 0 / 2 | inf | inf |" in report.summary([*found, *other])
    assert "| a | DDIM | 1.05 `flow-3` | 2.00 `trailing` |" in report.cells(found)


def test_every_rule_has_schedules_for_a_model_of_each_kind():
    for model in (noise.edm(), noise.flow(), preset("sd15")):
        for rule in measure.RULES:
            if rule in measure.SHIFTS or not measure.inapplicable(rule, model):
                assert measure.schedules(rule, "ddim", [4], model)[0].nfe == 4
