"""The readers of the benchmarks, on small trees in exactly the official formats."""

from __future__ import annotations

import io
import json
import posixpath
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dualtail.data import benchmark_counts, cifar
from dualtail.data.images import decode_image
from dualtail.data.longtail import long_tail_counts
from dualtail.data.manifest import check_class_names
from dualtail.data.oltr import imagenet_names
from dualtail.data.problems import DataFaults
from dualtail.data.readers import read_manifest
from dualtail.errors import DataError

# --- ImageNet-LT and Places-LT


def write_lists(root: Path, name: str, folders: list[str], train: list[int], without: str = "") -> None:
    root.mkdir(exist_ok=True)
    lines: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for label, (folder, count) in enumerate(zip(folders, train, strict=True)):
        stem = f"{folder}/{posixpath.basename(folder)}"
        lines["train"] += [f"train/{stem}_{index}.JPEG {label}" for index in range(count)]
        lines["val"] += [f"train/{stem}_{index + 500}.JPEG {label}" for index in range(2)]
        lines["test"] += [f"val/{folder}/ILSVRC2012_val_{index:08d}.JPEG {label}" for index in range(3)]
    for split, rows in lines.items():
        if split != without:
            (root / f"{name}_{split}.txt").write_text("\n".join(rows) + "\n")


def test_imagenet_lt(tmp_path):
    write_lists(tmp_path / "lists", "ImageNet_LT", ["n01440764", "n01443537", "n01484850"], [6, 3, 1])
    manifest = read_manifest("imagenet_lt", tmp_path, lists="lists", verify=False)
    assert manifest.class_names == ("n01440764", "n01443537", "n01484850")
    assert manifest.counts("train").tolist() == [6, 3, 1]
    assert manifest.counts("val").tolist() == [2, 2, 2]
    assert manifest.counts("test").tolist() == [3, 3, 3]
    assert manifest.paths[0] == "train/n01440764/n01440764_0.JPEG"
    assert manifest.file(0) == str(tmp_path / "train/n01440764/n01440764_0.JPEG")


def test_imagenet_lt_with_lifts_class_names(tmp_path):
    write_lists(tmp_path, "ImageNet_LT", ["n01440764", "n01443537"], [6, 3], without="val")
    (tmp_path / "classnames.txt").write_text("n01443537 goldfish\nn01440764 tench, Tinca tinca\n")
    manifest = read_manifest("imagenet_lt", tmp_path, class_names="classnames.txt", verify=False)
    assert manifest.class_names == ("tench, Tinca tinca", "goldfish")
    assert manifest.split_sizes == {"train": 9, "test": 6}


def test_imagenet_lt_of_full_size_has_names_and_is_verified(tmp_path):
    folders = [f"n{index:08d}" for index in range(1000)]
    write_lists(tmp_path, "ImageNet_LT", folders, [2] * 1000)
    manifest = read_manifest("imagenet_lt", tmp_path, verify=False)
    assert manifest.class_names[:2] == ("tench", "goldfish")
    with pytest.raises(DataFaults) as caught:
        read_manifest("imagenet_lt", tmp_path)
    fix = "get the official files, or set verify to false to take the data as they are"
    assert [str(problem) for problem in caught.value.problems] == [
        f"{tmp_path}: {what} has {stated}; {fix}"
        for what, stated in [
            ("2,000 train images where ImageNet-LT", "115,846"),
            ("2,000 val images where ImageNet-LT", "20,000"),
            ("3,000 test images where ImageNet-LT", "50,000"),
            ("2 training images of the largest class where ImageNet-LT", "1,280"),
            ("2 training images of the smallest class where ImageNet-LT", "5"),
        ]
    ]


def test_published_counts_pass(tmp_path, monkeypatch):
    write_lists(tmp_path, "ImageNet_LT", ["n01440764", "n01443537"], [6, 3], without="val")
    small = benchmark_counts.BenchmarkCounts("small", 2, {"train": 9, "val": 4, "test": 6}, 6, 3)
    monkeypatch.setattr("dualtail.data.oltr.IMAGENET_LT", small)
    manifest = read_manifest("imagenet_lt", tmp_path)
    assert manifest.notes == ("small: 9 training images of 2 classes, as published",)


def test_names_of_imagenet_can_be_told_apart():
    names = imagenet_names()
    assert len(names) == 1000
    check_class_names(names)
    assert [names[index] for index in (0, 657, 744, 836, 837)] == [
        "tench",
        "missile",
        "projectile",
        "sunglass",
        "sunglasses",
    ]


