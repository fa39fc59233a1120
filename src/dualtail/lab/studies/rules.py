"""Rules, fitted P(c), and GLA inside the ensemble."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dualtail.lab.bench import Bench
from dualtail.lab.plots import interval_plot
from dualtail.lab.studies.common import COLUMNS, THREE, Answer, Study, measure
from dualtail.lab.tables import Table, points, titles
from dualtail.logits.backdoor import RULES, backdoor_adjust
from dualtail.logits.groups import ClassGroups
from dualtail.logits.member_prior import fit_member_prior
from dualtail.logits.prior import LabelPrior

_BASE = "logits, uniform"
_JOINT = ("GLA of CE members", "LA members with GLA's zero-shot term")


def ask(benches: Sequence[Bench]) -> Answer:
    """Average the same three members in every way."""
    table = Table(
        "Three models of different priors, fine-tuned with LA (with CE where GLA takes the priors off). P-groups are "
        "of the mean of the true log priors.",
        "rule, P(c)",
        titles("overall", "d_few", "p_few", "tail_tail") | {"ece": "ECE"},
    )
    for bench in benches:
        p_groups = ClassGroups.from_prior(LabelPrior.mean([bench.true_prior(f) for f in THREE]))
        members = [bench.member(f) for f in THREE]
        test, val = ([member.logits[split] for member in members] for split in ("test", "val"))
        zero = [bench.zero_shot(f) for f in THREE]
        priors = [bench.estimated_prior(f) for f in THREE]

        def add(title: str, logits: object, bench: Bench = bench, p_groups: ClassGroups = p_groups) -> None:
            table.add(title, measure(bench, torch.as_tensor(logits), p_groups))

        for rule in RULES:
            add(f"{rule}, uniform", backdoor_adjust(test, rule=rule))
        for rule in ("logits", "probabilities"):
            fitted = fit_member_prior(val, bench.labels("val"), rule=rule)
            add(f"{rule}, fitted on val", backdoor_adjust(test, weights=fitted))
        terms = {"zero_shot_logits": [z.logits["test"] for z in zero], "pretrain_priors": priors}
        plain = [bench.member(f, loss="ce").logits["test"] for f in THREE]
        add(_JOINT[0], backdoor_adjust(plain, source_prior=bench.source_prior, **terms))  # type: ignore[arg-type]
        add(_JOINT[1], backdoor_adjust(test, **terms))  # type: ignore[arg-type]
    plot = interval_plot(
        f"Change of accuracy against {_BASE}, mean over worlds with its 95 % interval",
        table,
        COLUMNS,
        base=_BASE,
    )
    return Answer(_findings(table), [table], [plot])


def _findings(table: Table) -> list[str]:
    others = {title: table.difference(title, _BASE, "overall") for title in table.rows if title != _BASE}
    return [
        "Against the paper's rule (logits, uniform), overall: "
        + "; ".join(f"{title} {points(change)}" for title, change in others.items())
        + ".",
        *(f"{title}: tail-tail {points(table.difference(title, _BASE, 'tail_tail'))}." for title in _JOINT),
        "Calibration is another matter: ECE of probabilities, uniform against logits, uniform "
        f"{points(table.difference('probabilities, uniform', _BASE, 'ece'))}; of {_JOINT[0]} "
        f"{points(table.difference(_JOINT[0], _BASE, 'ece'))}.",
    ]


STUDY = Study(
    "rules", "Does it matter how members are averaged, with which P(c), and whether GLA joins in?", ask
)
