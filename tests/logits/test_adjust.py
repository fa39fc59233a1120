"""Named adjustments: formulas, algebra, contracts, and a prior that is never subtracted twice."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dualtail.errors import InputError
from dualtail.logits.adjust import ADJUSTMENTS, adjust_logits
from dualtail.logits.losses import LOSSES, build_loss
from dualtail.logits.prior import LabelPrior

CLASSES = 5
SOURCE = LabelPrior.from_counts([50, 20, 10, 4, 1])
PRETRAIN = LabelPrior.from_counts([2, 7, 1, 8, 2])


def logits_of(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(*shape, CLASSES, generator=generator, dtype=dtype)


def adjusted(variant: str, logits, zero_shot, source=SOURCE, pretrain=PRETRAIN, **options):
    return adjust_logits(
        logits, variant, zero_shot_logits=zero_shot, source_prior=source, pretrain_prior=pretrain, **options
    )


TAKES_NOTHING = ("ce", "focal", "ldam")
FORMULAS = {
    "none": lambda f, zs, tau: f,
    "gla_zs": lambda f, zs, tau: f - tau * PRETRAIN.log_prob,
    "gla_ft": lambda f, zs, tau: f - tau * SOURCE.log_prob,
    "gla": lambda f, zs, tau: (f - tau * SOURCE.log_prob) + (zs - tau * PRETRAIN.log_prob),
    "gla_la": lambda f, zs, tau: f + (zs - tau * PRETRAIN.log_prob),
}


def test_every_adjustment_has_its_formula_here():
    assert set(FORMULAS) == set(ADJUSTMENTS)


@pytest.mark.parametrize("variant", ADJUSTMENTS)
class TestEveryVariant:
    @pytest.mark.parametrize("tau", [1.0, 0.0, 0.5, 2.0, -1.0])
    def test_formula(self, variant, tau):
        f, zs = logits_of(1, 7), logits_of(2, 7)
        torch.testing.assert_close(adjusted(variant, f, zs, tau=tau), FORMULAS[variant](f, zs, tau))

    def test_what_it_needs_is_all_it_needs(self, variant):
        data = {"zero_shot_logits": logits_of(2, 7), "source_prior": SOURCE, "pretrain_prior": PRETRAIN}
        needs = ADJUSTMENTS[variant].needs
        adjust_logits(logits_of(1, 7), variant, **{name: data[name] for name in needs})
        for name in needs:
            with pytest.raises(InputError, match=f"variant '{variant}': {name} is missing"):
                adjust_logits(logits_of(1, 7), variant, **{k: v for k, v in data.items() if k != name})

    def test_numpy_in_numpy_out(self, variant):
        f, zs = logits_of(1, 7), logits_of(2, 7)
        found = adjusted(variant, f.numpy(), zs.numpy(), SOURCE.log_prob.numpy(), PRETRAIN.log_prob.numpy())
        assert isinstance(found, np.ndarray)
        np.testing.assert_allclose(found, adjusted(variant, f, zs))

    def test_dtypes(self, variant):
        f, zs = logits_of(1, 7), logits_of(2, 7)
        single = adjusted(variant, f.float(), zs.float())
        assert single.dtype == torch.float32
        torch.testing.assert_close(single.double(), adjusted(variant, f, zs), atol=1e-5, rtol=0)
        assert adjusted(variant, f.half(), zs).dtype == torch.float32

    def test_leading_dimensions_and_batches(self, variant):
        f, zs = logits_of(1, 2, 3, 4), logits_of(2, 2, 3, 4)
        whole = adjusted(variant, f, zs)
        assert whole.shape == f.shape
        parts = [adjusted(variant, f[i], zs[i]) for i in range(2)]
        assert torch.equal(torch.stack(parts), whole)
        torch.testing.assert_close(adjusted(variant, f[0, 0, 0], zs[0, 0, 0]), whole[0, 0, 0])

    def test_classes_permute(self, variant):
        order = torch.tensor([3, 1, 4, 0, 2])
        f, zs = logits_of(1, 7), logits_of(2, 7)
        source, pretrain = LabelPrior(SOURCE.log_prob[order]), LabelPrior(PRETRAIN.log_prob[order])
        found = adjusted(variant, f[:, order], zs[:, order], source, pretrain)
        torch.testing.assert_close(found, adjusted(variant, f, zs)[:, order])

    def test_adding_to_a_samples_logits_keeps_its_probabilities(self, variant):
        f, zs, shift = logits_of(1, 7), logits_of(2, 7), logits_of(3, 7)[:, :1]
        moved = adjusted(variant, f + shift, zs - 2 * shift).softmax(1)
        torch.testing.assert_close(moved, adjusted(variant, f, zs).softmax(1))

    def test_the_inputs_are_not_changed_nor_returned(self, variant):
        f, zs = logits_of(1, 7), logits_of(2, 7)
        found = adjusted(variant, f, zs)
        found += 1
        assert torch.equal(f, logits_of(1, 7))
        assert torch.equal(zs, logits_of(2, 7))

    @given(seed=st.integers(0, 1000), tau=st.floats(-3, 3))
    def test_uniform_priors_change_no_probability(self, variant, seed, tau):
        uniform = LabelPrior.uniform(CLASSES)
        f, zs = logits_of(seed, 4), logits_of(seed + 1, 4)
        plain = f + zs if ADJUSTMENTS[variant].adds_zero_shot else f
        found = adjusted(variant, f, zs, uniform, uniform, tau=tau)
        torch.testing.assert_close(found.softmax(1), plain.softmax(1))

    @given(seed=st.integers(0, 1000), tau=st.floats(-3, 3))
    def test_adjusting_and_putting_back_is_the_identity(self, variant, seed, tau):
        if ADJUSTMENTS[variant].adds_zero_shot:
            return  # what is put back is not the zero-shot logits
        f = logits_of(seed, 4)
        there = adjusted(variant, f, None, tau=tau)
        torch.testing.assert_close(adjusted(variant, there, None, tau=-tau), f)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"logits": torch.full((2, CLASSES), float("nan"))}, "not finite"),
            ({"logits": torch.zeros(2, CLASSES, dtype=torch.int64)}, "expected floating point"),
            ({"tau": float("inf")}, "tau is inf"),
        ],
    )
    def test_bad_values_are_refused(self, variant, change, message):
        arguments = {"logits": torch.zeros(2, CLASSES), "zero_shot": torch.zeros(2, CLASSES)} | change
        with pytest.raises(InputError, match=message):
            adjusted(variant, **arguments)


class TestSubtractedTwice:
    @pytest.mark.parametrize(
        "loss", [name for name in LOSSES if name not in (*TAKES_NOTHING, "class_balanced")]
    )
    @pytest.mark.parametrize("variant", ["gla_ft", "gla"])
    def test_after_a_loss_that_took_the_source_prior(self, loss, variant):
        with pytest.raises(InputError, match=f"source_prior would be subtracted twice: the loss '{loss}'"):
            adjusted(variant, logits_of(1, 3), logits_of(2, 3), trained_with=loss)

    @pytest.mark.parametrize(
        "loss", [*TAKES_NOTHING, ("la", {"tau": 0}), ("gla_train", {"tau": 0, "pretrain_tau": 0})]
    )
    @pytest.mark.parametrize("variant", ADJUSTMENTS)
    def test_a_loss_that_took_no_prior_allows_everything(self, loss, variant):
        f, zs = logits_of(1, 3), logits_of(2, 3)
        torch.testing.assert_close(adjusted(variant, f, zs, trained_with=loss), FORMULAS[variant](f, zs, 1.0))

    def test_a_loss_that_took_half_leaves_half(self):
        f, half = logits_of(1, 3), ("la", {"tau": 0.5})
        with pytest.raises(InputError, match=r"'la' has taken 0\.5 of it into account; use tau=0\.5 or less"):
            adjusted("gla_ft", f, None, trained_with=half)
        found = adjusted("gla_ft", f, None, trained_with=half, tau=0.5)
        torch.testing.assert_close(found, FORMULAS["gla_ft"](f, None, 0.5))
        back = adjusted("gla_ft", f, None, trained_with="la", tau=-1.0)
        torch.testing.assert_close(back, FORMULAS["gla_ft"](f, None, -1.0))

    def test_a_built_loss_says_it_as_well(self):
        f, counts = logits_of(1, 3), [50, 20, 10, 4, 1]
        adjusted("gla_ft", f, None, trained_with=build_loss("la", counts=counts, tau=0))
        for name in ("la", "class_balanced"):
            with pytest.raises(InputError, match=r"would be subtracted twice: the loss '(Logit|Class)"):
                adjusted("gla_ft", f, None, trained_with=build_loss(name, counts=counts))
        with pytest.raises(InputError, match=r"4 classes, but 5|5 classes, but 4"):
            adjusted("gla_ft", f, None, trained_with=build_loss("la", counts=counts[:4]))

    def test_nothing_can_be_taken_of_a_uniform_prior(self):
        equal = LabelPrior.from_counts([7] * 9)  # rounding leaves its mean a little off its entries
        loss = build_loss("vs", source_prior=equal, class_weight=[*range(9, 0, -1)])
        for trained_with in ("la", loss):
            adjust_logits(torch.zeros(2, 9), "gla_ft", source_prior=equal, trained_with=trained_with)

    def test_a_name_alone_does_not_say_how_a_loss_weighs_by_counts(self):
        with pytest.raises(
            InputError, match="trained_with: the loss 'class_balanced' needs counts; pass the loss"
        ):
            adjusted("gla_ft", logits_of(1, 3), None, trained_with="class_balanced")

    def test_the_pretraining_prior_after_gla_train(self):
        with pytest.raises(
            InputError, match="pretrain_prior would be subtracted twice: the loss 'gla_train'"
        ):
            adjusted("gla_zs", logits_of(1, 3), None, trained_with="gla_train")
        adjusted("gla_la", logits_of(1, 3), logits_of(2, 3), trained_with="gla_train")

    def test_gla_names_the_variant_for_adjusted_models(self):
        with pytest.raises(InputError, match="'gla_la' adds zero-shot logits"):
            adjusted("gla", logits_of(1, 3), logits_of(2, 3), trained_with="la")
        adjusted("gla_la", logits_of(1, 3), logits_of(2, 3), trained_with="la")

    def test_the_other_prior_may_follow(self):
        f, zs = logits_of(1, 3), logits_of(2, 3)
        source_off = adjusted("gla_ft", f, None)
        torch.testing.assert_close(adjusted("gla_la", source_off, zs), adjusted("gla", f, zs))

    def test_a_model_trained_by_la_equals_one_adjusted_afterwards(self):
        """What the rule rests on: LA's optimum is the cross-entropy's with the prior taken off."""
        labels = torch.arange(CLASSES).repeat_interleave(torch.tensor([50, 20, 10, 4, 1]))
        optima = {}
        for name in ("ce", "la"):
            bias = torch.zeros(CLASSES, dtype=torch.float64, requires_grad=True)
            loss = build_loss(name, source_prior=SOURCE)
            optimiser = torch.optim.LBFGS([bias], max_iter=200, tolerance_grad=1e-10)

            def closure(bias=bias, loss=loss, optimiser=optimiser):
                optimiser.zero_grad()
                value = loss(bias.expand(len(labels), -1), labels)
                value.backward()
                return value

            optimiser.step(closure)
            optima[name] = bias.detach()
        after = adjust_logits(optima["ce"], "gla_ft", source_prior=SOURCE).softmax(0)
        torch.testing.assert_close(after, optima["la"].softmax(0), atol=1e-4, rtol=0)
        torch.testing.assert_close(after, torch.full_like(after, 0.2), atol=1e-4, rtol=0)


class TestNames:
    def test_a_misspelt_variant_or_loss_is_named(self):
        with pytest.raises(InputError, match=r"unknown adjustment 'gla_sz'; did you mean 'gla_zs'\?"):
            adjust_logits(logits_of(1, 3), "gla_sz")
        with pytest.raises(InputError, match="trained_with: unknown loss 'LAA'; choose from ce, focal"):
            adjusted("gla_ft", logits_of(1, 3), None, trained_with="LAA")
        with pytest.raises(InputError, match="the loss 'la' has no option 'tua'"):
            adjusted("gla_ft", logits_of(1, 3), None, trained_with=("la", {"tua": 1}))

    def test_shapes_and_priors_are_checked(self):
        with pytest.raises(InputError, match=r"zero_shot_logits has shape \(4, 5\); expected \(3, 5\)"):
            adjusted("gla", logits_of(1, 3), logits_of(2, 4))
        with pytest.raises(InputError, match="source_prior: 4 classes, but 5 are expected"):
            adjusted("gla_ft", logits_of(1, 3), None, source=LabelPrior.uniform(4))
        with pytest.raises(InputError, match="pretrain_prior: log-probabilities expected"):
            adjusted("gla_zs", logits_of(1, 3), None, pretrain=PRETRAIN.prob)
