"""The story that the demo tells: the chapters, and what of the two runs they are told from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from scipy.stats import spearmanr
from torch import Tensor

from dualtail.lab.embedded import FIRST, SAME_PRIOR, embedded_truth
from dualtail.lab.task import train_counts
from dualtail.lab.world import World
from dualtail.logits.backdoor import backdoor_adjust
from dualtail.logits.comparison import PairedTest, paired_test
from dualtail.logits.groups import GROUP_NAMES, ClassGroups
from dualtail.logits.metrics import Evaluation, evaluate
from dualtail.logits.prior import LabelPrior
from dualtail.runs.directory import RunDirectory
from dualtail.runs.evaluation import read_prior
from dualtail.runs.logits_file import LogitsFile

CONTROLS = "controls"  # name of the second run
SEEDS = (1, 2)  # the first model's other fine-tuning seeds


@dataclass(frozen=True)
class Chapter:
    """A piece of the story.

    Attributes:
        title: what it is about.
        rows: a table, the first row its head; may be empty.
        text: what it means.
    """

    title: str
    text: str
    rows: tuple[tuple[str, ...], ...] = ()


class Story:
    """What the two runs hold, with the truth beside it.

    Args:
        world: of the embedded models.
        run: the run of the three members.
        controls: the run of the controls, once it is there.
    """

    def __init__(self, world: World, run: RunDirectory, controls: RunDirectory | None) -> None:
        self.world, self.run, self.controls = world, run, controls

    @property
    def runs(self) -> list[RunDirectory]:
        """The runs that are there."""
        return [run for run in (self.run, self.controls) if run is not None]

    @property
    def names(self) -> list[str]:
        """The members of different priors."""
        return [str(member.name) for member in self.run.recipe.members]

    @cached_property
    def labels(self) -> Tensor:
        """``(N,)`` of test."""
        return LogitsFile(self.run.verified(self.run.member(FIRST).logits), "test").labels

    @cached_property
    def d_groups(self) -> ClassGroups:
        """Classes by their training images."""
        groups = self.run.recipe.evaluate.groups
        return ClassGroups.from_counts(train_counts(self.world), many=groups.many, few=groups.few)

    def true_prior(self, name: str) -> LabelPrior:
        """Return the prior of an embedded model's corpus."""
        return LabelPrior(torch.tensor(embedded_truth(name)["label_prior"], dtype=torch.float64).log())

    def estimated_prior(self, name: str) -> LabelPrior:
        """Return what the run estimated from zero-shot logits on val."""
        return read_prior(self._of_backbone(name), name)

    def zero_shot(self, name: str) -> Tensor:
        """Return a foundation model's zero-shot logits of test."""
        run = self._of_backbone(name)
        return LogitsFile(run.verified(run.backbone(name).zero_shot), "test").logits

    def member(self, name: str) -> Tensor:
        """Return a member's logits of test, from whichever run has it."""
        run = self.run if name in self.names or self.controls is None else self.controls
        return LogitsFile(run.verified(run.member(name).logits), "test").logits

    def ensemble(self, names: Sequence[str]) -> Tensor:
        """Return the backdoor-adjusted logits of members."""
        return backdoor_adjust([self.member(name) for name in names])

    def evaluate(self, logits: Tensor, prior: LabelPrior) -> Evaluation:
        """Evaluate test logits, with the P-groups of ``prior``."""
        p_groups = ClassGroups.from_prior(prior)
        return evaluate(logits, self.labels, d_groups=self.d_groups, p_groups=p_groups)

    def _of_backbone(self, name: str) -> RunDirectory:
        return self.controls if self.controls is not None and name in SAME_PRIOR else self.run


def task_chapter(world: World) -> Chapter:
    """Tell what is to be learnt."""
    counts = train_counts(world)
    groups = ClassGroups.from_counts(counts)
    return Chapter(
        "The task",
        f"{world.classes} classes of drawn pictures, each a code of {len(world.factors)} factors "
        f"({', '.join(world.factor_names)}). The training set is long-tailed: {counts.max()} images of the most "
        f"frequent class, {counts.min()} of the rarest; {groups.sizes['few']} classes have fewer than 20 (D-Few). "
        "Factors are resampled now and then, so the best possible accuracy is "
        f"{100 * world.bayes_accuracy:.1f} %.",
    )


def priors_chapter(story: Story) -> Chapter:
    """Tell how well the estimated pre-training priors agree with the truth."""
    rows: list[tuple[str, ...]] = [("model", "Spearman", "P-group right", "lost in its rarest classes")]
    correlations = []
    for name in story.names:
        truth, estimate = story.true_prior(name), story.estimated_prior(name)
        correlations.append(float(spearmanr(truth.log_prob.numpy(), estimate.log_prob.numpy())[0]))
        true_groups, groups = (
            ClassGroups.from_prior(truth),
            ClassGroups.from_prior(estimate),
        )
        same = float((true_groups.index == groups.index).float().mean())
        rows.append((name, f"{correlations[-1]:.2f}", _percent(same), _lost(name)))
    return Chapter(
        "The imbalance in the weights",
        "Each foundation model saw the classes with a long tail of its own, which nobody tells the pipeline. It is "
        "estimated from zero-shot answers on the validation set, and here the truth is known: the estimate orders the "
        f"classes with a rank correlation of {min(correlations):.2f} or more.",
        tuple(rows),
    )


