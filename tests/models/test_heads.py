from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn import functional as F

from dualtail.errors import BackboneError, InputError
from dualtail.models.backbone import Backbone, load_backbone
from dualtail.models.classifier import build_classifier, load_classifier
from dualtail.models.head_init import (
    HEAD_INITS,
    class_mean_weight,
    head_init_needs,
    head_weight,
    kshot_mean_weight,
    linear_probe_weight,
    text_weight,
)
from dualtail.models.heads import HEADS, build_head
from dualtail.models.text import class_text_features, zero_shot_logits
from dualtail.testing.heads import CLASSES, HEAD_CHECKS, HeadCase

TIED = [name for name, kind in HEADS.items() if kind.reads_text]
WEIGHTED = [name for name in HEADS if name not in TIED]
OPTIONS = {"coop": {"context": 4}}


def formula(name: str, z: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
    """The heads' formulas, written out for one sample and class at a time."""
    if name == "linear":
        return torch.stack([torch.stack([x @ row + b for row, b in zip(w, bias, strict=True)]) for x in z])
    standard = (z - z.mean(-1, keepdim=True)) / z.std(-1, unbiased=False, keepdim=True)
    x = {"cosine": 25 * z / z.norm(dim=-1, keepdim=True), "l2_normed": z, "layer_normed": standard}[name]
    return x @ (w / w.norm(dim=-1, keepdim=True)).T


@pytest.mark.parametrize("name", WEIGHTED)
def test_formulas(name: str) -> None:
    head = build_head(name, 8, 5)
    weight, z = 3 * torch.randn(5, 8), 10 * torch.randn(4, 8) + 1
    head.set_weight(weight)
    bias = getattr(head, "bias", None)
    if bias is not None:
        torch.nn.init.normal_(bias)
    torch.testing.assert_close(head(z), formula(name, z, weight, bias))
    torch.testing.assert_close(head(z.reshape(2, 2, 8)), head(z).reshape(2, 2, 5))


@pytest.mark.parametrize("check", HEAD_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", HEADS)
def test_what_every_head_promises(vit_folder: Path, name: str, check: Callable[[HeadCase], None]) -> None:
    check(HeadCase(HEADS[name], f"open_clip:{vit_folder}", None, OPTIONS.get(name, {})))


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("cosin", {}, "did you mean 'cosine'"),
        (["cosine"], {}, r"unknown head \['cosine'\]"),
        ("cosine", {"scal": 3}, "the head 'cosine' has no option 'scal'; did you mean 'scale'"),
        ("text", {}, "give its backbone and class_names"),
        ("coop", {"context": 0, "backbone": "vit", "class_names": CLASSES}, "context is 0"),
    ],
)
def test_bad_heads_get_one_line(vit: Backbone, name: str, options: dict, words: str) -> None:
    options = options | ({"backbone": vit} if "backbone" in options else {})
    with pytest.raises(InputError, match=words):
        build_head(name, 8, 3, **options)


def test_weights_of_another_shape_are_refused() -> None:
    with pytest.raises(InputError, match=r"shape \(3, 7\); expected \(3, 8\)"):
        build_head("cosine", 8, 3).set_weight(torch.zeros(3, 7))


