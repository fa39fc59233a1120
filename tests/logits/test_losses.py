"""Losses: their formulas, their algebra, their precision and what they refuse."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from dualtail.errors import InputError
from dualtail.logits.losses import LOSSES, build_loss, loss_options
from dualtail.logits.prior import LabelPrior

CLASSES = 7
COUNTS = torch.tensor([640.0, 320, 100, 50, 20, 9, 2])
P_S = COUNTS / COUNTS.sum()
P_P = torch.tensor([0.05, 0.3, 0.1, 0.05, 0.2, 0.1, 0.2])
DATA = {"counts": COUNTS, "pretrain_prior": LabelPrior(P_P.log())}

EXACT_SHIFT = sorted(set(LOSSES) - {"lade", "vs"})  # adding a constant to a sample's logits changes nothing
SOFT = sorted(name for name, loss in LOSSES.items() if loss.soft_labels)
HARD_ONLY = sorted(set(LOSSES) - set(SOFT))


def sample(n=11, seed=0, dtype=torch.float32, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(n, CLASSES, generator=generator, dtype=torch.float64)
    return logits.to(dtype), torch.randint(CLASSES, (n,), generator=generator)


# --- the formulas, written out plainly ---------------------------------------------------------------------


def weighted_mean(nll, weight):
    return (nll * weight).sum() / weight.sum()


def plain(name, f, y):
    """Each loss as its paper writes it, in float64 and without any shared code."""
    p_s, p_p, n = P_S.double(), P_P.double(), COUNTS.double()
    rows = torch.arange(len(y))

    def nll(scores):
        return -scores.softmax(-1).log()[rows, y]

    if name == "ce":
        return nll(f).mean()
    if name == "focal":
        return ((1 - f.softmax(-1)[rows, y]) ** 2 * nll(f)).mean()
    if name == "ldam":
        margin = n**-0.25 / (n**-0.25).max() * 0.5
        lowered = f.clone()
        lowered[rows, y] -= 25 * margin[y]
        return nll(lowered).mean()
    if name == "class_balanced":
        return weighted_mean(nll(f), ((1 - 0.9999) / (1 - 0.9999**n))[y])
    if name == "generalized_reweight":
        return weighted_mean(nll(f), (1 / p_s)[y])
    if name in ("balanced_softmax", "la"):
        return nll(f + p_s.log()).mean()
    if name == "gla_train":
        return nll(f + p_s.log() + p_p.log()).mean()
    if name == "vs":
        return nll(f * (n / n.max()) ** 0.3 + p_s.log()).mean()
    if name == "lade":
        estimate = 0.0
        for c in range(CLASSES):
            z = ((1 / CLASSES) / p_s[c] * f[:, c].exp()).mean().log()
            own = f[y == c, c]
            positive = own.mean() if len(own) else 0.0
            estimate = estimate + p_s[c] * (-positive + z + 0.1 * z**2)
        return nll(f + p_s.log()).mean() + 0.1 * estimate
    raise AssertionError(f"{name} has no plain formula here")


@pytest.mark.parametrize("name", LOSSES)
def test_value_and_gradient_follow_the_formula(name):
    f, y = sample(dtype=torch.float64)
    f.requires_grad_()
    (expected,) = torch.autograd.grad(plain(name, f, y), f)
    value = build_loss(name, **DATA)(f, y)
    (gradient,) = torch.autograd.grad(value, f)
    torch.testing.assert_close(value, plain(name, f, y), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_gradcheck(name):
    f, y = sample(n=4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda z: build_loss(name, **DATA)(z, y), f.requires_grad_())


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_gradient_is_finite_when_a_sample_is_certain(gamma):
    f = torch.tensor([[200.0, 0.0], [0.0, 200.0]], requires_grad=True)
    value = build_loss("focal", gamma=gamma)(f, torch.tensor([0, 0]))
    (gradient,) = torch.autograd.grad(value, f)
    assert torch.isfinite(value)
    assert torch.isfinite(gradient).all()


# --- algebra -----------------------------------------------------------------------------------------------

finite = st.floats(-30, 30, width=32)


@settings(max_examples=30, deadline=None)
@given(st.lists(finite, min_size=3 * CLASSES, max_size=3 * CLASSES), st.floats(-100, 100))
def test_a_constant_added_to_a_samples_logits_changes_nothing(values, shift):
    f = torch.tensor(values, dtype=torch.float64).reshape(3, CLASSES)
    y = torch.tensor([0, 3, 6])
    for name in EXACT_SHIFT:
        loss = build_loss(name, **DATA)
        torch.testing.assert_close(loss(f + shift, y), loss(f, y), rtol=1e-9, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.permutations(range(CLASSES)), st.integers(0, 1000))
def test_classes_may_be_renumbered(order, seed):
    f, y = sample(seed=seed, dtype=torch.float64)
    order = torch.tensor(order)
    renumbered = {"counts": COUNTS[order], "pretrain_prior": LabelPrior(P_P[order].log())}
    for name in LOSSES:
        expected = build_loss(name, **DATA)(f, y)
        found = build_loss(name, **renumbered)(f[:, order], order.argsort()[y])
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("focal", {"gamma": 0}),
        ("class_balanced", {"beta": 0}),
        ("generalized_reweight", {"power": 0}),
        ("ldam", {"max_margin": 0}),
        ("la", {"tau": 0}),
        ("gla_train", {"tau": 0, "pretrain_tau": 0}),
        ("vs", {"tau": 0, "gamma": 0}),
    ],
)
def test_turned_off_is_the_cross_entropy(name, options):
    f, y = sample()
    torch.testing.assert_close(build_loss(name, **DATA, **options)(f, y), F.cross_entropy(f, y))


@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"focal", "ldam", "lade"}))
def test_a_uniform_prior_changes_nothing(name):
    f, y = sample()
    uniform = {"counts": torch.full((CLASSES,), 50), "pretrain_prior": LabelPrior.uniform(CLASSES)}
    torch.testing.assert_close(build_loss(name, **uniform)(f, y), F.cross_entropy(f, y))


def test_neighbours_in_the_family_agree():
    f, y = sample()
    la = build_loss("la", **DATA)(f, y)
    torch.testing.assert_close(build_loss("balanced_softmax", **DATA)(f, y), la)
    torch.testing.assert_close(build_loss("vs", gamma=0, **DATA)(f, y), la)
    torch.testing.assert_close(build_loss("gla_train", pretrain_tau=0, **DATA)(f, y), la)
    torch.testing.assert_close(build_loss("lade", weight=0, **DATA)(f, y), la)
    nearly_inverse = build_loss("class_balanced", beta=1 - 1e-9, **DATA)(f, y)
    torch.testing.assert_close(nearly_inverse, build_loss("generalized_reweight", **DATA)(f, y))


def test_la_minimiser_is_the_balanced_rule():
    """Where one input is all there is, the best logits under LA are those of uniform classes: f is constant."""
    y = torch.repeat_interleave(torch.arange(CLASSES), COUNTS.long())
    f = torch.zeros(CLASSES, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(build_loss("la", **DATA)(f.expand(len(y), -1), y), f)
    assert gradient.abs().max() < 1e-7


@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"lade", "class_balanced", "generalized_reweight"}))
def test_a_batch_is_the_mean_of_its_parts(name):
    f, y = sample(n=12)
    loss = build_loss(name, **DATA)
    parts = torch.stack([loss(f[i : i + 4], y[i : i + 4]) for i in (0, 4, 8)])
    torch.testing.assert_close(loss(f, y), parts.mean())


# --- soft labels -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SOFT)
def test_one_hot_soft_labels_are_hard_labels(name):
    f, y = sample()
    loss = build_loss(name, **DATA)
    torch.testing.assert_close(loss(f, F.one_hot(y, CLASSES).float()), loss(f, y))


@pytest.mark.parametrize("name", sorted(set(SOFT) - {"class_balanced", "generalized_reweight"}))
def test_mixed_labels_mix_the_losses(name):
    f, y = sample()
    other = (y + 2) % CLASSES
    mixed = 0.7 * F.one_hot(y, CLASSES) + 0.3 * F.one_hot(other, CLASSES)
    loss = build_loss(name, **DATA)
    torch.testing.assert_close(loss(f, mixed), 0.7 * loss(f, y) + 0.3 * loss(f, other))


@pytest.mark.parametrize("name", HARD_ONLY)
def test_losses_without_a_soft_form_say_so(name):
    f, y = sample()
    with pytest.raises(InputError, match="not defined for soft labels"):
        build_loss(name, **DATA)(f, F.one_hot(y, CLASSES).float())


# --- shapes, kinds, precision, devices ---------------------------------------------------------------------


@pytest.mark.parametrize("name", LOSSES)
def test_leading_dimensions_numpy_and_precision(name):
    f, y = sample(n=12)
    loss = build_loss(name, **DATA)
    expected = loss(f, y)
    assert expected.shape == ()
    torch.testing.assert_close(loss(f.reshape(3, 4, CLASSES), y.reshape(3, 4)), expected)
    torch.testing.assert_close(loss(f.double(), y), expected.double(), rtol=1e-5, atol=1e-6)
    as_numpy = loss(f.numpy(), y.numpy())
    assert isinstance(as_numpy, np.ndarray)
    np.testing.assert_allclose(as_numpy, expected, rtol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_logits_are_widened_also_under_autocast(name):
    f, y = sample()
    f = f.bfloat16()
    expected = build_loss(name, **DATA)(f.float(), y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = build_loss(name, **DATA)(f, y)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", LOSSES)
def test_compiled_in_one_graph(name):
    f, y = sample()
    loss = build_loss(name, **DATA)
    torch.compiler.reset()
    torch.testing.assert_close(torch.compile(loss, backend="eager", fullgraph=True)(f, y), loss(f, y))


@pytest.mark.parametrize("name", LOSSES)
def test_an_empty_batch_costs_nothing(name):
    f = torch.zeros(0, CLASSES, requires_grad=True)
    value = build_loss(name, **DATA)(f, torch.zeros(0, dtype=torch.long))
    value.backward()
    assert value == 0
    assert f.grad.shape == f.shape


@pytest.mark.parametrize("name", LOSSES)
def test_constants_are_buffers_that_move_and_save(name):
    loss = build_loss(name, **DATA)
    assert not list(loss.parameters())
    moved = copy.deepcopy(loss).to("meta")
    assert all(buffer.device.type == "meta" for buffer in moved.buffers())
    uniform = {"counts": torch.full((CLASSES,), 9), "pretrain_prior": LabelPrior.uniform(CLASSES)}
    other = build_loss(name, **uniform)
    other.load_state_dict(loss.state_dict())
    f, y = sample()
    assert torch.equal(other(f, y), loss(f, y))
    if name not in ("ce", "focal"):
        assert list(loss.buffers())


# --- the registry and what is refused ----------------------------------------------------------------------


def test_every_option_of_every_loss_is_used():
    """An option that is accepted and ignored would be worse than an error."""
    f, y = sample()
    for name in LOSSES:
        for option, default in loss_options(name).items():
            other = torch.arange(1.0, CLASSES + 1) if option == "class_weight" else 0.37 * default
            changed = build_loss(name, **DATA, **{option: other})(f, y)
            assert not torch.isclose(changed, build_loss(name, **DATA)(f, y)), (name, option)


def test_counts_and_prior_describe_the_same():
    f, y = sample()
    for name in ("la", "ldam", "lade", "vs"):
        by_prior = build_loss(name, source_prior=P_S.log())(f, y)
        torch.testing.assert_close(by_prior, build_loss(name, counts=COUNTS)(f, y))


def test_zero_counts_may_be_smoothed():
    counts = COUNTS.clone()
    counts[2] = 0
    smooth = LabelPrior.from_counts(counts, zero="smooth", smoothing=1)
    f, y = sample()
    assert torch.isfinite(build_loss("la", source_prior=smooth)(f, y))


BAD = [
    (lambda: build_loss("lda", **DATA), r"unknown loss 'lda'; did you mean '(la|ldam|lade)'\?"),
    (lambda: build_loss("zzz"), "unknown loss 'zzz'; known are ce, focal"),
    (lambda: build_loss("la", **DATA, tua=1), "loss 'la': unknown option 'tua'; did you mean 'tau'"),
    (lambda: build_loss("ce", tau=1), "loss 'ce': unknown option 'tau'; known are none"),
    (lambda: build_loss("la"), "loss 'la' needs source_prior; pass counts or source_prior"),
    (lambda: build_loss("class_balanced", source_prior=P_S.log()), "needs counts; pass counts"),
    (lambda: build_loss("gla_train", counts=COUNTS), "needs pretrain_prior"),
    (lambda: build_loss("la", counts=[5, 0, 3, 0]), r"counts: class 1 has no samples \(2 such classes\)"),
    (lambda: build_loss("class_balanced", counts=[5, 0]), r"counts: class 1 has no samples \(1 such class\)"),
    (lambda: build_loss("la", counts=[5, -1]), "negative"),
    (lambda: build_loss("la", source_prior=COUNTS), "source_prior: log-probabilities expected"),
    (lambda: build_loss("la", source_prior=P_S), "source_prior: log-probabilities expected"),
    (lambda: build_loss("la", source_prior=0.5), r"source_prior: shape \(\)"),
    (
        lambda: build_loss("gla_train", counts=[1, 2], pretrain_prior=LabelPrior.uniform(3)),
        "pretrain_prior: 3 classes, but 2",
    ),
    (lambda: build_loss("la", **DATA, tau=float("nan")), "tau is nan; expected a finite number"),
    (lambda: build_loss("la", **DATA, tau="x"), "tau is 'x'; expected a number"),
    (lambda: build_loss("la", **DATA, scale=0), "scale is 0; expected above 0"),
    (lambda: build_loss("focal", gamma=-1), "gamma is -1; expected at least 0"),
    (lambda: build_loss("class_balanced", **DATA, beta=1), "beta is 1; expected at least 0 and below 1"),
    (lambda: build_loss("vs", **DATA, class_weight=[1.0]), "class_weight"),
    (lambda: build_loss("la", **DATA)(torch.zeros(2, 3), torch.zeros(2, dtype=int)), "built for 7"),
    (lambda: build_loss("ce")(torch.zeros(2, 3), torch.tensor([0, 3])), "labels holds 3; .* 0 to 2"),
    (lambda: build_loss("ce")(torch.zeros(2, 3), torch.tensor([0, -1])), "labels holds -1"),
    (lambda: build_loss("ce")(torch.zeros(2, 3), torch.tensor([0])), r"labels has shape \(1,\)"),
    (lambda: build_loss("ce")(torch.zeros(2, 3), torch.tensor([0.0, 1.0])), r"labels has shape \(2,\)"),
    (lambda: build_loss("ce")(torch.zeros(1, 3), torch.tensor([[0.5, 0.1, 0.1]])), "no probabilities"),
    (lambda: build_loss("ce")(torch.zeros(1, 2), torch.tensor([[1.5, -0.5]])), "no probabilities"),
    (lambda: build_loss("ce")(torch.zeros(2, 3, dtype=int), torch.tensor([0, 1])), "floating point"),
    (lambda: build_loss("ce")(torch.zeros(3, 1), torch.zeros(3, dtype=int)), "at least 2 classes"),
]


@pytest.mark.parametrize(("call", "message"), BAD, ids=[message for _, message in BAD])
def test_refused_in_one_clear_line(call, message):
    with pytest.raises(InputError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
