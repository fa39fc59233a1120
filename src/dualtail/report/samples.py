"""What every model of a run says of every test image: its class, its confidence, and what it gave the truth.

These few numbers an image are read from the logits on disk in one pass over chunks of rows, so that memory does not
grow with the number of classes; confusions, worst images and calibration all follow from them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dualtail.errors import RunError
from dualtail.logits._arrays import row_chunks
from dualtail.logits.backdoor import backdoor_adjust
from dualtail.logits.calibration import ReliabilityCurve
from dualtail.report.results import RunResults
from dualtail.runs.analysis import read_member_prior
from dualtail.runs.store import RunDirectory

ENSEMBLE = "adjusted"


@dataclass(frozen=True)
class Answers:
    """What one model says of ``N`` images.

    Attributes:
        prediction: ``(N,)`` int64 predicted classes.
        confidence: ``(N,)`` float32 probabilities of the predicted classes.
        truth: ``(N,)`` float32 probabilities of the true classes.
    """

    prediction: NDArray[np.int64]
    confidence: NDArray[np.float32]
    truth: NDArray[np.float32]


@dataclass(frozen=True)
class Samples:
    """The evaluated images of a run.

    Attributes:
        labels: ``(N,)`` int64.
        sample_ids: their names.
        zero_shot: answers by the name of a backbone.
        members: answers by the name of a member.
        ensemble: answers of the adjusted ensemble.
    """

    labels: NDArray[np.int64]
    sample_ids: tuple[str, ...]
    zero_shot: dict[str, Answers]
    members: dict[str, Answers]
    ensemble: Answers

    def __len__(self) -> int:
        """Return the number of images N."""
        return len(self.labels)


def read_samples(results: RunResults) -> Samples | None:
    """Return the answers of a run's models on its evaluation split; None where its logits are not there.

    Raises:
        RunError: a logits file cannot be read, or holds other images than the others.
    """
    split = results.classes.evaluated_on
    files = {
        ("member", member.name): results.root / "members" / member.name / "logits.safetensors"
        for member in results.members
    }
    for backbone in results.backbones:
        path = results.root / "backbones" / backbone.name / "zero_shot.safetensors"
        if path.is_file():
            files["zero_shot", backbone.name] = path
    members = [key for key in files if key[0] == "member"]
    if not members or not all(files[key].is_file() for key in members):
        return None
    labels, sample_ids = _read_ids(files[members[0]], split)
    prior = read_member_prior(RunDirectory(results.root, results.recipe))
    found: dict[tuple[str, str], list[list[Tensor]]] = {key: [] for key in [*files, (ENSEMBLE, "")]}
    for rows, logits in _chunks(files, split, len(labels)):
        target = torch.from_numpy(labels[rows])
        for key, chunk in logits.items():
            found[key].append(_answers(chunk, target))
        adjusted = backdoor_adjust([logits[key] for key in members], weights=prior)
        found[ENSEMBLE, ""].append(_answers(adjusted, target))
    answers = {
        key: Answers(*(torch.cat(column).numpy() for column in zip(*parts, strict=True)))
        for key, parts in found.items()
    }
    return Samples(
        labels,
        sample_ids,
        {name: value for (kind, name), value in answers.items() if kind == "zero_shot"},
        {name: value for (kind, name), value in answers.items() if kind == "member"},
        answers[ENSEMBLE, ""],
    )


def _read_ids(path: Path, split: str) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Return labels and names of a file's images without its logits."""
    with _open(path) as file:
        ids = bytes(file.get_tensor(f"{split}.sample_ids").numpy()).decode()
        return file.get_tensor(f"{split}.labels").numpy(), tuple(json.loads(ids))


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise RunError(f"cannot be read ({error})", where=str(path), fix="delete it and run again") from None


def _chunks(
    files: Mapping[tuple[str, str], Path], split: str, num_samples: int
) -> Iterator[tuple[slice, dict[tuple[str, str], Tensor]]]:
    """Yield the same rows of every file at a time."""
    with ExitStack() as stack:
        slices: dict[tuple[str, str], Any] = {}
        for key, path in files.items():
            slices[key] = stack.enter_context(_open(path)).get_slice(f"{split}.logits")
            if slices[key].get_shape()[0] != num_samples:
                raise RunError(
                    f"its {split} images are not those of the other members",
                    where=str(path),
                    fix="delete the file and run again",
                )
        classes = next(iter(slices.values())).get_shape()[1]
        for rows in row_chunks(num_samples, classes, 1 << 21):
            yield rows, {key: part[rows] for key, part in slices.items()}


def _answers(logits: Tensor, labels: Tensor) -> list[Tensor]:
    prediction = torch.from_numpy(
        logits.numpy().argmax(1)
    )  # numpy's search is many times faster than torch's
    both = logits.gather(1, torch.stack([prediction, labels], dim=1))
    probabilities = (both - logits.logsumexp(1, keepdim=True)).exp()
    return [prediction, probabilities[:, 0], probabilities[:, 1]]


def reliability(
    answers: Answers, labels: NDArray[np.int64], where: NDArray[np.bool_] | None = None, bins: int = 10
) -> ReliabilityCurve:
    """Return accuracy against confidence, over the images ``where`` is true.

    Args:
        answers: of a model.
        labels: ``(N,)``.
        where: ``(N,)`` booleans; all images by default.
        bins: of equal width.
    """
    confidence = answers.confidence.astype(np.float64)
    hits = answers.prediction == labels
    if where is not None:
        confidence, hits = confidence[where], hits[where]
    edges = np.linspace(0, 1, bins + 1)
    # Bins hold (low, high].
    place = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        mean = np.bincount(place, weights=confidence, minlength=bins) / count
        accuracy = np.bincount(place, weights=hits, minlength=bins) / count
    return ReliabilityCurve(edges, count.astype(np.int64), mean, accuracy)
