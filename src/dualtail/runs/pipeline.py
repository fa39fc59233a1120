"""The stages of a run, each skipped when the fingerprint of its inputs stands.

``zero_shot`` -> ``prior`` -> ``finetune`` -> ``logits`` -> ``adjust`` -> ``evaluate`` -> ``attribution``. The first,
the middle two and the last work on images; everything else is arithmetic on the logits that they left on disk.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dualtail.data.loader import Loader, eval_loader, train_loader
from dualtail.data.manifest import SPLITS, Manifest
from dualtail.data.problems import raise_errors
from dualtail.data.transforms import eval_transform, train_transform
from dualtail.engine.checkpoint import CHECKPOINT_NAME, read_header
from dualtail.engine.inference import infer, member_evaluation
from dualtail.engine.precision import resolve_device
from dualtail.engine.progress import InferenceProgress, Progress
from dualtail.engine.stages import Stage, finetune_stages
from dualtail.errors import RecipeError
from dualtail.imagespec import ImageSpec
from dualtail.logits.losses import LOSSES, build_loss
from dualtail.logits.prior import LabelPrior, estimate_label_prior
from dualtail.models.backbone import Backbone, load_backbone
from dualtail.models.classifier import Classifier, build_classifier, load_classifier
from dualtail.models.head_init import HEAD_INITS, head_weight
from dualtail.models.projection import Projection
from dualtail.models.text import class_text_features
from dualtail.models.zero_shot import ZeroShotClassifier
from dualtail.runs.analysis import adjust_members, evaluate_run, has_text
from dualtail.runs.attribution import attribute_run
from dualtail.runs.choices import finetune_settings, read_descriptions, refuse_choice_faults
from dualtail.runs.dataset import (
    build_manifest,
    evaluation_split,
    find_missing_val,
    find_problems,
    prior_sample,
)
from dualtail.runs.members import BackbonePlan, MemberPlan, plan_backbones, plan_members
from dualtail.runs.observer import Observer
from dualtail.runs.recipe import Loss, Recipe
from dualtail.runs.store import (
    RunDirectory,
    SplitLogits,
    fingerprint,
    read_json,
    read_logits,
    write_json,
    write_logits,
)
from dualtail.runs.team import Team

_TITLES = {
    "zero_shot": "zero-shot",
    "prior": "pre-training prior",
    "finetune": "fine-tuning",
    "logits": "logits",
    "adjust": "backdoor adjustment",
    "evaluate": "evaluation",
    "attribution": "attribution",
}
_FLAT = 0.05  # range of a log prior that is shrunk to nothing
NOTED_PROBLEMS = 5
Outputs = dict[str, dict[str, SplitLogits]]


def run_pipeline(
    recipe: Recipe, out: str | Path, *, update: bool = False, observer: Observer | None = None
) -> RunDirectory:
    """Run a recipe to its end, or go on where an earlier call stopped.

    Args:
        recipe: see :mod:`dualtail.runs.recipe`.
        out: the run directory.
        update: take a changed recipe over in a directory that belongs to another.
        observer: hears what is done.

    Returns:
        The finished run, unlocked.

    Raises:
        DualtailError: the recipe, its data or its models cannot be used; what was computed before stays.
        Interrupted: the user stopped the run; the same call goes on.
    """
    refuse_choice_faults(recipe)
    resolve_device(recipe.runtime.device)
    team = Team(recipe.runtime.device)
    if team.leads:
        with RunDirectory.open(out, recipe, update=update) as run:
            team.wait()
            Pipeline(run, team, observer or Observer()).run_all()
            return run
    team.wait()  # until the directory holds the recipe
    run = RunDirectory.read(out)
    Pipeline(run, team, Observer()).run_all()
    return run


class Pipeline:
    """The stages over one run directory.

    Args:
        run: an open run directory.
        team: the processes that share the work.
        observer: hears what is done.
    """

    def __init__(self, run: RunDirectory, team: Team, observer: Observer) -> None:
        self.run, self.recipe, self.team, self.observer = run, run.recipe, team, observer
        self.members = plan_members(self.recipe)
        self.backbones = plan_backbones(self.members)
        self.device = resolve_device(self.recipe.runtime.device)

    def run_all(self) -> None:
        """Run every stage whose inputs have changed or whose outputs are missing."""
        self.prepare()
        self.zero_shot()
        self.prior()
        self.finetune()
        self.logits()
        self.adjust()
        self.evaluate()
        self.attribution()
        if self.team.leads:
            self.run.write_provenance()

    # Data.

    def prepare(self) -> None:
        """Read the data, refuse its errors, and write down what it holds."""
        recipe = self.recipe
        # The first process alone may have to unpack the images; the others find them there.
        if not self.team.leads:
            self.team.wait()
        self.manifest = build_manifest(recipe.data, recipe.seed)
        if self.team.leads:
            self.team.wait()
        problems = find_problems(self.manifest, recipe.data)
        raise_errors(problems)
        for problem in problems[:NOTED_PROBLEMS]:
            self.observer.note(str(problem))
        if len(problems) > NOTED_PROBLEMS:
            self.observer.note(
                f"and {len(problems) - NOTED_PROBLEMS:,} more like these: 'dualtail check' lists them"
            )
        for note in self.manifest.notes:
            self.observer.note(note)
        self.split = evaluation_split(self.manifest)
        self.eval_splits = [name for name in ("val", "test") if name in self.manifest.split_sizes]
        for fault in find_missing_val(recipe, self.manifest):
            raise RecipeError(fault, where="recipe")
        self.split_prints = {name: self.manifest.split(name).fingerprint() for name in SPLITS}
        if self.team.leads:
            self.run.write_provenance(
                data={
                    "fingerprint": self._data_inputs(*SPLITS),
                    "root": recipe.data.root,
                    "image_root": str(self.manifest.root),
                    "splits": self.manifest.split_sizes,
                },
                seeds=sorted({member.seed for member in self.members}),
                processes=self.team.size,
            )
        sizes = ", ".join(f"{size:,} {name}" for name, size in self.manifest.split_sizes.items())
        self.observer.note(f"{self.manifest.num_classes:,} classes; images: {sizes}")

    # Foundation models as they are.

    def zero_shot(self) -> None:
        """Zero-shot logits of every backbone; each image is read once for all of them."""
        splits = [*self.eval_splits, *(["prior"] if self.recipe.prior.split == "train" else [])]
        pending = {
            plan: inputs
            for plan in self.backbones
            if not self._is_done("zero_shot", plan.name, inputs := self._zero_shot_inputs(plan, splits))
        }
        if not pending:
            return
        with self._stage("zero_shot", *(plan.name for plan in pending)) as clock:
            loaded = {plan: self._load_backbone(plan) for plan in pending}
            models = {
                plan.name: ZeroShotClassifier(backbone, self._text_features(backbone))
                for plan, backbone in loaded.items()
                if backbone.has_text
            }
            outputs = self._infer(models, splits)
            for plan, inputs in pending.items() if self.team.leads else ():
                folder = self.run.backbone_dir(plan.name)
                written = [folder / "backbone.json"]
                write_json(folder / "backbone.json", describe_backbone(plan, loaded[plan]))
                if plan.name in outputs:
                    written.append(folder / "zero_shot.safetensors")
                    write_logits(folder / "zero_shot.safetensors", outputs[plan.name])
                else:
                    self.run.forget(f"prior/{plan.name}")  # of a backbone that had this name before
                    self.observer.note(
                        f"{plan.name} has no text tower: no zero-shot logits, hence no pre-training prior of its own"
                    )
                self.run.mark_done(f"zero_shot/{plan.name}", inputs, written, clock.seconds())

    def prior(self) -> None:
        """The pre-training label prior of every backbone with zero-shot logits."""
        for plan in self.backbones:
            inputs = self._prior_inputs(plan)
            if not has_text(self.run, plan) or self._is_done("prior", plan.name, inputs):
                continue
            with self._stage("prior", plan.name) as clock:
                if self.team.leads:
                    path = self.run.backbone_dir(plan.name) / "prior.json"
                    prior = self._estimate_prior(plan)
                    if float(prior.log_prob.max() - prior.log_prob.min()) < _FLAT:
                        self.observer.note(
                            f"{plan.name}: these images cannot tell its pre-training prior from a uniform one, so its "
                            "P-groups mean nothing"
                        )
                    write_json(path, prior.to_dict())
                    self.run.mark_done(f"prior/{plan.name}", inputs, [path], clock.seconds())

    def _estimate_prior(self, plan: BackbonePlan) -> LabelPrior:
        options = self.recipe.prior
        path = self.run.backbone_dir(plan.name) / "zero_shot.safetensors"
        split = read_logits(path, "val" if options.split == "val" else "prior")
        counts = torch.bincount(split.labels, minlength=self.manifest.num_classes)
        # Half a sample for every class, where one has none: its share of the samples is then small, not zero.
        smoothed = {"zero": "smooth", "smoothing": 0.5} if bool((counts == 0).any()) else {}
        return estimate_label_prior(
            split.logits,
            split.labels,
            LabelPrior.from_counts(counts, **smoothed),  # type: ignore[arg-type]
            temperature=options.temperature,
            shrinkage=options.shrinkage,
        )

    # Members.

    def finetune(self) -> None:
        """Train the members whose inputs have changed, each from its last checkpoint if there is one."""
        pending = [
            (member, inputs)
            for member in self.members
            if not self._is_done("finetune", member.name, inputs := self._finetune_inputs(member))
        ]
        if pending and self.team.size > 1 and self.recipe.runtime.share == "members":
            self._finetune_side_by_side(pending)
            return
        for member, inputs in pending:
            with self._stage("finetune", member.name):
                self._train(member, inputs)
                if self.team.leads:
                    self._mark_trained(member, inputs)

    def _finetune_side_by_side(self, pending: Sequence[tuple[MemberPlan, str]]) -> None:
        """Train each member in a process of its own, as it would be trained without the others."""
        together = self.team
        with self._stage("finetune", *(member.name for member, _ in pending), how=" side by side"):
            self.team = Team.alone()
            try:
                for member, inputs in pending[together.rank :: together.size]:
                    self._train(member, inputs)
            finally:
                self.team = together
        for member, inputs in pending if self.team.leads else ():
            self._mark_trained(member, inputs)
        self.team.wait()

    def _train(self, member: MemberPlan, inputs: str) -> None:
        folder = self.run.member_dir(member.name)
        if self.team.leads:
            drop_stale_checkpoints(folder / "resume", inputs)
        self.team.wait()
        classifier = self._new_classifier(member)
        stages = self._training_stages(member, classifier)
        results = finetune_stages(
            classifier,
            stages,
            checkpoint_dir=folder / "resume",
            events_dir=self.run.root / "events" / member.name,
            progress=self._tell_training,
            evaluate=self._val_evaluation(classifier) if self.recipe.finetune.keep == "best" else None,
            sample_ids=self.manifest.split("train").sample_ids,
            identity=inputs,
            device=self.recipe.runtime.device,
            alone=self.team.size == 1,
        )
        self._note_skipped(stages[0].loader, "train")  # type: ignore[arg-type]
        if self.team.leads:
            classifier.save(folder)
            about = {"backbone": member.backbone.name, "seed": member.seed}
            later = {"second_stage": results[1].to_dict()} if len(results) > 1 else {}
            write_json(folder / "training.json", {**results[0].to_dict(), **later, **about})

    def _mark_trained(self, member: MemberPlan, inputs: str) -> None:
        folder = self.run.member_dir(member.name)
        written = [folder / name for name in ("trainable.safetensors", "config.json", "training.json")]
        seconds = read_json(folder / "training.json")["seconds"]
        self.run.mark_done(f"finetune/{member.name}", inputs, written, seconds)
        shutil.rmtree(folder / "resume", ignore_errors=True)

    def _training_stages(self, member: MemberPlan, classifier: Classifier) -> list[Stage]:
        """Return the recipe's training, and its second stage if it has one."""
        tuned, second = self.recipe.finetune, self.recipe.finetune.second_stage
        settings = finetune_settings(self.recipe, member.seed)
        loader = self._train_loader(member, classifier, tuned.sampling, tuned.epochs)
        stages = [Stage("first", loader, self._loss(tuned.loss, member), settings)]
        if second is not None:
            # Warm-up belongs to the first stage: the second starts from trained weights.
            settings = replace(
                settings, epochs=second.epochs, learning_rate=second.learning_rate, warmup_epochs=0.0
            )
            loader = self._train_loader(member, classifier, second.sampling, second.epochs)
            stages.append(
                Stage("second", loader, self._loss(second.loss, member), settings, tuple(second.only))
            )
        return stages

    def _train_loader(self, member: MemberPlan, classifier: Classifier, sampling: str, epochs: int) -> Loader:
        tuned = self.recipe.finetune
        return train_loader(
            self.manifest.split("train"),
            train_transform(self._spec(classifier.backbone), tuned.augment.name, **tuned.augment.options),
            batch_size=tuned.batch_size,
            seed=member.seed,
            sampling=sampling,
            epochs=epochs,
            workers=self._workers,
            on_bad_image=self.recipe.data.on_bad_image,
            cache=self.recipe.runtime.cache,
            rank=self.team.rank,
            world_size=self.team.size,
        )

    def _loss(self, loss: Loss, member: MemberPlan) -> nn.Module:
        needs_prior = "pretrain_prior" in LOSSES[loss.name].needs
        return build_loss(
            loss.name,
            counts=self.manifest.counts("train"),
            pretrain_prior=self._pretrain_prior(member.backbone) if needs_prior else None,
            **loss.options,
        ).to(self.device)

    def logits(self) -> None:
        """Logits and features of every member on val and test; each image is read once for all of them."""
        pending = {
            member: inputs
            for member in self.members
            if not self._is_done("logits", member.name, inputs := self._logits_inputs(member))
        }
        if not pending:
            return
        with self._stage("logits", *(member.name for member in pending)) as clock:
            models = {
                member.name: load_classifier(self.run.member_dir(member.name), device=self.device)
                for member in pending
            }
            outputs = self._infer(models, self.eval_splits)
            for member, inputs in pending.items() if self.team.leads else ():
                path = self.run.member_dir(member.name) / "logits.safetensors"
                write_logits(path, outputs[member.name])
                self.run.mark_done(f"logits/{member.name}", inputs, [path], clock.seconds())

    # Arithmetic on the logits.

    def adjust(self) -> None:
        """P(c) over the members, and the label prior that the ensemble has of itself."""
        inputs = self._adjust_inputs()
        if self._is_done("adjust", "", inputs):
            return
        with self._stage("adjust") as clock:
            if self.team.leads:
                written = adjust_members(self.run, self.members)
                self.run.mark_done("adjust", inputs, written, clock.seconds())

    def evaluate(self) -> None:
        """Metrics of everything the run has: zero-shot, members, methods, subsets, the adjusted ensemble."""
        inputs = fingerprint(
            self._adjust_inputs(), self.recipe.evaluate.model_dump(mode="json"), self.recipe.name
        )
        if self._is_done("evaluate", "", inputs):
            return
        with self._stage("evaluate") as clock:
            if self.team.leads:
                written = evaluate_run(self.run, self.manifest, self.members, self.split)
                self.run.mark_done("evaluate", inputs, written, clock.seconds())

    def attribution(self) -> None:
        """Maps of what each model looks at, before and after tuning, for the report."""
        wanted = self.recipe.evaluate.attribution
        if wanted is None:
            return
        inputs = fingerprint(self._adjust_inputs(), wanted.model_dump(mode="json"))
        if self._is_done("attribution", "", inputs):
            return
        with self._stage("attribution") as clock:
            if self.team.leads:
                written = attribute_run(
                    self.run,
                    self.manifest,
                    self.members,
                    self.split,
                    self._attributed_models(),
                    images=wanted.images,
                    steps=wanted.steps,
                    device=self.device,
                    progress=self.observer.progress,
                )
                self.run.mark_done("attribution", inputs, written, clock.seconds())

    def _attributed_models(self) -> dict[tuple[str, str], Callable[[], ZeroShotClassifier | Classifier]]:
        """Return how to load each model that has scores of the classes."""

        def zero_shot(plan: BackbonePlan) -> ZeroShotClassifier:
            backbone = self._load_backbone(plan)
            return ZeroShotClassifier(backbone, self._text_features(backbone))

        def tuned(member: MemberPlan) -> Classifier:
            return load_classifier(self.run.member_dir(member.name), device=self.device)

        untuned = {
            ("zero_shot", plan.name): partial(zero_shot, plan)
            for plan in self.backbones
            if has_text(self.run, plan)
        }
        return {**untuned, **{("member", member.name): partial(tuned, member) for member in self.members}}

    # What a stage depends on.

    def _data_inputs(self, *splits: str) -> str:
        data = self.recipe.data
        return fingerprint(
            [self.split_prints[name] for name in splits], data.on_bad_image, data.interpolation
        )

    def _zero_shot_inputs(self, plan: BackbonePlan, splits: Sequence[str]) -> str:
        """Of the zero-shot logits of ``splits``; ``prior`` is the sample of train that the prior may be read off."""
        recipe = self.recipe
        data = self._data_inputs(*("train" if name == "prior" else name for name in splits))
        drawn = [recipe.prior.per_class, recipe.seed] if "prior" in splits else None
        how = [recipe.evaluate.crops, recipe.finetune.precision]
        return fingerprint(data, plan.identity(), self._text_inputs(), list(splits), drawn, how)

    def _text_inputs(self) -> list[Any]:
        text = self.recipe.text
        described = None if text.descriptions is None else read_descriptions(text.descriptions)
        return [text.templates, described]

    def _prior_inputs(self, plan: BackbonePlan) -> str:
        # Its own split alone: test images may change without another prior, and so without another training.
        split = "val" if self.recipe.prior.split == "val" else "prior"
        return fingerprint(self._zero_shot_inputs(plan, [split]), self.recipe.prior.model_dump(mode="json"))

    def _finetune_inputs(self, member: MemberPlan) -> str:
        recipe = self.recipe
        # Test images, and val where no choice is made on it, may change without another training.
        data = self._data_inputs("train", *(["val"] if recipe.finetune.keep == "best" else []))
        settings = [recipe.finetune.model_dump(mode="json"), self._text_inputs()]
        needs_prior = any("pretrain_prior" in LOSSES[loss.name].needs for loss in recipe.finetune.losses)
        prior = self._prior_inputs(member.backbone) if needs_prior else None
        seeds = [member.seed, recipe.seed]  # the recipe's draws the head's first weights
        return fingerprint(data, member.backbone.identity(), seeds, settings, prior)

    def _logits_inputs(self, member: MemberPlan) -> str:
        data = self._data_inputs(*self.eval_splits)
        return fingerprint(self._inputs_of(f"finetune/{member.name}"), data, self.recipe.evaluate.crops)

    def _adjust_inputs(self) -> str:
        of_members = [[member.name, self._inputs_of(f"logits/{member.name}")] for member in self.members]
        of_priors = [[plan.name, self._inputs_of(f"prior/{plan.name}")] for plan in self.backbones]
        return fingerprint(of_members, of_priors, self.recipe.adjust.model_dump(mode="json"))

    def _inputs_of(self, stage: str) -> str | None:
        record = self.run.stages().get(stage)
        return record["inputs"] if record else None

    def _is_done(self, stage: str, name: str, inputs: str) -> bool:
        key = f"{stage}/{name}" if name else stage
        done = self.team.agree(self.run.is_done(key, inputs))
        if done:
            self.observer.skipped(_title(stage, name))
        return done

    # Pieces of stages.

    def _load_backbone(self, plan: BackbonePlan) -> Backbone:
        return load_backbone(
            plan.backbone,
            weights=plan.weights,
            seed=plan.seed,
            image_size=plan.image_size,
            device=self.device,
        )

    def _spec(self, backbone: Backbone) -> ImageSpec:
        return self.recipe.data.image_spec(backbone.image_spec)

    def _text_features(self, backbone: Backbone) -> Tensor:
        text = self.recipe.text
        described = None if text.descriptions is None else read_descriptions(text.descriptions)
        return class_text_features(backbone, self.manifest.class_names, text.templates, described)

    def _new_classifier(self, member: MemberPlan) -> Classifier:
        classifier = build_classifier(
            self._load_backbone(member.backbone),
            self.manifest.class_names,
            **self.recipe.finetune.classifier_options,
            seed=member.seed,
        )
        weight = None if classifier.head.reads_text else self._head_weight(classifier)
        if weight is not None:
            classifier.head.set_weight(weight)
        return classifier

    def _head_weight(self, classifier: Classifier) -> Tensor | None:
        """Return the head's first weights, by the recipe's ``head.init``."""
        head, backbone = self.recipe.finetune.head, classifier.backbone
        init = automatic_init(backbone) if head.init == "auto" else head.init
        given: dict[str, Any] = {}
        if HEAD_INITS[init] == "text_features" and backbone.has_text:
            given["text_features"] = self._text_features(backbone)
        elif HEAD_INITS[init] == "features":
            train = self._infer({"": ZeroShotClassifier(backbone, None)}, ["train"], crops=1)[""]["train"]
            assert train.features is not None  # asked for above
            given |= {"features": train.features.float(), "labels": train.labels}
        return head_weight(init, backbone, self.manifest.num_classes, seed=self.recipe.seed, **given)

    def _pretrain_prior(self, plan: BackbonePlan) -> LabelPrior:
        if not has_text(self.run, plan):
            raise RecipeError(
                f"the training loss needs a pre-training prior, and {plan.name} has none (no text tower)",
                where="recipe, finetune.loss",
                fix="choose the loss la, or another backbone",
            )
        return LabelPrior.from_dict(read_json(self.run.backbone_dir(plan.name) / "prior.json"))

    @property
    def _workers(self) -> int | None:
        return None if self.recipe.runtime.workers == "auto" else self.recipe.runtime.workers

    def _infer(
        self,
        models: Mapping[str, ZeroShotClassifier | Classifier],
        splits: Sequence[str],
        crops: int | None = None,
    ) -> Outputs:
        """Send the images of ``splits`` through ``models``, each read once: name to split to logits."""
        found: Outputs = {name: {} for name in models}
        if not models:
            return found
        crops = self.recipe.evaluate.crops if crops is None else crops
        transforms = {
            name: eval_transform(self._spec(model.backbone), crops=crops) for name, model in models.items()
        }
        for split in splits:
            manifest = self._images_of(split)
            loader = eval_loader(
                manifest,
                {transform.key: transform for transform in transforms.values()},
                batch_size=self.recipe.runtime.eval_batch_size,
                workers=self._workers,
                on_bad_image=self.recipe.data.on_bad_image,
                rank=self.team.rank,
                world_size=self.team.size,
            )
            outputs = infer(
                models,
                loader,
                crops={name: transform.key for name, transform in transforms.items()},
                features="float16",
                device=self.device,
                precision=self.recipe.finetune.precision,
                alone=self.team.size == 1,
                progress=lambda now, split=split: self._tell_inference(now, split),  # type: ignore[misc]
            )
            self._note_skipped(loader, split)
            for name, output in outputs.items():
                ids = tuple(manifest.sample_ids[row] for row in output.index.tolist())
                found[name][split] = SplitLogits(output.logits, output.labels, ids, output.features)
        return found

    def _images_of(self, split: str) -> Manifest:
        """Return the images of a split, or of ``prior``: the training images that a prior is estimated from."""
        if split != "prior":
            return self.manifest.split(split)
        return prior_sample(self.manifest, self.recipe.prior.per_class, self.recipe.seed)

    def _val_evaluation(self, classifier: Classifier) -> Callable[[nn.Module], Mapping[str, float]]:
        """Return what measures a member on val after an epoch."""
        val = eval_loader(
            self.manifest.split("val"),
            {"": eval_transform(self._spec(classifier.backbone))},
            batch_size=self.recipe.runtime.eval_batch_size,
            workers=self._workers,
            on_bad_image=self.recipe.data.on_bad_image,
            rank=self.team.rank,
            world_size=self.team.size,
        )
        return member_evaluation(
            val,
            device=self.device,
            precision=self.recipe.finetune.precision,
            alone=self.team.size == 1,
        )

    def _note_skipped(self, loader: Loader, split: str) -> None:
        count = len(loader.skipped)
        if count:
            self.observer.note(
                f"{count} image{'s' * (count > 1)} of {split} could not be read and {'were' if count > 1 else 'was'} "
                f"left out, the first {loader.skipped[0]}"
            )

    def _tell_training(self, now: Progress) -> None:
        self.observer.progress(
            now.step,
            now.steps,
            f"epoch {now.epoch}/{now.epochs}  loss {now.loss:.3f}  accuracy {100 * now.accuracy:.1f} %  "
            f"{now.images_per_second:.0f} images/s",
        )

    def _tell_inference(self, now: InferenceProgress, split: str) -> None:
        self.observer.progress(now.done, now.total, f"{split}  {now.images_per_second:.0f} images/s")

    @contextlib.contextmanager
    def _stage(self, stage: str, *names: str, how: str = "") -> Iterator[Clock]:
        title = _title(stage, ", ".join(names), how)
        self.observer.stage(title)
        clock = Clock()
        yield clock
        self.team.wait()  # what this stage wrote is there for all
        self.observer.finished(title, clock.seconds())


