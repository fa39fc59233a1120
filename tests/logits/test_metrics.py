"""Accuracies, their intervals, calibration, the paired test and the spread over seeds."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torchmetrics.functional.classification as tm
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sk

from dualtail.errors import InputError
from dualtail.logits.calibration import (
    classwise_calibration_error,
    expected_calibration_error,
    reliability_curve,
    reliability_from,
)
from dualtail.logits.comparison import PairedTest, paired_test, summarize_seeds
from dualtail.logits.groups import GROUP_NAMES, ClassGroups
from dualtail.logits.intervals import (
    INTERVALS,
    correlation_interval,
    difference_interval,
    mean_interval,
    proportion_interval,
    weighted_mean_interval,
)
from dualtail.logits.metrics import (
    ClassTable,
    Evaluation,
    GroupAccuracy,
    Tally,
    class_accuracy,
    evaluate,
    geometric_mean,
    harmonic_mean,
    top_k_accuracy,
)


def draw(n: int = 600, classes: int = 12, seed: int = 0, signal: float = 1.5, absent: tuple[int, ...] = ()):
    """Return logits ``(n, C)`` float32 that often favour the label, and unevenly many labels of each class."""
    rng = np.random.default_rng(seed)
    chances = np.linspace(1, 4, classes)
    chances[list(absent)] = 0
    labels = rng.choice(classes, n, p=chances / chances.sum())
    logits = rng.normal(size=(n, classes)).astype(np.float32)
    logits[np.arange(n), labels] += signal
    return logits, labels


def same_figures(one: object, other: object) -> bool:
    """Whether two JSON trees agree up to rounding."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same_figures(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same_figures, one, other))
    return one == pytest.approx(other, abs=1e-6)


def groups_of(index: list[int], kind: str = "D") -> ClassGroups:
    return ClassGroups(torch.tensor(index), kind)


D_GROUPS = groups_of([0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2])
P_GROUPS = groups_of([0, 1, 2, 2, 0, 1, 2, 2, 0, 0, 2, 2], "P")


class TestAgainstOtherLibraries:
    def test_scikit_learn(self):
        logits, labels = draw()
        ours, predicted = evaluate(logits, labels), logits.argmax(1)
        assert ours.overall == pytest.approx(sk.accuracy_score(labels, predicted), abs=1e-12)
        assert ours.macro == pytest.approx(sk.balanced_accuracy_score(labels, predicted), abs=1e-12)
        assert ours.macro_f1 == pytest.approx(sk.f1_score(labels, predicted, average="macro"), abs=1e-12)
        assert ours.top5 == pytest.approx(sk.top_k_accuracy_score(labels, logits, k=5), abs=1e-12)
        probabilities = torch.softmax(torch.tensor(logits), 1).numpy()
        assert ours.nll == pytest.approx(sk.log_loss(labels, probabilities), abs=1e-6)
        np.testing.assert_allclose(
            ours.per_class.accuracy, sk.recall_score(labels, predicted, average=None), atol=1e-12
        )

    def test_scikit_learn_with_an_absent_class(self):
        logits, labels = draw(absent=(3,))
        present = np.unique(labels)
        ours = evaluate(logits, labels)
        expected = sk.f1_score(labels, logits.argmax(1), labels=present, average="macro")
        assert ours.macro_f1 == pytest.approx(expected, abs=1e-12)

    @pytest.mark.parametrize("bins", [1, 10, 15])
    def test_torchmetrics(self, bins):
        logits, labels = draw()
        z, y = torch.tensor(logits), torch.tensor(labels)
        ece = tm.multiclass_calibration_error(z.softmax(1), y, 12, n_bins=bins)
        assert expected_calibration_error(logits, labels, bins) == pytest.approx(float(ece), abs=1e-6)
        macro = tm.multiclass_accuracy(z, y, 12, average="macro", top_k=1)
        assert evaluate(z, y).macro == pytest.approx(float(macro), abs=1e-6)
        assert top_k_accuracy(z, y, 3) == pytest.approx(
            float(tm.multiclass_accuracy(z, y, 12, average="micro", top_k=3)), abs=1e-6
        )

    def test_classwise_error_is_the_mean_of_each_classs_own(self):
        logits, labels = draw(n=200, classes=4)
        probabilities = torch.softmax(torch.tensor(logits).double(), 1).numpy()
        total = 0.0
        for c in range(4):
            place = np.ceil(probabilities[:, c] * 10).astype(int) - 1
            for b in range(10):
                rows = place == b
                total += abs(probabilities[rows, c].sum() - (labels[rows] == c).sum())
        assert classwise_calibration_error(logits, labels, 10) == pytest.approx(total / 4 / 200, abs=1e-6)


