"""What every model of a run says of every test image: its class, its confidence, and what it gave the truth.

These few numbers an image are read from the logits on disk in one pass over chunks of rows, so that memory does not
grow with the number of classes; confusions, worst images and calibration all follow from them.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dualtail.logits.backdoor import backdoor_adjust
from dualtail.logits.calibration import ReliabilityCurve, reliability_from
from dualtail.runs.finished import RunResults
from dualtail.runs.logits_file import RunLogits, has_logits

_BINS = 10  # of a calibration curve


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
        members: answers by the name of a member.
        ensemble: answers of the adjusted ensemble.
    """

    labels: NDArray[np.int64]
    sample_ids: tuple[str, ...]
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
    if not has_logits(results.run):
        return None
    stored = RunLogits(results.run, results.classes.evaluated_on, results.classes.names)
    ensemble: list[list[Tensor]] = []
    members: dict[str, list[list[Tensor]]] = defaultdict(list)
    for rows, logits in stored.chunks():
        own = {name: logits["member", name] for name in stored.members}
        for name, scores in own.items():
            members[name].append(_answers(scores, stored.labels[rows]))
        adjusted = backdoor_adjust(list(own.values()), weights=results.member_prior)
        ensemble.append(_answers(adjusted, stored.labels[rows]))
    return Samples(
        stored.labels.numpy(),
        stored.sample_ids,
        {name: _joined(parts) for name, parts in members.items()},
        _joined(ensemble),
    )


def _answers(logits: Tensor, labels: Tensor) -> list[Tensor]:
    # numpy's search is many times faster than torch's
    prediction = torch.from_numpy(logits.numpy().argmax(1))
    both = logits.gather(1, torch.stack([prediction, labels], dim=1))
    # Rounding may lift a sure answer just above 1.
    probabilities = (both - logits.logsumexp(1, keepdim=True)).exp().clamp(max=1)
    return [prediction, probabilities[:, 0], probabilities[:, 1]]


def _joined(parts: list[list[Tensor]]) -> Answers:
    return Answers(*(torch.cat(column).numpy() for column in zip(*parts, strict=True)))


def reliability(
    answers: Answers, labels: NDArray[np.int64], where: NDArray[np.bool_] | None = None, bins: int = _BINS
) -> ReliabilityCurve:
    """Return accuracy against confidence, over the images ``where`` is true.

    Args:
        answers: of a model.
        labels: ``(N,)``.
        where: ``(N,)`` booleans; all images by default.
        bins: of equal width.
    """
    chosen = slice(None) if where is None else where
    return reliability_from(answers.confidence[chosen], (answers.prediction == labels)[chosen], bins)
