"""Label priors: from counts, estimated from a model's logits, averaged over models.

Three different quantities go by the name "label prior"; a :class:`LabelPrior` says in ``source`` which one it is.

- ``P_S(Y)``, the source prior of the downstream training set: :meth:`LabelPrior.from_counts`.
- ``P_P(Y)``, the prior that pre-training left in a model: ``estimate_label_prior``.
- the prior of an unlabelled target set: ``estimate_target_prior``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from dualtail.errors import InputError
from dualtail.logits._arrays import ArrayLike, as_counts, as_float, check_finite

# How far from 1 the probabilities of a given log prior may sum before it is taken for something else
# (counts, probabilities, unnormalised scores).
_NORMALISATION_TOLERANCE = 1e-4

_SOURCES = ("counts", "zero_shot", "unlabelled", "mean", "uniform", "given")


@dataclass(frozen=True, eq=False)
class LabelPrior:
    """A distribution over classes, ``log P(Y)``, with what is known of its error and its origin.

    Args:
        log_prob: ``(C,)`` natural logarithms, finite, normalised (logsumexp within 1e-4 of 0; the rest is
            taken off). Kept as float64 on the CPU.
        standard_errors: ``(C,)`` standard errors of ``log_prob``, or None where it is not an estimate.
        source: ``"counts"`` (``P_S``), ``"zero_shot"`` (``P_P`` from labelled logits), ``"unlabelled"`` (the
            prior of an unlabelled target set), ``"mean"`` (of several), ``"uniform"`` or ``"given"``.
        num_samples: how many samples it was estimated from.
        optimality_gap: an upper bound on how far the estimate's objective, in nats a sample, is above its
            minimum.
        temperature: what the logits were divided by before the estimate.
        shrinkage: precision of the Gaussian prior on the log-probabilities that was used (0: none).

    Raises:
        InputError: the values are not finite, or not normalised log-probabilities.

    Example:
        >>> prior = LabelPrior.from_counts([60, 30, 10])
        >>> prior.prob
        tensor([0.6000, 0.3000, 0.1000], dtype=torch.float64)
        >>> len(prior), prior.source
        (3, 'counts')
    """

    log_prob: Tensor
    standard_errors: Tensor | None = None
    source: str = "given"
    num_samples: int | None = None
    optimality_gap: float | None = None
    temperature: float | None = None
    shrinkage: float | None = None

    def __post_init__(self) -> None:
        log_prob = _normalised(self.log_prob, "log_prob").cpu()
        object.__setattr__(self, "log_prob", log_prob)
        if self.source not in _SOURCES:
            raise InputError(f"unknown source {self.source!r}", fix=f"one of {', '.join(_SOURCES)}")
        if self.standard_errors is not None:
            errors = as_float(self.standard_errors, "standard_errors").detach().double().cpu()
            if errors.shape != log_prob.shape:
                raise InputError(
                    f"standard_errors has shape {tuple(errors.shape)}",
                    fix=f"expected {tuple(log_prob.shape)}",
                )
            if bool((check_finite(errors, "standard_errors") < 0).any()):
                raise InputError("standard_errors holds a negative value")
            object.__setattr__(self, "standard_errors", errors)

    def __len__(self) -> int:
        """Return the number of classes C."""
        return len(self.log_prob)

    def __repr__(self) -> str:
        known = [f"classes={len(self)}", f"source={self.source!r}"]
        for name in ("num_samples", "optimality_gap", "temperature", "shrinkage"):
            value = getattr(self, name)
            if value is not None:
                known.append(f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}")
        return f"LabelPrior({', '.join(known)})"

    @property
    def prob(self) -> Tensor:
        """The probabilities ``(C,)``, float64."""
        return self.log_prob.exp()

    @classmethod
    def from_counts(
        cls, counts: ArrayLike, zero: Literal["error", "smooth"] = "error", smoothing: float | None = None
    ) -> LabelPrior:
        """Return ``P_S(y) = n_y / N``, or ``(n_y + smoothing) / (N + C smoothing)``.

        Args:
            counts: ``(C,)`` numbers of samples of each class, not negative.
            zero: what to do about a class without samples, whose log-probability would be minus infinity:
                ``"error"`` refuses it and names the classes, ``"smooth"`` adds ``smoothing`` to every class.
            smoothing: the amount for ``zero="smooth"``; 1 is Laplace's rule, 0.5 is Jeffreys'.

        Raises:
            InputError: counts are malformed, a class is empty under ``"error"``, or the amount is missing.

        Example:
            >>> LabelPrior.from_counts([3, 0, 1], zero="smooth", smoothing=1).prob.tolist()
            [0.571..., 0.142..., 0.285...]
        """
        counts = as_counts(counts)
        if zero == "error":
            if smoothing is not None:
                raise InputError("smoothing is given but zero='error'", fix="pass zero='smooth'")
            if bool((counts == 0).any()):
                empty = (counts == 0).nonzero().flatten().tolist()
                raise InputError(
                    f"counts are zero for {_list_classes(empty)}",
                    fix="pass zero='smooth' with a smoothing, or leave the classes out",
                )
        elif zero == "smooth":
            if smoothing is None or not (0 < smoothing < math.inf):
                raise InputError(f"smoothing is {smoothing}", fix="zero='smooth' needs a positive amount")
            counts = counts + smoothing
        else:
            raise InputError(f"unknown zero policy {zero!r}", fix="'error' or 'smooth'")
        return cls(counts.log() - counts.sum().log(), source="counts")

    @classmethod
    def uniform(cls, num_classes: int) -> LabelPrior:
        """Return the uniform prior over ``num_classes`` classes.

        Example:
            >>> LabelPrior.uniform(4).prob.tolist()
            [0.25, 0.25, 0.25, 0.25]
        """
        if num_classes < 2:
            raise InputError(f"num_classes is {num_classes}", fix="expected at least 2")
        return cls(torch.full((num_classes,), -math.log(num_classes), dtype=torch.float64), source="uniform")

    @classmethod
    def mean(cls, priors: Sequence[LabelPrior]) -> LabelPrior:
        """Return the mean of log priors, renormalised: the prior of an ensemble that averages logits.

        Standard errors, if every prior has them, are the mean of the errors: an upper bound however the
        estimates correlate, as those from the same samples do.

        Args:
            priors: one or more priors over the same classes.

        Example:
            >>> ensemble = LabelPrior.mean([LabelPrior.from_counts([8, 1, 1]), LabelPrior.from_counts([1, 8, 1])])
            >>> ensemble.prob.tolist()
            [0.424..., 0.424..., 0.15...]
        """
        priors = list(priors)
        if not priors:
            raise InputError("no priors to average", fix="pass at least one")
        sizes = {len(prior) for prior in priors}
        if len(sizes) > 1:
            raise InputError(f"priors have different numbers of classes: {sorted(sizes)}")
        log_prob = torch.stack([prior.log_prob for prior in priors]).mean(0).log_softmax(0)
        errors = [prior.standard_errors for prior in priors if prior.standard_errors is not None]
        standard_errors = torch.stack(errors).mean(0) if len(errors) == len(priors) else None
        return cls(log_prob, standard_errors, source="mean")

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-able values; :meth:`from_dict` reads it back exactly."""
        return {
            "log_prob": self.log_prob.tolist(),
            "standard_errors": None if self.standard_errors is None else self.standard_errors.tolist(),
            "source": self.source,
            "num_samples": self.num_samples,
            "optimality_gap": self.optimality_gap,
            "temperature": self.temperature,
            "shrinkage": self.shrinkage,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> LabelPrior:
        """Read what :meth:`to_dict` wrote.

        Raises:
            InputError: a key is missing or unknown.
        """
        known = set(cls.__dataclass_fields__)
        if set(data) != known:
            wrong = sorted(known ^ set(data))
            raise InputError(f"not a saved label prior: {wrong[0]!r} is missing or unknown")
        values = dict(data)
        values["log_prob"] = torch.tensor(data["log_prob"], dtype=torch.float64)
        if data["standard_errors"] is not None:
            values["standard_errors"] = torch.tensor(data["standard_errors"], dtype=torch.float64)
        return cls(**values)


def as_log_prior(value: LabelPrior | ArrayLike, num_classes: int, name: str = "prior") -> Tensor:
    """Return ``log P(Y)`` as a float64 tensor ``(C,)``, from a :class:`LabelPrior` or an array of logs.

    An array must hold *log*-probabilities: nothing is guessed from its values.

    Args:
        value: the prior, or ``(C,)`` natural logarithms whose logsumexp is within 1e-4 of 0.
        num_classes: C.
        name: what the caller's user knows it by, for the message.

    Raises:
        InputError: wrong shape, values that are not finite, or not normalised.

    Example:
        >>> as_log_prior(LabelPrior.uniform(2), 2).tolist()
        [-0.693..., -0.693...]
        >>> as_log_prior([0.5, 0.5], 2)
        Traceback (most recent call last):
        ...
        dualtail.errors.InputError: prior: log-probabilities expected, but ...
    """
    log_prior = value.log_prob if isinstance(value, LabelPrior) else _normalised(value, name)
    if len(log_prior) != num_classes:
        raise InputError(f"{len(log_prior)} classes, but {num_classes} are expected", where=name)
    return log_prior


def _normalised(value: ArrayLike, name: str) -> Tensor:
    """Return ``(C,)`` log-probabilities as float64, refusing what is not normalised within the tolerance."""
    tensor = as_float(value, name).detach().double()
    if tensor.ndim != 1 or len(tensor) < 2:
        raise InputError(f"shape {tuple(tensor.shape)}", where=name, fix="expected (C,) with C >= 2")
    check_finite(tensor, name)
    total = tensor.logsumexp(0)
    if abs(float(total)) > _NORMALISATION_TOLERANCE:
        raise InputError(
            f"log-probabilities expected, but their exponentials sum to {math.exp(min(float(total), 700)):.4g}",
            where=name,
            fix="normalise them, or use LabelPrior.from_counts(counts)",
        )
    return tensor - total


def _list_classes(classes: list[int], most: int = 5) -> str:
    """Name up to ``most`` classes: "class 3", "classes 1, 4" or "12 classes (0, 1, 2, 3, 4, ...)"."""
    if len(classes) == 1:
        return f"class {classes[0]}"
    named = ", ".join(map(str, classes[:most]))
    return f"classes {named}" if len(classes) <= most else f"{len(classes)} classes ({named}, ...)"
