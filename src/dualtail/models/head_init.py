"""Where a head's first weights come from: text features, class means, a linear probe."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn import functional as F

from dualtail.errors import BackboneError, InputError
from dualtail.models.backbone import Backbone
from dualtail.registry import Registry
from dualtail.schema import PositiveFloat, PositiveInt, Seed

_INPUTS = frozenset({"text_features", "features", "labels"})


def text_weight(backbone: Backbone, text_features: Tensor) -> Tensor:
    """Return head weights from class text features: ``normalise(t @ proj.T)``, ``(C, D)``.

    The projection maps features to the joint space; its transpose maps text back to where the head reads.

    Args:
        backbone: whose projection is linear.
        text_features: ``(C, E)``, normalised.

    Raises:
        BackboneError: the projection is not linear, or the backbone has no text tower.

    Source:
        Shi et al., LIFT, ICML 2024 (arXiv 2309.10019).
    """
    _require_text(backbone)
    projection: Any = backbone.projection
    return F.normalize(projection.back(text_features.float()), dim=-1)


def _require_text(backbone: Backbone) -> None:
    if not backbone.has_text:
        raise BackboneError(
            "has no text tower to initialise the head from",
            where=backbone.name,
            fix="initialise the head with class_mean",
        )


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
    features: Tensor, labels: Tensor, num_classes: int, *, shots: PositiveInt = 16, seed: int = 0
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
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    strength: PositiveFloat = 1.0,
    iterations: PositiveInt = 1000,
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


def no_weight() -> None:
    """Leave the head's random weights as they are."""


HEAD_INITS: Registry[Callable[..., Tensor | None]] = Registry(
    "head initialisation",
    {
        "text": text_weight,
        "class_mean": class_mean_weight,
        "kshot_mean": kshot_mean_weight,
        "linear_probe": linear_probe_weight,
        "random": no_weight,
    },
    group="dualtail.head_inits",
    given=("backbone", "num_classes", "text_features", "features", "labels", "seed"),
    common={"seed": Seed},
)
"""What computes a head's first weights ``(C, D)``; it is given what its parameters name, see ``head_init_needs``."""


def head_init_needs(name: str) -> frozenset[str]:
    """Return what a head initialisation is computed from, of ``text_features``, ``features`` and ``labels``.

    Raises:
        InputError: unknown name.

    Example:
        >>> sorted(head_init_needs("class_mean")), sorted(head_init_needs("random"))
        (['features', 'labels'], [])
    """
    return _INPUTS & inspect.signature(HEAD_INITS.find(name)).parameters.keys()


def head_weight(
    name: str,
    backbone: Backbone,
    num_classes: int,
    *,
    text_features: Tensor | None = None,
    features: Tensor | None = None,
    labels: Tensor | None = None,
    seed: int = 0,
    **options: Any,
) -> Tensor | None:
    """Return a head's first weights ``(C, D)`` by the initialisation's name, None for ``random``.

    Args:
        name: a key of ``HEAD_INITS``.
        backbone: whose features the head reads.
        num_classes: C.
        text_features: ``(C, E)``, for ``text``: one prompt, a template ensemble or class descriptions.
        features: ``(N, D)`` of the training set, for the others.
        labels: ``(N,)``, for the same.
        seed: of what is drawn.
        **options: the initialisation's own, such as ``shots``.

    Raises:
        InputError: unknown name or option, or what ``head_init_needs`` names is missing.
        BackboneError: as for ``text_weight``.
    """
    options = HEAD_INITS.check_options(name, {**options, "seed": seed})
    seed = options.pop("seed")
    given = {"backbone": backbone, "num_classes": num_classes, "text_features": text_features}
    given |= {"features": features, "labels": labels, "seed": seed}
    init = HEAD_INITS[name]
    taken = {key: given[key] for key in inspect.signature(init).parameters if key in given}
    if "text_features" in taken:
        _require_text(backbone)
    if missing := [key for key, value in taken.items() if value is None]:
        raise InputError(f"the head initialisation {name!r} needs {' and '.join(missing)}")
    return init(**taken, **options)


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
