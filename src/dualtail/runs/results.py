"""What a run finds out, as typed records: how each is stored as JSON, and as rows of the CSV tables beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

import torch

from dualtail.data.manifest import Manifest
from dualtail.logits.comparison import PairedTest
from dualtail.logits.groups import GROUP_NAMES, ClassGroups
from dualtail.logits.metrics import Evaluation
from dualtail.logits.prior import LabelPrior

Row = dict[str, Any]


@dataclass(frozen=True)
class Classes:
    """What is known of the classes before any result.

    Attributes:
        names: of the classes.
        counts: images a class, for each split.
        group_counts: the counts that the D-groups were cut by.
        d_groups: the D-group of each class.
        p_groups: the P-group of each class by the members' mean prior; None if no member has a prior.
        evaluated_on: the split of all results.
        notes: what was done to the data.
    """

    names: list[str]
    counts: dict[str, list[int]]
    group_counts: list[int]
    d_groups: list[str]
    p_groups: list[str] | None
    evaluated_on: str
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(
        cls, manifest: Manifest, split: str, d_groups: ClassGroups, p_groups: ClassGroups | None
    ) -> Classes:
        """Return the classes of a manifest whose results are measured on ``split``."""
        return cls(
            names=list(manifest.class_names),
            counts={name: manifest.counts(name).tolist() for name in manifest.split_sizes},
            group_counts=group_counts(manifest),
            d_groups=d_groups.names_of(),
            p_groups=None if p_groups is None else p_groups.names_of(),
            evaluated_on=split,
            notes=list(manifest.notes),
        )

    @classmethod
    def from_dict(cls, content: Row) -> Classes:
        """Read what :meth:`to_dict` gave, also of older runs, which had fewer keys."""
        groups = [*content["d_groups"], *(content.get("p_groups") or [])]
        if not set(groups) <= set(GROUP_NAMES):
            raise ValueError(f"its groups are {', '.join(sorted(map(str, set(groups))))}")
        return cls(
            names=[str(name) for name in content["names"]],
            counts=content["counts"],
            group_counts=content.get("group_counts") or content["counts"]["train"],
            d_groups=content["d_groups"],
            p_groups=content.get("p_groups"),
            evaluated_on=content.get("evaluated_on", "test"),
            notes=content.get("notes", []),
        )

    def to_dict(self) -> Row:
        """Return ``classes.json``."""
        return asdict(self)

    def __len__(self) -> int:
        """Return the number of classes C."""
        return len(self.names)

    @property
    def train_counts(self) -> list[int]:
        """Training images a class."""
        return self.counts.get("train") or self.group_counts

    def group_sizes(self, kind: str) -> dict[str, int]:
        """Return how many classes each D- or P-group has; empty without P-groups."""
        groups = self.d_groups if kind == "D" else self.p_groups
        return {name: groups.count(name) for name in GROUP_NAMES} if groups else {}

    def cross(self) -> list[list[int]]:
        """Return the 3 x 3 numbers of classes, rows by D-group and columns by P-group, many first."""
        if self.p_groups is None:
            return []
        pairs = list(zip(self.d_groups, self.p_groups, strict=True))
        return [[pairs.count((d, p)) for p in GROUP_NAMES] for d in GROUP_NAMES]


def groups_by_name(names: Sequence[str], kind: Literal["D", "P"]) -> ClassGroups:
    """Return the groups of classes whose group's name is known.

    Example:
        >>> groups_by_name(["few", "many"], "D").sizes
        {'many': 1, 'medium': 0, 'few': 1}
    """
    index = torch.tensor([GROUP_NAMES.index(name) for name in names])
    return ClassGroups(index, kind, "as they were stored")


def group_counts(manifest: Manifest) -> list[int]:
    """Return the counts ``(C,)`` that the D-groups of a manifest are cut by."""
    counts = manifest.counts("train") if manifest.group_counts is None else manifest.group_counts
    return [int(count) for count in counts]


@dataclass(frozen=True)
class PriorGroups:
    """The P-groups of a prior.

    Attributes:
        p_groups: the P-group of each class.
        membership: ``C`` rows of the probabilities of belonging to P-Many, P-Medium, P-Few; None where the prior has
            no standard errors.
    """

    p_groups: list[str]
    membership: list[list[float]] | None

    @classmethod
    def from_dict(cls, content: Row) -> PriorGroups:
        """Read what :meth:`to_dict` gave, among other keys in older runs."""
        membership = content.get("p_membership")
        if any(len(row) != len(GROUP_NAMES) for row in membership or ()):
            raise ValueError("a row of p_membership is not of three groups")
        return cls(content["p_groups"], membership)

    def to_dict(self) -> Row:
        """Return ``groups.json``."""
        return {"p_groups": self.p_groups, "p_membership": self.membership}


@dataclass(frozen=True)
class MethodResult:
    """One way to answer, and how good it is.

    Attributes:
        method: a short name, such as ``zero_shot`` or ``backdoor``.
        label: how a table calls it.
        members: names of the members or backbones that take part.
        evaluation: on the evaluation split, without the table of classes.
    """

    method: str
    label: str
    members: tuple[str, ...]
    evaluation: Evaluation

    @classmethod
    def from_dict(cls, content: Row) -> MethodResult:
        """Read what :meth:`to_dict` gave."""
        evaluation = Evaluation.from_dict(content["evaluation"])
        return cls(content["method"], content["label"], tuple(content["members"]), evaluation)

    def to_dict(self) -> Row:
        """Return an entry of ``methods.json``."""
        evaluation = self.evaluation.to_dict(per_class=False)
        return {
            "method": self.method, "label": self.label, "members": list(self.members), "evaluation": evaluation,
        }  # fmt: skip

    def to_row(self) -> Row:
        """Return a row of ``methods.csv``."""
        about = {"method": self.method, "label": self.label, "members": "+".join(self.members)}
        return {**about, "m": len(self.members), **flat_metrics(self.evaluation)}


@dataclass(frozen=True)
class SubsetResult:
    """The backdoor-adjusted ensemble of some of the members.

    Attributes:
        members: their names.
        evaluation: on the evaluation split, without the table of classes.
    """

    members: tuple[str, ...]
    evaluation: Evaluation

    @classmethod
    def from_dict(cls, content: Row) -> SubsetResult:
        """Read what :meth:`to_dict` gave."""
        return cls(tuple(content["members"]), Evaluation.from_dict(content["evaluation"]))

    def to_dict(self) -> Row:
        """Return an entry of ``subsets.json``."""
        return {"members": list(self.members), "evaluation": self.evaluation.to_dict(per_class=False)}

    def to_row(self) -> Row:
        """Return a row of ``subsets.csv``."""
        return {"members": "+".join(self.members), "m": len(self.members), **flat_metrics(self.evaluation)}


@dataclass(frozen=True)
class MemberComparison:
    """The ensemble against one member on the same images.

    Attributes:
        member: its name.
        classes: which classes: ``all``, ``d_few`` or ``tail_tail``.
        test: the ensemble minus the member.
    """

    member: str
    classes: str
    test: PairedTest

    @classmethod
    def from_dict(cls, content: Row) -> MemberComparison:
        """Read what :meth:`to_dict` gave."""
        test = {key: content[key] for key in (part.name for part in fields(PairedTest))}
        return cls(content["b"], content["classes"], PairedTest.from_dict(test))

    def to_dict(self) -> Row:
        """Return an entry of ``comparisons.json``."""
        return {"a": "adjusted", "b": self.member, "classes": self.classes, **self.test.to_dict()}


@dataclass(frozen=True)
class NeighborResults:
    """Nearest-neighbour accuracy of the features before and after tuning.

    Attributes:
        bank: the split whose images vote.
        k: how many of them, at most.
        temperature: of their votes.
        backbones: of untuned features, by the name of a backbone.
        members: of tuned features, by the name of a member.
    """

    bank: str
    k: int
    temperature: float
    backbones: dict[str, Evaluation]
    members: dict[str, Evaluation]

    @classmethod
    def from_dict(cls, content: Row) -> NeighborResults:
        """Read what :meth:`to_dict` gave."""
        read = {
            kind: {name: Evaluation.from_dict(record) for name, record in content[kind].items()}
            for kind in ("backbones", "members")
        }
        return cls(content["bank"], content["k"], content["temperature"], **read)

    def to_dict(self) -> Row:
        """Return ``neighbors.json``."""
        return {
            "bank": self.bank,
            "k": self.k,
            "temperature": self.temperature,
            **{
                kind: {
                    name: evaluation.to_dict(per_class=False)
                    for name, evaluation in getattr(self, kind).items()
                }
                for kind in ("backbones", "members")
            },
        }


@dataclass(frozen=True)
class Disagreement:
    """How differently the members answer, err and see: ``M x M`` matrices; None where a figure is undefined.

    Attributes:
        members: their names.
        disagreement: share of the images that two members answer differently.
        error_correlation: correlation of their errors.
        double_fault: share of the images that both get wrong.
        cka: similarity of their features.
    """

    members: list[str]
    disagreement: list[list[float | None]]
    error_correlation: list[list[float | None]]
    double_fault: list[list[float | None]]
    cka: list[list[float | None]]

    @classmethod
    def from_dict(cls, content: Row) -> Disagreement:
        """Read what :meth:`to_dict` gave."""
        return cls(**content)

    def to_dict(self) -> Row:
        """Return ``disagreement.json``."""
        return asdict(self)


# Exports.


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


def class_rows(
    classes: Classes, priors: dict[str, LabelPrior], models: Sequence[tuple[str, Evaluation]]
) -> list[Row]:
    """Return the rows of ``per_class.csv``.

    Args:
        classes: the run's.
        priors: of its backbones.
        models: (column, evaluation) of each model, the ensemble last.
    """
    columns: dict[str, Sequence[Any]] = {
        f"log_prior_{name}": prior.log_prob.tolist() for name, prior in priors.items()
    }
    for column, evaluation in models:
        columns[column] = evaluation.to_dict()["per_class"]["accuracy"]
    tested = models[-1][1].to_dict()["per_class"]["n"]
    return [
        {
            "class": index,
            "name": name,
            "n_train": classes.train_counts[index],
            "n_test": tested[index],
            "d_group": classes.d_groups[index],
            "p_group": None if classes.p_groups is None else classes.p_groups[index],
            **{key: values[index] for key, values in columns.items()},
        }
        for index, name in enumerate(classes.names)
    ]
