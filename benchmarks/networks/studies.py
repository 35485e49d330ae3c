"""The paper's five studies, from the records: against DM-NonUni, psi*, model adaptivity, robustness, ablation.

The paper is HSO (Zhu et al., AAAI 2026, arXiv 2511.11688); its figures are quoted in the report's text. Its solvers are
DDIM and third-order UniPC; here DPM++ 2M is shown too, and all end with a step to clean data.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from benchmarks.networks.ablations import DETAILS
from benchmarks.networks.records import Record, schedule_of
from benchmarks.networks.tables import Column, columns, markdown, number
from benchmarks.solvers import SOLVERS

SPACING = {"hso-no-spacing": "none", "hso-penalty": "SPF", "hso": "constraint"}
ABLATION = {"dm-nonuni": "DM-NonUni", "hso-dm-nonuni": "+ bilevel", "mep-only": "+ MEP", "hso": "full"}
NONE = "Not measured.\n"


def against_dm_nonuni(records: Sequence[Record]) -> str:
    """RMSE and FID of DM-NonUni, HSO and the solver-error method."""
    rows = []
    for column, cells in _with(records, ("dm-nonuni", "hso", "solver-error")):
        row = _names(column)
        for metric in ("rmse", "fid", "fid_data"):
            values = [getattr(cells[m], metric) for m in ("dm-nonuni", "hso", "solver-error")]
            row.append(" / ".join(map(number, values)) if values[0] is not None else "")
        rows.append(row)
    return _table(["model", "solver", "N", "RMSE", "FID", "FID to held-out data"], rows)


def psi(records: Sequence[Record]) -> str:
    """What the upper level of HSO chooses, and where the solver-error method's first and last node are, against N."""
    rows = []
    for column, cells in _with(records, ("hso",)):
        chosen = cells["hso"].psi
        own = cells.get("solver-error")
        row = [*_names(column), *(number(chosen.get(x) if chosen else None) for x in ("rho", "t_eps", "t_max"))]
        if own is None:
            row += [""] * 3
        else:
            t = schedule_of(own).t
            row += [number(own.psi.get("p") if own.psi else None), number(float(t[-1])), number(float(t[0]))]
        rows.append(row)
    return _table(["model", "solver", "N", "rho", "t_eps", "t_max", "p", "last t", "first t"], rows)


def adaptivity(records: Sequence[Record]) -> str:
    """RMSE and FID with the model's own schedule, and with the one of the other noise schedule."""
    rows = []
    for column, cells in _with(records, ("hso", "hso-other", "solver-error", "solver-error-other")):
        row = _names(column)
        for metric in ("rmse", "fid"):
            for method in ("hso", "solver-error"):
                row.append(" / ".join(number(getattr(cells[m], metric)) for m in (method, f"{method}-other")))
        rows.append(row)
    head = [f"`{method}`, {metric}" for metric in ("RMSE", "FID") for method in ("hso", "solver-error")]
    return _table(["model", "solver", "N", *head], rows)


def robustness(records: Sequence[Record]) -> str:
    """HSO without a spacing, with the paper's penalty and with the constraint: timesteps, smallest gap in t, errors.

    A schedule that serves several solvers (HSO does not know the solver) is one row.
    """
    found: dict[tuple[Any, ...], dict[str, Record]] = {}
    for (model, _, solver, nfe), cells in _with(records, tuple(SPACING)):
        for method, name in SPACING.items():
            found.setdefault((model, nfe, name, tuple(cells[method].lams)), {})[solver] = cells[method]
    solvers = [s for s in SOLVERS if any(s in cells for cells in found.values())]
    rows = []
    for (model, nfe, name, _), cells in found.items():
        schedule = schedule_of(next(iter(cells.values())))
        steps = " ".join(str(x) for x in np.rint(schedule.timesteps).astype(int))
        errors = [
            " / ".join(number(getattr(cells[s], metric)) if s in cells else "" for s in solvers)
            for metric in ("fid", "rmse")
        ]
        rows.append([model, str(nfe), name, steps, number(schedule.min_spacing), *errors])
    names = " / ".join(SOLVERS[s] for s in solvers)
    head = ["model", "N", "spacing", "timesteps", "smallest gap in t", f"FID: {names}", f"RMSE: {names}"]
    return _table(head, rows, left=1)


def ablation(records: Sequence[Record]) -> str:
    """FID and RMSE of DM-NonUni, with the upper level added, with MEP instead of its bound, and with both."""
    rows = []
    for column, cells in _with(records, tuple(ABLATION)):
        row = _names(column)
        for metric in ("fid", "rmse"):
            row += [number(getattr(cells[m], metric)) for m in ABLATION]
        rows.append(row)
    names = [f"{name}, {metric}" for metric in ("FID", "RMSE") for name in ABLATION.values()]
    return _table(["model", "solver", "N", *names], rows)


def detail_ratios(records: Sequence[Record]) -> dict[tuple[str, str], list[float]]:
    """(model, metric) to the geometric mean, for each of `DETAILS`, of the metric relative to the first, 0."""
    methods = tuple(DETAILS.values())
    logs: dict[tuple[str, str], list[list[float]]] = {}
    for (model, _, _, _), cells in _with(records, methods):
        for metric in ("rmse", "fid"):
            values = [getattr(cells[m], metric) for m in methods]
            if all(values):
                logs.setdefault((model, metric), []).append([math.log(x / values[0]) for x in values])
    return {key: np.exp(np.mean(rows, axis=0)).tolist() for key, rows in logs.items()}


def detail(records: Sequence[Record]) -> str:
    """`detail_ratios` as a table."""
    rows = [
        [model, {"rmse": "RMSE", "fid": "FID"}[metric], *(f"{x:.3f}" for x in ratios)]
        for (model, metric), ratios in detail_ratios(records).items()
    ]
    return _table(["model", "", *(f"detail {x:g}" for x in DETAILS)], rows)


def _with(records: Sequence[Record], methods: Sequence[str]) -> Iterator[tuple[Column, dict[str, Record]]]:
    """The columns without guidance that have all of `methods`."""
    for column, cells in columns(r for r in records if r.guidance == 1.0).items():
        if all(m in cells for m in methods):
            yield column, cells


def _names(column: Column) -> list[str]:
    return [column[0], SOLVERS[column[2]], str(column[3])]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 2) -> str:
    return markdown(head, rows, left) if rows else NONE
