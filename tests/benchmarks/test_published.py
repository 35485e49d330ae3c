"""Published schedules beside ours: what is read, how far apart nodes are, and what is refused."""

import json
import math

import numpy as np
import pytest

from benchmarks import published
from hso_jax import Schedule, preset, zoo

SD = "eps, scaled_linear 0.00085..0.012, 1000 (sigma_max 14.6146)"


def entry(**changes):
    own = {"source": "a paper", "model": "SD1.5", "noise": SD, "solver": "2M", "guidance": "7.5", "N": 4}
    return {**own, "values": [14.6146, 3.0, 1.0, 0.3, 0.03], "unit": "sigma", **changes}


def file_of(tmp_path, *entries):
    path = tmp_path / "list.json"
    path.write_text(json.dumps({"what": "a list", "entries": entries}))
    return path


def test_the_levels_that_are_evaluated_are_read_in_either_unit(tmp_path):
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
    [("EDM v-prediction, sigma 0.002..700", "ve", 700.0), ("linear 1e-4..0.02, 1000", "vp", 157.4)],
)
def test_noise_in_words(text, kind, highest):
    noise = published.noise_of(text, "a model")
    assert noise.kind == kind and float(noise.ksigma(float(noise.t_max))) == pytest.approx(highest, rel=1e-3)


def test_the_distance_is_the_mean_over_the_nodes_after_the_first():
    noise = preset("sd15")
    lams = np.array([-2.5, -1.0, 0.5, 2.0])
    schedule = Schedule.from_t(noise, noise.t_of_lam(lams))
    assert published.distance(lams + np.array([9.0, 0.1, -0.2, 0.3]), schedule) == pytest.approx(0.2, abs=1e-6)


def test_our_own_schedule_is_at_distance_zero_and_the_page_says_so(tmp_path, monkeypatch, capsys):
    own = zoo("sd15", 4, "unipc-3", guidance=7.5)
    path = file_of(tmp_path, entry(values=[float(x) for x in np.exp(-own.lams)]))
    monkeypatch.setattr(published, "RULES", ("trailing", "ays"))
    out = tmp_path / "new" / "published.md"
    assert published.main(["--file", str(path), "-o", str(out)]) == 0
    row = next(line for line in out.read_text().splitlines() if line.startswith("| a paper |"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:5] == ["a paper", "SD1.5", "4", "7.5", "7.5"] and cells[7] == "**0.00**" and cells[-1] == "2M"
    assert float(cells[5]) > 0.0 and len(cells) == 5 + 3 + 2 + 2 + 1 + 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"values": [3.0, 2.0]}, "need N or N \\+ 1 levels"),
        ({"values": [3.0, 2.0, 2.0, 1.0]}, "need falling levels"),
        ({"values": [3.0, 2.0, 1.0, 0.0]}, "need falling levels above 0"),
        ({"unit": "t"}, "unit is 't'"),
        ({"unit": "sigma (flow)"}, "1 at most"),
        ({"noise": "cosine"}, "noise is 'cosine'"),
    ],
)
def test_what_cannot_be_read_is_named_by_its_entry(tmp_path, changes, message):
    path = file_of(tmp_path, entry(), entry(**changes))
    with pytest.raises(ValueError, match=rf"entries\[1\]: .*{message}"):
        published.read(path)


def test_a_file_that_is_no_list_and_an_entry_without_its_keys_are_refused(tmp_path, capsys):
    path = tmp_path / "list.json"
    path.write_text("[]")
    assert published.main(["--file", str(path)]) == 2 and "list of entries" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"entries\[0\]: no source, no model"):
        published.read(file_of(tmp_path, {"N": 3}))