def _title(stage: str, names: str = "", how: str = "") -> str:
    return f"{_TITLES[stage]}{how}" + (f": {names}" if names else "")


class Clock:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def seconds(self) -> float:
        """Return them."""
        return time.monotonic() - self._start


def describe_backbone(plan: BackbonePlan, backbone: Backbone) -> dict[str, Any]:
    """Return what ``backbone.json`` says of a loaded backbone."""
    return {
        "name": plan.name,
        "backbone": plan.backbone,
        "weights": plan.weights,
        "family": backbone.family,
        "has_text": backbone.has_text,
        "feature_dim": backbone.feature_dim,
        "image_size": backbone.image_spec.size,
        "parameters": sum(weight.numel() for weight in backbone.parameters()),
        "weights_fingerprint": backbone.weights_fingerprint,
    }


def automatic_init(backbone: Backbone) -> str:
    """Return how a head starts by default: from text, where text features can be mapped back to image features."""
    return "text" if backbone.has_text and isinstance(backbone.projection, Projection) else "class_mean"


def drop_stale_checkpoints(folder: Path, inputs: str) -> None:
    """Delete checkpoints of a training with other inputs, which a changed recipe or changed data leave behind."""
    for checkpoint in folder.glob(f"*/{CHECKPOINT_NAME}"):
        if read_header(checkpoint.parent)["identity"] != inputs:
            shutil.rmtree(checkpoint.parent)
