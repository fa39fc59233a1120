"""What losses share: one call, one precision, and cross-entropy of scaled and shifted logits."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dualtail.errors import InputError
from dualtail.logits._arrays import ArrayLike, answer_like, as_labels, as_logits, as_tensor
from dualtail.logits.losses._checks import check_soft
from dualtail.logits.prior import LabelPrior, as_log_prior

DATA = ("counts", "source_prior", "pretrain_prior")
"""The constructor arguments of a loss that describe the data; all others are its options."""


def adjusted_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    multiplier: Tensor | None = None,
    offset: Tensor | None = None,
    class_weight: Tensor | None = None,
) -> Tensor:
    r"""Return the cross-entropy of scaled and shifted logits, averaged with class weights.

    .. math:: \frac{\sum_i \omega_{y_i} \, \mathrm{CE}(\Delta \odot f(x_i) + \iota, \; y_i)}{\sum_i \omega_{y_i}}

    With soft labels ``t`` a sample counts towards each class by its share: the sums run over ``i`` and ``c``
    with ``t_ic omega_c`` in place of ``omega_{y_i}``.

    Args:
        logits: ``(N, C)`` floating point.
        labels: ``(N,)`` int64, or ``(N, C)`` floating point whose rows sum to 1 (Mixup, CutMix).
        multiplier: ``Delta``, a scalar or ``(C,)``; 1 if None.
        offset: ``iota``, ``(C,)``; 0 if None.
        class_weight: ``omega``, ``(C,)`` and positive; 1 if None.

    Returns:
        A scalar of the logits' dtype.

    Source:
        The general form is that of Kini et al., "Label-Imbalanced and Group-Sensitive Classification under
        Overparameterization", NeurIPS 2021 (arXiv 2103.01550).

    Example:
        >>> logits, labels = torch.tensor([[2.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 1])
        >>> adjusted_cross_entropy(logits, labels)
        tensor(0.4100)
        >>> adjusted_cross_entropy(logits, torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        tensor(0.4100)
    """
    if multiplier is not None:
        logits = logits * multiplier.to(logits.dtype)
    if offset is not None:
        logits = logits + offset.to(logits.dtype)
    weight = None if class_weight is None else class_weight.to(logits.dtype)
    if not labels.is_floating_point():
        return F.cross_entropy(logits, labels, weight=weight)
    share = labels.to(logits.dtype) if weight is None else labels.to(logits.dtype) * weight
    return -(share * logits.log_softmax(-1)).sum() / share.sum()


class LogitLoss(nn.Module):
    """What all losses share: checking, flattening and precision. Subclasses define ``_loss`` on ``(N, C)``.

    Attributes:
        needs: the constructor arguments of ``DATA`` that it cannot do without, read off its constructor.
        soft_labels: whether labels may also be ``(..., C)`` floating point probabilities.
        num_classes: C if the loss was built for one number of classes, else None.
        pretrain_tau: how much of ``log P_P`` training takes off the logits.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    soft_labels: ClassVar[bool] = False
    num_classes: int | None = None
    pretrain_tau: float = 0.0

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        parameters = inspect.signature(cls.__init__).parameters.values()
        cls.needs = tuple(p.name for p in parameters if p.name in DATA and p.default is p.empty)

    def forward(self, logits: ArrayLike, labels: ArrayLike) -> Any:
        """Return the mean loss.

        Label values are checked on the CPU only: on an accelerator that would wait for the device at each step.

        Args:
            logits: ``(..., C)`` floating point; half precision is widened.
            labels: ``(...)`` integers, or ``(..., C)`` floating point probabilities if ``soft_labels``.

        Returns:
            A scalar; 0, with a gradient of 0, for an empty batch (an image without boxes).

        Raises:
            InputError: shapes, dtypes or values do not fit.
        """
        scores = as_logits(logits, finite=False)
        num_classes = scores.shape[-1]
        if self.num_classes not in (None, num_classes):
            raise InputError(
                f"logits have {num_classes} classes", fix=f"this loss was built for {self.num_classes}"
            )
        targets = self._check_labels(labels, scores)
        scores = scores.reshape(-1, num_classes)
        if not len(scores):
            return answer_like(logits, scores.sum())
        with torch.autocast(scores.device.type, enabled=False):
            return answer_like(logits, self._loss(scores, targets))

    def remaining_prior(self, sampled: LabelPrior | ArrayLike) -> LabelPrior:
        r"""Return the label prior ``q`` that the logits of a minimiser of this loss still carry.

        Training on samples with the label prior :math:`s` finds :math:`f_y(x) = \log p(x \mid y) + \log q_y` up to a
        constant of the sample: ``q`` is what is left to be taken off. Here it is :math:`s`, of the cross-entropy and
        of any loss whose best answer ranks the classes as the cross-entropy's does; :attr:`LabelPrior.is_uniform`
        says that nothing is left.

        What pre-training left in a model is no part of it: see ``pretrain_tau``.

        Args:
            sampled: :math:`s`, a :class:`~dualtail.logits.prior.LabelPrior` or ``(C,)`` log-probabilities: ``P_S``
                where every image is drawn alike, uniform for class-balanced batches.

        Raises:
            InputError: the prior is malformed or of another number of classes.

        Example:
            >>> from dualtail.logits.losses import build_loss
            >>> source = LabelPrior.from_counts([9, 1])
            >>> build_loss("la", source_prior=source, tau=0.5).remaining_prior(source).prob
            tensor([0.7500, 0.2500], dtype=torch.float64)
            >>> build_loss("la", source_prior=source).remaining_prior(source).is_uniform
            True
        """
        if isinstance(sampled, LabelPrior) and self.num_classes in (None, len(sampled)):
            return sampled
        return LabelPrior(as_log_prior(sampled, self.num_classes or len(sampled), "sampled"))

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        raise NotImplementedError

    def _check_labels(self, labels: ArrayLike, logits: Tensor) -> Tensor:
        """Return labels as ``(N,)`` int64, or ``(N, C)`` soft, on the device of the logits."""
        targets = as_tensor(labels, "labels").to(logits.device)
        num_classes = logits.shape[-1]
        look = logits.device.type == "cpu" and not torch.compiler.is_compiling()
        if targets.is_floating_point():
            if not self.soft_labels:
                raise InputError(
                    f"labels have dtype {targets.dtype}",
                    where=type(self).__name__,
                    fix="this loss is not defined for soft labels; pass integers",
                )
            if targets.shape != logits.shape:
                raise InputError(
                    f"labels has shape {tuple(targets.shape)}", fix=f"expected {tuple(logits.shape)}"
                )
            if look and targets.numel():
                check_soft(targets)
            return targets.reshape(-1, num_classes)
        if look:
            return as_labels(targets, num_classes, tuple(logits.shape[:-1])).reshape(-1)
        if targets.shape != logits.shape[:-1]:
            raise InputError(
                f"labels has shape {tuple(targets.shape)}", fix=f"expected {tuple(logits.shape[:-1])}"
            )
        return targets.long().reshape(-1)


class AdjustedLoss(LogitLoss):
    """The losses that are :func:`adjusted_cross_entropy` with constants of their own."""

    soft_labels = True
    multiplier: Tensor | None
    offset: Tensor | None
    class_weight: Tensor | None

    def __init__(
        self,
        *,
        multiplier: Tensor | None = None,
        offset: Tensor | None = None,
        class_weight: Tensor | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("multiplier", multiplier), ("offset", offset), ("class_weight", class_weight)):
            self.register_buffer(name, None if value is None else value.float())
            if value is not None and value.ndim:
                self.num_classes = len(value)

    def remaining_prior(self, sampled: LabelPrior | ArrayLike) -> LabelPrior:
        r"""Return the label prior that the logits of a minimiser still carry.

        Weights make the samples ones of the prior :math:`s_y \omega_y`, of which
        :math:`\mathrm{softmax}(\Delta \odot f + \iota)` is the posterior (Menon et al. 2021, section 4), so that
        :math:`q_y \propto (s_y \, \omega_y \, e^{-\iota_y})^{1 / \Delta}`. A ``Delta`` that differs between
        classes scales the evidence and is left out.

        Args and errors as in :meth:`LogitLoss.remaining_prior`.
        """
        carried = super().remaining_prior(sampled)
        if self.offset is None and self.class_weight is None:
            return carried
        logs = carried.log_prob.clone()
        if self.class_weight is not None:
            logs += self.class_weight.cpu().double().log()
        if self.offset is not None:
            logs -= self.offset.cpu().double()
        if self.multiplier is not None and not self.multiplier.ndim:
            logs /= float(self.multiplier)
        return LabelPrior(logs.log_softmax(0))

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return adjusted_cross_entropy(
            logits, labels, multiplier=self.multiplier, offset=self.offset, class_weight=self.class_weight
        )
