"""The run in a few sentences, written from its numbers and never claiming more than the intervals allow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dualtail.logits.groups import GROUP_NAMES, compare_priors
from dualtail.logits.intervals import normal_quantile
from dualtail.logits.prior import LabelPrior
from dualtail.report.results import Row, RunResults
from dualtail.report.sheet import Estimate, format_interval, format_value

GROUP_TITLES = {"many": "Many", "medium": "Medium", "few": "Few"}
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
    train = classes.counts.get("train") or classes.group_counts
    sizes = classes.group_sizes("D")
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
        f"{tuned.loss.name} loss."
    )
    if len(results.members) < 2:
        return f"{line} One member has nothing to be averaged with, so the adjusted ensemble is that member."
    rule = str(results.weights.get("rule", "logits")).replace("_", "-")
    averaged = "The median of their log-probabilities" if rule == "median" else f"The average of their {rule}"
    weights = [f"{weight:.2f}" for weight in results.weights.get("weights", [])]
    if len(set(weights)) < 2:
        over = "with equal weights"
    else:
        over = f"with weights {and_list(weights)}{', fitted on val' if results.weights.get('fitted') else ''}"
    return f"{line} {averaged}, {over}, is the backdoor-adjusted ensemble."


def _headline(results: RunResults) -> str:
    metrics = results.metrics
    who = "The adjusted ensemble" if len(results.members) > 1 else "The member"
    overall = Estimate(metrics["overall"], *(metrics.get("overall_ci") or (None, None)))
    line = f"{who} is right on {spell(overall, results)} of the images"
    tail = Estimate.of((metrics.get("cross") or {}).get("few", {}).get("few"))
    few = Estimate.of((metrics.get("d_groups") or {}).get("few"))
    if tail.value is not None:
        line += f", and in the tail-tail classes on {spell(tail)}"
    elif few.value is not None:
        line += f", and in the D-Few classes on {spell(few)}"
    return f"{line}."


def _against_members(results: RunResults) -> str:
    """Say what the paired comparisons with the members show, and no more."""
    found = [(row["b"], comparison_of(row)) for row in overall_comparisons(results)]
    found = [(name, difference) for name, difference in found if difference.low is not None]
    if len(found) < 2:
        return ""
    better = [name for name, difference in found if difference.low > 0]  # type: ignore[operator]
    worse = [name for name, difference in found if difference.high < 0]  # type: ignore[operator]
    rest = [name for name, _ in found if name not in better and name not in worse]
    name, least = min(found, key=lambda pair: pair[1].value or 0.0)
    points = f"{format_value('points', least.value)} points ({format_interval('points', least)})"
    if len(better) == len(found):
        return f"It is better than every member; over the best, {name}, by {points}, on the same images."
    if len(rest) == len(found):
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


def overall_comparisons(results: RunResults) -> list[Row]:
    """Return the paired comparisons of overall accuracy over all classes."""
    return [
        row
        for row in results.comparisons
        if row.get("measure", "overall") == "overall" and row.get("classes", "all") == "all"
    ]


def comparison_of(row: Row) -> Estimate:
    """Return a paired difference as an estimate."""
    low, high = row.get("ci") or (None, None)
    return Estimate(row.get("difference"), low, high, row.get("n"))


def look_first(results: RunResults) -> str:
    """Say which group of classes is furthest behind the other classes, of those that surely are."""
    behind = []
    for title, cell, others in group_cells(results.metrics):
        gap = difference_of(cell, union(others))
        if gap is not None and gap.high is not None and gap.high < 0:
            behind.append((gap.value or 0.0, title, cell, gap))
    if not behind:
        return "No group of classes is shown to be behind the others."
    _, title, cell, gap = min(behind, key=lambda found: found[0])
    return (
        f"{title}: its {count(cell.classes or 0, 'class', 'classes')} reach {spell(cell)}, "
        f"{spell_less(gap)} less than the other classes."
    )


def difference_of(a: Estimate, b: Estimate | None) -> Estimate | None:
    """Return ``a - b`` of two accuracies on different images, its interval from theirs (MOVER: Newcombe 1998)."""
    if b is None or None in (a.value, a.low, a.high, b.value, b.low, b.high):
        return None
    value = a.value - b.value  # type: ignore[operator]
    down = math.hypot(a.value - a.low, b.high - b.value)  # type: ignore[operator]
    up = math.hypot(a.high - a.value, b.value - b.low)  # type: ignore[operator]
    return Estimate(value, value - down, value + up)


def union(cells: Sequence[Estimate]) -> Estimate | None:
    """Return the mean accuracy over the classes of several groups, its interval from theirs in the same way."""
    classes = sum(cell.classes or 0 for cell in cells)
    if not classes or any(cell.low is None or cell.high is None for cell in cells):
        return None
    shares = [(cell.classes or 0) / classes for cell in cells]
    value = sum(share * (cell.value or 0.0) for share, cell in zip(shares, cells, strict=True))
    down = math.hypot(*(share * (cell.value - cell.low) for share, cell in zip(shares, cells, strict=True)))  # type: ignore[operator]
    up = math.hypot(*(share * (cell.high - cell.value) for share, cell in zip(shares, cells, strict=True)))  # type: ignore[operator]
    return Estimate(value, value - down, value + up, classes=classes)


def spell_less(gap: Estimate) -> str:
    """Return how much less a negative difference is.

    Example:
        >>> spell_less(Estimate(-0.046, -0.073, -0.018))
        '4.6 points (1.8 to 7.3)'
    """
    value, low, high = (None if bound is None else -bound for bound in (gap.value, gap.high, gap.low))
    less = Estimate(value, low, high)
    bare = format_value("points", less.value).removeprefix("+")
    return f"{bare} points ({format_interval('points', less).replace('+', '')})"


def group_cells(metrics: Row) -> list[tuple[str, Estimate, list[Estimate]]]:
    """Return every group with classes, tail-tail first, as (title, estimate, the groups of all other classes)."""
    cross = metrics.get("cross") or {}
    cells = {(d, p): cross.get(d, {}).get(p) for d in GROUP_NAMES for p in GROUP_NAMES}
    families = [({("few", "few"): "Tail-tail (D-Few and P-Few)"}, cells)]
    for kind in ("d", "p"):
        titles = {name: f"{kind.upper()}-{GROUP_TITLES[name]}" for name in GROUP_NAMES}
        families.append((titles, metrics.get(f"{kind}_groups") or {}))  # type: ignore[arg-type]
    found = []
    for titled, family in families:
        known = {
            name: Estimate.of(cell)
            for name, cell in family.items()
            if cell and cell.get("accuracy") is not None
        }
        for name, title in titled.items():
            if name in known:
                found.append((title, known[name], [cell for other, cell in known.items() if other != name]))
    return found


def lowest_classes(results: RunResults) -> tuple[tuple[int, str], ...]:
    """Return the classes that the ensemble is right on least often, as (class, "name (right of all)")."""
    table = results.metrics.get("per_class") or {}
    known = [
        (correct / n, index, correct, n)
        for index, (correct, n) in enumerate(zip(table.get("correct", []), table.get("n", []), strict=True))
        if n and correct < n
    ]
    names = results.classes.names
    return tuple(
        (index, f"{names[index]} ({correct} of {n})")
        for _, index, correct, n in sorted(known)[:_LOWEST_CLASSES]
    )


def describe_groups(results: RunResults) -> str:
    """Say how far the ensemble's accuracy is apart between its groups, and what tail-tail is."""
    metrics = results.metrics
    parts = []
    for kind, what in (("d", "training data"), ("p", "pre-training")):
        groups = metrics.get(f"{kind}_groups") or {}
        many, few = Estimate.of(groups.get("many")), Estimate.of(groups.get("few"))
        if many.value is None or few.value is None:
            continue
        names = f"{kind.upper()}-Many {spell(many)} and {kind.upper()}-Few {spell(few)}"
        gap = difference_of(few, many)
        if gap is None or gap.low is None or gap.high is None or gap.low <= 0 <= gap.high:
            parts.append(f"By {what} no difference can be told: {names}.")
        elif gap.high < 0:
            parts.append(f"Classes with little {what} suffer, by {spell_less(gap)}: {names}.")
        else:
            parts.append(f"Classes with little {what} do better: {names}.")
    tail = Estimate.of((metrics.get("cross") or {}).get("few", {}).get("few"))
    if tail.value is not None:
        parts.append(
            f"Tail-tail, few of both, {count(tail.classes or 0, 'class', 'classes')}: {spell(tail)}."
        )
    return " ".join(parts)


