"""`recommend` and `zoo`: the commands that answer at once from what is shipped."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from hso_jax import schedule_file
from hso_jax.checks import printable
from hso_jax.cli import common, show
from hso_jax.files import check_writable, is_stdout, json_text, write_all
from hso_jax.noise import PRESETS
from hso_jax.shipped.distilled import DISTILLATIONS, of_folder
from hso_jax.shipped.recommend import SHIPPED, Recommendation, recommend
from hso_jax.shipped.zoo import CHOICES, zoo


def add_recommend(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand `recommend`."""
    examples = """\
examples:
  hso-jax recommend --model sdxl --nfe 6
  hso-jax recommend --model sdxl --nfe 6 --guidance 7 --scheduler dpmpp-2m -o sdxl.json
  hso-jax recommend --model flux-dev --model qwen-image --nfe 4-8
  hso-jax recommend --model ./my-model --guidance 5 --nfe 6      (a diffusers folder)

The command searches nothing. The errors are predictions: errors of the solver's samples on reference problems, in
standard deviations of the data. Solver coefficients (nonstationary) are recommended where they save a tenth or more.
"""
    text = "say which steps and which solver to use, at once"
    parser = common.add_command(subparsers, "recommend", _recommend, text, examples)
    common.add_models(parser)
    parser.add_argument("--nfe", "--steps", default="6", help="numbers of evaluations, 1..20; default %(default)s")
    parser.add_argument("--guidance", type=float, help="weight of classifier-free guidance; default: the preset's")
    parser.add_argument(
        "--scheduler",
        "--solver",
        metavar="NAME",
        help=f"solver to keep: {', '.join(CHOICES)}, or another program's name for it; default: the best",
    )
    parser.add_argument(
        "--distilled",
        choices=(*DISTILLATIONS, "no"),
        help="how the model was distilled; default: as its name or folder tells",
    )
    parser.add_argument("-o", "--output", type=Path, help="schedule file, for apply and show; - is stdout")
    parser.add_argument("--json", action="store_true", help="print everything as JSON on stdout; null is infinite")
    parser.add_argument("--force", action="store_true", help="replace a file that hso-jax did not write")


def _recommend(args: argparse.Namespace) -> int:
    if args.output is not None:
        check_writable(args.output, "schedules", args.force)
    nfes = common.parse_nfe(args.nfe)
    asked = [(name, nfe) for name in args.model or [common.DEFAULT_MODEL] for nfe in nfes]
    found = [_one(name, nfe, args) for name, nfe in asked]
    depend = {name for (name, _), one in zip(asked, found, strict=True) if one.method != SHIPPED}
    common.warn_of_unused_size(args, [name for name, _ in asked if name not in depend])
    if args.output is not None:
        document = schedule_file.to_json([one.schedule for one in found])
        write_all([(args.output, document.encode())], args.written)
    if args.json:
        common.write(json_text([_plain(one) for one in found]))
    elif args.output is None or not is_stdout(args.output):
        _print(found)
    for path in args.written:
        common.warn(f"wrote {printable(path)}")
    return 0


def _one(name: str, nfe: int, args: argparse.Namespace) -> Recommendation:
    noise, _ = common.noise_named(name, args.image_seq_len)
    distilled: str | bool | None = False if args.distilled == "no" else args.distilled
    usual = PRESETS[name].guidance if name in PRESETS else None
    if usual is None:
        distilled = of_folder(Path(name)) if distilled is None else distilled
        if not distilled:
            common.usual_guidance(name, args.guidance)
    return recommend(noise, nfe, guidance=args.guidance, solver=args.scheduler, distilled=distilled, usual=usual)


def _plain(found: Recommendation) -> dict[str, Any]:
    """The fields of a recommendation for JSON."""
    s = found.schedule
    return {
        "model": s.model,
        "nfe": found.nfe,
        "guidance": found.guidance,
        "solver": found.solver,
        "nodes": found.method,
        "error": found.error,
        "gain": found.gain,
        "distilled": found.distilled,
        "timesteps": s.timesteps.tolist(),
        "sigmas": s.sampler_sigmas().tolist(),
        "coefficients": None if s.coefficients is None else s.coefficients.tolist(),
        "errors": {solver: dict(rows) for solver, rows in found.errors.items()},
        "reason": found.reason,
    }


