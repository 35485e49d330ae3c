"""Published schedules beside ours: what is read, how far apart nodes are, and what is refused."""

from __future__ import annotations

import itertools
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks import neuralsolver, published
from benchmarks.targets import Target
from hso_jax import Schedule, noise, preset, zoo
from hso_jax.compiling import random_key
from hso_jax.error import error_data, in_chunks
from hso_jax.noise import lam_of_s
from hso_jax.problems import generic, stack_problems
from hso_jax.solver_error_method import measure

SD = "eps, scaled_linear 0.00085..0.012, 1000 (sigma_max 14.6146)"


def entry(**changes):
    own = {"source": "a paper", "model": "SD1.5", "noise": SD, "solver": "2M", "guidance": "7.5", "N": 4}
    return {**own, "values": [14.6146, 3.0, 1.0, 0.3, 0.03], "unit": "sigma", **changes}


def file_of(tmp_path, *entries):
    path = tmp_path / "list.json"
    path.write_text(json.dumps({"what": "a list", "entries": entries}))
    return path


def test_levels_are_read_in_either_unit(tmp_path):
    flow = {"noise": "rectified flow (t = 0 noise)", "unit": "sigma (flow)", "guidance": "default (not stated)"}
    path = file_of(tmp_path, entry(), entry(**flow, values=[1.0, 0.5, 0.25, 0.1]))
    one, other = published.read(path)
    np.testing.assert_allclose(one.lams, -np.log([14.6146, 3.0, 1.0, 0.3]))
    np.testing.assert_allclose(other.lams, [-math.inf, 0.0, math.log(3), math.log(9)], atol=1e-12)
    assert one.noise.fingerprint() == preset("sd15").fingerprint()
    assert (one.guidance, other.guidance, other.noise.kind) == (7.5, None, "flow")
    assert published.weights(one) == (7.5,) and published.weights(other) == (1.0, 3.0, 3.5, 4.0, 4.5, 5.0, 7.0)


@pytest.mark.parametrize(
    ("text", "kind", "highest"),
    [
        ("EDM v-prediction, sigma 0.002..700", "ve", 700.0),
        ("linear 1e-4..0.02, 1000", "vp", 157.4),
        ("VP, cosine, 1000", "vp", 20_291.0),
    ],
)
def test_noise_in_words(text, kind, highest):
    noise = published.noise_of(text, "a model")
    assert noise.kind == kind and float(noise.ksigma(float(noise.t_max))) == pytest.approx(highest, rel=1e-3)


def test_distances_are_means_over_the_later_nodes():
    """Signed they are below zero where ours are cleaner."""
    noise = preset("sd15")
    lams = np.array([-2.5, -1.0, 0.5, 2.0])
    schedule = Schedule.from_t(noise, noise.t_of_lam(lams))
    assert published.distance(lams + np.array([9.0, 0.1, -0.2, 0.3]), schedule) == pytest.approx(0.2, abs=1e-6)
    assert published.signed(lams + np.array([9.0, -0.1, -0.2, 0.3]), schedule) == pytest.approx(0.0, abs=1e-6)
    assert published.signed(lams - 0.5, schedule) == pytest.approx(-0.5, abs=1e-6)


def test_the_summary_averages_a_source_s_lists():
    one = published.Published("AYS", "SD1.5", "2M", preset("sd15"), 7.5, zoo("sd15", 4, "ddim", guidance=7.5).lams)
    own = {name: zoo("sd15", 4, name, guidance=7.5) for name in ("ddim", "dpmpp-2m")}
    lams = own["dpmpp-2m"].lams
    rows = [(one._replace(lams=lams + x), 7.5, own, {"a rule": own["dpmpp-2m"]}) for x in (0.1, -0.3)]
    kept = one._replace(source="another's", lams=lams + 9.0)
    text = published.summary([*rows, (kept, 7.5, own, {"a rule": own["ddim"]})])
    assert "| AYS | SD1.5 | 2 | 4 | 7.5 | 0.90 | 0.20 | -0.10 | a rule 0.20 | -0.10 |" in text
    assert "| mean, largest signed |  |  |  |  |  | 0.20 | -0.10 |  |  |" in text


# ---- solvers that were learned, on the reference problems


@pytest.fixture(scope="module")
def flow_data():
    problems = stack_problems([generic(random_key(0))])
    return in_chunks(error_data(-math.inf, prediction="flow_prediction", problems=problems, samples=32), 32)


def test_steps_of_one_derivative_are_eulers(flow_data):
    schedule = Schedule.from_lams(noise.flow(), lam_of_s(np.array([1.0, 0.7, 0.4, 0.2])))
    levels = np.array([1.0, 0.7, 0.4, 0.2, 0.0])
    euler = published.Steps(True, levels[:-1], levels[:-1], np.diag(np.diff(levels)))
    assert published.error_of(euler, flow_data) == pytest.approx(measure(schedule, "ddim", flow_data), rel=1e-4)
    assert published.error_of(published.adams(levels, True), flow_data) < published.error_of(euler, flow_data)


