"""What a run is made of: its members, their backbones' priors, and its classes by both kinds of groups."""

from __future__ import annotations

from pathlib import Path

from dualtail.logits.groups import GROUP_NAMES, compare_priors
from dualtail.logits.prior import LabelPrior
from dualtail.report.group_sentences import correlation_with_counts
from dualtail.report.report_table import Column, ReportTable
from dualtail.report.words import GROUP_TITLES
from dualtail.runs.finished import RunResults
from dualtail.runs.results import Row


def members_table(results: RunResults) -> ReportTable:
    """Return the members: what they are made of and how they were trained."""
    rows = []
    for member, weight in zip(results.members, results.member_prior.weights.tolist(), strict=True):
        info, training = results.backbone(member.backbone).info, member.training
        row: Row = {
            "member": member.name,
            "backbone": _short_backbone(str(info.get("backbone", member.backbone))),
            "parameters": info.get("parameters"),
            "seed": member.seed,
            "weight": weight,
            "overall": member.metrics.overall,
        }
        if training is not None:
            memory = training.peak_memory
            row |= {
                "trained": training.num_parameters,
                "seconds": training.seconds,
                "speed": training.images_per_second,
                "memory": None if memory is None else memory / 2**30,
                "loss": training.history[-1].get("loss") if training.history else None,
            }
        rows.append(row)
    columns = [
        Column("member", "member"),
        Column("backbone", "backbone"),
        Column("parameters", "parameters", "count"),
        Column("trained", "trained", "count"),
        Column("seed", "seed", "count"),
        Column("seconds", "training, s", "number"),
        Column("speed", "images/s", "number"),
        Column("memory", "peak memory, GiB", "number"),
        Column("loss", "last loss", "number"),
        Column("weight", "P(c)", "number"),
        Column("overall", "accuracy", "percent"),
    ]
    used = [column for column in columns if any(row.get(column.key) is not None for row in rows)]
    return ReportTable("members", "Members", used, rows)


def _short_backbone(name: str) -> str:
    """Return a backbone's name, of a local one only the folder; the recipe has the whole path.

    Example:
        >>> _short_backbone("timm:vit_base"), _short_backbone("open_clip:/home/me/models/small")
        ('timm:vit_base', 'open_clip:…/small')
    """
    library, _, rest = name.partition(":")
    return f"{library}:…/{Path(rest).name}" if Path(rest).is_absolute() else name


def known_priors(results: RunResults, *, mean: bool = False) -> list[tuple[str, LabelPrior]]:
    """Return (backbone, prior) of those that have one; with ``mean`` also that of the members, where it is another."""
    known = [(backbone.name, backbone.prior) for backbone in results.backbones if backbone.prior is not None]
    if mean and results.prior is not None and len(known) > 1:
        known.append(("mean of the members", results.prior))
    return known


def priors_table(results: RunResults) -> ReportTable:
    """Return how uneven each estimated pre-training prior is."""
    rows = [_prior_row(name, prior, results) for name, prior in known_priors(results, mean=True)]
    columns = [
        Column("backbone", "backbone"),
        Column("ratio", "largest / smallest", "number"),
        Column("error", "standard error of log P", "number"),
        Column("most", "most probable"),
        Column("least", "least probable"),
        Column("spearman", "rank correlation with counts", "correlation"),
    ]
    return ReportTable("priors", "Estimated pre-training label priors", columns, rows)


def _prior_row(name: str, prior: LabelPrior, results: RunResults) -> Row:
    log_prob, errors, names = prior.log_prob, prior.standard_errors, results.classes.names
    return {
        "backbone": name,
        "ratio": float((log_prob.max() - log_prob.min()).exp()),
        "error": None if errors is None else float(errors.median()),
        "most": names[int(log_prob.argmax())],
        "least": names[int(log_prob.argmin())],
        "spearman": correlation_with_counts(prior, results),
    }


def prior_correlation_table(results: RunResults) -> ReportTable:
    """Return Spearman's rank correlation between the backbones' priors; empty for fewer than two."""
    known = known_priors(results)
    rows = [
        {"": name, **{other: compare_priors(prior, second).spearman for other, second in known}}
        for name, prior in known
        if len(known) > 1
    ]
    columns = [Column("", ""), *(Column(name, name, "correlation") for name, _ in known)]
    return ReportTable("prior_correlation", "Rank correlation between the backbones' priors", columns, rows)


def cross_table(results: RunResults) -> ReportTable:
    """Return how many classes each cell of D-groups times P-groups has."""
    rows = [
        {"d": f"D-{GROUP_TITLES[d]}", **dict(zip(GROUP_NAMES, counts, strict=True))}
        for d, counts in zip(GROUP_NAMES, results.classes.cross(), strict=False)
    ]
    columns = [Column("d", ""), *(Column(p, f"P-{GROUP_TITLES[p]}", "count") for p in GROUP_NAMES)]
    return ReportTable("cross", "Classes by D-group and P-group", columns, rows)
