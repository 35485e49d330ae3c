"""The search for nodes and coefficients together: what it finds, what that depends on, and what is refused."""

from __future__ import annotations

import functools
import itertools
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import solver_error_cells as shared
from solver_error_cells import EFFORT, SAMPLES, SD, SD3, compilations, small_family

from hso_jax import Hso, Lane, Schedule, SolverError, baseline, preset, search_many, solver_error, solvers
from hso_jax import solver_error_levels as lanes_module
from hso_jax.compiling import compiler_options
from hso_jax.error import error_gradient
from hso_jax.lower.quasi_newton import lams_of, logits_of, nodes_of
from hso_jax.noise import discrete, s_of_lam
from hso_jax.problems import ModelError
from hso_jax.schedule_file import to_json
from hso_jax.searches import checked
from hso_jax.solver_error_levels import Coefficients, data_of, deviating_weights, pack
from hso_jax.solvers.weights import grid

START = "dpmpp-2m"
SMALL = Coefficients(history=3, start=START, known=("ddim",), steps=30, final_steps=20, part=2)
"""Every test's options up to what may differ between the lanes of one program."""
PLAIN: dict[str, Any] = {
    "detail": 0.0,
    "problems": small_family(),
    "samples": SAMPLES,
    "model_error": ModelError(eta=0.0),
    "power": 1.0,
}


def lane(noise: Any, nfe: int, layout: str = "node", w: float = 1.0, *, start: Any = None, **options: Any) -> Lane:
    free = SMALL._replace(**{"penalty": 0.1} | options)
    return shared.lane(noise, nfe, layout, "nonstationary", w, start=start, coefficients=free)


def grid_of_lanes() -> list[Lane]:
    axes = itertools.product((SD, SD3), (2, 4), ("node", "interval"), (1.0, 5.0))
    return [lane(*cell) for cell in axes]


def find(lanes: Sequence[Lane], **options: Any) -> list[Schedule]:
    """The lanes' schedules, in calls of one shape: both programs are compiled once."""
    start = lanes[0].method.start  # type: ignore[union-attr]
    first = None if start is None else [baseline("trailing", noise, 4, layout="interval") for noise in (SD, SD3)]
    whole = [
        lane(noise, 4, "interval", w, start=first and first[i]) for i, noise in enumerate((SD, SD3)) for w in (1.0, 5.0)
    ]
    filled = [*whole, *lanes]
    filled += [whole[0]] * (-len(filled) % shared.BATCH)
    return search_many(filled, effort=EFFORT, **options)[len(whole) : len(whole) + len(lanes)]


def find_known(lanes: Sequence[Lane]) -> list[list[Schedule]]:
    """For each lane what `START` and DDIM find on their own."""
    known = [shared.lane(*x[:3], name, x.method.guidance) for name in (START, "ddim") for x in lanes]  # type: ignore[union-attr]
    found = search_many(known, effort=EFFORT)
    return [found[i :: len(lanes)] for i in range(len(lanes))]


@pytest.fixture(scope="module")
def found() -> list[tuple[Lane, Schedule]]:
    lanes = grid_of_lanes()
    return list(zip(lanes, find(lanes), strict=True))


def error_of(schedule: Schedule, noise: Any, **options: Any) -> float:
    return solver_error(schedule, noise, **PLAIN | options)


def coefficients_on(schedule: Schedule) -> np.ndarray:
    """[N, 2] those of `START` on a schedule's nodes, in float64."""
    with jax.enable_x64(True):
        lams = jnp.asarray(schedule.lams[: schedule.nfe])
        end = jnp.inf if schedule.end == "clean" else schedule.lams[-1]
        steps = grid(lams, jnp.asarray(end), jnp.asarray(schedule.nfe))
        return np.asarray(solvers.coefficients_of(solvers.weights(START, lams, end=end), steps, SMALL.history))


def amplification_of(schedule: Schedule, coefficients: np.ndarray) -> float:
    end = math.inf if schedule.end == "clean" else schedule.lams[-1]
    return float(solvers.amplification(solvers.nonstationary(schedule.lams[: schedule.nfe], coefficients, end=end)))


