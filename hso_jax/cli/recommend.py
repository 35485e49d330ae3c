"""`recommend` and `zoo`: the commands that answer at once from what is shipped."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from hso_jax import schedule_file
from hso_jax.baselines import baseline
from hso_jax.checks import printable
from hso_jax.cli import commands, common, show
from hso_jax.files import check_writable, is_stdout, json_text, write_all
from hso_jax.noise import NoiseSchedule
from hso_jax.shipped import recommend as shipped
from hso_jax.shipped.distilled import named_in, of_folder
from hso_jax.shipped.recommend import SHIPPED, Recommendation
from hso_jax.shipped.zoo import zoo as zoo_schedule


def recommend(args: argparse.Namespace) -> int:
    """Say what to use for each model and number of steps; with a pipeline, measure it."""
    if args.pipeline is not None:
        return commands.call_registered("recommend", args)
    if args.output is not None:
        check_writable(args.output, "schedules", args.force)
    nfes, models = common.parse_nfe(args.nfe), common.read_models(args)
    found = [_one(model, nfe, args) for model in models for nfe in nfes]
    noises = [model.noise for model in models for _ in nfes]
    names = [model.name for model in models for _ in nfes]
    depend = {name for name, one in zip(names, found, strict=True) if one.method != SHIPPED}
    common.warn_of_unused_size(args, set(names) - depend)
    if args.output is not None:
        document = schedule_file.to_json([one.schedule for one in found])
        write_all([(args.output, document.encode())], args.written)
    if args.json:
        common.write(json_text([_fields(one) for one in found]))
    elif args.output is None or not is_stdout(args.output):
        for i, (one, noise) in enumerate(zip(found, noises, strict=True)):
            if i:
                common.say("")
            _print(one, noise, args.all)
    for path in args.written:
        common.warn(f"wrote {printable(path)}")
    return 0


def _one(model: common.Model, nfe: int, args: argparse.Namespace) -> Recommendation:
    distilled: str | bool | None = False if args.distilled == "no" else args.distilled
    if model.path is not None and distilled is None:
        named = named_in([model.noise.name])  # the folder of a repository has another name in the cache
        distilled = of_folder(model.path) or (None if named is None else named[0])
    guidance = args.guidance if distilled else common.guidance_of(model, args.guidance)
    found = shipped.recommend(
        model.noise, nfe, guidance=guidance, solver=args.scheduler, distilled=distilled, usual=model.guidance
    )
    told = found.distilled is not None and distilled is not None and args.distilled is None
    return dataclasses.replace(found, told_by="its name or its configs say so") if told else found


def _fields(found: Recommendation) -> dict[str, Any]:
    """The fields of a recommendation for JSON."""
    s, gain, other = found.schedule, found.expected, found.compared_with
    against = {} if gain is None or other is None else {**gain._asdict(), "than": [other.solver, other.nodes]}
    return {
        "model": s.model,
        **{name: getattr(found, name) for name in ("nfe", "guidance", "solver")},
        "nodes": found.method,
        **{name: getattr(found, name) for name in ("error", "distilled")},
        "expected": against or None,
        "timesteps": s.timesteps.tolist(),
        "sigmas": s.sampler_sigmas().tolist(),
        "coefficients": None if s.coefficients is None else s.coefficients.tolist(),
        "errors": found.errors,
        "reason": found.reason,
    }


def _print(found: Recommendation, noise: NoiseSchedule, everything: bool) -> None:
    """Print what is recommended beside the usual choice and the best rule, and why; on demand every predicted error."""
    s, other = found.schedule, found.compared_with
    title = f"{s.model}, N = {found.nfe}, guidance {found.guidance:g}"
    own = found.distilled is not None or found.method == SHIPPED
    rows = [("recommended", "its own" if found.distilled else found.solver, "its own" if own else found.method, s)]
    if other is not None and other.error is not None:
        rows.append(("usual", *other[:2], baseline(other.nodes, noise, found.nfe)))
    if found.best_rule is not None:
        rows.append(("best rule", *found.best_rule, baseline(found.best_rule[1], noise, found.nfe)))
    columns = {
        "choice": [name for name, *_ in rows],
        "solver": [solver for _, solver, *_ in rows],
        "nodes": [nodes for _, _, nodes, _ in rows],
        show.levels_heading([s]): [show.levels(schedule) for *_, schedule in rows],
    }
    show.print_table(title, columns, [show.levels_heading([s])], columns)
    lines = [f"sigmas: {' '.join(f'{x:.4g}' for x in s.sampler_sigmas())}"]
    if s.coefficients is not None:
        lines.append(f"coefficients: {show.coefficients(s)}")
    common.say(*map(printable, lines))
    if everything and found.errors:
        _print_errors(found)
    common.say_words(found.reason)


def _print_errors(found: Recommendation) -> None:
    """Print the predicted errors: a row for each kind of nodes, a column for each solver, a mark at the recommended."""
    names = list(dict.fromkeys(name for rows in found.errors.values() for name in rows))
    columns = {"nodes": ["its own" if name == SHIPPED else name for name in names]}
    for solver, rows in found.errors.items():
        taken = found.method if solver == found.solver else None
        columns[solver] = [f"{rows[n]:.3g}{' <' if n == taken else ''}" if n in rows else "" for n in names]
    show.print_table("errors predicted on reference problems (< is recommended)", columns, (), ["nodes"])


def zoo(args: argparse.Namespace) -> int:
    """Print shipped schedules and write them where a file is named."""
    output = common.named_output(args)
    if output is not None:
        check_writable(output, "schedules", args.force)
    nfes, models = common.parse_nfe(args.nfe), common.read_models(args)
    schedules = [
        zoo_schedule(model.noise, nfe, args.solver, guidance=common.guidance_of(model, args.guidance))
        for model in models
        for nfe in nfes
    ]
    common.warn_of_unused_size(args, [model.name for model in models])
    document = schedule_file.to_json(schedules)
    if output is not None:
        write_all([(output, document.encode())], args.written)
    if args.json:
        common.write(document)
    else:
        names, solvers = (", ".join(dict.fromkeys(getattr(s, n) for s in schedules)) for n in ("model", "solver"))
        weights = ", ".join(dict.fromkeys(f"{s.guidance:g}" for s in schedules))
        show.print_schedules(schedules, f"{names}: {solvers}, guidance {weights}")
        show.print_advice(schedules)
    for path in args.written:
        (common.warn if args.json else common.say)(f"wrote {printable(path)}")
    return 0
