"""What every tuner is: parameters beside a frozen tower, attached to it and detachable from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dualtail.models.backbone import Backbone
from dualtail.models.blocks import Block


@dataclass(frozen=True)
class Site:
    """Where a tuner goes.

    Attributes:
        backbone: the foundation model.
        blocks: the chosen blocks of its vision tower.
        depth: how many blocks that tower has, chosen or not.
        num_classes: C, from which widths follow.
    """

    backbone: Backbone
    blocks: tuple[Block, ...]
    depth: int
    num_classes: int

    def tower_parameters(self) -> dict[str, nn.Parameter]:
        """Return every parameter that the features depend on, under the backbone's names."""
        named = self.backbone.visual.named_parameters(prefix="visual")
        return {name: parameter for name, parameter in named if name not in self.backbone.constants}

    def tower_buffers(self) -> dict[str, Tensor]:
        """Return the buffers that belong to the tower's state dict: running batch statistics."""
        state = self.backbone.visual.state_dict(prefix="visual.")
        parameters = {name for name, _ in self.backbone.visual.named_parameters(prefix="visual")}
        return {name: value for name, value in state.items() if name not in parameters}

    def bottleneck(self, width: int | None) -> int:
        """Return ``width``, or LIFT's ``2 ** max(0, floor(log2(C / (2 * blocks))))`` for None."""
        return bottleneck_width(self.num_classes, self.depth) if width is None else width


def bottleneck_width(num_classes: int, depth: int) -> int:
    """Return LIFT's automatic width ``2 ** max(0, floor(log2(C / (2 * blocks))))``.

    Example:
        >>> [bottleneck_width(classes, 12) for classes in (10, 100, 365, 1000, 8142)]
        [1, 4, 8, 32, 256]
    """
    # floor(log2) of a ratio of integers, without rounding: the largest power of two not above it.
    return 1 << max(0, (num_classes // (2 * depth)).bit_length() - 1)


class Tuner(nn.Module):
    """Trainable parameters that change what a frozen backbone computes.

    Making one attaches it; ``detach`` leaves the backbone as it was. Its own parameters are sub-modules of this
    module; a tuner that trains the backbone's parameters names them in ``trainable``.

    Attributes:
        name: its key in ``TUNERS``.
        options: what it was made with, JSON-able, for the saved configuration.
    """

    name: ClassVar[str]

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.options: dict[str, object] = {}
        self._undo: list[Callable[[], None]] = []

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return the parameters it trains under stable names."""
        return dict(self.named_parameters())

    def extra_state(self) -> dict[str, Tensor]:
        """Return what else must be saved with the parameters (batch statistics, mostly nothing)."""
        return {}

    @property
    def num_parameters(self) -> int:
        """How many numbers it trains."""
        return sum(parameter.numel() for parameter in self.trainable().values())

    def detach(self) -> None:
        """Leave the backbone as it was before. The tuner's parameters stay readable."""
        while self._undo:
            self._undo.pop()()

    def on_detach(self, undo: Callable[[], None] | RemovableHandle) -> None:
        """Remember what ``detach`` has to do; the last comes first."""
        self._undo.append(undo.remove if isinstance(undo, RemovableHandle) else undo)


class NoTuner(Tuner):
    """Trains nothing in the backbone: a linear probe."""

    name = "none"


class BackboneTuner(Tuner):
    """Trains some of the backbone's own parameters in place.

    ``detach`` writes the pre-trained values back; they are kept on the CPU meanwhile.
    """

    def __init__(self, site: Site, chosen: dict[str, nn.Parameter]) -> None:
        super().__init__(site)
        self._chosen = chosen
        original = {name: parameter.detach().to("cpu", copy=True) for name, parameter in chosen.items()}
        for parameter in chosen.values():
            parameter.requires_grad_(True)
        self.on_detach(lambda: _restore(chosen, original))

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return the chosen parameters of the backbone under the backbone's names."""
        return dict(self._chosen)


@torch.no_grad()
def _restore(chosen: dict[str, nn.Parameter], original: dict[str, Tensor]) -> None:
    for name, parameter in chosen.items():
        parameter.copy_(original[name]).requires_grad_(False)
        parameter.grad = None
