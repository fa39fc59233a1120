from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dualtail.errors import RunError
from dualtail.files import write_json
from dualtail.runs.directory import RunDirectory
from dualtail.runs.logits_file import LogitsFile, RunLogits, SplitLogits, write_logits
from dualtail.runs.recipe_file import parse_recipe


def split(rows: int, ids: tuple[str, ...], *, features: bool = True, seed: int = 0) -> SplitLogits:
    generator = torch.Generator().manual_seed(seed)
    kept = torch.randn(rows, 5, generator=generator) if features else None
    return SplitLogits(torch.randn(rows, 4, generator=generator), torch.arange(rows) % 4, ids, kept)


def test_logits_come_back_as_they_went(tmp_path: Path):
    val = split(3, ("a b.png", "naïve/ß.jpg", "line\nbreak.png"))
    path = tmp_path / "m" / "logits.safetensors"
    write_logits(path, {"val": val, "test": split(2, ("x", "y"), features=False)})
    again = LogitsFile(path, "val")
    assert torch.equal(again.logits, val.logits)
    assert torch.equal(again.rows(slice(1, 3)), val.logits[1:3])
    assert torch.equal(again.labels, val.labels)
    assert again.sample_ids == val.sample_ids
    assert again.num_classes == 4
    assert again.features is not None
    assert val.features is not None
    assert torch.equal(again.features, val.features.half())
    assert LogitsFile(path, "test").features is None
    with pytest.raises(RunError, match="has no split 'train'"):
        LogitsFile(path, "train")


def test_a_broken_or_missing_logits_file_is_named(tmp_path: Path):
    path = tmp_path / "logits.safetensors"
    with pytest.raises(RunError, match="is missing"):
        LogitsFile(path, "val")
    path.write_bytes(b"not safetensors")
    with pytest.raises(RunError, match="cannot be read"):
        LogitsFile(path, "val")


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A run of two members, one with a text tower."""
    members = [{"backbone": f"timm:{name}", "name": name} for name in "ab"]
    run = RunDirectory(tmp_path, parse_recipe({"name": "x", "data": {"root": "/d"}, "members": members}))
    for number, name in enumerate("ab"):
        write_json(run.backbone(name).info, {"has_text": name == "a"})
        write_logits(run.member(name).logits, {"test": split(3, ("x", "y", "z"), seed=number)})
    write_logits(run.backbone("a").zero_shot, {"test": split(3, ("x", "y", "z"), seed=9)})
    return run


def test_a_runs_logits_are_read_whole_or_in_the_same_rows(run: RunDirectory):
    logits = RunLogits(run, "test")
    assert list(logits.zero_shot) == ["a"]
    assert logits.sample_ids == ("x", "y", "z")
    rows, parts = next(logits.chunks())
    assert (rows.start, rows.stop) == (0, 3)
    assert list(parts) == [("member", "a"), ("member", "b"), ("zero_shot", "a")]
    assert torch.equal(parts["member", "b"], logits.of_members[1])
    assert torch.equal(parts["zero_shot", "a"], logits.zero_shot["a"])


@pytest.mark.parametrize("ids", [("x", "y", "w"), ("y", "x", "z"), ("x", "y")])
def test_files_of_other_samples_are_refused_however_many_they_are(run: RunDirectory, ids: tuple[str, ...]):
    for path in (run.member("b").logits, run.backbone("a").zero_shot):
        before = path.read_bytes()
        write_logits(path, {"test": split(len(ids), ids)})
        with pytest.raises(RunError, match=f"{path}: its test images are not those of the other members"):
            RunLogits(run, "test")
        path.write_bytes(before)


def test_equal_logits_are_equal_files(tmp_path: Path):
    written = set()
    for number in range(8):
        path = tmp_path / f"{number}.safetensors"
        write_logits(path, {"test": split(2, ("x", "y"))}, ["cat", "dog", "owl", "elk"])
        written.add(path.read_bytes())
    assert len(written) == 1


def test_logits_of_other_classes_or_another_order_are_refused(tmp_path: Path):
    path = tmp_path / "logits.safetensors"
    write_logits(path, {"test": split(2, ("x", "y"))}, ["cat", "dog", "owl", "elk"])
    assert LogitsFile(path, "test", ("cat", "dog", "owl", "elk")).num_classes == 4
    for names in (["dog", "cat", "owl", "elk"], ["cat", "dog", "owl", "emu"]):
        with pytest.raises(RunError, match="is of other classes than the run, or of these in another order"):
            LogitsFile(path, "test", names)
    write_logits(path, {"test": split(2, ("x", "y"))})  # as older runs did
    assert LogitsFile(path, "test", ["cat", "dog", "owl", "elk"]).sample_ids == ("x", "y")
