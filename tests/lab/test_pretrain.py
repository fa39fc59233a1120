from __future__ import annotations

import json

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file

from dualtail.errors import DataError
from dualtail.lab.captions import Vocabulary
from dualtail.lab.embedded import FIRST, MODELS, SAME_PRIOR, embedded_world
from dualtail.lab.pretrain import MEAN, STD, WEIGHTS_FILE, is_made, pretrain, pretrain_world, truth
from dualtail.lab.world import Foundation, Pretraining, World
from dualtail.models.backbone import load_backbone

SMALL = World(
    classes=10,
    pretraining=Pretraining(images=400, steps=6, batch=32),
    foundations={"a": Foundation(lost=["shape"]), "b": Foundation(prior=1, objective="sigmoid")},
)


def test_pretraining_is_a_function_of_the_file(tmp_path) -> None:
    torch.manual_seed(1)
    first = pretrain_world(SMALL, tmp_path / "first")
    torch.manual_seed(2)  # the caller's generator is neither used nor moved
    expected = torch.rand(1)
    torch.manual_seed(2)
    again = pretrain_world(SMALL, tmp_path / "again")
    assert torch.equal(torch.rand(1), expected)
    for one, other in zip(first, again, strict=True):
        for path in sorted(one.iterdir()):
            assert path.read_bytes() == (other / path.name).read_bytes(), path.name
    changed = SMALL.model_copy(update={"foundations": {"a": Foundation(lost=["shape"], seed=1)}})
    (third,) = pretrain_world(changed, tmp_path / "third")
    assert (third / WEIGHTS_FILE).read_bytes() != (first[0] / WEIGHTS_FILE).read_bytes()


def test_a_made_model_is_kept_and_another_one_made_anew(tmp_path) -> None:
    (folder,) = pretrain_world(SMALL, tmp_path, only=["a"])
    stamp = (folder / WEIGHTS_FILE).stat().st_mtime_ns
    pretrain_world(SMALL, tmp_path, only=["a"])
    assert (folder / WEIGHTS_FILE).stat().st_mtime_ns == stamp
    changed = SMALL.model_copy(update={"foundations": {"a": Foundation(seed=1)}})
    pretrain_world(changed, tmp_path)
    assert is_made(changed, changed.foundations["a"], folder)
    assert not is_made(SMALL, SMALL.foundations["a"], folder)


@pytest.mark.parametrize("name", ["a", "b"])
def test_the_folder_loads_as_any_open_clip_model(tmp_path, name: str) -> None:
    (folder,) = pretrain_world(SMALL, tmp_path, only=[name])
    backbone = load_backbone(f"open_clip:{folder}")
    model = pretrain(SMALL, SMALL.foundations[name])
    images = np.random.default_rng(0).integers(0, 256, (4, 3, 32, 32), dtype=np.uint8)
    pixels = (torch.from_numpy(images).float() / 255 - MEAN[0]) / STD[0]
    with torch.no_grad():
        expected = model.half().float().encode_image(pixels)
        ours = backbone.project(backbone.features(torch.from_numpy(images)))
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    # open_clip itself reads model and tokenizer from the folder too.
    theirs = open_clip.create_model(f"local-dir:{folder}").eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs.encode_image(pixels), expected, atol=1e-5, rtol=1e-5)
    texts = [f"a photo of a {n}." for n in SMALL.class_names] + ["something unheard of, teal-framed"]
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(texts)
    assert torch.equal(tokens[:-1], Vocabulary(SMALL).tokenize(texts[:-1]))
    assert torch.equal(backbone.tokenize(texts), tokens)
    assert (backbone.logit_bias != 0) == (name == "b")


def test_nothing_is_overwritten(tmp_path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match="no model of the lab"):
        pretrain_world(SMALL, tmp_path, only=["a"])
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_unknown_foundation(tmp_path) -> None:
    world = SMALL.model_copy(update={"foundations": {"alder": Foundation()}})
    with pytest.raises(DataError, match="did you mean 'alder'"):
        pretrain_world(world, tmp_path, only=["aldre"])


# --- the embedded models


@pytest.fixture(scope="module")
def embedded() -> World:
    return embedded_world()


def test_embedded_models_come_from_the_embedded_world(embedded: World) -> None:
    for name, foundation in embedded.foundations.items():
        assert is_made(embedded, foundation, MODELS / name), f"make {name} again: see embedded.yaml"
        recorded = json.loads((MODELS / name / "lab.json").read_text())
        assert recorded == json.loads(json.dumps(truth(embedded, foundation)))


def test_embedded_models_are_small_and_in_half_precision(embedded: World) -> None:
    files = [path for path in MODELS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 2_000_000
    assert {path.parent.name for path in files} == set(embedded.foundations)
    for name in embedded.foundations:
        assert {t.dtype for t in load_file(MODELS / name / WEIGHTS_FILE).values()} == {torch.float16}


def test_the_controls_have_the_first_models_prior(embedded: World) -> None:
    first = embedded.foundations[FIRST]
    for name in SAME_PRIOR:
        other = embedded.foundations[name]
        assert (other.prior, other.ratio, other.lost) == (first.prior, first.ratio, first.lost)
        assert other.seed != first.seed
