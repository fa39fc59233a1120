"""Nearest neighbours against brute force, their votes, and measures of how alike representations and members are."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk
from sklearn.neighbors import KNeighborsClassifier

from dualtail.errors import InputError
from dualtail.logits import neighbors
from dualtail.logits.groups import ClassGroups
from dualtail.logits.metrics import evaluate
from dualtail.logits.neighbors import (
    disagreement,
    error_correlation,
    knn_accuracy,
    knn_predict,
    knn_scores,
    linear_cka,
    nearest_neighbors,
)


def clusters(n: int, dim: int = 32, classes: int = 8, seed: int = 0, spread: float = 0.7):
    """Return features ``(n, dim)`` float32 around one direction a class, of varied length, and sorted labels."""
    rng = np.random.default_rng(seed)
    means = np.random.default_rng(99).normal(size=(classes, dim))
    labels = np.sort(rng.integers(0, classes, n))
    features = means[labels] + spread * rng.normal(size=(n, dim))
    return (features * rng.uniform(0.1, 10, (n, 1))).astype(np.float32), labels


def cosines(queries: np.ndarray, bank: np.ndarray) -> np.ndarray:
    def unit(x):
        length = np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
        return x / np.where(length > 0, length, 1)

    return unit(queries) @ unit(bank).T


def assert_nearest(bank, queries, k, tolerance=1e-6):
    """The answer holds k different rows whose cosines are the k largest, in order."""
    similarity, index = nearest_neighbors(bank, queries, k)
    every = cosines(bank if queries is None else queries, bank)
    if queries is None:
        np.fill_diagonal(every, -np.inf)
    expected = -np.sort(-every, axis=1)[:, :k]
    np.testing.assert_allclose(similarity, expected, atol=tolerance)
    np.testing.assert_allclose(np.take_along_axis(every, index, 1), expected, atol=tolerance)
    assert all(len(set(row)) == k for row in index.tolist())


class TestNearest:
    @pytest.mark.parametrize("n", [700, 2048, 5000])
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_brute_force(self, n, dtype):
        bank, _ = clusters(n)
        queries, _ = clusters(150, seed=1)
        assert_nearest(bank.astype(dtype), queries.astype(dtype), 20)

    def test_leave_one_out(self):
        bank, _ = clusters(1500)
        bank[7] = bank[8]  # a twin is a neighbour, oneself is not
        assert_nearest(bank, None, 10)
        similarity, index = nearest_neighbors(bank, None, 10)
        assert index[7, 0] == 8
        assert similarity[7, 0] == pytest.approx(1)

    def test_unstructured_features(self):
        rng = np.random.default_rng(0)
        bank, queries = (rng.normal(size=(n, 64)).astype(np.float32) for n in (3000, 100))
        assert_nearest(bank, queries, 30)

    def test_features_in_a_narrow_cone_with_outlying_dimensions(self):
        bank, _ = clusters(3000, dim=64)
        queries, _ = clusters(100, dim=64, seed=1)
        for features in (bank, queries):
            features /= np.linalg.norm(features, axis=1, keepdims=True)
            features[:, 3] += 5
            features[:, 5] *= 1e-6
        assert_nearest(bank, queries, 25)

    def test_many_equal_rows(self):
        bank, _ = clusters(1000)
        queries, _ = clusters(80, seed=1)
        queries[0] = bank[0]
        assert_nearest(np.concatenate([bank[:500], np.repeat(bank[:1], 900, 0)]), queries, 20)

    def test_neighbours_on_the_far_side(self):
        bank, _ = clusters(2048, classes=1, spread=0.2)
        queries, _ = clusters(100, classes=1, spread=0.2, seed=1)
        assert_nearest(bank, -queries, 15)

    def test_rows_of_zeros_are_similar_to_nothing(self):
        bank, _ = clusters(1000)
        queries, _ = clusters(80, seed=1)
        bank[:300] = 0
        queries[0] = 0
        queries[1] = 1e-44
        similarity, _ = nearest_neighbors(bank, queries, 15)
        assert (similarity[:2] == 0).all()
        assert_nearest(bank, queries[2:], 15)

    def test_chunks_do_not_matter(self, monkeypatch):
        bank, _ = clusters(3000)
        queries, _ = clusters(300, seed=1)
        before = nearest_neighbors(bank, queries, 10)
        monkeypatch.setattr(neighbors, "_SCORES", 1 << 17)
        after = nearest_neighbors(bank, queries, 10)
        np.testing.assert_allclose(before[0], after[0], atol=1e-6)
        assert (before[1] == after[1]).mean() > 0.999

    def test_the_whole_bank(self):
        bank, _ = clusters(40)
        assert_nearest(bank, bank[:5], 40)
        assert_nearest(bank, None, 39)

    def test_no_queries(self):
        bank, labels = clusters(40)
        assert nearest_neighbors(bank, bank[:0], 3)[1].shape == (0, 3)
        assert knn_scores(bank, labels, bank[:0], 8, k=3).shape == (0, 8)
        assert knn_predict(bank, labels, bank[:0], 8, k=3).shape == (0,)

    def test_answers_in_kind(self):
        bank, labels = (torch.tensor(x) for x in clusters(100))
        similarity, index = nearest_neighbors(bank.half(), bank[:3].half(), 2)
        assert isinstance(index, torch.Tensor)
        assert similarity.dtype == torch.float32
        assert isinstance(nearest_neighbors(bank.numpy(), bank[:3], 2)[0], np.ndarray)
        assert knn_scores(bank.double(), labels, bank[:3].double(), 8, k=2).dtype == torch.float64


class TestVotes:
    @staticmethod
    def one_hot_votes(bank, labels, queries, classes, k, temperature):
        every = cosines(queries, bank)
        index = np.argsort(-every, axis=1)[:, :k]
        weight = np.exp(np.take_along_axis(every, index, 1) / temperature)
        return (np.eye(classes)[labels[index]] * weight[..., None]).sum(1)

    def test_as_self_supervised_code_counts_them(self):
        bank, labels = clusters(500)
        queries, _ = clusters(60, seed=1)
        expected = self.one_hot_votes(bank, labels, queries, 8, 20, 0.1)
        votes = knn_scores(bank, labels, queries, 8, k=20, temperature=0.1)
        np.testing.assert_allclose(votes, expected, rtol=1e-4, atol=1e-2)
        np.testing.assert_array_equal(knn_predict(bank, labels, queries, 8, k=20), expected.argmax(1))

    def test_scikit_learn(self):
        bank, labels = clusters(400, spread=2.0)
        queries, _ = clusters(100, seed=1, spread=2.0)
        peer = KNeighborsClassifier(
            15, weights=lambda distance: np.exp((1 - distance) / 0.07), metric="cosine", algorithm="brute"
        ).fit(bank, labels)
        np.testing.assert_array_equal(
            knn_predict(bank, labels, queries, 8, k=15, temperature=0.07), peer.predict(queries)
        )

    def test_infinite_temperature_is_one_vote_each(self):
        bank, labels = clusters(400)
        votes = knn_scores(bank, labels, bank[:30], 8, k=25, temperature=math.inf)
        assert (votes == votes.round()).all()
        assert (votes.sum(1) == 25).all()

    def test_shares(self):
        bank, labels = clusters(400, spread=2.0)
        votes = knn_scores(bank, labels, bank[:30], 8, k=25)
        shares = knn_scores(bank, labels, bank[:30], 8, k=25, normalize=True)
        np.testing.assert_allclose(shares, votes / votes.sum(1, keepdims=True), rtol=1e-5)
        tiny = knn_scores(bank, labels, bank[:30], 8, k=25, temperature=1e-6, normalize=True)
        np.testing.assert_allclose(tiny.sum(1), 1, rtol=1e-5)

    def test_a_tie_goes_to_the_first_class(self):
        assert knn_predict(np.ones((2, 3)), [1, 0], np.ones((1, 3)), 2, k=2).tolist() == [0]

    def test_votes_are_cut_into_chunks_too(self, monkeypatch):
        bank, labels = clusters(400)
        before = knn_scores(bank, labels, bank[:50], 8, k=5)
        monkeypatch.setattr(neighbors, "_BUDGET", 24)
        np.testing.assert_array_equal(knn_scores(bank, labels, bank[:50], 8, k=5), before)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_class_order_does_not_matter(self, dtype):
        bank, labels = (torch.tensor(x) for x in clusters(300))
        order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
        votes = knn_scores(bank.to(dtype), labels, bank[:20].to(dtype), 8, k=9)
        moved = knn_scores(bank.to(dtype), order[labels], bank[:20].to(dtype), 8, k=9)
        torch.testing.assert_close(moved[:, order], votes)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"k": 11}, "k is 11 but the bank has 10 rows"),
            ({"k": 10, "queries": None}, "9 rows"),
            ({"k": 0}, "k is 0"),
            ({"temperature": 0.0}, "temperature is 0.0"),
            ({"temperature": float("nan")}, "temperature is nan"),
            ({"temperature": 0.01}, "normalize=True"),
            ({"queries": np.zeros((2, 5))}, r"expected \(Q, 4\)"),
            ({"bank": np.zeros(10)}, r"expected \(N, D\)"),
            ({"bank": np.full((10, 4), np.inf)}, "not finite"),
            ({"bank_labels": np.zeros(9, int)}, r"expected \(10,\)"),
            ({"bank_labels": np.full(10, 2)}, "expected values from 0 to 1"),
        ],
    )
    def test_mistakes_are_told(self, change, message):
        arguments = {
            "bank": np.ones((10, 4), np.float32),
            "bank_labels": np.zeros(10, int),
            "queries": np.ones((2, 4), np.float32),
            "num_classes": 2,
            "k": 3,
        }
        with pytest.raises(InputError, match=message):
            knn_scores(**(arguments | change))


class TestKnnAccuracy:
    def test_is_the_evaluation_of_the_votes(self):
        bank, labels = clusters(600, spread=2.5)
        queries, query_labels = clusters(300, seed=1, spread=2.5)
        groups = ClassGroups.from_counts(np.linspace(200, 5, 8))
        ours = knn_accuracy(bank, labels, queries, query_labels, 8, k=30, d_groups=groups, p_groups=groups)
        votes = knn_scores(bank, labels, queries, 8, k=30)
        expected = evaluate(votes, query_labels, d_groups=groups, p_groups=groups).to_dict()
        expected |= {"nll": None, "ece": None, "classwise_ece": None}
        assert ours.to_dict() == expected
        assert 0.3 < ours.overall < 1

    def test_leave_one_out(self):
        bank, labels = clusters(300, spread=2.5)
        ours = knn_accuracy(bank, labels, None, None, 8, k=10)
        right = 0
        for i in range(300):
            rest = np.arange(300) != i
            right += knn_predict(bank[rest], labels[rest], bank[i : i + 1], 8, k=10)[0] == labels[i]
        assert ours.overall == right / 300

    def test_queries_without_labels_are_refused(self):
        bank, labels = clusters(30)
        with pytest.raises(InputError, match="go together"):
            knn_accuracy(bank, labels, bank, None, 8, k=3)


class TestMembers:
    def test_disagreement(self):
        rng = np.random.default_rng(0)
        members = rng.integers(0, 4, (3, 50))
        matrix = disagreement(members)
        assert matrix[0, 2] == (members[0] != members[2]).mean()
        np.testing.assert_array_equal(matrix, matrix.T)
        assert (np.diag(matrix) == 0).all()

    def test_logits_are_read_as_their_predictions(self):
        rng = np.random.default_rng(0)
        members = rng.normal(size=(3, 5, 10, 4))
        labels = rng.integers(0, 4, (5, 10))
        np.testing.assert_array_equal(disagreement(members), disagreement(members.argmax(-1)))
        np.testing.assert_array_equal(
            error_correlation(list(torch.tensor(members)), labels),
            error_correlation(members.argmax(-1), labels),
        )

    def test_error_correlation(self):
        rng = np.random.default_rng(0)
        labels = rng.integers(0, 3, 200)
        members = np.where(rng.uniform(size=(3, 200)) < 0.6, labels, rng.integers(0, 3, (3, 200)))
        wrong = members != labels
        phi = error_correlation(members, labels)
        np.testing.assert_allclose(phi, np.corrcoef(wrong), atol=1e-12)
        assert phi[0, 1] == pytest.approx(sk.matthews_corrcoef(wrong[0], wrong[1]))
        both = error_correlation(members, labels, "double_fault")
        assert both[0, 1] == (wrong[0] & wrong[1]).mean()
        odds = ((wrong[0] & wrong[1]).sum() * (~wrong[0] & ~wrong[1]).sum()) / (
            (wrong[0] & ~wrong[1]).sum() * (~wrong[0] & wrong[1]).sum()
        )
        yule = error_correlation(members, labels, "q")
        assert yule[0, 1] == pytest.approx((odds - 1) / (odds + 1))

    def test_a_member_that_is_always_right_has_no_correlation(self):
        labels = np.array([0, 1, 1])
        assert np.isnan(error_correlation([labels, [0, 0, 1]], labels)[0, 1])

    @settings(max_examples=40, deadline=None)
    @given(st.integers(0, 2**16), st.integers(1, 30))
    def test_bounds(self, seed, n):
        rng = np.random.default_rng(seed)
        labels, members = rng.integers(0, 3, n), rng.integers(0, 3, (3, n))
        for measure in ("phi", "q", "double_fault"):
            matrix = error_correlation(members, labels, measure)
            np.testing.assert_array_equal(matrix, matrix.T)
            assert (np.abs(matrix[~np.isnan(matrix)]) <= 1 + 1e-12).all()

    @pytest.mark.parametrize("members", [[], [[]], [[0, 1], [0, 1, 2]], np.empty((2, 0), int)])
    def test_mistakes_are_told(self, members):
        with pytest.raises(InputError):
            disagreement(members)

    def test_an_unknown_measure_is_refused(self):
        with pytest.raises(InputError, match="unknown measure 'kappa'; choose from phi, q, double_fault"):
            error_correlation([[0, 1]], [0, 1], "kappa")


def gram_cka(x: np.ndarray, y: np.ndarray, debiased: bool) -> float:
    """Return CKA from N x N kernels, as its definition has it."""
    n = len(x)

    def criterion(k, l):
        if not debiased:
            centre = np.eye(n) - 1 / n
            return np.trace(k @ centre @ l @ centre)
        k, l, one = k - np.diag(np.diag(k)), l - np.diag(np.diag(l)), np.ones(n)
        ends = one @ k @ one * (one @ l @ one) / ((n - 1) * (n - 2))
        return np.trace(k @ l) + ends - 2 / (n - 2) * (one @ k @ l @ one)

    k, l = x @ x.T, y @ y.T
    return criterion(k, l) / np.sqrt(criterion(k, k) * criterion(l, l))


class TestCka:
    @pytest.mark.parametrize("debiased", [False, True])
    def test_definition(self, debiased):
        rng = np.random.default_rng(0)
        x = rng.normal(size=(60, 10)) + 3
        y = np.tanh(x @ rng.normal(size=(10, 7))) + 0.3 * rng.normal(size=(60, 7)) - 5
        assert linear_cka(x, y, debiased=debiased) == pytest.approx(gram_cka(x, y, debiased), abs=1e-10)

    @settings(max_examples=30, deadline=None)
    @given(
        seed=st.integers(0, 2**16),
        scale=st.floats(0.01, 100),
        shift=st.floats(-100, 100),
        debiased=st.booleans(),
    )
    def test_rotation_scale_and_shift_do_not_matter(self, seed, scale, shift, debiased):
        rng = np.random.default_rng(seed)
        x, y = rng.normal(size=(40, 6)), rng.normal(size=(40, 5))
        y[:, :3] += x[:, :3]
        rotation, _ = np.linalg.qr(rng.normal(size=(6, 6)))
        moved = scale * x @ rotation + shift
        before = linear_cka(x, y, debiased=debiased)
        assert linear_cka(moved, y, debiased=debiased) == pytest.approx(before, abs=1e-8)
        assert linear_cka(y, moved, debiased=debiased) == pytest.approx(before, abs=1e-8)
        assert linear_cka(x, moved, debiased=debiased) == pytest.approx(1, abs=1e-8)

    def test_unrelated_features_look_alike_unless_debiased(self):
        rng = np.random.default_rng(0)
        x, y = rng.normal(size=(2, 60, 200))
        assert linear_cka(x, y) > 0.5
        assert abs(linear_cka(x, y, debiased=True)) < 0.1

    def test_chunks_and_precision_do_not_matter(self, monkeypatch):
        bank, _ = clusters(500)
        other, _ = clusters(500, seed=4)
        whole = linear_cka(bank.astype(np.float64), other.astype(np.float64))
        assert linear_cka(bank, other) == pytest.approx(whole, abs=1e-5)
        assert linear_cka(torch.tensor(bank) + 1000, torch.tensor(other)) == pytest.approx(whole, abs=1e-3)
        monkeypatch.setattr(neighbors, "_BUDGET", 1000)
        assert linear_cka(bank, other) == pytest.approx(whole, abs=1e-5)

    def test_rows_of_mixed_precision(self):
        bank, _ = clusters(100)
        assert linear_cka(bank, bank.astype(np.float64)) == pytest.approx(1)

    @pytest.mark.parametrize(
        ("x", "y", "debiased", "message"),
        [
            (np.ones((5, 2)), np.zeros((4, 2)), False, r"expected \(5, D\)"),
            (np.ones(5), np.ones(5), False, "D"),
            (np.eye(3), np.eye(3), True, "at least 4"),
            (np.full((5, 2), 0.1), np.eye(5), False, "x does not vary"),
            (np.eye(5), np.ones((5, 2)), False, "y does not vary"),
            (np.full((5, 2), np.nan), np.eye(5), False, "not finite"),
        ],
    )
    def test_mistakes_are_told(self, x, y, debiased, message):
        with pytest.raises(InputError, match=message):
            linear_cka(x, y, debiased=debiased)
