"""Where a head's first weights come from: text features, class means, a linear probe."""

from __future__ import annotations

from typing import Any

import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn import functional as F

from dualtail.errors import BackboneError, InputError, nearest
from dualtail.models.backbone import Backbone

# Name -> what it is computed from.
HEAD_INITS: dict[str, str] = {
    "text": "text_features",
    "class_mean": "features",
    "kshot_mean": "features",
    "linear_probe": "features",
    "random": "nothing",
}


def text_weight(backbone: Backbone, text_features: Tensor) -> Tensor:
    """Return head weights from class text features: ``normalise(t @ proj.T)``, ``(C, D)``.

    The projection maps features to the joint space; its transpose maps text back to where the head reads. Source:
    Shi et al., LIFT, 2024 (arXiv 2309.10019).

    Args:
        backbone: whose projection is linear.
        text_features: ``(C, E)``, normalised.

    Raises:
        BackboneError: the projection is not linear, or the backbone has no text tower.
    """
    if not backbone.has_text:
        raise BackboneError(
            "has no text tower to initialise the head from",
            where=backbone.name,
            fix="initialise the head with class_mean",
        )
    projection: Any = backbone.projection
    return F.normalize(projection.back(text_features.float()), dim=-1)


def class_mean_weight(features: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Return head weights from training features: each class's mean of unit features, normalised, ``(C, D)``.

    Args:
        features: ``(N, D)``.
        labels: ``(N,)`` int64; every class occurs.
        num_classes: C.

    Raises:
        InputError: a class has no sample, or the two lengths differ.

    Example:
        >>> class_mean_weight(torch.eye(2), torch.tensor([0, 1]), 2)
        tensor([[1., 0.],
                [0., 1.]])
    """
    counts = _counts(features, labels, num_classes)
    unit = F.normalize(features.float(), dim=-1)
    sums = unit.new_zeros(num_classes, unit.shape[1]).index_add_(0, labels.to(unit.device), unit)
    return F.normalize(sums / counts.to(unit)[:, None], dim=-1)


def kshot_mean_weight(
    features: Tensor, labels: Tensor, num_classes: int, *, shots: int = 16, seed: int = 0
) -> Tensor:
    """Return the class means of at most ``shots`` samples a class, drawn without replacement, ``(C, D)``.

    Every class then rests on as many samples as every other one with enough of them.

    Args:
        features: ``(N, D)``.
        labels: ``(N,)`` int64; every class occurs.
        num_classes: C.
        shots: samples a class.
        seed: of the draw.

    Raises:
        InputError: as for ``class_mean_weight``, or ``shots`` below 1.

    Example:
        >>> kshot_mean_weight(torch.eye(3)[[0, 0, 1]], torch.tensor([0, 0, 1]), 2, shots=1)
        tensor([[1., 0., 0.],
                [0., 1., 0.]])
    """
    if shots < 1:
        raise InputError(f"shots is {shots}", fix="give at least one")
    _counts(features, labels, num_classes)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    shuffled = labels.cpu()[order]
    by_class = torch.argsort(shuffled, stable=True)
    sizes = torch.bincount(shuffled, minlength=num_classes)
    first = torch.repeat_interleave(sizes.cumsum(0) - sizes, sizes)
    rank = torch.arange(len(labels)) - first
    chosen = order[by_class[rank < shots]].to(features.device)
    return class_mean_weight(features[chosen], labels.to(features.device)[chosen], num_classes)


def linear_probe_weight(
    features: Tensor, labels: Tensor, num_classes: int, *, strength: float = 1.0, iterations: int = 1000
) -> Tensor:
    """Return the normalised weights of a balanced logistic regression on unit features, ``(C, D)``.

    Every class weighs the same however many samples it has (scikit-learn's ``class_weight="balanced"``).

    Args:
        features: ``(N, D)``.
        labels: ``(N,)`` int64; every class occurs.
        num_classes: C, at least 2.
        strength: inverse strength of the L2 penalty.
        iterations: at most as many L-BFGS steps.

    Raises:
        InputError: as for ``class_mean_weight``.

    Example:
        >>> linear_probe_weight(torch.eye(3), torch.arange(3), 3).argmax(dim=1)
        tensor([0, 1, 2])
    """
    _counts(features, labels, num_classes)
    unit = F.normalize(features.float(), dim=-1).cpu().numpy()
    probe = LogisticRegression(C=strength, class_weight="balanced", max_iter=iterations)
    rows = torch.from_numpy(probe.fit(unit, labels.cpu().numpy()).coef_).to(features.device).float()
    if num_classes == 2:  # scikit-learn gives the one direction that tells class 1 from class 0
        rows = torch.cat([-rows, rows])
    return F.normalize(rows, dim=-1)


def head_weight(
    name: str,
    backbone: Backbone,
    num_classes: int,
    *,
    text_features: Tensor | None = None,
    features: Tensor | None = None,
    labels: Tensor | None = None,
    shots: int = 16,
    seed: int = 0,
) -> Tensor | None:
    """Return a head's first weights ``(C, D)`` by the initialisation's name, None for ``random``.

    Args:
        name: a key of ``HEAD_INITS``, which says what it needs.
        backbone: whose features the head reads.
        num_classes: C.
        text_features: ``(C, E)``, for ``text``: one prompt, a template ensemble or class descriptions.
        features: ``(N, D)`` of the training set, for the others.
        labels: ``(N,)``, for the same.
        shots: for ``kshot_mean``.
        seed: for ``kshot_mean``.

    Raises:
        InputError: unknown name, or what it needs is missing.
        BackboneError: as for ``text_weight``.
    """
    if name not in HEAD_INITS:
        guess = nearest(name, list(HEAD_INITS))
        raise InputError(
            f"unknown head initialisation {name!r}",
            fix=f"did you mean {guess!r}?" if guess else f"choose from {', '.join(HEAD_INITS)}",
        )
    if name == "random":
        return None
    if name == "text":
        if text_features is None and backbone.has_text:
            raise InputError("the head initialisation 'text' needs text_features")
        return text_weight(backbone, text_features if text_features is not None else torch.empty(0))
    if features is None or labels is None:
        raise InputError(f"the head initialisation {name!r} needs the training set's features and labels")
    if name == "class_mean":
        return class_mean_weight(features, labels, num_classes)
    if name == "kshot_mean":
        return kshot_mean_weight(features, labels, num_classes, shots=shots, seed=seed)
    return linear_probe_weight(features, labels, num_classes)


def _counts(features: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Return samples a class, refusing a class without any."""
    if len(features) != len(labels):
        raise InputError(f"{len(features)} features for {len(labels)} labels")
    counts = torch.bincount(labels, minlength=num_classes)
    if len(counts) > num_classes:
        raise InputError(f"a label is {len(counts) - 1}", fix=f"expected values from 0 to {num_classes - 1}")
    if bool((counts == 0).any()):
        raise InputError(f"class {int((counts == 0).nonzero()[0])} has no sample to start its weights from")
    return counts
