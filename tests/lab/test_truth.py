"""What the lab promises about its models, on a world that nothing was tuned on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor

from dualtail.lab.pretrain import pretrain_world
from dualtail.lab.probes import draw_probe_images, factor_sensitivity, features_of, probe_factors
from dualtail.lab.task import draw_task
from dualtail.lab.tune import open_backbone, zero_shot
from dualtail.lab.world import Foundation, Pretraining, Task, World
from dualtail.logits.backdoor import backdoor_adjust
from dualtail.logits.prior import LabelPrior, estimate_label_prior
from dualtail.models.backbone import Backbone

WORLD = World(
    seed=77,
    classes=40,
    resample=0.1,
    pretraining=Pretraining(images=8000, steps=250, batch=64, learning_rate=3e-3),
    task=Task(largest=2, ratio=2, val_per_class=50, test_per_class=60),
    foundations={
        "first": Foundation(prior=0, lost=["colour"], seed=0),
        "same": Foundation(prior=0, lost=["colour"], seed=1),
        "other": Foundation(prior=1, lost=["border"], seed=2),
        "infonce": Foundation(prior=0, lost=["colour"], objective="infonce", seed=0),
    },
)


@dataclass
class Model:
    backbone: Backbone
    foundation: Foundation
    val: Tensor
    test: Tensor

    def correlation(self) -> float:
        labels = torch.arange(WORLD.classes).repeat_interleave(WORLD.task.val_per_class)
        estimate = estimate_label_prior(self.val, labels)
        return float(spearmanr(estimate.log_prob.numpy(), WORLD.label_prior(self.foundation))[0])


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Model]:
    splits = draw_task(WORLD)
    made = {}
    for folder in pretrain_world(WORLD, tmp_path_factory.mktemp("models")):
        backbone = open_backbone(folder)
        said = zero_shot(backbone, WORLD, splits)
        foundation = WORLD.foundations[folder.name]
        made[folder.name] = Model(backbone, foundation, said.logits["val"], said.logits["test"])
    return made


def accuracy(logits: Tensor) -> float:
    labels = torch.arange(WORLD.classes).repeat_interleave(WORLD.task.test_per_class)
    return float((logits.argmax(1) == labels).float().mean())


def test_the_mixed_objective_leaves_its_prior_in_the_logits(models) -> None:
    for name in ("first", "same", "other"):
        assert models[name].correlation() > 0.85, name


def test_infonce_leaves_less_of_it(models) -> None:
    assert models["infonce"].correlation() < models["first"].correlation() - 0.1


def test_subtracting_the_true_prior_helps(models) -> None:
    first = models["first"]
    truth = LabelPrior(torch.from_numpy(np.log(WORLD.label_prior(first.foundation))))
    assert accuracy(first.test - truth.log_prob) > accuracy(first.test) + 0.03


def test_averaging_gains_more_where_the_priors_differ(models) -> None:
    def gain(one: str, two: str) -> float:
        alone = (accuracy(models[one].test) + accuracy(models[two].test)) / 2
        return accuracy(backdoor_adjust([models[one].test, models[two].test])) - alone

    assert gain("first", "other") > gain("first", "same")


def test_the_planted_loss_shows(models) -> None:
    for name, other in (("first", "other"), ("other", "first")):
        model = models[name]
        lossy = WORLD.lossy_classes(model.foundation)
        lost = WORLD.factor_names.index(model.foundation.lost[0])
        heeded = factor_sensitivity(model.backbone, WORLD, lossy)
        # Less than in the classes that kept it, and less than a model that kept it for these classes.
        assert heeded[lost] < 0.7 * factor_sensitivity(model.backbone, WORLD, ~lossy)[lost], name
        assert heeded[lost] < factor_sensitivity(models[other].backbone, WORLD, lossy)[lost], name


def test_probes_read_the_factors_from_the_features(models) -> None:
    images, _, factors = draw_probe_images(WORLD)
    features = features_of(models["first"].backbone, images)
    half = np.random.default_rng(0).permutation(len(images))
    fit, rest = half[::2], half[1::2]
    found = probe_factors(features[fit], factors[fit], features[rest], factors[rest])
    # Codes do not use every value equally often: the best guess is the most frequent one.
    chance = np.array([np.bincount(column).max() / len(column) for column in factors.T])
    assert (found > chance + 0.1).all()
    shuffled = factors[np.random.default_rng(1).permutation(len(factors))]
    nothing = probe_factors(features[fit], shuffled[fit], features[rest], shuffled[rest])
    assert (nothing < chance + 0.03).all()
