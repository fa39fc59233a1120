"""The two imbalances, one at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dualtail.lab.bench import Bench
from dualtail.lab.plots import interval_plot
from dualtail.lab.studies.common import COLUMNS, FIRST, Answer, Study, measure, prior_groups
from dualtail.lab.tables import Table, points, titles
from dualtail.lab.world import Foundation

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
        p_groups = prior_groups(bench.true_prior(FIRST))
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
    data = table.difference("balanced / long-tailed", "balanced / balanced", "overall")
    parameters = table.difference("long-tailed / balanced", "balanced / balanced", "overall")
    p_few = table.difference("long-tailed / balanced", "balanced / balanced", "p_few")
    d_few = table.difference("balanced / long-tailed", "balanced / balanced", "d_few")
    both = table.difference("long-tailed / long-tailed", "balanced / long-tailed", "tail_tail")
    lost = table.difference("long-tailed, a factor lost / balanced", "long-tailed / balanced", "p_few")
    hidden = table.difference(
        "long-tailed, a factor lost / long-tailed", "long-tailed / long-tailed", "p_few"
    )
    worse = np.mean(
        [
            parameter["overall"] - other["overall"]
            for parameter, other in zip(
                table.rows["long-tailed / balanced"], table.rows["balanced / long-tailed"], strict=True
            )
        ]
    )
    return [
        f"The long-tailed training set alone costs {points(data)} overall and {points(d_few)} on D-Few; the "
        f"long-tailed corpus alone costs {points(parameters)} overall and {points(p_few)} on P-Few: "
        + ("the data imbalance hurts more." if worse > 0 else "the parameter imbalance hurts more."),
        f"They meet in tail-tail: there a long-tailed corpus costs {points(both)} once the training set is long-tailed "
        "too.",
        f"A factor lost in the corpus' tail changes P-Few by {points(lost)} further with balanced fine-tuning, by "
        f"{points(hidden)} with long-tailed fine-tuning.",
    ]


STUDY = Study(
    "two_by_two",
    "Which hurts more, a long-tailed corpus or a long-tailed training set, and where?",
    ask,
)
