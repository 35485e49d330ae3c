"""The known solvers, and what other programs call them: one table for Python, the command line and ComfyUI."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from hso_jax.checks import brief, nearest
from hso_jax.solvers.heun import heun
from hso_jax.solvers.multistep import ddim, dpmpp
from hso_jax.solvers.nonstationary import NONSTATIONARY
from hso_jax.solvers.unipc import unipc
from hso_jax.solvers.weights import Grid, Weights


class Solver(NamedTuple):
    """A way to take the steps.

    Attributes:
        weights: of its evaluations, from the steps.
        order: of convergence, as measured: UniPC's corrector adds one to its name's, 3M in diffusers' form has 2.
        calls: evaluations a step; a step to clean data needs one.
        description: in words, with its name in diffusers.
    """

    weights: Callable[[Grid], Weights]
    order: int
    calls: int
    description: str


def _table() -> dict[str, Solver]:
    table = {
        "ddim": Solver(ddim, 1, 1, "DDIM = Euler; also DPM-Solver++ of order 1, flow Euler"),
        "dpmpp-2m": Solver(functools.partial(dpmpp, order=2), 2, 1, "DPM-Solver++(2M), diffusers' default"),
        "dpmpp-3m": Solver(functools.partial(dpmpp, order=3), 2, 1, "DPM-Solver++(3M), solver_order=3"),
    }
    for order in (1, 2, 3):
        for variant in ("bh2", "bh1"):
            name = f"unipc-{order}" + ("-bh1" if variant == "bh1" else "")
            finite = "; needs a finite first node" if variant == "bh1" else ""
            weights = functools.partial(unipc, order=order, variant=variant)
            table[name] = Solver(
                weights, order + 1, 1, f"UniPC, solver_order={order}, solver_type={variant!r}" + finite
            )
    table["heun"] = Solver(heun, 2, 2, "Heun in ksigma (EDM), HeunDiscreteScheduler; needs a finite first node")
    table["heun-flow"] = Solver(functools.partial(heun, time="flow"), 2, 2, "Heun in s, FlowMatchHeunDiscreteScheduler")
    return table


SOLVERS: dict[str, Solver] = _table()


def _rows(text: str) -> dict[str, str]:
    """Names by the solver that a line begins with."""
    lines = [line.split() for line in text.strip().splitlines()]
    return {name: solver for solver, *names in lines for name in names}


ALIASES: Mapping[str, str] = _rows("""
    ddim          euler eulerdiscrete flowmatcheulerdiscrete edmeuler ddimparallel cogvideoxddim ddimuniform dpmpp1
    dpmpp-2m      dpmsolvermultistep edmdpmsolvermultistep dpmsolverpp2m
    dpmpp-3m      dpmsolverpp3m
    unipc-2       unipc unipcmultistep flowunipcmultistep
    unipc-3       unipcbh2
    heun          heundiscrete
    heun-flow     flowmatchheundiscrete
""")
"""A solver by each name that k-diffusion and ComfyUI, A1111 and diffusers have for it, as `_key` writes it.

"unipc" is diffusers' default, order 2; ComfyUI's "uni_pc_bh2" has order 3.
"""

STOCHASTIC: Mapping[str, str] = _rows("""
    euler         eulera eulerancestral eulerancestraldiscrete eulerancestralcfgpp lcm flowmatchlcm tcd ddpm
    euler         ddpmparallel ddpmwuerstchen ltxeulerancestralrf
    heun          dpm2a dpm2ancestral kdpm2a kdpm2ancestral kdpm2ancestraldiscrete restart expheun2x0sde
    dpmpp-2m      dpmppsde dpmppsdegpu dpmsolversde dpmpp2msde dpmpp2msdegpu dpmpp2msdeheun dpmpp2msdeheungpu
    dpmpp-2m      dpmpp2sa dpmpp2sancestral dpmpp2sancestralcfgpp resmultistepancestral resmultistepancestralcfgpp
    dpmpp-2m      ersde seeds2 seeds3 cogvideoxdpm cosinedpmsolvermultistep sdedpmsolver sdedpmsolverpp
    dpmpp-3m      dpmpp3msde dpmpp3msdegpu
    unipc-3       sasolver sasolverpece
""")
"""Solvers that add noise at each step, and what is nearest to each without it."""

UNKNOWN: Mapping[str, str] = _rows("""
    euler         eulercfgpp
    heun          dpm2 kdpm2 kdpm2discrete heunpp2 expheun2x0
    dpmpp-2m      lms lmsdiscrete pndm plms ipndm ipndmv deis deismultistep dpmfast dpmadaptive dpmpp2s dpmpp2mcfgpp
    dpmpp-2m      dpmsolversinglestep resmultistep resmultistepcfgpp gradientestimation gradientestimationcfgpp
    dpmpp-2m      dpmpp2mheun dpmsolver
""")
"""Solvers without noise that nothing here is computed for, and what is nearest to each."""

EVERY = (*SOLVERS, NONSTATIONARY)
"""All names of solvers that `canonical` gives."""

_RULES = ("karras", "exponential", "polyexponential", "sgmuniform", "simple", "normal", "uniform", "beta")
"""Rules that A1111 writes behind a solver: the schedule takes their place."""


def canonical(name: str, known: Iterable[str] = SOLVERS) -> str:
    """The key of `SOLVERS` for a solver by any of its names, or "nonstationary" where `known` has it.

    Case and punctuation do not matter: "dpmpp_2m", "DPM++ 2M Karras" and "DPMSolverMultistepScheduler" are "dpmpp-2m".

    Args:
        name: "dpmpp-2m", or what k-diffusion, ComfyUI, A1111 or diffusers calls it; a rule behind it is left out.
        known: what the caller takes, for the message.

    Raises:
        ValueError: for a name that is none; for a solver that adds noise or is not among those here the message says
            what is nearest to it.
    """
    listed = tuple(known)
    if not isinstance(name, str):
        raise ValueError(f"solver is {brief(name)}; use one of {', '.join(listed)}")
    found = named(name)
    if found is not None and (found != NONSTATIONARY or NONSTATIONARY in listed):
        return found
    for key in _keys(name):
        for table, why in ((STOCHASTIC, "adds noise at each step"), (UNKNOWN, "is not among those known here")):
            if key in table:
                near = table[key] if named(table[key]) in listed else "dpmpp-2m"
                raise ValueError(f"solver is {brief(name)}, which {why}; name the nearest one without noise: {near!r}")
    raise ValueError(f"solver is {brief(name)}{nearest(name, listed)}; use one of {', '.join(listed)}")


def find(name: str) -> Solver:
    """The solver of that name. Raises ValueError as `canonical`."""
    return SOLVERS[canonical(name)]


def named(name: str) -> str | None:
    """The solver with that name, "nonstationary" among them; None where there is none."""
    return next((_NAMES[key] for key in _keys(name) if key in _NAMES), None)


def adds_noise(name: str) -> bool:
    """Whether a solver or scheduler class of that name is known to add noise at each step."""
    return any(key in STOCHASTIC for key in _keys(name))


def _keys(name: str) -> list[str]:
    """The name as the tables write it, and without the rule behind it."""
    key = _key(name)
    return [key, *(key.removesuffix(rule) for rule in _RULES if key.endswith(rule))]


def _key(name: str) -> str:
    """In small letters and digits alone; ++ is pp."""
    plain = "".join(c for c in name[:100].casefold().replace("++", "pp") if c.isascii() and c.isalnum())
    return plain.removesuffix("scheduler")


_NAMES = {**{_key(name): name for name in EVERY}, **ALIASES}
