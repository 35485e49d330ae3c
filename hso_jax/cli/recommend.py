"""`recommend` and `zoo`: the commands that answer at once from what is shipped."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from hso_jax import schedule_file
from hso_jax.checks import printable
from hso_jax.cli import commands, common, show
from hso_jax.files import check_writable, is_stdout, json_text, write_all
from hso_jax.shipped import recommend as shipped
from hso_jax.shipped.distilled import of_folder
from hso_jax.shipped.recommend import SHIPPED, Recommendation
from hso_jax.shipped.zoo import zoo as zoo_schedule


def recommend(args: argparse.Namespace) -> int:
    """Say what to use for each model and number of steps; with a pipeline, measure it."""
    if args.pipeline is not None:
        return commands.call_registered("recommend", args)
    if args.output is not None:
        check_writable(args.output, "schedules", args.force)
    nfes, models = common.parse_nfe(args.nfe), common.read_models(args)
    found = [_one(model, nfe, args) for model in models for nfe in nfes]
    names = [model.name for model in models for _ in nfes]
    depend = {name for name, one in zip(names, found, strict=True) if one.method != SHIPPED}
    common.warn_of_unused_size(args, set(names) - depend)
    if args.output is not None:
        document = schedule_file.to_json([one.schedule for one in found])
        write_all([(args.output, document.encode())], args.written)
    if args.json:
        common.write(json_text([_fields(one) for one in found]))
    elif args.output is None or not is_stdout(args.output):
        _print(found)
    for path in args.written:
        common.warn(f"wrote {printable(path)}")
    return 0


def _one(model: common.Model, nfe: int, args: argparse.Namespace) -> Recommendation:
    distilled: str | bool | None = False if args.distilled == "no" else args.distilled
    if model.guidance is None and distilled is None:
        distilled = of_folder(Path(model.name))
    guidance = args.guidance if distilled else common.guidance_of(model, args.guidance)
    return shipped.recommend(
        model.noise, nfe, guidance=guidance, solver=args.scheduler, distilled=distilled, usual=model.guidance
    )


def _fields(found: Recommendation) -> dict[str, Any]:
    """The fields of a recommendation for JSON."""
    s = found.schedule
    return {
        "model": s.model,
        **{name: getattr(found, name) for name in ("nfe", "guidance", "solver")},
        "nodes": found.method,
        **{name: getattr(found, name) for name in ("error", "gain", "distilled")},
        "timesteps": s.timesteps.tolist(),
        "sigmas": s.sampler_sigmas().tolist(),
        "coefficients": None if s.coefficients is None else s.coefficients.tolist(),
        "errors": found.errors,
        "reason": found.reason,
    }


def _print(found: Sequence[Recommendation]) -> None:
    for i, one in enumerate(found):
        s = one.schedule
        used = f"{one.solver} with {'its own schedule' if one.method == SHIPPED else one.method}"
        lines = [
            f"{s.model}, N = {one.nfe}, guidance {one.guidance:g}",
            f"use           {used if one.distilled is None else 'the solver and the grid that the model comes with'}",
            f"levels        {show.levels(s)}",
            f"sigmas        {' '.join(f'{x:.4g}' for x in s.sampler_sigmas())}",
        ]
        if s.coefficients is not None:
            lines.append(f"coefficients  {show.coefficients(s)}")
        common.say(*([""] if i else []), *map(printable, lines))
        if one.errors and len(found) == 1:
            common.say(_errors(one))
        common.say(printable(one.reason))


def _errors(found: Recommendation) -> Table:
    """The predicted errors: a row for each kind of nodes, a column for each solver; a mark at the one to use."""
    table = Table(title="predicted error (< is what to use)", title_justify="left")
    table.add_column("nodes", no_wrap=True)
    for solver in found.errors:
        table.add_column(solver, justify="right", no_wrap=True)
    for name in dict.fromkeys(name for rows in found.errors.values() for name in rows):
        cells = []
        for solver, rows in found.errors.items():
            mark = " <" if (solver, name) == (found.solver, found.method) else ""
            cells.append(f"{rows[name]:.3g}{mark}" if name in rows else "")
        table.add_row("its own" if name == SHIPPED else name, *cells)
    return table


def zoo(args: argparse.Namespace) -> int:
    """Print shipped schedules and write them where a file is named."""
    output = common.named_output(args)
    if output is not None:
        check_writable(output, "schedules", args.force)
    nfes, models = common.parse_nfe(args.nfe), common.read_models(args)
    schedules = [
        zoo_schedule(model.noise, nfe, args.solver, guidance=common.guidance_of(model, args.guidance))
        for model in models
        for nfe in nfes
    ]
    common.warn_of_unused_size(args, [model.name for model in models])
    document = schedule_file.to_json(schedules)
    if output is not None:
        write_all([(output, document.encode())], args.written)
    if args.json:
        common.write(document)
    else:
        names, solvers = (", ".join(dict.fromkeys(getattr(s, n) for s in schedules)) for n in ("model", "solver"))
        weights = ", ".join(dict.fromkeys(f"{s.guidance:g}" for s in schedules))
        show.print_schedules(schedules, f"{names}: {solvers}, guidance {weights}")
        show.print_advice(schedules)
    for path in args.written:
        (common.warn if args.json else common.say)(f"wrote {printable(path)}")
    return 0
