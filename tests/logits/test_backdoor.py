"""Backdoor adjustment: rules, subsets and the fitted P(c), against plain formulas and other solvers."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from dualtail.errors import InputError
from dualtail.logits._convex import box, newton, simplex
from dualtail.logits.adjust import adjust_logits
from dualtail.logits.backdoor import (
    RULES,
    MemberPrior,
    adjust_subsets,
    all_subsets,
    backdoor_adjust,
    evaluate_subsets,
    fit_member_prior,
)
from dualtail.logits.groups import ClassGroups
from dualtail.logits.metrics import evaluate
from dualtail.logits.prior import LabelPrior

ALL_RULES = pytest.mark.parametrize("rule", RULES)
CLASSES = 6


def random_members(num=3, n=40, classes=CLASSES, seed=0, dtype=torch.float32, signal=()):
    """Logits of members of different quality, and the labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=generator)
    one_hot = torch.nn.functional.one_hot(labels, classes)
    signal = signal or range(num, 0, -1)
    members = [
        (2 * torch.randn(n, classes, generator=generator, dtype=torch.float64) + s * one_hot).to(dtype)
        for s in signal
    ]
    return members, labels


def plain(members, rule, weights=None):
    """The rules as their table writes them, in float64 on whole arrays; probabilities of the ensemble."""
    z = np.stack([np.asarray(m, dtype=np.float64) for m in members])
    p = np.exp(z - z.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    w = np.full(len(members), 1 / len(members)) if weights is None else np.asarray(weights)
    w = w.reshape(-1, *[1] * (z.ndim - 1))
    pooled = {
        "logits": lambda: np.exp((w * z).sum(0) - (w * z).sum(0).max(-1, keepdims=True)),
        "log_probabilities": lambda: np.prod(p**w, axis=0),
        "probabilities": lambda: (w * p).sum(0),
        "median": lambda: np.exp(np.median(np.log(p), axis=0)),
    }[rule]()
    return pooled / pooled.sum(-1, keepdims=True)


# --- the rules ---------------------------------------------------------------------------------------------


@ALL_RULES
@pytest.mark.parametrize("num", [1, 2, 3, 4, 5])
def test_rules_follow_their_formulas(rule, num):
    members, _ = random_members(num)
    found = backdoor_adjust(members, rule=rule).softmax(-1)
    np.testing.assert_allclose(found, plain(members, rule), rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("rule", ["logits", "log_probabilities", "probabilities"])
def test_weighted_rules_follow_their_formulas(rule):
    members, _ = random_members(3)
    weights = [0.5, 0.2, 0.3]
    found = backdoor_adjust(members, rule=rule, weights=weights).softmax(-1)
    np.testing.assert_allclose(found, plain(members, rule, weights), rtol=2e-5, atol=1e-7)


def test_scores_are_what_the_table_says():
    members, _ = random_members(3, dtype=torch.float64)
    z = torch.stack(members)
    weights = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    w = weights[:, None, None]
    expected = {
        "logits": (w * z).sum(0),
        "log_probabilities": (w * z.log_softmax(-1)).sum(0),
        "probabilities": (w * z.softmax(-1)).sum(0).log(),
    }
    for rule, scores in expected.items():
        torch.testing.assert_close(backdoor_adjust(members, rule=rule, weights=weights), scores)
    agreement = backdoor_adjust(members, rule="log_probabilities").logsumexp(-1)
    assert bool((agreement < 0).all())
    same = backdoor_adjust([members[0]] * 3, rule="log_probabilities").logsumexp(-1)
    torch.testing.assert_close(same, torch.zeros_like(same))


def weighted_median(values, weights):
    """The textbook definition, for one element."""
    order = np.argsort(values)
    below = np.cumsum(np.asarray(weights)[order])
    ranked = np.asarray(values)[order]
    low = ranked[np.flatnonzero(below >= 0.5 - 1e-9)[0]]
    beyond = np.flatnonzero(below > 0.5 + 1e-9)
    return (low + (ranked[beyond[0]] if len(beyond) else low)) / 2


@pytest.mark.parametrize(
    "weights", [[0.1, 0.2, 0.3, 0.4], [0.25, 0.25, 0.1, 0.4], [0.5, 0.3, 0.2, 0], [1, 0, 0, 0]]
)
def test_weighted_median(weights):
    members, _ = random_members(4, n=15, dtype=torch.float64)
    logs = torch.stack(members).log_softmax(-1).numpy()
    expected = np.apply_along_axis(weighted_median, 0, logs, weights)
    np.testing.assert_allclose(backdoor_adjust(members, rule="median", weights=weights), expected)


@ALL_RULES
def test_extreme_logits_stay_finite(rule):
    members = [torch.tensor([[1e4, 0.0, -1e4]]), torch.tensor([[-1e4, 1e4, 0.0]])]
    scores = backdoor_adjust(members, rule=rule)
    assert torch.isfinite(scores).all()
    assert torch.isfinite(scores.log_softmax(-1)).all()


def test_probabilities_that_underflow_keep_their_order():
    members = [torch.tensor([[0.0, -400.0, -500.0]]), torch.tensor([[0.0, -420.0, -490.0]])]
    scores = backdoor_adjust(members, rule="probabilities")[0]
    log2 = float(np.log(2))
    torch.testing.assert_close(scores, torch.tensor([0, -400 - log2, -490 - log2]))


# --- algebra -----------------------------------------------------------------------------------------------

logit_lists = st.lists(st.floats(-20, 20, width=32), min_size=3 * CLASSES, max_size=3 * CLASSES)


def to_members(values):
    return list(torch.tensor(values, dtype=torch.float64).reshape(3, 1, CLASSES))


def simplex_point(shares):
    weights = np.array(shares, dtype=np.float64) + 1e-3
    return weights / weights.sum()


shares = st.lists(st.floats(0, 1), min_size=3, max_size=3).map(simplex_point)


def close(found, expected):
    torch.testing.assert_close(found.softmax(-1), expected.softmax(-1), rtol=1e-9, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(logit_lists, st.sampled_from(RULES))
def test_one_member_is_itself(values, rule):
    member = to_members(values)[0]
    close(backdoor_adjust([member], rule=rule), member)
    if rule == "logits":
        assert torch.equal(backdoor_adjust([member], rule=rule), member)


@settings(max_examples=40, deadline=None)
@given(logit_lists, shares, st.sampled_from(RULES))
def test_equal_members_are_that_member(values, weights, rule):
    member = to_members(values)[0]
    close(backdoor_adjust([member] * 3, rule=rule, weights=weights), member)


@settings(max_examples=40, deadline=None)
@given(logit_lists, shares, st.permutations(range(3)), st.sampled_from(RULES))
def test_members_may_be_reordered_with_their_weights(values, weights, order, rule):
    members = to_members(values)
    moved = backdoor_adjust([members[i] for i in order], rule=rule, weights=weights[list(order)])
    close(moved, backdoor_adjust(members, rule=rule, weights=weights))


@settings(max_examples=40, deadline=None)
@given(logit_lists, shares, st.lists(st.floats(-50, 50), min_size=3, max_size=3), st.sampled_from(RULES))
def test_a_constant_added_to_a_members_logits_changes_nothing(values, weights, shifts, rule):
    members = to_members(values)
    shifted = [member + shift for member, shift in zip(members, shifts, strict=True)]
    close(
        backdoor_adjust(shifted, rule=rule, weights=weights),
        backdoor_adjust(members, rule=rule, weights=weights),
    )


@settings(max_examples=40, deadline=None)
@given(logit_lists, st.sampled_from(RULES))
def test_uniform_weights_are_the_default_and_zero_weights_leave_out(values, rule):
    members = to_members(values)
    close(backdoor_adjust(members, rule=rule, weights=[1 / 3] * 3), backdoor_adjust(members, rule=rule))
    without = backdoor_adjust(members, rule=rule, weights=[0.5, 0, 0.5])
    close(without, backdoor_adjust([members[0], members[2]], rule=rule))


@settings(max_examples=40, deadline=None)
@given(logit_lists, st.permutations(range(CLASSES)), st.sampled_from(RULES))
def test_classes_may_be_renumbered(values, order, rule):
    members = to_members(values)
    moved = backdoor_adjust([member[:, list(order)] for member in members], rule=rule)
    close(moved, backdoor_adjust(members, rule=rule)[:, list(order)])


# --- shapes and kinds --------------------------------------------------------------------------------------


@ALL_RULES
def test_leading_dimensions_chunks_and_kinds(rule, monkeypatch):
    members, _ = random_members(3, n=24)
    expected = backdoor_adjust(members, rule=rule)
    boxes = backdoor_adjust([m.reshape(4, 6, CLASSES) for m in members], rule=rule)
    torch.testing.assert_close(boxes, expected.reshape(4, 6, CLASSES))
    torch.testing.assert_close(backdoor_adjust(torch.stack(members), rule=rule), expected)
    as_numpy = backdoor_adjust([m.numpy() for m in members], rule=rule)
    assert isinstance(as_numpy, np.ndarray)
    assert as_numpy.dtype == np.float32
    np.testing.assert_array_equal(as_numpy, expected)
    single = backdoor_adjust([m[0] for m in members], rule=rule)
    torch.testing.assert_close(single, expected[0])
    monkeypatch.setattr("dualtail.logits._pooling.CHUNK_ENTRIES", 5 * CLASSES)
    torch.testing.assert_close(backdoor_adjust(members, rule=rule), expected)
    assert backdoor_adjust([m[:0] for m in members], rule=rule).shape == (0, CLASSES)


def test_precision_follows_the_members():
    members, _ = random_members(2, n=4)
    assert backdoor_adjust([m.half() for m in members]).dtype == torch.float32
    assert backdoor_adjust([members[0], members[1].double()]).dtype == torch.float64
    mixed = backdoor_adjust([members[0], members[1].numpy()])
    torch.testing.assert_close(mixed, backdoor_adjust(members))


@ALL_RULES
def test_gradients_flow_to_the_members(rule):
    members, _ = random_members(2, n=3, dtype=torch.float64)
    members = [m.requires_grad_() for m in members]
    assert torch.autograd.gradcheck(lambda *z: backdoor_adjust(list(z), rule=rule), members)


def test_temperatures_divide_the_logits():
    members, _ = random_members(2, dtype=torch.float64)
    found = backdoor_adjust(members, temperatures=[2.0, 0.5])
    torch.testing.assert_close(found, (members[0] / 2 + members[1] * 2) / 2)


def test_memory_maps_are_read_in_chunks(tmp_path):
    shape = (3000, 200)
    members = []
    for i in range(3):
        path = tmp_path / f"{i}.npy"
        np.save(path, np.random.default_rng(i).normal(size=shape).astype(np.float32))
        members.append(np.load(path, mmap_mode="r"))
    tracemalloc.start()
    predictions = adjust_subsets(members)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(predictions[0, 1, 2], sum(np.asarray(m) for m in members).argmax(-1))
    # numpy's copies of the chunks; one whole member would be 2.4 MB.
    assert peak < 1_000_000


# --- GLA and the backdoor together -------------------------------------------------------------------------


def test_each_member_with_its_own_zero_shot_term_and_prior():
    members, _ = random_members(2, dtype=torch.float64, seed=1)
    zero_shot, _ = random_members(2, dtype=torch.float64, seed=2)
    priors = [LabelPrior.from_counts([1, 2, 3, 4, 5, 6]), LabelPrior.from_counts([6, 1, 1, 1, 1, 1])]
    source = LabelPrior.from_counts([100, 50, 20, 10, 5, 1])
    for rule in RULES:
        la = [
            adjust_logits(f, "gla_la", zero_shot_logits=z, pretrain_prior=p)
            for f, z, p in zip(members, zero_shot, priors, strict=True)
        ]
        found = backdoor_adjust(members, rule=rule, zero_shot_logits=zero_shot, pretrain_priors=priors)
        torch.testing.assert_close(found, backdoor_adjust(la, rule=rule))
        ce = [
            adjust_logits(f, "gla", zero_shot_logits=z, pretrain_prior=p, source_prior=source)
            for f, z, p in zip(members, zero_shot, priors, strict=True)
        ]
        found = backdoor_adjust(
            members, rule=rule, zero_shot_logits=zero_shot, pretrain_priors=priors, source_prior=source
        )
        torch.testing.assert_close(found, backdoor_adjust(ce, rule=rule))


def test_a_member_without_zero_shot_logits_stays_as_it_is():
    members, _ = random_members(2, dtype=torch.float64)
    prior = LabelPrior.from_counts([1, 2, 3, 4, 5, 6])
    found = backdoor_adjust(members, zero_shot_logits=[members[0], None], pretrain_priors=[prior, None])
    torch.testing.assert_close(found, (2 * members[0] - prior.log_prob + members[1]) / 2)


# --- subsets -----------------------------------------------------------------------------------------------


@ALL_RULES
def test_subsets_are_the_ensembles_of_their_members_to_the_bit(rule):
    members, _ = random_members(4)
    scores = adjust_subsets(members, lambda scores, rows: scores, rule=rule)
    assert list(scores) == all_subsets(4)
    assert len(scores) == 15
    for subset, found in scores.items():
        assert torch.equal(found, backdoor_adjust([members[i] for i in subset], rule=rule)), subset
    for subset, prediction in adjust_subsets(members, rule=rule).items():
        assert torch.equal(prediction, scores[subset].argmax(-1))


@ALL_RULES
def test_weighted_subsets_renormalise(rule):
    members, _ = random_members(4, dtype=torch.float64)
    weights = np.array([0.5, 0.0, 0.5, 0.0])
    for subset, found in adjust_subsets(members, lambda s, _: s, rule=rule, weights=weights).items():
        own = weights[list(subset)]
        own = own / own.sum() if own.any() else None
        expected = backdoor_adjust([members[i] for i in subset], rule=rule, weights=own)
        torch.testing.assert_close(found, expected)


def test_subsets_keep_leading_dimensions_and_what_the_function_keeps():
    members, labels = random_members(2, n=12)
    boxes = [m.reshape(3, 4, CLASSES).numpy() for m in members]
    predictions = adjust_subsets(boxes)
    assert predictions[0, 1].shape == (3, 4)
    assert predictions[0, 1].dtype == np.int64

    def of_label(scores, rows):
        return scores.log_softmax(-1).gather(-1, labels[rows, None])

    kept = adjust_subsets(members, of_label)
    assert kept[1,].shape == (12, 1)
    torch.testing.assert_close(kept[1,], members[1].log_softmax(-1).gather(-1, labels[:, None]))
    assert adjust_subsets([m[:0] for m in members])[0,].shape == (0,)


@pytest.mark.parametrize("rule", ["logits", "probabilities"])
def test_evaluated_subsets_are_the_evaluations_of_the_ensembles(rule, monkeypatch):
    monkeypatch.setattr("dualtail.logits._pooling.CHUNK_ENTRIES", 7 * CLASSES)
    members, labels = random_members(3)
    groups = {
        "d_groups": ClassGroups.from_counts([500, 200, 50, 30, 10, 5]),
        "p_groups": ClassGroups.from_prior(LabelPrior.from_counts([3, 1, 4, 1.5, 5, 9])),
    }
    for subset, found in evaluate_subsets(members, labels, rule=rule, **groups).items():
        expected = evaluate(backdoor_adjust([members[i] for i in subset], rule=rule), labels, **groups)
        assert found.overall == expected.overall
        assert found.to_dict()["cross"] == expected.to_dict()["cross"]
        assert found.nll == pytest.approx(expected.nll)
        assert found.ece == pytest.approx(expected.ece)


def test_subset_enumeration():
    for num in range(1, 8):
        subsets = all_subsets(num)
        assert len(subsets) == len(set(subsets)) == 2**num - 1
        assert subsets == sorted(subsets, key=lambda s: (len(s), s))


# --- the fitted P(c) ---------------------------------------------------------------------------------------


def nll(members, labels, prior, balanced):
    scores = backdoor_adjust([m.double() for m in members], weights=prior).log_softmax(-1)
    each = -scores[torch.arange(len(labels)), labels]
    if not balanced:
        return float(each.mean())
    return float(torch.stack([each[labels == c].mean() for c in labels.unique()]).mean())


def slsqp(members, labels, rule, balanced):
    """The same problem, solved by SciPy's sequential quadratic programming with numerical gradients."""
    count = len(members)
    return optimize.minimize(
        lambda w: nll(members, labels, MemberPrior(np.abs(w) / np.abs(w).sum(), rule=rule), balanced),
        np.full(count, 1 / count),
        method="SLSQP",
        bounds=[(0, 1)] * count,
        constraints=[{"type": "eq", "fun": lambda w: w.sum() - 1}],
        options={"ftol": 1e-12},
    )


@pytest.mark.parametrize("balanced", [True, False])
@pytest.mark.parametrize("rule", ["logits", "log_probabilities", "probabilities"])
def test_fitted_weights_are_those_of_another_solver(rule, balanced):
    members, labels = random_members(4, n=300, signal=(3, 2.5, 1, 0.0))
    found = fit_member_prior(members, labels, rule=rule, balanced=balanced)
    other = slsqp(members, labels, rule, balanced)
    assert found.nll <= other.fun + 1e-9
    np.testing.assert_allclose(found.weights, other.x / other.x.sum(), atol=2e-3)
    assert found.nll == pytest.approx(nll(members, labels, found, balanced), abs=1e-9)
    assert found.nll <= found.uniform_nll
    assert 0 <= found.optimality_gap < 1e-8
    assert found.num_samples == 300


@pytest.mark.parametrize("rule", ["logits", "probabilities"])
def test_fitted_weights_gain_on_held_out_samples(rule):
    members, labels = random_members(4, n=2000, signal=(4, 3, 1, 0.0))
    fitting, held_out = slice(0, 1000), slice(1000, None)
    prior = fit_member_prior([m[fitting] for m in members], labels[fitting], rule=rule)
    uniform = MemberPrior([0.25] * 4, rule=rule)
    test = [m[held_out] for m in members]
    assert nll(test, labels[held_out], prior, True) < nll(test, labels[held_out], uniform, True) - 0.05


@pytest.mark.parametrize("rule", ["logits", "probabilities"])
def test_temperatures(rule):
    members, labels = random_members(3, n=600, dtype=torch.float64, signal=(4, 3, 2))
    distorted = [members[0] * 3, members[1] / 2, members[2]]
    fixed = fit_member_prior(distorted, labels, rule=rule)
    member = fit_member_prior(distorted, labels, rule=rule, fit_temperatures="member")
    joint = fit_member_prior(distorted, labels, rule=rule, fit_temperatures="joint")
    true = fit_member_prior(distorted, labels, rule=rule, fit_temperatures=True)
    assert joint.nll <= min(fixed.nll, member.nll) + 1e-9
    assert true.nll == joint.nll
    assert joint.nll == pytest.approx(nll(distorted, labels, joint, True), abs=1e-8)
    for c in range(3):
        alone = optimize.minimize_scalar(
            lambda t, c=c: nll(distorted[c : c + 1], labels, MemberPrior([1.0], [t]), True),
            bounds=(0.05, 20),
            method="bounded",
            options={"xatol": 1e-6},
        )
        assert float(member.temperatures[c]) == pytest.approx(alone.x, rel=1e-3)
    if rule == "logits":
        # Only w / T matters here: scaling a member before the fit changes nothing of the ensemble.
        straight = fit_member_prior(members, labels, rule=rule, fit_temperatures="joint")
        assert joint.nll == pytest.approx(straight.nll, abs=1e-8)
        assert bool((joint.temperatures == joint.temperatures[0]).all())


def test_joint_mixture_is_a_stationary_point():
    members, labels = random_members(2, n=400, dtype=torch.float64, signal=(4, 2))
    members = [members[0] * 3, members[1] / 3]
    found = fit_member_prior(members, labels, rule="probabilities", fit_temperatures="joint")
    for factor in (0.97, 1.03):
        for c in range(2):
            moved = found.temperatures.clone()
            moved[c] *= factor
            other = MemberPrior(found.weights, moved, rule="probabilities")
            assert nll(members, labels, other, True) > found.nll - 1e-7


def test_extremes_are_bounded():
    certain = [20.0 * torch.eye(4), 30.0 * torch.eye(4)]
    labels = torch.arange(4)
    prior = fit_member_prior(certain, labels, fit_temperatures="joint")
    assert float(prior.temperatures[0]) >= 1e-3
    noise = [-50.0 * torch.eye(4), -60.0 * torch.eye(4)]
    prior = fit_member_prior(noise, labels, fit_temperatures="joint")
    assert float(prior.weights.sum()) == pytest.approx(1)
    assert prior.nll == pytest.approx(np.log(4), abs=0.1)
    for rule in ("logits", "probabilities"):
        hopeless = [torch.tensor([[0.0, 2000.0]]), torch.tensor([[0.0, 1999.0]])]
        prior = fit_member_prior(hopeless, torch.tensor([0]), rule=rule)
        assert prior.weights.tolist() == pytest.approx([0, 1], abs=1e-3)


def test_equal_members_and_one_member():
    members, labels = random_members(1, n=50)
    assert fit_member_prior(members, labels).weights.tolist() == [1.0]
    twice = fit_member_prior(members * 2, labels)
    assert twice.nll == pytest.approx(twice.uniform_nll, abs=1e-9)


def test_balance_is_over_classes():
    """Class 0 has 9 of 10 samples and favours member 0; balanced, member 1 serves the other classes."""
    labels = torch.cat([torch.zeros(90, dtype=torch.long), torch.tensor([1, 2]).repeat(5)])
    rows = torch.arange(100)
    first, second = torch.zeros(100, 3), torch.zeros(100, 3)
    first[rows[:90], 0] = 2
    second[rows[90:], labels[90:]] = 2
    weights = fit_member_prior([first, second], labels, rule="probabilities").weights
    plainly = fit_member_prior([first, second], labels, rule="probabilities", balanced=False).weights
    assert weights[1] > 0.5 > plainly[1]


def test_weights_bring_rule_and_temperatures_along():
    members, labels = random_members(3, n=100)
    prior = fit_member_prior(members, labels, rule="probabilities", fit_temperatures="member")
    expected = backdoor_adjust(
        members, weights=prior.weights, rule="probabilities", temperatures=prior.temperatures
    )
    torch.testing.assert_close(backdoor_adjust(members, weights=prior), expected)
    read = MemberPrior.from_dict(json.loads(json.dumps(prior.to_dict())))
    assert torch.equal(backdoor_adjust(members, weights=read), backdoor_adjust(members, weights=prior))
    assert read.to_dict() == prior.to_dict()


# --- the solver --------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=6))
def test_projection_onto_the_simplex_is_the_nearest_point(values):
    x = np.array(values)
    found = simplex().project(x)
    assert found.sum() == pytest.approx(1)
    assert (found >= 0).all()
    # Optimal: moving towards any corner does not come nearer.
    assert ((np.eye(len(x)) - found) @ (x - found) <= 1e-9).all()


@pytest.mark.parametrize("region", [simplex(), box(0.0, 2.0)], ids=["simplex", "box"])
def test_minimiser_and_its_gap_on_random_quadratics(region):
    generator = np.random.default_rng(0)
    for _ in range(20):
        factor = generator.normal(size=(5, 5))
        curvature, target = factor @ factor.T, generator.normal(size=5)

        def evaluate(x, curvature=curvature, target=target):
            d = x - target
            return d @ curvature @ d / 2, curvature @ d, curvature

        found = newton(evaluate, np.full(5, 0.2), region)
        assert found.gap < 1e-8
        for other in generator.dirichlet(np.ones(5), size=100):
            assert evaluate(other)[0] >= found.value - found.gap - 1e-12


# --- what is refused ---------------------------------------------------------------------------------------

Z = torch.zeros(4, 3)
Y = torch.zeros(4, dtype=torch.long)
PRIOR = LabelPrior.uniform(3)
BAD = [
    (lambda: backdoor_adjust([]), "members is empty"),
    (lambda: backdoor_adjust(5), "members is int"),
    (lambda: backdoor_adjust(Z), r"members is one array of shape \(4, 3\); pass a list"),
    (lambda: backdoor_adjust(["x", "y"]), r"members\[0\] is not an array"),
    (lambda: backdoor_adjust([Z, Z[:2]]), r"members\[1\]: shape \(2, 3\); expected \(4, 3\)"),
    (lambda: backdoor_adjust([Z, Z.int()]), r"members\[1\] has dtype torch.int32"),
    (lambda: backdoor_adjust([Z[:, :1]]), "at least 2 classes"),
    (
        lambda: backdoor_adjust([Z, Z.clone().index_fill(0, torch.tensor([2]), float("nan"))]),
        r"members\[1\] holds 3 values that are not finite, the first at \[2, 0\]",
    ),
    (lambda: backdoor_adjust([Z, Z], weights=[1.0]), r"weights has shape \(1,\); expected \(2,\)"),
    (lambda: backdoor_adjust([Z, Z], weights=[2.0, 1.0]), "weights sum to 3; P.c. sums to 1"),
    (lambda: backdoor_adjust([Z, Z], weights=[1.5, -0.5]), "weights holds a negative value"),
    (
        lambda: backdoor_adjust([Z, Z], weights=[float("nan"), 1]),
        "weights holds 1 values that are not finite",
    ),
    (lambda: backdoor_adjust([Z, Z], temperatures=[1.0, 0.0]), "temperatures holds 0.0; expected positive"),
    (lambda: backdoor_adjust([Z], rule="logit"), "unknown rule 'logit'; did you mean 'logits'"),
    (lambda: backdoor_adjust([Z], rule="q"), "unknown rule 'q'; choose from logits"),
    (lambda: backdoor_adjust([Z], weights=MemberPrior([1.0]), rule="median"), "fitted for rule 'logits'"),
    (lambda: backdoor_adjust([Z], weights=MemberPrior([1.0]), temperatures=[2]), "bring their temperatures"),
    (lambda: backdoor_adjust([Z, Z], zero_shot_logits=[Z]), "zero_shot_logits does not hold 2 entries"),
    (lambda: backdoor_adjust([Z], pretrain_priors=PRIOR), "pretrain_priors does not hold 1 entries"),
    (
        lambda: backdoor_adjust([Z], zero_shot_logits=[Z]),
        r"zero_shot_logits\[0\] has no pretrain_priors\[0\]",
    ),
    (
        lambda: backdoor_adjust([Z], pretrain_priors=[PRIOR]),
        r"pretrain_priors\[0\] has no zero_shot_logits\[0\]",
    ),
    (
        lambda: backdoor_adjust([Z], zero_shot_logits=[Z[:1]], pretrain_priors=[PRIOR]),
        r"zero_shot_logits\[0\]: shape \(1, 3\)",
    ),
    (
        lambda: backdoor_adjust([Z], zero_shot_logits=[Z], pretrain_priors=[LabelPrior.uniform(4)]),
        r"pretrain_priors\[0\]: 4 classes, but 3",
    ),
    (lambda: adjust_subsets([Z] * 13), "13 members have 8,191 subsets; 1 to 12 members"),
    (lambda: evaluate_subsets([Z], Y[:1]), r"labels has shape \(1,\)"),
    (lambda: fit_member_prior([Z], Y + 7), "labels holds 7"),
    (lambda: fit_member_prior([Z[:0]], Y[:0]), "labels are empty"),
    (lambda: fit_member_prior([Z], Y, rule="median"), "cannot be fitted for rule 'median'"),
    (lambda: fit_member_prior([Z], Y, fit_temperatures="all"), "fit_temperatures is 'all'"),
    (lambda: MemberPrior([0.5, 0.4]), "weights sum to 0.9"),
    (lambda: MemberPrior.from_dict({"weights": [1.0]}), "not a saved member prior: 'balanced'"),
]


@pytest.mark.parametrize(("call", "message"), BAD, ids=[message for _, message in BAD])
def test_refused_in_one_clear_line(call, message):
    with pytest.raises(InputError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
