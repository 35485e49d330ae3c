"""`compare`: rules, HSO and what is recommended side by side, by the solver's error."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from hso_jax import schedule_file, solvers
from hso_jax.baselines import BASELINES, baseline, inapplicable
from hso_jax.checks import check_guidance, printable
from hso_jax.cli import arguments, search_arguments, tables, terminal
from hso_jax.cli.compiling import prepare_jax
from hso_jax.cli.searches import exit_code
from hso_jax.files import check_writable, figure_kind, write_all
from hso_jax.hso import Hso
from hso_jax.noise import PRESETS, NoiseSchedule
from hso_jax.schedule import LAYOUTS, Schedule
from hso_jax.searches import lanes, search_many
from hso_jax.shipped.recommend import recommend
from hso_jax.shipped.zoo import NotInZooError
from hso_jax.solver_error_method import solver_error

SOLVER = "dpmpp-2m"


def add_parsers(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    examples = """\
examples:
  hso-jax compare
  hso-jax compare --model sdxl --nfe 4,8 --solver unipc-3 --guidance 5

The least error first, of the solver's samples on reference problems; the last rows are what is recommended for this
solver and of all.
"""
    text = "rank HSO, every rule (Karras, AYS, ...) and what is recommended by the solver's error; MEP, SPF beside"
    parser = arguments.add_command(subparsers, "compare", _compare, text, examples)
    arguments.add_models(parser)
    search_arguments.add_p(parser)
    parser.add_argument("--nfe", default="6", help="numbers of model evaluations; default %(default)s")
    parser.add_argument("--layout", choices=LAYOUTS, default="node", help="default %(default)s")
    parser.add_argument("--solver", default=SOLVER, help="whose error is measured; default %(default)s")
    parser.add_argument("--guidance", type=float, help="default: a preset's usual weight, else 1")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", type=Path, help="also draw them (.png, .svg, .pdf)")
    parser.add_argument("--json", action="store_true", help="print the schedules as a schedule file on stdout")
    parser.add_argument("--force", action="store_true", help="replace a picture that hso-jax did not write")


def _compare(args: argparse.Namespace) -> int:
    models = arguments.read_models(args)
    nfes = arguments.parse_nfe(args.nfe)
    args.solver = solvers.canonical(args.solver)
    if args.plot is not None:
        figure_kind(args.plot)
        check_writable(args.plot, "picture", args.force)
    methods = [
        lanes([n], nfes, layouts=[args.layout], seeds=[args.seed], method=Hso(relax=True, p=p)) for n, p in models
    ]
    prepare_jax()
    names = args.model or [arguments.DEFAULT_MODEL]
    skipped: list[str] = []
    rows: list[Schedule] = []
    with terminal.progress() as progress:
        task = progress.add_task("comparing", total=len(models) * len(nfes))
        for name, (noise, p), many in zip(names, models, methods, strict=True):
            weight = check_guidance(args.guidance, PRESETS[name].guidance if name in PRESETS else 1.0)
            skipped += [reason for rule in BASELINES if (reason := inapplicable(rule, noise))]
            for found in search_many(many):
                every = [found, *_rules(noise, found.nfe, args.layout, p, skipped)]
                rows += _ranked(every, noise, args.solver, weight)
                rows += _recommended(noise, found.nfe, args.solver, weight, skipped) if args.layout == "node" else []
                progress.advance(task)
    document = schedule_file.checked_json(rows)
    if args.plot is not None:
        from hso_jax.plots import encoded, methods_figure

        write_all([(args.plot, encoded(methods_figure(rows), figure_kind(args.plot)))], args.written)
    for reason in dict.fromkeys(skipped):
        terminal.warn(f"skipped: {reason}", style="dim")
    if args.json:
        terminal.write(document)
        return exit_code(rows)
    told = ", ".join(printable(noise.name) for noise, _ in models)
    tables.print_schedules(
        rows,
        f"{told}, layout {args.layout}: error of {args.solver}, or of the solver that is named",
        without=("coefficients", "guidance", "asked"),
    )
    terminal.say("MEP grows with the covered range of t: compare it between schedules with the same ends.")
    return exit_code(rows)


def _rules(noise: NoiseSchedule, nfe: int, layout: str, p: float, skipped: list[str]) -> list[Schedule]:
    found = []
    for name in BASELINES:
        if inapplicable(name, noise):
            continue
        try:
            found.append(baseline(name, noise, nfe, layout=layout, p=p))
        except ValueError as error:  # a narrow range of noise may leave a rule's levels no room
            skipped.append(f"{name} at N = {nfe}: {error}")
    return found


def _ranked(every: Sequence[Schedule], noise: NoiseSchedule, solver: str, guidance: float) -> list[Schedule]:
    """With the solver's error, the least first; those without one last."""
    found = []
    for schedule in every:
        error = solver_error(schedule, noise, solver=solver, guidance=guidance)
        found.append(schedule.with_scores(error=error if math.isfinite(error) else None))
    return sorted(found, key=lambda s: math.inf if s.error is None else s.error)


def _recommended(noise: NoiseSchedule, nfe: int, solver: str, weight: float, skipped: list[str]) -> list[Schedule]:
    """What is recommended for the solver and of all, once where it is the same."""
    found: list[Schedule] = []
    for kept in (solver, None):
        try:
            best = recommend(noise, nfe, guidance=weight, solver=kept, distilled=False).schedule
        except NotInZooError as error:
            skipped.append(f"a recommendation at N = {nfe}: {error.why}")
        else:
            found += [best] if best not in found else []
    return found
