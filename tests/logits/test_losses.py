"""Losses: their formulas, their algebra, their precision and what they refuse."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from dualtail.errors import InputError
from dualtail.logits.losses import LOSSES, LogitLoss, build_loss
from dualtail.logits.prior import LabelPrior
from dualtail.testing.losses import (
    CLASSES,
    COUNTS,
    LOSS_CHECKS,
    PRETRAIN_PRIOR,
    LossCase,
    assert_logit_shift,
    assert_renumbered,
    sample,
)

P_S = COUNTS / COUNTS.sum()
P_P = PRETRAIN_PRIOR.log_prob.exp()
DATA = {"counts": COUNTS, "pretrain_prior": PRETRAIN_PRIOR}

# Which promises a loss does not give: it looks at the size of logits, or at the whole batch.
NOT_PROMISED = {
    "logit_shift": {"lade", "vs"},
    "batch_parts": {"lade", "class_balanced", "generalized_reweight"},
    "mixed_labels": {"class_balanced", "generalized_reweight"},
    "remaining_prior": {"focal", "ldam", "lade", "vs"},  # no closed form; what holds is tested below
}


@pytest.mark.parametrize("check", LOSS_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", LOSSES)
def test_what_every_loss_promises(name, check):
    case = LossCase(LOSSES[name])
    if name not in NOT_PROMISED.get(check.__name__, ()):
        check(case)
    else:
        with pytest.raises(AssertionError):  # were it kept, it would have to be promised
            check(case)


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
    for name in set(LOSSES) - NOT_PROMISED["logit_shift"]:
        assert_logit_shift(LossCase(LOSSES[name]).build(), f, y, shift)


@settings(max_examples=30, deadline=None)
@given(st.permutations(range(CLASSES)), st.integers(0, 1000))
def test_classes_may_be_renumbered(order, seed):
    f, y = sample(seed=seed, dtype=torch.float64)
    for name in LOSSES:
        assert_renumbered(LossCase(LOSSES[name]), f, y, torch.tensor(order))


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


# --- what training leaves of the priors ----------------------------------------------------------------------


class World:
    """Points with known numbers of samples of each class, hence with known posteriors and evidence."""

    def __init__(self, points=15, classes=4, seed=0):
        generator = torch.Generator().manual_seed(seed)
        favoured = torch.linspace(2, -1, classes, dtype=torch.float64)
        noise = 1.5 * torch.randn(points, classes, generator=generator, dtype=torch.float64)
        self.drawn = (100 * (noise + favoured).softmax(1)).long() + 1
        self.sampled = LabelPrior.from_counts(self.drawn.sum(0))
        self.evidence = (
            self.drawn.double().log() - self.sampled.log_prob
        )  # log p(x | y) up to a constant of x
        # Other than what is sampled, as after class-balanced or square-root sampling.
        self.source = LabelPrior((1.7 * self.sampled.log_prob).log_softmax(0))
        self.data = {
            "counts": 1000 * self.source.prob,
            "source_prior": self.source,
            "pretrain_prior": LabelPrior(favoured.flip(0).log_softmax(0)),
        }

    def minimiser(self, loss):
        """Return the logits ``(points, C)`` that minimise a loss on these samples."""
        labels = torch.cat([torch.arange(len(row)).repeat_interleave(row) for row in self.drawn])
        point = torch.arange(len(self.drawn)).repeat_interleave(self.drawn.sum(1))
        f = torch.zeros_like(self.evidence, requires_grad=True)
        optimiser = torch.optim.LBFGS(
            [f], max_iter=500, tolerance_grad=1e-9, tolerance_change=1e-14, line_search_fn="strong_wolfe"
        )

        def closure():
            optimiser.zero_grad()
            value = loss(f[point], labels)
            value.backward()
            return value

        optimiser.step(closure)
        return f.detach()


EFFECTIVE = 1 - 0.9999 ** (1000 * World().source.prob)
# By what the sampled prior s is multiplied, in terms of P_S, in the logits of a minimiser.
REMAINING = [
    ("ce", {}, lambda s, p_s: s),
    ("focal", {}, lambda s, p_s: s),
    ("ldam", {}, lambda s, p_s: s),
    ("class_balanced", {}, lambda s, p_s: s / EFFECTIVE),
    ("generalized_reweight", {}, lambda s, p_s: s / p_s),
    ("generalized_reweight", {"power": 0.5}, lambda s, p_s: s / p_s**0.5),
    ("balanced_softmax", {}, lambda s, p_s: s / p_s),
    ("la", {}, lambda s, p_s: s / p_s),
    ("la", {"tau": 0.0}, lambda s, p_s: s),
    ("la", {"tau": 0.5}, lambda s, p_s: s / p_s**0.5),
    ("la", {"tau": 0.5, "scale": 2.0}, lambda s, p_s: s**0.5 / p_s**0.5),
    ("lade", {"regularization": 0.0}, lambda s, p_s: s / p_s),
    ("gla_train", {"tau": 0.5, "pretrain_tau": 0.0}, lambda s, p_s: s / p_s**0.5),
    ("vs", {"gamma": 0.0, "tau": 0.5}, lambda s, p_s: s / p_s**0.5),
    ("vs", {"gamma": 0.0, "class_weight": [1, 2, 3, 4]}, lambda s, p_s: s / p_s * torch.arange(1, 5)),
]


def test_every_loss_says_what_it_leaves():
    assert {name for name, *_ in REMAINING} == set(LOSSES)


@pytest.mark.parametrize(("name", "options", "left"), REMAINING)
def test_remaining_prior(name, options, left):
    world = World()
    loss = build_loss(name, **world.data, **options)
    expected = left(world.sampled.prob, world.source.prob)
    found = loss.remaining_prior(world.sampled)
    torch.testing.assert_close(found.prob, expected / expected.sum(), atol=1e-6, rtol=1e-5)
    again = loss.remaining_prior(world.sampled.log_prob.numpy())
    torch.testing.assert_close(again.prob, found.prob)
    assert loss.pretrain_tau == 0


@pytest.mark.parametrize(
    ("name", "options", "left"), [row for row in REMAINING if row[0] not in ("focal", "ldam")]
)
def test_the_minimiser_is_the_evidence_and_the_remaining_prior(name, options, left):
    world = World()
    loss = build_loss(name, **world.data, **options)
    offset = loss.remaining_prior(world.sampled).log_prob
    f = world.evidence / options.get("scale", 1.0) + offset
    found = world.minimiser(loss)
    difference = (found - found.mean(1, keepdim=True)) - (f - f.mean(1, keepdim=True))
    assert difference.abs().max() < 5e-3


@pytest.mark.parametrize("name", ["focal", "ldam"])
def test_losses_that_rank_as_the_cross_entropy_does(name):
    """No closed form: their answers are those of the posterior, wherever its odds are above 2."""
    world = World()
    ranked = world.drawn.sort(dim=1, descending=True)
    sure = ranked.values[:, 0] > 2 * ranked.values[:, 1]
    options = {"scale": 5.0} if name == "ldam" else {}
    answers = world.minimiser(build_loss(name, **world.data, **options)).argmax(1)
    assert 0 < sure.sum() < len(sure)
    assert torch.equal(answers[sure], ranked.indices[sure, 0])
    assert not torch.equal(answers[sure], world.evidence[sure].argmax(1))


def test_lades_penalty_pulls_little_of_the_prior_back():
    world = World()
    loss = build_loss("lade", source_prior=world.sampled)
    found = world.minimiser(loss) - world.evidence
    offset = (found - found.mean(1, keepdim=True)).mean(0)
    whole = world.sampled.log_prob - world.sampled.log_prob.mean()
    share = float(offset @ whole / (whole @ whole))
    assert loss.remaining_prior(world.sampled).is_uniform
    assert 0 < share < 0.03


def test_gla_train_takes_of_the_pretraining_prior_what_it_is_told():
    world = World()
    loss = build_loss("gla_train", **world.data, pretrain_tau=0.3)
    assert loss.pretrain_tau == 0.3
    la = build_loss("la", **world.data).remaining_prior(world.sampled)
    torch.testing.assert_close(loss.remaining_prior(world.sampled).prob, la.prob, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_nothing_remains_where_all_was_taken_or_nothing_sampled(name):
    counts = torch.tensor([115846.0, 4000, 20, 5])
    source = LabelPrior.from_counts(counts)
    data = {"counts": counts, "source_prior": source, "pretrain_prior": LabelPrior.uniform(4)}
    loss = build_loss(name, **data)
    takes_all = {"generalized_reweight", "balanced_softmax", "la", "lade", "gla_train", "vs"}
    assert loss.remaining_prior(source).is_uniform == (name in takes_all)
    uniform = loss.remaining_prior(LabelPrior.uniform(4))
    assert uniform.is_uniform == (name in ("ce", "focal", "ldam"))
    if loss.num_classes is not None:
        with pytest.raises(InputError, match="sampled: 3 classes, but 4"):
            loss.remaining_prior(LabelPrior.uniform(3))


class Own(LogitLoss):
    """A loss as a package outside would write it."""

    def __init__(self, counts, source_prior=None, sharpness=2.0):
        super().__init__()
        self.given = (counts, source_prior, sharpness)


@pytest.fixture
def own():
    with LOSSES.added("own", Own):
        yield


@pytest.mark.usefixtures("own")
def test_a_loss_of_ones_own():
    assert Own.needs == ("counts",)
    assert LOSSES.options("own") == {"sharpness": 2.0}
    loss = build_loss("own", counts=COUNTS, pretrain_prior=DATA["pretrain_prior"], sharpness=3.0)
    counts, source, sharpness = loss.given
    assert (counts is COUNTS, sharpness) == (True, 3.0)
    torch.testing.assert_close(source.prob.float(), P_S)
    assert loss.remaining_prior(P_S.log()).log_prob.tolist() == pytest.approx(P_S.log().tolist())
    with pytest.raises(InputError, match="the loss 'own' needs counts; pass counts"):
        build_loss("own")
    with pytest.raises(InputError, match="the loss 'other' is no LogitLoss"):
        LOSSES.add("other", dict)


# --- the registry and what is refused ----------------------------------------------------------------------


def test_class_weights_of_vs_are_used():
    f, y = sample()
    weighted = build_loss("vs", **DATA, class_weight=torch.arange(1.0, CLASSES + 1))(f, y)
    assert not torch.isclose(weighted, build_loss("vs", **DATA)(f, y))


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
    (lambda: build_loss("zzz"), "unknown loss 'zzz'; choose from ce, focal"),
    (lambda: build_loss("la", **DATA, tua=1), "the loss 'la' has no option 'tua'; did you mean 'tau'"),
    (lambda: build_loss("ce", tau=1), "the loss 'ce' has no option 'tau'; it takes none"),
    (lambda: build_loss("la"), "the loss 'la' needs source_prior; pass counts or source_prior"),
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
    (lambda: build_loss("la", **DATA, tau=float("nan")), "tau is nan; it should be a finite number"),
    (lambda: build_loss("la", **DATA, tau="x"), "tau is 'x'; it should be a number"),
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
