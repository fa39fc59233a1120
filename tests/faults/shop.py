"""Tiny data, a recipe of two members that runs in a second, finished runs of it, and what makes two runs equal."""

from __future__ import annotations

import hashlib
import json
import random
import re
import shutil
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image
from safetensors.numpy import load_file

from dualtail.runs.recipe import Recipe
from faults.command import Done, in_child, run, told
from faults.operations import Operation, Operations, kill_where

COUNTS = {"blue jay": (6, 4, 4), "green frog": (3, 4, 4), "red panda": (12, 4, 4)}
_COLOURS = {"blue jay": (90, 100, 150), "green frog": (90, 130, 100), "red panda": (140, 100, 90)}
_TIMES = {"seconds", "images_per_second", "resumed_from", "finished", "started", "updated", "commands"}
GOOD = ("equal", "refused", "read")
"""Verdicts that a trial may have; the others are lost, silently other, traceback, hung."""


@dataclass(frozen=True)
class Verdict:
    """What became of a trial, and what was done in it."""

    verdict: str
    detail: str = ""


Change = Mapping[str, Any]
"""Dotted keys of the recipe with their new values."""


class Shop:
    """A folder with data, backbones and recipes; finished runs are made when they are first asked for.

    Args:
        root: an empty folder. Runs keep absolute paths, so it stays where it is.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._references: dict[str, Path] = {}
        rng = np.random.default_rng(0)
        for name, sizes in COUNTS.items():
            for split, size in zip(("train", "val", "test"), sizes, strict=True):
                for number in range(size):
                    path = root / "images" / split / name / f"{number}.bmp"
                    write_image(path, _COLOURS[name] + rng.normal(0, 60, (20, 24, 3)))
        rows = [f"{path.relative_to(root / 'images')},{path.parent.name},{path.parent.parent.name}"
                for path in sorted((root / "images").rglob("*.bmp"))]  # fmt: skip
        (root / "images" / "table.csv").write_text("path,label,split\n" + "\n".join(rows) + "\n")
        for name, patch in (("a", 8), ("b", 4)):
            (root / name).mkdir()
            (root / name / "open_clip_config.json").write_text(json.dumps(_backbone(patch)))
        (root / "words.json").write_text(json.dumps({name: [f"a {name}", "an animal"] for name in COUNTS}))
        written = in_child(lambda: _write_weights(root / "b" / "weights.safetensors"))
        assert written.code == 0, written.err
        self.recipe = self.write_recipe("recipe", {})

    def content(self, change: Change) -> dict[str, Any]:
        """Return the recipe with some keys changed."""
        content: dict[str, Any] = {
            "name": "shop",
            "data": {"root": str(self.root / "images")},
            "members": [
                {"backbone": f"open_clip:{self.root}/a", "weights": "random"},
                {
                    "backbone": f"open_clip:{self.root}/b",
                    "weights": str(self.root / "b/weights.safetensors"),
                    "name": "b",
                },
            ],
            "text": {"descriptions": str(self.root / "words.json")},
            "finetune": {"epochs": 2, "batch_size": 8},
            "evaluate": {"groups": {"many": 10, "few": 4}, "attribution": {"images": 1, "steps": 2}},
            "runtime": {"device": "cpu", "workers": 0, "checkpoint_minutes": 1e-9},
        }
        for dotted, value in change.items():
            *path, last = dotted.split(".")
            place: Any = content
            for key in path:
                place = place[int(key)] if isinstance(place, list) else place.setdefault(key, {})
            if isinstance(place, list) and int(last) == len(place):
                place.append(value)
            elif value is DELETED:
                place.pop(int(last) if isinstance(place, list) else last)
            else:
                place[int(last) if isinstance(place, list) else last] = deepcopy(value)
        return content

    def write_recipe(self, name: str, change: Change) -> Path:
        """Write the recipe with some keys changed."""
        path = self.root / f"{name}.yaml"
        path.write_text(yaml.safe_dump(self.content(change)))
        return path

    def reference(self, name: str, change: Change | None = None) -> Path:
        """Return a finished, undisturbed run of ``NAME.yaml``, which has ``change``."""
        if name not in self._references:
            if change is not None:
                self.write_recipe(name, change)
            out = self.root / "references" / name / "run"  # all runs have one name, as it is in tables
            out.parent.mkdir(parents=True, exist_ok=True)
            done = run(self.root / f"{name}.yaml", out)
            assert done.code == 0, done.err
            self._references[name] = out
        return self._references[name]

    @cached_property
    def finished(self) -> Path:
        """An undisturbed run of the recipe."""
        return self.reference("recipe")

    @cached_property
    def results(self) -> dict[str, str]:
        """What the undisturbed run has."""
        return results_of(self.finished)

    @cached_property
    def tables(self) -> Done:
        """What the report tells of the undisturbed run."""
        return told(self.finished)

    @cached_property
    def photos(self) -> list[Path]:
        """What is predicted."""
        return [self.root / "images/test"]

    @cached_property
    def predictions(self) -> Done:
        """What the undisturbed run predicts."""
        return told(self.finished, self.photos)

    @cached_property
    def unfinished(self) -> Path:
        """A run that was killed in the training of its second member, with a checkpoint."""
        out = self.fresh()
        done = run(self.recipe, out, before=lambda: Operations(out, kill_where(_of_checkpoint, 3)))
        assert done.killed, done.err
        kept = self.root / "references/unfinished/run"
        shutil.copytree(out, kept)
        return kept

    def fresh(self, copy_of: Path | None = None) -> Path:
        """Return the path of a run directory that is not there, or is a copy."""
        out = self.root / "trial" / "run"
        shutil.rmtree(out.parent, ignore_errors=True)
        out.parent.mkdir()
        if copy_of:
            shutil.copytree(copy_of, out)
        return out

    def operations(self, recipe: Path, start: Path | None, *more: str) -> list[Operation]:
        """Return the operations of an undisturbed run that starts from a copy of ``start``, or from nothing."""
        out, log = self.fresh(start), self.root / "operations.json"

        def before() -> None:
            heard: list[Operation] = []
            Operations(out, lambda operation: heard.append(operation), reads=True)
            _at_end(lambda: log.write_text(json.dumps([[o.number, o.kind, o.file] for o in heard])))

        done = run(recipe, out, *more, before=before)
        assert done.code == 0, done.err
        return [Operation(*row) for row in json.loads(log.read_text())]


DELETED = object()
"""Stands for a key that is taken out."""


def _at_end(work: Any) -> None:
    """Do ``work`` when the command of this child has ended."""
    import dualtail.cli.main as main

    plain = main.run

    def wrapped() -> None:
        try:
            plain()
        finally:
            work()

    main.run = wrapped


def _of_checkpoint(operation: Operation) -> bool:
    return operation.kind == "rename" and "members/b/resume" in operation.file


def write_image(path: Path, pixels: Any) -> None:
    """Write pixels as an image whose size depends on nothing but theirs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels).clip(0, 255).astype(np.uint8)).save(path)