class TestEvaluate:
    def test_groups_are_means_over_classes(self):
        logits, labels = draw()
        ours = evaluate(logits, labels, d_groups=D_GROUPS, p_groups=P_GROUPS)
        accuracy = ours.per_class.accuracy
        for name in GROUP_NAMES:
            members = D_GROUPS.mask(name).numpy()
            group = ours.d_groups[name]
            assert group.accuracy == pytest.approx(accuracy[members].mean(), abs=1e-12)
            assert group.n == np.isin(labels, np.flatnonzero(members)).sum()
            assert group.ci[0] < group.accuracy < group.ci[1]
        both = D_GROUPS.mask("few").numpy() & P_GROUPS.mask("few").numpy()
        assert ours.tail_tail is ours.cross["few"]["few"]
        assert ours.tail_tail.accuracy == pytest.approx(accuracy[both].mean(), abs=1e-12)
        assert ours.tail_tail.classes == both.sum() == 2

    def test_cells_of_the_cross_table_make_up_the_groups(self):
        logits, labels = draw()
        ours = evaluate(logits, labels, d_groups=D_GROUPS, p_groups=P_GROUPS)
        for d in GROUP_NAMES:
            row = ours.cross[d].values()
            assert sum(cell.n for cell in row) == ours.d_groups[d].n
            assert sum(cell.classes for cell in row) == ours.d_groups[d].classes
            weighted = sum(cell.accuracy * cell.classes for cell in row if cell.classes)
            assert weighted / ours.d_groups[d].classes == pytest.approx(ours.d_groups[d].accuracy)

    def test_an_empty_cell_has_no_accuracy(self):
        logits, labels = draw()
        cell = evaluate(logits, labels, d_groups=D_GROUPS, p_groups=P_GROUPS).cross["few"]["medium"]
        assert cell.to_dict() == {"accuracy": None, "classes": 0, "absent": 0, "n": 0, "ci": None}

    def test_absent_classes_are_left_out_and_said(self):
        logits, labels = draw(absent=(0, 5))
        ours = evaluate(logits, labels, d_groups=D_GROUPS)
        assert ours.absent_classes == (0, 5)
        assert ours.d_groups["many"].absent == 1
        assert ours.macro == pytest.approx(np.nanmean(ours.per_class.accuracy))
        assert np.isnan(ours.per_class.accuracy[[0, 5]]).all()
        assert ours.per_class.predicted[0] > 0
        assert "2 of them absent" in str(ours)

    def test_dictionary_is_plain_json_with_the_contracts_keys(self):
        logits, labels = draw(absent=(2,))
        told = evaluate(logits, labels, d_groups=D_GROUPS, p_groups=P_GROUPS, split="val").to_dict()
        assert json.loads(json.dumps(told, allow_nan=False)) == told
        contract = ["split", "n", "overall", "macro", "macro_f1", "worst", "nll", "ece"]
        assert {*contract, "d_groups", "p_groups", "cross", "tail_tail", "top5"} <= told.keys()
        assert told["split"] == "val"
        assert told["cross"]["few"]["few"] == told["tail_tail"]
        assert told["per_class"]["accuracy"][2] is None

    def test_top5_needs_more_than_five_classes(self):
        logits, labels = draw(classes=5)
        assert "top5" not in evaluate(logits, labels).to_dict()

    def test_ties_go_to_the_first_class(self):
        logits = np.zeros((12, 12), dtype=np.float32)
        ours = evaluate(logits, np.arange(12))
        assert ours.per_class.correct.tolist() == [1] + [0] * 11
        assert ours.top5 == 5 / 12
        assert top_k_accuracy(logits, np.arange(12), 7) == 7 / 12

    def test_printed_in_per_cent(self):
        text = str(evaluate([[1.0, 0.0], [1.0, 0.0]], [0, 1], d_groups=groups_of([0, 2])))
        assert "overall 50.00 [" in text
        assert "D-Medium -" in text

    def test_batches_add_up(self):
        logits, labels = draw(n=500)
        tally = Tally(12)
        for part in torch.arange(500).split(37):
            tally.add(torch.tensor(logits)[part], torch.tensor(labels)[part])
        assert same_figures(tally.evaluation().to_dict(), evaluate(logits, labels).to_dict())

    def test_kinds_and_leading_dimensions(self):
        logits, labels = draw(n=60)
        expected = evaluate(logits, labels).to_dict()
        for z, y in (
            (torch.tensor(logits), torch.tensor(labels)),
            (logits.reshape(3, 4, 5, 12), labels.reshape(3, 4, 5)),
            (logits.tolist(), labels.tolist()),
            (logits, labels.astype(np.int16)),
        ):
            assert same_figures(evaluate(z, y).to_dict(), expected)

    def test_a_read_only_array_is_read_without_a_copy_or_warning(self, recwarn):
        logits, labels = draw(n=60)
        logits.flags.writeable = False
        evaluate(logits, labels)
        assert not recwarn.list

    def test_half_precision_is_widened(self):
        logits, labels = draw()
        half = logits.astype(np.float16)
        assert evaluate(half, labels).to_dict() == evaluate(half.astype(np.float32), labels).to_dict()

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"logits": np.zeros((5, 1))}, "at least 2 classes"),
            ({"logits": np.zeros((0, 3)), "labels": np.zeros(0, int)}, "no samples"),
            ({"logits": np.zeros((5, 3), int)}, "expected floating point"),
            ({"logits": np.full((5, 3), np.nan)}, "not finite"),
            ({"labels": np.zeros(4, int)}, r"expected \(5,\)"),
            ({"labels": np.full(5, 3)}, "expected values from 0 to 2"),
            ({"labels": np.full(5, -100)}, "labels holds -100"),
            ({"labels": np.zeros(5)}, "expected integers"),
            ({"d_groups": groups_of([0, 1])}, "d_groups has 2 classes"),
            ({"interval": "wilsen"}, "did you mean 'wilson'"),
            ({"confidence": 95}, "confidence is 95"),
            ({"bins": 0}, "at least 1"),
            ({"zero_floor": 2.0}, "zero_floor"),
        ],
    )
    def test_mistakes_are_told(self, change, message):
        arguments = {"logits": np.zeros((5, 3)), "labels": np.zeros(5, int)} | change
        with pytest.raises(InputError, match=message):
            evaluate(arguments.pop("logits"), arguments.pop("labels"), **arguments)

    @settings(max_examples=25, deadline=None)
    @given(seed=st.integers(0, 2**16), shift=st.floats(-50, 50))
    def test_neither_a_shift_nor_the_order_of_classes_or_samples_matters(self, seed, shift):
        logits, labels = draw(n=40, classes=6, seed=seed)
        logits = logits.astype(np.float64)
        rng = np.random.default_rng(seed)
        order, rows = rng.permutation(6), rng.permutation(40)
        moved = (logits + shift * rng.normal(size=(40, 1)))[rows][:, order]
        before = evaluate(logits, labels)
        after = evaluate(moved, np.argsort(order)[labels[rows]])
        np.testing.assert_allclose(after.per_class.accuracy, before.per_class.accuracy[order])
        for name in ("overall", "macro", "macro_f1", "worst", "harmonic", "geometric", "nll", "top5"):
            assert getattr(after, name) == pytest.approx(getattr(before, name), abs=1e-9), name
        for name in ("ece", "classwise_ece"):
            assert getattr(after, name) == pytest.approx(getattr(before, name), abs=1e-9), name

    def test_class_accuracy(self):
        logits, labels = draw(absent=(1,))
        np.testing.assert_array_equal(
            class_accuracy(logits, labels), evaluate(logits, labels).per_class.accuracy
        )


