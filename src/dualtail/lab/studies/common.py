"""What the studies share: a question, its answer, and how members are measured on a bench."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from dualtail.lab.bench import Bench, different
from dualtail.lab.plots import Plot
from dualtail.lab.tables import Table, figures
from dualtail.logits.groups import ClassGroups
from dualtail.logits.metrics import evaluate

FIRST = different(0)
THREE = [different(index) for index in range(3)]
COLUMNS = ("overall", "d_few", "p_few", "tail_tail")  # what the plots show


@dataclass(frozen=True)
class Answer:
    """What a study found.

    Attributes:
        findings: sentences, each with its interval.
        tables: what they rest on.
        plots: the same to look at.
    """

    findings: list[str]
    tables: list[Table]
    plots: list[Plot] = field(default_factory=list)


@dataclass(frozen=True)
class Study:
    """A question and how it is answered.

    Attributes:
        name: what the command calls it.
        question: in a sentence.
        ask: benches of several worlds to the answer.
    """

    name: str
    question: str
    ask: Callable[[Sequence[Bench]], Answer]


def measure(
    bench: Bench, logits: Tensor, p_groups: ClassGroups, rows: Tensor | slice = slice(None)
) -> dict[str, float]:
    """Return the figures of test logits: accuracies by group as fractions, and ``ece`` where it is known.

    Args:
        bench: knows the labels and the D-groups.
        logits: of all test images.
        p_groups: of the classes.
        rows: the test images to measure on, all by default.
    """
    labels = bench.labels("test")[rows]
    result = evaluate(logits[rows], labels, d_groups=bench.d_groups, p_groups=p_groups)
    return figures(result) | ({} if result.ece is None else {"ece": result.ece})
