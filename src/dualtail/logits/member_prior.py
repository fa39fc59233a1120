"""P(c): how much each member counts, fitted on labelled logits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy import optimize
from torch import Tensor

from dualtail.errors import InputError
from dualtail.logits._arrays import ArrayLike, as_labels, check_saved
from dualtail.logits._convex import Minimum, Vector, box, newton, simplex
from dualtail.logits._pooling import Members, as_temperatures, as_weights, get_rule
from dualtail.logits.prior import LabelPrior

# Inverse temperatures are sought here: a member that is right on every sample would want an infinite one.
_COLDEST, _HOTTEST = 1e3, 1e-3

_FITS = (False, True, "member", "joint")


@dataclass(frozen=True, eq=False)
class MemberPrior:
    """A distribution over members ``P(c)`` with their temperatures, and how well it does.

    Args:
        weights: ``(M,)`` probabilities, float64.
        temperatures: ``(M,)`` that the members' logits are divided by, float64; 1 by default.
        rule: the rule of :func:`~dualtail.logits.backdoor.backdoor_adjust` it was fitted for.
        nll: negative log-likelihood in nats on the samples it was fitted to, balanced over classes or not.
        uniform_nll: the same for uniform weights and the temperatures that the fit started from.
        optimality_gap: ``nll`` is at most this far above the least one for these temperatures (of any weights and
            one common temperature, for the logit rules fitted jointly).
        num_samples: how many samples it was fitted to.
        balanced: whether every class had the same weight in ``nll``.

    Example:
        >>> prior = MemberPrior([0.75, 0.25])
        >>> prior.weights, prior.temperatures
        (tensor([0.7500, 0.2500], dtype=torch.float64), tensor([1., 1.], dtype=torch.float64))
    """

    weights: Tensor
    temperatures: Tensor = None  # type: ignore[assignment]  # __post_init__ fills in ones
    rule: str = "logits"
    nll: float | None = None
    uniform_nll: float | None = None
    optimality_gap: float | None = None
    num_samples: int | None = None
    balanced: bool | None = None

    def __post_init__(self) -> None:
        get_rule(self.rule)
        num_members = len(self.weights)
        weights = torch.tensor(as_weights(self.weights, num_members), dtype=torch.float64)
        object.__setattr__(self, "weights", weights)
        object.__setattr__(self, "temperatures", as_temperatures(self.temperatures, num_members))

    def __len__(self) -> int:
        """Return the number of members M."""
        return len(self.weights)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-able values; :meth:`from_dict` reads it back exactly."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {key: value.tolist() if isinstance(value, Tensor) else value for key, value in values.items()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> MemberPrior:
        """Read what :meth:`to_dict` wrote.

        Raises:
            InputError: a key is missing or unknown.
        """
        check_saved("member prior", data, cls.__dataclass_fields__)
        lists = {key: torch.tensor(data[key], dtype=torch.float64) for key in ("weights", "temperatures")}
        return cls(**{**data, **lists})


@torch.no_grad()
def fit_member_prior(
    members: Sequence[ArrayLike] | ArrayLike,
    labels: ArrayLike,
    *,
    rule: str = "logits",
    balanced: bool = True,
    temperatures: ArrayLike | None = None,
    fit_temperatures: bool | str = False,
    zero_shot_logits: Sequence[ArrayLike | None] | None = None,
    pretrain_priors: Sequence[LabelPrior | ArrayLike | None] | None = None,
    source_prior: LabelPrior | ArrayLike | None = None,
) -> MemberPrior:
    r"""Fit P(c) on labelled logits that no member was trained on: the weights that make the labels likeliest.

    .. math:: \min_{w \in \text{simplex}} \; \sum_i a_i \, \big( -\log P_w(y_i \mid x_i) \big)

    with ``a_i = 1 / (K n_{y_i})`` over the ``K`` classes that occur (balanced), or ``1 / N``. ``P_w`` is the
    ensemble's probability under the rule: the mixture ``sum_c w_c p_c`` for ``"probabilities"``, the normalised
    product ``prod_c p_c^{w_c}`` for ``"logits"`` and ``"log_probabilities"``. Both problems are convex in ``w``
    and are solved to a proven gap. Logits are read in chunks, once for each Newton step (once altogether for
    ``"probabilities"``).

    Temperatures can be fitted too:

    - ``"member"``: each member's own first (convex in ``1 / T``), then the weights. Members that are calibrated
      alone make an ensemble that is not: it is underconfident, and its likelihood can be the worse for it.
    - ``"joint"`` (or True): both together. Under the logit rules only ``w_c / T_c`` matters, so this is the
      convex problem in ``v_c = w_c / T >= 0`` with one common temperature, solved to a proven gap. Under
      ``"probabilities"`` it is not convex: descent from the better of the two solutions above.

    Weights that were fitted to few samples fit their noise: hold out what you compare on.

    Args:
        members: ``M`` arrays of logits ``(..., C)``.
        labels: ``(...)`` integers.
        rule: any but ``"median"``.
        balanced: every class counts the same, however many samples it has.
        temperatures: ``(M,)`` fixed ones, or where the fit starts; 1 by default.
        fit_temperatures: False, ``"member"``, ``"joint"`` or True.
        zero_shot_logits: as in :func:`~dualtail.logits.backdoor.backdoor_adjust`.
        pretrain_priors: as there.
        source_prior: as there.

    Returns:
        The weights and temperatures, to be passed as ``weights`` to
        :func:`~dualtail.logits.backdoor.backdoor_adjust`.

    Raises:
        InputError: the arrays do not fit together, hold values that are not finite, or the rule cannot be
            fitted.

    Source:
        Weights: linear and logarithmic opinion pools (Genest and Zidek, "Combining Probability Distributions",
        Statistical Science 1986). Temperatures: Guo et al., "On Calibration of Modern Neural Networks",
        ICML 2017 (arXiv 1706.04599).

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> labels = torch.arange(200) % 4
        >>> good = 3.0 * torch.eye(4)[labels] + torch.randn(200, 4, generator=generator)
        >>> noise = torch.randn(200, 4, generator=generator)
        >>> prior = fit_member_prior([good, noise], labels)
        >>> [round(weight, 2) for weight in prior.weights.tolist()]
        [1.0, 0.0]
        >>> prior.nll < prior.uniform_nll
        True
    """
    get_rule(rule)
    if rule == "median":
        raise InputError("weights cannot be fitted for rule 'median'", fix="choose another rule")
    if fit_temperatures not in _FITS:
        raise InputError(
            f"fit_temperatures is {fit_temperatures!r}", fix="expected False, 'member', 'joint' or True"
        )
    pool = Members(members, temperatures, zero_shot_logits, pretrain_priors, source_prior)
    target = as_labels(labels, pool.num_classes, pool.shape[:-1]).reshape(-1).to(pool.device)
    if not len(target):
        raise InputError("labels are empty", fix="pass at least one sample")
    labelled = _LabelledMembers(pool, target, _sample_weights(target, pool.num_classes, balanced))
    fit = _fit_mixture if rule == "probabilities" else _fit_product
    weights, multipliers, minimum, uniform_nll = fit(labelled, fit_temperatures)
    return MemberPrior(
        weights=torch.from_numpy(weights / weights.sum()),
        temperatures=pool.temperatures / torch.from_numpy(multipliers),
        rule=rule,
        nll=minimum.value,
        uniform_nll=uniform_nll,
        optimality_gap=minimum.gap,
        num_samples=len(target),
        balanced=balanced,
    )


class _LabelledMembers:
    """The objectives: each reads the members in chunks and sums in float64."""

    def __init__(self, pool: Members, labels: Tensor, sample_weights: Tensor) -> None:
        self.pool, self.labels, self.sample_weights = pool, labels, sample_weights

    def __len__(self) -> int:
        return len(self.pool)

    def product(self, multipliers: Vector, only: int | None = None) -> tuple[float, Vector, Vector]:
        """Return value, gradient and Hessian of the NLL of ``softmax(sum_c v_c z_c)`` in ``v``."""
        chosen = list(range(len(self))) if only is None else [only]
        value, slope = 0.0, np.zeros(len(chosen))
        curvature = np.zeros((len(chosen), len(chosen)))
        for rows in self.pool.chunks():
            scores = torch.stack([self.pool.read_member(c, rows).double() for c in chosen])
            labels, share = self.labels[rows][:, None], self.sample_weights[rows][:, None]
            of_label = torch.cat([member.gather(1, labels) for member in scores], dim=1)
            flat = scores.flatten(1)
            pooled = (scores.new_tensor(multipliers) @ flat).reshape(len(labels), -1)
            log_prob = pooled.log_softmax(-1)
            value -= float((share * log_prob.gather(1, labels)).sum())
            weighted = scores * (share * log_prob.exp())
            mean = weighted.sum(-1).T / share
            slope += (share * (mean - of_label)).sum(0).cpu().numpy()
            curvature += (weighted.flatten(1) @ flat.T - (share * mean).T @ mean).cpu().numpy()
        return value, slope, curvature

    def label_log_probs(self, multipliers: Vector) -> tuple[Vector, Vector]:
        """Return ``(N, M)`` log probabilities of the labels under ``softmax(b_c z_c)``; their slopes in ``b``."""
        logs, slopes = [], []
        for rows in self.pool.chunks():
            labels = self.labels[rows][:, None]
            for c in range(len(self)):
                scores = self.pool.read_member(c, rows).double()
                log_prob = (float(multipliers[c]) * scores).log_softmax(-1)
                logs.append(log_prob.gather(1, labels)[:, 0])
                slopes.append(scores.gather(1, labels)[:, 0] - (log_prob.exp() * scores).sum(-1))
        return self._table(logs), self._table(slopes)

    def _table(self, columns: list[Tensor]) -> Vector:
        """Return ``(N, M)`` from the columns of each chunk, members first."""
        members = len(self)
        chunks = [torch.stack(columns[i : i + members], dim=1) for i in range(0, len(columns), members)]
        return torch.cat(chunks).cpu().numpy()


_Fit = tuple[
    Vector, Vector, Minimum, float
]  # weights, inverse temperatures, where it ended, NLL of uniform weights


def _fit_product(labelled: _LabelledMembers, fit_temperatures: bool | str) -> _Fit:
    members = len(labelled)
    uniform = np.full(members, 1 / members)
    uniform_nll = labelled.product(uniform)[0]
    if fit_temperatures in (True, "joint"):
        minimum = newton(labelled.product, uniform, box(0.0, _COLDEST))
        total = float(np.clip(minimum.point.sum(), _HOTTEST, _COLDEST))
        weights = minimum.point if minimum.point.any() else uniform
        return weights, np.full(members, total), minimum, uniform_nll
    multipliers = _fit_each(labelled) if fit_temperatures == "member" else np.ones(members)

    def scaled(weights: Vector) -> tuple[float, Vector, Vector]:
        value, slope, curvature = labelled.product(weights * multipliers)
        return value, slope * multipliers, curvature * np.outer(multipliers, multipliers)

    minimum = newton(scaled, uniform, simplex())
    return minimum.point, multipliers, minimum, uniform_nll


def _fit_mixture(labelled: _LabelledMembers, fit_temperatures: bool | str) -> _Fit:
    members = len(labelled)
    share = labelled.sample_weights.cpu().numpy()
    uniform = np.full(members, 1 / members)
    uniform_nll = _mixture(labelled.label_log_probs(np.ones(members))[0], share, uniform)[0]

    def best_weights(multipliers: Vector) -> tuple[Minimum, Vector]:
        table = labelled.label_log_probs(multipliers)[0]
        return newton(lambda weights: _mixture(table, share, weights), uniform, simplex()), multipliers

    if not fit_temperatures:
        candidates = [best_weights(np.ones(members))]
    elif fit_temperatures == "member":
        candidates = [best_weights(_fit_each(labelled))]
    else:
        candidates = [best_weights(np.ones(members)), best_weights(_fit_each(labelled))]
        minimum, multipliers = min(candidates, key=lambda candidate: candidate[0].value)
        candidates.append(best_weights(_descend_jointly(labelled, share, minimum.point, multipliers)))
    minimum, multipliers = min(candidates, key=lambda candidate: candidate[0].value)
    return minimum.point, multipliers, minimum, uniform_nll


def _fit_each(labelled: _LabelledMembers) -> Vector:
    """Return the inverse temperature that suits each member alone."""
    bounds = box(_HOTTEST, _COLDEST)
    minima = [newton(partial(labelled.product, only=c), np.ones(1), bounds) for c in range(len(labelled))]
    return np.concatenate([minimum.point for minimum in minima])


def _mixture(log_probs: Vector, share: Vector, weights: Vector) -> tuple[float, Vector, Vector]:
    """Return value, gradient and Hessian of ``-sum_i a_i log sum_c w_c p_ic`` in ``w``."""
    with np.errstate(divide="ignore"):
        parts = log_probs + np.log(weights)
    top = parts.max(1, keepdims=True)
    log_mixture = top + np.log(np.exp(parts - top).sum(1, keepdims=True))
    ratio = np.exp(np.minimum(log_probs - log_mixture, 300))  # finite, also squared
    weighted = ratio * share[:, None]
    return -float(share @ log_mixture[:, 0]), -weighted.sum(0), ratio.T @ weighted


def _descend_jointly(
    labelled: _LabelledMembers, share: Vector, weights: Vector, multipliers: Vector
) -> Vector:
    """Return inverse temperatures of a mixture, descending in weights and temperatures together."""
    members = len(weights)

    def objective(x: Vector) -> tuple[float, Vector]:
        mix, inverse = np.exp(x[:members] - np.logaddexp.reduce(x[:members])), np.exp(x[members:])
        table, slopes = labelled.label_log_probs(inverse)
        value, slope, _ = _mixture(table, share, mix)
        responsibility = np.exp(
            table + np.log(mix) - np.logaddexp.reduce(table + np.log(mix), axis=1)[:, None]
        )
        by_inverse = -(share[:, None] * responsibility * slopes).sum(0)
        return value, np.concatenate([mix * (slope - mix @ slope), inverse * by_inverse])

    # A weight of exactly 0 could never leave it in these coordinates.
    start = np.concatenate([np.log(np.maximum(weights, 1e-3)), np.log(multipliers)])
    bounds = [(-30.0, 30.0)] * members + [(math.log(_HOTTEST), math.log(_COLDEST))] * members
    best = optimize.minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds)
    return np.exp(best.x[members:])


def _sample_weights(labels: Tensor, num_classes: int, balanced: bool) -> Tensor:
    """Return ``(N,)`` float64 weights that sum to 1: equal, or equal in total for each class that occurs."""
    if not balanced:
        return torch.full((len(labels),), 1 / len(labels), dtype=torch.float64, device=labels.device)
    counts = torch.bincount(labels, minlength=num_classes)
    return 1 / (counts[labels].double() * int((counts > 0).sum()))
