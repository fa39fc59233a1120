"""Nearest neighbours in feature space, and how alike two representations or two members are.

kNN accuracy asks the features, not the classifier on them: what logit adjustment cannot repair shows here. Features
are compared by cosine; a neighbour at similarity s votes :math:`e^{s/T}` for its class (Wu et al., CVPR 2018,
arXiv 1805.01978). The search is exact and its memory bounded: banks of hundreds of thousands of rows are fine.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dualtail.errors import InputError, check_choice
from dualtail.logits._arrays import (
    ArrayLike,
    answer_like,
    as_float,
    as_labels,
    as_tensor,
    check_finite,
    row_chunks,
)
from dualtail.logits._rows import as_predictions
from dualtail.logits.groups import ClassGroups
from dualtail.logits.intervals import IntervalMethod
from dualtail.logits.metrics import Evaluation, Tally

_BUDGET = 1 << 22  # entries of a chunk of features or votes
_SCORES = 1 << 24  # similarities held at once


def nearest_neighbors(bank: ArrayLike, queries: ArrayLike | None, k: int = 200) -> tuple[Any, Any]:
    """Return the ``k`` rows of the bank of largest cosine similarity to each query, the nearest first.

    Args:
        bank: features ``(N, D)``, of any length; a row of zeros is similar to nothing (cosine 0).
        queries: ``(Q, D)``, or None for the bank's own rows, each without itself.
        k: neighbours, at most N (N - 1 without queries).

    Returns:
        ``(similarity, index)``: ``(Q, k)`` floating point and int64. Exact up to rounding in the features' precision
        (float32 at least); rows that are equally similar up to that come in any order. Where torch is told to
        multiply float32 matrices in less (``torch.set_float32_matmul_precision``), that precision holds.

    Raises:
        InputError: malformed features, or k too large.

    Example:
        >>> similarity, index = nearest_neighbors([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], [[2.0, 0.1]], k=2)
        >>> index.tolist(), similarity.round(2).tolist()
        ([[0, 2]], [[1.0, 0.74]])
    """
    features, asked = _features(bank, queries, k)
    size = (len(features if asked is None else asked), k)
    similarity, index = features.new_empty(size), torch.empty(size, dtype=torch.int64, device=features.device)
    for rows, nearest, which in _search(features, asked, k):
        similarity[rows], index[rows] = nearest, which
    return answer_like(bank, similarity), answer_like(bank, index)


def knn_scores(
    bank: ArrayLike,
    bank_labels: ArrayLike,
    queries: ArrayLike | None,
    num_classes: int,
    k: int = 200,
    temperature: float = 0.1,
    *,
    normalize: bool = False,
) -> Any:
    r"""Return the weighted votes :math:`v_c = \sum_{j \in kNN, y_j = c} e^{s_j / T}` of the nearest neighbours.

    Args:
        bank: features ``(N, D)``, compared by cosine.
        bank_labels: ``(N,)`` integers.
        queries: ``(Q, D)``, or None for the bank's own rows, each without itself (leave one out).
        num_classes: C.
        k: neighbours.
        temperature: T; ``math.inf`` gives each neighbour one vote.
        normalize: divide by each query's sum, so that rows are shares of the votes; needed below a temperature of
            about 0.012, where :math:`e^{1/T}` exceeds float32.

    Returns:
        votes ``(Q, C)`` in the features' precision. They are not logits: rank them, or see :func:`knn_accuracy`.

    Raises:
        InputError: malformed inputs, k too large, or a temperature that is not positive or too small.

    Example:
        >>> knn_scores([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], [0, 1, 1], [[1.0, 0.0]], 2, k=2, temperature=1.0).round(2)
        array([[2.72, 2.03]])
    """
    features, asked = _features(bank, queries, k)
    _check_temperature(temperature)
    if not normalize and 1 / temperature > np.log(torch.finfo(features.dtype).max / max(k, 1)):
        raise InputError(f"temperature {temperature} is too small: votes overflow", fix="pass normalize=True")
    labels = as_labels(bank_labels, num_classes, (len(features),), "bank_labels")
    scores = features.new_empty(len(features if asked is None else asked), num_classes)
    for rows, votes in _votes(features, labels, asked, num_classes, k, temperature, normalize):
        scores[rows] = votes
    return answer_like(bank, scores)


def knn_predict(
    bank: ArrayLike,
    bank_labels: ArrayLike,
    queries: ArrayLike | None,
    num_classes: int,
    k: int = 200,
    temperature: float = 0.1,
) -> Any:
    """Return the class ``(Q,)`` with most votes (:func:`knn_scores`) for each query; of equals the first.

    No ``(Q, C)`` array is made. Arguments and errors as in :func:`knn_scores`; any positive temperature will do.

    Example:
        >>> knn_predict([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], [0, 1, 1], [[1.0, 0.2]], 2, k=1).tolist()
        [0]
    """
    features, asked = _features(bank, queries, k)
    labels = as_labels(bank_labels, num_classes, (len(features),), "bank_labels")
    chunks = [votes.argmax(1) for _, votes in _votes(features, labels, asked, num_classes, k, temperature)]
    return answer_like(bank, torch.cat([labels.new_empty(0), *chunks]))


def knn_accuracy(
    bank: ArrayLike,
    bank_labels: ArrayLike,
    queries: ArrayLike | None,
    query_labels: ArrayLike | None,
    num_classes: int,
    k: int = 200,
    temperature: float = 0.1,
    *,
    d_groups: ClassGroups | None = None,
    p_groups: ClassGroups | None = None,
    split: str = "test",
    confidence: float = 0.95,
    interval: IntervalMethod = "wilson",
) -> Evaluation:
    """Return the evaluation of the neighbours' votes: accuracy overall, by class, group and cell.

    Votes are not probabilities, so NLL and the calibration errors are None.

    Args:
        bank: features ``(N, D)``, compared by cosine.
        bank_labels: ``(N,)`` integers.
        queries: ``(Q, D)``, or None for the bank's own rows, each without itself (leave one out).
        query_labels: ``(Q,)`` integers; None with ``queries=None``.
        num_classes: C.
        k: neighbours.
        temperature: of the votes.
        d_groups: as in :func:`dualtail.logits.metrics.evaluate`, like all that follow.
        p_groups: likewise.
        split: likewise.
        confidence: likewise.
        interval: likewise.

    Raises:
        InputError: as :func:`knn_scores` and :func:`dualtail.logits.metrics.evaluate`.

    Example:
        >>> features = [[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]]
        >>> knn_accuracy(features, [0, 0, 1, 1], None, None, num_classes=2, k=1).macro
        1.0
    """
    features, asked = _features(bank, queries, k)
    labels = as_labels(bank_labels, num_classes, (len(features),), "bank_labels")
    if (asked is None) != (query_labels is None):
        raise InputError("queries and query_labels go together", fix="pass both, or None for both")
    target = labels if asked is None else as_labels(query_labels, num_classes, (len(asked),), "query_labels")
    tally = Tally(num_classes, calibrated=False)
    for rows, votes in _votes(features, labels, asked, num_classes, k, temperature):
        tally.add(votes, target[rows].to(votes.device))
    return tally.evaluation(
        d_groups=d_groups, p_groups=p_groups, split=split, confidence=confidence, interval=interval
    )


def _features(bank: ArrayLike, queries: ArrayLike | None, k: int) -> tuple[Tensor, Tensor | None]:
    features = check_finite(as_float(bank, "bank"), "bank")
    if features.ndim != 2 or not features.numel():
        raise InputError(f"bank has shape {tuple(features.shape)}", fix="expected (N, D), neither of them 0")
    available = len(features) - (queries is None)
    if not 1 <= k <= available:
        raise InputError(
            f"k is {k} but the bank has {available} rows to choose from", fix="choose a smaller k"
        )
    if queries is None:
        return features, None
    asked = check_finite(as_float(queries, "queries"), "queries")
    if asked.ndim != 2 or asked.shape[1] != features.shape[1]:
        raise InputError(
            f"queries have shape {tuple(asked.shape)}",
            fix=f"expected (Q, {features.shape[1]}), as the bank has",
        )
    dtype = torch.promote_types(features.dtype, asked.dtype)
    return features.to(dtype), asked.to(features.device, dtype)


def _search(bank: Tensor, queries: Tensor | None, k: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield queries (rows), similarities and indices ``(n, k)`` of their nearest rows of the bank, chunk by chunk."""
    inverse = _inverse_norm(bank)
    asked = bank if queries is None else queries
    for rows in row_chunks(len(asked), len(bank), _SCORES):
        scores = (asked[rows] * _inverse_norm(asked[rows])[:, None] @ bank.T).mul_(inverse)
        if queries is None:
            scores.diagonal(rows.start).fill_(-torch.inf)
        yield rows, *scores.topk(k, dim=1)