def _backbone(patch: int) -> dict[str, Any]:
    vision = {"image_size": 16, "layers": 1, "width": 32, "head_width": 32, "patch_size": patch}
    text = {"context_length": 16, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1}
    return {
        "model_cfg": {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text},
        "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear"},
    }


def _write_weights(path: Path, seed: int = 7) -> None:
    import open_clip
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(seed)
    model = open_clip.CLIP(**_backbone(4)["model_cfg"])
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, path)


def results_of(run: Path) -> dict[str, str]:
    """Return a digest of each result of a run, without times: two runs are equal if these are."""
    digests = {}
    for path in sorted(run.rglob("*")):
        name = path.relative_to(run).as_posix()
        top = name.partition("/")[0]
        wanted = top in ("backbones", "members", "adjusted", "attribution") or name == "classes.json"
        if path.is_file() and wanted and "/resume/" not in name and not path.name.startswith("."):
            digests[name] = hashlib.sha256(_essence(path)).hexdigest()[:16]
    return digests


def _essence(path: Path) -> bytes:
    """Return a file's content without what differs from time to time."""
    content = path.read_bytes()
    if path.suffix == ".json":
        return json.dumps(_timeless(json.loads(content))).encode()
    if path.suffix == ".safetensors":  # the order of its header is that of a hash
        size = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + size])
        return json.dumps(header, sort_keys=True).encode() + content[8 + size :]
    return content


