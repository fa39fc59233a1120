"""How a tuner reaches the projections of a block's attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dualtail.models.attention import linear_on
from dualtail.models.blocks import Block
from dualtail.models.tuners.base import Site, Tuner


class SplitProjection(nn.Module):
    """A fused query-key-value layer as three, computing the same from views of its parameters.

    Args:
        fused: ``(D, 3 D)``.
    """

    def __init__(self, fused: nn.Linear) -> None:
        super().__init__()
        biases = (None,) * 3 if fused.bias is None else fused.bias.detach().chunk(3)
        self.q_proj, self.k_proj, self.v_proj = (
            linear_on(weight, bias)
            for weight, bias in zip(fused.weight.detach().chunk(3), biases, strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return query, key and value side by side, ``(..., 3 D)``."""
        return torch.cat([self.q_proj(x), self.k_proj(x), self.v_proj(x)], dim=-1)


def open_attention(tuner: Tuner, site: Site, block: Block) -> Any:
    """Return a block's attention with its projections as called layers.

    Raises:
        BackboneError: this kind of attention multiplies by its weights in some other way.
    """
    attention: Any = block.attention
    if getattr(attention, "q_bias", None) is not None and not attention.qkv_bias_separate:
        _fold_bias(tuner, attention)
    if not input_projections(attention) or not hasattr(attention, "proj"):
        raise site.refuse(
            f"the tuner {tuner.name!r} cannot reach the projections of its attention ({type(attention).__name__})",
            fix="use 'adaptformer', 'adapter', 'bitfit' or 'layer_norm'",
        )
    return attention


def _fold_bias(tuner: Tuner, attention: Any) -> None:
    """Put the query's and value's biases, which EVA and BEiT keep apart, into the fused layer until ``detach``."""
    apart = attention.q_bias
    bias = torch.cat([attention.q_bias, attention.k_bias, attention.v_bias]).detach()
    tuner.replace(attention, "qkv", linear_on(attention.qkv.weight, bias))
    attention.q_bias = None

    def put_back() -> None:
        attention.q_bias = apart
        apart.data = apart.data.to(attention.v_bias)

    tuner.on_detach(put_back)


def input_projections(attention: Any) -> dict[str, nn.Linear]:
    """Return the layers that make query, key and value: ``qkv``, or ``q``, ``k`` and ``v`` apart."""
    if isinstance(getattr(attention, "qkv", None), nn.Linear):
        return {"qkv": attention.qkv}
    layers = {key: getattr(attention, f"{key}_proj", None) for key in "qkv"}
    return {key: layer for key, layer in layers.items() if isinstance(layer, nn.Linear)}


def split_inputs(tuner: Tuner, attention: Any) -> nn.Module:
    """Return the module that holds ``q_proj``, ``k_proj`` and ``v_proj``, splitting a fused layer."""
    if not isinstance(getattr(attention, "qkv", None), nn.Linear):
        return attention
    split = SplitProjection(attention.qkv)
    tuner.replace(attention, "qkv", split)
    return split
