"""The run directory: the one place that knows where each of a run's files lies; one writer at a time.

Everything in it is safetensors, JSON, YAML or CSV, and is there whole or not at all.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from dualtail.errors import RunError
from dualtail.files import read_json, reading, sweep_temporaries, write_text
from dualtail.locks import Lock
from dualtail.runs.members import BackbonePlan, MemberPlan, plan_backbones, plan_members
from dualtail.runs.provenance import FORMAT_VERSION
from dualtail.runs.recipe import Recipe
from dualtail.runs.recipe_file import dump_recipe, read_stored_recipe, recipe_differences
from dualtail.runs.records import RUN, StageRecords


class BackboneFiles:
    """Where what is known of a foundation model before fine-tuning lies.

    Attributes:
        folder: its folder.
        info: what it is: architecture, weights, number of parameters.
        zero_shot: its zero-shot logits; only a backbone with a text tower has these and what follows.
        prior: its estimated pre-training label prior.
        groups: the P-groups by its own prior.
        metrics: the evaluation of its zero-shot logits, with the P-groups of its own prior.
        common_metrics: the same with the P-groups of the members' mean prior, as every model of the run has it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.info = folder / "backbone.json"
        self.zero_shot = folder / "zero_shot.safetensors"
        self.prior = folder / "prior.json"
        self.groups = folder / "groups.json"
        self.metrics = folder / "metrics.json"
        self.common_metrics = folder / "common_metrics.json"


class MemberFiles:
    """Where a fine-tuned member lies.

    Attributes:
        folder: its folder, which ``load_classifier`` reads.
        events: folder of its TensorBoard events.
        classifier: trained weights, and what they belong to.
        checkpoints: folder of an unfinished training.
        trained: folder in it of a finished one, until its files take the place of the member's.
        training: what the training did.
        logits: its logits and features.
        metrics: the evaluation of its logits, with the P-groups of its own backbone's prior.
        common_metrics: the same with the P-groups of the members' mean prior, as every model of the run has it.
    """

    def __init__(self, folder: Path, events: Path) -> None:
        self.folder, self.events = folder, events
        self.classifier = (folder / "trainable.safetensors", folder / "config.json")
        self.checkpoints = folder / "resume"
        self.trained = self.checkpoints / "trained"
        self.training = folder / "training.json"
        self.logits = folder / "logits.safetensors"
        self.metrics = folder / "metrics.json"
        self.common_metrics = folder / "common_metrics.json"


class AdjustedFiles:
    """Where the backdoor-adjusted ensemble and the comparisons with it lie.

    Attributes:
        folder: their folder.
        weights: P(c).
        prior: the mean of the members' log priors.
        groups: the P-groups by that mean.
        metrics: the evaluation of the ensemble.
        methods: the evaluation of every method that the run's logits allow.
        subsets: the evaluation of every subset of the members.
        comparisons: paired comparisons of the ensemble with each member.
        neighbors: nearest-neighbour accuracy of the features; only with a val split.
        disagreement: how differently the members answer, err and see.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.weights = folder / "weights.json"
        self.prior = folder / "prior.json"
        self.groups = folder / "groups.json"
        self.metrics = folder / "metrics.json"
        self.methods = folder / "methods.json"
        self.subsets = folder / "subsets.json"
        self.comparisons = folder / "comparisons.json"
        self.neighbors = folder / "neighbors.json"
        self.disagreement = folder / "disagreement.json"

    def export(self, name: str) -> Path:
        """Return the CSV file of a table, which nothing reads back."""
        return self.folder / f"{name}.csv"


class AttributionFiles:
    """Where the maps of what each model looks at lie.

    Attributes:
        folder: their folder.
        maps: maps and images.
        about: which images and models they are of, and how alike they are.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.maps = folder / "maps.safetensors"
        self.about = folder / "attribution.json"


