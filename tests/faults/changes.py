"""One change of the recipe or of an input, taken over by ``--update``, against a fresh run."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from faults.command import Done, run
from faults.shop import DELETED, Change, Shop, Verdict, far_apart, judge, results_of

_SECOND = {"epochs": 1, "learning_rate": 0.02}
RECIPE: dict[str, Change] = {
    "name": {"name": "another"},
    "seed": {"seed": 3},
    "val_per_class": {"data.val_per_class": 2},
    "long_tail": {"data.long_tail": {"ratio": 3.0}},
    "long_tail.profile": {"data.long_tail": {"ratio": 3.0, "profile": "pareto"}},
    "long_tail.shuffle_classes": {"data.long_tail": {"ratio": 3.0, "shuffle_classes": True}},
    "interpolation": {"data.interpolation": "bicubic"},
    "on_bad_image": {"data.on_bad_image": "skip"},
    "reader": {"data.reader": "table", "data.options": {"file": "table.csv"}},
    "reader.class_names": {
        "data.reader": "table",
        "data.options": {"file": "table.csv", "class_names": ["red panda", "green frog", "blue jay"]},
    },
    "members.fewer": {"members.1": DELETED},
    "members.more": {"members.2": {"backbone": "open_clip:{root}/a", "weights": "random", "name": "third"}},
    "members.seeds": {"members.0.seeds": [0, 1]},
    "members.other_seed": {"members.0.seeds": [5]},
    "members.name": {"members.0.name": "renamed"},
    "members.image_size": {"members.0.image_size": 24},
    "members.weights": {"members.1.weights": "random"},
    "members.backbone": {"members.0.backbone": "open_clip:{root}/b", "members.0.name": "a"},
    "text.templates": {"text.templates": "the {}", "text.descriptions": None},
    "text.several": {"text.templates": ["the {}", "a {}"], "text.descriptions": None},
    "text.descriptions": {"text.descriptions": None},
    "prior.split": {"prior.split": "train"},
    "prior.per_class": {"prior.split": "train", "prior.per_class": 2},
    "prior.shrinkage": {"prior.shrinkage": 0.0},
    "prior.temperature": {"prior.temperature": "fit"},
    "prior.temperature.number": {"prior.temperature": 2.0},
    "epochs": {"finetune.epochs": 3},
    "fewer epochs": {"finetune.epochs": 1},
    "accumulation": {"finetune.accumulation": 2},
    "optimizer": {"finetune.optimizer": "adamw"},
    "learning_rate": {"finetune.learning_rate": 0.02},
    "momentum": {"finetune.momentum": 0.5},
    "weight_decay": {"finetune.weight_decay": 0.1},
    "schedule": {"finetune.schedule": "constant"},
    "schedule_step": {"finetune.schedule_step": "step"},
    "warmup_epochs": {"finetune.warmup_epochs": 1.0},
    "gradient_clip": {"finetune.gradient_clip": 0.01},
    "ema_decay": {"finetune.ema_decay": 0.5},
    "mixup": {"finetune.mixup": 0.5},
    "cutmix": {"finetune.cutmix": 0.5},
    "keep": {"finetune.keep": "best"},
    "batch_size": {"finetune.batch_size": 5},
    "sampling": {"finetune.sampling": "class_balanced"},
    "tuner": {"finetune.tuner.name": "lora"},
    "tuner.options": {"finetune.tuner.options": {"width": 3}},
    "text_tuner": {"finetune.text_tuner": {"name": "lora"}, "finetune.head": {"name": "text"}},
    "head": {"finetune.head.name": "linear"},
    "head.init": {"finetune.head.init": "class_means"},
    "head.options": {"finetune.head.options": {"scale": 7.0}},
    "loss": {"finetune.loss.name": "ce"},
    "loss.options": {"finetune.loss.options": {"tau": 0.5}},
    "loss.gla_train": {"finetune.loss.name": "gla_train"},
    "augment": {"finetune.augment.name": "resize"},
    "augment.options": {"finetune.augment.options": {"flip": 0.0}},
    "second_stage": {"finetune.second_stage": _SECOND},
    "second_stage.only": {"finetune.second_stage": {**_SECOND, "only": ["tuner"]}},
    "second_stage.loss": {"finetune.second_stage": {**_SECOND, "loss": {"name": "la"}}},
    "adjust.rule": {"adjust.rule": "log_probabilities"},
    "adjust.weights": {"adjust.weights": "fitted"},
    "adjust.weights.numbers": {"adjust.weights": [0.2, 0.8]},
    "groups.many": {"evaluate.groups.many": 12},
    "groups.few": {"evaluate.groups.few": 7},
    "groups.quantiles": {"evaluate.groups.quantiles": [0.1, 0.5]},
    "neighbors.k": {"evaluate.neighbors": {"k": 1}},
    "neighbors.temperature": {"evaluate.neighbors": {"temperature": 1.0}},
    "attribution": {"evaluate.attribution": None},
    "attribution.images": {"evaluate.attribution.images": 2},
    "attribution.steps": {"evaluate.attribution.steps": 3},
    "confidence": {"evaluate.confidence": 0.8},
    "crops": {"evaluate.crops": 5},
    "precision": {"runtime.precision": "bf16"},
    "eval_batch_size": {"runtime.eval_batch_size": 5},
}
"""Every key of the recipe, and some in several ways."""

ROUNDED = {"recipe eval_batch_size"}
"""What changes no result but by the rounding of float32, for which a library's products differ with the batch."""

