"""The page of the architecture names what exists, and the house is as it says."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "dualtail"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
ROOMS = "runs|engine|data|models|logits|report|lab|cli|testing"
NAMED = sorted(set(re.findall(rf"`((?:{ROOMS})/[\w/]*)((?:\.\w+)*)", PAGE)))


@pytest.mark.parametrize(("module", "names"), NAMED)
def test_what_the_page_names_is_there(module: str, names: str):
    path = SOURCE / module
    if names == ".py":
        assert path.with_suffix(".py").is_file()
        return
    files = [path.with_suffix(".py"), path / "__init__.py"] if names else [path, path.with_suffix(".py")]
    file = next((file for file in files if file.exists()), None)
    assert file is not None, f"{module} is named and is not there"
    if names:
        defined = {
            getattr(target, "name", getattr(target, "id", None))
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
            for target in (node, *getattr(node, "targets", ()), getattr(node, "target", None))
        }
        assert set(names.strip(".").split(".")) <= defined


def test_the_page_names_much_and_is_short():
    assert len(NAMED) > 25
    assert len(PAGE.splitlines()) <= 150


# A classifier's folder is read without a run too; the demo's page lies beside its two runs.
OWN_FILES = [
    "cli/demo.py: report.html",
    "models/classifier.py: config.json",
    "models/classifier.py: trainable.safetensors",
]


def test_no_module_but_the_owner_names_a_file_of_a_run():
    """Paths of a run come from ``RunDirectory`` alone."""
    owner = SOURCE / "runs" / "directory.py"
    names = set(re.findall(r'/ "([\w.]+)"', owner.read_text(encoding="utf-8")))
    assert len(names) > 15
    spelt = [
        f"{path.relative_to(SOURCE)}: {name}"
        for path in SOURCE.rglob("*.py")
        if path != owner
        for name in re.findall(r'"([\w./-]+)"', path.read_text(encoding="utf-8"))
        if name in names and "." in name
    ]
    assert sorted(spelt) == OWN_FILES


def test_functions_fit_on_a_screen():
    """No function has more than 60 lines of code below its docstring."""
    long = []
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                told = 1 if ast.get_docstring(node) else 0
                body = node.body[told:]
                lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0
                if lines > 60:
                    long.append(f"{path.relative_to(SOURCE)}: {node.name}, {lines}")
    assert long == []
