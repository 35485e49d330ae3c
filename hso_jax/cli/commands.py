"""The table of commands: what each one is for, its options, and the module that does the work.

No work is imported before its command is called: some brings JAX along, some torch.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import textwrap
from pathlib import Path
from typing import Any, NamedTuple

from hso_jax import solvers
from hso_jax.noise import preset_name
from hso_jax.schedule import LAYOUTS
from hso_jax.shipped.distilled import DISTILLATIONS
from hso_jax.shipped.zoo import CHOICES

DEFAULT_MODEL, DEFAULT_SOLVER = "sd21-base", "dpmpp-2m"
QUIET = "print only errors, and what --json or -o - writes to standard output"
_INSTALL = 'pip install -e ".[torch]"'


class Option(NamedTuple):
    """An argument of a command: names apart by blanks, help (`add` adds the default), type, argparse's settings."""

    names: str
    help: str
    kind: Any
    settings: dict[str, Any]


class Command(NamedTuple):
    """A command. A text among its options heads those after it; no module means an entry point, `hso_jax.commands`."""

    module: str | None
    help: str
    options: tuple[Option | str, ...]
    examples: str


def _option(names: str, help: str, kind: Any = str, **settings: Any) -> Option:
    return Option(names, help, kind, settings)


_MODEL = (
    "a preset (see `hso-jax models`), a scheduler_config.json, a folder, or a repository of the Hugging Face Hub "
    f"(org/name), whose config alone is fetched; may be repeated; default {DEFAULT_MODEL}"
)
_MODELS = (
    _option("--model", _MODEL, lambda name: name if Path(name).exists() else preset_name(name), action="append"),
    _option("--image-seq-len", "image tokens, where the shift depends on them; default 4096, which is 1024x1024", int),
)
_CHOICES = ", ".join(CHOICES)
_DISTILLED = f"how the model was distilled ({', '.join(DISTILLATIONS)}), or no; default: as its name or folder tells"
_SHIPPED_OUTPUT = (
    _option("-o --output", "schedule file, for apply and show; - is stdout", Path),
    _option("--force", "replace a file that hso-jax did not write", bool),
)
_FORMS = ("table", "sigmas", "timesteps", "python", "weights", "json")
_FORM = (
    "sigmas: N + 1 values for samplers; timesteps: N integers; python: both and the coefficients, to paste; weights: a "
    "line for each step of a nonstationary solver: the weight of the sample, then of the predictions, newest first"
)
_STORED = (
    _option("file", "schedule file", Path),
    _option("--nfe", "only these numbers of evaluations: 4-8 or 4,6"),
    _option("--layout", "only this layout", choices=LAYOUTS),
)
_LAYOUT = (
    "node: N nodes, then sigma 0 (DDIM, most diffusers samplers); interval: stops at node N + 1 (UniPC); default both; "
    "node for the method solver-error"
)
_COMPARE = (
    "draw one grid: a row for the default, for trailing spacing and for each schedule of N in the file; a column for "
    "each seed"
)
_PIPELINE = _option("--pipeline", "local folder that save_pretrained wrote", Path, required=True)
_SCHEDULER = _option("--scheduler", "diffusers class, such as UniPCMultistepScheduler; default: the pipeline's")
_CHOICE = (
    _option("schedule", "from `hso-jax recommend` or `search`; default: the recommended schedule", Path, nargs="?"),
    _PIPELINE,
    _option("--nfe --steps", "number of steps; needed without a file, or if the file has several", int),
    _option("--layout", "default: node, where the file has both", choices=LAYOUTS),
    _option("--method", "method of the schedule; needed if the file has several"),
    _option("--solver", "solver of the schedule; needed if the file has several"),
    _option("--guidance", "guidance of the schedule; needed if the file has several", float),
    _SCHEDULER,
)
_TYPICAL = (
    _option("--prompts", "file of typical prompts or classes, one a line; default: the empty text", Path),
    _option("--seed", "seed of the noise", int, default=0),
    _option("--batch", "samples at once", int, default=8),
)
_KEY_VALUE = "any other argument of the pipeline's call, such as height=512; VALUE in JSON; may be repeated"
_DTYPES = ("float32", "float16", "bfloat16")
_CALL = (
    _option("--option", _KEY_VALUE, action="append", default=[], metavar="KEY=VALUE"),
    _option("--device", "such as cuda, mps or cpu; default: the accelerator, if there is one"),
    _option("--dtype", "default: bfloat16 on an accelerator, float32 on the CPU", choices=_DTYPES),
)


