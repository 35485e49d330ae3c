"""`models`, `show` and `plot`, and how all commands print schedules."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from hso_jax import schedule_file
from hso_jax.checks import printable
from hso_jax.cli import common
from hso_jax.files import check_writable, figure_kind, is_stream, json_text, write_all
from hso_jax.noise import PRESETS, preset
from hso_jax.schedule import LAYOUTS, Schedule

_LEAST_STEPS = 19  # characters of the column of levels; it wraps
_COEFFICIENTS = "coefficients"
_LEAST_MODELS = 70  # characters for the table of presets
_GRID = 48  # points a side of the landscape


def add_models(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand `models`."""
    text = "list the models whose noise schedule is built in"
    note = "For a model that is not listed, pass its folder to --model.\n"
    parser = common.add_command(subparsers, "models", _models, text, note)
    parser.add_argument("--json", action="store_true", help="print them as JSON on stdout")


def _models(args: argparse.Namespace) -> int:
    fields = {name: preset_fields(name) for name in PRESETS}
    if args.json:
        common.write(json_text([{"name": name, **known} for name, known in fields.items()]))
        return 0
    title, heads = (
        "Models with a built-in noise schedule (--model NAME)",
        ("name", "model", "kind", "sigma/alpha", "p"),
    )
    rows = []
    for name, known in fields.items():
        end = "inf" if known["sigma_max"] is None else f"{known['sigma_max']:.4g}"
        span = f"{known['sigma_min']:.3g} .. {end}"
        rows.append((name, known["description"], known["kind"], span, f"{known['p']:g}"))
    if common.width() < _LEAST_MODELS:
        common.say(title, *("\n" + "\n".join(f"{h}: {x}" for h, x in zip(heads, row, strict=True)) for row in rows))
        return 0
    table = Table()
    for head in heads:
        table.add_column(head, no_wrap=head != "model")
    for row in rows:
        table.add_row(*row)
    common.say(title, table)
    return 0


def preset_fields(name: str) -> dict[str, Any]:
    """The fields of a preset for JSON; `sigma_max` is None where sigma/alpha is infinite."""
    entry, noise = PRESETS[name], preset(name)
    low, high = (float(noise.ksigma(float(t))) for t in (noise.t_min, noise.t_max))
    kept = ("description", "source", "p", "guidance", "resolution", "boundary", "latent")
    return {
        **{field: getattr(entry, field) for field in kept},
        "prediction": noise.prediction,
        "kind": noise.kind,
        "sigma_min": low,
        "sigma_max": None if noise.zero_terminal_snr else high,
    }


