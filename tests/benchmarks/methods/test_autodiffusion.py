"""The evolutionary search: what it rates, how often, and that its best is the best it has seen."""

import numpy as np
import pytest
from tiny_models import tiny_subject

from benchmarks.methods import autodiffusion
from benchmarks.metrics import frechet
from benchmarks.models.denoiser import own_subject
from hso_jax import baseline

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array_?.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers.*"),
]

LEVELS = np.arange(1, 51)
START = (50, 40, 30, 20, 10)
BEST = (47, 31, 30, 12, 3)


def far(row):
    return float(np.square(np.subtract(row, BEST)).sum())


def real():
    return np.random.default_rng(1).standard_normal((40, 96))


@pytest.mark.parametrize("seed", range(3))
def test_evolution_rates_new_rows_of_the_levels_and_gets_better(seed):
    seen = []
    found = autodiffusion.evolve(lambda row: seen.append(row) or far(row), START, LEVELS, 400, seed)
    assert len(seen) == len(set(seen)) == len(found) == 400 and seen[0] == START
    for row in seen:
        assert sorted(set(row), reverse=True) == list(row) and len(row) == 5 and set(row) <= set(LEVELS.tolist())
    assert min(found.values()) < 0.2 * far(START)
    best = np.minimum.accumulate(list(found.values()))
    assert best[9] > best[-1]


def test_evolution_repeats_with_the_seed_and_a_longer_one_begins_alike():
    first, again, longer, other = (
        list(autodiffusion.evolve(far, START, LEVELS, n, seed)) for n, seed in ((60, 0), (60, 0), (90, 0), (60, 1))
    )
    assert first == again == longer[:60] and first != other


def test_evolution_ends_when_there_are_no_other_rows():
    found = autodiffusion.evolve(sum, (3, 2), np.arange(1, 4), 100, 0)
    assert set(found) == {(3, 2), (3, 1), (2, 1)}


def test_the_first_round_is_the_start_with_mutations_and_random_rows():
    rows = np.array(list(autodiffusion.evolve(far, START, LEVELS, 10, 0)))
    kept = np.array([len(set(row) & set(START)) for row in rows.tolist()])
    assert (kept[6:] >= 2).all() and kept[1:6].mean() < 2


@pytest.mark.parametrize("name", ["emoji-flow"])
def test_a_search_is_the_best_of_its_own_measure(name, calls):
    subject = tiny_subject(name)
    found = autodiffusion.search(subject, "ddim", 3, real(), images=4, budget=150)
    assert found.calls == calls.images == 144  # 12 candidates
    assert found.distance <= found.start
    again = autodiffusion.search(subject, "ddim", 3, real(), images=4, budget=150)
    np.testing.assert_array_equal(found.schedule.lams, again.schedule.lams)
    assert (again.distance, again.start) == (found.distance, found.start)
    own = own_subject(subject, 4, 0)
    for schedule, value in ((found.schedule, found.distance), (baseline("trailing", own.noise, 3), found.start)):
        features = own.features(own.sample(schedule, "ddim").images)
        assert frechet(features, real(), paired=False).value == pytest.approx(value, rel=0.02)
    levels = found.schedule.t * 1000
    np.testing.assert_allclose(levels, np.rint(levels), atol=1e-9)


@pytest.mark.parametrize(("images", "budget", "count"), [(4, 11, 40), (1, 100, 40), (4, 100, 1)])
def test_a_search_that_cannot_be_done_is_refused(images, budget, count, calls):
    with pytest.raises(ValueError, match=f"budget is {budget}, with {images} samples, {count} real images and N = 3"):
        autodiffusion.search(tiny_subject(), "ddim", 3, real()[:count], images=images, budget=budget)
    assert calls.images == 0
