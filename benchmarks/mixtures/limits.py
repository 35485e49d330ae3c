"""Reference schedules on held-out problems, beside every rule, HSO, and the best that direct search finds there.

    python -m benchmarks.mixtures.limits                      SD's noise, guidance 1, as Markdown
    python -m benchmarks.mixtures.limits --model sd3-medium --guidance 7.5 --nfe 4,6

Schedules are found on the default family of problems and judged on others (each kind once, with other seeds, so other
means and classes), with other noise. The limit is the best schedule that is known for the held-out problems
themselves: of direct searches on them, from several seeds, and of the transferred schedule refined there. These
searches see other noise than the one that everything, the limit too, is judged with: what a search gains by fitting
the rare samples of its own noise is not a limit that any schedule of these problems could reach.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from benchmarks import runner
from benchmarks.compared import COMPARED
from benchmarks.tables import markdown
from hso_jax import Hso, Lane, NoiseSchedule, Schedule, SolverError, baseline, preset, search, search_many, solver_error
from hso_jax.baselines import BASELINES, inapplicable
from hso_jax.problems import KINDS, Problem, family

BUDGETS = (4, 5, 6, 8, 10)
HELD_OUT, SAMPLES, SEED, JUDGE_SEED = range(1000, 1000 + len(KINDS)), 192, 77, 78


@functools.cache
def held_out() -> Problem:
    """A problem of every kind, none of which a schedule was optimised on."""
    return family(HELD_OUT)


def rules(noise: NoiseSchedule, nfe: int) -> dict[str, Schedule]:
    """Make the schedule of HSO in the paper's box, and of every rule that applies to this noise schedule."""
    known = [name for name in BASELINES if not inapplicable(name, noise)]
    return {"hso": search(noise, nfe, method=Hso(relax=True)), **{name: baseline(name, noise, nfe) for name in known}}


def limits(lanes: list[Lane], transferred: list[Schedule], seeds: int) -> list[Schedule]:
    """The best schedule found for the held-out problems themselves, by the noise it was searched with; one a lane."""

    def there(lane: Lane, **options: Any) -> SolverError:
        how: Any = lane.method
        return dataclasses.replace(how, problems=held_out(), samples=SAMPLES, noise_seed=SEED, **options)

    own = [lane._replace(method=there(lane)) for lane in lanes]
    found = [search_many([lane._replace(seed=seed) for lane in own]) for seed in range(seeds)]
    pairs = zip(lanes, transferred, strict=True)
    found.append(search_many([lane._replace(method=there(lane, start=start)) for lane, start in pairs]))
    return [min(column, key=lambda s: np.inf if s.error is None else s.error) for column in zip(*found, strict=True)]


def table(noise: NoiseSchedule, guidance: float, budgets: Sequence[int], seeds: int) -> list[dict[str, Any]]:
    """One record a cell: errors on the held-out problems by method, and the limit."""
    lanes = [Lane(noise, n, method=SolverError(s, guidance, compare=())) for s in COMPARED for n in budgets]
    begin = time.perf_counter()
    found = search_many(lanes)
    seconds = time.perf_counter() - begin
    print(f"{len(lanes)} searches on the solver's error: {seconds:.1f} s with compilation")
    judge = functools.partial(
        solver_error, noise=noise, guidance=guidance, problems=held_out(), samples=SAMPLES, seed=JUDGE_SEED
    )
    others = {n: rules(noise, n) for n in budgets}
    judged = [judge(s, solver=s.solver) for s in found]
    best = [judge(s, solver=s.solver) for s in limits(lanes, found, seeds)]
    records = []
    for lane, schedule, error, limit in zip(lanes, found, judged, best, strict=True):
        errors = {name: judge(s, solver=schedule.solver) for name, s in others[lane.nfe].items()}
        records.append({"solver": schedule.solver, "nfe": lane.nfe, "limit": limit, "solver-error": error, **errors})
    return records


def told(records: list[dict[str, Any]]) -> str:
    """The records as a table; the best method of a row in bold, the limit aside."""
    names, rows = [n for n in records[0] if n not in ("solver", "nfe", "limit")], []
    for r in records:
        least = min(r[n] for n in names)
        cells = [f"**{r[n]:.4f}**" if r[n] == least else f"{r[n]:.4f}" for n in names]
        above = f"{100 * (r['solver-error'] / r['limit'] - 1):.1f}%"
        rows.append([f"{r['solver']} {r['nfe']}", f"{r['limit']:.4f}", *cells, above])
    return markdown(["solver, N", "limit", *names, "above limit"], rows)


def main() -> None:
    """Print the table."""
    parser = runner.command("python -m benchmarks.mixtures.limits", __doc__)
    parser.add_argument("--model", default="sd15")
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--nfe", type=runner.budgets, default=BUDGETS)
    parser.add_argument("--seeds", type=int, default=3, help="direct searches for the limit")
    options = parser.parse_args()
    if "JAX_NUM_CPU_DEVICES" not in os.environ:
        jax.config.update("jax_num_cpu_devices", min(os.cpu_count() or 1, 8))
    records = table(preset(options.model), options.guidance, options.nfe, options.seeds)
    print(f"\n{options.model}, guidance {options.guidance:g}, {jax.devices()[0].platform}, float32\n")
    print(told(records))


if __name__ == "__main__":
    main()