@pytest.mark.parametrize("prefix", ["", "a/"])
def test_places_lt(tmp_path, prefix):
    folders = ["airfield", "athletic_field-outdoor", "field/wild", "wild_field"]
    write_lists(tmp_path, "Places_LT", [prefix + folder for folder in folders], [6, 3, 2, 1])
    manifest = read_manifest("places_lt", tmp_path, verify=False)
    assert manifest.class_names == ("airfield", "athletic field-outdoor", "wild", "wild field")


def test_places_lt_folders_of_two_levels(tmp_path):
    write_lists(tmp_path, "Places_LT", ["a/field/outdoor", "c/court/outdoor"], [6, 3])
    manifest = read_manifest("places_lt", tmp_path, verify=False)
    assert manifest.class_names == ("field outdoor", "court outdoor")


def test_lists_that_are_not_the_official_ones(tmp_path):
    with pytest.raises(
        DataError, match=r"ImageNet_LT_train\.txt: there is no such list; the lists are linked from"
    ):
        read_manifest("imagenet_lt", tmp_path)
    write_lists(tmp_path, "ImageNet_LT", ["n01440764", "n01443537"], [2, 2])
    train = tmp_path / "ImageNet_LT_train.txt"
    train.write_text(train.read_text() + "train/n01443537/x.JPEG 0\ntrain/n9/x.JPEG 3\n")
    with pytest.raises(DataFaults) as caught:
        read_manifest("imagenet_lt", tmp_path, verify=False)
    assert [problem.what for problem in caught.value.problems] == [
        "no image",
        "images of several folders, such as train/n01440764 and train/n01443537",
    ]
    train.write_text("train/n01440764/x.JPEG tench\n")
    with pytest.raises(DataFaults, match="line 1: unknown label 'tench'"):
        read_manifest("imagenet_lt", tmp_path, verify=False)


# --- iNaturalist 2018


def taxon(index: int, *lineage: str) -> dict:
    ranks = ("kingdom", "phylum", "class", "order", "family", "genus", "name")
    return {"id": index, "supercategory": lineage[2], **dict(zip(ranks, lineage, strict=True))}


TAXA = [
    taxon(0, "Plantae", "P1", "C1", "O1", "F2", "Prunella", "Prunella vulgaris"),
    taxon(1, "Animalia", "P2", "C2", "O2", "F1", "Prunella", "Prunella modularis"),
    taxon(2, "Animalia", "P2", "C2", "O2", "F1", "Prunella", "Prunella collaris"),
    taxon(3, "Animalia", "P2", "C2", "O3", "F3", "Aix", "Aix sponsa"),
]


@pytest.fixture
def inaturalist(tmp_path) -> Path:
    (tmp_path / "categories.json").write_text(json.dumps(TAXA))
    obfuscated = [
        {"id": row["id"], "name": str(9000 + row["id"]), "supercategory": row["supercategory"]}
        for row in TAXA
    ]
    for file, counts in (("train2018.json", [4, 3, 2, 1]), ("val2018.json", [1, 1, 1, 1])):
        images, annotations = [], []
        for category, count in enumerate(counts):
            for _ in range(count):
                number = len(images) + 100
                name = f"train_val2018/{TAXA[category]['supercategory']}/{category}/{number:032x}.jpg"
                images.append(
                    {
                        "id": number,
                        "file_name": name,
                        "height": 600,
                        "width": 800,
                        "license": 3,
                        "rights_holder": "x",
                    }
                )
                annotations.append({"id": number, "image_id": number, "category_id": category})
        content = {"info": {}, "images": images[::-1], "annotations": annotations, "categories": obfuscated}
        (tmp_path / file).write_text(json.dumps(content))
    return tmp_path


@pytest.mark.parametrize(
    ("level", "names", "counts"),
    [
        (
            "species",
            ["Prunella vulgaris", "Prunella modularis", "Prunella collaris", "Aix sponsa"],
            [4, 3, 2, 1],
        ),
        ("genus", ["Aix", "Prunella (Animalia)", "Prunella (Plantae)"], [1, 5, 4]),
        ("family", ["F1", "F2", "F3"], [5, 4, 1]),
        ("order", ["O1", "O2", "O3"], [4, 5, 1]),
        ("class", ["C1", "C2"], [4, 6]),
        ("phylum", ["P1", "P2"], [4, 6]),
        ("kingdom", ["Animalia", "Plantae"], [6, 4]),
    ],
)
def test_inaturalist_levels(inaturalist, level, names, counts):
    manifest = read_manifest("inaturalist_2018", inaturalist, level=level, verify=False)
    assert manifest.class_names == tuple(names)
    assert manifest.counts("train").tolist() == counts
    assert manifest.split_sizes == {"train": 10, "test": 4}
    assert manifest.paths[4] == f"train_val2018/C2/1/{104:032x}.jpg"


