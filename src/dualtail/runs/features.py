"""What the features of a run say, before and after tuning: nearest neighbours, and how much the members differ."""

from __future__ import annotations

from dualtail.logits.metrics import Evaluation
from dualtail.logits.neighbors import disagreement, error_correlation, knn_accuracy, linear_cka
from dualtail.runs.evaluation import RunEvaluator
from dualtail.runs.logits_file import LogitsFile, RunLogits
from dualtail.runs.results import Disagreement, NeighborResults


def find_neighbors(run: RunEvaluator) -> NeighborResults:
    """kNN accuracy of the features before and after tuning: val is the bank (on val alone, each without itself)."""
    wanted = run.options.neighbors
    val = RunLogits(run.run, "val", run.class_names)
    return NeighborResults(
        "val",
        wanted.k,
        wanted.temperature,
        {name: _knn(run, bank, run.logits.backbones[name]) for name, bank in val.backbones.items()},
        {name: _knn(run, bank, run.logits.members[name]) for name, bank in val.members.items()},
    )


def _knn(run: RunEvaluator, bank: LogitsFile, queries: LogitsFile) -> Evaluation:
    wanted, apart = run.options.neighbors, run.split != "val"
    features, asked = bank.features, queries.features if apart else None
    assert features is not None  # every logits file of a run holds them
    return knn_accuracy(
        features.float(),
        bank.labels,
        None if asked is None else asked.float(),
        queries.labels if apart else None,
        len(run.d_groups),
        k=min(wanted.k, len(bank.labels) - (not apart)),
        temperature=wanted.temperature,
        d_groups=run.d_groups,
        p_groups=run.p_groups,
        split=run.split,
        confidence=run.options.confidence,
    )


def find_disagreement(run: RunEvaluator) -> Disagreement:
    """How different the members answer and err, and how different their features are."""
    members, labels = run.logits.of_members, run.logits.labels
    features = [file.features for file in run.logits.members.values()]
    similar = [[1.0 if a is b else float(linear_cka(a, b)) for b in features] for a in features]
    return Disagreement(
        list(run.logits.members),
        disagreement(members).tolist(),
        _json_numbers(error_correlation(members, labels).tolist()),
        _json_numbers(error_correlation(members, labels, "double_fault").tolist()),
        _json_numbers(similar),
    )


def _json_numbers(rows: list[list[float]]) -> list[list[float | None]]:
    """Return rows with None for NaN (a correlation with a member that is always right), which JSON does not have."""
    return [[None if value != value else value for value in row] for row in rows]
