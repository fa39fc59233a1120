"""Fuzzers with fixed seeds: no exception but the package's own, whose message is one line."""

from __future__ import annotations

import io
import json
import random
import re
import resource
import shutil
import signal
import tarfile
from collections.abc import Callable
from contextlib import redirect_stderr
from functools import lru_cache
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import yaml
from PIL import Image

from faults.shop import Shop, Verdict, generator

SECONDS = 10
"""What one mutation may take."""
EXTRA_MEMORY = 4 << 30
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")

VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 7, 1.5, -0.0, 1e-300, 1e308, float("nan"), float("inf"), -float("inf"), 2**31,
    2**63, 2**64, -(2**63), 10**30, int("9" * 4000), "", " ", "x", "auto", "random", "1", "nan", "../..", "/",
    "~nobody", "~", "a\0b", "a\nb", "\x1b[31m", "\ud800", "é" * 300, "{}", "{0}", "{a}", "%s", "=1+1", [], [0], [1, 2],
    [-1], [None], ["a", "b"], [[1]], [0.5, 0.2], [1e308, 1e308], {}, {"a": 1}, {"name": "x"}, {1: 2}, {"": None},
)  # fmt: skip
"""What a value is replaced by."""

Fuzzer = Callable[[Shop, random.Random], Callable[[], object]]
"""Makes a mutation (which is not judged) and returns what reads it (which is)."""


def fuzz(shop: Shop, seed: int) -> Verdict:
    """One mutation for one reader."""
    name = list(FUZZERS)[seed % len(FUZZERS)]
    return fuzz_one(shop, name, seed)


def fuzz_one(shop: Shop, name: str, seed: int) -> Verdict:
    """Read one mutation."""
    read = FUZZERS[name](shop, generator(name, seed))
    verdict, detail = judge_call(read)
    return Verdict(verdict, f"{name}: {detail}")


def judge_call(read: Callable[[], object]) -> tuple[str, str]:
    """Return the verdict on a call, as the command line would tell it, and the message."""
    from dualtail.errors import DualtailError

    previous = signal.signal(signal.SIGALRM, _late)
    signal.alarm(SECONDS)
    try:
        read()
        return "read", ""
    except DualtailError as error:
        line = _printed(error)
        return (
            ("traceback", f"not one line: {line!r:.300}")
            if _CONTROL.search(line)
            else ("refused", line[:200])
        )
    except OSError as error:  # the command line makes one line of these
        kind = type(error).__name__
        return ("refused" if error.errno and error.strerror else "traceback"), f"{kind}: {error}"[:300]
    except _Late:
        return "hung", f"more than {SECONDS} s"
    except BaseException as error:
        return "traceback", f"{type(error).__name__}: {error}"[:300].replace("\n", " ") + _place(error)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def _printed(error: Exception) -> str:
    """Return what the command line prints for an error."""
    from dualtail.cli import main

    out = io.StringIO()
    with redirect_stderr(out):
        main._say(f"error: {error}", 2)
    return out.getvalue().removesuffix("\n")


