"""A run directory with a damaged file is one line that names the file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dualtail.errors import DualtailError, RunError
from dualtail.runs.finished import read_results
from dualtail.runs.logits_file import LogitsFile, SplitLogits, write_logits

JSON_FILES = [
    "classes.json",
    "provenance.json",
    "stages.json",
    "adjusted/metrics.json",
    "adjusted/weights.json",
    "adjusted/prior.json",
    "adjusted/methods.json",
]


@pytest.fixture
def copy(run_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run_dir, tmp_path / "copy"))


def check_refused(root: Path, path: Path) -> None:
    with pytest.raises(DualtailError) as caught:
        read_results(root)
    line = str(caught.value)
    assert str(path) in line
    assert "\n" not in line
    assert caught.value.fix or "is missing" in line


@pytest.mark.parametrize("name", JSON_FILES)
def test_files_that_are_no_json_of_theirs(copy: Path, name: str) -> None:
    path = copy / name
    whole = path.read_bytes()
    for content in (b"", whole[: len(whole) // 2], b"\xff\xfe" + whole, b"[" * 200_000, b"null", b"[7]", b"7",
                    b"1" * 5000, b'{"a": NaN}'):  # fmt: skip
        path.write_bytes(content)
        check_refused(copy, path)
    path.unlink()
    path.mkdir()
    with pytest.raises(RunError) as caught:
        read_results(copy)
    assert "\n" not in str(caught.value)


def put(*keys: Any, value: Any) -> Callable[[Any], None]:
    def change(content: Any) -> None:
        for key in keys[:-1]:
            content = content[key]
        if value is ...:
            del content[keys[-1]]
        else:
            content[keys[-1]] = value

    return change


CHANGES = [
    ("classes.json", put("names", value=...)),
    ("classes.json", put("names", value=["one"])),
    ("classes.json", put("d_groups", 0, value="lots")),
    ("classes.json", put("counts", "train", value="many")),
    ("classes.json", put("group_counts", 0, value="7")),
    ("provenance.json", put("data", value=0.5)),
    ("provenance.json", put("format_version", value="x")),
    ("provenance.json", put("data", value={"fingerprint": {}})),
    ("adjusted/metrics.json", put("overall", value="high")),
    ("adjusted/metrics.json", put("overall", value=None)),
    ("adjusted/metrics.json", put("overall_ci", value=[0.1])),
    ("adjusted/metrics.json", put("d_groups", "few", value=...)),
    ("adjusted/metrics.json", put("d_groups", "few", "accuracy", value="x")),
    ("adjusted/metrics.json", put("cross", value=7)),
    ("adjusted/metrics.json", put("cross", "few", value=True)),
    ("adjusted/metrics.json", put("per_class", "n", value=[1])),
    ("adjusted/weights.json", put("weights", value=[])),
    ("adjusted/weights.json", put("nll", value="low")),
    ("adjusted/prior.json", put("log_prob", value=[0.0])),
    ("adjusted/prior.json", put("log_prob", 0, value=1e300)),
    ("adjusted/methods.json", put(0, "members", value=7)),
    ("adjusted/methods.json", put(0, "evaluation", value=...)),
]


@pytest.mark.parametrize(("name", "change"), CHANGES)
def test_values_of_another_kind(copy: Path, name: str, change: Callable[[Any], None]) -> None:
    path = copy / name
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    check_refused(copy, path)


def rewritten(path: Path, name: str, value: torch.Tensor | None) -> None:
    write_logits(
        path, {"test": SplitLogits(torch.zeros(4, 3), torch.tensor([0, 1, 2, 0]), ("a", "b", "c", "d"))}
    )
    tensors = load_file(path) | {name: value}
    save_file({part: content for part, content in tensors.items() if content is not None}, path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("test.logits", None),
        ("test.labels", None),
        ("test.sample_ids", None),
        ("test.logits", torch.zeros(12)),
        ("test.logits", torch.zeros(3, 3)),
        ("test.logits", torch.zeros(4, 3, dtype=torch.int8)),
        ("test.labels", torch.tensor([0, 1, 2, 3])),
        ("test.labels", torch.tensor([0, -1, 2, 1])),
        ("test.labels", torch.zeros(4)),
        ("test.sample_ids", torch.tensor([123], dtype=torch.uint8)),
        ("test.sample_ids", torch.frombuffer(bytearray(b"[1, 2, 3, 4]"), dtype=torch.uint8)),
        ("test.features", torch.zeros(3, 2, dtype=torch.float16)),
    ],
)
def test_logits_files_whose_parts_do_not_fit(tmp_path: Path, name: str, value: torch.Tensor | None) -> None:
    path = tmp_path / "logits.safetensors"
    rewritten(path, name, value)
    with pytest.raises(RunError) as caught:
        LogitsFile(path, "test")
    assert str(path) in str(caught.value)
    for content in (b"", path.read_bytes()[:-1], b"\x00" * 50):
        path.write_bytes(content)
        with pytest.raises(RunError, match="cannot be read"):
            LogitsFile(path, "test")
