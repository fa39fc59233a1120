"""``stages.json``: which stage was done for which unit, from which inputs, and what it wrote."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from dualtail.errors import RunError
from dualtail.files import file_digest, fingerprint, inside, read_json, reading, write_json
from dualtail.runs.provenance import now, versions_of
from dualtail.runs.stored import check_stored

RUN = "run"
"""The key of the record that vouches for the run as a whole; no stage has this name."""


class Content(NamedTuple):
    """What a file holds."""

    size: int
    sha256: str


class Source(NamedTuple):
    """A unit that another one was made from: the inputs it had, and the digest of its files."""

    inputs: str | None
    digest: str


@dataclass(frozen=True)
class StageRecord:
    """What is known of one unit of a stage.

    Attributes:
        inputs: fingerprint of what it was made from; None once its files are about to be overwritten.
        outputs: its files, relative to the run directory, and what they hold; None in records of older runs.
        seconds: what it took; of a pass that served several units, its equal share.
        finished: when, UTC.
        units: how many units that pass served; None in records of older runs, where each of its units has all of it.
        sources: the units whose files it was made from, by key.
        versions: of the packages that it depends on.
    """

    inputs: str | None
    outputs: Mapping[str, Content | None]
    seconds: float
    finished: str
    units: int | None = None
    sources: Mapping[str, Source] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """The digest of its files."""
        return fingerprint(self.outputs)


class StageRecords:
    """The records of a run directory.

    A record vouches for files, so it is withdrawn before the first of them is overwritten; the list of its files
    stays until the new ones are complete, so that none is left that nobody knows.

    Each record knows size and SHA-256 of its files: a file is compared with them when it is read
    (:meth:`verify`) and when its unit is to be skipped (:meth:`is_done`), and hashed once a process.

    Args:
        root: the run directory.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.path = root, root / "stages.json"
        self._known: tuple[tuple[int, ...], dict[str, StageRecord]] | None = None

    def read(self) -> dict[str, StageRecord]:
        """Return the records of what is complete, by ``stage`` or ``stage/unit``, in the order of their completion."""
        return {key: record for key, record in self._stages().items() if record.inputs is not None}

    def inputs_of(self, key: str) -> str | None:
        """Return the inputs of what is complete, None if it is not."""
        record = self._all().get(key)
        return record.inputs if record else None

    def is_done(self, key: str, inputs: str, outputs: Collection[Path] = ()) -> bool:
        """Whether ``key`` is complete from these ``inputs``, with all its files, ``outputs`` among them, as written.

        Nor may a unit that it was made from have been made anew from the same inputs: after damage, say.
        """
        records = self._all()
        record = records.get(key)
        if record is None or record.inputs != inputs or not set(self._names(outputs)) <= set(record.outputs):
            return False
        for name, source in record.sources.items():
            now_there = records.get(name)
            if now_there is None or now_there.inputs is None:
                return False
            if now_there.inputs == source.inputs and now_there.digest != source.digest:
                return False
        return not self.faults(key)

    def faults(self, key: str) -> list[str]:
        """Return the files of a complete ``key`` that are gone or hold something else than was written."""
        record = self._all().get(key)
        if record is None or record.inputs is None:
            return []
        return [name for name, content in record.outputs.items() if not self._holds(name, content)]

    def has(self, path: Path) -> bool:
        """Whether ``path`` is there, or should be."""
        return path.is_file() or self._content_of(path) is not None

    def verify(self, path: Path) -> Path:
        """Return ``path``, to be read now, once it holds what its stage wrote.

        Raises:
            RunError: it does not.
        """
        content = self._content_of(path)
        if content is not None and not self._holds(self._name(path), content):
            what = "does not hold what the run wrote: damaged, replaced, or unfinished"
            raise RunError(
                what if path.is_file() else "is missing",
                where=str(path),
                fix="'dualtail run' with the same recipe and --out makes it again",
            )
        return path

    def withdraw(self, keys: Collection[str]) -> None:
        """Vouch no longer for ``keys``: their files are about to be overwritten."""
        records = self._all()
        known = [key for key in keys if key in records]
        for key in known:
            records[key] = StageRecord(None, records[key].outputs, 0.0, "")
        if known:
            self._write(records)

    def add(
        self,
        key: str,
        inputs: str,
        outputs: Sequence[Path],
        seconds: float,
        *,
        units: int = 1,
        sources: Iterable[str] = (),
        versions: Mapping[str, str] | None = None,
    ) -> None:
        """Record that the ``outputs`` of ``key`` are complete; files that it had before and has no more are deleted.

        Args:
            key: of the unit.
            inputs: fingerprint of what it was made from.
            outputs: its files.
            seconds: what it took.
            units: how many units were served in that pass.
            sources: keys of the units whose files it was made from.
            versions: of the packages that it depends on.
        """
        records = self._all()
        names = self._names(outputs)
        before = records.pop(key, None)
        self._delete(set(before.outputs if before else ()) - set(names))
        used = {
            name: Source(records[name].inputs, records[name].digest) for name in sources if name in records
        }
        contents = {name: self._read_content(name) for name in names}
        record = StageRecord(inputs, contents, round(seconds, 2), now(), units, used, versions or {})
        self._write({**records, key: record})

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

    # The run as a whole.

    def close(self, files: Sequence[Path]) -> None:
        """Record that the run is whole: everything here belongs together and to ``files``.

        Files that an older dualtail wrote are vouched for from now on as they are.
        """
        for key, record in self._stages().items():
            if any(content is None for content in record.outputs.values()):
                contents = {name: self._read_content(name) for name in record.outputs}
                records = self._all()
                self._write({**records, key: StageRecord(**{**vars(record), "outputs": contents})})
        self.add(RUN, self._whole(), [path for path in files if path.is_file()], 0.0)

    @property
    def closed(self) -> bool:
        """Whether the run was whole once."""
        return RUN in self._all()

    @property
    def are_older(self) -> bool:
        """Whether some are of an older dualtail, which did not record what its files hold."""
        return any(None in record.outputs.values() for record in self.read().values())

    @property
    def is_whole(self) -> bool:
        """Whether the stages' files are still those that were there when the run was whole."""
        return self.inputs_of(RUN) == self._whole()

    def _whole(self) -> str:
        return fingerprint({key: record.digest for key, record in self._stages().items()})

    def _stages(self) -> dict[str, StageRecord]:
        return {key: record for key, record in self._all().items() if key != RUN}

    # Files.

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def _names(self, paths: Collection[Path]) -> list[str]:
        return [self._name(path) for path in paths]

    def _content_of(self, path: Path) -> Content | None:
        name = self._name(path)
        found = (record.outputs.get(name) for record in self._all().values())
        return next((content for content in found if content is not None), None)

    def _read_content(self, name: str) -> Content | None:
        path = self.root / name
        return Content(path.stat().st_size, file_digest(path)) if path.is_file() else None

    def _holds(self, name: str, content: Content | None) -> bool:
        path = self.root / name
        try:
            if content is None or path.stat().st_size != content.size:
                return content is None and path.exists()
            return file_digest(path) == content.sha256
        except OSError:
            return False

    def _delete(self, names: Collection[str]) -> None:
        for name in names:
            path = self.root / name
            path.unlink(missing_ok=True)
            if path.parent.is_dir() and not any(path.parent.iterdir()):
                path.parent.rmdir()

    # stages.json itself.

    def _all(self) -> dict[str, StageRecord]:
        try:
            known = self.path.stat()
        except FileNotFoundError:
            return {}
        state = (known.st_size, known.st_mtime_ns, known.st_ctime_ns, known.st_ino)
        if self._known is None or self._known[0] != state:
            fix = "delete it and run again: every stage is then done again, for nothing else tells what was done"
            rows: Mapping[str, Mapping[str, Any]] = read_json(self.path, dict, fix)
            with reading(self.path, fix):
                for key, row in rows.items():
                    self._own(key, key.partition("/")[2] or "unit", plain=True)
                    for name in row["outputs"]:
                        self._own(key, name)
                content = {key: _parse(key, record) for key, record in rows.items()}
                check_stored(content)
            self._known = (state, content)
        return dict(self._known[1])

    def _own(self, key: str, name: Any, *, plain: bool = False) -> None:
        """Refuse a name that is no file of this run, or not a ``plain`` one: outputs and units are deleted by name."""
        fix = "this file was made by somebody else's hand: delete it and run again"
        if plain and (name in {".", ".."} or "/" in name):
            raise RunError("names what is not a unit of this run", where=f"{self.path}, {key}", fix=fix)
        inside(self.root, name, where=f"{self.path}, {key}", fix=fix, error=RunError)

    def _write(self, records: Mapping[str, StageRecord]) -> None:
        rows = {key: asdict(record) for key, record in records.items()}
        write_json(self.path, {key: {**row, "seal": fingerprint(key, row)} for key, row in rows.items()})


