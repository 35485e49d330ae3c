"""Which cells of the project's own networks there are, and in which order.

The order makes a run that is stopped early useful: whole columns of the tables, the rules and the fast searches
first, then the studies, guidance, and last what takes minutes a cell.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from benchmarks.compared import COMPARED
from benchmarks.methods import ABLATIONS, FREE_FIRST
from benchmarks.models.load import MODELS
from benchmarks.runner import Cell, check_names
from hso_jax.baselines import BASELINES
from hso_jax.solvers import NONSTATIONARY

BUDGETS = (6, 4, 8, 10, 5, 7)  # in the order of work
COSTLY = ("gits", "direct", "autodiffusion")  # run the network to find a schedule
QUICK = (*BASELINES, "exponential", "hso", "hso-dm-nonuni", "solver-error", NONSTATIONARY)
METHODS = (*QUICK, *ABLATIONS, *COSTLY)
GUIDANCE = (1.0, 2.0, 4.0)
GUIDED = (
    *("solver-error", FREE_FIRST, NONSTATIONARY, "hso", "trailing", "karras", "ays", "beta-t", "uniform-lam"),
    *("recommend", "zoo"),
)
SHIPPED = ("recommend", "zoo")  # measured where they are asked for


def plan(
    models: Collection[str] = MODELS,
    solvers: Collection[str] = COMPARED,
    nfes: Collection[int] = BUDGETS,
    methods: Collection[str] = METHODS,
    guidance: Collection[float] = GUIDANCE,
    samples: int = 256,
) -> list[Cell]:
    """List the cells in the order of work: without guidance every method, with guidance the methods `GUIDED`."""
    check_names("model", models, MODELS)
    check_names("solver", solvers, COMPARED)
    check_names("method", methods, (*METHODS, *SHIPPED))
    if samples < 2:
        raise ValueError(f"samples is {samples}; a spread needs 2 or more")
    budgets = [n for n in BUDGETS if n in nfes] + sorted(set(nfes) - set(BUDGETS))

    def block(known: Iterable[str], weight: float = 1.0) -> list[Cell]:
        return [
            Cell(model, weight, solver, nfe, method, 0, samples, "float32")
            for nfe in budgets
            for model in models
            for solver in solvers
            for method in known
            if method in methods
        ]

    blocks = [block((*QUICK, *SHIPPED)), block(ABLATIONS)] if 1.0 in guidance else []
    blocks += [block(GUIDED, weight) for weight in guidance if weight != 1.0]
    blocks += [block([method]) for method in COSTLY] if 1.0 in guidance else []
    if not (cells := [cell for one in blocks for cell in one]):
        raise ValueError(f"there is nothing to measure: with guidance only {', '.join(GUIDED)} are")
    return cells
