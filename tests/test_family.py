"""Families of generic problems: shapes, seeds and what is refused."""

from __future__ import annotations

import math

import jax
import numpy as np
import pytest

from hso_jax.problems import KINDS, Kind, family, generic, mixture, stack_problems, variance

SMALL = {"dimension": 4, "components": 3, "members": 2}


def test_members_are_generic_problems_of_their_seed_and_kind() -> None:
    kinds = [Kind(1.0, 0.2, 0.5), Kind(2.0, 0.6, 3.0)]
    many = family([5, 6, 9], kinds, **SMALL)
    assert [leaf.shape for leaf in many] == [(3, 3), (3, 3), (3, 3, 4), (3, 4)]
    for i, (seed, kind) in enumerate(zip([5, 6, 9], [*kinds, kinds[0]], strict=True)):
        alone = generic(jax.random.key(seed), spectrum=kind.spectrum, within=kind.within, scale=kind.scale, **SMALL)
        for a, b in zip(many, alone, strict=True):
            np.testing.assert_array_equal(a[i], b)


def test_kinds_are_every_combination_once_and_neighbours_are_mixed() -> None:
    assert len(set(KINDS)) == len(KINDS) == math.prod(len(set(values)) for values in zip(*KINDS, strict=True))
    for i in range(len(KINDS) - 3):
        spectra, within, scales = (set(values) for values in zip(*KINDS[i : i + 4], strict=True))
        assert len(within) == 4 and len(scales) == 3 and len(spectra) >= 2


def test_the_same_seeds_give_the_same_problems_and_others_others() -> None:
    first, again = family(range(2), **SMALL), family(range(2), **SMALL)
    assert all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in zip(first, again, strict=True))
    other = family(range(2, 4), **SMALL)
    assert not np.any(np.isclose(first.means, other.means))


def test_default_members_have_their_kind_s_variance_share_and_spectrum() -> None:
    many = family()
    assert many.means.shape == (len(KINDS), 32, 32)
    total = jax.vmap(variance)(many)
    np.testing.assert_allclose(total, [kind.scale**2 for kind in KINDS], rtol=1e-5)
    np.testing.assert_allclose(many.variances.mean(-1) / total, [kind.within for kind in KINDS], rtol=1e-5)
    ratio = many.variances[:, 0] / many.variances[:, -1]
    np.testing.assert_allclose(ratio, [32.0**kind.spectrum for kind in KINDS], rtol=1e-5)


def test_the_class_lies_apart_from_the_others_and_the_variance_stays() -> None:
    def ratio(apart: float) -> float:
        problem = generic(jax.random.key(1), scale=2.0, apart=apart)
        np.testing.assert_allclose(variance(problem), 4.0, rtol=1e-5)
        groups = np.asarray(problem.means[:4]), np.asarray(problem.means[4:])
        distance = groups[0].mean(0) - groups[1].mean(0)
        return (distance**2).sum() / sum(((g - g.mean(0)) ** 2).sum() for g in groups)

    assert ratio(2.0) == pytest.approx(4.0 * ratio(0.5), rel=1e-4)
    whole = generic(jax.random.key(1), members=32)
    np.testing.assert_allclose(whole.class_log_weights, whole.log_weights)


def test_a_default_class_has_more_than_half_of_the_variance_in_its_centre() -> None:
    many = family()
    share = (many.means[:, :4].mean(1) ** 2).mean(-1) / jax.vmap(variance)(many)
    assert 0.5 < float(share.mean()) < 0.7


@pytest.mark.parametrize(
    ("seeds", "options", "message"),
    [
        ([], {}, "0 seeds and 36 kinds"),
        ([1], {"kinds": ()}, "1 seeds and 0 kinds"),
        ([1], {"dimension": 0}, "dimension is 0"),
        ([1], {"components": 4, "members": 5}, "members is 5"),
        ([1], {"kinds": [Kind(within=1.0)]}, r"within is 1\.0"),
        ([1], {"kinds": [Kind(spectrum=np.inf)]}, "spectrum is inf"),
        ([1], {"kinds": [Kind(scale=0.0)]}, r"scale is 0\.0"),
        ([1], {"apart": 0.0}, r"apart is 0\.0"),
    ],
)
def test_bad_families_are_refused(seeds: list[int], options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        family(seeds, **options)


def test_only_problems_of_one_shape_are_stacked() -> None:
    one = mixture([1.0, 2.0], [[0.0, 1.0], [1.0, 0.0]], [0.5, 0.5])
    other = mixture([1.0], [[0.0, 1.0]], [0.5, 0.5])
    assert stack_problems([one, one]).means.shape == (2, 2, 2)
    with pytest.raises(ValueError, match=r"\(1, 2\), \(2, 2\).*one shape"):
        stack_problems([one, other])
    with pytest.raises(ValueError, match="need one shape"):
        stack_problems([])