def _parse(key: str, row: Mapping[str, Any]) -> StageRecord:
    """Read a record. One that is not as it was written vouches for nothing, nor for what its files hold."""
    names = row["outputs"]
    older = isinstance(names, list)
    own = {name: value for name, value in row.items() if name != "seal"}
    inputs = row["inputs"] if older or row.get("seal") == fingerprint(key, own) else None
    return StageRecord(
        inputs,
        dict.fromkeys(names) if older else {n: c and Content(*c) for n, c in names.items()},
        row.get("seconds", 0.0),
        row.get("finished", ""),
        row.get("units"),
        {name: Source(*source) for name, source in row.get("sources", {}).items()},
        row.get("versions", {}),
    )


def other_versions(records: Mapping[str, StageRecord]) -> list[str]:
    """Return a line for each version of a package, other than the one in use, that results were made with.

    Example:
        >>> record = StageRecord("f", {}, 1.0, "", versions={"torch": "1.0"})
        >>> other_versions({"logits/a": record, "logits/b": record})[0].partition(" (")[0]
        'logits/a, logits/b: made with torch 1.0'
    """
    used: dict[tuple[str, str], list[str]] = {}
    for key, record in records.items():
        for package, version in record.versions.items():
            used.setdefault((package, version), []).append(key)
    here = versions_of(package for package, _ in used)
    return [
        f"{', '.join(keys)}: made with {package} {version} (in use: {here.get(package, 'none')})"
        for (package, version), keys in used.items()
        if here.get(package) != version
    ]
