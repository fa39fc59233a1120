"""The overview never claims more than the intervals allow."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dualtail.logits.comparison import PairedTest
from dualtail.logits.metrics import GroupAccuracy
from dualtail.logits.prior import LabelPrior
from dualtail.report.group_sentences import describe_groups, describe_imbalances, difference_to, look_first
from dualtail.report.report_table import Estimate
from dualtail.report.sentences import describe_run
from dualtail.report.words import spell_less
from dualtail.runs.finished import RunResults, read_results
from dualtail.runs.results import MemberComparison


@pytest.fixture
def results(run_dir: Path) -> RunResults:
    return read_results(run_dir)


def with_differences(results: RunResults, *bounds: tuple[float, float]) -> RunResults:
    rows = [
        MemberComparison(
            name,
            "all",
            PairedTest("overall", 100, 0.5, 0.5, (low + high) / 2, (low, high), 0.5, 9, 9, "mcnemar", 0.95),
        )
        for name, (low, high) in zip(("clip", "openclip", "metaclip"), bounds, strict=True)
    ]
    return replace(results, comparisons=rows)


def result_line(results: RunResults) -> str:
    return next(line.text for line in describe_run(results) if line.topic == "result")


def test_five_lines(results: RunResults) -> None:
    assert [line.topic for line in describe_run(results)] == [
        "data", "members", "what was done", "result", "look first at",
    ]  # fmt: skip


BETTER_BUT = "better than openclip and metaclip, but no difference to clip can be told"
BETTER_AND_WORSE = "better than openclip and metaclip and worse than clip; the difference to clip is -2.0"


@pytest.mark.parametrize(
    ("bounds", "claim"),
    [
        ([(0.01, 0.03), (0.02, 0.04), (0.001, 0.01)], "better than every member; over the best, metaclip"),
        ([(-0.01, 0.03), (0.02, 0.04), (0.01, 0.05)], BETTER_BUT),
        ([(-0.01, 0.03), (-0.02, 0.04), (-0.01, 0.05)], "No difference to any member can be told"),
        ([(-0.03, -0.01), (0.02, 0.04), (0.01, 0.05)], BETTER_AND_WORSE),
        ([(0.0, 0.03), (0.0, 0.04), (0.0, 0.05)], "No difference to any member can be told"),
    ],
)
def test_headline_follows_the_intervals(
    results: RunResults, bounds: list[tuple[float, float]], claim: str
) -> None:
    line = result_line(with_differences(results, *bounds))
    assert claim in line
    assert ("every member;" in line) == all(low > 0 for low, _ in bounds)


def cell(accuracy: float, low: float, high: float, classes: int = 4) -> GroupAccuracy:
    return GroupAccuracy(accuracy, classes, 0, 40, (low, high))


def with_groups(results: RunResults, few: GroupAccuracy, tail: GroupAccuracy) -> RunResults:
    good = cell(0.9, 0.85, 0.95)
    all_good = dict.fromkeys(("many", "medium", "few"), good)
    metrics = replace(
        results.metrics,
        d_groups={**all_good, "few": few},
        p_groups=all_good,
        cross={"few": {**all_good, "few": tail}},
    )
    return replace(results, metrics=metrics)


def test_look_first_names_what_is_surely_behind(results: RunResults) -> None:
    sure, unsure = cell(0.5, 0.4, 0.6), cell(0.4, 0.1, 0.95)
    assert look_first(with_groups(results, sure, unsure)).startswith(
        "D-Few: its 4 classes reach 50.0 % (40.0–60.0)"
    )
    assert look_first(with_groups(results, sure, cell(0.3, 0.2, 0.4))).startswith(
        "Tail-tail (D-Few and P-Few)"
    )
    assert look_first(with_groups(results, unsure, unsure)).startswith("No group of classes is shown")


def test_overlapping_intervals_may_be_apart(results: RunResults) -> None:
    # 34 classes at 83.6 (81.5 to 85.5) against 26 others at about 88: the interval of all classes overlaps.
    few, rest = Estimate(0.836, 0.815, 0.855, classes=34), Estimate(0.882, 0.861, 0.900, classes=26)
    gap = difference_to(few, [rest])
    assert gap is not None
    assert (gap.low, gap.high) == pytest.approx((-0.074, -0.018), abs=0.001)
    assert spell_less(gap) == "4.6 points (1.8 to 7.4)"
    # The others may be several groups, by their numbers of classes.
    halves = [
        replace(rest, value=0.9, low=0.86, high=0.93, classes=20),
        replace(rest, value=0.822, classes=6),
    ]
    parts = difference_to(few, halves)
    assert parts is not None
    assert parts.value == pytest.approx(0.836 - (20 * 0.9 + 6 * 0.822) / 26)


def test_groups_sentence_follows_the_intervals(results: RunResults) -> None:
    assert "Classes with little training data suffer" in describe_groups(
        with_groups(results, cell(0.5, 0.4, 0.6), cell(0.3, 0.2, 0.4))
    )
    overlapping = describe_groups(with_groups(results, cell(0.8, 0.7, 0.9), cell(0.3, 0.2, 0.4)))
    assert "By training data no difference can be told" in overlapping
    assert "suffer" not in overlapping


def test_imbalances_sentence_needs_evidence(results: RunResults) -> None:
    follows = LabelPrior.from_counts(results.classes.counts["train"])
    backbones = [replace(backbone, prior=follows) for backbone in results.backbones]
    assert "prior of clip, openclip and metaclip follows" in describe_imbalances(
        replace(results, backbones=backbones)
    )
    flat = [replace(backbone, prior=LabelPrior.uniform(12)) for backbone in results.backbones]
    assert "no relation" in describe_imbalances(replace(results, backbones=flat))


def test_lowest_classes_are_linked_and_counted(results: RunResults) -> None:
    line = describe_run(results)[-1]
    table = results.metrics.per_class
    assert table is not None
    for index, text in line.classes:
        assert text == f"{results.classes.names[index]} ({table.correct[index]} of {table.n[index]})"
    assert str(line).endswith(f"{line.classes[-1][1]}.")
