"""Faults of a data set as data: found all at once, rendered by whoever asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from dualtail.errors import DataError


@dataclass(frozen=True)
class Problem:
    """One fault of a data set.

    Attributes:
        what: what is wrong, as a short clause.
        where: the file, row, split or class it was found in.
        fix: what to do about it.
        severity: ``"error"`` (the data cannot be used) or ``"warning"`` (results may mislead).

    Example:
        >>> print(Problem("no training image", where="class 'cat'", fix="add one or remove the class"))
        class 'cat': no training image; add one or remove the class
    """

    what: str
    where: str | None = None
    fix: str | None = None
    severity: Literal["error", "warning"] = "error"

    def __str__(self) -> str:
        line = f"{self.where}: {self.what}" if self.where else self.what
        return f"{line}; {self.fix}" if self.fix else line


class DataFaults(DataError):
    """A data set with one or more faults: the message is the first, ``problems`` holds all.

    Example:
        >>> str(DataFaults([Problem("unknown label", "row 3"), Problem("unknown label", "row 9")]))
        'row 3: unknown label (and 1 more fault of this data set)'
    """

    def __init__(self, problems: Sequence[Problem]) -> None:
        first, more = problems[0], len(problems) - 1
        super().__init__(first.what, where=first.where, fix=first.fix)
        self.problems = tuple(problems)
        if more:
            self.args = (f"{self.args[0]} (and {more} more fault{'s' * (more > 1)} of this data set)",)


def raise_errors(problems: Sequence[Problem]) -> None:
    """Raise ``DataFaults`` with the problems of severity ``"error"``, if there is one."""
    errors = [problem for problem in problems if problem.severity == "error"]
    if errors:
        raise DataFaults(errors)
