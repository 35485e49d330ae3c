"""`search` and `compare`: the commands that compute schedules and errors with JAX."""

from __future__ import annotations

import argparse
import importlib
import math
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hso_jax import comparison, schedule_file, solvers
from hso_jax.checks import check_guidance, choice, printable
from hso_jax.cli import common, show
from hso_jax.cli.commands import DEFAULT_SOLVER
from hso_jax.files import check_writable, figure_kind, is_stream, write_all
from hso_jax.hso import Box, Hso
from hso_jax.lane import Method
from hso_jax.mep_spf import paper_d_min
from hso_jax.schedule import LAYOUTS, Schedule
from hso_jax.searches import METHODS, lanes, not_searched, search_many
from hso_jax.solver_error_method import SolverError

EXIT_NOT_CONVERGED = 1
_OPTIONS = {
    "hso": ("p", "spacing", "spacing_as", "relax", *Box._fields),
    "solver-error": ("solver", "guidance"),
}


def search(args: argparse.Namespace) -> int:
    """Search, write the schedules and draw them."""
    models = common.read_models(args)
    common.warn_of_unused_size(args)
    names = "-".join(model.noise.name for model in models)
    output = common.named_output(args)
    if output is None and not args.json:
        output = Path(f"schedules-{names}.json")
    picture: Path | None = args.plot
    if picture is None and output is not None and not (args.no_plot or args.json or is_stream(output)):
        picture = output.with_suffix(".png")
    if output is not None:
        check_writable(output, "schedules", args.force)
    if picture is not None:
        figure_kind(picture)
        check_writable(picture, "picture", args.force, [output])
    layout = args.layout or ("node" if args.method == "solver-error" else "both")
    layouts, nfes = LAYOUTS if layout == "both" else (layout,), common.parse_nfe(args.nfe)
    many = [
        lane
        for model in models
        for lane in lanes([model.noise], nfes, layouts=layouts, seeds=[args.seed], method=_method(args, model.p))
    ]
    common.prepare_jax()
    if picture is not None:  # compiling leaves a core idle: let it load matplotlib meanwhile
        threading.Thread(target=importlib.import_module, args=("hso_jax.plots",), daemon=True).start()
    with common.progress() as progress:
        what = f"{len(many)} schedules of {printable(names)}"
        task = progress.add_task(f"compiling a search for {what}", total=len(many))

        def report(done: int, _: int) -> None:
            progress.update(task, description=f"searching {what}", completed=done)

        schedules = search_many(many, progress=report)
    document = schedule_file.to_json(schedules)
    contents = [] if output is None else [(output, document.encode())]
    if picture is not None:
        from hso_jax.plots import encoded, plot

        contents.append((picture, encoded(plot(schedules), figure_kind(picture))))
    write_all(contents, args.written)
    if args.json:
        common.write(document)
    else:
        show.print_schedules(schedules, f"{args.method} schedules for {names}")
        common.say(*(f"wrote {printable(path)}" for path in args.written))
    show.print_advice(schedules)
    if args.method == "hso":
        common.warn("the paper's method minimises a bound, not the error; `hso-jax recommend` chooses by the error")
    return _exit_code(schedules)


def _method(args: argparse.Namespace, p: float) -> Method:
    """The method with the options that were given; options of another method are refused."""
    if args.method not in METHODS and not_searched(args.method):
        command = args.method if args.method in ("recommend", "zoo") else "compare (all rules), recommend or zoo"
        raise ValueError(f"--method {args.method} searches nothing: use hso-jax {command}")
    choice("--method", args.method, METHODS)
    mine, other = ("solver-error", "hso") if args.method == "solver-error" else ("hso", "solver-error")
    if given := [f"--{name.replace('_', '-')}" for name in _OPTIONS[other] if getattr(args, name) is not None]:
        raise ValueError(f"{', '.join(given)}: --method {args.method} does not use it; use --method {other}")
    options: dict[str, Any] = {name: getattr(args, name) for name in _OPTIONS[mine] if getattr(args, name) is not None}
    if mine == "solver-error":
        return SolverError(**{"solver": DEFAULT_SOLVER, **options})
    box = Box(**{name: tuple(options.pop(name)) for name in Box._fields if name in options})
    if args.spacing is not None:
        try:
            options["spacing"] = paper_d_min if args.spacing == "paper" else float(args.spacing)
        except ValueError:
            raise ValueError(f"spacing is {args.spacing!r}; write paper or a number in t, such as 0.05") from None
    return Hso(objective="mep" if args.method == "hso" else "dm-nonuni", box=box, **{"p": p, **options})


def compare(args: argparse.Namespace) -> int:
    """Rank HSO, the rules and the recommended schedules by the solver's error."""
    models, nfes = common.read_models(args), common.parse_nfe(args.nfe)
    common.warn_of_unused_size(args)
    solver = solvers.canonical(args.solver)
    if args.plot is not None:
        figure_kind(args.plot)
        check_writable(args.plot, "picture", args.force)
    for model in models:  # refused before any work
        lanes([model.noise], nfes, layouts=[args.layout], method=Hso(relax=True, p=model.p))
        check_guidance(args.guidance)
    common.prepare_jax()
    found: list[comparison.Comparison] = []
    with common.progress() as progress:
        task = progress.add_task("comparing", total=len(models) * len(nfes))
        for model in models:
            guidance = (model.guidance or 1.0) if args.guidance is None else args.guidance
            found += comparison.compare(
                model.noise,
                nfes,
                solver=solver,
                guidance=guidance,
                layout=args.layout,
                p=model.p,
                progress=lambda *_: progress.advance(task),
            )
    ranked = [_ranked(entry, solver) for entry in found]
    rows = [schedule for entry in ranked for *_, schedule in entry]
    document = schedule_file.to_json(rows)
    if args.plot is not None:
        from hso_jax.plots import encoded, methods_figure

        write_all([(args.plot, encoded(methods_figure(rows), figure_kind(args.plot)))], args.written)
    for reason in dict.fromkeys(reason for entry in found for reason in entry.skipped):
        common.warn(f"skipped: {reason}", style="dim")
    if args.json:
        common.write(document)
    else:
        for entry in ranked:
            _print_ranked(entry)
        common.say_words("MEP grows with the covered range of t: compare it only between schedules with the same ends.")
    return _exit_code(rows)


def _ranked(entry: comparison.Comparison, solver: str) -> list[tuple[str, str, Schedule]]:
    """What was compared for one model and N, the least error first: what it is called, its solver, the schedule."""
    rows = [(s.method, solver, s) for s in entry.ranked]
    rows += [("recommended", s.solver, s) for s in entry.recommended]
    return sorted(rows, key=lambda row: math.inf if row[2].error is None else row[2].error)


def _print_ranked(rows: Sequence[tuple[str, str, Schedule]]) -> None:
    methods, used, schedules = zip(*rows, strict=True)
    heading, first = show.levels_heading(schedules), schedules[0]
    columns = {
        "method": list(methods),
        "solver": list(used),
        heading: [show.levels(s) for s in schedules],
        "error": [show.number(s.error, 3) for s in schedules],
        "MEP": [show.number(s.mep, 4) for s in schedules],
    }
    title = f"{first.model}, N = {first.nfe}, {first.layout} layout: errors predicted on reference problems"
    show.print_table(title, columns, [heading], ("method", "solver", heading), ["", "dim"])


def _exit_code(schedules: Sequence[Schedule]) -> int:
    """0 where all searches converged."""
    return 0 if all(s.result in ("converged", "fixed") for s in schedules) else EXIT_NOT_CONVERGED
