"""Arguments of the methods that search."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from hso_jax.hso import Box
from hso_jax.mep_spf import Spacing, paper_d_min
from hso_jax.profile import Profile
from hso_jax.solver_error_levels import FIRST
from hso_jax.solvers import EVERY


def parse_spacing(text: str) -> Spacing:
    """`paper` or a number in t."""
    if text == "paper":
        return paper_d_min
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"spacing is {text!r}; write paper or a number in t, such as 0.05") from None


def add_p(parser: argparse.ArgumentParser) -> None:
    """`--p`."""
    parser.add_argument(
        "--p", type=float, help="exponent of the model-error bound; default 2 (1 for presets that work on pixels)"
    )


def add_box(parser: argparse.ArgumentParser) -> None:
    """`--rho`, `--t-eps` and `--t-max`, each a pair; a pair of equal numbers fixes the value."""
    group = parser.add_argument_group("search box of psi (two numbers each; equal ones fix the value)")
    texts = {
        "rho": "exponent of the initial schedule",
        "t_eps": "time of the last node",
        "t_max": "time of the first node",
    }
    for name, default in Box()._asdict().items():
        group.add_argument(
            "--" + name.replace("_", "-"),
            type=float,
            nargs=2,
            default=default,
            metavar=("LOW", "HIGH"),
            help=f"{texts[name]}; default {default[0]} {default[1]}",
        )


def read_box(args: argparse.Namespace) -> Box:
    """The box that the arguments name."""
    return Box(rho=tuple(args.rho), t_eps=tuple(args.t_eps), t_max=tuple(args.t_max))


_SOLVER_ERROR = {"solver": "dpmpp-2m", "guidance": 1.0, "first": "auto", "profile": None}


def add_solver_error(parser: argparse.ArgumentParser) -> None:
    """`--solver`, `--guidance`, `--first` and `--profile`."""
    group = parser.add_argument_group("for --method solver-error")
    group.add_argument(
        "--solver", help=f"{', '.join(EVERY)}, or another program's name for it; default {_SOLVER_ERROR['solver']}"
    )
    group.add_argument("--guidance", type=float, help="weight of classifier-free guidance; default 1, which is none")
    group.add_argument(
        "--first",
        choices=FIRST,
        help="the first node is the model's noise end (end), for epsilon in few steps sigma/alpha = 60 at most "
        "(auto, the default), or placed like the others (free)",
    )
    group.add_argument("--profile", type=Path, metavar="FILE", help="of the model, from `hso-jax profile`")


def read_solver_error(args: argparse.Namespace) -> dict[str, Any]:
    """Options of `SolverError`; the profile is read."""
    found: dict[str, Any] = {
        name: default if getattr(args, name) is None else getattr(args, name) for name, default in _SOLVER_ERROR.items()
    }
    if found["profile"] is not None:
        found["profile"] = Profile.load(found["profile"])
    return found


def refuse_solver_error(args: argparse.Namespace) -> None:
    """Raises ValueError if an option of the method "solver-error" was given with another method."""
    if given := [f"--{name}" for name in _SOLVER_ERROR if getattr(args, name) is not None]:
        raise ValueError(
            f"{', '.join(given)}: only with --method solver-error; --method {args.method} does not look at it"
        )


def refuse_hso(args: argparse.Namespace) -> None:
    """Raises ValueError if an option of HSO's methods was given with the method "solver-error"."""
    defaults = {"p": None, "spacing": "paper", "spacing_as": "constraint", "relax": False, **Box()._asdict()}
    values = {name: getattr(args, name) for name in defaults}
    values |= {name: tuple(values[name]) for name in Box._fields}
    if given := [f"--{name.replace('_', '-')}" for name, default in defaults.items() if values[name] != default]:
        raise ValueError(f"{', '.join(given)}: not with --method solver-error, which does not look at it")