def _inverse_norm(features: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(features, dim=1)
    # Where it would be infinite, the row counts as zeros.
    return torch.where(norm >= torch.finfo(norm.dtype).tiny, 1 / norm, 0)


def _check_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise InputError(f"temperature is {temperature}", fix="expected a positive number")


def _votes(
    bank: Tensor,
    labels: Tensor,
    queries: Tensor | None,
    num_classes: int,
    k: int,
    temperature: float,
    normalize: bool = True,
) -> Iterator[tuple[slice, Tensor]]:
    """Yield votes ``(n, C)`` for chunks of queries."""
    _check_temperature(temperature)
    labels = labels.to(bank.device)
    for rows, similarity, index in _search(bank, queries, k):
        # Relative to the nearest neighbour no weight overflows, at any temperature.
        shift = similarity[:, :1] if normalize else 0.0
        weight = ((similarity - shift) / temperature).exp_()
        if normalize:
            weight /= weight.sum(1, keepdim=True)
        for part in row_chunks(len(weight), num_classes, _BUDGET):
            votes = weight.new_zeros(part.stop - part.start, num_classes)
            votes.scatter_add_(1, labels[index[part]], weight[part])
            yield slice(rows.start + part.start, rows.start + part.stop), votes


def disagreement(members: Sequence[ArrayLike] | ArrayLike) -> NDArray[np.float64]:
    """Return for each pair of members the fraction of samples on which they predict different classes.

    Args:
        members: M of them, each predicted classes ``(...)`` (integers) or logits ``(..., C)`` (floating point).

    Returns:
        ``(M, M)`` float64, symmetric, 0 on the diagonal.

    Raises:
        InputError: no members, members of different shapes, or no samples.

    Example:
        >>> disagreement([[0, 1, 2, 2], [0, 1, 1, 1], [0, 1, 2, 1]]).tolist()
        [[0.0, 0.5, 0.25], [0.5, 0.0, 0.25], [0.25, 0.25, 0.0]]
    """
    predictions = _member_predictions(members, None)
    return np.array([[float((a != b).double().mean()) for b in predictions] for a in predictions])


def error_correlation(
    members: Sequence[ArrayLike] | ArrayLike,
    labels: ArrayLike,
    measure: Literal["phi", "q", "double_fault"] = "phi",
) -> NDArray[np.float64]:
    r"""Return for each pair of members how much their errors coincide.

    With the fractions of samples that both get right (:math:`a`), only one (:math:`b`, :math:`c`), neither
    (:math:`d`):

    - ``"phi"``: the correlation of the two error indicators,
      :math:`(ad - bc) / \sqrt{(a+b)(c+d)(a+c)(b+d)}`; NaN where a member is always right or always wrong.
    - ``"q"``: Yule's :math:`Q = (ad - bc) / (ad + bc)`; NaN where that is 0 / 0.
    - ``"double_fault"``: :math:`d`.

    Independent errors give 0 in the first two. Averaging helps most where the values are small. Kuncheva and
    Whitaker, "Measures of Diversity in Classifier Ensembles", Machine Learning 2003.

    Args:
        members: M of them, each predicted classes ``(...)`` (integers) or logits ``(..., C)`` (floating point).
        labels: ``(...)`` integers.
        measure: one of the three.

    Returns:
        ``(M, M)`` float64, symmetric.

    Raises:
        InputError: malformed inputs or an unknown measure.

    Example:
        >>> labels = [0, 0, 1, 1]
        >>> error_correlation([[0, 0, 0, 0], [0, 1, 0, 1]], labels, "double_fault").tolist()
        [[0.5, 0.25], [0.25, 0.5]]
        >>> error_correlation([[0, 0, 0, 0], [0, 1, 0, 1]], labels).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    check_choice("measure", measure, ("phi", "q", "double_fault"))
    target = as_labels(labels, None, None)
    flat = target.reshape(-1).cpu()
    wrong = [(p != flat).double() for p in _member_predictions(members, tuple(target.shape))]
    return np.array([[_coincidence(x, y, measure) for y in wrong] for x in wrong])


def _coincidence(x: Tensor, y: Tensor, measure: str) -> float:
    # Whole counts: exact, so that 0 / 0 is seen as such.
    n = len(x)
    d, only_x, only_y = int(x @ y), int(x @ (1 - y)), int((1 - x) @ y)
    a = n - d - only_x - only_y
    if measure == "double_fault":
        return d / n
    product = a * d - only_x * only_y
    if measure == "q":
        scale: float = a * d + only_x * only_y
    else:
        scale = float(np.sqrt(float((d + only_x) * (a + only_y)) * float((d + only_y) * (a + only_x))))
    return product / scale if scale else float("nan")


def _member_predictions(
    members: Sequence[ArrayLike] | ArrayLike, shape: tuple[int, ...] | None
) -> list[Tensor]:
    if not len(members):
        raise InputError("there are no members")
    if shape is None:
        first = as_tensor(members[0], "members[0]")
        if not first.ndim:
            raise InputError("members[0] is a single number", fix="pass a list with one array a member")
        shape = tuple(first.shape[: first.ndim - first.is_floating_point()])
    predictions = [as_predictions(member, shape, f"members[{i}]") for i, member in enumerate(members)]
    if not predictions[0].numel():
        raise InputError("members hold no samples")
    return predictions


def linear_cka(x: ArrayLike, y: ArrayLike, *, debiased: bool = False) -> float:
    r"""Return the linear centred kernel alignment of two representations of the same samples.

    .. math:: CKA = \frac{\|Y^T X\|_F^2}{\|X^T X\|_F \, \|Y^T Y\|_F}

    for features centred over samples: 1 for representations that agree up to rotation and scale. Computed from
    ``(D, D)`` products, so N is free. Kornblith et al., ICML 2019 (arXiv 1905.00414).

    With few samples for their dimension (N not far above D) unrelated features look alike; ``debiased`` replaces each
    of the three terms by its unbiased estimate (Song et al., JMLR 2012; Nguyen et al., ICLR 2021, arXiv 2010.15327),
    which is near 0 for unrelated features and may be slightly negative.

    Args:
        x: features ``(N, D)``.
        y: features ``(N, E)`` of the same samples, in the same order.
        debiased: needs at least 4 samples.

    Raises:
        InputError: malformed features, different N, or features that do not vary.

    Example:
        >>> x = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 3.0], [4.0, 2.0]])
        >>> round(linear_cka(x, 5 * x @ torch.tensor([[0.0, 1.0], [-1.0, 0.0]]) + 3), 6)
        1.0
    """
    first, second = (check_finite(as_float(value, name), name) for value, name in ((x, "x"), (y, "y")))
    for value, name in ((first, "x"), (second, "y")):
        rows = len(first) if first.ndim else "N"
        if value.ndim != 2 or len(value) != rows:
            raise InputError(f"{name} has shape {tuple(value.shape)}", fix=f"expected ({rows}, D), as x")
    least = 4 if debiased else 2
    if len(first) < least:
        raise InputError(f"x holds {len(first)} samples", fix=f"expected at least {least}")
    moments = _centred_moments(first, second.to(first.device))
    xx, yy, xy = (_alignment(moments, i, j, len(first), debiased) for i, j in ((0, 0), (1, 1), (0, 1)))
    if not (xx > 0 and yy > 0):
        raise InputError("too few samples for an unbiased estimate", fix="add samples, or debiased=False")
    return xy / float(np.sqrt(xx * yy))


class _Moments(NamedTuple):
    products: dict[tuple[int, int], Tensor]  # squared Frobenius norms of the products of centred features
    lengths: tuple[Tensor, Tensor]  # squared length of each centred row


def _centred_moments(x: Tensor, y: Tensor) -> _Moments:
    means = [value.mean(0, dtype=torch.float64) for value in (x, y)]
    sums: dict[tuple[int, int], Tensor] = {}
    lengths: tuple[list[Tensor], list[Tensor]] = ([], [])
    for rows in row_chunks(len(x), x.shape[1] + y.shape[1], _BUDGET):
        # The mean is taken away in float64, so that features far from 0 keep their digits.
        centred = [
            (value[rows].double() - mean).to(value.dtype) for value, mean in zip((x, y), means, strict=True)
        ]
        for i, j in ((0, 0), (1, 1), (0, 1)):
            product = (centred[i].T.to(centred[j].dtype) @ centred[j]).double()
            sums[i, j] = sums[i, j] + product if (i, j) in sums else product
        for value, squares in zip(centred, lengths, strict=True):
            squares.append(value.double().square().sum(1))
    squared = (torch.cat(lengths[0]), torch.cat(lengths[1]))
    for name, mean, spread in zip("xy", means, squared, strict=True):
        if float(spread.mean()) <= 1e-24 * float(mean.square().sum()):
            raise InputError(f"{name} does not vary between samples, so alignment is undefined")
    return _Moments({pair: total.square().sum() for pair, total in sums.items()}, squared)


def _alignment(moments: _Moments, i: int, j: int, n: int, debiased: bool) -> float:
    """Return the Hilbert-Schmidt criterion of representations i and j up to a factor common to all pairs."""
    total = moments.products[i, j]
    if debiased:
        # The unbiased criterion leaves out the diagonal of K = X X^T and L; with centred rows K 1 is minus it.
        k, l = moments.lengths[i], moments.lengths[j]
        diagonal = k @ l
        total = total - diagonal + k.sum() * l.sum() / ((n - 1) * (n - 2)) - 2 * diagonal / (n - 2)
    return float(total)