# --- the two imbalances


def describe_imbalances(results: RunResults) -> str:
    """Say how far the backbones' priors follow the training counts and each other."""
    known = [backbone for backbone in results.backbones if backbone.prior is not None]
    if not known:
        return "No backbone has zero-shot logits, so only the data imbalance is known."
    counts = train_prior(results)
    against = [
        (backbone.name, correlation_interval(backbone.prior, counts, results.recipe.evaluate.confidence))
        for backbone in known
        if backbone.prior is not None
    ]
    follows = [name for name, (low, high) in against if low > 0]
    opposes = [name for name, (low, high) in against if high < 0]
    apart = [name for name, (low, high) in against if low <= 0 <= high]
    parts = []
    if follows:
        parts.append(f"the prior of {and_list(follows)} follows the training counts")
    if opposes:
        parts.append(f"the prior of {and_list(opposes)} runs against the training counts")
    if apart:
        parts.append(
            f"no relation between the training counts and the prior of {and_list(apart)} can be told"
        )
    line = f"By rank, {'; '.join(parts)}."
    if results.classes.p_groups is not None:
        tail_tail = results.classes.cross()[2][2]
        line += f" {count(tail_tail, 'class is', 'classes are')} rare in both (tail-tail)."
    return line


def explain_groups(results: RunResults) -> str:
    """Say what the groups are, as the recipe cuts them."""
    cuts = results.recipe.evaluate.groups
    line = (
        f"D-Many: more than {count(cuts.many, 'training image')}; D-Medium: {cuts.few:,} to {cuts.many:,}; "
        f"D-Few: fewer than {cuts.few:,}."
    )
    if results.classes.p_groups is None:
        return line
    low, high = cuts.quantiles
    return (
        f"{line} P-Few: the {100 * low:.0f} % of the classes that the backbones expect least after their pre-training, "
        f"by the mean of their estimated priors; P-Many: the {100 * (1 - high):.0f} % that they expect most."
    )


def train_prior(results: RunResults) -> LabelPrior:
    """Return the label prior of the training counts, with half an image added to every class."""
    counts = results.classes.counts.get("train") or results.classes.group_counts
    return LabelPrior.from_counts(counts, zero="smooth", smoothing=0.5)


def correlation_interval(first: LabelPrior, second: LabelPrior, confidence: float) -> tuple[float, float]:
    """Return an interval for Spearman's rank correlation over classes; (-1, 1) where too few classes say nothing.

    Fisher's z with the standard error of Bonett and Wright (2000), ``sqrt((1 + r^2 / 2) / (C - 3))``.

    Example:
        >>> first = LabelPrior.from_counts(list(range(1, 51)))
        >>> low, high = correlation_interval(first, first, 0.95)
        >>> low > 0.9
        True
    """
    correlation, classes = compare_priors(first, second).spearman, len(first)
    if math.isnan(correlation) or classes < 5:
        return -1.0, 1.0
    bounded = min(max(correlation, -0.999999), 0.999999)
    half = normal_quantile(confidence) * math.sqrt((1 + bounded**2 / 2) / (classes - 3))
    return math.tanh(math.atanh(bounded) - half), math.tanh(math.atanh(bounded) + half)


# --- words


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
