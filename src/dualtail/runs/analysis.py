"""What a run concludes from its logits on disk: P(c), groups, methods, subsets, comparisons.

Nothing here looks at an image; all of it takes seconds on a CPU and can be done again at any time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dualtail.data.manifest import Manifest
from dualtail.errors import RunError
from dualtail.logits.adjust import adjust_logits
from dualtail.logits.backdoor import RULES, backdoor_adjust, evaluate_subsets
from dualtail.logits.comparison import paired_test
from dualtail.logits.groups import GROUP_NAMES, ClassGroups, membership_probabilities
from dualtail.logits.losses import LOSSES
from dualtail.logits.member_prior import MemberPrior, fit_member_prior
from dualtail.logits.metrics import Evaluation, evaluate
from dualtail.logits.neighbors import disagreement, error_correlation, knn_accuracy, linear_cka
from dualtail.logits.prior import LabelPrior
from dualtail.runs.members import BackbonePlan, MemberPlan, plan_backbones, plan_members
from dualtail.runs.recipe import Finetune
from dualtail.runs.store import RunDirectory, SplitLogits, read_json, read_logits, write_csv, write_json

Row = dict[str, Any]


class Logits:
    """The logits of one split of a run, aligned: every backbone's zero-shot ones and every member's.

    Args:
        run: the run directory.
        members: its members.
        split: ``"val"`` or ``"test"``.
    """

    def __init__(self, run: RunDirectory, members: Sequence[MemberPlan], split: str) -> None:
        self.run, self.members, self.split = run, members, split
        self._ids: tuple[str, ...] | None = None

    @cached_property
    def of_members(self) -> list[Tensor]:
        """``M`` tensors ``(N, C)``."""
        return [
            self._read(self.run.member_dir(member.name) / "logits.safetensors").logits
            for member in self.members
        ]

    @cached_property
    def zero_shot(self) -> dict[str, Tensor]:
        """Backbone name to zero-shot logits ``(N, C)``, of the backbones that have a text tower."""
        plans = [plan for plan in plan_backbones(self.members) if has_text(self.run, plan)]
        return {
            plan.name: self._read(self.run.backbone_dir(plan.name) / "zero_shot.safetensors").logits
            for plan in plans
        }

    @cached_property
    def labels(self) -> Tensor:
        """``(N,)`` int64."""
        return self._read(self.run.member_dir(self.members[0].name) / "logits.safetensors").labels

    def _read(self, path: Path) -> SplitLogits:
        """Read a file, refusing rows that are not those of the others."""
        found = read_logits(path, self.split)
        if self._ids is None:
            self._ids = found.sample_ids
        if found.sample_ids != self._ids:
            raise RunError(
                f"its {self.split} images are not those of the other members",
                where=str(path),
                fix="delete the file and run again",
            )
        return found


def has_text(run: RunDirectory, plan: BackbonePlan) -> bool:
    """Whether a backbone has a text tower, hence zero-shot logits and a prior of its own."""
    return bool(read_json(run.backbone_dir(plan.name) / "backbone.json")["has_text"])


def read_priors(run: RunDirectory, members: Sequence[MemberPlan]) -> dict[str, LabelPrior]:
    """Return backbone name to pre-training prior, of those that have one."""
    return {
        plan.name: LabelPrior.from_dict(read_json(run.backbone_dir(plan.name) / "prior.json"))
        for plan in plan_backbones(members)
        if has_text(run, plan)
    }


def ensemble_prior(run: RunDirectory, members: Sequence[MemberPlan]) -> LabelPrior | None:
    """Return the mean of the members' log priors, renormalised; None if no member has one."""
    priors = read_priors(run, members)
    own = [priors[member.backbone.name] for member in members if member.backbone.name in priors]
    return LabelPrior.mean(own) if own else None


# P(c)


