from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the long version out unless it is asked for by ``-m faults_long``."""
    if "faults_long" in config.option.markexpr:
        return
    left_out = [item for item in items if item.get_closest_marker("faults_long")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
