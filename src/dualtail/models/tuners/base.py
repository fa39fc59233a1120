"""What every tuner is: parameters beside a frozen tower, attached to it and detachable from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dualtail.errors import BackboneError, InputError
from dualtail.models.backbone import Backbone
from dualtail.models.blocks import Block
from dualtail.models.parts import FAMILIES, require_name

EVERY = frozenset(FAMILIES)
TRANSFORMERS = frozenset({"open_clip_vit", "timm_vit", "timm_relative_vit", "open_clip_text"})


@dataclass(frozen=True)
class Site:
    """Where a tuner goes.

    Attributes:
        backbone: the foundation model.
        tower: ``"vision"`` or ``"text"``.
        blocks: the chosen blocks of that tower, all if none were chosen.
        depth: how many blocks the tower has, chosen or not.
        num_classes: C, from which widths follow.
        seed: of random choices that are not weights.
        undo: what taking the tuner off again has to do, the last first.
    """

    backbone: Backbone
    tower: str
    blocks: tuple[Block, ...]
    depth: int
    num_classes: int
    seed: int
    undo: list[Callable[[], None]] = field(default_factory=list)

    def roll_back(self) -> None:
        """Leave the backbone as it was before the tuner came."""
        while self.undo:
            self.undo.pop()()

    def tower_parameters(self) -> dict[str, nn.Parameter]:
        """Return every parameter that the tower's features depend on, under the backbone's names."""
        return self.backbone.tower_parameters(self.tower)

    def block_parameters(self) -> dict[str, nn.Parameter]:
        """Return every parameter of the chosen blocks as ``blocks.INDEX.NAME``."""
        return {
            f"blocks.{block.index}.{name}": parameter
            for block in self.blocks
            for name, parameter in block.module.named_parameters()
        }

    def bottleneck(self, width: int | None) -> int:
        """Return ``width``, or LIFT's ``2 ** max(0, floor(log2(C / (2 * blocks))))`` for None.

        Raises:
            InputError: a width below 1.
        """
        if width is None:
            return bottleneck_width(self.num_classes, self.depth)
        if width < 1:
            raise InputError(f"width is {width}", fix="give a positive width, or none for the automatic one")
        return width

    def refuse(self, what: str, fix: str = "see the table in docs/choose-a-tuner.md") -> BackboneError:
        """Return the error of a tuner that does not fit this very model, though it fits its family."""
        return BackboneError(what, where=self.backbone.name, fix=fix)


def bottleneck_width(num_classes: int, depth: int) -> int:
    """Return LIFT's automatic width ``2 ** max(0, floor(log2(C / (2 * blocks))))``.

    Example:
        >>> [bottleneck_width(classes, 12) for classes in (10, 100, 365, 1000, 8142)]
        [1, 4, 8, 32, 256]
    """
    # floor(log2) of a ratio of integers, without rounding: the largest power of two not above it.
    return 1 << max(0, (num_classes // (2 * depth)).bit_length() - 1)


class Tuner(nn.Module):
    """Trainable parameters that change what a frozen tower computes.

    Making one attaches it; ``detach`` leaves the backbone as it was. Its own parameters are sub-modules of this
    module; a tuner whose parameters live in the backbone names them in ``trainable``.

    Attributes:
        name: its key in ``TUNERS``, which messages and saved configurations call it by; every class needs one.
        families: the towers it fits, keys of ``FAMILIES``.
        neutral: whether it changes nothing before the first step.
        options: what it was made with, JSON-able, for the saved configuration.
        tower: ``"vision"`` or ``"text"``.
    """

    name: ClassVar[str]
    families: ClassVar[frozenset[str]] = TRANSFORMERS
    neutral: ClassVar[bool] = True

    def __init__(self, site: Site) -> None:
        super().__init__()
        require_name(type(self))
        self.options: dict[str, Any] = {}
        self.tower = site.tower
        self._site = site

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
        """Leave the backbone as it was before. The tuner's own parameters stay readable."""
        self._site.roll_back()

    def on_detach(self, undo: Callable[[], None] | RemovableHandle) -> None:
        """Remember what ``detach`` has to do; the last comes first."""
        self._site.undo.append(undo.remove if isinstance(undo, RemovableHandle) else undo)

    def replace(self, owner: nn.Module, name: str, module: nn.Module) -> None:
        """Put ``module`` in the place of ``owner.name`` until ``detach``."""
        before = getattr(owner, name)
        setattr(owner, name, module.train(before.training))

        def put_back() -> None:
            # The tower may have moved to another device meanwhile.
            setattr(owner, name, before.to(next(owner.parameters()).device))

        self.on_detach(put_back)


class BackboneTuner(Tuner):
    """Trains some of the backbone's own parameters in place.

    ``detach`` writes the pre-trained values back; they are kept on the CPU meanwhile.

    Args:
        site: where it goes.
        chosen: the parameters, under stable names.
    """

    def __init__(self, site: Site, chosen: dict[str, nn.Parameter]) -> None:
        super().__init__(site)
        if not chosen:
            raise site.refuse(f"the tuner {self.name!r} finds nothing to train in the chosen blocks")
        self._chosen = chosen
        original = {name: parameter.detach().to("cpu", copy=True) for name, parameter in chosen.items()}
        for parameter in chosen.values():
            parameter.requires_grad_(True)
        self.on_detach(lambda: _restore(chosen, original))

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return the chosen parameters of the backbone under their stable names."""
        return dict(self._chosen)


@torch.no_grad()
def _restore(chosen: dict[str, nn.Parameter], original: dict[str, Tensor]) -> None:
    for name, parameter in chosen.items():
        parameter.copy_(original[name]).requires_grad_(False)
        parameter.grad = None