def adjust_members(run: RunDirectory, members: Sequence[MemberPlan]) -> list[Path]:
    """Write P(c) as the recipe asks for it; fitted weights are fitted on val."""
    wanted = run.recipe.adjust
    if wanted.weights == "fitted":
        val = Logits(run, members, "val")
        prior = fit_member_prior(val.of_members, val.labels, rule=wanted.rule)
    else:
        given = wanted.weights
        shares = (
            torch.ones(len(members)) if isinstance(given, str) else torch.tensor(given, dtype=torch.float64)
        )
        prior = MemberPrior(shares.double() / shares.sum(), rule=wanted.rule)
    path = run.adjusted_dir / "weights.json"
    write_json(
        path,
        {
            "rule": prior.rule,
            "members": [member.name for member in members],
            "weights": prior.weights.tolist(),
            "temperatures": None if prior.temperatures is None else prior.temperatures.tolist(),
            "fitted": wanted.weights == "fitted",
            "nll": prior.nll,
            "uniform_nll": prior.uniform_nll,
        },
    )
    return [path]


def read_member_prior(run: RunDirectory) -> MemberPrior:
    """Return the P(c) that :func:`adjust_members` wrote."""
    path = run.adjusted_dir / "weights.json"
    stored = read_json(path)
    if stored["members"] != [member.name for member in plan_members(run.recipe)]:
        raise RunError(
            "is of other members than the recipe's", where=str(path), fix="finish 'dualtail run' first"
        )
    return MemberPrior(stored["weights"], stored["temperatures"], rule=stored["rule"])


# Evaluation


@dataclass(frozen=True)
class Method:
    """One way to answer, with its scores on the evaluation split.

    Attributes:
        method: a short name, such as ``zero_shot`` or ``backdoor``.
        label: how a table calls it.
        members: names of the members or backbones that take part.
        scores: ``(N, C)``.
    """

    method: str
    label: str
    members: tuple[str, ...]
    scores: Tensor


def evaluate_run(
    run: RunDirectory, manifest: Manifest, members: Sequence[MemberPlan], split: str
) -> list[Path]:
    """Write every metric, table and comparison of a run; return the files."""
    return _Evaluation(run, manifest, members, split).write_all()