def bare(n: int = 60, **options):
    """Return an evaluation with both groupings and an absent class."""
    logits, labels = draw(n=n, absent=(3,))
    return evaluate(logits, labels, d_groups=D_GROUPS, p_groups=P_GROUPS, **options)


class TestSavedAndRead:
    @pytest.mark.parametrize("interval", INTERVALS)
    def test_an_evaluation_reads_back_as_it_was(self, interval):
        saved = bare(interval=interval, confidence=0.9)
        told = json.loads(json.dumps(saved.to_dict(), allow_nan=False))
        read = Evaluation.from_dict(told)
        assert read.to_dict() == told
        assert list(read.to_dict()) == list(told)
        assert str(read) == str(saved)
        for name in Evaluation.__dataclass_fields__:
            if name != "per_class":
                assert getattr(read, name) == getattr(saved, name), name
        for name in ClassTable.__dataclass_fields__:
            np.testing.assert_array_equal(getattr(read.per_class, name), getattr(saved.per_class, name))

    def test_without_groups_and_with_few_classes(self):
        logits, labels = draw(classes=4)
        for told in (evaluate(logits, labels).to_dict(), bare().regrouped(p_groups=P_GROUPS).to_dict()):
            assert Evaluation.from_dict(told).to_dict() == told

    def test_the_classes_may_be_left_out(self):
        whole = bare()
        told = whole.to_dict(per_class=False)
        assert told == {key: value for key, value in whole.to_dict().items() if key != "per_class"}
        read = Evaluation.from_dict(told)
        assert read.per_class is None
        assert read.to_dict() == told
        assert read.by_group() == whole.by_group()
        assert str(read) == str(whole)
        with pytest.raises(InputError, match="saved without its classes"):
            read.regrouped(D_GROUPS)

    @pytest.mark.parametrize("fault", ["missing", "unknown"])
    def test_what_was_not_saved_so_is_refused(self, fault):
        told = bare().to_dict()
        for part in (told, told["per_class"], told["d_groups"]["few"]):
            changed = dict(part)
            if fault == "missing":
                del changed["n"]
            else:
                changed["nn"] = 1
            read = {id(told): Evaluation, id(told["per_class"]): ClassTable}.get(id(part), GroupAccuracy)
            with pytest.raises(InputError, match=r"'nn?' is missing or unknown"):
                read.from_dict(changed)

    def test_a_paired_test_reads_back_as_it_was(self):
        test = paired_test([0, 0, 1, 1, 1], [1, 1, 1, 0, 0], [0, 0, 1, 1, 1], measure="macro")
        assert PairedTest.from_dict(json.loads(json.dumps(test.to_dict()))) == test