def limit_memory() -> None:
    """Let this process have some more memory than it has, so that a bomb is a MemoryError."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + EXTRA_MEMORY, used + EXTRA_MEMORY))


class _Late(BaseException):
    pass


def _late(_number: int, _frame: FrameType | None) -> None:
    raise _Late


def _place(error: BaseException) -> str:
    place, trace = "", error.__traceback__
    while trace:
        file = trace.tb_frame.f_code.co_filename
        if "dualtail" in file and "faults" not in file:
            place = f" [{Path(file).name}:{trace.tb_lineno}]"
        trace = trace.tb_next
    return place


# Mutations.


def mutate_bytes(content: bytes, rng: random.Random) -> bytes:
    """Flip, cut, double, insert or overwrite some bytes."""
    data = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        at = rng.randrange(len(data) + 1)
        length = rng.choice([1, 2, 4, 8, 64])
        match rng.randrange(6):
            case 0 if data:
                data[at % len(data)] ^= 1 << rng.randrange(8)
            case 1:
                del data[at:]
            case 2:
                del data[at : at + length]
            case 3:
                data[at:at] = data[at : at + length * 8]
            case 4:
                data[at : at + length] = rng.randbytes(length)
            case _:
                data[at : at + length] = rng.choice([b"\xff", b"\0", b"9", b"\n", b'"', b"{", b"["]) * length
    return bytes(data)


def mutate_tree(value: Any, rng: random.Random) -> Any:
    """Replace, drop, add or rename something in a tree of JSON."""
    value = json.loads(json.dumps(value))
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        places = list(_places(value))
        if not places:
            return rng.choice(VALUES)
        holder, key = rng.choice(places)
        match rng.randrange(6):
            case 0 if isinstance(holder, dict):
                del holder[key]
            case 1 if isinstance(holder, dict):
                holder[rng.choice(["x", "", "name", str(key) + "s", "a\nb"])] = holder.pop(key)
            case 2 if isinstance(holder, list):
                holder.append(holder[key])
            case 3 if isinstance(holder, list):
                del holder[key]
            case _:
                holder[key] = rng.choice(VALUES)
    return value


def _places(value: Any, depth: int = 100) -> Any:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield value, key
        if depth:  # a value that a mutation put there may be nested deeper than Python goes
            yield from _places(item, depth - 1)


# Readers.


def _recipe(shop: Shop, rng: random.Random) -> Callable[[], object]:
    from dualtail.runs.choices import refuse_choice_faults
    from dualtail.runs.members import plan_members
    from dualtail.runs.recipe_file import dump_recipe, parse_recipe

    content = mutate_tree(_full_recipe(shop), rng)

    def read() -> None:
        recipe = parse_recipe(content)
        refuse_choice_faults(recipe)
        plan_members(recipe)
        dump_recipe(recipe)

    return read


@lru_cache(maxsize=4)
def _full_recipe(shop: Shop) -> Any:
    return yaml.safe_load((shop.finished / "recipe.yaml").read_text())


def _yaml_text(shop: Shop, rng: random.Random) -> Callable[[], object]:
    from dualtail.runs.recipe_file import read_recipe

    text = (shop.finished / "recipe.yaml").read_bytes()
    tricks = [
        b"a: &a [x, x]\n" + b"".join(b"b%d: &b%d [*a, *a]\n" % (i, i) for i in range(30)), b"- " * 3000, b"[" * 5000,
        b"{a: " * 2000, b"? " * 2000, b"!!python/object:os.system x", b"!!timestamp 2001-99-99", b"!!int 0x",
        b"!!binary x", b"!!float .", b"!!set {a, b}", b"a: 2001-02-30", b"<<: 3", b"a: 1:99:99999999999999999999",
        b"!!omap [a]", b"x: 0b", b"seed: 0o9", b"seed: " + b"9" * 6000, b"? [a]\n: b", b"? {a: b}\n: c",
        b"\xff\xfe\x00", b"--- \n---\n",
        b"%YAML 9.9\n---\na: b", b"&a [*a]", b"a: &x {<<: *x}", b"=: 1", b"a: !!null x", b"!!bool maybe",
    ]  # fmt: skip
    content = rng.choice(tricks) + b"\n" * rng.randrange(2) if rng.random() < 0.3 else mutate_bytes(text, rng)
    overrides = [f"{rng.choice(KEYS)}={rng.choice(VALUES)!s:.5000}"] if rng.random() < 0.3 else []
    return lambda: read_recipe(_put(shop, "fuzz.yaml", content), overrides)


KEYS = (
    "seed", "data.root", "members.0", "members.9.name", "members.x", "finetune.tuner.options.width", "", ".", "a..b",
    "name.x", "finetune.head.options", "runtime.cache", "-1", "members.-1.name",
)  # fmt: skip


def _put(shop: Shop, name: str, content: bytes) -> Path:
    path = shop.root / "fuzz" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def _options(shop: Shop, rng: random.Random) -> Callable[[], object]:
    """Build a loss, tuner, head or augmentation with an option that is anything."""
    import torch

    from dualtail.data.transforms import AUGMENTATIONS, build_augmentation
    from dualtail.imagespec import ImageSpec
    from dualtail.logits.losses import LOSSES, build_loss
    from dualtail.logits.prior import LabelPrior
    from dualtail.models.classifier import build_classifier
    from dualtail.models.heads import HEADS
    from dualtail.models.tuners import TUNERS

    registry: Any = rng.choice([LOSSES, TUNERS, HEADS, AUGMENTATIONS])
    name = rng.choice(list(registry))
    known = [*registry.options(name), *(["blocks", "seed"] if registry is TUNERS else []), "x"]
    options = {rng.choice(known): rng.choice(VALUES) for _ in range(rng.choice([1, 1, 2]))}

    def read() -> None:
        if registry is LOSSES:
            loss = build_loss(name, counts=[9, 1], pretrain_prior=LabelPrior.uniform(2), **options)
            loss(torch.zeros(3, 2), torch.tensor([0, 1, 1]))
        elif registry is AUGMENTATIONS:
            build_augmentation(ImageSpec(size=16), name, **options)(Image.new("RGB", (20, 24)))
        else:
            kind = "tuner" if registry is TUNERS else "head"
            given: dict[str, Any] = {
                "tuner": "none",
                "head": "cosine",
                kind: name,
                f"{kind}_options": options,
            }
            build_classifier(_loaded_backbone(shop), ["cat", "dog"], **given)

    return read


def _loaded_backbone(shop: Shop) -> Any:
    from dualtail.models.backbone import load_backbone

    return load_backbone(f"open_clip:{shop.root}/a", weights="random")


def _recipe_options(shop: Shop, rng: random.Random) -> Callable[[], object]:
    """Check the options of a recipe, as every command does first; a reader's options too."""
    from dualtail.data.readers import READERS
    from dualtail.data.transforms import AUGMENTATIONS
    from dualtail.logits.losses import LOSSES
    from dualtail.models.heads import HEADS
    from dualtail.models.tuners import TUNERS
    from dualtail.runs.choices import refuse_choice_faults
    from dualtail.runs.dataset import build_manifest
    from dualtail.runs.recipe_file import parse_recipe

    registry, place = rng.choice([(READERS, "data"), (LOSSES, "finetune.loss"), (TUNERS, "finetune.tuner"),
                                  (HEADS, "finetune.head"), (AUGMENTATIONS, "finetune.augment")])  # fmt: skip
    things: Any = registry
    name = rng.choice(list(things))
    options = {option: rng.choice(VALUES) for option in things.options(name) if rng.random() < 0.4}
    options.pop("dataset", None)  # would ask the network
    change = {f"{place}.{'reader' if place == 'data' else 'name'}": name, f"{place}.options": options}

    def read() -> None:
        recipe = parse_recipe(shop.content(change))
        refuse_choice_faults(recipe)
        if place == "data":
            build_manifest(recipe.data, recipe.seed)

    return read


