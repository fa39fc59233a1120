"""Every check for packages outside, on something that breaks its promise and no matter what else."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from dualtail.data.manifest import Manifest
from dualtail.errors import DataError, InputError
from dualtail.imagespec import ImageSpec
from dualtail.logits.losses import CrossEntropyLoss, FocalLoss, LogitAdjustmentLoss, LogitLoss
from dualtail.models.backbone import BACKBONES
from dualtail.models.heads import Head
from dualtail.models.heads.weight import CosineHead
from dualtail.models.parts import Parts
from dualtail.models.tuners import Site, Tuner
from dualtail.models.tuners.base import TRANSFORMERS
from dualtail.models.tuners.selected import BitFit
from dualtail.models.tuners.ssf import Ssf
from dualtail.testing import (
    check_augmentation,
    check_backbone,
    check_head,
    check_loss,
    check_reader,
    check_tuner,
)
from dualtail.testing.backbones import BACKBONE_CHECKS
from dualtail.testing.data import AUGMENTATION_CHECKS, READER_CHECKS
from dualtail.testing.heads import HEAD_CHECKS
from dualtail.testing.losses import LOSS_CHECKS
from dualtail.testing.tuners import TUNER_CHECKS

Check = Callable[..., None]


def fails(name: str, checks: Any, check: Check, *arguments: Any, **options: Any) -> None:
    """Assert that, of all checks, the one called ``name`` is broken."""
    others = [one.__name__ for one in checks if one.__name__ != name]
    with pytest.raises(AssertionError, match=name):
        check(*arguments, except_for=others, **options)


# Losses.


def loss_of(compute: Callable[[Tensor, Tensor], Tensor], **attributes: Any) -> type[LogitLoss]:
    """A loss that is the function of logits and labels."""
    return type(
        "Own", (LogitLoss,), {"_loss": lambda self, logits, labels: compute(logits, labels), **attributes}
    )


def nll(logits: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits, labels)


class Idle(CrossEntropyLoss):
    def __init__(self, strength: float = 1.0) -> None:
        super().__init__()


class Required(CrossEntropyLoss):
    def __init__(self, strength: float) -> None:
        super().__init__()


class Forgetful(LogitLoss):
    def __init__(self, source_prior: Any) -> None:
        super().__init__()
        self.offset = source_prior.log_prob.float()

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return nll(logits + self.offset, labels)


class Silent(LogitAdjustmentLoss):
    remaining_prior = LogitLoss.remaining_prior


class HalfWidth(LogitLoss):
    def forward(self, logits: Any, labels: Any) -> Any:
        return nll(1.1 * torch.as_tensor(logits), torch.as_tensor(labels))


LOSSES_THAT_BREAK = {
    "data_and_options": Required,
    "finite_gradient": loss_of(lambda f, y: -f.softmax(-1).gather(1, y[:, None]).log().mean()),
    "gradient": loss_of(lambda f, y: nll(f, y) + f.detach().mean()),
    "logit_shift": loss_of(lambda f, y: nll(f, y) + f.square().mean()),
    "class_order": loss_of(lambda f, y: nll(f + torch.arange(7.0), y)),
    "batch_parts": loss_of(lambda f, y: nll(f, y) / len(f)),
    "shapes_and_kinds": HalfWidth,
    "half_precision": HalfWidth,
    "one_graph": loss_of(lambda f, y: nll(f, y) * (1 if float(f.sum()) > 0 else 2)),
    "empty_batch": HalfWidth,
    "buffers": Forgetful,
    "soft_labels": loss_of(lambda f, y: nll(f, y if y.ndim == 1 else y.flip(-1)), soft_labels=True),
    "mixed_labels": loss_of(lambda f, y: nll(f, y) ** 2, soft_labels=True),
    "remaining_prior": Silent,
    "options_matter": Idle,
}


@pytest.mark.parametrize("name", [check.__name__ for check in LOSS_CHECKS])
def test_losses(name: str) -> None:
    fails(name, LOSS_CHECKS, check_loss, LOSSES_THAT_BREAK[name])


# Tuners.


class Stays(Ssf):
    """Leaves its hooks behind."""

    name = "own"

    def detach(self) -> None: ...


class Wild(Ssf):
    name = "own"

    def trainable(self) -> dict[str, nn.Parameter]:
        return dict(list(super().trainable().items())[1:])


class Loud(Ssf):
    name = "own"
    neutral = False


class Deaf(Ssf):
    """A parameter that nothing reads."""

    name = "own"

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.unused = nn.Parameter(torch.zeros(3))


class Everywhere(BitFit):
    name = "own"

    def __init__(self, site: Site) -> None:
        whole = replace(site, blocks=site.backbone.blocks)
        super().__init__(whole)


class Wide(Tuner):
    name, families = "own", TRANSFORMERS

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.shift = nn.Parameter(torch.zeros(site.blocks[0].width))
        for block in site.blocks:
            self.on_detach(
                block.module.register_forward_hook(lambda module, args, output: output + self.shift)
            )


class Lost(Ssf):
    """Changes by what is not saved."""

    name = "own"

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        factor = 1 + random.random()
        self.on_detach(
            site.backbone.visual.register_forward_hook(lambda module, args, output: factor * output)
        )


class Branching(Ssf):
    name = "own"

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.on_detach(site.backbone.visual.register_forward_hook(self._branch))

    def _branch(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return output if output.sum() != 7 else 2 * output


class Chance(Tuner):
    name, families = "own", TRANSFORMERS

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.shift = nn.Parameter(torch.from_numpy(np.random.default_rng().normal(size=3)))


TUNERS_THAT_BREAK = {
    "detachment": Stays,
    "trained_parameters": Wild,
    "start": Loud,
    "training_step": Deaf,
    "chosen_blocks": Everywhere,
    "autocast": Wide,
    "saving": Lost,
    "one_graph": Branching,
    "seeds": Chance,
}


@pytest.mark.parametrize("name", [check.__name__ for check in TUNER_CHECKS])
def test_tuners(name: str) -> None:
    fails(name, TUNER_CHECKS, check_tuner, TUNERS_THAT_BREAK[name])


# Heads.


def head_of(score: Callable[[Any, Tensor], Tensor], **attributes: Any) -> type[Head]:
    return type("Own", (CosineHead,), {"name": "own", "score": score, **attributes})


def redraw(weight: Tensor) -> None:
    weight.data.copy_(torch.from_numpy(np.random.default_rng().normal(size=weight.shape)))


HEADS_THAT_BREAK = {
    "shapes": head_of(lambda self, z: CosineHead.score(self, z).flatten(0, -2)),
    "training_and_saving": head_of(
        lambda self, z: -CosineHead.score(self, z).detach() + 0 * self.weight.sum()
    ),
    "float32": head_of(CosineHead.score, forward=lambda self, z: z @ self.weight.to(z.dtype).T),
    "first_weights": head_of(CosineHead.score, set_weight=lambda self, weight: None),
    "one_graph": head_of(lambda self, z: CosineHead.score(self, z) if z.sum() != 7 else z),
    "seeds": head_of(CosineHead.score, bind=lambda self, *_: redraw(self.weight)),
}


@pytest.mark.parametrize("name", [check.__name__ for check in HEAD_CHECKS])
def test_heads(name: str) -> None:
    fails(name, HEAD_CHECKS, check_head, HEADS_THAT_BREAK[name])


# Backbones.


class Means(nn.Module):
    def __init__(self, change: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.change, self.layer = change, nn.Linear(3, 8)

    def forward(self, images: Tensor) -> Tensor:
        return self.change(self, self.layer(images.mean((2, 3))))


def builder_of(
    change: Callable[[Any, Tensor], Tensor] = lambda self, z: z, **parts: Any
) -> Callable[..., Parts]:
    def build(name: str, rest: str, *, weights: str | None, seed: int) -> Parts:
        return Parts("timm_other", Means(change).eval(), ImageSpec(size=8), 8, **parts)

    return build


def wordy(name: str, rest: str, *, weights: str | None, seed: int) -> Parts:
    """A text tower whose texts are wider than the images."""
    parts = builder_of()(name, rest, weights=weights, seed=seed)
    tower = nn.Module()
    tower.logit_scale = nn.Parameter(torch.zeros(()))
    tower.encode_text = lambda tokens: torch.ones(len(tokens), 9)
    parts.text = tower

    class Tokenizer:
        context_length = 99

        def __call__(self, texts: list[str]) -> Tensor:
            return torch.zeros(len(texts), 1, dtype=torch.long)

    parts.tokenizer = Tokenizer
    return parts


def strange(name: str, rest: str, *, weights: str | None, seed: int) -> Parts:
    parts = builder_of()(name, rest, weights=weights, seed=seed)
    parts.family = "own"
    return parts


BACKBONES_THAT_BREAK = {
    "features": builder_of(lambda self, z: z[:, :4]),
    "frozen": builder_of(lambda self, z: z + torch.zeros(1, requires_grad=True)),
    "family": strange,
    "fingerprint": builder_of(),  # its weights are of torch's generator, not of the seed
    "text": wordy,
}


@pytest.mark.parametrize("name", [check.__name__ for check in BACKBONE_CHECKS])
def test_backbones(name: str) -> None:
    fails(name, BACKBONE_CHECKS, check_backbone, BACKBONES_THAT_BREAK[name], "x")
    assert "checked" not in BACKBONES


# Readers and augmentations.


def read(root: Path) -> Manifest:
    """Read two images."""
    if not (root / "0.png").exists():
        raise DataError("there are no images", where=str(root))
    return Manifest(root, ("0.png", "1.png"), [0, 1], ["train", "train"], ("a", "b"))


def read_undocumented(root: Path) -> Manifest:
    return read(root)


def read_missing(root: Path) -> Manifest:
    return Manifest(root, ("0.png", "2.png"), [0, 1], ["train", "train"], ("a", "b"))


def read_in_any_order(root: Path, times: list[int] = []) -> Manifest:  # noqa: B006
    times.append(1)
    return read(root).select([len(times) % 2, 1 - len(times) % 2])


def read_absolute(root: Path) -> Manifest:
    manifest = read(root)
    return Manifest(root, [manifest.file(row) for row in range(2)], [0, 1], manifest.splits, ("a", "b"))


def read_carelessly(root: Path) -> Manifest:
    (root / "0.png").stat()
    return read(root)


READERS_THAT_BREAK = {
    "documented": read_undocumented,
    "manifest": read_missing,
    "reading_again": read_in_any_order,
    "moving": read_absolute,
    "one_line": read_carelessly,
}


@pytest.mark.parametrize("name", [check.__name__ for check in READER_CHECKS])
def test_readers(tmp_path: Path, name: str) -> None:
    for number in range(2):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png")
    check_reader(read, tmp_path)
    fails(name, READER_CHECKS, check_reader, READERS_THAT_BREAK[name], tmp_path)


class Flat:
    """A transform to one colour."""

    min_side = 64

    def __init__(self, size: int) -> None:
        self.size = size

    def colour(self) -> int:
        return int(torch.randint(256, ()))

    def __call__(self, image: Image.Image, progress: float = 0.0) -> Tensor:
        return torch.full((3, self.size, self.size), self.colour(), dtype=torch.uint8)


class Floats(Flat):
    def __call__(self, image: Image.Image, progress: float = 0.0) -> Tensor:
        return super().__call__(image).float()


class Unseeded(Flat):
    def colour(self) -> int:
        return int(np.random.default_rng().integers(256))


class Fixed(Flat):
    def colour(self) -> int:
        return 3


AUGMENTATIONS_THAT_BREAK = {"uint8_square": Floats, "seeds": Unseeded, "randomness": Fixed}


@pytest.mark.parametrize("name", [check.__name__ for check in AUGMENTATION_CHECKS])
def test_augmentations(name: str) -> None:
    check_augmentation(Flat)
    fails(name, AUGMENTATION_CHECKS, check_augmentation, AUGMENTATIONS_THAT_BREAK[name])


def test_a_check_that_does_not_exist_is_no_exception() -> None:
    with pytest.raises(
        InputError, match="except_for: unknown check 'logit_shfit'; did you mean 'logit_shift'"
    ):
        check_loss(FocalLoss, except_for=["logit_shfit"])
