"""Families of generic problems: shapes, seeds and what is refused."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from hso_jax.problems import family, generic, mixture, stack_problems

SMALL = {"dimension": 4, "components": 3, "members": 2}


def test_members_are_generic_problems_of_their_seed_and_spectrum() -> None:
    many = family([5, 6, 9], spectra=(1.0, 2.0), within=0.2, **SMALL)
    assert [leaf.shape for leaf in many] == [(3, 3), (3, 3), (3, 3, 4), (3, 4)]
    for i, (seed, spectrum) in enumerate([(5, 1.0), (6, 2.0), (9, 1.0)]):
        alone = generic(jax.random.key(seed), spectrum=spectrum, within=0.2, **SMALL)
        for a, b in zip(many, alone, strict=True):
            np.testing.assert_array_equal(a[i], b)


def test_the_same_seeds_give_the_same_problems_and_others_others() -> None:
    first, again = family(range(2), **SMALL), family(range(2), **SMALL)
    assert all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in zip(first, again, strict=True))
    other = family(range(2, 4), **SMALL)
    assert not np.any(np.isclose(first.means, other.means))


def test_default_members_have_unit_variance() -> None:
    many = family(range(4))
    assert many.means.shape == (4, 32, 32)
    variance = np.asarray((many.means**2).mean(1) + many.variances).mean(-1)  # means are centred
    np.testing.assert_allclose(variance, 1.0, rtol=1e-5)
    spread = np.asarray(many.variances)
    assert spread[0, 0] / spread[0, -1] < spread[1, 0] / spread[1, -1] < spread[2, 0] / spread[2, -1]
    np.testing.assert_allclose(spread[3], spread[0])  # spectra are taken in turn


@pytest.mark.parametrize(
    ("seeds", "options", "message"),
    [
        ([], {}, "0 seeds and 3 spectra"),
        ([1], {"spectra": ()}, "1 seeds and 0 spectra"),
        ([1], {"dimension": 0}, "dimension 0"),
        ([1], {"components": 4, "members": 5}, "members 5"),
        ([1], {"within": 1.0}, r"within is 1\.0"),
        ([1], {"spectra": (np.inf,)}, "spectrum inf"),
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
