"""The run directory: the one place that knows where each of a run's files lies; one writer at a time.

Everything in it is safetensors, JSON, YAML or CSV, and is there whole or not at all.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from dualtail.errors import RunError
from dualtail.files import read_json, sweep_temporaries, write_text
from dualtail.runs.members import BackbonePlan, MemberPlan, plan_backbones, plan_members
from dualtail.runs.provenance import FORMAT_VERSION
from dualtail.runs.recipe import Recipe
from dualtail.runs.recipe_file import dump_recipe, read_stored_recipe, recipe_differences
from dualtail.runs.records import StageRecords


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

    Attributes:
        root: the directory.
        recipe: its resolved recipe.
        records: which stages are done.
        recipe_file: its file.
        provenance: file of versions, machine, data and commands.
        classes: file of the classes' names, counts and groups.
        report: the page.
        adjusted: the backdoor-adjusted ensemble's files.
        attribution: the maps' files.
    """

    def __init__(self, root: Path, recipe: Recipe) -> None:
        self.root, self.recipe = root, recipe
        self.records = StageRecords(root)
        self.recipe_file = _recipe_of(root)
        self.provenance = root / "provenance.json"
        self.classes = root / "classes.json"
        self.report = root / "report.html"
        self.adjusted = AdjustedFiles(root / "adjusted")
        self.attribution = AttributionFiles(root / "attribution")
        self._lock: Any = None

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
        known = read_json(run.provenance) if run.provenance.exists() else {}
        version = known.get("format_version", FORMAT_VERSION)
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
            RunError: the directory holds something else, another recipe, or is in use.
        """
        root = Path(root)
        if root.exists() and not root.is_dir():
            raise RunError("is a file", where=str(root), fix="choose another --out")
        run = cls(root, recipe)
        foreign = not _recipe_of(root).is_file() and not run._lock_file.exists()
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
        run._acquire()
        try:
            sweep_temporaries(root)
            if run._holds_work() and not update:
                run._refuse_other(cls.read(root).recipe)
            write_text(_recipe_of(root), dump_recipe(recipe))
        except BaseException:
            run.close()
            raise
        return run

    def _refuse_other(self, stored: Recipe) -> None:
        changed = recipe_differences(stored, self.recipe)
        if changed:
            raise RunError(
                f"belongs to another recipe ({', '.join(changed[:3])}{', ...' if len(changed) > 3 else ''})",
                where=str(self.root),
                fix="choose another --out, or add --update to go on here and redo only the stages it changes",
            )

    def _holds_work(self) -> bool:
        """Whether something was computed here; a run that failed at once leaves the directory free."""
        unfinished = self.member("*").checkpoints.relative_to(self.root)
        return self.records.path.is_file() or any(self.root.glob(f"{unfinished}/*/*"))

    @property
    def _lock_file(self) -> Path:
        return self.root / ".lock"

    def _acquire(self) -> None:
        import fcntl

        try:
            self._lock = open(self._lock_file, "a")  # noqa: SIM115 (held until close)
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
        return bool(read_json(self.backbone(plan.name).info)["has_text"])


def _recipe_of(root: Path) -> Path:
    return root / "recipe.yaml"
