"""The known solvers by name, what other programs call them, and `sample`: from noise to data with any of them."""

from __future__ import annotations

import functools
import math
from collections import ChainMap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from hso_jax.checks import brief, choice, nearest
from hso_jax.optional_jax import Array, jax, jnp
from hso_jax.solvers.multistep import ddim, dpmpp, heun, unipc
from hso_jax.solvers.nonstationary import MAX_HISTORY, NONSTATIONARY, weights_of
from hso_jax.solvers.weights import Weights, grid


class Solver(NamedTuple):
    """A way to take the steps."""

    weights: Callable[..., Weights]  # of its evaluations, from the steps, and from coefficients where these are free
    order: int  # of convergence, as measured: UniPC's corrector adds one to its name's, 3M in diffusers' form has 2
    calls: int  # evaluations a step; a step to clean data needs one
    description: str  # in words, with its name in diffusers
    older: int | None = None  # earlier predictions that a step combines; None is order - 1
    instead: str = ""  # the solver to take where the first node is lam = -inf, for one that cannot start there


SOLVERS: dict[str, Solver] = {
    "ddim": Solver(ddim, 1, 1, "DDIM = Euler; also DPM-Solver++ of order 1, flow Euler"),
    "dpmpp-2m": Solver(functools.partial(dpmpp, order=2), 2, 1, "DPM-Solver++(2M), diffusers' default"),
    "dpmpp-3m": Solver(functools.partial(dpmpp, order=3), 2, 1, "DPM-Solver++(3M), solver_order=3", older=2),
    **{
        f"unipc-{order}{'' if variant == 'bh2' else '-bh1'}": Solver(
            functools.partial(unipc, order=order, variant=variant),
            order + 1,
            1,
            f"UniPC, solver_order={order}, solver_type={variant!r}"
            + ("; needs a finite first node" if variant == "bh1" else ""),
            instead="" if variant == "bh2" else f"unipc-{order}",
        )
        for order in (1, 2, 3)
        for variant in ("bh2", "bh1")
    },
    "heun": Solver(
        heun, 2, 2, "Heun in ksigma (EDM), HeunDiscreteScheduler; needs a finite first node", instead="heun-flow"
    ),
    "heun-flow": Solver(functools.partial(heun, time="flow"), 2, 2, "Heun in s, FlowMatchHeunDiscreteScheduler"),
}
"""The solvers that a name determines; one of your own may be added."""

EVERY: Mapping[str, Solver] = ChainMap(
    {NONSTATIONARY: Solver(weights_of, 1, 1, "coefficients of its own at every step", older=MAX_HISTORY - 1)}, SOLVERS
)
"""These, and the one whose coefficients are data: every solver that `canonical` gives."""

_OWN = dict(EVERY)


def added(names: Iterable[str]) -> tuple[Solver, ...]:
    """Those solvers of these names that are not this package's: what they do the name does not tell."""
    return tuple(EVERY[name] for name in names if EVERY[name] is not _OWN.get(name))


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
"""A solver by each name that k-diffusion and ComfyUI, A1111 and diffusers have for it, as `_keys` writes it.

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

_RULES = ("karras", "exponential", "polyexponential", "sgmuniform", "simple", "normal", "uniform", "beta")
"""Rules that A1111 writes behind a solver: the schedule takes their place."""


def canonical(name: str, known: Iterable[str] = SOLVERS) -> str:
    """The key of `EVERY` for a solver by any of its names; "nonstationary" only where `known` has it.

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
    return EVERY[canonical(name, EVERY)]


def named(name: str) -> str | None:
    """The solver with that name, "nonstationary" among them; None where there is none."""
    if name in EVERY:  # one that a user added, too
        return name
    return next((_NAMES[key] for key in _keys(name) if key in _NAMES), None)


def adds_noise(name: str) -> bool:
    """Whether a solver or scheduler class of that name is known to add noise at each step."""
    return any(key in STOCHASTIC for key in _keys(name))


def _keys(name: str) -> list[str]:
    """The name as the tables write it (small letters and digits alone; ++ is pp), and without the rule behind it."""
    plain = "".join(c for c in name[:100].casefold().replace("++", "pp") if c.isascii() and c.isalnum())
    key = plain.removesuffix("scheduler")
    return [key, *(key.removesuffix(rule) for rule in _RULES if key.endswith(rule))]


_NAMES = {**{_keys(name)[0]: name for name in EVERY}, **ALIASES}


Denoiser = Callable[[Array, Array], Array]
"""(x, lam) -> x0: the predicted clean data, of x's shape, for `x = alpha x_0 + sigma eps` in VP-equivalent scaling."""