def _print(found: Sequence[Recommendation]) -> None:
    for i, one in enumerate(found):
        s = one.schedule
        used = f"{one.solver} with {'its own schedule' if one.method == SHIPPED else one.method}"
        lines = [
            f"{s.model}, N = {one.nfe}, guidance {one.guidance:g}",
            f"use           {used if one.distilled is None else 'the solver and the grid that the model comes with'}",
            f"levels        {show.levels(s)}",
            f"sigmas        {' '.join(f'{x:.4g}' for x in s.sampler_sigmas())}",
        ]
        if s.coefficients is not None:
            lines.append(f"coefficients  {show.coefficients(s)}")
        common.say(*([""] if i else []), *map(printable, lines))
        if one.errors and len(found) == 1:
            common.say(_errors(one))
        common.say(printable(one.reason))


def _errors(found: Recommendation) -> Table:
    """The predicted errors: a row for each kind of nodes, a column for each solver; a mark at the one to use."""
    table = Table(title="predicted error (< is what to use)", title_justify="left")
    table.add_column("nodes", no_wrap=True)
    for solver in found.errors:
        table.add_column(solver, justify="right", no_wrap=True)
    for name in dict.fromkeys(name for rows in found.errors.values() for name in rows):
        cells = []
        for solver, rows in found.errors.items():
            mark = " <" if (solver, name) == (found.solver, found.method) else ""
            cells.append(f"{rows[name]:.3g}{mark}" if name in rows else "")
        table.add_row("its own" if name == SHIPPED else name, *cells)
    return table


def add_zoo(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand `zoo`."""
    examples = """\
examples:
  hso-jax zoo --model sdxl --solver unipc --nfe 4-8
  hso-jax zoo --model flux-dev --solver ddim --nfe 6 --json > flux.json
"""
    text = "print the schedules that are shipped for a solver, without a search"
    parser = common.add_command(subparsers, "zoo", _zoo, text, examples)
    common.add_models(parser)
    parser.add_argument("--nfe", default="4-10", help="numbers of model evaluations, 1..20; default %(default)s")
    parser.add_argument("--solver", help=f"{', '.join(CHOICES)}; default: for each N the one with the least error")
    parser.add_argument("--guidance", type=float, help="1, or the preset's usual weight, which is the default")
    parser.add_argument("-o", "--output", type=Path, help="write a schedule file; - is stdout")
    parser.add_argument("--json", action="store_true", help="print the schedule file on stdout")
    parser.add_argument("--force", action="store_true", help="replace a file that hso-jax did not write")


def _zoo(args: argparse.Namespace) -> int:
    output = common.named_output(args)
    if output is not None:
        check_writable(output, "schedules", args.force)
    nfes, names = common.parse_nfe(args.nfe), args.model or [common.DEFAULT_MODEL]
    schedules = [
        zoo(
            common.noise_named(name, args.image_seq_len)[0],
            nfe,
            args.solver,
            guidance=common.usual_guidance(name, args.guidance),
        )
        for name in names
        for nfe in nfes
    ]
    common.warn_of_unused_size(args, names)
    document = schedule_file.to_json(schedules)
    if output is not None:
        write_all([(output, document.encode())], args.written)
    if args.json:
        common.write(document)
    else:
        models, solvers = (", ".join(dict.fromkeys(getattr(s, n) for s in schedules)) for n in ("model", "solver"))
        weights = ", ".join(dict.fromkeys(f"{s.guidance:g}" for s in schedules))
        show.print_schedules(schedules, f"{models}: {solvers}, guidance {weights}")
        show.print_advice(schedules)
    for path in args.written:
        (common.warn if args.json else common.say)(f"wrote {printable(path)}")
    return 0
