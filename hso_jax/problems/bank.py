"""Problems of both kinds in one structure, so that one compiled loop runs over all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from hso_jax.checks import brief
from hso_jax.problems.mixture import Problem
from hso_jax.problems.mixture import denoise as denoise_mixture
from hso_jax.problems.mixture import predict as predict_mixture
from hso_jax.problems.product import Product, searched_denoise
from hso_jax.problems.product import predict as predict_product


class Bank(NamedTuple):
    """P problems with D coordinates each: mixtures and products stacked apart, and which is which. A pytree.

    Attributes:
        mixtures: stacked on a leading axis, None if there are none.
        products: the same.
        is_product: [P] bool.
        row: [P] a problem's place in the stack of its kind.
        dimension: [P] how many of the D coordinates are its own; the rest is padding.
    """

    mixtures: Problem | None
    products: Product | None
    is_product: Array
    row: Array
    dimension: Array


class Either(NamedTuple):
    """One problem of a bank: a row of each stack, and which of the two it is. A pytree."""

    mixture: Problem | None
    product: Product | None
    is_product: Array


Kind = Problem | Product
"""One problem, or several of one shape stacked on a leading axis."""

Problems = Kind | Bank | Sequence[Kind]
"""What `collect` takes."""


def collect(problems: Problems) -> Bank:
    """A bank of problems, in their order.

    Args:
        problems: stacked ones, or a sequence of single or stacked ones of either kind. All mixtures have the same
            number of components, all products the same; coordinates may differ and are padded.

    Raises:
        ValueError: for none, a single problem in place of a sequence, or numbers of components that differ.
    """
    if isinstance(problems, Bank):
        return problems
    if isinstance(problems, (Problem, Product)):
        if problems.means.ndim != 3:
            raise ValueError(
                f"problems have means of shape {problems.means.shape}; need a leading axis: stack_problems([...]), "
                "or a list of problems"
            )
        problems = [problems]
    if not isinstance(problems, Sequence) or isinstance(problems, (str, bytes)):
        raise ValueError(f"problems is {brief(problems)}; need a list of problems, or stack_problems([...])")
    rows: list[Kind] = []
    for problem in problems:
        if not isinstance(problem, (Problem, Product)):
            raise ValueError(f"problems has {brief(problem)}; need mixtures and products")
        single = problem.means.ndim == 2
        host = jax.tree.map(np.asarray, problem)
        rows += [host] if single else [jax.tree.map(lambda leaf: leaf[i], host) for i in range(len(host.means))]  # noqa: B023
    if not rows:
        raise ValueError("problems is empty; need at least one")
    widest = max(row.means.shape[-1] for row in rows)
    dimension = np.array([row.means.shape[-1] for row in rows])
    is_product = np.array([isinstance(row, Product) for row in rows])
    place = np.where(is_product, np.cumsum(is_product) - 1, np.cumsum(~is_product) - 1)
    stacks = []
    for sort in (Problem, Product):
        own = [_widened(row, widest) for row in rows if isinstance(row, sort)]
        counts = {row.means.shape[0] for row in own}
        if len(counts) > 1:
            raise ValueError(f"problems of one kind have {sorted(counts)} components; need the same number")
        stacks.append(jax.tree.map(lambda *leaves: np.stack(leaves), *own) if own else None)
    return Bank(stacks[0], stacks[1], is_product, place, dimension)  # type: ignore[arg-type]


def _widened(problem: Kind, dimension: int) -> Kind:
    """With coordinates added that are standard normal and count for nothing."""
    more = dimension - problem.means.shape[-1]
    if not more:
        return problem
    wide = ((0, 0), (0, more))
    if isinstance(problem, Problem):
        means, variances = np.pad(problem.means, wide), np.pad(problem.variances, (0, more), constant_values=1.0)
        return problem._replace(means=means, variances=variances)  # type: ignore[arg-type]
    logs = np.full((problem.means.shape[0], more), -np.log(problem.means.shape[0]))
    return Product(
        np.concatenate([problem.log_weights, logs], -1),  # type: ignore[arg-type]
        np.concatenate([problem.class_log_weights, logs], -1),  # type: ignore[arg-type]
        np.pad(problem.means, wide),  # type: ignore[arg-type]
        np.pad(problem.variances, wide, constant_values=1.0),  # type: ignore[arg-type]
        np.pad(problem.counts, (0, more)),  # type: ignore[arg-type]
    )


def pick(bank: Bank, p: Array | int) -> Problem | Product | Either:
    """Problem p, traced or not; of a bank with one kind only, that kind."""
    row = bank.row[p]
    mixtures, products = (
        # The row of the other kind is a valid one of this: what a gather finds there is not used.
        None if stack is None else jax.tree.map(lambda leaf: leaf[jnp.minimum(row, len(leaf) - 1)], stack)
        for stack in (bank.mixtures, bank.products)
    )
    if products is None:
        assert mixtures is not None
        return mixtures
    return products if mixtures is None else Either(mixtures, products, bank.is_product[p])


def predict(
    problem: Problem | Product | Either, x: Array, alpha: Array, sigma: Array, guidance: Array | float = 1.0
) -> tuple[Array, Array]:
    """The guided denoiser at x [..., D] in VP-equivalent scaling and the negative score, of either kind."""
    if isinstance(problem, Problem):
        return predict_mixture(problem, x, alpha, sigma, guidance)
    if isinstance(problem, Product):
        return predict_product(problem, x, alpha, sigma, guidance)
    one, other = problem.mixture, problem.product
    assert one is not None and other is not None
    return jax.lax.cond(
        problem.is_product,
        lambda x, alpha, sigma, guidance: predict_product(other, x, alpha, sigma, guidance),
        lambda x, alpha, sigma, guidance: predict_mixture(one, x, alpha, sigma, guidance),
        x, alpha, sigma, guidance,
    )  # fmt: skip


def denoise(problem: Problem | Product | Either, x: Array, lam: Array, guidance: Array | float = 1.0) -> Array:
    """The first part of `predict` at half log-SNR lam, differentiable in x and lam."""
    if isinstance(problem, Problem):
        return denoise_mixture(problem, x, lam, guidance)
    if isinstance(problem, Product):
        return searched_denoise(problem, x, lam, guidance)
    one, other = problem.mixture, problem.product
    assert one is not None and other is not None
    return jax.lax.cond(
        problem.is_product,
        lambda x, lam, guidance: searched_denoise(other, x, lam, guidance),
        lambda x, lam, guidance: denoise_mixture(one, x, lam, guidance),
        x, lam, guidance,
    )  # fmt: skip


def spread(bank: Bank) -> tuple[np.ndarray, np.ndarray]:
    """[P, D] variance of the data along each coordinate and how many directions it stands for; 0 for padding."""
    variances = np.zeros((len(bank.row), _width(bank)))
    counts = np.zeros_like(variances)
    for p, row in enumerate(np.asarray(bank.row)):
        d = int(bank.dimension[p])
        if bank.is_product[p]:
            assert bank.products is not None
            one = jax.tree.map(lambda leaf: np.asarray(leaf[row], np.float64), bank.products)  # noqa: B023
            weights = _normal(one.log_weights)
            mean = (weights * one.means).sum(0)
            variances[p, :d] = (weights * ((one.means - mean) ** 2 + one.variances)).sum(0)[:d]
            counts[p, :d] = one.counts[:d]
        else:
            assert bank.mixtures is not None
            one = jax.tree.map(lambda leaf: np.asarray(leaf[row], np.float64), bank.mixtures)  # noqa: B023
            w = _normal(one.log_weights)
            variances[p, :d] = (w @ (one.means - w @ one.means) ** 2 + one.variances)[:d]
            counts[p, :d] = 1.0
    return variances, counts


def _normal(log_weights: np.ndarray) -> np.ndarray:
    """Weights that sum to 1 along the components, also where their logarithms are float32."""
    weights = np.exp(log_weights)
    return weights / weights.sum(0)


def _width(bank: Bank) -> int:
    stack = bank.mixtures if bank.products is None else bank.products
    assert stack is not None
    return int(stack.means.shape[-1])