def evaluations(solver: str, steps: int, *, end: str = "clean") -> int:
    """How often the model is called for so many steps (N evaluated nodes): the true NFE.

    Raises ValueError for an unknown solver or end, or less than one step.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps!r}; need at least 1")
    choice("end", end, ("clean", "t_eps"))
    calls = find(solver).calls
    return calls * steps - (calls - 1 if end == "clean" else 0)


def weights(solver: str, lams: Array, *, end: Array | float = math.inf, nfe: Array | int | None = None) -> Weights:
    """A solver's arithmetic on the given nodes; the arguments are those of `sample`."""
    lams = jnp.asarray(lams)
    if lams.ndim != 1 or lams.shape[0] < 1:
        raise ValueError(f"lams has shape {lams.shape}; need one axis with at least one node (use vmap for more)")
    count = jnp.asarray(lams.shape[0] if nfe is None else nfe)
    return SOLVERS[canonical(solver)].weights(grid(lams, jnp.asarray(end, lams.dtype), count))


def alike(makers: Sequence[Callable[[], Weights]]) -> list[Callable[[], Weights]]:
    """Makers whose weights all have the shape that the widest of them needs, for `lax.switch`.

    Raises ValueError if the solvers differ in their evaluations a step.
    """
    shapes = [jax.eval_shape(maker) for maker in makers]
    if len({shape.lams.shape for shape in shapes}) > 1:
        raise ValueError("solvers of one and of two evaluations a step cannot share a program")
    predict = max(shape.predict.shape[-1] for shape in shapes)
    correct = max((0 if shape.correct is None else shape.correct.shape[-1]) for shape in shapes)
    correct = max(correct, predict + 1) if correct else 0

    def widened(weights: Array, width: int) -> Array:
        return jnp.pad(weights, ((0, 0), (0, width - weights.shape[-1])))

    def padded(maker: Callable[[], Weights]) -> Weights:
        w = maker()
        w = w._replace(predict=widened(w.predict, predict))
        if not correct:
            return w
        if w.correct is not None:
            return w._replace(correct=widened(w.correct, correct))
        # A corrector that repeats the step before.
        again = jnp.concatenate([jnp.zeros_like(w.predict[:1]), w.predict[:-1]])
        keep = jnp.concatenate([jnp.ones_like(w.carry[:1]), w.carry[:-1]])
        return w._replace(keep=keep, correct=widened(jnp.pad(again, ((0, 0), (1, 0))), correct))

    return [functools.partial(padded, maker) for maker in makers]


def sample(
    denoiser: Denoiser,
    lams: Array,
    noise: Array,
    *,
    solver: str = "ddim",
    end: Array | float = math.inf,
    nfe: Array | int | None = None,
) -> Array:
    """The sample at the end of a schedule; pure, and traceable in all but the solver.

    Everything is in VP-equivalent scaling (alpha^2 + sigma^2 = 1). Models of other scalings differ by a factor on x,
    which at clean data is 1.

    Args:
        denoiser: `(x, lam) -> x0`; x is batched as the noise is.
        lams: [K] half log-SNR of the evaluated nodes, rising. The first may be -inf (pure noise; see `PURE_NOISE`).
        noise: [...] the sample at the first node: standard normal, as pipelines start.
        solver: a name that `canonical` knows (static).
        end: inf for a last step to clean data (sigma 0, of order 1; the orders before it lowered as diffusers does),
            else the lam where sampling stops, reached at full order.
        nfe: N, if only the first N of `lams` are real and the rest is padding, whose values do not matter.

    Returns:
        [...] x_0, or x at `end`; not finite where lams do not rise. Raises ValueError for an unknown solver or a wrong
        shape of lams.
    """
    return run(denoiser, weights(solver, lams, end=end, nfe=nfe), noise)


def run(denoiser: Denoiser, weights: Weights, noise: Array) -> Array:
    """Carry out a solver's weights (see `Weights`): one evaluation of the denoiser a row."""
    widths = [w.shape[-1] for w in (weights.predict, weights.correct) if w is not None]
    noise = jnp.asarray(noise, jnp.result_type(noise, weights.carry))

    def step(carry: tuple[Array, Array, tuple[Array, ...]], row: Weights) -> tuple[tuple, None]:
        base, x, past = carry
        known = (denoiser(x, row.lams), *past)
        base = x if row.correct is None else _combine(row.keep, base, row.correct, known)
        then = _combine(row.carry, base, row.predict, known)
        return (base, jnp.where(row.real, then, x), known[: len(past)]), None

    past = (jnp.zeros_like(noise),) * (max(widths) - 1)
    (_, x, _), _ = jax.lax.scan(step, (noise, noise, past), weights)
    return x


def _combine(weight: Any, x: Array, others: Array, known: tuple[Array, ...]) -> Array:
    return weight * x + sum(others[j] * known[j] for j in range(others.shape[0]))
