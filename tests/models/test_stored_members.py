"""Members saved by every format version so far can still be loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from make_member import images
from safetensors.torch import load_file

from dualtail.models.backbone import load_backbone
from dualtail.models.classifier import FORMAT_VERSION, load_classifier

FOLDERS = sorted((Path(__file__).parent / "data").glob("member_v*"))


def test_this_version_is_stored() -> None:
    assert f"member_v{FORMAT_VERSION}" in {folder.name for folder in FOLDERS}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_stored_member_gives_its_logits(folder: Path) -> None:
    backbone = load_backbone(f"open_clip:{folder / 'backbone'}")
    member = load_classifier(folder, backbone=backbone)
    # Other kernels round differently, hence the tolerance.
    torch.testing.assert_close(
        member(images()).detach(), load_file(folder / "expected.safetensors")["logits"], rtol=0, atol=1e-4
    )
