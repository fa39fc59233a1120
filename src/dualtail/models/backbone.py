"""Frozen foundation models, named by one string, with their weights in them or refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dualtail.errors import BackboneError, DualtailError, first_line, nearest_fix
from dualtail.models import _open_clip, _timm
from dualtail.models._resize import resize_input
from dualtail.models.blocks import Block, blocks_of
from dualtail.models.parts import Parts, quiet
from dualtail.registry import Registry

BACKBONES: Registry[Callable[..., Parts]] = Registry(
    "backbone library",
    {"open_clip": _open_clip.build, "timm": _timm.build},
    group="dualtail.backbones",
    given=("name", "rest", "weights", "seed"),
    error=BackboneError,
)
"""What builds the backbones ``LIBRARY:REST`` of a library: ``build(name, rest, *, weights, seed)`` gives ``Parts``.

``name`` is the whole name, for messages; ``weights`` a file, ``"random"`` or None for those that the name stands for;
``seed`` that of random weights. A builder raises ``BackboneError`` for weights that are not there, whole and of this
architecture.
"""

_TEXT_BATCH = 256


class AttachedTuner(Protocol):
    """What a backbone knows of a tuner that is attached to it."""

    name: ClassVar[str]

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return the parameters it trains under stable names."""


class Backbone(nn.Module):
    """A frozen foundation model: features of images and, where it has a text tower, of text.

    Made by ``load_backbone``. It stays in evaluation mode (no dropout, batch statistics as pre-trained) and takes no
    gradient unless a tuner says otherwise.

    Attributes:
        name: the string it was loaded by.
        weights: the file it was loaded from, ``"random"``, or None for the weights its name stands for.
        seed: of random weights.
        family: what its vision tower is, a key of ``FAMILIES``.
        image_spec: input size and normalisation.
        feature_dim: D, the width of the feature before the projection.
        blocks: its vision tower's transformer blocks, empty if it is no plain vision transformer.
        text_blocks: its text tower's, likewise.
        weights_fingerprint: SHA-256 of the weights as loaded.
        trains_modules: whether the vision tower follows ``train()``.
        tuned: the attached tuners, by tower.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, name: str, parts: Parts, *, weights: str | None = None, seed: int = 0) -> None:
        super().__init__()
        self.name, self.weights, self.seed = name, weights, seed
        self.family = parts.family
        self.image_spec = parts.image_spec
        self.feature_dim = parts.feature_dim
        self.weights_fingerprint = parts.fingerprint
        self.visual, self.projection, self.text = parts.visual, parts.projection, parts.text
        # As numbers, so that reading them never waits for a device.
        self._logit_scale = float(torch.exp(_scalar(self.text, "logit_scale")))
        self._logit_bias = float(_scalar(self.text, "logit_bias"))
        self.blocks: tuple[Block, ...] = blocks_of(parts.blocks)
        self.text_blocks: tuple[Block, ...] = blocks_of(parts.text_blocks)
        # Parameters that the architecture itself never trains (fixed sine position embeddings).
        self._constant = {name for name, value in self.named_parameters() if not value.requires_grad}
        self.trains_modules = False
        self.tuned: dict[str, AttachedTuner] = {}
        self._make_tokenizer = parts.tokenizer
        self._tokenizer: Any = None
        self.register_buffer("pixel_mean", torch.tensor(self.image_spec.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(self.image_spec.std).view(3, 1, 1), persistent=False)
        self.requires_grad_(False)
        self.eval()

    @property
    def device(self) -> torch.device:
        """The device of its weights, where images and token ids must be."""
        return self.pixel_mean.device

    @property
    def depth(self) -> int:
        """Number of transformer blocks of the vision tower, 0 if it is no plain vision transformer."""
        return len(self.blocks)

    @property
    def has_text(self) -> bool:
        """Whether it has a text tower, hence zero-shot logits and a pre-training prior of its own."""
        return self.text is not None

    @property
    def logit_scale(self) -> float:
        """Factor of the zero-shot cosine similarities, ``exp`` of the learnt temperature."""
        self._text_model()
        return self._logit_scale

    @property
    def logit_bias(self) -> float:
        """What sigmoid-trained models (SigLIP) add to the scaled cosines; 0 for softmax-trained ones."""
        self._text_model()
        return self._logit_bias

    @property
    def text_family(self) -> str | None:
        """``open_clip_text``, ``hub_text``, or None without a text tower."""
        if self.text is None:
            return None
        return "open_clip_text" if self.text_blocks else "hub_text"

    def train(self, mode: bool = True) -> Backbone:
        """Stay in evaluation mode; only a tuner that trains whole modules lets the vision tower follow."""
        super().train(False)
        self.visual.train(mode and self.trains_modules)
        return self

    def freeze_modules(self) -> None:
        """Go back to evaluation mode for good: the tuner that trained whole modules is gone."""
        self.trains_modules = False
        self.eval()

    def tower_parameters(self, tower: str) -> dict[str, nn.Parameter]:
        """Return every parameter that the ``"vision"`` or ``"text"`` tower's features depend on, by its name here."""
        beside = ("text.logit_scale", "text.logit_bias", "text.text_decoder.")
        prefix = "visual." if tower == "vision" else "text."
        return {
            name: parameter
            for name, parameter in self.named_parameters()
            if name.startswith(prefix) and not name.startswith(beside) and name not in self._constant
        }

    def tower_statistics(self) -> dict[str, Tensor]:
        """Return the vision tower's running batch statistics, which a state dict holds beside its parameters."""
        parameters = {name for name, _ in self.visual.named_parameters(prefix="visual")}
        state = self.visual.state_dict(prefix="visual.")
        return {name: value for name, value in state.items() if name not in parameters}

    def normalize(self, images: Tensor) -> Tensor:
        """Return uint8 images ``(B, 3, S, S)`` as normalised float32; float images are taken as normalised.

        The division happens on the images' device, so that loaders move a quarter of the bytes.
        """
        if images.dtype != torch.uint8:
            return images
        return (images.float() / 255 - self.pixel_mean) / self.pixel_std

    def features(self, images: Tensor) -> Tensor:
        """Return the pooled features ``(B, D)`` float32 before the projection.

        For open_clip's vision transformers that is the class token (or whatever the tower pools) after the final
        LayerNorm, for its ResNets the attention pool before ``c_proj``, for timm models what the classifier reads.

        Args:
            images: ``(B, 3, S, S)``, uint8, or float already normalised.
        """
        return self.visual(self.normalize(images)).float()

    def project(self, features: Tensor) -> Tensor:
        """Return embeddings ``(B, E)`` in the joint image-text space, not normalised."""
        return self.projection(features)

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Return L2-normalised text features ``(n, E)`` float32, without gradient.

        Raises:
            BackboneError: there is no text tower, or its tokenizer cannot be had offline.
        """
        with torch.no_grad():
            parts = [
                F.normalize(
                    self.encode_tokens(self.tokenize(texts[i : i + _TEXT_BATCH]).to(self.device)), dim=-1
                )
                for i in range(0, len(texts), _TEXT_BATCH)
            ]
        return torch.cat(parts)

    def encode_tokens(self, tokens: Tensor) -> Tensor:
        """Return text embeddings ``(n, E)`` float32 of token ids ``(n, T)``, not normalised, with gradient."""
        return self._text_model().encode_text(tokens).float()

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Return token ids ``(n, T)`` int64, refusing a text that the tokenizer would cut off.

        Raises:
            BackboneError: a text is too long for the text tower's context.
        """
        tokenizer = self.tokenizer
        for text in texts:
            # No text has more tokens than bytes, so most need no second look.
            length = _token_count(tokenizer, text) if len(text.encode()) + 2 > tokenizer.context_length else 0
            if length > tokenizer.context_length:
                raise BackboneError(
                    f"{text!r} has {length} tokens, the text tower reads {tokenizer.context_length}",
                    where=self.name,
                    fix="shorten the class name, template or description",
                )
        return tokenizer(list(texts))

    @property
    def tokenizer(self) -> Any:
        """open_clip's tokenizer of this model, made on first use."""
        self._text_model()
        if self._tokenizer is None and self._make_tokenizer is not None:
            self._tokenizer = self._make_tokenizer()
        return self._tokenizer

    def _text_model(self) -> Any:
        if self.text is None:
            raise BackboneError(
                "has no text tower, hence no text features and no zero-shot logits",
                where=self.name,
                fix="choose an open_clip backbone, or initialise the head with class_mean",
            )
        return self.text


