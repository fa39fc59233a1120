"""Fine-tuning of the members, each from its last checkpoint if there is one."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from dualtail.data.loader import Loader, train_loader
from dualtail.data.transforms import build_augmentation, eval_transform
from dualtail.engine.checkpoint import read_checkpoint
from dualtail.engine.inference import member_evaluation
from dualtail.engine.phases import Phase, finetune_phases
from dualtail.engine.progress import Progress
from dualtail.engine.settings import FinetuneSettings
from dualtail.errors import RecipeError
from dualtail.files import move_file, read_json, reading, write_json
from dualtail.logits.losses import LOSSES, build_loss
from dualtail.models.backbone import Backbone
from dualtail.models.classifier import Classifier, build_classifier
from dualtail.models.head_init import head_init_needs, head_weight
from dualtail.models.heads import HEADS
from dualtail.models.projection import Projection
from dualtail.models.zero_shot import ZeroShotClassifier
from dualtail.process_group import ProcessGroup
from dualtail.runs.context import UNREAD_TEXT, RunContext
from dualtail.runs.evaluation import read_prior
from dualtail.runs.members import MemberPlan
from dualtail.runs.observer import Observer
from dualtail.runs.recipe import Loss, Recipe
from dualtail.runs.stages.base import MODEL_PACKAGES, Stage
from dualtail.runs.stages.prior import PriorStage, prior_inputs


class FinetuneStage(Stage):
    """Trains the members one after the other, or each in a process of its own."""

    name, title = "finetune", "fine-tuning"
    packages = MODEL_PACKAGES

    def __init__(self, context: RunContext) -> None:
        super().__init__(context)
        self.together = context.group.size > 1 and context.recipe.runtime.share == "members"
        self.manner = " side by side" if self.together else ""

    def units(self) -> Sequence[str]:
        """Return the members."""
        return [member.name for member in self.context.run.members]

    def inputs(self, unit: str) -> str:
        """Return the fingerprint of backbone, images, settings and seeds, and of the prior that a loss takes."""
        context, member = self.context, self.context.member_plan(unit)
        recipe, tuned = context.recipe, context.recipe.finetune
        # Test images, and val where no choice is made on it, may change without another training.
        data = context.data_inputs("train", *(["val"] if tuned.keep == "best" else []))
        settings = tuned.model_dump(mode="json") | {"precision": recipe.runtime.precision}
        prior = prior_inputs(context, member.backbone) if self._needs_prior() else None
        seeds = [member.seed, recipe.seed]  # the recipe's draws the head's first weights
        text = context.text_inputs() if self._reads_text(member) else UNREAD_TEXT
        return self.stamp(data, member.backbone.identity(), seeds, [settings, text], prior)

    def sources(self, unit: str) -> Sequence[str]:
        """Return the prior, where a loss takes it."""
        return [PriorStage.key(self.context.member_plan(unit).backbone.name)] if self._needs_prior() else []

    def _needs_prior(self) -> bool:
        losses = self.context.recipe.finetune.losses
        return any("pretrain_prior" in LOSSES[loss.name].needs for loss in losses)

    def _reads_text(self, member: MemberPlan) -> bool:
        """Whether the head starts from the recipe's prompts, as far as that is known before the backbone is loaded."""
        head = self.context.recipe.finetune.head
        if HEADS[head.name].reads_text or not self.context.run.has_text(member.backbone):
            return False  # such a head makes its own prompts, of class names alone
        return head.init == "auto" or "text_features" in head_init_needs(head.init)

    def outputs(self, unit: str) -> Sequence[Path]:
        """Return the trained classifier and the record of its training."""
        files = self.context.run.member(unit)
        return [*files.classifier, files.training]

    def compute(self, units: Sequence[str]) -> None:
        """Train; with several processes side by side, this process's share as if it were alone."""
        group = self.context.group
        if self.together:
            units, group = units[group.rank :: group.size], ProcessGroup()
        for unit in units:
            self._train(unit, group)

    def write(self, unit: str, computed: Any) -> Sequence[Path]:
        """Put the trained classifier and the record of its training in their place."""
        for path in self.outputs(unit):
            move_file(self.context.run.member(unit).trained / path.name, path)
        return self.outputs(unit)

    def seconds(self, unit: str) -> float:
        """Return the time of the training itself, of all its parts where it was interrupted."""
        training = self.context.run.member(unit).training
        with reading(training):
            return float(read_json(training, dict)["seconds"])

    def scratch(self, unit: str) -> Sequence[Path]:
        """Return the checkpoints."""
        return [self.context.run.member(unit).checkpoints]

    def leftovers(self, unit: str) -> Sequence[Path]:
        """Return the events."""
        return [self.context.run.member(unit).events]

    # One member.

    def _train(self, unit: str, group: ProcessGroup) -> None:
        context, member = self.context, self.context.member_plan(unit)
        files, identity = context.run.member(unit), self.inputs(unit)
        if group.leads:
            for note in drop_stale_checkpoints(files.checkpoints, identity):
                context.observer.note(note)
        group.wait()
        classifier = self._new_classifier(member, group)
        phases = self._phases(member, classifier, group)
        best = context.recipe.finetune.keep == "best"
        results = finetune_phases(
            classifier,
            phases,
            checkpoint_dir=files.checkpoints,
            events_dir=files.events,
            progress=partial(tell_training, context.observer),
            evaluate=self._val_evaluation(classifier, group) if best else None,
            sample_ids=context.train.sample_ids,
            identity=identity,
            device=context.recipe.runtime.device,
            group=group,
        )
        context.note_skipped(phases[0].loader, "train")  # type: ignore[arg-type]
        if group.leads:
            classifier.save(files.trained)
            about = {"backbone": member.backbone.name, "seed": member.seed}
            later = {"second_stage": results[1].to_dict()} if len(results) > 1 else {}
            write_json(files.trained / files.training.name, {**results[0].to_dict(), **later, **about})

    def _phases(self, member: MemberPlan, classifier: Classifier, group: ProcessGroup) -> list[Phase]:
        """Return the recipe's training, and its second stage if it has one."""
        tuned, second = self.context.recipe.finetune, self.context.recipe.finetune.second_stage
        settings = finetune_settings(self.context.recipe, member.seed)
        loader = self._train_loader(member, classifier, tuned.sampling, tuned.epochs, group)
        phases = [Phase("first", loader, self._loss(tuned.loss, member), settings)]
        if second is not None:
            # Warm-up belongs to the first phase: the second starts from trained weights.
            settings = settings.changed(
                epochs=second.epochs, learning_rate=second.learning_rate, warmup_epochs=0.0
            )
            loader = self._train_loader(member, classifier, second.sampling, second.epochs, group)
            phases.append(
                Phase("second", loader, self._loss(second.loss, member), settings, tuple(second.only))
            )
        return phases

    def _train_loader(
        self, member: MemberPlan, classifier: Classifier, sampling: str, epochs: int, group: ProcessGroup
    ) -> Loader:
        context, tuned = self.context, self.context.recipe.finetune
        spec = context.image_spec(classifier.backbone)
        return train_loader(
            context.train,
            build_augmentation(spec, tuned.augment.name, **tuned.augment.options),
            batch_size=tuned.batch_size,
            seed=member.seed,
            sampling=sampling,
            epochs=epochs,
            workers=context.workers,
            on_bad_image=context.recipe.data.on_bad_image,
            cache=context.recipe.runtime.cache,
            group=group,
        )

    def _loss(self, loss: Loss, member: MemberPlan) -> nn.Module:
        needs_prior = "pretrain_prior" in LOSSES[loss.name].needs
        if needs_prior and not self.context.run.has_text(member.backbone):
            raise RecipeError(
                f"the loss {loss.name} needs a pre-training prior, and {member.backbone.name} has none (no text "
                "tower)",
                where="recipe, finetune.loss",
                fix="choose the loss la, or another backbone",
            )
        prior = read_prior(self.context.run, member.backbone.name) if needs_prior else None
        counts = self.context.manifest.counts("train")
        return build_loss(loss.name, counts=counts, pretrain_prior=prior, **loss.options).to(
            self.context.device
        )

    def _new_classifier(self, member: MemberPlan, group: ProcessGroup) -> Classifier:
        context = self.context
        classifier = build_classifier(
            context.load_backbone(member.backbone),
            context.manifest.class_names,
            **context.recipe.finetune.classifier_options,
            seed=member.seed,
        )
        weight = None if classifier.head.reads_text else self._head_weight(classifier, group)
        if weight is not None:
            classifier.head.set_weight(weight)
        return classifier

    def _head_weight(self, classifier: Classifier, group: ProcessGroup) -> Tensor | None:
        """Return the head's first weights, by the recipe's ``head.init``."""
        context, backbone = self.context, classifier.backbone
        chosen = context.recipe.finetune.head.init
        init = automatic_init(backbone) if chosen == "auto" else chosen
        given: dict[str, Any] = {}
        needs = head_init_needs(init)
        if "text_features" in needs and backbone.has_text:
            given["text_features"] = context.text_features(backbone)
        if needs & {"features", "labels"}:
            images = {"train": context.train}
            train = context.infer({"": ZeroShotClassifier(backbone, None)}, images, group, crops=1)[""][
                "train"
            ]
            assert train.features is not None  # asked for above
            given |= {"features": train.features.float(), "labels": train.labels}
        return head_weight(init, backbone, context.manifest.num_classes, seed=context.recipe.seed, **given)

    def _val_evaluation(
        self, classifier: Classifier, group: ProcessGroup
    ) -> Callable[[nn.Module], Mapping[str, float]]:
        """Return what measures a member on val after an epoch."""
        context = self.context
        transform = eval_transform(context.image_spec(classifier.backbone))
        return member_evaluation(
            context.eval_loader(context.manifest.split("val"), {"": transform}, group),
            device=context.device,
            precision=context.recipe.runtime.precision,
            group=group,
        )