class TestRegrouped:
    @pytest.mark.parametrize("interval", INTERVALS)
    def test_is_the_evaluation_with_those_groups(self, interval):
        logits, labels = draw(absent=(3,))
        first = evaluate(logits, labels, d_groups=P_GROUPS, interval=interval)
        read = Evaluation.from_dict(first.to_dict())
        for groups in ({}, {"d_groups": D_GROUPS}, {"d_groups": D_GROUPS, "p_groups": P_GROUPS}):
            expected = evaluate(logits, labels, interval=interval, **groups).to_dict()
            assert first.regrouped(**groups).to_dict() == expected
            assert read.regrouped(**groups).to_dict() == expected
        drawn = {"resamples": 50, "seed": 3}
        expected = evaluate(logits, labels, interval=interval, d_groups=D_GROUPS, **drawn)
        assert first.regrouped(D_GROUPS, **drawn).d_groups == expected.d_groups

    def test_groups_of_other_classes_are_refused(self):
        with pytest.raises(InputError, match="p_groups has 2 classes; expected 12"):
            bare().regrouped(p_groups=groups_of([0, 1], "P"))

    def test_by_group_has_a_key_for_every_set_of_classes(self):
        found = bare()
        flat = found.by_group()
        cells = [f"{d}.{p}" for d in GROUP_NAMES for p in GROUP_NAMES]
        groups = [f"{kind}_{name}" for kind in "dp" for name in GROUP_NAMES]
        assert list(flat) == ["overall", *groups, *cells, "tail_tail"]
        assert flat["overall"] == GroupAccuracy(found.overall, 12, 1, found.n, found.overall_ci)
        assert flat["p_few"] is found.p_groups["few"]
        assert flat["many.few"] is found.cross["many"]["few"]
        assert flat["tail_tail"] is flat["few.few"]
        assert list(found.regrouped(p_groups=P_GROUPS).by_group()) == ["overall", *groups[3:]]
        assert list(found.regrouped().by_group()) == ["overall"]


class TestMeans:
    def test_scipy(self):
        values = np.random.default_rng(0).uniform(0.01, 1, 300)
        assert harmonic_mean(values) == pytest.approx(stats.hmean(values))
        assert geometric_mean(values) == pytest.approx(stats.gmean(values))

    def test_thousands_of_classes_do_not_underflow(self):
        assert geometric_mean(np.full(100_000, 1e-4)) == pytest.approx(1e-4)

    def test_a_zero_makes_both_zero_unless_lifted(self):
        assert harmonic_mean([1e-320, 1.0]) == pytest.approx(0)  # its inverse overflows
        assert harmonic_mean([0, 1.0]) == geometric_mean([0, 1.0]) == 0
        assert harmonic_mean([0, 1.0], 0.5) == pytest.approx(2 / 3)
        assert geometric_mean([0, 1.0], 0.25) == pytest.approx(0.5)

    @given(st.lists(st.floats(0, 1), min_size=1, max_size=50))
    def test_in_order(self, values):
        assert min(values) - 1e-9 <= harmonic_mean(values) <= geometric_mean(values) + 1e-9
        assert geometric_mean(values) <= np.mean(values) + 1e-9

    @pytest.mark.parametrize("values", [[], [1.2], [float("nan")], [[0.5]]])
    def test_what_is_no_list_of_fractions_is_refused(self, values):
        with pytest.raises(InputError):
            geometric_mean(values)


