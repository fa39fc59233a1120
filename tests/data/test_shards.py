from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import tarfile

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from dualtail.data.images import decode_image
from dualtail.data.problems import DataFaults
from dualtail.data.readers import read_manifest
from dualtail.errors import DataError


def encoded(value: int, kind: str = "png") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 3), (value, 0, 0)).save(buffer, kind)
    return buffer.getvalue()


# --- Hugging Face


def write_parquet(path, labels, names=("cat", "dog"), label_column="label", kind="png"):
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": encoded(10 * row, kind), "path": f"{row}.{kind}"} for row in range(len(labels))]
    features = {
        "image": {"_type": "Image"},
        label_column: {"names": list(names), "_type": "ClassLabel"} if names else {"_type": "Value"},
    }
    table = pa.table({"image": images, label_column: pa.array(labels)})
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    parquet.write_table(table.replace_schema_metadata(metadata), path)


def test_hugging_face_files(tmp_path):
    write_parquet(tmp_path / "data/train-00000-of-00002.parquet", [0, 1, 1])
    write_parquet(tmp_path / "data/train-00001-of-00002.parquet", [0], kind="jpeg")
    write_parquet(tmp_path / "data/validation-00000-of-00001.parquet", [1])
    manifest = read_manifest("hugging_face", tmp_path, val="validation")
    assert manifest.class_names == ("cat", "dog")
    assert manifest.split_sizes == {"train": 4, "val": 1}
    assert manifest.labels.tolist() == [0, 1, 1, 0, 1]
    assert manifest.paths[2:4] == ("train/0000/0000002.png", "train/0000/0000003.jpg")
    assert decode_image(manifest.file(2)).getpixel((0, 0)) == (20, 0, 0)
    again = read_manifest("hugging_face", tmp_path, val="validation", class_names=["a cat", "a dog"])
    assert again.class_names == ("a cat", "a dog")
    assert again.labels.tolist() == manifest.labels.tolist()


def test_hugging_face_layout_of_the_parquet_branch(tmp_path):
    write_parquet(tmp_path / "plain_text/train/0000.parquet", ["ant", "bee"], names=None, label_column="kind")
    write_parquet(tmp_path / "plain_text/test/0000.parquet", ["bee"], names=None, label_column="kind")
    options = {"config": "plain_text", "test": "test", "label_column": "kind"}
    manifest = read_manifest("hugging_face", tmp_path, **options)
    assert manifest.class_names == ("ant", "bee")
    assert manifest.split("test").labels.tolist() == [1]
    with pytest.raises(DataError, match="the folder holds the images of other files; remove it"):
        read_manifest("hugging_face", tmp_path, **{**options, "test": None})


