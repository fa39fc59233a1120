"""Every option of every registered thing, given values that it cannot mean: it works, or it is refused in one line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dualtail.data.readers import READERS, read_manifest
from dualtail.data.transforms import AUGMENTATIONS, build_augmentation
from dualtail.errors import DualtailError
from dualtail.imagespec import ImageSpec
from dualtail.logits.losses import LOSSES, build_loss
from dualtail.models.backbone import Backbone, load_backbone
from dualtail.models.head_init import HEAD_INITS, head_weight
from dualtail.models.heads import HEADS, build_head
from dualtail.models.tuners import TUNERS, attach_tuner
from dualtail.registry import REQUIRED, Registry
from dualtail.runs.choices import find_choice_faults
from dualtail.runs.members import plan_members
from dualtail.runs.recipe import Recipe
from dualtail.runs.recipe_file import parse_recipe, read_recipe
from dualtail.schema import Section, _section_of

pytestmark = [
    pytest.mark.filterwarnings("ignore:lbfgs failed"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

deep: list[Any] = []
for _ in range(2000):
    deep = [deep]

NASTY = [
    None,
    True,
    False,
    0,
    1,
    3,
    -1,
    10**9,
    2**64,
    -(2**63) - 1,
    10**400,
    int("9" * 4000) * int("9" * 4000),
    0.0,
    0.5,
    -0.5,
    2.5,
    1e9,
    1e308,
    5e-324,
    float("nan"),
    float("inf"),
    "",
    "x",
    "four",
    "1",
    "a\0b",
    "\ud800",
    "\udcff",
    "a\nb\x1b[2J",
    "~nobody-of-that-name/x",
    "/nowhere",
    "../nowhere",
    "*",
    "{0..5}",
    "é" * 3000,
    b"x",
    [],
    [1],
    [1, 2],
    [0.1, 0.5],
    [0.5, 0.1, 0.2],
    ["a", "b"],
    ["a", 1],
    [None],
    [[1], [2]],
    [float("nan"), 1],
    (0.2, 0.9),
    {},
    {"a": 1},
    {"a": "b"},
    {1: 2},
    {0.5, 0.6},
    deep,
    object(),
    Decimal("0.5"),
    1j,
    np.float32(0.5),
    np.int64(2),
    np.array([0.5, 0.6]),
    torch.tensor(0.5),
    torch.ones(2, 2),
    len,
]


@pytest.fixture(scope="module")
def vit() -> Backbone:
    return load_backbone("timm:test_vit", weights="random")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tree")
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(root / split / name / "a.png")
    rows = [f"{split}/{name}/a.png" for split in ("train", "test") for name in ("cat", "dog")]
    table = ["path,label,split", *(f"{row},{row.split('/')[1]},{row.split('/')[0]}" for row in rows)]
    (root / "table.csv").write_text("\n".join(table))
    (root / "list.txt").write_text("\n".join(f"{row} {row.split('/')[1]}" for row in rows))
    return root


REQUIRED_OPTIONS = {"table": {"file": "table.csv"}, "webdataset": {"train": "train.tar"}}
REQUIRED_OPTIONS["lists"] = {"train": "list.txt", "class_names": ["cat", "dog"]}


def _options(registry: Registry[Any], *more: str) -> list[tuple[str, str]]:
    return [(name, option) for name in registry for option in (*registry.options(name), *more)]


def _refused_or_fine(
    build: Callable[..., Any], option: str, others: dict[str, Any] | None = None, step: int = 1
) -> None:
    """Give an option every value; what escapes must be a user's mistake, told in one line."""
    escaped = []
    for value in NASTY[::step]:
        try:
            build(**{**(others or {}), option: value})
        except DualtailError as error:
            line = str(error)
            if not line.isprintable():
                escaped.append(
                    f"{repr(value)[:60] if value is not deep else 'deep'}: no one line {line[:300]!r}"
                )
        except Exception as error:
            shown = "deep" if value is deep else type(value).__name__
            shown = shown if isinstance(value, (int, list)) else repr(value)[:60]
            escaped.append(f"{shown}: {type(error).__name__}: {str(error)[:200]}")
    assert not escaped, "\n".join(escaped)


@pytest.mark.parametrize(("name", "option"), _options(LOSSES))
def test_losses(name: str, option: str):
    def build(**options: Any) -> None:
        prior = torch.tensor([0.2, 0.8]).log()
        loss = build_loss(name, counts=[3, 2], pretrain_prior=prior, **options)
        loss(torch.zeros(2, 2), torch.tensor([0, 1]))

    _refused_or_fine(build, option)


@pytest.mark.parametrize(("name", "option"), _options(HEADS, "seed"))
def test_heads(name: str, option: str):
    def build(**options: Any) -> None:
        try:
            head = build_head(name, 4, 3, **options)
        except DualtailError as error:
            if "reads the text tower" not in str(error):
                raise
            return
        head(torch.ones(2, 4))

    _refused_or_fine(build, option)


@pytest.mark.parametrize(("name", "option"), _options(TUNERS, "blocks", "seed"))
def test_tuners(name: str, option: str, vit: Backbone):
    def build(**options: Any) -> None:
        tuner = attach_tuner(vit, name, num_classes=10, **options)
        try:
            vit.features(torch.zeros(1, 3, 160, 160, dtype=torch.uint8))
        finally:
            tuner.detach()

    if vit.family in TUNERS[name].families:
        _refused_or_fine(build, option)
        assert not vit.tuned


@pytest.mark.parametrize(("name", "option"), _options(AUGMENTATIONS))
def test_augmentations(name: str, option: str):
    def build(**options: Any) -> None:
        build_augmentation(ImageSpec(size=8), name, **options)(Image.new("RGB", (20, 12)), 0.5)

    _refused_or_fine(build, option)