def _image_bytes(shop: Shop, rng: random.Random) -> Callable[[], object]:
    from dualtail.data.images import decode_image

    kind, content = rng.choice(_images())
    path = _put(shop, f"image.{kind}", mutate_bytes(content, rng))
    return lambda: decode_image(path, rng.choice([None, 8]))


@lru_cache(maxsize=1)
def _images() -> list[tuple[str, bytes]]:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8))
    made = []
    for kind in ("png", "jpeg", "gif", "bmp", "tiff", "webp", "ppm"):
        file = io.BytesIO()
        image.save(file, kind)
        made.append((kind, file.getvalue()))
    made.append(("jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n"))
    return made


def _table(shop: Shop, rng: random.Random) -> Callable[[], object]:
    from dualtail.data.table import read_table

    rows = [
        ["path", "label", "split"],
        *([f"{s}/blue jay/{n}.bmp", "blue jay", s] for s in ("train", "test") for n in range(3)),
    ]
    if rng.random() < 0.5:
        rows = _garbled(rows, rng)
        content = "\n".join(",".join(row) for row in rows).encode(errors="surrogatepass")
    else:
        content = mutate_bytes("\n".join(",".join(row) for row in rows).encode(), rng)
    path = _put(shop, rng.choice(["t.csv", "t.tsv", "t.parquet"]) if rng.random() < 0.1 else "t.csv", content)
    return lambda: read_table(shop.root / "images", file=str(path)).fingerprint()


def _garbled(rows: list[list[str]], rng: random.Random) -> list[list[str]]:
    row = rng.choice(rows)
    row[rng.randrange(len(row))] = f"{rng.choice(VALUES)!s:.6000}"
    return rows


