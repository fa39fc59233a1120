"""Training in phases, such as a representation first and a re-balanced head after it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from dualtail.engine.finetune import FinetuneResult, finetune
from dualtail.engine.loaders import TrainLoader
from dualtail.engine.optimize import Loss, trained_tensors
from dualtail.engine.settings import FinetuneSettings
from dualtail.errors import InputError


@dataclass(frozen=True)
class Phase:
    """One of several trainings of the same classifier.

    Attributes:
        name: of its folder of checkpoints and events.
        loader: its own sampling ...
        loss: ... loss ...
        settings: ... and optimizer.
        only: parts that train (first words of parameter names, such as ``("head",)``); empty for all that can.
    """

    name: str
    loader: TrainLoader
    loss: Loss
    settings: FinetuneSettings
    only: tuple[str, ...] = ()


def finetune_phases(
    classifier: nn.Module,
    phases: Sequence[Phase],
    *,
    checkpoint_dir: str | Path | None = None,
    events_dir: str | Path | None = None,
    **options: Any,
) -> tuple[FinetuneResult, ...]:
    """Train a classifier in phases; a run stopped in any of them goes on there.

    Two phases with ``only=("head",)`` in the second, under class-balanced sampling, are decoupled training with a
    re-trained classifier (cRT).

    Args:
        classifier: as for :func:`~dualtail.engine.finetune.finetune`.
        phases: in their order, with different names.
        checkpoint_dir: gets a folder a phase. The finished first phase is what an interrupted second one starts from,
            so delete it only when all are done.
        events_dir: gets a folder a phase.
        **options: passed on to every ``finetune``.

    Returns:
        A result a phase.

    Raises:
        InputError: two phases of one name, or ``only`` names nothing that trains.

    Source:
        Kang et al., "Decoupling Representation and Classifier for Long-Tailed Recognition", ICLR 2020,
        arXiv 1910.09217.
    """
    names = [phase.name for phase in phases]
    if len(set(names)) != len(names):
        raise InputError("two phases have the same name", where="phases", fix="name each differently")
    results = []
    for phase in phases:
        with train_only(classifier, *phase.only):
            result = finetune(
                classifier,
                phase.loader,
                phase.loss,
                phase.settings,
                checkpoint_dir=checkpoint_dir and Path(checkpoint_dir) / phase.name,
                events_dir=events_dir and Path(events_dir) / phase.name,
                **options,
            )
        results.append(result)
    return tuple(results)


@contextmanager
def train_only(classifier: nn.Module, *parts: str) -> Iterator[None]:
    """Freeze every trained parameter outside the named parts while inside; without parts, freeze nothing.

    Raises:
        InputError: the parts have no trained parameter.

    Example:
        >>> model = nn.ModuleDict({"tuner": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
        >>> with train_only(model, "head"):
        ...     print(sorted(trained_tensors(model)))
        ['head.bias', 'head.weight']
    """
    trained = trained_tensors(classifier)
    kept = {name for name in trained if not parts or name.split(".")[0] in parts}
    if not kept:
        first = sorted({name.split(".")[0] for name in trained})
        raise InputError(
            f"nothing of {', '.join(parts)} trains", where="only", fix=f"choose from {', '.join(first)}"
        )
    frozen = [parameter for name, parameter in trained.items() if name not in kept]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