def test_hugging_face_faults(tmp_path):
    with pytest.raises(
        DataError, match=r"no Parquet files of the split 'train'; expected default/train/\*\.parquet"
    ):
        read_manifest("hugging_face", tmp_path)
    write_parquet(tmp_path / "data/train-0.parquet", [0, 1])
    with pytest.raises(DataError, match="there is no column 'img', only image, label; name it with"):
        read_manifest("hugging_face", tmp_path, image_column="img")
    write_parquet(tmp_path / "data/train-0.parquet", [0, 2])
    with pytest.raises(DataFaults, match="train, image 2: unknown label '2'; ids go from 0 to 1"):
        read_manifest("hugging_face", tmp_path)
    write_parquet(tmp_path / "data/train-0.parquet", [0, None])
    with pytest.raises(DataError, match="row 2: there is no image in the row, or no label"):
        read_manifest("hugging_face", tmp_path)
    (tmp_path / "data/train-0.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError):
        read_manifest("hugging_face", tmp_path, class_names=["cat", "dog"])
    assert not (tmp_path / "images").exists()


def test_hugging_face_name_is_fetched(tmp_path, monkeypatch):
    asked = {}

    def snapshot_download(name, **options):
        asked.update(options, name=name)
        write_parquet(tmp_path / "new/default/train/0000.parquet", [0, 1])

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    manifest = read_manifest("hugging_face", tmp_path / "new", dataset="user/pets")
    assert len(manifest) == 2
    assert asked["name"] == "user/pets"
    assert asked["repo_type"] == "dataset"
    assert asked["revision"] == "refs/convert/parquet"


def test_hugging_face_out_of_reach(tmp_path, monkeypatch):
    def snapshot_download(name, **options):
        raise ConnectionError("no route to host\nand much more")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    with pytest.raises(DataError) as caught:
        read_manifest("hugging_face", tmp_path, dataset="user/pets")
    assert str(caught.value) == (
        "cannot fetch the data set 'user/pets' from the hub: no route to host; "
        "offline, put its Parquet files into the root and leave `dataset` out"
    )


# --- WebDataset


def write_tar(path, samples):
    """Write ``[(name, content), ...]`` as files of a tar archive."""
    with tarfile.open(path, "w") as tar:
        for name, content in samples:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


@pytest.fixture
def shards(tmp_path):
    write_tar(
        tmp_path / "train-000.tar",
        [
            ("./a.b/0001.cls", b"1\n"),
            ("./a.b/0001.png", encoded(10)),
            ("./a.b/0002.seg.png", b"a mask, not the image"),
            ("./a.b/0002.JPG", encoded(20, "jpeg")),
            ("./a.b/0002.json", b"{}"),
            ("./a.b/0002.cls", b"0"),
        ],
    )
    write_tar(
        tmp_path / "train-001.tar", [("0001.png", encoded(30)), ("0001.cls", b"2"), ("notes.txt", b"x")]
    )
    write_tar(tmp_path / "test-000.tar", [("0001.png", encoded(40)), ("0001.cls", b"1")])
    return tmp_path


@pytest.mark.parametrize("pattern", ["train-*.tar", "train-{000..001}.tar"])
def test_webdataset(shards, pattern):
    manifest = read_manifest(
        "webdataset", shards, train=pattern, test="test-*.tar", class_names=["ant", "bee", "cow"]
    )
    assert manifest.split_sizes == {"train": 3, "test": 1}
    assert manifest.labels.tolist() == [1, 0, 2, 1]
    reds = [decode_image(manifest.file(row)).getpixel((0, 0))[0] for row in range(4)]
    assert np.abs(np.array(reds) - [10, 20, 30, 40]).max() <= 2
    assert not any("a.b" in path for path in manifest.paths), "names in an archive decide nothing"


def test_webdataset_with_names_in_json(tmp_path):
    write_tar(
        tmp_path / "t.tar",
        [
            ("0.png", encoded(1)),
            ("0.json", b'{"species": "wolf"}'),
            ("1.png", encoded(2)),
            ("1.json", b'{"species": "bear"}'),
        ],
    )
    manifest = read_manifest("webdataset", tmp_path, train="t.tar", label="json", json_key="species")
    assert manifest.class_names == ("bear", "wolf")
    assert manifest.labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([("0.png", encoded(1))], "the sample '/0' has no .cls; see the option label"),
        ([("0.png", encoded(1)), ("0.cls", b"")], "train, image 1: the label is empty"),
        ([("0.png", encoded(1)), ("0.cls", b"\xff")], "the label cannot be read from .cls"),
        (None, "the shard cannot be read"),
    ],
)
def test_webdataset_faults(tmp_path, samples, message):
    if samples is None:
        (tmp_path / "t.tar").write_bytes(b"no tar")
    else:
        write_tar(tmp_path / "t.tar", samples)
    with pytest.raises(DataError) as caught:
        read_manifest("webdataset", tmp_path, train="t.tar")
    assert message in str(caught.value)
    assert not (tmp_path / "images").exists()


def test_webdataset_shard_that_is_missing(shards):
    with pytest.raises(DataError, match=r"train-002\.tar: there is no such shard"):
        read_manifest("webdataset", shards, train="train-{000..002}.tar")
    with pytest.raises(DataError, match=r"none\*\.tar: there is no such shard"):
        read_manifest("webdataset", shards, train="none*.tar")


# --- Damage


def three_samples(path):
    """Write a shard of three samples, six files; return its bytes and where each header starts."""
    write_tar(path, [(f"{n}.{kind}", content) for n in range(3) for kind, content in (
        ("cls", b"%d" % n), ("png", encoded(n)))])  # fmt: skip
    with tarfile.open(path) as tar:
        return path.read_bytes(), [member.offset for member in tar]


def header(name, size):
    member = tarfile.TarInfo(name)
    member.size = size
    return member.tobuf()


