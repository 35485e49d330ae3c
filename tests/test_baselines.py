"""Every baseline against its rule written down by hand, on both layouts, for every kind of model."""

from __future__ import annotations

import numpy as np
import pytest
from problems import KINKED, SD

from benchmarks import scipy_reference as reference
from hso_jax import BASELINES, baseline, paper_d_min, preset
from hso_jax.baselines import AYS

RULES = [name for name in BASELINES if name != "dm-nonuni"]  # that one has tests of its own


def test_diffusers_spacings_on_stable_diffusion() -> None:
    leading, trailing, linspace = (baseline(name, SD, 5).timesteps for name in ("leading", "trailing", "linspace"))
    np.testing.assert_allclose(leading, [801, 601, 401, 201, 1], atol=1e-9)  # steps_offset 1
    np.testing.assert_allclose(trailing, [999, 799, 599, 399, 199], atol=1e-9)
    np.testing.assert_allclose(linspace, np.linspace(999, 0, 5), atol=1e-9)
    interval = baseline("trailing", SD, 5, layout="interval")
    np.testing.assert_allclose(interval.t[:5], baseline("trailing", SD, 5).t)
    assert interval.t[-1] == 0.001 and interval.end == "t_eps"


def test_uniform_lam_and_edm() -> None:
    s = baseline("uniform-lam", SD, 6)
    np.testing.assert_allclose(s.lams, np.linspace(KINKED.lam(1.0), KINKED.lam(0.001), 6), atol=1e-9)
    low, high = np.exp(-KINKED.lam([0.001, 1.0]))
    s = baseline("edm", SD, 6, layout="interval")
    np.testing.assert_allclose(s.sigmas, reference.edm_start(7.0, low, high, 6), rtol=1e-4)  # linear, cubic
    np.testing.assert_allclose(s.sigmas[[0, -1]], [high, low], rtol=1e-9)
    pixel = preset("edm-cifar10")
    s = baseline("edm", pixel, 18)
    np.testing.assert_allclose(s.t, np.linspace(1, 0, 18), atol=1e-9)  # its t is this very ramp


@pytest.mark.parametrize("layout", ["node", "interval"])
@pytest.mark.parametrize("name", RULES)
def test_every_rule_for_every_kind_of_model(name: str, layout: str) -> None:
    for model in ("sd21-base", "sd3-medium", "edm-cifar10"):
        noise = preset(model)
        for nfe in (1, 2, 4, 20, 64):
            s = baseline(name, noise, nfe, layout=layout)
            assert (s.nfe, s.layout, s.method, len(s.t)) == (nfe, layout, name, nfe + (layout == "interval"))
            assert np.all(np.diff(s.t) < 0) and np.all(np.isfinite(s.lams))
            if len(s.t) > 1:
                assert s.mep == pytest.approx(reference.mep(s.lams), rel=1e-9)
                assert s.spf == pytest.approx(reference.spf(s.lams, s.t, nfe), rel=1e-9)
            assert s.d_min == paper_d_min(nfe) and s.result == "fixed"


def test_dm_nonuni_of_few_and_of_many_nodes() -> None:
    assert baseline("dm-nonuni", SD, 1).t.tolist() == [1.0]
    assert baseline("dm-nonuni", SD, 2).t.tolist() == [1.0, 0.001]
    few = baseline("dm-nonuni", SD, 6, p=1.0, d_min=0.01)
    assert few.p == 1.0 and few.d_min == 0.01 and np.all(np.diff(few.t) < 0)


def test_bad_values() -> None:
    with pytest.raises(ValueError, match="baseline is 'karras'; use one of leading"):
        baseline("karras", SD, 4)
    with pytest.raises(ValueError, match="layout is 'both'"):
        baseline("edm", SD, 4, layout="both")
    for nfe in (0, -1, 2.5, "4", None, True):
        with pytest.raises(ValueError, match="nfe is"):
            baseline("edm", SD, nfe)
    with pytest.raises(ValueError, match="only 1000 levels"):
        baseline("trailing", SD, 999)


def test_no_baseline_reaches_pure_noise() -> None:
    """Models at zero terminal SNR start at their largest usable t, whatever N."""
    flow = preset("sd3-medium")
    for name in RULES:
        for nfe in (4, 100, 500):
            assert baseline(name, flow, nfe).t[0] <= float(flow.t_max)


@pytest.mark.parametrize("name", ["ays", "ays-sdxl"])
def test_align_your_steps_is_its_table_at_ten_and_log_linear_elsewhere(name: str) -> None:
    table = np.array(AYS[name])
    np.testing.assert_allclose(baseline(name, SD, 10).sigmas, np.minimum(table[:10], np.exp(-SD.lam(1.0))), rtol=1e-9)
    interval = baseline(name, SD, 5, layout="interval").sigmas
    np.testing.assert_allclose(interval[1:], np.maximum(table[2::2], np.exp(-SD.lam(SD.t_min))), rtol=1e-9)
    seven = baseline(name, SD, 7).sigmas  # node 3 lies at 30/7 of the table
    np.testing.assert_allclose(seven[3], table[4] ** (5 / 7) * table[5] ** (2 / 7), rtol=1e-9)