def test_dyweights_steps_end_where_its_levels_say():
    entries = {"weights": [[1.1, 0.0], [-0.5, 1.6]], "t_true": [80.0, 3.0, 0.02], "t_scale": [0.9], "N": 1}
    steps = published.steps_of(entry(**entries, base_grid=[80.0, 10.0, 1.125]))
    assert steps is not None and steps.analytic and not steps.flow
    np.testing.assert_allclose(steps.told, [80.0, 2.7])
    np.testing.assert_allclose(steps.levels + steps.gains.sum(1), [3.0, 0.9375])


def test_a_list_of_nodes_alone_has_no_steps():
    assert published.steps_of(entry()) is None


@pytest.mark.slow
def test_our_own_schedule_is_at_distance_zero(tmp_path, monkeypatch, capsys):
    own = zoo("sd15", 4, "unipc-3", guidance=7.5)
    path = file_of(tmp_path, entry(values=[float(x) for x in np.exp(-own.lams)]))
    monkeypatch.setattr(published, "RULES", ("trailing", "ays"))
    out = tmp_path / "new" / "published.md"
    assert published.main(["--file", str(path), "-o", str(out)]) == 0
    row = next(line for line in out.read_text().splitlines() if line.startswith("| a paper |"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:5] == ["a paper", "SD1.5", "4", "7.5", "7.5"] and cells[7] == "**0.00**" and cells[-1] == "2M"
    assert float(cells[5]) > 0.0 and len(cells) == 5 + 4 + 2 + 2 + 1 + 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"values": [3.0, 2.0]}, "need N or N \\+ 1 levels"),
        ({"values": [3.0, 2.0, 2.0, 1.0]}, "need falling levels"),
        ({"values": [3.0, 2.0, 1.0, 0.0]}, "need falling levels above 0"),
        ({"unit": "t"}, "unit is 't'"),
        ({"unit": "sigma (flow)"}, "1 at most"),
        ({"noise": "sigmoid"}, "noise is 'sigmoid'"),
    ],
)
def test_what_cannot_be_read_is_named_by_its_entry(tmp_path, changes, message):
    path = file_of(tmp_path, entry(), entry(**changes))
    with pytest.raises(ValueError, match=rf"entries\[1\]: .*{message}"):
        published.read(path)


def test_what_is_no_list_of_entries_is_refused(tmp_path, capsys):
    path = tmp_path / "list.json"
    path.write_text("[]")
    assert published.main(["--file", str(path)]) == 2 and "list of entries" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"entries\[0\]: no source, no model"):
        published.read(file_of(tmp_path, {"N": 3}))


# ---- NeuralSolver, a published solver of velocities, run as it is


def gaussian() -> Target:
    def denoiser(x: torch.Tensor, level) -> torch.Tensor:
        return x * level.alpha * 4.0 / (level.alpha**2 * 4.0 + level.sigma**2)

    return Target("gauss", noise.flow(name="gauss"), denoiser, (3,), 0, None)


def test_its_own_velocity_alone_is_euler() -> None:
    one, s = gaussian(), np.linspace(1.0, 0.0, 6)
    latents = one.latents(40, 0).double()
    euler = latents
    for now, then in itertools.pairwise(s):
        v = (euler - one.denoiser(euler, SimpleNamespace(alpha=1.0 - now, sigma=now))) / now
        euler = euler + (then - now) * v
    lengths = np.diff(s)[:, None]
    found = neuralsolver.sample(one, published.Steps(True, s[:-1], s[:-1], np.eye(5) * lengths), latents)
    torch.testing.assert_close(found, euler, rtol=1e-6, atol=1e-6)
    halves = 0.5 * (np.eye(5) + np.eye(5, k=-1))
    halves[0, 0] = 1.0
    other = neuralsolver.sample(one, published.Steps(True, s[:-1], s[:-1], halves * lengths), latents)
    assert (other - euler).abs().max() > 0.01


def test_its_coefficients_are_read_and_others_are_refused(tmp_path) -> None:
    flow = {"noise": "rectified flow", "unit": "sigma (flow)", "N": 2, "values": [1.0, 0.5, 0.0001]}
    note = json.dumps({"coeffs": [[0.0, 0.0], [-1.25, 0.0]]})
    own = entry(**flow, source="NeuralSolver (2505)", note=note)
    (steps,) = neuralsolver.read(file_of(tmp_path, own, entry())).values()
    np.testing.assert_array_equal(steps.gains, np.diag([-0.5, -0.5]) @ [[1.0, 0.0], [-1.25, 2.25]])
    path = file_of(tmp_path, entry())
    assert neuralsolver.main(["--file", str(path), "-o", str(tmp_path / "out.md")]) == 2
    for other, told in ((entry(), "has no coefficients of NeuralSolver"), ({**own, "note": "x"}, r"entries\[0\]")):
        with pytest.raises(ValueError, match=told):
            neuralsolver.read(file_of(tmp_path, other))
