"""Backbones, tuners and heads of a package outside, through their registries."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dualtail.errors import BackboneError, InputError
from dualtail.imagespec import ImageSpec
from dualtail.models.backbone import BACKBONES, load_backbone
from dualtail.models.classifier import build_classifier, load_classifier
from dualtail.models.head_init import HEAD_INITS, head_init_needs, head_weight
from dualtail.models.heads import HEADS, Head, check_head_options
from dualtail.models.parts import FAMILIES, Parts, seeded
from dualtail.models.tuners import TUNERS, Site, Tuner, check_tuner_options, support_table
from dualtail.registry import Registry


class Colours(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.mean(dim=(2, 3))


def build(name: str, rest: str, *, weights: str | None, seed: int) -> Parts:
    with seeded(seed):
        visual = nn.Sequential(Colours(), nn.Linear(3, int(rest)))
    return Parts("timm_other", visual.eval(), ImageSpec(size=8), int(rest))


class Shift(Tuner):
    """Adds a learnt vector to the features."""

    name = "shift"
    families = frozenset(FAMILIES)

    def __init__(self, site: Site, *, start: float) -> None:
        super().__init__(site)
        self.shift = nn.Parameter(torch.full((site.backbone.feature_dim,), start))
        self.on_detach(site.backbone.visual.register_forward_hook(lambda *call: call[2] + self.shift))


class Sum(Head):
    """Every class has the sum of the features for its logit."""

    name = "sum"

    def score(self, features: Tensor) -> Tensor:
        return features.sum(-1, keepdim=True).expand(*features.shape[:-1], self.num_classes)


def ones_weight(backbone: object, num_classes: int, labels: Tensor) -> Tensor:
    return torch.ones(num_classes, 4)


@pytest.fixture(autouse=True)
def plugged_in() -> Iterator[None]:
    added: dict[str, tuple[Registry, object]] = {
        "toy": (BACKBONES, build),
        "shift": (TUNERS, Shift),
        "sum": (HEADS, Sum),
        "ones": (HEAD_INITS, ones_weight),
    }
    with ExitStack() as stack:
        for name, (registry, thing) in added.items():
            stack.enter_context(registry.added(name, thing))
        yield


def test_a_member_of_plug_ins_trains_saves_and_loads(tmp_path: Path) -> None:
    images = torch.randint(256, (2, 3, 8, 8), dtype=torch.uint8)
    member = build_classifier(
        "toy:4", ["a", "b"], weights="random", tuner="shift", tuner_options={"start": 0.5}, head="sum"
    )
    assert sorted(member.trainable_parameters()) == ["tuner.shift"]
    member.save(tmp_path)
    assert torch.equal(load_classifier(tmp_path)(images), member(images))
    before = load_backbone("toy:4", weights="random").features(images)
    assert torch.equal(member.features(images), before + 0.5)
    member.tuner.detach()
    assert torch.equal(member.features(images), before)


def test_a_backbone_has_a_fingerprint_and_a_family() -> None:
    one, same, other = (load_backbone("toy:4", weights="random", seed=seed) for seed in (1, 1, 2))
    assert one.weights_fingerprint == same.weights_fingerprint != other.weights_fingerprint
    with pytest.raises(BackboneError, match="unknown family 'timm_othr'; did you mean 'timm_other'"):
        Parts("timm_othr", Colours(), ImageSpec(size=8), 3)
    with pytest.raises(BackboneError, match=r"does not fit this vision tower \(timm_other\).*takes .*shift"):
        build_classifier("toy:4", ["a", "b"], tuner="lora")


def test_an_initialisation_is_given_what_it_names() -> None:
    backbone = load_backbone("toy:4", weights="random")
    assert head_init_needs("ones") == {"labels"}
    assert torch.equal(head_weight("ones", backbone, 2, labels=torch.zeros(3)), torch.ones(2, 4))


def test_a_class_without_a_name_is_refused_before_it_trains() -> None:
    class Nameless(Head): ...

    with pytest.raises(InputError, match=r"Nameless: the class has no name; set `name` to what it is"):
        Nameless(4, 2)


def test_plug_ins_stand_in_the_table() -> None:
    assert support_table()[-1] == ["shift", *["yes"] * len(FAMILIES)]


@pytest.mark.parametrize(
    ("check", "name", "options", "line"),
    [
        (check_tuner_options, "shift", {}, "here: the tuner 'shift' needs the option 'start'"),
        (check_tuner_options, "shfit", {}, "here: unknown tuner 'shfit'; did you mean 'shift'?"),
        (
            check_tuner_options,
            {"a": 1},
            {},
            "here: unknown tuner {'a': 1}; choose from adaptformer, adapter, ",
        ),
        (
            check_tuner_options,
            "lora",
            {"tower": "text"},
            "here: the tuner 'lora' has no option 'tower'; it takes rank, ",
        ),
        (check_tuner_options, "lora", {"blocks": 3}, "here: blocks is 3; it should be a list"),
        (
            check_head_options,
            "sum",
            {"scale": 3},
            "here: the head 'sum' has no option 'scale'; it takes none",
        ),
        (check_head_options, ["sum"], {}, "here: unknown head ['sum']; did you mean 'sum'?"),
    ],
)
def test_names_and_options_are_checked_without_a_backbone(check, name, options, line) -> None:
    with pytest.raises(InputError) as error:
        check(name, options, where="here")
    assert str(error.value).startswith(line)
    check_tuner_options("shift", {"start": 1.0, "blocks": [0, -1], "seed": 3})
    check_head_options("cosine", {"scale": 3.0, "seed": 3})
