"""Features, logits and SGD steps against what the authors' released code computed on the same weights and inputs.

The reference's weights are random; its tensors are described in the JSON file beside each safetensors file.
Tolerance: 1e-4, absolute or relative to the tensor's largest entry, because other kernels and thread counts round
differently.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from dualtail.models.backbone import Backbone, load_backbone
from dualtail.models.classifier import Classifier
from dualtail.models.head_init import text_weight
from dualtail.models.heads import build_head
from dualtail.models.text import zero_shot_logits
from dualtail.models.tuners import attach_tuner

DATA = Path(__file__).parent / "data"
CLASSES = [f"class {index}" for index in range(20)]
SGD = {"lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4}


def bottleneck_names(name: str) -> str:
    for theirs, ours in (("adaptformer_list.", "blocks."), ("adapter_list.", "blocks."), (".ln.", ".norm.")):
        name = name.replace(theirs, ours)
    return name.replace("down_proj", "down").replace("up_proj", "up")


def ssf_names(name: str) -> str:
    _, block, place, value = name.split(".")
    ours = {
        "attn_in": "attention_qkv",
        "attn_out": "attention_proj",
        "ln_1": "attention_norm",
        "ln_2": "mlp_norm",
        "mlp_in": "mlp_c_fc",
        "mlp_out": "mlp_c_proj",
    }
    return f"blocks.{block}.{ours[place]}.{value}"


def bias_names(name: str) -> str:
    block, place = divmod(int(name.split(".")[1]), 6)
    ours = ("attn.qkv.bias", "attn.proj.bias", "ln_1.bias", "mlp.c_fc.bias", "mlp.c_proj.bias", "ln_2.bias")
    return f"blocks.{block}.{ours[place]}"


def lora_names(name: str) -> str:
    _, block, place, factor = name.split(".")
    return f"blocks.{block}.attn.qkv.{place}_proj.{factor}.weight"


# Reference file -> (our tuner, its options, reference's tuner names -> ours).
TUNERS = {
    "adaptformer": ("adaptformer", {}, bottleneck_names),
    "adapter": ("adapter", {}, bottleneck_names),
    "bias": ("bitfit", {}, bias_names),
    "lora": ("lora", {}, lora_names),
    "none": ("none", {}, str),
    "ssf": ("ssf", {}, ssf_names),
    "vpt_deep": (
        "vpt_deep",
        {},
        lambda name: name.replace("vpt_list.", "blocks.").replace("prompt", "tokens"),
    ),
    "vpt_shallow": ("vpt_shallow", {}, lambda name: name.replace("vpt_list.0.prompt", "prompt.tokens")),
}


def close(actual: Tensor, expected: Tensor) -> None:
    scale = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(actual.detach(), expected, rtol=0, atol=1e-4 * scale)


def reference(tuner: str) -> dict[str, Tensor]:
    return load_file(DATA / "base.safetensors") | load_file(DATA / f"{tuner}.safetensors")


def config() -> dict:
    return json.loads((DATA / "adaptformer.json").read_text())["config"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """The reference's weights as local backbones, with QuickGELU (True) and with exact GELU (False)."""
    state = load_file(DATA / "base.safetensors")
    weights = {name.removeprefix("clip."): value.float() for name, value in state.items() if "clip." in name}
    made = {}
    for quick_gelu in (True, False):
        folder = made[quick_gelu] = tmp_path_factory.mktemp("clip")
        model_cfg = config() | {"quick_gelu": quick_gelu}
        (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model_cfg}))
        save_file(weights, folder / "open_clip_model.safetensors")
    return made


def load(folders: dict[bool, Path], *, quick_gelu: bool = True) -> Backbone:
    return load_backbone(f"open_clip:{folders[quick_gelu]}")


def like(ours: Tensor, theirs: Tensor) -> Tensor:
    """Return the reference's tensor laid out as ours: its LoRA factors multiply from the right."""
    return theirs if theirs.shape == ours.shape else theirs.T


def classifier(backbone: Backbone, name: str, ref: dict[str, Tensor]) -> tuple[Classifier, dict[str, str]]:
    """Our classifier with the reference's tuner and head in it, and its parameters' reference names."""
    ours, options, rename = TUNERS[name]
    tuner = attach_tuner(backbone, ours, num_classes=20, **options)
    made = Classifier(backbone, tuner, build_head("cosine", backbone.feature_dim, 20), CLASSES)
    names = {"tuner." + rename(key.removeprefix("tuner.")): key for key in ref if key.startswith("tuner.")}
    names["head.weight"] = "head.weight"
    parameters = made.trainable_parameters()
    assert names.keys() == parameters.keys()
    with torch.no_grad():
        for key, parameter in parameters.items():
            parameter.copy_(like(parameter, ref[names[key]]))
    return made, names


@pytest.mark.parametrize("name", TUNERS)
def test_features_and_logits(folders: dict[bool, Path], name: str) -> None:
    ref = reference(name)
    backbone = load(folders)
    untuned = backbone.features(ref["in.image"])
    close(untuned, ref["out.features_no_tuner"])
    close(backbone.project(untuned), ref["out.image_embed"])
    member, _ = classifier(backbone, name, ref)
    close(member.features(ref["in.image"]), ref["out.features"])
    close(member(ref["in.image"]), ref["out.logits"])
    member.tuner.detach()
    close(backbone.features(ref["in.image"]), ref["out.features_no_tuner"])


@pytest.mark.parametrize("name", TUNERS)
def test_exact_gelu(folders: dict[bool, Path], name: str) -> None:
    ref = reference(name)
    backbone = load(folders, quick_gelu=False)
    close(backbone.project(backbone.features(ref["in.image"])), ref["out.image_embed_exact_gelu"])
    member, _ = classifier(backbone, name, ref)
    close(member.features(ref["in.image"]), ref["out.features_exact_gelu"])


@pytest.mark.parametrize("name", TUNERS)
def test_text_zero_shot_and_head_initialisation(folders: dict[bool, Path], name: str) -> None:
    ref = reference(name)
    backbone = load(folders)
    text_features = F.normalize(backbone.encode_tokens(ref["in.tokens"]), dim=-1)
    close(text_features, ref["out.text_features"])
    close(text_weight(backbone, text_features), ref["out.head_init"])
    features = backbone.features(ref["in.image"])
    close(zero_shot_logits(backbone, features, text_features), ref["out.zeroshot_logits"])


@pytest.mark.parametrize("name", TUNERS)
def test_gradients_and_sgd_steps(folders: dict[bool, Path], name: str) -> None:
    ref = reference(name)
    member, names = classifier(load(folders), name, ref)
    parameters = member.trainable_parameters()
    log_prior = torch.log(ref["in.cls_num_list"] / ref["in.cls_num_list"].sum())
    optimizer = torch.optim.SGD(parameters.values(), **SGD)
    for step in (1, 2, 3):
        optimizer.zero_grad()
        loss = F.cross_entropy(member(ref["in.image"]) + log_prior, ref["in.label"])
        loss.backward()
        if step == 1:
            close(loss, ref["loss.LA"])
            for key, parameter in parameters.items():
                close(parameter.grad, like(parameter, ref["grad." + names[key]]))
        optimizer.step()
        if step in (1, 3):
            for key, parameter in parameters.items():
                close(parameter, like(parameter, ref[f"sgd{step}.{names[key]}"]))
