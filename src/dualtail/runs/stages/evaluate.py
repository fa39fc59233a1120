"""Metrics of everything the run has: zero-shot, members, methods, subsets, the adjusted ensemble."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dualtail.data.manifest import Manifest
from dualtail.files import write_csv, write_json
from dualtail.logits.metrics import Evaluation
from dualtail.runs.directory import RunDirectory
from dualtail.runs.evaluation import RunEvaluator, describe_p_groups
from dualtail.runs.features import find_disagreement, find_neighbors
from dualtail.runs.results import Classes, class_rows, group_counts
from dualtail.runs.stages.adjust import AdjustStage, adjust_inputs
from dualtail.runs.stages.base import ONCE, Stage
from dualtail.runs.stages.logits import LogitsStage
from dualtail.runs.stages.prior import PriorStage
from dualtail.runs.stages.zero_shot import ZeroShotStage


class EvaluateStage(Stage):
    """Metrics of everything the run has."""

    name, title = "evaluate", "evaluation"

    def units(self) -> Sequence[str]:
        """Return the one unit: all models at once."""
        return ONCE

    def inputs(self, unit: str) -> str:
        """Return the fingerprint of what the adjustment depends on, of what is measured, and of what is told."""
        # Crops are those of the logits, and maps are another stage's.
        measured = self.context.recipe.evaluate.model_dump(mode="json", exclude={"crops", "attribution"})
        return self.stamp(adjust_inputs(self.context), measured, list(self.context.manifest.notes))

    def sources(self, unit: str) -> Sequence[str]:
        """Return all logits, the priors and P(c)."""
        records, stages = self.context.run.records, (ZeroShotStage, PriorStage, LogitsStage, AdjustStage)
        return [key for stage in stages for key in records.of_stage(stage.name)]

    def outputs(self, unit: str) -> Sequence[Path]:
        """Return what every evaluated run has."""
        run, adjusted = self.context.run, self.context.run.adjusted
        models = [run.member(member.name) for member in run.members]
        return [
            run.classes,
            *(model.metrics for model in models),
            *(model.common_metrics for model in models),
            adjusted.metrics,
            adjusted.methods,
            adjusted.subsets,
            adjusted.comparisons,
            adjusted.disagreement,
        ]

    def write(self, unit: str, computed: Any) -> Sequence[Path]:
        """Work out and write every figure, table and comparison."""
        return write_evaluation(self.context.run, self.context.manifest, self.context.split)


def write_evaluation(run: RunDirectory, manifest: Manifest, split: str) -> list[Path]:
    """Write everything that a run concludes from its logits; return the files."""
    evaluator = RunEvaluator(
        run, manifest.class_names, group_counts(manifest), manifest.counts("train").tolist(), split
    )
    classes = Classes.of(manifest, split, evaluator.d_groups, evaluator.p_groups)
    adjusted = evaluator.evaluate(evaluator.adjusted_scores)
    written: list[Path] = []

    def save(path: Path, content: Any) -> None:
        write_json(path, content)
        written.append(path)

    def export(name: str, rows: list[dict[str, Any]]) -> None:
        write_csv(run.adjusted.export(name), rows)
        written.append(run.adjusted.export(name))

    save(run.classes, classes.to_dict())
    _save_priors(run, evaluator, save)
    models = _save_models(run, evaluator, save)
    save(run.adjusted.metrics, adjusted.to_dict())
    methods, subsets = list(evaluator.methods()), evaluator.subsets()
    save(run.adjusted.methods, [method.to_dict() for method in methods])
    save(run.adjusted.subsets, [subset.to_dict() for subset in subsets])
    save(run.adjusted.comparisons, [comparison.to_dict() for comparison in evaluator.comparisons()])
    save(run.adjusted.disagreement, find_disagreement(evaluator).to_dict())
    if "val" in manifest.split_sizes:
        save(run.adjusted.neighbors, find_neighbors(evaluator).to_dict())
    export("methods", [method.to_row() for method in methods])
    export("subsets", [subset.to_row() for subset in subsets])
    export("per_class", class_rows(classes, evaluator.priors, [*models, ("adjusted", adjusted)]))
    return written


def _save_priors(run: RunDirectory, evaluator: RunEvaluator, save: Any) -> None:
    """Save the P-groups of every prior, and the members' mean prior."""
    for name, prior in evaluator.priors.items():
        save(run.backbone(name).groups, describe_p_groups(prior, run.recipe.evaluate).to_dict())
    if evaluator.mean_prior is not None:
        save(run.adjusted.prior, evaluator.mean_prior.to_dict())
        save(run.adjusted.groups, describe_p_groups(evaluator.mean_prior, run.recipe.evaluate).to_dict())


def _save_models(run: RunDirectory, evaluator: RunEvaluator, save: Any) -> list[tuple[str, Evaluation]]:
    """Save every model's evaluation, by the common groups and by its own; return them with their column."""
    backbone_of = {member.name: member.backbone.name for member in run.members}
    for (kind, name), common in evaluator.models.items():
        files = run.member(name) if kind == "member" else run.backbone(name)
        backbone = backbone_of[name] if kind == "member" else name
        save(files.common_metrics, common.to_dict())
        save(files.metrics, evaluator.by_own_groups(common, backbone).to_dict())
    return [(f"{kind}_{name}", common) for (kind, name), common in evaluator.models.items()]
