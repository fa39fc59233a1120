from __future__ import annotations

import pytest

from dualtail.data.filled_folder import about_folder, fill_folder
from dualtail.errors import DataError


def test_a_folder_is_filled_and_says_with_what(tmp_path):
    target = tmp_path / "new" / "images"
    assert about_folder(target) is None
    for ratio in (10, 20):  # an earlier result is replaced
        with fill_folder(target, {"ratio": ratio}) as folder:
            (folder / f"{ratio}.png").touch()
        assert about_folder(target) == {"ratio": ratio}
        assert sorted(path.name for path in target.iterdir()) == [f"{ratio}.png", "dualtail.json"]


@pytest.mark.parametrize("fault", [DataError("bad"), KeyboardInterrupt()])
def test_a_folder_that_was_not_filled_leaves_nothing(tmp_path, fault):
    with pytest.raises(type(fault)), fill_folder(tmp_path / "images", {}) as folder:  # noqa: PT012
        (folder / "half.png").touch()
        raise fault
    assert list(tmp_path.iterdir()) == []


def test_somebodys_files_are_left_alone(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images/mine.txt").touch()
    with (
        pytest.raises(DataError, match="the folder holds something else"),
        fill_folder(tmp_path / "images", {}),
    ):
        pass
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot write there"), fill_folder(tmp_path / "file" / "images", {}):
        pass
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "images", "mine.txt"]
