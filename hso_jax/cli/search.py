"""`search` and `compare`: the commands that compute schedules and errors with JAX."""

from __future__ import annotations

import argparse
import importlib
import math
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hso_jax import schedule_file, solvers
from hso_jax.baselines import BASELINES, baseline, inapplicable
from hso_jax.checks import check_guidance, choice, printable
from hso_jax.cli import common, show
from hso_jax.files import check_writable, figure_kind, is_stream, write_all
from hso_jax.hso import SPACING_AS, Box, Hso
from hso_jax.lane import Method
from hso_jax.mep_spf import Spacing, paper_d_min
from hso_jax.noise import PRESETS, NoiseSchedule
from hso_jax.profile import Profile
from hso_jax.schedule import LAYOUTS, Schedule
from hso_jax.searches import METHODS, lanes, not_searched, search_many
from hso_jax.shipped.recommend import recommend
from hso_jax.shipped.zoo import NotInZooError
from hso_jax.solver_error_method import SolverError, solver_error

EXIT_NOT_CONVERGED = 1
_SOLVER = "dpmpp-2m"
_OPTIONS = {
    "hso": ("p", "spacing", "spacing_as", "relax", *Box._fields),
    "solver-error": ("solver", "guidance", "profile"),
}


def add_search(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand `search`."""
    examples = """\
examples:
  hso-jax search                                  the main job: SD 2.1-base, N = 4..20, both layouts
  hso-jax search --model flux-dev --nfe 4-8       another model
  hso-jax search --model ./my-model --nfe 6       a diffusers folder (reads scheduler/scheduler_config.json)
  hso-jax search --nfe 6 --layout node --json     to stdout, for other programs
  hso-jax search --spacing-as penalty             the paper's SPF to the letter
  hso-jax search --model sd3-medium --method solver-error --solver unipc --nfe 4,6,8 --guidance 7.5
"""
    parser = common.add_command(subparsers, "search", _search, "find schedules, save them and draw them", examples)
    common.add_models(parser)
    parser.add_argument(
        "--nfe", default="4-20", help="numbers of model evaluations: 4-20 or 4,6,8; default %(default)s"
    )
    parser.add_argument(
        "--layout",
        choices=(*LAYOUTS, "both"),
        help="node: N nodes, then sigma 0 (DDIM, most diffusers samplers); interval: stops at node N + 1 (UniPC); "
        "default both; node for the method solver-error",
    )
    parser.add_argument(
        "--method",
        metavar=f"{{{','.join(METHODS)}}}",
        default="hso",
        help="hso: the paper's method; solver-error: by the error of the solver itself; default %(default)s",
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed; default %(default)s")
    hso = parser.add_argument_group("for --method hso and hso-dm-nonuni (box: two numbers, equal ones fix the value)")
    hso.add_argument(
        "--p", type=float, help="exponent of the model-error bound; default 2 (1 for presets that work on pixels)"
    )
    hso.add_argument("--spacing", help="least distance in t between neighbouring nodes: paper (default) or a number")
    hso.add_argument(
        "--spacing-as",
        choices=SPACING_AS,
        help="constraint (default): always kept; penalty: the paper's SPF, kept where possible",
    )
    hso.add_argument(
        "--relax", action="store_true", default=None, help="reduce a spacing that does not fit instead of refusing it"
    )
    for name, text in (
        ("rho", "exponent of the initial schedule"),
        ("t_eps", "time of the last node"),
        ("t_max", "time of the first node"),
    ):
        low, high = Box._field_defaults[name]
        hso.add_argument(
            "--" + name.replace("_", "-"),
            type=float,
            nargs=2,
            metavar=("LOW", "HIGH"),
            help=f"box: {text}; default {low} {high}",
        )
    error = parser.add_argument_group("for --method solver-error")
    error.add_argument(
        "--solver", help=f"{', '.join(solvers.EVERY)}, or another program's name for it; default {_SOLVER}"
    )
    error.add_argument("--guidance", type=float, help="weight of classifier-free guidance; default 1, which is none")
    error.add_argument("--profile", type=Path, metavar="FILE", help="measurements of the model, from `hso-jax profile`")
    out = parser.add_argument_group("output")
    out.add_argument("-o", "--output", type=Path, help="schedule file; default schedules-MODEL.json; - is stdout")
    out.add_argument("--plot", type=Path, help="picture (.png, .svg, .pdf); default beside the schedule file")
    out.add_argument("--no-plot", action="store_true", help="draw nothing")
    out.add_argument(
        "--json", action="store_true", help="print the schedule file on stdout; write files only where named"
    )
    out.add_argument("--force", action="store_true", help="replace files that hso-jax did not write")


def _search(args: argparse.Namespace) -> int:
    models = common.read_models(args)
    names = "-".join(noise.name for _, noise, _ in models)
    output = common.named_output(args)
    if output is None and not args.json:
        output = Path(f"schedules-{names}.json")
    picture: Path | None = args.plot
    if picture is None and output is not None and not (args.no_plot or args.json or is_stream(output)):
        picture = output.with_suffix(".png")
    if output is not None:
        check_writable(output, "schedules", args.force, [args.profile])
    if picture is not None:
        figure_kind(picture)
        check_writable(picture, "picture", args.force, [output, args.profile])
    layout = args.layout or ("node" if args.method == "solver-error" else "both")
    many = [
        lane
        for _, noise, p in models
        for lane in lanes(
            [noise],
            common.parse_nfe(args.nfe),
            layouts=LAYOUTS if layout == "both" else (layout,),
            seeds=[args.seed],
            method=_method(args, p),
        )
    ]
    common.prepare_jax()
    if picture is not None:  # compiling leaves a core idle: let it load matplotlib meanwhile
        threading.Thread(target=importlib.import_module, args=("hso_jax.plots",), daemon=True).start()
    with common.progress() as progress:
        task = progress.add_task(f"searching {len(many)} schedules of {printable(names)}", total=len(many))
        schedules = search_many(many, progress=lambda done, _: progress.update(task, completed=done))
    document = schedule_file.to_json(schedules)
    contents = [] if output is None else [(output, document.encode())]
    if picture is not None:
        from hso_jax.plots import encoded, schedules_figure

        contents.append((picture, encoded(schedules_figure(schedules), figure_kind(picture))))
    write_all(contents, args.written)
    if args.json:
        common.write(document)
    else:
        show.print_schedules(schedules, f"{args.method} schedules for {names}")
        common.say(*(f"wrote {printable(path)}" for path in args.written))
    show.print_advice(schedules)
    if args.method == "hso":
        common.warn(
            "the paper's method minimises a bound; `hso-jax recommend` gives schedules with the least predicted error"
        )
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
    if args.method == "solver-error":
        if args.profile is not None:
            options["profile"] = Profile.load(args.profile)
        return SolverError(**{"solver": _SOLVER, **options})
    box = Box(**{name: tuple(options.pop(name)) for name in Box._fields if name in options})
    if args.spacing is not None:
        options["spacing"] = _spacing(args.spacing)
    return Hso(objective="mep" if args.method == "hso" else "dm-nonuni", box=box, **{"p": p, **options})


def _spacing(text: str) -> Spacing:
    if text == "paper":
        return paper_d_min
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"spacing is {text!r}; write paper or a number in t, such as 0.05") from None


def add_compare(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand `compare`."""
    examples = """\
examples:
  hso-jax compare
  hso-jax compare --model sdxl --nfe 4,8 --solver unipc-3 --guidance 5

The table ranks schedules by the error of the solver's samples on reference problems, least error first. Its last rows
are the recommended schedules: the best for this solver, and the best of all solvers.
"""
    text = "rank HSO, the usual rules (Karras, AYS, ...) and the recommended schedules by the solver's error"
    parser = common.add_command(subparsers, "compare", _compare, text, examples)
    common.add_models(parser)
    parser.add_argument("--nfe", default="6", help="numbers of model evaluations; default %(default)s")
    parser.add_argument("--layout", choices=LAYOUTS, default="node", help="default %(default)s")
    parser.add_argument("--solver", default=_SOLVER, help="solver whose error is measured; default %(default)s")
    parser.add_argument("--guidance", type=float, help="default: the preset's usual weight, else 1")
    parser.add_argument("--plot", type=Path, help="also draw the schedules (.png, .svg, .pdf)")
    parser.add_argument("--json", action="store_true", help="print the schedules as a schedule file on stdout")
    parser.add_argument("--force", action="store_true", help="replace a picture that hso-jax did not write")


def _compare(args: argparse.Namespace) -> int:
    models, nfes = common.read_models(args), common.parse_nfe(args.nfe)
    solver = solvers.canonical(args.solver)
    if args.plot is not None:
        figure_kind(args.plot)
        check_writable(args.plot, "picture", args.force)
    many = [lanes([noise], nfes, layouts=[args.layout], method=Hso(relax=True, p=p)) for _, noise, p in models]
    common.prepare_jax()
    skipped: list[str] = []
    rows: list[Schedule] = []
    with common.progress() as progress:
        task = progress.add_task("comparing", total=len(models) * len(nfes))
        for (name, noise, p), of_model in zip(models, many, strict=True):
            guidance = check_guidance(args.guidance, PRESETS[name].guidance if name in PRESETS else 1.0)
            skipped += [reason for rule in BASELINES if (reason := inapplicable(rule, noise))]
            for found in search_many(of_model):
                every = [found, *_rules(noise, found.nfe, args.layout, p, skipped)]
                rows += _ranked(every, noise, solver, guidance)
                if args.layout == "node":
                    rows += _recommended(noise, found.nfe, solver, guidance, skipped)
                progress.advance(task)
    document = schedule_file.to_json(rows)
    if args.plot is not None:
        from hso_jax.plots import encoded, methods_figure

        write_all([(args.plot, encoded(methods_figure(rows), figure_kind(args.plot)))], args.written)
    for reason in dict.fromkeys(skipped):
        common.warn(f"skipped: {reason}", style="dim")
    if args.json:
        common.write(document)
    else:
        names = ", ".join(printable(noise.name) for _, noise, _ in models)
        show.print_schedules(
            rows,
            f"{names}, {args.layout} layout: error of {solver}, or of the solver in the row",
            without=("coefficients", "guidance", "asked"),
        )
        common.say("MEP grows with the covered range of t: compare it only between schedules with the same ends.")
    return _exit_code(rows)


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
    """The schedules with the solver's error, the least first; those without a finite error come last."""
    found = []
    for schedule in every:
        error = solver_error(schedule, noise, solver=solver, guidance=guidance)
        found.append(schedule.with_scores(error=error if math.isfinite(error) else None))
    return sorted(found, key=lambda s: math.inf if s.error is None else s.error)


def _recommended(noise: NoiseSchedule, nfe: int, solver: str, guidance: float, skipped: list[str]) -> list[Schedule]:
    """The recommended schedules for the solver and for any solver, once where they are the same."""
    found: list[Schedule] = []
    for kept in (solver, None):
        try:
            best = recommend(noise, nfe, guidance=guidance, solver=kept, distilled=False).schedule
        except NotInZooError as error:
            skipped.append(f"a recommendation at N = {nfe}: {error.why}")
        else:
            found += [best] if best not in found else []
    return found


def _exit_code(schedules: Sequence[Schedule]) -> int:
    """0 where all searches converged."""
    return 0 if all(s.result in ("converged", "fixed") for s in schedules) else EXIT_NOT_CONVERGED