class TestIntervals:
    def test_scipy(self):
        for k, n in ((0, 7), (3, 10), (10, 10), (55, 80)):
            for method, theirs in (("wilson", "wilson"), ("clopper_pearson", "exact")):
                low, high = proportion_interval(k, n, 0.9, method)
                expected = stats.binomtest(k, n).proportion_ci(0.9, theirs)
                assert (float(low), float(high)) == pytest.approx((expected.low, expected.high), abs=1e-9)

    @pytest.mark.parametrize("method", ["wilson", "clopper_pearson"])
    def test_one_class_is_one_proportion(self, method):
        for k, n in ((0, 5), (4, 9), (9, 9), (1, 1)):
            low, high = proportion_interval(k, n, 0.95, method)
            assert mean_interval([k, 0], [n, 0], 0.95, method) == pytest.approx((float(low), float(high)))

    @given(
        st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=12),
        st.sampled_from(INTERVALS),
    )
    def test_bounds_are_fractions_around_the_estimate(self, pairs, method):
        n = np.array([sum(pair) for pair in pairs])
        correct = np.array([pair[0] for pair in pairs])
        bounds = mean_interval(correct, n, 0.95, method, resamples=200)
        if not n.any():
            assert bounds is None
            return
        estimate = (correct[n > 0] / n[n > 0]).mean()
        assert 0 <= bounds[0] <= bounds[1] <= 1
        if method != "bootstrap":
            assert bounds[0] <= estimate + 1e-12
            assert bounds[1] >= estimate - 1e-12

    def test_no_errors_seen_is_as_uncertain_as_one_proportion(self):
        low, high = mean_interval(np.full(50, 10), np.full(50, 10))
        assert low == pytest.approx(float(proportion_interval(500, 500)[0]))
        assert high == 1

    # Classes differ in how hard they are (a Beta) and in how many samples they have. The truth is the mean of the
    # very classes at hand. 3,000 repetitions put three standard errors at 0.012.
    CASES = (
        pytest.param(1, [30], (8, 2), id="one class"),
        pytest.param(10, [5], (1, 1), id="few samples"),
        pytest.param(10, [20], (8, 2), id="ten classes"),
        pytest.param(50, [2], (1, 1), id="two samples each"),
        pytest.param(100, [20], (0.3, 0.1), id="mostly all or nothing"),
        pytest.param(100, [50], (40, 1), id="nearly all right"),
        pytest.param(100, range(3, 33), (8, 2), id="uneven"),
    )

    @staticmethod
    def coverage(method, classes, sizes, spread, repetitions=3000):
        rng = np.random.default_rng(7)
        chances, n = rng.beta(*spread, classes), np.resize(list(sizes), classes)
        truth, hits = chances.mean(), 0
        for _ in range(repetitions):
            low, high = mean_interval(rng.binomial(n, chances), n, 0.95, method, resamples=400)
            hits += low <= truth <= high
        return hits / repetitions

    @pytest.mark.parametrize(("classes", "sizes", "spread"), CASES)
    def test_wilson_covers_at_the_nominal_rate(self, classes, sizes, spread):
        # Not above it either: the interval of pooled samples covers in up to 100 % where classes differ.
        assert 0.935 <= self.coverage("wilson", classes, sizes, spread) <= 0.985

    @pytest.mark.parametrize(("classes", "sizes", "spread"), CASES)
    def test_clopper_pearson_covers_at_least_at_the_nominal_rate(self, classes, sizes, spread):
        assert self.coverage("clopper_pearson", classes, sizes, spread, 2000) >= 0.94

    def test_bootstrap_covers_with_many_classes(self):
        assert 0.92 <= self.coverage("bootstrap", 100, [20], (8, 2), 400) <= 0.98

    def test_bootstrap_has_the_unbiased_spread(self):
        rng = np.random.default_rng(3)
        n = np.full(200, 3)
        correct = rng.binomial(n, 0.6)
        rate = correct / n
        error = np.sqrt((rate * (1 - rate) / (n - 1)).sum()) / 200
        low, high = mean_interval(correct, n, 0.95, "bootstrap")
        assert high - low == pytest.approx(2 * 1.96 * error, rel=0.08)

    def test_evaluate_uses_what_is_asked(self):
        logits, labels = draw(n=300)
        results = {
            name: evaluate(logits, labels, d_groups=D_GROUPS, interval=name).d_groups["few"].ci
            for name in INTERVALS
        }
        width = {name: high - low for name, (low, high) in results.items()}
        assert width["clopper_pearson"] > width["wilson"]
        assert width["bootstrap"] == pytest.approx(width["wilson"], rel=0.15)
        wider = evaluate(logits, labels, d_groups=D_GROUPS, confidence=0.99).d_groups["few"].ci
        assert wider[1] - wider[0] > width["wilson"]


