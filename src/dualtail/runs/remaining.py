"""The label prior that a training has left in a member's logits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dualtail.data.samplers import sampled_counts
from dualtail.logits.losses import build_loss
from dualtail.logits.prior import LabelPrior
from dualtail.runs.recipe import Finetune


def remaining_source_prior(tuned: Finetune, counts: Sequence[int]) -> LabelPrior | None:
    """Return the label prior that training has left in the logits; None if it is uniform, so that nothing is to do.

    It follows from what the last epoch of the last stage drew, and from what the loss of that stage makes of it.

    Args:
        tuned: how the member was trained.
        counts: ``(C,)`` training images a class.

    Example:
        >>> from dualtail.runs.recipe import Loss
        >>> remaining_source_prior(Finetune(), [9, 1]) is None   # LA takes it
        True
        >>> [round(p, 3) for p in remaining_source_prior(
        ...     Finetune(loss=Loss(name="ce"), sampling="square_root"), [9, 1]).prob.tolist()]
        [0.75, 0.25]
    """
    last = tuned.second_stage or tuned
    drawn = sampled_counts(last.sampling, np.asarray(counts), last.epochs - 1, last.epochs)
    # What pre-training left is another matter: any prior does in its place.
    loss = build_loss(
        last.loss.name, counts=counts, pretrain_prior=LabelPrior.uniform(len(counts)), **last.loss.options
    )
    left = loss.remaining_prior(LabelPrior.from_counts(drawn))
    return None if left.is_uniform else left
