from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dualtail.data.samplers import SAMPLINGS, epoch_order, sampled_counts
from dualtail.errors import InputError

COUNTS = st.lists(st.integers(0, 40), min_size=2, max_size=10).filter(lambda counts: sum(counts) > 0)


def shares_of(sampling: str, counts: np.ndarray, epoch: int, epochs: int) -> np.ndarray:
    sampled = sampled_counts(sampling, counts, epoch, epochs)
    return sampled / sampled.sum()


@given(COUNTS, st.sampled_from(SAMPLINGS), st.integers(0, 4))
def test_only_present_classes_are_drawn(counts, sampling, epoch):
    sampled = sampled_counts(sampling, np.array(counts), epoch, 5)
    assert sampled.dtype == np.float64
    assert (sampled[np.array(counts) == 0] == 0).all()
    assert (sampled[np.array(counts) > 0] > 0).all()


def test_sampled_counts_of_each_sampling():
    counts = np.array([900, 0, 100])
    assert sampled_counts("instance", counts, 3, 4).tolist() == [900, 0, 100]
    assert sampled_counts("square_root", counts, 3, 4).tolist() == [30, 0, 10]
    assert sampled_counts("class_balanced", counts, 3, 4).tolist() == [1, 0, 1]
    progressive = [sampled_counts("progressive", counts, epoch, 4).tolist() for epoch in range(4)]
    # Even the last epoch is not balanced.
    expected = [[0.9, 0, 0.1], [0.8, 0, 0.2], [0.7, 0, 0.3], [0.6, 0, 0.4]]
    np.testing.assert_allclose(progressive, expected)


def test_sampled_counts_leave_the_counts_alone():
    counts = np.array([3.0, 1.0])
    sampled_counts("instance", counts)[:] = 0
    assert counts.tolist() == [3, 1]


@settings(max_examples=60)
@given(COUNTS, st.sampled_from(SAMPLINGS), st.integers(0, 3), st.integers(0, 4))
def test_an_epoch_meets_its_shares(counts, sampling, seed, epoch):
    counts = np.array(counts)
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    rows = epoch_order(labels, len(counts), sampling, seed=seed, epoch=epoch, epochs=5)
    assert len(rows) == len(labels)
    assert rows.min() >= 0
    assert rows.max() < len(labels)
    drawn = np.bincount(labels[rows], minlength=len(counts))
    shares = shares_of(sampling, counts, epoch, 5) * len(labels)
    assert (np.abs(drawn - shares) < 1 + 1e-6).all()
    times = np.bincount(rows, minlength=len(labels))
    for label in np.flatnonzero(counts):
        of_class = times[labels == label]
        assert of_class.max() - of_class.min() <= 1, "an image comes again only after the others of its class"


def test_instance_sampling_is_a_permutation():
    labels = np.repeat([0, 1], [30, 3])
    rows = epoch_order(labels, 2, seed=0, epoch=0)
    assert sorted(rows.tolist()) == list(range(33))
    assert rows.tolist() != list(range(33))


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_order_depends_on_seed_and_epoch_alone(sampling):
    labels = np.repeat([0, 1, 2], [50, 10, 3])
    orders = {
        tuple(epoch_order(labels, 3, sampling, seed=seed, epoch=epoch, epochs=3))
        for seed in (0, 1)
        for epoch in (0, 1, 2)
        for _ in range(2)
    }
    assert len(orders) == 6


def test_progressive_goes_from_instance_to_balanced():
    labels = np.repeat([0, 1], [900, 100])
    heads = [
        np.count_nonzero(labels[epoch_order(labels, 2, "progressive", seed=0, epoch=e, epochs=4)] == 0)
        for e in range(4)
    ]
    assert heads == [900, 800, 700, 600]


def test_rare_shares_are_met_on_average():
    """With more classes than draws a class cannot come every epoch, but must come in its turn."""
    labels = np.repeat(np.arange(5), [1, 1, 1, 1, 6])
    drawn = sum(
        np.bincount(labels[epoch_order(labels, 5, "square_root", seed=0, epoch=e)], minlength=5)
        for e in range(400)
    )
    assert drawn / 400 == pytest.approx(
        10 * shares_of("square_root", np.array([1, 1, 1, 1, 6]), 0, 1), abs=0.1
    )


def test_wrong_name():
    with pytest.raises(InputError, match="unknown sampling 'sqrt_root'; did you mean 'square_root'"):
        sampled_counts("sqrt_root", np.array([1, 2]))
    with pytest.raises(InputError, match="no class has an image"):
        sampled_counts("instance", np.array([0, 0]))


def test_every_image_of_a_head_class_comes_in_some_epoch():
    labels = np.repeat([0, 1], [40, 2])
    epochs = [epoch_order(labels, 2, "class_balanced", seed=0, epoch=epoch) for epoch in range(20)]
    assert set(np.concatenate(epochs).tolist()) == set(range(42))
    assert len({frozenset(rows.tolist()) for rows in epochs}) > 10