_NUMBER = re.compile(r"(?<!\w)-?\d+(?:\.\d+(?:e[+-]?\d+)?|e[+-]?\d+)")


def far_apart(one: Path, other: Path) -> list[str]:
    """Return the results of two runs that differ by more than rounding."""
    names = results_of(one).keys() | results_of(other).keys()
    return [name for name in sorted(names) if not _near(one / name, other / name)]


def _near(one: Path, other: Path) -> bool:
    if not (one.is_file() and other.is_file()):
        return False
    if one.suffix == ".safetensors":
        first, second = load_file(one), load_file(other)
        return first.keys() == second.keys() and all(
            np.allclose(first[key], second[key], rtol=1e-4, atol=1e-5) for key in first
        )
    # Digests of inputs, which have no decimal point, stay as they are; times do not count.
    texts = [_essence(path).decode() for path in (one, other)]
    numbers = [[float(number) for number in _NUMBER.findall(text)] for text in texts]
    alike = len({_NUMBER.sub("#", text) for text in texts}) == 1
    return alike and bool(np.allclose(numbers[0], numbers[1], rtol=1e-4, atol=1e-5))


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(item) for key, item in value.items() if key not in _TIMES}
    return [_timeless(item) for item in value] if isinstance(value, list) else value


def broken_files(run: Path) -> list[str]:
    """Return the files of a run that are there in part; a temporary one may be."""
    broken = []
    for path in sorted(run.rglob("*")):
        if not path.is_file() or path.name.startswith(".") or "events" in path.parts:
            continue
        try:
            if path.suffix == ".yaml":
                Recipe(**yaml.safe_load(path.read_text()))
            elif path.suffix in (".json", ".safetensors"):
                _whole(path)
        except (ValueError, TypeError, yaml.YAMLError):
            broken.append(path.relative_to(run).as_posix())
    return broken


def _whole(path: Path) -> None:
    content = path.read_bytes()
    if path.suffix == ".json":
        json.loads(content)
        return
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    if len(content) != 8 + size + max(ends, default=0):
        raise ValueError("cut off")


def difference(ours: Mapping[str, str], theirs: Mapping[str, str]) -> str:
    """Return the first files in which two runs differ."""
    names = [name for name in sorted({*ours, *theirs}) if ours.get(name) != theirs.get(name)]
    return f"{len(names)} files differ: {', '.join(names[:4])}" if names else ""


def judge(done: Done, run: Path, expected: Mapping[str, str], what: str) -> Verdict:
    """Return the verdict on a run that was to end as ``expected``; ``what`` was done to it."""
    if done.failure:
        return Verdict(done.failure, f"{what}: {done.last_line or done.code}")
    if done.code:
        return Verdict("refused", f"{what}: {done.last_line}")
    try:
        found = results_of(run)
    except (ValueError, OSError) as error:
        return Verdict("silently other", f"{what}: a result cannot be read ({error})")
    behind = _left_behind(run, {*found} - {*expected})
    other = difference({name: found[name] for name in {*found} - behind}, expected)
    if other:
        return Verdict("silently other", f"{what}: {other}")
    return Verdict("equal", f"{what}: left behind {', '.join(sorted(behind))}" if behind else what)


def _left_behind(run: Path, more: set[str]) -> set[str]:
    """Return those of ``more`` files that no record names, so that nothing reads them."""
    records = (run / "stages.json").read_text()
    return {name for name in more if f'"{name}"' not in records}


def generator(kind: str, seed: int) -> random.Random:
    """Return the random numbers of a trial."""
    return random.Random(f"{kind}/{seed}")


def spread(seed: int) -> float:
    """Return a number from 0 to 1; those of successive seeds lie evenly."""
    return (0.5 + seed * 0.6180339887498949) % 1
