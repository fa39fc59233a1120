"""Zero-shot logits of every backbone; each image is read once for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from dualtail.data.manifest import Manifest
from dualtail.files import write_json
from dualtail.models.backbone import Backbone
from dualtail.runs.context import Outputs, RunContext
from dualtail.runs.dataset import prior_sample
from dualtail.runs.logits_file import write_logits
from dualtail.runs.members import BackbonePlan
from dualtail.runs.stages.base import MODEL_PACKAGES, Stage

PRIOR_SAMPLE = "prior"
"""Name of the set of training images that a prior may be estimated from."""


class _Computed(NamedTuple):
    backbones: dict[str, Backbone]
    outputs: Outputs


class ZeroShotStage(Stage):
    """Zero-shot logits of every backbone; of one without text tower only what it is."""

    name, title = "zero_shot", "zero-shot"
    packages = MODEL_PACKAGES
    together = True

    def units(self) -> Sequence[str]:
        """Return the backbones."""
        return [plan.name for plan in self.context.run.backbones]

    def inputs(self, unit: str) -> str:
        """Return the fingerprint of weights, prompts, images and how they are seen."""
        return zero_shot_inputs(self.context, self.context.backbone_plan(unit), list(self._image_sets))

    def outputs(self, unit: str) -> Sequence[Path]:
        """Return what is known of every backbone."""
        return [self.context.run.backbone(unit).info]

    def compute(self, units: Sequence[str]) -> _Computed:
        """Send all images through all backbones that are due."""
        context = self.context
        backbones = {unit: context.load_backbone(context.backbone_plan(unit)) for unit in units}
        models = {
            name: context.zero_shot_classifier(backbone)
            for name, backbone in backbones.items()
            if backbone.has_text
        }
        return _Computed(backbones, context.infer(models, self._image_sets, context.group))

    def write(self, unit: str, computed: _Computed) -> Sequence[Path]:
        """Write what the backbone is, and its logits if it has a text tower."""
        files, plan = self.context.run.backbone(unit), self.context.backbone_plan(unit)
        write_json(files.info, describe_backbone(plan, computed.backbones[unit]))
        if unit not in computed.outputs:
            self.context.observer.note(
                f"{unit} has no text tower: no zero-shot logits, hence no pre-training prior of its own"
            )
            return [files.info]
        write_logits(files.zero_shot, computed.outputs[unit], self.context.manifest.class_names)
        return [files.info, files.zero_shot]

    @cached_property
    def _image_sets(self) -> dict[str, Manifest]:
        context, options = self.context, self.context.recipe.prior
        if options.split == "val":
            return context.evaluated
        sample = prior_sample(context.manifest, options.per_class, context.recipe.seed)
        return {**context.evaluated, PRIOR_SAMPLE: sample}


def zero_shot_inputs(context: RunContext, plan: BackbonePlan, sets: Sequence[str]) -> str:
    """Return what the zero-shot logits of a backbone on some sets of images depend on."""
    recipe = context.recipe
    data = context.data_inputs(*("train" if name == PRIOR_SAMPLE else name for name in sets))
    some = recipe.prior.per_class
    # The seed draws nothing where all images are taken; 0 stands for none.
    drawn = [some, recipe.seed if some is not None else 0] if PRIOR_SAMPLE in sets else None
    seen = [recipe.evaluate.crops, recipe.runtime.precision]
    return ZeroShotStage.stamp(data, plan.identity(), context.text_inputs(), list(sets), drawn, seen)


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
