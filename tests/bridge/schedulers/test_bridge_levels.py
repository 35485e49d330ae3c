"""Where the rules about levels change their answer."""

from __future__ import annotations

import diffusers
import numpy as np
import pytest
import torch
from cases import SD

from bridge import noise_schedule_of, with_schedule
from bridge.schedulers.scheduled import end_timestep, nearest
from hso_jax import Schedule, noise, preset


def test_a_timestep_may_be_rounded_to_bfloat16_and_no_further() -> None:
    known = np.array([999.0, 700.3, 350.7])
    for i, value in enumerate(known):
        assert nearest(known, value) == nearest(torch.from_numpy(known), torch.tensor(value).bfloat16()) == i
    for wrong in (710.0, 690.0, 355.0, 900.0, 2.0):
        with pytest.raises(ValueError, match=rf"timestep {wrong:g} is not in the installed schedule"):
            nearest(known, wrong)


def test_of_equal_timesteps_the_first_or_the_last() -> None:
    assert (nearest(np.array([900.0, 500.0, 500.0]), 500.0), nearest(np.array([900.0, 500.0, 500.0]), 500.0, True)) == (
        1,
        2,
    )


def test_one_level_off_the_distillation_grid_is_enough_to_refuse() -> None:
    scheduler = diffusers.LCMScheduler()
    noise = noise_schedule_of(scheduler)
    on_grid = [999, 759, 499, 259]  # multiples of 1000/50, less one
    assert with_schedule(scheduler, Schedule.from_t(noise, [(i + 1) / 1000 for i in on_grid]))
    with pytest.raises(ValueError, match="distillation grid"):
        with_schedule(scheduler, Schedule.from_t(noise, [(i + 1) / 1000 for i in (999, 759, 490, 259)]))


def test_a_table_set_by_hand_that_ends_at_diffusers_stand_in_for_pure_noise_is_one_of_zero_snr() -> None:
    scheduler = diffusers.DDIMScheduler(**SD)
    table = torch.linspace(0.999, 0.01, 1000)
    scheduler.alphas_cumprod = table.clone()
    assert not noise_schedule_of(scheduler).zero_terminal_snr
    scheduler.alphas_cumprod = torch.cat([table[:-1], torch.tensor([2.0**-24])])
    noise = noise_schedule_of(scheduler)
    assert noise.zero_terminal_snr and noise.noise_end == -np.inf


def test_a_clean_end_is_alpha_1_and_sigma_0() -> None:
    scheduler = diffusers.DDIMScheduler(**SD)
    installed = with_schedule(scheduler, Schedule.from_t(noise_schedule_of(scheduler), [0.9, 0.5]))
    installed.set_timesteps(2)
    assert (installed._levels.alphas[-1], installed._levels.sigmas[-1]) == (1.0, 0.0)


def test_the_timestep_of_the_node_where_sampling_stops() -> None:
    """A flow's is its shifted time; the other models' is the table's; EDM's a quarter of log sigma."""
    for model, told in (
        (noise.flow(3.0), lambda s: 1000.0 * 3.0 * s.t[-1] / (1.0 + 2.0 * s.t[-1])),
        (preset("sd15"), lambda s: 1000.0 * s.t[-1] - 1.0),
        (noise.edm(), lambda s: -0.25 * s.lams[-1]),
    ):
        stops = Schedule.from_t(model, [1.0, 0.6, 0.2], layout="interval", end="t_eps")
        assert end_timestep(stops) == pytest.approx(told(stops), rel=1e-6)
        assert end_timestep(Schedule.from_t(model, [1.0, 0.6])) == 0.0