def test_heads_are_seeded() -> None:
    one, same, other = (build_head("cosine", 8, 3, seed=seed).weight for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


# --- tied to the text tower -------------------------------------------------------------------------------------


def test_the_text_head_starts_as_the_zero_shot_classifier(vit: Backbone, images: Tensor) -> None:
    features = vit.features(images)
    expected = zero_shot_logits(vit, features, class_text_features(vit, CLASSES))
    torch.testing.assert_close(
        build_head("text", 32, 4, backbone=vit, class_names=CLASSES)(features), expected
    )
    coop = build_head("coop", 32, 4, backbone=vit, class_names=CLASSES, words="a photo of a")
    torch.testing.assert_close(coop(features), expected)
    assert coop.context.shape == (4, 16)


def test_learning_the_context_leaves_other_texts_alone(vit: Backbone) -> None:
    before = vit.encode_text(["a photo of a cat."])
    head = build_head("coop", 32, 4, backbone=vit, class_names=CLASSES, context=3)
    torch.nn.init.ones_(head.context)
    head(torch.randn(2, 32)).sum().backward()
    assert head.context.grad is not None
    assert torch.equal(vit.encode_text(["a photo of a cat."]), before)


@pytest.mark.parametrize("name", TIED)
@pytest.mark.parametrize("tuner", ["adaptformer", "lora", "bitfit"])
def test_a_tuned_text_tower_trains_saves_and_loads(
    vit_folder: Path, images: Tensor, tmp_path: Path, name: str, tuner: str
) -> None:
    classifier = build_classifier(
        f"open_clip:{vit_folder}",
        CLASSES,
        tuner="none",
        head=name,
        head_options=OPTIONS.get(name),
        text_tuner=tuner,
    )
    parameters = classifier.trainable_parameters()
    assert any(key.startswith("text_tuner.") for key in parameters)
    optimizer = torch.optim.SGD(parameters.values(), lr=1e-2)
    for _ in range(2):  # the second step passes what is zero at the start
        optimizer.zero_grad()
        F.cross_entropy(classifier(images), torch.arange(4)).backward()
        assert all(parameter.grad is not None for parameter in parameters.values())
        optimizer.step()
    classifier.save(tmp_path)
    again = load_classifier(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(again(images), classifier(images))


def test_text_features_are_computed_once_until_something_changes(
    vit: Backbone, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = build_classifier(vit, CLASSES, tuner="none", head="text", text_tuner="adaptformer")
    calls = []
    encode = Backbone.encode_tokens
    monkeypatch.setattr(Backbone, "encode_tokens", lambda *args: calls.append(1) or encode(*args))
    with torch.no_grad():
        first = classifier(images)
        assert torch.equal(classifier(images), first)
        assert len(calls) == 1
        for parameter in classifier.trainable_parameters().values():
            parameter.add_(0.1)
        assert not torch.equal(classifier(images), first)
        state = {name: value - 0.1 for name, value in classifier.trainable_state().items()}
        classifier.load_trainable_state(state)
        torch.testing.assert_close(classifier(images), first)
    assert len(calls) == 3


@pytest.mark.parametrize("name", TIED)
def test_tied_heads_compile(vit: Backbone, images: Tensor, name: str) -> None:
    classifier = build_classifier(
        vit, CLASSES, head=name, head_options=OPTIONS.get(name), text_tuner="adapter"
    )
    torch.compiler.reset()
    compiled = torch.compile(classifier, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images), classifier(images))


def test_tied_heads_need_a_text_tower_and_tuners_of_it_need_them(vit: Backbone) -> None:
    timm = load_backbone("timm:test_vit", weights="random")
    for name in TIED:
        with pytest.raises(BackboneError, match="no text tower"):
            build_head(name, 64, 4, backbone=timm, class_names=CLASSES)
    with pytest.raises(InputError, match="'cosine' does not read the text tower"):
        build_classifier(vit, CLASSES, text_tuner="lora")
    with pytest.raises(InputError, match="'text' has no weights to set"):
        build_head("text", 32, 4, backbone=vit, class_names=CLASSES).set_weight(torch.zeros(4, 32))


# --- first weights ----------------------------------------------------------------------------------------------


@pytest.fixture
def sample() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([0] * 30 + [1] * 8 + [2] * 3)
    centres = 2 * torch.randn(3, 6, generator=generator)
    return centres[labels] + torch.randn(41, 6, generator=generator), labels


def test_text_weight_maps_back_through_the_projection(vit: Backbone) -> None:
    text = class_text_features(vit, CLASSES)
    expected = text @ tiny.model_of(tiny.VIT).visual.proj.detach().T
    torch.testing.assert_close(text_weight(vit, text), F.normalize(expected, dim=-1))


def test_text_weight_needs_text_and_a_linear_projection(tmp_path: Path) -> None:
    timm_cfg = {"timm_model_name": "test_convnext", "timm_pool": "", "timm_proj": "mlp", "image_size": 160}
    model_cfg = {"embed_dim": 24, "vision_cfg": timm_cfg, "text_cfg": tiny.TEXT}
    curved = load_backbone(f"open_clip:{tiny.write_folder(tmp_path, model_cfg)}")
    with pytest.raises(BackboneError, match=r"not linear.*class_mean"):
        text_weight(curved, torch.randn(4, 24))
    with pytest.raises(BackboneError, match=r"no text tower.*class_mean"):
        head_weight("text", load_backbone("timm:test_vit", weights="random"), 4)


def test_class_means(sample: tuple[Tensor, Tensor]) -> None:
    features, labels = sample
    unit = F.normalize(features, dim=-1)
    expected = F.normalize(torch.stack([unit[labels == c].mean(0) for c in range(3)]), dim=-1)
    torch.testing.assert_close(class_mean_weight(features, labels, 3), expected)
    torch.testing.assert_close(kshot_mean_weight(features, labels, 3, shots=50), expected)


def test_few_shot_means_take_as_many_of_each_class(sample: tuple[Tensor, Tensor]) -> None:
    labels = sample[1]
    one_hot = torch.eye(41)
    weight = kshot_mean_weight(one_hot, labels, 3, shots=5, seed=1)
    chosen = weight > 0
    assert chosen.sum(1).tolist() == [5, 5, 3]
    assert all(labels[chosen[c]].eq(c).all() for c in range(3))
    assert torch.equal(kshot_mean_weight(one_hot, labels, 3, shots=5, seed=1), weight)
    assert not torch.equal(kshot_mean_weight(one_hot, labels, 3, shots=5, seed=2), weight)


@pytest.mark.parametrize("classes", [2, 3])
def test_linear_probe_is_balanced(sample: tuple[Tensor, Tensor], classes: int) -> None:
    features, labels = sample[0][sample[1] < classes], sample[1][sample[1] < classes]
    weight = linear_probe_weight(features, labels, classes)
    torch.testing.assert_close(weight.norm(dim=-1), torch.ones(classes))
    unit = F.normalize(features, dim=-1).numpy()
    probe = LogisticRegression(class_weight="balanced", max_iter=1000).fit(unit, labels.numpy())
    margins = torch.from_numpy(unit) @ weight.T
    theirs = probe.decision_function(unit) - probe.intercept_
    if classes == 2:
        assert ((margins[:, 1] - margins[:, 0]).numpy() * theirs >= 0).all()
    else:
        expected = F.normalize(torch.from_numpy(probe.coef_), dim=-1).float()
        torch.testing.assert_close(weight, expected)


def test_a_class_without_samples_is_named(sample: tuple[Tensor, Tensor]) -> None:
    features, labels = sample
    for make in (class_mean_weight, kshot_mean_weight, linear_probe_weight):
        with pytest.raises(InputError, match="class 3 has no sample"):
            make(features, labels, 4)
        with pytest.raises(InputError, match="a label is 2"):
            make(features, labels, 2)


@pytest.mark.parametrize("name", HEAD_INITS)
def test_every_initialisation_by_name(vit: Backbone, sample: tuple[Tensor, Tensor], name: str) -> None:
    features, labels = torch.randn(41, 32), sample[1]
    text = class_text_features(vit, CLASSES[:3])
    weight = head_weight(name, vit, 3, text_features=text, features=features, labels=labels)
    if name == "random":
        assert weight is None
    else:
        build_head("cosine", 32, 3).set_weight(weight)
        with pytest.raises(InputError, match="needs"):
            head_weight(name, vit, 3)


def test_an_unknown_initialisation_names_the_nearest(vit: Backbone) -> None:
    with pytest.raises(
        InputError, match="unknown head initialisation 'classmean'; did you mean 'class_mean'"
    ):
        head_weight("classmean", vit, 3)
    with pytest.raises(InputError, match=r"unknown head initialisation \['text'\]"):
        head_init_needs(["text"])  # type: ignore[arg-type]


def test_what_an_initialisation_needs_is_what_it_takes(vit: Backbone) -> None:
    needs = {name: sorted(head_init_needs(name)) for name in HEAD_INITS}
    of_features = {key: ["features", "labels"] for key in ("class_mean", "kshot_mean", "linear_probe")}
    assert needs == {"text": ["text_features"], **of_features, "random": []}
    with pytest.raises(InputError, match="'class_mean' needs labels"):
        head_weight("class_mean", vit, 3, features=torch.randn(3, 32))
    assert HEAD_INITS.options("kshot_mean") == {"shots": 16}
    with pytest.raises(InputError, match="has no option 'shot'; did you mean 'shots'"):
        head_weight("kshot_mean", vit, 3, shot=4)