@pytest.mark.parametrize(("name", "option"), _options(HEAD_INITS, "seed"))
def test_head_inits(name: str, option: str, vit: Backbone):
    def build(**options: Any) -> None:
        labels = torch.arange(6) % 3
        features = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
        try:
            head_weight(name, vit, 3, features=features, labels=labels, **options)
        except DualtailError as error:
            if "text tower" not in str(error):
                raise

    _refused_or_fine(build, option)


@pytest.mark.parametrize(("name", "option"), _options(READERS))
def test_readers(name: str, option: str, tree: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    build = lambda **options: read_manifest(name, tree, **options)  # noqa: E731
    _refused_or_fine(build, option, REQUIRED_OPTIONS.get(name))


SECTIONS = {
    "tuner": (TUNERS, ("finetune", "tuner")),
    "head": (HEADS, ("finetune", "head")),
    "loss": (LOSSES, ("finetune", "loss")),
    "augmentation": (AUGMENTATIONS, ("finetune", "augment")),
    "reader": (READERS, ("data",)),
}


@pytest.mark.parametrize("section", SECTIONS)
def test_recipes(section: str, tmp_path: Path):
    registry, place = SECTIONS[section]
    for name, option in _options(registry):

        def build(name: str = name, **options: Any) -> None:
            content: dict[str, Any] = {
                "name": "x",
                "data": {"root": str(tmp_path)},
                "members": [{"backbone": "timm:test_vit", "weights": "random"}],
            }
            inner = content
            for key in place:
                inner = inner.setdefault(key, {})
            inner |= {"reader" if section == "reader" else "name": name, "options": options}
            for fault in find_choice_faults(parse_recipe(content)):
                assert fault.isprintable(), fault

        required = {key: "x" for key, default in registry.options(name).items() if default is REQUIRED}
        _refused_or_fine(build, option, required, step=5)


def _keys(section: type[Section], prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys of a recipe, items of lists by number."""
    for name, field in section.model_fields.items():
        yield f"{prefix}{name}"
        inner = _section_of(field.annotation)
        if inner is not None:
            yield from _keys(inner, f"{prefix}{name}.{'0.' if name == 'members' else ''}")


KEYS = list(_keys(Recipe))


@pytest.mark.parametrize("first", range(0, len(KEYS), 10))
def test_every_key_of_a_recipe(first: int, tree: Path):
    for key in KEYS[first : first + 10]:

        def read(value: Any, key: str = key) -> None:
            content: dict[str, Any] = {
                "name": "x",
                "data": {"root": str(tree)},
                "members": [{"backbone": "timm:test_vit", "weights": "random"}],
            }
            *above, last = key.split(".")
            inner: Any = content
            for part in above:
                inner = inner[int(part)] if part.isdigit() else inner.setdefault(part, {})
            inner[last] = value
            recipe = parse_recipe(content)
            for fault in find_choice_faults(recipe):
                assert fault.isprintable(), fault
            for member in plan_members(recipe):
                member.backbone.identity()

        _refused_or_fine(read, "value")


YAML = {
    "int": "seed: " + "9" * 5000,
    "hexadecimal": "seed: 0x" + "f" * 5000,
    "date": "name: 2024-13-45",
    "deep": "name: " + "[" * 3000 + "]" * 3000,
    "NUL": 'data: {root: "a\\0b"}',
    "surrogate": 'data: {root: "a\\udcffb"}',
    "surrogate backbone": 'members: [{backbone: "open_clip:./a\\ud800b"}]',
    "home": "members: [{backbone: 'open_clip:~nobody-of-that-name/x'}]",
    "control": '"a\\nb": 1',
    "key of a list": "? [a, b]\n: 1",
    "number as key": "3: 1",
    "tag": "name: !!python/object:os.system x",
    "set": "name: !!set {a, b}",
    "binary": "name: !!binary '***'",
    "merge": "<<: 3",
    "long": "members: [{backbone: 'open_clip:./" + "é" * 3000 + "'}]",
}


@pytest.mark.parametrize("fault", YAML)
def test_odd_yaml_is_one_line(fault: str, tmp_path: Path):
    file = tmp_path / "recipe.yaml"
    file.write_text(YAML[fault], encoding="utf-8")
    with pytest.raises(DualtailError) as error:
        read_recipe(file)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 8000


OVERRIDES = [
    "",
    "=",
    ".=1",
    "a..b=1",
    "name",
    "members.9=1",
    "members.-1.name=x",
    "members.²=1",
    "members." + "9" * 5000 + "=1",
    ".".join(["finetune"] * 5000) + "=1",
    "name.x=1",
    "seed=" + "9" * 5000,
    "seed=99999999999999999999",
    "seed=-1",
    "seed=1e400",
    "a\nb=1",
    "a\0b=1",
    "data.root=a\0b",
    "data.root=\udcff",
    "\udcff=1",
    "members=[",
    "name=*x",
    "members.0.weights=~nobody-of-that-name/x",
]


@pytest.mark.parametrize("override", OVERRIDES, ids=range(len(OVERRIDES)))
def test_odd_overrides_are_one_line(override: str, tmp_path: Path):
    file = tmp_path / "recipe.yaml"
    file.write_text("name: x\ndata: {root: .}\nmembers: [{backbone: timm:test_vit, weights: random}]\n")
    try:
        read_recipe(file, [override])
    except DualtailError as error:
        line = str(error)
        assert line.isprintable(), line
        return
    assert override == OVERRIDES[-1]
