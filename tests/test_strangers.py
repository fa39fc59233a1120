"""Files of strangers: what they name stays inside, what they hold is bounded, and what they say is only shown."""

from __future__ import annotations

import io
import json
import os
import socket
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dualtail.cli.printing import print_predictions
from dualtail.data.check import check_manifest
from dualtail.data.copies import SmallCopies
from dualtail.data.images import decode_image
from dualtail.data.manifest import Manifest
from dualtail.data.readers import read_manifest
from dualtail.errors import DataError, DualtailError, RecipeError, RunError, printable
from dualtail.files import csv_cell, from_csv_cell, inside, read_json, write_csv, write_json
from dualtail.lab.world import read_world
from dualtail.models.classifier import build_classifier
from dualtail.plain_yaml import dump_yaml, parse_yaml
from dualtail.report.formats import to_csv
from dualtail.report.report_table import Column, ReportTable
from dualtail.runs.directory import RunDirectory
from dualtail.runs.predict import Prediction, find_images, predict_images
from dualtail.runs.recipe_file import parse_recipe, read_recipe
from dualtail.runs.records import StageRecords

LEADING_OUT = [
    "../precious",
    "/{out}/precious",
    "a/../../precious",
    "link/precious",
    "file_link",
    ".",
    "",
    "a/..",
]


