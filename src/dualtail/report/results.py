"""What a run directory holds, read once into plain records; what a run does not have is None or empty."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dualtail.errors import RunError
from dualtail.logits.groups import GROUP_NAMES
from dualtail.logits.prior import LabelPrior
from dualtail.runs.recipe import Recipe
from dualtail.runs.store import RunDirectory, read_csv, read_json

Row = dict[str, Any]


@dataclass(frozen=True)
class Backbone:
    """A foundation model before fine-tuning.

    Attributes:
        name: its short name in the run.
        info: ``backbone.json``.
        prior: its estimated pre-training label prior; None without a text tower.
        p_groups: the P-group of each class by that prior.
        membership: ``C`` rows of the probabilities of belonging to P-Many, P-Medium, P-Few.
        metrics: of its zero-shot logits.
    """

    name: str
    info: Row
    prior: LabelPrior | None = None
    p_groups: list[str] | None = None
    membership: list[list[float]] | None = None
    metrics: Row | None = None


@dataclass(frozen=True)
class Member:
    """A fine-tuned backbone.

    Attributes:
        name: its name in the run.
        backbone: the short name of its backbone.
        seed: its fine-tuning seed, where it is known.
        training: ``training.json``.
        metrics: of its logits.
    """

    name: str
    backbone: str
    seed: int | None
    training: Row
    metrics: Row


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

    def __len__(self) -> int:
        """Return the number of classes C."""
        return len(self.names)

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


@dataclass(frozen=True)
class RunResults:
    """A finished run.

    Attributes:
        root: its directory.
        recipe: its resolved recipe.
        classes: its classes.
        backbones: its foundation models, in the order of the recipe.
        members: its fine-tuned members, in the order of the recipe.
        metrics: of the backdoor-adjusted ensemble.
        weights: ``weights.json``: rule, members, weights, temperatures.
        prior: the members' mean prior.
        membership: ``C`` rows of the probabilities of belonging to each P-group of the mean prior.
        methods: a row a method, as in ``methods.csv``, numbers as numbers.
        subsets: a row a subset of members.
        per_class: a row a class.
        comparisons: paired comparisons of the ensemble with each member.
        neighbors: kNN accuracy of the features before and after tuning.
        disagreement: how much the members differ.
        provenance: versions, machine, data fingerprint.
        stages: seconds and time of every stage.
    """

    root: Path
    recipe: Recipe
    classes: Classes
    backbones: list[Backbone]
    members: list[Member]
    metrics: Row
    weights: Row
    prior: LabelPrior | None
    membership: list[list[float]] | None
    methods: list[Row]
    subsets: list[Row]
    per_class: list[Row]
    comparisons: list[Row]
    neighbors: Any
    disagreement: Any
    provenance: Row
    stages: Row

    @property
    def name(self) -> str:
        """The name of the run's directory."""
        return self.root.resolve().name

    @property
    def has_groups(self) -> bool:
        """Whether the classes have P-groups."""
        return self.classes.p_groups is not None

    def backbone(self, name: str) -> Backbone | None:
        """Return a backbone by its name, or None."""
        return next((backbone for backbone in self.backbones if backbone.name == name), None)


