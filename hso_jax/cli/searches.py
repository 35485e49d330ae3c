"""`search` and `zoo`: the commands that make schedules."""

from __future__ import annotations

import argparse
import importlib
import threading
from collections.abc import Sequence
from pathlib import Path

from hso_jax import schedule_file
from hso_jax.checks import choice, printable
from hso_jax.cli import arguments, search_arguments, tables, terminal
from hso_jax.cli.compiling import prepare_jax
from hso_jax.files import check_writable, figure_kind, is_stdout, is_stream, write_all
from hso_jax.hso import SPACING_AS, Hso
from hso_jax.lane import Lane, Method
from hso_jax.noise import PRESETS, NoiseSchedule
from hso_jax.schedule import LAYOUTS, Schedule
from hso_jax.searches import METHODS, lanes, not_searched, search_many
from hso_jax.shipped.zoo import CHOICES, zoo
from hso_jax.solver_error_method import SolverError

EXIT_NOT_CONVERGED = 1


def add_parsers(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the two subcommands."""
    _add_search(subparsers)
    _add_zoo(subparsers)


def _add_search(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    examples = """\
examples:
  hso-jax search                                  the main job: SD 2.1-base, N = 4..20, both layouts
  hso-jax search --model flux-dev --nfe 4-8       another model
  hso-jax search --model ./my-model --nfe 6       a diffusers folder (reads scheduler/scheduler_config.json)
  hso-jax search --nfe 6 --layout node --json     to stdout, for other programs
  hso-jax search --spacing-as penalty             the paper's SPF to the letter
  hso-jax search --model sd3-medium --method solver-error --solver unipc --nfe 4,6,8 --guidance 7.5
"""
    parser = arguments.add_command(subparsers, "search", _search, "find schedules, save them and draw them", examples)
    arguments.add_models(parser)
    search_arguments.add_p(parser)
    parser.add_argument(
        "--nfe", default="4-20", help="numbers of model evaluations: 4-20 or 4,6,8; default %(default)s"
    )
    parser.add_argument(
        "--layout",
        choices=(*LAYOUTS, "both"),
        help="node: N nodes, then sigma 0 (DDIM, most diffusers samplers); interval: stops at node N + 1 (UniPC); "
        "default both, for the method solver-error node",
    )
    parser.add_argument(
        "--method",
        metavar=f"{{{','.join(METHODS)}}}",
        default="hso",
        help="hso: the paper's; solver-error: by the error of the solver itself; default %(default)s",
    )
    search_arguments.add_solver_error(parser)
    parser.add_argument("--seed", type=int, default=0, help="of the upper level; default %(default)s")
    parser.add_argument(
        "--spacing", default="paper", help="least distance of neighbouring nodes in t: paper, or a number"
    )
    parser.add_argument(
        "--spacing-as",
        choices=SPACING_AS,
        default="constraint",
        help="constraint: always kept; penalty: the paper's SPF, kept where it can be; default %(default)s",
    )
    parser.add_argument(
        "--relax", action="store_true", help="reduce a spacing that does not fit instead of refusing it"
    )
    search_arguments.add_box(parser)
    out = parser.add_argument_group("output")
    out.add_argument("-o", "--output", type=Path, help="schedule file; default schedules-MODEL.json; - is stdout")
    out.add_argument("--plot", type=Path, help="picture (.png, .svg, .pdf); default beside the schedule file")
    out.add_argument("--no-plot", action="store_true", help="draw nothing")
    out.add_argument(
        "--json", action="store_true", help="print the schedule file on stdout; write files only where named"
    )
    out.add_argument("--force", action="store_true", help="replace files that hso-jax did not write")


def _search(args: argparse.Namespace) -> int:
    models = arguments.read_models(args)
    names = "-".join(noise.name for noise, _ in models)
    output: Path | None = _named_output(args)
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
    many = [lane for noise, p in models for lane in _lanes(args, noise, p)]
    prepare_jax()
    if picture is not None:  # compiling leaves a core idle: let it load matplotlib meanwhile
        threading.Thread(target=importlib.import_module, args=("hso_jax.plots",), daemon=True).start()
    with terminal.progress() as progress:
        task = progress.add_task(f"searching {len(many)} schedules of {printable(names)}", total=len(many))
        schedules = search_many(many, progress=lambda done, _: progress.update(task, completed=done))
    document = schedule_file.checked_json(schedules)
    contents = [] if output is None else [(output, document.encode())]
    if picture is not None:
        from hso_jax.plots import encoded, schedules_figure

        contents.append((picture, encoded(schedules_figure(schedules), figure_kind(picture))))
    write_all(contents, args.written)
    if args.json:
        terminal.write(document)
    else:
        tables.print_schedules(schedules, f"{args.method} schedules for {names}")
        terminal.say(*(f"wrote {printable(path)}" for path in args.written))
    tables.print_advice(schedules)
    if args.method == "hso":
        terminal.warn(
            "this is the paper's method, by a bound; hso-jax recommend says what has the least predicted error"
        )
    return exit_code(schedules)


def _named_output(args: argparse.Namespace) -> Path | None:
    """The file that -o names; standard output is what --json is for."""
    if args.output is not None and is_stdout(args.output):
        args.json = True
        return None
    return args.output


def _lanes(args: argparse.Namespace, noise: NoiseSchedule, p: float) -> list[Lane]:
    """What `hso-jax search` is asked to do, checked."""
    nfes = arguments.parse_nfe(args.nfe)
    layout = args.layout or ("node" if args.method == "solver-error" else "both")
    layouts = LAYOUTS if layout == "both" else (layout,)
    return lanes([noise], nfes, layouts=layouts, seeds=[args.seed], method=_method(args, p))


def _method(args: argparse.Namespace, p: float) -> Method:
    """The method with the options that were given; those of another method are refused."""
    if args.method not in METHODS and not_searched(args.method):
        command = args.method if args.method in ("recommend", "zoo") else "compare (all rules), recommend or zoo"
        raise ValueError(f"--method {args.method} searches nothing: use hso-jax {command}")
    choice("--method", args.method, METHODS)
    if args.method == "solver-error":
        search_arguments.refuse_hso(args)
        return SolverError(**search_arguments.read_solver_error(args))
    search_arguments.refuse_solver_error(args)
    return Hso(
        objective="mep" if args.method == "hso" else "dm-nonuni",
        p=p,
        spacing=search_arguments.parse_spacing(args.spacing),
        spacing_as=args.spacing_as,
        box=search_arguments.read_box(args),
        relax=args.relax,
    )


def _add_zoo(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    examples = """\
examples:
  hso-jax zoo --model sdxl --solver unipc --nfe 4-8
  hso-jax zoo --model flux-dev --solver ddim --nfe 6 --json > flux.json
"""
    text = "print schedules for a solver that are shipped, without a search"
    parser = arguments.add_command(subparsers, "zoo", _zoo, text, examples)
    arguments.add_models(parser)
    parser.add_argument("--nfe", default="4-10", help="numbers of model evaluations, 1..20; default %(default)s")
    parser.add_argument("--solver", help=f"{', '.join(CHOICES)}; by default for each N the one with the least error")
    parser.add_argument("--guidance", type=float, help="1 or a preset's usual weight, which is its default")
    parser.add_argument("-o", "--output", type=Path, help="write a schedule file; - is stdout")
    parser.add_argument("--json", action="store_true", help="print the schedule file on stdout")
    parser.add_argument("--force", action="store_true", help="replace a file that hso-jax did not write")


def _zoo(args: argparse.Namespace) -> int:
    output = _named_output(args)
    if output is not None:
        check_writable(output, "schedules", args.force)
    nfes = arguments.parse_nfe(args.nfe)
    models = args.model or [arguments.DEFAULT_MODEL]
    schedules = [_shipped(args, name, n) for name in models for n in nfes]
    arguments.tell_unused_size(args, models)
    document = schedule_file.checked_json(schedules)
    if output is not None:
        write_all([(output, document.encode())], args.written)
    if args.json:
        terminal.write(document)
    else:
        models, solvers = (", ".join(dict.fromkeys(getattr(s, n) for s in schedules)) for n in ("model", "solver"))
        weights = ", ".join(dict.fromkeys(f"{s.guidance:g}" for s in schedules))
        tables.print_schedules(schedules, f"{models}: {solvers}, guidance {weights}")
        tables.print_advice(schedules)
    for path in args.written:
        (terminal.warn if args.json else terminal.say)(f"wrote {printable(path)}")
    return 0


def _shipped(args: argparse.Namespace, name: str, nfe: int) -> Schedule:
    """The zoo's schedule of a preset, or of a folder, which does not say how it is used."""
    noise, _ = arguments.noise_named(name, args.image_seq_len)
    if name not in PRESETS and args.guidance is None:
        raise ValueError(f"{name} does not say how it is used; add --guidance W (1 is without guidance)")
    guidance = PRESETS[name].guidance if args.guidance is None else args.guidance
    return zoo(noise, nfe, args.solver, guidance=guidance)


def exit_code(schedules: Sequence[Schedule]) -> int:
    """0 where all searches converged."""
    return 0 if all(s.result in ("converged", "fixed") for s in schedules) else EXIT_NOT_CONVERGED
