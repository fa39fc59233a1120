"""The studies: questions about the method that only a known prior can answer, each over several worlds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from scipy.stats import pearsonr, spearmanr
from torch import Tensor

from dualtail.errors import InputError, RunError, nearest
from dualtail.lab.bench import MOST, Bench, different, same
from dualtail.lab.probes import probe_factors
from dualtail.lab.tables import Table, figures, number, points, section, titles, verdict
from dualtail.lab.world import Foundation
from dualtail.logits.adjust import adjust_logits
from dualtail.logits.backdoor import RULES, backdoor_adjust
from dualtail.logits.groups import ClassGroups
from dualtail.logits.member_prior import fit_member_prior
from dualtail.logits.metrics import evaluate
from dualtail.logits.neighbors import knn_accuracy
from dualtail.logits.prior import LabelPrior, estimate_label_prior
from dualtail.runs.observer import Observer
from dualtail.runs.store import write_text

_LARGE_COST = 4  # of a model twice as wide, in models
_LARGE_ROW = "one model of 4 times the cost"
_KNN = 20  # neighbours; the bank has 20 images a class
_THREE = [different(index) for index in range(3)]

# Findings and tables of a study.
Answer = tuple[list[str], list[Table], list[str]]


@dataclass(frozen=True)
class Study:
    """A question and how it is answered.

    Attributes:
        name: what the command calls it.
        title: heading in the page.
        question: in a sentence.
        ask: benches of several worlds to findings, tables and notes.
    """

    name: str
    title: str
    question: str
    ask: Callable[[Sequence[Bench]], Answer]


# --- a. priors


def _ask_priors(benches: Sequence[Bench]) -> Answer:
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
    for bench in benches:
        for objective in ("mixed", "infonce", "sigmoid"):
            foundation = different(0).model_copy(update={"objective": objective})
            said, truth = bench.zero_shot(foundation), bench.true_prior(foundation)
            val, labels = said.logits["val"], bench.labels("val")
            for per_class in (5, 20):
                rows = _first_of_each(labels, per_class)
                estimate = estimate_label_prior(val[rows], labels[rows])
                table.add(
                    f"{objective}, val {per_class} a class, GLA with shrinkage", _recovery(estimate, truth)
                )
            plain = estimate_label_prior(val, labels, shrinkage=0)
            table.add(f"{objective}, val 20 a class, GLA without shrinkage", _recovery(plain, truth))
            large = estimate_label_prior(said.logits["test"], bench.labels("test"))
            table.add(f"{objective}, 80 a class, GLA with shrinkage", _recovery(large, truth))
            table.add(f"{objective}, val 20 a class, mean softmax", _recovery(_mean_softmax(val), truth))
            train = estimate_label_prior(said.logits["train"], bench.labels("train"), bench.source_prior)
            table.add(f"{objective}, training set, GLA with shrinkage", _recovery(train, truth))
    mixed, infonce, sigmoid = (
        table.summary(f"{name}, val 20 a class, GLA with shrinkage", "spearman")
        for name in ("mixed", "infonce", "sigmoid")
    )
    standard = "mixed, val 20 a class, GLA with shrinkage"
    trained = table.difference("mixed, training set, GLA with shrinkage", standard, "spearman")
    few = table.difference("mixed, val 5 a class, GLA with shrinkage", standard, "spearman")
    simple = table.difference("mixed, val 20 a class, mean softmax", standard, "distance")
    findings = [
        f"Where the objective leaves the prior in the logits (mixed), 20 images a class recover its order: Spearman "
        f"{number(mixed)}.",
        f"InfoNCE alone: Spearman {number(infonce)}; the sigmoid loss: {number(sigmoid)}. "
        + (
            "A contrastive optimum is pointwise mutual information, in which the class prior cancels: the estimate "
            "is then no measure of the corpus, though it still is what balances the logits."
            if max(infonce.mean, sigmoid.mean) < mixed.mean - 0.2
            else "Both leave a good part of the prior in the logits here."
        ),
        f"Five images a class instead of 20 change Spearman by {number(few)}; the long-tailed training set instead of "
        f"val by {number(trained)}.",
        f"Averaging the softmax instead of GLA's estimate changes the total variation distance by {number(simple)} "
        f"({verdict(simple, 'worse', 'better', 'no difference shown')}).",
    ]
    return findings, [table], []


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
        "groups": float((_groups(estimate).index == _groups(truth).index).float().mean()),
    }


def _groups(prior: LabelPrior) -> ClassGroups:
    return ClassGroups.from_prior(
        LabelPrior(prior.log_prob)
    )  # without memberships, which nobody asks for here


# --- b. two by two


_CORPORA = {
    "balanced": Foundation(ratio=1.0),
    "long-tailed": Foundation(),
    "long-tailed, a factor lost": different(0),
}


def _ask_two_by_two(benches: Sequence[Bench]) -> Answer:
    table = Table(
        "Plain cross-entropy. The groups of all rows are those of the long tails (true prior, counts).",
        "pre-training / fine-tuning set",
        titles("overall", "d_many", "d_few", "p_many", "p_few", "tail_tail"),
    )
    for bench in benches:
        p_groups = _groups(bench.true_prior(different(0)))
        for pretraining, foundation in _CORPORA.items():
            for balanced in (True, False):
                said = bench.member(foundation, loss="ce", balanced=balanced)
                name = f"{pretraining} / {'balanced' if balanced else 'long-tailed'}"
                table.add(name, _figures(bench, said.logits["test"], p_groups))
    data = table.difference("balanced / long-tailed", "balanced / balanced", "overall")
    parameters = table.difference("long-tailed / balanced", "balanced / balanced", "overall")
    p_few = table.difference("long-tailed / balanced", "balanced / balanced", "p_few")
    d_few = table.difference("balanced / long-tailed", "balanced / balanced", "d_few")
    lost = table.difference("long-tailed, a factor lost / balanced", "long-tailed / balanced", "p_few")
    worse = [
        parameter - other
        for parameter, other in zip(
            [row["overall"] for row in table.rows["long-tailed / balanced"]],
            [row["overall"] for row in table.rows["balanced / long-tailed"]],
            strict=True,
        )
    ]
    findings = [
        f"The long-tailed training set alone costs {points(data)} overall and {points(d_few)} on D-Few; the "
        f"long-tailed corpus alone costs {points(parameters)} overall and {points(p_few)} on P-Few: "
        + ("the data imbalance hurts more." if np.mean(worse) > 0 else "the parameter imbalance hurts more."),
        f"A factor lost in the corpus' tail changes P-Few by {points(lost)} further, with balanced fine-tuning.",
    ]
    return findings, [table], []


# --- c. repairs


def _ask_repairs(benches: Sequence[Bench]) -> Answer:
    table = Table(
        "One foundation model (the first prior), fine-tuned once with each method.",
        "method",
        titles("overall", "d_many", "d_few", "p_many", "p_few", "tail_tail"),
    )
    features = Table(
        "The features of the same members: kNN on balanced val (20 neighbours), and a linear probe of the lost factor "
        "on the classes that lost it.",
        "member",
        titles("overall", "d_few", "p_few", "tail_tail") | {"probe": "probe of the lost factor"},
    )
    foundation = different(0)
    for bench in benches:
        p_groups = _groups(bench.true_prior(foundation))
        zero, prior, source = (
            bench.zero_shot(foundation),
            bench.estimated_prior(foundation),
            bench.source_prior,
        )
        members = {
            "CE": bench.member(foundation, loss="ce"),
            "LA": bench.member(foundation),
            "GLA-Train": bench.member(foundation, loss="gla_train"),
            "GLA-Train, half log P_P": bench.member(
                foundation, loss="gla_train", loss_options={"pretrain_tau": 0.5}
            ),
            "CE, class-balanced sampling": bench.member(foundation, loss="ce", sampling="class_balanced"),
            "CE, square-root sampling": bench.member(foundation, loss="ce", sampling="square_root"),
        }
        table.add("zero-shot", _figures(bench, zero.logits["test"], p_groups))
        for name, member in members.items():
            table.add(name, _figures(bench, member.logits["test"], p_groups))
        for name, variant in (("GLA-ZS", "gla_zs"), ("GLA-FT", "gla_ft"), ("GLA", "gla")):
            logits = adjust_logits(
                members["CE"].logits["test"],
                variant,
                zero_shot_logits=zero.logits["test"],
                source_prior=source,
                pretrain_prior=prior,
            )
            table.add(name, _figures(bench, torch.as_tensor(logits), p_groups))
        for name, member in ({"before fine-tuning": zero} | members).items():
            neighbours = knn_accuracy(
                member.features["val"], bench.labels("val"), member.features["test"], bench.labels("test"),
                bench.world.classes, k=_KNN, d_groups=bench.d_groups, p_groups=p_groups,
            )  # fmt: skip
            features.add(
                name, figures(neighbours) | {"probe": _probe_lost(bench, foundation, member.features)}
            )
    la, la_p = (table.difference("LA", "CE", column) for column in ("d_few", "p_few"))
    train, train_p = (table.difference("GLA-Train", "LA", column) for column in ("overall", "p_few"))
    both = table.difference("GLA", "LA", "overall")
    knn = features.difference("LA", "CE", "overall")
    sampling = table.difference("CE, class-balanced sampling", "LA", "overall")
    tuned = features.difference("LA", "before fine-tuning", "p_few")
    findings = [
        f"LA against CE: D-Few {points(la)}, P-Few {points(la_p)}.",
        f"GLA-Train against LA: overall {points(train)}, P-Few {points(train_p)}: adjusting for the pre-training prior "
        f"in training {verdict(train_p, 'helps its tail', 'hurts its tail', 'is not shown to help its tail')}.",
        f"GLA after training against LA: overall {points(both)}.",
        f"In the features LA differs from CE by {points(knn)} (kNN overall): "
        + verdict(
            knn, "it repairs some of the features", "it harms them", "no repair of the features is shown"
        )
        + f". Fine-tuning as such moves kNN on P-Few by {points(tuned)}.",
        f"Class-balanced sampling against LA: overall {points(sampling)}.",
    ]
    return findings, [table, features], []


def _probe_lost(bench: Bench, foundation: Foundation, features: dict[str, Tensor]) -> float:
    """Return the accuracy of a probe of the lost factor, fitted on val, on test images of the classes that lost it."""
    world, (lost,) = bench.world, foundation.lost
    rows = world.lossy_classes(foundation)[bench.splits["test"].labels]
    accuracy = probe_factors(
        features["val"], bench.splits["val"].factors,
        features["test"][torch.from_numpy(rows)], bench.splits["test"].factors[rows],
    )  # fmt: skip
    return float(accuracy[world.factor_names.index(lost)])


# --- d. members


def _ask_members(benches: Sequence[Bench]) -> Answer:
    kinds = {
        "different priors": lambda bench, i: bench.member(different(i)),
        "same prior": lambda bench, i: bench.member(same(i)),
        "fine-tuning seeds": lambda bench, i: bench.member(different(0), seed=i),
    }
    table = Table(
        "Members fine-tuned with LA, logits averaged; every subset that holds the first model, averaged. P-groups are "
        "of the first model's true prior, so that P-Few are the classes which that model's corpus starved.",
        "members",
        titles("overall", "d_few", "p_many", "p_few", "tail_tail", gain="over its members' mean"),
    )
    for bench in benches:
        p_groups = _groups(bench.true_prior(different(0)))
        for kind, make in kinds.items():
            logits = [make(bench, index).logits["test"] for index in range(bench.most)]
            for size in range(1, bench.most + 1):
                title = f"M = {size}, {kind}" if size > 1 else "M = 1"
                if size == 1 and kind != "different priors":
                    continue
                subsets = [(0, *others) for others in combinations(range(1, bench.most), size - 1)]
                rows = [_ensemble_figures(bench, [logits[i] for i in subset], p_groups) for subset in subsets]
                table.add(title, {key: float(np.mean([row[key] for row in rows])) for key in rows[0]})
        if bench.most >= _LARGE_COST:
            single = bench.member(different(0), large=True).logits["test"]
            table.add(_LARGE_ROW, _figures(bench, single, p_groups))
    findings = []
    for column, what in (
        ("gain", "Over the mean accuracy of their own members"),
        ("overall", "Overall"),
        ("p_few", "On the first model's P-Few"),
        ("tail_tail", "On tail-tail"),
    ):
        gain, plain, seeds = (
            table.difference(f"M = 3, {kind}", "M = 1", column)
            for kind in ("different priors", "same prior", "fine-tuning seeds")
        )
        beyond = table.difference("M = 3, different priors", "M = 3, same prior", column)
        share = (
            f" (that control reaches {100 * plain.mean / gain.mean:.0f} % of the gain)"
            if gain.mean > 0
            else ""
        )
        findings.append(
            f"{what}, three models of different priors gain {points(gain)}; three of the same prior "
            f"{points(plain)}{share}; three fine-tuning seeds {points(seeds)}. What the different tails add is "
            f"{points(beyond)}: {verdict(beyond, 'more than ensembling', 'less than ensembling', 'not shown')}."
        )
    if _LARGE_ROW in table.rows:
        large = table.difference(f"M = {_LARGE_COST}, different priors", _LARGE_ROW, "overall")
        findings.append(f"Four models of different priors against {_LARGE_ROW}: {points(large)} overall.")
    return findings, [table], []


def _ensemble_figures(bench: Bench, members: list[Tensor], p_groups: ClassGroups) -> dict[str, float]:
    row = _figures(bench, torch.as_tensor(backdoor_adjust(members)), p_groups)
    alone = [float((logits.argmax(1) == bench.labels("test")).float().mean()) for logits in members]
    return row | {"gain": row["overall"] - float(np.mean(alone))}


# --- e. rules


def _ask_rules(benches: Sequence[Bench]) -> Answer:
    table = Table(
        "Three models of different priors, fine-tuned with LA (with CE where GLA takes the priors off). P-groups are "
        "of the mean of the true log priors.",
        "rule, P(c)",
        titles("overall", "d_few", "p_few", "tail_tail") | {"ece": "ECE"},
    )
    for bench in benches:
        p_groups = _groups(LabelPrior.mean([bench.true_prior(f) for f in _THREE]))
        members = [bench.member(f) for f in _THREE]
        test, val = ([member.logits[split] for member in members] for split in ("test", "val"))
        zero = [bench.zero_shot(f) for f in _THREE]
        priors = [bench.estimated_prior(f) for f in _THREE]

        def add(title: str, logits: object, bench: Bench = bench, p_groups: ClassGroups = p_groups) -> None:
            table.add(title, _figures(bench, torch.as_tensor(logits), p_groups))

        for rule in RULES:
            add(f"{rule}, uniform", backdoor_adjust(test, rule=rule))
        for rule in ("logits", "probabilities"):
            fitted = fit_member_prior(val, bench.labels("val"), rule=rule)
            add(f"{rule}, fitted on val", backdoor_adjust(test, weights=fitted))
        terms = {"zero_shot_logits": [z.logits["test"] for z in zero], "pretrain_priors": priors}
        plain = [bench.member(f, loss="ce").logits["test"] for f in _THREE]
        add("GLA of CE members", backdoor_adjust(plain, source_prior=bench.source_prior, **terms))  # type: ignore[arg-type]
        add("LA members with GLA's zero-shot term", backdoor_adjust(test, **terms))  # type: ignore[arg-type]
    base = "logits, uniform"
    others = {title: table.difference(title, base, "overall") for title in table.rows if title != base}
    findings = [
        "Against the paper's rule (logits, uniform), overall: "
        + "; ".join(f"{title} {points(change)}" for title, change in others.items())
        + ".",
        *(
            f"{title}: tail-tail {points(table.difference(title, base, 'tail_tail'))}."
            for title in ("GLA of CE members", "LA members with GLA's zero-shot term")
        ),
    ]
    return findings, [table], []


# --- f. groups


def _ask_groups(benches: Sequence[Bench], draws: int = 5) -> Answer:
    table = Table(
        "P-groups from the estimate against those from the truth. *Gap*: P-Many less P-Few accuracy of the LA member, "
        "in points, by these groups.",
        "images a class",
        {"same": "same group", "few": "P-Few found", "swapped": "Many taken for Few", "gap": "gap"},
    )
    foundation = different(0)
    for bench in benches:
        truth = _groups(bench.true_prior(foundation))
        said = bench.zero_shot(foundation).logits["test"]
        tuned, labels = bench.member(foundation).logits["test"], bench.labels("test")
        rng = np.random.default_rng([bench.seed, 7])
        for per_class in (2, 5, 10, 20, 50):
            rows = []
            for _ in range(draws):
                chosen = _random_of_each(labels, per_class, rng)
                rows.append(_agreement(_groups(estimate_label_prior(said[chosen], labels[chosen])), truth))
                rows[-1]["gap"] = _gap(bench, tuned, rows[-1].pop("groups"))  # type: ignore[arg-type]
            table.add(str(per_class), {key: float(np.mean([row[key] for row in rows])) for key in rows[0]})
        table.add("truth", {"same": 1.0, "few": 1.0, "swapped": 0.0, "gap": _gap(bench, tuned, truth)})
    five, twenty = (table.summary(n, "same") for n in ("5", "20"))
    gap = table.difference("20", "truth", "gap")
    worst = table.summary("2", "swapped")
    findings = [
        f"With 20 images a class {100 * twenty.mean:.0f} % of the classes fall into their true P-group, with five "
        f"{100 * five.mean:.0f} %; even with two images {100 * worst.mean:.1f} % of P-Many are taken for P-Few.",
        f"The gap between P-Many and P-Few by the groups of 20 images a class differs from the one by the true groups "
        f"by {points(gap)}: "
        + verdict(gap, "an overstatement.", "the estimate's errors dilute it.", "no bias is shown."),
    ]
    return findings, [table], []


def _random_of_each(labels: Tensor, per_class: int, rng: np.random.Generator) -> Tensor:
    rows = [
        rng.choice(np.flatnonzero(labels.numpy() == c), per_class, replace=False)
        for c in labels.unique().tolist()
    ]
    return torch.from_numpy(np.concatenate(rows))


def _agreement(groups: ClassGroups, truth: ClassGroups) -> dict[str, object]:
    many, few = truth.index == 0, truth.index == 2
    return {
        "same": float((groups.index == truth.index).float().mean()),
        "few": float((groups.index[few] == 2).float().mean()),
        "swapped": float((groups.index[many] == 2).float().mean()),
        "groups": groups,
    }


def _gap(bench: Bench, logits: Tensor, p_groups: ClassGroups) -> float:
    row = _figures(bench, logits, p_groups)
    return row["p_many"] - row["p_few"]


# --- all of them


def _figures(bench: Bench, logits: Tensor, p_groups: ClassGroups) -> dict[str, float]:
    result = evaluate(logits, bench.labels("test"), d_groups=bench.d_groups, p_groups=p_groups)
    return figures(result) | ({} if result.ece is None else {"ece": result.ece})


STUDIES: dict[str, Study] = {
    study.name: study
    for study in (
        Study(
            "priors",
            "Does the estimate recover the true prior?",
            "Does the GLA estimate recover the true pre-training prior: by objective, validation size and estimator, "
            "and from the training set in place of val?",
            _ask_priors,
        ),
        Study(
            "two_by_two",
            "The two imbalances, one at a time",
            "Which hurts more, a long-tailed corpus or a long-tailed training set, and where?",
            _ask_two_by_two,
        ),
        Study(
            "repairs",
            "What each adjustment repairs",
            "What do CE, LA, GLA-Train, the GLA adjustments and re-balanced sampling repair, by group and in the "
            "features?",
            _ask_repairs,
        ),
        Study(
            "members",
            "Backdoor adjustment against its controls",
            "How much of the ensemble's gain is plain ensembling, and how much is that the tails differ?",
            _ask_members,
        ),
        Study(
            "rules",
            "Rules, fitted P(c), and GLA inside the ensemble",
            "Does it matter how members are averaged, with which P(c), and whether GLA joins in?",
            _ask_rules,
        ),
        Study(
            "groups",
            "How robust are the P-groups?",
            "How far can the P-groups be trusted, given the error of the estimate?",
            _ask_groups,
        ),
    )
}


def get_study(name: str) -> Study:
    """Return a study by its name.

    Raises:
        InputError: there is none of that name; the nearest is named.
    """
    if name not in STUDIES:
        guess = nearest(name, list(STUDIES))
        fix = f"did you mean {guess!r}?" if guess else f"choose from {', '.join(STUDIES)}, all"
        raise InputError(f"there is no study {name!r}", fix=fix)
    return STUDIES[name]


def run_study(
    name: str, worlds: int, work: str | Path, *, most: int = MOST, observer: Observer | None = None
) -> str:
    """Answer a study's question over several worlds and return its section in Markdown.

    Args:
        name: a key of ``STUDIES``.
        worlds: how many, at least 2.
        work: folder in which models and logits are kept for the next study.
        most: members of the largest ensemble, 3 to 5.
        observer: hears what is made.

    Raises:
        InputError: there is no such study, too few worlds for an interval, or ``most`` out of range.
    """
    study = get_study(name)
    if worlds < 2:
        raise InputError(f"{worlds} world", where="worlds", fix="an interval needs at least 2")
    if not 3 <= most <= MOST:
        raise InputError(f"{most} members", where="most", fix=f"3 to {MOST}")
    benches = [Bench(seed, Path(work), observer or Observer(), most) for seed in range(worlds)]
    findings, tables, notes = study.ask(benches)
    command = f"dualtail lab study {name} --worlds {worlds}" + (f" --most {most}" if most != MOST else "")
    return section(study.question, findings, tables, notes, command=command, worlds=worlds)


def write_section(page: str | Path, name: str, text: str) -> None:
    """Replace what stands between a study's markers in a page.

    Raises:
        RunError: the page or the markers are not there.
    """
    page = Path(page)
    begin, end = f"<!-- study {name} -->", f"<!-- end of study {name} -->"
    try:
        content = page.read_text(encoding="utf-8")
    except OSError as error:
        raise RunError(f"cannot be read ({error.strerror})", where=str(page)) from None
    before, found, rest = content.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise RunError(
            f"has no lines {begin!r} and {end!r}", where=str(page), fix="add them where the study goes"
        )
    write_text(page, f"{before}{begin}\n{text}{end}{after}")