def one_line(error: pytest.ExceptionInfo[DualtailError], *words: str) -> None:
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with links that lead out of it, and beside it something precious."""
    made = tmp_path / "root"
    (made / "a").mkdir(parents=True)
    (tmp_path / "precious").write_text("keep me")
    (made / "link").symlink_to(tmp_path)
    (made / "file_link").symlink_to(tmp_path / "precious")
    return made


def picture(path: Path, side: int = 8, kind: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (side, side), (9, 99, 200)).save(path, kind)
    return path


# --- paths ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*LEADING_OUT, "a\0b", 3, None])
def test_no_path_leads_out_of_its_root(root: Path, name: object) -> None:
    name = name.replace("/{out}", str(root.parent)) if isinstance(name, str) else name
    with pytest.raises(DataError) as caught:
        inside(root, name, where="list.csv, row 3")  # type: ignore[arg-type]
    one_line(caught, "list.csv, row 3: ")


def test_what_lies_inside_may_be_reached_by_any_way(root: Path, tmp_path: Path) -> None:
    (tmp_path / "other").symlink_to(root)
    for name in ("a/x", "a/../a/x", "..hidden", str(root / "a")):
        assert inside(root, name, where="") == root / name
    assert inside(tmp_path / "other", "a/x", where="") == tmp_path / "other/a/x"


@pytest.mark.parametrize("name", [*LEADING_OUT, 3])
@pytest.mark.parametrize("act", ["add", "forget", "is_done", "withdraw"])
def test_outputs_in_a_strangers_records_delete_nothing(root: Path, name: object, act: str) -> None:
    name = name.replace("/{out}", str(root.parent)) if isinstance(name, str) else name
    record = {"inputs": "f", "outputs": [name], "seconds": 1.0, "finished": ""}
    write_json(root / "stages.json", {"prior/x": record})
    records = StageRecords(root)
    acts = {
        "add": lambda: records.add("prior/x", "g", [], 1.0),
        "forget": lambda: records.forget(["prior/x"]),
        "is_done": lambda: records.is_done("prior/x", "f"),
        "withdraw": lambda: records.withdraw(["prior/x"]),
    }
    with pytest.raises(RunError) as caught:
        acts[act]()
    one_line(caught, "stages.json, prior/x")
    assert (root.parent / "precious").read_text() == "keep me"


@pytest.mark.parametrize("key", ["finetune/../..", "finetune//etc", "finetune/link"])
def test_units_in_a_strangers_records_are_no_way_out_either(root: Path, key: str) -> None:
    write_json(root / "stages.json", {key: {"inputs": "f", "outputs": []}})
    with pytest.raises(RunError, match=r"stages\.json, finetune"):
        StageRecords(root).of_stage("finetune")


@pytest.mark.parametrize(
    "name", ["../cat.png", "{out}/cat.png", "link/cat.png", "a/../../cat.png", "file.png"]
)
@pytest.mark.parametrize("reader", ["table", "parquet", "lists", "inaturalist_2018"])
def test_manifests_stay_inside_their_root(root: Path, name: str, reader: str) -> None:
    picture(root.parent / "cat.png")
    picture(root / "dog.png")
    (root / "file.png").symlink_to(root.parent / "cat.png")
    name = name.replace("{out}", str(root.parent))
    if reader in ("table", "parquet"):
        file = f"all.{'csv' if reader == 'table' else reader}"
        rows = Manifest(root, ("dog.png", name), [0, 1], ["train", "train"], ("dog", "cat"))
        rows.to_table(root / file)
        reader, options, entry = "table", {"file": file}, f"{file}, row 2"
    elif reader == "lists":
        (root / "train.txt").write_text(f"dog.png 0\n{name} 1\n")
        options, entry = {"train": "train.txt", "class_names": ["dog", "cat"]}, "train.txt, entry 2"
    else:
        content = {
            "images": [{"id": 0, "file_name": "dog.png"}, {"id": 1, "file_name": name}],
            "annotations": [{"image_id": i, "category_id": i} for i in (0, 1)],
            "categories": [{"id": 0, "name": "dog"}, {"id": 1, "name": "cat"}],
        }
        for file in ("a.json", "b.json"):
            write_json(root / file, content)
        options = {"train": "a.json", "test": "b.json", "categories": None, "verify": False}
        entry = "a.json, entry 2"
    with pytest.raises(DataError) as caught:
        read_manifest(reader, root, **options)
    one_line(caught, entry, "leads out of", "data.allow_outside")
    assert len(read_manifest(reader, root, allow_outside=True, **options)) >= 2


def test_a_link_back_does_not_open_its_folder(root: Path) -> None:
    """The first file of an outer folder leads back inside; its neighbours do not."""
    (root.parent / "back.png").symlink_to(picture(root / "in.png"))
    picture(root.parent / "other.png")
    (root / "all.csv").write_text("path,label,split\nlink/back.png,0,train\nlink/other.png,1,train\n")
    with pytest.raises(DataError, match="row 2"):
        read_manifest("table", root, file="all.csv")


def test_class_folders_that_are_links_need_leave(root: Path) -> None:
    picture(root.parent / "elsewhere" / "1.png")
    picture(root / "train" / "dog" / "1.png")
    (root / "train" / "cat").symlink_to(root.parent / "elsewhere")
    with pytest.raises(DataError, match="leads out of"):
        read_manifest("folder", root)
    content = {"name": "x", "data": {"root": str(root)}, "members": [{"backbone": "timm:x"}]}
    assert parse_recipe(content).data.allow_outside is False


# --- regular files ----------------------------------------------------------------------------------------------


@pytest.fixture(params=["pipe", "device", "socket"])
def irregular(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "x.png"
    if request.param == "pipe":
        os.mkfifo(path)
    elif request.param == "device":
        path.symlink_to("/dev/zero")
    else:
        with socket.socket(socket.AF_UNIX) as server:
            here = Path.cwd()
            os.chdir(tmp_path)  # a socket's path is short
            try:
                server.bind("x.png")
            finally:
                os.chdir(here)
    return path


def test_what_is_no_file_is_refused_at_once(irregular: Path) -> None:
    root, name = irregular.parent, irregular.name
    images = Manifest(root, (name,), [0], ["train"], ("a", "b"))
    assert find_images([irregular]) == [str(irregular)]
    for read in (
        lambda: decode_image(irregular),
        lambda: SmallCopies(root / "copies", 4).decode(str(irregular)),
        lambda: read_json(irregular),
        lambda: read_recipe(irregular),
        lambda: read_manifest("lists", root, train=name, class_names=["a", "b"], allow_outside=True),
        lambda: read_manifest("lists", root, train="t", class_names=name, allow_outside=True),
        lambda: read_manifest("webdataset", root, train="*.png", allow_outside=True),
    ):
        with pytest.raises(DualtailError) as caught:
            read()
        one_line(caught)
    problems = check_manifest(images, headers=True, required_splits=["train"])
    assert any("regular file" in problem.what or "empty" in problem.what for problem in problems)


# --- models -----------------------------------------------------------------------------------------------------


def test_predict_runs_no_code_of_a_strangers_run(tmp_path: Path) -> None:
    """A run directory names a model folder; what lies in it by then is anybody's."""
    model, run, mark = tmp_path / "model", tmp_path / "run", tmp_path / "mark"
    model.mkdir()
    text = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    vision = {"layers": 1, "width": 32, "patch_size": 8, "image_size": 16, "head_width": 16}
    cfg = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}
    write_json(model / "open_clip_config.json", {"model_cfg": cfg})
    made = build_classifier(f"open_clip:{model}", ["cat", "dog"], weights="random", tuner="none", head="text")
    recipe = parse_recipe(
        {
            "name": "x",
            "data": {"root": str(tmp_path)},
            "members": [{"backbone": f"open_clip:{model}", "weights": "random", "name": "m"}],
            "runtime": {"device": "cpu"},
        }
    )
    with RunDirectory.open(run, recipe) as directory:
        made.save(directory.member("m").folder)
        write_json(directory.adjusted.weights, {"members": ["m"], "weights": [1.0], "rule": "logits"})
        directory.finish()
    photo = picture(tmp_path / "photo.png")
    assert len(predict_images(run, [str(photo)], device="cpu")) == 1
    text |= {"hf_tokenizer_name": "x", "tokenizer_kwargs": {"trust_remote_code": True}}
    write_json(model / "open_clip_config.json", {"model_cfg": cfg})
    write_json(model / "tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}})
    code = f"import pathlib; pathlib.Path({str(mark)!r}).write_text('')\nclass Tokenizer: pass\n"
    (model / "evil.py").write_text(code)
    with pytest.raises(DualtailError) as caught:
        predict_images(run, [str(photo)], device="cpu")
    one_line(caught, str(model))
    assert not mark.exists()


# --- images -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["EPS", "ICO", "TGA", "PCX", "PDF", "DDS", "SGI", "IM"])
def test_formats_that_nobody_needs_are_not_decoded(tmp_path: Path, kind: str) -> None:
    path = picture(tmp_path / "photo.jpg", 16, kind)
    with pytest.raises(DataError, match="no image"):
        decode_image(path)


def test_a_file_is_what_its_bytes_say(tmp_path: Path) -> None:
    for kind in ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP"):
        assert decode_image(picture(tmp_path / "photo.any", 16, kind)).size == (16, 16)


def test_the_limit_of_pixels_can_be_moved_and_is_told_once(tmp_path: Path) -> None:
    paths = [picture(tmp_path / f"{index}.png", 20).name for index in range(3)]
    told = {}
    for limit in (399, 400):
        images = Manifest(tmp_path, paths, [0, 1, 0], ["train"] * 3, ("a", "b"), max_pixels=limit)
        told[limit] = [str(p) for p in check_manifest(images, headers=True, required_splits=["train"])]
    assert told[400] == []
    (line,) = told[399]
    assert "more than 399 pixels, and so have 2 more" in line
    with pytest.raises(DataError, match=r"data\.max_pixels"):
        decode_image(tmp_path / "0.png", max_pixels=399)


def test_a_limit_above_pillows_own_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # refuses above 200
    path = picture(tmp_path / "a.png", 20)
    with pytest.raises(DataError, match="more than 200 pixels"):
        decode_image(path)
    assert decode_image(path, max_pixels=200_000_000).size == (20, 20)


# --- archives and patterns --------------------------------------------------------------------------------------


def shard(path: Path, size: int, kind: bytes = tarfile.REGTYPE) -> Path:
    """Write a tar file whose only header claims a size."""
    info = tarfile.TarInfo("a.png")
    info.size, info.type = size, kind
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + b"x" * 2048)
    return path


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
@pytest.mark.parametrize("size", [1 << 42, 1 << 62])
def test_members_that_claim_terabytes_are_refused(tmp_path: Path, size: int, kind: bytes) -> None:
    shard(tmp_path / "train.tar", size, kind)
    with pytest.raises(DataError) as caught:
        read_manifest("webdataset", tmp_path, train="train.tar")
    one_line(caught, "train.tar")
    shard(tmp_path / "cifar-10-binary.tar.gz", size, kind)
    with pytest.raises(DataError) as caught:
        read_manifest("cifar10_lt", tmp_path)
    one_line(caught, "cifar-10-binary.tar.gz")


