"""`models`, `show` and `plot`: the commands that show what there is."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from hso_jax import schedule_file
from hso_jax.checks import printable
from hso_jax.cli import arguments, tables, terminal
from hso_jax.cli.compiling import prepare_jax
from hso_jax.files import check_writable, figure_kind, is_stream, json_text, write_all
from hso_jax.noise import PRESETS
from hso_jax.schedule import LAYOUTS, Schedule


def add_parsers(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the three subcommands."""
    _add_models(subparsers)
    _add_show(subparsers)
    _add_plot(subparsers)


def _add_models(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = "list the models whose noise schedule is built in"
    parser = arguments.add_command(
        subparsers, "models", _models, text, "A model that is not listed: pass its folder to --model.\n"
    )
    parser.add_argument("--json", action="store_true", help="print them as JSON on stdout")


def _models(args: argparse.Namespace) -> int:
    if args.json:
        rows = [{"name": name, **tables.preset_fields(name)} for name in PRESETS]
        terminal.write(json_text(rows))
    else:
        tables.print_models()
    return 0


def _add_show(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    examples = "examples:\n  hso-jax show FILE\n  hso-jax show FILE --nfe 6 --layout node --as sigmas    (ComfyUI)\n"
    parser = arguments.add_command(subparsers, "show", _show, "print the schedules in a file", examples)
    parser.add_argument("file", type=Path)
    _add_selection(parser)
    parser.add_argument(
        "--as",
        dest="form",
        choices=("table", "sigmas", "timesteps", "python", "weights", "json"),
        default="table",
        help="sigmas: N + 1 values, as samplers take them; timesteps: N integers; python: both and the coefficients, "
        "to paste; weights: of a nonstationary solver's steps, a line each: of the sample, then of the predictions, "
        "newest first; default %(default)s",
    )


def _show(args: argparse.Namespace) -> int:
    schedules = _selected(args)
    if args.form == "table":
        tables.print_schedules(schedules, str(args.file))
    elif args.form == "json":
        terminal.write(schedule_file.to_json(schedules))
    elif args.form == "python":
        terminal.write("\n".join(s.python_literal() for s in schedules))
    elif args.form == "weights":
        terminal.write("\n".join(_lines(s.weights_table()) for s in schedules))
    else:
        for s in schedules:
            values = s.sampler_sigmas().astype("float32") if args.form == "sigmas" else s.integer_timesteps()
            terminal.say(", ".join(str(x) for x in values))
    return 0


def _lines(table: np.ndarray) -> str:
    return "".join(" ".join(map(repr, row)) + "\n" for row in table.tolist())


def _add_plot(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    examples = "examples:\n  hso-jax plot FILE -o schedules.png\n  hso-jax plot FILE --landscape -o mep.png --nfe 5\n"
    parser = arguments.add_command(subparsers, "plot", _plot, "draw the schedules in a file", examples)
    parser.add_argument("file", type=Path)
    _add_selection(parser)
    parser.add_argument(
        "--landscape", action="store_true", help="draw MEP over (t_eps, t_max) for the first schedule instead"
    )
    parser.add_argument("-o", "--output", type=Path, help="picture (.png, .svg, .pdf), - for stdout; default: FILE.png")
    parser.add_argument("--force", action="store_true", help="replace a picture that hso-jax did not write")


def _plot(args: argparse.Namespace) -> int:
    schedules = _selected(args)
    output = args.output or args.file.with_suffix(".png")
    kind = figure_kind(output, stream=True)
    check_writable(output, "picture", args.force, [args.file])
    from hso_jax import plots

    if args.landscape:
        prepare_jax()
        figure = plots.landscape_figure(schedules[0])
    else:
        figure = plots.schedules_figure(schedules)
    write_all([(output, plots.encoded(figure, kind))], args.written)
    if not is_stream(output):
        terminal.say(f"wrote {printable(output)}")
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
