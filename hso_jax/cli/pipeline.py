"""`apply`, `sample`, `profile`, `tune` and `recommend --pipeline`: the commands on a local diffusers pipeline.

Their parsers are here, so that `--help` needs no torch. Another package does the work. It registers a function for each
command as an entry point of the group `hso_jax.commands`; the function takes the parsed arguments and returns the exit
code.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
from pathlib import Path

from hso_jax.cli.common import add_command
from hso_jax.schedule import LAYOUTS

Subparsers = argparse._SubParsersAction
_INSTALL = 'pip install -e ".[torch]"'


def run(command: str, args: argparse.Namespace) -> int:
    """Run the function that is registered for a command.

    Raises:
        ValueError: if there is none, or what it imports is not installed.
    """
    registered = importlib.metadata.entry_points(group="hso_jax.commands", name=command)
    if not registered:
        raise ValueError(f"`hso-jax {command}` is not registered in this installation: in your clone, {_INSTALL}")
    try:
        return int(next(iter(registered)).load()(args))
    except ImportError as error:
        raise ValueError(
            f"`hso-jax {command}` needs torch and diffusers: in your clone, {_INSTALL} ({error})"
        ) from error


def _parser(subparsers: Subparsers, name: str, help: str, examples: str) -> argparse.ArgumentParser:
    return add_command(subparsers, name, functools.partial(run, name), help, examples)


def add_apply(subparsers: Subparsers) -> None:
    """Add the subcommand `apply`."""
    examples = """\
examples:
  hso-jax apply --pipeline ./my-model --nfe 6                     (the recommended one)
  hso-jax apply schedules.json --pipeline ./my-model --nfe 6
  hso-jax apply schedules.json --pipeline ./my-model --nfe 6 --save ./my-model-6-steps

Afterwards `import bridge` before from_pretrained, and call the pipeline with num_inference_steps=6. hso-jax keeps the
former files beside the new ones, with .before-hso at the end of the name.
"""
    parser = _parser(subparsers, "apply", "write a schedule into a local diffusers pipeline folder", examples)
    _add_choice(parser)
    parser.add_argument(
        "--save",
        type=Path,
        metavar="DIR",
        help="leave the pipeline as it is; make DIR a pipeline with this scheduler and links to everything else",
    )


def add_sample(subparsers: Subparsers) -> None:
    """Add the subcommand `sample`."""
    examples = """\
examples:
  hso-jax sample --pipeline ./my-model --nfe 6 --prompt "a small fox" --compare -o compare.png
  hso-jax sample schedules.json --pipeline ./my-model --nfe 6 --prompt "a small fox" -o fox.png
  hso-jax sample schedules.json --pipeline ./my-model --nfe 6 --prompt "a small fox" --seed 0-3 --compare -o rows.png
  hso-jax sample schedules.json --pipeline ./my-dit --nfe 8 --prompt 207 --option guidance_scale=4 -o dog.png
"""
    text = "sample a local pipeline with a schedule, alone or beside its default schedule"
    parser = _parser(subparsers, "sample", text, examples)
    _add_choice(parser)
    parser.add_argument(
        "--prompt", required=True, help="text; for a class-conditional pipeline (DiT) a class, by number or name"
    )
    parser.add_argument(
        "--seed", help="seeds of the noise: 0, 0-3 or 1,5,9; several make one grid; default 0 (0-3 with --compare)"
    )
    _add_call(parser)
    grid = parser.add_argument_group("comparison")
    grid.add_argument(
        "--compare",
        action="store_true",
        help="draw one grid: a row for the default, for trailing spacing and for each schedule of N in the file; "
        "a column for each seed",
    )
    grid.add_argument(
        "--reference", type=int, metavar="STEPS", help="with --compare: add a first row, the default with many steps"
    )
    _add_output(parser, "picture (.png)", "replace a picture that hso-jax did not write")


def add_profile(subparsers: Subparsers) -> None:
    """Add the subcommand `profile`."""
    examples = """\
examples:
  hso-jax profile --pipeline ./my-model --prompts prompts.txt -o my-model.profile.json
  hso-jax search --model ./my-model --method solver-error --nfe 6 --profile my-model.profile.json
"""
    text = "measure a local pipeline for searches: the spectrum of its samples and the error of its network"
    parser = _parser(subparsers, "profile", text, examples)
    _add_measured(parser, budget=3000)
    parser.add_argument("--steps", type=int, default=32, metavar="N", help="steps of a trajectory; default %(default)s")
    parser.add_argument("--scheduler", metavar="CLASS", help="diffusers class to sample with; default: the pipeline's")
    _add_call(parser)
    _add_output(parser, "profile", "replace a file that is no profile of hso-jax")


def add_tune(subparsers: Subparsers) -> None:
    """Add the subcommand `tune`."""
    examples = """\
