from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

import tiny

from dualtail.models.backbone import Backbone, load_backbone


@pytest.fixture(scope="session")
def vit_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_folder(tmp_path_factory.mktemp("vit"))


@pytest.fixture
def vit(vit_folder: Path) -> Backbone:
    return load_backbone(f"open_clip:{vit_folder}")


@pytest.fixture(scope="session")
def images() -> torch.Tensor:
    return torch.randint(
        0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
