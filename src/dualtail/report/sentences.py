"""The run in a few sentences, written from its numbers and never claiming more than the intervals allow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dualtail.report.results import RunResults


@dataclass(frozen=True)
class Line:
    """A sentence of the overview.

    Attributes:
        topic: what it is about, such as "data".
        text: the sentence, plain text.
    """

    topic: str
    text: str


def describe_run(results: RunResults) -> list[Line]:
    """Return the overview of a run, a line for each topic."""
    return [Line("data", _data(results)), Line("members", _members(results))]


def _data(results: RunResults) -> str:
    classes = results.classes
    train = classes.counts.get("train") or classes.group_counts
    sizes = classes.group_sizes("D")
    measured = sum(classes.counts.get(classes.evaluated_on, []))
    return (
        f"{count(len(classes), 'class', 'classes')}, {sum(train):,} training images, {max(train):,} to "
        f"{min(train):,} a class; {sizes['many']} D-Many, {sizes['medium']} D-Medium, {sizes['few']} D-Few. "
        f"Measured on {count(measured, 'image')} of {classes.evaluated_on}."
    )


def _members(results: RunResults) -> str:
    names = and_list([member.name for member in results.members])
    with_prior = [backbone for backbone in results.backbones if backbone.prior is not None]
    line = f"{count(len(results.members), 'member')}: {names}."
    if not with_prior:
        return f"{line} No backbone has a text tower, so there is no pre-training prior and there are no P-groups."
    without = [backbone.name for backbone in results.backbones if backbone.prior is None]
    if without:
        have = "have" if len(without) > 1 else "has"
        line += f" No pre-training prior for {and_list(without)}, which {have} no text tower."
    return line


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
