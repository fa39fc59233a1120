"""The five foundation models that come with the package, and the world that they are of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dualtail.lab.pretrain import TRUTH_FILE
from dualtail.lab.world import World, read_world

PACKAGE = Path(__file__).parent
WORLD_FILE, MODELS = PACKAGE / "embedded.yaml", PACKAGE / "models"
# Of three priors; two more of the first one's.
DIFFERENT, SAME_PRIOR = ("alder", "birch", "cedar"), ("alder-2", "alder-3")
FIRST = DIFFERENT[0]


def embedded_world() -> World:
    """Return the world of the embedded models.

    Example:
        >>> sorted(embedded_world().foundations)
        ['alder', 'alder-2', 'alder-3', 'birch', 'cedar']
    """
    return read_world(WORLD_FILE)


def embedded_truth(name: str) -> dict[str, Any]:
    """Return what is known of an embedded model: its ``lab.json``."""
    content: dict[str, Any] = json.loads((MODELS / name / TRUTH_FILE).read_text(encoding="utf-8"))
    return content