def zero_shot_chapter(story: Story) -> Chapter:
    """Tell what the foundation models know by themselves."""
    rows: list[tuple[str, ...]] = [("zero-shot", "overall", *(f"P-{group.title()}" for group in GROUP_NAMES))]
    for name in story.names:
        result = story.evaluate(story.zero_shot(name), story.true_prior(name))
        assert result.p_groups is not None
        rows.append(
            (name, _percent(result.overall), *(_percent(result.p_groups[g].accuracy) for g in GROUP_NAMES))
        )
    mean = backdoor_adjust([story.zero_shot(name) for name in story.names])
    rows.append(("averaged", _percent(evaluate(mean, story.labels).overall), *["" for _ in GROUP_NAMES]))
    return Chapter(
        "Before fine-tuning",
        "Without any training a model is best where its corpus was rich (P-Many) and worst where it was poor (P-Few). "
        "The tails differ from model to model, so averaging already mends much.",
        tuple(rows),
    )


def members_chapter(story: Story) -> Chapter:
    """Tell what fine-tuning and the adjustment bring."""
    rows: list[tuple[str, ...]] = [("fine-tuned with LA", "overall", "D-Few", "P-Few", "tail-tail")]
    rows += [_row(name, story.evaluate(story.member(name), story.true_prior(name))) for name in story.names]
    prior = LabelPrior.mean([story.true_prior(name) for name in story.names])
    ensemble = story.ensemble(story.names)
    adjusted = story.evaluate(ensemble, prior)
    rows.append(_row("backdoor-adjusted", adjusted))
    accuracy = {name: evaluate(story.member(name), story.labels).overall for name in story.names}
    best, best_accuracy = max(accuracy.items(), key=lambda item: item[1])
    gain = paired_test(ensemble, story.member(best), story.labels)
    return Chapter(
        "After fine-tuning",
        "Fine-tuning with logit adjustment (LA) allows for the training set's tail (D-Few), not for the corpus' "
        f"(P-Few; tail-tail is both). Averaging over the three models gives {_percent(adjusted.overall)} %, the best "
        f"single one {_percent(best_accuracy)} %: {_points(gain)} on the same images ({_says(gain)}). P-groups are by "
        "each model's true prior, the ensemble's by their mean; the report, which cannot know the truth, has the "
        "estimated ones, so its P-columns differ from these.",
        tuple(rows),
    )


def controls_chapter(story: Story) -> Chapter:
    """Tell how much of the gain is plain ensembling."""
    families = {
        "one model": (FIRST,),
        "3 seeds of one model": (FIRST, *(f"{FIRST}-seed{seed}" for seed in SEEDS)),
        "3 models, one prior": (FIRST, *SAME_PRIOR),
        "3 models, 3 priors": tuple(story.names),
    }
    prior = story.true_prior(FIRST)
    rows: list[tuple[str, ...]] = [("members", "overall", "D-Few", "P-Few", "tail-tail")]
    logits = {title: story.ensemble(names) for title, names in families.items()}
    rows += [_row(title, story.evaluate(value, prior)) for title, value in logits.items()]
    one, _, plain, different = logits.values()
    gain, control = (paired_test(x, one, story.labels) for x in (different, plain))
    beyond = paired_test(different, plain, story.labels)
    share = control.difference / gain.difference if gain.difference > 0 else float("nan")
    p_few = ClassGroups.from_prior(prior).mask("few")
    starved = paired_test(different, plain, story.labels, classes=p_few)
    return Chapter(
        "Is it the priors, or just an ensemble?",
        f"Three priors gain {_points(gain)} over one model; three models of the *same* prior gain {_points(control)}, "
        f"which is {100 * share:.0f} % of it. The difference, {_points(beyond)}, is what different tails add here "
        f"({_says(beyond)}); on P-Few it is {_points(starved)} ({_says(starved)}). All P-groups are of {FIRST}'s true "
        "prior: its P-Few are the classes that its corpus starved, as those of other priors need not have. The "
        "intervals are over the test images of this one world; 'dualtail lab study members' asks several. In the "
        f"report, '{CONTROLS}' is the ensemble of all four controls.",
        tuple(rows),
    )


def cost_chapter(story: Story, seconds: float) -> Chapter:
    """Tell what each stage took."""
    rows: list[tuple[str, ...]] = [("stage", *(run.root.name for run in story.runs))]
    spent = [_stage_seconds(run) for run in story.runs]
    rows += [(stage, *(f"{one.get(stage, 0.0):.1f} s" for one in spent)) for stage in spent[0]]
    return Chapter("What it took", f"{seconds:.0f} seconds in all, this time.", tuple(rows))


def _stage_seconds(run: RunDirectory) -> dict[str, float]:
    spent: dict[str, float] = {}
    for key, record in run.records.read().items():
        stage = key.partition("/")[0].replace("_", "-")
        spent[stage] = spent.get(stage, 0.0) + record.seconds
    return spent


def _row(title: str, result: Evaluation) -> tuple[str, ...]:
    assert result.d_groups is not None
    assert result.p_groups is not None
    assert result.tail_tail is not None
    cells = (
        result.overall,
        result.d_groups["few"].accuracy,
        result.p_groups["few"].accuracy,
        result.tail_tail.accuracy,
    )
    return (title, *(_percent(value) for value in cells))


def _lost(name: str) -> str:
    truth = embedded_truth(name)
    return f"{' and '.join(truth['foundation']['lost'])} ({len(truth['lossy_classes'])} classes)"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _points(test: PairedTest) -> str:
    return f"{100 * test.difference:+.1f} points [{100 * test.ci[0]:+.1f}, {100 * test.ci[1]:+.1f}]"


def _says(test: PairedTest) -> str:
    return "within chance" if test.ci[0] <= 0 <= test.ci[1] else "beyond chance"
