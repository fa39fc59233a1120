"""What every loss promises."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dualtail.errors import InputError
from dualtail.logits.losses import DATA, LogitLoss
from dualtail.logits.prior import LabelPrior
from dualtail.testing._run import demand, run_checks

COUNTS = torch.tensor([640.0, 320, 100, 50, 20, 9, 2])
PRETRAIN_PRIOR = LabelPrior(torch.tensor([0.05, 0.3, 0.1, 0.05, 0.2, 0.1, 0.2]).log())
CLASSES = len(COUNTS)
_TRIES = 10


@dataclass(frozen=True)
class LossCase:
    """A loss with the options that it is checked with.

    Attributes:
        loss: the class.
        options: of its constructor, without what it ``needs``.
    """

    loss: type[LogitLoss]
    options: Mapping[str, Any] = field(default_factory=dict)

    def build(self, order: Tensor | None = None, **options: Any) -> LogitLoss:
        """Return the loss for a long tail of 7 classes, renumbered so that class ``order[i]`` is ``i``."""
        order = torch.arange(CLASSES) if order is None else order
        return self.build_for(COUNTS[order], LabelPrior(PRETRAIN_PRIOR.log_prob[order]), **options)

    def build_for(self, counts: Tensor, pretrain_prior: LabelPrior, **options: Any) -> LogitLoss:
        """Return the loss for counts ``(C,)`` and a pre-training prior."""
        data = {
            "counts": counts,
            "source_prior": LabelPrior.from_counts(counts),
            "pretrain_prior": pretrain_prior,
        }
        described = {need: data[need] for need in self.loss.needs}
        return self.loss(**described, **{**self.options, **options})


def sample(
    n: int = 11, seed: int = 0, dtype: torch.dtype = torch.float32, scale: float = 3.0
) -> tuple[Tensor, Tensor]:
    """Return logits ``(n, 7)`` and labels ``(n,)``."""
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(n, CLASSES, generator=generator, dtype=torch.float64)
    return logits.to(dtype), torch.randint(CLASSES, (n,), generator=generator)


def check_loss(loss: type[LogitLoss], *, except_for: Collection[str] = (), **options: Any) -> None:
    """Check that a loss is what dualtail takes a loss to be.

    Args:
        loss: derived from ``LogitLoss``.
        except_for: names of checks that do not hold and need not: "logit_shift" for a loss that looks at the size of
            logits, "batch_parts" and "mixed_labels" for one that weighs samples within a batch,
            "remaining_prior" for one whose minimiser has no closed form.
        **options: of the loss, if it needs some; numbers, or what does not depend on how classes are numbered.

    Raises:
        AssertionError: the first promise that is broken.

    Example:
        >>> from dualtail.logits.losses import LogitAdjustmentLoss, VSLoss
        >>> check_loss(LogitAdjustmentLoss, tau=0.5)
        >>> check_loss(VSLoss)
        Traceback (most recent call last):
        AssertionError: the loss VSLoss, logit_shift (A constant added to a sample's logits changes nothing): ...
    """
    run_checks(f"the loss {loss.__name__}", LOSS_CHECKS, LossCase(loss, options), except_for)


def data_and_options(case: LossCase) -> None:
    """It takes of the data what ``DATA`` names; all its options have defaults or were given."""
    for name, parameter in inspect.signature(case.loss).parameters.items():
        by_name = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        demand(by_name, f"{name!r} cannot be given by name")
        known = name in DATA or name in case.options or parameter.default is not parameter.empty
        demand(known, f"the option {name!r} has no default and was not given")


def finite_gradient(case: LossCase) -> None:
    """Value and gradient are finite, also where a sample is certain."""
    logits, labels = sample()
    for scores in (logits, 100 * logits):
        scores = scores.clone().requires_grad_()
        value = case.build()(scores, labels)
        (gradient,) = torch.autograd.grad(value, scores)
        demand(torch.isfinite(value), f"the value is {value}")
        demand(torch.isfinite(gradient).all(), "the gradient is not finite")


def gradient(case: LossCase) -> None:
    """The gradient is that of the value."""
    logits, labels = sample(n=4, dtype=torch.float64)
    loss = case.build()
    torch.autograd.gradcheck(lambda scores: loss(scores, labels), logits.requires_grad_())


def assert_logit_shift(loss: LogitLoss, logits: Tensor, labels: Tensor, shift: float | Tensor) -> None:
    """A constant added to a sample's float64 logits changes nothing."""
    torch.testing.assert_close(loss(logits + shift, labels), loss(logits, labels), rtol=1e-9, atol=1e-9)


def logit_shift(case: LossCase) -> None:
    """A constant added to a sample's logits changes nothing."""
    loss = case.build()
    for seed in range(_TRIES):
        logits, labels = sample(seed=seed, dtype=torch.float64, scale=10)
        generator = torch.Generator().manual_seed(seed)
        shift = 100 * torch.rand(len(logits), 1, generator=generator, dtype=torch.float64) - 50
        assert_logit_shift(loss, logits, labels, shift)


def assert_renumbered(case: LossCase, logits: Tensor, labels: Tensor, order: Tensor) -> None:
    """Calling class ``order[i]`` ``i`` everywhere changes nothing."""
    expected = case.build()(logits, labels)
    renumbered = case.build(order)(logits[:, order], order.argsort()[labels])
    torch.testing.assert_close(renumbered, expected, rtol=1e-6, atol=1e-6)


def class_order(case: LossCase) -> None:
    """Classes may be renumbered."""
    for seed in range(_TRIES):
        logits, labels = sample(seed=seed, dtype=torch.float64)
        order = torch.randperm(CLASSES, generator=torch.Generator().manual_seed(seed))
        assert_renumbered(case, logits, labels, order)


def batch_parts(case: LossCase) -> None:
    """A batch is the mean of its parts."""
    logits, labels = sample(n=12)
    loss = case.build()
    parts = torch.stack([loss(logits[i : i + 4], labels[i : i + 4]) for i in (0, 4, 8)])
    torch.testing.assert_close(loss(logits, labels), parts.mean())


def shapes_and_kinds(case: LossCase) -> None:
    """The answer is a scalar; leading dimensions are free, numpy is answered in kind, float32 agrees with float64."""
    logits, labels = sample(n=12)
    loss = case.build()
    expected = loss(logits, labels)
    demand(expected.shape == (), f"the answer has shape {tuple(expected.shape)}")
    torch.testing.assert_close(loss(logits.reshape(3, 4, CLASSES), labels.reshape(3, 4)), expected)
    torch.testing.assert_close(loss(logits.double(), labels), expected.double(), rtol=1e-5, atol=1e-6)
    as_numpy = loss(logits.numpy(), labels.numpy())
    demand(isinstance(as_numpy, np.ndarray), f"numpy is answered by {type(as_numpy).__name__}")
    np.testing.assert_allclose(as_numpy, expected, rtol=1e-6)


def half_precision(case: LossCase) -> None:
    """Half-precision logits are widened, also under autocast."""
    logits, labels = sample()
    half = logits.bfloat16()
    expected = case.build()(half.float(), labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        answer = case.build()(half, labels)
    demand(answer.dtype == torch.float32, f"the answer is {answer.dtype}")
    demand(torch.equal(answer, expected), f"the answer is {answer}, in float32 {expected}")


def one_graph(case: LossCase) -> None:
    """It compiles in one graph."""
    logits, labels = sample()
    loss = case.build()
    torch.compiler.reset()
    compiled = torch.compile(loss, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(logits, labels), loss(logits, labels))


def empty_batch(case: LossCase) -> None:
    """An empty batch costs nothing."""
    logits = torch.zeros(0, CLASSES, requires_grad=True)
    value = case.build()(logits, torch.zeros(0, dtype=torch.long))
    value.backward()
    demand(value == 0, f"it costs {value}")
    demand(logits.grad is not None and logits.grad.shape == logits.shape, "it has no gradient")


def buffers(case: LossCase) -> None:
    """What follows from the data is in buffers, which move and are saved; nothing is trained."""
    loss = case.build()
    demand(not list(loss.parameters()), "it has parameters")
    moved = copy.deepcopy(loss).to("meta")
    demand(all(buffer.device.type == "meta" for buffer in moved.buffers()), "a buffer does not move")
    other = case.build_for(torch.full((CLASSES,), 9.0), LabelPrior.uniform(CLASSES))
    other.load_state_dict(loss.state_dict())
    logits, labels = sample()
    demand(torch.equal(other(logits, labels), loss(logits, labels)), "loading its state does not restore it")
    demand(
        list(loss.buffers()) or not case.loss.needs, "it needs the data and keeps nothing of it in a buffer"
    )


def soft_labels(case: LossCase) -> None:
    """One-hot soft labels are hard labels, or soft ones are refused, as ``soft_labels`` says."""
    logits, labels = sample()
    loss, one_hot = case.build(), F.one_hot(labels, CLASSES).float()
    if case.loss.soft_labels:
        torch.testing.assert_close(loss(logits, one_hot), loss(logits, labels))
        return
    try:
        loss(logits, one_hot)
    except InputError as error:
        demand("not defined for soft labels" in str(error), f"the refusal is: {error}")
    else:
        demand(False, "soft labels are taken")


def mixed_labels(case: LossCase) -> None:
    """Mixed labels mix the losses."""
    if not case.loss.soft_labels:
        return
    logits, labels = sample()
    other = (labels + 2) % CLASSES
    mixed = 0.7 * F.one_hot(labels, CLASSES) + 0.3 * F.one_hot(other, CLASSES)
    loss = case.build()
    torch.testing.assert_close(loss(logits, mixed), 0.7 * loss(logits, labels) + 0.3 * loss(logits, other))


def remaining_prior(case: LossCase) -> None:
    """Where all images are alike, the loss is least at ``remaining_prior``, less what ``pretrain_tau`` takes off."""
    sampled = LabelPrior.from_counts(COUNTS)
    loss = case.build()
    labels = torch.arange(CLASSES).repeat_interleave(COUNTS.long())
    logits = loss.remaining_prior(sampled).log_prob - loss.pretrain_tau * PRETRAIN_PRIOR.log_prob
    logits = logits.double().requires_grad_()
    value = loss(logits.expand(len(labels), -1), labels)
    (slope,) = torch.autograd.grad(value, logits)
    steepest = float(slope.abs().max())
    demand(steepest < 1e-5, f"there the loss still has a slope of {steepest:.2g}")


def options_matter(case: LossCase) -> None:
    """Every option that is a number changes the loss: one that is taken and ignored would be worse than an error."""
    logits, labels = sample()
    expected = case.build()(logits, labels)
    for name, parameter in inspect.signature(case.loss).parameters.items():
        value = case.options.get(name, parameter.default)
        if name in DATA or isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        other: Any = value + 1 if isinstance(value, int) else 0.37 * value or 0.37
        changed = case.build(None, **{name: other})(logits, labels)
        demand(not torch.isclose(changed, expected), f"{name}={other} gives what {name}={value} gives")


LOSS_CHECKS: Sequence[Callable[[LossCase], None]] = (
    data_and_options,
    finite_gradient,
    gradient,
    logit_shift,
    class_order,
    batch_parts,
    shapes_and_kinds,
    half_precision,
    one_graph,
    empty_batch,
    buffers,
    soft_labels,
    mixed_labels,
    remaining_prior,
    options_matter,
)
