from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch

from dualtail.errors import InputError, RunError
from dualtail.lab import bench as bench_module
from dualtail.lab.bench import Bench, different
from dualtail.lab.studies import (
    STUDIES,
    StudyResult,
    get_study,
    members,
    priors,
    repairs,
    run_study,
    two_by_two,
    write_section,
)
from dualtail.lab.tables import Table, cell, verdict
from dualtail.lab.tables import figures as figures_of
from dualtail.lab.tune import Outputs
from dualtail.lab.world import Architecture, Pretraining, Task, World
from dualtail.logits.comparison import summarize_seeds
from dualtail.logits.groups import ClassGroups
from dualtail.logits.metrics import evaluate
from dualtail.runs.observer import Observer


def small_world(seed: int, *, large: bool = False) -> World:
    return World(
        seed=seed,
        classes=12,
        architecture=Architecture(width=32 if large else 16, heads=2, layers=1),
        pretraining=Pretraining(images=200, steps=3, batch=16),
        task=Task(largest=150, ratio=50, val_per_class=20, test_per_class=60),
    )


class Imagined(Bench):
    """A bench whose members are noise about the labels, each with the log prior of its corpus in its logits."""

    noise = 1.0

    def _say(self, foundation, stream: int, prior_share: float) -> Outputs:
        rng = np.random.default_rng([self.seed, stream, foundation.prior, foundation.seed])
        prior = np.log(self.world.label_prior(foundation))
        logits, features = {}, {}
        for split, sample in self.splits.items():
            right = np.eye(self.world.classes)[sample.labels]
            # The log-likelihood ratio of unit-variance evidence for the label.
            noisy = right + self.noise * rng.standard_normal(right.shape)
            logits[split] = torch.from_numpy(noisy / self.noise**2 + prior_share * prior).float()
            features[split] = torch.from_numpy(np.hstack([noisy, sample.factors])).float()
        return Outputs(logits, features)

    def zero_shot(self, foundation, *, large: bool = False) -> Outputs:
        return self._say(foundation, 0, {"mixed": 1.0, "infonce": 0.0, "sigmoid": 0.5}[foundation.objective])

    def member(self, foundation, *, loss="la", seed=0, large=False, **others) -> Outputs:
        return self._say(foundation, 1 + 10 * seed + large, 0.0 if loss == "la" else 0.5)


@pytest.fixture
def imagined(monkeypatch, tmp_path):
    monkeypatch.setattr(bench_module, "study_world", small_world)
    return [Imagined(seed, tmp_path, Observer()) for seed in range(3)]


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_answers(imagined, name: str, tmp_path: Path) -> None:
    answer = STUDIES[name].ask(imagined)
    findings, tables = answer.findings, answer.tables
    assert findings
    assert all(len(rows) == 3 for table in tables for rows in table.rows.values())
    for table in tables:
        lines = table.to_markdown().splitlines()
        assert {line.count("|") for line in lines[2:]} == {len(table.columns) + 2}
        assert not re.search(r"\bnan\b", table.to_markdown())
    assert not any("nan" in finding for finding in findings)
    assert answer.plots
    for plot in answer.plots:
        plot.save(tmp_path / "plot.svg")
        first = (tmp_path / "plot.svg").read_bytes()
        plot.save(tmp_path / "plot.svg")
        assert (tmp_path / "plot.svg").read_bytes() == first
        assert b"<text" in first


def test_the_priors_study_finds_what_is_there(imagined) -> None:
    (table,) = STUDIES["priors"].ask(imagined).tables
    standard = "val 20 a class, GLA with shrinkage"
    assert table.summary(f"mixed, {standard}", "spearman").mean > 0.9
    assert table.summary("mixed, 80 a class, GLA with shrinkage", "slope").mean == pytest.approx(1, abs=0.15)
    assert table.summary("sigmoid, 80 a class, GLA with shrinkage", "slope").mean == pytest.approx(
        0.5, abs=0.15
    )
    assert abs(table.summary(f"infonce, {standard}", "spearman").mean) < 0.6
    assert abs(table.summary(f"infonce, {standard}", "slope").mean) < 0.1


