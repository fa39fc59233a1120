"""Damage to each file of a finished run, and single bits of weights, logits and checkpoints."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from faults.command import Done, run, told
from faults.kills import UPDATES
from faults.shop import Shop, Verdict, generator, judge, spread


def _truncate(path: Path, rng: random.Random, _: Path) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * rng.random())])


def flip_bit(path: Path, rng: random.Random, _: Path | None = None) -> None:
    """Turn one bit of a file over."""
    content = bytearray(path.read_bytes() or b"\0")
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def _empty(path: Path, _: random.Random, __: Path) -> None:
    path.write_bytes(b"")


def _swap(path: Path, rng: random.Random, other: Path) -> None:
    if other.is_file() and other.read_bytes() != path.read_bytes():
        shutil.copyfile(other, path)
    else:
        _truncate(path, rng, other)


def _delete(path: Path, _: random.Random, __: Path) -> None:
    path.unlink()


def _make_folder(path: Path, _: random.Random, __: Path) -> None:
    path.unlink()
    path.mkdir()


KINDS: dict[str, Callable[[Path, random.Random, Path], None]] = {
    "truncated": _truncate,
    "one bit flipped": flip_bit,
    "emptied": _empty,
    "swapped with another run's": _swap,
    "deleted": _delete,
    "a folder in its place": _make_folder,
}


def _files(folder: Path, names: Sequence[str] = ("*",)) -> list[Path]:
    found = {path for name in names for path in folder.rglob(name) if path.is_file()}
    return sorted(path.relative_to(folder) for path in found if path.name != ".lock")


def damage(shop: Shop, seed: int) -> Verdict:
    """Damage one file of a finished run; then report, predict and run."""
    kinds, files = list(KINDS), _files(shop.finished)
    kind = kinds[seed % len(kinds)]
    return damage_file(shop, str(files[int(spread(seed) * len(files))]), kind, seed)


def damage_file(shop: Shop, name: str, kind: str, seed: int) -> Verdict:
    """Damage a file by name and judge what is told of the run."""
    other = shop.reference("update_training", UPDATES["training"]) / name
    out = shop.fresh(shop.finished)
    KINDS[kind](out / name, generator("damage", seed), other)
    return _judge(shop, out, f"{name} {kind}")


def _judge(shop: Shop, out: Path, what: str) -> Verdict:
    for command, expected, done in (
        ("report", shop.tables, told(out)),
        ("predict", shop.predictions, told(out, shop.photos)),
    ):
        if done.failure:
            return Verdict(done.failure, f"{what}, {command}: {done.last_line}")
        if done.code == 0 and _numbers(done) != _numbers(expected):
            return Verdict("silently other", f"{what}, {command}")
    return judge(run(shop.recipe, out), out, shop.results, f"{what}, run")


def _numbers(done: Done) -> object:
    """Return what was told, without where it came from."""
    try:
        told = (
            [json.loads(line) for line in done.out.splitlines()]
            if "\n{" in done.out
            else json.loads(done.out)
        )
    except ValueError:
        return done.out
    return told


def bit(shop: Shop, seed: int) -> Verdict:
    """Flip one bit of the tensors of a finished run, or of an unfinished one's checkpoint."""
    rng = generator("bit", seed)
    start = shop.unfinished if seed % 2 else shop.finished
    names = ["resume/**/*.safetensors"] if seed % 2 else ["*.safetensors"]
    files = _files(start, names)
    name = files[int(spread(seed) * len(files))]
    out = shop.fresh(start)
    flip_bit(out / name, rng)
    if seed % 2:
        return judge(run(shop.recipe, out), out, shop.results, f"one bit of {name} of an unfinished run, run")
    return _judge(shop, out, f"one bit of {name}")
