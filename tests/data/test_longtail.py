from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualtail.data.holdout import hold_out_val
from dualtail.data.longtail import PROFILES, long_tail_counts, subsample_long_tail
from dualtail.data.manifest import Manifest
from dualtail.errors import DataError, InputError


@pytest.mark.parametrize(
    ("classes", "largest", "ratio", "total"),
    [
        # Totals that the literature states for CIFAR-LT.
        (100, 500, 100, 10_847),
        (100, 500, 50, 12_608),
        (100, 500, 10, 19_573),
        (10, 5000, 100, 12_406),
        (10, 5000, 50, 13_996),
        (10, 5000, 10, 20_431),
    ],
)
def test_exponential_profile_is_that_of_cifar_lt(classes, largest, ratio, total):
    counts = long_tail_counts(classes, largest, ratio)
    assert counts.sum() == total
    assert counts[0] == largest
    assert counts[-1] * ratio == largest


def test_pareto_profile_is_near_imagenet_lt():
    counts = long_tail_counts(1000, 1280, 256, "pareto")
    assert counts[0] == 1280
    assert counts[-1] == 5
    assert abs(counts.sum() - 115_846) < 0.1 * 115_846


@given(
    st.integers(2, 300),
    st.integers(1, 3000),
    st.floats(1, 1000),
    st.sampled_from(PROFILES),
    st.floats(1, 20),
)
def test_counts_fall_from_the_largest(classes, largest, ratio, profile, power):
    counts = long_tail_counts(classes, largest, ratio, profile, power)
    assert len(counts) == classes
    assert counts[0] == largest
    assert (np.diff(counts) <= 0).all()
    assert counts[-1] == max(1, int(largest / ratio + 1e-9))


@pytest.mark.parametrize(
    "arguments",
    [(1, 10, 2), (5, 0, 2), (5, 10, 0.5), (5, 10, float("nan")), (5, 10, float("inf")), (5, 10, 2, "zipf")],
)
def test_counts_out_of_range(arguments):
    with pytest.raises(InputError):
        long_tail_counts(*arguments)


def test_subsampling_keeps_the_other_splits(balanced):
    tail = subsample_long_tail(balanced, 20)
    assert tail.counts("train").tolist() == [100, 22, 5]
    assert tail.counts("test").tolist() == [10, 10, 10]
    assert "long tail of 127 of 300 images" in tail.notes[-1]
    assert set(tail.paths) <= set(balanced.paths)
    rows = dict(zip(balanced.paths, balanced.labels, strict=True))
    assert all(rows[path] == label for path, label in zip(tail.paths, tail.labels, strict=True))


def test_subsampling_is_seeded_and_nested(balanced):
    one, same, other = (subsample_long_tail(balanced, 20, seed=seed) for seed in (1, 1, 2))
    assert one.paths == same.paths
    assert one.paths != other.paths
    assert set(one.paths) < set(subsample_long_tail(balanced, 10, seed=1).paths)


def test_subsampling_in_random_class_order(balanced):
    orders = {
        tuple(subsample_long_tail(balanced, 20, seed=s, class_order="random").counts()) for s in range(20)
    }
    assert len(orders) == 6
    assert {tuple(sorted(order)) for order in orders} == {(5, 22, 100)}


def test_subsampling_of_what_is_not_there(balanced):
    with pytest.raises(
        DataError, match=r"class 'a': the long tail asks for 200 .* there are 100; choose a smaller"
    ):
        subsample_long_tail(balanced, 20, largest=200)
    without = balanced.select(np.flatnonzero((balanced.labels != 1) | (balanced.splits == "test")))
    with pytest.raises(DataError, match="class 'b': no training image"):
        subsample_long_tail(without, 20)
    with pytest.raises(InputError, match="unknown class_order"):
        subsample_long_tail(balanced, 20, class_order="sorted")


def test_a_tail_asks_only_for_what_each_class_needs(balanced):
    """A head class may be large although a tail class is small."""
    keep = np.flatnonzero((balanced.labels != 2) | (np.arange(len(balanced)) % 10 == 0))
    tail = subsample_long_tail(balanced.select(keep), 20, largest=100)
    assert tail.counts("train").tolist() == [100, 22, 5]


# --- hold out


def training(counts: list[int]) -> Manifest:
    labels = np.repeat(np.arange(len(counts)), counts)
    names = tuple(f"class {index}" for index in range(len(counts)))
    return Manifest(".", [f"{row}.png" for row in range(len(labels))], labels, ["train"] * len(labels), names)


@given(st.lists(st.integers(2, 60), min_size=2, max_size=8), st.integers(1, 30), st.integers(0, 5))
def test_held_out_val_is_balanced_and_leaves_train_something(counts, per_class, seed):
    manifest = training(counts)
    held = hold_out_val(manifest, per_class, seed)
    val, train = held.counts("val"), held.counts("train")
    assert len(set(val.tolist())) == 1
    assert 1 <= val[0] <= per_class
    assert (train >= val).all() or val[0] == 1
    assert (val + train).tolist() == counts
    assert held.paths == manifest.paths
    assert held.splits.tolist() == hold_out_val(manifest, per_class, seed).splits.tolist()
    assert f"val: {val.sum()} images ({val[0]} a class) held out of train" in held.notes[-1]


def test_held_out_val_says_when_it_is_smaller_or_unbalanced():
    held = hold_out_val(training([100, 9]), 20)
    assert held.counts("val").tolist() == [4, 4]
    assert held.notes[-1].endswith("; 20 a class were asked for, but the smallest class has 9")
    held = hold_out_val(training([100, 50, 1]), 20)
    assert held.counts("val").tolist() == [20, 20, 0]
    assert held.counts("train").tolist() == [80, 30, 1]
    assert held.notes[-1].endswith("; not balanced: 1 class with fewer than 2 training images gave none")


def test_hold_out_refusals(balanced):
    with pytest.raises(DataError, match="there is a val split already"):
        hold_out_val(hold_out_val(balanced))
    with pytest.raises(DataError, match="no class has the 2 training images"):
        hold_out_val(training([1, 1]))
    with pytest.raises(InputError, match="per_class is 0"):
        hold_out_val(balanced, 0)


def test_seed_changes_the_choice(balanced):
    assert hold_out_val(balanced, seed=0).splits.tolist() != hold_out_val(balanced, seed=1).splits.tolist()


def test_exact_fractions_do_not_fall_below_themselves():
    assert 98 * 49.0**-1 < 2  # which is what the counts are computed as
    assert long_tail_counts(2, 98, 49).tolist() == [98, 2]
