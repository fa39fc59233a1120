"""The page of the recipe's keys is what the schema says."""

from __future__ import annotations

import runpy
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_recipe_page_is_up_to_date():
    made = runpy.run_path(str(ROOT / "scripts" / "recipe_reference"))["reference"]()
    assert (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8") == made, "run scripts/recipe_reference"