class _Evaluation:
    def __init__(
        self, run: RunDirectory, manifest: Manifest, members: Sequence[MemberPlan], split: str
    ) -> None:
        self.run, self.manifest, self.members, self.split = run, manifest, members, split
        self.logits = Logits(run, members, split)
        self.priors = read_priors(run, members)
        self.member_prior = read_member_prior(run)
        cuts = run.recipe.evaluate.groups
        self.group_counts = (
            manifest.counts("train") if manifest.group_counts is None else manifest.group_counts
        )
        self.d_groups = ClassGroups.from_counts(self.group_counts, many=cuts.many, few=cuts.few)
        self.ensemble_prior = ensemble_prior(run, members)
        self.p_groups = self._groups_of(self.ensemble_prior)
        self.written: list[Path] = []

    def write_all(self) -> list[Path]:
        """Write the files in an order in which each needs only earlier ones."""
        self._json(self.run.root / "classes.json", self._classes())
        if self.ensemble_prior is not None:
            self._json(self.run.adjusted_dir / "prior.json", self._prior_record(self.ensemble_prior))
        backbones = {name: self._own(name, scores) for name, scores in self.logits.zero_shot.items()}
        for name, evaluation in backbones.items():
            self._json(self.run.backbone_dir(name) / "metrics.json", evaluation.to_dict())
            self._json(self.run.backbone_dir(name) / "groups.json", self._prior_record(self.priors[name]))
        of_members = {
            member.name: self._own(member.backbone.name, scores)
            for member, scores in zip(self.members, self.logits.of_members, strict=True)
        }
        for name, evaluation in of_members.items():
            self._json(self.run.member_dir(name) / "metrics.json", evaluation.to_dict())
        adjusted_scores = backdoor_adjust(self.logits.of_members, weights=self.member_prior)
        adjusted = self._evaluate(adjusted_scores)
        self._json(self.run.adjusted_dir / "metrics.json", adjusted.to_dict())
        self._csv("methods.csv", [self._row(method) for method in self._methods()])
        self._csv("subsets.csv", self._subsets())
        self._csv("per_class.csv", self._per_class(backbones, of_members, adjusted))
        self._json(self.run.adjusted_dir / "comparisons.json", self._comparisons(adjusted_scores))
        if "val" in self.manifest.split_sizes:
            self._json(self.run.adjusted_dir / "neighbors.json", self._neighbors())
        self._json(self.run.adjusted_dir / "disagreement.json", self._disagreement())
        return self.written

    # Groups.

    def _groups_of(self, prior: LabelPrior | None) -> ClassGroups | None:
        low, high = self.run.recipe.evaluate.groups.quantiles
        return None if prior is None else ClassGroups.from_prior(prior, quantiles=(low, high))

    def _classes(self) -> Row:
        splits = list(self.manifest.split_sizes)
        return {
            "names": list(self.manifest.class_names),
            "counts": {name: self.manifest.counts(name).tolist() for name in splits},
            "group_counts": self.group_counts.tolist(),
            "d_groups": self.d_groups.names_of(),
            "p_groups": None if self.p_groups is None else self.p_groups.names_of(),
            "evaluated_on": self.split,
            "notes": list(self.manifest.notes),
        }

    def _prior_record(self, prior: LabelPrior) -> Row:
        groups = self._groups_of(prior)
        assert groups is not None
        sure = None
        if prior.standard_errors is not None:
            low, high = self.run.recipe.evaluate.groups.quantiles
            sure = membership_probabilities(prior, quantiles=(low, high)).tolist()
        return {**prior.to_dict(), "p_groups": groups.names_of(), "p_membership": sure}

    # Metrics.

    def _own(self, backbone: str, scores: Tensor) -> Evaluation:
        """Evaluate with the P-groups of the backbone's own prior."""
        return self._evaluate(scores, self._groups_of(self.priors.get(backbone)))

    def _evaluate(self, scores: Tensor, p_groups: ClassGroups | None = None) -> Evaluation:
        return evaluate(
            scores,
            self.logits.labels,
            d_groups=self.d_groups,
            p_groups=self.p_groups if p_groups is None else p_groups,
            split=self.split,
            confidence=self.run.recipe.evaluate.confidence,
        )

    def _row(self, method: Method) -> Row:
        evaluation = self._evaluate(method.scores)
        return {
            "method": method.method,
            "label": method.label,
            "members": "+".join(method.members),
            "m": len(method.members),
            **flat_metrics(evaluation),
        }

    def _methods(self) -> Iterator[Method]:
        """Yield every method that the run's logits allow, one at a time: each holds N x C numbers."""
        loss = self.run.recipe.finetune.loss.name
        zero_shot = self.logits.zero_shot
        for name, scores in zero_shot.items():
            yield Method("zero_shot", "zero-shot", (name,), scores)
            adjusted = adjust_logits(self._calibrated(name), "gla_zs", pretrain_prior=self.priors[name])
            yield Method("gla_zs", "zero-shot, GLA-ZS", (name,), adjusted)
        if len(zero_shot) > 1:
            mean = backdoor_adjust(list(zero_shot.values()))
            yield Method("zero_shot_mean", "zero-shot, mean", tuple(zero_shot), mean)
        source = remaining_source_prior(self.run.recipe.finetune, self.manifest.counts("train"))
        for member, scores in zip(self.members, self.logits.of_members, strict=True):
            yield Method("member", f"fine-tuned, {loss}", (member.name,), scores)
            if source is not None:
                adjusted = adjust_logits(scores, "gla_ft", source_prior=source)
                yield Method("gla_ft", f"fine-tuned, {loss}, GLA-FT", (member.name,), adjusted)
            if member.backbone.name in zero_shot:
                joint = self._with_gla([member], [scores], source, "logits")
                yield Method("gla", f"fine-tuned, {loss}, GLA", (member.name,), joint)
        names = tuple(member.name for member in self.members)
        if len(self.members) > 1:
            chosen = self.member_prior.rule
            for rule in (chosen, *(rule for rule in RULES if rule != chosen)):
                scores = backdoor_adjust(self.logits.of_members, weights=self.member_prior.weights, rule=rule)
                key = "backdoor" if rule == chosen else f"backdoor_{rule}"
                yield Method(key, f"backdoor, {rule.replace('_', '-')}", names, scores)
            if zero_shot:
                joint = self._with_gla(self.members, self.logits.of_members, source, chosen)
                yield Method("backdoor_gla", "backdoor with GLA", names, joint)

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
            weights=self.member_prior.weights if len(members) == len(self.members) else None,
            rule=rule,
            zero_shot_logits=[self._calibrated(name) if name in self.priors else None for name in names],
            pretrain_priors=[self.priors.get(name) for name in names],
            source_prior=source,
        )

    def _subsets(self) -> list[Row]:
        found = evaluate_subsets(
            self.logits.of_members,
            self.logits.labels,
            weights=self.member_prior,
            d_groups=self.d_groups,
            p_groups=self.p_groups,
            split=self.split,
            confidence=self.run.recipe.evaluate.confidence,
        )
        return [
            {
                "members": "+".join(self.members[index].name for index in subset),
                "m": len(subset),
                **flat_metrics(evaluation),
            }
            for subset, evaluation in found.items()
        ]

    def _per_class(
        self, backbones: dict[str, Evaluation], members: dict[str, Evaluation], adjusted: Evaluation
    ) -> list[Row]:
        d_names = self.d_groups.names_of()
        p_names = [None] * len(d_names) if self.p_groups is None else self.p_groups.names_of()
        log_priors = {f"log_prior_{name}": prior.log_prob.tolist() for name, prior in self.priors.items()}
        accuracies = {f"zero_shot_{name}": _class_accuracies(found) for name, found in backbones.items()}
        accuracies |= {f"member_{name}": _class_accuracies(found) for name, found in members.items()}
        accuracies["adjusted"] = _class_accuracies(adjusted)
        counts = self.manifest.counts("train")
        return [
            {
                "class": index,
                "name": name,
                "n_train": int(counts[index]),
                "n_test": int(adjusted.per_class.n[index]),
                "d_group": d_names[index],
                "p_group": p_names[index],
                **{key: values[index] for key, values in (log_priors | accuracies).items()},
            }
            for index, name in enumerate(self.manifest.class_names)
        ]

    def _comparisons(self, adjusted: Tensor) -> list[Row]:
        """The ensemble against each member on the same images: overall, macro, and the classes that suffer most."""
        if len(self.members) == 1:
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
        confidence = self.run.recipe.evaluate.confidence
        return [
            {
                "a": "adjusted",
                "b": member.name,
                "measure": measure,
                "classes": group,
                **paired_test(
                    adjusted, scores, self.logits.labels, measure=measure, classes=mask, confidence=confidence
                ).to_dict(),
            }
            for member, scores in zip(self.members, self.logits.of_members, strict=True)
            for measure, group, mask in questions
        ]

    # Features.

    def _neighbors(self) -> Row:
        """kNN accuracy of the features before and after tuning: val is the bank (on val alone, each without itself)."""
        wanted = self.run.recipe.evaluate.neighbors
        paths = {
            "backbones": {
                plan.name: self._zero_shot_path(plan.name) for plan in plan_backbones(self.members)
            },
            "members": {member.name: self._logits_path(member.name) for member in self.members},
        }
        found: Row = {
            "bank": "val",
            "k": wanted.k,
            "temperature": wanted.temperature,
            "backbones": {},
            "members": {},
        }
        for kind, files in paths.items():
            for name, path in files.items():
                if path.exists():
                    found[kind][name] = self._knn(path, wanted.k, wanted.temperature)
        return found

    def _knn(self, path: Path, k: int, temperature: float) -> Row:
        bank = read_logits(path, "val", features=True)
        asked = None if self.split == "val" else read_logits(path, self.split, features=True)
        assert bank.features is not None  # every logits file of a run holds them
        result = knn_accuracy(
            bank.features.float(),
            bank.labels,
            None if asked is None or asked.features is None else asked.features.float(),
            None if asked is None else asked.labels,
            self.manifest.num_classes,
            k=min(k, len(bank.labels) - (asked is None)),
            temperature=temperature,
            d_groups=self.d_groups,
            p_groups=self.p_groups,
            split=self.split,
            confidence=self.run.recipe.evaluate.confidence,
        ).to_dict()
        return {key: value for key, value in result.items() if key != "per_class"}

    def _disagreement(self) -> Row:
        """How different the members answer and err, and how different their features are."""
        members = self.logits.of_members
        features = [
            read_logits(self._logits_path(member.name), self.split, features=True).features
            for member in self.members
        ]
        similar = [[1.0 if a is b else float(linear_cka(a, b)) for b in features] for a in features]
        return {
            "members": [member.name for member in self.members],
            "disagreement": disagreement(members).tolist(),
            "error_correlation": _json_numbers(error_correlation(members, self.logits.labels).tolist()),
            "double_fault": _json_numbers(
                error_correlation(members, self.logits.labels, "double_fault").tolist()
            ),
            "cka": _json_numbers(similar),
        }

    def _zero_shot_path(self, name: str) -> Path:
        return self.run.backbone_dir(name) / "zero_shot.safetensors"

    def _logits_path(self, name: str) -> Path:
        return self.run.member_dir(name) / "logits.safetensors"

    def _json(self, path: Path, content: Any) -> None:
        write_json(path, content)
        self.written.append(path)

    def _csv(self, name: str, rows: list[Row]) -> None:
        write_csv(self.run.adjusted_dir / name, rows)
        self.written.append(self.run.adjusted_dir / name)


