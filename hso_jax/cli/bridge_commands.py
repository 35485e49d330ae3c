"""`apply`, `sample`, `profile` and `tune`: their parsers. The work is in `bridge`, which needs torch and diffusers."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hso_jax.cli.arguments import add_command
from hso_jax.schedule import LAYOUTS

EXIT_BAD_INPUT = 2


def add_parsers(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommands; `run` imports the bridge only when it is called."""
    _add_apply(subparsers)
    _add_sample(subparsers)
    _add_profile(subparsers)
    _add_tune(subparsers)


def _add_apply(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    examples = """\
examples:
  hso-jax apply --pipeline ./my-model --nfe 6                     (the recommended one)
  hso-jax apply schedules.json --pipeline ./my-model --nfe 6
  hso-jax apply schedules.json --pipeline ./my-model --nfe 6 --save ./my-model-6-steps

Afterwards `import bridge` before from_pretrained, and call the pipeline with num_inference_steps=6.
The files that were there are kept beside the new ones, with .before-hso at the end of the name.
"""
    text = "write a schedule into a local diffusers pipeline folder"
    parser = add_command(subparsers, "apply", _run, text, examples)
    parser.set_defaults(command="apply")
    _add_choice(parser)
    parser.add_argument(
        "--save",
        type=Path,
        metavar="DIR",
        help="leave the pipeline as it is; make DIR one with this scheduler, and links to the rest",
    )


def _add_sample(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    examples = """\
examples:
  hso-jax sample --pipeline ./my-model --nfe 6 --prompt "a small fox" --compare -o compare.png
  hso-jax sample schedules.json --pipeline ./my-model --nfe 6 --prompt "a small fox" -o fox.png
  hso-jax sample schedules.json --pipeline ./my-model --nfe 6 --prompt "a small fox" --seed 0-3 --compare -o rows.png
  hso-jax sample schedules.json --pipeline ./my-dit --nfe 8 --prompt 207 --option guidance_scale=4 -o dog.png
"""
    text = "sample a local pipeline with a schedule, or beside its default schedule"
    parser = add_command(subparsers, "sample", _run, text, examples)
    parser.set_defaults(command="sample")
    _add_choice(parser)
    parser.add_argument(
        "--prompt", required=True, help="text; for a class-conditional pipeline (DiT) a class, by number or name"
    )
    parser.add_argument("--negative-prompt", metavar="TEXT", help="what to stay away from")
    parser.add_argument(
        "--seed", help="of the noise: 0, 0-3 or 1,5,9; several make one picture of many; default 0 (0-3 with --compare)"
    )
    parser.add_argument("--height", type=int, metavar="PIXELS", help="default: the pipeline's")
    parser.add_argument("--width", type=int, metavar="PIXELS", help="default: the pipeline's")
    parser.add_argument("--guidance-scale", type=float, metavar="X", help="default: the pipeline's")
    _add_option(parser)
    _add_device(parser)
    grid = parser.add_argument_group("comparison")
    grid.add_argument(
        "--compare",
        action="store_true",
        help="one picture: rows are the default, trailing spacing and the file's schedules of N; columns are seeds",
    )
    grid.add_argument(
        "--reference", type=int, metavar="STEPS", help="with --compare: a first row, the default with many steps"
    )
    out = parser.add_argument_group("output")
    out.add_argument("-o", "--output", type=Path, required=True, help="picture (.png), written whole or not at all")
    out.add_argument("--force", action="store_true", help="replace a picture that hso-jax did not write")


def _add_profile(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    examples = """\
examples:
  hso-jax profile --pipeline ./my-model --prompts prompts.txt -o my-model.profile.json
  hso-jax search --model ./my-model --method solver-error --nfe 6 --profile my-model.profile.json
"""
    text = "measure a local pipeline for searches: its samples' spectrum and its network's error"
    parser = add_command(subparsers, "profile", _run, text, examples)
    parser.set_defaults(command="profile")
    parser.add_argument(
        "--pipeline", type=Path, required=True, metavar="PATH", help="local folder that save_pretrained wrote"
    )
    parser.add_argument(
        "--prompts", type=Path, metavar="FILE", help="typical prompts (or classes), one a line; default: the empty text"
    )
    parser.add_argument("--guidance", type=float, metavar="W", help="weight to sample with; default: the pipeline's")
    parser.add_argument(
        "--budget", type=int, default=3000, metavar="N", help="evaluations of the network at most; default %(default)s"
    )
    parser.add_argument("--steps", type=int, default=32, metavar="N", help="of a trajectory; default %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the noise; default %(default)s")
    parser.add_argument("--batch", type=int, default=8, metavar="N", help="samples at once; default %(default)s")
    parser.add_argument("--scheduler", metavar="CLASS", help="diffusers class; default: the pipeline's")
    _add_option(parser)
    _add_device(parser)
    out = parser.add_argument_group("output")
    out.add_argument("-o", "--output", type=Path, required=True, help="profile, written whole or not at all")
    out.add_argument("--force", action="store_true", help="replace a file that is no profile of hso-jax")


def _add_tune(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    examples = """\
examples:
  hso-jax tune --pipeline ./my-model --nfe 6 --prompts prompts.txt -o tuned.json
  hso-jax tune --pipeline ./my-model --nfe 6 --solver unipc-3 --guidance 5 --budget 10000 -o tuned.json
  hso-jax tune --pipeline ./my-model --nfe 8 --image photo.png --option strength=0.5 -o image-to-image.json
  hso-jax apply tuned.json --pipeline ./my-model --nfe 6

The output holds the best schedule so far from the first one on, also after Ctrl-C; the same command goes on from
OUTPUT.checkpoint.
"""
    text = "tune nodes and coefficients on a local pipeline's own samples"
    parser = add_command(subparsers, "tune", _run, text, examples)
    parser.set_defaults(command="tune")
    parser.add_argument(
        "--pipeline", type=Path, required=True, metavar="PATH", help="local folder that save_pretrained wrote"
    )
    parser.add_argument("--nfe", "--steps", type=int, required=True, metavar="N", help="evaluations of the network")
    parser.add_argument(
        "--prompts", type=Path, metavar="FILE", help="typical prompts (or classes), one a line; default: the empty text"
    )
    parser.add_argument(
        "--image",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="image-to-image, with --option strength=0.6: an image to start from, or one for each prompt",
    )
    parser.add_argument("--guidance", type=float, metavar="W", help="weight to sample with; default: the pipeline's")
    parser.add_argument(
        "--solver", default="nonstationary", help="or a known one, to tune its nodes alone; default %(default)s"
    )
    parser.add_argument(
        "--budget", type=int, default=5000, metavar="N", help="evaluations of the network at most; default %(default)s"
    )
    parser.add_argument(
        "--teacher-steps", type=int, default=48, metavar="N", help="of the converged samples; default %(default)s"
    )
    parser.add_argument("--samples", type=int, metavar="N", help="to tune on; default: as the budget allows")
    parser.add_argument("--batch", type=int, default=8, metavar="N", help="samples at once; default %(default)s")
    parser.add_argument(
        "--by", default="auto", help="auto, differences, gradients, comparisons or gits; default %(default)s"
    )
    parser.add_argument("--detail", type=float, default=0.0, metavar="X", help="weight of fine detail; default 0")
    parser.add_argument("--profile", type=Path, metavar="FILE", help="of the model, from `hso-jax profile`")
    parser.add_argument("--seed", type=int, default=0, help="of the noise; default %(default)s")
    _add_option(parser)
    _add_device(parser)
    out = parser.add_argument_group("output")
    out.add_argument("-o", "--output", type=Path, required=True, help="schedule file; written whole at each better one")
    out.add_argument("--checkpoint", type=Path, metavar="FILE", help="default: OUTPUT.checkpoint")
    out.add_argument("--force", action="store_true", help="replace a file that is no schedule file of hso-jax")


def _add_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any other argument of the pipeline's call, VALUE in JSON; repeatable",
    )


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", help="cpu, cuda, mps, ...; default: an accelerator if there is one")
    parser.add_argument(
        "--dtype", choices=("float32", "float16", "bfloat16"), help="default: float32 on the CPU, else bfloat16"
    )


def _add_choice(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "schedule",
        type=Path,
        nargs="?",
        metavar="SCHEDULE",
        help="schedule file, from `hso-jax recommend` or `search`; without one the recommended schedule of N steps",
    )
    parser.add_argument(
        "--pipeline", type=Path, required=True, metavar="PATH", help="local folder that save_pretrained wrote"
    )
    parser.add_argument(
        "--nfe",
        "--steps",
        type=int,
        metavar="N",
        help="number of steps; needed without a file, or if it has several",
    )
    parser.add_argument("--layout", choices=LAYOUTS, help="default: node, where the file has both")
    parser.add_argument("--method", help="needed if the file has several")
    parser.add_argument("--solver", metavar="NAME", help="it was made for; needed if the file has several")
    parser.add_argument("--guidance", type=float, metavar="W", help="it was made for; needed if the file has several")
    parser.add_argument(
        "--scheduler", metavar="CLASS", help="diffusers class, such as UniPCMultistepScheduler; default: the pipeline's"
    )


def _run(args: argparse.Namespace) -> int:
    try:
        if args.command == "tune":
            from bridge.cli import tuning

            return tuning.run(args)
        from bridge.cli import commands

        return commands.run(args)
    except ImportError as error:
        print(
            f"error: `hso-jax {args.command}` needs torch and diffusers: in your clone, "
            f'pip install -e ".[torch]" ({error})',
            file=sys.stderr,
        )
        return EXIT_BAD_INPUT
