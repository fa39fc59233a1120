"""Self-attention whose projections are layers, in place of ``nn.MultiheadAttention``."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn
from torch.nn import functional as F


class SelfAttention(nn.Module):
    """``nn.MultiheadAttention`` for self-attention, computing the same from the same parameters.

    Its projections are layers that tuners can reach; PyTorch's own hides them in one call, copies query, key and value
    once more on the way, and takes another path in evaluation than in training. Here attention always goes through
    ``scaled_dot_product_attention``, on views.

    Args:
        attention: ``batch_first``, with equal widths of query, key and value; its parameters are shared.

    Example:
        >>> import torch
        >>> theirs = nn.MultiheadAttention(8, 2, batch_first=True)
        >>> x = torch.randn(2, 5, 8)
        >>> torch.allclose(SelfAttention(theirs)(x)[0], theirs(x, x, x)[0], atol=1e-6)
        True
    """

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self.num_heads = attention.num_heads
        self.qkv = linear_on(attention.in_proj_weight, attention.in_proj_bias)
        self.proj = linear_on(attention.out_proj.weight, attention.out_proj.bias)

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """Return the attended ``(B, T, D)`` and no weights; ``key`` and ``value`` are taken to be the query."""
        q, k, v = self.qkv(query).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        if attn_mask is not None and attn_mask.ndim == 3:  # one mask a sample and head
            attn_mask = attn_mask.unflatten(0, (-1, self.num_heads))
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
        return self.proj(attended.transpose(1, 2).flatten(2)), None


def linear_on(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Return a linear layer on these very tensors: parameters as they are, others as frozen parameters."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = _parameter(weight)
    if bias is not None:
        layer.bias = _parameter(bias)
    return layer


def _parameter(value: Tensor) -> nn.Parameter:
    return value if isinstance(value, nn.Parameter) else nn.Parameter(value.detach(), requires_grad=False)


def replace_attention(blocks: Iterable[nn.Module]) -> None:
    """Give open_clip's blocks ``SelfAttention`` where theirs is PyTorch's; other kinds stay."""
    for block in blocks:
        attention = getattr(block, "attn", None)
        if isinstance(attention, nn.MultiheadAttention) and _replaceable(attention):
            block.attn = SelfAttention(attention)


def _replaceable(attention: nn.MultiheadAttention) -> bool:
    extras = (attention.bias_k, attention.bias_v, attention.add_zero_attn or None, attention.dropout or None)
    return attention.batch_first and attention.in_proj_weight is not None and all(x is None for x in extras)
