"""Fixtures that several test modules share: what is expensive to compile is computed once."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from typing import Any

import jax
import pytest
from commands import run as run
from jax.experimental.compilation_cache import compilation_cache
from problems import EFFORT, SD, filled

from hso_jax import Hso, Lane, Schedule, error, search_many
from hso_jax.hso import SPACING_AS

if "PYTEST_XDIST_WORKER" in os.environ:  # before anything imports torch: a core a process, none waits for the other's
    os.environ.setdefault("OMP_NUM_THREADS", "1")

Key = tuple[int, str, str]


@pytest.fixture(scope="session", autouse=True)
def cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Compiled programs are kept from module to module, as commands keep theirs: not with the user's, and not longer.

    What a module drops, see `programs_dropped`, another one that needs it reads in a tenth of a second.
    """
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        jax.config.update("jax_compilation_cache_dir", str(folder / "hso-jax" / "xla"))  # the commands' own
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)  # as they set it
        compilation_cache.reset_cache()  # else one program compiled before, as tests were collected, leaves it off
        yield


@pytest.fixture(scope="module", autouse=True)
def programs_dropped() -> Iterator[None]:
    """Compiled programs go with their module: each maps memory, and Linux allows 65,530 maps in a process.

    So does what they computed: a module that finds an answer of another one does not compile the program for it, and
    would count it as compiled when it needs it later.
    """
    yield
    jax.clear_caches()
    error._solve.cache_clear()


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here may reach for the network."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a test tried to open a network connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="session")
def sd_lanes() -> dict[Key, Lane]:
    """The main job, with the spacing as a constraint and as a penalty: N = 4..20, both layouts."""
    keys = [(n, layout, kind) for kind in SPACING_AS for layout in ("node", "interval") for n in range(4, 21)]
    return {key: Lane(SD, key[0], key[1], method=Hso(spacing_as=key[2])) for key in keys}


@pytest.fixture(scope="session")
def sd_search(sd_lanes: dict[Key, Lane]) -> dict[Key, Schedule]:
    """What is found for `sd_lanes`."""
    return dict(zip(sd_lanes, search_many(filled(list(sd_lanes.values())), effort=EFFORT), strict=False))