def _written(what: str, force: str) -> tuple[Option | str, ...]:
    return "output", _option("-o --output", what, Path, required=True), _option("--force", force, bool)


_BOX = {"nargs": 2, "metavar": ("LOW", "HIGH")}

COMMANDS = {
    "recommend": Command(
        "recommend",
        "say which steps and which solver to use, at once",
        (
            *_MODELS,
            _option("--nfe --steps", "numbers of evaluations, 1..20", default="6"),
            _option("--guidance", "weight of classifier-free guidance; default: the preset's", float),
            _option("--scheduler --solver", f"solver to keep: {_CHOICES}, by any of its names; default: the best"),
            _option("--distilled", _DISTILLED, choices=(*DISTILLATIONS, "no"), metavar="KIND"),
            _option("--all", "also print every predicted error, or with --pipeline every measured one", bool),
            "to run and measure everything on a local pipeline",
            _option("--pipeline", "local folder that save_pretrained wrote", Path),
            *_TYPICAL,
            _option("--budget", "evaluations at most; default: as many as suffice", int),
            _option("--plot", "picture of what was measured", Path),
            *_CALL,
            "output",
            *_SHIPPED_OUTPUT,
            _option("--json", "print everything as JSON on stdout; null is infinite", bool),
        ),
        """\
examples:
  hso-jax recommend --model sdxl --nfe 6
  hso-jax recommend --model sdxl --nfe 6 --guidance 7 --scheduler dpmpp-2m
  hso-jax recommend --model flux-dev --model qwen-image --nfe 4-8 -o both.json
  hso-jax recommend --model ./my-model --guidance 5     (a diffusers folder)
  hso-jax recommend --pipeline ./my-model --prompts prompts.txt -o measured.json

With --pipeline this command runs the schedules of the zoo and the rules with their solvers on the model itself. Without
it, the command searches and runs nothing. The expected gain is then what trained networks gained by choices with such
predictions. --all prints the predictions: errors of the solver's samples on reference problems, in standard deviations
of the data.
""",
    ),
    "compare": Command(
        "search",
        "rank HSO, the usual rules (Karras, AYS, ...) and the recommended schedules by the solver's error",
        (
            *_MODELS,
            _option("--nfe", "numbers of model evaluations", default="6"),
            _option("--layout", "node or interval", choices=LAYOUTS, default="node"),
            _option("--solver", "solver whose error is measured", default=DEFAULT_SOLVER),
            _option("--guidance", "default: the preset's usual weight, else 1", float),
            _option("--plot", "also draw the schedules (.png, .svg, .pdf)", Path),
            _option("--json", "print the schedules as a schedule file on stdout", bool),
            _option("--force", "replace a picture that hso-jax did not write", bool),
        ),
        """\
examples:
  hso-jax compare
  hso-jax compare --model sdxl --nfe 4,8 --solver unipc-3 --guidance 5

The table ranks schedules by the error of the solver's samples on reference problems, least error first. Two rows are
recommended: the best for this solver, and the best of all solvers.
""",
    ),
    "search": Command(
        "search",
        "find schedules, save them and draw them",
        (
            *_MODELS,
            _option("--nfe", "numbers of model evaluations: 4-20 or 4,6,8", default="4-20"),
            _option("--layout", _LAYOUT, choices=(*LAYOUTS, "both")),
            _option("--method", "hso, the paper's; hso-dm-nonuni; or solver-error, the error itself", default="hso"),
            _option("--seed", "random seed", int, default=0),
            "for --method hso and hso-dm-nonuni (box: two numbers, equal ones fix the value)",
            _option("--p", "exponent of the model-error bound; default 2 (1 for presets that work on pixels)", float),
            _option("--spacing", "least distance in t between neighbouring nodes: paper (default) or a number"),
            _option("--spacing-as", "always kept (default), or the paper's SPF", choices=("constraint", "penalty")),
            _option("--relax", "reduce a spacing that does not fit instead of refusing it", bool, default=None),
            _option("--rho", "box: exponent of the initial schedule; default 3 16", float, **_BOX),
            _option("--t-eps", "box: time of the last node; default 0.01 0.03", float, **_BOX),
            _option("--t-max", "box: time of the first node; default 0.96 1", float, **_BOX),
            "for --method solver-error",
            _option("--solver", f"{', '.join(solvers.EVERY)}, or another program's name; default {DEFAULT_SOLVER}"),
            _option("--guidance", "weight of classifier-free guidance; default 1, which is none", float),
            "output",
            _option("-o --output", "schedule file; default schedules-MODEL.json; - is stdout", Path),
            _option("--plot", "picture (.png, .svg, .pdf); default beside the schedule file", Path),
            _option("--no-plot", "draw nothing", bool),
            _option("--json", "print the schedule file on stdout; write files only where named", bool),
            _option("--force", "replace files that hso-jax did not write", bool),
        ),
        """\
examples:
  hso-jax search                                SD 2.1-base, N = 4..20
  hso-jax search --model flux-dev --nfe 4-8     another model
  hso-jax search --model ./my-model --nfe 6     a diffusers folder
  hso-jax search --nfe 6 --layout node --json   to stdout, for other programs
  hso-jax search --spacing-as penalty           the paper's SPF to the letter
  hso-jax search --method solver-error --solver unipc --guidance 7.5
""",
    ),
    "zoo": Command(
        "recommend",
        "print the schedules that are shipped for a solver, without a search",
        (
            *_MODELS,
            _option("--nfe", "numbers of model evaluations, 1..20", default="4-10"),
            _option("--solver", f"{_CHOICES}; default: for each N the one with the least error"),
            _option("--guidance", "1, or the preset's usual weight, which is the default", float),
            *_SHIPPED_OUTPUT,
            _option("--json", "print the schedule file on stdout", bool),
        ),
        """\
examples:
  hso-jax zoo --model sdxl --solver unipc --nfe 4-8
  hso-jax zoo --model flux-dev --solver ddim --nfe 6 --json > flux.json
""",
    ),
    "models": Command(
        "show",
        "list the models whose noise schedule is built in",
        (_option("--json", "print them as JSON on stdout", bool),),
        "For a model that is not listed, pass its folder to --model.\n",
    ),
    "show": Command(
        "show",
        "print the schedules in a file",
        (
            *_STORED,
            _option("--as", _FORM, dest="form", choices=_FORMS, default="table"),
        ),
        "examples:\n  hso-jax show FILE\n  hso-jax show FILE --nfe 6 --layout node --as sigmas    (ComfyUI)\n",
    ),
    "plot": Command(
        "show",
        "draw the schedules in a file",
        (
            *_STORED,
            _option("--landscape", "draw MEP over (t_eps, t_max) for the first schedule instead", bool),
            _option("-o --output", "picture (.png, .svg, .pdf), - for stdout; default: FILE.png", Path),
            _option("--force", "replace a picture that hso-jax did not write", bool),
        ),
        "examples:\n  hso-jax plot FILE -o schedules.png\n  hso-jax plot FILE --landscape -o mep.png --nfe 5\n",
    ),
    "apply": Command(
        None,
        "write a schedule into a local diffusers pipeline folder",
        (
            *_CHOICE,
            _option("--save", "make this folder a pipeline with this scheduler, and links to everything else", Path),
        ),
        """\
examples:
  hso-jax apply --pipeline ./my-model --nfe 6         (the recommended one)
  hso-jax apply schedules.json --pipeline ./my-model --nfe 6
  hso-jax apply schedules.json --pipeline ./my-model --nfe 6 --save ./in-6-steps

Afterwards `import bridge` before from_pretrained, and call the pipeline with num_inference_steps=6. hso-jax keeps the
former files beside the new ones, with .before-hso at the end of the name.
""",
    ),
    "sample": Command(
        None,
        "sample a local pipeline with a schedule, alone or beside its default schedule",
        (
            *_CHOICE,
            _option("--prompt", "text; for a class-conditional pipeline (DiT) a class or its number", required=True),
            _option("--seed", "of the noise: 0, 0-3 or 1,5,9; several make one grid; default 0 (0-3 with --compare)"),
            *_CALL,
            "comparison",
            _option("--compare", _COMPARE, bool),
            _option("--reference", "with --compare: add a first row, the default with so many steps", int),
            *_written("picture (.png)", "replace a picture that hso-jax did not write"),
        ),
        """\
examples:
  hso-jax sample --pipeline ./my-model --nfe 6 --prompt fox -o fox.png
  hso-jax sample --pipeline ./my-model --nfe 6 --prompt fox --compare -o all.png
  hso-jax sample schedules.json --pipeline ./my-model --prompt fox -o fox.png
  hso-jax sample schedules.json --pipeline ./my-dit --prompt 207 -o dog.png \\
      --option guidance_scale=4
""",
    ),
    "tune": Command(
        None,
        "tune nodes and coefficients on a local pipeline's own samples",
        (
            _option("--nfe --steps", "evaluations of the network", int, required=True),
            _PIPELINE,
            _option("--guidance", "guidance to sample with; default: the pipeline's", float),
            *_TYPICAL,
            _option("--budget", "largest number of network evaluations", int, default=5000),
            _option("--image", "to start from, one or one a prompt, with --option strength=0.6", Path, nargs="+"),
            _option("--solver", "nonstationary, or a known solver to tune the nodes of", default="nonstationary"),
            _option("--teacher-steps", "steps of the converged samples", int, default=48),
            _option("--samples", "samples to tune on; default: as the budget allows", int),
            *_CALL,
            *_written("schedule file, replaced at each better schedule", "replace a file that is no schedule file"),
        ),
        """\
examples:
  hso-jax tune --pipeline ./my-model --nfe 6 --prompts prompts.txt -o tuned.json
  hso-jax tune --pipeline ./my-model --nfe 6 --solver unipc-3 -o tuned.json
  hso-jax tune --pipeline ./my-model --nfe 8 --image photo.png -o tuned.json \\
      --option strength=0.5
  hso-jax apply tuned.json --pipeline ./my-model --nfe 6

From the first schedule on, the output file holds the best one so far, also after Ctrl-C. The same command resumes from
OUTPUT.checkpoint.
""",
    ),
}


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Breaks paragraphs between words, and leaves lists as they are written."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        parts = text.split("\n\n")
        return "\n\n".join(part if "\n  " in part else textwrap.fill(part, width) for part in parts)


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser], name: str) -> None:
    """Add one command's parser; its `--help` ends with examples."""
    command = COMMANDS[name]
    parser = subparsers.add_parser(
        name,
        help=command.help,
        description=command.help[0].upper() + command.help[1:] + ".",
        epilog=command.examples,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("--quiet", action="store_true", default=argparse.SUPPRESS, help=QUIET)
    group: argparse._ActionsContainer = parser
    for option in command.options:
        if isinstance(option, str):
            group = parser.add_argument_group(option)
            continue
        settings = dict(option.settings)
        settings |= {"action": "store_true"} if option.kind is bool else {"type": option.kind}
        default = f"{option.help}; default %(default)s" if settings.get("default") not in (None, []) else option.help
        group.add_argument(*option.names.split(), help=default, **settings)


def call(name: str, args: argparse.Namespace) -> int:
    """Do a command's work; returns its exit code.

    Raises:
        ValueError: if the package that does it is not installed.
    """
    if module := COMMANDS[name].module:
        return int(getattr(importlib.import_module(f"hso_jax.cli.{module}"), name)(args))
    return call_registered(name, args)


def call_registered(name: str, args: argparse.Namespace) -> int:
    """Do what another package has registered for a command.

    Raises:
        ValueError: if that package, or what it needs, is not installed.
    """
    registered = importlib.metadata.entry_points(group="hso_jax.commands", name=name)
    if not registered:
        raise ValueError(f"`hso-jax {name}` is not registered in this installation: in your clone, {_INSTALL}")
    try:
        return int(next(iter(registered)).load()(args))
    except ImportError as error:
        why = error.__cause__ or error
        raise ValueError(f"`hso-jax {name}` needs torch and diffusers: in your clone, {_INSTALL} ({why})") from error