class TestCalibration:
    def test_curve(self):
        logits, labels = draw(n=2000)
        curve = reliability_curve(logits, labels, 10)
        assert curve.count.sum() == 2000
        some = curve.count > 0
        assert (curve.confidence[some] <= curve.edges[1:][some] + 1e-6).all()
        assert (curve.confidence[some] >= curve.edges[:-1][some] - 1e-6).all()
        assert curve.ece == pytest.approx(expected_calibration_error(logits, labels, 10))
        json.dumps(curve.to_dict(), allow_nan=False)

    def test_a_confidence_on_an_edge_belongs_to_the_bin_below(self):
        curve = reliability_curve(np.log([[0.5, 0.25, 0.25]]), [0], 4)
        assert curve.count.tolist() == [0, 1, 0, 0]

    def test_certainty_is_in_the_last_bin(self):
        assert reliability_curve([[1000.0, 0.0]], [0], 15).count[-1] == 1

    def test_a_calibrated_model_has_small_errors(self):
        rng = np.random.default_rng(0)
        logits = rng.normal(size=(20_000, 4)) * 2
        chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        labels = (chances.cumsum(1) < rng.uniform(size=(20_000, 1))).sum(1)
        assert expected_calibration_error(logits, labels) < 0.015
        assert classwise_calibration_error(logits, labels) < 0.015
        assert expected_calibration_error(3 * logits, labels) > 0.1
        assert classwise_calibration_error(3 * logits, labels) > 0.05


class TestReliabilityFrom:
    @staticmethod
    def pairs(n=400):
        logits, labels = draw(n=n)
        confidence, prediction = torch.tensor(logits).softmax(1).max(1)
        return logits, labels, confidence, prediction == torch.tensor(labels)

    @pytest.mark.parametrize("bins", [1, 10, 15])
    def test_is_the_curve_of_the_logits(self, bins):
        logits, labels, confidence, hits = self.pairs()
        expected = reliability_curve(logits, labels, bins)
        found = reliability_from(confidence.numpy(), hits.numpy(), bins)
        assert found.to_dict() == expected.to_dict()

    @pytest.mark.parametrize("bins", [1, 10, 15])
    def test_numpys_histogram(self, bins):
        *_, confidence, hits = self.pairs()
        confidence = torch.cat([confidence, torch.tensor([0.0, 1.0, 0.5, 0.25])])
        hits = torch.cat([hits, torch.tensor([True, False, True, True])])
        edges = np.linspace(0, 1, bins + 1)
        values = confidence.double().numpy()
        place = np.clip(np.searchsorted(edges, values, side="left") - 1, 0, bins - 1)
        curve = reliability_from(confidence, hits, bins)
        count = np.bincount(place, minlength=bins)
        with np.errstate(invalid="ignore"):
            np.testing.assert_array_equal(
                curve.confidence, np.bincount(place, weights=values, minlength=bins) / count
            )
            np.testing.assert_array_equal(
                curve.accuracy, np.bincount(place, weights=hits.numpy(), minlength=bins) / count
            )
        np.testing.assert_array_equal(curve.count, count)
        np.testing.assert_array_equal(curve.edges, edges)

    def test_no_samples_and_bad_values(self):
        assert reliability_from(np.zeros(0), np.zeros(0, bool), 3).count.tolist() == [0, 0, 0]
        for confidence, hits in (
            ([1.5], [True]),
            ([float("nan")], [True]),
            ([0.5], [1]),
            ([0.5], [True, False]),
        ):
            with pytest.raises(InputError):
                reliability_from(confidence, hits)


