"""`sample`: from noise to data with any solver of `SOLVERS`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from hso_jax.optional_jax import Array, jax, jnp
from hso_jax.solvers.names import find
from hso_jax.solvers.weights import Weights, grid

Denoiser = Callable[[Array, Array], Array]
"""(x, lam) -> x0: the predicted clean data, of x's shape, for `x = alpha x_0 + sigma eps` in VP-equivalent scaling."""


def evaluations(solver: str, steps: int, *, end: str = "clean") -> int:
    """How often the model is called for so many steps (N evaluated nodes): the true NFE.

    Raises:
        ValueError: for an unknown solver or end, or less than one step.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps!r}; need at least 1")
    if end not in ("clean", "t_eps"):
        raise ValueError(f"end is {end!r}; use 'clean' or 't_eps'")
    calls = find(solver).calls
    return calls * steps - (calls - 1 if end == "clean" else 0)


def weights(solver: str, lams: Array, *, end: Array | float = math.inf, nfe: Array | int | None = None) -> Weights:
    """A solver's arithmetic on the given nodes; the arguments are those of `sample`."""
    lams = jnp.asarray(lams)
    if lams.ndim != 1 or lams.shape[0] < 1:
        raise ValueError(f"lams has shape {lams.shape}; need one axis with at least one node (use vmap for more)")
    count = jnp.asarray(lams.shape[0] if nfe is None else nfe)
    return find(solver).weights(grid(lams, jnp.asarray(end, lams.dtype), count))


def alike(makers: Sequence[Callable[[], Weights]]) -> list[Callable[[], Weights]]:
    """Makers whose weights all have the shape that the widest of them needs, for `lax.switch`.

    Raises:
        ValueError: if the solvers differ in their evaluations a step.
    """
    shapes = [jax.eval_shape(maker) for maker in makers]
    if len({shape.lams.shape for shape in shapes}) > 1:
        raise ValueError("solvers of one and of two evaluations a step cannot share a program")
    predict = max(shape.predict.shape[-1] for shape in shapes)
    correct = max((0 if shape.correct is None else shape.correct.shape[-1]) for shape in shapes)
    correct = max(correct, predict + 1) if correct else 0

    def padded(maker: Callable[[], Weights]) -> Callable[[], Weights]:
        def make() -> Weights:
            w = maker()
            w = w._replace(predict=_widened(w.predict, predict))
            if not correct:
                return w
            if w.correct is None:  # a corrector that repeats the step before
                again = jnp.concatenate([jnp.zeros_like(w.predict[:1]), w.predict[:-1]])
                repeated = jnp.pad(again, ((0, 0), (1, 0)))
                keep = jnp.concatenate([jnp.ones_like(w.carry[:1]), w.carry[:-1]])
                return w._replace(keep=keep, correct=_widened(repeated, correct))
            return w._replace(correct=_widened(w.correct, correct))

        return make

    return [padded(maker) for maker in makers]


def _widened(weights: Array, width: int) -> Array:
    return jnp.pad(weights, ((0, 0), (0, width - weights.shape[-1])))


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
        [...] x_0, or x at `end`. Not finite where lams do not rise.

    Raises:
        ValueError: for an unknown solver or a wrong shape of lams.
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


def _combine(weight: Array | None, x: Array, others: Array, known: tuple[Array, ...]) -> Array:
    assert weight is not None
    return weight * x + sum(others[j] * known[j] for j in range(others.shape[0]))
