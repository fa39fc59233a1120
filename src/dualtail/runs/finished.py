"""A finished run, read once into typed results; what a run does not have is None or empty."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from dualtail.engine.finetune import FinetuneResult
from dualtail.errors import RunError
from dualtail.logits.member_prior import MemberPrior
from dualtail.logits.metrics import Evaluation
from dualtail.logits.prior import LabelPrior
from dualtail.runs.directory import BackboneFiles, MemberFiles, RunDirectory
from dualtail.runs.evaluation import RunEvaluator, read_member_prior
from dualtail.runs.logits_file import has_logits
from dualtail.runs.members import BackbonePlan, MemberPlan
from dualtail.runs.recipe import Recipe
from dualtail.runs.records import StageRecord
from dualtail.runs.results import (
    Classes,
    Disagreement,
    MemberComparison,
    MethodResult,
    NeighborResults,
    PriorGroups,
    Row,
    SubsetResult,
    groups_by_name,
)
from dualtail.runs.stored import read_stored

T = TypeVar("T")


@dataclass(frozen=True)
class BackboneResults:
    """A foundation model before fine-tuning.

    Attributes:
        name: its short name in the run.
        info: ``backbone.json``: architecture, weights, number of parameters.
        prior: its estimated pre-training label prior; None without a text tower, as the following are.
        groups: the P-groups by that prior.
        metrics: of its zero-shot logits, with the P-groups of its own prior.
        common_metrics: the same with the P-groups of the members' mean prior.
    """

    name: str
    info: Row
    prior: LabelPrior | None = None
    groups: PriorGroups | None = None
    metrics: Evaluation | None = None
    common_metrics: Evaluation | None = None


@dataclass(frozen=True)
class MemberResults:
    """A fine-tuned backbone.

    Attributes:
        name: its name in the run.
        backbone: the short name of its backbone.
        seed: its fine-tuning seed.
        training: what its training did.
        metrics: of its logits, with the P-groups of its own backbone's prior.
        common_metrics: the same with the P-groups of the members' mean prior.
    """

    name: str
    backbone: str
    seed: int
    training: FinetuneResult | None
    metrics: Evaluation
    common_metrics: Evaluation


@dataclass(frozen=True)
class RunResults:
    """A finished run.

    Attributes:
        run: its directory.
        classes: its classes.
        backbones: its foundation models, in the order of the recipe.
        members: its fine-tuned members, in the order of the recipe.
        metrics: of the backdoor-adjusted ensemble.
        member_prior: P(c).
        prior: the members' mean prior.
        groups: the P-groups by that mean.
        methods: every method that its logits allow.
        subsets: every subset of the members.
        comparisons: paired comparisons of the ensemble with each member.
        neighbors: kNN accuracy of the features before and after tuning.
        disagreement: how much the members differ.
        provenance: ``provenance.json``: versions, machine, data fingerprint.
        stages: the records of its stages.
        stale: what is to be said where a later update has not finished, so that all this belongs to the recipe before
            it.
    """

    run: RunDirectory
    classes: Classes
    backbones: list[BackboneResults]
    members: list[MemberResults]
    metrics: Evaluation
    member_prior: MemberPrior
    prior: LabelPrior | None
    groups: PriorGroups | None
    methods: list[MethodResult]
    subsets: list[SubsetResult]
    comparisons: list[MemberComparison]
    neighbors: NeighborResults | None
    disagreement: Disagreement | None
    provenance: Row
    stages: dict[str, StageRecord]
    stale: str | None = None

    @property
    def root(self) -> Path:
        """The run directory."""
        return self.run.root

    @property
    def recipe(self) -> Recipe:
        """The resolved recipe."""
        return self.run.recipe

    @property
    def name(self) -> str:
        """The name of the run's directory."""
        return self.root.resolve().name

    @property
    def has_groups(self) -> bool:
        """Whether the classes have P-groups."""
        return self.classes.p_groups is not None

    @property
    def fitted(self) -> bool:
        """Whether P(c) was fitted on val."""
        return self.recipe.adjust.weights == "fitted"

    def backbone(self, name: str) -> BackboneResults:
        """Return a backbone by its name."""
        return next(backbone for backbone in self.backbones if backbone.name == name)


def read_results(root: str | Path) -> RunResults:
    """Read a finished run; only what its recipe has, whatever else lies in its directory.

    Raises:
        RunError: it is no run directory, has not finished, or a file of it cannot be read.
    """
    run = RunDirectory.read(root)
    stale = run.standing()
    for path in (run.classes, run.adjusted.metrics):
        if not path.is_file():
            raise RunError(
                f"the run has not finished: {path.relative_to(run.root)} is missing",
                where=str(run.root),
                fix="'dualtail run' with the same recipe and --out goes on where it was",
            )
    adjusted = run.adjusted
    classes = _read(run, run.classes, Classes.from_dict)
    backbones = [_read_backbone(run, plan, classes) for plan in run.backbones]
    members = [_read_member(run, plan, classes) for plan in run.members]
    methods, subsets = _read_tables(run, classes)
    results = RunResults(
        run=run,
        classes=classes,
        backbones=backbones,
        members=members,
        metrics=_read(run, adjusted.metrics, Evaluation.from_dict),
        member_prior=read_member_prior(run),
        prior=_if_there(run, adjusted.prior, _prior_of),
        groups=_if_there(run, adjusted.groups, PriorGroups.from_dict)
        or _if_there(run, adjusted.prior, PriorGroups.from_dict),  # where older runs have them
        methods=methods,
        subsets=subsets,
        comparisons=_if_there(run, adjusted.comparisons, _list_of(MemberComparison.from_dict)) or [],
        neighbors=_if_there(run, adjusted.neighbors, NeighborResults.from_dict),
        disagreement=_if_there(run, adjusted.disagreement, Disagreement.from_dict),
        provenance=_if_there(run, run.provenance, _facts) or {},
        stages=run.records.read(),
        stale=stale,
    )
    _check_classes(results)
    return results


