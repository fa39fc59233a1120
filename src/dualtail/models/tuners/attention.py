"""Attention whose projections are modules, so that a tuner can reach them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dualtail.models.blocks import Block
from dualtail.models.tuners.base import Site, Tuner


class OpenAttention(nn.Module):
    """``nn.MultiheadAttention`` for self-attention, computing the same from the same parameters.

    Its input projection is a layer (``qkv``) that hooks and replacements can reach; PyTorch's own hides it in a fused
    call. Attention goes through ``scaled_dot_product_attention``.

    Args:
        attention: ``batch_first``, with equal widths of query, key and value; its parameters are shared.
    """

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self.num_heads = attention.num_heads
        self.qkv = _linear(attention.in_proj_weight, attention.in_proj_bias)
        self.proj = _linear(attention.out_proj.weight, attention.out_proj.bias)

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """Return the attended ``(B, T, D)`` and no weights; ``key`` and ``value`` are the query."""
        q, k, v = self.qkv(query).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        if attn_mask is not None and attn_mask.ndim == 3:  # one mask a sample and head
            attn_mask = attn_mask.unflatten(0, (-1, self.num_heads))
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
        return self.proj(attended.transpose(1, 2).flatten(2)), None


class SplitProjection(nn.Module):
    """A fused query-key-value layer as three, computing the same from views of its parameters.

    Args:
        fused: ``(D, 3 D)``.
    """

    def __init__(self, fused: nn.Linear) -> None:
        super().__init__()
        biases = (None,) * 3 if fused.bias is None else fused.bias.detach().chunk(3)
        self.q_proj, self.k_proj, self.v_proj = (
            _linear(weight, bias) for weight, bias in zip(fused.weight.detach().chunk(3), biases, strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return query, key and value side by side, ``(..., 3 D)``."""
        return torch.cat([self.q_proj(x), self.k_proj(x), self.v_proj(x)], dim=-1)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Return a frozen linear layer on these very tensors."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        layer.bias = bias if isinstance(bias, nn.Parameter) else nn.Parameter(bias, requires_grad=False)
    return layer


def open_attention(tuner: Tuner, site: Site, block: Block) -> Any:
    """Return a block's attention with its projections as called modules, swapping it until the tuner detaches.

    Raises:
        BackboneError: this kind of attention multiplies by its weights in some other way.
    """
    attention: Any = block.attention
    if isinstance(attention, nn.MultiheadAttention):
        if not attention.batch_first or attention.in_proj_weight is None:
            raise _closed(tuner, site, attention)
        opened = OpenAttention(attention)
        tuner.replace(block.module, "attn", opened)
        return opened
    adds_bias_itself = getattr(attention, "q_bias", None) is not None and not attention.qkv_bias_separate
    if adds_bias_itself or not input_projections(attention) or not hasattr(attention, "proj"):
        raise _closed(tuner, site, attention)
    return attention


def _closed(tuner: Tuner, site: Site, attention: nn.Module) -> Exception:
    return site.refuse(
        f"the tuner {tuner.name!r} cannot reach the projections of its attention ({type(attention).__name__})",
        fix="use 'adaptformer', 'adapter', 'bitfit' or 'layer_norm'",
    )


def input_projections(attention: Any) -> dict[str, nn.Linear]:
    """Return the layers that make query, key and value: ``qkv``, or ``q``, ``k`` and ``v`` apart."""
    if isinstance(getattr(attention, "qkv", None), nn.Linear):
        return {"qkv": attention.qkv}
    layers = {key: getattr(attention, f"{key}_proj", None) for key in "qkv"}
    return layers if all(isinstance(layer, nn.Linear) for layer in layers.values()) else {}  # type: ignore[return-value]


def output_projection(attention: Any) -> nn.Linear:
    """Return the layer after the heads are joined."""
    return attention.proj


def split_inputs(tuner: Tuner, attention: Any) -> nn.Module:
    """Return the module that holds ``q_proj``, ``k_proj`` and ``v_proj``, splitting a fused layer."""
    if not isinstance(getattr(attention, "qkv", None), nn.Linear):
        return attention
    split = SplitProjection(attention.qkv)
    tuner.replace(attention, "qkv", split)
    return split