def test_inaturalist_without_the_names(inaturalist):
    (inaturalist / "categories.json").unlink()
    with pytest.raises(DataError, match=r"categories\.json: cannot read the file: No such file.*visipedia"):
        read_manifest("inaturalist_2018", inaturalist, verify=False)
    manifest = read_manifest("inaturalist_2018", inaturalist, categories=None, verify=False)
    assert manifest.class_names == ("9000", "9001", "9002", "9003")
    assert "numbers for names" in manifest.notes[-1]
    with pytest.raises(DataError, match="category 0 has no genus"):
        read_manifest("inaturalist_2018", inaturalist, categories=None, level="genus", verify=False)


def test_inaturalist_is_verified(inaturalist):
    with pytest.raises(DataFaults, match="4 classes where iNaturalist 2018 has 8,142"):
        read_manifest("inaturalist_2018", inaturalist, level="genus")


def test_inaturalist_faults(inaturalist):
    with pytest.raises(DataError, match=r"level is 'genuss'; it should be 'kingdom', .*'genus'"):
        read_manifest("inaturalist_2018", inaturalist, level="genuss")
    file = inaturalist / "train2018.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["image_id"] = 1
    content["annotations"][1]["category_id"] = 7
    file.write_text(json.dumps(content))
    with pytest.raises(DataFaults) as caught:
        read_manifest("inaturalist_2018", inaturalist, verify=False)
    assert [problem.what for problem in caught.value.problems] == ["unknown image 1", "unknown category 7"]
    file.write_text("{")
    with pytest.raises(DataError, match="this is no JSON"):
        read_manifest("inaturalist_2018", inaturalist, verify=False)
    file.write_text("[]")
    with pytest.raises(DataError, match="expected an object with images, annotations and categories"):
        read_manifest("inaturalist_2018", inaturalist, verify=False)


# --- CIFAR