class TestIntervalsOfWhatIsComputed:
    def test_newcombes_example(self):
        # Table II (a) of Newcombe 1998: 56 of 70 and 48 of 80, method 10.
        bounds = [tuple(float(x) for x in proportion_interval(*pair)) for pair in ((56, 70), (48, 80))]
        low, high = difference_interval(56 / 70, bounds[0], 48 / 80, bounds[1])
        assert (low, high) == pytest.approx((0.0524, 0.3339), abs=5e-5)

    def test_a_mean_covers_at_the_nominal_rate(self):
        rng = np.random.default_rng(0)
        chances, n, hits = np.array([0.95, 0.6, 0.85]), np.array([40, 60, 100]), 0
        for _ in range(2000):
            correct = rng.binomial(n, chances)
            bounds = list(zip(*proportion_interval(correct, n), strict=True))
            low, high = weighted_mean_interval(correct / n, bounds, [1, 2, 3])
            hits += low <= chances @ np.array([1, 2, 3]) / 6 <= high
        assert 0.935 <= hits / 2000 <= 0.97

    def test_one_estimate_keeps_its_interval(self):
        assert weighted_mean_interval([0.9], [(0.8, 0.95)], [7]) == pytest.approx((0.8, 0.95))
        low, high = difference_interval(0.9, (0.8, 0.95), 0.4, (0.4, 0.4))
        assert (low, high) == pytest.approx((0.4, 0.55))

    def test_correlations(self):
        low, high = correlation_interval(1.0, 50)
        assert 0.99 < low < high <= 1
        assert correlation_interval(-1.0, 50) == (-high, -low)
        assert correlation_interval(float("nan"), 50) == correlation_interval(0.9, 4) == (-1.0, 1.0)
        with pytest.raises(InputError, match="confidence is 95"):
            correlation_interval(0.5, 10, 95)


