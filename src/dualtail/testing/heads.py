"""What every head promises."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import functional as F

from dualtail.errors import InputError
from dualtail.models.backbone import Backbone, load_backbone
from dualtail.models.classifier import build_classifier, load_classifier
from dualtail.models.heads import HEADS, Head, build_head
from dualtail.testing._run import demand, run_checks
from dualtail.testing._tiny import backbone_name
from dualtail.testing.tuners import images_for

CLASSES = ["tree_frog", "cat", "polar bear", "van"]


@dataclass(frozen=True)
class HeadCase:
    """A head with the backbone and options that it is checked with.

    Attributes:
        head: the class, registered.
        backbone: its name.
        weights: its weights, as of ``load_backbone``.
        options: of the head.
    """

    head: type[Head]
    backbone: str
    weights: str | None = "random"
    options: Mapping[str, Any] = field(default_factory=dict)

    def load(self) -> Backbone:
        """Return the backbone, fresh."""
        return load_backbone(self.backbone, weights=self.weights)

    def build(self, backbone: Backbone, seed: int = 0) -> Head:
        """Return a head of 4 classes."""
        return build_head(
            self.head.name,
            backbone.feature_dim,
            len(CLASSES),
            backbone=backbone,
            class_names=CLASSES,
            **{"seed": seed, **self.options},
        )


def check_head(
    head: type[Head],
    *,
    backbone: str | None = None,
    weights: str | None = "random",
    except_for: Collection[str] = (),
    **options: Any,
) -> None:
    """Check that a head is what dualtail takes a head to be; it need not be registered.

    Args:
        head: derived from ``Head``.
        backbone: name of a small one; None for a small CLIP, which has a text tower.
        weights: of the backbone.
        except_for: names of checks that do not hold and need not.
        **options: of the head.

    Raises:
        AssertionError: the first promise that is broken.

    Example:
        >>> check_head(HEADS["cosine"], scale=10.0)
    """
    with HEADS.added(head.name, head), backbone_name(backbone) as name:
        case = HeadCase(head, name, weights, options)
        run_checks(f"the head {head.name!r}", HEAD_CHECKS, case, except_for)


def shapes(case: HeadCase) -> None:
    """Features ``(..., D)`` give logits ``(..., C)``; leading dimensions are free."""
    backbone = case.load()
    head = case.build(backbone)
    features = 10 * torch.randn(4, backbone.feature_dim) + 1
    logits = head(features)
    demand(logits.shape == (4, len(CLASSES)), f"(4, D) gives {tuple(logits.shape)}")
    torch.testing.assert_close(head(features.reshape(2, 2, -1)), logits.reshape(2, 2, -1))


def training_and_saving(case: HeadCase) -> None:
    """A step along the gradient lowers the loss, and a saved member is the same when it is loaded."""
    backbone = case.load()
    images = images_for(backbone)
    classifier = build_classifier(
        backbone, CLASSES, head=case.head.name, head_options=dict(case.options), seed=2
    )
    optimizer = torch.optim.SGD(classifier.trainable_parameters().values(), lr=1e-3)
    first = F.cross_entropy(classifier(images), torch.arange(4))
    first.backward()
    optimizer.step()
    second = F.cross_entropy(classifier(images), torch.arange(4))
    demand(second < first, f"the loss goes from {first} to {second}")
    with tempfile.TemporaryDirectory() as folder:
        classifier.save(folder)
        torch.testing.assert_close(load_classifier(folder)(images), classifier(images))


def float32(case: HeadCase) -> None:
    """It computes in float32, also under autocast."""
    backbone = case.load()
    head = case.build(backbone)
    features = torch.randn(3, backbone.feature_dim)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = head(features.bfloat16())
    demand(logits.dtype == torch.float32, f"logits are {logits.dtype}")
    torch.testing.assert_close(logits, head(features.bfloat16().float()))


def first_weights(case: HeadCase) -> None:
    """``set_weight`` takes ``(C, D)`` and refuses another shape; a head without such weights refuses both."""
    backbone = case.load()
    head = case.build(backbone)
    weight = torch.randn(len(CLASSES), backbone.feature_dim)
    try:
        head.set_weight(weight[:, :-1])
    except InputError:
        pass
    else:
        demand(False, f"it takes the shape {tuple(weight[:, :-1].shape)}")
    before = head(weight)
    try:
        head.set_weight(weight)
    except InputError as error:
        demand("no weights to set" in str(error), f"it refuses the shape {tuple(weight.shape)}: {error}")
    else:
        demand(not torch.equal(head(weight), before), "the weights change nothing")


def one_graph(case: HeadCase) -> None:
    """It compiles in one graph."""
    backbone = case.load()
    head = case.build(backbone)
    features = torch.randn(3, backbone.feature_dim)
    torch.compiler.reset()
    compiled = torch.compile(head, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(features), head(features))


def seeds(case: HeadCase) -> None:
    """Its random start follows its own seed, and torch's generator is left alone."""
    backbone = case.load()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one, same = (case.build(backbone, seed=1).state_dict() for _ in range(2))
    demand(torch.equal(torch.get_rng_state(), before), "it draws from torch's generator")
    demand(one.keys() == same.keys(), "the names of its parameters change")
    demand(all(torch.equal(one[name], same[name]) for name in one), "the same seed gives another start")


HEAD_CHECKS: Sequence[Callable[[HeadCase], None]] = (
    shapes,
    training_and_saving,
    float32,
    first_weights,
    one_graph,
    seeds,
)
