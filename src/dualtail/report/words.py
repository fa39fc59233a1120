"""Numbers and lists in words, as every sentence and table of the report has them."""

from __future__ import annotations

from collections.abc import Sequence

from rich.markup import escape

from dualtail.errors import printable
from dualtail.report.report_table import Estimate, format_interval, format_value
from dualtail.runs.finished import RunResults

GROUP_TITLES = {"many": "Many", "medium": "Medium", "few": "Few"}


def spell(cell: Estimate, results: RunResults | None = None) -> str:
    """Return an accuracy with its interval; with ``results``, also what the interval is.

    Example:
        >>> spell(Estimate(0.5, 0.4, 0.6))
        '50.0 % (40.0–60.0)'
    """
    value = f"{format_value('percent', cell.value)} %"
    interval = format_interval("percent", cell)
    if not interval:
        return value
    kind = f"{100 * results.recipe.evaluate.confidence:g} % interval " if results else ""
    return f"{value} ({kind}{interval})"


def spell_points(gap: Estimate) -> str:
    """Return a difference of accuracies in points, with its interval.

    Example:
        >>> spell_points(Estimate(0.046, 0.018, 0.073))
        '+4.6 points (+1.8 to +7.3)'
    """
    return f"{format_value('points', gap.value)} points ({format_interval('points', gap)})"


def spell_less(gap: Estimate) -> str:
    """Return how much less a negative difference is.

    Example:
        >>> spell_less(Estimate(-0.046, -0.073, -0.018))
        '4.6 points (1.8 to 7.3)'
    """
    value, low, high = (None if bound is None else -bound for bound in (gap.value, gap.high, gap.low))
    return spell_points(Estimate(value, low, high)).replace("+", "")


def count(number: int, noun: str, plural: str | None = None) -> str:
    """Return a number with its noun.

    Example:
        >>> count(1, "class", "classes"), count(1200, "image")
        ('1 class', '1,200 images')
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def and_list(words: Sequence[str]) -> str:
    """Return words as an enumeration.

    Example:
        >>> and_list(["a"]), and_list(["a", "b", "c"])
        ('a', 'a, b and c')
    """
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def shown(text: object, *, keep: str = "") -> str:
    r"""Return text that Rich prints as it is: no markup, and nothing that a terminal obeys.

    Example:
        >>> print(shown("[bold]\x1b[2J"))
        \[bold]\u001b[2J
    """
    return escape(printable(text, keep=keep))