def write_cifar(root: Path, archive: cifar.Archive, classes: int, train: int, test: int) -> np.ndarray:
    """Write an archive with ``train`` and ``test`` images a class in random order; return its training records."""
    rng = np.random.default_rng(0)
    folder = root / archive.folder
    folder.mkdir(parents=True)

    def records(count: int) -> np.ndarray:
        fine = rng.permutation(np.repeat(np.arange(classes), count))
        labels = fine[:, None] if archive.label_bytes == 1 else np.stack([fine // 5, fine], axis=1)
        pixels = rng.integers(0, 256, (len(fine), 3072))
        return np.concatenate([labels, pixels], axis=1).astype(np.uint8)

    training = records(train)
    for name, part in zip(archive.train, np.array_split(training, len(archive.train)), strict=True):
        (folder / name).write_bytes(part.tobytes())
    (folder / archive.test).write_bytes(records(test).tobytes())
    (folder / archive.names).write_text("\n".join(f"class_{index}" for index in range(classes)) + "\n\n")
    with tarfile.open(root / archive.file, "w:gz") as tar:
        tar.add(folder, archive.folder)
    shutil.rmtree(folder)
    return training


@pytest.mark.parametrize(
    ("kind", "archive"), [("cifar10_lt", cifar.CIFAR10), ("cifar100_lt", cifar.CIFAR100)]
)
def test_cifar_lt(tmp_path, kind, archive):
    training = write_cifar(tmp_path, archive, classes=6, train=25, test=3)
    manifest = read_manifest(kind, tmp_path, ratio=5, verify=False)
    assert manifest.class_names == tuple(f"class {index}" for index in range(6))
    assert manifest.counts("train").tolist() == long_tail_counts(6, 25, 5).tolist() == [25, 18, 13, 9, 6, 5]
    assert manifest.counts("test").tolist() == [3] * 6
    assert manifest.group_counts.tolist() == long_tail_counts(6, 25, 100).tolist()
    assert "the groups of classes are those of ratio 100" in manifest.notes[0]
    for row in (0, 10, 30):
        number = int(manifest.paths[row].removeprefix("train/").removesuffix(".png"))
        record = training[number]
        assert record[archive.label_bytes - 1] == manifest.labels[row]
        pixels = np.asarray(decode_image(manifest.file(row)))
        assert np.array_equal(pixels.transpose(2, 0, 1).reshape(-1), record[archive.label_bytes :])


def test_cifar_lt_keeps_the_images_that_the_field_uses(tmp_path):
    """One global generator, seeded once, shuffles the rows of class after class (Cao et al., 2019)."""
    training = write_cifar(tmp_path, cifar.CIFAR100, classes=6, train=25, test=3)
    manifest = read_manifest("cifar100_lt", tmp_path, ratio=5, verify=False)
    np.random.seed(0)  # noqa: NPY002
    expected = []
    for label, count in enumerate([25, 18, 13, 9, 6, 5]):
        rows = np.where(training[:, 1] == label)[0]
        np.random.shuffle(rows)  # noqa: NPY002
        expected += rows[:count].tolist()
    assert [int(path[6:11]) for path in manifest.split("train").paths] == expected


def test_cifar_is_unpacked_once_for_every_ratio(tmp_path):
    write_cifar(tmp_path, cifar.CIFAR100, classes=6, train=25, test=3)
    first = read_manifest("cifar100_lt", tmp_path, ratio=5, verify=False)
    (tmp_path / "cifar-100-binary.tar.gz").unlink()
    second = read_manifest("cifar100_lt", tmp_path, ratio=1, verify=False)
    other = read_manifest("cifar100_lt", tmp_path, ratio=5, seed=1, verify=False)
    assert second.counts("train").tolist() == [25] * 6
    assert set(first.paths) < set(second.paths)
    assert first.paths != other.paths
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cifar-100-png"]


def test_cifar_from_the_unpacked_folder(tmp_path):
    write_cifar(tmp_path, cifar.CIFAR10, classes=6, train=25, test=3)
    from_archive = read_manifest("cifar10_lt", tmp_path, ratio=5, verify=False)
    with tarfile.open(tmp_path / "cifar-10-binary.tar.gz") as tar:
        tar.extractall(tmp_path, filter="data")
    (tmp_path / "cifar-10-binary.tar.gz").unlink()
    from_folder = read_manifest("cifar10_lt", tmp_path, ratio=5, verify=False, images=str(tmp_path / "png"))
    assert from_folder.fingerprint() == from_archive.fingerprint()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("missing", "there is no such file, or not all of it; get the archive from"),
        ("truncated", "cannot read the archive"),
        ("member", "there is no such file, or not all of it"),
        ("record", "no multiple of 3074"),
        ("names", "there is a label 5 and 5 class names"),
    ],
)
def test_broken_cifar_archives(tmp_path, damage, message):
    write_cifar(tmp_path, cifar.CIFAR100, classes=6, train=5, test=3)
    file = tmp_path / "cifar-100-binary.tar.gz"
    if damage == "missing":
        file.unlink()
    elif damage == "truncated":
        file.write_bytes(file.read_bytes()[:1000])
    else:
        with tarfile.open(file) as tar:
            content = {member.name: tar.extractfile(member).read() for member in tar if member.isfile()}
        if damage == "member":
            del content["cifar-100-binary/test.bin"]
        elif damage == "record":
            content["cifar-100-binary/test.bin"] += b"x"
        else:
            content["cifar-100-binary/fine_label_names.txt"] = b"a\nb\nc\nd\ne\n"
        with tarfile.open(file, "w:gz") as tar:
            for name, data in content.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    with pytest.raises(DataError, match=message):
        read_manifest("cifar100_lt", tmp_path, verify=False)
    assert not (tmp_path / "cifar-100-png").exists()


def test_cifar_is_verified(tmp_path):
    write_cifar(tmp_path, cifar.CIFAR100, classes=6, train=5, test=3)
    with pytest.raises(
        DataError, match="5 to 5 train images in each of 6 classes where the official archive has 500"
    ):
        read_manifest("cifar100_lt", tmp_path)


def test_cifar_leaves_other_folders_alone(tmp_path):
    write_cifar(tmp_path, cifar.CIFAR100, classes=6, train=5, test=3)
    (tmp_path / "mine").mkdir()
    Image.new("RGB", (1, 1)).save(tmp_path / "mine/x.png")
    with pytest.raises(DataError, match="the folder holds something else"):
        read_manifest("cifar100_lt", tmp_path, images="mine", verify=False)
    read_manifest("cifar100_lt", tmp_path, verify=False)
    with pytest.raises(DataError, match=r"the folder holds other images"):
        read_manifest("cifar10_lt", tmp_path, images="cifar-100-png", verify=False)
    with pytest.raises(DataError, match=r"ratio is 0\.5; it should be greater than or equal to 1"):
        read_manifest("cifar100_lt", tmp_path, ratio=0.5)
