"""Arguments that several commands share, and how their texts are read."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from hso_jax.checks import nearest
from hso_jax.noise import PRESETS, NoiseSchedule, from_config, preset
from hso_jax.noise.presets import preset_name

DEFAULT_MODEL = "sd21-base"
QUIET = "print nothing but errors and what was asked for as JSON or on standard output"


def parse_nfe(text: str) -> list[int]:
    """`4-20`, `4,6,8` or a mixture, as sorted distinct numbers.

    Raises:
        ValueError: for anything else.
    """
    numbers: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        try:
            low, high = int(first), int(last if dash else first)
        except ValueError:
            raise ValueError(
                f"nfe {text!r}: {part.strip()!r} is not a number or a range; write 4-20 or 4,6,8"
            ) from None
        if low < 1 or high < low:
            raise ValueError(f"nfe {text!r}: {part.strip()!r} must be 1 or more, the smaller number first")
        if high > 1000:
            raise ValueError(f"nfe {text!r}: {high} is more than 1000")
        numbers.update(range(low, high + 1))
    return sorted(numbers)


def add_models(parser: argparse.ArgumentParser) -> None:
    """`--model`, several times, and `--image-seq-len`."""
    parser.add_argument(
        "--model",
        action="append",
        help="a preset (see `hso-jax models`), a scheduler_config.json, or a model folder; again for a further one; "
        f"default {DEFAULT_MODEL}",
    )
    _add_image_seq_len(parser)


def _add_image_seq_len(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--image-seq-len",
        type=int,
        default=4096,
        metavar="TOKENS",
        help="image tokens, for models whose shift follows the size (FLUX); 4096 is 1024x1024",
    )


def noise_named(name: str, image_seq_len: int) -> tuple[NoiseSchedule, float]:
    """The noise schedule and p of a preset, or of a scheduler's config in a file or folder.

    Raises:
        ValueError: for anything else; the message has the presets' names, the nearest first.
    """
    if name not in PRESETS and Path(name).exists():
        return from_config(name, image_seq_len=image_seq_len), 2.0
    if (known := preset_name(name)) in PRESETS:
        return preset(known, image_seq_len=image_seq_len), PRESETS[known].p
    near, names = nearest(name, PRESETS), ", ".join(PRESETS)
    raise ValueError(f"model {name!r} is neither a preset nor a file or folder{near}; presets: {names}")


def read_models(args: argparse.Namespace) -> list[tuple[NoiseSchedule, float]]:
    """The noise schedules and their p that the arguments name."""
    found = [noise_named(name, args.image_seq_len) for name in args.model or [DEFAULT_MODEL]]
    return [(noise, p if args.p is None else args.p) for noise, p in found]


def add_command(
    subparsers: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    run: Callable[[argparse.Namespace], int],
    help: str,
    examples: str,
) -> argparse.ArgumentParser:
    """A subcommand whose `--help` ends with examples."""
    parser = subparsers.add_parser(
        name,
        help=help,
        description=help[0].upper() + help[1:] + ".",
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quiet", action="store_true", default=argparse.SUPPRESS, help=QUIET)
    parser.set_defaults(run=run)
    return parser
