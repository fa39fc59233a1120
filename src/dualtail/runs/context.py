"""What the stages of a run share: its directory, its data, its processes, and how models and images are loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dualtail.data.contents import read_contents
from dualtail.data.loader import Loader, eval_loader
from dualtail.data.manifest import SPLITS, Manifest
from dualtail.data.problems import Problem, raise_errors
from dualtail.data.transforms import eval_transform
from dualtail.engine.inference import infer
from dualtail.engine.progress import InferenceProgress
from dualtail.files import fingerprint
from dualtail.imagespec import ImageSpec
from dualtail.models.backbone import Backbone, load_backbone
from dualtail.models.classifier import Classifier, load_classifier
from dualtail.models.text import class_text_features
from dualtail.models.zero_shot import ZeroShotClassifier
from dualtail.process_group import ProcessGroup
from dualtail.runs.choices import read_descriptions
from dualtail.runs.dataset import evaluation_split
from dualtail.runs.directory import RunDirectory
from dualtail.runs.logits_file import SplitLogits
from dualtail.runs.members import BackbonePlan, MemberPlan
from dualtail.runs.observer import Observer, PatientProgress
from dualtail.runs.recipe import Recipe, Text

Model = ZeroShotClassifier | Classifier
Outputs = dict[str, dict[str, SplitLogits]]
"""Name of a model to name of a set of images to logits."""
UNREAD_TEXT: list[Any] = [Text().templates, None]
"""In the place of :meth:`RunContext.text_inputs` where no text is read."""


@dataclass(frozen=True)
class RunContext:
    """A run in progress.

    Attributes:
        run: its directory, open.
        manifest: its images.
        group: the processes that share the work.
        observer: hears what is done.
        device: what this process computes on.
    """

    run: RunDirectory
    manifest: Manifest
    group: ProcessGroup
    observer: Observer
    device: torch.device

    @property
    def recipe(self) -> Recipe:
        """The run's recipe."""
        return self.run.recipe

    @property
    def split(self) -> str:
        """The split that results are measured on."""
        return evaluation_split(self.manifest)

    @cached_property
    def evaluated(self) -> dict[str, Manifest]:
        """The sets of images whose logits are kept: val and test, those that there are."""
        present = self.manifest.split_sizes
        return {name: self.manifest.split(name) for name in ("val", "test") if name in present}

    @cached_property
    def train(self) -> Manifest:
        """The training images."""
        return self.manifest.split("train")

    @property
    def workers(self) -> int | None:
        """Processes that read images; None leaves it to the loader."""
        return None if self.recipe.runtime.workers == "auto" else self.recipe.runtime.workers

    # What stages depend on.

    @cached_property
    def split_fingerprints(self) -> dict[str, str]:
        """The fingerprint of the images of each split, by content; all processes must ask for it together first.

        Raises:
            DataFaults: images that cannot be read.
        """
        return self.group.agree(self._read_fingerprints() if self.group.leads else {})

    def _read_fingerprints(self) -> dict[str, str]:
        manifest = self.manifest
        progress = PatientProgress(self.observer, "reading the images' contents")
        digests, faults = read_contents(manifest.root, manifest.paths, progress=progress)
        raise_errors([Problem(what, manifest.file(row), "mend it") for row, what in faults.items()])
        rows = {name: np.flatnonzero(manifest.splits == name) for name in SPLITS}
        return {name: manifest.select(of).fingerprint(digests[of]) for name, of in rows.items()}

    def data_inputs(self, *splits: str) -> str:
        """Return the fingerprint of some splits and of how their images are read.

        Images that were skipped are no part of the manifest, so that the policy for bad images is not in it.
        """
        return fingerprint([self.split_fingerprints[name] for name in splits], self.recipe.data.interpolation)

    def text_inputs(self) -> list[Any]:
        """Return what text features depend on beside the backbone."""
        text = self.recipe.text
        described = None if text.descriptions is None else read_descriptions(text.descriptions)
        return [text.templates, described]

    # Plans by name.

    def backbone_plan(self, name: str) -> BackbonePlan:
        """Return a backbone of the recipe."""
        return next(plan for plan in self.run.backbones if plan.name == name)

    def member_plan(self, name: str) -> MemberPlan:
        """Return a member of the recipe."""
        return next(plan for plan in self.run.members if plan.name == name)

    # Models.

    def load_backbone(self, plan: BackbonePlan) -> Backbone:
        """Load a foundation model onto the run's device."""
        return load_backbone(
            plan.backbone,
            weights=plan.weights,
            seed=plan.seed,
            image_size=plan.image_size,
            device=self.device,
        )

    def load_member(self, name: str) -> Classifier:
        """Load a fine-tuned member onto the run's device."""
        return load_classifier(self.run.classifier(name), device=self.device)

    def text_features(self, backbone: Backbone) -> Tensor:
        """Return the text features ``(C, E)`` of the classes."""
        text = self.recipe.text
        described = None if text.descriptions is None else read_descriptions(text.descriptions)
        return class_text_features(backbone, self.manifest.class_names, text.templates, described)

    def zero_shot_classifier(self, backbone: Backbone) -> ZeroShotClassifier:
        """Return a foundation model as a classifier by its text tower."""
        return ZeroShotClassifier(backbone, self.text_features(backbone))

    def image_spec(self, backbone: Backbone) -> ImageSpec:
        """Return what a backbone gets to see, with the recipe's changes."""
        return self.recipe.data.image_spec(backbone.image_spec)

    # Images.

    def infer(
        self,
        models: Mapping[str, Model],
        sets: Mapping[str, Manifest],
        group: ProcessGroup,
        crops: int | None = None,
    ) -> Outputs:
        """Send sets of images through models, each image read once for all of them.

        Args:
            models: by name.
            sets: name to images.
            group: the processes that share the work; each receives everything.
            crops: of an image; the recipe's by default.
        """
        outputs: Outputs = {name: {} for name in models}
        crops = self.recipe.evaluate.crops if crops is None else crops
        transforms = {
            name: eval_transform(self.image_spec(model.backbone), crops=crops)
            for name, model in models.items()
        }
        for set_name, images in sets.items() if models else ():
            loader = self.eval_loader(images, {t.key: t for t in transforms.values()}, group)
            rows = infer(
                models,
                loader,
                crops={name: transform.key for name, transform in transforms.items()},
                features="float16",
                device=self.device,
                precision=self.recipe.runtime.precision,
                group=group,
                progress=self._tell_inference(set_name),
            )
            self.note_skipped(loader, set_name)
            for name, row in rows.items():
                ids = tuple(images.sample_ids[index] for index in row.index.tolist())
                outputs[name][set_name] = SplitLogits(row.logits, row.labels, ids, row.features)
        return outputs

    def eval_loader(self, images: Manifest, transforms: Mapping[str, Any], group: ProcessGroup) -> Loader:
        """Return a loader of images that are not trained on."""
        return eval_loader(
            images,
            transforms,
            batch_size=self.recipe.runtime.eval_batch_size,
            workers=self.workers,
            on_bad_image=self.recipe.data.on_bad_image,
            group=group,
        )

    def note_skipped(self, loader: Loader, name: str) -> None:
        """Say which images could not be read."""
        count = len(loader.skipped)
        if count:
            self.observer.note(
                f"{count} image{'s' * (count > 1)} of {name} could not be read and {'were' if count > 1 else 'was'} "
                f"left out, the first {loader.skipped[0]}"
            )

    def _tell_inference(self, name: str) -> Callable[[InferenceProgress], None]:
        def tell(now: InferenceProgress) -> None:
            self.observer.progress(now.done, now.total, f"{name}  {now.images_per_second:.0f} images/s")

        return tell
