"""Figures of several worlds as mean and interval, in Markdown tables and in sentences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dualtail.errors import InputError
from dualtail.logits.comparison import SeedSummary, summarize_seeds
from dualtail.logits.metrics import Evaluation

Figures = Mapping[str, float]

# What the columns are called.
TITLES = {
    "overall": "overall",
    "d_many": "D-Many",
    "d_few": "D-Few",
    "p_many": "P-Many",
    "p_few": "P-Few",
    "tail_tail": "tail-tail",
}


def figures(evaluation: Evaluation) -> dict[str, float]:
    """Return the accuracies that the tables show, as fractions.

    Raises:
        InputError: the evaluation has no groups, or a group has no test samples.
    """
    row: dict[str, float] = {"overall": evaluation.overall}
    for kind, groups in (("d", evaluation.d_groups), ("p", evaluation.p_groups)):
        for name in ("many", "few"):
            row[f"{kind}_{name}"] = _known(
                groups[name].accuracy if groups else None, f"{kind.upper()}-{name.title()}"
            )
    row["tail_tail"] = _known(evaluation.tail_tail.accuracy if evaluation.tail_tail else None, "tail-tail")
    return row


def _known(value: float | None, group: str) -> float:
    if value is None:
        raise InputError(
            f"{group} has no test samples", fix="choose a larger world, or groups that are not empty"
        )
    return value


@dataclass
class Table:
    """Rows of figures, one dictionary a world in each.

    Attributes:
        caption: what it shows.
        head: title of the first column.
        columns: key of a figure to its title.
        percent: whether the figures are fractions to be shown in per cent.
        rows: title to the worlds' figures.
    """

    caption: str
    head: str
    columns: Mapping[str, str]
    percent: bool = True
    rows: dict[str, list[Figures]] = field(default_factory=dict)

    def add(self, title: str, row: Figures) -> None:
        """Add a world's figures to a row."""
        self.rows.setdefault(title, []).append(row)

    def values(self, title: str, column: str, base: str | None = None) -> list[float]:
        """Return the worlds' figures of a row, less those of the row ``base`` if there is one."""
        if base is None:
            return [row[column] for row in self.rows[title]]
        pairs = zip(self.rows[title], self.rows[base], strict=True)
        return [a[column] - b[column] for a, b in pairs]

    def summary(self, title: str, column: str) -> SeedSummary:
        """Return mean and interval over the worlds."""
        return summarize_seeds(self.values(title, column))

    def difference(self, title: str, other: str, column: str) -> SeedSummary:
        """Return mean and interval of ``title`` minus ``other``, world by world."""
        return summarize_seeds(self.values(title, column, other))

    def contrast(self, title: str, column: str, other: str) -> SeedSummary:
        """Return mean and interval of ``column`` minus ``other`` in one row, world by world."""
        return summarize_seeds([row[column] - row[other] for row in self.rows[title]])

    def interaction(self, rows: tuple[str, str], others: tuple[str, str], column: str) -> SeedSummary:
        """Return mean and interval of the difference of ``rows`` minus that of ``others``, world by world."""
        pairs = zip(
            self.values(rows[0], column, rows[1]), self.values(others[0], column, others[1]), strict=True
        )
        return summarize_seeds([a - b for a, b in pairs])

    def to_markdown(self) -> str:
        """Return the table; a cell is mean ± half the 95 % interval, and the standard deviation over worlds."""
        lines = [
            f"{self.caption}",
            "",
            "| " + " | ".join([self.head, *self.columns.values()]) + " |",
            "|---" * (len(self.columns) + 1) + "|",
        ]
        for title, rows in self.rows.items():
            cells = [
                cell(self.summary(title, column), percent=self.percent)
                if all(column in row for row in rows)
                else "-"
                for column in self.columns
            ]
            lines.append("| " + " | ".join([title, *cells]) + " |")
        return "\n".join(lines)


def cell(summary: SeedSummary, *, percent: bool = True) -> str:
    """Return ``mean ± half interval (standard deviation)``.

    Example:
        >>> cell(summarize_seeds([0.70, 0.72, 0.74]))
        '72.0 ± 5.0 (2.0)'
    """
    scale, digits = (100, 1) if percent else (1, 2)
    if summary.ci is None or summary.std is None:
        return f"{scale * summary.mean:.{digits}f}"
    half = (summary.ci[1] - summary.ci[0]) / 2
    return f"{scale * summary.mean:.{digits}f} ± {scale * half:.{digits}f} ({scale * summary.std:.{digits}f})"


def points(summary: SeedSummary) -> str:
    """Return a difference of accuracies in points with its interval.

    Example:
        >>> points(summarize_seeds([0.01, 0.02, 0.03]))
        '+2.0 points [-0.5, +4.5]'
    """
    return _with_interval(summary, "+.1f", scale=100, unit=" points")


def share(summary: SeedSummary) -> str:
    """Return a fraction in per cent with its interval.

    Example:
        >>> share(summarize_seeds([0.84, 0.85, 0.86]))
        '85 % [83, 87]'
    """
    return _with_interval(summary, ".0f", scale=100, unit=" %")


def verdict(summary: SeedSummary, better: str, worse: str, unsure: str) -> str:
    """Choose a word by whether the interval lies above 0, below it, or around it."""
    if summary.ci is None or summary.ci[0] <= 0 <= summary.ci[1]:
        return unsure
    return better if summary.mean > 0 else worse


def number(summary: SeedSummary, digits: int = 2) -> str:
    """Return a figure with its interval.

    Example:
        >>> number(summarize_seeds([0.94, 0.95, 0.96]))
        '0.95 [0.93, 0.97]'
    """
    return _with_interval(summary, f".{digits}f")


def _with_interval(summary: SeedSummary, how: str, *, scale: float = 1, unit: str = "") -> str:
    said = f"{scale * summary.mean:{how}}{unit}"
    if summary.ci is None:
        return said
    low, high = (format(scale * bound, how) for bound in summary.ci)
    return f"{said} [{low}, {high}]"


def titles(*keys: str, **more: str) -> dict[str, str]:
    """Return columns for the named figures."""
    return {key: TITLES[key] for key in keys} | more
