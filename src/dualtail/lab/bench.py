"""The bench of the studies: models and members of one world, each made once and kept on disk."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from dualtail.files import fingerprint, write_tensors
from dualtail.lab.corpus import Sample
from dualtail.lab.pretrain import is_made, pretrain, save_model
from dualtail.lab.task import draw_task, train_counts
from dualtail.lab.tune import BATCH, EPOCHS, LEARNING_RATE, WIDTH, Outputs, open_backbone, tune, zero_shot
from dualtail.lab.world import Architecture, Foundation, Pretraining, Task, World
from dualtail.logits.groups import ClassGroups
from dualtail.logits.prior import LabelPrior, estimate_label_prior
from dualtail.runs.observer import Observer

MOST = 5  # members of each kind: priors, seeds of pre-training, seeds of fine-tuning
_LOST = (["shape"], ["texture"], ["colour"], ["border"], ["background"])
_LARGE = Architecture(width=128, heads=8, text_width=32)


def study_world(seed: int, *, large: bool = False) -> World:
    """Return a world of the studies: smaller models and corpora than the embedded ones, so that many fit."""
    return World(
        seed=seed,
        classes=40,
        resample=0.12,
        architecture=_LARGE if large else Architecture(),
        pretraining=Pretraining(images=12_000, steps=400, batch=64),
        task=Task(largest=150, test_per_class=80),
    )


def different(index: int) -> Foundation:
    """Return the foundation number ``index``: a prior and a lost factor of its own."""
    return Foundation(prior=index, lost=_LOST[index], seed=index)


def same(index: int) -> Foundation:
    """Return a foundation of the first one's prior and lost factor; only its corpus and weights are drawn anew."""
    return Foundation(prior=0, lost=_LOST[0], seed=0 if index == 0 else 100 + index)


class Bench:
    """Models and members of one world.

    Args:
        seed: of the world.
        work: folder in which everything is kept for the next study.
        observer: hears what is made.
        most: largest ensemble that is asked for.
    """

    def __init__(self, seed: int, work: Path, observer: Observer, most: int = MOST) -> None:
        self.seed, self.world, self.observer, self.most = seed, study_world(seed), observer, most
        self.folder = work / f"world{seed}"

    @cached_property
    def splits(self) -> dict[str, Sample]:
        """The long-tailed train, val and test."""
        return draw_task(self.world)

    @cached_property
    def balanced_splits(self) -> dict[str, Sample]:
        """The same with as many training images spread evenly."""
        return self.splits | {"train": draw_task(self.world, balanced=True)["train"]}

    def labels(self, split: str = "test") -> Tensor:
        """Return the labels ``(N,)`` of a split."""
        return torch.from_numpy(self.splits[split].labels)

    @property
    def source_prior(self) -> LabelPrior:
        """``P_S`` of the long-tailed training set."""
        return LabelPrior.from_counts(train_counts(self.world))

    @property
    def d_groups(self) -> ClassGroups:
        """Classes by their training images."""
        return ClassGroups.from_counts(train_counts(self.world))

    def true_prior(self, foundation: Foundation) -> LabelPrior:
        """Return the label prior of a foundation's corpus."""
        return LabelPrior(torch.from_numpy(np.log(self.world.label_prior(foundation))))

    def estimated_prior(self, foundation: Foundation) -> LabelPrior:
        """Return the estimate from the zero-shot logits of val."""
        return estimate_label_prior(self.zero_shot(foundation).logits["val"], self.labels("val"))

    def model(self, foundation: Foundation, *, large: bool = False) -> Path:
        """Return the folder of a foundation model, pre-trained now if it is not there."""
        world = study_world(self.seed, large=large)
        folder = self.folder / "models" / world.fingerprint(foundation)
        if not is_made(world, foundation, folder):
            self.observer.stage(
                f"world {self.seed}: pre-training {_describe(foundation)}{' (large)' * large}"
            )
            save_model(pretrain(world, foundation, self.observer), world, foundation, folder)
        return folder

    def zero_shot(self, foundation: Foundation, *, large: bool = False) -> Outputs:
        """Return what a foundation model says before fine-tuning, of all splits."""

        def make() -> Outputs:
            return zero_shot(open_backbone(self.model(foundation, large=large)), self.world, self.splits)

        return self._kept({"zero_shot": foundation.model_dump(), "large": large}, make)

    def member(
        self,
        foundation: Foundation,
        *,
        loss: str = "la",
        loss_options: dict[str, Any] | None = None,
        sampling: str = "instance",
        seed: int = 0,
        balanced: bool = False,
        large: bool = False,
    ) -> Outputs:
        """Return what a fine-tuned model says of val and test, fine-tuned now if it is not there.

        Args:
            foundation: which model.
            loss: see ``build_loss``; one that takes a pre-training prior gets the estimate.
            loss_options: its options.
            sampling: of the training images.
            seed: of fine-tuning.
            balanced: train on as many images spread evenly.
            large: the model of about four times the cost.
        """
        choices: dict[str, Any] = {
            "loss": loss,
            "loss_options": loss_options,
            "sampling": sampling,
            "seed": seed,
        }
        key = {"member": foundation.model_dump(), **choices, "balanced": balanced, "large": large}

        def make() -> Outputs:
            folder = self.model(foundation, large=large)
            self.observer.stage(
                f"world {self.seed}: fine-tuning {_describe(foundation)}, {loss}, {sampling}, seed {seed}"
            )
            return tune(
                folder,
                self.world,
                self.balanced_splits if balanced else self.splits,
                pretrain_prior=self.estimated_prior(foundation) if loss == "gla_train" else None,
                **choices,
            )  # fmt: skip

        return self._kept(key, make)

    def _kept(self, key: dict[str, Any], make: Callable[[], Outputs]) -> Outputs:
        world = study_world(self.seed, large=key["large"])
        content = {"world": world.fingerprint(Foundation()), "task": world.task.model_dump(), **key}
        content["finetuning"] = [EPOCHS, BATCH, LEARNING_RATE, WIDTH]
        path = self.folder / "members" / f"{fingerprint(content)}.safetensors"
        if not path.is_file():
            outputs = make()
            tensors = {f"logits.{split}": value for split, value in outputs.logits.items()}
            write_tensors(
                path, tensors | {f"features.{split}": value for split, value in outputs.features.items()}
            )
        loaded = load_file(path)
        logits = {name.removeprefix("logits."): t for name, t in loaded.items() if name.startswith("logits.")}
        features = {
            name.removeprefix("features."): t for name, t in loaded.items() if name.startswith("features.")
        }
        return Outputs(logits, features)


def _describe(foundation: Foundation) -> str:
    tail = "balanced" if foundation.ratio == 1 else f"prior {foundation.prior}"
    return f"{tail}, seed {foundation.seed}, {foundation.objective}"