def tell_training(observer: Observer, now: Progress) -> None:
    """Say how far a training is."""
    observer.progress(
        now.step,
        now.steps,
        f"epoch {now.epoch}/{now.epochs}  loss {now.loss:.3f}  accuracy {100 * now.accuracy:.1f} %  "
        f"{now.images_per_second:.0f} images/s",
    )


def finetune_settings(recipe: Recipe, seed: int) -> FinetuneSettings:
    """Return the engine's settings of a recipe."""
    return FinetuneSettings(
        **recipe.finetune.choices(),
        precision=recipe.runtime.precision,
        seed=seed,
        checkpoint_minutes=recipe.runtime.checkpoint_minutes,
    )


def automatic_init(backbone: Backbone) -> str:
    """Return how a head starts by default: from text, where text features can be mapped back to image features."""
    return "text" if backbone.has_text and isinstance(backbone.projection, Projection) else "class_mean"


def drop_stale_checkpoints(folder: Path, identity: str) -> list[str]:
    """Delete checkpoints of a training with other inputs, which a changed recipe or changed data leave behind.

    Returns:
        A note for each of the others whose newest file is damaged.
    """
    notes = []
    for checkpoint in sorted(path for path in folder.glob("*") if path.is_dir()):
        kept = read_checkpoint(checkpoint)
        if kept is not None and kept.header.get("identity") != identity:
            shutil.rmtree(checkpoint)
        elif kept is not None and kept.note:
            notes.append(kept.note)
    return notes
