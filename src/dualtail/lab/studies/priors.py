"""Does the estimate recover the true prior?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from scipy.stats import pearsonr, spearmanr
from torch import Tensor

from dualtail.lab.bench import Bench
from dualtail.lab.plots import scatter_plot
from dualtail.lab.studies.common import FIRST, Answer, Study
from dualtail.lab.tables import Table, number, verdict
from dualtail.logits.comparison import SeedSummary
from dualtail.logits.groups import ClassGroups
from dualtail.logits.prior import LabelPrior, estimate_label_prior

_OBJECTIVES = ("mixed", "infonce", "sigmoid")
_LOSSES = {"infonce": "InfoNCE alone", "sigmoid": "the sigmoid loss"}
_STANDARD = "val 20 a class, GLA with shrinkage"
_RECOVERED = 0.85  # Spearman from which an order counts as recovered


def ask(benches: Sequence[Bench]) -> Answer:
    """Compare estimates from zero-shot logits with the priors of the corpora."""
    columns = {
        "spearman": "Spearman",
        "slope": "slope",
        "distance": "total variation",
        "groups": "same P-group",
    }
    table = Table(
        "Estimated against true label prior. *Slope* is that of the estimated on the true log prior: 1 where the "
        "whole prior is in the logits, 0 where none is. *Same P-group*: share of classes.",
        "objective, samples, estimator",
        columns,
        percent=False,
    )
    pairs: dict[str, list[tuple[LabelPrior, LabelPrior]]] = {objective: [] for objective in _OBJECTIVES}
    for bench in benches:
        for objective in _OBJECTIVES:
            foundation = FIRST.model_copy(update={"objective": objective})
            said, truth = bench.zero_shot(foundation), bench.true_prior(foundation)
            val, labels = said.logits["val"], bench.labels("val")
            for per_class in (5, 20):
                rows = _first_of_each(labels, per_class)
                estimate = estimate_label_prior(val[rows], labels[rows])
                table.add(
                    f"{objective}, val {per_class} a class, GLA with shrinkage", _recovery(estimate, truth)
                )
            pairs[objective].append((truth, estimate))
            plain = estimate_label_prior(val, labels, shrinkage=0)
            table.add(f"{objective}, val 20 a class, GLA without shrinkage", _recovery(plain, truth))
            large = estimate_label_prior(said.logits["test"], bench.labels("test"))
            table.add(f"{objective}, 80 a class, GLA with shrinkage", _recovery(large, truth))
            table.add(f"{objective}, val 20 a class, mean softmax", _recovery(_mean_softmax(val), truth))
            train = estimate_label_prior(said.logits["train"], bench.labels("train"), bench.source_prior)
            table.add(f"{objective}, training set, GLA with shrinkage", _recovery(train, truth))
    plot = scatter_plot(
        "Estimated against true log prior of every class, a colour a world, by the objective of pre-training",
        {objective: [_points(*pair) for pair in pairs[objective]] for objective in _OBJECTIVES},
        ("true log prior", "estimated log prior"),
    )
    return Answer(_findings(table), [table], [plot])


def _findings(table: Table) -> list[str]:
    standard = f"mixed, {_STANDARD}"
    mixed = table.summary(standard, "spearman")
    trained = table.difference("mixed, training set, GLA with shrinkage", standard, "spearman")
    few = table.difference("mixed, val 5 a class, GLA with shrinkage", standard, "spearman")
    simple = table.difference("mixed, val 20 a class, mean softmax", standard, "distance")
    without = [name for name in _OBJECTIVES[1:] if _is_lost(table, name)]
    return [
        f"With the mixed objective, 20 images a class give Spearman {number(mixed)} with the truth"
        + (
            ": the objective leaves the prior in the logits, and the estimate recovers its order."
            if _lower(mixed) > _RECOVERED
            else ": its order is recovered in part."
        ),
        "; ".join(
            f"{_LOSSES[name]}: Spearman {number(table.summary(f'{name}, {_STANDARD}', 'spearman'))}, against the mixed "
            f"objective {number(table.difference(f'{name}, {_STANDARD}', standard, 'spearman'))}"
            for name in _OBJECTIVES[1:]
        )
        + "."
        + (
            f" With {' and '.join(_LOSSES[name] for name in without)} nothing of it is shown: a contrastive optimum is "
            "pointwise mutual information, in which the class prior cancels. The estimate is then no measure of the "
            "corpus, though it still is what balances the logits. The paper reads CLIP's prior off its zero-shot "
            "logits; that holds as far as CLIP's training left the prior in them, which no accuracy can show."
            if without
            else ""
        ),
        f"Five images a class instead of 20 change Spearman by {number(few)}; the long-tailed training set instead of "
        f"val by {number(trained)}.",
        f"Averaging the softmax instead of GLA's estimate changes the total variation distance by {number(simple)} "
        f"({verdict(simple, 'worse', 'better', 'no difference shown')}).",
    ]


def _is_lost(table: Table, objective: str) -> bool:
    """Whether no positive correlation with the truth is shown."""
    return _lower(table.summary(f"{objective}, {_STANDARD}", "spearman")) <= 0


def _lower(summary: SeedSummary) -> float:
    return summary.mean if summary.ci is None else summary.ci[0]


def _first_of_each(labels: Tensor, per_class: int) -> Tensor:
    """Return the rows of the first ``per_class`` samples of each class; labels come sorted."""
    counts = torch.bincount(labels)
    starts = counts.cumsum(0) - counts
    return (starts[:, None] + torch.arange(per_class)).flatten()


def _mean_softmax(logits: Tensor) -> LabelPrior:
    return LabelPrior(logits.double().softmax(1).mean(0).log())


def _recovery(estimate: LabelPrior, truth: LabelPrior) -> dict[str, float]:
    a, b = estimate.log_prob.numpy(), truth.log_prob.numpy()
    return {
        "spearman": float(spearmanr(a, b)[0]),
        "slope": float(pearsonr(a, b)[0] * a.std() / b.std()),
        "distance": float((estimate.prob - truth.prob).abs().sum() / 2),
        "groups": float(
            (ClassGroups.from_prior(estimate).index == ClassGroups.from_prior(truth).index).float().mean()
        ),
    }


def _points(truth: LabelPrior, estimate: LabelPrior) -> tuple[list[float], list[float]]:
    return truth.log_prob.tolist(), estimate.log_prob.tolist()


STUDY = Study(
    "priors",
    "Does the GLA estimate recover the true pre-training prior: by objective, validation size and estimator, and from "
    "the training set in place of val?",
    ask,
)