def _check_classes(results: RunResults) -> None:
    """Refuse files that do not tell of the same classes: a damaged one, or one of another run."""
    files = results.run
    told: list[tuple[Path, Sequence[Any] | None]] = [
        (files.classes, results.classes.d_groups),
        (files.classes, results.classes.p_groups),
        (files.classes, results.classes.group_counts),
        *((files.classes, counts) for counts in results.classes.counts.values()),
        (files.adjusted.prior, results.prior),  # type: ignore[list-item]
    ]
    for groups, path in (
        (results.groups, files.adjusted.groups),
        *((backbone.groups, files.backbone(backbone.name).groups) for backbone in results.backbones),
    ):
        told += [(path, groups.p_groups), (path, groups.membership)] if groups else []
    told += [(files.backbone(backbone.name).prior, backbone.prior) for backbone in results.backbones]  # type: ignore[misc]
    for evaluation, path in (
        (results.metrics, files.adjusted.metrics),
        *((member.metrics, files.member(member.name).metrics) for member in results.members),
        *((backbone.metrics, files.backbone(backbone.name).metrics) for backbone in results.backbones),
    ):
        if evaluation is not None:
            told += [(path, range(evaluation.classes))]
            told += [(path, evaluation.per_class.n)] if evaluation.per_class is not None else []  # type: ignore[list-item]
    for path, values in told:
        if values is not None and len(values) != len(results.classes):
            raise RunError(
                f"cannot be read (it tells of {len(values)} classes, the run has {len(results.classes)})",
                where=str(path),
                fix="delete it and run again",
            )


def _read_backbone(run: RunDirectory, plan: BackbonePlan, classes: Classes) -> BackboneResults:
    files = run.backbone(plan.name)
    info = _if_there(run, files.info, _mapping) or {}
    if not info.get("has_text"):
        return BackboneResults(plan.name, info)
    metrics = _if_there(run, files.metrics, Evaluation.from_dict)
    return BackboneResults(
        name=plan.name,
        info=info,
        prior=_if_there(run, files.prior, _prior_of),
        groups=_if_there(run, files.groups, PriorGroups.from_dict),
        metrics=metrics,
        common_metrics=metrics and _common_metrics(run, files, metrics, classes),
    )


def _read_member(run: RunDirectory, plan: MemberPlan, classes: Classes) -> MemberResults:
    files = run.member(plan.name)
    metrics = _read(run, files.metrics, Evaluation.from_dict)
    return MemberResults(
        name=plan.name,
        backbone=plan.backbone.name,
        seed=plan.seed,
        training=_if_there(run, files.training, FinetuneResult.from_dict),
        metrics=metrics,
        common_metrics=_common_metrics(run, files, metrics, classes),
    )


def _common_metrics(
    run: RunDirectory, files: BackboneFiles | MemberFiles, metrics: Evaluation, classes: Classes
) -> Evaluation:
    """Return a model's evaluation by the common groups; older runs have the counts that it follows from."""
    written = _if_there(run, files.common_metrics, Evaluation.from_dict)
    p_groups = None if classes.p_groups is None else groups_by_name(classes.p_groups, "P")
    return written or metrics.regrouped(groups_by_name(classes.d_groups, "D"), p_groups)


def _read_tables(run: RunDirectory, classes: Classes) -> tuple[list[MethodResult], list[SubsetResult]]:
    """Return the methods and subsets; of older runs, which have them as exports alone, from the logits again."""
    methods, subsets = run.adjusted.methods, run.adjusted.subsets
    if run.records.has(methods) and run.records.has(subsets):
        return (
            _read(run, methods, _list_of(MethodResult.from_dict)),
            _read(run, subsets, _list_of(SubsetResult.from_dict)),
        )
    if not has_logits(run):
        return [], []
    evaluator = RunEvaluator.of_finished(run, classes)
    return list(evaluator.methods()), evaluator.subsets()


def _prior_of(content: Row) -> LabelPrior:
    """Read a prior from a file that holds more than it in older runs."""
    return LabelPrior.from_dict({key: content.get(key) for key in LabelPrior.__dataclass_fields__})


class _Data(TypedDict, total=False):
    fingerprint: str
    root: str
    image_root: str
    splits: dict[str, int]


class _Facts(TypedDict, total=False):
    started: str
    updated: str
    commands: list[str]
    commit: str | None
    versions: dict[str, str | None]
    machine: dict[str, str | int | None]
    data: _Data
    seeds: list[int]


def _facts(content: Any) -> Row:
    """Return ``provenance.json``, of which older runs have less."""
    TypeAdapter(_Facts).validate_python(content, strict=True)
    return content


def _mapping(content: Any) -> Row:
    if not isinstance(content, dict):
        raise ValueError(f"it holds {type(content).__name__}, not a mapping")
    return content


def _list_of(parse: Callable[[Any], T]) -> Callable[[Any], list[T]]:
    return lambda rows: [parse(row) for row in rows]


def _if_there(run: RunDirectory, path: Path, parse: Callable[[Any], T]) -> T | None:
    return _read(run, path, parse) if run.records.has(path) else None


def _read(run: RunDirectory, path: Path, parse: Callable[[Any], T]) -> T:
    return read_stored(run.verified(path), parse)