def add_show(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand `show`."""
    examples = "examples:\n  hso-jax show FILE\n  hso-jax show FILE --nfe 6 --layout node --as sigmas    (ComfyUI)\n"
    parser = common.add_command(subparsers, "show", _show, "print the schedules in a file", examples)
    _add_file(parser)
    parser.add_argument(
        "--as",
        dest="form",
        choices=("table", "sigmas", "timesteps", "python", "weights", "json"),
        default="table",
        help="sigmas: N + 1 values for samplers; timesteps: N integers; python: both and the coefficients, to paste; "
        "weights: one line for each step of a nonstationary solver, first the weight of the sample, then those of the "
        "predictions, newest first; default %(default)s",
    )


def _show(args: argparse.Namespace) -> int:
    schedules = _selected(args)
    if args.form == "table":
        print_schedules(schedules, str(args.file))
    elif args.form == "json":
        common.write(schedule_file.to_json(schedules))
    elif args.form == "python":
        common.write("\n".join(s.python_literal() for s in schedules))
    elif args.form == "weights":
        tables = ["".join(" ".join(map(repr, row)) + "\n" for row in s.weights_table().tolist()) for s in schedules]
        common.write("\n".join(tables))
    else:
        for s in schedules:
            values = s.sampler_sigmas().astype("float32") if args.form == "sigmas" else s.integer_timesteps()
            common.say(", ".join(str(x) for x in values))
    return 0


def add_plot(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand `plot`."""
    examples = "examples:\n  hso-jax plot FILE -o schedules.png\n  hso-jax plot FILE --landscape -o mep.png --nfe 5\n"
    parser = common.add_command(subparsers, "plot", _plot, "draw the schedules in a file", examples)
    _add_file(parser)
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
        common.prepare_jax()
        figure = landscape(schedules[0])
    else:
        figure = plots.schedules_figure(schedules)
    write_all([(output, plots.encoded(figure, kind))], args.written)
    if not is_stream(output):
        common.say(f"wrote {printable(output)}")
    return 0


def landscape(schedule: Schedule) -> Any:
    """The figure of MEP over the ends of a schedule: the nodes between each pair of ends are refined.

    Raises:
        ValueError: if the schedule's model is no preset, or it has a single node.
    """
    import jax
    import jax.numpy as jnp

    from hso_jax.compiling import under_jax_defaults
    from hso_jax.hso import PAPER_BOX, edm_nodes, times_even_in_lam
    from hso_jax.plots import landscape_figure
    from hso_jax.searches import refine

    if schedule.model not in PRESETS:
        raise ValueError(f"model {schedule.model!r} is not a preset; --landscape works for presets only")
    noise, intervals = preset(schedule.model), len(schedule.t) - 1
    if intervals < 1:
        raise ValueError("a schedule of one node has no MEP")
    t_eps = np.linspace(max(0.005, float(noise.t_min)), 0.12, _GRID)
    t_max = np.linspace(0.85, float(noise.t_max), _GRID)

    @under_jax_defaults
    @jax.jit
    def over_ends(t_eps: Any, t_max: Any, times: Any, p: float) -> tuple[Any, Any]:
        def at(end: Any, top: Any) -> tuple[Any, Any]:
            psi = jnp.stack([jnp.asarray(7.0, end.dtype), end, top])
            start = edm_nodes(noise, psi, intervals + 1, jnp.asarray(intervals), times)
            found = refine(noise, start, t_max=top, t_eps=end, p=p, max_steps=8)
            return found.value, jnp.min(found.t[:-1] - found.t[1:])

        return jax.vmap(lambda end: jax.vmap(lambda top: at(end, top))(t_max))(t_eps)

    times = jnp.asarray(times_even_in_lam(noise))
    value, gap = over_ends(jnp.asarray(t_eps), jnp.asarray(t_max), times, schedule.origin.p)
    box = (PAPER_BOX.t_eps, PAPER_BOX.t_max)
    return landscape_figure(schedule, (t_eps, t_max), np.asarray(value), np.asarray(gap), box)


def _add_file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="schedule file")
    parser.add_argument("--nfe", help="only these numbers of evaluations: 4-8 or 4,6")
    parser.add_argument("--layout", choices=LAYOUTS, help="only this layout")


def _selected(args: argparse.Namespace) -> list[Schedule]:
    every = schedule_file.load(args.file)
    nfes = None if args.nfe is None else common.parse_nfe(args.nfe)
    kept = [s for s in every if (nfes is None or s.nfe in nfes) and args.layout in (None, s.layout)]
    if not kept:
        have = ", ".join(sorted({f"{s.nfe} {s.layout}" for s in every})) or "none"
        raise ValueError(f"{args.file} has no such schedule (it has: {have})")
    return kept


# Schedules as tables


def number(value: float | None, digits: int = 5) -> str:
    """A number in few characters, or a dash."""
    return "-" if value is None else f"{value:.{digits}g}"


def levels(schedule: Schedule) -> str:
    """The evaluated timesteps, rounded unless they lie in [0, 1]; sigma/alpha for models without timesteps."""
    if schedule.kind == "ve":
        return " ".join(f"{x:.3g}" for x in schedule.evaluated_sigmas)
    if schedule.num_train_timesteps == 1:
        return " ".join(f"{x:.3g}" for x in schedule.timesteps)
    return " ".join(str(x) for x in schedule.integer_timesteps())


