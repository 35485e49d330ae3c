"""Schedules as rich tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import Console
from rich.table import Table

from hso_jax.noise import PRESETS, preset
from hso_jax.schedule import Schedule


def number(value: float | None, digits: int = 5) -> str:
    """A number in few characters, or a dash."""
    return "-" if value is None else f"{value:.{digits}g}"


def levels(schedule: Schedule) -> str:
    """The evaluated timesteps, rounded unless they lie in [0, 1]; ksigma for models that have none."""
    if schedule.kind == "ve":
        return " ".join(f"{x:.3g}" for x in schedule.evaluated_sigmas)
    if schedule.num_train_timesteps == 1:
        return " ".join(f"{x:.3g}" for x in schedule.timesteps)
    return " ".join(str(x) for x in schedule.integer_timesteps())


def schedule_table(schedules: Sequence[Schedule], title: str | None = None) -> Table:
    """One row a schedule; columns that say the same in every row are left out."""
    table = Table(title=title, title_justify="left", row_styles=["", "dim"])
    kinds = {s.kind for s in schedules}
    stepped = "sigma (evaluated)" if kinds == {"ve"} else "timesteps (evaluated)"
    columns: dict[str, Callable[[Schedule], str]] = {
        "model": lambda s: s.model,
        "N": lambda s: str(s.nfe),
        "layout": lambda s: s.layout,
        "method": lambda s: s.method,
        "solver": lambda s: s.solver,
        "guidance": lambda s: number(s.guidance),
        stepped: levels,
        "stop": lambda s: "0" if s.end == "clean" else f"t={s.t[-1]:.2g}",
        "error": lambda s: number(s.error, 3),
        "MEP": lambda s: number(s.mep, 4),
        "SPF": lambda s: number(s.spf, 4 if s.spf is None or s.spf < 1e5 else 2),
        "gap": lambda s: number(s.min_spacing, 3),
        "asked": lambda s: number(s.d_min, 3),
        "result": lambda s: s.result,
    }
    always = {"N", stepped, "gap", "error" if all(s.mep is None for s in schedules) else "MEP"}
    rows = {name: [text(s) for s in schedules] for name, text in columns.items()}
    if rows["SPF"] == rows["MEP"]:
        del rows["SPF"]
    if set(rows["result"]) <= {"converged", "fixed"}:
        del rows["result"]
    rows = {name: texts for name, texts in rows.items() if name in always or len(set(texts)) > 1}
    for name in rows:
        text = name == stepped
        table.add_column(
            name, justify="left" if text or name in ("model", "method", "layout") else "right", no_wrap=not text
        )
    for row in zip(*rows.values(), strict=True):
        table.add_row(*row)
    return table


def print_advice(schedules: Sequence[Schedule], console: Console) -> None:
    """One line a schedule whose solver another one beats at this N and guidance."""
    for s in schedules:
        if s.better_solver is not None and s.error is not None:
            other = s.others[s.better_solver]
            # Where a lower order wins, the steps are too long for this one: its extrapolation overshoots.
            console.print(
                f"N = {s.nfe}: {s.better_solver} does better than {s.solver} at guidance {s.guidance:g}: error at most "
                f"{other:.3g} against {s.error:.3g}",
                style="yellow",
                highlight=False,
            )


def model_table() -> Table:
    """The presets."""
    table = Table(title="Models with an embedded noise schedule (--model NAME)", title_justify="left")
    for name in ("name", "model", "kind", "sigma/alpha", "p"):
        table.add_column(name, no_wrap=name != "model")
    for name, entry in PRESETS.items():
        noise = preset(name)
        low, high = (float(noise.ksigma(float(t))) for t in (noise.t_min, noise.t_max))
        end = "inf" if noise.zero_terminal_snr else f"{high:.4g}"
        table.add_row(name, entry.description, noise.kind, f"{low:.3g} .. {end}", f"{entry.p:g}")
    return table
