"""Groups of classes: D-Many / D-Medium / D-Few by counts, P-Many / P-Medium / P-Few by a pre-training prior.

Crossing the two gives the 3 x 3 table of Chen et al., "Rethinking the Bias of Foundation Model under
Long-tailed Distribution", ICML 2025 (arXiv 2501.15955); its corner, D-Few and P-Few, is the tail-tail cell.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from scipy import stats
from torch import Tensor

from dualtail.errors import InputError, check_choice
from dualtail.logits._arrays import ArrayLike, as_counts, as_labels, as_tensor, check_saved
from dualtail.logits.prior import LabelPrior, as_log_prior

GROUP_NAMES = ("many", "medium", "few")
_MANY, _MEDIUM, _FEW = range(3)


@dataclass(frozen=True, eq=False)
class ClassGroups:
    """Which of the groups many, medium and few each class belongs to.

    Args:
        index: ``(C,)`` int64: 0 many, 1 medium, 2 few (the order of ``GROUP_NAMES``).
        kind: ``"D"`` for groups by the counts of the training set, ``"P"`` for groups by a prior.
        rule: how they were cut, in words for a report.

    Example:
        >>> groups = ClassGroups.from_counts([500, 60, 60, 3])
        >>> groups.index.tolist(), groups.sizes
        ([0, 1, 1, 2], {'many': 1, 'medium': 2, 'few': 1})
    """

    index: Tensor
    kind: str
    rule: str = ""

    def __post_init__(self) -> None:
        index = as_tensor(self.index, "index").detach().cpu()
        if index.ndim != 1 or not len(index) or index.is_floating_point():
            raise InputError(
                f"index has shape {tuple(index.shape)} and dtype {index.dtype}", fix="expected (C,) integers"
            )
        if int(index.min()) < 0 or int(index.max()) > _FEW:
            raise InputError("index holds a value outside 0 (many), 1 (medium), 2 (few)")
        check_choice("kind of groups", self.kind, ("D", "P"))
        object.__setattr__(self, "index", index.long())

    def __len__(self) -> int:
        """Return the number of classes C."""
        return len(self.index)

    @property
    def sizes(self) -> dict[str, int]:
        """The number of classes in each group, by name."""
        return dict(zip(GROUP_NAMES, torch.bincount(self.index, minlength=3).tolist(), strict=True))

    def mask(self, name: str) -> Tensor:
        """Return ``(C,)`` booleans: which classes belong to the group ``name``."""
        check_choice("group", name, GROUP_NAMES)
        return self.index == GROUP_NAMES.index(name)

    def names_of(self, classes: ArrayLike | None = None) -> list[str]:
        """Return the group's name of each class in ``classes`` ``(n,)`` (all classes by default)."""
        chosen = self.index
        if classes is not None:
            wanted = as_tensor(classes, "classes").cpu()
            chosen = chosen[as_labels(wanted, len(self), tuple(wanted.shape), "classes")]
        return [GROUP_NAMES[i] for i in chosen.flatten().tolist()]

    @classmethod
    def from_counts(cls, counts: ArrayLike, many: float = 100, few: float = 20) -> ClassGroups:
        """Return D-groups: D-Many has more than ``many`` samples, D-Few fewer than ``few``.

        Args:
            counts: ``(C,)`` training samples a class; zero is allowed and is D-Few.
            many: D-Many is above it.
            few: D-Few is below it.

        Raises:
            InputError: counts are malformed or ``few > many``, which would put a class into two groups.

        Example:
            >>> ClassGroups.from_counts([101, 100, 20, 19]).names_of()
            ['many', 'medium', 'medium', 'few']
        """
        counts = as_counts(counts)
        return cls(
            _cut(counts, few, many), "D", f"more than {many:g}, {few:g} to {many:g}, fewer than {few:g}"
        )

    @classmethod
    def from_prior(
        cls,
        prior: LabelPrior | ArrayLike,
        quantiles: tuple[float, float] = (1 / 3, 2 / 3),
        thresholds: tuple[float, float] | None = None,
    ) -> ClassGroups:
        """Return P-groups: classes sorted by the prior, cut at quantiles (thirds by default) or thresholds.

        With quantiles ``(a, b)`` the ``round(a C)`` classes of lowest prior are P-Few and the ``C - round(b C)``
        of highest prior are P-Many, so two classes give one of each. Classes with exactly equal prior stay
        together whatever their order: where they straddle a cut they are P-Medium (all classes of a uniform
        prior are). How sure each class's group is, :func:`membership_probabilities` tells.

        Args:
            prior: a :class:`LabelPrior` or ``(C,)`` normalised log-probabilities.
            quantiles: ascending fractions of classes in ``[0, 1]``.
            thresholds: probabilities ``(low, high)`` instead: P-Few is below ``low``, P-Many above ``high``.

        Raises:
            InputError: the prior is malformed or the cuts are not ascending.

        Example:
            >>> ClassGroups.from_prior(LabelPrior.from_counts([5, 1, 9, 3, 7, 2])).names_of()
            ['medium', 'few', 'many', 'medium', 'many', 'few']
        """
        log_prob = prior.log_prob if isinstance(prior, LabelPrior) else as_log_prior(prior, len(prior))
        if thresholds is not None:
            low, high = thresholds
            index = _cut(log_prob.exp().cpu(), low, high)
            rule = f"probability above {high:g}, {low:g} to {high:g}, below {low:g}"
        else:
            index = _rank_groups(log_prob.cpu()[None], quantiles)[0]
            rule = f"classes by prior, cut at quantiles {quantiles[0]:.3g} and {quantiles[1]:.3g}"
        return cls(index, "P", rule)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-able values."""
        return {"index": self.index.tolist(), "kind": self.kind, "rule": self.rule}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ClassGroups:
        """Read what :meth:`to_dict` wrote.

        Raises:
            InputError: a key is missing or unknown.
        """
        check_saved("grouping", data, cls.__dataclass_fields__)
        return cls(**data)


def membership_probabilities(
    prior: LabelPrior,
    quantiles: tuple[float, float] = (1 / 3, 2 / 3),
    thresholds: tuple[float, float] | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> Tensor:
    """Return ``(C, 3)`` probabilities that a class is truly P-Many, P-Medium, P-Few, given the prior's errors.

    ``log P(y)`` is taken as normal around its estimate, independent between classes. With thresholds the
    probabilities are then normal tails; with quantiles the cuts move with the estimate of every class, so the
    groups of ``draws`` seeded draws are counted (standard error at most ``0.5 / sqrt(draws)``).

    Args:
        prior: with standard errors.
        quantiles: as in :meth:`ClassGroups.from_prior`.
        thresholds: as in :meth:`ClassGroups.from_prior`.
        draws: number of draws for quantiles.
        seed: of the draws.

    Raises:
        InputError: the prior has no standard errors, or the cuts are not ascending.

    Example:
        >>> prior = LabelPrior([-0.2, -1.7077], standard_errors=[0.1, 0.1])
        >>> membership_probabilities(prior)
        tensor([[1., 0., 0.],
                [0., 0., 1.]], dtype=torch.float64)
    """
    if prior.standard_errors is None:
        raise InputError("the prior has no standard errors", fix="estimate_label_prior gives them")
    if thresholds is not None:
        low, high = _check_cuts(*thresholds)
        errors = prior.standard_errors.clamp(min=1e-300)
        logs = torch.tensor([low, high], dtype=torch.float64).log()
        below = torch.special.ndtr((logs - prior.log_prob[:, None]) / errors[:, None])
        return torch.stack([1 - below[:, 1], below[:, 1] - below[:, 0], below[:, 0]], dim=1)
    generator = torch.Generator().manual_seed(seed)
    tally = torch.zeros(len(prior), 3, dtype=torch.float64)
    block = max(1, min(draws, (1 << 21) // len(prior)))
    for start in range(0, draws, block):
        size = (min(block, draws - start), len(prior))
        noise = torch.randn(size, generator=generator, dtype=torch.float64)
        groups = _rank_groups(prior.log_prob + prior.standard_errors * noise, quantiles)
        tally += torch.stack([(groups == g).sum(0) for g in range(3)], dim=1)
    return tally / draws


def cross_table(d_groups: ClassGroups, p_groups: ClassGroups) -> Tensor:
    """Return the ``(3, 3)`` int64 numbers of classes, rows by D-group and columns by P-group, many first.

    Example:
        >>> d = ClassGroups.from_counts([500, 50, 5])
        >>> cross_table(d, ClassGroups.from_prior(LabelPrior.from_counts([1, 2, 3]))).tolist()
        [[0, 0, 1], [0, 1, 0], [1, 0, 0]]
    """
    _check_same_classes(d_groups, p_groups)
    return torch.bincount(d_groups.index * 3 + p_groups.index, minlength=9).reshape(3, 3)


@dataclass(frozen=True)
class PriorComparison:
    """How alike two priors over the same classes are.

    Args:
        spearman: rank correlation in [-1, 1]; NaN where a prior is constant.
        kendall: Kendall's tau-b in [-1, 1]; NaN where a prior is constant.
        pearson: linear correlation of the log-probabilities; NaN where a prior is constant.
        overlap: ``sum_y min(P_a(y), P_b(y))`` in [0, 1]; one minus the total variation distance.
    """

    spearman: float
    kendall: float
    pearson: float
    overlap: float


def compare_priors(first: LabelPrior | ArrayLike, second: LabelPrior | ArrayLike) -> PriorComparison:
    """Compare the priors of two models, or of a model and a data set.

    Example:
        >>> alike = compare_priors(LabelPrior.from_counts([1, 2, 3, 4]), LabelPrior.from_counts([1, 3, 2, 4]))
        >>> round(alike.spearman, 3), round(alike.kendall, 3), round(alike.overlap, 3)
        (0.8, 0.667, 0.9)
    """
    a = (first.log_prob if isinstance(first, LabelPrior) else as_log_prior(first, len(first))).cpu()
    b = as_log_prior(second, len(a), "second").cpu()
    constant = bool((a == a[0]).all() or (b == b[0]).all())
    undefined = float("nan")
    return PriorComparison(
        spearman=undefined if constant else float(stats.spearmanr(a, b).statistic),
        kendall=undefined if constant else float(stats.kendalltau(a, b).statistic),
        pearson=undefined if constant else float(stats.pearsonr(a, b).statistic),
        overlap=float(torch.minimum(a.exp(), b.exp()).sum()),
    )


@dataclass(frozen=True)
class GroupComparison:
    """How alike two groupings of the same classes are.

    Args:
        table: ``table[i][j]`` classes are in group i of the first and group j of the second, many first.
        agreement: fraction of classes in the same group of both.
        expected_agreement: the agreement that independent groupings of the same sizes have on average.
        overlap: for each group's name the intersection over the union (NaN if empty in both).
    """

    table: tuple[tuple[int, int, int], ...]
    agreement: float
    expected_agreement: float
    overlap: dict[str, float]


def compare_groups(first: ClassGroups, second: ClassGroups) -> GroupComparison:
    """Compare two groupings, such as the P-groups of two models.

    Example:
        >>> a = ClassGroups.from_counts([500, 50, 50, 5])
        >>> compare_groups(a, ClassGroups.from_counts([500, 50, 5, 5])).overlap
        {'many': 1.0, 'medium': 0.5, 'few': 0.5}
    """
    table = cross_table(first, second)
    rows, columns, both = table.sum(1), table.sum(0), table.diagonal()
    union = rows + columns - both
    classes = len(first)
    return GroupComparison(
        table=tuple(tuple(row) for row in table.tolist()),
        agreement=float(both.sum()) / classes,
        expected_agreement=float((rows * columns).sum()) / classes**2,
        overlap={
            name: float(both[i]) / float(union[i]) if union[i] else float("nan")
            for i, name in enumerate(GROUP_NAMES)
        },
    )


def _check_cuts(low: float, high: float) -> tuple[float, float]:
    if not 0 <= low <= high:
        raise InputError(f"cuts {low:g} and {high:g} are not ascending and at least 0")
    return low, high


def _cut(values: Tensor, low: float, high: float) -> Tensor:
    """Return the group of each value: few below ``low``, many above ``high``."""
    low, high = _check_cuts(low, high)
    return torch.where(values > high, _MANY, torch.where(values < low, _FEW, _MEDIUM))


def _rank_groups(log_prob: Tensor, quantiles: tuple[float, float]) -> Tensor:
    """Return the group of each entry of ``(draws, C)`` by its rank in its row; ties at a cut are medium."""
    low, high = _check_cuts(*quantiles)
    if high > 1:
        raise InputError(f"quantile {high:g} is above 1")
    classes = log_prob.shape[1]
    ranked = log_prob.sort(dim=1).values
    num_few, num_below_many = round(low * classes), round(high * classes)
    # A class is few if it is strictly below the lowest value that is not few, and likewise many.
    infinity = log_prob.new_full((len(log_prob), 1), float("inf"))
    first_not_few = ranked[:, num_few : num_few + 1] if num_few < classes else infinity
    last_not_many = ranked[:, num_below_many - 1 : num_below_many] if num_below_many > 0 else -infinity
    few, many = log_prob < first_not_few, log_prob > last_not_many
    # Quantiles that meet (a == b) with a tie across the cut leave neither: medium, as documented.
    return torch.where(many, _MANY, torch.where(few, _FEW, _MEDIUM))


def _check_same_classes(first: ClassGroups, second: ClassGroups) -> None:
    if len(first) != len(second):
        raise InputError(f"groups of {len(first)} and of {len(second)} classes cannot be crossed")
