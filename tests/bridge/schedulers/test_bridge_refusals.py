"""Every scheduler of diffusers either carries a schedule, or is refused with what to use instead."""

from __future__ import annotations

import diffusers
import pytest

import bridge
from bridge.schedulers.rows import INSTEAD, ROWS, unsupported
from hso_jax.schedule import Schedule

ALL = sorted(
    name
    for module in (diffusers, diffusers.schedulers)
    for name in dir(module)
    if name.endswith("Scheduler") and isinstance(getattr(module, name), type)
)


def test_every_class_has_a_row_or_advice() -> None:
    assert len(set(ALL)) > 50
    assert set(ALL) == set(ROWS) | set(INSTEAD)
    assert not set(ROWS) & set(INSTEAD)


@pytest.mark.parametrize("name", sorted(INSTEAD))
def test_the_advice_names_what_exists(name: str) -> None:
    words = unsupported(name).removeprefix(name).replace("(", " ").replace(".", " ").replace(",", " ").split()
    named = [word for word in words if word.endswith("Scheduler")]
    assert all(word in ROWS for word in named)
    assert named or any(
        word in unsupported(name) for word in ("no schedule applies", "no levels to set", "pass", "pipeline")
    )


def test_a_class_without_a_row_is_refused_with_its_advice() -> None:
    schedule = Schedule.from_t(bridge.noise_schedule_of(diffusers.DDIMScheduler()), [0.9, 0.5])
    with pytest.raises(ValueError, match=r"RePaintScheduler is not supported: .*DDPMScheduler.from_config"):
        bridge.with_schedule(diffusers.RePaintScheduler(), schedule)


def test_reading_the_noise_of_such_a_class_says_the_same() -> None:
    with pytest.raises(ValueError, match=r"MiniMaxH3Scheduler is not supported: use FlowMatchEulerDiscreteScheduler"):
        bridge.noise_schedule_of(diffusers.schedulers.MiniMaxH3Scheduler())
    assert bridge.noise_schedule_of(diffusers.UnCLIPScheduler()).kind == "vp"  # it has a training table
