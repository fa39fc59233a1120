"""Heads tied to the text tower: the classes' weights are its features, computed at every training step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from dualtail.errors import BackboneError, InputError
from dualtail.models.backbone import Backbone
from dualtail.models.heads.base import Head
from dualtail.models.text import PHOTO, check_class_names, class_prompts
from dualtail.schema import PositiveFloat


class TextHead(Head):
    """Zero-shot logits whose text features follow a tuner of the text tower.

    ``scale * cos(project(z), text(class)) + logit_bias``. It starts as the zero-shot classifier and has no parameters
    of its own. All C prompts go through the text tower at every training step, whose memory grows with C; in
    evaluation the features are computed once.

    Args:
        feature_dim: D.
        num_classes: C.
        template: of the prompts, with one ``{}``.
        scale: of the cosine; None for the backbone's ``logit_scale``.
    """

    name = "text"
    reads_text = True
    tokens: Tensor

    def __init__(
        self, feature_dim: int, num_classes: int, *, template: str = PHOTO, scale: PositiveFloat | None = None
    ) -> None:
        super().__init__(feature_dim, num_classes)
        self.template, self.scale, self.shift = template, scale, 0.0
        # In a list, so that the backbone does not become a sub-module of its head.
        self._backbone: list[Backbone] = []
        self._cached: tuple[object, Tensor] | None = None

    def bind(self, backbone: Backbone, class_names: Sequence[str]) -> None:
        """Take the text tower and make the classes' prompts.

        Raises:
            BackboneError: there is no text tower, or a prompt is too long for it.
        """
        self._backbone = [backbone]
        self.scale = backbone.logit_scale if self.scale is None else float(self.scale)
        self.shift = backbone.logit_bias
        tokens = backbone.tokenize(self.prompts(class_names))
        self.register_buffer("tokens", tokens.to(backbone.device), persistent=False)

    def prompts(self, class_names: Sequence[str]) -> list[str]:
        """Return one prompt a class: the template around its name."""
        return [group[0] for group in class_prompts(class_names, self.template)]

    @property
    def backbone(self) -> Backbone:
        """The backbone whose text tower it reads."""
        if not self._backbone:
            raise InputError(
                f"the head {self.name!r} has no backbone", fix="bind(backbone, class_names) it first"
            )
        return self._backbone[0]

    def score(self, features: Tensor) -> Tensor:
        """Return the scaled cosines of embedded features and classes."""
        assert self.scale is not None
        embeddings = F.normalize(self.backbone.project(features), dim=-1)
        return self.scale * embeddings @ self.text_features().T + self.shift

    def text_features(self) -> Tensor:
        """Return the classes' normalised text features ``(C, E)``, with gradient where training needs it."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self.encode()
        state = self._state_of_tower()
        if self._cached is None or self._cached[0] != state:
            self._cached = (state, self.encode())
        return self._cached[1]

    def encode(self) -> Tensor:
        """Return the text features, computed anew."""
        return F.normalize(self.backbone.encode_tokens(self.tokens), dim=-1)

    def _state_of_tower(self) -> object:
        """Return what changes whenever a parameter does that the text features depend on."""
        tuner = self.backbone.tuned.get("text")
        trained = [*(tuner.trainable().values() if tuner else ()), *self.parameters()]
        return [(value.data_ptr(), value._version) for value in trained]


class CoOpHead(TextHead):
    """CoOp: the prompt's words are learnt vectors, shared by all classes, before the class name.

    Args:
        feature_dim: D.
        num_classes: C.
        context: how many vectors, drawn with standard deviation 0.02; not used with ``words``.
        words: words to start from (``"a photo of a"``), one vector a token.
        scale: of the cosine; None for the backbone's ``logit_scale``.

    Source:
        Zhou et al., Learning to prompt for vision-language models, IJCV 2022 (arXiv 2109.01134).
    """

    name = "coop"
    _PLACEHOLDER = "x"  # one token; its embedding is never used

    def __init__(
        self,
        feature_dim: int,
        num_classes: int,
        *,
        context: Annotated[int, Field(gt=0, le=1000)] = 16,
        words: str | None = None,
        scale: PositiveFloat | None = None,
    ) -> None:
        super().__init__(feature_dim, num_classes, scale=scale)
        if context < 1:
            raise InputError(f"context is {context}", fix="give at least one vector")
        self.length, self.words = context, words
        self._inserting = False

    def bind(self, backbone: Backbone, class_names: Sequence[str]) -> None:
        """Take the text tower, make the prompts and the context vectors.

        Raises:
            BackboneError: there is no text tower, it has another tokenizer than CLIP's, or a prompt is too long.
        """
        start = getattr(backbone.tokenizer, "sot_token_id", None)
        if start is None:
            raise BackboneError(
                "the head 'coop' needs CLIP's tokenizer, whose texts begin with a start token",
                where=backbone.name,
                fix="use the head 'text' with a tuner of the text tower",
            )
        embedding: nn.Embedding = _token_embedding(backbone)
        if self.words is None:
            vectors = 0.02 * torch.randn(self.length, embedding.embedding_dim)
        else:
            words = backbone.tokenizer.encode(self.words)
            self.length = len(words)
            vectors = embedding.weight.detach()[words].cpu().clone()
        self.context = nn.Parameter(vectors)
        super().bind(backbone, class_names)
        embedding.register_forward_hook(self._insert)

    def prompts(self, class_names: Sequence[str]) -> list[str]:
        """Return one prompt a class, with placeholders for the context."""
        names = check_class_names(class_names)
        context = " ".join([self._PLACEHOLDER] * self.length)
        return [f"{context} {name.replace('_', ' ')}." for name in names]

    def encode(self) -> Tensor:
        """Return the text features with the context in place."""
        self._inserting = True
        try:
            return super().encode()
        finally:
            self._inserting = False

    def _insert(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Hook on the token embedding: put the context after the start token, only while this head encodes."""
        if not self._inserting:
            return output
        context = self.context.to(output.dtype).expand(len(output), -1, -1)
        return torch.cat([output[:, :1], context, output[:, 1 + self.length :]], dim=1)


def _token_embedding(backbone: Backbone) -> Any:
    text: Any = backbone.text
    return getattr(text, "text", text).token_embedding
