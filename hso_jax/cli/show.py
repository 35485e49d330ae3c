"""`models`, `show` and `plot`, and how all commands print schedules."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
from rich.table import Table

from hso_jax import schedule_file
from hso_jax.checks import printable
from hso_jax.cli import common
from hso_jax.files import check_writable, figure_kind, is_stream, json_text, write_all
from hso_jax.noise import PRESETS, preset
from hso_jax.schedule import Schedule

_LEAST_WRAPPED = 19  # characters of a column that wraps
_COEFFICIENTS = "coefficients"
_GRID = 48  # points a side of the landscape


def models(args: argparse.Namespace) -> int:
    """List the presets."""
    kept = ("description", "source", "p", "guidance", "resolution", "boundary", "latent")
    rows = []
    for name, entry in PRESETS.items():
        noise = preset(name)
        low, high = (float(noise.ksigma(float(t))) for t in (noise.t_min, noise.t_max))
        known = {field: getattr(entry, field) for field in kept}
        ends = {"sigma_min": low, "sigma_max": math.inf if noise.zero_terminal_snr else high}
        rows.append({"name": name, **known, "prediction": noise.prediction, "kind": noise.kind, **ends})
    if args.json:
        common.write(json_text(rows))
        return 0
    columns = {
        "name": [row["name"] for row in rows],
        "model": [row["description"] for row in rows],
        "kind": [row["kind"] for row in rows],
        "sigma/alpha": [f"{row['sigma_min']:.3g} .. {row['sigma_max']:.4g}" for row in rows],
        "p": [f"{row['p']:g}" for row in rows],
    }
    print_table("Models with a built-in noise schedule (--model NAME)", columns, ["model"], columns)
    return 0


def show(args: argparse.Namespace) -> int:
    """Print the schedules of a file."""
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


def plot(args: argparse.Namespace) -> int:
    """Draw the schedules of a file."""
    schedules = _selected(args)
    output = args.output or args.file.with_suffix(".png")
    kind = figure_kind(output, stream=True)
    check_writable(output, "picture", args.force, [args.file])
    from hso_jax import plots

    if args.landscape:
        common.prepare_jax()
        figure = landscape(schedules[0])
    else:
        figure = plots.plot(schedules)
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


def _selected(args: argparse.Namespace) -> list[Schedule]:
    every = schedule_file.load(args.file)
    nfes = None if args.nfe is None else common.parse_nfe(args.nfe)
    kept = [s for s in every if (nfes is None or s.nfe in nfes) and args.layout in (None, s.layout)]
    if not kept:
        if not every:
            raise ValueError(f"{args.file} has no schedules")
        have = ", ".join(sorted({f"{s.nfe} ({s.layout})" for s in every}))
        wanted = " ".join(f"--{k} {v}" for k, v in (("nfe", args.nfe), ("layout", args.layout)) if v is not None)
        raise ValueError(f"{args.file} has no schedule for {wanted}; it has N = {have}")
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


def levels_heading(schedules: Sequence[Schedule]) -> str:
    """What the column of `levels` is called."""
    return "sigma (evaluated)" if {s.kind for s in schedules} == {"ve"} else "timesteps (evaluated)"


def coefficients(schedule: Schedule) -> str:
    """The coefficients of each step of a nonstationary solver, without those of predictions that do not exist yet."""
    if schedule.coefficients is None:
        return "-"
    return " | ".join(" ".join(f"{x:.3g}" for x in row[:i]) for i, row in enumerate(schedule.coefficients) if i) or "0"


def print_schedules(schedules: Sequence[Schedule], title: str) -> None:
    """Print one row a schedule. Columns that say the same in every row are left out."""
    columns = _columns(schedules)
    wrapped = [name for name in (levels_heading(schedules), _COEFFICIENTS) if name in columns]
    print_table(title, columns, wrapped, (*wrapped, "model", "method", "layout"), ["", "dim"])


def print_table(
    title: str,
    columns: dict[str, list[str]],
    wrapped: Collection[str],
    left: Collection[str],
    styles: Sequence[str] = (),
) -> None:
    """Print a table whose columns in `wrapped` may wrap; where the terminal is too narrow, a line for each value."""
    rows = list(zip(*columns.values(), strict=True))
    fixed = sum(max(map(len, (name, *texts))) for name, texts in columns.items() if name not in wrapped)
    if fixed + _LEAST_WRAPPED * len(wrapped) + 3 * len(columns) + 1 > common.width():
        blocks = ["\n".join(f"{name}: {text}" for name, text in zip(columns, row, strict=True)) for row in rows]
        common.say(printable(title), *(f"\n{block}" for block in blocks))
        return
    table = Table(row_styles=styles)
    for name in columns:
        table.add_column(name, justify="left" if name in left else "right", no_wrap=name not in wrapped)
    for row in rows:
        table.add_row(*row)
    common.say(printable(title), table)


def _columns(schedules: Sequence[Schedule]) -> dict[str, list[str]]:
    """The texts of each column that is shown."""
    heading = levels_heading(schedules)
    columns: dict[str, Callable[[Schedule], str]] = {
        "model": lambda s: s.model,
        "N": lambda s: str(s.nfe),
        "layout": lambda s: s.layout,
        "method": lambda s: s.method,
        "solver": lambda s: s.solver,
        "guidance": lambda s: number(s.guidance),
        heading: levels,
        _COEFFICIENTS: coefficients,
        "stop": lambda s: "0" if s.end == "clean" else f"t={s.t[-1]:.2g}",
        "error": lambda s: number(s.error, 3),
        "MEP": lambda s: number(s.mep, 4),
        "SPF": lambda s: number(s.spf, 4 if s.spf is None or s.spf < 1e5 else 2),
        "gap": lambda s: number(s.min_spacing, 3),
        "d_min": lambda s: number(s.origin.d_min, 3),
        "result": lambda s: s.result,
    }
    always = {"N", heading, "gap", "error" if all(s.mep is None for s in schedules) else "MEP"}
    if any(s.coefficients is not None for s in schedules):
        always.add(_COEFFICIENTS)
    rows = {name: [printable(text(s)) for s in schedules] for name, text in columns.items()}
    if rows["SPF"] == rows["MEP"]:
        del rows["SPF"]
    if set(rows["result"]) <= {"converged", "fixed"}:
        del rows["result"]
    return {name: texts for name, texts in rows.items() if name in always or len(set(texts)) > 1}


def print_advice(schedules: Sequence[Schedule]) -> None:
    """Print one line for each schedule whose solver another one beats at this N and guidance."""
    for s in schedules:
        if s.better_solver is not None and s.error is not None:
            common.warn(
                f"N = {s.nfe}: {s.better_solver} does better than {s.solver} at guidance {number(s.guidance)}, by "
                "prediction",
                style="yellow",
            )
