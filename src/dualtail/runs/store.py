"""The run directory: atomic writes, stage fingerprints, logits on disk, provenance, one writer at a time.

Everything in it is safetensors, JSON, YAML or CSV. A stage is recorded in ``stages.json`` with the fingerprint of
its inputs once its outputs are complete, so that a run that stops anywhere goes on with the first stage whose
record is missing or stale.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dualtail.errors import RunError
from dualtail.runs.recipe import Recipe, dump_recipe, read_recipe

FORMAT_VERSION = 1


# --- plain files


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` that replaces it when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically; NaN is refused, since it is not JSON."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file of a run directory."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(
            "is missing", where=str(path), fix="run 'dualtail run' on this directory again"
        ) from None
    except (OSError, ValueError) as error:
        raise RunError(f"cannot be read ({error})", where=str(path), fix="delete it and run again") from None


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows of equal keys as CSV atomically; None is an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def read_csv(path: Path) -> list[dict[str, str]]:
    """Read what ``write_csv`` wrote, every cell as text."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    except OSError as error:
        raise RunError(f"cannot be read ({error.strerror})", where=str(path), fix="run again") from None


def fingerprint(*parts: Any) -> str:
    """Return a short digest of JSON-able parts that is the same in every process.

    Example:
        >>> fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
        True
    """
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


# --- logits


@dataclass(frozen=True)
class SplitLogits:
    """Logits of one split.

    Attributes:
        logits: ``(N, C)`` float32.
        labels: ``(N,)`` int64.
        sample_ids: ``N`` names of the samples (the manifest's paths), in the order of the rows.
        features: ``(N, D)`` float16 features before the projection, where they were kept.
    """

    logits: Tensor
    labels: Tensor
    sample_ids: tuple[str, ...]
    features: Tensor | None = None


def write_logits(path: Path, splits: Mapping[str, SplitLogits]) -> None:
    """Write the logits of several splits to one safetensors file; sample ids travel as UTF-8 JSON bytes."""
    tensors: dict[str, Tensor] = {}
    for name, split in splits.items():
        ids = json.dumps(split.sample_ids, ensure_ascii=False).encode()
        tensors[f"{name}.logits"] = split.logits.float().contiguous()
        tensors[f"{name}.labels"] = split.labels.long().contiguous()
        tensors[f"{name}.sample_ids"] = torch.from_numpy(np.frombuffer(ids, dtype=np.uint8).copy())
        if split.features is not None:
            tensors[f"{name}.features"] = split.features.half().contiguous()
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"format": f"dualtail-logits-{FORMAT_VERSION}"})


def read_logits(path: Path, split: str, *, features: bool = False) -> SplitLogits:
    """Read one split of a logits file."""
    try:
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
            if f"{split}.logits" not in names:
                raise RunError(f"has no split {split!r}", where=str(path))
            ids = bytes(file.get_tensor(f"{split}.sample_ids").numpy()).decode()
            return SplitLogits(
                file.get_tensor(f"{split}.logits"),
                file.get_tensor(f"{split}.labels"),
                tuple(json.loads(ids)),
                file.get_tensor(f"{split}.features") if features and f"{split}.features" in names else None,
            )
    except FileNotFoundError:
        raise RunError(
            "is missing", where=str(path), fix="run 'dualtail run' on this directory again"
        ) from None
    except SafetensorError as error:
        raise RunError(f"cannot be read ({error})", where=str(path), fix="delete it and run again") from None


# --- the directory


