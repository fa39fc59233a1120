from __future__ import annotations

import hashlib

import numpy as np
import pytest
from PIL import Image

from dualtail.data.digits import CLASS_NAMES, write_digits
from dualtail.data.readers import read_manifest
from dualtail.errors import DataError, InputError


def digest(folder) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    content = b"".join(str(path.relative_to(folder)).encode() + path.read_bytes() for path in files)
    return hashlib.sha256(content).hexdigest()


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "new" / "digits"
    return folder, write_digits(folder)


def test_the_tree_is_long_tailed_with_balanced_val_and_test(digits):
    folder, manifest = digits
    assert manifest.class_names == tuple(sorted(CLASS_NAMES))
    assert manifest.fingerprint() == read_manifest("folder", folder).fingerprint()
    by_name = dict(zip(manifest.class_names, manifest.counts("train").tolist(), strict=True))
    counts = [by_name[name] for name in CLASS_NAMES]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > 100
    assert counts[0] / counts[-1] == pytest.approx(50, rel=0.3)
    assert set(manifest.counts("val")) == {20}
    assert set(manifest.counts("test")) == {40}


def test_no_image_is_in_two_splits(digits):
    folder, manifest = digits
    contents = [(folder / path).read_bytes() for path in manifest.paths]
    names = [path.rsplit("/")[-1] for path in manifest.paths]
    assert len(set(names)) == len(names)
    assert len(set(contents)) > 0.99 * len(contents)


def test_images_show_the_digits(digits):
    from sklearn.datasets import load_digits

    folder, manifest = digits
    source = load_digits()
    for row in (0, 300, 700):
        path = manifest.paths[row]
        image = Image.open(folder / path)
        assert (image.mode, image.size) == ("L", (32, 32))
        original = int(path.rsplit("/")[-1].removesuffix(".png"))
        assert CLASS_NAMES[source.target[original]] == manifest.class_names[manifest.labels[row]]
        small = np.asarray(image.resize((8, 8), Image.Resampling.BOX), dtype=float) / 255 * 16
        assert np.abs(small - source.images[original]).mean() < 1


def test_the_same_arguments_give_the_same_files(digits, tmp_path):
    folder, _ = digits
    first = digest(folder)
    write_digits(folder)  # its own earlier result may be replaced
    assert digest(folder) == first
    write_digits(tmp_path / "other", ratio=10, seed=1, size=16)
    assert digest(tmp_path / "other") != first
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_what_belongs_to_others_is_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("x")
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="the folder holds something else; name a new or an empty folder"):
        write_digits(tmp_path / "mine")
    with pytest.raises(DataError, match="this is a file"):
        write_digits(tmp_path / "file")
    assert (tmp_path / "mine/thesis.tex").read_text() == "x"
    (tmp_path / "empty").mkdir()
    write_digits(tmp_path / "empty")


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("dualtail.data.digits._enlarged", fail)
    with pytest.raises(KeyboardInterrupt):
        write_digits(tmp_path / "digits")
    assert list(tmp_path.iterdir()) == []


def test_wrong_size(tmp_path):
    with pytest.raises(InputError, match="size is 4"):
        write_digits(tmp_path / "digits", size=4)


def test_a_home_of_nobody_is_refused():
    with pytest.raises(DataError, match="there is no such user's home; give the folder's path"):
        write_digits("~nobody-of-that-name/digits")
