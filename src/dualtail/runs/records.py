"""``stages.json``: which stage was done for which unit, from which inputs, and what it wrote."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dualtail.files import read_json, write_json
from dualtail.runs.provenance import now


@dataclass(frozen=True)
class StageRecord:
    """What is known of one unit of a stage.

    Attributes:
        inputs: fingerprint of what it was made from; None once its files are about to be overwritten.
        outputs: its files, relative to the run directory.
        seconds: what it took; of a pass that served several units, its equal share.
        finished: when, UTC.
        units: how many units that pass served; None in records of older runs, where each of its units has all of it.
    """

    inputs: str | None
    outputs: tuple[str, ...]
    seconds: float
    finished: str
    units: int | None = None


class StageRecords:
    """The records of a run directory.

    A record vouches for files, so it is withdrawn before the first of them is overwritten; the list of its files
    stays until the new ones are complete, so that none is left that nobody knows.

    Args:
        root: the run directory.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.path = root, root / "stages.json"

    def read(self) -> dict[str, StageRecord]:
        """Return the records of what is complete, by ``stage`` or ``stage/unit``, in the order of their completion."""
        return {key: record for key, record in self._all().items() if record.inputs is not None}

    def inputs_of(self, key: str) -> str | None:
        """Return the inputs of what is complete, None if it is not."""
        record = self._all().get(key)
        return record.inputs if record else None

    def is_done(self, key: str, inputs: str, outputs: Collection[Path] = ()) -> bool:
        """Whether ``key`` is complete from these ``inputs`` and its files, ``outputs`` among them, are still there."""
        record = self._all().get(key)
        if record is None or record.inputs != inputs or not set(self._names(outputs)) <= set(record.outputs):
            return False
        return all((self.root / name).exists() for name in record.outputs)

    def withdraw(self, keys: Collection[str]) -> None:
        """Vouch no longer for ``keys``: their files are about to be overwritten."""
        records = self._all()
        known = [key for key in keys if key in records]
        for key in known:
            records[key] = StageRecord(None, records[key].outputs, 0.0, "")
        if known:
            self._write(records)

    def add(self, key: str, inputs: str, outputs: Sequence[Path], seconds: float, *, units: int = 1) -> None:
        """Record that the ``outputs`` of ``key`` are complete; files that it had before and has no more are deleted."""
        records = self._all()
        names = self._names(outputs)
        before = records.pop(key, None)
        self._delete(set(before.outputs if before else ()) - set(names))
        self._write({**records, key: StageRecord(inputs, tuple(names), round(seconds, 2), now(), units)})

    def forget(self, keys: Collection[str]) -> None:
        """Drop records and their files: the recipe has these no longer."""
        self.withdraw(keys)
        records = self._all()
        gone = [records.pop(key) for key in keys if key in records]
        if gone:
            self._delete({name for record in gone for name in record.outputs})
            self._write(records)

    def of_stage(self, stage: str) -> list[str]:
        """Return the keys of a stage, complete or not."""
        return [key for key in self._all() if key.partition("/")[0] == stage]

    def _names(self, paths: Collection[Path]) -> list[str]:
        return [path.relative_to(self.root).as_posix() for path in paths]

    def _delete(self, names: Collection[str]) -> None:
        for name in names:
            path = self.root / name
            path.unlink(missing_ok=True)
            if path.parent.is_dir() and not any(path.parent.iterdir()):
                path.parent.rmdir()

    def _all(self) -> dict[str, StageRecord]:
        if not self.path.exists():
            return {}
        content: Mapping[str, Mapping[str, Any]] = read_json(self.path)
        return {
            key: StageRecord(
                record["inputs"],
                tuple(record["outputs"]),
                record.get("seconds", 0.0),
                record.get("finished", ""),
                record.get("units"),
            )
            for key, record in content.items()
        }

    def _write(self, records: Mapping[str, StageRecord]) -> None:
        write_json(self.path, {key: asdict(record) for key, record in records.items()})