class TestPairedTest:
    def test_predictions_that_never_differ_are_not_known_exactly(self):
        labels = np.repeat(np.arange(6), 3)
        macro = paired_test(labels, labels, labels, measure="macro")
        assert macro.ci == paired_test(labels, labels, labels).ci
        assert macro.ci[0] < -0.05
        assert macro.ci[1] > 0.05

    def test_mcnemar_is_the_binomial_test(self):
        rng = np.random.default_rng(0)
        labels = rng.integers(0, 5, 200)
        a, b = (np.where(rng.uniform(size=200) < chance, labels, 5) for chance in (0.8, 0.7))
        test = paired_test(a, b, labels)
        assert test.method == "mcnemar"
        assert test.p_value == pytest.approx(stats.binomtest(test.only_a, test.only_a + test.only_b).pvalue)
        assert test.difference == pytest.approx((a == labels).mean() - (b == labels).mean())
        assert test.accuracy_a - test.accuracy_b == pytest.approx(test.difference)
        assert test.ci[0] < test.difference < test.ci[1]
        json.dumps(test.to_dict(), allow_nan=False)

    def test_the_same_prediction_is_no_different(self):
        for measure in ("overall", "macro"):
            test = paired_test([0, 1, 1], [0, 1, 1], [0, 0, 1], measure=measure)
            assert test.p_value == 1
            assert test.ci[0] <= test.difference == 0 <= test.ci[1]

    def test_swapping_turns_the_sign(self):
        logits, labels = draw(n=300)
        other, _ = draw(n=300, seed=0, signal=0.7)
        for measure in ("overall", "macro"):
            one = paired_test(logits, other, labels, measure=measure)
            two = paired_test(other, logits, labels, measure=measure)
            assert one.difference == -two.difference
            assert one.p_value == pytest.approx(two.p_value, rel=0.5)
            assert one.p_value < 0.05

    def test_logits_are_read_as_their_predictions(self):
        logits, labels = draw(n=100)
        other, _ = draw(n=100, seed=3)
        assert paired_test(logits, other, labels) == paired_test(logits.argmax(1), other.argmax(1), labels)
        stacked = paired_test(
            logits.reshape(10, 10, 12), other.argmax(1).reshape(10, 10), labels.reshape(10, 10)
        )
        assert stacked == paired_test(logits, other, labels)

    def test_macro_weighs_classes_equally(self):
        labels = np.array([0] * 90 + [1] * 10)
        a = np.where(labels == 1, 1, 1)  # right on the small class only
        b = np.zeros(100, int)  # right on the large class only
        assert paired_test(a, b, labels, measure="macro").difference == 0
        assert paired_test(a, b, labels).difference == pytest.approx(-0.8)

    def test_macro_of_balanced_classes_is_exact(self):
        rng = np.random.default_rng(1)
        labels = np.repeat(np.arange(10), 20)
        a, b = (np.where(rng.uniform(size=200) < chance, labels, 10) for chance in (0.8, 0.7))
        macro, overall = (paired_test(a, b, labels, measure=m) for m in ("macro", "overall"))
        assert macro.p_value == overall.p_value
        assert macro.method == "mcnemar"
        assert macro.ci == pytest.approx(overall.ci, abs=0.02)

    def test_permutations_agree_with_the_exact_test_where_both_apply(self):
        rng = np.random.default_rng(2)
        labels = np.append(np.repeat(np.arange(10), 20), 0)  # one sample more makes it uneven
        a, b = (np.where(rng.uniform(size=201) < chance, labels, 10) for chance in (0.78, 0.7))
        macro, overall = (paired_test(a, b, labels, measure=m) for m in ("macro", "overall"))
        assert macro.method == "permutation"
        assert macro.p_value == pytest.approx(overall.p_value, rel=0.25)

    def test_only_the_classes_asked_for(self):
        logits, labels = draw(n=400)
        other, _ = draw(n=400, seed=5)
        mask = D_GROUPS.mask("few")
        keep = mask.numpy()[labels]
        assert paired_test(logits, other, labels, classes=mask) == paired_test(
            logits[keep], other[keep], labels[keep]
        )

    @pytest.mark.parametrize("measure", ["overall", "macro"])
    def test_error_rate_and_coverage(self, measure):
        rng = np.random.default_rng(11)
        n = np.arange(4, 24)
        labels = np.repeat(np.arange(20), n)
        chances = rng.beta(4, 2, 20)[labels]
        rejected = covered = 0
        for i in range(400):
            a, b = (np.where(rng.uniform(size=len(labels)) < chances, labels, 20) for _ in range(2))
            test = paired_test(a, b, labels, measure=measure, resamples=400, seed=i)
            rejected += test.p_value <= 0.05
            covered += test.ci[0] <= 0 <= test.ci[1]
        assert rejected / 400 <= 0.075
        assert 0.91 <= covered / 400 <= 0.985

    @pytest.mark.parametrize(
        ("a", "options", "message"),
        [
            ([0, 1], {}, r"a has shape \(2,\)"),
            ([0, 1, 1], {"measure": "micro"}, "unknown measure 'micro'"),
            ([0, 1, 1], {"classes": torch.tensor([False, False])}, "no samples"),
            ([0, 1, 1], {"classes": torch.tensor([True])}, "1 entries"),
            ([0, 1, 1], {"classes": [0, 1]}, r"expected \(C,\) bool"),
            ([True, False, True], {}, "dtype"),
        ],
    )
    def test_mistakes_are_told(self, a, options, message):
        with pytest.raises(InputError, match=message):
            paired_test(a, [0, 1, 1], [0, 1, 1], **options)


class TestSummarizeSeeds:
    def test_scipy(self):
        values = np.array([0.71, 0.74, 0.69, 0.75])
        summary = summarize_seeds(values, 0.9)
        expected = stats.t.interval(0.9, 3, values.mean(), stats.sem(values))
        assert summary.ci == pytest.approx(expected)
        assert summary.std == pytest.approx(values.std(ddof=1))

    def test_one_seed_has_no_spread(self):
        summary = summarize_seeds([0.5])
        assert (summary.mean, summary.std, summary.ci, summary.n) == (0.5, None, None, 1)

    def test_dictionaries_are_summarised_leaf_by_leaf(self):
        results = []
        for seed in range(3):
            logits, labels = draw(seed=seed)
            results.append(evaluate(logits, labels, d_groups=D_GROUPS, p_groups=P_GROUPS).to_dict())
        summary = summarize_seeds(results)
        assert summary["tail_tail"]["accuracy"] == summarize_seeds(
            [r["tail_tail"]["accuracy"] for r in results]
        )
        assert "split" not in summary
        assert "accuracy" not in summary["cross"]["few"]["medium"]  # empty in every run

    @pytest.mark.parametrize("values", [[], ["0.5"], [0.5, {}], [{}, 0.5], [float("nan")]])
    def test_mistakes_are_told(self, values):
        with pytest.raises(InputError):
            summarize_seeds(values)
