r"""Backdoor adjustment: the average over members, each a value of the confounder.

.. math:: P(y \mid do(x)) = \sum_c P(y \mid b, c) \, P(c)

A member is one fine-tuned foundation model. Source: Chen et al., "Rethinking the Bias of Foundation Model under
Long-tailed Distribution", ICML 2025 (arXiv 2501.15955).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from dualtail.errors import InputError
from dualtail.logits._arrays import ArrayLike, answer_like, as_labels
from dualtail.logits._pooling import RULES, Members, Rule, as_weights, get_rule
from dualtail.logits.groups import ClassGroups
from dualtail.logits.member_prior import MemberPrior, fit_member_prior
from dualtail.logits.metrics import Evaluation, Tally
from dualtail.logits.prior import LabelPrior

__all__ = [
    "RULES",
    "MemberPrior",
    "adjust_subsets",
    "all_subsets",
    "backdoor_adjust",
    "evaluate_subsets",
    "fit_member_prior",
]

# 4,095 subsets; beyond that, enumerating them answers no question.
_MOST_MEMBERS = 12


def backdoor_adjust(
    members: Sequence[ArrayLike] | ArrayLike,
    *,
    weights: MemberPrior | ArrayLike | None = None,
    rule: str | None = None,
    temperatures: ArrayLike | None = None,
    zero_shot_logits: Sequence[ArrayLike | None] | None = None,
    pretrain_priors: Sequence[LabelPrior | ArrayLike | None] | None = None,
    source_prior: LabelPrior | ArrayLike | None = None,
) -> Any:
    r"""Return the ensemble's scores: the average of the members over P(c).

    Each member's scores are ``z_c = f_c / T_c``; with GLA, ``z_c = (f_c + f_zs,c - log P_P,c - log P_S) / T_c``,
    where what is not given is left out. With ``p_c = softmax(z_c)`` and ``w_c = P(c)`` the rules return

    ==================== ============================== =====================================================
    rule                 scores                         softmax of the scores
    ==================== ============================== =====================================================
    "logits" (default)   ``sum_c w_c z_c``              ``prod_c p_c^{w_c}``, normalised: the logits' scale stays
    "log_probabilities"  ``sum_c w_c log p_c``          the same; ``logsumexp`` of the scores, at most 0, tells
                                                        how far the members agree
    "probabilities"      ``log sum_c w_c p_c``          ``sum_c w_c p_c``, the formula as it is written
    "median"             weighted median of ``log p_c`` the median probabilities, normalised
    ==================== ============================== =====================================================

    The argmax of the scores is the answer under every rule.

    Args:
        members: ``M`` arrays of logits ``(..., C)`` of one shape: tensors, numpy arrays or memory maps.
        weights: P(c), ``(M,)``, at least 0 and summing to 1; uniform by default. A :class:`MemberPrior` brings
            its rule and temperatures along.
        rule: one of ``RULES``.
        temperatures: ``(M,)`` positive ``T_c``; 1 by default.
        zero_shot_logits: for GLA, a list of ``M`` arrays like the members; None for a member without.
        pretrain_priors: the ``P_P`` of each member that has zero-shot logits.
        source_prior: ``P_S``, for members that were trained with the plain cross-entropy. LA and GLA-Train have
            taken it off in training.

    Returns:
        ``(..., C)`` scores in the kind of the first member, float32 (float64 if a member is).

    Raises:
        InputError: shapes differ, a value is not finite, P(c) is none, a zero-shot term without its prior.

    Example:
        >>> a, b = torch.tensor([0.9, 0.1]).log(), torch.tensor([0.5, 0.5]).log()
        >>> backdoor_adjust([a, b], rule="probabilities").softmax(-1)
        tensor([0.7000, 0.3000])
        >>> backdoor_adjust([a, b]).softmax(-1)
        tensor([0.7500, 0.2500])
        >>> backdoor_adjust([a, b], weights=[0.25, 0.75], rule="probabilities").softmax(-1)
        tensor([0.6000, 0.4000])
    """
    pool, member_weights, chosen = _prepare(
        members, weights, rule, temperatures, zero_shot_logits, pretrain_priors, source_prior
    )
    scores = torch.empty(pool.num_rows, pool.num_classes, dtype=pool.dtype, device=pool.device)
    for rows in pool.chunks():
        scores[rows] = _combine(chosen, pool.read(rows), member_weights)
    return answer_like(pool.given[0], scores.reshape(pool.shape))


def all_subsets(num_members: int) -> list[tuple[int, ...]]:
    """Return every non-empty subset of ``range(num_members)``, small ones first.

    Example:
        >>> all_subsets(3)
        [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)]
    """
    if not 1 <= num_members <= _MOST_MEMBERS:
        raise InputError(
            f"{num_members} members have {2**num_members - 1:,} subsets", fix=f"1 to {_MOST_MEMBERS} members"
        )
    sizes = range(1, num_members + 1)
    return [subset for size in sizes for subset in combinations(range(num_members), size)]


@torch.no_grad()
def adjust_subsets(
    members: Sequence[ArrayLike] | ArrayLike,
    function: Callable[[Tensor, slice], Tensor] | None = None,
    *,
    weights: MemberPrior | ArrayLike | None = None,
    rule: str | None = None,
    temperatures: ArrayLike | None = None,
    zero_shot_logits: Sequence[ArrayLike | None] | None = None,
    pretrain_priors: Sequence[LabelPrior | ArrayLike | None] | None = None,
    source_prior: LabelPrior | ArrayLike | None = None,
) -> dict[tuple[int, ...], Any]:
    """Return what every non-empty subset of the members answers, from one pass over their logits.

    Rows are read in chunks; within a chunk each subset is its largest proper prefix plus one member, so a subset
    costs one addition. Nothing of the size of the logits is kept. The scores are those of
    :func:`backdoor_adjust` on the subset (to the bit if P(c) is uniform), with P(c) renormalised over it, and
    uniform where all of its weights are 0.

    Args:
        members: ``M <= 12`` arrays of logits ``(..., C)``.
        function: what to keep of a subset's scores, as ``function(scores (n, C), rows) -> (n, ...)``, with
            ``rows`` the slice of the flattened leading dimensions that the scores belong to. It must not write
            into the scores. By default the predicted class, int64.
        weights: as in :func:`backdoor_adjust`.
        rule: as there.
        temperatures: as there.
        zero_shot_logits: as there.
        pretrain_priors: as there.
        source_prior: as there.

    Returns:
        ``{(member, ...): (..., *what function keeps of a row)}``, in the order of :func:`all_subsets`.

    Raises:
        InputError: as :func:`backdoor_adjust`, or too many members.

    Example:
        >>> members = [torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 3.0]])]
        >>> {subset: answer.tolist() for subset, answer in adjust_subsets(members).items()}
        {(0,): [0], (1,): [1], (0, 1): [1]}
        >>> adjust_subsets(members, lambda scores, rows: scores)[0, 1]
        tensor([[1.0000, 1.5000]])
    """
    pool, member_weights, chosen = _prepare(
        members, weights, rule, temperatures, zero_shot_logits, pretrain_priors, source_prior
    )
    reduce = function or (lambda scores, rows: _argmax(scores))
    kept: dict[tuple[int, ...], Tensor] = {}
    for rows, subset, scores in _scan(pool, chosen, member_weights):
        result = reduce(scores, rows)
        if subset not in kept:
            kept[subset] = result.new_empty((pool.num_rows, *result.shape[1:]))
        kept[subset][rows] = result
    leading = pool.shape[:-1]
    return {
        subset: answer_like(pool.given[0], kept[subset].reshape(*leading, *kept[subset].shape[1:]))
        for subset in all_subsets(len(pool))
    }


@torch.no_grad()
def evaluate_subsets(
    members: Sequence[ArrayLike] | ArrayLike,
    labels: ArrayLike,
    *,
    d_groups: ClassGroups | None = None,
    p_groups: ClassGroups | None = None,
    split: str = "test",
    confidence: float = 0.95,
    weights: MemberPrior | ArrayLike | None = None,
    rule: str | None = None,
    temperatures: ArrayLike | None = None,
    zero_shot_logits: Sequence[ArrayLike | None] | None = None,
    pretrain_priors: Sequence[LabelPrior | ArrayLike | None] | None = None,
    source_prior: LabelPrior | ArrayLike | None = None,
) -> dict[tuple[int, ...], Evaluation]:
    """Return the evaluation of every non-empty subset of the members, from one pass over their logits.

    All subsets are judged by the same groups, so that their figures can be compared.

    Args:
        members: as in :func:`adjust_subsets`.
        labels: ``(...)`` integers.
        d_groups: as in :func:`~dualtail.logits.metrics.evaluate`.
        p_groups: as there.
        split: as there.
        confidence: as there.
        weights: as in :func:`backdoor_adjust`.
        rule: as there.
        temperatures: as there.
        zero_shot_logits: as there.
        pretrain_priors: as there.
        source_prior: as there.

    Raises:
        InputError: as :func:`adjust_subsets` and :func:`~dualtail.logits.metrics.evaluate`.

    Example:
        >>> members = [torch.tensor([[2.0, 0.0], [1.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.0, 3.0]])]
        >>> {subset: result.overall for subset, result in evaluate_subsets(members, [0, 1]).items()}
        {(0,): 0.5, (1,): 0.5, (0, 1): 1.0}
    """
    pool, member_weights, chosen = _prepare(
        members, weights, rule, temperatures, zero_shot_logits, pretrain_priors, source_prior
    )
    target = as_labels(labels, pool.num_classes, pool.shape[:-1]).reshape(-1).to(pool.device)
    tallies = {subset: Tally(pool.num_classes) for subset in all_subsets(len(pool))}
    for rows, subset, scores in _scan(pool, chosen, member_weights):
        tallies[subset].add(scores, target[rows])
    return {
        subset: tally.evaluation(d_groups=d_groups, p_groups=p_groups, split=split, confidence=confidence)
        for subset, tally in tallies.items()
    }


def _prepare(
    members: Sequence[ArrayLike] | ArrayLike,
    weights: MemberPrior | ArrayLike | None,
    rule: str | None,
    temperatures: ArrayLike | None,
    zero_shot_logits: Sequence[ArrayLike | None] | None,
    pretrain_priors: Sequence[LabelPrior | ArrayLike | None] | None,
    source_prior: LabelPrior | ArrayLike | None,
) -> tuple[Members, list[float], Rule]:
    """Resolve what the caller gave and what a MemberPrior brings along."""
    if isinstance(weights, MemberPrior):
        fitted = weights
        if rule not in (None, fitted.rule):
            raise InputError(
                f"the weights were fitted for rule {fitted.rule!r}, not {rule!r}",
                fix="leave rule out, or fit again",
            )
        if temperatures is not None:
            raise InputError("weights bring their temperatures along", fix="leave temperatures out")
        weights, rule, temperatures = fitted.weights, fitted.rule, fitted.temperatures
    chosen = get_rule(rule or "logits")
    pool = Members(members, temperatures, zero_shot_logits, pretrain_priors, source_prior)
    return pool, as_weights(weights, len(pool)), chosen


def _combine(rule: Rule, scores: list[Tensor], weights: list[float]) -> Tensor:
    """Average members' scores; those of weight 0 are left out, unless all are."""
    if not any(weights):
        weights = [1.0] * len(scores)
    partial = None
    for term in _terms(rule, scores, weights):
        partial = _grow(rule, partial, term)
    return rule.finish(partial, sum(weights))


