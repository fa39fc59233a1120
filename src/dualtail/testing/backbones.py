"""What every builder of backbones promises."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch

from dualtail.models.backbone import BACKBONES, Backbone, load_backbone
from dualtail.models.parts import FAMILIES, Parts
from dualtail.testing._run import demand, run_checks
from dualtail.testing.tuners import images_for


@dataclass(frozen=True)
class BackboneCase:
    """A name of a backbone with the weights that it is checked with.

    Attributes:
        name: such as ``timm:test_vit``.
        weights: as of ``load_backbone``.
    """

    name: str
    weights: str | None = "random"

    def load(self, seed: int = 0) -> Backbone:
        """Return the backbone, fresh."""
        return load_backbone(self.name, weights=self.weights, seed=seed)


def check_backbone(
    builder: Callable[..., Parts],
    rest: str,
    *,
    library: str = "checked",
    weights: str | None = "random",
    except_for: Collection[str] = (),
) -> None:
    """Check that a builder of backbones is what dualtail takes one to be; it need not be registered.

    Args:
        builder: called as ``builder(name, rest, weights=..., seed=...)``; gives ``Parts``.
        rest: what follows the colon in the name of a small backbone.
        library: what stands before it.
        weights: as of ``load_backbone``.
        except_for: names of checks that do not hold and need not.

    Raises:
        AssertionError: the first promise that is broken.

    Example:
        >>> check_backbone(BACKBONES["timm"], "test_vit", library="timm")
    """
    with BACKBONES.added(library, builder):
        case = BackboneCase(f"{library}:{rest}", weights)
        run_checks(f"the backbone {case.name!r}", BACKBONE_CHECKS, case, except_for)


def features(case: BackboneCase) -> None:
    """Features are finite float32 ``(B, feature_dim)``, the same for an image alone and for normalised images."""
    backbone = case.load()
    images = images_for(backbone)
    answer = backbone.features(images)
    expected = (len(images), backbone.feature_dim)
    demand(answer.shape == expected, f"they have shape {tuple(answer.shape)}, not {expected}")
    demand(answer.dtype == torch.float32, f"they are {answer.dtype}")
    demand(torch.isfinite(answer).all(), "they are not finite")
    torch.testing.assert_close(backbone.features(images[:1]), answer[:1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(backbone.features(backbone.normalize(images)), answer)


def frozen(case: BackboneCase) -> None:
    """Nothing asks for a gradient, and training mode changes nothing."""
    backbone = case.load()
    images = images_for(backbone)
    before = backbone.features(images)
    demand(not before.requires_grad, "its features ask for a gradient")
    demand(torch.equal(backbone.train().features(images), before), "training mode gives other features")


def family(case: BackboneCase) -> None:
    """Its family is one that tuners know."""
    backbone = case.load()
    demand(backbone.family in FAMILIES, f"it is {backbone.family!r}; choose from {', '.join(FAMILIES)}")


def fingerprint(case: BackboneCase) -> None:
    """The same weights have the same SHA-256 and features, others another; torch's generator is left alone."""
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one, same, other = (case.load(seed) for seed in (0, 0, 1))
    demand(torch.equal(torch.get_rng_state(), state), "loading draws from torch's generator")
    digest = one.weights_fingerprint
    demand(re.fullmatch("[0-9a-f]{64}", digest), f"the fingerprint {digest!r} is no SHA-256 in hex")
    demand(same.weights_fingerprint == digest, "loaded twice it has two fingerprints")
    images = images_for(one)
    demand(torch.equal(same.features(images), one.features(images)), "loaded twice it has other features")
    moved = not torch.equal(other.features(images), one.features(images))
    demand((other.weights_fingerprint != digest) is moved, "the fingerprint does not follow the weights")


def text(case: BackboneCase) -> None:
    """If it has a text tower, texts and images meet in one space."""
    backbone = case.load()
    if not backbone.has_text:
        return
    answer = backbone.encode_text(["a cat", "a dog"])
    width = backbone.project(backbone.features(images_for(backbone))).shape[-1]
    demand(answer.shape == (2, width), f"texts have shape {tuple(answer.shape)}, images are {width} wide")
    torch.testing.assert_close(answer.norm(dim=-1), torch.ones(2))


BACKBONE_CHECKS: Sequence[Callable[[BackboneCase], None]] = (features, frozen, family, fingerprint, text)
