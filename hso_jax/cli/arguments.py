"""Arguments that several commands share, and how their texts are read."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection
from pathlib import Path

from hso_jax.checks import nearest, printable
from hso_jax.cli import terminal
from hso_jax.noise import PRESETS, NoiseSchedule, from_config, preset, preset_name

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
        type=lambda name: name if Path(name).exists() else preset_name(name),
        help="a preset (see `hso-jax models`), a scheduler_config.json, or a model folder; again for a further one; "
        f"default {DEFAULT_MODEL}",
    )
    _add_image_seq_len(parser)


def _add_image_seq_len(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--image-seq-len",
        type=int,
        metavar="TOKENS",
        help="image tokens, for searches and rules on models whose shift follows the size (FLUX); "
        "default 4096, which is 1024x1024",
    )


def noise_named(name: str, image_seq_len: int | None) -> tuple[NoiseSchedule, float]:
    """The noise schedule and p of a preset, or of a scheduler's config in a file or folder.

    Raises:
        ValueError: for anything else; the message has the presets' names, the nearest first.
    """
    image_seq_len = 4096 if image_seq_len is None else image_seq_len
    if name in PRESETS:
        return preset(name, image_seq_len=image_seq_len), PRESETS[name].p
    if Path(name).exists():
        return from_config(name, image_seq_len=image_seq_len), 2.0
    near, names = nearest(name, PRESETS), ", ".join(PRESETS)
    raise ValueError(f"model {name!r} is neither a preset nor a file or folder{near}; presets: {names}")


def tell_unused_size(args: argparse.Namespace, any_shift: Collection[str] = ()) -> None:
    """Say for which models `--image-seq-len` changes nothing; the levels of `any_shift` are the same at every shift."""
    for name in dict.fromkeys(args.model or [DEFAULT_MODEL]) if args.image_seq_len is not None else ():
        small, large = (noise_named(name, tokens)[0] for tokens in (256, 4096))
        if small.fingerprint() == large.fingerprint():
            terminal.warn(f"--image-seq-len changes nothing for {printable(name)}: its noise is the same at every size")
        elif name in any_shift:
            terminal.warn(
                f"--image-seq-len changes no level for {printable(name)}: what is shipped is the same at any shift"
            )


def read_models(args: argparse.Namespace) -> list[tuple[NoiseSchedule, float]]:
    """The noise schedules and their p that the arguments name."""
    tell_unused_size(args)
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
