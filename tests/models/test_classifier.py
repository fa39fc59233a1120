from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file
from torch import Tensor

from dualtail.errors import BackboneError, DualtailError, InputError
from dualtail.models.backbone import Backbone, load_backbone
from dualtail.models.classifier import Classifier, build_classifier, load_classifier
from dualtail.models.heads import build_head
from dualtail.models.tuners import attach_tuner
from dualtail.models.zero_shot import ZeroShotClassifier

CLASSES = ["cat", "dog", "crème brûlée"]


@pytest.fixture
def classifier(vit: Backbone) -> Classifier:
    return build_classifier(vit, CLASSES, seed=3)


def test_forward_is_head_of_features(classifier: Classifier, images: Tensor) -> None:
    features = classifier.features(images)
    assert features.shape == (4, 32)
    assert torch.equal(classifier(images), classifier.head(features))
    assert classifier(images).shape == (4, classifier.num_classes)


def test_only_what_trains_is_saved(classifier: Classifier, tmp_path: Path) -> None:
    classifier.save(tmp_path)
    stored = load_file(tmp_path / "trainable.safetensors")
    assert stored.keys() == classifier.trainable_state().keys()
    assert sum(value.numel() for value in stored.values()) == classifier.tuner.num_parameters + 3 * 32
    assert {path.name for path in tmp_path.iterdir()} == {"trainable.safetensors", "config.json"}
    assert json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["class_names"] == CLASSES


def test_random_weights_come_back_from_their_seed(images: Tensor, tmp_path: Path) -> None:
    made = build_classifier("timm:test_vit", CLASSES, weights="random", seed=7, head="linear")
    made.save(tmp_path)
    small = torch.zeros(1, 3, 160, 160, dtype=torch.uint8)
    assert torch.equal(load_classifier(tmp_path)(small), made(small))


def test_a_loaded_backbone_can_be_given(
    classifier: Classifier, vit: Backbone, images: Tensor, tmp_path: Path
) -> None:
    expected = classifier(images)
    classifier.save(tmp_path)
    classifier.tuner.detach()
    again = load_classifier(tmp_path, backbone=vit)
    assert again.backbone is vit
    assert torch.equal(again(images), expected)


def test_state_goes_through_a_copy(classifier: Classifier, images: Tensor) -> None:
    kept = {name: value.clone() for name, value in classifier.trainable_state().items()}
    expected = classifier(images)
    with torch.no_grad():
        for parameter in classifier.trainable_parameters().values():
            parameter += 1
    assert not torch.equal(classifier(images), expected)
    classifier.load_trainable_state(kept)
    assert torch.equal(classifier(images), expected)


def test_a_deep_copy_is_independent(classifier: Classifier, images: Tensor) -> None:
    expected = classifier(images)
    twin = copy.deepcopy(classifier)
    with torch.no_grad():
        for parameter in twin.trainable_parameters().values():
            parameter += 1
    assert torch.equal(classifier(images), expected)
    assert not torch.equal(twin(images), expected)


def refused(classifier: Classifier, directory: Path, words: str) -> None:
    with pytest.raises(BackboneError, match=words) as error:
        classifier.load_trainable(directory)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"class_names": ["cat", "dog"]}, "saved with 3 classes, this classifier has 2"),
        ({"class_names": ["cat", "cow", "crème brûlée"]}, "class 1 was 'dog', here it is 'cow'"),
        ({"tuner": "adapter"}, "saved with tuner .*adaptformer.*adapter"),
        ({"tuner_options": {"width": 8}}, "saved with tuner .*adaptformer.*8"),
        ({"head": "linear"}, "saved with head .*cosine.*linear"),
        ({"text_tuner": "lora", "head": "text"}, "saved with text_tuner None"),
        ({"seed": 4, "weights": "random"}, "saved with the weights of .*the backbone here is"),
        ({"image_size": 64}, "saved for images of 32 pixels, the backbone here takes 64"),
    ],
)
def test_what_belongs_to_another_classifier_is_refused(
    classifier: Classifier, vit_folder: Path, tmp_path: Path, other: dict[str, Any], words: str
) -> None:
    classifier.save(tmp_path)
    options: dict[str, Any] = {"backbone": f"open_clip:{vit_folder}", "class_names": CLASSES, "seed": 3}
    refused(build_classifier(**(options | other)), tmp_path, words)


def test_another_format_version_is_refused(classifier: Classifier, tmp_path: Path) -> None:
    classifier.save(tmp_path)
    config = classifier.config() | {"format_version": 99}
    (tmp_path / "config.json").write_text(json.dumps(config))
    refused(classifier, tmp_path, "format version 99, this dualtail reads 1")
    with pytest.raises(BackboneError, match="format version 99"):
        load_classifier(tmp_path)


