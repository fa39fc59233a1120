"""At any moment of a run, what its records vouch for has reached the disk."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from dualtail.runs.pipeline import run_pipeline
from dualtail.runs.recipe_file import read_recipe


class Log:
    """Every fsync and rename of a run; what the disk holds for certain after each, all else dropped."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.records = root, root / "stages.json"
        self.content: dict[int, bytes] = {}
        self.names: dict[Path, dict[str, int]] = {}
        self.lost: list[tuple[int, str]] = []
        self.checked = 0
        self._fsync, self._replace = os.fsync, os.replace
        monkeypatch.setattr("dualtail.files.os.fsync", self.fsync)
        monkeypatch.setattr("dualtail.files.os.replace", self.replace)

    def fsync(self, descriptor: int) -> None:
        self._fsync(descriptor)
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if path.is_dir():
            self.names[path] = {entry.name: entry.stat().st_ino for entry in path.iterdir()}
        else:
            self.content[path.stat().st_ino] = path.read_bytes()

    def replace(self, source: Path, target: Path) -> None:
        self._replace(source, target)
        if Path(target) == self.records:  # it may reach the disk from now on, before anything that comes
            self.check()

    def check(self) -> None:
        for key, record in json.loads(self.records.read_text()).items():
            for name in record["outputs"] if record["inputs"] is not None else ():
                self.checked += 1
                path = self.root / name
                above = [
                    folder
                    for folder in path.parents
                    if folder.is_relative_to(self.root) and folder != self.root
                ]
                there = all(
                    self.names.get(p.parent, {}).get(p.name) == p.stat().st_ino for p in (path, *above)
                )
                if not there or self.content.get(path.stat().st_ino) != path.read_bytes():
                    self.lost.append((self.checked, f"{key}: {name}"))


def test_records_vouch_only_for_what_is_on_the_disk(
    workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Log(tmp_path / "run", monkeypatch)
    recipe = read_recipe(workshop / "recipe.yaml", ["finetune.epochs=1"])
    run_pipeline(recipe, log.root)
    assert log.lost == []
    assert log.checked > 100
    # Another learning rate: files are overwritten, and the records of those that are must not stand meanwhile.
    run_pipeline(recipe.model_copy(update={"seed": 1}), log.root, update=True)
    assert log.lost == []
