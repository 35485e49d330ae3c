"""`hso-jax`: the parser, the commands and the exit codes."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from hso_jax import schedule_file
from hso_jax.baselines import BASELINES, baseline, inapplicable
from hso_jax.cli import arguments, tables
from hso_jax.cli.bridge_commands import add_parsers as add_bridge_parsers
from hso_jax.cli.files import check_writable, figure_kind, save_figure
from hso_jax.lane import Lane, Method
from hso_jax.methods import Hso, SolverError
from hso_jax.methods.hso.lanes import SPACING_AS
from hso_jax.noise import NoiseSchedule
from hso_jax.schedule import LAYOUTS, Schedule
from hso_jax.searches import METHODS, lanes, search_many
from hso_jax.shelf.shipped import SOLVERS as ZOO_SOLVERS
from hso_jax.shelf.shipped import zoo

EXIT_NOT_CONVERGED, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 1, 2, 130

_EPILOG = """\
examples:
  hso-jax search                                    Stable Diffusion 2.1-base, N = 4..20, both layouts
  hso-jax search --model sdxl --nfe 6 --layout node --json
  hso-jax compare --model pixart-alpha --nfe 4,6
  hso-jax show schedules-sd21-base.json --as sigmas --nfe 8

exit codes: 0 done; 1 some schedules did not converge (they are marked); 2 bad input, nothing was written.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="hso-jax",
        description="Finds the few noise levels at which a diffusion or flow model is best evaluated.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_search(subparsers)
    _add_zoo(subparsers)
    _add_compare(subparsers)
    _add_models(subparsers)
    _add_show(subparsers)
    _add_plot(subparsers)
    add_bridge_parsers(subparsers)
    args = parser.parse_args(argv)
    try:
        return int(args.run(args))
    except BrokenPipeError:  # the reader of a pipe had enough
        return 0
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        return EXIT_INTERRUPTED


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
    arguments.add_model(parser)
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
        choices=METHODS,
        default="hso",
        help="hso: the paper's; solver-error: by the error of the solver itself; default %(default)s",
    )
    arguments.add_solver_error(parser)
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
    arguments.add_box(parser)
    out = parser.add_argument_group("output")
    out.add_argument("-o", "--output", type=Path, help="schedule file; default schedules-MODEL.json")
    out.add_argument("--plot", type=Path, help="picture (.png, .svg, .pdf); default beside the schedule file")
    out.add_argument("--no-plot", action="store_true", help="draw nothing")
    out.add_argument(
        "--json", action="store_true", help="print the schedule file on stdout; write files only where named"
    )
    out.add_argument("--force", action="store_true", help="replace files that hso-jax did not write")


def _search(args: argparse.Namespace) -> int:
    noise, p = arguments.read_model(args)
    output: Path | None = args.output
    if output is None and not args.json:
        output = Path(f"schedules-{noise.name}.json")
    picture: Path | None = args.plot
    if picture is None and output is not None and not args.no_plot and not args.json:
        picture = output.with_suffix(".png")
    for path in (output, picture):
        if path is not None:
            check_writable(path, args.force)
    if picture is not None:
        figure_kind(picture)
    many = _lanes(args, noise, p)
    _prepare_jax()
    if picture is not None:  # compiling leaves a core idle: let it load matplotlib meanwhile
        threading.Thread(target=importlib.import_module, args=("hso_jax.plots",), daemon=True).start()
    with _progress(len(many)) as progress:
        task = progress.add_task(f"searching {len(many)} schedules of {noise.name}", total=len(many))
        schedules = search_many(many, progress=lambda done, _: progress.update(task, completed=done))
    if output is not None:
        schedule_file.save(schedules, output)
    if picture is not None:
        from hso_jax.plots import schedules_figure

        save_figure(schedules_figure(schedules), picture)
    if args.json:
        sys.stdout.write(schedule_file.to_json(schedules))
    else:
        console = Console()
        console.print(tables.schedule_table(schedules, f"{args.method} schedules for {noise.name}"))
        for path in (output, picture):
            if path is not None:
                console.print(f"wrote {path}", highlight=False, soft_wrap=True)
    tables.print_advice(schedules, Console(stderr=True))
    return _exit_code(schedules)