def remaining_source_prior(tuned: Finetune, counts: NDArray[np.int64]) -> LabelPrior | None:
    """Return the label prior that training has left in the logits: what its last stage saw and its loss did not take.

    Example:
        >>> from dualtail.runs.recipe import Loss
        >>> remaining_source_prior(Finetune(), np.array([9, 1])) is None   # LA takes it
        True
        >>> [round(p, 3) for p in remaining_source_prior(
        ...     Finetune(loss=Loss(name="ce"), sampling="square_root"), np.array([9, 1])).prob.tolist()]
        [0.75, 0.25]
    """
    last = tuned.second_stage or tuned
    needs = LOSSES[last.loss.name].needs
    if "source_prior" in needs or "counts" in needs or last.sampling in ("class_balanced", "progressive"):
        return None
    return LabelPrior.from_counts(np.sqrt(counts) if last.sampling == "square_root" else counts)


def flat_metrics(evaluation: Evaluation) -> Row:
    """Return the columns that the tables of methods and subsets share."""
    row: Row = {
        "split": evaluation.split,
        "n": evaluation.n,
        "overall": evaluation.overall,
        "overall_low": evaluation.overall_ci[0],
        "overall_high": evaluation.overall_ci[1],
        "macro": evaluation.macro,
        "macro_low": evaluation.macro_ci[0],
        "macro_high": evaluation.macro_ci[1],
    }
    for name in ("macro_f1", "worst", "harmonic", "geometric", "top5", "nll", "ece"):
        row[name] = getattr(evaluation, name)
    for prefix, groups in (("d", evaluation.d_groups), ("p", evaluation.p_groups)):
        for name in GROUP_NAMES:
            row[f"{prefix}_{name}"] = None if groups is None else groups[name].accuracy
    row["tail_tail"] = None if evaluation.tail_tail is None else evaluation.tail_tail.accuracy
    return row


def _class_accuracies(evaluation: Evaluation) -> list[float | None]:
    return list(evaluation.per_class.to_dict()["accuracy"])


def _json_numbers(rows: list[list[float]]) -> list[list[float | None]]:
    """Return rows with None for NaN (a correlation with a member that is always right), which JSON does not have."""
    return [[None if value != value else value for value in row] for row in rows]
