"""Label priors: construction, averaging, saving."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from dualtail.errors import InputError
from dualtail.logits.prior import LabelPrior, as_log_prior


class TestLabelPrior:
    def test_from_counts_is_the_relative_frequency(self):
        prior = LabelPrior.from_counts(np.array([60, 30, 10]))
        np.testing.assert_allclose(prior.prob, [0.6, 0.3, 0.1])
        assert prior.log_prob.dtype == torch.float64
        assert prior.source == "counts"

    def test_an_empty_class_is_refused_by_name(self):
        with pytest.raises(InputError, match=r"zero for classes 1, 3; pass zero='smooth'"):
            LabelPrior.from_counts([5, 0, 2, 0])

    def test_smoothing_is_added_to_every_class(self):
        prior = LabelPrior.from_counts([3, 0, 1], zero="smooth", smoothing=0.5)
        np.testing.assert_allclose(prior.prob, np.array([3.5, 0.5, 1.5]) / 5.5)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"zero": "smooth"}, "needs a positive amount"),
            ({"zero": "smooth", "smoothing": 0.0}, "needs a positive amount"),
            ({"smoothing": 1.0}, "pass zero='smooth'"),
            ({"zero": "drop"}, "unknown zero policy 'drop'"),
        ],
    )
    def test_zero_policies_are_explicit(self, options, message):
        with pytest.raises(InputError, match=message):
            LabelPrior.from_counts([1, 2], **options)

    def test_mean_is_the_normalised_geometric_mean(self):
        first, second = LabelPrior.from_counts([8, 1, 1]), LabelPrior.from_counts([2, 2, 6])
        expected = np.sqrt([0.16, 0.02, 0.06])
        mean = LabelPrior.mean([first, second])
        np.testing.assert_allclose(mean.prob, expected / expected.sum())
        assert mean.source == "mean"
        assert mean.standard_errors is None
        np.testing.assert_allclose(LabelPrior.mean([first]).prob, first.prob)

    def test_mean_refuses_different_classes(self):
        with pytest.raises(InputError, match=r"different numbers of classes: \[2, 3\]"):
            LabelPrior.mean([LabelPrior.uniform(2), LabelPrior.uniform(3)])
        with pytest.raises(InputError, match="no priors"):
            LabelPrior.mean([])

    def test_json_round_trip_is_exact(self):
        prior = LabelPrior(
            torch.randn(7, dtype=torch.float64).log_softmax(0),
            torch.rand(7, dtype=torch.float64),
            source="zero_shot",
            num_samples=70,
            optimality_gap=1e-12,
            temperature=1.5,
            shrinkage=0.25,
        )
        back = LabelPrior.from_dict(json.loads(json.dumps(prior.to_dict())))
        assert torch.equal(back.standard_errors, prior.standard_errors)
        torch.testing.assert_close(back.log_prob, prior.log_prob, rtol=0, atol=1e-15)
        assert (back.source, back.num_samples, back.optimality_gap) == ("zero_shot", 70, 1e-12)
        assert (back.temperature, back.shrinkage) == (1.5, 0.25)

    def test_other_json_is_refused(self):
        with pytest.raises(InputError, match="not a saved label prior"):
            LabelPrior.from_dict({"log_prob": [-0.7, -0.7]})

    @pytest.mark.parametrize(
        ("log_prob", "message"),
        [
            ([0.5, 0.5], "sum to 3.297"),
            ([100.0, 20.0], "log-probabilities expected"),
            ([[-0.7, -0.7]], r"shape \(1, 2\)"),
            ([float("-inf"), 0.0], "not finite"),
            (["a", "b"], "not an array of numbers"),
        ],
    )
    def test_anything_but_log_probabilities_is_refused(self, log_prob, message):
        with pytest.raises(InputError, match=message):
            LabelPrior(log_prob)
        with pytest.raises(InputError, match=message):
            as_log_prior(log_prob, 2)

    def test_standard_errors_are_checked(self):
        log_prob = [-math.log(2)] * 2
        with pytest.raises(InputError, match=r"expected \(2,\)"):
            LabelPrior(log_prob, [0.1])
        with pytest.raises(InputError, match="negative"):
            LabelPrior(log_prob, [0.1, -0.1])

    def test_as_log_prior_checks_the_number_of_classes(self):
        with pytest.raises(InputError, match="source_prior: 3 classes, but 4 are expected"):
            as_log_prior(LabelPrior.uniform(3), 4, "source_prior")

    def test_as_log_prior_takes_float32_log_softmax(self):
        logs = torch.randn(1000).log_softmax(0)
        torch.testing.assert_close(as_log_prior(logs, 1000).float(), logs)
        torch.testing.assert_close(as_log_prior(logs.numpy(), 1000).float(), logs)