def _lists(shop: Shop, rng: random.Random) -> Callable[[], object]:
    from dualtail.data.lists import read_lists

    rows = [[f"train/blue jay/{n}.bmp", str(n % 3)] for n in range(6)]
    text = "\n".join(" ".join(row) for row in _garbled(rows, rng)).encode(errors="surrogatepass")
    content = text if rng.random() < 0.5 else mutate_bytes(text, rng)
    names = mutate_tree(["a", "b", "c"], rng) if rng.random() < 0.5 else {"0": "a", "1": "b", "2": "c"}
    _put(shop, "names.json", json.dumps(names).encode(errors="surrogatepass"))
    path = _put(shop, "list.txt", content)
    return lambda: read_lists(
        shop.root / "images", train=str(path), class_names=str(path.with_name("names.json"))
    ).fingerprint()


def _run_json(shop: Shop, rng: random.Random) -> Callable[[], object]:
    """Damage a JSON, YAML or CSV file of a run; the report reads it."""
    from dualtail.report.export import write_tables

    out = _copy_of_run(shop)
    files = [path for path in sorted(out.rglob("*")) if path.suffix in (".json", ".yaml", ".csv")]
    path = rng.choice(files)
    if path.suffix == ".json" and rng.random() < 0.6:
        content = json.dumps(mutate_tree(json.loads(path.read_text()), rng)).encode(errors="surrogatepass")
    else:
        content = mutate_bytes(path.read_bytes(), rng)
    path.write_bytes(content)
    return lambda: write_tables([out], "json", out / "tables.json", [])


def _copy_of_run(shop: Shop) -> Path:
    out = shop.root / "fuzz" / "run"
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(shop.finished, out, ignore=shutil.ignore_patterns("events", "report.html"))
    return out


def _records(shop: Shop, rng: random.Random) -> Callable[[], object]:
    from dualtail.runs.records import StageRecords

    content = json.loads((shop.finished / "stages.json").read_text())
    folder = _put(
        shop, "records/stages.json", json.dumps(mutate_tree(content, rng)).encode(errors="surrogatepass")
    ).parent

    def read() -> None:
        records = StageRecords(folder)
        records.read()
        for key in list(content)[:3]:
            records.is_done(key, "x")

    return read


def _tensors(shop: Shop, rng: random.Random) -> Callable[[], object]:
    """Damage the header or the body of a safetensors file; its reader reads it."""
    from dualtail.engine.checkpoint import read_checkpoint
    from dualtail.models.classifier import load_classifier
    from dualtail.models.weights import read_state_dict
    from dualtail.runs.logits_file import LogitsFile

    kind = rng.choice(["logits", "weights", "classifier", "checkpoint"])
    source = {
        "logits": shop.finished / "members/a/logits.safetensors",
        "weights": shop.root / "b/weights.safetensors",
        "classifier": shop.finished / "members/a/trainable.safetensors",
        "checkpoint": next(shop.unfinished.rglob("resume/**/*.safetensors")),
    }[kind]
    path = _put(shop, f"{kind}/{source.name}", _mutate_tensors(source.read_bytes()[: 1 << 20], rng))
    if kind == "classifier":
        config = (shop.finished / "members/a/config.json").read_text()
        if rng.random() < 0.5:
            config = json.dumps(mutate_tree(json.loads(config), rng))
            shutil.copyfile(source, path)
        path.with_name("config.json").write_text(config)

    def read() -> None:
        if kind == "logits":
            file = LogitsFile(path, "test")
            _ = file.labels, file.sample_ids, file.logits, file.features, file.num_classes
        elif kind == "weights":
            read_state_dict(path)
        elif kind == "classifier":
            load_classifier(path.parent)
        else:
            read_checkpoint(path.parent)

    return read


def _mutate_tensors(content: bytes, rng: random.Random) -> bytes:
    size = int.from_bytes(content[:8], "little")
    if rng.random() < 0.5:
        return mutate_bytes(content, rng)
    header = json.dumps(mutate_tree(json.loads(content[8 : 8 + size]), rng)).encode(errors="surrogatepass")
    return len(header).to_bytes(8, "little") + header + content[8 + size :]


