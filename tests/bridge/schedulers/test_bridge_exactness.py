"""diffusers with an installed schedule, against the same solver written independently."""

from __future__ import annotations

import cases
import numpy as np
import pytest
import torch
from diffusers.utils import is_torchsde_available
from mixture import random_schedule, start

from bridge.schedulers.rows import ROWS

# Every start-up of the solvers, both sides of 15 (where diffusers' last steps change), each prediction several times.
BUDGETS = (1, 2, 3, 4, 5, 6, 9, 14, 15, 20)


@pytest.mark.parametrize("end", ["clean", "t_eps"])
@pytest.mark.parametrize("case", cases.CASES, ids=lambda case: case.name)
def test_agrees_with_the_independent_solver(case: cases.Case, end: str) -> None:
    if end not in case.ends:
        schedule = random_schedule(cases.noise_of(case.model), 4, end, 0)
        with pytest.raises(ValueError, match="sigma 0"):
            cases.installed(case, case.predictions[0], schedule)
        return
    for nfe in BUDGETS:
        schedule = random_schedule(cases.noise_of(case.model), nfe, end, seed=nfe)
        prediction = case.predictions[nfe % len(case.predictions)]
        scheduler = cases.installed(case, prediction, schedule)
        got, model = cases.run(case, scheduler, prediction, start())
        wanted, calls = cases.reference(case, schedule, start())
        assert type(got) is torch.Tensor and got.dtype == torch.float64
        assert torch.isfinite(got).all()
        assert ((got - wanted).abs().max() / wanted.abs().max()).item() < 1e-10, (nfe, prediction)
        assert len(model.told) == calls
        told = [level.timestep for level in cases.evaluations(scheduler, schedule)]
        np.testing.assert_allclose(model.told, told, rtol=1e-7, atol=0)
        if scheduler._row.layout in ("plain", "table") and not scheduler.config.get("invert_sigmas"):
            assert model.told == np.float32(schedule.timesteps).tolist()


@pytest.mark.parametrize("case", cases.CASES, ids=lambda case: case.name)
def test_float32(case: cases.Case) -> None:
    for nfe, end in ((n, end) for n in (1, 2, 5, 10, 20) for end in case.ends):
        schedule = random_schedule(cases.noise_of(case.model), nfe, end, seed=3)
        prediction = case.predictions[nfe % len(case.predictions)]
        scheduler = cases.installed(case, prediction, schedule)
        got, _ = cases.run(case, scheduler, prediction, start(dtype=torch.float32))
        wanted, _ = cases.reference(case._replace(draws=torch.float32), schedule, start(dtype=torch.float32).double())
        assert got.dtype == torch.float32
        assert ((got - wanted).abs().max() / wanted.abs().max()).item() < 1e-5, (nfe, end, prediction)


@pytest.mark.skipif(not is_torchsde_available(), reason="DPMSolverSDE and CosineDPMSolverMultistep need torchsde")
def test_every_row_is_a_case() -> None:
    assert {case.scheduler for case in cases.CASES} | {"LCMScheduler", "TCDScheduler"} == set(ROWS)