def read_results(root: str | Path) -> RunResults:
    """Read a finished run.

    Raises:
        RunError: it is no run directory, has not finished, or a file of it cannot be read.
    """
    run = RunDirectory.read(root)
    for name in ("classes.json", "adjusted/metrics.json"):
        if not (run.root / name).is_file():
            raise RunError(
                f"the run has not finished: {name} is missing",
                where=str(run.root),
                fix="'dualtail run' with the same recipe and --out goes on where it was",
            )
    adjusted = run.adjusted_dir
    weights = _optional_json(adjusted / "weights.json", {})
    prior = _optional_json(adjusted / "prior.json", None)
    return RunResults(
        root=run.root,
        recipe=run.recipe,
        classes=_read_classes(run.root / "classes.json"),
        backbones=_read_backbones(run),
        members=_read_members(run, weights.get("members")),
        metrics=read_json(adjusted / "metrics.json"),
        weights=weights,
        prior=_as_prior(prior),
        membership=prior.get("p_membership") if prior else None,
        methods=_optional_csv(adjusted / "methods.csv"),
        subsets=_optional_csv(adjusted / "subsets.csv"),
        per_class=_optional_csv(adjusted / "per_class.csv"),
        comparisons=_optional_json(adjusted / "comparisons.json", []),
        neighbors=_optional_json(adjusted / "neighbors.json", None),
        disagreement=_optional_json(adjusted / "disagreement.json", None),
        provenance=_optional_json(run.root / "provenance.json", {}),
        stages=run.stages(),
    )


def _read_classes(path: Path) -> Classes:
    content = read_json(path)
    return Classes(
        names=[str(name) for name in content["names"]],
        counts=content["counts"],
        group_counts=content.get("group_counts") or content["counts"]["train"],
        d_groups=content["d_groups"],
        p_groups=content.get("p_groups"),
        evaluated_on=content.get("evaluated_on", "test"),
        notes=content.get("notes", []),
    )


def _read_backbones(run: RunDirectory) -> list[Backbone]:
    found = []
    for folder in _folders(run.root / "backbones"):
        groups = _optional_json(folder / "groups.json", {})
        found.append(
            Backbone(
                name=folder.name,
                info=_optional_json(folder / "backbone.json", {}),
                prior=_as_prior(_optional_json(folder / "prior.json", None)),
                p_groups=groups.get("p_groups"),
                membership=groups.get("p_membership"),
                metrics=_optional_json(folder / "metrics.json", None),
            )
        )
    order = [member.name or member.backbone for member in run.recipe.members]
    known = {name: place for place, name in enumerate(order)}
    return sorted(found, key=lambda b: (_place(b, known), b.name))


def _place(backbone: Backbone, known: dict[str, int]) -> int:
    """Return the backbone's place in the recipe, by its short or its full name."""
    last = len(known)
    return min(known.get(backbone.name, last), known.get(str(backbone.info.get("backbone")), last))


def _read_members(run: RunDirectory, order: list[str] | None) -> list[Member]:
    names = order or [folder.name for folder in _folders(run.root / "members")]
    members = []
    for name in names:
        folder = run.member_dir(name)
        training = _optional_json(folder / "training.json", {})
        members.append(
            Member(
                name=name,
                backbone=training.get("backbone", name),
                seed=training.get("seed"),
                training=training,
                metrics=read_json(folder / "metrics.json"),
            )
        )
    return members


def _folders(parent: Path) -> list[Path]:
    return sorted(path for path in parent.iterdir() if path.is_dir()) if parent.is_dir() else []


def _as_prior(content: Row | None) -> LabelPrior | None:
    """Read a prior from a file that may hold more than it."""
    if content is None:
        return None
    return LabelPrior.from_dict({key: content.get(key) for key in LabelPrior.__dataclass_fields__})


def _optional_json(path: Path, default: Any) -> Any:
    return read_json(path) if path.is_file() else default


def _optional_csv(path: Path) -> list[Row]:
    if not path.is_file():
        return []
    return [{key: _parse(key, cell) for key, cell in row.items()} for row in read_csv(path)]


# Columns that stay text even where a name looks like a number.
_TEXT_COLUMNS = {"method", "label", "members", "split", "name", "d_group", "p_group", "kind"}


def _parse(key: str, cell: str | None) -> Any:
    """Return a cell as a number, as text, or None if it is empty."""
    if cell is None or cell == "":
        return None
    if key in _TEXT_COLUMNS:
        return cell
    try:
        return int(cell) if cell.lstrip("-").isdigit() else float(cell)
    except ValueError:
        return cell
