"""One view of the blocks of open_clip's and timm's transformers, so that a tuner is written once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from dualtail.errors import BackboneError


@dataclass(frozen=True)
class Block:
    """A pre-norm transformer block: ``x + attention(attention_norm(x))``, then ``x + mlp(mlp_norm(x))``.

    Attributes:
        index: position in its tower, from 0.
        module: the block itself; takes and returns the residual stream ``(B, T, D)``.
        attention_norm: normalisation before the attention.
        attention: the attention module.
        mlp_norm: normalisation before the MLP; its input is the residual stream after the attention.
        mlp: the MLP module, before any layer scale.
        width: D.
    """

    index: int
    module: nn.Module
    attention_norm: nn.Module
    attention: nn.Module
    mlp_norm: nn.Module
    mlp: nn.Module
    width: int

    def mlp_layer_names(self, where: str) -> tuple[str, str]:
        """Return the names of the MLP's first and last linear layer.

        Raises:
            BackboneError: the MLP is of another shape (SwiGLU with three layers).
        """
        for names in _MLP_LAYERS:
            if all(isinstance(getattr(self.mlp, name, None), nn.Linear) for name in names):
                return names
        raise BackboneError(
            f"its MLP ({type(self.mlp).__name__}) has no plain pair of layers to tune",
            where=where,
            fix="use 'adaptformer', 'adapter', or a tuner of the attention alone",
        )


# (attention norm, attention, MLP norm, MLP) as open_clip and as timm call them.
_PARTS = (("ln_1", "attn", "ln_2", "mlp"), ("norm1", "attn", "norm2", "mlp"))

_MLP_LAYERS = (("c_fc", "c_proj"), ("fc1", "fc2"))

# Blocks with these parts that wire them in another way (normalisation after, or branches side by side).
_OTHER_WIRING = {"ResPostBlock", "EvaBlockPostNorm", "ParallelScalingBlock", "DiffParallelScalingBlock"}


def blocks_of(modules: Iterable[nn.Module] | None) -> tuple[Block, ...]:
    """Return the views of a tower's blocks, or ``()`` if one of them is no pre-norm transformer block."""
    views = []
    for index, module in enumerate(modules or ()):
        view = _view(index, module)
        if view is None:
            return ()
        views.append(view)
    return tuple(views)


def _view(index: int, module: nn.Module) -> Block | None:
    if type(module).__name__ in _OTHER_WIRING:
        return None
    for names in _PARTS:
        parts = [getattr(module, name, None) for name in names]
        if all(isinstance(part, nn.Module) for part in parts):
            norm = parts[2]
            weight = getattr(norm, "weight", None)
            return Block(index, module, *parts, width=weight.numel()) if weight is not None else None  # type: ignore[arg-type, misc]
    return None
