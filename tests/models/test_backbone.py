from __future__ import annotations

import json
import logging
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path

import huggingface_hub
import open_clip
import pytest
import timm
import tiny
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from dualtail.errors import BackboneError
from dualtail.models import _open_clip, weights
from dualtail.models.backbone import BACKBONES, Backbone, load_backbone
from dualtail.models.parts import image_spec
from dualtail.testing.backbones import BACKBONE_CHECKS, BackboneCase


def refused(name: str, *words: str, **options: object) -> str:
    """Load and return the refusal, which must be one line that holds ``words``."""
    with pytest.raises(BackboneError) as error:
        load_backbone(name, **options)
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    return message


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty cache, and a hub client that must not be asked because the quick check already failed."""

    def unplugged(*args: object, **kwargs: object) -> None:
        raise OSError("[Errno -2] Name or service not known")

    class Session:
        head = staticmethod(unplugged)

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *args, **kwargs: None)
    monkeypatch.setattr(huggingface_hub, "get_session", Session)
    monkeypatch.setattr(
        huggingface_hub, "hf_hub_download", lambda *args, **kwargs: pytest.fail("the hub client was asked")
    )


# --- what a backbone computes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("check", BACKBONE_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("kind", ["open_clip:vit", "open_clip:resnet", "timm:test_vit", "timm:test_convnext"])
def test_what_every_backbone_promises(
    tmp_path: Path, kind: str, check: Callable[[BackboneCase], None]
) -> None:
    configs = {"open_clip:vit": tiny.VIT, "open_clip:resnet": tiny.RESNET}
    check(
        BackboneCase(f"open_clip:{tiny.write_folder(tmp_path, configs[kind])}" if kind in configs else kind)
    )


def test_the_matrix_has_every_library() -> None:
    assert set(BACKBONES) == {"open_clip", "timm"}


def against_open_clip(backbone: Backbone, model: open_clip.CLIP, images: torch.Tensor) -> None:
    pixels = backbone.normalize(images)
    with torch.no_grad():
        embeddings = model.encode_image(pixels)
        torch.testing.assert_close(backbone.project(backbone.features(images)), embeddings)
        tokens = backbone.tokenize(["a photo of a cat."])
        torch.testing.assert_close(backbone.encode_tokens(tokens), model.encode_text(tokens))


@pytest.mark.parametrize(
    "model_cfg",
    [
        tiny.VIT,
        tiny.config(quick_gelu=True),
        tiny.config(vision={"pool_type": "avg", "ls_init_value": 0.1}),
        tiny.config(vision={"final_ln_after_pool": True, "no_ln_pre": True}),
        tiny.config(vision={"attentional_pool": True, "attn_pooler_queries": 1, "attn_pooler_heads": 2}),
        tiny.config(vision={"scale_attn": True, "qk_norm": True}),
        tiny.config(custom_text=True, init_logit_bias=-10.0),
    ],
    ids=["vit", "quickgelu", "avg", "ln_after_pool", "attention_pool", "custom_block", "siglip_like"],
)
def test_open_clip_vit_equals_open_clip(tmp_path: Path, images: torch.Tensor, model_cfg: dict) -> None:
    backbone = load_backbone(f"open_clip:{tiny.write_folder(tmp_path, model_cfg)}")
    assert backbone.family == "open_clip_vit"
    assert backbone.features(images).shape == (4, backbone.feature_dim)
    against_open_clip(backbone, tiny.model_of(model_cfg), images)


def test_open_clip_resnet_equals_open_clip(tmp_path: Path) -> None:
    backbone = load_backbone(f"open_clip:{tiny.write_folder(tmp_path, tiny.RESNET)}")
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    assert (backbone.family, backbone.depth) == ("open_clip_resnet", 0)
    assert backbone.features(images).shape == (2, backbone.feature_dim) == (2, 256)
    against_open_clip(backbone, tiny.model_of(tiny.RESNET), images)


@pytest.mark.parametrize(
    ("timm_cfg", "family", "feature_dim"),
    [
        ({"timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": ""}, "timm_vit", 64),
        ({"timm_model_name": "test_vit", "timm_pool": "avg", "timm_proj": "linear"}, "timm_vit", 64),
        ({"timm_model_name": "test_vit", "timm_pool": "map", "timm_proj": "none"}, "timm_vit", 64),
        ({"timm_model_name": "test_convnext", "timm_pool": "", "timm_proj": "mlp"}, "timm_other", 64),
        ({"timm_model_name": "test_convnext", "timm_pool": "", "timm_proj": "linear"}, "timm_other", 64),
        ({"timm_model_name": "test_convnext", "timm_pool": "avg", "timm_proj": ""}, "timm_other", 64),
    ],
    ids=["token", "avg_linear", "map_none", "cnn_mlp", "cnn_linear", "cnn_classifier"],
)
def test_open_clip_with_timm_trunk_equals_open_clip(
    tmp_path: Path, timm_cfg: dict, family: str, feature_dim: int
) -> None:
    embed_dim = 64 if timm_cfg["timm_proj"] == "none" else 24
    model_cfg = {
        "embed_dim": embed_dim,
        "vision_cfg": timm_cfg | {"image_size": 160},
        "text_cfg": tiny.TEXT,
        "custom_text": True,
    }
    backbone = load_backbone(f"open_clip:{tiny.write_folder(tmp_path, model_cfg)}")
    images = torch.randint(0, 256, (2, 3, 160, 160), dtype=torch.uint8)
    assert (backbone.family, backbone.feature_dim) == (family, feature_dim)
    assert backbone.features(images).shape == (2, feature_dim)
    against_open_clip(backbone, tiny.model_of(model_cfg), images)


@pytest.mark.slow
def test_full_size_features_equal_open_clip() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = open_clip.CLIP(**open_clip.get_model_config("ViT-B-16")).eval()
    backbone = load_backbone("open_clip:ViT-B-16", weights="random", seed=5)
    images = torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8)
    assert (backbone.depth, backbone.feature_dim) == (12, 768)
    with torch.no_grad():
        torch.testing.assert_close(
            backbone.project(backbone.features(images)), model.encode_image(backbone.normalize(images))
        )


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("test_vit", "timm_vit"),
        ("test_vit2", "timm_vit"),
        ("test_convnext", "timm_other"),
        ("test_efficientnet", "timm_other"),
        ("test_resnet", "timm_other"),
    ],
)
def test_timm_features_are_what_the_classifier_reads(name: str, family: str) -> None:
    backbone = load_backbone(f"timm:{name}", weights="random", seed=3)
    assert (backbone.family, backbone.has_text) == (family, False)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = timm.create_model(name, num_classes=0).eval()
    size = backbone.image_spec.size
    images = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    with torch.no_grad():
        features = backbone.features(images)
        torch.testing.assert_close(features, model(backbone.normalize(images)))
    assert features.shape == (2, backbone.feature_dim)


@pytest.mark.parametrize("name", ["open_clip", "timm"])
def test_attention_takes_the_fused_path(name: str, vit: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = vit if name == "open_clip" else load_backbone("timm:test_vit", weights="random")
    calls = []
    fused = F.scaled_dot_product_attention

    def counted(*args: object, **kwargs: object) -> torch.Tensor:
        calls.append(1)
        return fused(*args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    backbone.trains_modules = True
    backbone.train()
    size = backbone.image_spec.size
    backbone.features(torch.zeros(1, 3, size, size).requires_grad_())
    assert len(calls) == backbone.depth


def _note_size(sizes: list[int], tensor: torch.Tensor) -> torch.Tensor:
    sizes.append(tensor.numel())
    return tensor


@pytest.mark.parametrize("name", ["open_clip", "timm:vit_base_patch16_clip_quickgelu_224"])
def test_quick_gelu_keeps_one_tensor_for_the_backward_pass(tmp_path: Path, name: str) -> None:
    if name == "open_clip":
        name = f"open_clip:{tiny.write_folder(tmp_path, tiny.config(quick_gelu=True))}"
    backbone = load_backbone(name, weights="random")
    activations = [m for m in backbone.modules() if "gelu" in type(m).__name__.lower()]
    assert len(activations) == backbone.depth + len(backbone.text_blocks)
    for activation in activations:
        x = torch.randn(7, requires_grad=True)
        kept: list[int] = []
        count = partial(_note_size, kept)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
            y = activation(x)
        torch.testing.assert_close(y, x * torch.sigmoid(1.702 * x))
        assert kept.count(7) == 1


def test_normalize_is_the_backbones_mean_and_std(tmp_path: Path) -> None:
    folder = tiny.write_folder(tmp_path, mean=[0.5, 0.4, 0.3], std=[0.1, 0.2, 0.25], interpolation="bilinear")
    backbone = load_backbone(f"open_clip:{folder}")
    spec = backbone.image_spec
    assert (spec.size, spec.mean, spec.std) == (32, (0.5, 0.4, 0.3), (0.1, 0.2, 0.25))
    assert spec.interpolation == "bilinear"
    white = torch.full((1, 3, 1, 1), 255, dtype=torch.uint8)
    torch.testing.assert_close(backbone.normalize(white).flatten(), torch.tensor([5.0, 3.0, 2.8]))
    ready = torch.rand(1, 3, 2, 2)
    assert backbone.normalize(ready) is ready


def test_squashed_images_follow_the_backbone(tmp_path: Path) -> None:
    assert load_backbone(f"open_clip:{tiny.write_folder(tmp_path, resize_mode='squash')}").image_spec.squash
    assert image_spec("x", 32, {"mean": [0.5] * 3, "std": [0.5] * 3, "crop_mode": "squash"}).squash
    assert not image_spec("x", 32, {"mean": [0.5] * 3, "std": [0.5] * 3, "crop_mode": "center"}).squash
    source = _open_clip._listed_source("open_clip:ViT-B-16-SigLIP/webli", "ViT-B-16-SigLIP/webli")
    assert source.preprocess["resize_mode"] == "squash"


def test_timm_image_spec_is_its_data_config() -> None:
    spec = load_backbone("timm:test_vit", weights="random").image_spec
    expected = timm.models.get_pretrained_cfg("test_vit")
    assert (spec.mean, spec.std, spec.size) == (expected.mean, expected.std, expected.input_size[-1])


def test_everything_is_frozen_float32_and_in_evaluation_mode(vit: Backbone) -> None:
    assert all(not value.requires_grad and value.dtype == torch.float32 for value in vit.parameters())
    vit.train()
    assert not any(module.training for module in vit.modules())


def test_zero_shot_scale_and_bias(tmp_path: Path, vit: Backbone) -> None:
    model_cfg = tiny.config(custom_text=True, init_logit_bias=-10.0, init_logit_scale=2.0)
    model = tiny.model_of(model_cfg)
    backbone = load_backbone(f"open_clip:{tiny.write_folder(tmp_path, model_cfg)}")
    assert backbone.logit_scale == pytest.approx(model.logit_scale.exp().item())
    assert backbone.logit_bias == pytest.approx(-10.0, abs=1.0) != 0.0
    assert vit.logit_bias == 0.0


# --- weights: whole or refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["ViT-B-16/openai", "ViT-B-16/metaclip_400m", "ViT-L-14/dfn2b", "RN50/openai"]
)
def test_quickgelu_weights_in_a_gelu_architecture_are_refused(name: str) -> None:
    arch, tag = name.split("/")
    refused(f"open_clip:{name}", "QuickGELU", f"use open_clip:{arch}-quickgelu/{tag}")


def test_every_mixed_activation_that_open_clip_lists_is_refused() -> None:
    mixed = [
        (arch, tag)
        for arch, tag in open_clip.list_pretrained()
        if open_clip.get_pretrained_cfg(arch, tag).get("quick_gelu")
        and not open_clip.get_model_config(arch).get("quick_gelu")
    ]
    assert len(mixed) > 20
    for arch, tag in mixed:
        fix = refused(f"open_clip:{arch}/{tag}", "trained with").rsplit("use open_clip:", 1)[1]
        assert tuple(fix.split("/")) in set(open_clip.list_pretrained())


def test_gelu_weights_in_a_quickgelu_architecture_are_refused() -> None:
    refused(
        "open_clip:ViT-B-16-quickgelu/laion2b_s34b_b88k",
        "they belong to open_clip:ViT-B-16/laion2b_s34b_b88k",
    )


def test_timm_quickgelu_weights_in_a_gelu_architecture_are_refused() -> None:
    refused("timm:vit_base_patch16_clip_224.openai", "use timm:vit_base_patch16_clip_quickgelu_224.openai")


@pytest.mark.parametrize("name", ["open_clip:ViT-B-16/laion2b_s34b_b88k", "timm:test_vit.r160_in1k"])
@pytest.mark.usefixtures("offline")
def test_unreachable_weights_say_what_to_do_offline(name: str) -> None:
    refused(name, name, "no connection", "weights: FILE", "HF_HUB_OFFLINE")


@pytest.mark.usefixtures("offline")
def test_offline_mode_is_not_asked_for_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    refused("open_clip:ViT-B-16/laion2b_s34b_b88k", "HF_HUB_OFFLINE is set")


def test_cached_weights_need_no_connection(
    offline: None, vit_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = vit_folder / "open_clip_model.safetensors"
    monkeypatch.setattr(
        huggingface_hub,
        "try_to_load_from_cache",
        lambda repository, name: str(cached) if name == cached.name else None,
    )
    assert weights.hub_file("a/b", [cached.name, "x.bin"], where="here") == cached


def test_a_hub_repository_is_a_name(offline: None, vit_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        huggingface_hub,
        "try_to_load_from_cache",
        lambda repository, name: str(vit_folder / name) if repository == "owner/model" else None,
    )
    backbone = load_backbone("open_clip:hf-hub:owner/model")
    assert backbone.weights_fingerprint == load_backbone(f"open_clip:{vit_folder}").weights_fingerprint
    refused("open_clip:hf-hub:owner/other", "no connection", "open_clip_config.json of owner/other")


@pytest.mark.parametrize("name", ["open_clip:ViT-B-16", "open_clip:{empty}"])
def test_a_name_without_weights_is_refused(name: str, tmp_path: Path) -> None:
    folder = tiny.write_folder(tmp_path)
    (folder / "open_clip_model.safetensors").unlink()
    refused(name.format(empty=folder), "no weights", "weights: random")


def test_partial_and_foreign_weights_are_refused_by_name(vit_folder: Path, tmp_path: Path) -> None:
    state = load_file(vit_folder / "open_clip_model.safetensors")
    del state["visual.proj"]
    state["surplus"] = torch.zeros(1)
    state["ln_final.bias"] = torch.zeros(3)
    save_file(state, tmp_path / "partial.safetensors")
    refused(
        f"open_clip:{vit_folder}",
        "1 of",
        "visual.proj",
        "surplus",
        "ln_final.bias (3,) for (16,)",
        "partial.safetensors",
        weights=str(tmp_path / "partial.safetensors"),
    )


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".ddp.pt"])
def test_local_weights_of_every_format_are_the_same(vit_folder: Path, tmp_path: Path, suffix: str) -> None:
    state = load_file(vit_folder / "open_clip_model.safetensors")
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(state, path)
    elif suffix == ".pt":
        torch.save({"state_dict": state, "epoch": 3}, path)
    else:
        torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}}, path)
    name = f"open_clip:{vit_folder}"
    given, own = load_backbone(name, weights=str(path)), load_backbone(name)
    assert given.weights_fingerprint == own.weights_fingerprint


def test_timm_weights_from_a_file(tmp_path: Path) -> None:
    model = timm.create_model("test_vit", num_classes=7)
    save_file(model.state_dict(), tmp_path / "vit.safetensors")
    backbone = load_backbone("timm:test_vit", weights=str(tmp_path / "vit.safetensors"))
    model.reset_classifier(0)
    assert backbone.weights_fingerprint == weights.fingerprint(model)
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("blocks.0")}
    save_file(state, tmp_path / "partial.safetensors")
    refused("timm:test_vit", "blocks.0", "missing", weights=str(tmp_path / "partial.safetensors"))


def test_timm_weights_in_older_naming_are_converted_whole(tmp_path: Path) -> None:
    model = timm.create_model("test_vit")
    state = model.state_dict()
    # timm's earliest checkpoints had a linear patch embedding.
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"].flatten(1)
    save_file(state, tmp_path / "old.safetensors")
    backbone = load_backbone("timm:test_vit", weights=str(tmp_path / "old.safetensors"))
    model.reset_classifier(0)
    assert backbone.weights_fingerprint == weights.fingerprint(model)
    del state["blocks.1.norm1.bias"]
    save_file(state, tmp_path / "partial.safetensors")
    refused("timm:test_vit", "blocks.1.norm1.bias", "missing", weights=str(tmp_path / "partial.safetensors"))


class _Surprise:
    def __reduce__(self) -> tuple:
        return (pytest.fail, ("the pickle was executed",))


@pytest.mark.parametrize("content", [b"", b"not weights", pickle.dumps(_Surprise(), protocol=2)])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_damaged_and_dangerous_files_are_refused(
    vit_folder: Path, tmp_path: Path, suffix: str, content: bytes
) -> None:
    path = tmp_path / f"bad{suffix}"
    path.write_bytes(content)
    refused(f"open_clip:{vit_folder}", str(path), weights=str(path))


def test_a_missing_file_is_named(vit_folder: Path, tmp_path: Path) -> None:
    refused(f"open_clip:{vit_folder}", "no such weights file", weights=str(tmp_path / "none.bin"))


def test_random_weights_are_seeded_and_leave_the_global_generator_alone() -> None:
    torch.manual_seed(11)
    before = torch.get_rng_state()
    first, same, other = (
        load_backbone("timm:test_vit", weights="random", seed=seed).weights_fingerprint for seed in (1, 1, 2)
    )
    assert first == same != other
    assert torch.equal(torch.get_rng_state(), before)


def test_loading_says_nothing_of_its_own(vit_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        load_backbone(f"open_clip:{vit_folder}", weights="random")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert logging.root.manager.disable == logging.NOTSET


# --- names and configurations -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ViT-B-16", ["unknown backbone", "timm:NAME"]),
        ("openclip:ViT-B-16", ["unknown backbone 'openclip:ViT-B-16'", "did you mean 'open_clip'"]),
        (["timm:test_vit"], ["unknown backbone", "timm:NAME"]),
        (None, ["unknown backbone None", "timm:NAME"]),
        ("timm:", ["unknown backbone"]),
        ("open_clip:ViT-B16/openai", ["no architecture", "did you mean 'ViT-B-16'"]),
        ("open_clip:ViT-B-16/laion2b_s34b_b88", ["no weights", "did you mean 'laion2b_s34b_b88k'"]),
        ("open_clip:./nowhere", ["no such folder", "open_clip_config.json"]),
        ("timm:vit_base_patch16_24", ["no architecture", "did you mean"]),
        ("timm:vit_base_patch16_224.augreg_in21", ["no weights", "did you mean"]),
    ],
)
def test_unknown_names_name_the_nearest(name: str, words: list[str]) -> None:
    refused(name, *words)


@pytest.mark.parametrize(
    ("text", "word"),
    [("{", "JSONDecodeError"), ("[]", "TypeError"), ("{}", "model_cfg"), ('{"model_cfg": 3}', "")],
)
def test_a_bad_config_file_is_named(tmp_path: Path, text: str, word: str) -> None:
    (tmp_path / "open_clip_config.json").write_text(text)
    refused(f"open_clip:{tmp_path}", word, weights="random")


def test_an_unknown_setting_of_a_model_config_is_named(tmp_path: Path) -> None:
    (tmp_path / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": tiny.config(vision={"wdith": 3}), "preprocess_cfg": {}})
    )
    refused(f"open_clip:{tmp_path}", "wdith", weights="random")


@pytest.mark.parametrize(
    "change",
    [
        {"vision": {"width": 0}},
        {"vision": {"width": -64}},
        {"vision": {"patch_size": 0}},
        {"vision": {"image_size": 0}},
        {"vision": {"head_width": 0}},
        {"vision": {"layers": "two"}},
        {"text": {"heads": 0}},
        {"text": {"vocab_size": -1}},
        {"embed_dim": "wide"},
    ],
    ids=str,
)
def test_sizes_that_no_architecture_has_are_one_line(tmp_path: Path, change: dict) -> None:
    (tmp_path / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": tiny.config(**change), "preprocess_cfg": {}})
    )
    with pytest.raises(BackboneError) as caught:
        load_backbone(f"open_clip:{tmp_path}", weights="random")
    assert "\n" not in str(caught.value)


def test_images_that_are_not_square_are_refused(tmp_path: Path) -> None:
    folder = tiny.write_folder(tmp_path, tiny.config(vision={"image_size": [32, 16]}))
    refused(f"open_clip:{folder}", "32x16", "square")


def test_a_backbone_without_text_says_so() -> None:
    backbone = load_backbone("timm:test_vit", weights="random")
    for ask in (
        lambda: backbone.encode_text(["cat"]),
        lambda: backbone.logit_scale,
        lambda: backbone.tokenizer,
    ):
        with pytest.raises(BackboneError, match="no text tower"):
            ask()


def test_hub_tokenizers_are_checked_for_length_too(monkeypatch: pytest.MonkeyPatch, vit: Backbone) -> None:
    class Words:
        """A tokenizer as open_clip wraps those of the hub: one token a word, and an end."""

        context_length = 4

        @staticmethod
        def tokenizer(text: str) -> dict[str, list[int]]:
            return {"input_ids": [7] * len(text.split()) + [1]}

        def __call__(self, texts: list[str]) -> torch.Tensor:
            return torch.zeros(len(texts), 4, dtype=torch.long)

    monkeypatch.setattr(vit, "_tokenizer", Words())
    assert vit.tokenize(["polar bear", "a small dog"]).shape == (2, 4)
    with pytest.raises(BackboneError, match="has 5 tokens, the text tower reads 4"):
        vit.tokenize(["cat", "a very small dog"])


def test_a_tokenizer_that_cannot_be_had_offline_says_so(tmp_path: Path) -> None:
    folder = tiny.write_folder(
        tmp_path, tiny.config(text_cfg=tiny.TEXT | {"hf_tokenizer_name": "nobody/none"})
    )
    backbone = load_backbone(f"open_clip:{folder}")
    with pytest.raises(BackboneError, match="tokenizer's files"):
        backbone.encode_text(["cat"])


def test_a_text_that_would_be_cut_off_is_refused(vit: Backbone) -> None:
    with pytest.raises(BackboneError, match=r"has 17 tokens, the text tower reads 16"):
        vit.tokenize(["cat", " ".join(["dog"] * 15)])
    assert vit.tokenize([" ".join(["dog"] * 14)]).shape == (1, 16)