def test_what_a_result_says_is_so(found: Any) -> None:
    """Measured again on the same problems; both layouts, both kinds of noise end, without and with guidance."""
    assert sum(s.coefficients is not None for _, s in found) >= 12
    for x, s in found:
        assert (s.nfe, s.layout, s.guidance, s.model) == (x.nfe, x.layout, x.method.guidance, x.noise.name)
        assert s.end == ("clean" if s.layout == "node" else "t_eps") and s.t[0] == 1.0
        assert s.lams[0] == -np.inf if x.noise is SD3 else s.lams[0] == pytest.approx(x.noise.noise_end)
        assert error_of(s, x.noise) == pytest.approx(s.error, rel=2e-4)
        if s.coefficients is not None:
            assert (s.solver, s.method) == ("nonstationary", "solver-error")
            assert s.result in ("converged", "max_steps") and s.coefficients.shape == (x.nfe, 2)
            assert s.scores.amplification == pytest.approx(amplification_of(s, s.coefficients), rel=1e-3)


def test_the_result_beats_or_is_the_known_solver(found: Any) -> None:
    """The known ones as they are found without coefficients; `gain` draws the line."""
    known = find_known([x for x, _ in found])
    for (_, s), row in zip(found, known, strict=True):
        best = min(row, key=lambda one: one.error)
        if s.coefficients is None:
            assert s == best and s.solver in (START, "ddim")
        else:
            assert s.error <= (1.0 - SMALL.gain) * best.error and s.others_own_nodes == {best.solver: best.error}
    lanes = [lane(SD, 4, gain=gain) for gain in (0.0, 0.999)]
    free, same = find(lanes)
    assert free.solver == "nonstationary" and free.error < same.error
    i = next(i for i, (x, _) in enumerate(found) if x[:3] == lanes[0][:3] and x.method.guidance == 1.0)
    assert same == min(known[i], key=lambda one: one.error) and same.coefficients is None


def test_one_evaluation_has_no_coefficients_to_choose() -> None:
    """So the known solver comes back."""
    (s,) = find([lane(SD, 1)])
    assert s.coefficients is None and s.solver in (START, "ddim") and len(s.t) == 1


@pytest.mark.slow
def test_a_large_penalty_gives_the_known_solver() -> None:
    """On nodes that move all the same."""
    for layout in ("node", "interval"):
        start = baseline("trailing", SD, 4, layout=layout)
        stiff, free = find([lane(SD, 4, layout, start=start, penalty=p) for p in (1e5, 0.0)])
        held, moved = (np.abs(s.coefficients - coefficients_on(s)).max() for s in (stiff, free))
        # Float32 leaves some 1e-4 of a stiff penalty, by machine more or less.
        assert moved > 0.05 and held < 0.01 * moved
        assert stiff.error == pytest.approx(error_of(stiff, SD, solver=START), rel=1e-3)
        assert free.error < stiff.error < error_of(start, SD, solver=START)


@pytest.mark.slow
def test_growth_is_held_as_far_as_it_pays() -> None:
    """What exceeds the limit costs 20 (log of the excess)^2 of log E^2, and may not cost more than was gained."""
    start, growths = baseline("trailing", SD, 4), (1.0, 1.3, 1e5)
    begin, error = amplification_of(start, coefficients_on(start)), error_of(start, SD, solver=START, guidance=1.0)
    rows = find([lane(SD, 4, start=start, growth=growth, penalty=0.0) for growth in growths])
    for growth, s in zip(growths, rows, strict=True):
        excess = max(math.log(s.scores.amplification / (growth * begin)), 0.0)
        assert 20 * excess**2 <= 2 * math.log(error / s.error) * (1 + 1e-3)
    tight, less, free = (s.scores.amplification for s in rows)
    assert tight < less < free and free > 1.3 * begin


@pytest.mark.slow
def test_a_given_start_is_measured_for_its_solver() -> None:
    """A rule has no error and names no solver: it comes back for `START` where coefficients gain too little."""
    start = baseline("trailing", SD, 4)
    better, same = find([lane(SD, 4, start=start, gain=gain) for gain in (0.0, 0.999)])
    wanted = error_of(start, SD, solver=START, guidance=1.0)
    assert better.others_own_nodes == {START: pytest.approx(wanted, rel=1e-6)}
    assert (same.method, same.solver, same.guidance) == ("trailing", START, 1.0) and same.coefficients is None
    assert same.error == pytest.approx(wanted, rel=1e-6) and same.t.tobytes() == start.t.tobytes()