DAMAGES = {
    "a later header": lambda c, at: c[: at[3] + 100] + b"\xff" * 50 + c[at[3] + 150 :],
    "a later checksum": lambda c, at: c[: at[3] + 148] + b"0000000\0" + c[at[3] + 156 :],
    "a header of zeros": lambda c, at: c[: at[3]] + bytes(512) + c[at[3] + 512 :],
    "no end": lambda c, at: c.rstrip(b"\0").ljust(-(-len(c.rstrip(b"\0")) // 512) * 512, b"\0"),
    "cut behind a file": lambda c, at: c[: at[4]],
    "cut in a header": lambda c, at: c[: at[3] + 200],
    "cut in a file": lambda c, at: c[: at[3] + 512 + 20],
    "two archives": lambda c, at: c + c,
    "a size": lambda c, at: c[: at[3]] + header("1.png", 10**10) + c[at[3] + 512 :],
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("packing", ["tar", "gz"])
def test_a_damaged_shard_is_refused_with_its_place(tmp_path, damage, packing):
    content, offsets = three_samples(tmp_path / "t.tar")
    content = DAMAGES[damage](content, offsets)
    (tmp_path / "t.tar").write_bytes(gzip.compress(content) if packing == "gz" else content)
    with pytest.raises(DataError) as caught:
        read_manifest("webdataset", tmp_path, train="t.tar")
    line = str(caught.value)
    assert line.startswith(f"{tmp_path / 't.tar'}, in or after '"), line
    assert "\n" not in line
    expected = {"no end": "2.png", "two archives": "2.png", "cut behind a file": "1.png"}
    inside = {"cut in a file", "a size"} if damage != "cut in a header" else set()
    place = expected.get(damage, "1.png" if damage in inside else "1.cls")
    assert f"'{place}'" in line, line
    assert not (tmp_path / "images").exists()


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_a_damaged_packing_is_refused(tmp_path, pack):
    content, _ = three_samples(tmp_path / "t.tar")
    packed = pack(content)
    middle = len(packed) // 2
    for damaged in (packed[:middle], packed[:middle] + bytes([packed[middle] ^ 0x55]) + packed[middle + 1 :]):
        (tmp_path / "t.tar").write_bytes(damaged)
        with pytest.raises(DataError, match="the shard cannot be read"):
            read_manifest("webdataset", tmp_path, train="t.tar")


@pytest.mark.parametrize(
    "members", [["0.cls", "1.cls", "1.png"], ["0.cls", "0.png", "1.cls"], ["0.png", "1.png", "1.cls"]]
)
def test_a_sample_without_one_of_its_files_is_refused(tmp_path, members):
    write_tar(tmp_path / "t.tar", [(name, encoded(1) if "png" in name else b"0") for name in members])
    with pytest.raises(DataError, match=r"the sample '/[01]' has no (image|\.cls)"):
        read_manifest("webdataset", tmp_path, train="t.tar")


def test_other_content_of_the_same_size_is_not_taken_for_what_was_unpacked(tmp_path):
    for red in (10, 20):
        write_tar(
            tmp_path / "t.tar",
            [("0.bmp", encoded(red, "bmp")), ("0.cls", b"0"), ("1.bmp", encoded(1, "bmp")), ("1.cls", b"1")],
        )
        if red == 10:
            read_manifest("webdataset", tmp_path, train="t.tar")
    with pytest.raises(DataError, match="the folder holds the images of other files; remove it"):
        read_manifest("webdataset", tmp_path, train="t.tar")


def test_every_cut_of_a_parquet_file_is_one_line(tmp_path):
    path = tmp_path / "data/train-0.parquet"
    write_parquet(path, [0, 1] * 100)
    whole = path.read_bytes()
    for size in [0, 1, 4, 11, *range(20, len(whole), len(whole) // 23), len(whole) - 1]:
        path.write_bytes(whole[:size])
        for names in (None, ["cat", "dog"]):
            with pytest.raises(DataError, match="no readable Parquet file") as caught:
                read_manifest("hugging_face", tmp_path, class_names=names)
            assert "\n" not in str(caught.value)
    assert not (tmp_path / "images").exists()


def test_a_damaged_page_of_a_parquet_file_is_told_with_its_row(tmp_path):
    path = tmp_path / "data/train-0.parquet"
    path.parent.mkdir()
    table = pa.table({"image": [encoded(n % 250) for n in range(400)], "label": [n % 2 for n in range(400)]})
    parquet.write_table(
        table, path, row_group_size=100, write_page_checksum=True, compression="none", use_dictionary=False
    )
    whole = bytearray(path.read_bytes())
    whole[whole.index(encoded(150)) + 30] ^= 1
    path.write_bytes(whole)
    with pytest.raises(DataError, match=r"train-0\.parquet, after row \d+: this is no readable Parquet file"):
        read_manifest("hugging_face", tmp_path, class_names=["cat", "dog"])


@pytest.mark.parametrize("info", [b"{", b"[]", b'{"info": {"features": []}}', b"\xff", b"[" * 100_000])
def test_a_damaged_description_of_columns_is_one_line(tmp_path, info):
    path = tmp_path / "data/train-0.parquet"
    write_parquet(path, [0, 1])
    parquet.write_table(parquet.read_table(path).replace_schema_metadata({b"huggingface": info}), path)
    with pytest.raises(DataError, match="description of the columns cannot be read; give class_names"):
        read_manifest("hugging_face", tmp_path)