def _scan(pool: Members, rule: Rule, weights: list[float]) -> Iterator[tuple[slice, tuple[int, ...], Tensor]]:
    """Yield the scores of every subset for chunk after chunk of rows."""
    all_subsets(len(pool))  # refuses too many members before anything is read
    for rows in pool.chunks() or [slice(0, 0)]:
        for subset, scores in _subset_scores(rule, pool.read(rows), weights):
            yield rows, subset, scores


def _subset_scores(
    rule: Rule, scores: list[Tensor], weights: list[float]
) -> Iterator[tuple[tuple[int, ...], Tensor]]:
    """Yield every subset's scores, depth first: a subset extends the one without its last member."""
    terms = _terms(rule, scores, weights)
    # Partial sums that wait to be extended; a stack, since a recursive closure would keep every chunk alive.
    waiting: list[tuple[tuple[int, ...], Any, float]] = [((), None, 0.0)]
    while waiting:
        subset, partial, total = waiting.pop()
        for member in range(subset[-1] + 1 if subset else 0, len(terms)):
            longer, weight = (*subset, member), total + weights[member]
            grown = _grow(rule, partial, terms[member])
            if grown is None:
                yield longer, _combine(rule, [scores[i] for i in longer], [0.0] * len(longer))
            else:
                yield longer, rule.finish(grown, weight)
            if member + 1 < len(terms):
                waiting.append((longer, grown, weight))


def _terms(rule: Rule, scores: list[Tensor], weights: list[float]) -> list[Any]:
    """Return what each member adds; None for one of weight 0, whose logarithm would be infinite."""
    return [rule.term(z, w) if w else None for z, w in zip(scores, weights, strict=True)]


def _grow(rule: Rule, partial: Any, term: Any) -> Any:
    if term is None:
        return partial
    return term if partial is None else rule.add(partial, term)


def _argmax(scores: Tensor) -> Tensor:
    """Return the class of the highest score; numpy's search is an order of magnitude faster than torch's."""
    if scores.device.type != "cpu":
        return scores.argmax(-1)
    return torch.from_numpy(scores.numpy().argmax(-1))