def _lanes(args: argparse.Namespace, noise: NoiseSchedule, p: float) -> list[Lane]:
    """What `hso-jax search` is asked to do, checked."""
    nfes = arguments.parse_nfe(args.nfe)
    layout = args.layout or ("node" if args.method == "solver-error" else "both")
    layouts = LAYOUTS if layout == "both" else (layout,)
    return lanes([noise], nfes, layouts=layouts, seeds=[args.seed], method=_method(args, p))


def _method(args: argparse.Namespace, p: float) -> Method:
    """The method with the options that were given; those of another method are refused."""
    if args.method == "solver-error":
        arguments.refuse_hso(args)
        return SolverError(**arguments.read_solver_error(args))
    arguments.refuse_solver_error(args)
    return Hso(
        objective="mep" if args.method == "hso" else "dm-nonuni",
        p=p,
        spacing=arguments.parse_spacing(args.spacing),
        spacing_as=args.spacing_as,
        box=arguments.read_box(args),
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
    parser.add_argument("--model", default=arguments.DEFAULT_MODEL, help="a preset; default %(default)s")
    parser.add_argument("--nfe", default="4-10", help="numbers of model evaluations, 1..20; default %(default)s")
    parser.add_argument("--solver", default="dpmpp-2m", help=f"{', '.join(ZOO_SOLVERS)}; default %(default)s")
    parser.add_argument("--guidance", type=float, help="1 or the model's usual weight, which is the default")
    parser.add_argument("-o", "--output", type=Path, help="write a schedule file")
    parser.add_argument("--json", action="store_true", help="print the schedule file on stdout")
    parser.add_argument("--force", action="store_true", help="replace a file that hso-jax did not write")


def _zoo(args: argparse.Namespace) -> int:
    if args.output is not None:
        check_writable(args.output, args.force)
    nfes = arguments.parse_nfe(args.nfe)
    schedules = [zoo(args.model, n, args.solver, guidance=args.guidance) for n in nfes]
    if args.output is not None:
        schedule_file.save(schedules, args.output)
    if args.json:
        sys.stdout.write(schedule_file.to_json(schedules))
    else:
        first = schedules[0]
        title = f"{first.model}: {first.solver}, guidance {first.guidance:g}"
        Console().print(tables.schedule_table(schedules, title))
        tables.print_advice(schedules, Console(stderr=True))
    if args.output is not None:
        Console(stderr=args.json).print(f"wrote {args.output}", highlight=False, soft_wrap=True)
    return 0


def _add_compare(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    examples = "examples:\n  hso-jax compare\n  hso-jax compare --model sdxl --nfe 4,8 --layout interval\n"
    text = "score HSO beside every rule-based schedule (Karras, beta, AYS, ...) and DM-NonUni: MEP, SPF and spacing"
    parser = arguments.add_command(subparsers, "compare", _compare, text, examples)
    arguments.add_model(parser)
    parser.add_argument("--nfe", default="6", help="numbers of model evaluations; default %(default)s")
    parser.add_argument("--layout", choices=LAYOUTS, default="node", help="default %(default)s")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", type=Path, help="also draw them (.png, .svg, .pdf)")
    parser.add_argument("--json", action="store_true", help="print the schedules as a schedule file on stdout")
    parser.add_argument("--force", action="store_true", help="replace a picture that hso-jax did not write")


def _compare(args: argparse.Namespace) -> int:
    noise, p = arguments.read_model(args)
    nfes = arguments.parse_nfe(args.nfe)
    if args.plot is not None:
        check_writable(args.plot, args.force)
        figure_kind(args.plot)
    many = lanes([noise], nfes, layouts=[args.layout], seeds=[args.seed], method=Hso(relax=True, p=p))
    _prepare_jax()
    skipped = {name: reason for name in BASELINES if (reason := inapplicable(name, noise))}
    rules = [name for name in BASELINES if name not in skipped]
    total = len(nfes) * (1 + len(rules))
    with _progress(total) as progress:
        task = progress.add_task(f"comparing {1 + len(rules)} methods on {noise.name}", total=total)
        found = search_many(many)
        progress.update(task, completed=len(nfes))
        schedules = []
        for schedule in found:
            schedules.append(schedule)
            for name in rules:
                schedules.append(baseline(name, noise, schedule.nfe, layout=args.layout, p=p))
                progress.advance(task)
    if args.plot is not None:
        from hso_jax.plots import methods_figure

        save_figure(methods_figure(schedules), args.plot)
    for reason in skipped.values():
        Console(stderr=True).print(f"skipped: {reason}", style="dim", highlight=False, soft_wrap=True)
    if args.json:
        sys.stdout.write(schedule_file.to_json(schedules))
        return _exit_code(schedules)
    console = Console()
    console.print(tables.schedule_table(schedules, f"{noise.name}, layout {args.layout}, p = {p:g}"))
    console.print(
        "MEP grows with the covered range of t: compare it between schedules with the same ends.", style="dim"
    )
    return _exit_code(schedules)


def _add_models(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = "list the models whose noise schedule is built in"
    arguments.add_command(
        subparsers, "models", _models, text, "A model that is not listed: pass its folder to --model.\n"
    )


def _models(_: argparse.Namespace) -> int:
    Console().print(tables.model_table())
    return 0


def _add_show(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    examples = "examples:\n  hso-jax show FILE\n  hso-jax show FILE --nfe 6 --layout node --as sigmas    (ComfyUI)\n"
    parser = arguments.add_command(subparsers, "show", _show, "print the schedules in a file", examples)
    parser.add_argument("file", type=Path)
    _add_selection(parser)
    parser.add_argument(
        "--as",
        dest="form",
        choices=("table", "sigmas", "timesteps", "json"),
        default="table",
        help="sigmas: N + 1 values, as samplers take them; timesteps: N integers; default %(default)s",
    )


def _show(args: argparse.Namespace) -> int:
    schedules = _selected(args)
    if args.form == "table":
        Console().print(tables.schedule_table(schedules, str(args.file)))
    elif args.form == "json":
        sys.stdout.write(schedule_file.to_json(schedules))
    else:
        for s in schedules:
            values = s.sampler_sigmas().astype("float32") if args.form == "sigmas" else s.integer_timesteps()
            print(", ".join(str(x) for x in values))
    return 0


def _add_plot(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    examples = "examples:\n  hso-jax plot FILE -o schedules.png\n  hso-jax plot FILE --landscape -o mep.png --nfe 5\n"
    parser = arguments.add_command(subparsers, "plot", _plot, "draw the schedules in a file", examples)
    parser.add_argument("file", type=Path)
    _add_selection(parser)
    parser.add_argument(
        "--landscape", action="store_true", help="draw MEP over (t_eps, t_max) for the first schedule instead"
    )
    parser.add_argument("-o", "--output", type=Path, help="picture (.png, .svg, .pdf); default FILE with .png")
    parser.add_argument("--force", action="store_true", help="replace a picture that hso-jax did not write")


def _plot(args: argparse.Namespace) -> int:
    schedules = _selected(args)
    output = args.output or args.file.with_suffix(".png")
    figure_kind(output)
    check_writable(output, args.force)
    from hso_jax import plots

    if args.landscape:
        _prepare_jax()
        figure = plots.landscape_figure(schedules[0])
    else:
        figure = plots.schedules_figure(schedules)
    save_figure(figure, output)
    print(f"wrote {output}")
    return 0


def _add_selection(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--nfe", help="only these numbers of evaluations: 4-8 or 4,6")
    parser.add_argument("--layout", choices=LAYOUTS, help="only this layout")


def _selected(args: argparse.Namespace) -> list[Schedule]:
    every = schedule_file.load(args.file)
    nfes = None if args.nfe is None else arguments.parse_nfe(args.nfe)
    kept = [s for s in every if (nfes is None or s.nfe in nfes) and args.layout in (None, s.layout)]
    if not kept:
        have = ", ".join(sorted({f"{s.nfe} {s.layout}" for s in every})) or "none"
        raise ValueError(f"{args.file} has no such schedule (it has: {have})")
    return kept


def _exit_code(schedules: Sequence[Schedule]) -> int:
    return 0 if all(s.result in ("converged", "fixed") for s in schedules) else EXIT_NOT_CONVERGED


def _progress(total: int) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)


def _prepare_jax() -> None:
    """One device per core on the CPU, and compiled programs kept between runs. The caller's own settings win."""
    import jax

    if "JAX_NUM_CPU_DEVICES" not in os.environ and "xla_force_host_platform" not in os.environ.get("XLA_FLAGS", ""):
        with contextlib.suppress(RuntimeError):  # JAX is running already, with the devices of whoever started it
            jax.config.update("jax_num_cpu_devices", min(os.cpu_count() or 1, 8))
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(base / "hso-jax" / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