@pytest.mark.slow
def test_lanes_do_not_see_each_other(found: Any) -> None:
    """To the bit, in another order and beside lanes with other options."""
    rows = [row for row in found if row[0].nfe == 4][::-1]
    others = [lane(SD, 2, penalty=3.0, growth=1.1), lane(SD3, 3, w=5.0, penalty=0.0)]
    again = find([*others, *(x for x, _ in rows)])[len(others) :]
    assert again == [s for _, s in rows]


@pytest.mark.slow
def test_a_failed_lane_leaves_the_others_alone(found: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = lanes_module.error_data

    def broken(start: float, guidance: float = 1.0, **options: Any) -> Any:
        data = real(start, guidance, **options)
        return data._replace(truth=data.truth * np.nan) if guidance == 5.0 else data

    monkeypatch.setattr(lanes_module, "error_data", broken)
    for (x, before), after in zip(found, find([x for x, _ in found]), strict=True):
        if x.method.guidance == 5.0:
            assert after.result == "not_finite" and after.error is None and after.coefficients is None
            assert after.solver in (START, "ddim") and len(after.t) == x.nodes
        else:
            assert after == before


def test_a_killed_search_is_resumed_to_the_same_bytes(found: Any, tmp_path: Path) -> None:
    """After the known searches: what was searched is not searched again."""
    lanes, file, told = [x for x, _ in found[:12]], tmp_path / "c.json", []

    class Stop(Exception):
        pass

    def stop(*done: int) -> None:
        told.append(done)
        if len(told) == 2:
            raise Stop

    with pytest.raises(Stop):
        find(lanes, progress=stop, checkpoint=file)
    before = records_of(file)
    assert {name: len(records) for name, records in before.items() if records} == {"known": 2}
    rest: list[tuple[int, ...]] = []
    resumed = find(lanes, progress=lambda *done: rest.append(done), checkpoint=file)
    assert to_json(resumed) == to_json([s for _, s in found[:12]])
    assert rest[0] >= told[1] and rest[-1] == (16, 16)
    after = records_of(file)
    assert all(after[name][: len(records)] == records for name, records in before.items())


def records_of(file: Path) -> dict[str, list[Any]]:
    """A checkpoint's records by what was searched."""
    found: dict[str, list[Any]] = {}
    for line in file.read_text().splitlines()[1:]:
        one = json.loads(line)
        found.setdefault(one["search"].rpartition("/")[2], []).append(one["record"])
    return found


def test_the_second_model_compiles_nothing(found: Any) -> None:
    """Nor does another prediction, penalty, growth or gain."""
    mine = discrete(alphas_cumprod=np.linspace(0.99, 0.01, 40), name="mine")
    lanes = [lane(preset("sd21"), 3, penalty=0.2), lane(SD, 4, "interval", 5.0, growth=3.0, gain=0.5)]
    with compilations() as more:
        find(lanes)
    assert not more
    with compilations() as more:
        search_many([x._replace(noise=mine) if x.noise is SD else x for x, _ in found], effort=EFFORT)
    assert not more


@pytest.mark.slow
def test_the_gradient_is_that_of_central_differences() -> None:
    """At both kinds of noise end and in both layouts, with a model's error."""
    cells, start = [(SD, "node"), (SD3, "interval")], "unipc-3"
    with jax.enable_x64(True):
        lanes = checked([shared.lane(cell[0], 4, cell[1], start, model_error=ModelError()) for cell in cells])
        packed, bank, _ = pack(lanes, (start,))
        count = packed.starts.shape[-1]

        @functools.partial(jax.jit, compiler_options=compiler_options("cpu"))
        def function(row: Any, bank: Any, z: jax.Array) -> tuple[jax.Array, jax.Array]:
            def weights(z: jax.Array) -> solvers.Weights:
                lams = lams_of(row.range, nodes_of(row.range, z[: count + 1]))
                return deviating_weights(start, row, lams, z[count + 1 :].reshape(count, 3))

            return error_gradient(data_of(bank, row), weights, z, 2)

        for i, (noise, layout) in enumerate(cells):
            row = jax.tree.map(lambda x: x[i], packed)  # noqa: B023
            nodes = s_of_lam(baseline("trailing", noise, 4, layout=layout).lams)
            rng, nodes = np.random.default_rng(3), np.pad(nodes, (0, count - len(nodes)), mode="edge")
            logits = np.asarray(logits_of(row.range, jnp.asarray(nodes)))
            z = np.concatenate([logits + 0.2 * rng.normal(size=count + 1), 0.2 * rng.normal(size=3 * count)])
            gradient = np.asarray(function(row, bank, z)[1])
            differences = [
                (function(row, bank, z + h)[0] - function(row, bank, z - h)[0]) / 2e-5 for h in 1e-5 * np.eye(len(z))
            ]
            np.testing.assert_allclose(gradient, differences, rtol=0, atol=1e-6 * np.abs(gradient).max())
            assert np.sum(gradient != 0) >= 9  # three gaps at least, and six coefficients of predictions that exist


def test_defaults_follow_guidance_and_the_model_s_error() -> None:
    """The start, and the penalty; `size` by hand at Stable Diffusion's noise end."""
    of_x0 = 0.1 * math.exp(-SD.noise_end)
    for w, start, branches in ((1.0, "unipc-3", 1.0), (5.0, "dpmpp-2m", 41.0 - 0.9 * 40.0)):
        (x,) = checked([Lane(SD, 4, method=SolverError("nonstationary", w, model_error=ModelError(eta=0.1)))])
        how: Any = x.method
        assert how.coefficients.start == start and set(how.coefficients.known) == {"dpmpp-2m", "unipc-3"}
        assert how.coefficients.penalty == pytest.approx(0.1 + 0.075 * of_x0**2 * branches)


def bad(solver: str = "nonstationary", **options: Any) -> Callable[[], SolverError]:
    return functools.partial(SolverError, solver, **options)


def having(**options: Any) -> Callable[[], SolverError]:
    return bad(coefficients=Coefficients(**options))


BAD: dict[str, tuple[Callable[[], SolverError], str]] = {
    "no history": (having(history=1), r"coefficients\.history is 1; need .* from 2 to 4"),
    "long history": (having(history=5), r"coefficients\.history is 5; need .* from 2 to 4"),
    "negative penalty": (having(penalty=-0.1), r"coefficients\.penalty is -0\.1; need a finite number at least 0"),
    "growth": (having(growth=0.5), r"coefficients\.growth is 0\.5; need a finite number at least 1"),
    "gain": (having(gain=1.0), r"coefficients\.gain is 1\.0; need a finite number at least 0 and below 1"),
    "no steps": (having(steps=0), r"coefficients\.steps is 0"),
    "no part": (having(part=0), r"coefficients\.part is 0"),
    "start of more": (
        having(start="unipc-3", history=3),
        "start is 'unipc-3', which combines 4 predictions; coefficients.history is 3",
    ),
    "start of two calls": (
        having(start="heun"),
        "coefficients has 'heun', which is no multistep solver; use 'dpmpp-2m'",
    ),
    "known of two calls": (
        having(known=("heun",)),
        "coefficients has 'heun', which is no multistep solver; use 'dpmpp-2m'",
    ),
    "unknown known": (having(known=("adams",)), "solver is 'adams'; use one of ddim"),
    "known without a tuple": (having(known="ddim"), r"coefficients\.known is 'ddim'; need names in a tuple"),
    "options of another kind": (bad(coefficients={"history": 3}), r"need a Coefficients\(\.\.\.\)"),
    "another solver": (
        bad("unipc-3", coefficients=Coefficients()),
        "coefficients are given for solver 'unipc-3'; only 'nonstationary' has them free",
    ),
    "start of another model": (
        bad(start=baseline("beta", SD3, 4)),
        "start is for sd3-medium, N = 4; the search is for sd15",
    ),
    "a method as start": (bad(start=Hso()), "a Schedule as start; leave start out"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_options_are_refused_with_a_fix(case: str) -> None:
    made, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        search_many([Lane(SD, 4, method=made())])
