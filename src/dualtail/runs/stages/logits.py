"""Logits and features of every member on val and test; each image is read once for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dualtail.runs.context import Outputs
from dualtail.runs.logits_file import write_logits
from dualtail.runs.stages.base import MODEL_PACKAGES, Stage
from dualtail.runs.stages.finetune import FinetuneStage


class LogitsStage(Stage):
    """Logits and features of every member on val and test."""

    name, title = "logits", "logits"
    together = True
    packages = MODEL_PACKAGES

    def units(self) -> Sequence[str]:
        """Return the members."""
        return [member.name for member in self.context.run.members]

    def inputs(self, unit: str) -> str:
        """Return the fingerprint of the training, the images and how they are seen."""
        context = self.context
        trained = context.run.records.inputs_of(FinetuneStage.key(unit))
        return self.stamp(trained, context.data_inputs(*context.evaluated), context.recipe.evaluate.crops)

    def sources(self, unit: str) -> Sequence[str]:
        """Return the training."""
        return [FinetuneStage.key(unit)]

    def outputs(self, unit: str) -> Sequence[Path]:
        """Return the logits."""
        return [self.context.run.member(unit).logits]

    def compute(self, units: Sequence[str]) -> Outputs:
        """Send all images through all members that are due."""
        context = self.context
        models = {unit: context.load_member(unit) for unit in units}
        return context.infer(models, context.evaluated, context.group)

    def write(self, unit: str, computed: Outputs) -> Sequence[Path]:
        """Write a member's logits."""
        path, names = self.context.run.member(unit).logits, self.context.manifest.class_names
        write_logits(path, computed[unit], names)
        return self.outputs(unit)