def test_members_of_equal_worth_gain_alike(imagined) -> None:
    # All members are independent and equally good here: nothing but ensembling is to be found.
    (table,) = STUDIES["members"].ask(imagined).tables
    gain = table.difference("M = 3, different priors", "M = 1", "overall")
    assert gain.ci[0] > 0.02
    beyond = table.difference("M = 3, different priors", "M = 3, same prior", "overall")
    assert abs(beyond.mean) < 0.03


def test_the_groups_study_is_exact_for_the_truth(imagined) -> None:
    (table,) = STUDIES["groups"].ask(imagined).tables
    same = [table.summary(str(n), "same").mean for n in (2, 10, 50)]
    assert same == sorted(same)
    assert abs(table.contrast("50", "gap", "true_gap").mean) < 0.1


def test_models_and_members_are_made_once(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(bench_module, "study_world", small_world)
    made = []

    class Hearing(Observer):
        def stage(self, title: str) -> None:
            made.append(title)

    first = Bench(0, tmp_path, Hearing()).member(different(0), loss="gla_train")
    assert len(made) == 2  # a model and a member
    again = Bench(0, tmp_path, Hearing()).member(different(0), loss="gla_train")
    assert len(made) == 2
    assert torch.equal(first.logits["test"], again.logits["test"])
    Bench(0, tmp_path, Hearing()).member(different(0), seed=1)
    Bench(0, tmp_path, Hearing()).member(different(0), large=True)
    assert len(made) == 5  # one more member; one more model and its member
    assert Bench(0, tmp_path, Hearing()).member(different(0), seed=1).logits["test"].shape == (720, 12)


def test_sections_are_written_between_their_markers(imagined, tmp_path) -> None:
    page = tmp_path / "lab.md"
    page.write_text("before\n<!-- study groups -->\nold\n<!-- end of study groups -->\nafter\n")
    section = StudyResult(STUDIES["groups"], STUDIES["groups"].ask(imagined), "the command", 3)
    write_section(page, section)
    once = page.read_text()
    write_section(page, section)
    assert page.read_text() == once
    assert once == (
        f"before\n<!-- study groups -->\n{section.to_markdown('images')}<!-- end of study groups -->\nafter\n"
    )
    (picture,) = re.findall(r"\]\((.*?)\)", once)
    assert (tmp_path / picture).is_file()
    assert "](" not in section.to_markdown()
    page.write_text("no markers")
    with pytest.raises(RunError, match="has no lines '<!-- study groups -->'"):
        write_section(page, section)


def table_of(rows: dict[str, dict[str, float]], noise: float) -> Table:
    """Return three worlds' figures about the given means; columns that are not named are 0.7."""
    table = Table("", "", {})
    for offset in (-noise, 0.0, noise):
        for place, (title, figures) in enumerate(rows.items()):
            # Every other row is moved the other way, so that differences vary.
            table.add(
                title, defaultdict(lambda: 0.7, {k: v + offset * (-1) ** place for k, v in figures.items()})
            )
    return table


@pytest.mark.parametrize(
    ("corpus", "noise", "said"),
    [(0.75, 0.001, "the data imbalance hurts more."), (0.55, 0.001, "the parameter imbalance hurts more."),
     (0.65, 0.2, "which of them hurts more is not shown.")],
)  # fmt: skip
def test_two_by_two_says_what_its_intervals_allow(corpus: float, noise: float, said: str) -> None:
    rows = {name: {"overall": 0.65} for name in (
        "balanced / balanced", "balanced / long-tailed", "long-tailed / balanced", "long-tailed / long-tailed",
        "long-tailed, a factor lost / balanced", "long-tailed, a factor lost / long-tailed",
    )}  # fmt: skip
    rows["long-tailed / balanced"] = {"overall": corpus}
    findings = two_by_two._findings(table_of(rows, noise))
    assert said in findings[0]
    assert "make each other worse is not shown" in findings[1]


@pytest.mark.parametrize(
    ("gla", "noise", "said"),
    [(0.8, 0.001, "is mended in the decision boundary"), (0.6, 0.001, "the corpus' tail pays for it"),
     (0.7, 0.2, "That GLA mends what the corpus starved is not shown")],
)  # fmt: skip
def test_repairs_judge_gla_by_the_starved_classes(gla: float, noise: float, said: str) -> None:
    rows = {name: {"p_few": 0.7} for name in (
        "CE", "LA", "x", "GLA-Train", "GLA-Train, half log P_P", "CE, class-balanced sampling",
        "CE, square-root sampling", "GLA without log P_P", "y",
    )}  # fmt: skip
    rows["GLA"] = {"p_few": gla, "overall": 0.9}  # better overall, whatever happens to the tail
    features = {name: {"overall": 0.7} for name in ("before fine-tuning", "CE", "LA")}
    text = " ".join(repairs._findings(table_of(rows, noise), table_of(features, noise)))
    assert said in text
    if noise < 0.1:
        assert "overall +20.0 points" in text


def test_members_gain_where_it_is_shown() -> None:
    kinds = ("different priors", "same prior", "fine-tuning seeds")
    rows = {"M = 1": {"gain": 0.0}} | {f"M = 3, {kind}": {"gain": 0.1} for kind in kinds}
    sure = members._findings(table_of(rows, 0.001), 3)
    assert "(100 % of it)" in sure[1]
    unsure = members._findings(table_of(rows, 0.3), 3)
    assert "of it)" not in unsure[1]
    assert "not shown" in unsure[1]


@pytest.mark.parametrize(
    ("sigmoid", "lost"), [(0.0, "and the sigmoid loss nothing"), (0.5, "InfoNCE alone nothing")]
)
def test_a_prior_is_lost_where_no_correlation_is_shown(sigmoid: float, lost: str) -> None:
    rows = {
        f"{name}, {how}": {"spearman": value, "distance": 0.1}
        for name, value in (("mixed", 0.95), ("infonce", 0.0), ("sigmoid", sigmoid))
        for how in (
            "val 20 a class, GLA with shrinkage", "val 5 a class, GLA with shrinkage", "val 20 a class, mean softmax",
            "training set, GLA with shrinkage",
        )
    }  # fmt: skip
    findings = priors._findings(table_of(rows, 0.01))
    assert "recovers its order" in findings[0]
    assert lost in findings[1]


def test_mistakes() -> None:
    with pytest.raises(InputError, match="did you mean 'members'"):
        get_study("member")
    with pytest.raises(InputError, match="an interval needs at least 2"):
        run_study("groups", 1, "nowhere")


def test_figures_need_groups_that_are_not_empty() -> None:
    logits, labels = torch.eye(3), torch.arange(3)
    with pytest.raises(InputError, match="D-Many has no test samples; choose a larger world"):
        figures_of(evaluate(logits, labels))
    groups = ClassGroups.from_counts([900, 50, 2])
    with pytest.raises(InputError, match="D-Few has no test samples"):
        figures_of(evaluate(logits[:2], labels[:2], d_groups=groups, p_groups=groups))


def test_cells_and_verdicts() -> None:
    sure, unsure = summarize_seeds([0.10, 0.11, 0.12]), summarize_seeds([-0.1, 0.11, 0.12])
    assert cell(sure) == "11.0 ± 2.5 (1.0)"
    assert [verdict(s, "up", "down", "?") for s in (sure, unsure, summarize_seeds([-0.1, -0.11]))] == [
        "up",
        "?",
        "down",
    ]
    table = Table("t", "row", {"a": "A"})
    for a, b in ((0.5, 0.4), (0.6, 0.5)):
        table.add("one", {"a": a})
        table.add("two", {"a": b})
    assert table.difference("one", "two", "a").mean == pytest.approx(0.1)
