"""One table, whatever it is printed on: typed columns and raw values, so that every format shows the same numbers.

A fraction is printed in per cent; CSV and JSON keep it a fraction.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from dualtail.logits.comparison import PairedTest
from dualtail.logits.intervals import Interval
from dualtail.logits.metrics import Evaluation, GroupAccuracy

Kind = Literal["text", "count", "percent", "points", "number", "correlation", "p_value"]


@dataclass(frozen=True)
class Estimate:
    """A number with what is known of its uncertainty.

    Attributes:
        value: a fraction, or a difference of fractions; None where there is nothing to measure.
        low: lower bound of its confidence interval, if there is one.
        high: upper bound.
        n: samples it was measured on.
        classes: classes it was averaged over.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    classes: int | None = None

    @classmethod
    def of(cls, group: GroupAccuracy | None) -> Estimate:
        """Return the accuracy of a group of classes; an absent or empty group gives an empty estimate.

        Example:
            >>> Estimate.of(None).value, Estimate.of(GroupAccuracy(0.5, 2, 0, 40, (0.35, 0.65))).ci
            (None, (0.35, 0.65))
        """
        if group is None:
            return cls(None)
        low, high = group.ci or (None, None)
        return cls(group.accuracy, low, high, group.n, group.classes)

    @property
    def ci(self) -> Interval | None:
        """The confidence interval, if there is one."""
        return None if self.low is None or self.high is None else (self.low, self.high)


def group_estimates(evaluation: Evaluation) -> dict[str, Estimate]:
    """Return the accuracy of every group of an evaluation, by the keys of :meth:`Evaluation.by_group`."""
    return {key: Estimate.of(group) for key, group in evaluation.by_group().items()}


def difference_estimate(test: PairedTest) -> Estimate:
    """Return a paired difference as an estimate."""
    return Estimate(test.difference, *test.ci, test.n)


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        key: its name in CSV and JSON.
        title: its heading.
        kind: how its values are printed: ``percent`` takes fractions, ``points`` differences of fractions.
        best: which extreme is the good one, for the formats that mark it.
        intervals: print the intervals of its estimates.
        spare: a narrow terminal leaves out the columns with the largest number first, 0 never.
    """

    key: str
    title: str
    kind: Kind = "text"
    best: Literal["high", "low"] | None = None
    intervals: bool = True
    spare: int = 0

    @property
    def is_text(self) -> bool:
        """Whether its values are words."""
        return self.kind == "text"


@dataclass(frozen=True)
class ReportTable:
    """A table with its heading.

    Attributes:
        key: its name in files and links.
        title: what it shows, in a few words.
        columns: from left to right.
        rows: ``{column.key: value}`` each; a missing key or None is an empty cell, a value may be an
            :class:`Estimate`. The key ``"mark"`` is no column: rows that share one are set apart.
        note: how to read it.
        marks: what each mark means, for a heading above its rows.
    """

    key: str
    title: str
    columns: Sequence[Column]
    rows: Sequence[dict[str, Any]]
    note: str = ""
    marks: dict[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        """Whether there is anything to show."""
        return bool(self.rows)

    def best_rows(self, column: Column) -> set[int]:
        """Return the rows (indices) that hold the best printed value of a column, the ones set apart left out."""
        if column.best is None:
            return set()
        shown = {
            index: float(format_value(column.kind, row.get(column.key)))
            for index, row in enumerate(self.rows)
            if number(row.get(column.key)) is not None and not row.get("mark")
        }
        if len(shown) < 2:
            return set()
        extreme = max(shown.values()) if column.best == "high" else min(shown.values())
        return {index for index, value in shown.items() if value == extreme}


def number(value: Any) -> float | None:
    """Return the bare number of a cell, or None if it has none.

    Example:
        >>> number(Estimate(0.5, 0.4, 0.6)), number("text"), number(None)
        (0.5, None, None)
    """
    if isinstance(value, Estimate):
        value = value.value
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def format_value(kind: Kind, value: Any) -> str:
    """Return a cell's value as it is printed, without its interval; an empty cell is an empty string.

    Example:
        >>> format_value("percent", 0.8125), format_value("points", -0.013), format_value("count", 12345)
        ('81.2', '-1.3', '12,345')
        >>> format_value("p_value", 0.00002), format_value("number", 1.23456), format_value("percent", None)
        ('< 0.001', '1.23', '')
        >>> format_value("number", 1341.6)
        '1,342'
    """
    if kind == "text":
        return "" if value is None else str(value)
    bare = number(value)
    if bare is None:
        return ""
    if kind == "count":
        return f"{round(bare):,}"
    if kind == "percent":
        return f"{100 * bare:.1f}"
    if kind == "points":
        text = f"{100 * bare:+.1f}"
        return "0.0" if text in ("+0.0", "-0.0") else text
    if kind == "correlation":
        return f"{bare:.2f}".replace("-0.00", "0.00")
    if kind == "p_value":
        return "< 0.001" if bare < 0.001 else f"{bare:.3f}"
    # From a hundred on, "3 digits" would print powers of ten.
    return f"{bare:,.0f}" if abs(bare) >= 100 else f"{bare:.3g}"


def format_interval(kind: Kind, value: Any) -> str:
    """Return the interval of a cell as it is printed, or an empty string.

    Example:
        >>> format_interval("percent", Estimate(0.5, 0.4, 0.6)), format_interval("percent", 0.5)
        ('40.0–60.0', '')
    """
    if not isinstance(value, Estimate) or value.low is None or value.high is None:
        return ""
    # Signed bounds would run into a dash.
    to = " to " if kind in ("points", "correlation") else "–"
    return f"{format_value(kind, value.low)}{to}{format_value(kind, value.high)}"