@pytest.mark.parametrize(
    "pattern",
    ["t-{0..99999999999}.tar", "t-{0..9999999}.tar", f"t-{{{'0' * 5000}..1}}.tar", "/t*.tar", "", "../*.tar"],
)
def test_patterns_are_bounded_and_stay_inside(root: Path, pattern: str) -> None:
    (root.parent / "precious.tar").write_bytes(b"")
    with pytest.raises(DataError) as caught:
        read_manifest("webdataset", root, train=pattern)
    one_line(caught)


# --- YAML -------------------------------------------------------------------------------------------------------

HOSTILE_YAML = [
    "a: &x [1]\nb: *x",
    "a: &a [x]\nb: &b [*a, *a]",
    "<<: {a: 1}",
    "[" * 3000,
    "a: " + "{b: " * 3000,
    "- " * 500 + "x",
    "!!binary aGk=",
    "!!set {a}",
    "!!omap [a: 1]",
    "!!timestamp x",
    "!!int ''",
    "!!int x",
    "!!bool maybe",
    "!!float x",
    "!!python/object/apply:os.system [true]",
    "a: " + "9" * 5000,
    "? [a]\n: 1",
    "a: 1\na: 2",
    "a: \x00",
    "%YAML 9.9\n--- a",
    "a: \ud800",
    "x" * 4_000_001,
]


