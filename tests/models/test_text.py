from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from dualtail.errors import BackboneError, InputError
from dualtail.models.backbone import Backbone, load_backbone
from dualtail.models.text import (
    TEMPLATES,
    check_class_names,
    class_prompts,
    class_text_features,
    resolve_templates,
    zero_shot_logits,
)

NAMES = ("tree_frog", "cat", "polar bear")


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], "no class names"),
        (["cat", ""], "name of class 1 is empty"),
        (["cat", "  "], "name of class 1 is empty"),
        (["cat", "dog", "cat"], "'cat' occurs more than once"),
    ],
)
def test_bad_class_names_get_one_line(names: list[str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        check_class_names(names)


@pytest.mark.parametrize(
    ("templates", "words"),
    [
        ("a photo", "'a photo' has no single"),
        ([], "no templates"),
        (["{} {}"], "no single"),
        ("opnai", "'openai'"),
    ],
)
def test_bad_templates_get_one_line(templates: str | list[str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        resolve_templates(templates)


def test_named_template_sets() -> None:
    assert {name: len(templates) for name, templates in TEMPLATES.items()} == {
        "photo": 1,
        "simple": 7,
        "openai": 80,
    }
    assert all(template.count("{}") == 1 for templates in TEMPLATES.values() for template in templates)


@given(st.lists(st.text(alphabet="abc {}_", min_size=1).filter(str.strip), min_size=1, unique=True))
def test_prompts_hold_the_names_as_they_are(names: list[str]) -> None:
    prompts = class_prompts(names, ["a {}.", "the {}!"])
    spoken = [name.replace("_", " ") for name in names]
    assert prompts == [[f"a {name}.", f"the {name}!"] for name in spoken]


def test_descriptions_stand_in_for_templates() -> None:
    described = class_prompts(
        ["cat", "dog"], descriptions={"cat": "whiskers", "dog": ["barks", "wags"], "cow": "moos"}
    )
    assert described == [["whiskers"], ["barks", "wags"]]
    with pytest.raises(InputError, match=r"1 classes have no description, the first is 'dog'"):
        class_prompts(["cat", "dog"], descriptions={"cat": "whiskers"})


def test_a_class_feature_is_the_normalised_mean_of_its_prompts(vit: Backbone) -> None:
    templates = ["a {}.", "the {}."]
    features = class_text_features(vit, NAMES, templates)
    assert features.shape == (3, 24)
    for name, feature in zip(NAMES, features, strict=True):
        one = vit.encode_text([template.format(name.replace("_", " ")) for template in templates])
        torch.testing.assert_close(one.norm(dim=-1), torch.ones(2))
        torch.testing.assert_close(feature, F.normalize(one.mean(dim=0), dim=0))


def test_text_features_do_not_depend_on_the_batch(vit: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    together = class_text_features(vit, NAMES, "simple")
    monkeypatch.setattr("dualtail.models.backbone._TEXT_BATCH", 2)
    torch.testing.assert_close(class_text_features(vit, NAMES, "simple"), together)


def test_a_class_name_that_is_too_long_is_named(vit: Backbone) -> None:
    with pytest.raises(BackboneError, match=r"long long .* has 22 tokens, the text tower reads 16"):
        class_text_features(vit, ["cat", " ".join(["long"] * 15)])


def test_zero_shot_logits_are_open_clips(vit_folder: Path, vit: Backbone, images: Tensor) -> None:
    model = tiny.model_of(tiny.VIT)
    tokens = vit.tokenize([prompts[0] for prompts in class_prompts(NAMES)])
    with torch.no_grad():
        expected, _ = model.get_logits(vit.normalize(images), tokens)
        logits = zero_shot_logits(vit, vit.features(images), class_text_features(vit, NAMES))
    torch.testing.assert_close(logits, expected)


def test_sigmoid_models_keep_their_scale_and_bias(tmp_path: Path, images: Tensor) -> None:
    """SigLIP's logits are those of binary questions; its bias shifts all classes alike."""
    model_cfg = tiny.config(custom_text=True, init_logit_bias=-10.0, init_logit_scale=2.3)
    model = tiny.model_of(model_cfg)
    backbone = load_backbone(f"open_clip:{tiny.write_folder(tmp_path, model_cfg)}")
    tokens = backbone.tokenize([prompts[0] for prompts in class_prompts(NAMES)])
    with torch.no_grad():
        expected, _ = model.get_logits(backbone.normalize(images), tokens)
        features, text = backbone.features(images), class_text_features(backbone, NAMES)
        logits = zero_shot_logits(backbone, features, text)
    torch.testing.assert_close(logits, expected)
    cosines = F.normalize(backbone.project(features), dim=-1) @ text.T
    torch.testing.assert_close(logits.softmax(-1), (backbone.logit_scale * cosines).softmax(-1))
