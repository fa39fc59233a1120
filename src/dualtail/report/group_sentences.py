"""Who suffers, and from which of the two imbalances, in sentences that need evidence for what they say."""

from __future__ import annotations

from collections.abc import Sequence

from dualtail.logits.groups import GROUP_NAMES, compare_priors
from dualtail.logits.intervals import correlation_interval, difference_interval, weighted_mean_interval
from dualtail.logits.metrics import Evaluation
from dualtail.logits.prior import LabelPrior
from dualtail.report.report_table import Estimate, group_estimates
from dualtail.report.words import GROUP_TITLES, and_list, count, spell, spell_less
from dualtail.runs.finished import RunResults

_TAIL_TAIL = "Tail-tail (D-Few and P-Few)"


def look_first(results: RunResults) -> str:
    """Say which group of classes is furthest behind the other classes, of those that surely are."""
    behind = []
    for title, cell, others in group_cells(results.metrics):
        gap = difference_to(cell, others)
        if gap is not None and gap.high is not None and gap.high < 0:
            behind.append((gap.value or 0.0, title, cell, gap))
    if not behind:
        return "No group of classes is shown to be behind the others."
    _, title, cell, gap = min(behind, key=lambda group: group[0])
    return (
        f"{title}: its {count(cell.classes or 0, 'class', 'classes')} reach {spell(cell)}, "
        f"{spell_less(gap)} less than the other classes."
    )


def difference_to(cell: Estimate, others: Sequence[Estimate]) -> Estimate | None:
    """Return a group's accuracy minus the mean over the classes of other groups, whose images are others.

    Example:
        >>> gap = difference_to(Estimate(0.9, 0.8, 0.95), [Estimate(0.7, 0.6, 0.78, classes=2)])
        >>> round(gap.value, 3), round(gap.low, 3), round(gap.high, 3)
        (0.2, 0.072, 0.312)
    """
    known = [(other.value, other.ci, other.classes or 0) for other in others]
    total = sum(classes for _, _, classes in known)
    if cell.value is None or cell.ci is None or not total:
        return None
    values = [value for value, _, _ in known if value is not None]
    bounds = [ci for _, ci, _ in known if ci is not None]
    if len(values) < len(known) or len(bounds) < len(known):
        return None
    weights = [classes for _, _, classes in known]
    mean = sum(classes / total * value for classes, value in zip(weights, values, strict=True))
    mean_ci = weighted_mean_interval(values, bounds, weights)
    return Estimate(cell.value - mean, *difference_interval(cell.value, cell.ci, mean, mean_ci))


def group_cells(evaluation: Evaluation) -> list[tuple[str, Estimate, list[Estimate]]]:
    """Return every group with images, tail-tail first, as (title, estimate, the groups of all other classes)."""
    families = [({"few.few": _TAIL_TAIL}, [f"{d}.{p}" for d in GROUP_NAMES for p in GROUP_NAMES])]
    for kind in ("d", "p"):
        titles = {f"{kind}_{name}": f"{kind.upper()}-{GROUP_TITLES[name]}" for name in GROUP_NAMES}
        families.append((titles, list(titles)))
    estimates = group_estimates(evaluation)
    known = {key: cell for key, cell in estimates.items() if cell.value is not None}
    return [
        (title, known[key], [known[other] for other in family if other != key and other in known])
        for titles, family in families
        for key, title in titles.items()
        if key in known
    ]


def describe_groups(results: RunResults) -> str:
    """Say how far the ensemble's accuracy is apart between its groups, and what tail-tail is."""
    groups = group_estimates(results.metrics)
    parts = []
    for kind, what in (("d", "training data"), ("p", "pre-training")):
        many, few = (groups.get(f"{kind}_{name}", Estimate(None)) for name in ("many", "few"))
        if many.value is None or few.value is None:
            continue
        names = f"{kind.upper()}-Many {spell(many)} and {kind.upper()}-Few {spell(few)}"
        gap = difference_to(few, [many])
        if gap is None or gap.low is None or gap.high is None or gap.low <= 0 <= gap.high:
            parts.append(f"By {what} no difference can be told: {names}.")
        elif gap.high < 0:
            parts.append(f"Classes with little {what} suffer, by {spell_less(gap)}: {names}.")
        else:
            parts.append(f"Classes with little {what} do better: {names}.")
    tail = groups.get("tail_tail", Estimate(None))
    if tail.value is not None:
        classes = count(tail.classes or 0, "class", "classes")
        parts.append(f"Tail-tail, few of both, {classes}: {spell(tail)}.")
    return " ".join(parts)


def describe_imbalances(results: RunResults) -> str:
    """Say how far the backbones' priors follow the training counts, and how many classes are rare in both."""
    against = {
        backbone.name: correlation_with_counts(backbone.prior, results).ci or (-1.0, 1.0)
        for backbone in results.backbones
        if backbone.prior is not None
    }
    if not against:
        return "No backbone has zero-shot logits, so only the data imbalance is known."
    follows = [name for name, (low, _) in against.items() if low > 0]
    opposes = [name for name, (_, high) in against.items() if high < 0]
    apart = [name for name in against if name not in follows and name not in opposes]
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
    if results.has_groups:
        tail_tail = results.classes.cross()[2][2]
        line += f" {count(tail_tail, 'class is', 'classes are')} rare in both (tail-tail)."
    return line


def correlation_with_counts(prior: LabelPrior, results: RunResults) -> Estimate:
    """Return Spearman's rank correlation of a prior with the training counts, half an image added to every class."""
    counts = LabelPrior.from_counts(results.classes.train_counts, zero="smooth", smoothing=0.5)
    correlation = compare_priors(prior, counts).spearman
    interval = correlation_interval(correlation, len(prior), results.recipe.evaluate.confidence)
    return Estimate(correlation, *interval)


def explain_groups(results: RunResults) -> str:
    """Say what the groups are, as the recipe cuts them."""
    cuts = results.recipe.evaluate.groups
    line = (
        f"D-Many: more than {count(cuts.many, 'training image')}; D-Medium: {cuts.few:,} to {cuts.many:,}; "
        f"D-Few: fewer than {cuts.few:,}."
    )
    if not results.has_groups:
        return line
    low, high = cuts.quantiles
    return (
        f"{line} P-Few: the {100 * low:.0f} % of the classes that the backbones expect least after their pre-training, "
        f"by the mean of their estimated priors; P-Many: the {100 * (1 - high):.0f} % that they expect most."
    )
