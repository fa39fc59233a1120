"""Model folders of strangers: what they ask for is refused in one line, and nothing of theirs ever runs."""

from __future__ import annotations

import builtins
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny

from dualtail.errors import BackboneError
from dualtail.models.backbone import load_backbone
from dualtail.models.foreign import TOKENIZER_OPTIONS, check_model_cfg, make_tokenizer

EVIL = """
from pathlib import Path
from transformers import PretrainedConfig, PreTrainedTokenizer
Path({mark!r}).write_text("was here")
class Config(PretrainedConfig):
    model_type = "evil"
class Tokenizer(PreTrainedTokenizer):
    pass
"""
AUTO_MAP = {"AutoTokenizer": ["evil.Tokenizer", None], "AutoConfig": "evil.Config"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny.write_folder(tmp_path / "model")


@pytest.fixture(autouse=True)
def nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*_: Any) -> str:
        raise AssertionError("asked on the terminal")

    monkeypatch.setattr(builtins, "input", asked)


def plant(folder: Path, text_cfg: dict[str, Any], **files: Any) -> Path:
    """Make a folder leave a mark where its Python is imported; returns the mark's place."""
    mark = folder.parent / "mark"
    (folder / "evil.py").write_text(EVIL.format(mark=str(mark)))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"] |= text_cfg
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return mark


TRUSTING = {"hf_tokenizer_name": "x", "tokenizer_kwargs": {"trust_remote_code": True}}
TOKENIZER_CONFIG = {"tokenizer_class": "Tokenizer", "auto_map": AUTO_MAP}


@pytest.mark.parametrize(
    ("text_cfg", "files", "words"),
    [
        (TRUSTING, {"tokenizer_config": TOKENIZER_CONFIG}, "'trust_remote_code' is not allowed"),
        ({"hf_tokenizer_name": "x"}, {"tokenizer_config": TOKENIZER_CONFIG}, "code of its own"),
        (
            {"hf_tokenizer_name": "x"},
            {"config": {"model_type": "evil", "auto_map": AUTO_MAP}},
            "code of its own",
        ),
        ({"hf_tokenizer_name": "x"}, {"config.4.0.0": {"auto_map": AUTO_MAP}}, "code of its own"),
        (TRUSTING, {}, "'trust_remote_code' is not allowed"),
        ({"tokenizer_kwargs": {"cache_dir": "/etc"}}, {}, "'cache_dir' is not allowed"),
        ({"tokenizer_kwargs": {"_from_auto": 1}}, {}, "not allowed"),
        ({"tokenizer_kwargs": {"clean": ["a"]}}, {}, "give a str"),
        ({"tokenizer_kwargs": [1]}, {}, "no mapping"),
        ({"auto_map": AUTO_MAP}, {}, "code of its own"),
    ],
)
def test_a_folder_that_would_leave_a_mark_does_not(
    folder: Path, text_cfg: dict[str, Any], files: dict[str, Any], words: str
) -> None:
    mark = plant(folder, text_cfg, **files)
    with pytest.raises(BackboneError, match=words) as caught:
        load_backbone(f"open_clip:{folder}").encode_text(["a cat"])
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)
    assert not mark.exists()


def test_a_text_tower_of_transformers_runs_nothing_of_its_own_either(folder: Path) -> None:
    mark = plant(folder, {})
    other = folder.parent / "tower"
    other.mkdir()
    shutil.copy(folder / "evil.py", other)
    (other / "config.json").write_text(
        json.dumps({"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config"}})
    )
    plant(folder, {"hf_model_name": str(other)})
    with pytest.raises(BackboneError, match="code of its own"):
        load_backbone(f"open_clip:{folder}", weights="random")
    assert not mark.exists()


def test_a_kernel_of_the_hub_is_code_too(folder: Path) -> None:
    plant(folder, {}, config={"model_type": "roberta", "attn_implementation": "somebody/kernel"})
    with pytest.raises(BackboneError, match="attn_implementation"):
        load_backbone(f"open_clip:{folder}")


@pytest.mark.parametrize(
    "part",
    [
        {"vision_cfg": {"timm_model_name": "hf-hub:somebody/model"}},
        {"vision_cfg": {"timm_model_name": "local-dir:/tmp"}},
        {"vision_cfg": {"timm_model_name": 3}},
        {"vision_cfg": [1]},
        {"vision_cfg": {"layers": 10**9}},
        {"vision_cfg": {"layers": [2, 2, 10**20, 2]}},
        {"text_cfg": {"layers": 1e300}},
        {"text_cfg": {"hf_model_name": "../../somewhere"}},
        {"text_cfg": {"hf_model_name": ["a"]}},
        {"text_cfg": {"hf_tokenizer_name": "https://somewhere/x"}},
        {"text_cfg": {"hf_tokenizer_name": "a\0b"}},
    ],
)
def test_a_config_reaches_no_further_than_listed_names_and_sizes_that_can_be_built(
    part: dict[str, Any],
) -> None:
    with pytest.raises(BackboneError, match=r"^here: "):
        check_model_cfg(part, "here")


def test_what_open_clip_lists_passes() -> None:
    import open_clip

    for name in open_clip.list_models():
        check_model_cfg(open_clip.get_model_config(name), name)
    assert "trust_remote_code" not in TOKENIZER_OPTIONS


def test_trunks_of_timm_start_without_weights_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import timm

    asked = []
    create = timm.create_model
    monkeypatch.setattr(
        timm, "create_model", lambda *a, **k: asked.append(k.get("pretrained")) or create(*a, **k)
    )
    vision = {"timm_model_name": "test_vit", "timm_model_pretrained": True, "image_size": 160}
    cfg = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": tiny.TEXT}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": cfg}))
    load_backbone(f"open_clip:{tmp_path}", weights="random")
    assert asked == [False]


def test_tokenizers_are_those_that_open_clip_makes(folder: Path) -> None:
    import open_clip

    own = make_tokenizer({"text_cfg": {"context_length": 16, "tokenizer_kwargs": {"clean": "canonicalize"}}})
    plant(folder, {"context_length": 16, "tokenizer_kwargs": {"clean": "canonicalize"}})
    theirs = open_clip.get_tokenizer(f"local-dir:{folder}")
    assert own(["A cat's, tail"]).equal(theirs(["A cat's, tail"]))


def test_a_repository_of_the_hub_is_pinned(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked = []

    def cached(repository: str, name: str, revision: str | None = None) -> str | None:
        asked.append((repository, revision))
        return str(folder / name) if (folder / name).is_file() else None

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", cached)
    load_backbone("open_clip:hf-hub:owner/name@0123abc")
    assert set(asked) == {("owner/name", "0123abc")}