PAIRS: tuple[tuple[str, str], ...] = (
    ("attribution", ""), ("members.seeds", "members.other_seed"), ("text.templates", "text.descriptions"),
    ("members.name", "name"), ("tuner", "tuner.options"), ("long_tail", "long_tail.profile"),
    ("prior.split", "prior.per_class"), ("members.fewer", ""), ("adjust.weights", "adjust.rule"),
)  # fmt: skip
"""The way back, and from one change to another."""


def _image(split: str, *, flip: bool = True) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        path = root / "images" / split / "green frog" / "1.bmp"
        pixels = np.asarray(Image.open(path))
        size = path.stat().st_size
        Image.fromarray(255 - pixels if flip else np.pad(pixels, ((0, 2), (0, 2), (0, 0)))).save(path)
        assert flip is False or path.stat().st_size == size

    return change


def _same_time(change: Callable[[Path], None], split: str) -> Callable[[Path], None]:
    """Make a change that leaves the file's time too, as ``cp -p`` and ``rsync -t`` do."""

    def changed(root: Path) -> None:
        path = root / "images" / split / "green frog" / "1.bmp"
        before = path.stat()
        change(root)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    return changed


def _swapped(split: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        one, other = (root / "images" / split / name / "0.bmp" for name in ("blue jay", "red panda"))
        one.rename(root / "kept.bmp")
        other.rename(one)
        (root / "kept.bmp").rename(other)

    return change


def _renamed_class(root: Path) -> None:
    for split in ("train", "val", "test"):
        (root / "images" / split / "green frog").rename(root / "images" / split / "tree frog")
    words = json.loads((root / "words.json").read_text())
    (root / "words.json").write_text(json.dumps({**words, "tree frog": ["a tree frog"]}))


def _added_class(root: Path) -> None:
    for split in ("train", "val", "test"):
        shutil.copytree(root / "images" / split / "blue jay", root / "images" / split / "yellow bee")


def _removed(split: str) -> Callable[[Path], None]:
    return lambda root: (root / "images" / split / "red panda" / "2.bmp").unlink()


def _added(split: str) -> Callable[[Path], None]:
    folder = Path("images") / split / "red panda"
    return lambda root: shutil.copyfile(root / folder / "0.bmp", root / folder / "99.bmp") and None


def _backbone(key: str, value: Any) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        path = root / "a" / "open_clip_config.json"
        config = json.loads(path.read_text())
        place = (
            config["preprocess_cfg"] if key in config["preprocess_cfg"] else config["model_cfg"]["vision_cfg"]
        )
        place[key] = value
        path.write_text(json.dumps(config))

    return change


def _weights(root: Path) -> None:
    path = root / "b" / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-8:] = bytes(8)  # the end of the last tensor; the size stays
    for place in range(len(content) - 4000, len(content), 4):
        content[place + 3] ^= 0x80  # signs
    path.write_bytes(content)