@pytest.mark.parametrize("text", HOSTILE_YAML, ids=range(len(HOSTILE_YAML)))
def test_hostile_yaml_is_one_line(tmp_path: Path, text: str) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(RecipeError) as caught:
        read_recipe(file)
    one_line(caught, str(file))
    with pytest.raises(RecipeError):
        read_recipe(tmp_path / "recipe.yaml", [f"a={text[:100]}"])


@pytest.mark.parametrize("text", HOSTILE_YAML, ids=range(len(HOSTILE_YAML)))
def test_a_hostile_world_is_one_line_too(tmp_path: Path, text: str) -> None:
    file = tmp_path / "world.yaml"
    file.write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(DataError) as caught:
        read_world(file)
    one_line(caught, str(file))


def test_what_is_there_twice_is_written_twice() -> None:
    same = [1, 2]
    assert parse_yaml(dump_yaml({"a": same, "b": same})) == {"a": same, "b": same}
    assert parse_yaml("a: 2024-02-31") == {"a": "2024-02-31"}


# --- terminal and CSV -------------------------------------------------------------------------------------------

OBEYED = ["\x1b[2J", "\x9b2J", "\r", "\b", "\x00", "\u202e", "\u2066", "\u2028", "\x7f", "\ud800", "\ufeff"]


@pytest.mark.parametrize("letters", OBEYED)
def test_nothing_printed_is_obeyed(letters: str, capfd: pytest.CaptureFixture[str]) -> None:
    from dualtail.cli.console import ConsoleObserver

    name = f"a{letters}b"
    assert printable(name).isprintable()
    for format_ in ("table", "jsonl", "csv"):
        print_predictions([Prediction(name, ((name, 0.5),))], format_)
    observer = ConsoleObserver()
    observer.stage(name)
    observer.note(name)
    observer.skipped(name)
    captured = capfd.readouterr()
    assert all(letter.isprintable() for letter in (captured.out + captured.err).replace("\n", ""))
    line = next(line for line in captured.out.splitlines() if line.startswith("{"))
    assert json.loads(line)["path"] == name


FORMULAS = ["=1+1", "+cmd", "-cmd", "@SUM(1)", "\t=1", "\r=1", "-1+1", "＝1"]


@pytest.mark.parametrize("text", FORMULAS)
def test_no_cell_is_a_formula(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    write_csv(tmp_path / "a.csv", [{"x": text, "y": -0.5}])
    table = ReportTable("m", "t", [Column("a", "a"), Column("b", "b", "number")], [{"a": text, "b": -0.5}])
    print_predictions([Prediction(text, ((text, 0.5),))], "csv")
    written = [(tmp_path / "a.csv").read_bytes().decode(), to_csv([table]), capsys.readouterr().out]
    for content in written:
        cells = content.split("\n", 1)[1].lstrip('"')
        assert cells.startswith("'")
    assert ",-0.5" in written[0]
    assert ",-0.5" in written[1]
    assert from_csv_cell(csv_cell(text)) == text


@pytest.mark.parametrize("value", [-1, -0.5, "-0.5", "+3", "-1e-5", "", "a=b", None, 7])
def test_numbers_and_plain_words_stay(value: object) -> None:
    assert csv_cell(value) == value


def test_a_table_of_odd_names_comes_back(tmp_path: Path) -> None:
    names = ("=cat", "'=cat", "-5x", "plain")
    paths = ("=a.png", "+b.png", "'@c.png", "-1")
    labels = np.arange(4)
    manifest = Manifest(tmp_path, paths, labels, ["train"] * 4, names)
    manifest.to_table(tmp_path / "t.csv")
    for line in io.StringIO((tmp_path / "t.csv").read_text()).readlines()[1:4]:
        assert line.startswith(("\"'", "'"))
    again = read_manifest("table", tmp_path, file="t.csv", class_names=names)
    assert again.paths == paths
    assert again.labels.tolist() == labels.tolist()
