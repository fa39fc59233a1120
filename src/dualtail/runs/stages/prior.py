"""The pre-training label prior of every backbone with zero-shot logits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dualtail.files import write_json
from dualtail.logits.prior import LabelPrior, estimate_label_prior
from dualtail.runs.context import RunContext
from dualtail.runs.logits_file import LogitsFile
from dualtail.runs.members import BackbonePlan
from dualtail.runs.stages.base import Stage
from dualtail.runs.stages.zero_shot import PRIOR_SAMPLE, ZeroShotStage, zero_shot_inputs

_FLAT = 0.05  # range of a log prior that is shrunk to nothing


class PriorStage(Stage):
    """The pre-training label prior of every backbone with a text tower."""

    name, title = "prior", "pre-training prior"

    def units(self) -> Sequence[str]:
        """Return the backbones with a text tower."""
        run = self.context.run
        return [plan.name for plan in run.backbones if run.has_text(plan)]

    def inputs(self, unit: str) -> str:
        """Return the fingerprint of the zero-shot logits that the prior is read off, and of how."""
        return prior_inputs(self.context, self.context.backbone_plan(unit))

    def sources(self, unit: str) -> Sequence[str]:
        """Return the zero-shot logits."""
        return [ZeroShotStage.key(unit)]

    def outputs(self, unit: str) -> Sequence[Path]:
        """Return the prior."""
        return [self.context.run.backbone(unit).prior]

    def write(self, unit: str, computed: Any) -> Sequence[Path]:
        """Estimate and write the prior."""
        prior = self._estimate(unit)
        if float(prior.log_prob.max() - prior.log_prob.min()) < _FLAT:
            self.context.observer.note(
                f"{unit}: these images cannot tell its pre-training prior from a uniform one, so its P-groups mean "
                "nothing"
            )
        write_json(self.context.run.backbone(unit).prior, prior.to_dict())
        return self.outputs(unit)

    def _estimate(self, unit: str) -> LabelPrior:
        options = self.context.recipe.prior
        run, manifest = self.context.run, self.context.manifest
        zero_shot = run.verified(run.backbone(unit).zero_shot)
        file = LogitsFile(zero_shot, _sample(self.context), manifest.class_names)
        counts = torch.bincount(file.labels, minlength=manifest.num_classes)
        # Half a sample for every class, where one has none: its share of the samples is then small, not zero.
        smoothed = {"zero": "smooth", "smoothing": 0.5} if bool((counts == 0).any()) else {}
        return estimate_label_prior(
            file.logits,
            file.labels,
            LabelPrior.from_counts(counts, **smoothed),  # type: ignore[arg-type]
            temperature=options.temperature,
            shrinkage=options.shrinkage,
        )


def prior_inputs(context: RunContext, plan: BackbonePlan) -> str:
    """Return what the prior of a backbone depends on."""
    # Its own images alone: test images may change without another prior, and so without another training.
    options = context.recipe.prior.model_dump(mode="json")
    if _sample(context) == "val":
        options["per_class"] = None  # of train alone
    return PriorStage.stamp(zero_shot_inputs(context, plan, [_sample(context)]), options)


def _sample(context: RunContext) -> str:
    """Return the name of the set of images that priors are estimated from."""
    return "val" if context.recipe.prior.split == "val" else PRIOR_SAMPLE
