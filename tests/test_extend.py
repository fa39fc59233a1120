"""The page "Extend dualtail": its package, installed as files, does what the page says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dualtail
from dualtail.errors import InputError
from dualtail.logits.losses import LOSSES, build_loss

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extend.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"^```\w+\n# (\S+)\n(.*?)^```$", PAGE, flags=re.M | re.S))


def install(site: Path, entry_points: str, name: str = "tailbits") -> None:
    """Write what an installer would: the metadata of a distribution with entry points."""
    info = site / f"{name}-0.1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text(entry_points)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder on Python's path with the page's package."""
    site = tmp_path_factory.mktemp("site")
    assert "tailbits/__init__.py" in BLOCKS  # without it the page's build finds no package to install
    for name, content in BLOCKS.items():
        if name.startswith("tailbits/"):
            (site / name).parent.mkdir(exist_ok=True)
            (site / name).write_text(content)
    tables = re.findall(
        r'^\[project\.entry-points\."(.*)"\]\n(\w+) = "(.*)"$', BLOCKS["pyproject.toml"], re.M
    )
    install(site, "".join(f"[{group}]\n{name} = {value}\n" for group, name, value in tables))
    return site


def python(site: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a new Python that finds this dualtail and what is installed in ``site``."""
    path = os.pathsep.join([str(Path(dualtail.__file__).parents[1]), str(site)])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, cwd=cwd, env=environment, timeout=300
    )


def test_the_pages_checks_pass(site: Path, tmp_path: Path) -> None:
    (tmp_path / "test_tailbits.py").write_text(BLOCKS["test_tailbits.py"])
    done = python(site, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_tailbits.py", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 passed" in done.stdout


LOOK_UP = """
import sys
from dualtail.data.readers import READERS
from dualtail.data.transforms import AUGMENTATIONS
from dualtail.errors import InputError
from dualtail.logits.losses import LOSSES
from dualtail.models.backbone import BACKBONES
from dualtail.models.heads import HEADS
from dualtail.models.tuners import TUNERS

names = {"capped_la": LOSSES, "stream_shift": TUNERS, "rms_normed": HEADS, "small_vit": BACKBONES, "flat": READERS,
         "dimmed": AUGMENTATIONS}
assert all(list(registry)[-1] == name for name, registry in names.items())
assert "tailbits" not in sys.modules  # a name in a list loads nothing
for name, registry in names.items():
    assert registry[name].__module__.startswith("tailbits.")
assert LOSSES.options("capped_la") == {"tau": 1.0, "limit": 3.0}
try:
    LOSSES.find("os:system", "finetune.loss")
except InputError as error:
    print(error)
"""


def test_the_names_are_found_and_nothing_else(site: Path, tmp_path: Path) -> None:
    done = python(site, "-c", LOOK_UP, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("finetune.loss: unknown loss 'os:system'; choose from ce, focal")
    assert done.stdout.count("\n") == 1


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (
            "broken:Loss",
            "cannot be loaded (ZeroDivisionError: division by zero); mend or uninstall the package",
        ),
        ("nowhere:Loss", "cannot be loaded (ModuleNotFoundError: No module named 'nowhere')"),
        ("collections:Counter", "is no LogitLoss; derive it from dualtail.logits.losses"),
    ],
)
def test_a_broken_package_is_one_line(tmp_path: Path, value: str, says: str) -> None:
    (tmp_path / "broken.py").write_text("1 / 0\n")
    install(tmp_path, f"[dualtail.losses]\nmine = {value}\n", "broken")
    code = """
from dualtail.errors import InputError
from dualtail.logits.losses import build_loss
assert build_loss("ce")
try:
    build_loss("mine")
except InputError as error:
    print(error)
"""
    done = python(tmp_path, "-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"entry point dualtail.losses: mine = {value}: the loss 'mine' {says}")
    assert done.stdout.count("\n") == 1


def test_the_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    made: dict[str, object] = {}
    monkeypatch.setattr(LOSSES, "_things", dict(LOSSES._things))
    exec(BLOCKS["notebook"], made)
    assert type(build_loss("marginless")) is made["MarginlessLoss"]
    monkeypatch.undo()
    with pytest.raises(InputError, match="unknown loss 'marginless'"):
        build_loss("marginless")


def test_the_recipe_runs(site: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "shots").mkdir()
    for split, sizes in (("train", (24, 6)), ("val", (4, 4)), ("test", (4, 4))):
        for name, size in zip(("cat", "dog"), sizes, strict=True):
            for number in range(size):
                pixels = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "shots" / f"{split}-{name}-{number}.png")
    settings = "runtime: {device: cpu, workers: 0}\n"
    (tmp_path / "recipe.yaml").write_text(BLOCKS["recipe.yaml"] + settings)
    program = "from dualtail.cli.main import run; run()"
    done = python(site, "-c", program, "run", "recipe.yaml", "--out", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "adjusted" / "metrics.json").is_file()