class RunDirectory:
    """A run on disk. Open it with :meth:`read` to look, or :meth:`open` to work in it.

    Attributes:
        root: the directory.
        recipe: its resolved recipe.
    """

    def __init__(self, root: Path, recipe: Recipe) -> None:
        self.root, self.recipe = root, recipe
        self._lock: Any = None

    @classmethod
    def read(cls, root: str | Path) -> RunDirectory:
        """Open an existing run for reading.

        Raises:
            RunError: it is not a run directory, or one of a newer format.
        """
        root = Path(root)
        if not (root / "recipe.yaml").is_file():
            what = "is not a run directory" if root.exists() else "no such run directory"
            raise RunError(what, where=str(root), fix="give the directory that 'dualtail run --out' wrote")
        provenance = root / "provenance.json"
        version = read_json(provenance).get("format_version", FORMAT_VERSION) if provenance.exists() else 1
        if version > FORMAT_VERSION:
            raise RunError(
                f"was written in format {version}, this dualtail reads up to {FORMAT_VERSION}",
                where=str(root),
                fix="update dualtail",
            )
        return cls(root, read_recipe(root / "recipe.yaml"))

    @classmethod
    def open(cls, root: str | Path, recipe: Recipe, *, update: bool = False) -> RunDirectory:
        """Make a run directory, or go on in one that has the same recipe.

        The directory is locked until :meth:`close`. A changed ``runtime`` section is taken over silently, since it
        changes no result; any other change needs ``update=True``.

        Raises:
            RunError: the directory holds something else, another recipe, or is in use.
        """
        root = Path(root)
        if root.exists() and not root.is_dir():
            raise RunError("is a file", where=str(root), fix="choose another --out")
        if (
            root.is_dir()
            and any(root.iterdir())
            and not (root / "recipe.yaml").is_file()
            and not (root / ".lock").exists()
        ):
            raise RunError(
                "is not empty and is not a run directory",
                where=str(root),
                fix="choose another --out, or empty it",
            )
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(
                f"cannot be made ({error.strerror})", where=str(root), fix="choose another --out"
            ) from None
        run = cls(root, recipe)
        run._acquire()
        try:
            if run._holds_work() and not update:
                changed = recipe_differences(cls.read(root).recipe, recipe)
                if changed:
                    raise RunError(
                        f"belongs to another recipe ({', '.join(changed[:3])}{', ...' if len(changed) > 3 else ''})",
                        where=str(root),
                        fix="choose another --out, or add --update to go on here and redo only the stages it changes",
                    )
            write_text(root / "recipe.yaml", dump_recipe(recipe))
        except BaseException:
            run.close()
            raise
        return run

    def _holds_work(self) -> bool:
        """Whether something was computed here; a run that failed at once leaves the directory free."""
        return (self.root / "stages.json").is_file() or any(self.root.glob("members/*/resume/*/*"))

    def _acquire(self) -> None:
        import fcntl

        try:
            self._lock = open(self.root / ".lock", "a")  # noqa: SIM115 (held until close)
        except OSError as error:
            raise RunError(
                f"cannot be written to ({error.strerror})", where=str(self.root), fix="choose another --out"
            ) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            self._lock = None
            raise RunError(
                "is in use by another run", where=str(self.root), fix="wait for it, or choose another --out"
            ) from None

    def close(self) -> None:
        """Release the directory."""
        if self._lock is not None:
            self._lock.close()  # closing releases the lock
            self._lock = None

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Places.

    def backbone_dir(self, name: str) -> Path:
        """Folder of what is known of a foundation model before fine-tuning."""
        return self.root / "backbones" / name

    def member_dir(self, name: str) -> Path:
        """Folder of a fine-tuned member."""
        return self.root / "members" / name

    @property
    def adjusted_dir(self) -> Path:
        """Folder of the backdoor-adjusted ensemble."""
        return self.root / "adjusted"

    # Stages.

    def stages(self) -> dict[str, Any]:
        """Return the records of the stages that are done."""
        path = self.root / "stages.json"
        return read_json(path) if path.exists() else {}

    def is_done(self, stage: str, inputs: str) -> bool:
        """Whether ``stage`` was completed with the same ``inputs`` (a fingerprint) and its outputs are still there."""
        record = self.stages().get(stage, {})
        return record.get("inputs") == inputs and all(
            (self.root / path).exists() for path in record["outputs"]
        )

    def mark_done(self, stage: str, inputs: str, outputs: Sequence[Path], seconds: float) -> None:
        """Record that the ``outputs`` of ``stage`` are complete."""
        kept = {path.relative_to(self.root).as_posix() for path in outputs}
        for path in set(self.stages().get(stage, {}).get("outputs", ())) - kept:
            (self.root / path).unlink(missing_ok=True)  # of an earlier recipe, and nobody's now
        record = {
            "inputs": inputs,
            "outputs": [path.relative_to(self.root).as_posix() for path in outputs],
            "seconds": round(seconds, 2),
            "finished": _now(),
        }
        write_json(self.root / "stages.json", {**self.stages(), stage: record})

    def forget(self, stage: str) -> None:
        """Drop the record of a stage that the recipe no longer has, and its outputs."""
        stages = self.stages()
        record = stages.pop(stage, None)
        if record is not None:
            for path in record["outputs"]:
                (self.root / path).unlink(missing_ok=True)
            write_json(self.root / "stages.json", stages)

    # Provenance.

    def write_provenance(self, **facts: Any) -> None:
        """Record versions, machine, command and the given facts; earlier facts are kept."""
        path = self.root / "provenance.json"
        before = read_json(path) if path.exists() else {"started": _now(), "commands": []}
        command = " ".join(sys.argv)
        commands = before["commands"] if command in before["commands"] else [*before["commands"], command]
        write_json(path, {**before, **_environment(), **facts, "commands": commands, "updated": _now()})


def recipe_differences(old: Recipe, new: Recipe) -> list[str]:
    """Return the dotted keys in which two recipes differ, the ``runtime`` section aside.

    Example:
        >>> from dualtail.runs.recipe import parse_recipe
        >>> a = parse_recipe({"name": "a", "data": {"root": "."}, "members": [{"backbone": "timm:x"}]})
        >>> recipe_differences(a, a.model_copy(update={"seed": 1}))
        ['seed']
    """
    first, second = (_flatten(recipe.model_dump(mode="json", exclude={"runtime"})) for recipe in (old, new))
    return sorted(key for key in first.keys() | second.keys() if first.get(key) != second.get(key))


def _flatten(content: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(content, dict):
        items: Any = content.items()
    elif isinstance(content, list) and any(isinstance(item, dict) for item in content):
        items = enumerate(content)
    else:
        return {prefix: content}
    flat: dict[str, Any] = {}
    for key, value in items:
        flat |= _flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _environment() -> dict[str, Any]:
    versions = {"python": platform.python_version()}
    for package in (
        "dualtail",
        "torch",
        "torchvision",
        "open_clip_torch",
        "timm",
        "accelerate",
        "peft",
        "numpy",
    ):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    cuda = torch.cuda.is_available()
    return {
        "format_version": FORMAT_VERSION,
        "versions": versions,
        "commit": _commit(),
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "cores": os.cpu_count(),
            "device": torch.cuda.get_device_name() if cuda else "cpu",
            "cuda": torch.version.cuda if cuda else None,
        },
    }


def _commit() -> str | None:
    """Return the commit of the dualtail checkout in use, or None for an installed package."""
    source = Path(__file__).resolve().parent
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        answer = subprocess.run(
            ["git", "-C", str(source), "describe", "--always", "--dirty", "--exclude=*"],
            capture_output=True, text=True, timeout=5, check=True,
        )  # fmt: skip
        tracked = subprocess.run(
            ["git", "-C", str(source), "ls-files", "--error-unmatch", __file__],
            capture_output=True,
            timeout=5,
        )
        return answer.stdout.strip() if tracked.returncode == 0 else None
    return None