def _shards(shop: Shop, rng: random.Random) -> Callable[[], object]:
    from dualtail.data.webdataset import read_webdataset

    content = mutate_bytes(_tar(), rng) if rng.random() < 0.8 else _odd_tar(rng)
    folder = shop.root / "fuzz" / "shards"
    shutil.rmtree(folder, ignore_errors=True)
    _put(shop, "shards/train-0.tar", content)
    pattern = rng.choice(["train-*.tar"] * 9 + ["train-{0..99999999999}.tar", "**", "", "/", "[", "../*"])
    return lambda: read_webdataset(folder, train=pattern)


@lru_cache(maxsize=1)
def _tar() -> bytes:
    file = io.BytesIO()
    image = _images()[3][1]
    with tarfile.open(fileobj=file, mode="w") as tar:
        for number in range(4):
            for suffix, content in (("bmp", image), ("cls", str(number % 2).encode())):
                member = tarfile.TarInfo(f"{number}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return file.getvalue()


def _odd_tar(rng: random.Random) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for suffix in ("bmp", "cls"):
            member = tarfile.TarInfo(
                rng.choice(["../../x", "/x", "a\0b", "é", "", ".", "x" * 300]) + f".{suffix}"
            )
            member.type = rng.choice(
                [tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE]
            )
            member.linkname = "/etc/passwd"
            content = f"{rng.choice(VALUES)!s:.5000}".encode(errors="surrogatepass")
            member.size = rng.choice([len(content)] * 3 + [2**40])
            tar.fileobj.write(member.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape"))  # type: ignore[union-attr]
            tar.fileobj.write(content.ljust(-(-len(content) // 512) * 512, b"\0"))  # type: ignore[union-attr]
    return file.getvalue()


def _parquet(shop: Shop, rng: random.Random) -> Callable[[], object]:
    from dualtail.data.hugging_face import read_hugging_face

    folder = shop.root / "fuzz" / "parquet"
    shutil.rmtree(folder, ignore_errors=True)
    content = _parquet_bytes(None)
    content = mutate_bytes(content, rng) if rng.random() < 0.7 else _parquet_bytes(rng)
    _put(shop, "parquet/data/train-0.parquet", content)
    return lambda: read_hugging_face(folder, train="train")


def _parquet_bytes(rng: random.Random | None) -> bytes:
    import pyarrow as pa
    from pyarrow import parquet

    image = _images()[3][1]
    labels: Any = pa.array([0, 1, 0, 1])
    metadata = {"info": {"features": {"label": {"names": ["cat", "dog"]}}}}
    if rng:
        odd = [pa.array([None, 1, 0, 1]), pa.array([0.5, 1, float("nan"), 1]), pa.array(["a", "b\n", "", "c"]),
               pa.array([[0], [1], [0], [1]]), pa.array([2**63, 1, 0, 1], pa.uint64())]  # fmt: skip
        labels, metadata = rng.choice(odd), mutate_tree(metadata, rng)
    table = pa.table({"image": pa.array([{"bytes": image, "path": "x"}] * 4), "label": labels})
    text = json.dumps(metadata).encode(errors="surrogatepass")
    file = io.BytesIO()
    parquet.write_table(table.replace_schema_metadata({b"huggingface": text}), file)
    return file.getvalue()


def _folders(shop: Shop, rng: random.Random) -> Callable[[], object]:
    """A model folder's config, and class descriptions."""
    from dualtail.models.backbone import load_backbone
    from dualtail.runs.choices import read_descriptions

    config = json.loads((shop.root / "a/open_clip_config.json").read_text())
    if rng.random() < 0.3:
        words = json.dumps(mutate_tree({"a": ["b"]}, rng)).encode(errors="surrogatepass")
        path = _put(shop, "words.json", mutate_bytes(words, rng))
        return lambda: read_descriptions(str(path))
    text = json.dumps(mutate_tree(config, rng)).encode(errors="surrogatepass")
    path = _put(shop, "model/open_clip_config.json", text if rng.random() < 0.8 else mutate_bytes(text, rng))
    return lambda: load_backbone(f"open_clip:{path.parent}", weights="random")


FUZZERS: dict[str, Fuzzer] = {
    "recipe": _recipe,
    "recipe text": _yaml_text,
    "options": _options,
    "options of a recipe": _recipe_options,
    "image": _image_bytes,
    "table": _table,
    "lists": _lists,
    "files of a run": _run_json,
    "records": _records,
    "tensors": _tensors,
    "shards": _shards,
    "Parquet": _parquet,
    "model folder": _folders,
}
