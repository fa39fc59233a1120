"""Every tuner against the same demands: one row a tuner, one test a demand."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn

from dualtail.errors import BackboneError, InputError
from dualtail.models.backbone import Backbone, load_backbone
from dualtail.models.classifier import Classifier, build_classifier, load_classifier
from dualtail.models.tuners import FAMILIES, TUNERS, attach_tuner, support_table
from dualtail.testing.tuners import CLASSES, TUNER_CHECKS, TunerCase, chosen_blocks, loss_of

BLOCKS, WIDTH, PATCH = 3, 32, 8  # tiny.VIT
BOTTLENECK = 4  # 2 ** floor(log2(24 / (2 * 3)))
NAMES = Path(__file__).parent / "data" / "trainable_names.json"


@dataclass(frozen=True)
class Row:
    """What is expected of a tuner on ``blocks`` blocks of the tiny vision transformer (D = 32, MLP 128)."""

    name: str
    count: Callable[[int], int]
    options: dict[str, Any] = field(default_factory=dict)
    # Whether layers are split or weights rebuilt, so that the start equals the backbone only up to rounding.
    reorders: bool = False
    whole_graph: bool = True


def linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


D, R, H = WIDTH, BOTTLENECK, 4 * WIDTH
BLOCK = linear(D, 3 * D) + linear(D, D) + linear(D, H) + linear(H, D) + 4 * D
MATRICES = (3 * D * D, D * D, D * H, D * H)
FULL = BLOCKS * BLOCK + D * 3 * PATCH**2 + D + 17 * D + 4 * D  # patches, class token, positions, two norms

ROWS = [
    Row("adaptformer", lambda n: n * (2 * D + linear(D, R) + linear(R, D) + 1)),
    Row("adapter", lambda n: n * (2 * D + linear(D, R) + linear(R, D))),
    Row("lora", lambda n: n * 2 * 2 * D * R, reorders=True),
    # peft asks for the module of its weights' class at every forward, which torch 2.14 does not trace.
    Row("dora", lambda n: n * 2 * (2 * D * R + D), reorders=True, whole_graph=False),
    Row("loha", lambda n: n * 2 * 4 * D * R, reorders=True),
    Row("lokr", lambda n: n * 2 * (4 * 4 + 8 * 8), reorders=True),
    Row("oft", lambda n: n * 2 * (D // 8) * (8 * 7 // 2), {"block_size": 8}, reorders=True),
    Row("ia3", lambda n: n * (2 * D + H), reorders=True),
    Row("vpt_shallow", lambda n: 10 * D),
    Row("vpt_deep", lambda n: n * 10 * D),
    Row("ssf", lambda n: n * 2 * (3 * D + D + H + D + 2 * D)),
    Row("bitfit", lambda n: n * (3 * D + D + H + D + 2 * D)),
    Row("layer_norm", lambda n: n * 4 * D),
    Row("masked", lambda n: n * sum(round(0.05 * size) for size in MATRICES), {"ratio": 0.05}),
    Row("partial", lambda n: BLOCK),
    Row("full", lambda n: FULL),
    Row("none", lambda n: 0),
]
IN_BLOCKS = [row for row in ROWS if row.name not in ("full", "none")]


def rows(chosen: list[Row]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("row", chosen, ids=[row.name for row in chosen])


def member(backbone: Backbone, row: Row, **more: Any) -> Classifier:
    return build_classifier(backbone, CLASSES, tuner=row.name, tuner_options=row.options | more)


def test_the_matrix_has_every_tuner() -> None:
    assert {row.name for row in ROWS} == set(TUNERS)


@pytest.mark.parametrize("check", TUNER_CHECKS, ids=lambda check: check.__name__)
@rows(ROWS)
def test_what_every_tuner_promises(vit_folder: Path, row: Row, check: Callable[[TunerCase], None]) -> None:
    name = f"open_clip:{vit_folder}"
    case = TunerCase(TUNERS[row.name], name, None, row.options, not row.reorders, row.whole_graph)
    if row in IN_BLOCKS or check is not chosen_blocks:
        check(case)


@rows(ROWS)
def test_parameter_count(vit: Backbone, row: Row) -> None:
    assert member(vit, row).tuner.num_parameters == row.count(BLOCKS)


@rows(IN_BLOCKS)
def test_parameter_count_of_chosen_blocks(vit: Backbone, row: Row) -> None:
    assert member(vit, row, blocks=[-1]).tuner.num_parameters == row.count(1)


def test_the_stream_is_narrow_under_autocast(vit: Backbone, images: Tensor) -> None:
    """What the matrix compares the tuned stream with."""
    dtypes = []
    for block in vit.blocks:
        block.module.register_forward_hook(lambda module, args, output: dtypes.append(output.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        vit.features(images)
    assert set(dtypes) == {torch.bfloat16}


def test_a_member_is_two_files(vit: Backbone, tmp_path: Path) -> None:
    member(vit, ROWS[0]).save(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"config.json", "trainable.safetensors"}


def test_trainable_names_and_shapes_stay_what_they_were(vit_folder: Path) -> None:
    """Saved members of earlier versions must load: this file changes only with the format version."""
    names = {}
    for row in ROWS:
        state = member(load_backbone(f"open_clip:{vit_folder}"), row).trainable_state()
        names[row.name] = {key: list(value.shape) for key, value in state.items()}
    assert names == json.loads(NAMES.read_text())


# --- towers -----------------------------------------------------------------------------------------------------


def hub_text_folder(folder: Path) -> Path:
    """A tiny RoBERTa whose configuration is a local folder, as text tower."""
    text = folder / "roberta"
    text.mkdir()
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    text.joinpath("config.json").write_text(
        json.dumps({"model_type": "roberta", "vocab_size": 50, "architectures": ["RobertaModel"], **sizes})
    )
    text_cfg = {"hf_model_name": str(text), "hf_tokenizer_name": str(text), "hf_model_pretrained": False}
    model_cfg = tiny.config(tiny.VIT, text_cfg=text_cfg)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model_cfg}))
    return folder


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Backbone, str]]:
    """One small backbone a family, and the tower that is of it."""

    def folder(name: str, model_cfg: dict[str, Any]) -> Backbone:
        return load_backbone(f"open_clip:{tiny.write_folder(tmp_path_factory.mktemp(name), model_cfg)}")

    vit = folder("vit", tiny.VIT)
    hub = load_backbone(f"open_clip:{hub_text_folder(tmp_path_factory.mktemp('hub'))}", weights="random")
    found = {
        "open_clip_vit": (vit, "vision"),
        "open_clip_resnet": (folder("resnet", tiny.RESNET), "vision"),
        "timm_vit": (load_backbone("timm:test_vit", weights="random"), "vision"),
        "timm_relative_vit": (load_backbone("timm:eva02_tiny_patch14_224", weights="random"), "vision"),
        "timm_other": (load_backbone("timm:test_convnext", weights="random"), "vision"),
        "open_clip_text": (vit, "text"),
        "hub_text": (hub, "text"),
    }
    assert set(found) == set(FAMILIES)
    for family, (backbone, tower) in found.items():
        assert family == (backbone.family if tower == "vision" else backbone.text_family)
    return found


def output_of(backbone: Backbone, tower: str) -> Tensor:
    if tower == "text":
        tokens = torch.tensor([[5, 6, 7, 2] + [1] * 12])
        return backbone.encode_tokens(tokens)
    size = backbone.image_spec.size
    return backbone.features(torch.full((1, 3, size, size), 200, dtype=torch.uint8))


@pytest.mark.parametrize("family", FAMILIES)
@rows(ROWS)
def test_the_table_tells_which_tuner_fits_where(
    towers: dict[str, tuple[Backbone, str]], family: str, row: Row
) -> None:
    backbone, tower = towers[family]
    if family not in TUNERS[row.name].families:
        with pytest.raises(BackboneError, match=rf"{row.name}.* does not fit .*{family}.*choose-a-tuner"):
            attach_tuner(backbone, row.name, num_classes=24, tower=tower)
        return
    before = output_of(backbone, tower)
    tuner = attach_tuner(backbone, row.name, num_classes=24, tower=tower, **row.options)
    try:
        with torch.no_grad():
            for parameter in tuner.trainable().values():
                parameter += 0.1 * torch.randn_like(parameter)
        changed = not torch.allclose(output_of(backbone, tower), before)
        assert changed is (row.name != "none")
    finally:
        tuner.detach()
    torch.testing.assert_close(output_of(backbone, tower), before)


def test_an_mlp_of_three_layers_is_refused_by_name(vit: Backbone) -> None:
    block = replace(vit.blocks[0], mlp=nn.ModuleDict({"w1": nn.Linear(2, 2), "w2": nn.Linear(2, 2)}))
    with pytest.raises(BackboneError, match=r"ModuleDict.* no plain pair of layers"):
        block.mlp_layer_names("here")


def test_the_documented_tables_are_the_real_ones() -> None:
    page = (Path(__file__).parents[2] / "docs" / "choose-a-tuner.md").read_text(encoding="utf-8")
    lines = [
        [cell.strip(" `") for cell in line.strip("|").split("|")]
        for line in page.splitlines()
        if line[:1] == "|"
    ]
    assert [line for line in lines if len(line) == len(FAMILIES) + 1 and line[1] != "---"] == support_table()
    assert [line for line in lines if line[0] in FAMILIES] == [list(item) for item in FAMILIES.items()]
    about = {line[0]: line for line in lines if len(line) == 5 and line[0] in TUNERS}
    assert list(about) == list(TUNERS)
    for name, (_, _, neutral, _, options) in about.items():
        assert (neutral == "yes") is TUNERS[name].neutral
        taken = inspect.signature(TUNERS[name]).parameters
        assert [option.strip(" `") for option in options.split(",") if option] == [*taken][1:]


# --- single promises --------------------------------------------------------------------------------------------


def test_adaptformer_counts_what_the_paper_says() -> None:
    backbone = load_backbone("timm:vit_base_patch16_224", weights="random")
    for classes, parameters in ((1000, 617_868), (365, 0.18e6), (8142, 4.75e6), (100, 0.10e6)):
        tuner = attach_tuner(backbone, "adaptformer", num_classes=classes)
        assert tuner.num_parameters == pytest.approx(parameters, rel=0.0 if classes == 1000 else 0.05)
        tuner.detach()


def test_batch_statistics_follow_full_tuning_alone(tmp_path: Path) -> None:
    folder = tiny.write_folder(tmp_path / "model", tiny.RESNET)
    images = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    classifier = build_classifier(f"open_clip:{folder}", CLASSES, tuner="none", head="linear").train()
    before = classifier.features(images)
    assert torch.equal(classifier.features(images), before)
    backbone = classifier.backbone
    classifier.tuner.detach()

    tuned = build_classifier(backbone, CLASSES, tuner="full", head="linear").train()
    tuned(images)
    tuned.eval()
    after = tuned.features(images)
    assert not torch.allclose(after, before)
    tuned.save(tmp_path / "saved")
    torch.testing.assert_close(load_classifier(tmp_path / "saved").features(images), after)
    tuned.tuner.detach()
    assert torch.equal(backbone.train().features(images), before)


def test_frozen_entries_of_a_masked_matrix_do_not_move(vit: Backbone, images: Tensor) -> None:
    classifier = build_classifier(vit, CLASSES, tuner="masked", tuner_options={"ratio": 0.02})
    layer = vit.blocks[0].mlp.c_fc
    optimizer = torch.optim.SGD(classifier.trainable_parameters().values(), lr=0.1, weight_decay=0.1)
    frozen = layer.linear.weight.clone()
    loss_of(classifier, images).backward()
    optimizer.step()
    assert torch.equal(layer.linear.weight, frozen)
    assert not torch.equal(layer.values, frozen.flatten()[layer.index])


def test_moving_a_tuned_backbone_moves_what_detaching_puts_back(vit: Backbone) -> None:
    for name in ("lora", "masked", "ssf", "bitfit"):
        tuner = attach_tuner(vit, name, num_classes=24)
        vit.double()
        tuner.detach()
        vit.float()
    assert {parameter.dtype for parameter in vit.parameters()} == {torch.float32}
    assert type(vit.blocks[0].attention.qkv) is nn.Linear


def test_seeds_differ_and_repeat(vit: Backbone) -> None:
    weights = []
    for seed in (1, 1, 2):
        tuner = attach_tuner(vit, "adaptformer", num_classes=24, seed=seed)
        weights.append(tuner.blocks["0"].down.weight.clone())
        tuner.detach()
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("adaptfomer", {}, "did you mean 'adaptformer'"),
        ("adaptformer", {"widht": 3}, "did you mean 'width'"),
        ("adaptformer", {"width": 0}, "width is 0"),
        ("adaptformer", {"blocks": [3]}, "no block 3; choose from 0 to 2"),
        ("adaptformer", {"blocks": []}, "no blocks were chosen"),
        ("adaptformer", {"tower": "audio"}, "unknown tower"),
        (["adaptformer"], {}, r"unknown tuner \['adaptformer'\]"),
        (None, {}, "unknown tuner None"),
        ("adaptformer", {"blocks": "all"}, "blocks is 'all'; it should be a list"),
        ("adaptformer", {"blocks": [0.5]}, "blocks.0 is 0.5; it should be an integer"),
        ("adaptformer", {"seed": "x"}, "seed is 'x'; it should be an integer"),
        (
            "lora",
            {"targets": ["query"]},
            "targets.0 is 'query'; it should be 'q', 'k', 'v', 'out', 'fc1' or 'fc2'",
        ),
        ("lora", {"targets": [["q"]]}, r"targets.0 is \['q'\]"),
        ("lora", {"targets": []}, "it should be a list of at least 1"),
        ("lora", {"rank": -1}, "rank is -1; it should be greater than 0"),
        ("oft", {"block_size": 5}, "does not divide"),
        ("vpt_deep", {"tokens": 0}, "tokens is 0; it should be greater than 0"),
        ("vpt_deep", {"blocks": [0, 2]}, "have gaps"),
        ("masked", {"ratio": 1.5}, "ratio is 1.5"),
        ("partial", {"last": 4}, "last is 4"),
    ],
)
def test_bad_options_get_one_line(vit: Backbone, name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as error:
        attach_tuner(vit, name, num_classes=24, **options)
    assert "\n" not in str(error.value)


def test_a_refused_tuner_leaves_nothing_behind(vit: Backbone, images: Tensor) -> None:
    before = vit.features(images)
    with pytest.raises(InputError):
        attach_tuner(vit, "vpt_deep", num_classes=24, blocks=[0, 2])
    assert torch.equal(vit.features(images), before)
    attach_tuner(vit, "adaptformer", num_classes=24)
    with pytest.raises(BackboneError, match="'adaptformer' is attached already"):
        attach_tuner(vit, "lora", num_classes=24)
