"""What the commands share: how arguments are read, what is printed and written, and the settings of JAX."""

from __future__ import annotations

import argparse
import contextlib
import contextvars
import functools
import os
import re
import sys
import textwrap
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from hso_jax.checks import nearest, printable
from hso_jax.cli.commands import DEFAULT_MODEL
from hso_jax.files import is_stdout
from hso_jax.noise import PRESETS, NoiseSchedule, from_config, preset

_MAX_NFE = 1000
silent: contextvars.ContextVar[bool] = contextvars.ContextVar("silent", default=False)
"""Whether `say`, `warn` and `progress` show nothing."""


# Arguments


def parse_nfe(text: str) -> list[int]:
    """Read `4-20`, `4,6,8` or a mixture as sorted distinct numbers; raise ValueError for anything else."""
    numbers: set[int] = set()
    for part in map(str.strip, text.split(",")):
        first, dash, last = part.partition("-")
        try:
            low, high = int(first), int(last if dash else first)
        except ValueError:
            raise ValueError(f"nfe is {part!r}; write whole numbers of at least 1, as 6, 4-20 or 4,6,8") from None
        if low < 1:
            raise ValueError(f"nfe is {part!r}; the smallest number of evaluations is 1")
        if high < low:
            raise ValueError(f"nfe is {part!r}; write the smaller number first: {high}-{low}")
        if high > _MAX_NFE:
            raise ValueError(f"nfe is {high}; the largest number of evaluations is {_MAX_NFE}")
        numbers.update(range(low, high + 1))
    return sorted(numbers)


class Model(NamedTuple):
    """What `--model` names; only presets have `guidance`, their usual weight, and only the others a `path`."""

    name: str
    noise: NoiseSchedule
    p: float = 2.0
    guidance: float | None = None
    path: Path | None = None


def _model(name: str, image_seq_len: int) -> Model:
    if name in PRESETS:
        return Model(name, preset(name, image_seq_len=image_seq_len), PRESETS[name].p, PRESETS[name].guidance)
    if Path(name).exists():
        return Model(name, from_config(name, image_seq_len=image_seq_len), path=Path(name))
    if re.fullmatch(r"\w[\w.-]*/[\w.-]+", name):
        folder = _from_hub(name)
        noise = from_config(folder, image_seq_len=image_seq_len, name=name.partition("/")[2])
        return Model(name, noise, path=folder)
    near = nearest(name, PRESETS)
    raise ValueError(f"model {name!r} is neither a preset nor a file or folder{near} (see `hso-jax models`)")


@functools.cache
def _from_hub(name: str) -> Path:
    """The folder with a repository's configs in the cache of huggingface_hub, which downloads what is missing there."""
    file = "scheduler/scheduler_config.json"
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:
            config = hf_hub_download(name, file, local_files_only=True)
        except LocalEntryNotFoundError:
            config = hf_hub_download(name, file)
            with contextlib.suppress(Exception):  # the class in it decides how the shift follows the image's size
                hf_hub_download(name, "model_index.json")
    except Exception as error:  # each version raises errors of other HTTP libraries
        missing = isinstance(error, ImportError)
        why = "huggingface_hub is not installed" if missing else str(error).splitlines()[0].split(". ")[0]
        raise ValueError(
            f"model {name!r} is no preset, and its config cannot be fetched ({why}); download its {file} and name that "
            "file"
        ) from error
    return Path(config).parent.parent


def read_models(args: argparse.Namespace) -> list[Model]:
    """The models that the arguments name.

    Raises:
        ValueError: for what is neither a preset nor a scheduler's config; the message names the nearest preset, or how
            to get the config of a repository.
    """
    tokens = 4096 if args.image_seq_len is None else args.image_seq_len
    return [_model(name, tokens) for name in args.model or [DEFAULT_MODEL]]


def warn_of_unused_size(args: argparse.Namespace, any_shift: Collection[str] = ()) -> None:
    """Warn for each model that ignores `--image-seq-len`; `any_shift` names those with the same levels at any shift."""
    for name in dict.fromkeys(args.model or [DEFAULT_MODEL]) if args.image_seq_len is not None else ():
        small, large = (_model(name, tokens).noise for tokens in (256, 4096))
        if small.fingerprint() == large.fingerprint():
            warn(f"--image-seq-len changes nothing for {name}: its noise is the same at every size")
        elif name in any_shift:
            warn(f"--image-seq-len changes no level for {name}: the shipped schedule is the same at any shift")


def guidance_of(model: Model, given: float | None) -> float:
    """The guidance that was given, or else the preset's; a folder has none of its own (ValueError)."""
    found = model.guidance if given is None else given
    if found is None:
        raise ValueError(f"{model.name} has no known usual guidance; add --guidance W (1 is without guidance)")
    return found


def named_output(args: argparse.Namespace) -> Path | None:
    """The file that -o names; `-o -` is the same as --json."""
    if args.output is not None and is_stdout(args.output):
        args.json = True
        return None
    return args.output


# What is printed: readable at every width, and no byte that a terminal obeys


def say(*things: Any) -> None:
    """Print tables and texts on standard output. The texts are printable already and may have several lines."""
    _print(sys.stdout, things)


def say_words(text: str) -> None:
    """Print sentences on standard output, in lines that break between words."""
    say(*textwrap.wrap(printable(text), width(), break_long_words=False, break_on_hyphens=False))


def warn(text: str, style: str | None = None) -> None:
    """Print one line on standard error, with control characters escaped."""
    _print(sys.stderr, [printable(text)], style)


def write(text: str) -> None:
    """Write a document on standard output, unchanged."""
    sys.stdout.write(text)


def width() -> int:
    """The columns of the terminal; COLUMNS wins where it is a number above 0."""
    given = os.environ.get("COLUMNS", "")
    return int(given) if given.isdecimal() and len(given) < 5 and int(given) else max(_console(sys.stdout).width, 1)


def progress() -> Progress:
    """A progress bar on standard error; it vanishes when it is done and is not written into files."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    left = TextColumn("left"), TimeRemainingColumn()
    console = _console(sys.stderr)
    return Progress(*columns, *left, console=console, transient=True, disable=silent.get() or not console.is_terminal)


def _print(file: TextIO, things: Any, style: str | None = None) -> None:
    if silent.get():
        return
    console = _console(file)
    with console.capture() as captured:
        for thing in things:
            if isinstance(thing, str):
                console.print(thing, style=style, soft_wrap=True)
            else:
                console.width = width()
                console.print(thing)
    encoding = file.encoding or "utf-8"
    file.write(captured.get().encode(encoding, "backslashreplace").decode(encoding))


def _console(file: TextIO) -> Console:
    environ = {k: v for k, v in os.environ.items() if k != "COLUMNS" or v.strip("0")}  # Rich would obey COLUMNS=0
    return Console(file=file, markup=False, emoji=False, highlight=False, _environ=environ)


# JAX


def prepare_jax() -> None:
    """Use one device per core on the CPU and keep compiled programs between runs; the user's own settings win.

    Raises:
        ValueError: if the device that the user's settings name is not there.
    """
    import jax

    from hso_jax.compiling import platform

    if "JAX_NUM_CPU_DEVICES" not in os.environ and "xla_force_host_platform" not in os.environ.get("XLA_FLAGS", ""):
        with contextlib.suppress(RuntimeError):  # JAX is running already, with the devices of whoever started it
            jax.config.update("jax_num_cpu_devices", min(os.cpu_count() or 1, 8))
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(base / "hso-jax" / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    platform()
