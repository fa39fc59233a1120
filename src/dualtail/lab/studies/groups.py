"""How robust are the P-groups?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dualtail.lab.bench import Bench
from dualtail.lab.plots import curve_plot
from dualtail.lab.studies.common import FIRST, Answer, Study, measure
from dualtail.lab.tables import Table, points, share, verdict
from dualtail.logits.groups import ClassGroups
from dualtail.logits.prior import estimate_label_prior

_DRAWS = 5
_PER_CLASS = (2, 5, 10, 20, 50)
_SHARES = {"same": "same group", "few": "P-Few found", "swapped": "Many taken for Few"}


def ask(benches: Sequence[Bench]) -> Answer:
    """Estimate the P-groups from few images, many times, and compare them with the true ones."""
    table = Table(
        "P-groups from the estimate against those from the truth. *Gap*: P-Many less P-Few accuracy of the LA member, "
        "in points, by these groups and by the true ones, on the images that the estimate has not seen.",
        "images a class",
        _SHARES | {"gap": "gap", "true_gap": "true gap"},
    )
    for bench in benches:
        truth = ClassGroups.from_prior(bench.true_prior(FIRST))
        said = bench.zero_shot(FIRST).logits["test"]
        tuned, labels = bench.member(FIRST).logits["test"], bench.labels("test")
        rng = np.random.default_rng([bench.seed, 7])
        for per_class in _PER_CLASS:
            rows = []
            for _ in range(_DRAWS):
                chosen = _random_of_each(labels, per_class, rng)
                groups = ClassGroups.from_prior(estimate_label_prior(said[chosen], labels[chosen]))
                unseen = torch.ones(len(labels), dtype=torch.bool).index_fill_(0, chosen, False)
                gaps = {
                    key: _gap(bench, tuned, by, unseen) for key, by in (("gap", groups), ("true_gap", truth))
                }
                rows.append(_agreement(groups, truth) | gaps)
            table.add(str(per_class), {key: float(np.mean([row[key] for row in rows])) for key in rows[0]})
    plot = curve_plot(
        "Agreement of estimated P-groups with the true ones, by images a class",
        {
            "per cent of classes": {
                title: [(n, table.summary(str(n), key)) for n in _PER_CLASS] for key, title in _SHARES.items()
            },
            "gap between P-Many and P-Few, in points": {
                "estimated groups": [(n, table.summary(str(n), "gap")) for n in _PER_CLASS],
                "true groups": [(n, table.summary(str(n), "true_gap")) for n in _PER_CLASS],
            },
        },
        "images a class",
        log=True,
    )
    return Answer(_findings(table), [table], [plot])


def _findings(table: Table) -> list[str]:
    five, twenty = (table.summary(n, "same") for n in ("5", "20"))
    gap = table.contrast("20", "gap", "true_gap")
    return [
        f"With 20 images a class {share(twenty)} of the classes fall into their true P-group, with five {share(five)}; "
        f"with two images {share(table.summary('2', 'swapped'))} of P-Many are taken for P-Few.",
        f"The gap between P-Many and P-Few by the groups of 20 images a class differs from the one by the true groups "
        f"by {points(gap)}: "
        + verdict(gap, "an overstatement.", "the estimate's errors dilute it.", "no bias is shown."),
    ]


def _random_of_each(labels: Tensor, per_class: int, rng: np.random.Generator) -> Tensor:
    rows = [
        rng.choice(np.flatnonzero(labels.numpy() == c), per_class, replace=False)
        for c in labels.unique().tolist()
    ]
    return torch.from_numpy(np.concatenate(rows))


def _agreement(groups: ClassGroups, truth: ClassGroups) -> dict[str, float]:
    many, few = truth.index == 0, truth.index == 2
    return {
        "same": float((groups.index == truth.index).float().mean()),
        "few": float((groups.index[few] == 2).float().mean()),
        "swapped": float((groups.index[many] == 2).float().mean()),
    }


def _gap(bench: Bench, logits: Tensor, p_groups: ClassGroups, rows: Tensor) -> float:
    row = measure(bench, logits, p_groups, rows)
    return row["p_many"] - row["p_few"]


STUDY = Study("groups", "How far can the P-groups be trusted, given the error of the estimate?", ask)
