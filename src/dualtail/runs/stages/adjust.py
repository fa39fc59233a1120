"""P(c) over the members."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dualtail.files import write_json
from dualtail.runs.context import RunContext
from dualtail.runs.evaluation import choose_member_prior
from dualtail.runs.stages.base import ONCE, Stage
from dualtail.runs.stages.logits import LogitsStage
from dualtail.runs.stages.prior import PriorStage


class AdjustStage(Stage):
    """P(c) over the members."""

    name, title = "adjust", "backdoor adjustment"

    def units(self) -> Sequence[str]:
        """Return the one unit: all members at once."""
        return ONCE

    def inputs(self, unit: str) -> str:
        """Return the fingerprint of all logits and priors, and of how they are averaged."""
        return adjust_inputs(self.context)

    def sources(self, unit: str) -> Sequence[str]:
        """Return the logits."""
        return [LogitsStage.key(member.name) for member in self.context.run.members]

    def outputs(self, unit: str) -> Sequence[Path]:
        """Return P(c)."""
        return [self.context.run.adjusted.weights]

    def write(self, unit: str, computed: Any) -> Sequence[Path]:
        """Choose and write P(c)."""
        run = self.context.run
        names = [member.name for member in run.members]
        prior = choose_member_prior(run, self.context.manifest.class_names)
        write_json(run.adjusted.weights, {"members": names, **prior.to_dict()})
        return self.outputs(unit)


def adjust_inputs(context: RunContext) -> str:
    """Return what everything after the logits depends on."""
    run = context.run
    members = [[member.name, run.records.inputs_of(LogitsStage.key(member.name))] for member in run.members]
    priors = [[plan.name, run.records.inputs_of(PriorStage.key(plan.name))] for plan in run.backbones]
    return AdjustStage.stamp(members, priors, context.recipe.adjust.model_dump(mode="json"))
