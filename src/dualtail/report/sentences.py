"""The overview of a run in five lines, written from its numbers and never claiming more than the intervals allow."""

from __future__ import annotations

from dataclasses import dataclass

from dualtail.report.group_sentences import look_first
from dualtail.report.report_table import difference_estimate, group_estimates
from dualtail.report.words import and_list, count, spell, spell_points
from dualtail.runs.finished import RunResults

_LOWEST_CLASSES = 3


@dataclass(frozen=True)
class Line:
    """A sentence of the overview.

    Attributes:
        topic: what it is about, such as "data".
        text: the sentence, plain text.
        classes: (class, what to call it) of classes that the page links to behind the sentence.
    """

    topic: str
    text: str
    classes: tuple[tuple[int, str], ...] = ()

    def __str__(self) -> str:
        if not self.classes:
            return self.text
        return f"{self.text} Lowest classes: {and_list([name for _, name in self.classes])}."


def describe_run(results: RunResults) -> list[Line]:
    """Return the overview of a run in five lines: data, members, what was done, headline, what to look at first."""
    return [
        Line("data", _data(results)),
        Line("members", _members(results)),
        Line("what was done", _done(results)),
        Line("result", f"{_headline(results)} {_against_members(results)}".strip()),
        Line("look first at", look_first(results), lowest_classes(results)),
    ]


def _data(results: RunResults) -> str:
    classes = results.classes
    train, sizes = classes.train_counts, classes.group_sizes("D")
    measured = sum(classes.counts.get(classes.evaluated_on, []))
    return (
        f"{count(len(classes), 'class', 'classes')}, {count(sum(train), 'training image')}, {max(train):,} to "
        f"{min(train):,} a class; {sizes['many']:,} D-Many, {sizes['medium']:,} D-Medium, {sizes['few']:,} D-Few. "
        f"Measured on {count(measured, 'image')} of {classes.evaluated_on}."
    )


def _members(results: RunResults) -> str:
    names = and_list([member.name for member in results.members])
    line = f"{count(len(results.members), 'member')}: {names}."
    random = [backbone.name for backbone in results.backbones if backbone.info.get("weights") == "random"]
    if random:
        line += (
            f" The weights of {and_list(random)} began at random, so their priors tell of no pre-training."
        )
    without = [backbone.name for backbone in results.backbones if backbone.prior is None]
    if results.backbones and len(without) == len(results.backbones):
        return f"{line} No backbone has a text tower, so there is no pre-training prior and there are no P-groups."
    if without:
        have = "have" if len(without) > 1 else "has"
        line += f" No pre-training prior for {and_list(without)}, which {have} no text tower."
    return line


def _done(results: RunResults) -> str:
    tuned = results.recipe.finetune
    how = "Each was" if len(results.members) > 1 else "It was"
    with_tuner = "its head alone" if tuned.tuner.name == "none" else f"the tuner {tuned.tuner.name}"
    line = (
        f"{how} fine-tuned for {count(tuned.epochs, 'epoch')}: {with_tuner}, {tuned.head.name} head, "
        f"{' then '.join(loss.name for loss in tuned.losses)} loss."
    )
    if len(results.members) < 2:
        return f"{line} One member has nothing to be averaged with, so the adjusted ensemble is that member."
    prior = results.member_prior
    rule = prior.rule.replace("_", "-")
    averaged = "The median of their log-probabilities" if rule == "median" else f"The average of their {rule}"
    weights = [f"{weight:.2f}" for weight in prior.weights.tolist()]
    if len(set(weights)) < 2:
        over = "with equal weights"
    else:
        over = f"with weights {and_list(weights)}{', fitted on val' if results.fitted else ''}"
    return f"{line} {averaged}, {over}, is the backdoor-adjusted ensemble."


def _headline(results: RunResults) -> str:
    groups = group_estimates(results.metrics)
    who = "The adjusted ensemble" if len(results.members) > 1 else "The member"
    line = f"{who} is right on {spell(groups['overall'], results)} of the images"
    for key, title in (("tail_tail", "tail-tail"), ("d_few", "D-Few")):
        if key in groups and groups[key].value is not None:
            return f"{line}, and in the {title} classes on {spell(groups[key])}."
    return f"{line}."


def _against_members(results: RunResults) -> str:
    """Say what the paired comparisons with the members show, and no more."""
    tests = {
        comparison.member: comparison.test
        for comparison in results.comparisons
        if (comparison.test.measure, comparison.classes) == ("overall", "all")
    }
    if len(tests) < 2:
        return ""
    better = [name for name, test in tests.items() if test.ci[0] > 0]
    worse = [name for name, test in tests.items() if test.ci[1] < 0]
    rest = [name for name in tests if name not in better and name not in worse]
    name = min(tests, key=lambda member: tests[member].difference)
    points = spell_points(difference_estimate(tests[name]))
    if len(better) == len(tests):
        return f"It is better than every member; over the best, {name}, by {points}, on the same images."
    if len(rest) == len(tests):
        return f"No difference to any member can be told from these images; that to {name} is {points}."
    parts = []
    if better:
        parts.append(f"better than {and_list(better)}")
    if worse:
        parts.append(f"worse than {and_list(worse)}")
    line = f"It is {' and '.join(parts)}"
    if rest:
        line += f", but no difference to {and_list(rest)} can be told from these images"
    return f"{line}; the difference to {name} is {points}."


def lowest_classes(results: RunResults) -> tuple[tuple[int, str], ...]:
    """Return the classes that the ensemble is right on least often, as (class, "name (right of all)")."""
    table, names = results.metrics.per_class, results.classes.names
    if table is None:
        return ()
    right, total = table.correct.tolist(), table.n.tolist()
    missed = [index for index, n in enumerate(total) if n and right[index] < n]
    lowest = sorted(missed, key=lambda index: right[index] / total[index])[:_LOWEST_CLASSES]
    return tuple((index, f"{names[index]} ({right[index]} of {total[index]})") for index in lowest)