def _scalar(model: nn.Module | None, name: str) -> Tensor:
    """Return a model's parameter of one number, 0 if it has none."""
    value = getattr(model, name, None)
    return torch.zeros(()) if value is None else value.detach().double().squeeze()


def _token_count(tokenizer: Any, text: str) -> int:
    """Return how many tokens ``text`` needs with its start and end."""
    if hasattr(tokenizer, "sot_token_id"):
        return len(tokenizer.encode(text)) + 2
    return len(tokenizer.tokenizer(text)["input_ids"])


def load_backbone(
    name: str,
    *,
    weights: str | None = None,
    seed: int = 0,
    image_size: int | None = None,
    device: str | torch.device = "cpu",
) -> Backbone:
    """Load a foundation model with its complete weights, frozen, in float32.

    Args:
        name: ``open_clip:ARCH/TAG`` (``open_clip:ViT-B-16-quickgelu/openai``), ``open_clip:DIR`` (a folder with
            ``open_clip_config.json`` and weights in open_clip's hub format), ``open_clip:hf-hub:OWNER/NAME`` (the same
            on the Hugging Face hub; ``OWNER/NAME@COMMIT`` pins it), ``timm:NAME``, or ``LIBRARY:REST`` with another key
            of ``BACKBONES``.
        weights: a local checkpoint to use instead of the weights that the name stands for, or ``"random"``.
        seed: of random weights; torch's global generator is left alone.
        image_size: side of the input images, when it is not to be the pre-trained one: position embeddings are resized.
        device: where it will live.

    Returns:
        The backbone.

    Raises:
        BackboneError: the name is unknown; weights are absent, partial or of another architecture or activation
            (QuickGELU where the architecture computes GELU); they cannot be fetched without a network; the tower cannot
            take that image size.

    Example:
        >>> backbone = load_backbone("timm:test_vit", weights="random")
        >>> backbone.family, backbone.feature_dim, backbone.image_spec.size, backbone.has_text
        ('timm_vit', 64, 160, False)
        >>> backbone.features(torch.zeros(2, 3, 160, 160, dtype=torch.uint8)).shape
        torch.Size([2, 64])
    """
    library, _, rest = name.partition(":") if isinstance(name, str) else ("",) * 3
    usage = "name it open_clip:ARCH/TAG, open_clip:DIR or timm:NAME"
    if not rest or library not in BACKBONES:
        fix = nearest_fix(library, BACKBONES, usage) if rest else usage
        raise BackboneError(f"unknown backbone {name!r}", fix=fix)
    try:
        parts = BACKBONES[library](name, rest, weights=weights, seed=seed)
        resized = image_size is not None and image_size != parts.image_spec.size
        if image_size is not None and resized:
            with quiet():
                resize_input(name, parts, image_size)
        made = Backbone(name, parts, weights=weights, seed=seed)
    except DualtailError:
        raise
    except _IMPOSSIBLE as error:
        reason = first_line(error)
        raise BackboneError(
            f"cannot be built ({reason})", where=name, fix="check its name and its files"
        ) from error
    if made.image_spec.size < 1:
        raise BackboneError("takes images of 0 pixels", where=name, fix="check its files")
    made = made.to(device)
    if resized:
        _check_input(made)
    return made


# What the libraries raise for sizes that no architecture has: they come from files, which anybody can write.
_IMPOSSIBLE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)


def _check_input(backbone: Backbone) -> None:
    """Send one empty image of the new size through, refusing a tower that cannot take it."""
    size = backbone.image_spec.size
    try:
        with torch.no_grad():
            backbone.features(torch.zeros(1, 3, size, size, device=backbone.device))
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = first_line(error)
        raise BackboneError(
            f"cannot take images of {size} pixels ({reason})",
            where=backbone.name,
            fix="leave image_size out",
        ) from error
