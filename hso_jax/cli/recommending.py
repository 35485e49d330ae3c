"""`recommend`: what to use for a model, a number of steps and a guidance weight, from what is shipped."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from hso_jax import schedule_file
from hso_jax.checks import printable
from hso_jax.cli import arguments, tables, terminal
from hso_jax.cli.arguments import DEFAULT_MODEL
from hso_jax.files import check_writable, is_stdout, json_text, write_all
from hso_jax.noise import PRESETS
from hso_jax.shipped.distilled import DISTILLATIONS, of_folder
from hso_jax.shipped.recommend import SHIPPED, Recommendation, recommend
from hso_jax.shipped.zoo import CHOICES


def add_parsers(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    examples = """\
examples:
  hso-jax recommend --model sdxl --nfe 6
  hso-jax recommend --model sdxl --nfe 6 --guidance 7 --scheduler dpmpp-2m -o sdxl.json
  hso-jax recommend --model flux-dev --model qwen-image --nfe 4-8
  hso-jax recommend --model ./my-model --guidance 5 --nfe 6      (a diffusers folder)

Errors are predicted: of the solver's samples on reference problems, in standard deviations of the data. Nothing is
searched. Coefficients of their own (nonstationary) are taken where they save a tenth or more.
"""
    text = "say which steps and which solver to use, at once"
    parser = arguments.add_command(subparsers, "recommend", _recommend, text, examples)
    arguments.add_models(parser)
    parser.add_argument("--nfe", "--steps", default="6", help="numbers of evaluations, 1..20; default %(default)s")
    parser.add_argument(
        "--guidance", type=float, help="weight of classifier-free guidance; default: the preset's usual one"
    )
    parser.add_argument(
        "--scheduler",
        "--solver",
        metavar="NAME",
        help=f"the solver that you keep: {', '.join(CHOICES)}, or another program's name for it; default: the best",
    )
    parser.add_argument(
        "--distilled", choices=(*DISTILLATIONS, "no"), help="what the model is distilled by; default: by its name"
    )
    parser.add_argument("-o", "--output", type=Path, help="schedule file, for apply and show; - is stdout")
    parser.add_argument(
        "--json", action="store_true", help="print everything as JSON on stdout; null is an infinite sigma, pure noise"
    )
    parser.add_argument("--force", action="store_true", help="replace a file that hso-jax did not write")


def _recommend(args: argparse.Namespace) -> int:
    if args.output is not None:
        check_writable(args.output, "schedules", args.force)
    nfes = arguments.parse_nfe(args.nfe)
    asked = [(name, nfe) for name in args.model or [DEFAULT_MODEL] for nfe in nfes]
    found = [_one(name, nfe, args) for name, nfe in asked]
    follow = {name for (name, _), one in zip(asked, found, strict=True) if one.method != SHIPPED}
    arguments.tell_unused_size(args, [name for name, _ in asked if name not in follow])
    if args.output is not None:
        document = schedule_file.checked_json([one.schedule for one in found])
        write_all([(args.output, document.encode())], args.written)
    if args.json:
        terminal.write(json_text([_plain(one) for one in found]))
    elif args.output is None or not is_stdout(args.output):
        _print(found)
    for path in args.written:
        terminal.warn(f"wrote {printable(path)}")
    return 0


def _one(name: str, nfe: int, args: argparse.Namespace) -> Recommendation:
    noise, _ = arguments.noise_named(name, args.image_seq_len)
    distilled: str | bool | None = False if args.distilled == "no" else args.distilled
    guidance = args.guidance
    if name not in PRESETS:
        distilled = of_folder(Path(name)) if distilled is None else distilled
        if guidance is None and not distilled:
            raise ValueError(f"{name} does not say how it is used; add --guidance W (1 is without guidance)")
        return recommend(noise, nfe, guidance=guidance, solver=args.scheduler, distilled=distilled)
    usual = PRESETS[name].guidance
    return recommend(noise, nfe, guidance=guidance, solver=args.scheduler, distilled=distilled, usual=usual)


def _plain(found: Recommendation) -> dict[str, Any]:
    """All of it, as JSON has it."""
    s = found.schedule
    return {
        **{"model": s.model, "nfe": found.nfe, "guidance": found.guidance, "solver": found.solver},
        **{"nodes": found.method, "error": found.error, "gain": found.gain, "distilled": found.distilled},
        **{"timesteps": s.timesteps.tolist(), "sigmas": s.sampler_sigmas().tolist()},
        "coefficients": None if s.coefficients is None else s.coefficients.tolist(),
        **{"errors": {solver: dict(rows) for solver, rows in found.errors.items()}, "reason": found.reason},
    }


def _print(found: Sequence[Recommendation]) -> None:
    for i, one in enumerate(found):
        s = one.schedule
        lines = [
            f"{s.model}, N = {one.nfe}, guidance {one.guidance:g}",
            f"use        {_used(one)}",
            f"levels     {tables.levels(s)}",
            f"sigmas     {' '.join(f'{x:.4g}' for x in s.sampler_sigmas())}",
        ]
        if s.coefficients is not None:
            lines.append(f"coefficients {tables.coefficients(s)}")
        terminal.say(*([""] if i else []), *map(printable, lines))
        if one.errors and len(found) == 1:
            terminal.say(_table(one))
        terminal.say(printable(one.reason))


def _used(found: Recommendation) -> str:
    if found.distilled is not None:
        return "the solver and the grid that the model comes with"
    return f"{found.solver} with {'its own schedule' if found.method == SHIPPED else found.method}"


def _table(found: Recommendation) -> Table:
    """Predicted errors: a row for each kind of nodes, a column for each solver."""
    table = Table(title="predicted error", title_justify="left")
    table.add_column("nodes", no_wrap=True)
    for solver in found.errors:
        table.add_column(solver, justify="right")
    for name in dict.fromkeys(name for rows in found.errors.values() for name in rows):
        cells = []
        for solver, rows in found.errors.items():
            mark = " <" if (solver, name) == (found.solver, found.method) else ""
            cells.append(f"{rows[name]:.3g}{mark}" if name in rows else "")
        table.add_row("its own" if name == SHIPPED else name, *cells)
    return table
