"""Which cells there are on networks from outside; `benchmarks.measure` measures them."""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks import measure, runner
from benchmarks.methods import OWN_SOLVER, RULES, prepare
from benchmarks.runner import ANY, COMPARED, SOLVERS, Cell, Record, check_names, rounded
from benchmarks.targets import Networks
from hso_jax.error import Chunks, error_data, in_chunks
from hso_jax.shipped.zoo import nearest_guidance, rule_errors, shipped_guidance
from hso_jax.solver_error_method import measure as error_on
from hso_jax.solvers import NONSTATIONARY

FREE = NONSTATIONARY
SEARCHED = ("hso", "solver-error")
SHIPPED = ("recommend", "zoo")
DEFAULT = (*SHIPPED, *RULES)
"""What is measured if nothing else is asked for; the searches are named to be measured."""

KNOWN = (*DEFAULT, *SEARCHED, FREE)
BUDGETS = (4, 5, 6, 8, 10)
IMAGES = 64


def run(
    networks: Networks,
    path: Path,
    *,
    nfes: Sequence[int] = BUDGETS,
    solvers: Collection[str] = COMPARED,
    methods: Collection[str] = DEFAULT,
    guidance: float = 1.0,
    images: int = IMAGES,
    again: Collection[str] = (),
) -> int:
    """Measure on all networks what the records do not have yet; returns how many cells were measured.

    Predictions of rules that were measured before are brought up to date, too.

    Raises:
        ValueError: for unknown names, too few images, or records of networks with other files.
    """
    check_names("solver", solvers, SOLVERS)
    check_names("method", [*methods, *again], KNOWN)
    if images < 2:
        raise ValueError(f"count is {images}; a spread needs 2 or more")
    cells = []  # network after network, in each what is shipped first
    for target in map(networks.target, networks.names()):
        for method in methods if guidance == 1.0 or target.classes else ():
            own: Collection[str] = (*solvers, FREE) if method == "zoo" else solvers
            if method in OWN_SOLVER:
                own = (ANY if method == "recommend" else FREE,)
            size = target.count(images)
            cells += [Cell(target.name, guidance, s, n, method, 0, size, "float32") for s in own for n in nfes]
    measured = measure.run(path, cells, networks, images=images, again=again)
    bring_up_to_date(path, networks)
    return measured


def bring_up_to_date(path: Path, networks: Networks) -> None:
    """Predict the rules' errors as the library does now, which may have another zoo than a record's.

    Where nothing is shipped for a network's noise, the rules are run on the reference problems.
    """
    targets = {name: networks.target(name) for name in networks.names()}

    @functools.cache
    def problems(name: str, guidance: float) -> Chunks:
        noise = targets[name].noise
        data = error_data(noise.noise_end, guidance, prediction=noise.prediction)
        return in_chunks(data, data.noise.shape[1])

    def predicted(r: Record) -> Record:
        if r.model not in targets or r.method not in RULES or r.solver not in SOLVERS:
            return r
        noise = targets[r.model].noise
        if not shipped_guidance(noise):
            schedule = prepare(r.method, targets[r.model], r.solver, r.nfe).schedule
            return replace(r, problem_error=rounded(error_on(schedule, r.solver, problems(r.model, r.guidance))))
        errors = rule_errors(noise, r.nfe, nearest_guidance(noise, r.guidance), r.solver)
        return replace(r, problem_error=rounded(errors.get(r.method)))

    runner.amend(path, predicted)