examples:
  hso-jax tune --pipeline ./my-model --nfe 6 --prompts prompts.txt -o tuned.json
  hso-jax tune --pipeline ./my-model --nfe 6 --solver unipc-3 --guidance 5 --budget 10000 -o tuned.json
  hso-jax tune --pipeline ./my-model --nfe 8 --image photo.png --option strength=0.5 -o image-to-image.json
  hso-jax apply tuned.json --pipeline ./my-model --nfe 6

From the first schedule on, the output file holds the best one so far, also after Ctrl-C. The same command resumes from
OUTPUT.checkpoint.
"""
    text = "tune nodes and coefficients on a local pipeline's own samples"
    parser = _parser(subparsers, "tune", text, examples)
    parser.add_argument("--nfe", "--steps", type=int, required=True, metavar="N", help="evaluations of the network")
    _add_measured(parser, budget=5000)
    parser.add_argument(
        "--image",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="image-to-image, with --option strength=0.6: an image to start from, or one for each prompt",
    )
    parser.add_argument(
        "--solver",
        default="nonstationary",
        help="nonstationary, or a known solver, whose nodes alone are tuned; default %(default)s",
    )
    parser.add_argument(
        "--teacher-steps", type=int, default=48, metavar="N", help="steps of the converged samples; default %(default)s"
    )
    parser.add_argument("--samples", type=int, metavar="N", help="samples to tune on; default: as the budget allows")
    parser.add_argument(
        "--profile", type=Path, metavar="FILE", help="measurements of the model, from `hso-jax profile`"
    )
    _add_call(parser)
    _add_output(parser, "schedule file, replaced at each better schedule", "replace a file that is no schedule file")


def _add_choice(parser: argparse.ArgumentParser) -> None:
    """Add what names a schedule of a file, and the pipeline it is for."""
    parser.add_argument(
        "schedule",
        type=Path,
        nargs="?",
        metavar="SCHEDULE",
        help="schedule file, from `hso-jax recommend` or `search`; default: the recommended schedule of N steps",
    )
    _add_pipeline(parser)
    parser.add_argument(
        "--nfe",
        "--steps",
        type=int,
        metavar="N",
        help="number of steps; needed without a file, or if the file has several",
    )
    parser.add_argument("--layout", choices=LAYOUTS, help="default: node, where the file has both")
    parser.add_argument("--method", help="method of the schedule; needed if the file has several")
    parser.add_argument("--solver", metavar="NAME", help="solver of the schedule; needed if the file has several")
    parser.add_argument(
        "--guidance", type=float, metavar="W", help="guidance of the schedule; needed if the file has several"
    )
    parser.add_argument(
        "--scheduler", metavar="CLASS", help="diffusers class, such as UniPCMultistepScheduler; default: the pipeline's"
    )


def _add_measured(parser: argparse.ArgumentParser, budget: int) -> None:
    """Add what `profile` and `tune` sample, and how much."""
    _add_pipeline(parser)
    parser.add_argument(
        "--prompts", type=Path, metavar="FILE", help="typical prompts or classes, one a line; default: the empty text"
    )
    parser.add_argument("--guidance", type=float, metavar="W", help="guidance to sample with; default: the pipeline's")
    parser.add_argument(
        "--budget",
        type=int,
        default=budget,
        metavar="N",
        help="largest number of network evaluations; default %(default)s",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise; default %(default)s")
    parser.add_argument("--batch", type=int, default=8, metavar="N", help="samples at once; default %(default)s")


def add_measuring(group: argparse._ArgumentGroup) -> None:
    """Add what `recommend` measures a local pipeline by."""
    _add_pipeline(group, required=False)
    group.add_argument("--prompts", type=Path, metavar="FILE", help="typical prompts or classes, one a line")
    group.add_argument("--budget", type=int, metavar="N", help="evaluations at most; default: as many as suffice")
    group.add_argument("--seed", type=int, default=0, help="seed of the noise; default %(default)s")
    group.add_argument("--batch", type=int, default=8, metavar="N", help="samples at once; default %(default)s")
    group.add_argument("--plot", type=Path, metavar="FILE", help="picture of what was measured")
    _add_call(group)


def _add_pipeline(parser: argparse._ActionsContainer, required: bool = True) -> None:
    text = "local folder that save_pretrained wrote"
    parser.add_argument("--pipeline", type=Path, required=required, metavar="PATH", help=text)


def _add_call(parser: argparse._ActionsContainer) -> None:
    """Add how the pipeline is called, and where it runs."""
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any other argument of the pipeline's call, such as height=512; VALUE in JSON; may be repeated",
    )
    parser.add_argument("--device", help="such as cuda, mps or cpu; default: the accelerator, if there is one")
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        help="default: bfloat16 on an accelerator, float32 on the CPU",
    )


def _add_output(parser: argparse.ArgumentParser, what: str, force: str) -> None:
    out = parser.add_argument_group("output")
    out.add_argument("-o", "--output", type=Path, required=True, help=what)
    out.add_argument("--force", action="store_true", help=force)
