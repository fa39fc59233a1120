"""D-groups, P-groups, their cross table, membership and comparisons."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scipy import stats

from dualtail.errors import InputError
from dualtail.logits.groups import (
    ClassGroups,
    compare_groups,
    compare_priors,
    cross_table,
    membership_probabilities,
)
from dualtail.logits.prior import LabelPrior


def random_prior(classes: int, seed: int, errors: float | None = None) -> LabelPrior:
    generator = torch.Generator().manual_seed(seed)
    log_prob = torch.randn(classes, generator=generator, dtype=torch.float64).log_softmax(0)
    return LabelPrior(log_prob, None if errors is None else torch.full((classes,), errors))


class TestFromCounts:
    def test_the_papers_cut_points(self):
        groups = ClassGroups.from_counts([1280, 101, 100, 20, 19, 0])
        assert groups.names_of() == ["many", "many", "medium", "medium", "few", "few"]
        assert groups.kind == "D"
        assert groups.sizes == {"many": 2, "medium": 2, "few": 2}

    def test_cut_points_can_be_moved(self):
        assert ClassGroups.from_counts([5, 4, 2, 1], many=4, few=2).names_of() == [
            "many",
            "medium",
            "medium",
            "few",
        ]

    def test_overlapping_cut_points_are_refused(self):
        with pytest.raises(InputError, match="not ascending"):
            ClassGroups.from_counts([5, 4], many=4, few=10)


class TestFromPrior:
    @pytest.mark.parametrize(
        ("classes", "sizes"), [(2, (1, 0, 1)), (3, (1, 1, 1)), (100, (33, 34, 33)), (1000, (333, 334, 333))]
    )
    def test_thirds(self, classes, sizes):
        prior = random_prior(classes, seed=1)
        groups = ClassGroups.from_prior(prior)
        assert tuple(groups.sizes.values()) == sizes
        assert prior.log_prob[groups.mask("many")].min() > prior.log_prob[groups.mask("few")].max()

    def test_other_quantiles(self):
        prior = random_prior(10, seed=2)
        assert ClassGroups.from_prior(prior, quantiles=(0.2, 0.9)).sizes == {"many": 1, "medium": 7, "few": 2}
        assert ClassGroups.from_prior(prior, quantiles=(0, 1)).sizes == {"many": 0, "medium": 10, "few": 0}
        assert ClassGroups.from_prior(prior, quantiles=(0.5, 0.5)).sizes == {"many": 5, "medium": 0, "few": 5}

    def test_thresholds_are_probabilities(self):
        prior = LabelPrior.from_counts([50, 30, 15, 5])
        assert ClassGroups.from_prior(prior, thresholds=(0.1, 0.4)).names_of() == [
            "many",
            "medium",
            "medium",
            "few",
        ]

    @pytest.mark.parametrize("cuts", [{"quantiles": (0.7, 0.3)}, {"thresholds": (0.5, 0.1)}])
    def test_descending_cuts_are_refused(self, cuts):
        with pytest.raises(InputError, match="not ascending"):
            ClassGroups.from_prior(LabelPrior.uniform(3), **cuts)

    def test_equal_priors_stay_together(self):
        assert ClassGroups.from_prior(LabelPrior.uniform(6)).sizes == {"many": 0, "medium": 6, "few": 0}
        groups = ClassGroups.from_prior(LabelPrior.from_counts([1, 1, 1, 1, 2, 9]))
        assert groups.names_of() == ["medium", "medium", "medium", "medium", "many", "many"]

    def test_classes_permute(self):
        prior = LabelPrior.from_counts(torch.randint(1, 9, (40,), generator=torch.Generator().manual_seed(3)))
        order = torch.randperm(40, generator=torch.Generator().manual_seed(4))
        permuted = ClassGroups.from_prior(LabelPrior(prior.log_prob[order]))
        assert torch.equal(permuted.index, ClassGroups.from_prior(prior).index[order])

    def test_takes_log_probabilities(self):
        prior = random_prior(9, seed=5)
        expected = ClassGroups.from_prior(prior).index
        assert torch.equal(ClassGroups.from_prior(prior.log_prob.numpy()).index, expected)


class TestMembership:
    def test_thresholds_are_normal_tails(self):
        prior = LabelPrior(np.log([0.5, 0.3, 0.2]), [0.2, 0.2, 0.2])
        found = membership_probabilities(prior, thresholds=(0.25, 0.4))
        few = stats.norm.cdf(np.log(0.25), np.log(0.3), 0.2)
        many = stats.norm.sf(np.log(0.4), np.log(0.3), 0.2)
        np.testing.assert_allclose(found[1], [many, 1 - many - few, few])
        np.testing.assert_allclose(found.sum(1), 1)

    def test_two_classes_have_a_closed_form(self):
        prior = LabelPrior(np.log([0.6, 0.4]), [0.3, 0.4])
        found = membership_probabilities(prior, draws=20_000)
        above = stats.norm.cdf(np.log(0.6 / 0.4) / 0.5)
        np.testing.assert_allclose(found, [[above, 0, 1 - above], [1 - above, 0, above]], atol=0.01)

    def test_small_errors_give_certainty_and_large_ones_the_group_sizes(self):
        prior = random_prior(30, seed=6, errors=1e-9)
        sure = membership_probabilities(prior)
        assert torch.equal(sure.argmax(1), ClassGroups.from_prior(prior).index)
        assert float(sure.max(1).values.min()) == 1
        unsure = membership_probabilities(random_prior(30, seed=6, errors=1e3))
        np.testing.assert_allclose(unsure, 1 / 3, atol=0.06)

    def test_expected_sizes_are_the_sizes(self):
        prior = random_prior(50, seed=7, errors=0.5)
        sizes = list(ClassGroups.from_prior(prior).sizes.values())
        np.testing.assert_allclose(membership_probabilities(prior).sum(0), sizes)

    def test_needs_standard_errors(self):
        with pytest.raises(InputError, match="no standard errors"):
            membership_probabilities(LabelPrior.uniform(4))


class TestClassGroups:
    def test_names_and_masks(self):
        groups = ClassGroups.from_counts([500, 50, 5, 500])
        assert groups.mask("many").tolist() == [True, False, False, True]
        assert groups.names_of([2, 0]) == ["few", "many"]
        with pytest.raises(InputError, match="classes holds 4; expected values from 0 to 3"):
            groups.names_of([4])
        with pytest.raises(InputError, match="unknown group 'head'"):
            groups.mask("head")

    def test_json_round_trip(self):
        groups = ClassGroups.from_prior(random_prior(8, seed=8, errors=0.1))
        back = ClassGroups.from_dict(json.loads(json.dumps(groups.to_dict())))
        assert torch.equal(back.index, groups.index)
        assert (back.kind, back.rule) == (groups.kind, groups.rule)

    @pytest.mark.parametrize(
        ("index", "kind"), [([0, 3], "D"), ([0, -1], "D"), ([0.0, 1.0], "D"), ([0], "X")]
    )
    def test_bad_values_are_refused(self, index, kind):
        with pytest.raises(InputError):
            ClassGroups(index, kind)

    def test_cross_table(self):
        d = ClassGroups.from_counts([500, 500, 50, 5, 5, 5])
        p = ClassGroups.from_prior(LabelPrior.from_counts([6, 5, 4, 3, 2, 1]))
        table = cross_table(d, p)
        assert table.tolist() == [[2, 0, 0], [0, 1, 0], [0, 1, 2]]
        assert table.dtype == torch.int64
        with pytest.raises(InputError, match="6 and of 2 classes"):
            cross_table(d, ClassGroups.from_counts([1, 2]))


class TestComparisons:
    def test_priors_against_scipy(self):
        a, b = random_prior(60, seed=9), random_prior(60, seed=10)
        found = compare_priors(a, b)
        assert found.spearman == pytest.approx(stats.spearmanr(a.prob, b.prob).statistic)
        assert found.kendall == pytest.approx(stats.kendalltau(a.prob, b.prob).statistic)
        assert found.overlap == pytest.approx(1 - float((a.prob - b.prob).abs().sum()) / 2)

    def test_a_prior_is_like_itself(self):
        a = random_prior(20, seed=11)
        found = compare_priors(a, a)
        assert (found.spearman, found.kendall) == pytest.approx((1, 1))
        assert (found.pearson, found.overlap) == pytest.approx((1, 1))

    def test_a_constant_prior_has_no_correlation(self):
        found = compare_priors(LabelPrior.uniform(4), random_prior(4, seed=12))
        assert np.isnan(found.spearman)
        assert 0 < found.overlap < 1

    def test_groups(self):
        a = ClassGroups.from_counts([500, 500, 50, 5])
        b = ClassGroups.from_counts([500, 50, 50, 50])
        found = compare_groups(a, b)
        assert found.agreement == 0.5
        assert found.expected_agreement == pytest.approx((2 * 1 + 1 * 3) / 16)
        assert found.overlap == {"many": 0.5, "medium": pytest.approx(1 / 3), "few": 0.0}
        assert np.isnan(compare_groups(b, b).overlap["few"])