def coefficients(schedule: Schedule) -> str:
    """The coefficients of each step of a nonstationary solver, without those of predictions that do not exist yet."""
    if schedule.coefficients is None:
        return "-"
    return " | ".join(" ".join(f"{x:.3g}" for x in row[:i]) for i, row in enumerate(schedule.coefficients) if i) or "0"


def print_schedules(schedules: Sequence[Schedule], title: str, without: Collection[str] = ()) -> None:
    """Print one row a schedule. Columns in `without` and those that say the same in every row are left out.

    If the terminal is too narrow for the table, each value gets a line.
    """
    rows, stepped = _columns(schedules)
    rows = {name: texts for name, texts in rows.items() if name not in without}
    wrapped = [name for name in (stepped, _COEFFICIENTS) if name in rows]
    fixed = sum(max(map(len, (name, *texts))) for name, texts in rows.items() if name not in wrapped)
    if fixed + _LEAST_STEPS * len(wrapped) + 3 * len(rows) + 1 > common.width():
        blocks = ["\n".join(f"{name}: {texts[i]}" for name, texts in rows.items()) for i in range(len(schedules))]
        common.say(printable(title), *(f"\n{block}" for block in blocks))
        return
    table = Table(row_styles=["", "dim"])
    for name in rows:
        left = name in (*wrapped, "model", "method", "layout")
        table.add_column(name, justify="left" if left else "right", no_wrap=name not in wrapped)
    for row in zip(*rows.values(), strict=True):
        table.add_row(*row)
    common.say(printable(title), table)


def _columns(schedules: Sequence[Schedule]) -> tuple[dict[str, list[str]], str]:
    """The texts of each column that is shown, and the name of the column with the levels."""
    stepped = "sigma (evaluated)" if {s.kind for s in schedules} == {"ve"} else "timesteps (evaluated)"
    columns: dict[str, Callable[[Schedule], str]] = {
        "model": lambda s: s.model,
        "N": lambda s: str(s.nfe),
        "layout": lambda s: s.layout,
        "method": lambda s: s.method,
        "solver": lambda s: s.solver,
        "guidance": lambda s: number(s.guidance),
        stepped: levels,
        _COEFFICIENTS: coefficients,
        "stop": lambda s: "0" if s.end == "clean" else f"t={s.t[-1]:.2g}",
        "error": lambda s: number(s.error, 3),
        "MEP": lambda s: number(s.mep, 4),
        "SPF": lambda s: number(s.spf, 4 if s.spf is None or s.spf < 1e5 else 2),
        "gap": lambda s: number(s.min_spacing, 3),
        "asked": lambda s: number(s.origin.d_min, 3),
        "result": lambda s: s.result,
    }
    always = {"N", stepped, "gap", "error" if all(s.mep is None for s in schedules) else "MEP"}
    if any(s.coefficients is not None for s in schedules):
        always.add(_COEFFICIENTS)
    rows = {name: [printable(text(s)) for s in schedules] for name, text in columns.items()}
    if rows["SPF"] == rows["MEP"]:
        del rows["SPF"]
    if set(rows["result"]) <= {"converged", "fixed"}:
        del rows["result"]
    return {name: texts for name, texts in rows.items() if name in always or len(set(texts)) > 1}, stepped


def print_advice(schedules: Sequence[Schedule]) -> None:
    """Print one line for each schedule whose solver another one beats at this N and guidance."""
    for s in schedules:
        if s.better_solver is not None and s.error is not None:
            error = {**s.others_own_nodes, **s.others_same_nodes}[s.better_solver]
            common.warn(
                f"N = {s.nfe}: {s.better_solver} does better than {s.solver} at guidance {number(s.guidance)}: "
                f"error at most {error:.3g} against {s.error:.3g}",
                style="yellow",
            )
