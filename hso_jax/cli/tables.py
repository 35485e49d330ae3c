"""Schedules as rich tables."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

from rich.table import Table

from hso_jax.checks import printable
from hso_jax.cli import terminal
from hso_jax.noise import PRESETS, preset
from hso_jax.schedule import Schedule

_LEAST_STEPS = 19  # characters of the column of levels; it wraps
_COEFFICIENTS = "coefficients"
_LEAST_MODELS = 70  # characters for the table of presets


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


def coefficients(schedule: Schedule) -> str:
    """Of a non-stationary solver: each step's, but for those of predictions that do not exist yet; else a dash."""
    if schedule.coefficients is None:
        return "-"
    return " | ".join(" ".join(f"{x:.3g}" for x in row[:i]) for i, row in enumerate(schedule.coefficients) if i) or "0"


def print_schedules(schedules: Sequence[Schedule], title: str, without: Collection[str] = ()) -> None:
    """One row a schedule; columns that say the same in every row are left out, and those of `without`.

    Where the terminal is too narrow for the table, one line a value.
    """
    rows, stepped = _columns(schedules)
    rows = {name: texts for name, texts in rows.items() if name not in without}
    wrapped = [name for name in (stepped, _COEFFICIENTS) if name in rows]
    count = len(schedules)
    fixed = sum(max(map(len, (name, *texts))) for name, texts in rows.items() if name not in wrapped)
    if fixed + _LEAST_STEPS * len(wrapped) + 3 * len(rows) + 1 > terminal.width():
        blocks = ["\n".join(f"{name}: {texts[i]}" for name, texts in rows.items()) for i in range(count)]
        terminal.say(printable(title), *(f"\n{block}" for block in blocks))
        return
    table = Table(row_styles=["", "dim"])
    for name in rows:
        text = name in wrapped
        left = text or name in ("model", "method", "layout")
        table.add_column(name, justify="left" if left else "right", no_wrap=not text)
    for row in zip(*rows.values(), strict=True):
        table.add_row(*row)
    terminal.say(printable(title), table)


def _columns(schedules: Sequence[Schedule]) -> tuple[dict[str, list[str]], str]:
    """Texts of each column that is shown, and the name of the one with the levels."""
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
    rows = {name: texts for name, texts in rows.items() if name in always or len(set(texts)) > 1}
    return rows, stepped


def print_advice(schedules: Sequence[Schedule]) -> None:
    """One line a schedule whose solver another one beats at this N and guidance."""
    for s in schedules:
        if s.better_solver is not None and s.error is not None:
            other = {**s.others_own_nodes, **s.others_same_nodes}[s.better_solver]
            weight = number(s.guidance)
            # Where a lower order wins, the steps are too long for this one: its extrapolation overshoots.
            terminal.warn(
                f"N = {s.nfe}: {s.better_solver} does better than {s.solver} at guidance {weight}: error at most "
                f"{other:.3g} against {s.error:.3g}",
                style="yellow",
            )


def preset_fields(name: str) -> dict[str, Any]:
    """What is known of a preset, as JSON has it; the largest sigma/alpha is None where it is infinite."""
    entry, noise = PRESETS[name], preset(name)
    low, high = (float(noise.ksigma(float(t))) for t in (noise.t_min, noise.t_max))
    kept = {
        n: getattr(entry, n) for n in ("description", "source", "prediction", "p", "guidance", "resolution", "boundary")
    }
    return {**kept, "kind": noise.kind, "sigma_min": low, "sigma_max": None if noise.zero_terminal_snr else high}


def print_models() -> None:
    """The presets."""
    rows = []
    for name, entry in PRESETS.items():
        noise = preset(name)
        low, high = (float(noise.ksigma(float(t))) for t in (noise.t_min, noise.t_max))
        end = "inf" if noise.zero_terminal_snr else f"{high:.4g}"
        rows.append((name, entry.description, noise.kind, f"{low:.3g} .. {end}", f"{entry.p:g}"))
    title, heads = (
        "Models with an embedded noise schedule (--model NAME)",
        ("name", "model", "kind", "sigma/alpha", "p"),
    )
    if terminal.width() < _LEAST_MODELS:
        terminal.say(title, *("\n" + "\n".join(f"{h}: {x}" for h, x in zip(heads, row, strict=True)) for row in rows))
        return
    table = Table()
    for head in heads:
        table.add_column(head, no_wrap=head != "model")
    for row in rows:
        table.add_row(*row)
    terminal.say(title, table)
