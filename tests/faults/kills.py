"""SIGKILL and injected errors at every file operation of a run, and then the same command again."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from faults.command import Done, run
from faults.operations import Heard, Operation, Operations, fail_at, kill_at, kill_where
from faults.shop import Change, Shop, Verdict, broken_files, generator, judge, results_of, spread

UPDATES: dict[str, Change] = {
    "prompts": {"text.templates": "{}", "text.descriptions": None},
    "training": {"finetune.learning_rate": 0.03, "seed": 1},
    "measures": {"evaluate.groups.few": 5, "evaluate.confidence": 0.9, "evaluate.attribution.steps": 3},
    "members": {"members.1.name": "c", "adjust.rule": "probabilities"},
}
"""Changes of the recipe that ``--update`` takes over: of the first stages, of training, of the last ones, of units."""

LIMITS = (1_000_000, 0, 50, 200, 400, 1000, 2000, 3000, 4000, 10_000, 100_000)
"""Bytes that a file may have, in :func:`full`."""

ERRORS = (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EACCES, errno.EIO)
_REFERENCED = {name: f"update_{name}" for name in UPDATES}


@dataclass(frozen=True)
class Scene:
    """What is disturbed and what is done next: recipes by name, None for a run from nothing or a failed one's copy."""

    start: str | None
    recipe: str
    then: str
    more: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.start is None:
            return "fresh run" if self.recipe == self.then else "fresh run, then another recipe"
        return f"{self.start} --update {self.recipe}, then {self.then}"


def _scenes() -> list[Scene]:
    fresh = Scene(None, "recipe", "recipe")
    updates = []
    for other in _REFERENCED.values():
        updates.append(Scene("recipe", other, "recipe", ("--update",)))
        updates.append(Scene("recipe", other, other, ("--update",)))
    return [scene for update in updates for scene in (fresh, update)]


SCENES = _scenes()


def disturb(shop: Shop, scene: Scene, heard: Heard) -> tuple[Path, Done]:
    """Run a scene's recipe with something that happens to its operations; return the directory and what it said."""
    start = _prepare(shop, scene)
    out = shop.fresh(start)
    done = run(
        shop.root / f"{scene.recipe}.yaml",
        out,
        *scene.more,
        before=lambda: Operations(out, heard, reads=True),
    )
    return out, done


def _prepare(shop: Shop, scene: Scene) -> Path | None:
    for name in {scene.recipe, scene.then, scene.start or "recipe"}:
        shop.reference(name, UPDATES.get(name.removeprefix("update_"), {}))
    return shop.reference(scene.start) if scene.start else None


@lru_cache(maxsize=64)
def scene_operations(shop: Shop, scene: Scene) -> list[Operation]:
    """Return the operations of a scene that nothing disturbs."""
    return shop.operations(shop.root / f"{scene.recipe}.yaml", _prepare(shop, scene), *scene.more)


def _choose(shop: Shop, scene: Scene, kind: str, seed: int, reads: float) -> Operation:
    """Return one of the scene's operations: of successive seeds evenly over the run; a share of them reads."""
    rng = generator(kind, seed)
    all_of_them = scene_operations(shop, scene)
    want_reads = rng.random() < reads
    some = [operation for operation in all_of_them if (operation.kind == "read") == want_reads]
    return some[int(spread(seed) * len(some))]


def again(shop: Shop, scene: Scene, out: Path, what: str) -> Verdict:
    """Run what follows a fault; it must end as if nothing had happened."""
    broken = broken_files(out)
    if broken:
        return Verdict("lost", f"{what}: {broken[0]} is there in part")
    done_before = _finished_members(out)
    done = run(shop.root / f"{scene.then}.yaml", out, *scene.more)
    verdict = judge(done, out, results_of(shop.reference(scene.then)), what)
    if verdict.verdict == "refused":
        return Verdict("lost", verdict.detail)
    if verdict.verdict == "equal" and scene.start is None:
        gone = [name for name, mark in done_before.items() if _finished_members(out).get(name) != mark]
        if gone:
            return Verdict("lost", f"{what}: trained again: {', '.join(gone)}")
    return verdict


def _finished_members(out: Path) -> dict[str, tuple[int, int]]:
    """Return a mark of the weights of each member whose training was recorded as done."""
    import json

    try:
        records = json.loads((out / "stages.json").read_text())
        done = [key.partition("/")[2] for key, record in records.items()
                if key.startswith("finetune/") and record["inputs"]]  # fmt: skip
        files = {name: (out / "members" / name / "trainable.safetensors").stat() for name in done}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    return {name: (status.st_ino, status.st_mtime_ns) for name, status in files.items()}


def kill(shop: Shop, seed: int) -> Verdict:
    """SIGKILL at an operation, or in the middle of a write; then the same recipe again, or the old one."""
    scene = SCENES[seed % len(SCENES)]
    operation = _choose(shop, scene, "kill", seed, reads=0.0)
    out, done = disturb(shop, scene, kill_at(operation.number))
    what = f"{scene}: killed at {operation}"
    if not done.killed:
        return Verdict("equal", f"{what}: not reached") if done.code == 0 else judge(done, out, {}, what)
    return again(shop, scene, out, what)


def fail(shop: Shop, seed: int) -> Verdict:
    """An error of the operating system at an operation, once or from then on; then the same command again."""
    scene = SCENES[seed % len(SCENES)]
    rng = generator("fail", seed)
    operation = _choose(shop, scene, "fail", seed, reads=0.1)
    code = errno.EIO if operation.kind in ("read", "fsync") else rng.choice(ERRORS)
    onwards = rng.random() < 0.5
    out, done = disturb(shop, scene, fail_at(operation.number, code, onwards=onwards))
    what = f"{scene}: {errno.errorcode[code]} at {operation}{' and on' * onwards}"
    if done.failure:
        return Verdict(done.failure, f"{what}: {done.last_line}")
    return again(shop, scene, out, what)


def full(shop: Shop, seed: int) -> Verdict:
    """No file may grow beyond some size, which the operating system itself says, also to native code."""
    import resource

    limit = LIMITS[seed % len(LIMITS)]
    scene = SCENES[0]
    _prepare(shop, scene)
    out = shop.fresh()
    done = run(shop.recipe, out, before=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    what = f"{scene}: no file above {limit} bytes"
    if done.failure:
        return Verdict(done.failure, f"{what}: {done.last_line}")
    return again(shop, scene, out, what)


def kill_where_chosen(scene: Scene, chosen: Callable[[Operation], bool], shop: Shop, nth: int) -> Verdict:
    """SIGKILL at the n-th operation that is ``chosen``, counted from 0."""
    out, _ = disturb(shop, scene, kill_where(chosen, nth + 1))
    return again(shop, scene, out, f"{scene}: killed at number {nth} of {chosen.__name__}")
