"""What a classifier gets right, for whom, and how surely: every figure of the evaluation in one pass.

An accuracy is a fraction. The accuracy of a set of classes (all: *macro*; a D-group, a P-group, a cell of their
cross table) is the mean over its classes of each class's accuracy, as in the long-tail literature, so that a class
with many test samples does not outweigh one with few; *overall* alone is over samples. A class absent from the test
set has no accuracy: means leave it out and say how many they left out.

Ties go to the first class everywhere, in top-k as in argmax.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dualtail.errors import InputError
from dualtail.logits._arrays import ArrayLike, check_saved
from dualtail.logits._rows import logit_rows
from dualtail.logits.calibration import CalibrationTally
from dualtail.logits.groups import GROUP_NAMES, ClassGroups
from dualtail.logits.intervals import (
    Interval,
    IntervalMethod,
    check_interval,
    mean_interval,
    proportion_interval,
)

TOP_K = 5  # of the figure ``top5``
# What an evaluation says in one number or word each, in the order of ``metrics.json``.
_NUMBERS = (
    *(
        "split",
        "n",
        "classes",
        "overall",
        "macro",
        "macro_f1",
        "worst",
        "harmonic",
        "geometric",
        "zero_floor",
    ),
    *("top5", "nll", "ece", "classwise_ece"),
)


@dataclass(frozen=True)
class GroupAccuracy:
    """The accuracy of a set of classes.

    Attributes:
        accuracy: mean over the classes that have test samples of their accuracies; None where none has any.
        classes: how many classes the set has.
        absent: how many of them have no test samples.
        n: test samples of these classes.
        ci: confidence interval of ``accuracy``, or None.
    """

    accuracy: float | None
    classes: int
    absent: int
    n: int
    ci: Interval | None

    def to_dict(self) -> dict[str, Any]:
        """Return the entry of ``metrics.json``."""
        return asdict(self) | {"ci": None if self.ci is None else list(self.ci)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> GroupAccuracy:
        """Read what :meth:`to_dict` wrote.

        Raises:
            InputError: a key is missing or unknown.
        """
        check_saved("group accuracy", data, cls.__dataclass_fields__)
        return cls(**{**data, "ci": _pair(data["ci"])})


@dataclass(frozen=True, eq=False)
class ClassTable:
    """One row a class.

    Attributes:
        n: ``(C,)`` test samples.
        correct: ``(C,)`` how many of them were predicted right.
        predicted: ``(C,)`` samples of any class that were predicted to be this one.
        accuracy: ``(C,)`` ``correct / n``, NaN for an absent class.
        ci_low: ``(C,)`` lower bound of its interval (NaN for an absent class).
        ci_high: ``(C,)`` upper bound.
    """

    n: NDArray[np.int64]
    correct: NDArray[np.int64]
    predicted: NDArray[np.int64]
    accuracy: NDArray[np.float64]
    ci_low: NDArray[np.float64]
    ci_high: NDArray[np.float64]

    @classmethod
    def from_counts(
        cls,
        n: ArrayLike,
        correct: ArrayLike,
        predicted: ArrayLike,
        confidence: float = 0.95,
        interval: IntervalMethod = "wilson",
    ) -> ClassTable:
        """Return the table that follows from the counts ``(C,)``, as in :class:`ClassTable`.

        Args:
            n: test samples.
            correct: how many of them were predicted right.
            predicted: samples of any class that were predicted to be this one.
            confidence: nominal coverage of the intervals.
            interval: as in :func:`dualtail.logits.intervals.proportion_interval`.

        Example:
            >>> ClassTable.from_counts([4, 0], [3, 0], [3, 1]).accuracy.tolist()
            [0.75, nan]
        """
        n, correct, predicted = (np.asarray(counts, dtype=np.int64) for counts in (n, correct, predicted))
        with np.errstate(invalid="ignore"):
            accuracy = correct / n
        return cls(n, correct, predicted, accuracy, *proportion_interval(correct, n, confidence, interval))

    def to_dict(self) -> dict[str, list[Any]]:
        """Return the columns without the intervals, as lists; an absent class's accuracy is None."""
        return {
            "n": self.n.tolist(),
            "correct": self.correct.tolist(),
            "predicted": self.predicted.tolist(),
            "accuracy": [None if value != value else value for value in self.accuracy.tolist()],
        }

    @classmethod
    def from_dict(
        cls, data: Mapping[str, Any], confidence: float = 0.95, interval: IntervalMethod = "wilson"
    ) -> ClassTable:
        """Read what :meth:`to_dict` wrote; accuracies and intervals are computed from the counts again.

        Raises:
            InputError: a key is missing or unknown.
        """
        check_saved("class table", data, ("n", "correct", "predicted", "accuracy"))
        return cls.from_counts(data["n"], data["correct"], data["predicted"], confidence, interval)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Every figure of one prediction on one split; ``print`` shows the main ones in per cent.

    Attributes:
        split: the name the caller gave.
        n: samples.
        classes: C.
        overall: accuracy over samples.
        macro: accuracy over classes.
        macro_f1: mean over the classes present of :math:`2 TP / (n_c + predicted_c)`.
        worst: smallest class accuracy.
        harmonic: harmonic mean of the class accuracies.
        geometric: geometric mean of the class accuracies.
        zero_floor: what a class accuracy below it counts as in the last two; 0 makes both 0 with any such class.
        top5: accuracy within five guesses; None with five classes or fewer.
        nll: mean negative log-likelihood in nats; None for scores that are not logits.
        ece: expected calibration error, likewise.
        classwise_ece: class-wise calibration error, likewise.
        overall_ci: interval of ``overall``.
        macro_ci: interval of ``macro``.
        absent_classes: classes without test samples.
        per_class: a :class:`ClassTable`; None where the evaluation was saved without it.
        d_groups: accuracy by D-group, or None.
        p_groups: accuracy by P-group, or None.
        cross: ``cross[D][P]``, or None without both.
        confidence: nominal coverage of the intervals.
        interval: how they were made.
    """

    split: str
    n: int
    classes: int
    overall: float
    macro: float
    macro_f1: float
    worst: float
    harmonic: float
    geometric: float
    zero_floor: float
    top5: float | None
    nll: float | None
    ece: float | None
    classwise_ece: float | None
    overall_ci: Interval
    macro_ci: Interval
    absent_classes: tuple[int, ...]
    per_class: ClassTable | None
    d_groups: Mapping[str, GroupAccuracy] | None
    p_groups: Mapping[str, GroupAccuracy] | None
    cross: Mapping[str, Mapping[str, GroupAccuracy]] | None
    confidence: float
    interval: IntervalMethod

    @property
    def tail_tail(self) -> GroupAccuracy | None:
        """The cell of the cross table that suffers most: D-Few and P-Few."""
        return None if self.cross is None else self.cross["few"]["few"]

    def by_group(self) -> dict[str, GroupAccuracy]:
        """Return every accuracy over a set of classes by its key, in one flat dictionary.

        The keys are ``overall`` (over samples), ``d_many``, ``d_medium``, ``d_few``, ``p_many``, ..., the cells
        ``many.many``, ..., ``few.few`` (D, then P) and ``tail_tail``, which is ``few.few``. Groupings that the
        evaluation does not have leave their keys out.

        Example:
            >>> groups = ClassGroups.from_counts([200, 10])
            >>> list(evaluate([[1.0, 0.0], [0.0, 1.0]], [0, 1], d_groups=groups).by_group())
            ['overall', 'd_many', 'd_medium', 'd_few']
        """
        absent = len(self.absent_classes)
        flat = {"overall": GroupAccuracy(self.overall, self.classes, absent, self.n, self.overall_ci)}
        for kind, groups in (("d", self.d_groups), ("p", self.p_groups)):
            flat |= {f"{kind}_{name}": group for name, group in (groups or {}).items()}
        for d, row in (self.cross or {}).items():
            flat |= {f"{d}.{p}": cell for p, cell in row.items()}
        if self.tail_tail is not None:
            flat["tail_tail"] = self.tail_tail
        return flat

    def regrouped(
        self,
        d_groups: ClassGroups | None = None,
        p_groups: ClassGroups | None = None,
        *,
        resamples: int = 2000,
        seed: int = 0,
    ) -> Evaluation:
        """Return the same evaluation with other groups of classes, from the counts of its classes alone.

        One pass over logits thus serves several groupings: the answer is that of :func:`evaluate` with these groups.

        Args:
            d_groups: classes by the counts of the training set; none by default.
            p_groups: classes by a pre-training prior; none by default.
            resamples: of the bootstrap, as they were given to :func:`evaluate`.
            seed: likewise.

        Raises:
            InputError: groups of another number of classes, or an evaluation that was saved without its classes.

        Example:
            >>> result = evaluate([[3.0, 0.0], [2.0, 0.0], [0.0, 2.0]], [0, 1, 1])
            >>> result.regrouped(ClassGroups.from_counts([200, 10])).by_group()["d_few"].accuracy
            0.5
        """
        table = self.per_class
        if table is None:
            raise InputError("this evaluation was saved without its classes", fix="evaluate again")
        bounds = partial(
            mean_interval,
            table.correct,
            table.n,
            self.confidence,
            self.interval,
            resamples=resamples,
            seed=seed,
        )
        return replace(self, **_by_group(table.n, table.correct, d_groups, p_groups, bounds))

    def to_dict(self, *, per_class: bool = True) -> dict[str, Any]:
        """Return ``metrics.json``: plain numbers, strings, lists and dictionaries; None where undefined.

        Args:
            per_class: False leaves the table of the classes out.
        """
        result: dict[str, Any] = {name: getattr(self, name) for name in _NUMBERS}
        if self.top5 is None:
            del result["top5"]
        result |= {"overall_ci": list(self.overall_ci), "macro_ci": list(self.macro_ci)}
        result |= {"confidence": self.confidence, "interval": self.interval}
        result["absent_classes"] = list(self.absent_classes)
        for name in ("d_groups", "p_groups"):
            if (groups := getattr(self, name)) is not None:
                result[name] = {key: group.to_dict() for key, group in groups.items()}
        if self.cross is not None:
            result["cross"] = {
                d: {p: cell.to_dict() for p, cell in row.items()} for d, row in self.cross.items()
            }
            result["tail_tail"] = self.cross["few"]["few"].to_dict()
        if per_class and self.per_class is not None:
            result["per_class"] = self.per_class.to_dict()
        return result

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Evaluation:
        """Read what :meth:`to_dict` wrote, such as a run's ``metrics.json``.

        Raises:
            InputError: a key is missing or unknown.

        Example:
            >>> result = evaluate([[1.0, 0.0], [0.0, 1.0]], [0, 1])
            >>> Evaluation.from_dict(result.to_dict()).to_dict() == result.to_dict()
            True
        """
        optional = {"top5", "d_groups", "p_groups", "cross", "tail_tail", "per_class"}
        known = {*cls.__dataclass_fields__, "tail_tail"}
        check_saved("evaluation", {**dict.fromkeys(optional), **data}, known)
        values: dict[str, Any] = {name: data.get(name) for name in cls.__dataclass_fields__}
        values |= {name: _pair(data[name]) for name in ("overall_ci", "macro_ci")}
        values["absent_classes"] = tuple(data["absent_classes"])
        for name in ("d_groups", "p_groups"):
            values[name] = _read_groups(data.get(name))
        if data.get("cross") is not None:
            values["cross"] = {d: _read_groups(row) for d, row in data["cross"].items()}
        if data.get("per_class") is not None:
            values["per_class"] = ClassTable.from_dict(
                data["per_class"], data["confidence"], data["interval"]
            )
        return cls(**values)

    def __str__(self) -> str:
        lines = [
            f"{self.split}: {self.n} samples, {self.classes} classes"
            + (f", {len(self.absent_classes)} of them absent" if self.absent_classes else ""),
            f"  overall {_percent(self.overall, self.overall_ci)}   macro {_percent(self.macro, self.macro_ci)}"
            f"   worst class {_percent(self.worst)}",
        ]
        for kind, groups in (("D", self.d_groups), ("P", self.p_groups)):
            if groups is not None:
                shown = (f"{kind}-{key.title()} {_percent(g.accuracy, g.ci)}" for key, g in groups.items())
                lines.append("  " + "   ".join(shown))
        if self.tail_tail is not None:
            lines.append(f"  tail-tail {_percent(self.tail_tail.accuracy, self.tail_tail.ci)}")
        if self.nll is not None and self.ece is not None:
            lines.append(f"  NLL {self.nll:.3f}   ECE {_percent(self.ece)}")
        return "\n".join(lines)


def evaluate(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    d_groups: ClassGroups | None = None,
    p_groups: ClassGroups | None = None,
    split: str = "test",
    confidence: float = 0.95,
    interval: IntervalMethod = "wilson",
    bins: int = 15,
    zero_floor: float = 0.0,
    resamples: int = 2000,
    seed: int = 0,
) -> Evaluation:
    """Return every figure of the prediction that ``logits`` make, in one pass over chunks of rows.

    Args:
        logits: ``(..., C)``, floating point; the leading dimensions are free.
        labels: ``(...)`` integers.
        d_groups: classes by the counts of the training set.
        p_groups: classes by a pre-training prior; with both, the cross table is filled.
        split: a name for the result.
        confidence: nominal coverage of the intervals.
        interval: ``"wilson"``, ``"clopper_pearson"`` or ``"bootstrap"`` (see
            :func:`dualtail.logits.intervals.mean_interval` for what each is of a mean over classes).
        bins: of the calibration errors.
        zero_floor: class accuracies below it count as it in the harmonic and the geometric mean. LIFT's evaluator has
            1e-5 in the harmonic mean, which keeps models with a dead class comparable.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        InputError: malformed inputs, no samples, groups of another number of classes, an unknown interval.

    Example:
        >>> logits = [[3.0, 0.0, 0.0], [2.0, 0.0, 1.0], [0.0, 1.0, 2.0], [0.0, 2.0, 1.0]]
        >>> result = evaluate(logits, [0, 0, 1, 1], d_groups=ClassGroups.from_counts([200, 10, 50]))
        >>> result.macro, result.worst, result.absent_classes
        (0.75, 0.5, (2,))
        >>> result.to_dict()["d_groups"]["medium"]
        {'accuracy': None, 'classes': 1, 'absent': 1, 'n': 0, 'ci': None}
    """
    rows = logit_rows(logits, labels)
    tally = Tally(rows.num_classes, bins=bins)
    for chunk, target in rows:
        tally.add(chunk, target)
    return tally.evaluation(
        d_groups=d_groups,
        p_groups=p_groups,
        split=split,
        confidence=confidence,
        interval=interval,
        zero_floor=zero_floor,
        resamples=resamples,
        seed=seed,
    )


class Tally:
    """Counts over batches from which an :class:`Evaluation` follows, for outputs too large to hold at once.

    Args:
        num_classes: C.
        bins: of the calibration errors.
        calibrated: whether what is added are logits; otherwise (the votes of neighbours, say) they are only
            ranked, and NLL and the calibration errors are None.

    Example:
        >>> tally = Tally(2)
        >>> tally.add(torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
        >>> tally.add(torch.tensor([[1.0, 0.0]]), torch.tensor([1]))
        >>> tally.evaluation().overall
        0.5
    """

    def __init__(self, num_classes: int, *, bins: int = 15, calibrated: bool = True) -> None:
        self.num_classes = num_classes
        self._n, self._correct, self._predicted = (
            torch.zeros(num_classes, dtype=torch.int64) for _ in range(3)
        )
        self._top, self._nll = 0, 0.0
        self._calibration = CalibrationTally(num_classes, bins) if calibrated else None

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Count a batch: ``logits (n, C)``, finite float32 or float64, and ``labels (n,)`` int64 on one device."""
        prediction = logits.argmax(1)
        right = prediction == labels
        self._n += self._by_class(labels)
        self._correct += self._by_class(labels[right])
        self._predicted += self._by_class(prediction)
        if self.num_classes > TOP_K:
            self._top += int((label_rank(logits, labels) < TOP_K).sum())
        if self._calibration is not None:
            log_probabilities = torch.log_softmax(logits, 1)
            self._nll -= float(log_probabilities.gather(1, labels[:, None]).sum(dtype=torch.float64))
            self._calibration.add(log_probabilities.exp_(), labels)

    def _by_class(self, index: Tensor) -> Tensor:
        return torch.bincount(index, minlength=self.num_classes).cpu()

    def evaluation(
        self,
        *,
        d_groups: ClassGroups | None = None,
        p_groups: ClassGroups | None = None,
        split: str = "test",
        confidence: float = 0.95,
        interval: IntervalMethod = "wilson",
        zero_floor: float = 0.0,
        resamples: int = 2000,
        seed: int = 0,
    ) -> Evaluation:
        """Return the figures of everything added; the arguments are those of :func:`evaluate`."""
        check_interval(confidence, interval)
        n, correct, predicted = (x.numpy() for x in (self._n, self._correct, self._predicted))
        total = int(n.sum())
        if not total:
            raise InputError("there are no samples to evaluate")
        bounds = partial(mean_interval, correct, n, confidence, interval, resamples=resamples, seed=seed)
        present = n > 0
        accuracies = correct[present] / n[present]
        calibration = self._calibration
        return Evaluation(
            split=split,
            n=total,
            classes=self.num_classes,
            overall=int(correct.sum()) / total,
            macro=float(accuracies.mean()),
            macro_f1=float((2 * correct / np.maximum(n + predicted, 1))[present].mean()),
            worst=float(accuracies.min()),
            harmonic=harmonic_mean(accuracies, zero_floor),
            geometric=geometric_mean(accuracies, zero_floor),
            zero_floor=zero_floor,
            top5=self._top / total if self.num_classes > TOP_K else None,
            nll=self._nll / total if calibration is not None else None,
            ece=calibration.curve().ece if calibration is not None else None,
            classwise_ece=calibration.classwise_ece() if calibration is not None else None,
            overall_ci=cast(Interval, bounds(weights=n)),
            macro_ci=cast(Interval, bounds()),
            absent_classes=tuple(np.flatnonzero(~present).tolist()),
            per_class=ClassTable.from_counts(n, correct, predicted, confidence, interval),
            **_by_group(n, correct, d_groups, p_groups, bounds),
            confidence=confidence,
            interval=interval,
        )


def _by_group(
    n: NDArray[np.int64],
    correct: NDArray[np.int64],
    d_groups: ClassGroups | None,
    p_groups: ClassGroups | None,
    bounds: Callable[..., Interval | None],
) -> dict[str, Any]:
    """Return the entries ``d_groups``, ``p_groups`` and ``cross`` of an :class:`Evaluation`."""
    for kind, groups in (("d_groups", d_groups), ("p_groups", p_groups)):
        if groups is not None and len(groups) != len(n):
            raise InputError(
                f"{kind} has {len(groups)} classes", fix=f"expected {len(n)}, as the logits have"
            )

    def accuracy(members: NDArray[np.bool_]) -> GroupAccuracy:
        some = members & (n > 0)
        return GroupAccuracy(
            accuracy=float((correct[some] / n[some]).mean()) if some.any() else None,
            classes=int(members.sum()),
            absent=int(members.sum() - some.sum()),
            n=int(n[members].sum()),
            ci=bounds(weights=members),
        )

    def row(within: NDArray[np.bool_], groups: ClassGroups) -> dict[str, GroupAccuracy]:
        return {name: accuracy(within & groups.mask(name).numpy()) for name in GROUP_NAMES}

    everything = np.ones(len(n), dtype=np.bool_)
    return {
        "d_groups": None if d_groups is None else row(everything, d_groups),
        "p_groups": None if p_groups is None else row(everything, p_groups),
        "cross": None
        if d_groups is None or p_groups is None
        else {d: row(d_groups.mask(d).numpy(), p_groups) for d in GROUP_NAMES},
    }


def class_accuracy(logits: ArrayLike, labels: ArrayLike) -> NDArray[np.float64]:
    """Return each class's accuracy ``(C,)`` as a float64 array; NaN for a class without samples.

    Example:
        >>> class_accuracy([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]], [0, 1]).tolist()
        [1.0, 0.0, nan]
    """
    rows = logit_rows(logits, labels)
    tally = Tally(rows.num_classes, calibrated=False)
    for chunk, target in rows:
        tally.add(chunk, target)
    table = tally.evaluation().per_class
    assert table is not None  # only what is read back may lack it
    return table.accuracy


def top_k_accuracy(logits: ArrayLike, labels: ArrayLike, k: int = 5) -> float:
    """Return the fraction of samples whose label is among the ``k`` largest logits; ties go to the first class.

    Raises:
        InputError: malformed inputs, no samples, or k outside 1 to C.

    Example:
        >>> top_k_accuracy([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0]], [1, 2], k=2)
        0.5
    """
    rows = logit_rows(logits, labels)
    if not 1 <= k <= rows.num_classes:
        raise InputError(f"k is {k}", fix=f"expected 1 to {rows.num_classes}, the number of classes")
    hits = sum(int((label_rank(chunk, target) < k).sum()) for chunk, target in rows)
    return hits / len(rows.labels)


def label_rank(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the place ``(n,)`` of each label when the classes are sorted by logit, from 0; stable in ties."""
    own = logits.gather(1, labels[:, None])
    rank = (logits > own).sum(1)
    equal = logits == own
    tied = equal.sum(1) > 1
    if bool(tied.any()):
        before = torch.arange(logits.shape[1], device=logits.device) < labels[tied, None]
        rank[tied] += (equal[tied] & before).sum(1)
    return rank


def harmonic_mean(accuracies: ArrayLike, zero_floor: float = 0.0) -> float:
    """Return the harmonic mean of fractions; one 0 makes it 0 unless ``zero_floor`` lifts it.

    Example:
        >>> round(harmonic_mean([0.5, 1.0]), 4), harmonic_mean([0.0, 1.0])
        (0.6667, 0.0)
    """
    values = _fractions(accuracies, zero_floor)
    with np.errstate(over="ignore"):  # the inverse of a subnormal is infinite, and the mean 0
        return float(len(values) / (1 / values).sum()) if values.all() else 0.0


def geometric_mean(accuracies: ArrayLike, zero_floor: float = 0.0) -> float:
    """Return the geometric mean of fractions, by their logarithms: a product of thousands would underflow.

    One 0 makes it 0 unless ``zero_floor`` lifts it.

    Example:
        >>> round(geometric_mean([0.7] * 8142), 4)
        0.7
    """
    values = _fractions(accuracies, zero_floor)
    return float(np.exp(np.log(values).mean())) if values.all() else 0.0


def _fractions(accuracies: ArrayLike, zero_floor: float) -> NDArray[np.float64]:
    values = np.asarray(accuracies, dtype=np.float64)
    if values.ndim != 1 or not len(values):
        raise InputError(f"accuracies have shape {values.shape}", fix="expected (C,) with at least one class")
    if not ((values >= 0) & (values <= 1)).all():
        raise InputError("accuracies hold a value outside 0 to 1", fix="pass fractions, without NaN")
    if not 0 <= zero_floor <= 1:
        raise InputError(f"zero_floor is {zero_floor}", fix="expected a fraction")
    return np.maximum(values, zero_floor)


def _pair(bounds: Sequence[float] | None) -> Any:
    return None if bounds is None else tuple(bounds)


def _read_groups(groups: Mapping[str, Any] | None) -> dict[str, GroupAccuracy] | None:
    if groups is None:
        return None
    return {name: GroupAccuracy.from_dict(group) for name, group in groups.items()}


def _percent(fraction: float | None, ci: Interval | None = None) -> str:
    if fraction is None:
        return "-"
    return f"{100 * fraction:.2f}" + (f" [{100 * ci[0]:.2f}, {100 * ci[1]:.2f}]" if ci else "")