class RunDirectory:
    """A run on disk. Open it with :meth:`read` to look, or :meth:`open` to work in it.

    The recipe that results belong to and the one that is asked for are two files. :meth:`finish` brings them together;
    until then :meth:`standing` says that what is there is unfinished, or stale.

    Attributes:
        root: the directory.
        recipe: its resolved recipe: of :meth:`read`, the one that its results belong to.
        records: which stages are done.
        recipe_file: file of the recipe that results belong to.
        asked_file: file of the recipe that a run which has not finished was asked for.
        provenance: file of versions, machine, data and commands.
        classes: file of the classes' names, counts and groups.
        report: the page.
        adjusted: the backdoor-adjusted ensemble's files.
        attribution: the maps' files.
    """

    def __init__(self, root: Path, recipe: Recipe) -> None:
        self.root, self.recipe = root, recipe
        self.records = StageRecords(root)
        self.recipe_file, self.asked_file = _recipe_of(root), root / "asked.yaml"
        self.provenance = root / "provenance.json"
        self.classes = root / "classes.json"
        self.report = root / "report.html"
        self.adjusted = AdjustedFiles(root / "adjusted")
        self.attribution = AttributionFiles(root / "attribution")
        self._lock: Lock | None = None

    @classmethod
    def read(cls, root: str | Path) -> RunDirectory:
        """Open an existing run for reading.

        Raises:
            RunError: it is not a run directory, or one of a newer format.
        """
        root = Path(root)
        if not _recipe_of(root).is_file():
            what = "is not a run directory" if root.exists() else "no such run directory"
            raise RunError(what, where=str(root), fix="give the directory that 'dualtail run --out' wrote")
        run = cls(root, read_stored_recipe(_recipe_of(root)))
        known = read_json(run.provenance, dict) if run.provenance.exists() else {}
        with reading(run.provenance):
            version = int(known.get("format_version", FORMAT_VERSION))
        if version > FORMAT_VERSION:
            raise RunError(
                f"was written in format {version}, this dualtail reads up to {FORMAT_VERSION}",
                where=str(root),
                fix="update dualtail",
            )
        return run

    @classmethod
    def open(cls, root: str | Path, recipe: Recipe, *, update: bool = False) -> RunDirectory:
        """Make a run directory, or go on in one that has the same recipe.

        The directory is locked until :meth:`close`. A changed ``runtime`` section is taken over silently, since it
        changes no result (precision aside); any other change needs ``update=True``.

        Raises:
            RunError: the directory holds something else, another recipe or a symbolic link, or is in use.
        """
        root = Path(root)
        if root.exists() and not root.is_dir():
            raise RunError("is a file", where=str(root), fix="choose another --out")
        run = cls(root, recipe)
        foreign = not _recipe_of(root).is_file() and not (root / ".lock").exists()
        if root.is_dir() and any(root.iterdir()) and foreign:
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
        _refuse_links(root)
        run._acquire()
        try:
            sweep_temporaries(root)
            if run._holds_work() and not update:
                run._refuse_older()
                run._refuse_other(cls.read(root).recipe)
            run._ask()
        except BaseException:
            run.close()
            raise
        return run

    def _ask(self) -> None:
        """Write down what is asked for, beside the recipe that finished results belong to."""
        asked = self.asked_file.is_file()
        if self.provenance.name in self.records.faults(RUN):
            self.provenance.unlink(missing_ok=True)  # damaged: it is begun anew
        if not asked and not self.records.closed and self.adjusted.metrics.is_file():
            self.records.close([self.recipe_file, self.provenance])  # finished by an older dualtail
        write_text(self.asked_file, dump_recipe(self.recipe))
        if not self.records.closed:
            write_text(self.recipe_file, dump_recipe(self.recipe))

    def finish(self) -> None:
        """Record that all stages are done: the results belong to what was asked for."""
        write_text(self.recipe_file, dump_recipe(self.recipe))
        self.records.close([self.recipe_file, self.provenance])
        self.asked_file.unlink(missing_ok=True)

    def standing(self) -> str | None:
        """Return what is to be said beside results that belong to an earlier recipe than was asked for, else None.

        Raises:
            RunError: the run is unfinished, so that results are missing or do not belong together, or its recipe is
                not as it was written.
        """
        asked, closed = self.asked_file.is_file(), self.records.closed
        if closed:
            self.records.verify(self.recipe_file)
        if not self.records.is_whole if closed else asked:
            raise RunError(
                "the run is unfinished: " + ("an update" if closed else "it") + " stopped between two stages",
                where=str(self.root),
                fix="'dualtail run' with the same recipe and --out goes on where it was",
            )
        if not self.records.path.is_file():
            return f"nothing vouches for these results: {self.records.path.name} is missing"
        changed = recipe_differences(self.recipe, read_stored_recipe(self.asked_file)) if asked else []
        if not changed:
            return None
        return (
            f"stale: an update of the run ({_some(changed)}) has not finished; these results belong to the recipe "
            "before it"
        )

    def _refuse_older(self) -> None:
        if self.records.are_older:
            raise RunError(
                "was made by an older dualtail, whose results cannot be gone on from: all would be computed anew",
                where=str(self.root),
                fix="choose another --out, or add --update to do so here ('dualtail report' shows it as it is)",
            )

    def _refuse_other(self, stored: Recipe) -> None:
        changed = recipe_differences(stored, self.recipe)
        if changed and self.asked_file.is_file():
            changed = recipe_differences(read_stored_recipe(self.asked_file), self.recipe) and changed
        if changed:
            raise RunError(
                f"belongs to another recipe ({_some(changed)})",
                where=str(self.root),
                fix="choose another --out, or add --update to go on here and redo only the stages it changes",
            )

    def _holds_work(self) -> bool:
        """Whether something was computed here; a run that failed at once leaves the directory free."""
        unfinished = self.member("*").checkpoints.relative_to(self.root)
        return self.records.path.is_file() or any(self.root.glob(f"{unfinished}/*/*"))

    def _acquire(self) -> None:
        lock = Lock(self.root / ".lock")
        try:
            ours = lock.acquire()
        except OSError as error:
            raise RunError(
                f"cannot be written to ({error.strerror})", where=str(self.root), fix="choose another --out"
            ) from None
        if not ours:
            holder = lock.holder()
            raise RunError(
                f"is in use by another run{f' ({holder})' if holder else ''}",
                where=str(self.root),
                fix="wait for it, or choose another --out",
            )
        self._lock = lock

    def close(self) -> None:
        """Release the directory."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # What the recipe asks for.

    @cached_property
    def members(self) -> list[MemberPlan]:
        """The members of the recipe, in its order."""
        return plan_members(self.recipe)

    @cached_property
    def backbones(self) -> list[BackbonePlan]:
        """The distinct backbones of the members, in order."""
        return plan_backbones(self.members)

    # Where everything lies.

    def backbone(self, name: str) -> BackboneFiles:
        """Return the files of a backbone before fine-tuning."""
        return BackboneFiles(self.root / "backbones" / name)

    def member(self, name: str) -> MemberFiles:
        """Return the files of a fine-tuned member."""
        return MemberFiles(self.root / "members" / name, self.root / "events" / name)

    def has_text(self, plan: BackbonePlan) -> bool:
        """Whether a backbone has a text tower, hence zero-shot logits and a prior of its own."""
        info = self.verified(self.backbone(plan.name).info)
        with reading(info):
            return bool(read_json(info, dict)["has_text"])

    def verified(self, path: Path) -> Path:
        """Return a file of the run to read: every reader asks here.

        Raises:
            RunError: it does not hold what its stage wrote.
        """
        return self.records.verify(path)

    def classifier(self, name: str) -> Path:
        """Return the folder of a member's trained classifier, to read, as :meth:`verified` does."""
        files = self.member(name)
        for path in files.classifier:
            self.verified(path)
        return files.folder


def _some(keys: Sequence[str]) -> str:
    return f"{', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''}"


def _refuse_links(root: Path) -> None:
    """Refuse a directory with symbolic links: files of a run are written and deleted where its names say."""
    for folder, folders, names in os.walk(root):
        for link in filter(os.path.islink, (os.path.join(folder, name) for name in [*folders, *names])):
            raise RunError(
                "is a symbolic link, and a run directory has none",
                where=link,
                fix="put there what it points to, or choose another --out",
            )


def _recipe_of(root: Path) -> Path:
    return root / "recipe.yaml"
