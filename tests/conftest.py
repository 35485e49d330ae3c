"""Fixtures that several test modules share: what is expensive to compile is computed once."""

from __future__ import annotations

import pytest
from problems import EFFORT, SD, filled

from hso_jax import Lane, Schedule, search_many
from hso_jax.lanes import SPACING_AS

Key = tuple[int, str, str]


@pytest.fixture(scope="session")
def sd_lanes() -> dict[Key, Lane]:
    """The main job, with the spacing as a constraint and as a penalty: N = 4..20, both layouts."""
    keys = [(n, layout, kind) for kind in SPACING_AS for layout in ("node", "interval") for n in range(4, 21)]
    return {key: Lane(SD, key[0], key[1], spacing_as=key[2]) for key in keys}


@pytest.fixture(scope="session")
def sd_search(sd_lanes: dict[Key, Lane]) -> dict[Key, Schedule]:
    """What is found for `sd_lanes`."""
    return dict(zip(sd_lanes, search_many(filled(list(sd_lanes.values())), effort=EFFORT), strict=False))
