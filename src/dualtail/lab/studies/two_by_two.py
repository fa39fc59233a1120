"""The two imbalances, one at a time."""

from __future__ import annotations

from collections.abc import Sequence

from dualtail.lab.bench import Bench
from dualtail.lab.plots import interval_plot
from dualtail.lab.studies.common import COLUMNS, FIRST, Answer, Study, measure
from dualtail.lab.tables import Table, points, titles, verdict
from dualtail.lab.world import Foundation
from dualtail.logits.groups import ClassGroups

_CORPORA = {
    "balanced": Foundation(ratio=1.0),
    "long-tailed": Foundation(),
    "long-tailed, a factor lost": FIRST,
}


def ask(benches: Sequence[Bench]) -> Answer:
    """Fine-tune with plain cross-entropy from and on balanced and long-tailed sets."""
    table = Table(
        "Plain cross-entropy. The groups of all rows are those of the long tails (true prior, counts).",
        "pre-training / fine-tuning set",
        titles("overall", "d_many", "d_few", "p_many", "p_few", "tail_tail"),
    )
    for bench in benches:
        p_groups = ClassGroups.from_prior(bench.true_prior(FIRST))
        for pretraining, foundation in _CORPORA.items():
            for balanced in (True, False):
                said = bench.member(foundation, loss="ce", balanced=balanced)
                name = f"{pretraining} / {'balanced' if balanced else 'long-tailed'}"
                table.add(name, measure(bench, said.logits["test"], p_groups))
    plot = interval_plot(
        "Accuracy by group, pre-training set / fine-tuning set, mean over worlds with its 95 % interval",
        table,
        COLUMNS,
    )
    return Answer(_findings(table), [table], [plot])


def _findings(table: Table) -> list[str]:
    whole, data, corpus, both = (
        "balanced / balanced", "balanced / long-tailed", "long-tailed / balanced", "long-tailed / long-tailed",
    )  # fmt: skip
    lost, lost_both = (f"long-tailed, a factor lost / {kind}" for kind in ("balanced", "long-tailed"))
    harder = table.difference(corpus, data, "overall")
    meeting = table.interaction((both, data), (corpus, whole), "tail_tail")
    hidden = table.difference(lost_both, both, "p_few")
    return [
        f"The long-tailed training set alone changes accuracy by {points(table.difference(data, whole, 'overall'))} "
        f"overall and {points(table.difference(data, whole, 'd_few'))} on D-Few; the long-tailed corpus alone by "
        f"{points(table.difference(corpus, whole, 'overall'))} overall and "
        f"{points(table.difference(corpus, whole, 'p_few'))} on P-Few: "
        + verdict(
            harder,
            "the data imbalance hurts more.",
            "the parameter imbalance hurts more.",
            "which of them hurts more is not shown.",
        ),
        f"On tail-tail the long-tailed corpus changes accuracy by "
        f"{points(table.difference(both, data, 'tail_tail'))} once the training set is long-tailed "
        f"too, {points(meeting)} beyond what it does with a balanced one: "
        + verdict(
            meeting,
            "together they hurt less than one by one.",
            "the two imbalances make each other worse.",
            "that they make each other worse is not shown.",
        ),
        f"A factor lost in the corpus' tail changes P-Few by {points(table.difference(lost, corpus, 'p_few'))} further "
        f"with balanced fine-tuning, by {points(hidden)} with long-tailed fine-tuning.",
    ]


STUDY = Study(
    "two_by_two",
    "Which hurts more, a long-tailed corpus or a long-tailed training set, and where?",
    ask,
)
