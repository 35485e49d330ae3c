"""How often programs are compiled: a second model, and a second table, cost nothing.

JAX's own monitoring counts every compilation there is; `chex.assert_max_traces` guards one function that is handed to
it, before it is jitted, and would see neither the packing of lanes nor a program that is made by another factory.
"""

from __future__ import annotations

import jax
import numpy as np
import pytest
from solver_error_cells import compilations

from hso_jax import Effort, Hso, Lane, baseline, preset, refine, search, search_many
from hso_jax.noise import discrete

EFFORT = Effort(population=4, generations=1)


def test_the_second_model_compiles_nothing() -> None:
    """Another name, another prediction, another table, another length and kind of table."""
    with compilations() as first:
        search(preset("sd15"), 5, effort=EFFORT)
    assert first  # the counter counts
    others = [preset("sdxl"), preset("sd15").with_prediction("v_prediction"), preset("flux-dev")]
    others.append(discrete(alphas_cumprod=np.linspace(0.99, 0.01, 40), name="mine"))
    with compilations() as more:
        for noise in others:
            search(noise, 5, effort=EFFORT)
    assert not more


@pytest.mark.parametrize("what", ["refine", "dm-nonuni"])
def test_what_takes_a_noise_schedule_alone_is_compiled_once(what: str) -> None:
    def call(name: str) -> object:
        noise = preset(name)
        if what == "dm-nonuni":
            return baseline("dm-nonuni", noise, 5)
        return refine(noise, np.linspace(0.9, 0.1, 6).astype(np.float32), t_max=0.9, t_eps=0.1)

    call("sd15")
    with compilations() as more:
        call("sdxl")
        call("sd3-medium")
    assert not more


@pytest.mark.parametrize(("level", "set_to"), [("1", [3, 1]), ("0", []), ("2", [])])
def test_xla_is_quiet_while_a_search_runs(level: str, set_to: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its log is off, unless the user has set a level."""
    levels: list[int] = []
    monkeypatch.setattr("jaxlib.utils.absl_set_min_log_level", levels.append)
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", level)
    search(preset("sd15"), 5, effort=EFFORT)
    assert levels == set_to


@pytest.mark.slow
def test_an_objective_is_traced_for_the_first_model_only() -> None:
    traces: list[int] = []

    def steps(lams: jax.Array, terms: object) -> jax.Array:
        traces.append(1)
        return ((lams[1:] - lams[:-1]) ** 2).sum()

    hso = Hso(objective=steps)
    search_many([Lane(preset("sd15"), 5, method=hso)], effort=EFFORT)
    before = len(traces)
    search_many([Lane(preset("sdxl"), 5, method=hso)], effort=EFFORT)
    assert before > 0 and len(traces) == before
