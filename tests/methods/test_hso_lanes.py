"""What is asked for is checked before any work: every bad value is named; a spacing that does not fit is not silent."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np
import pytest
from problems import SD, random_table

from hso_jax import Hso, Lane, NoiseSchedule, lanes, preset, search
from hso_jax.hso import Box, pack
from hso_jax.mep_spf import paper_d_min
from hso_jax.noise import discrete, flow
from hso_jax.searches import checked

ZERO_SNR = discrete(alphas_cumprod=random_table(0), rescale_betas_zero_snr=True)


def boxed(noise: NoiseSchedule = SD, **ends: tuple[float, float]) -> object:
    return search(noise, 4, method=Hso(box=Box(**ends)))


BAD: dict[str, tuple[Callable[[], object], str]] = {
    "no nfe": (lambda: search(SD, []), "nfe is empty"),
    "nfe 0": (lambda: search(SD, 0), "nfe is 0"),
    "nfe 4.0": (lambda: search(SD, [4.0]), r"nfe is 4\.0"),
    "layout": (lambda: search(SD, 4, layout="both"), "layout is 'both'"),
    "method": (lambda: search(SD, 4, method="hsso"), "method is 'hsso'; did you mean hso"),
    "gamma": (lambda: search(SD, 4, method=Hso(gamma=-1.0)), r"gamma is -1\.0"),
    "seed": (lambda: search(SD, 4, seed=-1), "seed is -1"),
    "spacing": (lambda: search(SD, 4, method=Hso(spacing=-0.1)), r"spacing is -0\.1 at nfe 4"),
    "upside down": (lambda: boxed(t_eps=(0.03, 0.01)), r"box t_eps is \(0\.03, 0\.01\)"),
    "outside": (lambda: boxed(t_max=(0.9, 1.5)), r"box t_max is \(0\.9, 1\.5\); need 0 < low"),
    "zero": (lambda: boxed(t_eps=(0.0, 0.03)), r"box t_eps is \(0\.0, 0\.03\); need 0 < low"),
    "rho": (lambda: boxed(rho=(-1.0, 7.0)), r"box rho is \(-1\.0, 7\.0\)"),
    "crossed": (lambda: boxed(t_eps=(0.01, 0.97)), "must lie below t_max"),
    "no reach": (lambda: boxed(flow(), t_max=(1.0, 1.0)), r"box t_max .* outside \[0\.001, 0\.999\]"),
    "no reach below": (lambda: boxed(ZERO_SNR, t_eps=(1e-3, 2e-3)), r"outside \[0\.01, 0\.99\]"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case: str) -> None:
    call, match = BAD[case]
    with pytest.raises(ValueError, match=match):
        call()


def test_a_spacing_that_does_not_fit_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"spacing 0\.3 .* 4 intervals \(nfe 5, layout node\) need 1\.2 .* at most 0\.99"
    ):
        search(SD, 5, method=Hso(spacing=0.3))
    with pytest.raises(ValueError, match=r"at most 0\.2475, a wider box, or relax=True"):
        search(SD, 5, method=Hso(spacing=0.3))
    (relaxed,) = lanes([SD], [5], method=Hso(spacing=0.3, relax=True))
    assert relaxed.method.spacing == pytest.approx(0.2475)
    (fits,) = lanes([SD], [5], method=Hso(relax=True))
    assert fits.method.spacing == paper_d_min(5)
    assert checked([Lane(SD, 5, method=Hso(spacing=0.3, spacing_as="penalty"))])[0].method.spacing == 0.3


def test_the_box_is_cut_to_what_the_model_reaches() -> None:
    box = checked([Lane(flow(), 4, method=Hso(box=Box(t_eps=(1e-4, 0.03))))])[0].method.box
    assert box.t_eps == (pytest.approx(0.001), 0.03) and box.t_max == (0.96, pytest.approx(0.999))
    assert checked([Lane(SD, 4, method=Hso())])[0].method.box == Box()


def test_combinations_come_in_the_stated_order() -> None:
    other = preset("sdxl")
    every = lanes([SD, other], [4, 5], layouts=["interval", "node"], seeds=[0, 3], method=Hso(p=1.0))
    assert [(x.noise.name, x.layout, x.nfe, x.seed) for x in every] == [
        (noise, layout, nfe, seed)
        for noise in ("sd", "sdxl")
        for layout in ("interval", "node")
        for nfe in (4, 5)
        for seed in (0, 3)
    ]
    assert {x.method.p for x in every} == {1.0}


def test_intervals_and_spacing_of_a_lane() -> None:
    assert Lane(SD, 5).intervals == 4 and Lane(SD, 5, "interval").intervals == 5
    assert checked([Lane(SD, 5, method=Hso())])[0].method.spacing == paper_d_min(5)
    assert checked([Lane(SD, 5, method=Hso(spacing=lambda n: 0.5 / n))])[0].method.spacing == 0.1


def test_packing_shares_equal_noise() -> None:
    other, soft = flow(3.0), Hso(spacing_as="penalty")
    asked = [Lane(SD, 4, method=Hso()), Lane(other, 5, method=Hso()), Lane(SD, 6, method=soft)]
    arrays, bank = pack([checked([x])[0] for x in asked], np.dtype(np.float32))
    assert arrays.noise.coefficients.tolist() == [0, 1, 0] and bank.coefficients.shape == (2, 1024, 4)
    assert arrays.noise.t_max.tolist() == [np.float32(x.noise.t_max) for x in asked]
    assert arrays.intervals.tolist() == [3, 4, 5]
    assert arrays.least_gap.tolist() == [np.float32(0.15), np.float32(paper_d_min(5)), 0.0]
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(bank))
