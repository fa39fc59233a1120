"""The overview never claims more than the intervals allow."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dualtail.logits.prior import LabelPrior
from dualtail.report.results import RunResults, read_results
from dualtail.report.sentences import (
    describe_groups,
    describe_imbalances,
    describe_run,
    difference_of,
    look_first,
    spell_less,
    union,
)
from dualtail.report.sheet import Estimate


@pytest.fixture
def results(run_dir: Path) -> RunResults:
    return read_results(run_dir)


def with_differences(results: RunResults, *bounds: tuple[float, float]) -> RunResults:
    rows = [
        {"a": "adjusted", "b": name, "measure": "overall", "classes": "all",
         "difference": (low + high) / 2, "ci": [low, high], "n": 100}
        for name, (low, high) in zip(("clip", "openclip", "metaclip"), bounds, strict=True)
    ]  # fmt: skip
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


def cell(accuracy: float, low: float, high: float, classes: int = 4) -> dict[str, Any]:
    return {"accuracy": accuracy, "classes": classes, "absent": 0, "n": 40, "ci": [low, high]}


def with_groups(results: RunResults, few: dict[str, Any], tail: dict[str, Any]) -> RunResults:
    good = cell(0.9, 0.85, 0.95)
    groups = {"many": good, "medium": good, "few": few}
    metrics = {
        **results.metrics, "macro": 0.85, "macro_ci": [0.8, 0.9], "d_groups": groups,
        "p_groups": {"many": good, "medium": good, "few": good},
        "cross": {"few": {"many": good, "medium": good, "few": tail}},
    }  # fmt: skip
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
    gap = difference_of(few, rest)
    assert gap is not None
    assert (gap.low, gap.high) == pytest.approx((-0.074, -0.018), abs=0.001)
    assert spell_less(gap) == "4.6 points (1.8 to 7.4)"
    whole = union([few, rest])
    assert whole is not None
    assert whole.value == pytest.approx((34 * 0.836 + 26 * 0.882) / 60)
    assert whole.high - whole.low < few.high - few.low


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
    table = results.metrics["per_class"]
    for index, text in line.classes:
        assert text == f"{results.classes.names[index]} ({table['correct'][index]} of {table['n'][index]})"
    assert str(line).endswith(f"{line.classes[-1][1]}.")
