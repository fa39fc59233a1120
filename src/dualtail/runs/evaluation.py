"""What a run concludes from its logits on disk: P(c), groups, methods, subsets, comparisons.

Nothing here looks at an image or writes a file; all of it takes seconds on a CPU and can be done again at any time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from dualtail.errors import RunError
from dualtail.files import read_json, reading
from dualtail.logits.adjust import adjust_logits
from dualtail.logits.backdoor import RULES, backdoor_adjust, evaluate_subsets
from dualtail.logits.comparison import PairedTest, paired_test
from dualtail.logits.groups import ClassGroups, membership_probabilities
from dualtail.logits.member_prior import MemberPrior, fit_member_prior
from dualtail.logits.metrics import Evaluation, evaluate
from dualtail.logits.prior import LabelPrior
from dualtail.runs.directory import RunDirectory
from dualtail.runs.logits_file import ModelKey, RunLogits
from dualtail.runs.members import MemberPlan
from dualtail.runs.recipe import Evaluate
from dualtail.runs.remaining import remaining_source_prior
from dualtail.runs.results import (
    Classes,
    MemberComparison,
    MethodResult,
    PriorGroups,
    SubsetResult,
)
from dualtail.runs.stored import check_stored, read_stored

# P(c)


def choose_member_prior(run: RunDirectory, class_names: Sequence[str]) -> MemberPrior:
    """Return P(c) as the recipe asks for it; fitted weights are fitted on val."""
    wanted = run.recipe.adjust
    if wanted.weights == "fitted":
        val = RunLogits(run, "val", class_names)
        return fit_member_prior(val.of_members, val.labels, rule=wanted.rule)
    if wanted.weights == "uniform":
        shares = torch.ones(len(run.members), dtype=torch.float64)
    else:
        shares = torch.tensor(wanted.weights, dtype=torch.float64)
    return MemberPrior(shares / shares.sum(), rule=wanted.rule)


def read_member_prior(run: RunDirectory) -> MemberPrior:
    """Return the P(c) that the run chose.

    Raises:
        RunError: it is missing, cannot be read, or is of other members than the recipe's.
    """
    path = run.adjusted.weights
    stored = read_json(run.verified(path), dict)
    if stored.get("members") != [member.name for member in run.members]:
        raise RunError(
            "is of other members than the recipe's", where=str(path), fix="finish 'dualtail run' first"
        )
    with reading(path):
        prior = MemberPrior(**{key: stored.get(key) for key in MemberPrior.__dataclass_fields__})
        if len(prior.weights) != len(run.members):
            raise ValueError(f"{len(prior.weights)} weights for {len(run.members)} members")
        check_stored(prior)
        return prior


# Priors and groups


def read_prior(run: RunDirectory, backbone: str) -> LabelPrior:
    """Return the pre-training prior of a backbone, as the run estimated it."""
    return read_stored(run.verified(run.backbone(backbone).prior), LabelPrior.from_dict)


def read_priors(run: RunDirectory) -> dict[str, LabelPrior]:
    """Return backbone name to pre-training prior, of those that have one."""
    return {plan.name: read_prior(run, plan.name) for plan in run.backbones if run.has_text(plan)}


def mean_prior(run: RunDirectory, priors: dict[str, LabelPrior]) -> LabelPrior | None:
    """Return the mean of the members' log priors, renormalised; None if no member has one."""
    own = [priors[member.backbone.name] for member in run.members if member.backbone.name in priors]
    return LabelPrior.mean(own) if own else None


def cut_p_groups(prior: LabelPrior | None, options: Evaluate) -> ClassGroups | None:
    """Return the P-groups of a prior as the recipe cuts them; None without a prior."""
    low, high = options.groups.quantiles
    return None if prior is None else ClassGroups.from_prior(prior, quantiles=(low, high))


def describe_p_groups(prior: LabelPrior, options: Evaluate) -> PriorGroups:
    """Return the P-groups of a prior with how sure each class's is."""
    low, high = options.groups.quantiles
    groups = ClassGroups.from_prior(prior, quantiles=(low, high))
    sure = None
    if prior.standard_errors is not None:
        sure = membership_probabilities(prior, quantiles=(low, high)).tolist()
    return PriorGroups(groups.names_of(), sure)