def _words(root: Path) -> None:
    path = root / "words.json"
    path.write_text(path.read_text().replace("an animal", "an insect"))


INPUTS: dict[str, Callable[[Path], None]] = {
    **{f"pixels of {split}": _image(split) for split in ("train", "val", "test")},
    **{f"pixels of {split}, same time": _same_time(_image(split), split) for split in ("train", "val", "test")},
    **{f"size of an image of {split}": _image(split, flip=False) for split in ("train", "test")},
    **{f"two labels of {split}": _swapped(split) for split in ("train", "val", "test")},
    **{f"an image less in {split}": _removed(split) for split in ("train", "val", "test")},
    **{f"an image more in {split}": _added(split) for split in ("train", "val", "test")},
    "a class renamed": _renamed_class,
    "a class added": _added_class,
    "backbone: mean": _backbone("mean", [0.4] * 3),
    "backbone: interpolation": _backbone("interpolation", "bicubic"),
    "backbone: layers": _backbone("layers", 2),
    "weights file": _weights,
    "descriptions": _words,
}  # fmt: skip
"""Every input, changed under the same recipe; those "same time" keep size and time of the file."""

CASES: list[tuple[str, str]] = [
    *(("input", name) for name in INPUTS),
    *(("recipe", name) for name in RECIPE),
    *(("pair", f"{one} > {other}") for one, other in PAIRS),
]


def change(shop: Shop, seed: int) -> Verdict:
    """Change one thing and update; then compare with a fresh run of the same."""
    kind, name = CASES[seed % len(CASES)]
    if kind == "input":
        with _changed(shop, INPUTS[name]):
            return _compare(shop, shop.finished, {}, f"{kind} {name}")
    before, _, after = name.rpartition(" > ")
    start = _started(shop, before) if kind == "pair" else shop.finished
    return _compare(shop, start, _filled(shop, RECIPE.get(after, {})), f"{kind} {name}")


def _filled(shop: Shop, change: Change) -> Change:
    """Put the shop's folder into what names it."""
    if DELETED in change.values():
        return change
    filled: Change = json.loads(json.dumps(change).replace("{root}", str(shop.root)))
    return filled


@lru_cache(maxsize=64)
def _started(shop: Shop, name: str) -> Path:
    return shop.reference(f"before_{name.replace('.', '_')}", _filled(shop, RECIPE[name]))


def _compare(shop: Shop, start: Path, change: Change, what: str) -> Verdict:
    recipe = shop.write_recipe("changed", change)
    old = shop.fresh(start)
    updated = run(recipe, old, "--update")
    new = shop.root / "trial" / "fresh"
    fresh = run(recipe, new)
    for name, done in (("update", updated), ("fresh run", fresh)):
        if done.failure:
            return Verdict(done.failure, f"{what}, {name}: {done.last_line}")
    if updated.code or fresh.code:
        return _refused(updated, fresh, what)
    verdict = judge(updated, old, results_of(new), what)
    if what in ROUNDED and verdict.verdict == "silently other" and not far_apart(old, new):
        return Verdict("equal", f"{what}: up to rounding")
    return verdict


def _refused(updated: Done, fresh: Done, what: str) -> Verdict:
    """Both must refuse, or the update does what a fresh run would not need to."""
    if updated.code and fresh.code:
        return Verdict("refused", f"{what}: {fresh.last_line}")
    one = updated if updated.code else fresh
    name = "update" if updated.code else "fresh run"
    return Verdict("lost", f"{what}: only the {name} refused: {one.last_line}")


@contextmanager
def _changed(shop: Shop, change: Callable[[Path], None]):
    """Change the shop's inputs for a block."""
    assert shop.finished
    names = ("images", "a", "b", "words.json")
    kept = shop.root / "kept"
    shutil.rmtree(kept, ignore_errors=True)
    for name in names:
        (shutil.copytree if (shop.root / name).is_dir() else _copy)(shop.root / name, kept / name)
    try:
        change(shop.root)
        yield
    finally:
        for name in names:
            path = shop.root / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
            shutil.move(kept / name, path)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source, target)
