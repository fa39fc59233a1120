from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from PIL import Image

from dualtail.data import copies
from dualtail.data.copies import SmallCopies
from dualtail.data.images import decode_image
from dualtail.data.loader import eval_loader, train_loader
from dualtail.data.readers import read_manifest
from dualtail.data.transforms import build_augmentation, eval_transform
from dualtail.errors import DataError
from dualtail.imagespec import ImageSpec

SPEC = ImageSpec(size=8)


@pytest.fixture
def tree(tmp_path):
    """Large, wide photographs in one class and small images in the other."""
    rng = np.random.default_rng(0)
    for name, size in (("large", (300, 200)), ("small", (20, 20))):
        (tmp_path / "train" / name).mkdir(parents=True)
        for index in range(3):
            image = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize(size)
            image.save(tmp_path / "train" / name / f"{index}.jpg", quality=95)
    return tmp_path


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_only_large_images_get_a_copy(tree, tmp_path):
    store = SmallCopies(tmp_path / "copies", 30)
    assert store.decode(str(tree / "train/large/0.jpg")).size == (45, 30)
    assert store.decode(str(tree / "train/small/0.jpg")).size == (20, 20)
    (copy,) = files(tmp_path / "copies")
    assert Image.open(copy).size == (45, 30)
    exact = decode_image(tree / "train/large/0.jpg").resize((45, 30), Image.Resampling.LANCZOS)
    again = store.decode(str(tree / "train/large/0.jpg"))
    assert np.abs(np.asarray(exact, dtype=float) - np.asarray(again, dtype=float)).mean() < 2


def test_a_copy_is_made_once(tree, tmp_path, monkeypatch):
    store = SmallCopies(tmp_path / "copies", 30)
    path = str(tree / "train/large/0.jpg")
    first = np.asarray(store.decode(path))
    monkeypatch.setattr(SmallCopies, "_write", None)
    assert np.array_equal(np.asarray(store.decode(path)), first)
    assert np.array_equal(np.asarray(SmallCopies(tmp_path / "copies", 30).decode(path)), first)


def test_a_changed_image_gets_a_new_copy(tree, tmp_path):
    store = SmallCopies(tmp_path / "copies", 30)
    path = tree / "train/large/0.jpg"
    store.decode(str(path))
    Image.new("RGB", (300, 200), (255, 0, 0)).save(path)
    assert store.decode(str(path)).getpixel((5, 5)) == pytest.approx((255, 0, 0), abs=4)
    os.utime(path, (1, 1))
    store.decode(str(path))
    assert len(files(tmp_path / "copies")) == 3


def test_other_pixels_of_the_same_size_and_time_get_a_new_copy(tree, tmp_path):
    store = SmallCopies(tmp_path / "copies", 30)
    path = tree / "train/large/0.bmp"
    Image.new("RGB", (300, 200), (0, 0, 255)).save(path)
    before = os.stat(path)
    store.decode(str(path))
    Image.new("RGB", (300, 200), (255, 0, 0)).save(tree / "new.bmp")
    os.utime(tree / "new.bmp", ns=(before.st_atime_ns, before.st_mtime_ns))
    os.replace(tree / "new.bmp", path)
    assert os.stat(path).st_size == before.st_size
    assert store.decode(str(path)).getpixel((5, 5)) == pytest.approx((255, 0, 0), abs=4)


def another_image(copy):
    """Put the copy of another image, which is whole, in a copy's place."""
    store = SmallCopies(copy.parents[1], 30)
    Image.new("RGB", (300, 200), (9, 9, 9)).save(copy.parents[2] / "other.png")
    store.decode(str(copy.parents[2] / "other.png"))
    (other,) = (path for path in files(copy.parents[1]) if path != copy)
    other.replace(copy)


def flipped(copy):
    """Change one bit in the middle, which decodes to other pixels."""
    content = bytearray(copy.read_bytes())
    content[len(content) // 2] ^= 4
    copy.write_bytes(content)


def folder_instead(copy):
    copy.unlink()
    copy.mkdir()
    (copy / "a").touch()


def dangling(copy):
    copy.unlink()
    copy.symlink_to("nowhere")


@pytest.mark.parametrize(
    "damage",
    [
        lambda copy: copy.write_bytes(b""),
        lambda copy: copy.write_bytes(copy.read_bytes()[:-1]),
        lambda copy: copy.write_bytes(copy.read_bytes()[:300]),
        lambda copy: copy.write_bytes(bytes(copy.stat().st_size)),
        lambda copy: Image.new("RGB", (45, 30)).save(copy),
        another_image,
        flipped,
        folder_instead,
        dangling,
    ],
)
def test_a_damaged_copy_is_made_again(tree, tmp_path, damage):
    store = SmallCopies(tmp_path / "copies", 30)
    path = str(tree / "train/large/0.jpg")
    first = np.asarray(store.decode(path))
    (copy,) = files(tmp_path / "copies")
    whole = copy.read_bytes()
    damage(copy)
    assert np.array_equal(np.asarray(store.decode(path)), first)
    assert copy.read_bytes() == whole


def test_a_copy_that_cannot_be_read_is_made_again(tree, tmp_path, monkeypatch):
    store = SmallCopies(tmp_path / "copies", 30)
    path = str(tree / "train/large/0.jpg")
    first = np.asarray(store.decode(path))

    def refuse(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(copies.Path, "read_bytes", refuse)
    assert np.array_equal(np.asarray(store.decode(path)), first)


def test_faults_are_said_of_the_image(tree, tmp_path):
    store = SmallCopies(tmp_path / "copies", 30)
    with pytest.raises(DataError, match=r"none\.jpg: there is no such file"):
        store.decode(str(tree / "none.jpg"))
    (tree / "bad.jpg").write_bytes(b"x")
    with pytest.raises(DataError, match=r"bad\.jpg: this is no image"):
        store.decode(str(tree / "bad.jpg"))
    cut = (tree / "train/large/1.jpg").read_bytes()[:900]
    (tree / "cut.jpg").write_bytes(cut)
    with pytest.raises(DataError, match=r"cut\.jpg: "):
        store.decode(str(tree / "cut.jpg"))
    assert not (tmp_path / "copies").exists()


def test_a_folder_that_cannot_be_written(tree, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(copies.os, "replace", full)
    with pytest.raises(
        DataError, match="cannot write a copy of an image: No space left on device; make room"
    ):
        SmallCopies(tmp_path / "copies", 30).decode(str(tree / "train/large/0.jpg"))
    assert files(tmp_path / "copies") == []


@pytest.mark.parametrize("workers", [0, 2])
def test_every_epoch_sees_the_same_pixels(tree, tmp_path, workers):
    manifest = read_manifest("folder", tree)
    transform = build_augmentation(SPEC)
    options = {"batch_size": 2, "workers": workers, "cache": tmp_path / "copies"}
    loader = train_loader(manifest, transform, **options)
    first = [batch.images for batch in loader]
    assert len(files(tmp_path / "copies")) == 3
    assert all(torch.equal(a, b.images) for a, b in zip(first, loader, strict=True))


def test_evaluation_with_copies_is_close(tree, tmp_path):
    manifest = read_manifest("folder", tree)
    transforms = {"a": eval_transform(SPEC)}
    (exact,) = eval_loader(manifest, transforms, batch_size=6, workers=0)
    (near,) = eval_loader(manifest, transforms, batch_size=6, workers=0, cache=tmp_path / "copies")
    assert len(files(tmp_path / "copies")) == 3
    assert (exact.images["a"].int() - near.images["a"].int()).abs().float().mean() < 2