@pytest.mark.parametrize("content", [None, b"", b"{}", b"[]", b"\xff"])
def test_a_damaged_config_is_named(classifier: Classifier, tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    refused(classifier, tmp_path, r"config\.json: no saved classifier")


def test_damaged_weights_are_named(classifier: Classifier, tmp_path: Path) -> None:
    classifier.save(tmp_path)
    path = tmp_path / "trainable.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    refused(classifier, tmp_path, r"trainable\.safetensors: cannot be read")


def test_a_state_of_other_names_is_refused(classifier: Classifier) -> None:
    state = dict(classifier.trainable_state())
    state["head.extra"] = state.pop("head.weight")
    before = {name: value.clone() for name, value in classifier.trainable_state().items()}
    with pytest.raises(BackboneError, match=r"2 tensors differ, the first is head\.extra"):
        classifier.load_trainable_state(state)
    assert all(torch.equal(value, before[name]) for name, value in classifier.trainable_state().items())


def test_parts_that_do_not_belong_together_are_refused(vit: Backbone) -> None:
    tuner = attach_tuner(vit, "none", num_classes=3)
    with pytest.raises(BackboneError, match="the head reads 8 features, the backbone gives 32"):
        Classifier(vit, tuner, build_head("cosine", 8, 3), CLASSES)
    with pytest.raises(InputError, match="3 class names for a head of 4 classes"):
        Classifier(vit, tuner, build_head("cosine", 32, 4), CLASSES)
    with pytest.raises(InputError, match="more than once"):
        Classifier(vit, tuner, build_head("cosine", 32, 3), ["cat", "dog", "cat"])


@pytest.mark.parametrize("part", ["head_options", "tuner_options", "text_tuner_options"])
@pytest.mark.parametrize("name", ["name", "num_classes", "backbone"])
def test_options_that_the_classifier_gives_itself_are_refused(vit: Backbone, part: str, name: str) -> None:
    """They may come from a file, and would be a second value of the same argument."""
    tuned = {"text_tuner": "lora", "head": "text"} if part == "text_tuner_options" else {}
    with pytest.raises(InputError, match=f"'{name}' is no option"):
        build_classifier(vit, ["cat", "dog"], **tuned, **{part: {name: 1}})


def test_a_refused_classifier_leaves_the_backbone_free(vit: Backbone) -> None:
    for wrong in (
        {"head": "cosin"},
        {"head_options": {"scal": 1}},
        {"text_tuner": "lora"},
        {"text_tuner": "vpt_deep"},
    ):
        with pytest.raises(DualtailError):
            build_classifier(vit, CLASSES, **wrong)
    build_classifier(vit, CLASSES)


def test_a_failed_write_keeps_the_last_good_one(
    classifier: Classifier, images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier.save(tmp_path)

    def full(state: dict[str, Tensor], path: Path, metadata: object = None) -> None:
        path.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match="no space"):
        classifier.save(tmp_path)
    classifier.load_trainable(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "trainable.safetensors"}
    with pytest.raises(OSError, match="no space"):
        classifier.save(tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


def test_zero_shot_classifier(vit: Backbone, images: Tensor) -> None:
    text = vit.encode_text(["a cat", "a dog"])
    with_text = ZeroShotClassifier(vit, text)
    assert with_text(images).shape == (4, 2)
    assert torch.equal(with_text(images), with_text.head(with_text.features(images)))
    assert ZeroShotClassifier(vit, None)(images).shape == (4, 0)


# --- other input sizes ------------------------------------------------------------------------------------------


def resized(folder: Path, size: int) -> Backbone:
    backbone = load_backbone(f"open_clip:{folder}", image_size=size)
    assert backbone.image_spec.size == size
    images = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    assert backbone.features(images).shape == (2, backbone.feature_dim)
    return backbone


def test_position_embeddings_are_resized_as_open_clip_does(vit_folder: Path) -> None:
    from open_clip.model import resize_pos_embed

    backbone = resized(vit_folder, 48)
    larger = tiny.model_of(tiny.config(vision={"image_size": 48}))
    state = tiny.model_of(tiny.VIT).state_dict()
    resize_pos_embed(state, larger)
    larger.load_state_dict(state)
    images = torch.randint(0, 256, (2, 3, 48, 48), dtype=torch.uint8)
    with torch.no_grad():
        expected = larger.encode_image(backbone.normalize(images))
        torch.testing.assert_close(backbone.project(backbone.features(images)), expected)


def test_the_fingerprint_is_of_the_weights_as_they_came(vit_folder: Path) -> None:
    native = load_backbone(f"open_clip:{vit_folder}")
    assert resized(vit_folder, 16).weights_fingerprint == native.weights_fingerprint
    assert torch.equal(
        resized(vit_folder, 32).visual.positional_embedding, native.visual.positional_embedding
    )


def test_resnets_and_timm_models_take_other_sizes(tmp_path: Path) -> None:
    resized(tiny.write_folder(tmp_path / "resnet", tiny.RESNET), 96)
    timm_cfg = {"timm_model_name": "test_vit", "timm_pool": "map", "timm_proj": "none", "image_size": 160}
    model_cfg = {"embed_dim": 64, "vision_cfg": timm_cfg, "text_cfg": tiny.TEXT, "custom_text": True}
    resized(tiny.write_folder(tmp_path / "siglip", model_cfg), 96)
    for name in ("test_vit", "test_convnext"):
        backbone = load_backbone(f"timm:{name}", weights="random", image_size=96)
        assert backbone.features(torch.zeros(1, 3, 96, 96)).shape == (1, backbone.feature_dim)


@pytest.mark.parametrize(
    ("name", "size", "words"),
    [
        ("open_clip", 50, "no multiple of 8; use 48 or 56"),
        ("open_clip", 3, "no multiple of 8; use 8 or 16"),
        ("timm:test_vit", 100, "cannot take images of 100 pixels"),
        ("timm:mixer_s32_224", 256, "cannot take images of 256 pixels"),
    ],
)
def test_a_size_that_does_not_fit_is_refused(vit_folder: Path, name: str, size: int, words: str) -> None:
    if name == "open_clip":
        name = f"open_clip:{vit_folder}"
    with pytest.raises(BackboneError, match=words) as error:
        load_backbone(name, weights="random", image_size=size)
    assert "\n" not in str(error.value)


def test_a_resized_member_comes_back_at_its_size(vit_folder: Path, tmp_path: Path) -> None:
    made = build_classifier(f"open_clip:{vit_folder}", CLASSES, image_size=48)
    made.save(tmp_path)
    images = torch.randint(0, 256, (2, 3, 48, 48), dtype=torch.uint8)
    assert torch.equal(load_classifier(tmp_path)(images), made(images))