# Evaluation


class RunEvaluator:
    """Every figure of a run, each worked out when it is asked for; logits are read once.

    Args:
        run: a run whose logits and P(c) are on disk.
        class_names: ``C`` names, which the logits must be of.
        group_counts: ``C`` counts that the D-groups are cut by.
        train_counts: ``C`` training images a class.
        split: the split that results are measured on.
    """

    def __init__(
        self,
        run: RunDirectory,
        class_names: Sequence[str],
        group_counts: Sequence[int],
        train_counts: Sequence[int],
        split: str,
    ) -> None:
        self.run, self.options, self.split = run, run.recipe.evaluate, split
        self.train_counts = list(train_counts)
        cuts = self.options.groups
        self.d_groups = ClassGroups.from_counts(group_counts, many=cuts.many, few=cuts.few)
        self.logits = RunLogits(run, split, class_names)
        self.class_names = class_names
        self.priors = read_priors(run)
        self.mean_prior = mean_prior(run, self.priors)
        self.p_groups = cut_p_groups(self.mean_prior, self.options)
        self.member_prior = read_member_prior(run)

    @classmethod
    def of_finished(cls, run: RunDirectory, classes: Classes) -> RunEvaluator:
        """Return that of a finished run, whose data need not be there."""
        return cls(run, classes.names, classes.group_counts, classes.train_counts, classes.evaluated_on)

    @cached_property
    def adjusted_scores(self) -> Tensor:
        """``(N, C)`` of the backdoor-adjusted ensemble."""
        return backdoor_adjust(self.logits.of_members, weights=self.member_prior)

    @cached_property
    def models(self) -> dict[ModelKey, Evaluation]:
        """The evaluation of every zero-shot model and member, each from one pass over its logits."""
        of_backbones = {("zero_shot", name): s for name, s in self.logits.zero_shot.items()}
        of_members = zip(self.logits.members, self.logits.of_members, strict=True)
        scores: dict[ModelKey, Tensor] = of_backbones | {("member", name): s for name, s in of_members}
        return {key: self.evaluate(own) for key, own in scores.items()}

    def evaluate(self, scores: Tensor) -> Evaluation:
        """Evaluate scores ``(N, C)`` with the groups that are common to all models of the run."""
        return evaluate(
            scores,
            self.logits.labels,
            d_groups=self.d_groups,
            p_groups=self.p_groups,
            split=self.split,
            confidence=self.options.confidence,
        )

    def by_own_groups(self, evaluation: Evaluation, backbone: str) -> Evaluation:
        """Return an evaluation with the P-groups of a backbone's own prior, from the same counts."""
        own = cut_p_groups(self.priors.get(backbone), self.options)
        return evaluation.regrouped(d_groups=self.d_groups, p_groups=self.p_groups if own is None else own)

    # Methods.

    def methods(self) -> Iterator[MethodResult]:
        """Yield every method that the run's logits allow."""
        for method, label, members, scores in self._methods():
            known = self.models.get((method, members[0]))
            yield MethodResult(method, label, members, known or self.evaluate(scores))

    def _methods(self) -> Iterator[tuple[str, str, tuple[str, ...], Tensor]]:
        """Yield (method, label, members, scores) one at a time: scores are N x C numbers each."""
        zero_shot = self.logits.zero_shot
        for name, scores in zero_shot.items():
            yield "zero_shot", "zero-shot", (name,), scores
            adjusted = adjust_logits(self._calibrated(name), "gla_zs", pretrain_prior=self.priors[name])
            yield "gla_zs", "zero-shot, GLA-ZS", (name,), adjusted
        if len(zero_shot) > 1:
            yield (
                "zero_shot_mean",
                "zero-shot, mean",
                tuple(zero_shot),
                backdoor_adjust(list(zero_shot.values())),
            )
        source = remaining_source_prior(self.run.recipe.finetune, self.train_counts)
        tuned = f"fine-tuned, {' then '.join(loss.name for loss in self.run.recipe.finetune.losses)}"
        for member, scores in zip(self.run.members, self.logits.of_members, strict=True):
            yield "member", tuned, (member.name,), scores
            if source is not None:
                adjusted = adjust_logits(scores, "gla_ft", source_prior=source)
                yield "gla_ft", f"{tuned}, GLA-FT", (member.name,), adjusted
            if member.backbone.name in zero_shot:
                joint = self._with_gla([member], [scores], source, "logits")
                yield "gla", f"{tuned}, GLA", (member.name,), joint
        if len(self.run.members) > 1:
            yield from self._ensembles(source)

    def _ensembles(self, source: LabelPrior | None) -> Iterator[tuple[str, str, tuple[str, ...], Tensor]]:
        names = tuple(member.name for member in self.run.members)
        chosen = self.member_prior.rule
        for rule in (chosen, *(rule for rule in RULES if rule != chosen)):
            scores = backdoor_adjust(self.logits.of_members, weights=self.member_prior.weights, rule=rule)
            method = "backdoor" if rule == chosen else f"backdoor_{rule}"
            yield method, f"backdoor, {rule.replace('_', '-')}", names, scores
        if self.logits.zero_shot:
            joint = self._with_gla(self.run.members, self.logits.of_members, source, chosen)
            yield "backdoor_gla", "backdoor with GLA", names, joint

    def _calibrated(self, backbone: str) -> Tensor:
        """Return zero-shot logits over the temperature that their prior was estimated at."""
        scores, temperature = self.logits.zero_shot[backbone], self.priors[backbone].temperature
        return scores if temperature in (None, 1.0) else scores / temperature

    def _with_gla(
        self, members: Sequence[MemberPlan], scores: Sequence[Tensor], source: LabelPrior | None, rule: str
    ) -> Tensor:
        names = [member.backbone.name for member in members]
        return backdoor_adjust(
            scores,
            weights=self.member_prior.weights if len(members) == len(self.run.members) else None,
            rule=rule,
            zero_shot_logits=[self._calibrated(name) if name in self.priors else None for name in names],
            pretrain_priors=[self.priors.get(name) for name in names],
            source_prior=source,
        )

    def subsets(self) -> list[SubsetResult]:
        """Return the backdoor-adjusted ensemble of every subset of the members."""
        names = [member.name for member in self.run.members]
        evaluations = evaluate_subsets(
            self.logits.of_members,
            self.logits.labels,
            weights=self.member_prior,
            d_groups=self.d_groups,
            p_groups=self.p_groups,
            split=self.split,
            confidence=self.options.confidence,
        )
        return [
            SubsetResult(tuple(names[index] for index in subset), evaluation)
            for subset, evaluation in evaluations.items()
        ]

    # Comparisons.

    def comparisons(self) -> list[MemberComparison]:
        """The ensemble against each member on the same images: overall, macro, and the classes that suffer most."""
        if len(self.run.members) == 1:
            return []
        few = self.d_groups.mask("few")
        measured = torch.bincount(self.logits.labels, minlength=len(few)) > 0
        questions: list[tuple[Literal["overall", "macro"], str, Tensor | None]] = [
            ("overall", "all", None),
            ("macro", "all", None),
        ]
        groups = {"d_few": few}
        if self.p_groups is not None:
            groups["tail_tail"] = few & self.p_groups.mask("few")
        for group, mask in groups.items():
            if bool((mask & measured).any()):
                questions.append(("macro", group, mask))
        return [
            MemberComparison(member.name, group, self._paired(scores, measure, mask))
            for member, scores in zip(self.run.members, self.logits.of_members, strict=True)
            for measure, group, mask in questions
        ]

    def _paired(
        self, scores: Tensor, measure: Literal["overall", "macro"], classes: Tensor | None
    ) -> PairedTest:
        return paired_test(
            self.adjusted_scores,
            scores,
            self.logits.labels,
            measure=measure,
            classes=classes,
            confidence=self.options.confidence,
        )
